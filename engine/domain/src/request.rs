//! Requests: what a caller asks of the engine, checked.

use std::{ops::Deref, time::Duration};

use crate::{Invalid, PersonaSource, Sampling, Template, TokenId};

/// Who says a chat message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Instructions that stand above the conversation.
    System,
    /// The person who asks.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// Returns the name that chat templates use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One chat message.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: String,
}

/// Hides the text: prompts are not logged.
impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Message({}, {} bytes)", self.role.as_str(), self.content.len())
    }
}

/// What the user asks, in one of three forms.
#[derive(Clone, PartialEq, Eq)]
pub enum Prompt {
    /// One text.
    Text(String),
    /// A conversation; never empty.
    Messages(Vec<Message>),
    /// Token ids, used as they are: no template, no persona, no BOS added; never empty.
    Tokens(Vec<TokenId>),
}

/// Hides the text: prompts are not logged.
impl std::fmt::Debug for Prompt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) => write!(f, "Text({} bytes)", text.len()),
            Self::Messages(messages) => write!(f, "Messages({})", messages.len()),
            Self::Tokens(ids) => write!(f, "Tokens({})", ids.len()),
        }
    }
}

/// A prompt with its persona and the way in which both become text.
#[derive(Clone, PartialEq, Eq)]
pub struct PromptSpec {
    /// What the user asks.
    pub prompt: Prompt,
    /// For whom the answer is.
    pub persona: PersonaSource,
    /// The template; `None` takes the model's chat template where it has one, else the paper's.
    pub template: Option<Template>,
    /// Paper template only: the persona joins the prompt line in the first person instead of standing on its own line, as
    /// models that were trained without personas need it.
    pub persona_in_prompt: bool,
    /// Text that the answer starts with. It is part of the prompt, not of the answer.
    pub response_prefix: String,
    /// How the prefix cache is used.
    pub prefix_cache: PrefixCache,
}

/// How a request uses the prefix cache, in which prompts with the same beginning share what was computed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrefixCache {
    /// Neither reads nor fills the cache.
    pub off: bool,
    /// Shares only with requests of the same salt, so that tenants cannot find out each other's prompts by timing. At most
    /// 256 bytes.
    pub salt: String,
}

impl PrefixCache {
    /// The longest salt, in bytes.
    pub const SALT_BYTES_MAX: usize = 256;
}

/// Hides the texts: prompts are not logged.
impl std::fmt::Debug for PromptSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { prompt, persona, template, .. } = self;
        write!(f, "PromptSpec({prompt:?}, {persona:?}, {template:?})")
    }
}

impl PromptSpec {
    /// Wraps a prompt with all defaults.
    pub fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            persona: PersonaSource::None,
            template: None,
            persona_in_prompt: false,
            response_prefix: String::new(),
            prefix_cache: PrefixCache::default(),
        }
    }

    /// Checks the rules that hold between the fields.
    ///
    /// **Errors**: the field that does not go with the others.
    pub fn check(&self) -> Result<(), Invalid> {
        match &self.prompt {
            Prompt::Messages(messages) if messages.is_empty() => {
                return Err(Invalid::new("prompt.messages", "is empty, must have at least one message"));
            }
            Prompt::Tokens(ids) if ids.is_empty() => {
                return Err(Invalid::new("prompt.token_ids", "is empty, must have at least one token"));
            }
            Prompt::Tokens(_) if self.template.is_some_and(|template| template != Template::None) => {
                return Err(Invalid::new("template", "does not go with token ids; leave it out or set none"));
            }
            Prompt::Tokens(_) if self.persona != PersonaSource::None => {
                return Err(Invalid::new("persona", "does not go with token ids; send text or messages"));
            }
            Prompt::Tokens(_) if !self.response_prefix.is_empty() => {
                return Err(Invalid::new("response_prefix", "does not go with token ids; append its tokens"));
            }
            _ => {}
        }
        let salt_bytes = self.prefix_cache.salt.len();
        if salt_bytes > PrefixCache::SALT_BYTES_MAX {
            let reason = format!("has {salt_bytes} bytes, at most {}", PrefixCache::SALT_BYTES_MAX);
            return Err(Invalid::new("prefix_cache.salt", reason));
        }
        if self.persona_in_prompt && self.template != Some(Template::Paper) {
            return Err(Invalid::new("persona_in_prompt", "needs the template paper"));
        }
        Ok(())
    }
}

