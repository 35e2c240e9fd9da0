//! The command line: every command with its arguments, and the way from one to the other.

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::{
    pipeline::{self, Pipeline},
    report::{self, Report},
    stage::{
        accuracy::{self, Accuracy},
        agreement::{self, Agreement},
        augment::{self, Augment},
        doctor::{self, Doctor},
        generate::{self, Generate},
        infer::{self, Infer},
        judge::{self, Judge},
        prefs::{self, Prefs},
        retrieve::{self, Retrieve},
        saliency::{self, Saliency},
        win_rate::{self, WinRate},
    },
};

/// Infers personas, generates and judges tailored answers, and reports, against the Bespoke engine or external services.
///
/// Each run is a folder that keeps every answer the moment it comes: a run that was stopped or killed goes on when the same
/// command is given again. Keys of services are read from the environment or a `.env` file: OPEN_AI_TOKEN or
/// OPENAI_API_KEY, ANTHROPIC_TOKEN or ANTHROPIC_API_KEY, COHERE_TOKEN or COHERE_API_KEY.
#[derive(Parser)]
#[command(name = "bespoke-evaluator", version, propagate_version = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write the persona of a user who would prefer one answer of a pair over the other.
    Infer(Box<Infer>),
    /// Add inferred personas to a data file as columns.
    Augment(Augment),
    /// Measure how often a judge can tell from a persona which answer it was inferred for.
    Accuracy(Box<Accuracy>),
    /// Ask a judge which personas are better, those of chosen or of rejected answers.
    Prefs(Box<Prefs>),
    /// List the words that tell personas of chosen answers from those of rejected ones.
    Saliency(Saliency),
    /// Fill the columns of retrieved personas from the most similar training prompt.
    Retrieve(Box<Retrieve>),
    /// Generate answers tailored to personas.
    Generate(Box<Generate>),
    /// Grade generated answers: two runs against each other in both orders, or one by itself.
    Judge(Box<Judge>),
    /// Count a judge's verdicts: win rates with intervals, Delta-PQ, position bias, agreement of judges.
    WinRate(WinRate),
    /// Measure how often a judge agrees with people.
    Agreement(Box<Agreement>),
    /// Put the results of run folders on one page, with figures and tables.
    Report(Report),
    /// Run stages in order from a TOML file, starting and stopping the engines that they need.
    Pipeline(Pipeline),
    /// Check which providers answer.
    Doctor(Doctor),
}

/// Runs the command that was typed.
///
/// **Errors**: what the command meets, with the file, option or provider named.
pub fn run(arguments: Arguments) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    let ended = runtime.block_on(perform(arguments.command));
    // Calls over HTTP that were given up are not waited for.
    runtime.shutdown_background();
    ended
}

async fn perform(command: Command) -> Result<()> {
    match command {
        Command::Pipeline(arguments) => pipeline::pipeline(&arguments).await,
        command => stage(command).await,
    }
}

/// Parses and runs one stage, as the pipeline does.
pub(crate) async fn run_stage(words: Vec<String>) -> Result<()> {
    let arguments = Arguments::try_parse_from(words).map_err(|error| anyhow::anyhow!("{}", error.render()))?;
    stage(arguments.command).await
}

async fn stage(command: Command) -> Result<()> {
    match command {
        Command::Infer(arguments) => infer::infer(&arguments).await,
        Command::Augment(arguments) => augment::augment(&arguments),
        Command::Accuracy(arguments) => accuracy::accuracy(&arguments).await,
        Command::Prefs(arguments) => prefs::prefs(&arguments).await,
        Command::Saliency(arguments) => saliency::saliency(&arguments),
        Command::Retrieve(arguments) => retrieve::retrieve(&arguments).await,
        Command::Generate(arguments) => generate::generate(&arguments).await,
        Command::Judge(arguments) => judge::judge(&arguments).await,
        Command::WinRate(arguments) => win_rate::win_rate(&arguments),
        Command::Agreement(arguments) => agreement::agreement(&arguments).await,
        Command::Report(arguments) => report::report(&arguments),
        Command::Doctor(arguments) => doctor::doctor(&arguments).await,
        Command::Pipeline(_) => anyhow::bail!("a pipeline cannot be a stage of a pipeline"),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
