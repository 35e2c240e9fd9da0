//! What the end-to-end tests share: a server in this process, and the binary as a process.

use std::{
    future::Future,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use bespoke_client::{Builder, Client, Event, Generate, Prompt, PromptSpec, Request, Sampling, Template};
use bespoke_engine::{Embedder, Engine};
use bespoke_proto::{
    GenerateStreamRequest, GenerateStreamResponse, generation_service_client::GenerationServiceClient,
};
use bespoke_server::{Config, Server};
use bespoke_testkit::{TinyEncoder, TinyModel, TinyModelDir};
use futures::StreamExt;
use tokio::{sync::oneshot, task::JoinHandle};
use tonic::{Streaming, transport::Channel};

/// A server on a model of its own. Stops when dropped.
pub(crate) struct Running {
    pub(crate) address: String,
    /// Of the page of metrics, where the configuration asks for one.
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) client: Client,
    http: Option<String>,
    stop: Option<oneshot::Sender<()>>,
    ended: JoinHandle<anyhow::Result<()>>,
    _model: Option<TinyModelDir>,
}

impl Running {
    /// Starts a server on the tiny random model.
    pub(crate) async fn tiny(configure: impl FnOnce(&mut Config)) -> Self {
        let model = TinyModel::default().write_hf().unwrap();
        let path = model.path().to_owned();
        Self::start(&path, Some(model), configure, |builder| builder).await
    }

    /// Starts a server on the tiny random model that not everybody may call.
    pub(crate) async fn guarded(configure: impl FnOnce(&mut Config), connect: impl FnOnce(Builder) -> Builder) -> Self {
        let model = TinyModel::default().write_hf().unwrap();
        let path = model.path().to_owned();
        Self::start(&path, Some(model), configure, connect).await
    }

    /// Starts a server on the tiny random model with a tiny random encoder.
    pub(crate) async fn with_encoder(configure: impl FnOnce(&mut Config)) -> Self {
        let configure = |config: &mut Config| {
            configure(config);
            config.embedding_model = Some("tiny".to_owned());
        };
        Self::tiny(configure).await
    }

    /// Starts a server on a model that takes milliseconds for a token.
    pub(crate) async fn slow(configure: impl FnOnce(&mut Config)) -> Self {
        let model = TinyModel { num_layers: 16, hidden_size: 256, intermediate_size: 512, ..TinyModel::default() };
        let model = model.write_hf().unwrap();
        let path = model.path().to_owned();
        Self::start(&path, Some(model), configure, |builder| builder).await
    }

    /// Starts a server on the model at a path.
    pub(crate) async fn on(path: &Path) -> Self {
        Self::start(path, None, |_| {}, |builder| builder).await
    }

    async fn start(
        path: &Path,
        model: Option<TinyModelDir>,
        configure: impl FnOnce(&mut Config),
        connect: impl FnOnce(Builder) -> Builder,
    ) -> Self {
        Self::over(model, configure, connect, |config| {
            let mut engine = Engine::builder()
                .model(path)
                .num_threads(1)
                .sequences_max(config.sequences_max)
                .queue_max(config.queue_max)
                .personas(config.personas.clone());
            if let Some(persona) = &config.system_persona {
                engine = engine.system_persona(persona.clone());
            }
            engine.build().unwrap()
        })
        .await
    }

    /// Starts a server on an engine.
    pub(crate) async fn over(
        model: Option<TinyModelDir>,
        configure: impl FnOnce(&mut Config),
        connect: impl FnOnce(Builder) -> Builder,
        engine: impl FnOnce(&Config) -> Engine,
    ) -> Self {
        let mut config = Config { listen: "127.0.0.1:0".parse().unwrap(), ..Config::default() };
        configure(&mut config);
        let engine = engine(&config);
        let scheme = if config.security.tls.is_some() { "https" } else { "http" };
        let listener = tokio::net::TcpListener::bind(config.listen).await.unwrap();
        let embedder = config.embedding_model.is_some().then(|| {
            let encoder = TinyEncoder::default().write().unwrap();
            Embedder::load(encoder.path(), 1, config.queue_max).unwrap()
        });
        let http = match config.http.address {
            Some(address) => Some(tokio::net::TcpListener::bind(address).await.unwrap()),
            None => None,
        };
        let server = Server::new(engine, config, listener).unwrap();
        let server = server.with_embedder(embedder).with_http(http).unwrap();
        let metrics = server.metrics_address();
        let http = server.http_address().map(|address| address.to_string());
        let address = format!("{scheme}://{}", server.address());
        let (stop, stopped) = oneshot::channel();
        let ended = tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        let client = connect(Client::builder(&address)).connect().await.unwrap();
        Self { address, metrics, client, http, stop: Some(stop), ended, _model: model }
    }

