//! One connection: HTTP/2 or HTTP/1.1 on a stream, from its first byte to its last, within limits of time and size.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{Extension, Router};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
    time::{Instant, Sleep},
};

use crate::{config::ConnectionLimits, listener::Peer};

/// The length of HTTP/2's preface; the shortest request of HTTP/1.1 is longer.
const FIRST_BYTES: usize = 24;
/// The age of a connection varies by up to one in this, so that connections made together do not come back together.
const AGE_SPREAD: u32 = 10;

/// How long a connection lives and what it may do.
pub(crate) struct Life {
    /// Its limits.
    pub(crate) limits: ConnectionLimits,
    /// When its first bytes must have come.
    pub(crate) deadline: Instant,
    /// Becomes true when the server closes.
    pub(crate) closed: watch::Receiver<bool>,
}

/// Answers the requests of a connection until it ends, is too old, or the server closes.
pub(crate) async fn serve<S>(stream: S, app: Router, peer: Peer, life: Life)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Life { limits, deadline, mut closed } = life;
    let address = peer.address;
    let stream = TokioIo::new(Guarded { stream, deadline: Box::pin(tokio::time::sleep_until(deadline)), seen: 0 });
    let service = TowerToHyperService::new(app.layer(Extension(peer)));
    let builder = builder(&limits);
    let mut served = std::pin::pin!(builder.serve_connection_with_upgrades(stream, service));
    let ended = tokio::select! {
        ended = served.as_mut() => Some(ended),
        _ = closed.wait_for(|closed| *closed) => None,
        () = age(limits.connection_age) => None,
    };
    let ended = match ended {
        Some(ended) => Some(ended),
        None => {
            served.as_mut().graceful_shutdown();
            tokio::time::timeout(limits.connection_age_grace, served).await.ok()
        }
    };
    match ended {
        Some(Ok(())) => {}
        // Clients go as they like; that is no event of this server.
        Some(Err(error)) => tracing::debug!(%address, %error, "a connection broke"),
        None => tracing::info!(%address, "a connection was cut at the end of its age"),
    }
}

/// Waits until a connection is old, or for ever where age does not matter.
async fn age(age: Option<Duration>) {
    match age {
        Some(age) => tokio::time::sleep(age + age * u32::from(fastrand::u8(..)) / 256 / AGE_SPREAD).await,
        None => std::future::pending().await,
    }
}

fn builder(limits: &ConnectionLimits) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.handshake_timeout)
        .max_buf_size((limits.header_bytes_max as usize).max(HTTP1_BUFFER_MIN));
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(limits.keepalive_interval)
        .keep_alive_timeout(limits.keepalive_timeout)
        .max_header_list_size(limits.header_bytes_max)
        .max_concurrent_streams(limits.streams_max)
        // A client may cancel all that it has at once, but no more: the default of 20 would end its connection.
        .max_pending_accept_reset_streams(Some(limits.streams_max as usize))
        .max_local_error_reset_streams(Some(limits.streams_max as usize));
    builder
}

/// The least that hyper takes as the size of its buffer.
const HTTP1_BUFFER_MIN: usize = 8192;

/// A stream that has to bring its first bytes before a deadline. After them HTTP's own timeouts hold.
struct Guarded<S> {
    stream: S,
    deadline: Pin<Box<Sleep>>,
    seen: usize,
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.seen = self.seen.saturating_add(buffer.filled().len() - before);
        if read.is_pending() && self.seen < FIRST_BYTES && self.deadline.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn first_bytes_that_do_not_come_are_not_waited_for() {
        let (mut client, server) = tokio::io::duplex(64);
        let deadline = Box::pin(tokio::time::sleep(Duration::from_millis(20)));
        let mut guarded = Guarded { stream: server, deadline, seen: 0 };
        tokio::io::AsyncWriteExt::write_all(&mut client, b"PRI * HT").await.unwrap();
        let error = guarded.read_exact(&mut [0; FIRST_BYTES]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_connection_that_has_begun_may_be_silent() {
        let (mut client, server) = tokio::io::duplex(64);
        let deadline = Box::pin(tokio::time::sleep(Duration::ZERO));
        let mut guarded = Guarded { stream: server, deadline, seen: 0 };
        tokio::io::AsyncWriteExt::write_all(&mut client, &[7; FIRST_BYTES]).await.unwrap();
        guarded.read_exact(&mut [0; FIRST_BYTES]).await.unwrap();
        let silent = tokio::time::timeout(Duration::from_millis(50), guarded.read_u8()).await;
        assert!(silent.is_err());
    }
}
