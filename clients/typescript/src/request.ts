/** From a request in JavaScript's words to the message on the wire. The server checks ranges. */
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { GenerateRequestSchema, type GenerateRequest as WireRequest } from "./generated/bespoke/v1/generation_pb.js";
import { type PersonaSourceSchema, type PromptSpecSchema, Role, Template } from "./generated/bespoke/v1/prompt_pb.js";

/** How prompt and persona become text. */
export type TemplateName = "paper" | "chat" | "none";

/** One turn of a conversation. */
export interface ChatMessage {
  role: "system" | "user" | "assistant";
  content: string;
}

/** For whom the answer is: the persona itself, one that the server keeps, or the one of its configuration. */
export type PersonaSource = string | { text: string } | { id: string } | { system: true } | { none: true };

/** What is asked. What is left out is the server's default. Exactly one of `prompt`, `messages` and `tokenIds` is given. */
export interface GenerateRequest {
  /** One text. */
  prompt?: string;
  /** A conversation, which ends with the turn that is answered. */
  messages?: ChatMessage[];
  /** Token ids, used as they are. */
  tokenIds?: number[];
  /** For whom the answer is. */
  persona?: PersonaSource;
  /** How prompt and persona become text. */
  template?: TemplateName;
  /** Template paper only: the persona joins the prompt line in the first person. */
  personaInPrompt?: boolean;
  /** Text that the answer starts with; part of the prompt. */
  responsePrefix?: string;
  /** The longest answer, in tokens. */
  maxNewTokens?: number;
  minNewTokens?: number;
  /** 0 takes the most likely token. */
  temperature?: number;
  topK?: number;
  topP?: number;
  minP?: number;
  repetitionPenalty?: number;
  frequencyPenalty?: number;
  presencePenalty?: number;
  /** Added to the logits of these tokens. */
  logitBias?: Record<number, number>;
  /** Fixes the random draw. */
  seed?: bigint | number;
  /** The answer ends before the first of these texts. */
  stop?: string[];
  stopTokenIds?: number[];
  /** Goes on after the model's own end tokens. */
  ignoreEnd?: boolean;
  /** Reports the log-probabilities of the tokens of the answer. */
  logprobs?: boolean;
  /** Also those of this many most likely tokens at each place. */
  topLogprobs?: number;
  promptLogprobs?: boolean;
  /** The answer begins with the rendered prompt. */
  echo?: boolean;
  /** How many answers. */
  n?: number;
  /** Ends the answers after this time, with the reason `timeLimit`. */
  timeLimitMs?: number;
  draftTokensMax?: number;
  /** Names the request in events and in the server's log. */
  requestId?: string;
  /** Higher ones leave the queue sooner. */
  priority?: number;
  /** How the prefix cache is used. */
  prefixCache?: { off?: boolean; salt?: string };
}

const TEMPLATES = { paper: Template.PAPER, chat: Template.CHAT, none: Template.NONE } as const;
const ROLES = { system: Role.SYSTEM, user: Role.USER, assistant: Role.ASSISTANT } as const;

/** Makes the message. Throws a TypeError for what the wire cannot carry. */
export function toWire(request: GenerateRequest): WireRequest {
  return create(GenerateRequestSchema, {
    spec: spec(request),
    params: {
      sampling: {
        ...given("temperature", request.temperature),
        ...given("topK", request.topK),
        ...given("topP", request.topP),
        ...given("minP", request.minP),
        ...given("repetitionPenalty", request.repetitionPenalty),
        ...given("frequencyPenalty", request.frequencyPenalty),
        ...given("presencePenalty", request.presencePenalty),
        ...given("logitBias", request.logitBias),
        ...given("seed", request.seed === undefined ? undefined : BigInt(request.seed)),
      },
      stop: {
        strings: strings(request.stop),
        tokenIds: request.stopTokenIds ?? [],
        ignoreEnd: request.ignoreEnd ?? false,
      },
      logprobs: {
        sampled: request.logprobs ?? false,
        top: request.topLogprobs ?? 0,
        prompt: request.promptLogprobs ?? false,
      },
      echo: request.echo ?? false,
      ...given("maxNewTokens", request.maxNewTokens),
      ...given("minNewTokens", request.minNewTokens),
      ...given("n", request.n),
      ...given("timeLimitMs", request.timeLimitMs),
      ...given("draftTokensMax", request.draftTokensMax),
    },
    requestId: request.requestId ?? "",
    priority: request.priority ?? 0,
  });
}

function spec(request: GenerateRequest): MessageInitShape<typeof PromptSpecSchema> {
  return {
    prompt: prompt(request),
    ...given("persona", request.persona === undefined ? undefined : persona(request.persona)),
    template: request.template === undefined ? Template.UNSPECIFIED : member(TEMPLATES, request.template, "template"),
    personaInPrompt: request.personaInPrompt ?? false,
    responsePrefix: request.responsePrefix ?? "",
    prefixCache: { off: request.prefixCache?.off ?? false, salt: request.prefixCache?.salt ?? "" },
  };
}

function prompt({ prompt, messages, tokenIds }: GenerateRequest) {
  if ([prompt, messages, tokenIds].filter((one) => one !== undefined).length !== 1) {
    throw new TypeError("give exactly one of `prompt`, `messages` and `tokenIds`");
  }
  if (prompt !== undefined) return { case: "text", value: prompt } as const;
  if (tokenIds !== undefined) return { case: "tokenIds", value: { ids: tokenIds } } as const;
  const turn = ({ role, content }: ChatMessage) => ({ role: member(ROLES, role, "role"), content });
  return { case: "messages", value: { messages: (messages ?? []).map(turn) } } as const;
}

function persona(source: PersonaSource): MessageInitShape<typeof PersonaSourceSchema> {
  if (typeof source === "string") return { source: { case: "text", value: source } };
  if ("text" in source) return { source: { case: "text", value: source.text } };
  if ("id" in source) return { source: { case: "id", value: source.id } };
  if ("system" in source) return { source: { case: "system", value: {} } };
  return { source: { case: "none", value: {} } };
}

/** A lone string is a sequence of its letters, each of which would silently become a stop string. */
function strings(stop: string[] | undefined): string[] {
  if (typeof stop === "string") throw new TypeError("`stop` is a list of strings, not one string");
  return stop ?? [];
}

function member<T>(known: Record<string, T>, name: string, what: string): T {
  const found = Object.hasOwn(known, name) ? known[name] : undefined;
  if (found === undefined) throw new TypeError(`\`${what}\` must be one of ${Object.keys(known).join(", ")}`);
  return found;
}

/** A member that is absent stays absent, which is what tells a default from zero. */
function given<K extends string, V>(name: K, value: V | undefined): { [name in K]?: V } {
  return value === undefined ? {} : ({ [name]: value } as { [name in K]?: V });
}
