/** Events and answers in JavaScript's words. */
import type {
  Choice as WireChoice,
  Delta,
  Finished,
  MatchedStop as WireStop,
  Started,
  Timings as WireTimings,
  TokenLogprob,
  Usage as WireUsage,
} from "./generated/bespoke/v1/event_pb.js";
import { FinishReason as WireReason } from "./generated/bespoke/v1/event_pb.js";
import type { GenerateResponse, GenerateStreamResponse } from "./generated/bespoke/v1/generation_pb.js";

/** Why a choice ended; `unknown` where this client is older than the server. */
export type FinishReason = "endOfText" | "stop" | "length" | "timeLimit" | "unknown";
/** What stopped a choice. */
export type MatchedStop = { text: string } | { tokenId: number };

/** One of the most likely tokens at a place. */
export interface TopLogprob {
  tokenId: number;
  /** Its bytes, which need not be UTF-8. */
  piece: Uint8Array;
  logprob: number;
}

/** The log-probability of a token, natural logarithm. */
export interface Logprob {
  tokenId: number;
  piece: Uint8Array;
  /** Absent for the first token of a prompt. */
  logprob: number | undefined;
  top: TopLogprob[];
}

/** What a request used, in tokens. */
export interface Usage {
  promptTokens: number;
  cachedTokens: number;
  generatedTokens: number;
  draftedTokens: number;
  acceptedTokens: number;
}

/** How long a request took. */
export interface Timings {
  queueMs: number;
  prefillMs: number;
  decodeMs: number;
}

/** The request has left the queue. */
export interface StartedEvent {
  type: "started";
  requestId: string;
  modelDigest: string;
  templateHash: string;
  persona: string | undefined;
  promptTokens: number;
  cachedTokens: number;
  seed: bigint;
}

/** A choice has grown. */
export interface DeltaEvent {
  type: "delta";
  choice: number;
  text: string;
  tokenIds: number[];
  logprobs: Logprob[];
  promptLogprobs: Logprob[];
}

/** How a choice ended. */
export interface Choice {
  choice: number;
  reason: FinishReason;
  matchedStop: MatchedStop | undefined;
  generatedTokens: number;
}

/** All choices have ended; nothing follows. */
export interface FinishedEvent {
  type: "finished";
  choices: Choice[];
  usage: Usage;
  timings: Timings;
}

/** One `started`, then `delta`s, then one `finished`. */
export type Event = StartedEvent | DeltaEvent | FinishedEvent;

/** Whole answers. */
export interface Answer {
  started: StartedEvent;
  /** The text of the first choice. */
  text: string;
  choices: (Choice & { text: string; tokenIds: number[]; logprobs: Logprob[] })[];
  usage: Usage;
  timings: Timings;
  promptLogprobs: Logprob[];
}

const REASONS: Record<number, FinishReason> = {
  [WireReason.END_OF_TEXT]: "endOfText",
  [WireReason.STOP]: "stop",
  [WireReason.LENGTH]: "length",
  [WireReason.TIME_LIMIT]: "timeLimit",
};

/** Returns the event of a message; undefined for one that this client is too old to know. */
export function event({ event }: GenerateStreamResponse): Event | undefined {
  switch (event.case) {
    case "started":
      return started(event.value);
    case "delta":
      return delta(event.value);
    case "finished":
      return finished(event.value);
    default:
      return undefined;
  }
}

/** Returns the answer of a message. */
export function answer(response: GenerateResponse): Answer {
  if (response.started === undefined) throw new TypeError("the server's answer has no `started`");
  const choices = response.choices.map((one) => ({
    ...choice(one),
    text: one.text,
    tokenIds: one.tokenIds,
    logprobs: one.logprobs.map(logprob),
  }));
  return {
    started: started(response.started),
    text: choices[0]?.text ?? "",
    choices,
    usage: usage(response.usage),
    timings: timings(response.timings),
    promptLogprobs: response.promptLogprobs.map(logprob),
  };
}

function started(wire: Started): StartedEvent {
  const { requestId, modelDigest, templateHash, persona, promptTokens, cachedTokens, seed } = wire;
  return { type: "started", requestId, modelDigest, templateHash, persona, promptTokens, cachedTokens, seed };
}

function delta({ choice, text, tokenIds, logprobs, promptLogprobs }: Delta): DeltaEvent {
  return {
    type: "delta",
    choice,
    text,
    tokenIds,
    logprobs: logprobs.map(logprob),
    promptLogprobs: promptLogprobs.map(logprob),
  };
}

function finished(wire: Finished): FinishedEvent {
  return { type: "finished", choices: wire.choices.map(choice), usage: usage(wire.usage), timings: timings(wire.timings) };
}

function choice(wire: Pick<WireChoice, "choice" | "reason" | "matchedStop" | "generatedTokens">): Choice {
  return {
    choice: wire.choice,
    reason: REASONS[wire.reason] ?? "unknown",
    matchedStop: stop(wire.matchedStop),
    generatedTokens: wire.generatedTokens,
  };
}

function stop(wire: WireStop | undefined): MatchedStop | undefined {
  switch (wire?.matched.case) {
    case "text":
      return { text: wire.matched.value };
    case "tokenId":
      return { tokenId: wire.matched.value };
    default:
      return undefined;
  }
}

function logprob({ tokenId, piece, logprob, top }: TokenLogprob): Logprob {
  return { tokenId, piece, logprob, top: top.map(({ tokenId, piece, logprob }) => ({ tokenId, piece, logprob })) };
}

function usage(wire: WireUsage | undefined): Usage {
  return {
    promptTokens: wire?.promptTokens ?? 0,
    cachedTokens: wire?.cachedTokens ?? 0,
    generatedTokens: wire?.generatedTokens ?? 0,
    draftedTokens: wire?.draftedTokens ?? 0,
    acceptedTokens: wire?.acceptedTokens ?? 0,
  };
}

function timings(wire: WireTimings | undefined): Timings {
  return { queueMs: wire?.queueMs ?? 0, prefillMs: wire?.prefillMs ?? 0, decodeMs: wire?.decodeMs ?? 0 };
}
