//! The adapter: low-rank factors beside frozen modules, all of them in one flat vector that the optimiser walks.

use std::ops::Range;

use bespoke_model::ModelConfig;
use serde::{Deserialize, Serialize};

use crate::random::Random;
use crate::target::Target;

/// What an adapter looks like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoraShape {
    /// Rank of the factors.
    pub r: usize,
    /// The product of the factors is scaled by `alpha / r`, or `alpha / sqrt(r)` with `rslora`.
    pub alpha: f64,
    /// Scale by the square root of the rank.
    ///
    /// **Source**: Kalajdzievski, 2023 (rsLoRA).
    pub rslora: bool,
    /// The modules, by their names.
    pub target_modules: Vec<String>,
}

/// An adapter: `y = W x + scale B A x` for each of its modules.
///
/// **Source**: Hu et al., 2021 (LoRA).
#[derive(Clone, Debug)]
pub struct Lora {
    shape: LoraShape,
    targets: Vec<Target>,
    factors: Vec<Factors>,
    /// All factors, one after the other.
    pub values: Vec<f32>,
}

/// Where the factors of one module lie in the flat vector.
#[derive(Clone, Debug, PartialEq)]
pub struct Factors {
    /// The layer.
    pub layer: usize,
    /// The module.
    pub target: Target,
    /// `(r, inputs)`.
    pub a: Range<usize>,
    /// `(outputs, r)`.
    pub b: Range<usize>,
}

impl Lora {
    /// An adapter that changes nothing yet: `A` uniform in `+-1/sqrt(inputs)` as PEFT draws it, `B` zero.
    ///
    /// **Errors**: a name that is no module.
    pub fn new(config: &ModelConfig, shape: LoraShape, seed: u64) -> Result<Lora, String> {
        let targets = Target::parse_all(&shape.target_modules)?;
        let shape =
            LoraShape { target_modules: targets.iter().map(|target| target.name().to_owned()).collect(), ..shape };
        let (mut factors, mut end) = (Vec::new(), 0);
        let mut take = |len: usize| {
            end += len;
            end - len..end
        };
        for layer in 0..config.num_layers {
            for &target in &targets {
                let (outputs, inputs) = target.size(config);
                factors.push(Factors { layer, target, a: take(shape.r * inputs), b: take(outputs * shape.r) });
            }
        }
        let mut values = vec![0.0; end];
        for Factors { layer, target, a, .. } in &factors {
            let limit = 1.0 / (target.size(config).1 as f32).sqrt();
            let mut random = Random::new(&[seed, *layer as u64, target.index() as u64]);
            values[a.clone()].iter_mut().for_each(|a| *a = (2.0 * random.unit() - 1.0) * limit);
        }
        Ok(Lora { shape, targets, factors, values })
    }

    /// Its shape.
    pub fn shape(&self) -> &LoraShape {
        &self.shape
    }

    /// The modules that have factors.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// Rank of the factors.
    pub fn rank(&self) -> usize {
        self.shape.r
    }

    /// What the product of the factors is multiplied with.
    pub fn scale(&self) -> f32 {
        let rank = self.shape.r as f64;
        (self.shape.alpha / if self.shape.rslora { rank.sqrt() } else { rank }) as f32
    }

    /// The factors of every module.
    pub fn factors(&self) -> &[Factors] {
        &self.factors
    }

    /// The factors of one module, if it has some.
    pub fn of(&self, layer: usize, target: Target) -> Option<&Factors> {
        let place = self.targets.iter().position(|&other| other == target)?;
        self.factors.get(layer * self.targets.len() + place)
    }

    /// The change of one module's weights, `scale B A`, row by row `(outputs, inputs)`, added to `weights`.
    pub fn add_to(&self, factors: &Factors, weights: &mut [f32]) {
        let (r, scale) = (self.shape.r, self.scale());
        let (a, b) = (&self.values[factors.a.clone()], &self.values[factors.b.clone()]);
        let inputs = a.len() / r;
        for (row, b) in weights.chunks_exact_mut(inputs).zip(b.chunks_exact(r)) {
            for (b, a) in b.iter().zip(a.chunks_exact(inputs)) {
                let factor = b * scale;
                row.iter_mut().zip(a).for_each(|(weight, a)| *weight += factor * a);
            }
        }
    }
}
