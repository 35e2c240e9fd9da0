/** The client over any transport. */
import { create } from "@bufbuild/protobuf";
import { type Client, createClient, type Transport } from "@connectrpc/connect";
import { BespokeError } from "./errors.js";
import { type Answer, answer, type Event, event } from "./events.js";
import { GenerateStreamRequestSchema, GenerationService } from "./generated/bespoke/v1/generation_pb.js";
import { type GetServerInfoResponse, ModelService } from "./generated/bespoke/v1/model_pb.js";
import { TokenizerService } from "./generated/bespoke/v1/tokenizer_pb.js";
import { type GenerateRequest, toWire } from "./request.js";

/** How one call is made. */
export interface CallOptions {
  /** Cancels the call. */
  signal?: AbortSignal;
  /** The deadline of the call. */
  timeoutMs?: number;
}

/** A connection to one server. Every method throws a `BespokeError` where the call fails. */
export class BespokeClient {
  readonly #generation: Client<typeof GenerationService>;
  readonly #tokenizer: Client<typeof TokenizerService>;
  readonly #model: Client<typeof ModelService>;

  constructor(transport: Transport) {
    this.#generation = createClient(GenerationService, transport);
    this.#tokenizer = createClient(TokenizerService, transport);
    this.#model = createClient(ModelService, transport);
  }

  /** Streams the events of a generation. Leaving the loop early cancels it. */
  async *stream(request: GenerateRequest, options: CallOptions = {}): AsyncGenerator<Event, void, undefined> {
    const { spec, params, requestId, priority } = toWire(request);
    const wire = create(GenerateStreamRequestSchema, { ...set({ spec, params }), requestId, priority });
    const stopped = new AbortController();
    const signal = options.signal ? either(options.signal, stopped) : stopped.signal;
    try {
      for await (const message of this.#generation.generateStream(wire, { ...options, signal })) {
        const known = event(message);
        if (known !== undefined) yield known;
      }
    } catch (error) {
      throw new BespokeError(error);
    } finally {
      stopped.abort();
    }
  }

  /** Returns whole answers. */
  async generate(request: GenerateRequest, options: CallOptions = {}): Promise<Answer> {
    const wire = toWire(request);
    return answer(await call(this.#generation.generate(wire, options)));
  }

  /** Returns the tokens of a text. */
  async tokenize(text: string, options: CallOptions & { addSpecial?: boolean; parseControl?: boolean } = {}): Promise<number[]> {
    const { addSpecial = false, parseControl = false, ...rest } = options;
    return (await call(this.#tokenizer.tokenize({ text, addSpecial, parseControl }, rest))).tokenIds;
  }

  /** Returns the text of tokens. */
  async detokenize(tokenIds: number[], options: CallOptions = {}): Promise<string> {
    return (await call(this.#tokenizer.detokenize({ tokenIds }, options))).text;
  }

  /** Returns the facts of the server, its model and its present load. */
  async serverInfo(options: CallOptions = {}): Promise<GetServerInfoResponse> {
    return call(this.#model.getServerInfo({}, options));
  }
}

async function call<T>(answered: Promise<T>): Promise<T> {
  try {
    return await answered;
  } catch (error) {
    throw new BespokeError(error);
  }
}

/** Aborts with either: `AbortSignal.any` is younger than the oldest Node that this package supports. */
function either(signal: AbortSignal, stopped: AbortController): AbortSignal {
  if (signal.aborted) stopped.abort(signal.reason);
  signal.addEventListener("abort", () => stopped.abort(signal.reason), { once: true, signal: stopped.signal });
  return stopped.signal;
}

/** Leaves out members that are undefined. */
function set<T extends object>(members: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(members).filter(([, value]) => value !== undefined)) as never;
}
