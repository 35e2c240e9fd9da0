//! The handle of an engine: what callers hold. Renders, checks and queues requests; the thread does the rest.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    sync::{Arc, atomic::Ordering, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bespoke_domain::{
    Continuation, Event, Generate, Invalid, PersonaId, PromptSpec, Request, RequestId, Score, ScoreRequest, Started,
    Template, TokenId,
};
use bespoke_model::{Model, ModelSource, Tokenizer};
use futures::StreamExt;

use crate::{
    BackendInfo, EngineBuilder, EngineError, Generation, RenderedPrompt,
    active::Job,
    block_pool::BLOCK_TOKENS,
    language::Language,
    measures::Measures,
    outlet::{Doorbell, outlet},
    status::{Status, Totals},
};

/// When trying again after a full queue makes sense: about the time in which a busy engine ends a request.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A running engine. Cheap to clone; the last handle to go stops it.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) language: Arc<Language>,
    pub(crate) info: ModelInfo,
    pub(crate) queue_max: usize,
    pub(crate) intake: mpsc::SyncSender<Job>,
    pub(crate) status: Arc<Status>,
    pub(crate) doorbell: Arc<Doorbell>,
    pub(crate) thread: Option<JoinHandle<()>>,
    pub(crate) started: Instant,
}

/// What a model is.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// The name in its files, else that of its file or folder.
    pub name: String,
    /// Identifies its files.
    pub digest: String,
    /// The architecture, such as `llama`.
    pub architecture: String,
    /// The type of most of its weights, such as `Q4_1`.
    pub dtype: String,
    /// The number of its weights.
    pub num_parameters: u64,
    /// The size of its vocabulary.
    pub vocab_size: u32,
    /// The most tokens of prompt and answer together.
    pub context_tokens_max: u32,
    /// The tokens with which it ends an answer.
    pub end_ids: Vec<TokenId>,
    /// Whether it has a chat template.
    pub has_chat_template: bool,
    /// The template of requests that name none.
    pub default_template: Template,
    /// The instruction set that its kernels use.
    pub isa: String,
    /// The threads that compute.
    pub num_threads: u32,
    /// The tokens that the KV cache holds.
    pub kv_tokens_max: u64,
    /// The blocks that the KV cache has.
    pub num_blocks: u32,
}

/// How busy an engine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Requests in the queue.
    pub num_waiting: usize,
    /// Sequences that run.
    pub num_running: usize,
    /// KV blocks that are taken.
    pub num_blocks_in_use: usize,
    /// How often, since the start, a sequence has given its blocks back to be computed again.
    pub num_preempted: usize,
}

impl Engine {
    /// Starts to build an engine.
    pub fn builder() -> EngineBuilder {
        EngineBuilder::default()
    }

    pub(crate) fn from_inner(inner: Inner) -> Self {
        Self(Arc::new(inner))
    }

    /// Queues a request without a deadline; see [`Engine::generate_until`].
    ///
    /// **Errors**: as [`Engine::generate_until`].
    pub fn generate(&self, request: Request) -> Result<Generation, EngineError> {
        self.generate_until(request, None)
    }

    /// Renders, tokenizes and queues a request and returns its events. At `deadline` the stream ends with
    /// [`EngineError::DeadlineExceeded`].
    ///
    /// Works on the caller's thread for as long as tokenizing takes: about a millisecond for each 10 KB of prompt.
    ///
    /// **Errors**: a prompt that cannot be rendered or is too long, ids outside the vocabulary, an unknown persona, a full
    /// queue, an engine that is stopping, a deadline that has passed.
    pub fn generate_until(&self, request: Request, deadline: Option<Instant>) -> Result<Generation, EngineError> {
        self.refuse_early()?;
        let language = &self.0.language;
        language.check_ids("stop.tokens", request.stop.tokens.iter().copied())?;
        language.check_bias(&request.sampling)?;
        let prompt = language.render(&request.spec, None)?;
        self.submit(Submission { request, prompt, score_from: None, deadline })
    }

    /// Computes the log-probability of a continuation.
    ///
    /// **Errors**: as [`Engine::generate_until`].
    pub async fn score(&self, request: ScoreRequest, deadline: Option<Instant>) -> Result<Score, EngineError> {
        self.start_score(request, deadline)?.score().await
    }

    /// Renders, tokenizes and queues a request for a score; [`Scoring::score`] waits for it.
    ///
    /// **Errors**: as [`Engine::generate_until`].
    pub fn start_score(&self, request: ScoreRequest, deadline: Option<Instant>) -> Result<Scoring, EngineError> {
        let (generation, prompt_tokens) = self.submit_score(request, deadline)?;
        Ok(Scoring { generation, prompt_tokens })
    }

