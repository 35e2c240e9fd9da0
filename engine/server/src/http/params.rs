//! The fields that chat and completions share: sampling, stops, lengths, and our extensions persona and template.

use std::{collections::BTreeMap, time::Duration};

use bespoke_domain::{
    Generate, Invalid, Persona, PersonaId, PersonaSource, Priority, RequestId, Sampling, SamplingParams, Template,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::fields::Fields;

/// Fields that may be sent and never change an answer: they tell a service about accounts, storage or routing.
pub(crate) const HARMLESS: [&str; 8] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
];

/// How the answer is sent.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Delivery {
    /// The model that the request names.
    pub(crate) model: Option<String>,
    pub(crate) stream: bool,
    /// Whether a stream ends with a chunk that holds the usage.
    pub(crate) include_usage: bool,
}

/// One stop string or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Stop {
    One(String),
    Several(Vec<String>),
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct StreamOptions {
    include_usage: bool,
}

/// Takes the model's name and the way of delivery.
pub(crate) fn delivery(fields: &mut Fields) -> Result<Delivery, Invalid> {
    let stream = fields.take("stream")?.unwrap_or(false);
    let options: StreamOptions = fields.take("stream_options")?.unwrap_or_default();
    Ok(Delivery { model: fields.take("model")?, stream, include_usage: options.include_usage })
}

/// Takes every shared parameter but the length.
pub(crate) fn apply(fields: &mut Fields, generate: &mut Generate) -> Result<(), Invalid> {
    generate.sampling = sampling(fields)?;
    generate.n = fields.take("n")?.unwrap_or(1);
    generate.stop.strings = match fields.take("stop")? {
        None => Vec::new(),
        Some(Stop::One(text)) => vec![text],
        Some(Stop::Several(texts)) => texts,
    };
    generate.stop.tokens = fields.take("stop_token_ids")?.unwrap_or_default();
    generate.stop.ignore_end = fields.take("ignore_eos")?.unwrap_or(false);
    generate.min_new_tokens = fields.take("min_tokens")?.unwrap_or(0);
    generate.draft_tokens_max = fields.take("draft_tokens_max")?.unwrap_or(0);
    generate.time_limit = fields.take("time_limit_ms")?.map(Duration::from_millis);
    generate.priority = Priority::new(fields.take("priority")?.unwrap_or(0))?;
    generate.request_id = fields.take::<String>("request_id")?.map(RequestId::new).transpose()?;
    let spec = &mut generate.spec;
    spec.persona = persona(fields.take_value("persona"))?;
    spec.response_prefix = fields.take("response_prefix")?.unwrap_or_default();
    spec.persona_in_prompt = fields.take("persona_in_prompt")?.unwrap_or(false);
    spec.prefix_cache.salt = fields.take("cache_salt")?.unwrap_or_default();
    if let Some(name) = fields.take::<String>("template")? {
        spec.template = Some(template(&name)?);
    }
    Ok(())
}

/// Takes the length of the answer.
pub(crate) fn max_tokens(fields: &mut Fields, name: &str) -> Result<Option<u32>, Invalid> {
    match fields.take(name)? {
        Some(0) => Err(Invalid::new(name, "is 0, must be at least 1")),
        given => Ok(given),
    }
}

fn sampling(fields: &mut Fields) -> Result<Sampling, Invalid> {
    let default = SamplingParams::default();
    Sampling::try_from(SamplingParams {
        temperature: fields.take("temperature")?.unwrap_or(default.temperature),
        top_k: fields.take("top_k")?.unwrap_or(default.top_k),
        top_p: fields.take("top_p")?.unwrap_or(default.top_p),
        min_p: fields.take("min_p")?.unwrap_or(default.min_p),
        repetition_penalty: fields.take("repetition_penalty")?.unwrap_or(default.repetition_penalty),
        frequency_penalty: fields.take("frequency_penalty")?.unwrap_or(default.frequency_penalty),
        presence_penalty: fields.take("presence_penalty")?.unwrap_or(default.presence_penalty),
        logit_bias: logit_bias(fields.take("logit_bias")?.unwrap_or_default())?,
        seed: seed(fields.take_value("seed"))?,
    })
}

/// OpenAI's keys are token ids as strings.
fn logit_bias(given: BTreeMap<String, f32>) -> Result<BTreeMap<u32, f32>, Invalid> {
    let entry = |(token, bias): (String, f32)| match token.parse() {
        Ok(token) => Ok((token, bias)),
        Err(_) => Err(Invalid::new("logit_bias", "has a key that is no token id")),
    };
    given.into_iter().map(entry).collect()
}

/// OpenAI's seeds are signed; a negative one stands for its two's complement.
fn seed(value: Option<Value>) -> Result<Option<u64>, Invalid> {
    let Some(value) = value else { return Ok(None) };
    let seed = value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned));
    seed.map(Some).ok_or_else(|| Invalid::new("seed", "must be a whole number of 64 bits"))
}

