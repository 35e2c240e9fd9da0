//! `inference.GRPCInferenceService`: the Open Inference Protocol v2, for clients and load balancers of KServe and Triton.

mod request;
mod response;
mod tensor;

use std::{
    pin::Pin,
    time::{Duration, Instant},
};

use bespoke_domain::Invalid;
use bespoke_engine::{EngineError, Event};
use bespoke_proto::{
    Generated,
    inference::{
        ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse, ModelReadyRequest,
        ModelReadyResponse, ModelStreamInferResponse, ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest,
        ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse,
        grpc_inference_service_server::GrpcInferenceService, model_metadata_response::TensorMetadata,
    },
    invalid_status,
};
use futures::{FutureExt, Stream, StreamExt, future, stream};
use tonic::{Request, Response, Status, Streaming};

use self::{
    request::Asked,
    response::{Responses, StreamItem},
};
use super::{OpenCall, Services, gather, read_deadline};
use crate::{call::Call, status::status};

/// The requests of one stream that are answered at once; one more waits until another has ended.
const STREAM_REQUESTS_MAX: usize = 64;
/// The only version of the model.
const VERSION: &str = "1";

#[tonic::async_trait]
impl GrpcInferenceService for Services {
    type ModelStreamInferStream = Pin<Box<dyn Stream<Item = Result<ModelStreamInferResponse, Status>> + Send>>;

    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Result<Response<ServerReadyResponse>, Status> {
        Ok(Response::new(ServerReadyResponse { ready: self.is_ready() }))
    }

    async fn model_ready(&self, request: Request<ModelReadyRequest>) -> Result<Response<ModelReadyResponse>, Status> {
        let ModelReadyRequest { name, version } = request.into_inner();
        let ready = self.is_ready() && self.check_model(&name, &version).is_ok();
        Ok(Response::new(ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(Response::new(ServerMetadataResponse { name: "bespoke-engine".to_owned(), version, extensions: Vec::new() }))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let ModelMetadataRequest { name, version } = request.into_inner();
        self.check_model(&name, &version)?;
        let bytes = |name: &str, size| TensorMetadata {
            name: name.to_owned(),
            datatype: tensor::BYTES.to_owned(),
            shape: vec![size],
        };
        Ok(Response::new(ModelMetadataResponse {
            name: self.model_name().to_owned(),
            versions: vec![VERSION.to_owned()],
            platform: "bespoke".to_owned(),
            inputs: vec![bytes("text_input", 1), bytes("persona", 1), bytes("sampling_parameters", 1)],
            outputs: vec![bytes("text_output", -1)],
        }))
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Result<Response<ModelInferResponse>, Status> {
        let deadline = read_deadline(request.metadata())?;
        let _open = self.calls.open();
        let call = Call::of(request.extensions());
        let asked = self.asked(request.into_inner())?;
        if asked.stream == Some(true) {
            return Err(invalid_status(&Invalid::new("inputs.stream", "is true; use ModelStreamInfer for that")));
        }
        let deadline = earlier(deadline, asked.timeout);
        let responses = Responses::new(&asked, self.model_name(), VERSION);
        let generation = self.start(&call, asked.request, deadline).await.map_err(|error| status(&error))?;
        let events = gather(generation, deadline).await.map_err(|error| status(&error))?;
        let generated = Generated::gather(events).map_err(|invalid| Status::internal(invalid.to_string()))?;
        Ok(Response::new(responses.whole(&generated)))
    }

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Result<Response<Self::ModelStreamInferStream>, Status> {
        let deadline = read_deadline(request.metadata())?;
        let services = self.clone();
        let call = Call::of(request.extensions());
        let responses = request.into_inner().flat_map_unordered(STREAM_REQUESTS_MAX, move |request| {
            let (services, call) = (services.clone(), call.clone());
            Box::pin(async move { services.streamed(call, request, deadline).await }.flatten_stream())
        });
        Ok(Response::new(Box::pin(responses)))
    }
}

impl Services {
    fn is_ready(&self) -> bool {
        !self.engine.is_closed() && !self.engine.has_failed()
    }

    /// Checks the model that a request names, and its version.
    fn check_model(&self, name: &str, version: &str) -> Result<(), Status> {
        if !self.is_model(name) {
            let served = self.model_name();
            return Err(Status::not_found(format!("the model `{name}` is not served here; `{served}` is")));
        }
        if !version.is_empty() && version != VERSION {
            return Err(Status::not_found(format!("the model has no version `{version}`, only `{VERSION}`")));
        }
        Ok(())
    }

    fn asked(&self, request: ModelInferRequest) -> Result<Asked, Status> {
        self.check_model(&request.model_name, &request.model_version)?;
        Asked::read(request).map_err(|invalid| invalid_status(&invalid))
    }

    /// Answers one request of a stream. What goes wrong with it is a response; what goes wrong with the stream ends it.
    async fn streamed(
        self,
        call: Call,
        request: Result<ModelInferRequest, Status>,
        deadline: Option<Instant>,
    ) -> Pin<Box<dyn Stream<Item = StreamItem> + Send>> {
        let request = match request {
            Ok(request) => request,
            Err(error) => return Box::pin(stream::once(future::ready(Err(error)))),
        };
        let open = self.calls.open();
        let id = request.id.clone();
        let failed = |error: &Status| -> Pin<Box<dyn Stream<Item = StreamItem> + Send>> {
            Box::pin(stream::once(future::ready(Ok(response::failed(&id, error)))))
        };
        let asked = match self.asked(request) {
            Ok(asked) => asked,
            Err(error) => return failed(&error),
        };
        let deadline = earlier(deadline, asked.timeout);
        let responses = Responses::new(&asked, self.model_name(), VERSION);
        let is_stream = asked.stream != Some(false);
        match self.start(&call, asked.request, deadline).await {
            Err(error) => failed(&status(&error)),
            Ok(generation) if is_stream => Box::pin(pieces(generation, responses, open)),
            Ok(generation) => match gather(generation, deadline).await.map(Generated::gather) {
                Ok(Ok(generated)) => {
                    drop(open);
                    Box::pin(stream::iter(responses.whole_in_stream(&generated).into_iter().map(Ok)))
                }
                Ok(Err(invalid)) => failed(&Status::internal(invalid.to_string())),
                Err(error) => failed(&status(&error)),
            },
        }
    }
}

/// Sends the pieces of an answer as they come.
fn pieces(
    generation: impl Stream<Item = Result<Event, EngineError>>,
    mut responses: Responses,
    open: OpenCall,
) -> impl Stream<Item = StreamItem> {
    generation.flat_map(move |event| {
        let _open = &open;
        let event = event.map_err(|error| status(&error));
        stream::iter(responses.of(event).into_iter().map(Ok))
    })
}

/// Returns the earlier of the deadline of the call and the timeout of the request.
fn earlier(deadline: Option<Instant>, timeout: Option<Duration>) -> Option<Instant> {
    let timeout = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    [deadline, timeout].into_iter().flatten().min()
}
