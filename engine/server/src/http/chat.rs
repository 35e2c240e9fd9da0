//! `/v1/chat/completions`: its request and the JSON of its answers.

use bespoke_domain::{Generate, Invalid, Logprobs, Message, Prompt, PromptSpec, Role, Template, TokenLogprob};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    fields::Fields,
    params::{self, Delivery, HARMLESS},
};

/// What a server of chats has to know about its model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChatModel {
    /// The template of requests that name none.
    pub(crate) default_template: Template,
    /// The most tokens of prompt and answer together.
    pub(crate) context_tokens_max: u32,
}

/// Reads the body of a request.
///
/// **Errors**: the first field that is wrong, unknown or not supported.
pub(crate) fn read(body: &[u8], model: ChatModel) -> Result<(Generate, Delivery), Invalid> {
    let mut fields = Fields::parse(body)?;
    let delivery = params::delivery(&mut fields)?;
    let messages: Vec<Value> = fields.take("messages")?.ok_or_else(|| Invalid::new("messages", "is missing"))?;
    let messages = messages.into_iter().enumerate().map(message).collect::<Result<_, _>>()?;
    let mut generate = Generate::new(PromptSpec::new(Prompt::Messages(messages)));
    params::apply(&mut fields, &mut generate)?;
    let newer = params::max_tokens(&mut fields, "max_completion_tokens")?;
    let older = params::max_tokens(&mut fields, "max_tokens")?;
    // As with OpenAI, an answer without a limit ends with the context.
    generate.max_new_tokens = newer.or(older).unwrap_or(model.context_tokens_max);
    generate.logprobs.sampled = fields.take("logprobs")?.unwrap_or(false);
    generate.logprobs.top = fields.take("top_logprobs")?.unwrap_or(0);
    if generate.logprobs.top > 0 && !generate.logprobs.sampled {
        return Err(Invalid::new("top_logprobs", "needs logprobs to be true"));
    }
    refuse_what_is_not_here(&mut fields)?;
    fields.finish(&HARMLESS)?;
    take_as_text(&mut generate.spec, model.default_template);
    Ok((generate, delivery))
}

/// A template without turns takes a conversation of one question.
fn take_as_text(spec: &mut PromptSpec, default: Template) {
    if spec.template.unwrap_or(default) != Template::Chat
        && let Prompt::Messages(messages) = &mut spec.prompt
        && let [Message { role: Role::User, content }] = messages.as_mut_slice()
    {
        spec.prompt = Prompt::Text(std::mem::take(content));
    }
}

