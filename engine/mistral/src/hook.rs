//! mistral.rs's end: its hook for logits, called on its thread once a step, between the forward pass and the choice of a token.

use std::sync::{
    Mutex, PoisonError,
    mpsc::{Receiver, SyncSender},
};

use bespoke_domain::TokenId;
use bespoke_engine::Bell;
use candle_core::{Result, Tensor};
use mistralrs::CustomLogitsProcessor;

/// Hands the logits of one sequence to the engine and takes its token. When the engine has ended the sequence, the hook fails
/// the step, upon which mistral.rs drops the sequence and with it the hook.
pub(crate) struct Hook {
    pub(crate) logits: SyncSender<Vec<f32>>,
    pub(crate) tokens: Mutex<Receiver<TokenId>>,
    pub(crate) bell: Bell,
}

impl CustomLogitsProcessor for Hook {
    fn apply(&self, logits: &Tensor, _context: &[u32]) -> Result<Tensor> {
        let row = logits.to_vec1::<f32>()?;
        let vocab_size = row.len();
        // There is room: a row is sent only after the token of the one before has come.
        self.logits.send(row).map_err(|_| ended())?;
        self.bell.ring();
        let token = self.tokens.lock().unwrap_or_else(PoisonError::into_inner).recv().map_err(|_| ended())?;
        // mistral.rs takes the largest.
        let mut chosen = vec![0.0f32; vocab_size];
        if let Some(place) = chosen.get_mut(token as usize) {
            *place = 1.0;
        }
        Tensor::from_vec(chosen, vocab_size, logits.device())
    }
}

impl Drop for Hook {
    /// The sequence is gone, be it after its end or because mistral.rs has failed: the engine looks which.
    fn drop(&mut self) {
        self.bell.ring();
    }
}

fn ended() -> candle_core::Error {
    candle_core::Error::msg("the engine has ended the sequence")
}
