//! A sequence: the tokens of one choice and what has to be known to go on with it.

use std::time::Instant;

use bespoke_domain::{Choice, Delta, FinishReason, MatchedStop, Request, TokenId, TokenLogprob};
use bespoke_model::{Detokenizer, DetokenizerOptions};

use crate::{
    active::Job,
    language::Language,
    logprob,
    rng::uniform,
    sampler::{History, Place, Sampler},
};

/// One choice of a request, from its first prompt token to its end. Its tokens are the scheduler's.
pub(crate) struct Sequence {
    pub(crate) choice: u32,
    num_new: u32,
    /// The answer may not be longer, be it for the request or for the context.
    max_new_tokens: u32,
    history: History,
    detokenizer: Detokenizer,
    stop_strings: Vec<String>,
    /// Starts the first delta.
    echo: String,
    seed: u64,
    /// Collected while the prompt is computed, sent with the first delta.
    prompt_logprobs: Vec<TokenLogprob>,
    /// When the last token came, unless its reader has been slow since.
    pub(crate) last_token: Option<Instant>,
    pub(crate) end: Option<Choice>,
}

/// What a sequence needs to go on by one token.
pub(crate) struct Advance<'a> {
    pub(crate) request: &'a Request,
    pub(crate) language: &'a Language,
    /// The known tokens.
    pub(crate) tokens: &'a [TokenId],
    /// The logits of the place of the last one.
    pub(crate) logits: &'a [f32],
}

impl Sequence {
    /// Makes a choice of a request; the context may leave it less room than it asks for.
    pub(crate) fn of_job(job: &Job, choice: u32, max_new_tokens: u32, language: &Language) -> Self {
        let at_text_start = job.prompt.len() == 1 && Some(job.prompt[0]) == language.tokenizer.bos();
        let mut stop_strings = job.request.stop.strings.clone();
        stop_strings.extend(job.template.stop_strings().iter().map(|&stop| stop.to_owned()));
        let options = DetokenizerOptions {
            skip_control: true,
            at_text_start,
            stop_strings: stop_strings.clone(),
            stops_after: job.request.min_new_tokens as usize,
        };
        Self {
            choice,
            num_new: 0,
            history: History::of_prompt(&job.request.sampling, &job.prompt, max_new_tokens),
            max_new_tokens,
            detokenizer: Detokenizer::new(&language.tokenizer, options),
            stop_strings,
            echo: job.echo.clone(),
            seed: job.started.seed,
            prompt_logprobs: Vec::new(),
            last_token: None,
            end: None,
        }
    }

    /// Takes in the logits of a place before the last prompt token.
    pub(crate) fn note_prompt(&mut self, advance: &Advance<'_>, place: usize) {
        let (tokenizer, tokens) = (&advance.language.tokenizer, advance.tokens);
        if place == 0 {
            self.prompt_logprobs.push(logprob::first_token(tokenizer, tokens[0]));
        }
        let top = advance.request.logprobs.top;
        self.prompt_logprobs.push(logprob::token_logprob(tokenizer, advance.logits, tokens[place + 1], top));
    }

    /// Takes the next token, adds what the choice grows by to `delta` and returns the token; `end` tells whether the choice has
    /// ended with it.
    pub(crate) fn advance(&mut self, advance: &Advance<'_>, sampler: &mut Sampler, delta: &mut Delta) -> TokenId {
        let Advance { request, language, logits, .. } = *advance;
        let young = self.num_new < request.min_new_tokens;
        let forbidden = if young { end_tokens(request, language) } else { Vec::new() };
        let uniform = uniform(self.seed, self.choice, self.num_new);
        let place = Place { logits, history: &self.history, forbidden: &forbidden, uniform };
        let token = sampler.sample(&request.sampling, &place);
        if self.num_new == 0 {
            self.add_prompt(advance, delta);
        }
        self.num_new += 1;
        self.history.push(token);
        delta.token_ids.push(token);
        if request.logprobs.sampled {
            delta.logprobs.push(logprob::token_logprob(&language.tokenizer, logits, token, request.logprobs.top));
        }
        self.take_text(request, language, token, delta);
        token
    }

    /// Ends the choice from outside and returns the text that was held back.
    pub(crate) fn end_now(&mut self, reason: FinishReason, matched_stop: Option<MatchedStop>) -> String {
        self.end = Some(Choice { choice: self.choice, reason, matched_stop, generated_tokens: self.num_new });
        self.detokenizer.finish()
    }

    /// Returns the log-probabilities of the prompt that have been collected.
    pub(crate) fn take_prompt_logprobs(&mut self) -> Vec<TokenLogprob> {
        std::mem::take(&mut self.prompt_logprobs)
    }

    /// Adds what the first delta tells about the prompt.
    fn add_prompt(&mut self, advance: &Advance<'_>, delta: &mut Delta) {
        let tokenizer = &advance.language.tokenizer;
        delta.text = std::mem::take(&mut self.echo).into();
        if advance.request.logprobs.prompt {
            delta.prompt_logprobs = self.take_prompt_logprobs();
            if delta.prompt_logprobs.is_empty() {
                delta.prompt_logprobs.push(logprob::first_token(tokenizer, advance.tokens[0]));
            }
        }
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
        if delta.text.is_empty() {
            delta.text = output.text;
        } else {
            delta.text += &output.text;
        }
        if let Some(stop) = output.stop {
            let generated_tokens = self.num_new;
            let matched_stop = Some(MatchedStop::String(self.stop_strings[stop].clone()));
            self.end = Some(Choice { choice: self.choice, reason: FinishReason::Stop, matched_stop, generated_tokens });
        } else if self.num_new >= self.max_new_tokens {
            delta.text += &self.end_now(FinishReason::Length, None);
        }
    }
}

/// Tokens that would end the answer.
fn end_tokens(request: &Request, language: &Language) -> Vec<TokenId> {
    let ends = if request.stop.ignore_end { &[][..] } else { &language.end_ids };
    ends.iter().chain(&request.stop.tokens).copied().collect()
}
