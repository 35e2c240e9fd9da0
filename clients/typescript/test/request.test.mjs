import assert from "node:assert/strict";
import { test } from "node:test";
import { createClient } from "../dist/node.js";
import { toWire } from "../dist/request.js";

test("what is left out is left to the server", () => {
  const { spec, params } = toWire({ prompt: "a" });
  assert.deepEqual(spec?.prompt, { case: "text", value: "a" });
  assert.equal(spec?.persona, undefined);
  assert.equal(params?.maxNewTokens, undefined);
  assert.equal(params?.sampling?.temperature, undefined);
  assert.equal(params?.sampling?.seed, undefined);
});

test("zero is not the same as left out", () => {
  const { params } = toWire({ prompt: "a", temperature: 0, seed: 0, maxNewTokens: 5 });
  assert.equal(params?.sampling?.temperature, 0);
  assert.equal(params?.sampling?.seed, 0n);
  assert.equal(params?.maxNewTokens, 5);
});

test("personas have the forms of the wire", () => {
  const source = (persona) => toWire({ prompt: "a", persona }).spec?.persona?.source;
  assert.deepEqual(source("A cook."), { case: "text", value: "A cook." });
  assert.deepEqual(source({ text: "A cook." }), { case: "text", value: "A cook." });
  assert.deepEqual(source({ id: "novice" }), { case: "id", value: "novice" });
  assert.equal(source({ system: true })?.case, "system");
  assert.equal(source({ none: true })?.case, "none");
});

test("what the wire cannot carry is refused", () => {
  assert.throws(() => toWire({}), TypeError);
  assert.throws(() => toWire({ prompt: "a", tokenIds: [1] }), TypeError);
  assert.throws(() => toWire({ prompt: "a", stop: "ab" }), TypeError);
  assert.throws(() => toWire({ prompt: "a", template: "own" }), TypeError);
  assert.throws(() => toWire({ messages: [{ role: "tool", content: "a" }] }), TypeError);
});

test("a token is not sent in the clear", () => {
  assert.throws(() => createClient({ address: "http://engine.example:50051", token: "t" }), TypeError);
  assert.ok(createClient({ address: "https://engine.example:50051", token: "t" }));
  assert.ok(createClient({ token: "t" }));
});
