//! The client: one method for each call of the server.

use std::time::Duration;

use bespoke_domain::{Event, Invalid, PromptSpec, Request, Score, ScoreRequest, TokenId};
use bespoke_proto::{
    DetokenizeRequest, EmbedRequest, EmbedResponse, GenerateStreamResponse, Generated, GetServerInfoRequest,
    GetServerInfoResponse, RenderPromptRequest, RenderedPrompt, TokenizeRequest, TokenizeResponse,
    embedding_service_client::EmbeddingServiceClient, generation_service_client::GenerationServiceClient,
    model_service_client::ModelServiceClient, tokenizer_service_client::TokenizerServiceClient,
};
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use tonic::{Streaming, metadata::AsciiMetadataValue, transport::Channel};

use crate::{Builder, ClientError, call::Call};

/// The events of one request. Ends after `Finished` or the first error; dropping it cancels the request.
pub type EventStream = BoxStream<'static, Result<Event, ClientError>>;

/// A connection to a server. Cheap to clone; clones share the connection, which is restored when it breaks.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) generation: GenerationServiceClient<Channel>,
    pub(crate) tokenizer: TokenizerServiceClient<Channel>,
    pub(crate) model: ModelServiceClient<Channel>,
    pub(crate) embedding: EmbeddingServiceClient<Channel>,
    pub(crate) deadline: Option<Duration>,
    /// Is not shown by `Debug`.
    pub(crate) authorization: Option<AsciiMetadataValue>,
}

impl Client {
    /// Connects with all defaults to an address such as `http://127.0.0.1:50051`.
    ///
    /// **Errors**: [`ClientError::Connect`] for an address that is wrong or does not answer.
    pub async fn connect(uri: impl Into<String>) -> Result<Self, ClientError> {
        Self::builder(uri).connect().await
    }

    /// Starts to set how to connect.
    pub fn builder(uri: impl Into<String>) -> Builder {
        Builder::new(uri.into())
    }

    /// Returns a client on the same connection whose calls may take this long; `None` sets no limit.
    pub fn with_deadline(&self, deadline: Option<Duration>) -> Self {
        Self { deadline, ..self.clone() }
    }

    /// Generates answers and returns their events as they come.
    ///
    /// **Errors**: what the server refuses at once. What fails later is the last item of the stream.
    pub async fn generate_stream(&self, request: &Request) -> Result<EventStream, ClientError> {
        let call = self.call();
        let mut service = self.generation.clone();
        let response = call.wait(service.generate_stream(call.request(request.into()))).await?;
        let running = Running { call, events: response.into_inner() };
        Ok(stream::unfold(Some(running), |running| async { Some(running?.next().await) }).boxed())
    }

    /// Generates answers and returns them whole.
    ///
    /// **Errors**: what the server refuses, and [`ClientError::Response`] for an answer that makes no sense.
    pub async fn generate(&self, request: &Request) -> Result<Generated, ClientError> {
        let call = self.call();
        let mut service = self.generation.clone();
        let response = call.wait(service.generate(call.request(request.into()))).await?;
        response.into_inner().try_into().map_err(ClientError::Response)
    }

    /// Returns the log-probability of a continuation.
    ///
    /// **Errors**: as [`Client::generate`].
    pub async fn score(&self, request: &ScoreRequest) -> Result<Score, ClientError> {
        let call = self.call();
        let mut service = self.generation.clone();
        let response = call.wait(service.score(call.request(request.into()))).await?;
        response.into_inner().try_into().map_err(ClientError::Response)
    }

    /// Turns text into tokens, each with its bytes.
    ///
    /// **Errors**: as [`Client::generate`].
    pub async fn tokenize(&self, request: TokenizeRequest) -> Result<TokenizeResponse, ClientError> {
        let call = self.call();
        let mut service = self.tokenizer.clone();
        let response = call.wait(service.tokenize(call.request(request))).await?.into_inner();
        if response.pieces.len() == response.token_ids.len() {
            Ok(response)
        } else {
            Err(ClientError::Response(Invalid::new("pieces", "are not as many as token_ids")))
        }
    }

    /// Turns tokens into text.
    ///
    /// **Errors**: what the server refuses, such as a token that the vocabulary does not have.
    pub async fn detokenize(&self, token_ids: Vec<TokenId>, skip_control: bool) -> Result<String, ClientError> {
        let call = self.call();
        let mut service = self.tokenizer.clone();
        let request = DetokenizeRequest { token_ids, skip_control: Some(skip_control) };
        Ok(call.wait(service.detokenize(call.request(request))).await?.into_inner().text)
    }

    /// Renders a prompt as the server does before it generates, or with a `response` as training does.
    ///
    /// **Errors**: as [`Client::generate`].
    pub async fn render_prompt(
        &self,
        spec: &PromptSpec,
        response: Option<String>,
    ) -> Result<RenderedPrompt, ClientError> {
        let call = self.call();
        let mut service = self.tokenizer.clone();
        let request = RenderPromptRequest { spec: Some(spec.into()), response };
        let rendered = call.wait(service.render_prompt(call.request(request))).await?;
        rendered.into_inner().try_into().map_err(ClientError::Response)
    }

    /// Returns one vector for each text, in order.
    ///
    /// **Errors**: as [`Client::generate`]; a server without an embedding model refuses with `Unimplemented`.
    pub async fn embed(&self, request: EmbedRequest) -> Result<EmbedResponse, ClientError> {
        let call = self.call();
        let mut service = self.embedding.clone();
        let num_texts = request.texts.len();
        let response = call.wait(service.embed(call.request(request))).await?.into_inner();
        if response.embeddings.len() == num_texts {
            Ok(response)
        } else {
            Err(ClientError::Response(Invalid::new("embeddings", "are not as many as the texts")))
        }
    }

    /// Returns the facts of the server, its model and its present load.
    ///
    /// **Errors**: what the server refuses, such as while it loads its model.
    pub async fn server_info(&self) -> Result<GetServerInfoResponse, ClientError> {
        let call = self.call();
        let mut service = self.model.clone();
        Ok(call.wait(service.get_server_info(call.request(GetServerInfoRequest {}))).await?.into_inner())
    }

    fn call(&self) -> Call {
        Call::start(self.deadline, self.authorization.clone())
    }
}

/// A stream that has not ended.
struct Running {
    call: Call,
    events: Streaming<GenerateStreamResponse>,
}

impl Running {
    /// Returns the next item, and the stream unless the item is its last.
    async fn next(mut self) -> (Result<Event, ClientError>, Option<Self>) {
        match self.call.wait(self.events.message()).await {
            Ok(Some(wire)) => match Event::try_from(wire) {
                Ok(Event::Finished(finished)) => (Ok(Event::Finished(finished)), None),
                Ok(event) => (Ok(event), Some(self)),
                Err(invalid) => (Err(ClientError::Response(invalid)), None),
            },
            Ok(None) => (Err(ClientError::EndedEarly), None),
            Err(error) => (Err(error), None),
        }
    }
}
