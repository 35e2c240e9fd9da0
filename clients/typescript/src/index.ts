/**
 * What both clients share. `bespoke-client/node` connects over gRPC, `bespoke-client/web` over gRPC-Web.
 *
 * @packageDocumentation
 */
export { BespokeClient, type CallOptions } from "./client.js";
export { BespokeError, type ErrorCode, type Violation } from "./errors.js";
export type {
  Answer,
  Choice,
  DeltaEvent,
  Event,
  FinishedEvent,
  FinishReason,
  Logprob,
  MatchedStop,
  StartedEvent,
  Timings,
  TopLogprob,
  Usage,
} from "./events.js";
export type { ChatMessage, GenerateRequest, PersonaSource, TemplateName } from "./request.js";
export type { GetServerInfoResponse as ServerInfo } from "./generated/bespoke/v1/model_pb.js";
