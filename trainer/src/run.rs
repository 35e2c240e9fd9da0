//! The loop of a run: steps, evaluations, checkpoints, until all epochs are done, it is told to stop, or nothing gets better.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::adapter::write_adapter;
use crate::base::Base;
use crate::checkpoint::{Checkpoints, State};
use crate::items::order;
use crate::lora::Lora;
use crate::metrics::{Kind, Metrics, Record};
use crate::optimizer::{AdamW, clip};
use crate::pass::Pass;
use crate::recipe::TrainRecipe;
use crate::step::{Item, Means, Objective, StepSettings, run_items};
use crate::{TrainError, plot};

/// Everything that a run needs.
pub struct Run<'a> {
    /// The frozen model.
    pub base: &'a Base,
    /// Its name, for the adapter's configuration.
    pub base_name: String,
    /// The loop's settings.
    pub recipe: &'a TrainRecipe,
    /// What is optimised.
    pub objective: Objective,
    /// Share of inputs dropped.
    pub dropout: f32,
    /// What to train on.
    pub train: Vec<Item<'a>>,
    /// What to evaluate on.
    pub validation: Vec<Item<'a>>,
    /// Digest of what must not change between two halves of a run.
    pub fingerprint: String,
    /// Set to stop after the current step.
    pub stop: &'a AtomicBool,
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All steps are done.
    Done,
    /// Evaluations stopped getting better.
    NoGain,
    /// It was told to stop; a checkpoint is there.
    Stopped,
}

/// What a run leaves.
pub struct Outcome {
    /// Why it ended.
    pub ending: Ending,
    /// Where it stands.
    pub state: State,
    /// The best adapter, or the last one where nothing was evaluated.
    pub lora: Lora,
}

/// Hears how a run goes on.
pub trait Watcher {
    /// A step is done, of so many.
    fn step(&mut self, record: &Record, steps: u64);
    /// An evaluation has looked at so many of its items.
    fn evaluating(&mut self, done: usize, items: usize);
    /// An evaluation is done.
    fn evaluated(&mut self, record: &Record, best: bool);
}

/// The parts of a run that change.
struct Progress {
    lora: Lora,
    optimizer: AdamW,
    /// What a step adds up; each begins with zeros.
    gradients: Vec<f32>,
    state: State,
    metrics: Metrics,
    checkpoints: Checkpoints,
    /// Step of the newest checkpoint.
    saved: u64,
}

