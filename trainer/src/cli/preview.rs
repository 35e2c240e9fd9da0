//! `preview`: rows as they are trained on.

use std::io::Write;
use std::process::ExitCode;

use bespoke_trainer::{Example, ExampleMaker, Made, Method, RowFile};
use clap::{Args, ValueEnum};

use super::flags::RecipeFlags;
use super::setup::{maker, open_model};

/// Arguments of `preview`.
#[derive(Args)]
pub(crate) struct PreviewArguments {
    #[command(flatten)]
    recipe: RecipeFlags,
    /// For which command.
    #[arg(long, value_enum, default_value = "sft")]
    method: MethodName,
    /// Examples to show.
    #[arg(long, default_value_t = 3)]
    num_shown: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum MethodName {
    Sft,
    Dpo,
}

/// Prints examples, and what happens to all rows.
pub(crate) fn preview(arguments: &PreviewArguments) -> anyhow::Result<ExitCode> {
    let method = match arguments.method {
        MethodName::Sft => Method::Sft,
        MethodName::Dpo => Method::Dpo,
    };
    let recipe = arguments.recipe.resolve(method)?;
    let source = open_model(&recipe.model.base)?;
    let maker = maker(&source, &recipe, method)?;
    let file = RowFile::read(&recipe.data.train)?;
    let taken = if recipe.data.rows_max == 0 { file.rows.len() } else { recipe.data.rows_max.min(file.rows.len()) };
    let (mut made, mut bad) = (Vec::new(), file.bad);
    for row in &file.rows[..taken] {
        match maker.make(row) {
            Ok(examples) => made.extend(examples),
            Err(reason) => bad.push(reason),
        }
    }
    let mut out = std::io::stdout().lock();
    for (index, made) in made.iter().take(arguments.num_shown).enumerate() {
        show(&mut out, index + 1, &maker, made)?;
    }
    summary(&mut out, &made, &bad)?;
    Ok(ExitCode::SUCCESS)
}

fn show(out: &mut impl Write, number: usize, maker: &ExampleMaker, made: &Made) -> anyhow::Result<()> {
    let text = |ids: &[u32]| maker.tokenizer().decode(ids, false);
    writeln!(out, "--- example {number}: {}, {} tokens, {} cut off", made.place, made.num_tokens, made.num_cut)?;
    match &made.example {
        Example::Sequence { tokens, trained } => {
            let mut start = 0;
            for run in trained.chunk_by(|a, b| a == b) {
                let part = text(&tokens[start..start + run.len()])?;
                let (open, close) = if run[0] { ("[trained>", "<trained]") } else { ("", "") };
                write!(out, "{open}{part}{close}")?;
                start += run.len();
            }
            writeln!(out)?;
        }
        Example::Pair { prompt, chosen, rejected } => {
            writeln!(out, "{}", text(prompt)?)?;
            for (name, ids) in [("chosen", chosen), ("rejected", rejected)] {
                writeln!(out, "  {name}, {} tokens: [trained>{}<trained]", ids.len(), text(ids)?)?;
            }
        }
    }
    Ok(())
}

fn summary(out: &mut impl Write, made: &[Made], bad: &[String]) -> anyhow::Result<()> {
    let mut lens: Vec<usize> = made.iter().map(|made| made.num_tokens).collect();
    lens.sort_unstable();
    let at = |share: usize| lens.get((lens.len().saturating_sub(1)) * share / 100).copied().unwrap_or(0);
    let cut: Vec<&Made> = made.iter().filter(|made| made.num_cut > 0).collect();
    writeln!(out, "--- {} examples, {} tokens", made.len(), lens.iter().sum::<usize>())?;
    writeln!(out, "lengths: shortest {}, half {}, 90 % {}, longest {}", at(0), at(50), at(90), at(100))?;
    writeln!(out, "cut off: {} examples", cut.len())?;
    for made in cut.iter().take(5) {
        writeln!(out, "  {}: {} of {} tokens", made.place, made.num_cut, made.num_tokens)?;
    }
    writeln!(out, "not usable: {} rows", bad.len())?;
    bad.iter().take(10).try_for_each(|reason| writeln!(out, "  {reason}"))?;
    Ok(())
}
