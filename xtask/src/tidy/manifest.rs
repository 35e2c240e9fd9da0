//! The dependency arrows: which crate of the workspace may depend on which, and what each keeps out.

use super::Violation;

/// What a crate of the workspace may depend on.
struct Arrow {
    from: &'static str,
    /// Crates of the workspace; development dependencies are free, for tests may stand above everything.
    to: &'static [&'static str],
    /// Foreign crates, by the start of their names; these are kept out of tests too.
    never: &'static [&'static str],
}

const DOMAIN: &str = "bespoke-domain";
const KERNELS: &str = "bespoke-kernels";
const MODEL: &str = "bespoke-model";
const ENGINE: &str = "bespoke-engine";
const MISTRAL: &str = "bespoke-mistral";
const STORE: &str = "bespoke-store";
const PROTO: &str = "bespoke-proto";
const CLIENT: &str = "bespoke-client";
const SERVER: &str = "bespoke-server";
/// Only a development dependency, of whoever needs it.
const TESTKIT: &str = "bespoke-testkit";

const ARROWS: [Arrow; 14] = [
    Arrow { from: DOMAIN, to: &[], never: &["tonic", "tokio", "candle"] },
    Arrow { from: KERNELS, to: &[], never: &["tonic", "tokio", "candle"] },
    Arrow { from: MODEL, to: &[DOMAIN, KERNELS], never: &["tonic", "tokio"] },
    Arrow { from: ENGINE, to: &[DOMAIN, MODEL], never: &["tonic", "candle"] },
    Arrow { from: MISTRAL, to: &[DOMAIN, MODEL, ENGINE], never: &["tonic"] },
    Arrow { from: STORE, to: &[], never: &["tonic", "tokio", "candle"] },
    Arrow { from: PROTO, to: &[DOMAIN], never: &["candle"] },
    Arrow { from: CLIENT, to: &[DOMAIN, PROTO], never: &["candle"] },
    Arrow { from: SERVER, to: &[DOMAIN, KERNELS, MODEL, ENGINE, MISTRAL, STORE, PROTO], never: &["candle"] },
    Arrow { from: TESTKIT, to: &[DOMAIN, KERNELS, MODEL, ENGINE, STORE, PROTO, CLIENT, SERVER], never: &["candle"] },
    Arrow { from: "bespoke-trainer", to: &[DOMAIN, KERNELS, MODEL, STORE], never: &["tonic"] },
    Arrow { from: "bespoke-evaluator", to: &[DOMAIN, PROTO, CLIENT], never: &["candle"] },
    Arrow { from: "bespoke-benches", to: &[DOMAIN, KERNELS, MODEL, ENGINE, STORE, PROTO, CLIENT, SERVER], never: &[] },
    Arrow { from: "xtask", to: &[], never: &["tonic", "tokio", "candle"] },
];

/// Checks one `Cargo.toml`.
pub(super) fn check(path: &str, text: &str) -> Vec<Violation> {
    let manifest: toml::Table = match text.parse() {
        Ok(manifest) => manifest,
        Err(error) => return vec![Violation::new(path, 1, format!("is not TOML: {}", error.message()))],
    };
    let Some(name) = manifest.get("package").and_then(|package| package.get("name")).and_then(toml::Value::as_str)
    else {
        return Vec::new();
    };
    let Some(arrow) = ARROWS.iter().find(|arrow| arrow.from == name) else {
        let message = format!("crate `{name}` has no arrow: add it to `xtask/src/tidy/manifest.rs`");
        return vec![Violation::new(path, 1, message)];
    };
    let dependencies = dependencies_of(&manifest);
    let broken = dependencies.iter().filter_map(|dependency| Some((dependency, broken_rule(arrow, dependency)?)));
    broken.map(|(dependency, message)| Violation::new(path, line_of(text, &dependency.key), message)).collect()
}

struct Dependency {
    /// As written in the manifest.
    key: String,
    /// The crate's own name, which differs from `key` where it is renamed.
    name: String,
    is_dev: bool,
}