/// The name of a request in logs and events. 1 to 128 printable ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(String);

impl RequestId {
    /// The longest id, in bytes.
    pub const BYTES_MAX: usize = 128;

    /// Checks a text.
    ///
    /// **Errors**: an empty or too long text or one with other characters, as field `request_id`.
    pub fn new(text: impl Into<String>) -> Result<Self, Invalid> {
        let text = text.into();
        let holds = (1..=Self::BYTES_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        if holds {
            Ok(Self(text))
        } else {
            Err(Invalid::new("request_id", "must be 1..=128 printable ASCII characters"))
        }
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// When an answer ends, beside its length.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Stop {
    /// The answer ends before the first of these texts. At most 16 of 1 to 256 bytes.
    pub strings: Vec<String>,
    /// The answer ends at one of these tokens, which is not part of its text. At most 64.
    pub tokens: Vec<TokenId>,
    /// Goes on after the model's own end tokens.
    pub ignore_end: bool,
}

/// Hides the strings: they may quote a prompt.
impl std::fmt::Debug for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stop({} strings, {} tokens, ignore_end: {})", self.strings.len(), self.tokens.len(), self.ignore_end)
    }
}

/// Which log-probabilities the events carry. They are of the model's own distribution, before any sampling parameter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Logprobs {
    /// Those of the tokens of the answer.
    pub sampled: bool,
    /// Also those of this many most likely tokens at each place. At most 20.
    pub top: u32,
    /// Those of the tokens of the prompt, in the first delta of each choice. Implies echo of the prompt's tokens there.
    pub prompt: bool,
}

/// How soon a request is taken from the queue: higher first, equal ones in order of arrival. Range -100..=100.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Priority(i32);

impl Priority {
    /// Checks a number.
    ///
    /// **Errors**: one out of -100..=100, as field `priority`.
    pub fn new(priority: i32) -> Result<Self, Invalid> {
        if (-100..=100).contains(&priority) {
            Ok(Self(priority))
        } else {
            Err(Invalid::new("priority", format!("is {priority}, must be -100..=100")))
        }
    }

    /// Returns the number.
    pub fn get(self) -> i32 {
        self.0
    }
}

/// A generation as asked for; [`Request`] is the checked form.
#[derive(Clone, Debug, PartialEq)]
pub struct Generate {
    /// Names the request in logs and events; `None` lets the engine choose.
    pub request_id: Option<RequestId>,
    /// Prompt, persona and template.
    pub spec: PromptSpec,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// The longest answer, in tokens, at least 1. The context of the model may end it sooner.
    pub max_new_tokens: u32,
    /// No end token, stop token or stop string ends the answer before this many tokens.
    pub min_new_tokens: u32,
    /// When the answer ends.
    pub stop: Stop,
    /// Which log-probabilities to report.
    pub logprobs: Logprobs,
    /// The first delta of each choice holds the rendered prompt.
    pub echo: bool,
    /// How many answers. Range 1..=16.
    pub n: u32,
    /// How soon the request leaves the queue.
    pub priority: Priority,
    /// Ends the answers with [`crate::FinishReason::TimeLimit`] after this time in the engine.
    pub time_limit: Option<Duration>,
    /// How many tokens to draft from earlier text and check in one step. Range 0..=16; 0 drafts none. The answer is the same,
    /// it only comes faster where it repeats what was said, as in edits, summaries and code.
    pub draft_tokens_max: u32,
}

impl Generate {
    /// The default of `max_new_tokens`. **Source**: paper section 4, inference settings.
    pub const MAX_NEW_TOKENS: u32 = 512;

