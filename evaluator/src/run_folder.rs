//! Run folders: one for each run of a stage, `manifest.json` beside append-only `rows.jsonl`.
//!
//! Place in the flow: the batch appends each row as one write the moment it is there, so that a killed run keeps all that it
//! paid for. Opening the folder again drops a last line that was cut off, and gives back the rows; what is missing is run.
//! [`RunFolder::finish`] puts the rows in the order of the input, so that the final file is that of an undisturbed run.

use std::{
    collections::{HashMap, HashSet},
    fs::{File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One row of a run: a JSON object with at least `key`.
pub(crate) type Record = Map<String, Value>;

const MANIFEST: &str = "manifest.json";
const ROWS: &str = "rows.jsonl";
const LOCK: &str = ".lock";
/// What a stage concludes from its rows.
pub(crate) const SUMMARY: &str = "summary.json";

/// What a run is, and how far it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) stage: String,
    /// The version of this program that wrote the folder last.
    pub(crate) version: String,
    /// What the rows depend on: model, provider, digests of prompts and data, seed, settings. A folder goes on only with
    /// the same.
    pub(crate) identity: Map<String, Value>,
    /// Whether all rows are there, in order.
    pub(crate) complete: bool,
    pub(crate) num_rows: usize,
    pub(crate) started: String,
    #[serde(default)]
    pub(crate) finished: Option<String>,
    /// Time spent, over all its sessions.
    pub(crate) wall_ms: u64,
    #[serde(default)]
    pub(crate) usage: UsageTotals,
}

/// What a run has used, each distinct request once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct UsageTotals {
    pub(crate) num_calls: u64,
    pub(crate) prompt_tokens: u64,
    pub(crate) completion_tokens: u64,
    /// At the prices given on the command line; 0 where none were.
    pub(crate) cost_usd: f64,
}

/// An open run folder. One process at a time.
pub(crate) struct RunFolder {
    dir: PathBuf,
    rows_file: File,
    pub(crate) manifest: Manifest,
    pub(crate) rows: Vec<Record>,
    _lock: File,
}

impl RunFolder {
    /// Opens a folder to go on with, or makes it.
    ///
    /// **Errors**: a folder of another run unless `force`, which empties it; one that another process has open; a line that
    /// is not a row.
    pub(crate) fn open(dir: &Path, stage: &str, identity: Map<String, Value>, force: bool) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let lock = File::create(dir.join(LOCK)).with_context(|| format!("cannot write in {}", dir.display()))?;
        if lock.try_lock().is_err() {
            bail!("{} is in use by another process: wait for it, or choose another `--out`", dir.display());
        }
        if force {
            for name in [MANIFEST, ROWS, SUMMARY] {
                remove_if_there(&dir.join(name))?;
            }
        }
        let manifest = match read_manifest(dir)? {
            Some(manifest) => {
                check_same(dir, &manifest, stage, &identity)?;
                Manifest { version: env!("CARGO_PKG_VERSION").to_owned(), ..manifest }
            }
            None => Manifest {
                stage: stage.to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                identity,
                complete: false,
                num_rows: 0,
                started: jiff::Timestamp::now().to_string(),
                finished: None,
                wall_ms: 0,
                usage: UsageTotals::default(),
            },
        };
        let rows_path = dir.join(ROWS);
        let rows = recover(&rows_path)?;
        let rows_file = OpenOptions::new().create(true).append(true).open(&rows_path);
        let rows_file = rows_file.with_context(|| format!("cannot write {}", rows_path.display()))?;
        let mut folder = Self { dir: dir.to_owned(), rows_file, manifest, rows, _lock: lock };
        folder.write_manifest()?;
        Ok(folder)
    }

    /// Adds a row: one write of one line, so that it is there whole or is dropped when the folder is opened again.
    pub(crate) fn append(&mut self, row: Record) -> Result<()> {
        let mut line = serde_json::to_string(&row)?;
        line.push('\n');
        let written = self.rows_file.write_all(line.as_bytes());
        written.with_context(|| format!("cannot write {}", self.dir.join(ROWS).display()))?;
        self.rows.push(row);
        Ok(())
    }

    /// Notes that all rows are there: puts them in the order of `keys`, writes them anew where that is another one, and
    /// completes the manifest.
    ///
    /// **Errors**: a row that is missing or is not one of `keys`.
    pub(crate) fn finish(&mut self, keys: &[String], usage: UsageTotals) -> Result<()> {
        let places: HashMap<&str, usize> = keys.iter().enumerate().map(|(place, key)| (key.as_str(), place)).collect();
        ensure!(self.rows.len() == keys.len(), "{} rows are there, not {}", self.rows.len(), keys.len());
        let place = |row: &Record| places.get(key_of(row)).copied();
        ensure!(self.rows.iter().all(|row| place(row).is_some()), "a row is not one of this run");
        if !self.rows.is_sorted_by_key(place) {
            self.rows.sort_by_key(place);
            write_jsonl(&self.dir.join(ROWS), &self.rows)?;
        }
        self.manifest.complete = true;
        self.manifest.finished.get_or_insert_with(|| jiff::Timestamp::now().to_string());
        self.manifest.usage = usage;
        self.write_manifest()
    }

    /// Writes what the stage concludes.
    pub(crate) fn write_summary(&self, summary: &impl Serialize) -> Result<()> {
        write_atomically(&self.dir.join(SUMMARY), (serde_json::to_string_pretty(summary)? + "\n").as_bytes())
    }

    /// Writes the manifest with the present number of rows.
    pub(crate) fn write_manifest(&mut self) -> Result<()> {
        self.manifest.num_rows = self.rows.len();
        let text = serde_json::to_string_pretty(&self.manifest)? + "\n";
        write_atomically(&self.dir.join(MANIFEST), text.as_bytes())
    }
}

