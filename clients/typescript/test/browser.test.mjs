// Over gRPC-Web in a real browser, from a page of another origin.
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { after, before, describe, test } from "node:test";
import { build } from "esbuild";
import { chromium as playwright } from "playwright-core";
import { chromium, Server, skipBrowser } from "./server.mjs";

describe("browser", { skip: skipBrowser }, () => {
  let server, pages, browser, page;
  before(async () => {
    const bundle = await build({
      entryPoints: [new URL("../dist/web.js", import.meta.url).pathname],
      bundle: true, format: "esm", write: false,
    });
    pages = createServer((request, response) => {
      const isScript = request.url === "/client.js";
      response.setHeader("content-type", isScript ? "text/javascript" : "text/html");
      response.end(isScript ? bundle.outputFiles[0].text : "<!doctype html><title>page</title>");
    });
    await new Promise((resolve) => pages.listen(0, "127.0.0.1", resolve));
    const origin = `http://127.0.0.1:${pages.address().port}`;
    server = await Server.start("--cors-origins", origin);
    browser = await playwright.launch({ executablePath: chromium, args: ["--no-sandbox"] });
    page = await browser.newPage();
    await page.goto(origin);
  });
  after(async () => {
    await browser?.close();
    pages?.close();
    await server?.stop();
  });

  test("a page streams an answer", async () => {
    const seen = await page.evaluate(async (address) => {
      const { createClient } = await import("/client.js");
      const client = createClient({ address });
      const request = { prompt: "Hello", persona: "The user is new.", maxNewTokens: 20, seed: 7, ignoreEnd: true };
      const whole = await client.generate(request);
      const events = [];
      for await (const event of client.stream(request)) events.push(event);
      const text = events.map((event) => (event.type === "delta" ? event.text : "")).join("");
      return { types: events.map((event) => event.type), same: text === whole.text, tokens: whole.usage.generatedTokens };
    }, server.http);
    assert.deepEqual([seen.types[0], seen.types.at(-1)], ["started", "finished"]);
    assert.ok(seen.types.length > 10 && seen.same);
    assert.equal(seen.tokens, 20);
  });

  test("a page sees the details of an error", async () => {
    const seen = await page.evaluate(async (address) => {
      const { createClient } = await import("/client.js");
      const error = await createClient({ address }).generate({ prompt: "a", topP: 2 }).catch((thrown) => thrown);
      return { code: error.code, violations: error.violations };
    }, server.http);
    assert.equal(seen.code, "InvalidArgument");
    assert.equal(seen.violations[0].field, "params.sampling.top_p");
  });

  test("a page of an origin that is not listed may not call", async () => {
    const other = await Server.start("--cors-origins", "https://chat.example");
    try {
      const code = await page.evaluate(async (address) => {
        const { createClient } = await import("/client.js");
        return createClient({ address }).serverInfo().then(() => "answered", (error) => error.code);
      }, other.http);
      assert.notEqual(code, "answered");
    } finally {
      await other.stop();
    }
  });
});