    /// Asks for an answer to a text with all defaults.
    pub fn text(prompt: impl Into<String>) -> Self {
        Self::new(PromptSpec::new(Prompt::Text(prompt.into())))
    }

    /// Asks for an answer with all defaults.
    pub fn new(spec: PromptSpec) -> Self {
        Self {
            request_id: None,
            spec,
            sampling: Sampling::default(),
            max_new_tokens: Self::MAX_NEW_TOKENS,
            min_new_tokens: 0,
            stop: Stop::default(),
            logprobs: Logprobs::default(),
            echo: false,
            n: 1,
            priority: Priority::default(),
            time_limit: None,
            draft_tokens_max: 0,
        }
    }
}

/// A checked [`Generate`].
#[derive(Clone, Debug, PartialEq)]
pub struct Request(Generate);

impl Request {
    /// The most answers of one request.
    pub const N_MAX: u32 = 16;
    /// The most stop strings.
    pub const STOP_STRINGS_MAX: usize = 16;
    /// The longest stop string, in bytes.
    pub const STOP_STRING_BYTES_MAX: usize = 256;
    /// The most stop tokens.
    pub const STOP_TOKENS_MAX: usize = 64;
    /// The most tokens drafted for a step.
    pub const DRAFT_TOKENS_MAX: u32 = 16;
    /// The most alternatives reported at a place.
    pub const TOP_LOGPROBS_MAX: u32 = 20;
}

impl Deref for Request {
    type Target = Generate;

    fn deref(&self) -> &Generate {
        &self.0
    }
}

impl TryFrom<Generate> for Request {
    type Error = Invalid;

    fn try_from(generate: Generate) -> Result<Self, Invalid> {
        generate.spec.check()?;
        check(generate.max_new_tokens >= 1, "max_new_tokens", || "is 0, must be at least 1".to_owned())?;
        check(generate.min_new_tokens <= generate.max_new_tokens, "min_new_tokens", || {
            format!("is {}, more than max_new_tokens {}", generate.min_new_tokens, generate.max_new_tokens)
        })?;
        check((1..=Self::N_MAX).contains(&generate.n), "n", || {
            format!("is {}, must be 1..={}", generate.n, Self::N_MAX)
        })?;
        check(generate.logprobs.top <= Self::TOP_LOGPROBS_MAX, "logprobs.top", || {
            format!("is {}, must be 0..={}", generate.logprobs.top, Self::TOP_LOGPROBS_MAX)
        })?;
        check(generate.draft_tokens_max <= Self::DRAFT_TOKENS_MAX, "draft_tokens_max", || {
            format!("is {}, must be 0..={}", generate.draft_tokens_max, Self::DRAFT_TOKENS_MAX)
        })?;
        check_stop(&generate.stop)?;
        Ok(Self(generate))
    }
}

fn check_stop(stop: &Stop) -> Result<(), Invalid> {
    check(stop.strings.len() <= Request::STOP_STRINGS_MAX, "stop.strings", || {
        format!("has {} entries, at most {}", stop.strings.len(), Request::STOP_STRINGS_MAX)
    })?;
    for (index, string) in stop.strings.iter().enumerate() {
        check((1..=Request::STOP_STRING_BYTES_MAX).contains(&string.len()), &format!("stop.strings[{index}]"), || {
            format!("has {} bytes, must have 1..={}", string.len(), Request::STOP_STRING_BYTES_MAX)
        })?;
    }
    check(stop.tokens.len() <= Request::STOP_TOKENS_MAX, "stop.tokens", || {
        format!("has {} entries, at most {}", stop.tokens.len(), Request::STOP_TOKENS_MAX)
    })
}

fn check(holds: bool, field: &str, reason: impl FnOnce() -> String) -> Result<(), Invalid> {
    if holds { Ok(()) } else { Err(Invalid::new(field, reason())) }
}

/// The text or tokens whose log-probability is asked for; never empty.
#[derive(Clone, PartialEq, Eq)]
pub enum Continuation {
    /// Text, tokenized apart from the prompt.
    Text(String),
    /// Token ids.
    Tokens(Vec<TokenId>),
}

