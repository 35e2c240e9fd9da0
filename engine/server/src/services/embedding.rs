//! `EmbeddingService`: texts to vectors, where an encoder is served.

use bespoke_engine::{Embedder, Stage};
use bespoke_proto::{EmbedRequest, EmbedResponse, Embedding, embedding_service_server::EmbeddingService};
use tonic::{Request, Response, Status};

use super::{Services, read_deadline, within};
use crate::{call::Call, status::status};

#[tonic::async_trait]
impl EmbeddingService for Services {
    async fn embed(&self, request: Request<EmbedRequest>) -> Result<Response<EmbedResponse>, Status> {
        let deadline = read_deadline(request.metadata())?;
        let embedder = self.embedder.clone().ok_or_else(not_served)?;
        let _open = self.calls.open();
        let call = Call::of(request.extensions());
        let request = request.into_inner();
        let started = {
            let embedder = embedder.clone();
            self.blocking(deadline, move |_| embedder.start(&request.texts, request.normalizes(), deadline)).await?
        };
        let embedded = within(deadline, Stage::Prefill, started.wait()).await.map_err(|error| status(&error))?;
        call.note_embedded(embedded.iter().map(|text| text.num_tokens as u64).sum());
        let embeddings = embedded.into_iter().map(|text| Embedding {
            values: text.values,
            num_tokens: text.num_tokens as u32,
            truncated: text.truncated,
        });
        Ok(Response::new(response(&embedder, embeddings.collect())))
    }
}

fn response(embedder: &Embedder, embeddings: Vec<Embedding>) -> EmbedResponse {
    let info = embedder.info();
    EmbedResponse { embeddings, model: info.name.clone(), model_digest: info.digest.clone() }
}

fn not_served() -> Status {
    Status::unimplemented("no embedding model is served: start the server with `--embedding-model`")
}
