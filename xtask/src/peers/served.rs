//! The servers: start, load, memory. Both are driven by the same load generator with the same prompts.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::comparison::{Better, Comparison, Side};
use super::{Setup, output};

const START_TIME_MAX: Duration = Duration::from_secs(300);
/// How often a starting server is looked at: a small part of the fastest start.
const LOOK: Duration = Duration::from_millis(2);
/// The context of a slot of llama-server: 200 tokens of prompt and 64 of answer, rounded up as it rounds.
const SLOT_CONTEXT: usize = 512;

/// Measures both servers once with so many clients.
pub(super) fn measure(setup: &Setup, clients: usize, per_client: usize, comparison: &mut Comparison) -> Result<()> {
    let starts: [fn(&Setup, usize) -> Result<Server>; 2] = [start_ours, start_theirs];
    for (side, start) in [Side::Ours, Side::Theirs].into_iter().zip(starts) {
        let mut server = start(setup, clients)?;
        let report = load(setup, &server, clients, per_client)?;
        let memory = server.memory_mib()?;
        server.stop();
        let mut add = |name: &str, better, number| {
            comparison.add(&format!("served, {clients} clients: {name}"), better, side, number);
        };
        let at = |path: &str| report.pointer(path).and_then(Value::as_f64).with_context(|| format!("no `{path}`"));
        let errors = report["errors"].as_object().context("no `errors`")?;
        ensure!(errors.is_empty(), "{}: requests failed: {}", server.uri, report["errors"]);
        add("output, tokens/s", Better::Higher, at("/output_tokens_per_s")?);
        add("first token p50, ms", Better::Lower, at("/ttft_ms/p50")?);
        add("first token p99, ms", Better::Lower, at("/ttft_ms/p99")?);
        add("inter-token p50, ms", Better::Lower, at("/inter_token_ms/p50")?);
        add("inter-token p99, ms", Better::Lower, at("/inter_token_ms/p99")?);
        add("prompt from the cache, %", Better::Higher, 100.0 * at("/cached_share")?);
        add("start to ready, ms", Better::Lower, server.ready.as_secs_f64() * 1e3);
        add("peak memory, MiB", Better::Lower, memory);
    }
    Ok(())
}

/// A server as a process. Killed when dropped.
struct Server {
    child: Child,
    protocol: &'static str,
    uri: String,
    /// From the start of the process to the first moment that it would answer.
    ready: Duration,
}

fn start_ours(setup: &Setup, clients: usize) -> Result<Server> {
    let port_file = std::env::temp_dir().join(format!("bench-peers-{}", std::process::id()));
    let _ = fs::remove_file(&port_file);
    let mut command = Command::new(setup.ours.join("bespoke-engine"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--log-filter", "warn", "--port-file"]).arg(&port_file);
    command.arg("--model").arg(&setup.model).args(["--num-threads", &setup.threads.to_string()]);
    command.args(["--sequences-max", &clients.max(32).to_string()]);
    let mut address = String::new();
    let mut server = Server::start(&mut command, "grpc", || {
        address = fs::read_to_string(&port_file).unwrap_or_default();
        !address.is_empty() && TcpStream::connect(&address).is_ok()
    })?;
    let _ = fs::remove_file(&port_file);
    server.uri = format!("http://{address}");
    Ok(server)
}

fn start_theirs(setup: &Setup, clients: usize) -> Result<Server> {
    let port =
        TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).context("a free port")?.port();
    let mut command = Command::new(setup.theirs.join("llama-server"));
    command.arg("-m").arg(&setup.model).args(["--host", "127.0.0.1", "--port", &port.to_string()]);
    command.args(["-t", &setup.threads.to_string(), "-np", &clients.to_string()]);
    command.args(["-c", &(clients * SLOT_CONTEXT).to_string()]);
    let mut server = Server::start(&mut command, "openai", || is_healthy(port))?;
    server.uri = format!("http://127.0.0.1:{port}");
    Ok(server)
}

/// Asks llama-server for its health, which is bad while the model loads.
fn is_healthy(port: u16) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

impl Server {
    fn start(command: &mut Command, protocol: &'static str, mut is_ready: impl FnMut() -> bool) -> Result<Server> {
        let name = command.get_program().to_string_lossy().into_owned();
        let begun = Instant::now();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.with_context(|| format!("start `{name}`"))?;
        let mut server = Server { child, protocol, uri: String::new(), ready: Duration::ZERO };
        while !is_ready() {
            if let Some(status) = server.child.try_wait().with_context(|| format!("wait for `{name}`"))? {
                bail!("`{name}` ended while starting: {status}");
            }
            ensure!(begun.elapsed() < START_TIME_MAX, "`{name}` does not become ready");
            thread::sleep(LOOK);
        }
        server.ready = begun.elapsed();
        Ok(server)
    }

    fn memory_mib(&self) -> Result<f64> {
        let file = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(&file).with_context(|| format!("read `{file}`"))?;
        parse_peak_mib(&status).with_context(|| format!("`{file}` has no `VmHWM`"))
    }

    fn stop(&mut self) {
        // It may have ended by itself, which the load has then shown.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Reads the peak resident size from `/proc/PID/status`.
fn parse_peak_mib(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse::<f64>().ok().map(|kibibytes| kibibytes / 1024.0)
}

fn load(setup: &Setup, server: &Server, clients: usize, per_client: usize) -> Result<Value> {
    let mut command = Command::new(setup.ours.join("load"));
    command.args(["--target", &server.uri, "--protocol", server.protocol, "--clients", &clients.to_string()]);
    command.args(["--requests", &(clients * per_client).to_string(), "--json"]);
    command.args(["--prompt-tokens", "200", "--shared-tokens", "150", "--new-tokens", "64"]);
    serde_json::from_str(&output(&mut command)?).context("parse `load`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_read() {
        assert_eq!(parse_peak_mib("VmPeak:\t  99 kB\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n"), Some(2.0));
        assert_eq!(parse_peak_mib("VmPeak: 99 kB\n"), None);
    }

    #[test]
    fn a_server_that_ends_at_once_is_named() {
        let error = Server::start(&mut Command::new("false"), "grpc", || false).err().unwrap();
        assert!(error.to_string().contains("`false` ended"), "{error}");
        let server = Server::start(Command::new("sleep").arg("60"), "grpc", || true).unwrap();
        assert!(server.memory_mib().unwrap() > 0.0);
    }
}
