//! Error details: what a status of the server says beside its code, written and read.

use std::time::Duration;

use bespoke_domain::Invalid;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// Returns `INVALID_ARGUMENT` with a `google.rpc.BadRequest` that names the field.
pub fn invalid_status(invalid: &Invalid) -> Status {
    let details = ErrorDetails::with_bad_request_violation(&invalid.field, &invalid.reason);
    Status::with_error_details(Code::InvalidArgument, invalid.to_string(), details)
}

/// Reads the fields that a status says are wrong; empty where it names none.
pub fn field_violations(status: &Status) -> Vec<Invalid> {
    let violations = status.get_details_bad_request().map(|bad| bad.field_violations).unwrap_or_default();
    violations.into_iter().map(|violation| Invalid::new(violation.field, violation.description)).collect()
}

/// Reads after what time a status says to try again.
pub fn retry_after(status: &Status) -> Option<Duration> {
    status.get_details_retry_info().and_then(|info| info.retry_delay)
}

/// Something that a request names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// What it is, such as `persona`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// Reads which resource a status is about.
pub fn resource(status: &Status) -> Option<Resource> {
    status.get_details_resource_info().map(|info| Resource { kind: info.resource_type, name: info.resource_name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_violation_is_read_as_it_was_written() {
        let invalid = Invalid::new("params.sampling.top_p", "is 1.5, must be above 0 and at most 1");
        let status = invalid_status(&invalid);
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains("params.sampling.top_p"));
        assert_eq!(field_violations(&status), [invalid]);
        assert_eq!((retry_after(&status), resource(&status)), (None, None));
    }

    #[test]
    fn other_details_are_read() {
        let mut details = ErrorDetails::with_retry_info(Some(Duration::from_millis(1500)));
        details.set_resource_info("persona", "cook", "", "");
        let status = Status::with_error_details(Code::ResourceExhausted, "queue full", details);
        assert_eq!(retry_after(&status), Some(Duration::from_millis(1500)));
        assert_eq!(resource(&status), Some(Resource { kind: "persona".to_owned(), name: "cook".to_owned() }));
        assert!(field_violations(&status).is_empty());
    }

    #[test]
    fn details_that_are_no_details_are_none() {
        let status = Status::with_details(Code::Internal, "", (&b"\xff\xff\xff"[..]).into());
        assert!(field_violations(&status).is_empty() && retry_after(&status).is_none() && resource(&status).is_none());
    }
}
