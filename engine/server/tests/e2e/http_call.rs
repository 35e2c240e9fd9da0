//! HTTP as the tests speak it: one request on a connection of its own.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, Response, body::Incoming, header::HeaderMap};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::TcpStream, task::JoinHandle};

/// A response whose body has not been read. Its connection closes when it is dropped.
pub(crate) struct Open {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    body: Incoming,
    _connection: Connection,
}

/// A connection, which closes when it is dropped, also while its response is waited for.
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Open {
    /// Waits for the next piece of the body; `None` at its end.
    pub(crate) async fn piece(&mut self) -> Option<Bytes> {
        loop {
            let frame = self.body.frame().await?.unwrap();
            if let Ok(data) = frame.into_data() {
                return Some(data);
            }
        }
    }

    /// Reads the rest of the body.
    pub(crate) async fn rest(mut self) -> Vec<u8> {
        let mut whole = Vec::new();
        while let Some(piece) = self.piece().await {
            whole.extend_from_slice(&piece);
        }
        whole
    }

    /// Reads the rest of the body as JSON.
    pub(crate) async fn json(self) -> Value {
        serde_json::from_slice(&self.rest().await).unwrap()
    }

    /// Reads the rest of the body as the data of server-sent events.
    pub(crate) async fn events(self) -> Vec<String> {
        let text = String::from_utf8(self.rest().await).unwrap();
        let data = text.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
        data.map(str::to_owned).collect()
    }
}

/// Sends a request with headers.
pub(crate) async fn send(authority: &str, request: Request<Vec<u8>>) -> Open {
    let stream = TcpStream::connect(authority).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = Connection(tokio::spawn(async move { drop(connection.await) }));
    let mut request = request.map(|body| Full::new(Bytes::from(body)));
    request.headers_mut().insert("host", authority.parse().unwrap());
    let response: Response<Incoming> = sender.send_request(request).await.unwrap();
    let (parts, body) = response.into_parts();
    Open { status: parts.status.as_u16(), headers: parts.headers, body, _connection: connection }
}

/// Sends JSON.
pub(crate) async fn post(authority: &str, path: &str, body: &Value) -> Open {
    let request = Request::builder().method(Method::POST).uri(path).header("content-type", "application/json");
    send(authority, request.body(body.to_string().into_bytes()).unwrap()).await
}

/// Asks for a path.
pub(crate) async fn get(authority: &str, path: &str) -> Open {
    send(authority, Request::builder().uri(path).body(Vec::new()).unwrap()).await
}
