//! Events: the stream of one request. One [`Started`], then [`Delta`]s of any choice, then exactly one [`Finished`].

use std::time::Duration;

use compact_str::CompactString;
use smallvec::SmallVec;

use crate::{Persona, RequestId, TokenId};

/// One message of the stream of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The request has been admitted.
    Started(Started),
    /// A choice has grown.
    Delta(Delta),
    /// All choices have ended; nothing follows.
    Finished(Finished),
}

/// What is known when a request leaves the queue.
#[derive(Clone, Debug, PartialEq)]
pub struct Started {
    /// The request's id, given or chosen.
    pub request_id: RequestId,
    /// Identifies the model's files.
    pub model_digest: String,
    /// Identifies the template and its parameters.
    pub template_hash: String,
    /// The persona that the prompt was rendered with.
    pub persona: Option<Persona>,
    /// The number of tokens of the rendered prompt.
    pub prompt_tokens: u32,
    /// How many of them were found in the cache.
    pub cached_tokens: u32,
    /// The seed in use, given or chosen.
    pub seed: u64,
}

/// As many as fit where a vector would keep its pointer and capacity: more come at once only where drafts are right.
const TOKENS_IN_PLACE: usize = 4;

/// What one choice has grown by. A short text and a few ids lie in place, so that a token without log-probabilities allocates nothing.
#[derive(Clone, Default, PartialEq)]
pub struct Delta {
    /// The number of the choice, from 0.
    pub choice: u32,
    /// New text. May be empty where text is held back: an unfinished character or the possible start of a stop string.
    pub text: CompactString,
    /// New tokens.
    pub token_ids: SmallVec<[TokenId; TOKENS_IN_PLACE]>,
    /// The log-probabilities of the new tokens, where asked for.
    pub logprobs: Vec<TokenLogprob>,
    /// The tokens of the prompt with their log-probabilities, in the first delta, where asked for.
    pub prompt_logprobs: Vec<TokenLogprob>,
}

/// Hides the text: answers are not logged.
impl std::fmt::Debug for Delta {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Delta(choice {}, {} bytes, {} tokens)", self.choice, self.text.len(), self.token_ids.len())
    }
}

/// The log-probability of one token, natural logarithm.
#[derive(Clone, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token: TokenId,
    /// Its bytes, which need not be UTF-8.
    pub bytes: Vec<u8>,
    /// Its log-probability; `None` for the first token of a prompt, before which there is nothing.
    pub logprob: Option<f32>,
    /// The most likely tokens at this place, most likely first.
    pub top: Vec<TopLogprob>,
}

/// One of the most likely tokens at a place.
#[derive(Clone, PartialEq)]
pub struct TopLogprob {
    /// The token.
    pub token: TokenId,
    /// Its bytes, which need not be UTF-8.
    pub bytes: Vec<u8>,
    /// Its log-probability, natural logarithm.
    pub logprob: f32,
}

/// Hides the text: answers are not logged.
impl std::fmt::Debug for TokenLogprob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TokenLogprob({}, {:?}, {:?})", self.token, self.logprob, self.top)
    }
}

/// Hides the text: answers are not logged.
impl std::fmt::Debug for TopLogprob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TopLogprob({}, {})", self.token, self.logprob)
    }
}

/// Why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it.
    EndOfText,
    /// A stop string or stop token came.
    Stop,
    /// It has the most tokens asked for, or the context is full.
    Length,
    /// The time limit of the request ran out.
    TimeLimit,
}

/// What stopped a choice.
#[derive(Clone, PartialEq, Eq)]
pub enum MatchedStop {
    /// A stop string.
    String(String),
    /// A stop token or an end token of the model.
    Token(TokenId),
}

/// Hides the string: it may quote a prompt.
impl std::fmt::Debug for MatchedStop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::String(text) => write!(f, "String({} bytes)", text.len()),
            Self::Token(token) => write!(f, "Token({token})"),
        }
    }
}

/// How one choice ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The number of the choice, from 0.
    pub choice: u32,
    /// Why it ended.
    pub reason: FinishReason,
    /// What stopped it, where something did.
    pub matched_stop: Option<MatchedStop>,
    /// The number of its tokens, an end or stop token included.
    pub generated_tokens: u32,
}

/// The end of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// How each choice ended, by its number.
    pub choices: Vec<Choice>,
    /// What the request used.
    pub usage: Usage,
    /// How long it took.
    pub timings: Timings,
}

/// What a request used, in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the rendered prompt.
    pub prompt_tokens: u32,
    /// How many of them were found in the cache.
    pub cached_tokens: u32,
    /// Tokens of all choices.
    pub generated_tokens: u32,
    /// Tokens that were drafted and checked.
    pub drafted_tokens: u32,
    /// How many of them were right.
    pub accepted_tokens: u32,
}

/// How long a request took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// From arrival to leaving the queue.
    pub queue: Duration,
    /// From leaving the queue to the first token.
    pub prefill: Duration,
    /// From the first token to the end.
    pub decode: Duration,
}