    /// Checks that ids are in the vocabulary.
    ///
    /// **Errors**: the first id that is not, as an entry of `field`.
    pub fn check_ids(&self, field: &str, ids: &[TokenId]) -> Result<(), Invalid> {
        self.0.language.check_ids(field, ids.iter().copied())
    }

    /// Renders and tokenizes a prompt without running it, or with `response` a training row.
    ///
    /// **Errors**: a prompt that cannot be rendered, an unknown persona.
    pub fn render(&self, spec: &PromptSpec, response: Option<&str>) -> Result<RenderedPrompt, EngineError> {
        spec.check()?;
        self.0.language.render(spec, response)
    }

    /// Returns the model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.0.language.tokenizer
    }

    /// Returns what the model is.
    pub fn model_info(&self) -> &ModelInfo {
        &self.0.info
    }

    /// Returns the ids of the personas that requests may name.
    pub fn persona_ids(&self) -> impl Iterator<Item = &PersonaId> {
        self.0.language.personas.keys()
    }

    /// Returns how busy the engine is now.
    pub fn load(&self) -> Load {
        let status = &self.0.status;
        Load {
            num_waiting: status.num_waiting.load(Ordering::SeqCst),
            num_running: status.num_running.load(Ordering::SeqCst),
            num_blocks_in_use: status.num_blocks_in_use.load(Ordering::SeqCst),
            num_preempted: status.num_preempted.load(Ordering::SeqCst),
        }
    }

    /// Returns what the engine has done since it was built.
    pub fn totals(&self) -> Totals {
        self.0.status.totals()
    }

    /// Returns what the engine has measured since it was built.
    pub fn measures(&self) -> Measures {
        self.0.status.meters.read()
    }

    /// Whether no request is in the engine.
    pub fn is_idle(&self) -> bool {
        self.0.status.num_requests.load(Ordering::SeqCst) == 0
    }

    /// Returns the time since the engine was built.
    pub fn uptime(&self) -> Duration {
        self.0.started.elapsed()
    }

    /// Whether the engine's thread has ended by itself after a defect; every request fails from then on.
    pub fn has_failed(&self) -> bool {
        self.0.status.has_failed()
    }

    /// Whether new requests are refused.
    pub fn is_closed(&self) -> bool {
        self.0.status.is_closed()
    }

    /// Refuses new requests from now on; those taken in go on.
    pub fn close(&self) {
        self.0.status.close();
    }

    /// Ends every request with [`EngineError::Stopping`] and the thread.
    pub fn stop(&self) {
        self.0.status.stop();
        self.0.doorbell.ring();
    }

    fn submit_score(&self, request: ScoreRequest, deadline: Option<Instant>) -> Result<(Generation, u32), EngineError> {
        request.check()?;
        self.refuse_early()?;
        let language = &self.0.language;
        let continuation = match &request.continuation {
            Continuation::Text(text) => language.tokenizer.encode_continuation(text)?,
            Continuation::Tokens(ids) => {
                language.check_ids("continuation.token_ids", ids.iter().copied())?;
                ids.clone()
            }
        };
        let mut prompt = language.render(&request.spec, None)?;
        let from = prompt.token_ids.len();
        prompt.token_ids.extend(&continuation);
        let mut generate = Generate::new(request.spec);
        generate.request_id = request.request_id;
        generate.priority = request.priority;
        generate.logprobs.prompt = true;
        generate.logprobs.top = request.top;
        let submission = Submission { request: Request::try_from(generate)?, prompt, score_from: Some(from), deadline };
        Ok((self.submit(submission)?, from as u32))
    }

    fn submit(&self, submission: Submission) -> Result<Generation, EngineError> {
        let Submission { request, prompt, score_from, deadline } = submission;
        let (prompt_tokens, limit) = (prompt.token_ids.len(), self.0.language.prompt_tokens_max);
        if prompt_tokens == 0 || score_from == Some(0) {
            return Err(Invalid::new("prompt", "has no tokens and the model has no BOS token").into());
        }
        if prompt_tokens > limit {
            return Err(EngineError::ContextTooLong { prompt_tokens, limit });
        }
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(EngineError::DeadlineExceeded(crate::Stage::Queue));
        }
        let echo = match prompt.rendered.spans.as_slice() {
            _ if !request.echo => String::new(),
            [] => self.0.language.tokenizer.decode(&prompt.token_ids, false)?,
            _ => prompt.rendered.text(),
        };
        self.take_place()?;
        let (outlet, generation) = outlet(request.n, self.0.doorbell.clone());
        let started = Started {
            request_id: request.request_id.clone().unwrap_or_else(random_id),
            model_digest: self.0.info.digest.clone(),
            template_hash: prompt.template_hash,
            persona: prompt.persona,
            prompt_tokens: score_from.unwrap_or(prompt_tokens) as u32,
            cached_tokens: 0,
            seed: request.sampling.seed.unwrap_or_else(random),
        };
        let job = Job {
            request,
            started,
            prompt: prompt.token_ids,
            template: prompt.template,
            echo,
            score_from,
            outlet,
            arrived: Instant::now(),
            deadline,
        };
        // The places are counted, so the channel has room; it is closed once the thread has ended.
        if self.0.intake.try_send(job).is_err() {
            self.0.status.num_waiting.fetch_sub(1, Ordering::SeqCst);
            self.0.status.num_requests.fetch_sub(1, Ordering::SeqCst);
            return Err(EngineError::Stopping);
        }
        self.0.doorbell.ring();
        Ok(generation)
    }

    /// Refuses what would be refused anyway before time is spent on tokenizing it.
    fn refuse_early(&self) -> Result<(), EngineError> {
        if self.0.status.is_closed() {
            return Err(EngineError::Stopping);
        }
        let limit = self.0.queue_max;
        if self.0.status.num_waiting.load(Ordering::SeqCst) >= limit {
            return Err(EngineError::QueueFull { limit, retry_after: RETRY_AFTER });
        }
        Ok(())
    }

    /// Takes a place in the queue, which the thread gives back when the request leaves it.
    fn take_place(&self) -> Result<(), EngineError> {
        if self.0.status.is_closed() {
            return Err(EngineError::Stopping);
        }
        let limit = self.0.queue_max;
        let take = |waiting: usize| (waiting < limit).then_some(waiting + 1);
        match self.0.status.num_waiting.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take) {
            Ok(_) => {
                self.0.status.num_requests.fetch_add(1, Ordering::SeqCst);
                Ok(())
            }
            Err(_) => Err(EngineError::QueueFull { limit, retry_after: RETRY_AFTER }),
        }
    }
}

