//! The fields of a JSON request. Each is taken by its name; what is left over in the end is not known here.

use bespoke_domain::Invalid;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The fields of one JSON object that have not been taken yet.
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    /// Reads a body.
    ///
    /// **Errors**: what is no JSON object, without a field's name.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, Invalid> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(_) => Err(Invalid::new("", "the body must be a JSON object")),
            // The message of the parser quotes nothing of the body.
            Err(error) => Err(Invalid::new("", format!("the body is not JSON: {error}"))),
        }
    }

    pub(crate) fn new(fields: Map<String, Value>) -> Self {
        Self(fields)
    }

    /// Takes a field; one that is null counts as absent.
    ///
    /// **Errors**: a value of another type.
    pub(crate) fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, Invalid> {
        let value = self.0.shift_remove(name).filter(|value| !value.is_null());
        let kind = value.as_ref().map_or("", kind_of);
        let read = value.map(serde_json::from_value).transpose();
        read.map_err(|_| Invalid::new(name, format!("is {kind} that is not allowed here; see the documentation")))
    }

    /// Takes a field as it is.
    pub(crate) fn take_value(&mut self, name: &str) -> Option<Value> {
        self.0.shift_remove(name).filter(|value| !value.is_null())
    }

    /// Takes a field that is only allowed with a value which asks for nothing: one of `neutral`, or an empty list.
    ///
    /// **Errors**: any other value.
    pub(crate) fn only(&mut self, name: &str, neutral: &[Value]) -> Result<(), Invalid> {
        match self.take_value(name) {
            Some(value) if !neutral.contains(&value) && value.as_array().is_none_or(|list| !list.is_empty()) => {
                Err(Invalid::new(name, "is not supported by this server"))
            }
            _ => Ok(()),
        }
    }

    /// Refuses what has not been taken, but for fields that are null or never change an answer.
    ///
    /// **Errors**: the first field that is left.
    pub(crate) fn finish(self, harmless: &[&str]) -> Result<(), Invalid> {
        let mut left =
            self.0.into_iter().filter(|(name, value)| !value.is_null() && !harmless.contains(&name.as_str()));
        match left.next() {
            None => Ok(()),
            Some((name, _)) => Err(Invalid::new(name, "is not a field that this server knows")),
        }
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(text: &str) -> Fields {
        Fields::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for body in ["", "[]", "1", "{", "\u{feff}{}", "null"] {
            assert_eq!(Fields::parse(body.as_bytes()).err().unwrap().field, "");
        }
        assert!(Fields::parse(&[b'['; 100_000]).is_err());
    }

    #[test]
    fn a_field_has_its_type_and_null_is_absent() {
        let mut given = fields(r#"{"a": 1.5, "b": null, "c": "x", "d": -1}"#);
        assert_eq!(given.take::<f32>("a").unwrap(), Some(1.5));
        assert_eq!(given.take::<f32>("b").unwrap(), None);
        assert_eq!(given.take::<f32>("absent").unwrap(), None);
        assert_eq!(
            given.take::<f32>("c").unwrap_err().to_string(),
            "`c` is a string that is not allowed here; see the documentation"
        );
        assert_eq!(given.take::<u32>("d").unwrap_err().field, "d");
        assert!(given.finish(&[]).is_ok());
    }

    #[test]
    fn what_is_left_over_is_named() {
        assert_eq!(fields(r#"{"user": "u", "tools_": []}"#).finish(&["user"]).unwrap_err().field, "tools_");
        let mut given = fields(r#"{"tools": [], "format": {"type": "text"}, "audio": {"voice": "x"}}"#);
        assert!(given.only("tools", &[]).is_ok());
        assert!(given.only("format", &[json!({"type": "text"})]).is_ok());
        assert_eq!(given.only("audio", &[]).unwrap_err().field, "audio");
    }
}
