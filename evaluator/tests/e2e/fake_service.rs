//! A server that speaks JSON over HTTP/1.1 as external services do, with the faults that a test asks for.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};

/// What the server sends back.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: String,
    /// Waits before the body.
    pub(crate) delay: Duration,
    /// Sends only this many bytes of the body, then breaks the line.
    pub(crate) cut: Option<usize>,
}

impl Reply {
    pub(crate) fn json(body: &Value) -> Self {
        Self::status(200, body)
    }

    pub(crate) fn status(status: u16, body: &Value) -> Self {
        Self { status, headers: Vec::new(), body: body.to_string(), delay: Duration::ZERO, cut: None }
    }
}

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) path: String,
    pub(crate) headers: Vec<String>,
    pub(crate) bytes: Vec<u8>,
    /// The body where it is JSON.
    pub(crate) body: Value,
}

impl Received {
    /// The text of the only message.
    pub(crate) fn prompt(&self) -> &str {
        self.body["messages"][0]["content"].as_str().unwrap()
    }
}

/// A running server.
pub(crate) struct FakeService {
    pub(crate) url: String,
    log: Arc<Mutex<Vec<Received>>>,
}

impl FakeService {
    /// Starts a server; `reply` gets each request with its number from 0, in order of arrival.
    pub(crate) fn start(reply: impl Fn(usize, &Received) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_of(|_| Box::new(reply))
    }

    /// As [`FakeService::start`], for replies that name the server's own address.
    pub(crate) fn start_of(reply: impl FnOnce(String) -> Box<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let log: Arc<Mutex<Vec<Received>>> = Arc::default();
        let (reply, kept) = (Arc::new(reply(url.clone())), log.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (reply, log) = (reply.clone(), kept.clone());
                std::thread::spawn(move || serve(stream.unwrap(), &**reply, &log));
            }
        });
        Self { url, log }
    }

    pub(crate) fn log(&self) -> Vec<Received> {
        self.log.lock().unwrap().clone()
    }
}

/// What gives the reply to a request.
type Answer = dyn Fn(usize, &Received) -> Reply + Send + Sync;

/// Answers the requests of one connection. A client that goes away ends it.
fn serve(stream: TcpStream, reply: &Answer, log: &Mutex<Vec<Received>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    while let Some(received) = read(&mut reader) {
        let number = {
            let mut log = log.lock().unwrap();
            log.push(received.clone());
            log.len() - 1
        };
        let Reply { status, headers, body, delay, cut } = reply(number, &received);
        let mut head =
            format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n", body.len());
        headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        if stream.write_all(format!("{head}\r\n").as_bytes()).is_err() {
            return;
        }
        std::thread::sleep(delay);
        let bytes = &body.as_bytes()[..cut.unwrap_or(body.len())];
        if stream.write_all(bytes).is_err() || cut.is_some() {
            return;
        }
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Received> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let (mut headers, mut num_bytes) = (Vec::new(), 0);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let header = header.trim().to_owned();
        if header.is_empty() {
            break;
        }
        if let Some(length) = header.to_lowercase().strip_prefix("content-length:") {
            num_bytes = length.trim().parse().ok()?;
        }
        headers.push(header);
    }
    let mut body = vec![0; num_bytes];
    reader.read_exact(&mut body).ok()?;
    let json = serde_json::from_slice(&body).unwrap_or_default();
    Some(Received { path, headers, bytes: body, body: json })
}

/// An answer in the form of OpenAI's chat completions.
pub(crate) fn openai(text: &str) -> Value {
    json!({"id": "c", "object": "chat.completion", "choices": [{"index": 0, "finish_reason": "stop",
        "message": {"role": "assistant", "content": text}}], "usage": {"prompt_tokens": 100, "completion_tokens": 10}})
}
