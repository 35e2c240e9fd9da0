//! Conversion of the parameters of a generation.

use std::time::Duration;

use bespoke_domain::{self as domain, Generate, Invalid, Sampling};

use crate::{GenerationParams, LogprobsParams, SamplingParams, StopParams};

/// The longest time limit of a request, in milliseconds: a day, far beyond any answer and far below what overflows a clock.
pub const TIME_LIMIT_MS_MAX: u32 = 24 * 60 * 60 * 1000;

/// Puts the parameters into a generation; errors name the path from the request on.
pub(crate) fn apply(params: GenerationParams, generate: &mut Generate) -> Result<(), Invalid> {
    let sampling = domain::SamplingParams::from(params.sampling.unwrap_or_default());
    generate.sampling = Sampling::try_from(sampling).map_err(|invalid| invalid.within("params.sampling"))?;
    generate.max_new_tokens = params.max_new_tokens.unwrap_or(Generate::MAX_NEW_TOKENS);
    generate.min_new_tokens = params.min_new_tokens;
    generate.stop = params.stop.unwrap_or_default().into();
    generate.logprobs = params.logprobs.unwrap_or_default().into();
    generate.echo = params.echo;
    generate.n = params.n.unwrap_or(1);
    generate.draft_tokens_max = params.draft_tokens_max;
    generate.time_limit = params.time_limit_ms.map(time_limit).transpose()?;
    Ok(())
}

fn time_limit(limit_ms: u32) -> Result<Duration, Invalid> {
    if (1..=TIME_LIMIT_MS_MAX).contains(&limit_ms) {
        Ok(Duration::from_millis(limit_ms.into()))
    } else {
        Err(Invalid::new("params.time_limit_ms", format!("is {limit_ms}, must be 1..={TIME_LIMIT_MS_MAX}")))
    }
}

impl From<&Generate> for GenerationParams {
    /// A time limit is rounded up to whole milliseconds.
    fn from(generate: &Generate) -> Self {
        let limit_ms = |limit: Duration| u32::try_from(limit.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX);
        Self {
            sampling: Some((&*generate.sampling).into()),
            max_new_tokens: Some(generate.max_new_tokens),
            min_new_tokens: generate.min_new_tokens,
            stop: Some((&generate.stop).into()),
            logprobs: Some(generate.logprobs.into()),
            echo: generate.echo,
            n: Some(generate.n),
            time_limit_ms: generate.time_limit.map(limit_ms),
            draft_tokens_max: generate.draft_tokens_max,
        }
    }
}

impl From<SamplingParams> for domain::SamplingParams {
    fn from(params: SamplingParams) -> Self {
        let default = Self::default();
        Self {
            temperature: params.temperature.unwrap_or(default.temperature),
            top_k: params.top_k,
            top_p: params.top_p.unwrap_or(default.top_p),
            min_p: params.min_p,
            repetition_penalty: params.repetition_penalty.unwrap_or(default.repetition_penalty),
            frequency_penalty: params.frequency_penalty,
            presence_penalty: params.presence_penalty,
            logit_bias: params.logit_bias,
            seed: params.seed,
        }
    }
}

impl From<&domain::SamplingParams> for SamplingParams {
    fn from(params: &domain::SamplingParams) -> Self {
        Self {
            temperature: Some(params.temperature),
            top_k: params.top_k,
            top_p: Some(params.top_p),
            min_p: params.min_p,
            repetition_penalty: Some(params.repetition_penalty),
            frequency_penalty: params.frequency_penalty,
            presence_penalty: params.presence_penalty,
            logit_bias: params.logit_bias.clone(),
            seed: params.seed,
        }
    }
}

impl From<StopParams> for domain::Stop {
    fn from(stop: StopParams) -> Self {
        Self { strings: stop.strings, tokens: stop.token_ids, ignore_end: stop.ignore_end }
    }
}

impl From<&domain::Stop> for StopParams {
    fn from(stop: &domain::Stop) -> Self {
        Self { strings: stop.strings.clone(), token_ids: stop.tokens.clone(), ignore_end: stop.ignore_end }
    }
}

impl From<LogprobsParams> for domain::Logprobs {
    fn from(logprobs: LogprobsParams) -> Self {
        Self { sampled: logprobs.sampled, top: logprobs.top, prompt: logprobs.prompt }
    }
}

impl From<domain::Logprobs> for LogprobsParams {
    fn from(logprobs: domain::Logprobs) -> Self {
        Self { sampled: logprobs.sampled, top: logprobs.top, prompt: logprobs.prompt }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_parameters_take_the_defaults_of_the_domain() {
        let mut generate = Generate { max_new_tokens: 1, n: 9, echo: true, ..Generate::text("hello") };
        apply(GenerationParams::default(), &mut generate).unwrap();
        assert_eq!(generate, Generate::text("hello"));
    }

    #[test]
    fn a_time_limit_has_a_range_and_is_rounded_up() {
        for (limit_ms, holds) in [(0, false), (1, true), (TIME_LIMIT_MS_MAX, true), (TIME_LIMIT_MS_MAX + 1, false)] {
            let params = GenerationParams { time_limit_ms: Some(limit_ms), ..GenerationParams::default() };
            let applied = apply(params, &mut Generate::text(""));
            assert_eq!(
                applied.map_err(|invalid| invalid.field),
                if holds { Ok(()) } else { Err("params.time_limit_ms".into()) }
            );
        }
        let wire =
            |limit| GenerationParams::from(&Generate { time_limit: Some(limit), ..Generate::text("") }).time_limit_ms;
        assert_eq!(wire(Duration::from_micros(1)), Some(1));
        assert_eq!(wire(Duration::MAX), Some(u32::MAX));
    }

    #[test]
    fn sampling_errors_name_the_whole_path() {
        let sampling = SamplingParams { top_p: Some(f32::NAN), ..SamplingParams::default() };
        let params = GenerationParams { sampling: Some(sampling), ..GenerationParams::default() };
        assert_eq!(apply(params, &mut Generate::text("")).unwrap_err().field, "params.sampling.top_p");
    }
}
