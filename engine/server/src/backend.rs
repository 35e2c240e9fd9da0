//! Which library runs the model: `--backend` of `serve` and `try`.

use std::path::Path;

use anyhow::Context;
use bespoke_engine::{Engine, EngineBuilder, EngineError, ModelError};
use clap::ValueEnum;
use serde::Deserialize;

/// A backend by name, or the choice of one by the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendName {
    /// The native one where it has the model's architecture, else mistral.rs where it is built in.
    #[default]
    Auto,
    /// Bespoke's own.
    Native,
    /// The mistral.rs library, one sequence at a time; a program built with the feature mistralrs has it.
    Mistralrs,
}

impl BackendName {
    /// Builds the engine on the model at a path.
    ///
    /// **Errors**: as the builder's; an architecture that no backend here has; a backend that is not built in.
    pub fn build(self, builder: EngineBuilder, model: &Path) -> anyhow::Result<Engine> {
        let builder = builder.model(model);
        match self {
            Self::Native => Ok(builder.build()?),
            Self::Mistralrs => on_mistralrs(builder, model),
            Self::Auto => match builder.clone().build() {
                Err(EngineError::Model(error @ ModelError::UnsupportedArchitecture { .. })) => {
                    tracing::info!(%error, "not native: trying mistral.rs");
                    on_mistralrs(builder, model).with_context(|| format!("by the native backend, {error}"))
                }
                built => Ok(built?),
            },
        }
    }
}

#[cfg(feature = "mistralrs")]
fn on_mistralrs(builder: EngineBuilder, model: &Path) -> anyhow::Result<Engine> {
    let backend = bespoke_mistral::Mistral::load(model)?;
    Ok(builder.build_on(Box::new(backend))?)
}

#[cfg(not(feature = "mistralrs"))]
fn on_mistralrs(_: EngineBuilder, _: &Path) -> anyhow::Result<Engine> {
    anyhow::bail!("this program is built without mistral.rs: build it with `--features mistralrs`")
}

#[cfg(test)]
mod tests {
    use bespoke_testkit::TinyModel;

    use super::*;

    #[test]
    fn auto_is_native_where_the_architecture_is_known() {
        let model = TinyModel::default().write_hf().unwrap();
        for name in [BackendName::Auto, BackendName::Native] {
            let engine = name.build(Engine::builder().num_threads(1), model.path()).unwrap();
            assert_eq!(engine.model_info().architecture, "llama");
            assert!(engine.model_info().num_blocks > 0, "{name:?} has a cache of its own");
        }
    }

    #[cfg(not(feature = "mistralrs"))]
    #[test]
    fn what_is_not_built_in_is_named() {
        let model = TinyModel::default().write_hf().unwrap();
        let error = BackendName::Mistralrs.build(Engine::builder(), model.path()).unwrap_err();
        assert!(error.to_string().contains("--features mistralrs"), "{error}");
        let config = model.path().join("config.json");
        let other = std::fs::read_to_string(&config).unwrap().replace("LlamaForCausalLM", "Gemma3ForCausalLM");
        std::fs::write(&config, other).unwrap();
        let error = format!("{:#}", BackendName::Auto.build(Engine::builder(), model.path()).unwrap_err());
        assert!(error.contains("`Gemma3ForCausalLM`") && error.contains("--features mistralrs"), "{error}");
        let error = BackendName::Native.build(Engine::builder(), model.path()).unwrap_err();
        assert!(error.to_string().contains("`Gemma3ForCausalLM`"), "{error}");
    }
}
