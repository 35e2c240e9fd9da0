//! Sampling parameters that cannot be wrong.

use std::{collections::BTreeMap, ops::Deref};

use crate::{Invalid, TokenId};

/// How the next token is drawn, as asked for; [`Sampling`] is the checked form.
///
/// The sampler applies them in this order: logit bias, repetition, frequency and presence penalty, temperature, `min_p`,
/// `top_k`, `top_p`.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the most likely token. Range 0..=100.
    pub temperature: f32,
    /// Keeps the k most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps the smallest set of most likely tokens whose probabilities sum to at least this. Range (0, 1].
    pub top_p: f32,
    /// Drops tokens less likely than this share of the most likely one. Range 0..=1.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt or answer. Range (0, 10]; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Subtracted from a logit for each time that the answer holds the token. Range -2..=2.
    pub frequency_penalty: f32,
    /// Subtracted from a logit if the answer holds the token. Range -2..=2.
    pub presence_penalty: f32,
    /// Added to the logits of these tokens. Range -100..=100, at most 1024 entries.
    pub logit_bias: BTreeMap<TokenId, f32>,
    /// Fixes the random draw; `None` lets the engine choose one, which the started event tells.
    pub seed: Option<u64>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            seed: None,
        }
    }
}

/// Checked [`SamplingParams`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampling(SamplingParams);

impl Sampling {
    /// The largest number of logit biases.
    pub const LOGIT_BIAS_MAX: usize = 1024;

    /// Returns the parameters that always take the most likely token.
    pub fn greedy() -> Self {
        Self(SamplingParams { temperature: 0.0, ..SamplingParams::default() })
    }

    /// Whether the most likely token is always taken.
    pub fn is_greedy(&self) -> bool {
        self.0.temperature == 0.0
    }
}

impl Deref for Sampling {
    type Target = SamplingParams;

    fn deref(&self) -> &SamplingParams {
        &self.0
    }
}

impl TryFrom<SamplingParams> for Sampling {
    type Error = Invalid;

    fn try_from(params: SamplingParams) -> Result<Self, Invalid> {
        check("temperature", params.temperature, (0.0..=100.0).contains(&params.temperature), "0..=100")?;
        check("top_p", params.top_p, params.top_p > 0.0 && params.top_p <= 1.0, "above 0 and at most 1")?;
        check("min_p", params.min_p, (0.0..=1.0).contains(&params.min_p), "0..=1")?;
        let repetition = params.repetition_penalty;
        check("repetition_penalty", repetition, repetition > 0.0 && repetition <= 10.0, "above 0 and at most 10")?;
        check(
            "frequency_penalty",
            params.frequency_penalty,
            (-2.0..=2.0).contains(&params.frequency_penalty),
            "-2..=2",
        )?;
        check("presence_penalty", params.presence_penalty, (-2.0..=2.0).contains(&params.presence_penalty), "-2..=2")?;
        if params.logit_bias.len() > Self::LOGIT_BIAS_MAX {
            let reason = format!("has {} entries, at most {}", params.logit_bias.len(), Self::LOGIT_BIAS_MAX);
            return Err(Invalid::new("logit_bias", reason));
        }
        for (token, &bias) in &params.logit_bias {
            check(&format!("logit_bias[{token}]"), bias, (-100.0..=100.0).contains(&bias), "-100..=100")?;
        }
        Ok(Self(params))
    }
}

fn check(field: &str, value: f32, holds: bool, range: &str) -> Result<(), Invalid> {
    if holds { Ok(()) } else { Err(Invalid::new(field, format!("is {value}, must be {range}"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_parameter_is_checked() {
        type Break = fn(&mut SamplingParams);
        let bad: [(&str, Break); 9] = [
            ("temperature", |p| p.temperature = -1.0),
            ("temperature", |p| p.temperature = f32::NAN),
            ("top_p", |p| p.top_p = 0.0),
            ("min_p", |p| p.min_p = 1.1),
            ("repetition_penalty", |p| p.repetition_penalty = 0.0),
            ("frequency_penalty", |p| p.frequency_penalty = 3.0),
            ("presence_penalty", |p| p.presence_penalty = f32::INFINITY),
            ("logit_bias[7]", |p| _ = p.logit_bias.insert(7, f32::NAN)),
            ("logit_bias", |p| p.logit_bias = (0..2000).map(|token| (token, 1.0)).collect()),
        ];
        for (field, break_it) in bad {
            let mut params = SamplingParams::default();
            break_it(&mut params);
            assert_eq!(Sampling::try_from(params).unwrap_err().field, field);
        }
        assert!(Sampling::try_from(SamplingParams::default()).is_ok());
    }
}
