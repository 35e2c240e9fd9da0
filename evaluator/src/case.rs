//! Cases: what is asked of a model, independent of who serves it, and the completion that comes back.
//!
//! Place in the flow: a stage makes one [`Case`] for each row it wants, a provider turns it into a call, and the
//! [`Completion`] becomes part of the row.

use bespoke_domain::{
    Generate, Message, Persona, PersonaSource, Prompt, PromptSpec, RenderInput, Request, Role, SamplingParams, Stop,
    Template, render,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What is asked of a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Case {
    pub(crate) prompt: CasePrompt,
    pub(crate) settings: Settings,
}

/// The three forms of a prompt.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CasePrompt {
    /// Instructions for a model of instructions: the text of the user's turn, and how the answer starts. Where a provider
    /// cannot start an answer, `answer_start` is left out; prompts must make sense without it.
    Instruct { text: String, answer_start: String },
    /// A prompt for a model that was trained with the paper's template, or answers in its own chat template.
    Tailored(Tailored),
    /// Text that the model goes on with, such as few-shot examples and the start of the next.
    Plain { text: String },
}

/// A prompt with its persona.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Tailored {
    pub(crate) prompt: String,
    pub(crate) persona: Option<String>,
    /// As in [`PromptSpec::persona_in_prompt`].
    pub(crate) persona_in_prompt: bool,
    pub(crate) response_prefix: String,
    /// Whether the model's chat template is used instead of the paper's.
    pub(crate) chat: bool,
}

/// How an answer is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) max_new_tokens: u32,
    pub(crate) min_new_tokens: u32,
    pub(crate) temperature: f32,
    pub(crate) seed: u64,
    pub(crate) stop: Vec<String>,
}

/// What came back.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Completion {
    /// The answer; empty where refused or where only scores were asked for.
    pub(crate) answer: String,
    pub(crate) finish: Finish,
    /// Why there is no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) refusal: Option<String>,
    pub(crate) prompt_tokens: u64,
    pub(crate) completion_tokens: u64,
    /// The log-probabilities of the given continuations, where asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) logprobs: Vec<f64>,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Finish {
    /// The model ended it, or a stop string came.
    #[default]
    Stop,
    /// It has the most tokens asked for.
    Length,
    /// The model or its server refused.
    Refused,
    /// Continuations were scored, nothing was generated.
    Scored,
}

impl Completion {
    /// Returns the completion of a request that was refused.
    pub(crate) fn refused(reason: impl Into<String>) -> Self {
        Self { finish: Finish::Refused, refusal: Some(reason.into()), ..Self::default() }
    }
}

impl Case {
    /// Identifies the content of the call: equal digests get equal answers from a greedy or seeded model.
    pub(crate) fn digest(&self, model: &str, options: &[String]) -> String {
        let text = serde_json::to_string(&(model, self, options)).expect("invariant: a case is JSON");
        hex_digest(text.as_bytes())
    }

    /// Returns the text of the prompt as a service without our templates gets it.
    pub(crate) fn text(&self) -> anyhow::Result<String> {
        Ok(match &self.prompt {
            CasePrompt::Instruct { text, .. } | CasePrompt::Plain { text } => text.clone(),
            CasePrompt::Tailored(tailored) => tailored.paper_text(None)?,
        })
    }

    /// Estimates the tokens of prompt and answer, at four bytes a token, for limits and dry runs.
    pub(crate) fn tokens_estimated(&self) -> (u64, u64) {
        /// English text in the tokenizers of today.
        const BYTES_A_TOKEN: u64 = 4;
        let num_bytes = self.text().map_or(0, |text| text.len() as u64);
        (num_bytes / BYTES_A_TOKEN + 8, u64::from(self.settings.max_new_tokens))
    }

