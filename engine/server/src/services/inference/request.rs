//! A request of the protocol as a request of the domain.

use std::{collections::HashMap, time::Duration};

use bespoke_domain::{Generate, Invalid, Request, RequestId, Template};
use bespoke_proto::inference::{InferParameter, ModelInferRequest, infer_parameter::ParameterChoice};
use serde_json::{Map, Value, json};

use super::tensor::{Element, take_inputs};
use crate::http::{Fields, apply_params, max_tokens};

/// What is asked, checked.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) request: Request,
    pub(super) id: String,
    /// Whether pieces are wanted, where the request says so.
    pub(super) stream: Option<bool>,
    pub(super) timeout: Option<Duration>,
    /// Whether a stream ends with a response without text that says so.
    pub(super) empty_final_response: bool,
    /// Whether outputs are written as raw bytes, as the inputs were.
    pub(super) is_raw: bool,
}

impl Asked {
    /// Reads a request.
    ///
    /// **Errors**: the first input or parameter that is wrong or unknown.
    pub(super) fn read(mut request: ModelInferRequest) -> Result<Self, Invalid> {
        if let Some(output) = request.outputs.iter().find(|output| output.name != "text_output") {
            return Err(Invalid::new("outputs", format!("has `{}`, there is only `text_output`", output.name)));
        }
        let is_raw = !request.raw_input_contents.is_empty();
        let mut parameters = Map::new();
        let (mut text, mut stream) = (None, None);
        let mut persona = None;
        for (name, element) in take_inputs(&mut request)? {
            match (name.as_str(), element) {
                ("text_input", Element::Text(given)) => text = Some(given),
                ("persona", Element::Text(given)) => persona = Some(json!(given)),
                ("sampling_parameters", Element::Text(given)) => parameters = object(&given)?,
                ("stream", Element::Bool(given)) => stream = Some(given),
                _ => return Err(Invalid::new(format!("inputs.{name}"), "is not an input of the model in this type")),
            }
        }
        let text = text.ok_or_else(|| Invalid::new("inputs.text_input", "is missing"))?;
        for (name, value) in std::mem::take(&mut request.parameters) {
            let value = json_of(value).ok_or_else(|| Invalid::new(format!("parameters.{name}"), "has no value"))?;
            parameters.insert(name, value);
        }
        parameters.extend(persona.map(|persona| ("persona".to_owned(), persona)));
        take_persona_parameters(&mut parameters)?;
        let mut generate = Generate::text(text);
        let mut fields = Fields::new(parameters);
        let own = read_parameters(&mut fields, &mut generate).map_err(|invalid| invalid.within("parameters"))?;
        fields.finish(&[]).map_err(|invalid| invalid.within("parameters"))?;
        if !request.id.is_empty() {
            // The id comes back as it is; one that cannot stand in a log is not logged.
            generate.request_id = RequestId::new(request.id.as_str()).ok();
        }
        Ok(Self {
            request: Request::try_from(generate).map_err(|invalid| invalid.within("parameters"))?,
            id: request.id,
            stream,
            timeout: own.timeout,
            empty_final_response: own.empty_final_response,
            is_raw,
        })
    }
}

/// Parameters that are not of the generation itself.
struct OwnParameters {
    timeout: Option<Duration>,
    empty_final_response: bool,
}

fn read_parameters(fields: &mut Fields, generate: &mut Generate) -> Result<OwnParameters, Invalid> {
    apply_params(fields, generate)?;
    if let Some(length) = max_tokens(fields, "max_tokens")? {
        generate.max_new_tokens = length;
    }
    if generate.spec.template == Some(Template::None) && generate.spec.persona != Default::default() {
        return Err(Invalid::new("persona", "has no place in the template none; use paper or chat"));
    }
    Ok(OwnParameters {
        timeout: fields.take("timeout")?.map(Duration::from_micros),
        empty_final_response: fields.take("triton_enable_empty_final_response")?.unwrap_or(false),
    })
}

/// A parameter cannot hold an object, so ids and the server's persona have parameters of their own.
fn take_persona_parameters(parameters: &mut Map<String, Value>) -> Result<(), Invalid> {
    let id = parameters.shift_remove("persona_id").map(|id| json!({"id": id}));
    let system = parameters.shift_remove("system_persona").filter(|system| system != &json!(false));
    let system = system.map(|system| json!({"system": system}));
    for persona in [id, system].into_iter().flatten() {
        if parameters.insert("persona".to_owned(), persona).is_some() {
            return Err(Invalid::new("parameters.persona", "is given twice"));
        }
    }
    Ok(())
}

