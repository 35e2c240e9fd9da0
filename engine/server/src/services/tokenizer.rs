//! `TokenizerService`: text to tokens and back, and prompts as the model sees them.

use bespoke_engine::EngineError;
use bespoke_proto::{
    DetokenizeRequest, DetokenizeResponse, RenderPromptRequest, RenderPromptResponse, RenderedPrompt, TokenizeRequest,
    TokenizeResponse, invalid_status, tokenizer_service_server::TokenizerService,
};
use tonic::{Request, Response, Status};

use super::{Services, read_deadline};

#[tonic::async_trait]
impl TokenizerService for Services {
    async fn tokenize(&self, request: Request<TokenizeRequest>) -> Result<Response<TokenizeResponse>, Status> {
        let deadline = read_deadline(request.metadata())?;
        let TokenizeRequest { text, add_special, parse_control } = request.into_inner();
        let response = self.blocking(deadline, move |engine| {
            let token_ids = engine.tokenizer().encode_text(&text, add_special, parse_control)?;
            let piece = |&id: &u32| engine.tokenizer().token_bytes(id).unwrap_or_default().to_owned();
            Ok(TokenizeResponse { pieces: token_ids.iter().map(piece).collect(), token_ids })
        });
        response.await.map(Response::new)
    }

    async fn detokenize(&self, request: Request<DetokenizeRequest>) -> Result<Response<DetokenizeResponse>, Status> {
        let deadline = read_deadline(request.metadata())?;
        let request = request.into_inner();
        let response = self.blocking(deadline, move |engine| {
            engine.check_ids("token_ids", &request.token_ids)?;
            let text = engine.tokenizer().decode(&request.token_ids, request.skips_control())?;
            Ok(DetokenizeResponse { text })
        });
        response.await.map(Response::new)
    }

    async fn render_prompt(
        &self,
        request: Request<RenderPromptRequest>,
    ) -> Result<Response<RenderPromptResponse>, Status> {
        let deadline = read_deadline(request.metadata())?;
        let (spec, response) = request.into_inner().into_parts().map_err(|invalid| invalid_status(&invalid))?;
        let rendered = self.blocking(deadline, move |engine| -> Result<_, EngineError> {
            let prompt = engine.render(&spec, response.as_deref())?;
            Ok(RenderedPrompt {
                spans: prompt.rendered.spans,
                tokens: prompt.token_ids.into_iter().zip(prompt.trained).collect(),
                template: prompt.template,
                persona: prompt.persona,
                template_hash: prompt.template_hash,
            })
        });
        Ok(Response::new(rendered.await?.into()))
    }
}
