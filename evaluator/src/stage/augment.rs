//! `augment`: adds inferred personas to a data file as the columns that trainer and `generate` read.

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::{Map, Value};

use super::infer::{Direction, InferRow, STAGE};
use crate::{
    dataset::file_digest,
    hub::HubRepo,
    run_folder::{read_jsonl, read_run, write_atomically, write_jsonl},
    table::parquet,
};

/// Arguments of `augment`.
#[derive(Args, Debug)]
pub(crate) struct Augment {
    /// The data file that the personas were inferred from.
    #[arg(long, value_name = "FILE")]
    pub(crate) data: PathBuf,
    /// Folder of a finished `infer` run on that file; give it more than once for partitions.
    #[arg(long, value_name = "DIR", required = true)]
    pub(crate) infer: Vec<PathBuf>,
    /// File to write: the rows with a persona for each direction that was inferred, with all columns. Parquet where it ends in
    /// .parquet, else JSON lines.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Commit the file to this data set of the hub too, as data/<name of the file>; one that is not there is made, private.
    /// The token is HF_WRITE_TOKEN or HF_TOKEN, the hub HF_ENDPOINT.
    #[arg(long, value_name = "OWNER/NAME")]
    pub(crate) push_to_hub: Option<String>,
}

/// Runs the stage.
pub(crate) fn augment(arguments: &Augment) -> Result<()> {
    // A token that is missing is told before anything is written.
    let repo = arguments.push_to_hub.as_deref().map(HubRepo::open).transpose()?;
    let mut rows: Vec<Map<String, Value>> = read_jsonl(&arguments.data)?;
    let personas = personas(&arguments.infer, &arguments.data)?;
    // A run of one direction fills one column; where both were inferred, a row needs both.
    let inferred: BTreeSet<Direction> = personas.keys().map(|(_, direction)| *direction).collect();
    let mut whole = Vec::new();
    for (index, mut row) in rows.drain(..).enumerate() {
        let found: Vec<(Direction, &String)> = inferred
            .iter()
            .filter_map(|direction| Some((*direction, personas.get(&(index, *direction))?)))
            .filter(|(_, persona)| !persona.is_empty())
            .collect();
        if found.len() < inferred.len() {
            continue;
        }
        for (direction, persona) in found {
            row.insert(format!("{}_persona_gold", direction.as_str()), persona.clone().into());
        }
        whole.push(row);
    }
    ensure!(!whole.is_empty(), "no row has a persona for each direction that was inferred");
    if arguments.out.extension().is_some_and(|end| end == "parquet") {
        write_atomically(&arguments.out, &parquet(&whole)?)?;
    } else {
        write_jsonl(&arguments.out, &whole)?;
    }
    eprintln!("augment: {} rows in {}", whole.len(), arguments.out.display());
    let Some(repo) = repo else { return Ok(()) };
    let name =
        arguments.out.file_name().and_then(|name| name.to_str()).context("`--out` has no name that can be pushed")?;
    let bytes = std::fs::read(&arguments.out).with_context(|| format!("cannot read {}", arguments.out.display()))?;
    let address = repo.push(&format!("data/{name}"), &bytes, &format!("Add {name} with inferred personas"))?;
    eprintln!("augment: pushed to {address}");
    Ok(())
}

fn personas(runs: &[PathBuf], data: &Path) -> Result<HashMap<(usize, Direction), String>> {
    let digest = file_digest(data)?;
    let mut personas = HashMap::new();
    for run in runs {
        let (manifest, rows) = read_run::<InferRow>(run, STAGE)?;
        let of =
            manifest.identity.get("data_digest").and_then(Value::as_str).context("a manifest without data_digest")?;
        ensure!(of == digest, "{} was inferred from another file than {}", run.display(), data.display());
        personas.extend(rows.into_iter().map(|row| ((row.index, row.direction), row.persona)));
    }
    Ok(personas)
}
