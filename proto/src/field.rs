//! Fields: their paths on the wire, and what all conversions do with one.

use bespoke_domain::Invalid;

/// Returns the error with the path that its field has in `GenerateRequest`, `GenerateStreamRequest` and `ScoreRequest`.
///
/// The domain names its own fields, such as `prompt.messages` or `stop.tokens`; on the wire they are `spec.messages` and
/// `params.stop.token_ids`. A path that is already one of the wire stays.
pub fn on_the_wire(invalid: Invalid) -> Invalid {
    let field = match head(&invalid.field) {
        ("prompt", "") => "spec.prompt".to_owned(),
        ("prompt", rest) => format!("spec{rest}"),
        ("persona" | "template" | "persona_in_prompt" | "response_prefix" | "prefix_cache", _) => {
            format!("spec.{}", invalid.field)
        }
        ("stop", rest) => match rest.strip_prefix(".tokens") {
            Some(rest) => format!("params.stop.token_ids{rest}"),
            None => format!("params.stop{rest}"),
        },
        ("time_limit", rest) => format!("params.time_limit_ms{rest}"),
        ("sampling" | "max_new_tokens" | "min_new_tokens" | "logprobs" | "echo" | "n" | "draft_tokens_max", _) => {
            format!("params.{}", invalid.field)
        }
        _ => return invalid,
    };
    Invalid { field, reason: invalid.reason }
}

/// Splits a path after its first name: `stop.tokens[1]` into `stop` and `.tokens[1]`.
fn head(field: &str) -> (&str, &str) {
    field.split_at(field.find(['.', '[']).unwrap_or(field.len()))
}

/// Takes a field that must be there.
pub(crate) fn required<T>(value: Option<T>, field: &str) -> Result<T, Invalid> {
    value.ok_or_else(|| Invalid::new(field, "is missing"))
}

/// Converts the entries of a list; an error names the entry.
pub(crate) fn each<W, D>(
    field: &str,
    entries: Vec<W>,
    convert: impl Fn(W) -> Result<D, Invalid>,
) -> Result<Vec<D>, Invalid> {
    let convert = |(index, entry)| convert(entry).map_err(|invalid| invalid.within(&format!("{field}[{index}]")));
    entries.into_iter().enumerate().map(convert).collect()
}

/// Refuses the number of an enum that is unknown or 0.
pub(crate) fn unknown(field: &str, number: i32) -> Invalid {
    Invalid::new(field, format!("is {number}, which names nothing here"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domain_paths_become_wire_paths() {
        let paths = [
            ("prompt", "spec.prompt"),
            ("prompt.token_ids[3]", "spec.token_ids[3]"),
            ("persona.id", "spec.persona.id"),
            ("template", "spec.template"),
            ("stop.tokens", "params.stop.token_ids"),
            ("stop.strings[1]", "params.stop.strings[1]"),
            ("sampling.logit_bias[7]", "params.sampling.logit_bias[7]"),
            ("n", "params.n"),
            ("time_limit", "params.time_limit_ms"),
            ("spec.prompt", "spec.prompt"),
            ("continuation", "continuation"),
            ("priority", "priority"),
        ];
        for (domain, wire) in paths {
            assert_eq!(on_the_wire(Invalid::new(domain, "")).field, wire);
        }
    }
}
