//! Rows of preference data sets: JSON lines with the columns of the paper's data.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::RowError;

/// One preference pair with the personas that would prefer each answer.
///
/// **Source**: columns of nbalepur/persona-tailoring; persona columns are absent in nbalepur/persona-inference. An empty text
/// means that there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// What the user asks.
    pub prompt: String,
    /// The answer that was preferred.
    #[serde(default)]
    pub chosen: String,
    /// The answer that was not.
    #[serde(default)]
    pub rejected: String,
    /// The persona inferred from this pair that prefers `chosen`.
    #[serde(default)]
    pub chosen_persona_gold: String,
    /// The persona inferred from this pair that prefers `rejected`.
    #[serde(default)]
    pub rejected_persona_gold: String,
    /// The chosen persona of the most similar training prompt.
    #[serde(default)]
    pub chosen_persona_retr: String,
    /// The rejected persona of the most similar training prompt.
    #[serde(default)]
    pub rejected_persona_retr: String,
}

/// Opens a JSON lines file and reads its rows one by one. Blank lines are passed over.
///
/// **Errors**: a file that cannot be opened; each item may name a line that is not a row.
pub fn read_rows(file: &Path) -> Result<impl Iterator<Item = Result<Row, RowError>> + use<>, RowError> {
    let opened = File::open(file).map_err(|source| RowError::Io { file: file.to_owned(), source })?;
    Ok(rows(file.to_owned(), BufReader::new(opened)))
}

/// Reads rows from any source; `file` is its name in errors.
pub fn rows(file: PathBuf, source: impl BufRead) -> impl Iterator<Item = Result<Row, RowError>> {
    source.lines().enumerate().filter_map(move |(index, line)| {
        let file = file.clone();
        match line {
            Ok(line) if line.trim().is_empty() => None,
            Ok(line) => Some(serde_json::from_str(&line).map_err(|error| RowError::Line {
                file,
                line: index + 1,
                reason: error.to_string(),
            })),
            Err(source) if source.kind() == std::io::ErrorKind::InvalidData => {
                Some(Err(RowError::Line { file, line: index + 1, reason: "is not UTF-8".to_owned() }))
            }
            Err(source) => Some(Err(RowError::Io { file, source })),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8]) -> Vec<Result<Row, String>> {
        rows(PathBuf::from("pairs.jsonl"), text).map(|row| row.map_err(|error| error.to_string())).collect()
    }

    #[test]
    fn rows_come_with_and_without_personas() {
        let read = read(b"{\"prompt\":\"p\",\"chosen\":\"c\",\"rejected\":\"r\"}\n\n{\"prompt\":\"q\",\"chosen_persona_gold\":\"g\"}");
        assert_eq!(read.len(), 2);
        assert_eq!(read[0].as_ref().unwrap().chosen, "c");
        assert_eq!(read[1].as_ref().unwrap().chosen_persona_gold, "g");
    }

    #[test]
    fn a_bad_line_is_named_and_the_rest_is_read() {
        let read = read(b"{\"prompt\":1}\n\xff\n{\"prompt\":\"p\"}\n");
        assert!(read[0].as_ref().unwrap_err().starts_with("pairs.jsonl:1: invalid type: integer `1`"));
        assert_eq!(read[1].as_ref().unwrap_err(), "pairs.jsonl:2: is not UTF-8");
        assert!(read[2].is_ok());
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = read_rows(Path::new("absent.jsonl")).err().unwrap();
        assert_eq!(error.to_string(), "cannot read absent.jsonl");
    }
}
