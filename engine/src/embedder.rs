//! Embeddings: texts in, vectors out, beside the engine and independent of it.
//!
//! A request's way: [`Embedder::start`] tokenizes on the caller's thread and hands a job to the one thread that owns the encoder,
//! through a bounded queue; that thread packs the texts of a job into steps, shortest first, and looks between two steps
//! whether anybody still waits. Dropping an [`Embedding`] cancels it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bespoke_domain::Invalid;
use bespoke_model::{Encoder, EncoderTokenizer, EncoderWorkspace, ModelError, ModelSource};
use tokio::sync::oneshot;

use crate::{EngineError, Stage};

/// The most texts of a request.
const TEXTS_MAX: usize = 256;
/// Tokens of a step: matrix products are at their best from about a hundred rows on, and a step stays well below a second.
const STEP_TOKENS: usize = 512;
/// Texts of a step.
const STEP_TEXTS: usize = 64;
/// When trying again after a full queue makes sense.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A running encoder. Cheap to clone; the last handle to go stops it.
#[derive(Clone)]
pub struct Embedder(Arc<Inner>);

struct Inner {
    tokenizer: EncoderTokenizer,
    info: EmbedderInfo,
    queue_max: usize,
    /// `None` once it is being dropped.
    intake: Option<mpsc::SyncSender<Job>>,
    switches: Arc<Switches>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Switches {
    /// No new request is taken in.
    closed: AtomicBool,
    /// What waits or runs ends.
    stopped: AtomicBool,
}

/// What an encoder is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbedderInfo {
    /// The name of its folder.
    pub name: String,
    /// Identifies its files.
    pub digest: String,
    /// The length of its vectors.
    pub dimension: usize,
    /// The tokens that it sees of a text; the rest is cut off.
    pub tokens_max: usize,
}

/// The vector of one text.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbeddedText {
    /// The vector.
    pub values: Vec<f32>,
    /// The tokens that it was computed from, control tokens included.
    pub num_tokens: usize,
    /// Whether the text was too long and its end was not seen.
    pub truncated: bool,
}

/// Embeddings that are being computed. Dropping it cancels the request.
#[derive(Debug)]
#[must_use = "dropping it cancels the request"]
pub struct Embedding(oneshot::Receiver<Result<Vec<EmbeddedText>, EngineError>>);

impl Embedding {
    /// Waits for the vectors, in the order of the texts.
    ///
    /// **Errors**: a deadline that came, an encoder that stopped.
    pub async fn wait(self) -> Result<Vec<EmbeddedText>, EngineError> {
        self.0.await.unwrap_or(Err(EngineError::Stopping))
    }
}

impl Embedder {
    /// Loads a BERT folder as sentence-transformers writes it, and starts its thread. `queue_max` requests may wait.
    ///
    /// **Errors**: [`EngineError::Model`] for a wrong model file, [`EngineError::Option`] for an option out of range.
    pub fn load(path: &Path, num_threads: usize, queue_max: usize) -> Result<Self, EngineError> {
        if queue_max == 0 {
            return Err(EngineError::Option { option: "queue_max", reason: "is 0, must be at least 1".to_owned() });
        }
        let source = ModelSource::open(path)?;
        let encoder = Encoder::load(source.path(), num_threads)?;
        let tokenizer = EncoderTokenizer::load(source.path())?;
        let config = encoder.config();
        let info = EmbedderInfo {
            name: encoder.name().to_owned(),
            digest: encoder.digest().to_owned(),
            dimension: config.hidden_size,
            tokens_max: config.tokens_max,
        };
        let switches = Arc::new(Switches::default());
        let (intake, jobs) = mpsc::sync_channel(queue_max);
        let workspace = EncoderWorkspace::new(config, STEP_TOKENS, STEP_TEXTS);
        let mut worker = Worker { encoder, workspace, switches: switches.clone() };
        let thread = std::thread::Builder::new()
            .name("embedder".to_owned())
            .spawn(move || worker.run(&jobs))
            .map_err(|error| EngineError::Internal(format!("cannot start the embedder's thread: {error}")))?;
        let inner = Inner { tokenizer, info, queue_max, intake: Some(intake), switches, thread: Some(thread) };
        Ok(Self(Arc::new(inner)))
    }

    /// Returns what the encoder is.
    pub fn info(&self) -> &EmbedderInfo {
        &self.0.info
    }

