//! `GenerationService`: streams, whole answers and scores.

use std::{pin::Pin, time::Instant};

use bespoke_domain as domain;
use bespoke_engine::{EngineError, Event, Stage};
use bespoke_proto::{
    GenerateRequest, GenerateResponse, GenerateStreamRequest, GenerateStreamResponse, Generated, ScoreRequest,
    ScoreResponse, generation_service_server::GenerationService,
};
use futures::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use super::{Services, checked, read_deadline, within};
use crate::{call::Call, status::status};

#[tonic::async_trait]
impl GenerationService for Services {
    type GenerateStreamStream = Pin<Box<dyn Stream<Item = Result<GenerateStreamResponse, Status>> + Send>>;

    async fn generate_stream(
        &self,
        request: Request<GenerateStreamRequest>,
    ) -> Result<Response<Self::GenerateStreamStream>, Status> {
        let deadline = read_deadline(request.metadata())?;
        let open = self.calls.open();
        let call = Call::of(request.extensions());
        let generation =
            self.start(&call, checked(request.into_inner())?, deadline).await.map_err(|error| status(&error))?;
        let events = generation.map(move |event| {
            let _open = &open;
            event.map(Into::into).map_err(|error| status(&error))
        });
        Ok(Response::new(Box::pin(events)))
    }

    async fn generate(&self, request: Request<GenerateRequest>) -> Result<Response<GenerateResponse>, Status> {
        let deadline = read_deadline(request.metadata())?;
        let _open = self.calls.open();
        let call = Call::of(request.extensions());
        let generation =
            self.start(&call, checked(request.into_inner())?, deadline).await.map_err(|error| status(&error))?;
        let events = gather(generation, deadline).await.map_err(|error| status(&error))?;
        let generated = Generated::gather(events);
        let generated = generated.map_err(|invalid| status(&EngineError::Internal(invalid.to_string())))?;
        Ok(Response::new(generated.into()))
    }

    async fn score(&self, request: Request<ScoreRequest>) -> Result<Response<ScoreResponse>, Status> {
        let deadline = read_deadline(request.metadata())?;
        let _open = self.calls.open();
        let call = Call::of(request.extensions());
        let request: domain::ScoreRequest = checked(request.into_inner())?;
        let scoring = self.blocking(deadline, move |engine| engine.start_score(request, deadline)).await?;
        let score = within(deadline, Stage::Prefill, scoring.score()).await.map_err(|error| status(&error))?;
        call.note_score(&score);
        Ok(Response::new(score.into()))
    }
}

/// Reads all events, at most until the deadline.
///
/// The engine sees a deadline only between two steps; the transport would end the call before that with CANCELLED.
pub(crate) async fn gather(
    mut generation: impl Stream<Item = Result<Event, EngineError>> + Unpin,
    deadline: Option<Instant>,
) -> Result<Vec<Event>, EngineError> {
    let mut events = Vec::new();
    let read_all = async {
        while let Some(event) = generation.next().await {
            events.push(event?);
        }
        Ok(())
    };
    let read = match deadline {
        Some(at) => tokio::time::timeout_at(at.into(), read_all).await,
        None => Ok(read_all.await),
    };
    match read {
        Ok(result) => result.map(|()| events),
        Err(_) => Err(EngineError::DeadlineExceeded(match events.len() {
            0 => Stage::Queue,
            1 => Stage::Prefill,
            _ => Stage::Decode,
        })),
    }
}