/// A score that is being computed. Dropping it cancels the request.
#[derive(Debug)]
#[must_use = "dropping a scoring cancels its request"]
pub struct Scoring {
    generation: Generation,
    prompt_tokens: u32,
}

impl Scoring {
    /// Waits for the score.
    ///
    /// **Errors**: a deadline that came, an engine that stopped.
    pub async fn score(mut self) -> Result<Score, EngineError> {
        let mut tokens = Vec::new();
        while let Some(event) = self.generation.next().await {
            if let Event::Delta(delta) = event? {
                tokens = delta.prompt_logprobs;
            }
        }
        // The prompt's own first token has an entry where the prompt is that one token.
        tokens.retain(|token| token.logprob.is_some());
        let total_logprob = tokens.iter().filter_map(|token| token.logprob).map(f64::from).sum();
        Ok(Score { tokens, total_logprob, prompt_tokens: self.prompt_tokens })
    }
}

struct Submission {
    request: Request,
    prompt: RenderedPrompt,
    score_from: Option<usize>,
    deadline: Option<Instant>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("model", &self.0.info.name).field("load", &self.load()).finish()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.status.stop();
        self.doorbell.ring();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been logged by the thread.
            let _ = thread.join();
        }
    }
}

impl ModelInfo {
    pub(crate) fn new(model: &Model, language: &Language, num_threads: usize, num_blocks: usize) -> Self {
        let config = model.config();
        Self {
            name: model.name().to_owned(),
            digest: model.digest().to_owned(),
            architecture: config.architecture.to_string(),
            dtype: model.dtype().to_string(),
            num_parameters: model.num_parameters(),
            vocab_size: language.vocab_size as u32,
            context_tokens_max: language.prompt_tokens_max as u32 + 1,
            end_ids: language.end_ids.clone(),
            has_chat_template: language.chat.is_some(),
            default_template: language.default_template(),
            isa: model.isa(),
            num_threads: num_threads as u32,
            kv_tokens_max: (num_blocks * BLOCK_TOKENS) as u64,
            num_blocks: num_blocks as u32,
        }
    }

    /// Describes a model that another library runs; its KV cache is that library's own.
    pub(crate) fn of_backend(
        source: &ModelSource,
        facts: BackendInfo,
        language: &Language,
    ) -> Result<Self, EngineError> {
        let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            name: source.name(),
            digest: source.digest()?,
            architecture: facts.architecture,
            dtype: facts.dtype,
            num_parameters: facts.num_parameters,
            vocab_size: language.vocab_size as u32,
            context_tokens_max: language.prompt_tokens_max as u32 + 1,
            end_ids: language.end_ids.clone(),
            has_chat_template: language.chat.is_some(),
            default_template: language.default_template(),
            isa: facts.runs_on,
            num_threads: num_threads as u32,
            kv_tokens_max: language.prompt_tokens_max as u64 + 1,
            num_blocks: 0,
        })
    }
}

/// Returns 64 random bits; the standard library seeds its hash maps from the system's randomness.
fn random() -> u64 {
    RandomState::new().hash_one(0u64)
}

fn random_id() -> RequestId {
    RequestId::new(format!("req-{:016x}", random())).expect("invariant: hexadecimal digits are printable")
}
