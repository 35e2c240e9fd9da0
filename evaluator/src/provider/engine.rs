//! Our engine over gRPC, through the Rust client.

use std::time::Duration;

use anyhow::Context;
use bespoke_client::{
    Client, ClientError, Code, Continuation, EmbedRequest, FinishReason, Priority, PromptSpec, ScoreRequest,
};

use super::{Endpoint, Identity, ProviderName};
use crate::{
    case::{Case, Completion, Finish},
    error::CallError,
};

/// Where the engine listens by default.
const ADDRESS: &str = "http://127.0.0.1:50051";
/// How long the engine may take to say what it serves.
const INFO_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to `bespoke-engine serve`.
pub(crate) struct EngineProvider {
    client: Client,
    identity: Identity,
    has_chat_template: bool,
    no_prefix_cache: bool,
}

impl EngineProvider {
    /// Connects and asks what is served.
    ///
    /// **Errors**: nobody answers, or another model than `--model` is served.
    pub(crate) async fn connect(endpoint: &Endpoint) -> anyhow::Result<Self> {
        let address = endpoint.base_url.as_deref().unwrap_or(ADDRESS);
        let address = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
        let client = Client::builder(&address).deadline(endpoint.timeout).connect().await.with_context(|| {
            format!("no engine answers at {address}: start `bespoke-engine serve`, or set `--base-url`")
        })?;
        let info = client.with_deadline(Some(INFO_TIMEOUT)).server_info().await?;
        let model = info.model.context("the engine does not say what it serves")?;
        if let Some(wanted) = &endpoint.model {
            let named = model.name.contains(wanted.as_str());
            anyhow::ensure!(named, "the engine at {address} serves {}, not {wanted}", model.name);
        }
        // A path is shortened to its last part, so that results do not name a machine's folders.
        let name = model.name.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let name = name.trim_end_matches(".gguf").to_owned();
        let identity = Identity { provider: ProviderName::Engine, model: name, model_digest: Some(model.digest) };
        let (has_chat_template, no_prefix_cache) = (model.has_chat_template, endpoint.no_prefix_cache);
        Ok(Self { client, identity, has_chat_template, no_prefix_cache })
    }

    pub(crate) fn identity(&self) -> Identity {
        self.identity.clone()
    }

    pub(crate) async fn complete(&self, case: &Case) -> Result<Completion, CallError> {
        let request = case.request(self.spec(case)?).map_err(rejected)?;
        let generated = self.client.generate(&request).await.map_err(failure)?;
        let choice = generated.choices.into_iter().next();
        let choice = choice.ok_or_else(|| CallError::transient("the engine sent no choice"))?;
        let finish = match choice.end.reason {
            FinishReason::EndOfText | FinishReason::Stop => Finish::Stop,
            FinishReason::Length | FinishReason::TimeLimit => Finish::Length,
        };
        Ok(Completion {
            answer: choice.text,
            finish,
            refusal: None,
            prompt_tokens: generated.usage.prompt_tokens.into(),
            completion_tokens: generated.usage.generated_tokens.into(),
            logprobs: Vec::new(),
        })
    }

    pub(crate) async fn score(&self, case: &Case, options: &[String]) -> Result<Completion, CallError> {
        let mut completion = Completion { finish: Finish::Scored, ..Completion::default() };
        let spec = self.spec(case)?;
        for option in options {
            // One after the other, so that the second finds the prompt in the prefix cache.
            let request = ScoreRequest {
                request_id: None,
                spec: spec.clone(),
                continuation: Continuation::Text(option.clone()),
                top: 0,
                priority: Priority::default(),
            };
            let score = self.client.score(&request).await.map_err(failure)?;
            completion.prompt_tokens = score.prompt_tokens.into();
            completion.logprobs.push(score.total_logprob);
        }
        Ok(completion)
    }

    fn spec(&self, case: &Case) -> Result<PromptSpec, CallError> {
        let mut spec = case.spec(self.has_chat_template).map_err(rejected)?;
        spec.prefix_cache.off = self.no_prefix_cache;
        Ok(spec)
    }

    pub(crate) async fn embed(&self, texts: &[String]) -> Result<Vec<Vec<f32>>, CallError> {
        let request = EmbedRequest { texts: texts.to_vec(), normalize: Some(true) };
        let response = self.client.embed(request).await.map_err(failure)?;
        Ok(response.embeddings.into_iter().map(|embedding| embedding.values).collect())
    }
}

fn rejected(error: anyhow::Error) -> CallError {
    CallError::Rejected { reason: format!("{error:#}") }
}

fn failure(error: ClientError) -> CallError {
    let retry_after = error.retry_after();
    let reason = format!("the engine: {error}");
    match error.code() {
        Some(Code::InvalidArgument | Code::NotFound | Code::OutOfRange) => CallError::Rejected { reason },
        Some(Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented | Code::FailedPrecondition) => {
            CallError::Fatal { reason }
        }
        // Busy, draining, late, broken: it may pass.
        Some(_) | None => CallError::Transient { reason, retry_after },
    }
}
