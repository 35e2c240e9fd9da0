// The page: one question, a card for each persona, and the controls.

import { AnswerError, ask, served } from "/playground/answer.js";

/** More streams than a browser opens to one server over HTTP/1.1 would only wait. */
const CARDS_MAX = 6;
const NUMBERS = [
  "temperature", "top_p", "top_k", "min_p", "max_tokens", "repetition_penalty", "presence_penalty", "frequency_penalty",
];
const KEPT = ["prompt", ...NUMBERS, "seed", "template"];
const FIRST_CARDS = [
  { source: "text", text: "The user is a beginner and prefers simple words and small steps." },
  { source: "text", text: "The user is an expert and prefers precise terms and no introductions." },
  { source: "none", text: "" },
];

const at = (id) => document.getElementById(id);
const cards = [];
let model = null;
let running = null;

/** A persona and its answer. */
class Card {
  constructor({ source, text }) {
    this.element = at("card").content.firstElementChild.cloneNode(true);
    this.source = this.find(".source");
    this.persona = this.find(".persona");
    this.answer = this.find(".answer");
    this.persona.value = text;
    this.wanted = source;
    this.fillSources();
    this.source.addEventListener("input", () => {
      this.wanted = this.source.value;
      this.showPersona();
    });
    this.find(".remove").addEventListener("click", () => this.remove());
    this.find(".copy").addEventListener("click", () => this.copy());
    at("cards").append(this.element);
    cards.push(this);
  }

  find(selector) {
    return this.element.querySelector(selector);
  }

  /** Fills the choice of personas with what the server keeps, which is not known before it has answered. */
  fillSources() {
    const known = model?.bespoke ?? { persona_ids: [], has_system_persona: false };
    const options = [["text", "Persona"], ["none", "No persona"]];
    if (known.has_system_persona) options.push(["system", "The server's persona"]);
    for (const id of known.persona_ids) options.push([`id:${id}`, `Kept persona: ${id}`]);
    this.source.replaceChildren(...options.map(([value, label]) => new Option(label, value)));
    this.source.value = options.some(([value]) => value === this.wanted) ? this.wanted : "text";
    this.showPersona();
  }

  showPersona() {
    this.persona.hidden = this.source.value !== "text";
  }

  /** Returns the field `persona` of a request. */
  request() {
    const source = this.source.value;
    if (source === "none") return undefined;
    if (source === "system") return { system: true };
    if (source.startsWith("id:")) return { id: source.slice(3) };
    return this.persona.value.trim() || undefined;
  }

  async run(request, signal) {
    this.setState("waiting");
    this.measure = { ttftMs: null, tokens: null, rate: null, promptTokens: null, reason: null };
    this.unpainted = "";
    this.text = new Text("");
    this.answer.replaceChildren(this.text);
    this.paint();
    const onText = (piece) => {
      this.setState("streaming");
      this.unpainted += piece;
      paintSoon(this);
    };
    const onMeasure = (measure) => {
      this.measure = measure;
      paintSoon(this);
    };
    const persona = this.request();
    try {
      const measure = await ask(persona ? { ...request, persona } : request, {
        token: at("token").value, signal, onText, onMeasure,
      });
      this.finish("done");
      return measure;
    } catch (error) {
      this.fail(error);
      return null;
    }
  }

  /** Whether the end of the answer is in view. */
  follows() {
    const { scrollHeight, scrollTop, clientHeight } = this.answer;
    return scrollHeight - scrollTop - clientHeight < 40;
  }

  /** Shows what has come since the last time. */
  paint() {
    this.text.appendData(this.unpainted);
    this.unpainted = "";
    this.show(this.measure);
  }

  /** Nothing more comes: shows the rest at once, since a page in the background has no frames. */
  finish(state) {
    paint([this]);
    this.setState(state);
    this.find(".copy").disabled = this.text.data === "";
  }

  fail(error) {
    if (error.name === "AbortError") {
      this.finish("stopped");
      this.find(".end").textContent = "stopped";
      return;
    }
    const notice = document.createElement("span");
    notice.className = "error";
    notice.setAttribute("role", "alert");
    notice.textContent = error instanceof AnswerError ? error.message : `the server cannot be reached (${error.message})`;
    this.finish("failed");
    this.answer.append(notice);
    this.find(".end").textContent = "error";
    if (error.status === 401) askForToken();
  }

  show({ ttftMs, tokens, rate, promptTokens, cachedTokens, reason }) {
    const set = (name, text) => { this.find(name).textContent = text ?? "–"; };
    set(".ttft", ttftMs === null ? null : `${Math.round(ttftMs)} ms`);
    set(".tokens", tokens);
    set(".rate", rate === null ? null : rate.toFixed(1));
    set(".prompt-tokens", promptTokens === null ? null : cachedTokens ? `${promptTokens} (${cachedTokens} cached)` : promptTokens);
    set(".end", reason);
  }

  setState(state) {
    if (this.element.dataset.state !== state) this.element.dataset.state = state;
  }

