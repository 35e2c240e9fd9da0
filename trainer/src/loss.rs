//! The losses and their slopes: pure functions of log-probabilities.

use serde::{Deserialize, Serialize};

/// The form of the preference loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum DpoLoss {
    /// `-log sigmoid(beta x)`; with label smoothing `e` the mixture of both preferences, `1 - e` to `e` (conservative DPO).
    ///
    /// **Source**: Rafailov et al., 2023, equation 7; Mitchell, 2023.
    #[default]
    Sigmoid,
    /// `(x - 1 / (2 beta))^2` of log-ratios averaged over the tokens of each answer.
    ///
    /// **Source**: Azar et al., 2023, equation 17.
    Ipo,
    /// `max(0, 1 - beta x)`.
    ///
    /// **Source**: Zhao et al., 2023 (SLiC).
    Hinge,
    /// The sigmoid loss unbiased under labels that are wrong with probability `e`.
    ///
    /// **Source**: Chowdhury et al., 2024 (robust DPO), equation 9.
    Robust,
}

/// One answer of a pair: sums over its tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answer {
    /// Log-probability under the model.
    pub logprob: f64,
    /// Log-probability under the reference.
    pub reference: f64,
    /// Number of tokens.
    pub num_tokens: usize,
}

/// How a pair is judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairLoss {
    /// The loss.
    pub loss: f64,
    /// Its slopes by the log-probabilities of the chosen and the rejected answer.
    pub slopes: [f64; 2],
    /// `beta (log p - log ref)` of both answers.
    pub rewards: [f64; 2],
}

/// Parameters of the preference loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preference {
    /// The form.
    pub kind: DpoLoss,
    /// Strength of the tie to the reference.
    pub beta: f64,
    /// Share of labels taken for wrong, in `0..0.5`.
    pub label_smoothing: f64,
}

impl Preference {
    /// Judges one pair.
    pub fn judge(&self, chosen: Answer, rejected: Answer) -> PairLoss {
        let ratio = |answer: Answer| answer.logprob - answer.reference;
        let (beta, smoothing) = (self.beta, self.label_smoothing);
        let x = ratio(chosen) - ratio(rejected);
        let (agree, differ) = (sigmoid(beta * x), sigmoid(-beta * x));
        let (loss, slope) = match self.kind {
            DpoLoss::Sigmoid => {
                let loss = -(1.0 - smoothing) * log_sigmoid(beta * x) - smoothing * log_sigmoid(-beta * x);
                (loss, beta * (smoothing * agree - (1.0 - smoothing) * differ))
            }
            DpoLoss::Robust => {
                let loss = -(1.0 - smoothing) * log_sigmoid(beta * x) + smoothing * log_sigmoid(-beta * x);
                let slope = beta * (-(1.0 - smoothing) * differ - smoothing * agree);
                (loss / (1.0 - 2.0 * smoothing), slope / (1.0 - 2.0 * smoothing))
            }
            DpoLoss::Hinge => {
                let room = 1.0 - beta * x;
                if room > 0.0 { (room, -beta) } else { (0.0, 0.0) }
            }
            DpoLoss::Ipo => return self.ipo(chosen, rejected),
        };
        PairLoss { loss, slopes: [slope, -slope], rewards: [chosen, rejected].map(|a| beta * ratio(a)) }
    }

    fn ipo(&self, chosen: Answer, rejected: Answer) -> PairLoss {
        let lens = [chosen, rejected].map(|answer| answer.num_tokens.max(1) as f64);
        let ratios = [chosen, rejected].map(|answer| answer.logprob - answer.reference);
        let off = ratios[0] / lens[0] - ratios[1] / lens[1] - 1.0 / (2.0 * self.beta);
        PairLoss {
            loss: off * off,
            slopes: [2.0 * off / lens[0], -2.0 * off / lens[1]],
            rewards: ratios.map(|ratio| self.beta * ratio),
        }
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn log_sigmoid(x: f64) -> f64 {
    // Neither exponential can overflow.
    if x >= 0.0 { -(-x).exp().ln_1p() } else { x - x.exp().ln_1p() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_match_finite_differences() {
        let answer = |logprob: f64, reference: f64, num_tokens| Answer { logprob, reference, num_tokens };
        const STEP: f64 = 1e-6;
        for kind in [DpoLoss::Sigmoid, DpoLoss::Ipo, DpoLoss::Hinge, DpoLoss::Robust] {
            for (smoothing, gap) in [(0.0, 0.7), (0.1, -3.0), (0.2, 40.0)] {
                let preference = Preference { kind, beta: 0.1, label_smoothing: smoothing };
                let judge =
                    |c: f64, r: f64| preference.judge(answer(c - 20.0 + gap, -20.0, 7), answer(r - 25.0, -25.0, 9));
                let found = judge(0.0, 0.0).slopes;
                let chosen = (judge(STEP, 0.0).loss - judge(-STEP, 0.0).loss) / (2.0 * STEP);
                let rejected = (judge(0.0, STEP).loss - judge(0.0, -STEP).loss) / (2.0 * STEP);
                assert!((found[0] - chosen).abs() < 1e-6 && (found[1] - rejected).abs() < 1e-6, "{kind:?} {found:?}");
            }
        }
    }

    #[test]
    fn far_margins_stay_finite() {
        let answer = |logprob: f64| Answer { logprob, reference: 0.0, num_tokens: 1 };
        let preference = Preference { kind: DpoLoss::Sigmoid, beta: 1.0, label_smoothing: 0.1 };
        let far = preference.judge(answer(-1e4), answer(0.0));
        assert!(far.loss.is_finite() && (far.loss - 9e3).abs() < 1.0, "{far:?}");
    }
}
