//! The configuration of `serve`: [`Options`] are what was typed or written, [`Config`] is what holds.

mod http;
mod limits;
mod observability;
mod security;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use bespoke_domain::{Persona, PersonaId};
use bespoke_engine::{KvDType, Quantization};
use clap::{Args, ValueEnum};
pub use http::{Http, HttpOptions};
pub use limits::{ConnectionLimits, LimitOptions};
pub use observability::{Observability, ObservabilityOptions};
pub use security::{Security, SecurityOptions};
use serde::Deserialize;

use crate::{BackendName, KvDTypeName, QuantizationName};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Pretty,
    /// One JSON object a line.
    Json,
}

/// The options of `serve`, each from a flag, an environment variable or the TOML file.
#[derive(Args, Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// TOML file with these options, names in snake case, and a table of personas by id, as in novice = "text".
    #[arg(long, env = "BESPOKE_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Model: a path, a name that `models` lists, or a hub id. Fetched if it is not cached. Default: smollm2-135m-instruct.
    #[arg(long, env = "BESPOKE_MODEL")]
    pub model: Option<String>,
    /// Name under which the HTTP and KServe interfaces serve the model, beside its own. Default: the model's own.
    #[arg(long, env = "BESPOKE_MODEL_NAME", value_name = "NAME")]
    pub model_name: Option<String>,
    /// Library that runs the model. Default: auto.
    #[arg(long, env = "BESPOKE_BACKEND", value_name = "BACKEND")]
    pub backend: Option<BackendName>,
    /// Encoder for the EmbeddingService, named as a model, such as all-minilm-l6-v2. Default: none.
    #[arg(long, env = "BESPOKE_EMBEDDING_MODEL", value_name = "MODEL")]
    pub embedding_model: Option<String>,
    /// Address to listen on; port 0 lets the system choose. Default: 127.0.0.1:50051.
    #[arg(long, env = "BESPOKE_LISTEN", value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// File to write the bound address to once the server listens. Default: none.
    #[arg(long, env = "BESPOKE_PORT_FILE", value_name = "FILE")]
    pub port_file: Option<PathBuf>,
    /// Threads that compute, at least 1. Default: the number of cores.
    #[arg(long, env = "BESPOKE_NUM_THREADS", value_name = "N")]
    pub num_threads: Option<usize>,
    /// Sequences that run at once, 1 to 1024. Default: 32.
    #[arg(long, env = "BESPOKE_SEQUENCES_MAX", value_name = "N")]
    pub sequences_max: Option<usize>,
    /// Requests that wait; one more gets RESOURCE_EXHAUSTED. 1 to 65536. Default: 256.
    #[arg(long, env = "BESPOKE_QUEUE_MAX", value_name = "N")]
    pub queue_max: Option<usize>,
    /// Tokens of one step, from the number of sequences to 8192. Beside answers, prompts take 64 less three for each
    /// answer, but at least 16; in a burst, with at most two answers for each prompt, up to two steps in 32 take as much as was computed in 0.4 s
    /// lately. Default: 1024.
    #[arg(long, env = "BESPOKE_STEP_TOKENS_MAX", value_name = "TOKENS")]
    pub step_tokens_max: Option<usize>,
    /// Tokens that the KV cache holds, at least 16. Default: as many as fit in 2 GiB.
    #[arg(long, env = "BESPOKE_KV_TOKENS", value_name = "TOKENS")]
    pub kv_tokens: Option<usize>,
    /// Tokens of prompt and answer together, at least 2. Default: what the model was trained for.
    #[arg(long, env = "BESPOKE_CONTEXT_TOKENS_MAX", value_name = "TOKENS")]
    pub context_tokens_max: Option<usize>,
    /// Quantize the weights of a model stored as floats while it is loaded. Default: none.
    #[arg(long, env = "BESPOKE_QUANTIZATION", value_name = "SCHEME")]
    pub quantization: Option<QuantizationName>,
    /// Format of keys and values in the KV cache. Default: auto.
    #[arg(long, env = "BESPOKE_KV_DTYPE", value_name = "FORMAT")]
    pub kv_dtype: Option<KvDTypeName>,
    /// Size of a request message, in bytes, 1024 to 1073741824. Default: 4194304.
    #[arg(long, env = "BESPOKE_MESSAGE_BYTES_MAX", value_name = "BYTES")]
    pub message_bytes_max: Option<usize>,
    /// Persona of requests that ask for the system persona. Default: none.
    #[arg(long, env = "BESPOKE_SYSTEM_PERSONA", hide_env_values = true, value_name = "TEXT")]
    pub system_persona: Option<String>,
    /// Seconds that requests have to end after a signal, 0 to 3600. Default: 30.
    #[arg(long, env = "BESPOKE_GRACE_S", value_name = "SECONDS")]
    pub grace_s: Option<u64>,
    /// Look of the log lines. Default: pretty.
    #[arg(long, env = "BESPOKE_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Which log lines, as tracing directives such as info or bespoke_engine=debug. Default: info.
    #[arg(long, env = "BESPOKE_LOG_FILTER", value_name = "DIRECTIVES")]
    pub log_filter: Option<String>,
    /// Who may call.
    #[command(flatten)]
    pub security: SecurityOptions,
    /// Limits of connections.
    #[command(flatten)]
    pub limits: LimitOptions,
    /// What the server shows of itself.
    #[command(flatten)]
    pub observability: ObservabilityOptions,
    /// The HTTP address.
    #[command(flatten)]
    pub http: HttpOptions,
    /// Personas that requests may name, from the TOML file only.
    #[arg(skip)]
    pub personas: BTreeMap<String, String>,
}

