//! Conversion of the requests that run the model.

use bespoke_domain::{self as domain, Generate, Invalid, Priority, Request, RequestId};

use crate::{
    Continuation, GenerateRequest, GenerateStreamRequest, GenerationParams, PromptSpec, ScoreRequest, TokenIdList,
    continuation,
    field::{on_the_wire, required},
    params,
    prompt::spec,
};

impl TryFrom<GenerateStreamRequest> for Request {
    type Error = Invalid;

    fn try_from(wire: GenerateStreamRequest) -> Result<Self, Invalid> {
        let mut generate = Generate::new(spec(wire.spec)?);
        params::apply(wire.params.unwrap_or_default(), &mut generate)?;
        generate.request_id = request_id(wire.request_id)?;
        generate.priority = Priority::new(wire.priority)?;
        Request::try_from(generate).map_err(on_the_wire)
    }
}

impl TryFrom<GenerateRequest> for Request {
    type Error = Invalid;

    fn try_from(wire: GenerateRequest) -> Result<Self, Invalid> {
        let GenerateRequest { spec, params, request_id, priority } = wire;
        GenerateStreamRequest { spec, params, request_id, priority }.try_into()
    }
}

impl From<&Request> for GenerateStreamRequest {
    fn from(request: &Request) -> Self {
        Self {
            spec: Some(PromptSpec::from(&request.spec)),
            params: Some(GenerationParams::from(&**request)),
            request_id: text(request.request_id.as_ref()),
            priority: request.priority.get(),
        }
    }
}

impl From<&Request> for GenerateRequest {
    fn from(request: &Request) -> Self {
        let GenerateStreamRequest { spec, params, request_id, priority } = request.into();
        Self { spec, params, request_id, priority }
    }
}

impl TryFrom<ScoreRequest> for domain::ScoreRequest {
    type Error = Invalid;

    fn try_from(wire: ScoreRequest) -> Result<Self, Invalid> {
        let continuation = required(wire.continuation, "continuation")?.continuation;
        let request = Self {
            request_id: request_id(wire.request_id)?,
            spec: spec(wire.spec)?,
            continuation: match required(continuation, "continuation.continuation")? {
                continuation::Continuation::Text(text) => domain::Continuation::Text(text),
                continuation::Continuation::TokenIds(list) => domain::Continuation::Tokens(list.ids),
            },
            top: wire.top_logprobs,
            priority: Priority::new(wire.priority)?,
        };
        request.check().map_err(on_the_wire)?;
        Ok(request)
    }
}

impl From<&domain::ScoreRequest> for ScoreRequest {
    fn from(request: &domain::ScoreRequest) -> Self {
        let continuation = match &request.continuation {
            domain::Continuation::Text(text) => continuation::Continuation::Text(text.clone()),
            domain::Continuation::Tokens(ids) => continuation::Continuation::TokenIds(TokenIdList { ids: ids.clone() }),
        };
        Self {
            spec: Some(PromptSpec::from(&request.spec)),
            continuation: Some(Continuation { continuation: Some(continuation) }),
            top_logprobs: request.top,
            request_id: text(request.request_id.as_ref()),
            priority: request.priority.get(),
        }
    }
}

fn request_id(id: String) -> Result<Option<RequestId>, Invalid> {
    if id.is_empty() { Ok(None) } else { RequestId::new(id).map(Some) }
}

fn text(id: Option<&RequestId>) -> String {
    id.map_or_else(String::new, |id| id.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LogprobsParams, StopParams, prompt_spec};

    fn hello() -> Option<PromptSpec> {
        Some(PromptSpec { prompt: Some(prompt_spec::Prompt::Text("hello".to_owned())), ..PromptSpec::default() })
    }

    #[test]
    fn a_prompt_alone_is_a_request_with_all_defaults() {
        let wire = GenerateRequest { spec: hello(), ..GenerateRequest::default() };
        assert_eq!(Request::try_from(wire).unwrap(), Request::try_from(Generate::text("hello")).unwrap());
    }

    #[test]
    fn errors_name_the_wire_field() {
        type Break = fn(&mut GenerateRequest, &mut GenerationParams);
        let bad: [(&str, Break); 8] = [
            ("spec", |request, _| request.spec = None),
            ("request_id", |request, _| request.request_id = "a b".to_owned()),
            ("priority", |request, _| request.priority = i32::MIN),
            ("params.n", |_, params| params.n = Some(0)),
            ("params.max_new_tokens", |_, params| params.max_new_tokens = Some(0)),
            ("params.min_new_tokens", |_, params| params.min_new_tokens = u32::MAX),
            ("params.stop.token_ids", |_, params| {
                params.stop = Some(StopParams { token_ids: vec![0; 65], ..StopParams::default() });
            }),
            ("params.logprobs.top", |_, params| {
                params.logprobs = Some(LogprobsParams { top: 21, ..LogprobsParams::default() });
            }),
        ];
        for (field, break_it) in bad {
            let mut params = GenerationParams::default();
            let mut request = GenerateRequest { spec: hello(), ..GenerateRequest::default() };
            break_it(&mut request, &mut params);
            request.params = Some(params);
            assert_eq!(Request::try_from(request).unwrap_err().field, field);
        }
    }

    #[test]
    fn a_score_needs_a_continuation() {
        let score = |continuation, top_logprobs| {
            let wire = ScoreRequest { spec: hello(), continuation, top_logprobs, ..ScoreRequest::default() };
            domain::ScoreRequest::try_from(wire).unwrap_err().field
        };
        let text =
            |text: &str| Some(Continuation { continuation: Some(continuation::Continuation::Text(text.to_owned())) });
        assert_eq!(score(None, 0), "continuation");
        assert_eq!(score(Some(Continuation::default()), 0), "continuation.continuation");
        assert_eq!(score(text(""), 0), "continuation");
        assert_eq!(score(text("x"), 21), "top_logprobs");
    }
}
