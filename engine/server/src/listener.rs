//! Where connections come in: TCP, TLS where it is configured, and HTTP over it, all within limits.
//!
//! Every address that the server listens on goes through here. A connection takes one of a bounded number of places, has
//! to say something sensible within the handshake time, and is told to go at its age.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use axum::Router;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
};

use crate::{config::ConnectionLimits, connection, metrics::ConnectionCounts, tls::Tls};

/// How long the listener waits after an error of the system, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often at most it logs that all places are taken or that the system refuses.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);

/// A bound address and what holds for its connections.
pub(crate) struct Listener {
    socket: TcpListener,
    limits: ConnectionLimits,
    tls: Option<Tls>,
    counts: Arc<ConnectionCounts>,
}

/// Who is at the other end of a connection; an extension of each of its requests.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Its address.
    pub(crate) address: SocketAddr,
    /// The SHA-256 of the certificate with which it has proved itself, in hex.
    pub(crate) certificate: Option<Arc<str>>,
}

impl Listener {
    /// Binds an address, within a runtime.
    ///
    /// **Errors**: an address that is taken or not ours.
    pub(crate) fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
        let bound = std::net::TcpListener::bind(address).and_then(|socket| {
            socket.set_nonblocking(true)?;
            TcpListener::from_std(socket)
        });
        bound.with_context(|| format!("cannot listen on {address}"))
    }

    /// Listens without TLS on a bound socket.
    pub(crate) fn new(socket: TcpListener, limits: ConnectionLimits, counts: Arc<ConnectionCounts>) -> Self {
        Self { socket, limits, tls: None, counts }
    }

    /// Speaks TLS, where it is configured.
    pub(crate) fn with_tls(self, tls: Option<Tls>) -> Self {
        Self { tls, ..self }
    }

    /// Answers with `app` until `closing` is ready, then lets the requests that are open end. Dropping the future cuts them.
    pub(crate) async fn serve(self, app: Router, closing: impl Future<Output = ()>) {
        let (close, closed) = watch::channel(false);
        let mut connections = JoinSet::new();
        let places = Arc::new(Semaphore::new(self.limits.connections_max));
        let mut complaints = Complaints::default();
        let mut closing = std::pin::pin!(closing);
        loop {
            let accepted = tokio::select! {
                () = &mut closing => break,
                accepted = self.socket.accept() => accepted,
                // Tasks that have ended are taken out of the set.
                Some(_) = connections.join_next() => continue,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    complaints.log(|| tracing::warn!(%error, "cannot accept a connection"));
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = places.clone().try_acquire_owned() else {
                self.counts.note_refused();
                let limit = self.limits.connections_max;
                complaints.log(|| tracing::warn!(limit, "a connection more than there may be is closed"));
                continue;
            };
            connections.spawn(self.connection(Accepted { stream, address, place }, app.clone(), closed.clone()));
        }
        // The socket is closed first, so that the system refuses new connections instead of queueing them.
        drop(self.socket);
        let _ = close.send(true);
        while connections.join_next().await.is_some() {}
    }

    /// Returns the life of one connection.
    fn connection(
        &self,
        accepted: Accepted,
        app: Router,
        closed: watch::Receiver<bool>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let limits = self.limits.clone();
        let tls = self.tls.clone();
        let open = self.counts.open();
        async move {
            let Accepted { stream, address, place } = accepted;
            let _held = (place, open);
            // An answer's tokens are small and must not wait for more.
            let _ = stream.set_nodelay(true);
            let deadline = tokio::time::Instant::now() + limits.handshake_timeout;
            let Some(tls) = tls else {
                let peer = Peer { address, certificate: None };
                return connection::serve(stream, app, peer, connection::Life { limits, deadline, closed }).await;
            };
            match tokio::time::timeout_at(deadline, tls.accept(stream)).await {
                Ok(Ok((stream, certificate))) => {
                    let peer = Peer { address, certificate };
                    connection::serve(stream, app, peer, connection::Life { limits, deadline, closed }).await;
                }
                Ok(Err(error)) => tracing::debug!(%address, %error, "the TLS handshake failed"),
                Err(_) => tracing::debug!(%address, "the TLS handshake took too long"),
            }
        }
    }
}

/// A connection that has been accepted, and its place.
struct Accepted {
    stream: TcpStream,
    address: SocketAddr,
    place: OwnedSemaphorePermit,
}

/// Keeps a flood from filling the log.
#[derive(Default)]
struct Complaints(Option<Instant>);

impl Complaints {
    fn log(&mut self, log: impl FnOnce()) {
        let now = Instant::now();
        if self.0.is_none_or(|last| now.duration_since(last) >= COMPLAINT_INTERVAL) {
            self.0 = Some(now);
            log();
        }
    }
}
