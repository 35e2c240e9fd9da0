//! Providers: our engine and the external services, behind one enum with one call.
//!
//! Place in the flow: the batch gives a provider one case at a time; limits, retries and accounting are the batch's, so a
//! provider is only the way there and back, and the meaning of each failure.

mod anthropic;
mod cohere;
mod engine;
mod http;
mod keys;
mod openai;

use std::time::Duration;

use anyhow::{Context, bail};
use clap::ValueEnum;
use serde::Serialize;

use self::{anthropic::Anthropic, cohere::Cohere, openai::OpenAi};
pub(crate) use self::{
    engine::EngineProvider,
    http::Http,
    keys::{HUB_READ, HUB_WRITE, Keys, Secret},
};
use crate::{
    case::{Case, Completion},
    error::CallError,
};

/// The providers as a flag spells them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ProviderName {
    /// Our engine over gRPC.
    Engine,
    /// OpenAI, or any service that speaks its chat completions: vLLM, llama.cpp and others.
    #[value(name = "openai")]
    #[serde(rename = "openai")]
    OpenAi,
    /// Anthropic's messages.
    Anthropic,
    /// Cohere's chat, version 2.
    Cohere,
}

/// Where a model is served.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) provider: ProviderName,
    /// Default: the provider's own.
    pub(crate) base_url: Option<String>,
    /// Not needed for our engine, which serves one model.
    pub(crate) model: Option<String>,
    /// Our engine only: prompts share nothing.
    pub(crate) no_prefix_cache: bool,
    pub(crate) timeout: Duration,
}

/// Who answers: what a run's results depend on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Identity {
    pub(crate) provider: ProviderName,
    pub(crate) model: String,
    /// Identifies the model's files, where the provider tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) model_digest: Option<String>,
}

/// A way to a model.
pub(crate) enum Provider {
    Engine(Box<EngineProvider>),
    OpenAi(OpenAi),
    Anthropic(Anthropic),
    Cohere(Cohere),
}

impl Provider {
    /// Opens the way; our engine is connected to, services over HTTP are not called before the first case.
    ///
    /// **Errors**: an engine that does not answer, a model or key that is missing.
    pub(crate) async fn open(endpoint: &Endpoint, keys: &Keys) -> anyhow::Result<Self> {
        let name = endpoint.provider;
        if name == ProviderName::Engine {
            return Ok(Self::Engine(Box::new(EngineProvider::connect(endpoint).await?)));
        }
        let Some(model) = endpoint.model.clone() else { bail!("`--model` is missing: the provider has many models") };
        let base_url = endpoint.base_url.as_deref();
        Ok(match name {
            ProviderName::Engine => unreachable!("invariant: returned above"),
            ProviderName::OpenAi => Self::OpenAi(OpenAi::new(base_url, model, endpoint.timeout, keys)?),
            ProviderName::Anthropic => Self::Anthropic(Anthropic::new(base_url, model, endpoint.timeout, keys)?),
            ProviderName::Cohere => Self::Cohere(Cohere::new(base_url, model, endpoint.timeout, keys)?),
        })
    }

    /// Returns who answers.
    pub(crate) fn identity(&self) -> Identity {
        let service = |provider, model: &str| Identity { provider, model: model.to_owned(), model_digest: None };
        match self {
            Self::Engine(engine) => engine.identity(),
            Self::OpenAi(openai) => service(ProviderName::OpenAi, &openai.model),
            Self::Anthropic(anthropic) => service(ProviderName::Anthropic, &anthropic.model),
            Self::Cohere(cohere) => service(ProviderName::Cohere, &cohere.model),
        }
    }

    /// Asks for an answer.
    ///
    /// **Errors**: what the variants of [`CallError`] say.
    pub(crate) async fn complete(&self, case: &Case) -> Result<Completion, CallError> {
        match self {
            Self::Engine(engine) => engine.complete(case).await,
            Self::OpenAi(openai) => openai.complete(case).await,
            Self::Anthropic(anthropic) => anthropic.complete(case).await,
            Self::Cohere(cohere) => cohere.complete(case).await,
        }
    }

    /// Asks for the log-probabilities of continuations.
    ///
    /// **Errors**: as [`Provider::complete`]; always fatal but for our engine.
    pub(crate) async fn score(&self, case: &Case, options: &[String]) -> Result<Completion, CallError> {
        match self {
            Self::Engine(engine) => engine.score(case, options).await,
            Self::OpenAi(_) | Self::Anthropic(_) | Self::Cohere(_) => Err(CallError::fatal(
                "verdicts from log-probabilities need our engine: use `--verdict short` or `--verdict feedback`",
            )),
        }
    }

    /// Asks for the embeddings of texts.
    ///
    /// **Errors**: as [`Provider::complete`]; always fatal for Anthropic and Cohere.
    pub(crate) async fn embed(&self, texts: &[String]) -> Result<Vec<Vec<f32>>, CallError> {
        match self {
            Self::Engine(engine) => engine.embed(texts).await,
            Self::OpenAi(openai) => openai.embed(texts).await,
            Self::Anthropic(_) | Self::Cohere(_) => Err(CallError::fatal(
                "embeddings need our engine or an OpenAI-compatible service: change `--provider`, or use `--method tf-idf`",
            )),
        }
    }
}

/// Returns a key or says where it is looked for.
fn needed_key(keys: &Keys, names: &[&str]) -> anyhow::Result<Secret> {
    keys.first(names).with_context(|| format!("no key: set {} in the environment or in `.env`", names.join(" or ")))
}
