//! The door: every request, whatever protocol it speaks, is let in or refused here, and seen off at the end of its answer.
//!
//! In: who calls (`tokens`), whether he may now. Out: the counts of `metrics` and a line of the audit log (target `audit`):
//! who, what, how many tokens, how it ended, how long it took; never what was asked or answered.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::Next,
    response::Response,
};
use http_body::{Frame, SizeHint};
use tokio::{sync::watch, time::Sleep};
use tonic::{Code, Status};

use crate::{
    call::Call,
    listener::Peer,
    metrics::{Metrics, code_name},
    status::{over_limit, unauthenticated},
    tokens::{Identity, OpenRequest, OverLimit, Tokens},
    traces::{Origin, Traces},
};

/// What anybody may call, for those who watch over servers have no tokens: beginnings of paths.
const OPEN: [&str; 4] = [
    "/grpc.health.v1.Health/",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
    "/inference.GRPCInferenceService/ModelReady",
];
/// Methods whose clients send messages for as long as they like: beginnings of paths.
const CLIENT_STREAMS: [&str; 2] = ["/grpc.reflection.", "/inference.GRPCInferenceService/ModelStreamInfer"];
/// How many digits of a certificate's hash are in its name.
const FINGERPRINT_DIGITS: usize = 16;

/// Who may come in.
pub(crate) struct Door {
    /// The tokens that are known; without them everybody is let in whom the connection has let in.
    pub(crate) tokens: Option<watch::Receiver<Arc<Tokens>>>,
    /// Whether callers are told apart, so that the audit log tells something.
    pub(crate) audits: bool,
    /// The time for the message of a request.
    pub(crate) message_timeout: Duration,
    /// Where requests are counted.
    pub(crate) metrics: Arc<Metrics>,
    /// Where their traces go.
    pub(crate) traces: Option<Traces>,
}

/// Why somebody is not let in.
#[derive(Debug)]
enum Refusal {
    /// There is no token that the server knows.
    Unknown,
    /// It has to wait.
    OverLimit(OverLimit),
}

impl Door {
    /// Puts the door before an app.
    pub(crate) fn guard(self: Arc<Self>, app: Router) -> Router {
        app.layer(axum::middleware::from_fn_with_state(self, pass))
    }

    fn recognise(&self, headers: &HeaderMap, peer: Option<&Peer>) -> Option<Arc<Identity>> {
        if let Some(tokens) = &self.tokens {
            let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
            let (scheme, token) = value.split_once(' ')?;
            if !scheme.eq_ignore_ascii_case("bearer") {
                return None;
            }
            return tokens.borrow().find(token.trim()).cloned();
        }
        Some(Identity::unlimited(match peer.and_then(|peer| peer.certificate.as_deref()) {
            Some(hash) => format!("certificate-{}", &hash[..FINGERPRINT_DIGITS.min(hash.len())]),
            None => "anonymous".to_owned(),
        }))
    }
}

/// Lets a request in or refuses it.
async fn pass(State(door): State<Arc<Door>>, request: Request, next: Next) -> Response {
    let now = Instant::now();
    let path = request.uri().path().to_owned();
    let is_open = OPEN.iter().any(|open| path.starts_with(open));
    let peer = request.extensions().get::<Peer>().cloned();
    let let_in = match door.recognise(request.headers(), peer.as_ref()) {
        _ if is_open => Ok((Identity::unlimited("anonymous".to_owned()), None)),
        None => Err((None, Refusal::Unknown)),
        Some(identity) => match identity.open(now) {
            Ok(open) => Ok((identity, Some(open))),
            Err(over) => Err((Some(identity), Refusal::OverLimit(over))),
        },
    };
    let (identity, open, refusal) = match let_in {
        Ok((identity, open)) => (Some(identity), open, None),
        Err((identity, refusal)) => (identity, None, Some(refusal)),
    };
    let call = Call::new(path, identity, now);
    let address = peer.map(|peer| peer.address);
    let audits = door.audits && !is_open;
    let origin = door.traces.as_ref().filter(|_| !is_open).map(|traces| traces.origin(request.headers()));
    let end = End { call: call.clone(), door, audits, address, origin, open };
    if let Some(refusal) = refusal {
        let status = refusal.status();
        call.note_code(status.code());
        return refuse(&request, status);
    }
    let mut request = request;
    request.extensions_mut().insert(call);
    let streams = CLIENT_STREAMS.iter().any(|path| request.uri().path().starts_with(path));
    if !streams {
        let timeout = Box::pin(tokio::time::sleep(end.door.message_timeout));
        request = request.map(|body| Body::new(Timed { body, timeout }));
    }
    let response = next.run(request).await;
    if let Some(code) = ended(&response) {
        end.call.note_code(code);
    }
    response.map(|body| Body::new(SeenOff { body, end }))
}