    /// Returns `host:port` of the HTTP address.
    pub(crate) fn http(&self) -> &str {
        self.http.as_deref().unwrap()
    }

    /// Tells the server to drain; the future is ready when it has ended.
    pub(crate) fn drain(&mut self) -> impl Future<Output = anyhow::Result<()>> + use<'_> {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        async { (&mut self.ended).await.unwrap() }
    }

    /// Waits until no request is in the engine.
    pub(crate) async fn idle(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let load = self.client.server_info().await.unwrap().load.unwrap();
            if load.num_running + load.num_waiting + load.num_kv_blocks_used == 0 {
                return;
            }
            assert!(Instant::now() < deadline, "the engine does not become idle: {load:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until so many sequences run.
    pub(crate) async fn runs(&self, num_running: u32) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.client.server_info().await.unwrap().load.unwrap().num_running != num_running {
            assert!(Instant::now() < deadline, "{num_running} sequences never run");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// A generation of greedy tokens from a plain prompt that nothing ends early.
pub(crate) fn greedy(prompt: &str, tokens: u32) -> Generate {
    let spec = PromptSpec { template: Some(Template::None), ..PromptSpec::new(Prompt::Text(prompt.to_owned())) };
    let mut generate = Generate::new(spec);
    generate.sampling = Sampling::greedy();
    generate.max_new_tokens = tokens;
    generate.stop.ignore_end = true;
    generate
}

/// The choices of a bulky generation.
pub(crate) const BULKY_CHOICES: u32 = 16;

/// Starts a generation on a connection of its own whose events, a megabyte, are too many for the buffers of both sides, so
/// that it stalls unless it is read.
pub(crate) async fn bulky(address: &str) -> Streaming<GenerateStreamResponse> {
    let mut generate = greedy("bulky", 200);
    generate.n = BULKY_CHOICES;
    generate.logprobs.sampled = true;
    generate.logprobs.top = 20;
    let endpoint = Channel::from_shared(address.to_owned()).unwrap().initial_stream_window_size(4096);
    let mut service = GenerationServiceClient::new(endpoint.connect().await.unwrap());
    service.generate_stream(GenerateStreamRequest::from(&request(generate))).await.unwrap().into_inner()
}

/// Checks a generation.
pub(crate) fn request(generate: Generate) -> Request {
    Request::try_from(generate).unwrap()
}

/// Reads a stream to its end.
pub(crate) async fn events(client: &Client, generate: Generate) -> Vec<Event> {
    let stream = client.generate_stream(&request(generate)).await.unwrap();
    stream.map(|event| event.unwrap()).collect().await
}

/// Returns the text and the tokens of choice 0.
pub(crate) fn answer(events: &[Event]) -> (String, Vec<u32>) {
    let mut whole = (String::new(), Vec::new());
    for event in events {
        if let Event::Delta(delta) = event
            && delta.choice == 0
        {
            whole.0 += &delta.text;
            whole.1.extend(&delta.token_ids);
        }
    }
    whole
}

/// The binary under test.
pub(crate) fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bespoke-engine"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("BESPOKE_") && name != "BESPOKE_KERNELS") {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// `serve` as a process. Killed when dropped.
pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) address: String,
    _folder: tempfile::TempDir,
}

impl Process {
    /// Starts `serve` on a model and waits until it listens.
    pub(crate) fn serve(model: &Path, arguments: &[&str]) -> Self {
        Self::serve_logging(model, arguments, Stdio::inherit())
    }

    /// Does the same with another standard error.
    pub(crate) fn serve_logging(model: &Path, arguments: &[&str], log: Stdio) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port_file: PathBuf = folder.path().join("address");
        let child = binary()
            .env("BESPOKE_LISTEN", "127.0.0.1:0")
            .args(["serve", "--num-threads", "1", "--model"])
            .arg(model)
            .arg("--port-file")
            .arg(&port_file)
            .args(arguments)
            .stderr(log)
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let address = loop {
            if let Ok(address) = std::fs::read_to_string(&port_file) {
                break address;
            }
            assert!(Instant::now() < deadline, "the server does not start");
            std::thread::sleep(Duration::from_millis(5));
        };
        Self { child, address: format!("http://{address}"), _folder: folder }
    }

    /// Sends a signal by name.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
