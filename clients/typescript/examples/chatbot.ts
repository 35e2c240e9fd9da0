/**
 * A chatbot's backend: conversations over HTTP, answers streamed from the engine as server-sent events.
 *
 *     npm run build && npx esbuild examples/chatbot.ts --bundle --platform=node --format=esm --outfile=dist/chatbot.mjs
 *     node dist/chatbot.mjs http://127.0.0.1:50051 8000
 *     curl -N localhost:8000/chat -d '{"conversation": "a", "persona": "The user is a novice cook.", "text": "Rice?"}'
 *
 * Each conversation keeps its last turns; the engine's prefix cache makes them cheap to send again.
 */
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { BespokeError, type ChatMessage, createClient } from "../src/node.js";

const CONVERSATIONS_MAX = 1000;
const TURNS_MAX = 20;
const BODY_BYTES_MAX = 64 * 1024;

interface Asked {
  conversation: string;
  text: string;
  persona?: string;
}

const [address = "http://127.0.0.1:50051", port = "8000"] = process.argv.slice(2);
const client = createClient({ address });
const conversations = new Map<string, ChatMessage[]>();

/** Yields the pieces of an answer; leaving early cancels it and keeps what was said before. */
async function* answer({ conversation, text, persona }: Asked, signal: AbortSignal): AsyncGenerator<string> {
  const turns: ChatMessage[] = [...(conversations.get(conversation) ?? []), { role: "user", content: text }];
  const request = { messages: turns, maxNewTokens: 400, ...(persona === undefined ? {} : { persona }) };
  let said = "";
  for await (const event of client.stream(request, { signal, timeoutMs: 120_000 })) {
    // Text that may yet become a stop string is held back: such a delta has none.
    if (event.type !== "delta" || event.text === "") continue;
    said += event.text;
    yield event.text;
  }
  conversations.delete(conversation);
  conversations.set(conversation, [...turns, { role: "assistant" as const, content: said }].slice(-TURNS_MAX));
  const [oldest] = conversations.keys();
  if (conversations.size > CONVERSATIONS_MAX && oldest !== undefined) conversations.delete(oldest);
}

async function read(request: IncomingMessage): Promise<Asked> {
  const pieces: Buffer[] = [];
  let size = 0;
  for await (const piece of request) {
    size += piece.length;
    if (size > BODY_BYTES_MAX) throw new TypeError("the body is too long");
    pieces.push(piece);
  }
  const { conversation, text, persona } = JSON.parse(Buffer.concat(pieces).toString()) as Partial<Asked>;
  if (typeof conversation !== "string" || typeof text !== "string") throw new TypeError("conversation and text are texts");
  return typeof persona === "string" ? { conversation, text, persona } : { conversation, text };
}

async function chat(request: IncomingMessage, response: ServerResponse): Promise<void> {
  const gone = new AbortController();
  response.once("close", () => gone.abort());
  const send = (data: unknown, kind = "message") => response.write(`event: ${kind}\ndata: ${JSON.stringify(data)}\n\n`);
  try {
    const pieces = answer(await read(request), gone.signal);
    const first = await pieces.next();
    response.writeHead(200, { "content-type": "text/event-stream" });
    if (!first.done) send(first.value);
    for await (const piece of pieces) send(piece);
    send({}, "done");
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    if (response.headersSent) send(message, "error");
    else response.writeHead(status(error), headers(error)).write(message);
  } finally {
    response.end();
  }
}

/** What the chatbot's own caller is told: it is wrong, the engine is busy, or the engine has failed. */
function status(error: unknown): number {
  if (!(error instanceof BespokeError) || error.code === "InvalidArgument") return 400;
  return ["ResourceExhausted", "Unavailable"].includes(error.code) ? 503 : 502;
}

function headers(error: unknown): Record<string, string> {
  const plain = { "content-type": "text/plain; charset=utf-8" };
  if (status(error) !== 503) return plain;
  const afterMs = (error instanceof BespokeError && error.retryAfterMs) || 1000;
  return { ...plain, "retry-after": String(Math.ceil(afterMs / 1000)) };
}

const server = createServer((request, response) => {
  if (request.method === "POST" && request.url === "/chat") void chat(request, response);
  else response.writeHead(404).end();
});
server.listen(Number(port), "127.0.0.1", () => {
  const bound = server.address();
  console.log(`http://127.0.0.1:${typeof bound === "object" ? bound?.port : port}/chat`);
});
