//! The language side of a model: tokenizer, templates and personas. Turns a prompt into tokens; needs no weights.

use std::{collections::BTreeMap, time::SystemTime};

use bespoke_domain::{
    ChatTemplate, Invalid, Persona, PersonaId, PersonaSource, Prompt, PromptSpec, RenderInput, Rendered, Sampling,
    Template, TokenId, render,
};
use bespoke_model::Tokenizer;
use sha2::{Digest, Sha256};

use crate::EngineError;

/// A prompt as the model sees it.
#[derive(Clone, Debug)]
pub struct RenderedPrompt {
    /// The template that was used; none for a prompt of token ids.
    pub template: Template,
    /// Identifies the template's wording: 16 hexadecimal digits.
    pub template_hash: String,
    /// The persona that the source led to.
    pub persona: Option<Persona>,
    /// The text in spans; no spans for a prompt of token ids.
    pub rendered: Rendered,
    /// The tokens.
    pub token_ids: Vec<TokenId>,
    /// For each token, whether training on the completion alone counts it.
    pub trained: Vec<bool>,
}

/// What turns text into tokens and back for one model.
pub(crate) struct Language {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) chat: Option<ChatTemplate>,
    /// Tokens with which the model ends an answer.
    pub(crate) end_ids: Vec<TokenId>,
    pub(crate) vocab_size: usize,
    pub(crate) system_persona: Option<Persona>,
    pub(crate) personas: BTreeMap<PersonaId, Persona>,
    /// The longest prompt that leaves room for one new token.
    pub(crate) prompt_tokens_max: usize,
}

impl Language {
    /// Returns the template of a request that names none.
    pub(crate) fn default_template(&self) -> Template {
        if self.chat.is_some() { Template::Chat } else { Template::Paper }
    }

    /// Renders and tokenizes a prompt, or with `response` a training row.
    pub(crate) fn render(&self, spec: &PromptSpec, response: Option<&str>) -> Result<RenderedPrompt, EngineError> {
        let persona = self.persona(&spec.persona)?;
        let template = match &spec.prompt {
            Prompt::Tokens(ids) => return self.take_tokens(ids),
            _ => spec.template.unwrap_or_else(|| self.default_template()),
        };
        let rendered = render(&RenderInput {
            template,
            prompt: &spec.prompt,
            persona: persona.as_ref(),
            persona_in_prompt: spec.persona_in_prompt,
            response_prefix: &spec.response_prefix,
            response,
            end_token: self.tokenizer.eos_text(),
            chat: self.chat.as_ref(),
            now: SystemTime::now(),
        })?;
        self.refuse_hopeless(&rendered)?;
        let encoded = self.tokenizer.encode(&rendered)?;
        Ok(RenderedPrompt {
            template,
            template_hash: self.template_hash(template),
            persona,
            rendered,
            token_ids: encoded.ids,
            trained: encoded.trained,
        })
    }

    /// Checks that ids are in the vocabulary.
    pub(crate) fn check_ids(&self, field: &str, ids: impl IntoIterator<Item = TokenId>) -> Result<(), Invalid> {
        for (index, id) in ids.into_iter().enumerate() {
            if id as usize >= self.vocab_size {
                let reason = format!("is {id}, the vocabulary has {} tokens", self.vocab_size);
                return Err(Invalid::new(format!("{field}[{index}]"), reason));
            }
        }
        Ok(())
    }

    /// Checks that the biased tokens are in the vocabulary.
    pub(crate) fn check_bias(&self, sampling: &Sampling) -> Result<(), Invalid> {
        match sampling.logit_bias.keys().find(|&&token| token as usize >= self.vocab_size) {
            None => Ok(()),
            Some(token) => {
                let reason = format!("is no token, the vocabulary has {}", self.vocab_size);
                Err(Invalid::new(format!("sampling.logit_bias[{token}]"), reason))
            }
        }
    }

    fn take_tokens(&self, ids: &[TokenId]) -> Result<RenderedPrompt, EngineError> {
        self.check_ids("prompt.token_ids", ids.iter().copied())?;
        Ok(RenderedPrompt {
            template: Template::None,
            template_hash: self.template_hash(Template::None),
            persona: None,
            rendered: Rendered::default(),
            token_ids: ids.to_vec(),
            trained: vec![false; ids.len()],
        })
    }

    fn persona(&self, source: &PersonaSource) -> Result<Option<Persona>, EngineError> {
        match source {
            PersonaSource::None => Ok(None),
            PersonaSource::Text(persona) => Ok(Some(persona.clone())),
            PersonaSource::System => self.system_persona.clone().map(Some).ok_or(EngineError::NoSystemPersona),
            PersonaSource::Id(id) => {
                self.personas.get(id).cloned().map(Some).ok_or_else(|| EngineError::UnknownPersona(id.clone()))
            }
        }
    }

    /// Refuses a text that cannot fit whatever its tokens are, before time is spent on tokenizing it.
    fn refuse_hopeless(&self, rendered: &Rendered) -> Result<(), EngineError> {
        let bytes: usize = rendered.spans.iter().map(|span| span.text.len()).sum();
        let prompt_tokens = bytes / self.tokenizer.token_bytes_max().max(1);
        if prompt_tokens > self.prompt_tokens_max {
            return Err(EngineError::ContextTooLong { prompt_tokens, limit: self.prompt_tokens_max });
        }
        Ok(())
    }

    fn template_hash(&self, template: Template) -> String {
        let digest = Sha256::digest(template.identity(self.chat.as_ref()));
        digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}