/// Returns a row's key.
pub(crate) fn key_of(row: &Record) -> &str {
    row.get("key").and_then(Value::as_str).unwrap_or_default()
}

/// Reads the manifest of a folder; `None` where there is none.
pub(crate) fn read_manifest(dir: &Path) -> Result<Option<Manifest>> {
    let path = dir.join(MANIFEST);
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            serde_json::from_str(&text).map(Some).with_context(|| format!("{} is not a manifest", path.display()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Reads a complete run of a stage: its manifest and its rows.
///
/// **Errors**: no run there, one of another stage, one that has not ended, a row without what `T` needs.
pub(crate) fn read_run<T: serde::de::DeserializeOwned>(dir: &Path, stage: &str) -> Result<(Manifest, Vec<T>)> {
    let manifest = read_manifest(dir)?.with_context(|| format!("{} has no run: no {MANIFEST}", dir.display()))?;
    ensure!(manifest.stage == stage, "{} is a run of `{}`, wanted is one of `{stage}`", dir.display(), manifest.stage);
    ensure!(manifest.complete, "{} is not complete: run `{stage}` again, it goes on", dir.display());
    Ok((manifest, read_jsonl(&dir.join(ROWS))?))
}

/// Reads all lines of a JSON lines file.
///
/// **Errors**: a file that cannot be read, a line that is not a `T`; both are named.
pub(crate) fn read_jsonl<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(index, line)| serde_json::from_str(line).with_context(|| format!("{}:{}", path.display(), index + 1)))
        .collect()
}

/// Writes a JSON lines file so that a reader sees all of it or nothing.
pub(crate) fn write_jsonl<T: Serialize>(path: &Path, rows: &[T]) -> Result<()> {
    let mut text = String::new();
    for row in rows {
        text += &serde_json::to_string(row)?;
        text.push('\n');
    }
    write_atomically(path, text.as_bytes())
}

/// Writes a file so that a reader sees all of it or nothing.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let context = || format!("cannot write {}", path.display());
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).with_context(context)?;
    let mut part = tempfile::NamedTempFile::new_in(folder).with_context(context)?;
    part.write_all(bytes).with_context(context)?;
    part.as_file().sync_data().with_context(context)?;
    part.persist(path).with_context(context)?;
    Ok(())
}

