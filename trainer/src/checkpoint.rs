//! Checkpoints: a folder that appears whole or not at all, with all that a run needs to go on bit for bit.

use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use crate::adapter::{WEIGHTS_FILE, read_weights, write_adapter};
use crate::lora::Lora;
use crate::optimizer::AdamW;
use crate::{TrainError, files};

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Optimiser steps taken.
    pub step: u64,
    /// The current epoch, from 0.
    pub epoch: u64,
    /// Examples of this epoch that were used.
    pub position: usize,
    /// Lowest loss of an evaluation, as its bits, so that it comes back as it was.
    pub best_loss_bits: Option<u64>,
    /// Step of that evaluation.
    pub best_step: u64,
    /// Evaluations since.
    pub evals_without_gain: u64,
    /// Whether an evaluation is due before the next step: it was cut short.
    pub eval_due: bool,
    /// Tokens trained on.
    pub num_tokens: u64,
    /// Seconds of training.
    pub seconds: f64,
    /// Digest of what must not change between two halves of a run.
    pub fingerprint: String,
}

impl State {
    /// Lowest loss of an evaluation.
    pub fn best_loss(&self) -> Option<f64> {
        self.best_loss_bits.map(f64::from_bits)
    }
}

/// How many checkpoints stay, the newest ones.
const KEPT: usize = 2;
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const STATE_FILE: &str = "state.json";

/// The checkpoints of a run.
pub(crate) struct Checkpoints {
    folder: PathBuf,
}

impl Checkpoints {
    /// Those of an output folder.
    pub(crate) fn of(output: &Path) -> Checkpoints {
        Checkpoints { folder: output.join("checkpoints") }
    }

    /// Writes a checkpoint and removes old ones.
    ///
    /// **Errors**: `Io`; the checkpoints before stay as they are.
    pub(crate) fn save(&self, state: &State, lora: &Lora, optimizer: &AdamW) -> Result<PathBuf, TrainError> {
        let (place, staged) = (self.place(state.step), self.folder.join(format!(".step-{}", state.step)));
        let _ = std::fs::remove_dir_all(&staged);
        let written = self.write(&staged, state, lora, optimizer).and_then(|()| {
            let _ = std::fs::remove_dir_all(&place);
            std::fs::rename(&staged, &place).map_err(TrainError::writing(&place))
        });
        if written.is_err() {
            let _ = std::fs::remove_dir_all(&staged);
        }
        written?;
        let steps = self.steps()?;
        for &step in &steps[..steps.len().saturating_sub(KEPT)] {
            let old = self.place(step);
            std::fs::remove_dir_all(&old).map_err(TrainError::writing(&old))?;
        }
        Ok(place)
    }

    /// Reads the newest checkpoint into an adapter of the same shape; `None` where there is none.
    ///
    /// **Errors**: a checkpoint of another run, or one that cannot be read.
    pub(crate) fn load(&self, lora: &mut Lora, optimizer: &mut AdamW) -> Result<Option<State>, TrainError> {
        let Some(&step) = self.steps()?.last() else { return Ok(None) };
        let place = self.place(step);
        let file = place.join(STATE_FILE);
        let text = std::fs::read(&file).map_err(TrainError::reading(&file))?;
        let state: State = serde_json::from_slice(&text).map_err(|error| TrainError::file(&file, error))?;
        read_weights(lora, &place.join(WEIGHTS_FILE))?;
        let file = place.join(OPTIMIZER_FILE);
        let bytes = std::fs::read(&file).map_err(TrainError::reading(&file))?;
        let stored = SafeTensors::deserialize(&bytes).map_err(|error| TrainError::file(&file, error))?;
        for (name, values) in [("first", &mut optimizer.first), ("second", &mut optimizer.second)] {
            let tensor = stored.tensor(name).map_err(|error| TrainError::file(&file, error))?;
            *values = files::floats(&tensor).map_err(|reason| TrainError::file(&file, reason))?;
            if values.len() != lora.values.len() {
                return Err(TrainError::file(&file, format!("`{name}` has {} values", values.len())));
            }
        }
        optimizer.step = state.step;
        Ok(Some(state))
    }

    fn write(&self, folder: &Path, state: &State, lora: &Lora, optimizer: &AdamW) -> Result<(), TrainError> {
        write_adapter(lora, 0.0, "", folder)?;
        let moments = [("first", files::le_bytes(&optimizer.first)), ("second", files::le_bytes(&optimizer.second))];
        let views = moments.iter().map(|(name, bytes)| {
            let view = TensorView::new(Dtype::F32, vec![lora.values.len()], bytes);
            (*name, view.expect("invariant: four bytes a value"))
        });
        let file = folder.join(OPTIMIZER_FILE);
        let bytes = safetensors::serialize(views, None).map_err(|error| TrainError::file(&file, error))?;
        files::write_atomic(&file, &bytes)?;
        files::write_json(&folder.join(STATE_FILE), state)
    }

    fn place(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step}"))
    }

    /// The steps of the checkpoints, lowest first.
    fn steps(&self) -> Result<Vec<u64>, TrainError> {
        let entries = match std::fs::read_dir(&self.folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(TrainError::reading(&self.folder))?,
        };
        let mut steps = Vec::new();
        for entry in entries {
            let name = entry.map_err(TrainError::reading(&self.folder))?.file_name();
            let step: Option<u64> =
                name.to_str().and_then(|name| name.strip_prefix("step-")).and_then(|step| step.parse().ok());
            steps.extend(step);
        }
        steps.sort_unstable();
        Ok(steps)
    }
}
