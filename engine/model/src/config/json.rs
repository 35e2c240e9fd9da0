//! Fields of a JSON object, with errors that name the file and the field.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::ModelError;

/// One object of a JSON file: the file's root, or an object inside it.
pub(super) struct JsonObject<'a> {
    file: &'a Path,
    /// Put before field names in errors: empty, or the name of the object and a dot.
    prefix: String,
    fields: &'a Map<String, Value>,
}

/// Reads a JSON file whose root is an object; `None` where there is no such file.
pub(super) fn read_object(file: &Path) -> Result<Option<Map<String, Value>>, ModelError> {
    let text = match std::fs::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(ModelError::Io { file: file.to_path_buf(), source }),
    };
    let malformed = |reason: String| ModelError::Malformed { file: file.to_path_buf(), reason };
    match serde_json::from_slice(&text) {
        Ok(Value::Object(fields)) => Ok(Some(fields)),
        Ok(_) => Err(malformed("it is not a JSON object".to_owned())),
        Err(error) => Err(malformed(error.to_string())),
    }
}

impl<'a> JsonObject<'a> {
    pub(super) fn new(file: &'a Path, fields: &'a Map<String, Value>) -> JsonObject<'a> {
        JsonObject { file, prefix: String::new(), fields }
    }

    /// Returns a field; `null` counts as absent.
    pub(super) fn get(&self, field: &str) -> Option<&'a Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &'a Value> {
        self.fields.values()
    }

    pub(super) fn object(&self, field: &str) -> Result<Option<JsonObject<'a>>, ModelError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Object(fields)) => {
                Ok(Some(JsonObject { file: self.file, prefix: format!("{}{field}.", self.prefix), fields }))
            }
            Some(other) => Err(self.error(field, format!("{other} is not an object"))),
        }
    }

    pub(super) fn str(&self, field: &str) -> Result<Option<&'a str>, ModelError> {
        self.typed(field, "a string", Value::as_str)
    }

    pub(super) fn bool(&self, field: &str) -> Result<Option<bool>, ModelError> {
        self.typed(field, "a boolean", Value::as_bool)
    }

    pub(super) fn f64(&self, field: &str) -> Result<Option<f64>, ModelError> {
        self.typed(field, "a number", Value::as_f64)
    }

    pub(super) fn usize(&self, field: &str) -> Result<Option<usize>, ModelError> {
        self.typed(field, "a whole number", |value| value.as_u64().and_then(|number| usize::try_from(number).ok()))
    }

    pub(super) fn strings(&self, field: &str) -> Result<Option<Vec<&'a str>>, ModelError> {
        self.typed(field, "a list of strings", |value| value.as_array()?.iter().map(Value::as_str).collect())
    }

    /// Returns the token ids of a field that holds one id or a list of them.
    pub(super) fn token_ids(&self, field: &str) -> Result<Vec<u32>, ModelError> {
        let as_id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = self.typed(field, "a token id or a list of them", |value| match value {
            Value::Array(ids) => ids.iter().map(as_id).collect(),
            id => as_id(id).map(|id| vec![id]),
        })?;
        Ok(ids.unwrap_or_default())
    }

    /// Insists on a field.
    pub(super) fn required<T>(&self, field: &str, value: Option<T>) -> Result<T, ModelError> {
        value.ok_or_else(|| self.error(field, "it is missing".to_owned()))
    }

    pub(super) fn error(&self, field: &str, reason: String) -> ModelError {
        ModelError::Config { file: PathBuf::from(self.file), field: format!("{}{field}", self.prefix), reason }
    }

    fn typed<T>(
        &self,
        field: &str,
        expected: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        match self.get(field) {
            None => Ok(None),
            Some(value) => match convert(value) {
                Some(converted) => Ok(Some(converted)),
                None => Err(self.error(field, format!("{value} is not {expected}"))),
            },
        }
    }
}