/// Reads the rows that are there, and cuts a last line off that a kill has left unfinished.
fn recover(path: &Path) -> Result<Vec<Record>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |place| place + 1);
    if whole < bytes.len() {
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_len(whole as u64).with_context(|| format!("cannot repair {}", path.display()))?;
    }
    let text = std::str::from_utf8(&bytes[..whole]).with_context(|| format!("{} is not UTF-8", path.display()))?;
    let mut rows = Vec::new();
    let mut keys = HashSet::new();
    for (index, line) in text.lines().enumerate() {
        let row: Record = serde_json::from_str(line).with_context(|| format!("{}:{}", path.display(), index + 1))?;
        let key = key_of(&row).to_owned();
        ensure!(!key.is_empty() && keys.insert(key), "{}:{}: `key` is missing or double", path.display(), index + 1);
        rows.push(row);
    }
    Ok(rows)
}

fn check_same(dir: &Path, manifest: &Manifest, stage: &str, identity: &Map<String, Value>) -> Result<()> {
    let advice = "choose another `--out`, or `--force` to start anew";
    ensure!(manifest.stage == stage, "{} holds a run of `{}`: {advice}", dir.display(), manifest.stage);
    let names: HashSet<&String> = manifest.identity.keys().chain(identity.keys()).collect();
    let mut differing: Vec<&str> = Vec::new();
    for name in names {
        if manifest.identity.get(name) != identity.get(name) {
            differing.push(name);
        }
    }
    differing.sort_unstable();
    ensure!(differing.is_empty(), "{} holds a run with other {}: {advice}", dir.display(), differing.join(", "));
    Ok(())
}

fn remove_if_there(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(key: &str) -> Record {
        json!({"key": key, "answer": "x"}).as_object().unwrap().clone()
    }

    fn identity(seed: u64) -> Map<String, Value> {
        json!({"seed": seed}).as_object().unwrap().clone()
    }

    #[test]
    fn a_torn_line_is_dropped_and_the_run_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = RunFolder::open(dir.path(), "infer", identity(1), false).unwrap();
        folder.append(record("1")).unwrap();
        drop(folder);
        let rows = dir.path().join(ROWS);
        let torn = std::fs::read_to_string(&rows).unwrap() + "{\"key\":\"0\",\"ans";
        std::fs::write(&rows, torn).unwrap();
        let mut folder = RunFolder::open(dir.path(), "infer", identity(1), false).unwrap();
        assert_eq!(folder.rows.len(), 1);
        folder.append(record("0")).unwrap();
        folder.finish(&["0".to_owned(), "1".to_owned()], UsageTotals::default()).unwrap();
        drop(folder);
        let (manifest, rows) = read_run::<Record>(dir.path(), "infer").unwrap();
        assert!(manifest.complete);
        assert_eq!(rows.iter().map(key_of).collect::<Vec<_>>(), ["0", "1"]);
        assert!(read_run::<Record>(dir.path(), "judge").unwrap_err().to_string().contains("`infer`"));
    }

    #[test]
    fn another_run_is_refused_and_force_starts_anew() {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = RunFolder::open(dir.path(), "infer", identity(1), false).unwrap();
        folder.append(record("1")).unwrap();
        let busy = RunFolder::open(dir.path(), "infer", identity(1), false).err().unwrap().to_string();
        assert!(busy.contains("in use"), "{busy}");
        drop(folder);
        let error = RunFolder::open(dir.path(), "infer", identity(2), false).err().unwrap().to_string();
        assert!(error.contains("other seed"), "{error}");
        assert!(RunFolder::open(dir.path(), "infer", identity(2), true).unwrap().rows.is_empty());
    }

    #[test]
    fn doubled_and_missing_rows_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = RunFolder::open(dir.path(), "infer", identity(1), false).unwrap();
        folder.append(record("1")).unwrap();
        assert!(folder.finish(&["0".to_owned(), "1".to_owned()], UsageTotals::default()).is_err());
        assert!(folder.finish(&["0".to_owned()], UsageTotals::default()).is_err());
        folder.append(record("1")).unwrap();
        drop(folder);
        let error = RunFolder::open(dir.path(), "infer", identity(1), false).err().unwrap().to_string();
        assert!(error.contains("rows.jsonl:2"), "{error}");
    }
}
