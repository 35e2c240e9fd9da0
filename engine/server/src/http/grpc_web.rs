//! gRPC-Web, which browsers speak, and the origins whose pages may call.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    http::{HeaderName, HeaderValue, Method, header},
};
use bespoke_proto::{
    embedding_service_server::EmbeddingServiceServer, generation_service_server::GenerationServiceServer,
    model_service_server::ModelServiceServer, tokenizer_service_server::TokenizerServiceServer,
};
use tonic::{server::NamedService, service::Routes};
use tonic_web::GrpcWebLayer;
use tower_http::cors::{AllowOrigin, CorsLayer, ExposeHeaders};
use tower_layer::Layer;

use crate::{app::own_services, door::Door, services::Services};

/// How long a browser may remember what it is allowed.
const PREFLIGHT_AGE: Duration = Duration::from_secs(3600);
/// Headers of answers that pages of another origin may read: what gRPC-Web ends with, and when to try again.
const EXPOSED: [HeaderName; 4] = [
    HeaderName::from_static("grpc-status"),
    HeaderName::from_static("grpc-message"),
    HeaderName::from_static("grpc-status-details-bin"),
    header::RETRY_AFTER,
];

/// Adds the services of `bespoke.v1`. The door stands behind the translation, so that a refusal is translated too.
pub(crate) fn add(router: Router, services: &Services, door: &Arc<Door>) -> Router {
    let routes = door.clone().guard(own_services(services).into_axum_router());
    let web = GrpcWebLayer::new().layer(Routes::from(routes));
    [
        EmbeddingServiceServer::<Services>::NAME,
        GenerationServiceServer::<Services>::NAME,
        TokenizerServiceServer::<Services>::NAME,
        ModelServiceServer::<Services>::NAME,
    ]
    .into_iter()
    .fold(router, |router, name| router.route_service(&format!("/{name}/{{*method}}"), web.clone()))
}

/// Lets pages of other origins call; `*` stands for any.
pub(crate) fn allow_origins(router: Router, origins: &[HeaderValue]) -> Router {
    if origins.is_empty() {
        return router;
    }
    let origins = match origins.iter().any(|origin| origin == "*") {
        true => AllowOrigin::any(),
        false => AllowOrigin::list(origins.iter().cloned()),
    };
    // A preflight names the headers that it wants; credentials are in none of them, for cookies are not allowed.
    let cors = CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(tower_http::cors::AllowHeaders::mirror_request())
        .expose_headers(ExposeHeaders::list(EXPOSED))
        .max_age(PREFLIGHT_AGE);
    router.layer(cors)
}
