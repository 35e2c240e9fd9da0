// The playground in a real browser, against the real server.
import assert from "node:assert/strict";
import { after, before, beforeEach, describe, test } from "node:test";
import { chromium as playwright } from "playwright-core";
import { chromium, Server, skipBrowser, until } from "./server.mjs";

// Where screenshots are written for people to look at; nowhere in CI.
const SHOTS = process.env["BESPOKE_SCREENSHOTS"];

describe("playground", { skip: skipBrowser }, () => {
  let server, browser, page;
  const problems = [];
  before(async () => {
    server = await Server.start("--ui", "--system-persona", "The user is busy.");
    browser = await playwright.launch({ executablePath: chromium, args: ["--no-sandbox"] });
  });
  after(async () => {
    await browser?.close();
    await server?.stop();
  });
  beforeEach(async () => {
    await page?.context().close();
    page = await open({ width: 1280, height: 900 });
  });

  async function open(viewport, options = {}) {
    const opened = await (await browser.newContext({ viewport, ...options })).newPage();
    opened.on("console", (message) => message.type() === "error" && problems.push(message.text()));
    opened.on("pageerror", (error) => problems.push(String(error)));
    opened.on("request", (request) => request.url().startsWith(server.http) || problems.push(request.url()));
    await opened.goto(server.http);
    await opened.waitForSelector(".model[data-state=ready]");
    return opened;
  }

  const shot = (name, of = page) => SHOTS && of.screenshot({ path: `${SHOTS}/${name}.png`, fullPage: true });
  const states = (of = page) => of.$$eval(".card", (cards) => cards.map((card) => card.dataset.state));
  const all = (state, of = page) => until(async () => (await states(of)).every((one) => one === state));

  async function ask(length, of = page) {
    await of.fill("#prompt", "Why is the sky blue?");
    await of.click("#settings > summary");
    await of.fill("#max_tokens", String(length));
    await of.fill("#seed", "7");
    await of.click("#settings > summary");
    await of.click("#run");
  }

  test("one question is answered for three personas", async () => {
    await ask(30);
    await all("done");
    const readouts = await page.$$eval(".card", (cards) =>
      cards.map((card) => ["ttft", "tokens", "rate", "prompt-tokens", "end"].map((name) => card.querySelector(`.${name}`).textContent)),
    );
    assert.equal(readouts.length, 3);
    for (const [ttft, tokens, rate, prompt, end] of readouts) {
      assert.match(ttft, /^\d+ ms$/);
      assert.ok(Number(tokens) > 0 && Number(tokens) <= 30, tokens);
      assert.match(rate, /^[\d.]+$|^–$/);
      assert.match(prompt, /^\d+/);
      assert.match(end, /length|stop/);
    }
    assert.match(await page.textContent("#summary"), /3 of 3 answers/);
    await shot("done-wide");
  });

  test("answers stream side by side and Escape stops them all", async () => {
    await ask(1500);
    await until(async () => (await states()).includes("streaming"));
    assert.equal(await page.isDisabled("#run"), true);
    await shot("streaming-wide");
    await page.keyboard.press("Escape");
    await until(async () => (await states()).every((state) => state === "stopped" || state === "done"));
    assert.ok((await states()).includes("stopped"));
    assert.equal(await page.isDisabled("#run"), false);
  });

  test("answers are painted as they come, however fast", async () => {
    // Faster than any model here: each card gets 2,000 tokens a second from a stream of its own.
    await page.evaluate(() => {
      const [tokensPerTick, ticks, tickMs] = [8, 250, 4];
      const event = (data) => new TextEncoder().encode(`data: ${data}\n\n`);
      const stream = () =>
        new ReadableStream({
          start(controller) {
            let tick = 0;
            const timer = setInterval(() => {
              const chunk = JSON.stringify({ choices: [{ delta: { content: "word " } }] });
              for (let token = 0; token < tokensPerTick; token++) controller.enqueue(event(chunk));
              tick += 1;
              if (tick < ticks) return;
              clearInterval(timer);
              controller.enqueue(event("[DONE]"));
              controller.close();
            }, tickMs);
          },
        });
      window.fetch = async () => new Response(stream());
      window.painted = new Set();
      const answer = document.querySelector(".card .answer");
      const look = () => {
        window.painted.add(answer.textContent.length);
        requestAnimationFrame(look);
      };
      look();
    });
    await ask(2000);
    await all("done");
    const lengths = await page.$$eval(".answer", (answers) => answers.map((answer) => answer.textContent.length));
    assert.deepEqual(lengths, [10_000, 10_000, 10_000]);
    const painted = await page.evaluate(() => window.painted.size);
    assert.ok(painted >= 10, `painted ${painted} times`);
  });

  test("the keyboard alone is enough", async () => {
    await page.focus("#prompt");
    await page.keyboard.type("Why?");
    await page.keyboard.press("Tab");
    assert.equal(await page.evaluate(() => document.activeElement.id), "run");
    await page.keyboard.press("Control+Enter");
    await until(async () => (await states()).some((state) => state !== "idle"));
    await page.click("#stop").catch(() => {});
    await until(async () => (await page.isDisabled("#stop")) === true);
  });

  test("a narrow screen has one column and no sideways scrolling", async () => {
    const phone = await open({ width: 360, height: 740 }, { colorScheme: "dark", hasTouch: true, isMobile: true });
    const [scroll, width] = await phone.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
    assert.ok(scroll <= width, `${scroll} > ${width}`);
    assert.equal(await phone.evaluate(() => document.documentElement.dataset.theme), "dark");
    const lefts = await phone.$$eval(".card", (cards) => cards.map((card) => card.getBoundingClientRect().left));
    assert.equal(new Set(lefts).size, 1);
    await ask(40, phone);
    await all("done", phone);
    await shot("narrow-dark", phone);
    await phone.click("#settings > summary");
    await shot("narrow-settings", phone);
    await phone.context().close();
  });

  test("an error of the server is shown where it belongs", async () => {
    await page.fill("#prompt", "Why?");
    await page.click("#settings > summary");
    await page.selectOption("#template", "none");
    await page.click("#run");
    await until(async () => (await states()).join() === "failed,failed,done");
    const message = await page.textContent(".card .error");
    assert.match(message, /persona/);
    await shot("error");
    problems.splice(0, problems.length, ...problems.filter((text) => !text.includes("400")));
  });

  test("personas are added, chosen and removed, and kept over a reload", async () => {
    await page.click("#add");
    await page.keyboard.type("The user is a poet.");
    assert.equal((await states()).length, 4);
    await page.selectOption(".card:nth-child(1) .source", "system");
    assert.equal(await page.isVisible(".card:nth-child(1) .persona"), false);
    await page.click(".card:nth-child(2) .remove");
    await page.fill("#prompt", "Why?");
    await page.reload();
    await page.waitForSelector(".model[data-state=ready]");
    const kept = await page.$$eval(".card", (cards) => cards.map((card) => [card.querySelector(".source").value, card.querySelector(".persona").value]));
    assert.equal(kept.length, 3);
    assert.equal(kept[0][0], "system");
    assert.equal(kept[2][1], "The user is a poet.");
  });

  test("every control has a name", async () => {
    await page.click("#settings > summary");
    const nameless = await page.$$eval("button, input, select, textarea", (controls) =>
      controls.filter((one) => !(one.getAttribute("aria-label") || one.labels?.length || one.textContent.trim())).map((one) => one.outerHTML),
    );
    assert.deepEqual(nameless, []);
    await page.click("#theme");
    await shot("settings-wide");
  });

  test("nothing was loaded from elsewhere and nothing went wrong", () => {
    assert.deepEqual(problems, []);
  });
});