  async copy() {
    await navigator.clipboard.writeText(this.answer.textContent);
    this.find(".copy").textContent = "Copied";
    setTimeout(() => { this.find(".copy").textContent = "Copy"; }, 1200);
  }

  remove() {
    cards.splice(cards.indexOf(this), 1);
    this.element.remove();
    showCards();
    (cards.at(-1)?.source ?? at("add")).focus();
  }
}

/** The cards that the next frame paints. */
const waiting = new Set();

/** A layout for each token would take longer than the tokens take to come, so that nothing would be seen until the end. */
function paintSoon(card) {
  if (waiting.size === 0) {
    requestAnimationFrame(() => {
      const ready = [...waiting];
      waiting.clear();
      paint(ready);
    });
  }
  waiting.add(card);
}

/** Paints with two layouts for however many cards: before all changes and after them. */
function paint(changed) {
  const following = changed.filter((card) => card.follows());
  for (const card of changed) card.paint();
  const heights = following.map((card) => card.answer.scrollHeight);
  following.forEach((card, index) => { card.answer.scrollTop = heights[index]; });
}

function showCards() {
  at("add").disabled = cards.length >= CARDS_MAX || running !== null;
  at("run").disabled = cards.length === 0 || running !== null;
  at("stop").disabled = running === null;
  for (const card of cards) card.find(".remove").disabled = running !== null;
}

/** Returns the request that all cards share. Empty fields are left to the server. */
function requestOf() {
  const request = { messages: [{ role: "user", content: at("prompt").value }] };
  for (const name of NUMBERS) {
    if (at(name).value !== "") request[name] = Number(at(name).value);
  }
  if (at("seed").value !== "") request.seed = Number(at("seed").value);
  if (at("template").value !== "") request.template = at("template").value;
  return request;
}

async function run() {
  if (running !== null || cards.length === 0 || !at("ask").reportValidity()) return;
  keep();
  running = new AbortController();
  showCards();
  at("summary").textContent = "";
  const begun = performance.now();
  const request = requestOf();
  const measures = (await Promise.all(cards.map((card) => card.run(request, running.signal)))).filter(Boolean);
  const seconds = (performance.now() - begun) / 1000;
  const tokens = measures.reduce((sum, measure) => sum + measure.tokens, 0);
  const stopped = running.signal.aborted ? ", stopped" : "";
  at("summary").textContent = `${measures.length} of ${cards.length} answers, ${tokens} tokens in ${seconds.toFixed(1)} s${stopped}`;
  running = null;
  showCards();
}

function stop() {
  running?.abort();
}

function askForToken() {
  at("settings").open = true;
  at("token").focus();
}

async function connect() {
  const shown = at("model");
  try {
    model = await served(at("token").value);
    shown.textContent = `${model.id} · ${model.bespoke.context_tokens_max} tokens of context`;
    shown.dataset.state = "ready";
    for (const card of cards) card.fillSources();
  } catch (error) {
    shown.textContent = error.status === 401 ? "this server wants an access token" : "the server cannot be reached";
    shown.dataset.state = "failed";
    if (error.status === 401) askForToken();
  }
}

/** Keeps the page's state until its tab is closed, but never the token. */
function keep() {
  const state = Object.fromEntries(KEPT.map((id) => [id, at(id).value]));
  state.cards = cards.map((card) => ({ source: card.wanted, text: card.persona.value }));
  sessionStorage.setItem("playground", JSON.stringify(state));
}

function restore() {
  let state = {};
  try {
    state = JSON.parse(sessionStorage.getItem("playground")) ?? {};
  } catch {
    // What cannot be read is not kept.
  }
  for (const id of KEPT) if (typeof state[id] === "string") at(id).value = state[id];
  for (const card of state.cards ?? FIRST_CARDS) new Card(card);
}

function showSettings() {
  const set = [...NUMBERS, "seed"].filter((id) => at(id).value !== "");
  at("settings-summary").textContent = set.map((id) => `${id.replaceAll("_", " ")} ${at(id).value}`).join(" · ");
  for (const slider of document.querySelectorAll("input[type=range]")) slider.value = at(slider.dataset.for).value;
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
}

function start() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  setTheme(localStorage.getItem("theme") ?? (dark.matches ? "dark" : "light"));
  dark.addEventListener("change", () => localStorage.getItem("theme") ?? setTheme(dark.matches ? "dark" : "light"));
  at("theme").addEventListener("click", () => {
    const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    localStorage.setItem("theme", theme);
    setTheme(theme);
  });

  restore();
  at("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  at("stop").addEventListener("click", stop);
  at("add").addEventListener("click", () => {
    const card = new Card({ source: "text", text: "" });
    showCards();
    card.persona.focus();
  });
  at("token").addEventListener("change", connect);
  at("settings").addEventListener("input", (event) => {
    const target = event.target.dataset.for;
    if (target) at(target).value = event.target.value;
    showSettings();
  });
  document.addEventListener("input", keep);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      run();
    } else if (event.key === "Escape") {
      stop();
    }
  });
  showSettings();
  showCards();
  connect();
}

start();
