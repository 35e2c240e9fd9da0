//! Who may call: certificates, tokens and their limits.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use bespoke_client::{Builder, Client, Code};
use tempfile::TempDir;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    certificates::{Authority, Certificate},
    command_line::run,
    support::{Running, greedy, request},
};

/// How often the server looks at its files in these tests.
const LOOK: Duration = Duration::from_millis(20);

/// A file of tokens that the command has made.
struct TokensFile {
    folder: TempDir,
}

impl TokensFile {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("tokens.toml")
    }

    /// Adds a token and returns it.
    fn add(&self, name: &str, limits: &[&str]) -> String {
        let (code, out, err) = run(&[&["token", name], limits].concat());
        assert_eq!(code, Some(0), "{err}");
        let (token, entry) = out.split_once('\n').unwrap();
        let before = std::fs::read_to_string(self.path()).unwrap_or_default();
        assert!(!entry.contains(token), "the file holds no token");
        std::fs::write(self.path(), before + entry).unwrap();
        token.to_owned()
    }
}

async fn connect(address: &str, token: &str) -> Client {
    Client::builder(address).token(token).unwrap().connect().await.unwrap()
}

async fn with_tokens(file: &TokensFile, token: &str) -> Running {
    let path = file.path();
    let configure = move |config: &mut bespoke_server::Config| {
        config.security.tokens = Some(path);
        config.security.reload_interval = LOOK;
    };
    Running::guarded(configure, |builder| builder.token(token).unwrap()).await
}

#[tokio::test]
async fn only_a_known_token_is_let_in() {
    let file = TokensFile::new();
    let token = file.add("alice", &[]);
    let running = with_tokens(&file, &token).await;
    assert!(running.client.generate(&request(greedy("in", 2))).await.is_ok());

    let wrong = connect(&running.address, "bsk_wrong").await;
    assert_eq!(wrong.generate(&request(greedy("out", 2))).await.unwrap_err().code(), Some(Code::Unauthenticated));
    assert_eq!(wrong.server_info().await.unwrap_err().code(), Some(Code::Unauthenticated));
    let none = Client::connect(&running.address).await.unwrap();
    let refused = none.generate_stream(&request(greedy("out", 2))).await.err().unwrap();
    assert_eq!(refused.code(), Some(Code::Unauthenticated));
    // Those who watch over the server have no token.
    let channel = tonic::transport::Channel::from_shared(running.address.clone()).unwrap().connect().await.unwrap();
    let health = HealthClient::new(channel).check(HealthCheckRequest { service: String::new() }).await;
    assert!(health.is_ok());
}

#[tokio::test]
async fn a_token_that_is_taken_out_of_the_file_is_out() {
    let file = TokensFile::new();
    let token = file.add("alice", &[]);
    let running = with_tokens(&file, &token).await;
    let next = file.add("bob", &[]);
    let bob = connect(&running.address, &next).await;
    until(async || bob.server_info().await.is_ok()).await;
    assert!(running.client.server_info().await.is_ok());
    let kept = std::fs::read_to_string(file.path()).unwrap();
    std::fs::write(file.path(), "this is no file of tokens").unwrap();
    tokio::time::sleep(LOOK * 5).await;
    assert!(bob.server_info().await.is_ok(), "the last file that was right holds");
    let at = kept.find("[tokens.bob]").unwrap();
    std::fs::write(file.path(), &kept[..at]).unwrap();
    until(async || bob.server_info().await.is_err()).await;
    assert!(running.client.server_info().await.is_ok());
}

#[tokio::test]
async fn a_token_has_so_many_requests_at_once_and_tokens_a_minute() {
    let file = TokensFile::new();
    let narrow = file.add("narrow", &["--requests-max", "1"]);
    let poor = file.add("poor", &["--tokens-per-minute", "40"]);
    let running = with_tokens(&file, &narrow).await;
    let held = running.client.generate_stream(&request(greedy("held", 200))).await.unwrap();
    let refused = running.client.generate(&request(greedy("second", 2))).await.unwrap_err();
    assert_eq!(refused.code(), Some(Code::ResourceExhausted));
    assert!(refused.retry_after().is_some() && refused.to_string().contains("1 requests"), "{refused}");
    drop(held);
    until(async || running.client.generate(&request(greedy("third", 2))).await.is_ok()).await;

    let poor = connect(&running.address, &poor).await;
    assert!(poor.generate(&request(greedy("first", 60))).await.is_ok(), "what it costs is known only afterwards");
    let begun = Instant::now();
    let refused = poor.generate(&request(greedy("second", 2))).await.unwrap_err();
    assert_eq!(refused.code(), Some(Code::ResourceExhausted));
    let wait = refused.retry_after().unwrap();
    assert!(wait > Duration::from_secs(15) && wait < Duration::from_secs(120), "{wait:?}");
    assert!(begun.elapsed() < Duration::from_secs(2), "a refusal is immediate");
}

