//! `top`: what a running server is doing, in the terminal, from its page of metrics.

mod frame;
mod samples;

use std::{
    io::{IsTerminal, Write},
    time::Duration,
};

use anyhow::Context;
use clap::Args;

use self::{frame::frame, samples::Samples};

/// How long the page may take.
const PAGE_TIME: Duration = Duration::from_secs(5);
/// Moves the cursor to the top and clears what is below.
const CLEAR: &str = "\u{1b}[H\u{1b}[J";

/// Arguments of `top`.
#[derive(Args, Debug)]
pub struct Top {
    /// Address of the server's page of metrics, its --metrics-address.
    #[arg(long, env = "BESPOKE_METRICS_ADDRESS", value_name = "HOST:PORT", default_value = "127.0.0.1:9090")]
    pub metrics_address: String,
    /// Seconds between looks, 1 to 3600.
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub interval_s: u64,
    /// Print one look, with rates and times since the start, and exit.
    #[arg(long)]
    pub once: bool,
}

/// Shows a server until it is interrupted.
///
/// **Errors**: a page that cannot be had or read.
pub fn top(arguments: &Top) -> anyhow::Result<()> {
    let agent = ureq::Agent::config_builder().proxy(None).timeout_global(Some(PAGE_TIME)).build();
    let agent = ureq::Agent::new_with_config(agent);
    let url = format!("http://{}/metrics", arguments.metrics_address);
    let look = || -> anyhow::Result<Samples> {
        let mut page = agent.get(&url).call().with_context(|| format!("cannot read {url}"))?;
        let page = page.body_mut().read_to_string().with_context(|| format!("cannot read {url}"))?;
        Samples::parse(&page).with_context(|| format!("{url} is no page of a bespoke-engine"))
    };
    let mut out = std::io::stdout();
    let clear = if out.is_terminal() && !arguments.once { CLEAR } else { "" };
    let mut last = None;
    loop {
        let now = look()?;
        let text = frame(last.as_ref(), &now);
        out.write_all(format!("{clear}{text}").as_bytes()).and_then(|()| out.flush()).context("standard output")?;
        if arguments.once {
            return Ok(());
        }
        last = Some(now);
        std::thread::sleep(Duration::from_secs(arguments.interval_s));
    }
}
