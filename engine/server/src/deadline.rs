//! The deadline that a gRPC client sends along.

use std::time::{Duration, Instant};

use bespoke_domain::Invalid;
use tonic::metadata::MetadataMap;

/// The answer leaves this much before the deadline, so that the client reads it before its own clock ends the call.
const MARGIN: Duration = Duration::from_millis(2);

/// Reads `grpc-timeout`: up to eight digits and a unit of H, M, S, m, u or n.
///
/// **Errors**: a value of another form.
pub(crate) fn deadline(metadata: &MetadataMap, now: Instant) -> Result<Option<Instant>, Invalid> {
    let Some(value) = metadata.get("grpc-timeout") else { return Ok(None) };
    let timeout = value.to_str().ok().and_then(parse);
    let timeout =
        timeout.ok_or_else(|| Invalid::new("grpc-timeout", "must be 1 to 8 digits and one of H, M, S, m, u, n"))?;
    Ok(now.checked_add(timeout.saturating_sub(MARGIN)))
}

fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_read() {
        let read: Vec<_> = ["1H", "2M", "3S", "4m", "5u", "6n"].iter().map(|text| parse(text).unwrap()).collect();
        let millis = Duration::from_millis;
        let want = [
            millis(3_600_000),
            millis(120_000),
            millis(3000),
            millis(4),
            Duration::from_micros(5),
            Duration::from_nanos(6),
        ];
        assert_eq!(read, want);
    }

    #[test]
    fn other_forms_are_refused() {
        for text in ["", "S", "1", "123456789S", "-1S", "1x", "1.5S", "é"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