fn dependencies_of(manifest: &toml::Table) -> Vec<Dependency> {
    let targets = manifest.get("target").and_then(toml::Value::as_table);
    let tables = std::iter::once(manifest)
        .chain(targets.into_iter().flat_map(toml::Table::values).filter_map(toml::Value::as_table));
    let mut dependencies = Vec::new();
    for table in tables {
        for kind in ["dependencies", "build-dependencies", "dev-dependencies"] {
            let Some(entries) = table.get(kind).and_then(toml::Value::as_table) else { continue };
            dependencies.extend(entries.iter().map(|(key, value)| Dependency {
                key: key.clone(),
                name: value.get("package").and_then(toml::Value::as_str).unwrap_or(key).to_owned(),
                is_dev: kind == "dev-dependencies",
            }));
        }
    }
    dependencies
}

fn broken_rule(arrow: &Arrow, dependency: &Dependency) -> Option<String> {
    let (from, name) = (arrow.from, dependency.name.as_str());
    if arrow.never.iter().any(|start| name.starts_with(start)) {
        return Some(format!("`{from}` keeps `{name}` out"));
    }
    if dependency.is_dev || !name.starts_with("bespoke-") || arrow.to.contains(&name) {
        return None;
    }
    if name == TESTKIT {
        return Some(format!("`{TESTKIT}` is for `[dev-dependencies]` only"));
    }
    Some(format!("`{from}` may not depend on `{name}`: arrows go one way"))
}

/// The line that names the dependency; a key that stands in two sections is shown at the first.
fn line_of(text: &str, key: &str) -> usize {
    let names_key = |line: &str| line.strip_prefix(key).is_some_and(|rest| rest.starts_with(['.', ' ', '=']));
    text.lines().position(names_key).map_or(1, |index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(name: &str, rest: &str) -> Vec<String> {
        let text = format!("[package]\nname = \"{name}\"\n{rest}");
        check("x/Cargo.toml", &text).into_iter().map(|violation| violation.to_string()).collect()
    }

    #[test]
    fn arrows_go_one_way() {
        assert!(messages(MODEL, "[dependencies]\nbespoke-domain.workspace = true\n").is_empty());
        assert_eq!(
            messages(DOMAIN, "[dependencies]\nserde = \"1\"\nbespoke-model.workspace = true\n"),
            ["x/Cargo.toml:5: `bespoke-domain` may not depend on `bespoke-model`: arrows go one way"]
        );
        assert_eq!(messages(ENGINE, "[dependencies]\nbespoke-kernels.workspace = true\n").len(), 1);
        assert_eq!(messages(CLIENT, "[build-dependencies]\nbespoke-engine.workspace = true\n").len(), 1);
        assert_eq!(messages("bespoke-evaluator", "[dependencies]\nbespoke-model.workspace = true\n").len(), 1);
    }

    #[test]
    fn foreign_crates_are_kept_out_everywhere() {
        assert_eq!(messages(ENGINE, "[dependencies]\ntonic-types = \"0\"\n").len(), 1);
        assert_eq!(messages(DOMAIN, "[dev-dependencies]\ntokio = \"1\"\n").len(), 1);
        assert_eq!(messages(SERVER, "[target.'cfg(unix)'.dependencies]\ncandle-core = \"0\"\n").len(), 1);
        assert_eq!(messages(SERVER, "[dependencies]\nc = { package = \"candle-nn\", version = \"0\" }\n").len(), 1);
        assert_eq!(messages("bespoke-trainer", "[dependencies]\ntonic = \"0\"\n").len(), 1);
        assert!(messages(SERVER, "[dependencies]\ntonic = \"0\"\ntokio = \"1\"\n").is_empty());
    }

    #[test]
    fn the_testkit_is_for_tests() {
        assert!(messages(ENGINE, "[dev-dependencies]\nbespoke-testkit.workspace = true\n").is_empty());
        assert_eq!(messages("bespoke-benches", "[dependencies]\nbespoke-testkit.workspace = true\n").len(), 1);
    }

    #[test]
    fn a_new_crate_needs_its_arrow() {
        assert_eq!(messages("bespoke-new", "").len(), 1);
        assert!(check("Cargo.toml", "[workspace]\nmembers = []\n").is_empty());
    }
}