/// Waits until something holds.
async fn until(mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds().await {
        assert!(Instant::now() < deadline, "it never holds");
        tokio::time::sleep(LOOK).await;
    }
}

fn trusting(authority: &str) -> impl FnOnce(Builder) -> Builder {
    let authority = authority.to_owned();
    move |builder| builder.authorities(&authority)
}

async fn reason(builder: Builder) -> String {
    match builder.connect().await {
        Err(error) => format!("{error:?}").to_lowercase(),
        // With TLS 1.3 a client may learn only with its first call that its certificate was refused.
        Ok(client) => format!("{:?}", client.server_info().await.expect_err("the server is not to be reached")),
    }
}

#[tokio::test]
async fn tls_is_spoken_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let files = authority.sign().write(folder.path());
    let running = Running::guarded(|config| config.security.tls = Some(files), trusting(&authority.pem())).await;
    assert!(running.client.generate(&request(greedy("secret", 4))).await.is_ok());
    let plain = running.address.replace("https", "http");
    // HTTP/2 may be spoken before the other end has said anything.
    if let Ok(plain) = Client::connect(&plain).await {
        assert!(plain.server_info().await.is_err());
    }
    let stranger = Client::builder(&running.address).authorities(&Authority::new().pem());
    let error = reason(stranger).await;
    assert!(error.contains("certificate"), "{error}");
    let other_name = Client::builder(&running.address).authorities(&authority.pem()).server_name("example.org");
    let error = reason(other_name).await;
    assert!(error.contains("certificate"), "{error}");
}

#[tokio::test]
async fn an_expired_certificate_is_replaced_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let files = authority.sign().write(folder.path());
    let configure = |config: &mut bespoke_server::Config| {
        config.security.tls = Some(files.clone());
        config.security.reload_interval = LOOK;
    };
    let running = Running::guarded(configure, trusting(&authority.pem())).await;
    let fresh = async || Client::builder(&running.address).authorities(&authority.pem()).connect().await.is_ok();
    assert!(fresh().await);
    authority.sign_until(2001).write(folder.path());
    until(async || !fresh().await).await;
    authority.sign().write(folder.path());
    until(fresh).await;
    std::fs::write(folder.path().join("server.pem"), "no certificate").unwrap();
    tokio::time::sleep(LOOK * 5).await;
    assert!(fresh().await, "the last certificate that was right is shown");
    assert!(running.client.server_info().await.is_ok(), "connections outlive their certificate");
}

#[tokio::test]
async fn clients_without_a_good_certificate_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, clients) = (Authority::new(), Authority::new());
    let mut files = authority.sign().write(folder.path());
    let path = folder.path().join("clients.pem");
    std::fs::write(&path, clients.pem()).unwrap();
    files.client_ca = Some(path);
    let show = |certificate: Certificate| {
        let authority = authority.pem();
        move |builder: Builder| builder.authorities(&authority).certificate(&certificate.pem, &certificate.key)
    };
    let running = Running::guarded(|config| config.security.tls = Some(files), show(clients.sign())).await;
    assert!(running.client.generate(&request(greedy("known", 2))).await.is_ok());
    let address = || Client::builder(&running.address);
    for (builder, why) in [
        (address().authorities(&authority.pem()), "none"),
        (show(authority.sign())(address()), "of another authority"),
        (show(clients.sign_until(2001))(address()), "expired"),
    ] {
        let error = reason(builder).await;
        assert!(!error.is_empty(), "a certificate that is {why}");
    }
    assert!(running.client.server_info().await.is_ok());
}

#[test]
fn a_server_that_anybody_could_reach_does_not_start_unasked() {
    let (code, _, err) = run(&["serve", "--listen", "0.0.0.0:0", "--model", "./no/such/model"]);
    assert!(code != Some(0) && err.contains("allow_unauthenticated"), "{err}");
    let (code, _, err) = run(&["serve", "--tls-certificate", "a.pem", "--model", "./no/such/model"]);
    assert!(code != Some(0) && err.contains("tls_key"), "{err}");
    let (code, _, err) = run(&["token", "two words"]);
    assert!(code != Some(0) && err.contains("two words"), "{err}");
}
