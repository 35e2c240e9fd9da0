//! The gRPC services: wire messages in, engine calls, wire messages out.

mod embedding;
mod generation;
mod inference;
mod model;
mod tokenizer;

pub(crate) use generation::gather;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use bespoke_engine::{Embedder, Engine, EngineError, Stage};
use bespoke_proto::invalid_status;
use tokio::sync::Semaphore;
use tonic::{Status, metadata::MetadataMap};

use crate::{
    Config,
    call::{Call, Followed},
    deadline::deadline,
    status::status,
};

/// What every service holds.
#[derive(Clone)]
pub(crate) struct Services {
    engine: Engine,
    /// `None` where no encoder is served.
    embedder: Option<Embedder>,
    config: Arc<Config>,
    calls: OpenCalls,
    /// Bounds the texts that are rendered and tokenized at once.
    workers: Arc<Semaphore>,
}

/// The texts rendered and tokenized at once: more than there are cores only fight for them.
const WORKERS: usize = 8;

/// Counts the calls whose answers have not been sent to their ends.
#[derive(Clone, Default)]
pub(crate) struct OpenCalls(Arc<AtomicUsize>);

/// One such call, until it is dropped.
pub(crate) struct OpenCall(Arc<AtomicUsize>);

impl OpenCalls {
    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    pub(crate) fn open(&self) -> OpenCall {
        self.0.fetch_add(1, Ordering::SeqCst);
        OpenCall(self.0.clone())
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Services {
    pub(crate) fn new(engine: Engine, embedder: Option<Embedder>, config: Arc<Config>) -> Self {
        Self { engine, embedder, config, calls: OpenCalls::default(), workers: Arc::new(Semaphore::new(WORKERS)) }
    }

    /// Returns the name of the model in the interfaces that name one.
    pub(crate) fn model_name(&self) -> &str {
        self.config.model_name.as_deref().unwrap_or(&self.engine.model_info().name)
    }

    /// Whether a name is the model's: the configured one, its own, or the reference that the server was started with.
    pub(crate) fn is_model(&self, name: &str) -> bool {
        name == self.model_name() || name == self.engine.model_info().name || name == self.config.model
    }

    pub(crate) fn calls(&self) -> OpenCalls {
        self.calls.clone()
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// Renders and queues a request; what it uses is noted in its call.
    pub(crate) async fn start(
        &self,
        call: &Call,
        request: bespoke_domain::Request,
        deadline: Option<Instant>,
    ) -> Result<Followed, EngineError> {
        let generation = self.working(deadline, move |engine| engine.generate_until(request, deadline)).await?;
        Ok(call.follow(generation))
    }

    async fn blocking<T: Send + 'static>(
        &self,
        deadline: Option<Instant>,
        work: impl FnOnce(&Engine) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, Status> {
        self.working(deadline, work).await.map_err(|error| status(&error))
    }

    /// Runs what may take longer than half a millisecond (rendering and tokenizing) off the async threads, at most until
    /// the deadline: the transport would end the call a little later, but with CANCELLED.
    async fn working<T: Send + 'static>(
        &self,
        deadline: Option<Instant>,
        work: impl FnOnce(&Engine) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, EngineError> {
        let engine = self.engine.clone();
        let workers = self.workers.clone();
        let done = async {
            let permit = workers.acquire_owned().await;
            let worked = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                work(&engine)
            });
            worked.await.unwrap_or_else(|error| Err(EngineError::Internal(error.to_string())))
        };
        within(deadline, Stage::Queue, done).await
    }
}

/// Waits for a result at most until the deadline.
async fn within<T>(
    deadline: Option<Instant>,
    stage: Stage,
    result: impl Future<Output = Result<T, EngineError>>,
) -> Result<T, EngineError> {
    match deadline {
        None => result.await,
        Some(at) => {
            let late = |_| Err(EngineError::DeadlineExceeded(stage));
            tokio::time::timeout_at(at.into(), result).await.unwrap_or_else(late)
        }
    }
}

fn read_deadline(metadata: &MetadataMap) -> Result<Option<Instant>, Status> {
    deadline(metadata, Instant::now()).map_err(|invalid| invalid_status(&invalid))
}

/// Converts a wire message.
fn checked<W: TryInto<D, Error = bespoke_domain::Invalid>, D>(wire: W) -> Result<D, Status> {
    wire.try_into().map_err(|invalid| invalid_status(&invalid))
}
