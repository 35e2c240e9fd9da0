//! `sft` and `dpo`.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use bespoke_trainer::{
    Base, Compute, Ending, Example, Item, Lora, LoraShape, Made, Method, Objective, Outcome, Pass, Preference, Recipe,
    Run, merge, read_adapter, references, write_adapter,
};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::flags::TrainArguments;
use super::manifest::{Manifest, instruction_sets};
use super::setup::{Examples, examples, maker, num_threads, open_model};
use super::watch::Watch;

/// Exit status of a run that was told to stop, as a shell reports SIGINT.
const STOPPED: u8 = 130;

/// Trains, and writes adapter and merged model.
pub(crate) fn train(method: Method, arguments: &TrainArguments) -> anyhow::Result<ExitCode> {
    let recipe = arguments.recipe.resolve(method)?;
    let output = recipe.train.output.as_path();
    if !arguments.resume && output.join("checkpoints").exists() {
        anyhow::bail!("{} holds a run already: go on with --resume, or name another --output", output.display());
    }
    std::fs::create_dir_all(output).with_context(|| format!("making {}", output.display()))?;
    let source = open_model(&recipe.model.base)?;
    let maker = maker(&source, &recipe, method)?;
    let train = examples(&maker, &recipe, &recipe.data.train)?;
    let validation = match recipe.data.validation.as_str() {
        "" => None,
        file => Some(examples(&maker, &recipe, file)?),
    };
    let files = std::iter::once(&train).chain(&validation).map(|examples| examples.file.clone()).collect();
    let base = Base::load(&source, recipe.numbers(), num_threads(&recipe), recipe.data.length_max)?;
    let isa = instruction_sets(&base.kernels, arguments.resume.then_some(output));
    let manifest = Manifest { method, recipe: &recipe, source: &source, maker: &maker, files, isa };
    if !arguments.resume {
        manifest.write(None)?;
    }
    if recipe.train.compute == Compute::Bf16 && !base.kernels.has_bf16() {
        tracing::warn!(
            isa = %base.kernels.isa(),
            "products in bf16 are computed from floats here: `compute = \"f32\"` is exact and needs no rounding"
        );
    }
    let lora = adapter(&recipe, &base)?;
    tracing::info!(parameters = lora.values.len(), isa = %base.kernels.isa(), threads = num_threads(&recipe), "adapter made");
    let stop = stop_flag()?;
    let Some(outcome) = run(&manifest, (&base, lora), [Some(&train), validation.as_ref()], arguments.resume, &stop)?
    else {
        return Ok(stopped(output));
    };
    manifest.write(Some(&outcome))?;
    if outcome.ending == Ending::Stopped {
        return Ok(stopped(output));
    }
    finish(arguments, &manifest, &outcome)?;
    Ok(ExitCode::SUCCESS)
}

/// A fresh adapter, or the one to go on from.
fn adapter(recipe: &Recipe, base: &Base) -> anyhow::Result<Lora> {
    if !recipe.model.adapter.is_empty() {
        return Ok(read_adapter(&base.config, Path::new(&recipe.model.adapter))?);
    }
    let lora = &recipe.lora;
    let shape =
        LoraShape { r: lora.r, alpha: lora.alpha, rslora: lora.rslora, target_modules: lora.target_modules.clone() };
    Lora::new(&base.config, shape, recipe.train.seed)
        .map_err(|name| anyhow::anyhow!("`lora.target_modules` has `{name}`, which is no module; use q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj or all-linear"))
}