/// The resolved configuration of `serve`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Reference of the model.
    pub model: String,
    /// The name under which the model is served, where it is not the model's own.
    pub model_name: Option<String>,
    /// What runs it.
    pub backend: BackendName,
    /// Reference of the encoder, where one is served.
    pub embedding_model: Option<String>,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where to write the bound address.
    pub port_file: Option<PathBuf>,
    /// See [`bespoke_engine::EngineBuilder::num_threads`].
    pub num_threads: Option<usize>,
    /// See [`bespoke_engine::EngineBuilder::sequences_max`].
    pub sequences_max: usize,
    /// See [`bespoke_engine::EngineBuilder::queue_max`].
    pub queue_max: usize,
    /// See [`bespoke_engine::EngineBuilder::step_tokens_max`].
    pub step_tokens_max: usize,
    /// See [`bespoke_engine::EngineBuilder::kv_tokens`].
    pub kv_tokens: Option<usize>,
    /// See [`bespoke_engine::EngineBuilder::context_tokens_max`].
    pub context_tokens_max: Option<usize>,
    /// See [`bespoke_engine::EngineBuilder::quantization`].
    pub quantization: Quantization,
    /// See [`bespoke_engine::EngineBuilder::kv_dtype`]; `None` leaves it to the model.
    pub kv_dtype: Option<KvDType>,
    /// The largest request message.
    pub message_bytes_max: usize,
    /// The system persona.
    pub system_persona: Option<Persona>,
    /// The personas by id.
    pub personas: BTreeMap<PersonaId, Persona>,
    /// How long requests may go on after a signal.
    pub grace: Duration,
    /// The look of the log lines.
    pub log_format: LogFormat,
    /// Which log lines.
    pub log_filter: String,
    /// Who may call.
    pub security: Security,
    /// Limits of connections.
    pub limits: ConnectionLimits,
    /// What the server shows of itself.
    pub observability: Observability,
    /// The HTTP address.
    pub http: Http,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            model: bespoke_store::DEFAULT_MODEL.to_owned(),
            model_name: None,
            backend: BackendName::Auto,
            embedding_model: None,
            listen: SocketAddr::from(([127, 0, 0, 1], 50051)),
            port_file: None,
            num_threads: None,
            sequences_max: 32,
            queue_max: 256,
            step_tokens_max: 1024,
            kv_tokens: None,
            context_tokens_max: None,
            quantization: Quantization::None,
            kv_dtype: None,
            message_bytes_max: 4 << 20,
            system_persona: None,
            personas: BTreeMap::new(),
            grace: Duration::from_secs(30),
            log_format: LogFormat::Pretty,
            log_filter: "info".to_owned(),
            security: Security::default(),
            limits: ConnectionLimits::default(),
            observability: Observability::default(),
            http: Http::default(),
        }
    }
}

impl Config {
    /// Reads the file that the options name, fills in the defaults and checks everything.
    pub fn resolve(options: Options) -> anyhow::Result<Self> {
        let file = match &options.config {
            Some(path) => read_file(path)?,
            None => Options::default(),
        };
        Self::checked(options.or(file))
    }

    fn checked(options: Options) -> anyhow::Result<Self> {
        let default = Self::default();
        let message_bytes_max = options.message_bytes_max.unwrap_or(default.message_bytes_max);
        if options.model_name.as_deref().is_some_and(|name| name.trim().is_empty()) {
            bail!("model_name is empty");
        }
        if !(1024..=1 << 30).contains(&message_bytes_max) {
            bail!("message_bytes_max is {message_bytes_max}, must be 1024..=1073741824");
        }
        let listen = options.listen.unwrap_or(default.listen);
        let security = options.security.checked()?;
        security.check_address("listen", listen)?;
        let http = options.http.checked()?;
        if let Some(address) = http.address {
            security.check_address("http_address", address)?;
        }
        let mut personas = BTreeMap::new();
        for (id, text) in options.personas {
            let persona = Persona::new(text).with_context(|| format!("personas.{id}"))?;
            personas.insert(PersonaId::new(id)?, persona);
        }
        Ok(Self {
            model: options.model.unwrap_or(default.model),
            model_name: options.model_name,
            backend: options.backend.unwrap_or(default.backend),
            embedding_model: options.embedding_model,
            listen,
            port_file: options.port_file,
            num_threads: options.num_threads,
            sequences_max: options.sequences_max.unwrap_or(default.sequences_max),
            queue_max: options.queue_max.unwrap_or(default.queue_max),
            step_tokens_max: options.step_tokens_max.unwrap_or(default.step_tokens_max),
            kv_tokens: options.kv_tokens,
            context_tokens_max: options.context_tokens_max,
            quantization: options.quantization.map_or(default.quantization, Into::into),
            kv_dtype: options.kv_dtype.and_then(Into::into),
            message_bytes_max,
            system_persona: options.system_persona.map(Persona::new).transpose().context("system_persona")?,
            personas,
            grace: seconds("grace_s", options.grace_s, default.grace, 0..=3600)?,
            log_format: options.log_format.unwrap_or(default.log_format),
            log_filter: options.log_filter.unwrap_or(default.log_filter),
            security,
            limits: options.limits.checked()?,
            observability: options.observability.checked(),
            http,
        })
    }
}

