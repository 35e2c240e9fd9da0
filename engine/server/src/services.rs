//! The gRPC services: wire messages in, engine calls, wire messages out.

mod generation;
mod model;
mod tokenizer;

use std::sync::Arc;

use bespoke_engine::{Engine, EngineError};
use bespoke_proto::invalid_status;
use tonic::Status;

use crate::{Config, status::status};

/// What every service holds.
#[derive(Clone)]
pub(crate) struct Services {
    engine: Engine,
    config: Arc<Config>,
}

impl Services {
    pub(crate) fn new(engine: Engine, config: Arc<Config>) -> Self {
        Self { engine, config }
    }

    /// Runs what may take longer than half a millisecond (rendering and tokenizing) off the async threads.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Engine) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, Status> {
        let engine = self.engine.clone();
        let done = tokio::task::spawn_blocking(move || work(&engine)).await;
        done.map_err(|error| status(&EngineError::Internal(error.to_string())))?.map_err(|error| status(&error))
    }
}

/// Converts a wire message.
fn checked<W: TryInto<D, Error = bespoke_domain::Invalid>, D>(wire: W) -> Result<D, Status> {
    wire.try_into().map_err(|invalid| invalid_status(&invalid))
}
