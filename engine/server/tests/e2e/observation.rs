//! What the server shows of itself: metrics, probes, `top`.

use bespoke_client::Code;
use futures::StreamExt;

use crate::{
    command_line::run,
    documents::undocumented,
    support::{Running, events, greedy, request},
};

async fn observed() -> Running {
    Running::tiny(|config| config.observability.metrics_address = Some("127.0.0.1:0".parse().unwrap())).await
}

/// Reads a page of the metrics' address; returns its status too.
async fn page(running: &Running, path: &str) -> (u16, String) {
    let url = format!("http://{}{path}", running.metrics.unwrap());
    let read = tokio::task::spawn_blocking(move || {
        let agent = ureq::Agent::config_builder().proxy(None).http_status_as_error(false).build();
        let mut response = ureq::Agent::new_with_config(agent).get(&url).call().unwrap();
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    });
    read.await.unwrap()
}

fn value(page: &str, metric: &str) -> f64 {
    let line = page.lines().find(|line| line.strip_prefix(metric).is_some_and(|rest| rest.starts_with(' ')));
    line.unwrap_or_else(|| panic!("{metric} is not on the page:\n{page}")).rsplit_once(' ').unwrap().1.parse().unwrap()
}

#[tokio::test]
async fn requests_can_be_read_off_the_metrics() {
    let running = observed().await;
    let (status, before) = page(&running, "/metrics").await;
    assert_eq!(status, 200);
    assert_eq!(value(&before, "bespoke_first_token_seconds_count"), 0.0);
    events(&running.client, greedy("a prompt", 20)).await;
    let mut wrong = greedy("x", 1);
    wrong.stop.tokens = vec![1 << 30];
    assert_eq!(running.client.generate(&request(wrong)).await.unwrap_err().code(), Some(Code::InvalidArgument));
    let mut gone = running.client.generate_stream(&request(greedy("gone", 200))).await.unwrap();
    gone.next().await.unwrap().unwrap();
    drop(gone);
    running.idle().await;
    let (_, page) = page(&running, "/metrics").await;
    let stream = "bespoke_requests_total{method=\"/bespoke.v1.GenerationService/GenerateStream\"";
    assert_eq!(value(&page, &format!("{stream},code=\"OK\"}}")), 1.0);
    assert_eq!(value(&page, &format!("{stream},code=\"CANCELLED\"}}")), 1.0);
    let whole = "bespoke_requests_total{method=\"/bespoke.v1.GenerationService/Generate\"";
    assert_eq!(value(&page, &format!("{whole},code=\"INVALID_ARGUMENT\"}}")), 1.0);
    assert!(value(&page, "bespoke_generated_tokens_total") >= 20.0);
    assert!(value(&page, "bespoke_first_token_seconds_count") >= 1.0);
    assert!(value(&page, "bespoke_next_token_seconds_count") >= 19.0);
    assert!(value(&page, "bespoke_next_token_seconds_bucket{le=\"+Inf\"}") >= 19.0);
    assert!(value(&page, "bespoke_step_seconds_sum") > 0.0);
    assert_eq!(value(&page, "bespoke_kv_blocks_used"), 0.0);
    assert!(value(&page, "bespoke_token_generated_tokens_total{token=\"anonymous\"}") >= 20.0);
    assert!(value(&page, "bespoke_connections") >= 1.0);
    assert!(!page.contains("a prompt"));
    assert_eq!(undocumented(&page), [""; 0], "docs/operations.md tells of every metric");
}

#[tokio::test]
async fn readiness_follows_the_server() {
    let mut running = observed().await;
    assert_eq!(page(&running, "/healthz").await.0, 200);
    assert_eq!(page(&running, "/readyz").await, (200, "ready\n".to_owned()));
    assert_eq!(page(&running, "/absent").await.0, 404);
    let held = running.client.generate_stream(&request(greedy("held", 200))).await.unwrap();
    // The signal is given at once, the end is waited for below.
    drop(running.drain());
    let mut state = page(&running, "/readyz").await;
    for _ in 0..100 {
        if state.0 != 200 {
            break;
        }
        state = page(&running, "/readyz").await;
    }
    assert_eq!(state, (503, "draining\n".to_owned()));
    drop(held);
}

#[tokio::test]
async fn top_prints_one_look() {
    let running = observed().await;
    events(&running.client, greedy("looked at", 20)).await;
    let address = running.metrics.unwrap().to_string();
    let top = tokio::task::spawn_blocking(move || run(&["top", "--once", "--metrics-address", &address]));
    let (code, out, err) = top.await.unwrap();
    assert_eq!(code, Some(0), "{err}");
    for part in ["0 of 256 waiting", "20 out", "first token", "errors       none", "anonymous"] {
        assert!(out.contains(part), "{part} is not in\n{out}");
    }
    let (code, _, err) = run(&["top", "--once", "--metrics-address", "127.0.0.1:1"]);
    assert!(code != Some(0) && err.contains("127.0.0.1:1/metrics"), "{err}");
}
