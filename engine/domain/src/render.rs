//! The renderer: the one function that turns template, persona and prompt into the text that a model continues.
//!
//! Serving, training and evaluation all call [`render`], so what a model is trained on and what it is served cannot differ.

use std::time::SystemTime;

use crate::{ChatTemplate, Invalid, Message, Persona, Prompt, RenderError, Rendered, Role, SpanKind};

/// How prompt and persona become text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Template {
    /// The paper's `Prompt: / Persona: / Response:` lines, byte exact. **Source**: paper section 4.
    Paper,
    /// The chat template of the model, the persona in the system turn.
    Chat,
    /// The prompt as it is; takes no persona.
    None,
}

impl Template {
    /// Returns the name that flags and files use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Paper => "paper",
            Self::Chat => "chat",
            Self::None => "none",
        }
    }

    /// Returns the texts that end an answer in this template, beside the model's end token.
    ///
    /// **Source**: paper section 4: a model that goes on after its answer starts the next `Prompt:` line.
    pub fn stop_strings(self) -> &'static [&'static str] {
        match self {
            Self::Paper => &["\nPrompt:"],
            Self::Chat | Self::None => &[],
        }
    }

    /// Identifies the template's wording: two renderings with equal identity texts are equal.
    pub fn identity(self, chat: Option<&ChatTemplate>) -> String {
        match self {
            Self::Paper => format!("paper 1 {PROMPT_LABEL}{PERSONA_LABEL}{RESPONSE_LABEL}"),
            Self::Chat => format!("chat 1 {PERSONA_BEFORE}{PERSONA_AFTER}{}", chat.map_or("", ChatTemplate::source)),
            Self::None => "none 1".to_owned(),
        }
    }
}

/// What [`render`] renders.
#[derive(Clone, Copy, Debug)]
pub struct RenderInput<'a> {
    /// The template.
    pub template: Template,
    /// What the user asks. Token ids cannot be rendered.
    pub prompt: &'a Prompt,
    /// For whom the answer is.
    pub persona: Option<&'a Persona>,
    /// Paper template only: the persona joins the prompt line in the first person.
    pub persona_in_prompt: bool,
    /// Text that the answer starts with; may be empty.
    pub response_prefix: &'a str,
    /// The whole answer, for a training row; its spans are the trained ones and the end token follows.
    pub response: Option<&'a str>,
    /// The spelling of the model's end token, for training rows.
    pub end_token: Option<&'a str>,
    /// The model's chat template, where it has one.
    pub chat: Option<&'a ChatTemplate>,
    /// The time that a chat template may ask for.
    pub now: SystemTime,
}

const PROMPT_LABEL: &str = "Prompt: ";
const PERSONA_LABEL: &str = "Persona: ";
const RESPONSE_LABEL: &str = "Response:";
/// What stands around the persona in the system turn of a chat.
const PERSONA_BEFORE: &str = "You are talking with one particular person. ";
const PERSONA_AFTER: &str = " Give the answer that suits this person best.";

/// Renders a prompt, or with `response` a training row.
///
/// **Errors**: parts that do not go together, a chat template that is absent or fails.
pub fn render(input: &RenderInput<'_>) -> Result<Rendered, RenderError> {
    match input.template {
        Template::Paper => render_paper(input),
        Template::Chat => render_chat(input),
        Template::None => render_none(input),
    }
}

/// Returns the start of every answer of the Mnemonic data set: `{Term In Title Case} sounds like`.
///
/// **Source**: paper section 4. Title case as in Python's `str.title`: a letter after a non-letter is upper case.
pub fn mnemonic_prefix(term: &str) -> String {
    let mut title = String::with_capacity(term.len());
    let mut after_letter = false;
    for letter in term.chars() {
        if after_letter {
            title.extend(letter.to_lowercase());
        } else {
            title.extend(letter.to_uppercase());
        }
        after_letter = letter.is_alphabetic();
    }
    title + " sounds like"
}