impl Options {
    /// Takes each option from here, or where it is not given, from `other`.
    fn or(self, other: Self) -> Self {
        Self {
            config: self.config.or(other.config),
            model: self.model.or(other.model),
            model_name: self.model_name.or(other.model_name),
            backend: self.backend.or(other.backend),
            embedding_model: self.embedding_model.or(other.embedding_model),
            listen: self.listen.or(other.listen),
            port_file: self.port_file.or(other.port_file),
            num_threads: self.num_threads.or(other.num_threads),
            sequences_max: self.sequences_max.or(other.sequences_max),
            queue_max: self.queue_max.or(other.queue_max),
            step_tokens_max: self.step_tokens_max.or(other.step_tokens_max),
            kv_tokens: self.kv_tokens.or(other.kv_tokens),
            context_tokens_max: self.context_tokens_max.or(other.context_tokens_max),
            quantization: self.quantization.or(other.quantization),
            kv_dtype: self.kv_dtype.or(other.kv_dtype),
            message_bytes_max: self.message_bytes_max.or(other.message_bytes_max),
            system_persona: self.system_persona.or(other.system_persona),
            grace_s: self.grace_s.or(other.grace_s),
            log_format: self.log_format.or(other.log_format),
            log_filter: self.log_filter.or(other.log_filter),
            security: self.security.or(other.security),
            limits: self.limits.or(other.limits),
            observability: self.observability.or(other.observability),
            http: self.http.or(other.http),
            personas: if self.personas.is_empty() { other.personas } else { self.personas },
        }
    }
}

/// Returns an option of whole seconds.
fn seconds(name: &str, value: Option<u64>, default: Duration, range: RangeInclusive<u64>) -> anyhow::Result<Duration> {
    match value {
        None => Ok(default),
        Some(value) if range.contains(&value) => Ok(Duration::from_secs(value)),
        Some(value) => bail!("{name} is {value}, must be {}..={}", range.start(), range.end()),
    }
}

fn read_file(path: &Path) -> anyhow::Result<Options> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    // The error of the parser names line, column and key.
    toml::from_str(&text).with_context(|| format!("{} is not a configuration", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> anyhow::Result<Config> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine.toml");
        std::fs::write(&path, text).unwrap();
        Config::resolve(Options { config: Some(path), ..Options::default() })
    }

    #[test]
    fn the_shipped_file_says_the_defaults() {
        assert_eq!(parse(include_str!("../bespoke-engine.toml")).unwrap(), Config::default());
        // With its examples switched on it still parses, so every option in it exists.
        let uncommented: String = include_str!("../bespoke-engine.toml")
            .lines()
            .map(|line| line.strip_prefix("#: ").unwrap_or(line).to_owned() + "\n")
            .collect();
        let config = parse(&uncommented).unwrap();
        assert_eq!(config.personas.len(), 2);
        assert!(config.system_persona.is_some() && config.kv_tokens.is_some() && config.port_file.is_some());
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine.toml");
        std::fs::write(&path, "queue_max = 7\nsequences_max = 3\n").unwrap();
        let options = Options { config: Some(path), queue_max: Some(9), ..Options::default() };
        let config = Config::resolve(options).unwrap();
        assert_eq!((config.queue_max, config.sequences_max), (9, 3));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |text| format!("{:#}", parse(text).unwrap_err());
        assert!(error("listne = \"x\"").contains("unknown field `listne`"));
        assert!(error("\nlisten = \"nowhere\"").contains("line 2"));
        assert!(error("grace_s = 9999").contains("grace_s"));
        assert!(error("model_name = \" \"").contains("model_name"));
        assert!(error("message_bytes_max = 1").contains("message_bytes_max"));
        assert!(error("[limits]\nhandshake_timeout_s = 0").contains("handshake_timeout_s"));
        assert!(error("listen = \"0.0.0.0:1\"").contains("allow_unauthenticated"));
        assert!(error("[http]\nui = true").contains("http_address"));
        assert!(error("[personas]\na = \" \"").contains("personas.a"));
        let missing = Options { config: Some("absent.toml".into()), ..Options::default() };
        assert!(format!("{:#}", Config::resolve(missing).unwrap_err()).contains("absent.toml"));
    }
}