impl Refusal {
    fn status(&self) -> Status {
        match self {
            Self::Unknown => unauthenticated(),
            Self::OverLimit(over) => over_limit(over),
        }
    }
}

/// Answers in the protocol of the request: a status of gRPC, or of HTTP with the same said in JSON.
fn refuse(request: &Request, status: Status) -> Response {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    if let Some(content_type) = content_type.filter(|value| value.as_bytes().starts_with(b"application/grpc")) {
        let mut response = status.into_http();
        // That of gRPC-Web is another one.
        response.headers_mut().insert(header::CONTENT_TYPE, content_type.clone());
        return response;
    }
    let (code, kind) = match status.code() {
        Code::Unauthenticated => (StatusCode::UNAUTHORIZED, "authentication_error"),
        _ => (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error"),
    };
    let error =
        serde_json::json!({"error": {"message": status.message(), "type": kind, "code": code_name(status.code())}});
    let mut response = Response::new(Body::from(error.to_string()));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if code == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Some(after) = bespoke_proto::retry_after(&status) {
        // Whole seconds, rounded up.
        headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_millis().div_ceil(1000) as u64));
    }
    response
}

/// Returns how a call has ended whose head tells.
fn ended(response: &Response) -> Option<Code> {
    if let Some(status) = response.headers().get("grpc-status") {
        return Some(Code::from_bytes(status.as_bytes()));
    }
    Some(match response.status().as_u16() {
        ..400 => return None,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::NotFound,
        405 | 501 => Code::Unimplemented,
        408 | 504 => Code::DeadlineExceeded,
        409 => Code::Aborted,
        429 => Code::ResourceExhausted,
        499 => Code::Cancelled,
        503 => Code::Unavailable,
        400..=499 => Code::InvalidArgument,
        _ => Code::Internal,
    })
}

/// What is done when an answer has ended or its reader has gone.
struct End {
    call: Call,
    door: Arc<Door>,
    audits: bool,
    address: Option<SocketAddr>,
    origin: Option<Origin>,
    /// Given back with the last frame, so that a client that has read it may call again at once.
    open: Option<OpenRequest>,
}

impl Drop for End {
    fn drop(&mut self) {
        let call = &self.call;
        // What has neither ended nor failed has lost its reader.
        let code = call.code().unwrap_or(Code::Cancelled);
        self.door.metrics.note(call, code);
        if let (Some(traces), Some(origin)) = (&self.door.traces, &self.origin) {
            traces.note(call, origin, code);
        }
        if self.audits {
            tracing::info!(
                target: "audit",
                token = call.identity().map_or("", |identity| identity.name()),
                method = call.method(),
                request_id = call.request_id().unwrap_or_default(),
                prompt_tokens = call.prompt_tokens(),
                generated_tokens = call.generated_tokens(),
                outcome = code_name(code),
                duration_ms = call.begun().elapsed().as_millis() as u64,
                address = self.address.map(tracing::field::display),
                "call"
            );
        }
    }
}

/// The body of an answer, whose end is noted.
struct SeenOff {
    body: Body,
    end: End,
}

