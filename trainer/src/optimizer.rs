//! AdamW over the flat vector of the adapter, clipping, and the schedule of the learning rate.

use serde::{Deserialize, Serialize};

/// The optimiser and its moments.
///
/// **Source**: Loshchilov and Hutter, 2019 (AdamW), algorithm 2, with the order of operations of PyTorch.
#[derive(Clone, Debug)]
pub struct AdamW {
    settings: AdamSettings,
    /// Steps taken.
    pub step: u64,
    /// Means of the gradients.
    pub first: Vec<f32>,
    /// Means of their squares.
    pub second: Vec<f32>,
}

/// Parameters of [`AdamW`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamSettings {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squares.
    pub beta2: f64,
    /// Added to the root of the squares.
    pub epsilon: f64,
    /// Share of the values that a step of learning rate 1 takes away.
    pub weight_decay: f64,
}

impl Default for AdamSettings {
    fn default() -> AdamSettings {
        AdamSettings { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 }
    }
}

impl AdamW {
    /// An optimiser that has taken no step.
    pub fn new(settings: AdamSettings, len: usize) -> AdamW {
        AdamW { settings, step: 0, first: vec![0.0; len], second: vec![0.0; len] }
    }

    /// Moves the values against their gradients.
    pub fn update(&mut self, values: &mut [f32], gradients: &[f32], learning_rate: f64) {
        self.step += 1;
        let AdamSettings { beta1, beta2, epsilon, weight_decay } = self.settings;
        let steps = i32::try_from(self.step).unwrap_or(i32::MAX);
        let step_size = (learning_rate / (1.0 - beta1.powi(steps))) as f32;
        let root_bias = (1.0 - beta2.powi(steps)).sqrt() as f32;
        let decay = (1.0 - learning_rate * weight_decay) as f32;
        let (b1, b2, epsilon) = (beta1 as f32, beta2 as f32, epsilon as f32);
        let (c1, c2) = ((1.0 - beta1) as f32, (1.0 - beta2) as f32);
        for (((value, &g), m), v) in values.iter_mut().zip(gradients).zip(&mut self.first).zip(&mut self.second) {
            *m = b1 * *m + c1 * g;
            *v = b2 * *v + c2 * g * g;
            *value = *value * decay - step_size * *m / (v.sqrt() / root_bias + epsilon);
        }
    }
}

/// Scales gradients down to a norm of at most `limit`; returns the norm that they had.
pub fn clip(gradients: &mut [f32], limit: Option<f64>) -> f64 {
    let norm = sum_of_squares(gradients).sqrt();
    if let Some(limit) = limit.filter(|&limit| norm > limit) {
        let factor = (limit / (norm + 1e-6)) as f32;
        gradients.iter_mut().for_each(|g| *g *= factor);
    }
    norm
}

/// In eight partial sums, which need not wait for each other.
fn sum_of_squares(values: &[f32]) -> f64 {
    let (whole, rest) = values.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for chunk in whole {
        sums.iter_mut().zip(chunk).for_each(|(sum, &value)| *sum += f64::from(value) * f64::from(value));
    }
    sums.iter().sum::<f64>() + rest.iter().map(|&value| f64::from(value) * f64::from(value)).sum::<f64>()
}

/// How the learning rate falls after warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// In a line to zero.
    #[default]
    Linear,
    /// Along half a cosine to zero.
    Cosine,
    /// Not at all.
    Constant,
}

impl Schedule {
    /// The factor of the learning rate at a step (from 0), with `warmup` steps of linear rise.
    pub fn factor(self, step: u64, warmup: u64, total: u64) -> f64 {
        if step < warmup {
            return step as f64 / warmup as f64;
        }
        let done = (step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
        match self {
            Schedule::Linear => (1.0 - done).max(0.0),
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos()),
            Schedule::Constant => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_rise_and_fall() {
        assert_eq!(Schedule::Linear.factor(0, 4, 8), 0.0);
        assert_eq!(Schedule::Linear.factor(2, 4, 8), 0.5);
        assert_eq!([4, 6, 8, 9].map(|step| Schedule::Linear.factor(step, 4, 8)), [1.0, 0.5, 0.0, 0.0]);
        assert!((Schedule::Cosine.factor(6, 4, 8) - 0.5).abs() < 1e-12);
        assert_eq!(Schedule::Constant.factor(7, 0, 8), 1.0);
    }

    #[test]
    fn clipping_keeps_the_direction() {
        let mut gradients = [3.0, 4.0];
        assert_eq!(clip(&mut gradients, Some(10.0)), 5.0);
        assert_eq!(gradients, [3.0, 4.0]);
        assert_eq!(clip(&mut [1.0; 25], None), 5.0);
        clip(&mut gradients, Some(1.0));
        assert!((gradients[0] - 0.6).abs() < 1e-5 && (gradients[1] - 0.8).abs() < 1e-5);
    }

    #[test]
    fn the_first_step_is_the_learning_rate_against_the_sign() {
        let mut optimizer = AdamW::new(AdamSettings::default(), 2);
        let mut values = [1.0, 1.0];
        optimizer.update(&mut values, &[0.5, -0.25], 0.1);
        assert!((values[0] - 0.9).abs() < 1e-6 && (values[1] - 1.1).abs() < 1e-6, "{values:?}");
    }
}