impl Run<'_> {
    /// Steps of one epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        let rows = self.recipe.batch_size * self.recipe.gradient_accumulation;
        self.train.len().div_ceil(rows) as u64
    }

    /// Steps of the whole run.
    pub fn steps(&self) -> u64 {
        let all = self.steps_per_epoch() * self.recipe.epochs;
        if self.recipe.steps_max == 0 { all } else { all.min(self.recipe.steps_max) }
    }

    /// Trains; with `resume` from the newest checkpoint of the output folder.
    ///
    /// **Errors**: `NotANumber` and, when something cannot be written, `Unsaved` (the last checkpoint is good), or `Io` if there is
    /// none; `Setting` when a resumed run is another one.
    pub fn train(&self, lora: Lora, resume: bool, watcher: &mut dyn Watcher) -> Result<Outcome, TrainError> {
        let mut progress = self.begin(lora, resume)?;
        let ended = self.go_on(&mut progress, watcher);
        let ending = ended.map_err(|error| match error {
            TrainError::Io { action: "writing", .. } if progress.saved > 0 => {
                TrainError::Unsaved { checkpoint: progress.saved, source: Box::new(error) }
            }
            other => other,
        })?;
        let mut lora = progress.lora;
        if ending != Ending::Stopped && progress.state.best_loss_bits.is_some() {
            crate::adapter::read_weights(&mut lora, &self.best_folder().join(crate::adapter::WEIGHTS_FILE))?;
        }
        Ok(Outcome { ending, state: progress.state, lora })
    }

    /// Takes steps to the end, and saves what it comes to.
    fn go_on(&self, progress: &mut Progress, watcher: &mut dyn Watcher) -> Result<Ending, TrainError> {
        let mut pass = Pass::new(self.base, self.recipe.checkpointing);
        let steps = self.steps();
        let mut ending = Ending::Done;
        loop {
            if progress.state.eval_due && !self.stop.load(Ordering::Relaxed) {
                self.evaluate(&mut pass, progress, watcher)?;
            }
            if self.stop.load(Ordering::Relaxed) {
                ending = Ending::Stopped;
                break;
            }
            let patience = self.recipe.patience;
            if patience > 0 && progress.state.evals_without_gain >= patience {
                ending = Ending::NoGain;
                break;
            }
            if progress.state.step >= steps {
                break;
            }
            let before = progress.state.step;
            self.step(&mut pass, progress, watcher)?;
            let step = progress.state.step;
            if step == before {
                continue;
            }
            let each = |every: u64| every > 0 && step.is_multiple_of(every);
            let ends_epoch = progress.state.position == 0 || step == steps;
            // The end always: what came after the last evaluation would be trained for nothing, as the best adapter is kept.
            let evaluates =
                step == steps || if self.recipe.eval_steps == 0 { ends_epoch } else { each(self.recipe.eval_steps) };
            progress.state.eval_due = evaluates && !self.validation.is_empty();
            if evaluates || ends_epoch || each(self.recipe.save_steps) {
                self.save(progress)?;
            }
        }
        self.save(progress)?;
        plot::draw(&progress.metrics.records, &self.recipe.output.join("plot.svg"))?;
        Ok(ending)
    }

    fn begin(&self, mut lora: Lora, resume: bool) -> Result<Progress, TrainError> {
        let output = &self.recipe.output;
        std::fs::create_dir_all(output).map_err(TrainError::writing(output))?;
        let mut optimizer = AdamW::new(self.recipe.adam, lora.values.len());
        let checkpoints = Checkpoints::of(output);
        let mut state = State { fingerprint: self.fingerprint.clone(), ..State::default() };
        if resume {
            state = checkpoints.load(&mut lora, &mut optimizer)?.ok_or_else(|| TrainError::Setting {
                field: "resume",
                reason: format!("finds no checkpoint in {}; start without it", output.display()),
            })?;
            if state.fingerprint != self.fingerprint {
                return Err(TrainError::Setting {
                    field: "resume",
                    reason:
                        "meets another run: base, rows or settings of the recipe have changed since its checkpoint; \
                             use those of recipe.toml in the output folder, or another output"
                            .to_owned(),
                });
            }
        }
        let metrics = Metrics::open(output, state.step)?;
        let gradients = vec![0.0; lora.values.len()];
        Ok(Progress { saved: state.step, lora, optimizer, gradients, state, metrics, checkpoints })
    }

    fn step(&self, pass: &mut Pass<'_>, progress: &mut Progress, watcher: &mut dyn Watcher) -> Result<(), TrainError> {
        let start = Instant::now();
        let state = &mut progress.state;
        let order = order(self.train.len(), self.recipe.seed, state.epoch);
        let num_rows = self.recipe.batch_size * self.recipe.gradient_accumulation;
        let end = order.len().min(state.position + num_rows);
        let items: Vec<Item<'_>> = order[state.position..end].iter().map(|&index| self.train[index]).collect();
        let gradients = &mut progress.gradients;
        gradients.fill(0.0);
        let settings = StepSettings {
            objective: self.objective,
            batch_tokens: self.recipe.batch_tokens,
            dropout: Some((self.dropout, self.recipe.seed, state.step)),
            stop: self.stop,
        };
        // A step that is left has changed nothing; it is done again as a whole.
        let done = run_items(pass, &progress.lora, &items, &settings, Some(gradients));
        let Some(means) = done else { return Ok(()) };
        let limit = self.recipe.grad_norm_max;
        let grad_norm = clip(gradients, (limit > 0.0).then_some(limit));
        for (what, value) in [("loss", means.loss), ("gradient", grad_norm)] {
            if !value.is_finite() {
                return Err(TrainError::NotANumber { step: state.step + 1, what, value, checkpoint: progress.saved });
            }
        }
        let warmup = (self.recipe.warmup_ratio * self.steps() as f64).ceil() as u64;
        let learning_rate = self.recipe.learning_rate * self.recipe.schedule.factor(state.step, warmup, self.steps());
        progress.optimizer.update(&mut progress.lora.values, gradients, learning_rate);
        state.step += 1;
        state.position = end;
        if end == order.len() {
            (state.epoch, state.position) = (state.epoch + 1, 0);
        }
        let seconds = start.elapsed().as_secs_f64();
        state.seconds += seconds;
        state.num_tokens += means.num_tokens as u64;
        let record = Record {
            kind: Kind::Train,
            step: state.step,
            epoch: self.epoch(state),
            learning_rate: Some(learning_rate),
            grad_norm: Some(grad_norm),
            tokens_per_s: means.num_tokens as f64 / seconds,
            means,
        };
        watcher.step(&record, self.steps());
        progress.metrics.write(record)
    }

    fn epoch(&self, state: &State) -> f64 {
        state.epoch as f64 + state.position as f64 / self.train.len() as f64
    }

    /// Evaluates, and keeps the adapter if it is the best so far; if told to stop before the end, the evaluation stays due.
    fn evaluate(
        &self,
        pass: &mut Pass<'_>,
        progress: &mut Progress,
        watcher: &mut dyn Watcher,
    ) -> Result<(), TrainError> {
        let start = Instant::now();
        let Some(means) = self.means(pass, &progress.lora, watcher) else { return Ok(()) };
        let state = &mut progress.state;
        state.eval_due = false;
        let best = state.best_loss().is_none_or(|best| means.loss < best);
        if best {
            (state.best_loss_bits, state.best_step) = (Some(means.loss.to_bits()), state.step);
            state.evals_without_gain = 0;
            write_adapter(&progress.lora, self.dropout, &self.base_name, &self.best_folder())?;
        } else {
            state.evals_without_gain += 1;
        }
        let record = Record {
            kind: Kind::Eval,
            step: state.step,
            epoch: self.epoch(state),
            learning_rate: None,
            grad_norm: None,
            tokens_per_s: means.num_tokens as f64 / start.elapsed().as_secs_f64(),
            means,
        };
        watcher.evaluated(&record, best);
        progress.metrics.write(record)?;
        plot::draw(&progress.metrics.records, &self.recipe.output.join("plot.svg"))
    }

    /// Means over the validation items, some of them at a time so that a signal is heard.
    fn means(&self, pass: &mut Pass<'_>, lora: &Lora, watcher: &mut dyn Watcher) -> Option<Means> {
        /// Items between two looks at the signal.
        const AT_ONCE: usize = 16;
        let settings = StepSettings {
            objective: self.objective,
            batch_tokens: self.recipe.batch_tokens,
            dropout: None,
            stop: self.stop,
        };
        let mut total = Total::default();
        for (index, items) in self.validation.chunks(AT_ONCE).enumerate() {
            watcher.evaluating(index * AT_ONCE, self.validation.len());
            total.add(run_items(pass, lora, items, &settings, None)?);
        }
        Some(total.means())
    }

    fn save(&self, progress: &mut Progress) -> Result<(), TrainError> {
        progress.checkpoints.save(&progress.state, &progress.lora, &progress.optimizer)?;
        progress.saved = progress.state.step;
        Ok(())
    }

    fn best_folder(&self) -> std::path::PathBuf {
        best_folder(&self.recipe.output)
    }
}

