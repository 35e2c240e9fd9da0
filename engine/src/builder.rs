//! Builds an engine: checks the options, loads the model, starts the thread.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, mpsc},
    thread,
    time::Instant,
};

use bespoke_domain::{ChatTemplate, Persona, PersonaId, TokenId};
use bespoke_model::{
    KvCache, KvDType, LoadOptions, Model, ModelError, ModelSource, Quantization, Tokenizer, Workspace,
};

use crate::{
    Backend, Engine, EngineError, ModelInfo,
    active::Job,
    backend::Bell,
    backend_worker::BackendWorker,
    block_pool::BLOCK_TOKENS,
    engine::Inner,
    language::Language,
    outlet::Doorbell,
    pace::Pace,
    sampler::Sampler,
    scheduler::{Budget, Scheduler},
    status::Status,
    worker::Worker,
};

/// The default bound of the KV cache in bytes. Memory is taken from the system only as blocks are first used.
const KV_BYTES: usize = 2 << 30;
/// The most places of a step whose logits are computed, unless more sequences run: each costs a row of the vocabulary.
const STEP_LOGITS: usize = 32;

/// The options of an engine; see each method for unit, range and default.
#[derive(Clone, Debug)]
#[must_use]
pub struct EngineBuilder {
    model: Option<PathBuf>,
    num_threads: Option<usize>,
    sequences_max: usize,
    queue_max: usize,
    step_tokens_max: usize,
    kv_tokens: Option<usize>,
    context_tokens_max: Option<usize>,
    quantization: Quantization,
    kv_dtype: Option<KvDType>,
    system_persona: Option<Persona>,
    personas: BTreeMap<PersonaId, Persona>,
}

impl Default for EngineBuilder {
    fn default() -> Self {
        Self {
            model: None,
            num_threads: None,
            sequences_max: 32,
            queue_max: 256,
            step_tokens_max: 1024,
            kv_tokens: None,
            context_tokens_max: None,
            quantization: Quantization::None,
            kv_dtype: None,
            system_persona: None,
            personas: BTreeMap::new(),
        }
    }
}

impl EngineBuilder {
    /// The model: a Hugging Face folder, a GGUF file, or a folder with one GGUF file. Required.
    pub fn model(mut self, path: impl Into<PathBuf>) -> Self {
        self.model = Some(path.into());
        self
    }

    /// The threads that compute, at least 1. Default: as many as the machine has cores.
    pub fn num_threads(mut self, num_threads: usize) -> Self {
        self.num_threads = Some(num_threads);
        self
    }

    /// The most sequences that run at once, 1 to 1024. Default 32.
    pub fn sequences_max(mut self, sequences_max: usize) -> Self {
        self.sequences_max = sequences_max;
        self
    }

    /// The most requests that wait; one more gets [`EngineError::QueueFull`]. 1 to 65536. Default 256.
    pub fn queue_max(mut self, queue_max: usize) -> Self {
        self.queue_max = queue_max;
        self
    }

    /// The most tokens of one step, 1 to 8192 and at least as many as sequences. More makes prompts faster and the gaps
    /// between the tokens of other requests longer. Beside sequences that decode, prompts take 64 less three for each of
    /// these, but at least 16; in a burst, where at most two decode for each that reads, up to two steps in 32 are as large as what was
    /// computed in 0.4 s lately. Default 1024.
    pub fn step_tokens_max(mut self, step_tokens_max: usize) -> Self {
        self.step_tokens_max = step_tokens_max;
        self
    }

    /// The tokens that the KV cache holds over all sequences, at least 16. Default: as many as fit in 2 GiB, at most what all
    /// sequences need at full context.
    pub fn kv_tokens(mut self, kv_tokens: usize) -> Self {
        self.kv_tokens = Some(kv_tokens);
        self
    }

    /// Bounds prompt and answer of one sequence, in tokens, at least 2. Default: what the model was trained for.
    pub fn context_tokens_max(mut self, context_tokens_max: usize) -> Self {
        self.context_tokens_max = Some(context_tokens_max);
        self
    }

    /// What the matrices of a model that is stored as floats are quantized to while they are loaded. Default: nothing.
    pub fn quantization(mut self, quantization: Quantization) -> Self {
        self.quantization = quantization;
        self
    }

    /// The format of keys and values in the KV cache. Default: `F16` where the weights are quantized, `F32` where they are floats.
    pub fn kv_dtype(mut self, kv_dtype: KvDType) -> Self {
        self.kv_dtype = Some(kv_dtype);
        self
    }

    /// The persona of requests that ask for the system persona. Default: none.
    pub fn system_persona(mut self, persona: Persona) -> Self {
        self.system_persona = Some(persona);
        self
    }