fn render_paper(input: &RenderInput<'_>) -> Result<Rendered, RenderError> {
    let prompt = plain_text(input)?;
    let mut text = format!("{PROMPT_LABEL}{prompt}");
    if let Some(persona) = input.persona {
        if input.persona_in_prompt {
            text += &format!(" {}", persona.first_person());
        } else {
            text += &format!("\n{PERSONA_LABEL}{}", persona.as_str());
        }
    }
    text += &format!("\n{RESPONSE_LABEL}");
    finish(input, &text, " ")
}

fn render_none(input: &RenderInput<'_>) -> Result<Rendered, RenderError> {
    if input.persona.is_some() {
        return Err(Invalid::new("persona", "has no place in the template none; use paper or chat").into());
    }
    finish(input, plain_text(input)?, "")
}

/// Adds prefix, answer and end token to a prompt of plain text; `gap` stands before whatever follows the prompt.
fn finish(input: &RenderInput<'_>, prompt: &str, gap: &str) -> Result<Rendered, RenderError> {
    let mut rendered = Rendered { spans: Vec::new(), add_special: true };
    rendered.push(prompt, SpanKind::Text, false);
    if !input.response_prefix.is_empty() {
        rendered.push(&format!("{gap}{}", input.response_prefix), SpanKind::Text, false);
    }
    if let Some(response) = input.response {
        let gap = if input.response_prefix.is_empty() { gap } else { " " };
        rendered.push(&format!("{gap}{response}"), SpanKind::Text, true);
        rendered.push(end_token(input)?, SpanKind::Control, true);
    }
    Ok(rendered)
}

fn render_chat(input: &RenderInput<'_>) -> Result<Rendered, RenderError> {
    let chat = input.chat.ok_or(RenderError::NoChatTemplate)?;
    let mut messages = match input.prompt {
        Prompt::Text(text) => vec![Message { role: Role::User, content: text.clone() }],
        Prompt::Messages(messages) => messages.clone(),
        Prompt::Tokens(_) => return Err(tokens_have_no_template()),
    };
    if let Some(persona) = input.persona {
        let turn = format!("{PERSONA_BEFORE}{}{PERSONA_AFTER}", persona.as_str());
        match messages.first_mut().filter(|first| first.role == Role::System) {
            Some(system) => system.content += &format!("\n\n{turn}"),
            None => messages.insert(0, Message { role: Role::System, content: turn }),
        }
    }
    let mut rendered = chat.render(&messages, input.now)?;
    rendered.push(input.response_prefix, SpanKind::Text, false);
    if let Some(response) = input.response {
        rendered.push(response, SpanKind::Text, true);
        rendered.push(end_token(input)?, SpanKind::Control, true);
    }
    Ok(rendered)
}

fn plain_text<'a>(input: &RenderInput<'a>) -> Result<&'a str, RenderError> {
    match input.prompt {
        Prompt::Text(text) => Ok(text),
        Prompt::Messages(_) => {
            let reason =
                format!("are chat messages, which the template {} cannot take; use chat", input.template.as_str());
            Err(Invalid::new("prompt.messages", reason).into())
        }
        Prompt::Tokens(_) => Err(tokens_have_no_template()),
    }
}

fn tokens_have_no_template() -> RenderError {
    Invalid::new("prompt.token_ids", "are not rendered; send text or messages").into()
}

