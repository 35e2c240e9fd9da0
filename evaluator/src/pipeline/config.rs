//! The file of a pipeline: servers and stages, checked, and the command line of each stage.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Folder of all runs.
    pub(crate) out: PathBuf,
    /// The program that serves models.
    pub(crate) engine: Option<PathBuf>,
    #[serde(default, rename = "server")]
    pub(crate) servers: Vec<ServerConfig>,
    #[serde(rename = "stage")]
    pub(crate) stages: Vec<Stage>,
}

/// An engine to start.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ServerConfig {
    pub(crate) name: String,
    /// As `bespoke-engine serve --model` takes it.
    pub(crate) model: String,
    /// More options of `bespoke-engine serve`.
    #[serde(default)]
    pub(crate) options: Vec<String>,
}

impl ServerConfig {
    /// Returns what answers depend on; options such as threads change speed alone, but quantization does not.
    pub(crate) fn identity(&self) -> String {
        let at = self.options.iter().position(|option| option == "--quantization");
        let quantization = at.and_then(|at| self.options.get(at + 1)).cloned().unwrap_or_default();
        format!("{} {quantization}", self.model)
    }
}

/// A command to run.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Stage {
    pub(crate) name: String,
    pub(crate) command: String,
    /// The server whose address it gets.
    pub(crate) server: Option<String>,
    #[serde(default)]
    pub(crate) options: toml::Table,
}

/// The commands that keep a run folder in `--out`.
const WITH_FOLDER: [&str; 6] = ["infer", "accuracy", "prefs", "generate", "judge", "agreement"];

impl Config {
    /// Reads and checks a file.
    ///
    /// **Errors**: the file with line and field, or the stage that names what there is not.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let config: Self = toml::from_str(&text).with_context(|| format!("{} is not a pipeline", path.display()))?;
        config.check().with_context(|| format!("{}", path.display()))?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        ensure!(!self.stages.is_empty(), "there is no [[stage]]");
        for (place, stage) in self.stages.iter().enumerate() {
            let is_name = stage.name.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c));
            ensure!(is_name && !stage.name.is_empty(), "stage `{}`: a name has letters, digits, - _ .", stage.name);
            let doubled = self.stages[..place].iter().any(|other| other.name == stage.name);
            ensure!(!doubled, "stage `{}` stands twice", stage.name);
            if let Some(server) = &stage.server {
                self.server(server).with_context(|| format!("stage `{}`", stage.name))?;
                ensure!(!stage.options.contains_key("base-url"), "stage `{}` has server and base-url", stage.name);
            }
            self.words(stage)?;
        }
        Ok(())
    }

    /// Returns a server by its name.
    pub(crate) fn server(&self, name: &str) -> Result<&ServerConfig> {
        self.servers.iter().find(|server| server.name == name).with_context(|| format!("there is no server `{name}`"))
    }

    /// Returns the folder of a stage.
    pub(crate) fn dir(&self, stage: &Stage) -> PathBuf {
        self.out.join(&stage.name)
    }

    /// Whether the stage keeps a run folder in `--out`.
    pub(crate) fn has_folder(&self, stage: &Stage) -> bool {
        WITH_FOLDER.contains(&stage.command.as_str())
    }

    /// Returns the command line of a stage, without the address of its server.
    ///
    /// **Errors**: an option that is a table, a reference to a stage that does not stand before.
    pub(crate) fn words(&self, stage: &Stage) -> Result<Vec<String>> {
        let mut words = vec!["bespoke-evaluator".to_owned(), stage.command.clone()];
        for (name, value) in &stage.options {
            let context = || format!("stage `{}`, option `{name}`", stage.name);
            let flag = format!("--{}", name.replace('_', "-"));
            match value {
                toml::Value::Boolean(false) => {}
                toml::Value::Boolean(true) => words.push(flag),
                toml::Value::Array(values) => {
                    for value in values {
                        words.extend([flag.clone(), self.word(stage, value).with_context(context)?]);
                    }
                }
                value => words.extend([flag, self.word(stage, value).with_context(context)?]),
            }
        }
        if self.has_folder(stage) && !stage.options.contains_key("out") {
            words.extend(["--out".to_owned(), self.dir(stage).display().to_string()]);
        }
        Ok(words)
    }

    fn word(&self, stage: &Stage, value: &toml::Value) -> Result<String> {
        Ok(match value {
            toml::Value::String(text) => match text.strip_prefix('@') {
                Some(reference) => self.resolve(stage, reference)?,
                None => text.clone(),
            },
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Float(number) => number.to_string(),
            toml::Value::Boolean(_) | toml::Value::Datetime(_) | toml::Value::Array(_) | toml::Value::Table(_) => {
                bail!("must be a text, a number, true or false, or a list of texts and numbers")
            }
        })
    }

    /// Turns `name/rest` into a path below the folder of the stage `name`, this one or an earlier one.
    fn resolve(&self, stage: &Stage, reference: &str) -> Result<String> {
        let (name, rest) = reference.split_once('/').unwrap_or((reference, ""));
        let up_to = self.stages.iter().take_while(|other| other.name != stage.name).any(|other| other.name == name);
        ensure!(up_to || name == stage.name, "`@{name}` is no stage before this one");
        let path = self.out.join(name);
        Ok(if rest.is_empty() { path } else { path.join(rest) }.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Config::read(file.path())
    }

    #[test]
    fn a_stage_becomes_a_command_line() {
        let config = parse(
            "out = 'runs'\n[[server]]\nname = 's'\nmodel = 'm'\n[[stage]]\nname = 'i'\ncommand = 'infer'\nserver = 's'\n\
             [stage.options]\ndata = 'd.jsonl'\nlimit = 5\ndry-run = false\n\
             [[stage]]\nname = 'a'\ncommand = 'augment'\n[stage.options]\ninfer = ['@i']\nout = '@a/rows.jsonl'\n",
        )
        .unwrap();
        assert_eq!(
            config.words(&config.stages[0]).unwrap()[1..],
            ["infer", "--data", "d.jsonl", "--limit", "5", "--out", "runs/i"]
        );
        assert_eq!(
            config.words(&config.stages[1]).unwrap()[1..],
            ["augment", "--infer", "runs/i", "--out", "runs/a/rows.jsonl"]
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |text: &str| format!("{:#}", parse(text).unwrap_err());
        let stage = "out = 'x'\n[[stage]]\nname = 'a'\ncommand = 'infer'\n";
        assert!(error("out = 'x'\nstage = []\n").contains("no [[stage]]"));
        assert!(error(&format!("{stage}server = 'none'\n")).contains("no server `none`"));
        assert!(error(&format!("{stage}[stage.options]\ninfer = '@b'\n")).contains("option `infer`: `@b`"));
        assert!(error(&format!("{stage}{}", &stage[10..])).contains("stands twice"));
        assert!(error(&format!("{stage}typo = 1\n")).contains("typo"));
    }
}
