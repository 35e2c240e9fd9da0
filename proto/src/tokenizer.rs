//! Conversion of what the tokenizer service takes and returns.

use std::fmt;

use bespoke_domain::{self as domain, Invalid, Persona, PromptSpec, SpanKind, TokenId};

use crate::{
    DetokenizeRequest, RenderPromptRequest, RenderPromptResponse, Span,
    event::all,
    field::{each, unknown},
    prompt,
};

impl DetokenizeRequest {
    /// Whether control tokens are left out: yes, unless the request says otherwise.
    pub fn skips_control(&self) -> bool {
        self.skip_control.unwrap_or(true)
    }
}

impl RenderPromptRequest {
    /// Returns what to render, and the response where a training row is asked for.
    ///
    /// **Errors**: the first field that breaks a rule; a prompt of token ids.
    pub fn into_parts(self) -> Result<(PromptSpec, Option<String>), Invalid> {
        let spec = prompt::spec(self.spec)?;
        match spec.prompt {
            domain::Prompt::Tokens(_) => {
                Err(Invalid::new("spec.token_ids", "cannot be rendered; send text or messages"))
            }
            domain::Prompt::Text(_) | domain::Prompt::Messages(_) => Ok((spec, self.response)),
        }
    }
}

/// A rendered prompt with its tokens.
#[derive(Clone, PartialEq, Eq)]
pub struct RenderedPrompt {
    /// The pieces of the text in order.
    pub spans: Vec<domain::Span>,
    /// Each token and whether training counts its loss, BOS included where the tokenizer adds it.
    pub tokens: Vec<(TokenId, bool)>,
    /// The template that was used.
    pub template: domain::Template,
    /// The persona that was used.
    pub persona: Option<Persona>,
    /// Identifies the template and its wording.
    pub template_hash: String,
}

impl RenderedPrompt {
    /// Returns the whole text, control tokens spelled out.
    pub fn text(&self) -> String {
        self.spans.iter().map(|span| span.text.as_str()).collect()
    }
}

/// Hides the text: prompts are not logged.
impl fmt::Debug for RenderedPrompt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { spans, tokens, template, .. } = self;
        write!(f, "RenderedPrompt({}, {} spans, {} tokens)", template.as_str(), spans.len(), tokens.len())
    }
}

impl From<RenderedPrompt> for RenderPromptResponse {
    fn from(rendered: RenderedPrompt) -> Self {
        let text = rendered.text();
        let (token_ids, trained) = rendered.tokens.into_iter().unzip();
        Self {
            text,
            spans: all(rendered.spans),
            token_ids,
            trained,
            template: crate::Template::from(rendered.template).into(),
            persona: rendered.persona.map(|persona| persona.as_str().to_owned()),
            template_hash: rendered.template_hash,
        }
    }
}

impl TryFrom<RenderPromptResponse> for RenderedPrompt {
    type Error = Invalid;

    fn try_from(wire: RenderPromptResponse) -> Result<Self, Invalid> {
        if wire.trained.len() != wire.token_ids.len() {
            let (has, needs) = (wire.trained.len(), wire.token_ids.len());
            return Err(Invalid::new("trained", format!("has {has} entries, not the {needs} of token_ids")));
        }
        let rendered = Self {
            spans: each("spans", wire.spans, TryInto::try_into)?,
            tokens: wire.token_ids.into_iter().zip(wire.trained).collect(),
            template: prompt::template(wire.template).ok_or_else(|| unknown("template", wire.template))?,
            persona: wire.persona.map(Persona::new).transpose()?,
            template_hash: wire.template_hash,
        };
        if rendered.text() == wire.text { Ok(rendered) } else { Err(Invalid::new("text", "is not that of the spans")) }
    }
}

impl From<domain::Span> for Span {
    fn from(span: domain::Span) -> Self {
        let kind = match span.kind {
            SpanKind::Text => crate::SpanKind::Text,
            SpanKind::Control => crate::SpanKind::Control,
        };
        Self { text: span.text, kind: kind.into(), trained: span.trained }
    }
}

impl TryFrom<Span> for domain::Span {
    type Error = Invalid;

    fn try_from(wire: Span) -> Result<Self, Invalid> {
        if wire.text.is_empty() {
            return Err(Invalid::new("text", "is empty"));
        }
        let kind = match crate::SpanKind::try_from(wire.kind) {
            Ok(crate::SpanKind::Text) => SpanKind::Text,
            Ok(crate::SpanKind::Control) => SpanKind::Control,
            Ok(crate::SpanKind::Unspecified) | Err(_) => return Err(unknown("kind", wire.kind)),
        };
        Ok(Self { text: wire.text, kind, trained: wire.trained })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{TokenIdList, prompt_spec};

    fn rendered() -> RenderedPrompt {
        let span = |text: &str, kind| domain::Span { text: text.to_owned(), kind, trained: false };
        RenderedPrompt {
            spans: vec![span("<s>", SpanKind::Control), span("Prompt: a", SpanKind::Text)],
            tokens: vec![(1, false), (7, true)],
            template: domain::Template::Paper,
            persona: Some(Persona::new("The user is shy.").unwrap()),
            template_hash: "abc".to_owned(),
        }
    }

    #[test]
    fn a_rendered_prompt_survives_the_wire() {
        let wire = RenderPromptResponse::from(rendered());
        assert_eq!(wire.text, "<s>Prompt: a");
        assert_eq!((wire.token_ids.as_slice(), wire.trained.as_slice()), ([1, 7].as_slice(), [false, true].as_slice()));
        assert_eq!(RenderedPrompt::try_from(wire).unwrap(), rendered());
    }

    #[test]
    fn parts_that_do_not_agree_are_refused() {
        type Break = fn(&mut RenderPromptResponse);
        let bad: [(&str, Break); 5] = [
            ("trained", |wire| wire.trained.clear()),
            ("text", |wire| wire.text.clear()),
            ("template", |wire| wire.template = 0),
            ("spans[1].kind", |wire| wire.spans[1].kind = 7),
            ("persona", |wire| wire.persona = Some(String::new())),
        ];
        for (field, break_it) in bad {
            let mut wire = rendered().into();
            break_it(&mut wire);
            assert_eq!(RenderedPrompt::try_from(wire).unwrap_err().field, field);
        }
    }

    #[test]
    fn token_ids_are_not_rendered() {
        let ids = prompt_spec::Prompt::TokenIds(TokenIdList { ids: vec![1] });
        let spec = crate::PromptSpec { prompt: Some(ids), ..crate::PromptSpec::default() };
        let request = RenderPromptRequest { spec: Some(spec), response: None };
        assert_eq!(request.into_parts().unwrap_err().field, "spec.token_ids");
        assert!(DetokenizeRequest::default().skips_control());
    }
}