    /// Tokenizes and queues texts; their vectors have unit length where `normalize` asks for it.
    ///
    /// Works on the caller's thread for as long as tokenizing takes: some milliseconds for a full request.
    ///
    /// **Errors**: no or too many texts, one that is too long, a full queue, an embedder that is stopping, a deadline that has
    /// passed.
    pub fn start(
        &self,
        texts: &[String],
        normalize: bool,
        deadline: Option<Instant>,
    ) -> Result<Embedding, EngineError> {
        if !(1..=TEXTS_MAX).contains(&texts.len()) {
            return Err(Invalid::new("texts", format!("are {}, must be 1 to {TEXTS_MAX}", texts.len())).into());
        }
        if self.0.switches.closed.load(Ordering::SeqCst) {
            return Err(EngineError::Stopping);
        }
        let encode = |(place, text): (usize, &String)| match self.0.tokenizer.encode(text) {
            Ok(pieces) => Ok(Text { place, ids: pieces.ids, truncated: pieces.truncated }),
            Err(error @ ModelError::PromptTooLong { .. }) => {
                Err(EngineError::from(Invalid::new(format!("texts[{place}]"), error.to_string())))
            }
            Err(error) => Err(error.into()),
        };
        let mut texts: Vec<Text> = texts.iter().enumerate().map(encode).collect::<Result<_, _>>()?;
        // Texts of about one length finish a step together.
        texts.sort_by_key(|text| text.ids.len());
        let (reply, embedding) = oneshot::channel();
        let job = Job { texts, normalize, deadline, reply };
        let intake = self.0.intake.as_ref().ok_or(EngineError::Stopping)?;
        intake.try_send(job).map_err(|error| match error {
            mpsc::TrySendError::Full(_) => EngineError::QueueFull { limit: self.0.queue_max, retry_after: RETRY_AFTER },
            mpsc::TrySendError::Disconnected(_) => EngineError::Stopping,
        })?;
        Ok(Embedding(embedding))
    }

    /// Refuses new requests from now on; those taken in go on.
    pub fn close(&self) {
        self.0.switches.closed.store(true, Ordering::SeqCst);
    }

    /// Ends every request with [`EngineError::Stopping`].
    pub fn stop(&self) {
        self.0.switches.stop();
    }
}

impl std::fmt::Debug for Embedder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Embedder").field("model", &self.0.info.name).finish()
    }
}

impl Switches {
    fn stop(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.stopped.store(true, Ordering::SeqCst);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.switches.stop();
        self.intake = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A request as the thread gets it.
struct Job {
    /// Shortest first.
    texts: Vec<Text>,
    normalize: bool,
    deadline: Option<Instant>,
    reply: oneshot::Sender<Result<Vec<EmbeddedText>, EngineError>>,
}

struct Text {
    /// Its place in the request.
    place: usize,
    ids: Vec<u32>,
    truncated: bool,
}

/// The owner of the encoder.
struct Worker {
    encoder: Encoder,
    workspace: EncoderWorkspace,
    switches: Arc<Switches>,
}

impl Worker {
    /// Runs jobs until all handles are gone.
    fn run(&mut self, jobs: &mpsc::Receiver<Job>) {
        for job in jobs {
            // A step overwrites all that it reads of the workspace, so one that broke off leaves nothing behind.
            let result = catch_unwind(AssertUnwindSafe(|| self.embed(&job)));
            let result = result.unwrap_or_else(|_| {
                tracing::error!("a step of the embedder has failed");
                Some(Err(EngineError::Internal("a step of the embedder has failed".to_owned())))
            });
            if let Some(result) = result {
                // Nobody may wait for it any more.
                let _ = job.reply.send(result);
            }
        }
    }

    /// Computes a job; `None` where its caller has gone.
    fn embed(&mut self, job: &Job) -> Option<Result<Vec<EmbeddedText>, EngineError>> {
        let dimension = self.encoder.config().hidden_size;
        let mut embedded: Vec<Option<EmbeddedText>> = vec![None; job.texts.len()];
        let mut rest = job.texts.as_slice();
        while !rest.is_empty() {
            if job.reply.is_closed() {
                return None;
            }
            if self.switches.stopped.load(Ordering::SeqCst) {
                return Some(Err(EngineError::Stopping));
            }
            if job.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                let stage = if rest.len() == job.texts.len() { Stage::Queue } else { Stage::Prefill };
                return Some(Err(EngineError::DeadlineExceeded(stage)));
            }
            let (step, after) = rest.split_at(step_len(rest, self.workspace.rows_max()));
            let ids: Vec<&[u32]> = step.iter().map(|text| text.ids.as_slice()).collect();
            let mut vectors = vec![0.0; step.len() * dimension];
            if let Err(error) = self.encoder.embed(&ids, job.normalize, &mut self.workspace, &mut vectors) {
                return Some(Err(EngineError::Internal(error.to_string())));
            }
            for (text, values) in step.iter().zip(vectors.chunks_exact(dimension)) {
                let (num_tokens, truncated) = (text.ids.len(), text.truncated);
                embedded[text.place] = Some(EmbeddedText { values: values.to_vec(), num_tokens, truncated });
            }
            rest = after;
        }
        Some(Ok(embedded.into_iter().flatten().collect()))
    }
}

/// How many of the texts go into the next step: at least one, which always fits.
fn step_len(texts: &[Text], tokens_max: usize) -> usize {
    let mut num_tokens = 0;
    let fits = |text: &&Text| {
        num_tokens += text.ids.len();
        num_tokens <= tokens_max
    };
    texts.iter().take(STEP_TEXTS).take_while(fits).count().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(len: usize) -> Text {
        Text { place: 0, ids: vec![0; len], truncated: false }
    }

    #[test]
    fn a_step_takes_what_fits() {
        let texts: Vec<Text> = [3, 3, 4, 9].map(text).into();
        assert_eq!(step_len(&texts, 10), 3);
        assert_eq!(step_len(&texts, 9), 2);
        assert_eq!(step_len(&texts[3..], 5), 1);
        let many: Vec<Text> = (0..100).map(|_| text(1)).collect();
        assert_eq!(step_len(&many, 1000), STEP_TEXTS);
    }
}
