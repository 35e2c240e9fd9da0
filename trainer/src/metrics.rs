//! What a run reports: `metrics.jsonl`, TensorBoard events and a plot, all from the same records.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::step::Means;
use crate::tensorboard::Events;

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// `train` or `eval`.
    pub kind: Kind,
    /// Optimiser steps taken.
    pub step: u64,
    /// Passes over the rows.
    pub epoch: f64,
    /// Means of the step or the evaluation.
    #[serde(flatten)]
    pub means: Means,
    /// Of a step: its learning rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Of a step: the norm of the gradient before clipping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grad_norm: Option<f64>,
    /// Tokens per second.
    pub tokens_per_s: f64,
}

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// An optimiser step.
    Train,
    /// An evaluation.
    Eval,
}

/// Writes records.
pub(crate) struct Metrics {
    file: PathBuf,
    out: File,
    events: Events,
    /// All records so far, for the plot.
    pub(crate) records: Vec<Record>,
}

impl Metrics {
    /// Opens the reports of a run; records after `step` belong to a part of the run that is done again, and go.
    ///
    /// **Errors**: `Io`, `File`.
    pub(crate) fn open(output: &Path, step: u64) -> Result<Metrics, TrainError> {
        let file = output.join("metrics.jsonl");
        let kept = if step > 0 { read_records(&file, step)? } else { Vec::new() };
        let (records, lines): (Vec<Record>, Vec<String>) = kept.into_iter().unzip();
        crate::files::write_atomic(&file, lines.concat().as_bytes())?;
        let out = OpenOptions::new().append(true).open(&file).map_err(TrainError::writing(&file))?;
        Ok(Metrics { events: Events::create(output)?, file, out, records })
    }

    /// Writes a record everywhere.
    ///
    /// **Errors**: `Io`.
    pub(crate) fn write(&mut self, record: Record) -> Result<(), TrainError> {
        let mut line = serde_json::to_vec(&record).map_err(|error| TrainError::file(&self.file, error))?;
        line.push(b'\n');
        self.out.write_all(&line).map_err(TrainError::writing(&self.file))?;
        self.events.write(record.step, &scalars(&record))?;
        self.records.push(record);
        Ok(())
    }
}

/// The values of a record by name.
fn scalars(record: &Record) -> Vec<(String, f64)> {
    let kind = match record.kind {
        Kind::Train => "train",
        Kind::Eval => "eval",
    };
    let mut values = vec![("loss", Some(record.means.loss)), ("tokens_per_s", Some(record.tokens_per_s))];
    values.extend([("learning_rate", record.learning_rate), ("grad_norm", record.grad_norm)]);
    if let Some(preference) = record.means.preference {
        values.extend([
            ("reward_chosen", Some(preference.reward_chosen)),
            ("reward_rejected", Some(preference.reward_rejected)),
            ("margin", Some(preference.margin)),
            ("accuracy", Some(preference.accuracy)),
        ]);
    }
    values.into_iter().filter_map(|(name, value)| Some((format!("{kind}/{name}"), value?))).collect()
}

/// The records up to a step, each with its line as it stands.
fn read_records(file: &Path, step: u64) -> Result<Vec<(Record, String)>, TrainError> {
    let opened = match File::open(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened.map_err(TrainError::reading(file))?,
    };
    let mut records = Vec::new();
    for line in BufReader::new(opened).lines() {
        let line = line.map_err(TrainError::reading(file))?;
        // The last line of a run that was killed may be cut.
        let Ok(record) = serde_json::from_str::<Record>(&line) else { continue };
        if record.step <= step {
            records.push((record, line + "\n"));
        }
    }
    Ok(records)
}