fn object(text: &str) -> Result<Map<String, Value>, Invalid> {
    serde_json::from_str(text).map_err(|_| Invalid::new("inputs.sampling_parameters", "must be a JSON object"))
}

fn json_of(parameter: InferParameter) -> Option<Value> {
    Some(match parameter.parameter_choice? {
        ParameterChoice::BoolParam(value) => json!(value),
        ParameterChoice::Int64Param(value) => json!(value),
        ParameterChoice::StringParam(value) => json!(value),
        ParameterChoice::DoubleParam(value) => json!(value),
        ParameterChoice::Uint64Param(value) => json!(value),
    })
}

/// Parameters as a response carries them.
pub(super) fn parameter(choice: ParameterChoice) -> InferParameter {
    InferParameter { parameter_choice: Some(choice) }
}

/// The parameters of a message.
pub(super) type Parameters = HashMap<String, InferParameter>;

#[cfg(test)]
mod tests {
    use bespoke_domain::{Persona, PersonaId, PersonaSource, Prompt};
    use bespoke_proto::inference::{InferTensorContents, model_infer_request::InferInputTensor};

    use super::*;

    fn read(inputs: &[(&str, &str)], parameters: &[(&str, ParameterChoice)]) -> Result<Asked, Invalid> {
        let input = |&(name, text): &(&str, &str)| InferInputTensor {
            name: name.to_owned(),
            datatype: "BYTES".to_owned(),
            shape: vec![1],
            contents: Some(InferTensorContents {
                bytes_contents: vec![text.as_bytes().to_vec()],
                ..InferTensorContents::default()
            }),
            ..InferInputTensor::default()
        };
        Asked::read(ModelInferRequest {
            id: "a b".to_owned(),
            inputs: inputs.iter().map(input).collect(),
            parameters: parameters.iter().map(|(name, value)| (name.to_string(), parameter(value.clone()))).collect(),
            ..ModelInferRequest::default()
        })
    }

    #[test]
    fn inputs_and_parameters_become_a_request() {
        let parameters = [
            ("temperature", ParameterChoice::Int64Param(0)),
            ("max_tokens", ParameterChoice::Uint64Param(7)),
            ("stop", ParameterChoice::StringParam("x".to_owned())),
            ("timeout", ParameterChoice::Int64Param(5000)),
        ];
        let inputs =
            [("text_input", "Why?"), ("persona", "A cook."), ("sampling_parameters", r#"{"seed": 3, "n": 2}"#)];
        let asked = read(&inputs, &parameters).unwrap();
        assert_eq!(asked.request.spec.prompt, Prompt::Text("Why?".to_owned()));
        assert_eq!(asked.request.spec.persona, PersonaSource::Text(Persona::new("A cook.").unwrap()));
        assert_eq!((asked.request.max_new_tokens, asked.request.sampling.seed, asked.request.n), (7, Some(3), 2));
        assert!(asked.request.sampling.is_greedy() && asked.request.stop.strings == ["x"]);
        assert_eq!((asked.timeout, asked.id.as_str()), (Some(Duration::from_millis(5)), "a b"));
        let id = [("persona_id", ParameterChoice::StringParam("novice".to_owned()))];
        let asked = read(&[("text_input", "a")], &id).unwrap();
        assert_eq!(asked.request.spec.persona, PersonaSource::Id(PersonaId::new("novice").unwrap()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let text = ("text_input", "a");
        let field = |inputs: &[_], parameters: &[_]| read(inputs, parameters).unwrap_err().field;
        assert_eq!(field(&[], &[]), "inputs.text_input");
        assert_eq!(field(&[text, ("image", "a")], &[]), "inputs.image");
        assert_eq!(field(&[text, ("sampling_parameters", "[]")], &[]), "inputs.sampling_parameters");
        assert_eq!(field(&[text], &[("sequence_id", ParameterChoice::Int64Param(1))]), "parameters.sequence_id");
        assert_eq!(field(&[text], &[("top_p", ParameterChoice::DoubleParam(2.0))]), "parameters.top_p");
        let personas = [("persona_id", ParameterChoice::StringParam("a".to_owned()))];
        assert_eq!(field(&[text, ("persona", "b")], &personas), "parameters.persona");
    }
}
