//! A sequence: the tokens of one choice and what has to be known to go on with it.

use bespoke_domain::{Choice, Delta, FinishReason, MatchedStop, Request, TokenId, TokenLogprob};
use bespoke_model::Detokenizer;

use crate::{
    language::Language,
    logprob,
    rng::uniform,
    sampler::{History, Place, Sampler},
};

/// One choice of a request, from its first prompt token to its end.
pub(crate) struct Sequence {
    pub(crate) choice: u32,
    /// Prompt and answer.
    pub(crate) tokens: Vec<TokenId>,
    num_prompt: usize,
    /// The answer may not be longer, be it for the request or for the context.
    max_new_tokens: u32,
    history: History,
    detokenizer: Detokenizer,
    stop_strings: Vec<String>,
    seed: u64,
    /// Collected while the prompt is computed, sent with the first delta.
    prompt_logprobs: Vec<TokenLogprob>,
    pub(crate) end: Option<Choice>,
}

/// What a new sequence is made of.
pub(crate) struct SequenceParts {
    pub(crate) choice: u32,
    pub(crate) prompt: Vec<TokenId>,
    pub(crate) max_new_tokens: u32,
    pub(crate) detokenizer: Detokenizer,
    pub(crate) stop_strings: Vec<String>,
    pub(crate) seed: u64,
}

impl Sequence {
    pub(crate) fn new(parts: SequenceParts) -> Self {
        Self {
            choice: parts.choice,
            num_prompt: parts.prompt.len(),
            history: History::of_prompt(&parts.prompt),
            tokens: parts.prompt,
            max_new_tokens: parts.max_new_tokens,
            detokenizer: parts.detokenizer,
            stop_strings: parts.stop_strings,
            seed: parts.seed,
            prompt_logprobs: Vec::new(),
            end: None,
        }
    }

    pub(crate) fn num_new(&self) -> u32 {
        (self.tokens.len() - self.num_prompt) as u32
    }

    /// Takes in the logits of a place before the last prompt token.
    pub(crate) fn note_prompt(&mut self, language: &Language, logits: &[f32], place: usize, top: u32) {
        if place == 0 {
            self.prompt_logprobs.push(logprob::first_token(&language.tokenizer, self.tokens[0]));
        }
        self.prompt_logprobs.push(logprob::token_logprob(&language.tokenizer, logits, self.tokens[place + 1], top));
    }

    /// Takes the next token from the logits of the last place. Returns what the choice has grown by; `end` tells whether it
    /// has ended.
    pub(crate) fn advance(
        &mut self,
        request: &Request,
        language: &Language,
        sampler: &mut Sampler,
        logits: &[f32],
    ) -> Delta {
        let young = self.num_new() < request.min_new_tokens;
        let forbidden = if young { end_tokens(request, language) } else { Vec::new() };
        let uniform = uniform(self.seed, self.choice, self.num_new());
        let place = Place { logits, history: &self.history, forbidden: &forbidden, uniform };
        let token = sampler.sample(&request.sampling, &place);
        self.tokens.push(token);
        self.history.push(token);
        let mut delta = self.first_delta(request, language);
        delta.token_ids.push(token);
        if request.logprobs.sampled {
            delta.logprobs.push(logprob::token_logprob(&language.tokenizer, logits, token, request.logprobs.top));
        }
        self.take_text(request, language, token, &mut delta);
        delta
    }

    /// Ends the choice from outside and returns the text that was held back.
    pub(crate) fn end_now(&mut self, reason: FinishReason, matched_stop: Option<MatchedStop>) -> String {
        self.end = Some(Choice { choice: self.choice, reason, matched_stop, generated_tokens: self.num_new() });
        self.detokenizer.finish()
    }

    /// Returns the log-probabilities of the prompt that have been collected.
    pub(crate) fn take_prompt_logprobs(&mut self) -> Vec<TokenLogprob> {
        std::mem::take(&mut self.prompt_logprobs)
    }

    fn first_delta(&mut self, request: &Request, language: &Language) -> Delta {
        let mut delta = Delta { choice: self.choice, ..Delta::default() };
        if self.num_new() == 1 {
            if request.echo {
                delta.text = language.tokenizer.decode(&self.tokens[..self.num_prompt], false).unwrap_or_default();
            }
            if request.logprobs.prompt {
                delta.prompt_logprobs = self.take_prompt_logprobs();
                if delta.prompt_logprobs.is_empty() {
                    delta.prompt_logprobs.push(logprob::first_token(&language.tokenizer, self.tokens[0]));
                }
            }
        }
        delta
    }

    /// Adds the token's text to the delta and finds out whether the choice ends with it.
    fn take_text(&mut self, request: &Request, language: &Language, token: TokenId, delta: &mut Delta) {
        let stops = request.stop.tokens.contains(&token);
        let ends = !request.stop.ignore_end && language.end_ids.contains(&token);
        if stops || ends {
            let reason = if stops { FinishReason::Stop } else { FinishReason::EndOfText };
            delta.text += &self.end_now(reason, Some(MatchedStop::Token(token)));
            return;
        }
        let output = self.detokenizer.push(token);
        delta.text += &output.text;
        if let Some(stop) = output.stop {
            let generated_tokens = self.num_new();
            let matched_stop = Some(MatchedStop::String(self.stop_strings[stop].clone()));
            self.end = Some(Choice { choice: self.choice, reason: FinishReason::Stop, matched_stop, generated_tokens });
        } else if self.num_new() >= self.max_new_tokens {
            delta.text += &self.end_now(FinishReason::Length, None);
        }
    }
}

/// Tokens that would end the answer.
fn end_tokens(request: &Request, language: &Language) -> Vec<TokenId> {
    let ends = if request.stop.ignore_end { &[][..] } else { &language.end_ids };
    ends.iter().chain(&request.stop.tokens).copied().collect()
}
