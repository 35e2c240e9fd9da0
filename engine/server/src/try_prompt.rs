//! `try`: one prompt and persona in this process, streamed to the terminal.

use std::{io::Write, time::Duration};

use anyhow::bail;
use bespoke_domain::{
    Delta, Event, FinishReason, Finished, Generate, Persona, PersonaSource, Request, SamplingParams, Started, Template,
};
use bespoke_engine::Engine;
use bespoke_store::{Store, TerminalProgress};
use clap::{Args, ValueEnum};
use futures::StreamExt;
use serde_json::json;

use crate::{BackendName, KvDTypeName, QuantizationName};

/// Arguments of `try`.
#[derive(Args, Debug)]
pub struct Try {
    /// What to ask. May be empty with the template none: the answer then starts from the BOS token.
    pub prompt: String,
    /// For whom the answer is, such as "The user is a novice and prefers small steps." Default: nobody in particular.
    #[arg(long, value_name = "TEXT")]
    pub persona: Option<String>,
    /// Model: a path, a name that `models` lists, or a hub id. Fetched on first use.
    #[arg(long, env = "BESPOKE_MODEL", default_value = bespoke_store::DEFAULT_MODEL)]
    pub model: String,
    /// Library that runs the model.
    #[arg(long, env = "BESPOKE_BACKEND", value_name = "BACKEND", default_value = "auto")]
    pub backend: BackendName,
    /// How prompt and persona become text. Default: chat where the model has a chat template, else paper.
    #[arg(long, value_name = "TEMPLATE")]
    pub template: Option<TemplateName>,
    /// The longest answer, in tokens, at least 1.
    #[arg(long, value_name = "TOKENS", default_value_t = Generate::MAX_NEW_TOKENS)]
    pub max_new_tokens: u32,
    /// Randomness of the answer, 0 to 100; 0 always takes the most likely token.
    #[arg(long, default_value_t = 0.7, allow_negative_numbers = true)]
    pub temperature: f32,
    /// Makes a random answer repeatable. Default: a new one each time.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Threads that compute, at least 1. Default: the number of cores.
    #[arg(long, env = "BESPOKE_NUM_THREADS", value_name = "N")]
    pub num_threads: Option<usize>,
    /// Quantize the weights of a model stored as floats while it is loaded.
    #[arg(long, env = "BESPOKE_QUANTIZATION", value_name = "SCHEME", default_value = "none")]
    pub quantization: QuantizationName,
    /// Format of keys and values in the KV cache.
    #[arg(long, env = "BESPOKE_KV_DTYPE", value_name = "FORMAT", default_value = "auto")]
    pub kv_dtype: KvDTypeName,
    /// Print one JSON object at the end: text, token_ids, finish_reason, usage, timings.
    #[arg(long)]
    pub json: bool,
}

/// The templates as a flag spells them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TemplateName {
    /// The paper's Prompt / Persona / Response lines.
    Paper,
    /// The model's own chat template.
    Chat,
    /// The prompt as it is; takes no persona.
    None,
}

impl From<TemplateName> for Template {
    fn from(name: TemplateName) -> Self {
        match name {
            TemplateName::Paper => Template::Paper,
            TemplateName::Chat => Template::Chat,
            TemplateName::None => Template::None,
        }
    }
}

/// Answers a prompt.
///
/// **Errors**: a wrong argument, a model that cannot be had or loaded, a closed terminal.
pub fn try_prompt(arguments: &Try) -> anyhow::Result<()> {
    let request = request(arguments)?;
    let path = Store::open(None)?.pull(&arguments.model, &TerminalProgress::new())?;
    let mut builder = Engine::builder().sequences_max(1).quantization(arguments.quantization.into());
    if let Some(kv_dtype) = arguments.kv_dtype.into() {
        builder = builder.kv_dtype(kv_dtype);
    }
    if let Some(num_threads) = arguments.num_threads {
        builder = builder.num_threads(num_threads);
    }
    let engine = arguments.backend.build(builder, &path)?;
    let mut generation = engine.generate(request)?;
    let mut answer = Answer::default();
    while let Some(event) = futures::executor::block_on(generation.next()) {
        match event? {
            Event::Started(started) => answer.started = Some(started),
            Event::Delta(delta) => match answer.take(delta, !arguments.json) {
                // Whoever read the answer has had enough.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                taken => taken?,
            },
            Event::Finished(finished) => return answer.finish(&finished, arguments.json),
        }
    }
    bail!("the answer has no end")
}

fn request(arguments: &Try) -> anyhow::Result<Request> {
    let mut generate = Generate::text(&arguments.prompt);
    generate.spec.template = arguments.template.map(Into::into);
    if let Some(persona) = &arguments.persona {
        generate.spec.persona = PersonaSource::Text(Persona::new(persona)?);
    }
    let params =
        SamplingParams { temperature: arguments.temperature, seed: arguments.seed, ..SamplingParams::default() };
    generate.sampling = params.try_into()?;
    generate.max_new_tokens = arguments.max_new_tokens;
    Ok(Request::try_from(generate)?)
}

#[derive(Default)]
struct Answer {
    started: Option<Started>,
    text: String,
    token_ids: Vec<u32>,
}

impl Answer {
    fn take(&mut self, delta: Delta, streams: bool) -> std::io::Result<()> {
        if streams {
            let mut out = std::io::stdout().lock();
            out.write_all(delta.text.as_bytes())?;
            out.flush()?;
        }
        self.text += &delta.text;
        self.token_ids.extend(delta.token_ids);
        Ok(())
    }

    fn finish(self, finished: &Finished, as_json: bool) -> anyhow::Result<()> {
        let reason = finished.choices.first().map_or("none", |choice| reason_name(choice.reason));
        let (usage, timings) = (finished.usage, finished.timings);
        if as_json {
            let object = json!({
                "text": self.text,
                "token_ids": self.token_ids,
                "finish_reason": reason,
                "seed": self.started.map(|started| started.seed),
                "usage": {
                    "prompt_tokens": usage.prompt_tokens,
                    "cached_tokens": usage.cached_tokens,
                    "generated_tokens": usage.generated_tokens,
                },
                "timings": {
                    "queue_ms": milliseconds(timings.queue),
                    "prefill_ms": milliseconds(timings.prefill),
                    "decode_ms": milliseconds(timings.decode),
                },
            });
            writeln!(std::io::stdout(), "{object}")?;
            return Ok(());
        }
        writeln!(std::io::stdout())?;
        let decoded = usage.generated_tokens.saturating_sub(1);
        writeln!(
            std::io::stderr(),
            "[{} prompt tokens in {:.0} ms; {} tokens, {:.1} tokens/s; end: {reason}; seed {}]",
            usage.prompt_tokens,
            milliseconds(timings.prefill),
            usage.generated_tokens,
            f64::from(decoded) / timings.decode.as_secs_f64().max(1e-9),
            self.started.map_or(0, |started| started.seed),
        )?;
        Ok(())
    }
}

fn reason_name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::EndOfText => "end_of_text",
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::TimeLimit => "time_limit",
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
