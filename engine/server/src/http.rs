//! The HTTP address: OpenAI's API, gRPC-Web and the playground, beside the gRPC port and over the same engine.
//!
//! A request's way: its body becomes a checked request (`chat`, `completion`, over `fields` and `params`), goes to the engine
//! as one over gRPC does, and its events become JSON (`answer`); what goes wrong becomes a `refusal`.

mod answer;
mod chat;
mod completion;
mod fields;
mod grpc_web;
mod models;
mod params;
mod playground;
mod refusal;

use std::{convert::Infallible, error::Error, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response, Sse, sse},
    routing::{get, post},
};
use bespoke_domain::{Generate, Invalid};
use bespoke_engine::{EngineError, Event};
use bespoke_proto::Generated;
use futures::{Stream, StreamExt, stream};
use http_body_util::LengthLimitError;

use self::{
    answer::{AnswerForm, Chunk, Chunks, Form, unix_seconds},
    chat::ChatModel,
    params::Delivery,
    refusal::Refusal,
};
pub(crate) use self::{
    fields::Fields,
    params::{apply as apply_params, max_tokens},
};
use crate::{
    call::Call,
    door::Door,
    services::{OpenCall, Services, gather},
};

/// How often a stream without news sends a comment, so that proxies keep it and a client that is gone is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Returns what answers on the HTTP address: behind the door all but the page of the playground, which holds no secret.
pub(crate) fn router(services: &Services, door: &Arc<Door>) -> Router {
    let options = &services.config().http;
    let api = Router::new()
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/completions", post(completions))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*name}", get(models::one))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(services.clone());
    let mut router = grpc_web::add(door.clone().guard(api), services, door);
    if options.ui {
        router = playground::add(router);
    }
    grpc_web::allow_origins(router, &options.cors_origins)
}

async fn chat_completions(State(services): State<Services>, request: Request) -> Response {
    answer(services, Form::Chat, request).await.unwrap_or_else(IntoResponse::into_response)
}

async fn completions(State(services): State<Services>, request: Request) -> Response {
    answer(services, Form::Text, request).await.unwrap_or_else(IntoResponse::into_response)
}

async fn unknown_path() -> Refusal {
    Refusal::invalid(StatusCode::NOT_FOUND, "there is nothing at this path")
}

async fn wrong_method() -> Refusal {
    Refusal::invalid(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method")
}

async fn answer(services: Services, form: Form, request: Request) -> Result<Response, Refusal> {
    let call = Call::of(request.extensions());
    let body = read_body(request, services.config().message_bytes_max).await?;
    let (generate, delivery) = read(&services, form, &body)?;
    drop(body);
    models::check_name(&services, delivery.model.as_deref())?;
    let form = AnswerForm {
        form,
        model: services.model_name().to_owned(),
        logprobs: generate.logprobs,
        n: generate.n,
        created: unix_seconds(),
    };
    let request = bespoke_domain::Request::try_from(generate)?;
    let open = services.calls().open();
    let generation = services.start(&call, request, None).await.map_err(|error| Refusal::from(&error))?;
    if delivery.stream {
        return Ok(stream_of(generation, Chunks::new(form, delivery.include_usage), open));
    }
    // A client that goes away drops this future, and with it the generation.
    let events = gather(generation, None).await.map_err(|error| Refusal::from(&error))?;
    let generated =
        Generated::gather(events).map_err(|invalid| Refusal::from(&EngineError::Internal(invalid.to_string())))?;
    Ok(Json(form.whole(&generated)).into_response())
}

fn read(services: &Services, form: Form, body: &[u8]) -> Result<(Generate, Delivery), Invalid> {
    let info = services.engine().model_info();
    match form {
        Form::Chat => {
            let default_template = info.default_template;
            chat::read(body, ChatModel { default_template, context_tokens_max: info.context_tokens_max })
        }
        Form::Text => completion::read(body),
    }
}

/// Reads the body of a request.
///
/// JSON has to be named as such: a page of a foreign origin can send other types without asking first.
async fn read_body(request: Request, bytes_max: usize) -> Result<axum::body::Bytes, Refusal> {
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let is_json = content_type.is_some_and(|value| {
        let (essence, _) = value.split_once(';').unwrap_or((value, ""));
        essence.trim().eq_ignore_ascii_case("application/json")
    });
    if !is_json {
        let message = "the header Content-Type must be application/json";
        return Err(Refusal::invalid(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    let body: Body = request.into_body();
    axum::body::to_bytes(body, bytes_max).await.map_err(|error| match error.source() {
        Some(source) if source.is::<LengthLimitError>() => {
            let message = format!("the body has more than {bytes_max} bytes");
            Refusal::invalid(StatusCode::PAYLOAD_TOO_LARGE, message)
        }
        // The door ends a body that is too slow; one that broke off has nobody who reads the answer.
        _ => Refusal::invalid(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"),
    })
}

/// Sends a generation as server-sent events. A client that goes away drops the stream, and with it the generation.
fn stream_of(
    generation: impl Stream<Item = Result<Event, EngineError>> + Send + 'static,
    mut chunks: Chunks,
    open: OpenCall,
) -> Response {
    let events = generation.flat_map(move |event| {
        let _open = &open;
        stream::iter(chunks.of(event).into_iter().map(event_of))
    });
    let keep_alive = sse::KeepAlive::new().interval(KEEP_ALIVE);
    let mut response = Sse::new(infallible(events)).keep_alive(keep_alive).into_response();
    // Tells proxies of the nginx kind that the stream is read as it comes.
    response.headers_mut().insert("x-accel-buffering", header::HeaderValue::from_static("no"));
    response
}

fn event_of(chunk: Chunk) -> sse::Event {
    match chunk {
        Chunk::Json(value) => sse::Event::default().data(value.to_string()),
        Chunk::Done => sse::Event::default().data("[DONE]"),
    }
}

fn infallible<T>(events: impl Stream<Item = T>) -> impl Stream<Item = Result<T, Infallible>> {
    events.map(Ok)
}
