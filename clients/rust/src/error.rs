//! The errors of the client.

use std::time::Duration;

use bespoke_domain::Invalid;
use bespoke_proto::{Resource, field_violations, resource, retry_after};
use tonic::{Code, Status};

/// A call that failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is wrong, or nothing answers there.
    #[error("cannot connect")]
    Connect(#[from] tonic::transport::Error),
    /// The server refused the call or ended it, or it was lost on the way.
    #[error("{message} ({code:?})")]
    Status {
        /// What kind of failure it is.
        code: Code,
        /// What the server says about it.
        message: String,
        /// The fields of the request that are wrong.
        violations: Vec<Invalid>,
        /// After what time trying again makes sense.
        retry_after: Option<Duration>,
        /// What the request names and the server does not have.
        resource: Option<Resource>,
    },
    /// The token cannot be sent.
    #[error("the token has other than printable ASCII characters")]
    Token,
    /// The server sent what this client does not understand.
    #[error("the response is wrong: {0}")]
    Response(Invalid),
    /// The stream ended before its last event.
    #[error("the stream ended before `finished`")]
    EndedEarly,
}

impl ClientError {
    /// Returns the code of the status, where the failure has one.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Status { code, .. } => Some(*code),
            Self::Connect(_) | Self::Token | Self::Response(_) | Self::EndedEarly => None,
        }
    }

    /// Returns after what time trying again makes sense, where the server says so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            Self::Connect(_) | Self::Token | Self::Response(_) | Self::EndedEarly => None,
        }
    }
}

impl From<Status> for ClientError {
    fn from(status: Status) -> Self {
        Self::Status {
            code: status.code(),
            message: status.message().to_owned(),
            violations: field_violations(&status),
            retry_after: retry_after(&status),
            resource: resource(&status),
        }
    }
}

#[cfg(test)]
mod tests {
    use bespoke_proto::invalid_status;
    use tonic_types::{ErrorDetails, StatusExt};

    use super::*;

    #[test]
    fn a_status_keeps_its_details() {
        let invalid = Invalid::new("params.n", "is 0, must be 1..=16");
        let ClientError::Status { code, violations, retry_after, resource, .. } = invalid_status(&invalid).into()
        else {
            panic!("a status");
        };
        assert_eq!((code, violations, retry_after, resource), (Code::InvalidArgument, vec![invalid], None, None));

        let details = ErrorDetails::with_resource_info("persona", "cook", "", "");
        let ClientError::Status { resource, .. } = Status::with_error_details(Code::NotFound, "", details).into()
        else {
            panic!("a status");
        };
        assert_eq!(resource, Some(Resource { kind: "persona".to_owned(), name: "cook".to_owned() }));
    }

    #[test]
    fn what_the_caller_acts_on_is_at_hand() {
        let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(2)));
        let error =
            ClientError::from(Status::with_error_details(Code::ResourceExhausted, "the queue is full", details));
        assert_eq!((error.code(), error.retry_after()), (Some(Code::ResourceExhausted), Some(Duration::from_secs(2))));
        assert_eq!(error.to_string(), "the queue is full (ResourceExhausted)");
        assert_eq!((ClientError::EndedEarly.code(), ClientError::EndedEarly.retry_after()), (None, None));
    }
}