/// Where the best adapter of a run is kept.
pub(crate) fn best_folder(output: &Path) -> std::path::PathBuf {
    output.join("best")
}

/// Means of groups into one: over all predictions that count, or over all pairs, however they were grouped.
#[derive(Default)]
struct Total {
    sums: Means,
}

impl Total {
    fn add(&mut self, means: Means) {
        let weight = means.num_terms as f64;
        self.sums.num_terms += means.num_terms;
        self.sums.loss += means.loss * weight;
        self.sums.num_tokens += means.num_tokens;
        if let Some(more) = means.preference {
            let sums = self.sums.preference.get_or_insert_default();
            sums.reward_chosen += more.reward_chosen * weight;
            sums.reward_rejected += more.reward_rejected * weight;
            sums.margin += more.margin * weight;
            sums.accuracy += more.accuracy * weight;
        }
    }

    fn means(mut self) -> Means {
        let num = self.sums.num_terms.max(1) as f64;
        self.sums.loss /= num;
        if let Some(sums) = &mut self.sums.preference {
            for value in [&mut sums.reward_chosen, &mut sums.reward_rejected, &mut sums.margin, &mut sums.accuracy] {
                *value /= num;
            }
        }
        self.sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_evaluation_is_a_mean_over_tokens_however_rows_are_grouped() {
        let mut total = Total::default();
        for (loss, num_terms) in [(1.0, 30), (4.0, 10)] {
            total.add(Means { loss, num_terms, num_tokens: 50, preference: None });
        }
        assert_eq!(total.means(), Means { loss: 1.75, num_terms: 40, num_tokens: 100, preference: None });
    }
}