/// Hides the text: answers are not logged.
impl std::fmt::Debug for Continuation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) => write!(f, "Text({} bytes)", text.len()),
            Self::Tokens(ids) => write!(f, "Tokens({})", ids.len()),
        }
    }
}

/// A request for the log-probability of a given continuation.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreRequest {
    /// Names the request in logs; `None` lets the engine choose.
    pub request_id: Option<RequestId>,
    /// Prompt, persona and template.
    pub spec: PromptSpec,
    /// What follows the prompt.
    pub continuation: Continuation,
    /// How many most likely tokens to report at each place. At most 20.
    pub top: u32,
    /// How soon the request leaves the queue.
    pub priority: Priority,
}

impl ScoreRequest {
    /// Checks the rules of the fields.
    ///
    /// **Errors**: the first field that breaks one.
    pub fn check(&self) -> Result<(), Invalid> {
        self.spec.check()?;
        let empty = match &self.continuation {
            Continuation::Text(text) => text.is_empty(),
            Continuation::Tokens(ids) => ids.is_empty(),
        };
        check(!empty, "continuation", || "is empty, must have at least one token".to_owned())?;
        check(self.top <= Request::TOP_LOGPROBS_MAX, "top_logprobs", || {
            format!("is {}, must be 0..={}", self.top, Request::TOP_LOGPROBS_MAX)
        })
    }
}

/// The log-probabilities of a continuation.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// One entry a token of the continuation.
    pub tokens: Vec<crate::TokenLogprob>,
    /// The sum over all of them, natural logarithm.
    pub total_logprob: f64,
    /// The number of tokens of the rendered prompt.
    pub prompt_tokens: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Persona;

    #[test]
    fn limits_name_their_field() {
        type Break = fn(&mut Generate);
        let bad: [(&str, Break); 10] = [
            ("draft_tokens_max", |g| g.draft_tokens_max = 17),
            ("prefix_cache.salt", |g| g.spec.prefix_cache.salt = "x".repeat(257)),
            ("max_new_tokens", |g| g.max_new_tokens = 0),
            ("min_new_tokens", |g| g.min_new_tokens = 1000),
            ("n", |g| g.n = 0),
            ("n", |g| g.n = 17),
            ("logprobs.top", |g| g.logprobs.top = 21),
            ("stop.strings[1]", |g| g.stop.strings = vec!["a".into(), String::new()]),
            ("stop.tokens", |g| g.stop.tokens = vec![0; 65]),
            ("persona_in_prompt", |g| g.spec.persona_in_prompt = true),
        ];
        for (field, break_it) in bad {
            let mut generate = Generate::text("hello");
            break_it(&mut generate);
            assert_eq!(Request::try_from(generate).unwrap_err().field, field);
        }
        assert!(Request::try_from(Generate::text("")).is_ok());
    }

    #[test]
    fn token_ids_take_no_template_persona_or_prefix() {
        let ids = || PromptSpec::new(Prompt::Tokens(vec![1]));
        assert!(ids().check().is_ok());
        let persona = PersonaSource::Text(Persona::new("The user is shy.").unwrap());
        assert_eq!(PromptSpec { persona, ..ids() }.check().unwrap_err().field, "persona");
        assert_eq!(PromptSpec { template: Some(Template::Chat), ..ids() }.check().unwrap_err().field, "template");
        let prefix = PromptSpec { response_prefix: "x".into(), ..ids() };
        assert_eq!(prefix.check().unwrap_err().field, "response_prefix");
        assert_eq!(PromptSpec::new(Prompt::Tokens(vec![])).check().unwrap_err().field, "prompt.token_ids");
        assert_eq!(PromptSpec::new(Prompt::Messages(vec![])).check().unwrap_err().field, "prompt.messages");
    }

    #[test]
    fn ids_and_priorities_have_ranges() {
        assert!(RequestId::new("a b").is_err());
        assert!(RequestId::new("x".repeat(129)).is_err());
        assert!(Priority::new(101).is_err());
        assert_eq!(Priority::new(-100).unwrap().get(), -100);
    }
}
