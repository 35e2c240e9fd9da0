//! A server on the loopback that answers as the hub does: listings, files with ranges, redirects; and fails on demand.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use super::sha256;

/// The commit that `main` of the fake repository is.
pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server has and how it behaves.
#[derive(Default)]
pub(super) struct Behaviour {
    pub(super) files: Vec<(String, Vec<u8>)>,
    /// The connection breaks after so many body bytes, for the first answers that carry a file.
    pub(super) cuts: VecDeque<usize>,
    /// Files are announced with the checksum of other bytes.
    pub(super) lies: bool,
    pub(super) ignores_ranges: bool,
    pub(super) redirects: bool,
    pub(super) token: Option<String>,
    /// Every request line, with `Range` where there is one.
    pub(super) log: Vec<String>,
}

pub(super) struct FakeHub {
    pub(super) endpoint: String,
    pub(super) behaviour: Arc<Mutex<Behaviour>>,
}

impl FakeHub {
    pub(super) fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let behaviour = Arc::new(Mutex::new(behaviour));
        let shared = Arc::clone(&behaviour);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that went away is the test's doing.
                let _ = answer(stream, &shared);
            }
        });
        Self { endpoint, behaviour }
    }

    pub(super) fn log(&self) -> Vec<String> {
        self.behaviour.lock().unwrap().log.clone()
    }
}

fn answer(mut stream: TcpStream, behaviour: &Mutex<Behaviour>) -> std::io::Result<()> {
    let reader = BufReader::new(stream.try_clone()?);
    let (mut target, mut range, mut token) = (String::new(), None, None);
    for line in reader.lines() {
        let line = line?;
        if let Some(rest) = line.strip_prefix("GET ") {
            target = rest.trim_end_matches(" HTTP/1.1").to_owned();
        } else if let Some((name, value)) = line.split_once(": ") {
            match name.to_ascii_lowercase().as_str() {
                "range" => range = value.strip_prefix("bytes=").map(|r| r.trim_end_matches('-').parse().unwrap()),
                "authorization" => token = value.strip_prefix("Bearer ").map(str::to_owned),
                _ => {}
            }
        } else if line.is_empty() {
            break;
        }
    }
    let mut behaviour = behaviour.lock().unwrap();
    let seen = range.map_or(target.clone(), |start: usize| format!("{target} from {start}"));
    behaviour.log.push(seen);
    if behaviour.token != token {
        return send(&mut stream, "401 Unauthorized", "", b"", None);
    }
    if target.starts_with("/api/models/org/name/revision/main?") {
        let body = listing(&behaviour);
        return send(&mut stream, "200 OK", "", body.as_bytes(), None);
    }
    let path = match target.strip_prefix(&format!("/org/name/resolve/{COMMIT}/")) {
        Some(path) if behaviour.redirects => {
            let location = format!("Location: /cdn/{path}\r\n");
            return send(&mut stream, "302 Found", &location, b"", None);
        }
        path => path.or(target.strip_prefix("/cdn/")).unwrap_or_default().to_owned(),
    };
    let Some((_, bytes)) = behaviour.files.iter().find(|(name, _)| *name == path).cloned() else {
        return send(&mut stream, "404 Not Found", "", b"", None);
    };
    let cut = behaviour.cuts.pop_front();
    match range.filter(|_| !behaviour.ignores_ranges) {
        Some(start) if start >= bytes.len() => send(&mut stream, "416 Range Not Satisfiable", "", b"", None),
        Some(start) => {
            let header = format!("Content-Range: bytes {start}-{}/{}\r\n", bytes.len() - 1, bytes.len());
            send(&mut stream, "206 Partial Content", &header, &bytes[start..], cut)
        }
        None => send(&mut stream, "200 OK", "", &bytes, cut),
    }
}

/// Writes an answer, or only its first `cut` body bytes.
fn send(stream: &mut TcpStream, status: &str, headers: &str, body: &[u8], cut: Option<usize>) -> std::io::Result<()> {
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n", body.len());
    stream.write_all(head.as_bytes())?;
    stream.write_all(&body[..cut.unwrap_or(body.len()).min(body.len())])
}

fn listing(behaviour: &Behaviour) -> String {
    let sibling = |(name, bytes): &(String, Vec<u8>)| {
        let sha256 = if behaviour.lies { sha256(b"other bytes") } else { sha256(bytes) };
        let is_large = name.ends_with(".gguf") || name.ends_with(".safetensors");
        let lfs = if is_large { serde_json::json!({ "sha256": sha256 }) } else { serde_json::Value::Null };
        serde_json::json!({ "rfilename": name, "size": bytes.len(), "lfs": lfs })
    };
    let siblings: Vec<_> = behaviour.files.iter().map(sibling).collect();
    serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string()
}
