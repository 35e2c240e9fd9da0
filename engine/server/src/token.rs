//! `token`: make a bearer token. The token is shown once; what is kept is its hash.

use std::collections::BTreeMap;

use anyhow::Context;
use clap::Args;

use crate::{
    sha256::sha256_hex,
    tokens::{TokenEntry, TokensFile, check_name},
};

/// What a token begins with, so that scanners for secrets know one.
const PREFIX: &str = "bsk_";
/// The random bytes of a token.
const RANDOM_BYTES: usize = 32;

/// Arguments of `token`.
#[derive(Args, Debug)]
pub struct Token {
    /// Name of the token in logs and metrics: letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// The most requests at once. Default: no limit.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub requests_max: Option<u32>,
    /// The most tokens of prompts and answers in a minute. Default: no limit.
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub tokens_per_minute: Option<u32>,
}

/// Prints a new token, and after it what belongs into the file of tokens.
///
/// **Errors**: a name with other characters, a system without random numbers.
#[expect(clippy::print_stdout, reason = "the output of the command")]
pub fn make_token(arguments: &Token) -> anyhow::Result<()> {
    check_name(&arguments.name)?;
    let mut random = [0; RANDOM_BYTES];
    getrandom::fill(&mut random).context("the system gives no random numbers")?;
    let token = random.iter().fold(PREFIX.to_owned(), |token, byte| token + &format!("{byte:02x}"));
    let entry = TokenEntry {
        sha256: sha256_hex(token.as_bytes()),
        requests_max: arguments.requests_max,
        tokens_per_minute: arguments.tokens_per_minute,
    };
    let file = TokensFile { tokens: BTreeMap::from([(arguments.name.clone(), entry)]) };
    println!("{token}\n{}", toml::to_string(&file)?);
    Ok(())
}