/// A text; or an object with one member of `text`, `id`, `system` and `none`, as the wire's `PersonaSource` in JSON.
pub(crate) fn persona(value: Option<Value>) -> Result<PersonaSource, Invalid> {
    let object = match value {
        None => return Ok(PersonaSource::None),
        Some(Value::String(text)) => return Persona::new(text).map(PersonaSource::Text),
        Some(Value::Object(object)) => object,
        Some(_) => return Err(Invalid::new("persona", "must be a text or an object")),
    };
    if object.len() != 1 {
        return Err(Invalid::new("persona", "must have exactly one of text, id, system and none"));
    }
    let mut fields = Fields::new(object);
    let within = |invalid: Invalid| invalid.within("persona");
    if let Some(text) = fields.take::<String>("text").map_err(within)? {
        return Persona::new(text).map(PersonaSource::Text);
    }
    if let Some(id) = fields.take::<String>("id").map_err(within)? {
        return PersonaId::new(id).map(PersonaSource::Id);
    }
    let set = |value: Option<Value>| value == Some(json!(true)) || value == Some(Value::Object(Map::new()));
    match (set(fields.take_value("system")), set(fields.take_value("none"))) {
        (true, _) => Ok(PersonaSource::System),
        (_, true) => Ok(PersonaSource::None),
        _ => Err(Invalid::new("persona", "must have exactly one of text, id, system and none")),
    }
}

pub(crate) fn template(name: &str) -> Result<Template, Invalid> {
    let all = [Template::Paper, Template::Chat, Template::None];
    let found = all.into_iter().find(|template| template.as_str() == name);
    found.ok_or_else(|| Invalid::new("template", "must be paper, chat or none"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Generate, Invalid> {
        let mut fields = Fields::parse(text.as_bytes())?;
        let mut generate = Generate::text("hello");
        delivery(&mut fields)?;
        apply(&mut fields, &mut generate)?;
        fields.finish(&HARMLESS)?;
        Ok(generate)
    }

    #[test]
    fn nothing_given_is_the_default() {
        assert_eq!(read(r#"{"user": "me"}"#).unwrap(), Generate::text("hello"));
    }

    #[test]
    fn all_that_is_given_is_taken() {
        let generate = read(
            r#"{"stop": "x", "seed": -1, "temperature": 0.5, "n": 3, "logit_bias": {"7": -2}, "template": "paper",
                "persona": {"id": "novice"}, "top_k": 5, "ignore_eos": true, "time_limit_ms": 7}"#,
        )
        .unwrap();
        assert_eq!(generate.stop.strings, ["x"]);
        assert_eq!((generate.sampling.seed, generate.sampling.temperature), (Some(u64::MAX), 0.5));
        assert_eq!((generate.n, generate.sampling.logit_bias[&7], generate.sampling.top_k), (3, -2.0, 5));
        assert_eq!(generate.spec.persona, PersonaSource::Id(PersonaId::new("novice").unwrap()));
        assert_eq!(generate.spec.template, Some(Template::Paper));
        assert_eq!(generate.time_limit, Some(Duration::from_millis(7)));
    }

    #[test]
    fn a_persona_has_four_forms() {
        let source = |value| persona(Some(value));
        assert_eq!(source(json!("A cook.")).unwrap(), PersonaSource::Text(Persona::new("A cook.").unwrap()));
        assert_eq!(source(json!({"text": "A cook."})).unwrap(), PersonaSource::Text(Persona::new("A cook.").unwrap()));
        assert_eq!(source(json!({"system": true})).unwrap(), PersonaSource::System);
        assert_eq!(source(json!({"none": {}})).unwrap(), PersonaSource::None);
        for wrong in [json!(7), json!({}), json!({"retrieve": 1}), json!({"system": false}), json!(" ")] {
            assert_eq!(source(wrong).unwrap_err().field, "persona");
        }
        assert_eq!(source(json!({"id": 7})).unwrap_err().field, "persona.id");
        assert_eq!(source(json!({"id": "a", "text": "b"})).unwrap_err().field, "persona");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let bad = [
            (r#"{"temperature": -1}"#, "temperature"),
            (r#"{"temperature": "hot"}"#, "temperature"),
            (r#"{"top_p": 2}"#, "top_p"),
            (r#"{"n": -1}"#, "n"),
            (r#"{"stop": [1]}"#, "stop"),
            (r#"{"seed": 1.5}"#, "seed"),
            (r#"{"logit_bias": {"x": 1}}"#, "logit_bias"),
            (r#"{"template": "own"}"#, "template"),
            (r#"{"request_id": "a b"}"#, "request_id"),
            (r#"{"priority": 1000}"#, "priority"),
            (r#"{"stream": 1}"#, "stream"),
            (r#"{"temprature": 1}"#, "temprature"),
        ];
        for (text, field) in bad {
            assert_eq!(read(text).unwrap_err().field, field, "{text}");
        }
    }
}