    /// Returns the prompt for our engine.
    pub(crate) fn spec(&self, has_chat_template: bool) -> anyhow::Result<PromptSpec> {
        let spec = |text: &str| PromptSpec::new(Prompt::Text(text.to_owned()));
        Ok(match &self.prompt {
            CasePrompt::Plain { text } => PromptSpec { template: Some(Template::None), ..spec(text) },
            CasePrompt::Instruct { text, answer_start } if has_chat_template => PromptSpec {
                template: Some(Template::Chat),
                response_prefix: answer_start.clone(),
                ..PromptSpec::new(Prompt::Messages(vec![Message { role: Role::User, content: text.clone() }]))
            },
            // A base model gets the instructions as plain text.
            CasePrompt::Instruct { text, answer_start } => {
                PromptSpec { template: Some(Template::None), ..spec(&format!("{text}\n{answer_start}")) }
            }
            CasePrompt::Tailored(tailored) => PromptSpec {
                template: Some(if tailored.chat { Template::Chat } else { Template::Paper }),
                persona: match &tailored.persona {
                    Some(persona) => PersonaSource::Text(Persona::new(persona)?),
                    None => PersonaSource::None,
                },
                persona_in_prompt: tailored.persona_in_prompt && !tailored.chat,
                response_prefix: tailored.response_prefix.clone(),
                ..spec(&tailored.prompt)
            },
        })
    }

    /// Returns the generation for our engine from [`Case::spec`].
    pub(crate) fn request(&self, spec: PromptSpec) -> anyhow::Result<Request> {
        let settings = &self.settings;
        let mut generate = Generate::new(spec);
        generate.max_new_tokens = settings.max_new_tokens;
        generate.min_new_tokens = settings.min_new_tokens;
        generate.stop = Stop { strings: settings.stop.clone(), ..Stop::default() };
        let sampling = SamplingParams { temperature: settings.temperature, ..SamplingParams::default() };
        generate.sampling = SamplingParams { seed: Some(settings.seed), ..sampling }.try_into()?;
        Ok(generate.try_into()?)
    }
}

impl Tailored {
    /// Renders the paper's template, with a response as in a few-shot example or without.
    pub(crate) fn paper_text(&self, response: Option<&str>) -> anyhow::Result<String> {
        let persona = self.persona.as_deref().map(Persona::new).transpose()?;
        let prompt = Prompt::Text(self.prompt.clone());
        let rendered = render(&RenderInput {
            template: Template::Paper,
            prompt: &prompt,
            persona: persona.as_ref(),
            persona_in_prompt: self.persona_in_prompt,
            response_prefix: &self.response_prefix,
            response: None,
            end_token: None,
            chat: None,
            now: std::time::SystemTime::UNIX_EPOCH,
        })?;
        let text: String = rendered.spans.iter().map(|span| span.text.as_str()).collect();
        Ok(match response {
            Some(response) => format!("{text} {response}"),
            None => text,
        })
    }
}

/// Returns the SHA-256 of bytes in lower-case hex.
pub(crate) fn hex_digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tailored(persona: Option<&str>) -> Tailored {
        Tailored {
            prompt: "How?".to_owned(),
            persona: persona.map(str::to_owned),
            persona_in_prompt: false,
            response_prefix: String::new(),
            chat: false,
        }
    }

    #[test]
    fn the_paper_text_is_the_renderers() {
        let text = tailored(Some("The user is shy.")).paper_text(None).unwrap();
        assert_eq!(text, "Prompt: How?\nPersona: The user is shy.\nResponse:");
        assert_eq!(tailored(None).paper_text(Some("So.")).unwrap(), "Prompt: How?\nResponse: So.");
    }

    #[test]
    fn the_digest_is_of_content() {
        let settings = Settings { max_new_tokens: 4, min_new_tokens: 0, temperature: 0.0, seed: 1, stop: Vec::new() };
        let case = Case { prompt: CasePrompt::Tailored(tailored(None)), settings };
        assert_eq!(case.digest("m", &[]), case.clone().digest("m", &[]));
        assert_ne!(case.digest("m", &[]), case.digest("n", &[]));
        let mut other = case.clone();
        other.settings.seed = 2;
        assert_ne!(case.digest("m", &[]), other.digest("m", &[]));
        assert_eq!(hex_digest(b"abc")[..8], *"ba7816bf");
    }
}
