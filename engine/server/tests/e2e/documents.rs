//! What is written about operating the server, and the files to deploy it.

use std::path::PathBuf;

use serde::Deserialize;
use serde_yaml_ng::Value;

use crate::command_line::run;

/// The folder of this package, asked at run time: clones that share a target directory share this program.
fn package() -> PathBuf {
    PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap())
}

fn document() -> String {
    std::fs::read_to_string(package().join("../../docs/operations.md")).unwrap()
}

/// Returns the metrics of a page that the page on operations does not have.
pub(crate) fn undocumented(page: &str) -> Vec<String> {
    let document = document();
    let samples = page.lines().filter(|line| !line.starts_with('#'));
    let names = samples.filter_map(|line| line.split(['{', ' ']).next()).map(|name| {
        let suffix = ["_bucket", "_sum", "_count"].into_iter().find_map(|suffix| name.strip_suffix(suffix));
        suffix.unwrap_or(name).to_owned()
    });
    names.filter(|name| !document.contains(&format!("`{name}`"))).collect()
}

#[test]
fn every_flag_is_documented() {
    let document = document();
    let (_, help, _) = run(&["serve", "--help"]);
    let words = help
        .split_whitespace()
        .map(|word| word.trim_matches(|letter: char| !letter.is_alphanumeric() && letter != '-'));
    let flags: Vec<_> = words.filter(|word| word.starts_with("--") && word.len() > 2).collect();
    assert!(flags.len() > 30, "{flags:?}");
    for flag in flags {
        let known = ["--help", "--version"].contains(&flag) || document.contains(&format!("`{flag}`"));
        assert!(known, "{flag} is not in docs/operations.md");
    }
}

fn manifests() -> Vec<(PathBuf, Value)> {
    let folder = package().join("deploy/kubernetes");
    let mut manifests = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        for document in serde_yaml_ng::Deserializer::from_str(&text) {
            manifests.push((path.clone(), Value::deserialize(document).unwrap()));
        }
    }
    manifests
}

#[test]
fn manifests_are_whole_and_fit_each_other() {
    let manifests = manifests();
    for (path, manifest) in &manifests {
        for field in ["apiVersion", "kind"] {
            assert!(manifest[field].is_string(), "{} has no {field}", path.display());
        }
    }
    let find = |kind: &str| &manifests.iter().find(|(_, manifest)| manifest["kind"] == kind).unwrap().1;
    let deployment = &find("Deployment")["spec"];
    assert_eq!(find("Service")["spec"]["selector"], deployment["selector"]["matchLabels"]);
    assert_eq!(find("PodDisruptionBudget")["spec"]["selector"], deployment["selector"]);
    assert_eq!(
        find("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"],
        find("Deployment")["metadata"]["name"]
    );
    let pod = &deployment["template"]["spec"];
    let container = &pod["containers"][0];
    let variable = |name: &str| {
        let all = container["env"].as_sequence().unwrap();
        let one = all.iter().find(|variable| variable["name"] == name).unwrap();
        one["value"].as_str().unwrap().to_owned()
    };
    let grace: u64 = variable("BESPOKE_GRACE_S").parse().unwrap();
    let pause: u64 = container["lifecycle"]["preStop"]["exec"]["command"][1].as_str().unwrap().parse().unwrap();
    assert!(pod["terminationGracePeriodSeconds"].as_u64().unwrap() > grace + pause, "the drain is cut short");
    // Every variable is an option of the program.
    let (_, help, _) = run(&["serve", "--help"]);
    for (path, manifest) in &manifests {
        for variable in variables(manifest) {
            assert!(help.contains(&format!("{variable}=")), "{variable} in {} is no option", path.display());
        }
    }
}

/// Returns the names that begin with `BESPOKE_`, wherever they stand.
fn variables(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) if text.starts_with("BESPOKE_") => vec![text.clone()],
        Value::Sequence(values) => values.iter().flat_map(variables).collect(),
        Value::Mapping(fields) => fields.values().flat_map(variables).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn image_and_unit_call_what_exists() {
    let folder = package().join("deploy");
    let (_, help, _) = run(&["serve", "--help"]);
    for name in ["Dockerfile", "bespoke-engine.service"] {
        let text = std::fs::read_to_string(folder.join(name)).unwrap();
        for word in text.split(|letter: char| !letter.is_ascii_uppercase() && letter != '_') {
            let known = word == "BESPOKE_CACHE" || help.contains(&format!("{word}="));
            assert!(!word.starts_with("BESPOKE_") || known, "{word} in {name} is no option");
        }
    }
}