/// Runs the loop; `None` if told to stop before it began.
fn run(
    manifest: &Manifest<'_>,
    (base, lora): (&Base, Lora),
    data: [Option<&Examples>; 2],
    resume: bool,
    stop: &AtomicBool,
) -> anyhow::Result<Option<Outcome>> {
    let (recipe, mut watch) = (manifest.recipe, Watch::new());
    let [train, validation] = data.map(|data| data.map_or(Vec::new(), |data| examples_of(&data.made)));
    let mut references_of = |examples: &[Example], name: &str| -> anyhow::Result<Option<Vec<[f64; 2]>>> {
        if manifest.method == Method::Sft {
            return Ok(Some(vec![[0.0; 2]; examples.len()]));
        }
        let identity = format!("{} {:?}", manifest.source.digest()?, recipe.numbers());
        let cache = recipe.train.output.join(format!("reference-{name}.safetensors"));
        let mut pass = Pass::new(base, false);
        let mut progress = |done| {
            watch.preparing("reference", done, examples.len());
            !stop.load(Ordering::Relaxed)
        };
        let settings = (identity.as_str(), recipe.train.batch_tokens);
        Ok(references(&mut pass, examples, settings, &cache, &mut progress)?)
    };
    let Some(train_references) = references_of(&train, "train")? else { return Ok(None) };
    let Some(validation_references) = references_of(&validation, "validation")? else { return Ok(None) };
    let dpo = &recipe.dpo;
    let (objective, dropout) = match manifest.method {
        Method::Sft => (Objective::Likelihood, recipe.lora.dropout),
        Method::Dpo => {
            let preference = Preference { kind: dpo.loss, beta: dpo.beta, label_smoothing: dpo.label_smoothing };
            // The reference implementation turns dropout off, so that model and reference differ by training alone.
            (Objective::Preference(preference), 0.0)
        }
    };
    let run = Run {
        base,
        base_name: recipe.model.base.clone(),
        recipe: &recipe.train,
        objective,
        dropout,
        train: items(&train, &train_references),
        validation: items(&validation, &validation_references),
        fingerprint: manifest.fingerprint()?,
        stop,
    };
    let outcome = run.train(lora, resume, &mut watch)?;
    watch.finish();
    Ok(Some(outcome))
}

fn examples_of(made: &[Made]) -> Vec<Example> {
    made.iter().map(|made| made.example.clone()).collect()
}

fn items<'a>(examples: &'a [Example], references: &[[f64; 2]]) -> Vec<Item<'a>> {
    examples.iter().zip(references).map(|(example, &reference)| Item { example, reference }).collect()
}

/// Writes adapter and merged model.
fn finish(arguments: &TrainArguments, manifest: &Manifest<'_>, outcome: &Outcome) -> anyhow::Result<()> {
    let (recipe, output) = (manifest.recipe, &manifest.recipe.train.output);
    let folder = output.join("adapter");
    write_adapter(&outcome.lora, recipe.lora.dropout, &recipe.model.base, &folder)?;
    let tokens_per_s = outcome.state.num_tokens as f64 / outcome.state.seconds;
    tracing::info!(
        ending = ?outcome.ending,
        steps = outcome.state.step,
        tokens = outcome.state.num_tokens,
        tokens_per_s = tokens_per_s.round(),
        best_eval_loss = outcome.state.best_loss(),
        best_step = outcome.state.best_step,
        adapter = %folder.display(),
        "trained"
    );
    if !arguments.no_merge {
        let merged = output.join("merged");
        merge(manifest.source, &outcome.lora, arguments.merged_dtype, &merged)?;
        tracing::info!(model = %merged.display(), "merged; serve it with `bespoke-engine serve --model {}`", merged.display());
    }
    Ok(())
}

fn stopped(output: &Path) -> ExitCode {
    tracing::warn!("stopped; go on with the same arguments and --resume (output {})", output.display());
    ExitCode::from(STOPPED)
}

/// A flag that the first SIGINT or SIGTERM sets; the second ends the process.
fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, i32::from(STOPPED), Arc::clone(&stop))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)))
            .context("listening for signals")?;
    }
    Ok(stop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_examples_are_taken_over() {
        let example = Example::Sequence { tokens: vec![1, 2], trained: vec![true; 2] };
        let made = [Made { place: "a:1".to_owned(), example: example.clone(), num_tokens: 2, num_cut: 0 }];
        assert_eq!(examples_of(&made), [example]);
    }
}
