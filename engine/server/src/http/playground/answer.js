// One answer: asks the server, reads its stream and measures it. Knows nothing of the page.

/** An answer that the server refused, or a stream that broke off. */
export class AnswerError extends Error {
  constructor(message, { status = 0, param = null } = {}) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

function headers(token) {
  return { "content-type": "application/json", ...(token && { authorization: `Bearer ${token}` }) };
}

async function refusal(response) {
  const body = await response.json().catch(() => null);
  const error = body?.error ?? {};
  const after = response.headers.get("retry-after");
  const hint = after ? `; try again in ${after} s` : "";
  const message = error.message ?? `the server answered ${response.status}`;
  return new AnswerError(message + hint, { status: response.status, param: error.param });
}

/** Returns what the server says of its model. */
export async function served(token) {
  const response = await fetch("/v1/models", { headers: headers(token) });
  if (!response.ok) throw await refusal(response);
  return (await response.json()).data[0];
}

/** Yields the data of each server-sent event of a body. Events are split wherever the network likes. */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const data = part.split("\n").filter((line) => line.startsWith("data:"));
        if (data.length > 0) yield data.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * Streams one answer. Calls `onText(text)` as text comes and `onMeasure(measure)` as numbers change; returns the measure.
 * A measure has `ttftMs`, `tokens`, `rate`, `promptTokens`, `cachedTokens`, `reason` and `seed`.
 */
export async function ask(request, { token, signal, onText, onMeasure, now = () => performance.now() }) {
  const begun = now();
  const body = JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } });
  const response = await fetch("/v1/chat/completions", { method: "POST", headers: headers(token), body, signal });
  if (!response.ok) throw await refusal(response);
  const measure = { ttftMs: null, tokens: 0, rate: null, promptTokens: null, cachedTokens: null, reason: null, seed: null };
  let first = 0;
  let done = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") {
      done = true;
      break;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new AnswerError(chunk.error.message, { param: chunk.error.param });
    const choice = chunk.choices[0];
    if (choice?.delta?.content) {
      if (measure.ttftMs === null) {
        first = now();
        measure.ttftMs = first - begun;
      }
      // A chunk is a token as long as nothing is held back; the exact number comes with the usage.
      measure.tokens += 1;
      onText(choice.delta.content);
    }
    if (choice?.finish_reason) measure.reason = choice.finish_reason;
    if (chunk.usage) {
      measure.tokens = chunk.usage.completion_tokens;
      measure.promptTokens = chunk.usage.prompt_tokens;
      measure.cachedTokens = chunk.usage.prompt_tokens_details?.cached_tokens ?? 0;
      measure.seed = chunk.bespoke?.seed ?? null;
    }
    const seconds = (now() - first) / 1000;
    if (measure.tokens > 1 && seconds > 0) measure.rate = (measure.tokens - 1) / seconds;
    onMeasure(measure);
  }
  if (!done) throw new AnswerError("the stream broke off");
  return measure;
}
