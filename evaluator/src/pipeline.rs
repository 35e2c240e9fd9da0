//! `pipeline`: runs stages in order from a TOML file, and starts and stops the engines that they need.
//!
//! Place in the flow: each stage is a command as one would type it, so a pipeline can do no more and no less than the command
//! line. A stage whose options and inputs are those of its finished run is passed over, so that a pipeline that was stopped
//! or killed goes on where it was. An engine is started when the first stage needs it and stopped when no later one does.

mod config;
mod server;

use std::{
    collections::BTreeSet,
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use clap::Args;

use self::{
    config::{Config, Stage},
    server::Servers,
};
use crate::{arguments::run_stage, case::hex_digest, run_folder::write_atomically};

/// Arguments of `pipeline`.
#[derive(Args, Debug)]
pub(crate) struct Pipeline {
    /// The TOML file.
    ///
    /// `out` is the folder of all runs and `engine` the program to start engines with (default: bespoke-engine beside this
    /// program, else on the PATH). Each [[server]] has a `name`, a `model` and `options` for `bespoke-engine serve`. Each
    /// [[stage]] has a `name`, a `command`, the name of the `server` that answers where it needs one, and a table of `options`,
    /// named as on the command line. A value that starts with `@name` is the folder of that stage.
    pub(crate) config: PathBuf,
    /// Run this stage anew, its earlier answers are dropped. May be given repeatedly.
    #[arg(long, value_name = "STAGE")]
    pub(crate) redo: Vec<String>,
    /// Show the commands and run nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// What a finished stage of a pipeline was run with.
const DONE: &str = "done";

/// Runs the pipeline.
///
/// **Errors**: a file that is wrong, an engine that does not start, and what the stages meet.
pub(crate) async fn pipeline(arguments: &Pipeline) -> Result<()> {
    let config = Config::read(&arguments.config)?;
    for name in &arguments.redo {
        ensure!(config.stages.iter().any(|stage| stage.name == *name), "`--redo {name}`: there is no such stage");
    }
    if arguments.dry_run {
        return show(&config);
    }
    let _lock = lock(&config.out)?;
    let mut servers = Servers::new(&config);
    let ended = run_stages(&config, &mut servers, arguments).await;
    servers.stop_all().await;
    ended
}

/// Keeps a second session of the same pipeline out until the first has stopped its engines.
fn lock(out: &Path) -> Result<File> {
    std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let lock = File::create(out.join(".lock")).with_context(|| format!("cannot write in {}", out.display()))?;
    ensure!(lock.try_lock().is_ok(), "{} is in use by another pipeline: wait until it has ended", out.display());
    Ok(lock)
}

async fn run_stages(config: &Config, servers: &mut Servers<'_>, arguments: &Pipeline) -> Result<()> {
    for (place, stage) in config.stages.iter().enumerate() {
        let dir = config.dir(stage);
        let words = config.words(stage)?;
        let fingerprint = fingerprint(config, stage, &words)?;
        let redo = arguments.redo.contains(&stage.name);
        if !redo && is_done(&dir, &fingerprint) {
            eprintln!("pipeline: {} is done", stage.name);
        } else {
            eprintln!("pipeline: {} ({})", stage.name, stage.command);
            let mut words = words.clone();
            if let Some(server) = &stage.server {
                words.extend(["--base-url".to_owned(), servers.start(server).await?]);
            }
            if redo && config.has_folder(stage) {
                words.push("--force".to_owned());
            }
            run_stage(words).await.with_context(|| format!("stage `{}`", stage.name))?;
            write_atomically(&dir.join(DONE), fingerprint.as_bytes())?;
        }
        let needed: BTreeSet<&String> =
            config.stages[place + 1..].iter().filter_map(|stage| stage.server.as_ref()).collect();
        servers.stop_all_but(&needed).await;
    }
    Ok(())
}

/// Identifies the options of a stage and the content of all files and runs that it reads.
fn fingerprint(config: &Config, stage: &Stage, words: &[String]) -> Result<String> {
    let mut text = format!("{} {}", env!("CARGO_PKG_VERSION"), words.join("\u{0}"));
    if let Some(server) = &stage.server {
        text += &config.server(server)?.identity();
    }
    let dir = config.dir(stage);
    for word in words {
        let path = Path::new(word);
        if path.starts_with(&dir) {
            continue;
        }
        // What a run reads of another is its rows.
        for path in [path.to_owned(), path.join("rows.jsonl")] {
            if path.is_file() {
                let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                text += &hex_digest(&bytes);
            }
        }
    }
    // A report reads all that is there.
    if stage.command == "report" {
        text += &jiff::Timestamp::now().to_string();
    }
    Ok(hex_digest(text.as_bytes()))
}

fn is_done(dir: &Path, fingerprint: &str) -> bool {
    std::fs::read_to_string(dir.join(DONE)).is_ok_and(|done| done == fingerprint)
}

#[expect(clippy::print_stdout, reason = "the commands are the output of a dry run")]
fn show(config: &Config) -> Result<()> {
    for stage in &config.stages {
        let words = config.words(stage)?;
        let server = stage.server.as_ref().map_or(String::new(), |server| format!("   # answered by {server}"));
        println!("{}{server}", words.join(" "));
    }
    Ok(())
}
