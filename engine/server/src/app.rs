//! What is answered on the gRPC address: the services behind the door.

use axum::Router;
use bespoke_proto::{
    FILE_DESCRIPTOR_SET, embedding_service_server::EmbeddingServiceServer,
    generation_service_server::GenerationServiceServer,
    inference::grpc_inference_service_server::GrpcInferenceServiceServer, model_service_server::ModelServiceServer,
    tokenizer_service_server::TokenizerServiceServer,
};
use tonic::service::Routes;
use tonic_health::{
    ServingStatus,
    pb::health_server::{Health, HealthServer},
    server::HealthReporter,
};

use crate::services::Services;

/// The services that have a health status of their own beside that of the whole server, which is "".
const SERVICES: [&str; 6] = [
    "",
    "bespoke.v1.GenerationService",
    "bespoke.v1.TokenizerService",
    "bespoke.v1.ModelService",
    "inference.GRPCInferenceService",
    "bespoke.v1.EmbeddingService",
];

/// Returns the gRPC services, health and reflection.
///
/// **Errors**: descriptors that cannot be read.
pub(crate) fn grpc<H: Health>(services: Services, health: HealthServer<H>) -> anyhow::Result<Router> {
    let bytes_max = services.config().message_bytes_max;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let routes = own_services(&services)
        .add_service(GrpcInferenceServiceServer::new(services).max_decoding_message_size(bytes_max))
        .add_service(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?);
    Ok(routes.into_axum_router())
}

/// Returns the services of `bespoke.v1`.
pub(crate) fn own_services(services: &Services) -> Routes {
    let bytes_max = services.config().message_bytes_max;
    Routes::default()
        .add_service(GenerationServiceServer::new(services.clone()).max_decoding_message_size(bytes_max))
        .add_service(TokenizerServiceServer::new(services.clone()).max_decoding_message_size(bytes_max))
        .add_service(EmbeddingServiceServer::new(services.clone()).max_decoding_message_size(bytes_max))
        .add_service(ModelServiceServer::new(services.clone()))
}

/// Sets the health of every service; without an encoder, the last one has none.
pub(crate) async fn set_health(health: &HealthReporter, status: ServingStatus, with_encoder: bool) {
    let num_services = SERVICES.len() - usize::from(!with_encoder);
    for service in &SERVICES[..num_services] {
        health.set_service_status(service, status).await;
    }
}

/// Ends the streams of those who watch the health.
pub(crate) async fn end_health(health: &HealthReporter) {
    for service in SERVICES {
        health.clone().clear_service_status(service).await;
    }
}