fn refuse_what_is_not_here(fields: &mut Fields) -> Result<(), Invalid> {
    fields.only("response_format", &[json!({"type": "text"})])?;
    fields.only("modalities", &[json!(["text"])])?;
    fields.only("tool_choice", &[json!("none"), json!("auto")])?;
    fields.only("function_call", &[json!("none"), json!("auto")])?;
    for name in ["tools", "functions", "audio", "prediction", "web_search_options", "reasoning_effort", "verbosity"] {
        fields.only(name, &[])?;
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

fn message((index, value): (usize, Value)) -> Result<Message, Invalid> {
    let within = |invalid: Invalid| match invalid.field.as_str() {
        "" => Invalid::new(format!("messages[{index}]"), invalid.reason),
        _ => invalid.within(&format!("messages[{index}]")),
    };
    let Value::Object(object) = value else {
        return Err(within(Invalid::new("", "must be an object with role and content")));
    };
    message_of(object).map_err(within)
}

fn message_of(object: Map<String, Value>) -> Result<Message, Invalid> {
    let mut fields = Fields::new(object);
    let role = match fields.take::<String>("role")?.as_deref() {
        Some("system" | "developer") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        _ => return Err(Invalid::new("role", "must be system, developer, user or assistant")),
    };
    let content = match fields.take("content")? {
        None => return Err(Invalid::new("content", "is missing")),
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => parts.into_iter().map(text_of).collect::<Result<_, _>>()?,
    };
    // An assistant's turn comes back as it was answered, with these set to nothing.
    for name in ["name", "tool_calls", "function_call", "refusal", "audio", "annotations"] {
        fields.only(name, &[])?;
    }
    fields.finish(&[])?;
    Ok(Message { role, content })
}

fn text_of(part: Part) -> Result<String, Invalid> {
    match part {
        Part { kind, text: Some(text) } if kind == "text" => Ok(text),
        _ => Err(Invalid::new("content", "has a part that is not text; this server takes text only")),
    }
}

/// Returns a choice of a whole answer.
pub(crate) fn choice(index: u32, text: &str, logprobs: Option<Value>, finish_reason: &str) -> Value {
    json!({
        "index": index,
        "message": {"role": "assistant", "content": text, "refusal": null},
        "logprobs": logprobs,
        "finish_reason": finish_reason,
    })
}

/// Returns a choice of a chunk; the first one of each choice names the role.
pub(crate) fn chunk_choice(index: u32, text: &str, logprobs: Option<Value>, is_first: bool) -> Value {
    let mut delta = json!({"content": text});
    if is_first {
        delta = json!({"role": "assistant", "content": text, "refusal": null});
    }
    json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": null})
}

/// Returns the choice of the chunk that ends it.
pub(crate) fn last_choice(index: u32, finish_reason: &str) -> Value {
    json!({"index": index, "delta": {}, "logprobs": null, "finish_reason": finish_reason})
}

/// Returns the log-probabilities of tokens, where asked for.
pub(crate) fn logprobs(asked: &Logprobs, tokens: &[TokenLogprob]) -> Option<Value> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let token = |token: &TokenLogprob| {
        let top = token.top.iter();
        let top = top.map(|top| json!({"token": text(&top.bytes), "logprob": top.logprob, "bytes": top.bytes}));
        json!({
            "token": text(&token.bytes),
            "logprob": token.logprob,
            "bytes": token.bytes,
            "top_logprobs": top.collect::<Vec<_>>(),
        })
    };
    asked.sampled.then(|| json!({"content": tokens.iter().map(token).collect::<Vec<_>>(), "refusal": null}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_for(default_template: Template, text: &str) -> Result<(Generate, Delivery), Invalid> {
        read(text.as_bytes(), ChatModel { default_template, context_tokens_max: 99 })
    }

    fn field(text: &str) -> String {
        read_for(Template::Chat, text).unwrap_err().field
    }

    #[test]
    fn a_conversation_is_read() {
        let (generate, delivery) = read_for(
            Template::Chat,
            r#"{"model": "m", "stream": true, "stream_options": {"include_usage": true}, "logprobs": true, "top_logprobs": 2,
                "max_completion_tokens": 5, "messages": [{"role": "developer", "content": "Be kind."},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": "c", "refusal": null, "tool_calls": null}]}"#,
        )
        .unwrap();
        let message = |role, content: &str| Message { role, content: content.to_owned() };
        let want = vec![message(Role::System, "Be kind."), message(Role::User, "ab"), message(Role::Assistant, "c")];
        assert_eq!(generate.spec.prompt, Prompt::Messages(want));
        assert_eq!((generate.max_new_tokens, generate.logprobs.top), (5, 2));
        assert_eq!(delivery, Delivery { model: Some("m".to_owned()), stream: true, include_usage: true });
    }

    #[test]
    fn an_answer_without_a_limit_ends_with_the_context() {
        let (generate, _) = read_for(Template::Chat, r#"{"messages": [{"role": "user", "content": "a"}]}"#).unwrap();
        assert_eq!(generate.max_new_tokens, 99);
    }

    #[test]
    fn one_question_suits_a_model_without_a_chat_template() {
        let one = r#"{"messages": [{"role": "user", "content": "a"}]}"#;
        let two = r#"{"messages": [{"role": "system", "content": "b"}, {"role": "user", "content": "a"}]}"#;
        let (generate, _) = read_for(Template::Paper, one).unwrap();
        assert_eq!(generate.spec.prompt, Prompt::Text("a".to_owned()));
        assert!(matches!(read_for(Template::Paper, two).unwrap().0.spec.prompt, Prompt::Messages(_)));
    }

    #[test]
    fn what_is_not_here_is_named() {
        let user = r#"{"role": "user", "content": "a"}"#;
        let with = |rest: &str| field(&format!(r#"{{"messages": [{user}], {rest}}}"#));
        assert_eq!(with(r#""tools": [{"type": "function"}]"#), "tools");
        assert_eq!(with(r#""tool_choice": "required""#), "tool_choice");
        assert_eq!(with(r#""response_format": {"type": "json_object"}"#), "response_format");
        assert_eq!(with(r#""top_logprobs": 2"#), "top_logprobs");
        assert_eq!(with(r#""max_tokens": 0"#), "max_tokens");
        assert_eq!(with(r#""best_of": 2"#), "best_of");
        assert_eq!(field("{}"), "messages");
        let message = |message: &str| field(&format!(r#"{{"messages": [{user}, {message}]}}"#));
        assert_eq!(message("1"), "messages[1]");
        assert_eq!(message(r#"{"role": "tool", "content": "a"}"#), "messages[1].role");
        assert_eq!(message(r#"{"role": "user"}"#), "messages[1].content");
        assert_eq!(message(r#"{"role": "user", "content": [{"type": "image_url"}]}"#), "messages[1].content");
        assert_eq!(message(r#"{"role": "user", "content": "a", "name": "Bob"}"#), "messages[1].name");
        assert_eq!(message(r#"{"role": "user", "content": "a", "mood": "good"}"#), "messages[1].mood");
    }
}
