//! `ModelService`: what is served and how busy it is.

use bespoke_proto::{
    GetServerInfoRequest, GetServerInfoResponse, Limits, Load, ModelInfo, Template, Totals,
    model_service_server::ModelService,
};
use tonic::{Request, Response, Status};

use super::Services;

#[tonic::async_trait]
impl ModelService for Services {
    async fn get_server_info(
        &self,
        _: Request<GetServerInfoRequest>,
    ) -> Result<Response<GetServerInfoResponse>, Status> {
        let info = self.engine.model_info();
        let load = self.engine.load();
        let model = ModelInfo {
            name: info.name.clone(),
            digest: info.digest.clone(),
            architecture: info.architecture.clone(),
            num_parameters: info.num_parameters,
            quantization: info.dtype.clone(),
            context_length: info.context_tokens_max,
            vocab_size: info.vocab_size,
            eos_token_ids: info.end_ids.clone(),
            has_chat_template: info.has_chat_template,
            default_template: Template::from(info.default_template).into(),
        };
        let limits = Limits {
            sequences_max: self.config.sequences_max as u32,
            waiting_max: self.config.queue_max as u32,
            kv_tokens_max: info.kv_tokens_max,
            message_bytes_max: self.config.message_bytes_max as u64,
        };
        let load = Load {
            num_running: load.num_running as u32,
            num_waiting: load.num_waiting as u32,
            num_kv_blocks_used: load.num_blocks_in_use as u32,
            num_kv_blocks: info.num_blocks,
        };
        let totals = self.engine.totals();
        let totals = Totals {
            num_requests: totals.num_requests,
            prompt_tokens: totals.prompt_tokens,
            cached_tokens: totals.cached_tokens,
            generated_tokens: totals.generated_tokens,
            drafted_tokens: totals.drafted_tokens,
            accepted_tokens: totals.accepted_tokens,
            num_preempted: totals.num_preempted,
        };
        Ok(Response::new(GetServerInfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            model: Some(model),
            limits: Some(limits),
            load: Some(load),
            kernels: info.isa.clone(),
            num_threads: info.num_threads,
            persona_ids: self.engine.persona_ids().map(|id| id.as_str().to_owned()).collect(),
            has_system_persona: self.config.system_persona.is_some(),
            uptime_ms: self.engine.uptime().as_millis() as u64,
            totals: Some(totals),
        }))
    }
}
