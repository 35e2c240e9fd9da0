//! A server whose answers follow from the prompt's text.

use std::time::Duration;

use bespoke_client::{
    Choice, Code, Delta, Event, FinishReason, Finished, Prompt, Request, RequestId, Score, ScoreRequest, Span,
    SpanKind, Started, Template, Timings, TokenLogprob, Usage,
};
use bespoke_proto::{
    DetokenizeRequest, DetokenizeResponse, GenerateRequest, GenerateResponse, GenerateStreamRequest,
    GenerateStreamResponse, Generated, GetServerInfoRequest, GetServerInfoResponse, RenderPromptRequest,
    RenderPromptResponse, RenderedPrompt, ScoreResponse, TokenizeRequest, TokenizeResponse,
    generation_service_server::{GenerationService, GenerationServiceServer},
    invalid_status,
    model_service_server::{ModelService, ModelServiceServer},
    tokenizer_service_server::{TokenizerService, TokenizerServiceServer},
};
use futures::{StreamExt, stream};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Response, Status, metadata::MetadataMap, transport::Server};
use tonic_types::{ErrorDetails, StatusExt};

#[derive(Clone)]
struct Scripted;

/// Starts the server on a free port and returns its address; it ends with the test.
pub(crate) async fn start() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("the address of a bound socket");
    let server = Server::builder()
        .add_service(GenerationServiceServer::new(Scripted))
        .add_service(TokenizerServiceServer::new(Scripted))
        .add_service(ModelServiceServer::new(Scripted));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    format!("http://{address}")
}

/// The events of a good answer. The model digest repeats the `grpc-timeout` that came.
fn events(request: &Request, metadata: &MetadataMap) -> Vec<Event> {
    let timeout = metadata.get("grpc-timeout").and_then(|timeout| timeout.to_str().ok());
    let started = Started {
        request_id: request.request_id.clone().unwrap_or(RequestId::new("chosen").expect("a valid id")),
        model_digest: timeout.unwrap_or("none").to_owned(),
        template_hash: "hash".to_owned(),
        persona: None,
        prompt_tokens: 3,
        cached_tokens: 0,
        seed: 7,
    };
    let delta =
        |text: &str| Event::Delta(Delta { text: text.into(), token_ids: [1].as_slice().into(), ..Delta::default() });
    let end = Choice { choice: 0, reason: FinishReason::EndOfText, matched_stop: None, generated_tokens: 2 };
    let finished = Finished { choices: vec![end], usage: Usage::default(), timings: Timings::default() };
    vec![Event::Started(started), delta("Hello, "), delta("world."), Event::Finished(finished)]
}

fn full() -> Status {
    let details = ErrorDetails::with_retry_info(Some(Duration::from_millis(250)));
    Status::with_error_details(Code::ResourceExhausted, "the queue is full", details)
}

fn word(request: &Request) -> &str {
    match &request.spec.prompt {
        Prompt::Text(text) => text,
        Prompt::Messages(_) | Prompt::Tokens(_) => "",
    }
}

#[tonic::async_trait]
impl GenerationService for Scripted {
    type GenerateStreamStream = stream::BoxStream<'static, Result<GenerateStreamResponse, Status>>;

    async fn generate_stream(
        &self,
        request: tonic::Request<GenerateStreamRequest>,
    ) -> Result<Response<Self::GenerateStreamStream>, Status> {
        let (metadata, _, wire) = request.into_parts();
        let request = Request::try_from(wire).map_err(|invalid| invalid_status(&invalid))?;
        let mut items: Vec<_> = events(&request, &metadata).into_iter().map(|event| Ok(event.into())).collect();
        match word(&request) {
            "full" => return Err(full()),
            "cut" => items.truncate(2),
            "nonsense" => items[1] = Ok(GenerateStreamResponse { event: None }),
            "breaks" => items[2] = Err(Status::internal("the model broke")),
            "stalls" => {
                items.truncate(1);
                return Ok(Response::new(stream::iter(items).chain(stream::pending()).boxed()));
            }
            _ => {}
        }
        Ok(Response::new(stream::iter(items).boxed()))
    }

    async fn generate(&self, request: tonic::Request<GenerateRequest>) -> Result<Response<GenerateResponse>, Status> {
        let (metadata, _, wire) = request.into_parts();
        let request = Request::try_from(wire).map_err(|invalid| invalid_status(&invalid))?;
        match word(&request) {
            "stalls" => std::future::pending().await,
            "nonsense" => Ok(Response::new(GenerateResponse::default())),
            _ => {
                let generated = Generated::gather(events(&request, &metadata)).expect("a good answer");
                Ok(Response::new(generated.into()))
            }
        }
    }

    async fn score(
        &self,
        request: tonic::Request<bespoke_proto::ScoreRequest>,
    ) -> Result<Response<ScoreResponse>, Status> {
        let request = ScoreRequest::try_from(request.into_inner()).map_err(|invalid| invalid_status(&invalid))?;
        let token = TokenLogprob { token: 5, bytes: vec![0xFF], logprob: Some(-0.5), top: vec![] };
        let tokens = vec![token; request.top as usize + 1];
        Ok(Response::new(Score { total_logprob: -0.5 * tokens.len() as f64, tokens, prompt_tokens: 3 }.into()))
    }
}

#[tonic::async_trait]
impl TokenizerService for Scripted {
    async fn tokenize(&self, request: tonic::Request<TokenizeRequest>) -> Result<Response<TokenizeResponse>, Status> {
        let text = request.into_inner().text;
        let token_ids = text.bytes().map(u32::from).collect();
        let pieces = if text == "nonsense" { vec![] } else { text.bytes().map(|byte| vec![byte]).collect() };
        Ok(Response::new(TokenizeResponse { token_ids, pieces }))
    }

    async fn detokenize(
        &self,
        request: tonic::Request<DetokenizeRequest>,
    ) -> Result<Response<DetokenizeResponse>, Status> {
        let request = request.into_inner();
        let text = request.token_ids.iter().filter_map(|&id| char::from_u32(id)).collect::<String>();
        Ok(Response::new(DetokenizeResponse { text: format!("{text} {}", request.skips_control()) }))
    }

    async fn render_prompt(
        &self,
        request: tonic::Request<RenderPromptRequest>,
    ) -> Result<Response<RenderPromptResponse>, Status> {
        let (spec, response) = request.into_inner().into_parts().map_err(|invalid| invalid_status(&invalid))?;
        let span = |text: &str, trained| Span { text: text.to_owned(), kind: SpanKind::Text, trained };
        let mut spans = vec![span("Prompt:", false)];
        spans.extend(response.map(|response| span(&response, true)));
        let tokens = spans.iter().map(|span| (9, span.trained)).collect();
        let template = spec.template.unwrap_or(Template::Chat);
        let rendered = RenderedPrompt { spans, tokens, template, persona: None, template_hash: "hash".to_owned() };
        Ok(Response::new(rendered.into()))
    }
}

#[tonic::async_trait]
impl ModelService for Scripted {
    async fn get_server_info(
        &self,
        _: tonic::Request<GetServerInfoRequest>,
    ) -> Result<Response<GetServerInfoResponse>, Status> {
        let info = GetServerInfoResponse { version: "0.1.0".to_owned(), ..GetServerInfoResponse::default() };
        Ok(Response::new(info))
    }
}
