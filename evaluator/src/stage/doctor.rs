//! `doctor`: asks each provider that has a key or an address for one short answer.

use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::{
    case::{Case, CasePrompt, Settings},
    provider::{Endpoint, Keys, Provider, ProviderName},
};

/// Arguments of `doctor`.
#[derive(Args, Debug)]
pub(crate) struct Doctor {
    /// Address of the engine. Default: http://127.0.0.1:50051.
    #[arg(long, value_name = "URL")]
    pub(crate) engine: Option<String>,
    /// Model of an OpenAI-compatible service to ask.
    #[arg(long, value_name = "MODEL")]
    pub(crate) openai_model: Option<String>,
    /// Address of an OpenAI-compatible service. Default: OpenAI's own.
    #[arg(long, value_name = "URL")]
    pub(crate) openai_url: Option<String>,
    /// Model of Anthropic to ask.
    #[arg(long, value_name = "MODEL")]
    pub(crate) anthropic_model: Option<String>,
    /// Address of Anthropic's service, or of a proxy.
    #[arg(long, value_name = "URL")]
    pub(crate) anthropic_url: Option<String>,
    /// Model of Cohere to ask.
    #[arg(long, value_name = "MODEL")]
    pub(crate) cohere_model: Option<String>,
    /// Address of Cohere's service, or of a proxy.
    #[arg(long, value_name = "URL")]
    pub(crate) cohere_url: Option<String>,
}

/// Nobody who answers takes longer for one word.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Runs the command.
///
/// **Errors**: a provider that was asked and did not answer.
#[expect(clippy::print_stdout, reason = "the findings are the output of the command")]
pub(crate) async fn doctor(arguments: &Doctor) -> Result<()> {
    let keys = Keys::load()?;
    let mut num_silent = 0;
    let asked = [
        (ProviderName::Engine, &arguments.engine, &None, true),
        (ProviderName::OpenAi, &arguments.openai_url, &arguments.openai_model, false),
        (ProviderName::Anthropic, &arguments.anthropic_url, &arguments.anthropic_model, false),
        (ProviderName::Cohere, &arguments.cohere_url, &arguments.cohere_model, false),
    ];
    for (provider, base_url, model, needs_no_model) in asked {
        let name = serde_json::to_value(provider)?;
        let name = name.as_str().unwrap_or_default();
        if model.is_none() && !needs_no_model {
            println!("{name}: not asked; name a model with --{name}-model");
            continue;
        }
        let (base_url, model) = (base_url.clone(), model.clone());
        let endpoint = Endpoint { provider, base_url, model, no_prefix_cache: false, timeout: TIMEOUT };
        match ask(&endpoint, &keys).await {
            Ok(said) => println!("{name}: {said}"),
            Err(error) => {
                num_silent += 1;
                println!("{name}: no answer: {error:#}");
            }
        }
    }
    let hub = |names: &[&str]| if keys.first(names).is_some() { "there" } else { "absent" };
    println!("hub keys: read {}, write {}", hub(&crate::provider::HUB_READ), hub(&crate::provider::HUB_WRITE));
    anyhow::ensure!(num_silent == 0, "{num_silent} of the providers asked did not answer");
    Ok(())
}

async fn ask(endpoint: &Endpoint, keys: &Keys) -> Result<String> {
    let provider = Provider::open(endpoint, keys).await?;
    let settings = Settings { max_new_tokens: 16, min_new_tokens: 0, temperature: 0.0, seed: 0, stop: Vec::new() };
    let text = "Say yes.".to_owned();
    let case = Case { prompt: CasePrompt::Instruct { text, answer_start: String::new() }, settings };
    let begun = std::time::Instant::now();
    let completion = provider.complete(&case).await?;
    let (model, ms) = (provider.identity().model, begun.elapsed().as_millis());
    Ok(format!("{model} answers in {ms} ms, {} tokens", completion.completion_tokens))
}
