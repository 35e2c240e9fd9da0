//! Prompts: the texts that the evaluator sends, from files that are built in or from a folder that replaces them.
//!
//! A file is looked for as `DIR/<dataset>/<name>`, then as `DIR/<name>`, where `DIR` is `--prompt-dir`, and then among those
//! built in (`evaluator/prompts`). What stands in all requests of a stage goes first in a prompt, so that an engine with a
//! prefix cache computes it once.

use std::path::PathBuf;

use anyhow::{Context, Result};
use minijinja::{Environment, syntax::SyntaxConfig};
use serde::{Deserialize, Serialize};

use crate::case::hex_digest;

/// The files that are built in.
const BUILT_IN: [(&str, &str); 15] = [
    ("infer.txt", include_str!("../prompts/infer.txt")),
    ("accuracy.txt", include_str!("../prompts/accuracy.txt")),
    ("prefs.txt", include_str!("../prompts/prefs.txt")),
    ("judge-relative.txt", include_str!("../prompts/judge-relative.txt")),
    ("judge-absolute.txt", include_str!("../prompts/judge-absolute.txt")),
    ("rubrics/quality.toml", include_str!("../prompts/rubrics/quality.toml")),
    ("rubrics/personalization.toml", include_str!("../prompts/rubrics/personalization.toml")),
    ("BeaverTails/examples.jsonl", include_str!("../prompts/BeaverTails/examples.jsonl")),
    ("BeaverTails/system-persona.txt", include_str!("../prompts/BeaverTails/system-persona.txt")),
    ("Anthropic-HHH/examples.jsonl", include_str!("../prompts/Anthropic-HHH/examples.jsonl")),
    ("Anthropic-HHH/system-persona.txt", include_str!("../prompts/Anthropic-HHH/system-persona.txt")),
    ("SHP/examples.jsonl", include_str!("../prompts/SHP/examples.jsonl")),
    ("SHP/system-persona.txt", include_str!("../prompts/SHP/system-persona.txt")),
    ("Mnemonic/examples.jsonl", include_str!("../prompts/Mnemonic/examples.jsonl")),
    ("Mnemonic/system-persona.txt", include_str!("../prompts/Mnemonic/system-persona.txt")),
];

/// The prompts of one stage on one data set.
#[derive(Clone, Debug)]
pub(crate) struct Prompts {
    dir: Option<PathBuf>,
    dataset: String,
}

/// An example of persona inference.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Example {
    prompt: String,
    preferred: String,
    other: String,
    persona: String,
}

/// What a judge judges by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rubric {
    #[serde(skip)]
    pub(crate) name: String,
    /// The question that the judge answers.
    pub(crate) criterion: String,
    /// What scores 1 to 5 mean; needed for absolute grading.
    #[serde(default)]
    pub(crate) scores: Vec<String>,
    /// Whether the judge is shown the persona.
    #[serde(default)]
    pub(crate) uses_persona: bool,
}

impl Prompts {
    pub(crate) fn new(dir: Option<PathBuf>, dataset: &str) -> Self {
        Self { dir, dataset: dataset.to_owned() }
    }

    /// Reads a prompt.
    ///
    /// **Errors**: a file that cannot be read, a template that is wrong; both are named.
    pub(crate) fn template(&self, name: &str) -> Result<PromptTemplate> {
        let (source, text) = self.text(name)?.with_context(|| format!("no prompt `{name}`"))?;
        let mut environment = Environment::new();
        environment.set_syntax(
            SyntaxConfig::builder().trim_blocks(true).build().expect("invariant: the delimiters are the usual ones"),
        );
        environment.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
        environment
            .add_template_owned("prompt", text.clone())
            .with_context(|| format!("{source} is not a template"))?;
        Ok(PromptTemplate { environment, digest: short_digest(&text), source })
    }

    /// Reads the few-shot examples of persona inference; none for a data set that has none.
    ///
    /// **Errors**: a line that is not an example.
    pub(crate) fn examples(&self) -> Result<Vec<Example>> {
        let Some((source, text)) = self.text("examples.jsonl")? else { return Ok(Vec::new()) };
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let example = |(index, line)| serde_json::from_str(line).with_context(|| format!("{source}:{}", index + 1));
        lines.map(example).collect()
    }

    /// Reads the persona for everybody.
    ///
    /// **Errors**: a data set that has none.
    pub(crate) fn system_persona(&self) -> Result<String> {
        let found = self.text("system-persona.txt")?;
        let (_, text) = found.with_context(|| {
            format!("no system persona for `{}`: set `--system-persona`, or add it to `--prompt-dir`", self.dataset)
        })?;
        Ok(text.trim().to_owned())
    }