fn end_token<'a>(input: &RenderInput<'a>) -> Result<&'a str, RenderError> {
    input.end_token.ok_or_else(|| Invalid::new("response", "needs a model that has an end token").into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Span;

    fn input<'a>(template: Template, prompt: &'a Prompt, persona: Option<&'a Persona>) -> RenderInput<'a> {
        RenderInput {
            template,
            prompt,
            persona,
            persona_in_prompt: false,
            response_prefix: "",
            response: None,
            end_token: Some("</s>"),
            chat: None,
            now: SystemTime::UNIX_EPOCH,
        }
    }

    fn text(prompt: &str) -> Prompt {
        Prompt::Text(prompt.to_owned())
    }

    #[test]
    fn the_papers_template_is_byte_exact() {
        let persona = Persona::new("The user is terse.").unwrap();
        let prompt = text("Why?");
        let with = input(Template::Paper, &prompt, Some(&persona));
        assert_eq!(render(&with).unwrap().text(), "Prompt: Why?\nPersona: The user is terse.\nResponse:");
        let without = input(Template::Paper, &prompt, None);
        assert_eq!(render(&without).unwrap().text(), "Prompt: Why?\nResponse:");
        let inside = RenderInput { persona_in_prompt: true, ..with };
        assert_eq!(render(&inside).unwrap().text(), "Prompt: Why? I am terse.\nResponse:");
        assert!(render(&with).unwrap().add_special);
    }

    #[test]
    fn a_training_row_trains_the_answer_and_the_end() {
        let prompt = text("Why?");
        let row = RenderInput { response: Some("So."), ..input(Template::Paper, &prompt, None) };
        let span = |text: &str, kind, trained| Span { text: text.to_owned(), kind, trained };
        assert_eq!(
            render(&row).unwrap().spans,
            [
                span("Prompt: Why?\nResponse:", SpanKind::Text, false),
                span(" So.", SpanKind::Text, true),
                span("</s>", SpanKind::Control, true)
            ]
        );
        let endless = RenderInput { end_token: None, ..row };
        assert!(render(&endless).is_err());
    }

    #[test]
    fn a_mnemonic_starts_with_its_term() {
        assert_eq!(mnemonic_prefix("dog's-ear ÉTÉ"), "Dog'S-Ear Été sounds like");
        let prompt = text("negligible");
        let prefix = mnemonic_prefix("negligible");
        let mnemonic = RenderInput { response_prefix: &prefix, ..input(Template::Paper, &prompt, None) };
        assert_eq!(render(&mnemonic).unwrap().text(), "Prompt: negligible\nResponse: Negligible sounds like");
        let trained = RenderInput { response: Some("a negligee"), ..mnemonic };
        assert!(render(&trained).unwrap().text().ends_with("sounds like a negligee</s>"));
    }

    #[test]
    fn a_chat_has_the_persona_in_its_system_turn() {
        let source = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]";
        let chat = ChatTemplate::new(source, None, None, &[]).unwrap();
        let persona = Persona::new("The user is terse.").unwrap();
        let turn = "You are talking with one particular person. The user is terse. Give the answer that suits this person best.";
        let prompt = text("Why?");
        let plain = RenderInput { chat: Some(&chat), ..input(Template::Chat, &prompt, Some(&persona)) };
        assert_eq!(render(&plain).unwrap().text(), format!("[system]{turn}[user]Why?[assistant]"));
        let system = Message { role: Role::System, content: "Be kind.".to_owned() };
        let prompt = Prompt::Messages(vec![system, Message { role: Role::User, content: "Why?".to_owned() }]);
        let both = RenderInput { prompt: &prompt, ..plain };
        assert_eq!(render(&both).unwrap().text(), format!("[system]Be kind.\n\n{turn}[user]Why?[assistant]"));
    }

    #[test]
    fn what_does_not_go_together_is_named() {
        let persona = Persona::new("The user is terse.").unwrap();
        let prompt = text("Why?");
        let none = input(Template::None, &prompt, Some(&persona));
        assert!(matches!(render(&none), Err(RenderError::Invalid(invalid)) if invalid.field == "persona"));
        assert_eq!(render(&input(Template::Chat, &prompt, None)), Err(RenderError::NoChatTemplate));
        let messages = Prompt::Messages(vec![]);
        let paper = input(Template::Paper, &messages, None);
        assert!(matches!(render(&paper), Err(RenderError::Invalid(invalid)) if invalid.field == "prompt.messages"));
        assert!(render(&input(Template::Paper, &Prompt::Tokens(vec![1]), None)).is_err());
    }
}
