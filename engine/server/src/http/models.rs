//! `/v1/models`: what is served, and what a playground has to know of it.

use axum::{
    Json,
    extract::{Path, State},
};
use serde_json::{Value, json};

use super::{answer::unix_seconds, refusal::Refusal};
use crate::services::Services;

pub(crate) async fn list(State(services): State<Services>) -> Json<Value> {
    Json(json!({"object": "list", "data": [model(&services)]}))
}

pub(crate) async fn one(State(services): State<Services>, Path(name): Path<String>) -> Result<Json<Value>, Refusal> {
    check_name(&services, Some(&name))?;
    Ok(Json(model(&services)))
}

/// Checks the model that a request names.
///
/// **Errors**: another name than the model has here.
pub(crate) fn check_name(services: &Services, name: Option<&str>) -> Result<(), Refusal> {
    match name {
        Some(name) if !services.is_model(name) => Err(Refusal::unknown_model(name, services.model_name())),
        _ => Ok(()),
    }
}

fn model(services: &Services) -> Value {
    let engine = services.engine();
    let info = engine.model_info();
    let created = unix_seconds().saturating_sub(engine.uptime().as_secs());
    json!({
        "id": services.model_name(),
        "object": "model",
        "created": created,
        "owned_by": "bespoke",
        "bespoke": {
            "digest": info.digest,
            "context_tokens_max": info.context_tokens_max,
            "default_template": info.default_template.as_str(),
            "has_chat_template": info.has_chat_template,
            "persona_ids": engine.persona_ids().map(|id| id.as_str()).collect::<Vec<_>>(),
            "has_system_persona": services.config().system_persona.is_some(),
        },
    })
}
