//! `/v1/completions`: its request and the JSON of its answers.

use bespoke_domain::{Generate, Invalid, Logprobs, Prompt, PromptSpec, Template, TokenLogprob};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    fields::Fields,
    params::{self, Delivery, HARMLESS},
};

/// OpenAI's default of `max_tokens` for completions.
const MAX_TOKENS: u32 = 16;

/// One prompt, as text or as token ids, also as the only entry of a list.
#[derive(Deserialize)]
#[serde(untagged)]
enum PromptField {
    Text(String),
    Tokens(Vec<u32>),
    Texts([String; 1]),
    TokenLists([Vec<u32>; 1]),
}

/// Reads the body of a request.
///
/// **Errors**: the first field that is wrong, unknown or not supported.
pub(crate) fn read(body: &[u8]) -> Result<(Generate, Delivery), Invalid> {
    let mut fields = Fields::parse(body)?;
    let delivery = params::delivery(&mut fields)?;
    let prompt = fields.take_value("prompt").ok_or_else(|| Invalid::new("prompt", "is missing"))?;
    let prompt = match serde_json::from_value(prompt) {
        Ok(PromptField::Text(text) | PromptField::Texts([text])) => Prompt::Text(text),
        Ok(PromptField::Tokens(ids) | PromptField::TokenLists([ids])) => Prompt::Tokens(ids),
        Err(_) => return Err(Invalid::new("prompt", "must be one text or one list of token ids")),
    };
    let mut generate = Generate::new(PromptSpec::new(prompt));
    params::apply(&mut fields, &mut generate)?;
    generate.spec.template.get_or_insert(Template::None);
    generate.max_new_tokens = params::max_tokens(&mut fields, "max_tokens")?.unwrap_or(MAX_TOKENS);
    generate.echo = fields.take("echo")?.unwrap_or(false);
    if let Some(top) = fields.take("logprobs")? {
        generate.logprobs = Logprobs { sampled: true, top, prompt: generate.echo };
    }
    fields.only("best_of", &[json!(generate.n)])?;
    fields.only("suffix", &[json!("")])?;
    fields.finish(&HARMLESS)?;
    Ok((generate, delivery))
}

/// Returns a choice of a whole answer or of a chunk.
pub(crate) fn choice(index: u32, text: &str, logprobs: Option<Value>, finish_reason: Option<&str>) -> Value {
    json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason})
}

/// Returns the log-probabilities of tokens, where asked for. `offset` is where the first of them begins, in characters; it
/// moves on by their length.
pub(crate) fn logprobs(asked: &Logprobs, tokens: &[TokenLogprob], offset: &mut usize) -> Option<Value> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let top = |token: &TokenLogprob| match (token.logprob, asked.top) {
        (None, _) | (_, 0) => Value::Null,
        _ => token.top.iter().map(|top| (text(&top.bytes), json!(top.logprob))).collect::<Map<_, _>>().into(),
    };
    let mut begin = |token: &TokenLogprob| {
        let begin = *offset;
        // A character begins with every byte that does not continue one.
        *offset += token.bytes.iter().filter(|&&byte| byte & 0xC0 != 0x80).count();
        begin
    };
    asked.sampled.then(|| {
        json!({
            "tokens": tokens.iter().map(|token| text(&token.bytes)).collect::<Vec<_>>(),
            "token_logprobs": tokens.iter().map(|token| token.logprob).collect::<Vec<_>>(),
            "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
            "text_offset": tokens.iter().map(&mut begin).collect::<Vec<_>>(),
        })
    })
}

#[cfg(test)]
mod tests {
    use bespoke_domain::TopLogprob;

    use super::*;

    fn read_text(text: &str) -> Result<Generate, Invalid> {
        read(text.as_bytes()).map(|(generate, _)| generate)
    }

    #[test]
    fn a_prompt_is_one_text_or_one_list_of_ids() {
        let prompt = |value: &str| read_text(&format!(r#"{{"prompt": {value}}}"#)).map(|generate| generate.spec.prompt);
        assert_eq!(prompt("\"a\"").unwrap(), Prompt::Text("a".to_owned()));
        assert_eq!(prompt("[\"a\"]").unwrap(), Prompt::Text("a".to_owned()));
        assert_eq!(prompt("[1, 2]").unwrap(), Prompt::Tokens(vec![1, 2]));
        assert_eq!(prompt("[[1, 2]]").unwrap(), Prompt::Tokens(vec![1, 2]));
        for wrong in ["[\"a\", \"b\"]", "7", "[[1], [2]]", "[-1]", "null"] {
            assert_eq!(prompt(wrong).unwrap_err().field, "prompt", "{wrong}");
        }
    }

    #[test]
    fn defaults_are_openais() {
        let generate = read_text(r#"{"prompt": "a"}"#).unwrap();
        assert_eq!((generate.max_new_tokens, generate.spec.template), (16, Some(Template::None)));
        let generate =
            read_text(r#"{"prompt": "a", "echo": true, "logprobs": 0, "best_of": 1, "suffix": null}"#).unwrap();
        assert_eq!(generate.logprobs, Logprobs { sampled: true, top: 0, prompt: true });
        assert_eq!(read_text(r#"{"prompt": "a", "best_of": 2}"#).unwrap_err().field, "best_of");
        assert_eq!(read_text(r#"{"prompt": "a", "suffix": "b"}"#).unwrap_err().field, "suffix");
        assert_eq!(read_text(r#"{"prompt": "a", "messages": []}"#).unwrap_err().field, "messages");
    }

    #[test]
    fn offsets_count_characters() {
        let token = |bytes: &[u8]| TokenLogprob {
            token: 0,
            bytes: bytes.to_vec(),
            logprob: Some(-1.0),
            top: vec![TopLogprob { token: 1, bytes: b"x".to_vec(), logprob: -0.5 }],
        };
        let tokens = [token("né".as_bytes()), token(&[0xE2, 0x82]), token(&[0xAC]), token(b"z")];
        let asked = Logprobs { sampled: true, top: 1, prompt: false };
        let mut offset = 10;
        let shown = logprobs(&asked, &tokens, &mut offset).unwrap();
        assert_eq!(shown["text_offset"], json!([10, 12, 13, 13]));
        assert_eq!(shown["top_logprobs"][0], json!({"x": -0.5}));
        assert_eq!(offset, 14);
        assert_eq!(logprobs(&Logprobs::default(), &tokens, &mut offset), None);
    }
}