impl HttpBody for SeenOff {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        let code = match &polled {
            Poll::Pending => return polled,
            Poll::Ready(None) => Some(Code::Ok),
            Poll::Ready(Some(Err(_))) => Some(Code::Internal),
            Poll::Ready(Some(Ok(frame))) => {
                let status = frame.trailers_ref().and_then(|trailers| trailers.get("grpc-status"));
                let status = status.map(|status| Code::from_bytes(status.as_bytes()));
                // Nobody asks again after the last frame.
                status.or(self.body.is_end_stream().then_some(Code::Ok))
            }
        };
        if let Some(code) = code {
            self.end.call.note_code(code);
            self.end.open = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let ended = self.body.is_end_stream();
        if ended {
            self.end.call.note_code(Code::Ok);
        }
        ended
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of a request, which has to come within a time, so that a slow sender holds nothing.
struct Timed {
    body: Body,
    timeout: Pin<Box<Sleep>>,
}

impl HttpBody for Timed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Pending => {}
            ready => return ready,
        }
        std::task::ready!(self.timeout.as_mut().poll(context));
        let late = Status::deadline_exceeded("the message of the request did not come in time");
        Poll::Ready(Some(Err(axum::Error::new(late))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(content_type: Option<&str>, status: Status) -> Response {
        let mut request = Request::new(Body::empty());
        if let Some(content_type) = content_type {
            request.headers_mut().insert(header::CONTENT_TYPE, content_type.parse().unwrap());
        }
        refuse(&request, status)
    }

    #[test]
    fn a_refusal_speaks_the_protocol_of_its_request() {
        for content_type in ["application/grpc", "application/grpc+proto", "application/grpc-web+proto"] {
            let response = refused(Some(content_type), unauthenticated());
            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(response.headers()["grpc-status"], "16");
            assert_eq!(response.headers()[header::CONTENT_TYPE], content_type);
        }
        let response = refused(Some("application/json"), unauthenticated());
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(response.headers()[header::WWW_AUTHENTICATE], "Bearer");
        let over = OverLimit::Tokens { limit: 5, retry_after: Duration::from_millis(1200) };
        let response = refused(None, over_limit(&over));
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[header::RETRY_AFTER], "2");
    }

    #[test]
    fn the_head_of_an_answer_tells_how_it_failed() {
        let mut response = Response::new(Body::empty());
        assert_eq!(ended(&response), None);
        for (status, code) in [
            (400, Code::InvalidArgument),
            (401, Code::Unauthenticated),
            (404, Code::NotFound),
            (429, Code::ResourceExhausted),
            (500, Code::Internal),
            (503, Code::Unavailable),
        ] {
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            assert_eq!(ended(&response), Some(code), "{status}");
        }
        assert_eq!(ended(&refused(Some("application/grpc"), unauthenticated())), Some(Code::Unauthenticated));
    }

    #[test]
    fn a_token_is_read_whatever_the_case_of_its_scheme() {
        let hash = crate::sha256::sha256_hex(b"secret");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.toml");
        std::fs::write(&path, format!("[tokens.alice]\nsha256 = \"{hash}\"\n")).unwrap();
        let tokens = Some(Tokens::load(&path).unwrap().subscribe());
        let metrics = Arc::default();
        let door = Door { tokens, audits: true, message_timeout: Duration::ZERO, metrics, traces: None };
        let recognised = |value: &str| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
            door.recognise(&headers, None).map(|identity| identity.name().to_owned())
        };
        for value in ["Bearer secret", "bearer secret", "BEARER  secret"] {
            assert_eq!(recognised(value).as_deref(), Some("alice"), "{value}");
        }
        for value in ["secret", "Basic secret", "Bearer", "Bearer ", "Bearer secret2"] {
            assert_eq!(recognised(value), None, "{value}");
        }
        assert!(door.recognise(&HeaderMap::new(), None).is_none());
    }
}
