//! One call: its deadline, told to the server and kept here too.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tonic::{Code, Status, metadata::AsciiMetadataValue};

use crate::ClientError;

/// How long after the deadline the client still waits for the server's own answer, which says more than that time is up.
const GRACE: Duration = Duration::from_secs(1);
/// The longest deadline; beyond a year there is none, and `grpc-timeout` has no more digits some thousand years later.
const DEADLINE_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A call that has started.
pub(crate) struct Call {
    deadline: Option<Duration>,
    authorization: Option<AsciiMetadataValue>,
    start: Instant,
}

impl Call {
    pub(crate) fn start(deadline: Option<Duration>, authorization: Option<AsciiMetadataValue>) -> Self {
        let deadline = deadline.filter(|deadline| *deadline <= DEADLINE_MAX);
        Self { deadline, authorization, start: Instant::now() }
    }

    /// Wraps a message for the way, with the deadline as `grpc-timeout` and the token as `authorization`.
    pub(crate) fn request<W>(&self, message: W) -> tonic::Request<W> {
        let mut request = tonic::Request::new(message);
        if let Some(deadline) = self.deadline {
            request.set_timeout(deadline);
        }
        if let Some(authorization) = &self.authorization {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        request
    }

    /// Waits for what the server sends, until a little after the deadline.
    pub(crate) async fn wait<W>(&self, sent: impl Future<Output = Result<W, Status>>) -> Result<W, ClientError> {
        let received = match self.deadline {
            None => sent.await,
            Some(deadline) => timeout_at(self.start + deadline + GRACE, sent)
                .await
                .unwrap_or_else(|_| Err(Status::deadline_exceeded("the server did not answer in time"))),
        };
        received.map_err(|status| self.failure(status))
    }

    /// Names the failure. The layer of tonic that reads `grpc-timeout`, in client and server, says `CANCELLED` where the
    /// deadline passed; what was not cancelled before its deadline is `DEADLINE_EXCEEDED`.
    fn failure(&self, status: Status) -> ClientError {
        let late = self.deadline.is_some_and(|deadline| self.start.elapsed() >= deadline);
        if late && status.code() == Code::Cancelled {
            Status::deadline_exceeded("the deadline passed").into()
        } else {
            status.into()
        }
    }
}
