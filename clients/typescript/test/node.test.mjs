// Over gRPC against the real server.
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { BespokeError, createClient } from "../dist/node.js";
import { Server, skip, until } from "./server.mjs";

const LONG = { prompt: "long", template: "none", ignoreEnd: true, maxNewTokens: 1500, n: 16 };

/** @type {(promise: Promise<unknown>) => Promise<BespokeError>} */
async function failure(promise) {
  const error = await promise.then(() => null, (thrown) => thrown);
  assert.ok(error instanceof BespokeError, String(error));
  return error;
}

async function collect(events) {
  const all = [];
  for await (const event of events) all.push(event);
  return all;
}

describe("Node", { skip }, () => {
  let server;
  let client;
  before(async () => {
    server = await Server.start();
    client = createClient({ address: server.grpc });
  });
  after(() => server?.stop());

  const idle = () =>
    until(async () => {
      const { load } = await client.serverInfo();
      return load.numRunning + load.numWaiting + load.numKvBlocksUsed === 0;
    });

  test("a stream joined is the whole answer", async () => {
    const request = { prompt: "Hello", persona: "The user is new.", maxNewTokens: 40, seed: 7, ignoreEnd: true, logprobs: true };
    const whole = await client.generate(request);
    const events = await collect(client.stream(request));
    const [started, finished] = [events[0], events.at(-1)];
    assert.equal(started.type, "started");
    assert.equal(started.persona, "The user is new.");
    assert.equal(started.seed, 7n);
    const deltas = events.slice(1, -1);
    assert.ok(deltas.every((event) => event.type === "delta"));
    assert.equal(deltas.map((event) => event.text).join(""), whole.text);
    assert.deepEqual(deltas.flatMap((event) => event.logprobs), whole.choices[0].logprobs);
    assert.equal(finished.type, "finished");
    assert.equal(finished.choices[0].reason, "length");
    assert.equal(finished.usage.generatedTokens, 40);
  });

  test("a conversation is answered", async () => {
    const messages = [{ role: "user", content: "a" }, { role: "assistant", content: "b" }, { role: "user", content: "c" }];
    const answer = await client.generate({ messages, maxNewTokens: 3, temperature: 0 });
    assert.ok(answer.usage.promptTokens > 3);
  });

  test("text becomes tokens and back", async () => {
    assert.equal(await client.detokenize(await client.tokenize("wörld")), "wörld");
  });

  test("leaving the loop frees the server", async () => {
    for await (const event of client.stream(LONG)) if (event.type === "delta") break;
    await idle();
  });

  test("an abort frees the server", async () => {
    const stop = new AbortController();
    const error = await failure(
      (async () => {
        for await (const event of client.stream(LONG, { signal: stop.signal })) if (event.type === "delta") stop.abort();
      })(),
    );
    assert.equal(error.code, "Canceled");
    await idle();
  });

  test("errors have their details", async () => {
    const wrong = await failure(client.generate({ prompt: "a", topP: 2 }));
    assert.equal(wrong.code, "InvalidArgument");
    assert.equal(wrong.violations[0].field, "params.sampling.top_p");
    const unknown = await failure(collect(client.stream({ prompt: "a", persona: { id: "absent" } })));
    assert.equal(unknown.code, "NotFound");
    assert.deepEqual(unknown.resource, { type: "persona", name: "absent" });
    const late = await failure(client.generate(LONG, { timeoutMs: 30 }));
    assert.equal(late.code, "DeadlineExceeded");
    await idle();
  });

  test("a full queue says when to try again", async () => {
    // One answer at a time and one that waits: of eight long ones that are asked at once, the others are refused.
    const narrow = await Server.start("--queue-max", "1", "--sequences-max", "1");
    const stop = new AbortController();
    try {
      const asking = createClient({ address: narrow.grpc });
      const asked = Array.from({ length: 8 }, () => failure(asking.generate({ ...LONG, n: 1 }, { signal: stop.signal })));
      const full = await Promise.race(asked);
      assert.equal(full.code, "ResourceExhausted");
      assert.equal(full.reason, "QUEUE_FULL");
      assert.ok(full.retryAfterMs > 0);
      stop.abort();
      await Promise.allSettled(asked);
    } finally {
      await narrow.stop();
    }
  });

  test("a server that is not there is unavailable", async () => {
    const error = await failure(createClient({ address: "http://127.0.0.1:1" }).serverInfo());
    assert.equal(error.code, "Unavailable");
  });
});
