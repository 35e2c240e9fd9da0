//! Log-probabilities of the model's own distribution at one place.

use bespoke_domain::{TokenId, TokenLogprob, TopLogprob};
use bespoke_model::Tokenizer;

use crate::sampler;

/// Returns the log-probability of `token` and of the `top` most likely tokens. **Shapes**: `logits` (vocabulary).
pub(crate) fn token_logprob(tokenizer: &Tokenizer, logits: &[f32], token: TokenId, top: u32) -> TokenLogprob {
    let normalizer = log_sum_exp(logits);
    let logprob = |logit: f32| (f64::from(logit) - normalizer) as f32;
    TokenLogprob {
        token,
        bytes: bytes(tokenizer, token),
        logprob: Some(logprob(logits[token as usize])),
        top: sampler::top(logits, top as usize)
            .into_iter()
            .map(|(logit, token)| TopLogprob { token, bytes: bytes(tokenizer, token), logprob: logprob(logit) })
            .collect(),
    }
}

/// Returns the entry of a token that nothing stands before.
pub(crate) fn first_token(tokenizer: &Tokenizer, token: TokenId) -> TokenLogprob {
    TokenLogprob { token, bytes: bytes(tokenizer, token), logprob: None, top: Vec::new() }
}

fn bytes(tokenizer: &Tokenizer, token: TokenId) -> Vec<u8> {
    tokenizer.token_bytes(token).unwrap_or_default().to_owned()
}

/// Sums in f64, so that the result is good to the last bit of f32 for any vocabulary.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    if !max.is_finite() {
        return max;
    }
    max + logits.iter().map(|&logit| (f64::from(logit) - max).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_normalizer_is_exact_and_stable() {
        assert!((log_sum_exp(&[0.0, 0.0]) - 2f64.ln()).abs() < 1e-12);
        assert!((log_sum_exp(&[1000.0, 1000.0]) - 1000.0 - 2f64.ln()).abs() < 1e-9);
        assert_eq!(log_sum_exp(&[f32::NEG_INFINITY]), f64::NEG_INFINITY);
    }
}
