//! Tables for other programs: rows as a Parquet file, one column for each field that any row has.

use anyhow::{Context, Result};
use parquet::{
    basic::{Compression, ConvertedType, Repetition, Type as Physical},
    data_type::{BoolType, ByteArray, ByteArrayType, DoubleType, Int64Type},
    file::{
        properties::WriterProperties,
        writer::{SerializedColumnWriter, SerializedFileWriter},
    },
    schema::types::Type,
};
use serde_json::Value;
use std::sync::Arc;

use crate::run_folder::Record;

/// What a column holds; every value may be absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Integer,
    Number,
    Truth,
    /// Anything else, as JSON text.
    Json,
}

impl Kind {
    fn of(value: &Value) -> Option<Self> {
        match value {
            Value::Null => None,
            Value::String(_) => Some(Self::Text),
            Value::Bool(_) => Some(Self::Truth),
            Value::Number(number) if number.is_i64() => Some(Self::Integer),
            Value::Number(_) => Some(Self::Number),
            Value::Array(_) | Value::Object(_) => Some(Self::Json),
        }
    }

    /// Returns what holds the values of both.
    fn with(self, other: Self) -> Self {
        match (self, other) {
            (a, b) if a == b => a,
            (Self::Integer, Self::Number) | (Self::Number, Self::Integer) => Self::Number,
            _ => Self::Json,
        }
    }

    fn schema(self, name: &str) -> Result<Type> {
        let (physical, converted) = match self {
            Self::Text => (Physical::BYTE_ARRAY, ConvertedType::UTF8),
            Self::Json => (Physical::BYTE_ARRAY, ConvertedType::JSON),
            Self::Integer => (Physical::INT64, ConvertedType::NONE),
            Self::Number => (Physical::DOUBLE, ConvertedType::NONE),
            Self::Truth => (Physical::BOOLEAN, ConvertedType::NONE),
        };
        let column = Type::primitive_type_builder(name, physical);
        Ok(column.with_converted_type(converted).with_repetition(Repetition::OPTIONAL).build()?)
    }
}

/// Encodes rows as a Parquet file, columns in the order in which they first come.
///
/// **Errors**: none that the rows can cause.
pub(crate) fn parquet(rows: &[Record]) -> Result<Vec<u8>> {
    let columns = columns(rows);
    let fields = columns.iter().map(|(name, kind)| kind.schema(name).map(Arc::new)).collect::<Result<Vec<_>>>()?;
    let schema = Arc::new(Type::group_type_builder("rows").with_fields(fields).build()?);
    let properties = Arc::new(WriterProperties::builder().set_compression(Compression::SNAPPY).build());
    let mut bytes = Vec::new();
    let mut file = SerializedFileWriter::new(&mut bytes, schema, properties)?;
    let mut group = file.next_row_group()?;
    for (name, kind) in &columns {
        let mut column = group.next_column()?.context("invariant: a column for each field")?;
        let values: Vec<&Value> = rows.iter().map(|row| row.get(*name).unwrap_or(&Value::Null)).collect();
        write_column(&mut column, *kind, &values)?;
        column.close()?;
    }
    group.close()?;
    file.close()?;
    Ok(bytes)
}

fn columns(rows: &[Record]) -> Vec<(&String, Kind)> {
    let mut columns: Vec<(&String, Option<Kind>)> = Vec::new();
    for (name, value) in rows.iter().flatten() {
        let kind = Kind::of(value);
        match columns.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = known.map_or(kind, |known| Some(kind.map_or(known, |kind| known.with(kind)))),
            None => columns.push((name, kind)),
        }
    }
    // A column of nothing but nulls could be anything.
    columns.into_iter().map(|(name, kind)| (name, kind.unwrap_or(Kind::Text))).collect()
}

fn write_column(column: &mut SerializedColumnWriter<'_>, kind: Kind, values: &[&Value]) -> Result<()> {
    let levels: Vec<i16> = values.iter().map(|value| i16::from(!value.is_null())).collect();
    let present = values.iter().filter(|value| !value.is_null());
    let levels = Some(levels.as_slice());
    match kind {
        Kind::Text | Kind::Json => {
            let text = |value: &&Value| match value {
                Value::String(text) if kind == Kind::Text => ByteArray::from(text.as_str()),
                other => ByteArray::from(other.to_string().into_bytes()),
            };
            let texts: Vec<ByteArray> = present.map(text).collect();
            column.typed::<ByteArrayType>().write_batch(&texts, levels, None)?;
        }
        Kind::Integer => {
            let numbers: Vec<i64> = present.filter_map(|value| value.as_i64()).collect();
            column.typed::<Int64Type>().write_batch(&numbers, levels, None)?;
        }
        Kind::Number => {
            let numbers: Vec<f64> = present.filter_map(|value| value.as_f64()).collect();
            column.typed::<DoubleType>().write_batch(&numbers, levels, None)?;
        }
        Kind::Truth => {
            let truths: Vec<bool> = present.filter_map(|value| value.as_bool()).collect();
            column.typed::<BoolType>().write_batch(&truths, levels, None)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::{Field, Row};
    use serde_json::json;

    use super::*;

    fn value_of(row: &Row) -> Value {
        let value = |field: &Field| match field {
            Field::Null => Value::Null,
            Field::Bool(value) => json!(value),
            Field::Long(value) => json!(value),
            Field::Double(value) => json!(value),
            Field::Str(value) => json!(value),
            other => panic!("a column of another type: {other:?}"),
        };
        row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect()
    }

    #[test]
    fn rows_come_back_as_they_went_in() {
        let row = |value: Value| value.as_object().unwrap().clone();
        let rows = [
            row(json!({"prompt": "Où?\n", "n": 1, "x": 1, "ok": true, "mixed": "a", "list": [1, "b"]})),
            row(json!({"prompt": "", "n": null, "x": 0.5, "mixed": 3, "late": "z", "none": null})),
        ];
        let reader = SerializedFileReader::new(Bytes::from(parquet(&rows).unwrap())).unwrap();
        let read: Vec<Value> = reader.get_row_iter(None).unwrap().map(|row| value_of(&row.unwrap())).collect();
        assert_eq!(
            read[0],
            json!({"prompt": "Où?\n", "n": 1, "x": 1.0, "ok": true, "mixed": "\"a\"", "list": "[1,\"b\"]", "late": null, "none": null})
        );
        assert_eq!(
            read[1],
            json!({"prompt": "", "n": null, "x": 0.5, "ok": null, "mixed": "3", "list": null, "late": "z", "none": null})
        );
        assert!(parquet(&[]).is_ok());
    }
}
