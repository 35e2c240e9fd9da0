//! Rows from files: JSON lines, a JSON list, Parquet, or such a file of a data set on the hub. Every row knows its place.

use std::path::{Path, PathBuf};

use bespoke_domain::Row;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use sha2::{Digest, Sha256};

use crate::TrainError;

/// A row and where it stands, such as `train.jsonl:12`.
#[derive(Clone, Debug)]
pub struct PlacedRow {
    /// The row.
    pub row: Row,
    /// File and line, or number of the row, from 1.
    pub place: String,
}

/// The rows of one file.
pub struct RowFile {
    /// The file, after one of the hub has been fetched.
    pub path: PathBuf,
    /// SHA-256 of its bytes.
    pub sha256: String,
    /// The good rows.
    pub rows: Vec<PlacedRow>,
    /// What is wrong with the others, with file and line.
    pub bad: Vec<String>,
}

impl RowFile {
    /// Reads all rows of a file or of `org/name:file` on the hub.
    ///
    /// **Errors**: a file that cannot be fetched or read, or has another format; bad rows are listed, not errors.
    pub fn read(reference: &str) -> Result<RowFile, TrainError> {
        let path = locate(reference)?;
        let bytes = std::fs::read(&path).map_err(TrainError::reading(&path))?;
        let sha256 = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let read = match extension {
            "jsonl" => json_lines(&path, &bytes),
            "json" => json_list(&path, &bytes)?,
            "parquet" => parquet_rows(&path)?,
            other => {
                let reason = format!("`.{other}` is no format of rows: use .jsonl, .json or .parquet");
                return Err(TrainError::file(path, reason));
            }
        };
        let mut file = RowFile { path, sha256, rows: Vec::new(), bad: Vec::new() };
        for row in read {
            match row {
                Ok(row) => file.rows.push(row),
                Err(reason) => file.bad.push(reason),
            }
        }
        Ok(file)
    }
}

type Read = Vec<Result<PlacedRow, String>>;

fn json_lines(path: &Path, bytes: &[u8]) -> Read {
    let lines = bytes.split(|&byte| byte == b'\n').enumerate();
    let lines = lines.filter(|(_, line)| !line.trim_ascii().is_empty());
    lines
        .map(|(index, line)| {
            let place = format!("{}:{}", path.display(), index + 1);
            match serde_json::from_slice(line) {
                Ok(row) => Ok(PlacedRow { row, place }),
                Err(error) => Err(format!("{place}: {error}")),
            }
        })
        .collect()
}

fn json_list(path: &Path, bytes: &[u8]) -> Result<Read, TrainError> {
    let values: Vec<serde_json::Value> = serde_json::from_slice(bytes)
        .map_err(|error| TrainError::file(path, format!("is no JSON list of rows: {error}")))?;
    Ok(values.into_iter().enumerate().map(|(index, value)| of_value(path, index, value)).collect())
}

fn parquet_rows(path: &Path) -> Result<Read, TrainError> {
    let broken = |error: parquet::errors::ParquetError| TrainError::file(path, error);
    let file = std::fs::File::open(path).map_err(TrainError::reading(path))?;
    let reader = SerializedFileReader::new(file).map_err(broken)?;
    let mut read = Vec::new();
    for (index, row) in reader.get_row_iter(None).map_err(broken)?.enumerate() {
        read.push(of_value(path, index, columns(&row.map_err(broken)?)));
    }
    Ok(read)
}

/// The texts of a row of a table; other columns are none of a [`Row`].
fn columns(row: &parquet::record::Row) -> serde_json::Value {
    let texts = row.get_column_iter().filter_map(|(name, field)| match field {
        Field::Str(text) => Some((name.clone(), text.clone().into())),
        // Writers that do not mark text as such.
        Field::Bytes(bytes) => Some((name.clone(), bytes.as_utf8().ok()?.into())),
        _ => None,
    });
    serde_json::Value::Object(texts.collect())
}

fn of_value(path: &Path, index: usize, mut value: serde_json::Value) -> Result<PlacedRow, String> {
    let place = format!("{}: row {}", path.display(), index + 1);
    if let serde_json::Value::Object(columns) = &mut value {
        // A null of a table is a text that is not there.
        columns.retain(|_, value| !value.is_null());
    }
    match serde_json::from_value(value) {
        Ok(row) => Ok(PlacedRow { row, place }),
        Err(error) => Err(format!("{place}: {error}")),
    }
}

