//! Events as responses of the protocol.

use bespoke_domain::{Choice, Event, FinishReason, Finished, Usage};
use bespoke_proto::{
    Generated,
    inference::{ModelInferResponse, ModelStreamInferResponse, infer_parameter::ParameterChoice},
};
use tonic::Status;

use super::{
    request::{Asked, Parameters, parameter},
    tensor::output,
};

/// One response of a stream, or what ends it.
pub(super) type StreamItem = Result<ModelStreamInferResponse, Status>;

/// The responses to one request.
pub(super) struct Responses {
    model_name: String,
    model_version: &'static str,
    id: String,
    is_raw: bool,
    has_choices: bool,
    empty_final_response: bool,
}

impl Responses {
    pub(super) fn new(asked: &Asked, model_name: &str, model_version: &'static str) -> Self {
        Self {
            model_name: model_name.to_owned(),
            model_version,
            id: asked.id.clone(),
            is_raw: asked.is_raw,
            has_choices: asked.request.n > 1,
            empty_final_response: asked.empty_final_response,
        }
    }

    /// Returns a whole answer.
    pub(super) fn whole(&self, generated: &Generated) -> ModelInferResponse {
        let texts: Vec<_> = generated.choices.iter().map(|choice| choice.text.as_str()).collect();
        let ends = generated.choices.iter().map(|choice| &choice.end);
        self.response(&texts, ends_of(ends, &generated.usage))
    }

    /// Returns a whole answer as the responses of a stream: a final one, which has the text.
    pub(super) fn whole_in_stream(&self, generated: &Generated) -> Option<ModelStreamInferResponse> {
        let mut response = self.whole(generated);
        response.parameters.insert(FINAL.to_owned(), parameter(ParameterChoice::BoolParam(true)));
        Some(in_stream(response))
    }

    /// Returns the responses of one event.
    pub(super) fn of(&mut self, event: Result<Event, Status>) -> Option<ModelStreamInferResponse> {
        match event {
            Err(error) => Some(failed(&self.id, &error)),
            Ok(Event::Started(_)) => None,
            // Held-back text comes with a later delta.
            Ok(Event::Delta(delta)) if delta.text.is_empty() => None,
            Ok(Event::Delta(delta)) => {
                let mut parameters = final_of(false);
                if self.has_choices {
                    parameters.insert("choice".to_owned(), parameter(ParameterChoice::Int64Param(delta.choice.into())));
                }
                Some(in_stream(self.response(&[&delta.text], parameters)))
            }
            Ok(Event::Finished(finished)) => self.empty_final_response.then(|| self.finished(&finished)),
        }
    }

    /// Triton sends this only to those who ask for it: other clients know the end of an answer by other means.
    fn finished(&self, finished: &Finished) -> ModelStreamInferResponse {
        let mut parameters = final_of(true);
        parameters.extend(ends_of(finished.choices.iter(), &finished.usage));
        in_stream(ModelInferResponse { outputs: Vec::new(), ..self.response(&[], parameters) })
    }

    fn response(&self, texts: &[&str], parameters: Parameters) -> ModelInferResponse {
        let (outputs, raw_output_contents) = match texts {
            [] => (Vec::new(), Vec::new()),
            texts => {
                let (output, raw) = output(texts, self.is_raw);
                (vec![output], raw)
            }
        };
        ModelInferResponse {
            model_name: self.model_name.clone(),
            model_version: self.model_version.to_owned(),
            id: self.id.clone(),
            parameters,
            outputs,
            raw_output_contents,
        }
    }
}

const FINAL: &str = "triton_final_response";

fn final_of(is_final: bool) -> Parameters {
    Parameters::from([(FINAL.to_owned(), parameter(ParameterChoice::BoolParam(is_final)))])
}

fn in_stream(response: ModelInferResponse) -> ModelStreamInferResponse {
    ModelStreamInferResponse { error_message: String::new(), infer_response: Some(response) }
}

/// Returns the response of a request that has failed; the stream goes on.
pub(super) fn failed(id: &str, error: &Status) -> ModelStreamInferResponse {
    let response = ModelInferResponse { id: id.to_owned(), ..ModelInferResponse::default() };
    ModelStreamInferResponse { error_message: error.message().to_owned(), infer_response: Some(response) }
}

fn ends_of<'a>(ends: impl Iterator<Item = &'a Choice>, usage: &Usage) -> Parameters {
    let reason = |choice: &Choice| match choice.reason {
        FinishReason::EndOfText => "end_of_text",
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::TimeLimit => "time_limit",
    };
    let reasons: Vec<_> = ends.map(reason).collect();
    Parameters::from([
        ("finish_reason".to_owned(), parameter(ParameterChoice::StringParam(reasons.join(",")))),
        ("prompt_tokens".to_owned(), parameter(ParameterChoice::Int64Param(usage.prompt_tokens.into()))),
        ("completion_tokens".to_owned(), parameter(ParameterChoice::Int64Param(usage.generated_tokens.into()))),
    ])
}
