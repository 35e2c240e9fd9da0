//! Two versions of one crate in `Cargo.lock` cost build time and confuse types: each needs a reason in a table.

use std::collections::{BTreeMap, BTreeSet};

use super::{DUPLICATE_VERSIONS, Violation};

/// Checks `Cargo.lock` against the table of reasons: a duplicate without one, and a reason without a duplicate.
pub(super) fn check(lockfile: &str, table: &str) -> Vec<Violation> {
    let duplicates = duplicates_of(lockfile);
    let mut violations = Vec::new();
    let mut excused = BTreeSet::new();
    for (line, number) in table.lines().zip(1..) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let report = |message: String| Violation::new(DUPLICATE_VERSIONS, number, message);
        let Some((names, reason)) = line.split_once(':').map(|(names, reason)| (names.trim(), reason.trim())) else {
            violations.push(report(format!("`{line}` is not `name: reason`")));
            continue;
        };
        if reason.is_empty() {
            violations.push(report(format!("`{names}` has no reason")));
        }
        for name in names.split(',').map(str::trim) {
            if !duplicates.contains_key(name) {
                violations.push(report(format!("`{name}` has one version now: remove it")));
            }
            if !excused.insert(name) {
                violations.push(report(format!("`{name}` stands here twice")));
            }
        }
    }
    for (name, (line, versions)) in duplicates.iter().filter(|(name, _)| !excused.contains(*name)) {
        let message = format!("`{name}` in versions {}: unify, or give a reason", versions.join(", "));
        violations.push(Violation::new("Cargo.lock", *line, message));
    }
    violations
}

/// The crates with more than one version: the line of the first one, and all versions.
fn duplicates_of(lockfile: &str) -> BTreeMap<&str, (usize, Vec<&str>)> {
    let value = |line, key| str::strip_prefix(line, key).map(|rest: &str| rest.trim_matches('"'));
    let mut crates: BTreeMap<&str, (usize, Vec<&str>)> = BTreeMap::new();
    let mut name = None;
    for (line, number) in lockfile.lines().zip(1..) {
        if let Some(found) = value(line, "name = ") {
            name = Some((found, number));
        } else if let (Some(version), Some((name, number))) = (value(line, "version = "), name) {
            crates.entry(name).or_insert((number, Vec::new())).1.push(version);
        }
    }
    crates.retain(|_, (_, versions)| versions.len() > 1);
    crates
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCKFILE: &str = "version = 4\n\n\
        [[package]]\nname = \"syn\"\nversion = \"2.0.1\"\n\n\
        [[package]]\nname = \"syn\"\nversion = \"3.0.1\"\n\n\
        [[package]]\nname = \"toml\"\nversion = \"1.0.0\"\n";

    #[test]
    fn a_duplicate_needs_a_reason() {
        let violations = check(LOCKFILE, "");
        assert_eq!(violations.len(), 1);
        assert_eq!(violations[0].to_string(), "Cargo.lock:4: `syn` in versions 2.0.1, 3.0.1: unify, or give a reason");
        assert!(check(LOCKFILE, "# comment\n\nsyn: serde moved first\n").is_empty());
        assert_eq!(check(LOCKFILE, "syn:\n").len(), 1);
        assert_eq!(check(LOCKFILE, "syn, toml: moved first\n").len(), 1, "one reason for several, each looked at");
    }

    #[test]
    fn a_reason_needs_a_duplicate() {
        let violations = check(LOCKFILE, "syn: serde moved first\ntoml: gone\n");
        assert_eq!(violations.len(), 1);
        assert_eq!(violations[0].line, 2);
        assert_eq!(check(LOCKFILE, "syn: a\nsyn: b\nno colon\n").len(), 2);
    }
}
