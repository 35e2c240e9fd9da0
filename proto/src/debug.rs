//! `Debug` of the messages that hold texts of users or models: their size, never the texts.

use std::fmt;

use prost::Message;

/// A function cannot implement a trait, so this is a macro. Its list is that of `build.rs` and the oneofs in it; a message
/// in one list alone has no `Debug` or two, and does not compile.
macro_rules! private {
    ($($($name:ident)::+),* $(,)?) => {$(
        impl fmt::Debug for crate::$($name)::+ {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({} bytes)", stringify!($($name)::+), self.encoded_len())
            }
        }
    )*
        #[cfg(test)]
        const PRIVATE: &[&str] = &[$(stringify!($($name)::+)),*];
    };
}

private!(
    PromptSpec,
    Message,
    TokenIdList,
    PersonaSource,
    StopParams,
    Started,
    Delta,
    TokenLogprob,
    TopLogprob,
    MatchedStop,
    GeneratedChoice,
    Continuation,
    EmbedRequest,
    Embedding,
    TokenizeRequest,
    TokenizeResponse,
    DetokenizeRequest,
    DetokenizeResponse,
    RenderPromptRequest,
    RenderPromptResponse,
    Span,
    prompt_spec::Prompt,
    persona_source::Source,
    matched_stop::Matched,
    continuation::Continuation,
    inference::InferParameter,
    inference::infer_parameter::ParameterChoice,
    inference::InferTensorContents,
    inference::ModelInferRequest,
    inference::model_infer_request::InferInputTensor,
    inference::model_infer_request::InferRequestedOutputTensor,
    inference::ModelInferResponse,
    inference::model_infer_response::InferOutputTensor,
    inference::ModelStreamInferResponse,
);

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_types::{FileDescriptorSet, field_descriptor_proto::Type};

    use super::PRIVATE;
    use crate::{GenerateRequest, GenerateStreamResponse, PromptSpec, generate_stream_response::Event, prompt_spec};

    #[test]
    fn containers_show_sizes_of_private_parts() {
        let spec =
            PromptSpec { prompt: Some(prompt_spec::Prompt::Text("a secret".to_owned())), ..PromptSpec::default() };
        let request = GenerateRequest { spec: Some(spec), ..GenerateRequest::default() };
        let shown = format!("{request:?}");
        assert!(shown.contains("PromptSpec(10 bytes)") && !shown.contains("secret"), "{shown}");
        let delta = crate::Delta { text: "a secret".to_owned(), ..crate::Delta::default() };
        let shown = format!("{:?}", GenerateStreamResponse { event: Some(Event::Delta(delta)) });
        assert!(shown.contains("Delta(10 bytes)") && !shown.contains("secret"), "{shown}");
    }

    /// Messages whose texts are ids and facts of the server.
    const PUBLIC: [&str; 11] = [
        "PrefixCache",
        "GenerateStreamRequest",
        "GenerateRequest",
        "ScoreRequest",
        "EmbedResponse",
        "GetServerInfoResponse",
        "ModelInfo",
        "inference::ModelReadyRequest",
        "inference::ServerMetadataResponse",
        "inference::ModelMetadataRequest",
        "inference::ModelMetadataResponse",
    ];

    #[test]
    fn every_message_with_text_is_private_or_known_to_be_public() {
        let set = FileDescriptorSet::decode(crate::FILE_DESCRIPTOR_SET).unwrap();
        let path = |package: &str, name: &str| match package {
            "bespoke.v1" => name.to_owned(),
            _ => format!("{package}::{name}"),
        };
        let messages = set.file.iter().flat_map(|file| {
            file.message_type.iter().map(move |message| (path(file.package(), message.name()), message))
        });
        let messages: Vec<_> = messages.collect();
        assert!(messages.len() > 45);
        for (name, message) in messages {
            let is_text = |kind| kind == Type::String || kind == Type::Bytes;
            let name = name.as_str();
            if message.field.iter().any(|field| is_text(field.r#type())) {
                assert!(
                    PRIVATE.iter().any(|private| private.replace(' ', "") == name) || PUBLIC.contains(&name),
                    "{name}"
                );
            }
        }
    }
}