/// The path of a file, fetched from the hub where the reference is none here.
fn locate(reference: &str) -> Result<PathBuf, TrainError> {
    let path = PathBuf::from(reference);
    if path.exists() {
        return Ok(path);
    }
    let Some((repo, file)) = hub_file(reference) else {
        return Err(TrainError::file(path, "does not exist, and is no `org/name:file` of the hub"));
    };
    let hub =
        |error: hf_hub::api::sync::ApiError| TrainError::file(reference, format!("fetching from the hub: {error}"));
    let api = hf_hub::api::sync::ApiBuilder::from_env().build().map_err(hub)?;
    let repo = api.dataset(repo.to_owned());
    if let Some(file) = file {
        return repo.get(file).map_err(hub);
    }
    let is_rows = |name: &String| [".jsonl", ".json", ".parquet"].iter().any(|end| name.ends_with(end));
    let names = repo.info().map_err(hub)?.siblings.into_iter().map(|sibling| sibling.rfilename);
    let names: Vec<String> = names.filter(is_rows).collect();
    Err(TrainError::file(reference, format!("name one file as `{reference}:file`; it has {}", names.join(", "))))
}

/// Takes `org/name` or `org/name:file` apart.
fn hub_file(reference: &str) -> Option<(&str, Option<&str>)> {
    let (repo, file) = match reference.split_once(':') {
        Some((repo, file)) => (repo, Some(file)),
        None => (reference, None),
    };
    let is_name = |part: &str| {
        !part.is_empty()
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && !part.starts_with('.')
    };
    let (org, name) = repo.split_once('/')?;
    let has_end = Path::new(name).extension().is_some_and(|end| end == "jsonl" || end == "json" || end == "parquet");
    (is_name(org) && is_name(name) && !(file.is_none() && has_end)).then_some((repo, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_rows_and_its_bad_ones() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("rows.json");
        std::fs::write(&file, r#"[{"prompt":"p","chosen":"c","rejected":null},{"prompt":1},{"prompt":"q"}]"#).unwrap();
        let read = RowFile::read(file.to_str().unwrap()).unwrap();
        assert_eq!((read.rows.len(), read.bad.len(), read.rows[0].row.rejected.as_str()), (2, 1, ""));
        assert!(read.bad[0].contains("rows.json: row 2: invalid type"), "{}", read.bad[0]);
        assert!(read.rows[1].place.ends_with("rows.json: row 3"));
    }

    #[test]
    fn lines_are_counted_with_blank_ones() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("rows.jsonl");
        std::fs::write(&file, "\n{\"prompt\":\"p\"}\nnot\n").unwrap();
        let read = RowFile::read(file.to_str().unwrap()).unwrap();
        assert!(read.rows[0].place.ends_with("rows.jsonl:2") && read.bad[0].contains("rows.jsonl:3: "));
    }

    #[test]
    fn files_of_the_hub_are_told_from_paths() {
        assert_eq!(hub_file("org/name:data/a.parquet"), Some(("org/name", Some("data/a.parquet"))));
        assert_eq!(hub_file("org/name"), Some(("org/name", None)));
        assert_eq!(hub_file("data/train.jsonl"), None);
        assert_eq!(hub_file("../x"), None);
        let error = RowFile::read("absent.jsonl").err().unwrap().to_string();
        assert!(error.starts_with("absent.jsonl: does not exist"), "{error}");
    }

    #[test]
    fn other_formats_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("rows.csv");
        std::fs::write(&file, "prompt\np\n").unwrap();
        let error = RowFile::read(file.to_str().unwrap()).err().unwrap().to_string();
        assert!(error.contains("`.csv` is no format of rows"), "{error}");
    }

    #[test]
    fn parquet_rows_are_read() {
        use parquet::data_type::{ByteArray, ByteArrayType};
        use parquet::file::writer::SerializedFileWriter;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("rows.parquet");
        let schema = "message rows { required binary prompt (UTF8); optional binary chosen (UTF8); }";
        let schema = std::sync::Arc::new(parquet::schema::parser::parse_message_type(schema).unwrap());
        let out = std::fs::File::create(&file).unwrap();
        let mut writer = SerializedFileWriter::new(out, schema, Default::default()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        for (texts, levels) in [(vec!["p", "q"], None), (vec!["c"], Some([1_i16, 0].as_slice()))] {
            let mut column = group.next_column().unwrap().unwrap();
            let texts: Vec<ByteArray> = texts.into_iter().map(ByteArray::from).collect();
            column.typed::<ByteArrayType>().write_batch(&texts, levels, None).unwrap();
            column.close().unwrap();
        }
        group.close().unwrap();
        writer.close().unwrap();
        let read = RowFile::read(file.to_str().unwrap()).unwrap();
        assert!(read.bad.is_empty(), "{:?}", read.bad);
        assert_eq!((read.rows[0].row.chosen.as_str(), read.rows[1].row.prompt.as_str()), ("c", "q"));
    }
}
