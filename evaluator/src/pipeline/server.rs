//! The engines of a pipeline: child processes that are started when needed and stopped when not.
//!
//! The address and the process id of an engine are kept in the pipeline's folder, so that a pipeline that was killed finds the
//! engine that it left behind, uses it, and stops it in the end.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use bespoke_client::Client;
use tokio::process::{Child, Command};

use super::config::{Config, ServerConfig};

/// How long a model may take to be fetched, loaded and served.
const START_TIMEOUT: Duration = Duration::from_secs(1800);
/// How often it is looked whether an engine is ready or gone.
const LOOK: Duration = Duration::from_millis(50);
/// How long a stopped engine may take to go.
const STOP_TIMEOUT: Duration = Duration::from_secs(40);

/// All servers of a pipeline.
pub(crate) struct Servers<'a> {
    config: &'a Config,
    running: BTreeMap<String, Running>,
}

/// An engine that answers.
struct Running {
    /// `None` for one that an earlier session left behind.
    child: Option<Child>,
    process_id: u32,
    url: String,
    files: Files,
}

/// Where an engine's address, process id and log stand.
struct Files {
    address: PathBuf,
    process_id: PathBuf,
    log: PathBuf,
}

impl Files {
    fn new(out: &Path, name: &str) -> Self {
        let file = |end: &str| out.join("servers").join(format!("{name}.{end}"));
        Self { address: file("address"), process_id: file("pid"), log: file("log") }
    }
}

impl<'a> Servers<'a> {
    pub(crate) fn new(config: &'a Config) -> Self {
        Self { config, running: BTreeMap::new() }
    }

    /// Returns the address of a server, which is started where it does not run.
    ///
    /// **Errors**: a program that is not there, an engine that ends before it answers.
    pub(crate) async fn start(&mut self, name: &str) -> Result<String> {
        if let Some(running) = self.running.get(name) {
            return Ok(running.url.clone());
        }
        let server = self.config.server(name)?;
        let files = Files::new(&self.config.out, name);
        let running = match left_behind(&files, server).await {
            Some(running) => running,
            None => launch(self.config, server, files).await.with_context(|| format!("server `{name}`"))?,
        };
        eprintln!("pipeline: server {name} answers at {}", running.url);
        let url = running.url.clone();
        self.running.insert(name.to_owned(), running);
        Ok(url)
    }

    /// Stops all servers but those that are needed later.
    pub(crate) async fn stop_all_but(&mut self, needed: &BTreeSet<&String>) {
        let names: Vec<String> = self.running.keys().filter(|name| !needed.contains(name)).cloned().collect();
        for name in names {
            if let Some(running) = self.running.remove(&name) {
                running.stop().await;
            }
        }
    }

    pub(crate) async fn stop_all(&mut self) {
        self.stop_all_but(&BTreeSet::new()).await;
    }
}

impl Running {
    /// Asks the engine to drain and waits until it is gone.
    async fn stop(mut self) {
        // First the files: a session that starts now must not take an engine that drains for one left behind.
        let _ = std::fs::remove_file(&self.files.process_id);
        let _ = std::fs::remove_file(&self.files.address);
        let asked = Command::new("kill").args(["-TERM", &self.process_id.to_string()]).status().await;
        if let Some(child) = &mut self.child {
            let gone = tokio::time::timeout(STOP_TIMEOUT, child.wait()).await;
            if asked.is_err() || gone.is_err() {
                let _ = child.kill().await;
            }
        }
    }
}

/// Finds an engine of the same model that an earlier session left behind.
async fn left_behind(files: &Files, server: &ServerConfig) -> Option<Running> {
    let address = std::fs::read_to_string(&files.address).ok()?;
    let noted = std::fs::read_to_string(&files.process_id).ok()?;
    let (process_id, identity) = noted.split_once(' ')?;
    let process_id = process_id.parse().ok()?;
    let url = format!("http://{address}");
    if identity != server.identity() || !answers(&url).await {
        return None;
    }
    let files = Files { address: files.address.clone(), process_id: files.process_id.clone(), log: files.log.clone() };
    Some(Running { child: None, process_id, url, files })
}

async fn answers(url: &str) -> bool {
    let client = Client::builder(url).connect_timeout(Duration::from_secs(2)).deadline(Duration::from_secs(5));
    match client.connect().await {
        Ok(client) => client.server_info().await.is_ok(),
        Err(_) => false,
    }
}

async fn launch(config: &Config, server: &ServerConfig, files: Files) -> Result<Running> {
    let program = program(config);
    std::fs::create_dir_all(config.out.join("servers")).context("cannot make the folder `servers`")?;
    let _ = std::fs::remove_file(&files.address);
    let log = std::fs::File::create(&files.log).with_context(|| format!("cannot write {}", files.log.display()))?;
    let mut command = Command::new(&program);
    command.args(["serve", "--listen", "127.0.0.1:0", "--model", &server.model, "--port-file"]).arg(&files.address);
    command.args(&server.options).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
    let child = command.spawn();
    let mut child = child.with_context(|| {
        format!("cannot start {}: build it, or set `engine` in the file or BESPOKE_ENGINE", program.display())
    })?;
    let process_id = child.id().context("the engine has ended at once")?;
    std::fs::write(&files.process_id, format!("{process_id} {}", server.identity()))?;
    let deadline = Instant::now() + START_TIMEOUT;
    let url = loop {
        if let Some(status) = child.try_wait()? {
            bail!("the engine ended with {status}: {}", last_lines(&files.log));
        }
        if let Ok(address) = std::fs::read_to_string(&files.address) {
            let url = format!("http://{address}");
            if answers(&url).await {
                break url;
            }
        }
        ensure!(Instant::now() < deadline, "the engine does not answer in {} s", START_TIMEOUT.as_secs());
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = tokio::signal::ctrl_c() => bail!("interrupted while an engine starts"),
        }
    };
    Ok(Running { child: Some(child), process_id, url, files })
}

/// The engine's program: of the file, of the environment, beside this program, or on the PATH.
fn program(config: &Config) -> PathBuf {
    const NAME: &str = "bespoke-engine";
    if let Some(program) = config.engine.clone().or_else(|| std::env::var_os("BESPOKE_ENGINE").map(PathBuf::from)) {
        return program;
    }
    let beside = std::env::current_exe().ok().map(|own| own.with_file_name(NAME)).filter(|path| path.is_file());
    beside.unwrap_or_else(|| PathBuf::from(NAME))
}

/// The end of an engine's log, for an error that says why it ended.
fn last_lines(log: &Path) -> String {
    const NUM_LINES: usize = 5;
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(NUM_LINES)..].join("\n")
}
