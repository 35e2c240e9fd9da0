//! Errors of the engine as gRPC statuses with `google.rpc` details.

use std::{collections::HashMap, time::Duration};

use bespoke_domain::{Invalid, RenderError};
use bespoke_engine::EngineError;
use bespoke_proto::invalid_status;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::tokens::OverLimit;

/// The domain of `ErrorInfo`.
const DOMAIN: &str = "bespoke";
/// When a client of a draining server may find another one in its place.
pub(crate) const DRAINING_RETRY: Duration = Duration::from_secs(1);

/// Returns the status that tells a client what to do differently.
pub(crate) fn status(error: &EngineError) -> Status {
    match error {
        EngineError::Invalid(invalid) | EngineError::Render(RenderError::Invalid(invalid)) => {
            invalid_status(&bespoke_proto::on_the_wire(invalid.clone()))
        }
        EngineError::Render(RenderError::NoChatTemplate) => violation("spec.template", error),
        EngineError::Render(RenderError::ChatTemplate(_)) => violation("spec.messages", error),
        EngineError::ContextTooLong { .. } => violation("spec.prompt", error),
        EngineError::NoSystemPersona => unknown_persona("system", error),
        EngineError::UnknownPersona(id) => unknown_persona(id.as_str(), error),
        EngineError::QueueFull { retry_after, .. } => {
            with_retry(Code::ResourceExhausted, "QUEUE_FULL", error, *retry_after)
        }
        EngineError::Stalled(_) => Status::with_error_details(Code::Aborted, error.to_string(), info("STALLED")),
        EngineError::Stopping => with_retry(Code::Unavailable, "STOPPING", error, DRAINING_RETRY),
        EngineError::DeadlineExceeded(stage) => {
            let stage = HashMap::from([("stage".to_owned(), stage.to_string())]);
            let details = ErrorDetails::with_error_info("DEADLINE_EXCEEDED", DOMAIN, stage);
            Status::with_error_details(Code::DeadlineExceeded, error.to_string(), details)
        }
        EngineError::Model(_) => violation("spec.prompt", error),
        EngineError::Option { .. } | EngineError::Internal(_) => {
            Status::with_error_details(Code::Internal, error.to_string(), info("INTERNAL"))
        }
    }
}

/// Returns the status of a caller whose token is missing or unknown; which of both is his to know.
pub(crate) fn unauthenticated() -> Status {
    let text = "a bearer token that the server knows is needed";
    Status::with_error_details(Code::Unauthenticated, text, info("UNAUTHENTICATED"))
}

/// Returns the status of a caller who has to wait.
pub(crate) fn over_limit(over: &OverLimit) -> Status {
    let mut details = info("TOKEN_OVER_LIMIT");
    details.set_retry_info(Some(over.retry_after()));
    Status::with_error_details(Code::ResourceExhausted, over.to_string(), details)
}

fn unknown_persona(name: &str, error: &EngineError) -> Status {
    let mut details = info("UNKNOWN_PERSONA");
    details.set_resource_info("persona", name, "", "not configured");
    Status::with_error_details(Code::NotFound, error.to_string(), details)
}

fn violation(field: &str, error: &EngineError) -> Status {
    invalid_status(&Invalid::new(field, error.to_string()))
}

fn with_retry(code: Code, reason: &str, error: &EngineError, retry_after: Duration) -> Status {
    let mut details = info(reason);
    details.set_retry_info(Some(retry_after));
    Status::with_error_details(code, error.to_string(), details)
}

fn info(reason: &str) -> ErrorDetails {
    ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new())
}

#[cfg(test)]
mod tests {
    use bespoke_domain::PersonaId;
    use bespoke_engine::Stage;

    use super::*;

    #[test]
    fn each_error_has_its_code_and_details() {
        let full = status(&EngineError::QueueFull { limit: 1, retry_after: Duration::from_secs(2) });
        assert_eq!(full.code(), Code::ResourceExhausted);
        assert_eq!(bespoke_proto::retry_after(&full), Some(Duration::from_secs(2)));
        let stopping = status(&EngineError::Stopping);
        assert_eq!(stopping.code(), Code::Unavailable);
        assert!(bespoke_proto::retry_after(&stopping).is_some());
        let late = status(&EngineError::DeadlineExceeded(Stage::Prefill));
        assert_eq!(late.code(), Code::DeadlineExceeded);
        assert_eq!(late.get_details_error_info().unwrap().metadata["stage"], "prefill");
        let unknown = status(&EngineError::UnknownPersona(PersonaId::new("x").unwrap()));
        assert_eq!(unknown.code(), Code::NotFound);
        assert_eq!(bespoke_proto::resource(&unknown).unwrap().name, "x");
        let long = status(&EngineError::ContextTooLong { prompt_tokens: 9, limit: 8 });
        assert_eq!(long.code(), Code::InvalidArgument);
        assert_eq!(bespoke_proto::field_violations(&long)[0].field, "spec.prompt");
        assert_eq!(status(&EngineError::Internal("x".into())).code(), Code::Internal);
        assert_eq!(status(&EngineError::NoSystemPersona).code(), Code::NotFound);
        assert_eq!(status(&EngineError::Stalled(Duration::ZERO)).code(), Code::Aborted);
    }
}
