//! The key/value part of a GGUF file, with getters whose errors name the key.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::ModelError;

/// The metadata of one GGUF file.
#[derive(Debug)]
pub struct Metadata {
    file: PathBuf,
    pairs: HashMap<String, Value>,
}

/// One value; the file's ten number types are widened to three.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `uint8`, `uint16`, `uint32`, `uint64`.
    Unsigned(u64),
    /// `int8`, `int16`, `int32`, `int64`.
    Signed(i64),
    /// `float32`, `float64`.
    Float(f64),
    /// `bool`.
    Bool(bool),
    /// `string`.
    String(String),
    /// `array`.
    Array(Array),
}

/// The elements of an array, all of one type.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    /// Strings.
    Strings(Vec<String>),
    /// Integers of the unsigned types.
    Unsigned(Vec<u64>),
    /// Integers of the signed types.
    Signed(Vec<i64>),
    /// Numbers of the floating types.
    Floats(Vec<f64>),
    /// Booleans.
    Bools(Vec<bool>),
    /// Arrays, which no known key uses.
    Arrays(Vec<Array>),
}

impl Metadata {
    /// Wraps parsed pairs; `file` names them in errors.
    pub fn new(file: PathBuf, pairs: HashMap<String, Value>) -> Metadata {
        Metadata { file, pairs }
    }

    /// Returns the file that the metadata is of.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Returns a value, if the key is there.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.pairs.get(key)
    }

    /// Returns the keys, sorted.
    pub fn keys(&self) -> Vec<&str> {
        let mut keys: Vec<&str> = self.pairs.keys().map(String::as_str).collect();
        keys.sort_unstable();
        keys
    }

    /// Returns a string.
    ///
    /// **Errors**: `MetadataMissing` or `MetadataType`, as every getter here; [`optional`] makes an absent key `None`.
    pub fn string(&self, key: &str) -> Result<&str, ModelError> {
        match self.require(key)? {
            Value::String(text) => Ok(text),
            other => Err(self.type_error(key, "a string", other)),
        }
    }

    /// Returns an array of strings.
    pub fn strings(&self, key: &str) -> Result<&[String], ModelError> {
        match self.require(key)? {
            Value::Array(Array::Strings(strings)) => Ok(strings),
            // Writers give an empty array any element type.
            Value::Array(array) if array.is_empty() => Ok(&[]),
            other => Err(self.type_error(key, "an array of strings", other)),
        }
    }

    /// Returns a non-negative integer of 32 bits, whatever integer type it is stored as.
    pub fn u32(&self, key: &str) -> Result<u32, ModelError> {
        let value = self.require(key)?;
        value.as_integer().ok_or_else(|| self.type_error(key, "an integer of 32 bits without sign", value))
    }

    /// Returns a number as `f32`.
    pub fn f32(&self, key: &str) -> Result<f32, ModelError> {
        let value = self.require(key)?;
        value.as_f32().ok_or_else(|| self.type_error(key, "a number", value))
    }

    /// Returns a boolean.
    pub fn bool(&self, key: &str) -> Result<bool, ModelError> {
        match self.require(key)? {
            Value::Bool(flag) => Ok(*flag),
            other => Err(self.type_error(key, "a bool", other)),
        }
    }

    /// Returns an array of integers of 32 bits.
    pub fn i32s(&self, key: &str) -> Result<Vec<i32>, ModelError> {
        let value = self.require(key)?;
        let integers = match value {
            Value::Array(Array::Unsigned(values)) => values.iter().map(|&v| i32::try_from(v).ok()).collect(),
            Value::Array(Array::Signed(values)) => values.iter().map(|&v| i32::try_from(v).ok()).collect(),
            Value::Array(array) if array.is_empty() => Some(Vec::new()),
            _ => None,
        };
        integers.ok_or_else(|| self.type_error(key, "an array of integers of 32 bits", value))
    }

    /// Returns an array of numbers as `f32`.
    pub fn f32s(&self, key: &str) -> Result<Vec<f32>, ModelError> {
        match self.require(key)? {
            Value::Array(Array::Floats(values)) => Ok(values.iter().map(|&v| v as f32).collect()),
            Value::Array(Array::Unsigned(values)) => Ok(values.iter().map(|&v| v as f32).collect()),
            Value::Array(Array::Signed(values)) => Ok(values.iter().map(|&v| v as f32).collect()),
            Value::Array(array) if array.is_empty() => Ok(Vec::new()),
            other => Err(self.type_error(key, "an array of numbers", other)),
        }
    }

    fn require(&self, key: &str) -> Result<&Value, ModelError> {
        self.get(key).ok_or_else(|| ModelError::MetadataMissing { file: self.file.clone(), key: key.to_owned() })
    }

    fn type_error(&self, key: &str, expected: &'static str, found: &Value) -> ModelError {
        ModelError::MetadataType { file: self.file.clone(), key: key.to_owned(), expected, found: found.describe() }
    }
}

/// Turns the absence of a key into `None`; a value of the wrong type stays an error.
pub fn optional<T>(result: Result<T, ModelError>) -> Result<Option<T>, ModelError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(ModelError::MetadataMissing { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Value {
    fn as_integer<T: TryFrom<u64> + TryFrom<i64>>(&self) -> Option<T> {
        match self {
            Value::Unsigned(value) => T::try_from(*value).ok(),
            Value::Signed(value) => T::try_from(*value).ok(),
            _ => None,
        }
    }

    /// Widening went to `f64` or 64 bits, so narrowing gives back the exact `f32` of the file.
    fn as_f32(&self) -> Option<f32> {
        match self {
            Value::Float(value) => Some(*value as f32),
            Value::Unsigned(value) => Some(*value as f32),
            Value::Signed(value) => Some(*value as f32),
            _ => None,
        }
    }

    fn describe(&self) -> String {
        match self {
            Value::Unsigned(value) => format!("the integer {value}"),
            Value::Signed(value) => format!("the integer {value}"),
            Value::Float(value) => format!("the number {value}"),
            Value::Bool(value) => format!("the bool {value}"),
            Value::String(_) => "a string".to_owned(),
            Value::Array(Array::Strings(strings)) => format!("an array of {} strings", strings.len()),
            Value::Array(array) => format!("an array of {} values", array.len()),
        }
    }
}

impl Array {
    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        match self {
            Array::Strings(strings) => strings.len(),
            Array::Unsigned(values) => values.len(),
            Array::Signed(values) => values.len(),
            Array::Floats(values) => values.len(),
            Array::Bools(values) => values.len(),
            Array::Arrays(arrays) => arrays.len(),
        }
    }

    /// Says whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
