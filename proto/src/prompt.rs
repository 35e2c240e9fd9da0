//! Conversion of prompt, persona and template.

use bespoke_domain::{self as domain, Invalid, Persona, PersonaId};

use crate::{
    MessageList, NoPersona, PersonaSource, PromptSpec, Role, SystemPersona, Template, TokenIdList,
    field::{each, on_the_wire, required, unknown},
    persona_source::Source,
    prompt_spec::Prompt,
};

/// Reads the field `spec` of a request; errors name the path from the request on.
pub(crate) fn spec(spec: Option<PromptSpec>) -> Result<domain::PromptSpec, Invalid> {
    let spec = required(spec, "spec")?;
    let spec = domain::PromptSpec {
        prompt: prompt(spec.prompt)?,
        persona: spec.persona.map_or(Ok(domain::PersonaSource::None), persona_source)?,
        template: match spec.template {
            0 => None,
            number => Some(template(number).ok_or_else(|| unknown("spec.template", number))?),
        },
        persona_in_prompt: spec.persona_in_prompt,
        response_prefix: spec.response_prefix,
        prefix_cache: spec.prefix_cache.map(prefix_cache).unwrap_or_default(),
    };
    spec.check().map_err(on_the_wire)?;
    Ok(spec)
}

/// Names the template of a number; `None` for an unknown one and for `TEMPLATE_UNSPECIFIED`.
pub(crate) fn template(number: i32) -> Option<domain::Template> {
    match Template::try_from(number) {
        Ok(Template::Paper) => Some(domain::Template::Paper),
        Ok(Template::Chat) => Some(domain::Template::Chat),
        Ok(Template::None) => Some(domain::Template::None),
        Ok(Template::Unspecified) | Err(_) => None,
    }
}

fn prompt(prompt: Option<Prompt>) -> Result<domain::Prompt, Invalid> {
    match prompt {
        None => Err(Invalid::new("spec.prompt", "is missing; set text, messages or token_ids")),
        Some(Prompt::Text(text)) => Ok(domain::Prompt::Text(text)),
        Some(Prompt::Messages(list)) => {
            each("spec.messages.messages", list.messages, message).map(domain::Prompt::Messages)
        }
        Some(Prompt::TokenIds(list)) => Ok(domain::Prompt::Tokens(list.ids)),
    }
}

fn message(message: crate::Message) -> Result<domain::Message, Invalid> {
    let role = match Role::try_from(message.role) {
        Ok(Role::System) => domain::Role::System,
        Ok(Role::User) => domain::Role::User,
        Ok(Role::Assistant) => domain::Role::Assistant,
        Ok(Role::Unspecified) | Err(_) => return Err(unknown("role", message.role)),
    };
    Ok(domain::Message { role, content: message.content })
}

fn persona_source(persona: PersonaSource) -> Result<domain::PersonaSource, Invalid> {
    match persona.source {
        None => Err(Invalid::new("spec.persona.source", "is missing; set none, system, text or id")),
        Some(Source::None(NoPersona {})) => Ok(domain::PersonaSource::None),
        Some(Source::System(SystemPersona {})) => Ok(domain::PersonaSource::System),
        Some(Source::Text(text)) => Persona::new(text)
            .map(domain::PersonaSource::Text)
            .map_err(|invalid| Invalid::new("spec.persona.text", invalid.reason)),
        Some(Source::Id(id)) => PersonaId::new(id)
            .map(domain::PersonaSource::Id)
            .map_err(|invalid| Invalid::new("spec.persona.id", invalid.reason)),
    }
}

fn prefix_cache(cache: crate::PrefixCache) -> domain::PrefixCache {
    domain::PrefixCache { off: cache.off, salt: cache.salt }
}

impl From<&domain::PromptSpec> for PromptSpec {
    fn from(spec: &domain::PromptSpec) -> Self {
        let prompt = match &spec.prompt {
            domain::Prompt::Text(text) => Prompt::Text(text.clone()),
            domain::Prompt::Messages(messages) => {
                Prompt::Messages(MessageList { messages: messages.iter().map(crate::Message::from).collect() })
            }
            domain::Prompt::Tokens(ids) => Prompt::TokenIds(TokenIdList { ids: ids.clone() }),
        };
        let source = match &spec.persona {
            domain::PersonaSource::None => None,
            domain::PersonaSource::System => Some(Source::System(SystemPersona {})),
            domain::PersonaSource::Text(persona) => Some(Source::Text(persona.as_str().to_owned())),
            domain::PersonaSource::Id(id) => Some(Source::Id(id.as_str().to_owned())),
        };
        Self {
            prompt: Some(prompt),
            persona: source.map(|source| PersonaSource { source: Some(source) }),
            template: spec.template.map_or(Template::Unspecified, Template::from).into(),
            persona_in_prompt: spec.persona_in_prompt,
            response_prefix: spec.response_prefix.clone(),
            prefix_cache: Some(crate::PrefixCache { off: spec.prefix_cache.off, salt: spec.prefix_cache.salt.clone() }),
        }
    }
}

impl From<&domain::Message> for crate::Message {
    fn from(message: &domain::Message) -> Self {
        let role = match message.role {
            domain::Role::System => Role::System,
            domain::Role::User => Role::User,
            domain::Role::Assistant => Role::Assistant,
        };
        Self { role: role.into(), content: message.content.clone() }
    }
}

impl From<domain::Template> for Template {
    fn from(template: domain::Template) -> Self {
        match template {
            domain::Template::Paper => Self::Paper,
            domain::Template::Chat => Self::Chat,
            domain::Template::None => Self::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut PromptSpec)) -> String {
        let mut wire = PromptSpec { prompt: Some(Prompt::Text("hello".to_owned())), ..PromptSpec::default() };
        change(&mut wire);
        spec(Some(wire)).unwrap_err().field
    }

    #[test]
    fn what_is_missing_or_unknown_is_named() {
        assert_eq!(spec(None).unwrap_err().field, "spec");
        assert_eq!(refused(|spec| spec.prompt = None), "spec.prompt");
        assert_eq!(refused(|spec| spec.template = 9), "spec.template");
        assert_eq!(refused(|spec| spec.persona = Some(PersonaSource { source: None })), "spec.persona.source");
        assert_eq!(refused(|spec| spec.persona_in_prompt = true), "spec.persona_in_prompt");
        let empty = Prompt::Messages(MessageList::default());
        assert_eq!(refused(|spec| spec.prompt = Some(empty)), "spec.messages");
    }

    #[test]
    fn the_parts_of_personas_and_messages_are_named() {
        let persona = |source| Some(PersonaSource { source: Some(source) });
        assert_eq!(refused(|spec| spec.persona = persona(Source::Text(" ".to_owned()))), "spec.persona.text");
        assert_eq!(refused(|spec| spec.persona = persona(Source::Id(String::new()))), "spec.persona.id");
        let message = |role| crate::Message { role, content: String::new() };
        for role in [0, 4, -1] {
            let messages = MessageList { messages: vec![message(1), message(role)] };
            let field = refused(|spec| spec.prompt = Some(Prompt::Messages(messages)));
            assert_eq!(field, "spec.messages.messages[1].role");
        }
    }
}