    /// Reads a rubric by its name, or from a TOML file.
    ///
    /// **Errors**: no such rubric, a file that is not one.
    pub(crate) fn rubric(&self, name: &str) -> Result<Rubric> {
        let (source, text) = if name.ends_with(".toml") {
            (name.to_owned(), std::fs::read_to_string(name).with_context(|| format!("cannot read {name}"))?)
        } else {
            let found = self.text(&format!("rubrics/{name}.toml"))?;
            found.with_context(|| format!("no rubric `{name}`: use quality, personalization, or a TOML file"))?
        };
        let rubric: Rubric = toml::from_str(&text).with_context(|| format!("{source} is not a rubric"))?;
        let stem = std::path::Path::new(name).file_stem().map(|stem| stem.to_string_lossy().into_owned());
        Ok(Rubric { name: stem.unwrap_or_else(|| name.to_owned()), ..rubric })
    }

    /// Finds a file and returns where it is from and what it says.
    fn text(&self, name: &str) -> Result<Option<(String, String)>> {
        let names = [format!("{}/{name}", self.dataset), name.to_owned()];
        for path in self.dir.iter().flat_map(|dir| names.iter().map(|name| dir.join(name))) {
            match std::fs::read_to_string(&path) {
                Ok(text) => return Ok(Some((path.display().to_string(), text))),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
            }
        }
        let built_in = names.iter().find_map(|name| BUILT_IN.iter().find(|(built_in, _)| built_in == name));
        Ok(built_in.map(|(name, text)| (format!("the built-in {name}"), (*text).to_owned())))
    }
}

/// A prompt with places to fill.
#[derive(Clone, Debug)]
pub(crate) struct PromptTemplate {
    environment: Environment<'static>,
    pub(crate) digest: String,
    source: String,
}

impl PromptTemplate {
    /// Fills the places.
    ///
    /// **Errors**: a place that nothing fills.
    pub(crate) fn fill(&self, values: impl Serialize) -> Result<String> {
        let template = self.environment.get_template("prompt").expect("invariant: the template was added");
        let text = template
            .render(minijinja::value::Serde(values))
            .with_context(|| format!("{} cannot be filled", self.source))?;
        Ok(text.trim_end().to_owned())
    }
}

/// Identifies a text in manifests.
pub(crate) fn short_digest(text: &str) -> String {
    /// As many digits as nobody finds twice by accident.
    const DIGITS: usize = 16;
    hex_digest(text.as_bytes())[..DIGITS].to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_data_set_has_examples_and_a_persona() {
        for dataset in ["BeaverTails", "Anthropic-HHH", "SHP", "Mnemonic"] {
            let prompts = Prompts::new(None, dataset);
            let examples = prompts.examples().unwrap();
            assert!(examples.len() >= 3 && examples.iter().all(|example| example.persona.starts_with("The user")));
            assert!(prompts.system_persona().unwrap().starts_with("The user"));
        }
        assert!(Prompts::new(None, "Other").examples().unwrap().is_empty());
        assert!(Prompts::new(None, "Other").system_persona().unwrap_err().to_string().contains("--system-persona"));
    }

    #[test]
    fn judge_prompts_have_the_markers_in_order() {
        let prompts = Prompts::new(None, "BeaverTails");
        let rubric = prompts.rubric("personalization").unwrap();
        assert!(rubric.uses_persona && rubric.scores.len() == 5 && !prompts.rubric("quality").unwrap().uses_persona);
        for feedback in [true, false] {
            let text = prompts.template("judge-relative.txt").unwrap().fill(json!({
                "feedback": feedback, "persona": "P", "prompt": "Q", "response_a": "RA", "response_b": "RB",
                "reference": "", "rubric": rubric,
            }));
            let text = text.unwrap();
            let markers = [
                "###Task Description:",
                "###The instruction to evaluate:",
                "###Response A:",
                "###Response B:",
                "###Score Rubric:",
                "###Feedback:",
            ];
            let places: Vec<usize> = markers.iter().map(|marker| text.find(marker).unwrap()).collect();
            assert!(places.is_sorted() && text.ends_with("###Feedback:") && !text.contains("###Reference"), "{text}");
        }
    }

    #[test]
    fn a_folder_replaces_what_is_built_in() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("infer.txt"), "mine {{ prompt }}").unwrap();
        let prompts = Prompts::new(Some(dir.path().to_owned()), "SHP");
        assert_eq!(prompts.template("infer.txt").unwrap().fill(json!({"prompt": "x"})).unwrap(), "mine x");
        assert!(prompts.template("infer.txt").unwrap().fill(json!({})).is_err());
        assert!(prompts.template("prefs.txt").is_ok() && prompts.template("absent.txt").is_err());
        std::fs::create_dir(dir.path().join("SHP")).unwrap();
        std::fs::write(dir.path().join("SHP/infer.txt"), "{% broken").unwrap();
        assert!(prompts.template("infer.txt").unwrap_err().to_string().contains("is not a template"));
    }
}