    /// The personas that requests may name. Default: none.
    pub fn personas(mut self, personas: impl IntoIterator<Item = (PersonaId, Persona)>) -> Self {
        self.personas = personas.into_iter().collect();
        self
    }

    /// Loads the model and starts the engine.
    ///
    /// **Errors**: [`EngineError::Option`] for an option out of range, [`EngineError::Model`] for a wrong model file,
    /// A chat template that is wrong is logged and left out.
    pub fn build(self) -> Result<Engine, EngineError> {
        self.check()?;
        let path = self.model.as_ref().ok_or_else(|| wrong("model", "is not set"))?;
        let source = ModelSource::open(path)?;
        let num_threads = self.num_threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, Into::into));
        let options =
            LoadOptions { num_threads, context_limit: self.context_tokens_max, quantization: self.quantization };
        // The tokenizer takes about as long as the weights and needs none of them.
        let (model, words) = thread::scope(|scope| {
            let words = scope.spawn(|| words(&source));
            let model = Model::from_source(&source, options);
            (model, words.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        let (model, words) = (model?, words?);
        if let Some(wanted) = self.quantization.dtype().filter(|&wanted| wanted != model.dtype()) {
            // As `quantize` does it: the K formats need rows of whole blocks of 256.
            tracing::warn!(%wanted, found = %model.dtype(), "rows do not fit the format: most weights got its neighbour");
        }
        let kv_dtype = self.kv_dtype.unwrap_or_else(|| model.default_kv_dtype());
        let num_blocks = self.num_blocks(&model, kv_dtype)?;
        let cache = KvCache::new(model.config(), kv_dtype, num_blocks, BLOCK_TOKENS)?;
        // The last token of an answer is never computed, so a context of n tokens takes n in the cache at most.
        let context_tokens_max = model.config().context_length.min(num_blocks * BLOCK_TOKENS);
        let bounds = Bounds { vocab_size: model.config().vocab_size, context_tokens_max };
        let language = Arc::new(self.language(words, &model.config().eos_token_ids, bounds));
        let info = ModelInfo::new(&model, &language, num_threads, num_blocks);
        let worker = self.worker(model, cache, language.clone());
        start(move |intake, status, _| worker(intake, status).run(), language, info, self.queue_max)
    }

    /// Starts an engine whose logits another library computes. Tokenizer, chat template and digest are still read from the
    /// model's own files.
    ///
    /// Sequences run one at a time; there is no KV cache of ours and no prefix cache, so no token is ever a cached one.
    ///
    /// **Errors**: as [`EngineBuilder::build`]; [`EngineError::Option`] too for what only the native model can be told: threads,
    /// KV cache and quantization.
    pub fn build_on(self, backend: Box<dyn Backend>) -> Result<Engine, EngineError> {
        self.check()?;
        let native_only = [
            ("num_threads", self.num_threads.is_some()),
            ("kv_tokens", self.kv_tokens.is_some()),
            ("kv_dtype", self.kv_dtype.is_some()),
            ("quantization", self.quantization != Quantization::None),
        ];
        if let Some((option, _)) = native_only.into_iter().find(|&(_, is_set)| is_set) {
            return Err(wrong(option, "is for the native backend alone"));
        }
        let path = self.model.as_ref().ok_or_else(|| wrong("model", "is not set"))?;
        let source = ModelSource::open(path)?;
        let facts = backend.info();
        let context_tokens_max = self.context_tokens_max.unwrap_or(usize::MAX).min(facts.context_tokens_max);
        check("context_tokens_max", context_tokens_max, 2, u32::MAX as usize)?;
        let bounds = Bounds { vocab_size: facts.vocab_size, context_tokens_max };
        let language = Arc::new(self.language(words(&source)?, &facts.end_ids, bounds));
        let info = ModelInfo::of_backend(&source, facts, &language)?;
        let worker_language = language.clone();
        let run = move |intake, status, doorbell| {
            BackendWorker::new(backend, worker_language, status, intake, Bell::new(doorbell)).run();
        };
        start(run, language, info, self.queue_max)
    }

    fn check(&self) -> Result<(), EngineError> {
        check("num_threads", self.num_threads.unwrap_or(1), 1, 1024)?;
        check("sequences_max", self.sequences_max, 1, 1024)?;
        check("queue_max", self.queue_max, 1, 65_536)?;
        check("step_tokens_max", self.step_tokens_max, self.sequences_max, 8192)?;
        check("kv_tokens", self.kv_tokens.unwrap_or(BLOCK_TOKENS), BLOCK_TOKENS, u32::MAX as usize)?;
        check("context_tokens_max", self.context_tokens_max.unwrap_or(2), 2, u32::MAX as usize)
    }

    fn num_blocks(&self, model: &Model, kv_dtype: KvDType) -> Result<usize, EngineError> {
        let block_bytes = KvCache::block_bytes(model.config(), kv_dtype, BLOCK_TOKENS)?;
        let num_blocks = match self.kv_tokens {
            Some(tokens) => tokens / BLOCK_TOKENS,
            None => {
                let full = self.sequences_max * model.config().context_length.div_ceil(BLOCK_TOKENS);
                full.min(KV_BYTES / block_bytes.max(1)).max(1)
            }
        };
        let bytes = num_blocks.checked_mul(block_bytes);
        // An allocation that fails would end the process; this one says so and is given back at once.
        let fits = bytes.is_some_and(|bytes| Vec::<u8>::new().try_reserve_exact(bytes).is_ok());
        if fits { Ok(num_blocks) } else { Err(wrong("kv_tokens", "needs more memory than there is")) }
    }

    fn language(&self, (tokenizer, chat): Words, end_ids: &[TokenId], bounds: Bounds) -> Language {
        let mut end_ids: Vec<_> = tokenizer.eos_ids().iter().chain(end_ids).copied().collect();
        end_ids.sort_unstable();
        end_ids.dedup();
        Language {
            tokenizer,
            chat,
            end_ids,
            vocab_size: bounds.vocab_size,
            system_persona: self.system_persona.clone(),
            personas: self.personas.clone(),
            prompt_tokens_max: bounds.context_tokens_max - 1,
        }
    }

    fn worker(
        &self,
        model: Model,
        cache: KvCache,
        language: Arc<Language>,
    ) -> impl FnOnce(mpsc::Receiver<Job>, Arc<Status>) -> Worker + Send + use<> {
        let step_logits_max = STEP_LOGITS.max(self.sequences_max);
        let budget = Budget {
            sequences_max: self.sequences_max,
            step_tokens_max: self.step_tokens_max,
            step_logits_max,
            shares_answers: !model.prompts_differ(),
        };
        let workspace = Workspace::new(&model, budget.step_tokens_max, budget.step_logits_max);
        move |intake, status| Worker {
            scheduler: Scheduler::new(budget, cache.num_blocks()),
            cache,
            workspace,
            model,
            language,
            status,
            intake,
            active: BTreeMap::new(),
            next_id: 0,
            sampler: Sampler::default(),
            pace: Pace::default(),
            drafts: Vec::new(),
            rows: Vec::with_capacity(budget.step_tokens_max),
            tables: Vec::with_capacity(budget.sequences_max),
        }
    }
}

/// A tokenizer, and the chat template where there is one.
type Words = (Tokenizer, Option<ChatTemplate>);

/// Reads the tokenizer of a model and its chat template.
fn words(source: &ModelSource) -> Result<Words, ModelError> {
    let tokenizer = match source.gguf() {
        Some(gguf) => Tokenizer::from_gguf(gguf)?,
        None => Tokenizer::from_folder(source.path())?,
    };
    let chat = tokenizer.chat_template().and_then(|template| {
        let (bos, eos) = (tokenizer.bos_text(), tokenizer.eos_text());
        // A template that is not understood takes the chat away, not the model.
        ChatTemplate::new(template, bos, eos, tokenizer.control_tokens())
            .inspect_err(|error| tracing::warn!(model = %source.path().display(), %error, "no chat for this model"))
            .ok()
    });
    Ok((tokenizer, chat))
}

/// The bounds of token ids and of prompts.
struct Bounds {
    vocab_size: usize,
    context_tokens_max: usize,
}

/// Starts the thread, which ends when `run` does.
fn start(
    run: impl FnOnce(mpsc::Receiver<Job>, Arc<Status>, Arc<Doorbell>) + Send + 'static,
    language: Arc<Language>,
    info: ModelInfo,
    queue_max: usize,
) -> Result<Engine, EngineError> {
    let (sender, intake) = mpsc::sync_channel(queue_max);
    let status = Arc::new(Status::default());
    let doorbell = Arc::new(Doorbell::default());
    let (thread_status, thread_bell) = (status.clone(), doorbell.clone());
    let thread = thread::Builder::new()
        .name("engine".to_owned())
        .spawn(move || run(intake, thread_status, thread_bell))
        .map_err(|error| EngineError::Internal(format!("cannot start the engine's thread: {error}")))?;
    doorbell.install(thread.thread().clone());
    Ok(Engine::from_inner(Inner {
        language,
        info,
        queue_max,
        intake: sender,
        status,
        doorbell,
        thread: Some(thread),
        started: Instant::now(),
    }))
}

fn check(option: &'static str, value: usize, min: usize, max: usize) -> Result<(), EngineError> {
    if (min..=max).contains(&value) {
        Ok(())
    } else {
        Err(wrong(option, &format!("is {value}, must be {min}..={max}")))
    }
}

fn wrong(option: &'static str, reason: &str) -> EngineError {
    EngineError::Option { option, reason: reason.to_owned() }
}
