//! Running the server: health, reflection, drain.

use std::time::{Duration, Instant};

use bespoke_client::{Client, Code, Event};
use bespoke_testkit::TinyModel;
use futures::StreamExt;
use tonic::transport::Channel;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb::{v1, v1alpha};

use crate::support::{Process, Running, bulky, greedy, request};

async fn channel(address: &str) -> Channel {
    Channel::from_shared(address.to_owned()).unwrap().connect().await.unwrap()
}

#[tokio::test]
async fn health_is_watched_through_a_drain() {
    let mut running = Running::tiny(|config| config.grace = Duration::from_secs(20)).await;
    let mut health = HealthClient::new(channel(&running.address).await);
    for service in ["", "bespoke.v1.GenerationService"] {
        let check = health.check(HealthCheckRequest { service: service.to_owned() }).await.unwrap();
        assert_eq!(check.into_inner().status(), ServingStatus::Serving);
    }
    let unknown = health.check(HealthCheckRequest { service: "absent".to_owned() }).await.unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::NotFound);
    let mut watch = health.watch(HealthCheckRequest { service: String::new() }).await.unwrap().into_inner();
    assert_eq!(watch.next().await.unwrap().unwrap().status(), ServingStatus::Serving);

    let client = running.client.clone();
    let mut taken_in = client.generate_stream(&request(greedy("before", 200))).await.unwrap();
    assert!(matches!(taken_in.next().await, Some(Ok(Event::Started(_)))));
    let drained = running.drain();
    assert_eq!(watch.next().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    let refused = client.generate(&request(greedy("after", 1))).await.unwrap_err();
    assert_eq!(refused.code(), Some(Code::Unavailable));
    assert!(refused.retry_after().is_some());
    let rest: Vec<_> = taken_in.collect().await;
    assert!(matches!(rest.last(), Some(Ok(Event::Finished(_)))), "what was taken in ends well");
    tokio::time::timeout(Duration::from_secs(10), drained).await.unwrap().unwrap();
}

#[tokio::test]
async fn both_reflection_versions_list_the_services() {
    let running = Running::tiny(|_| {}).await;
    let mut names = Vec::new();
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel(&running.address).await);
    let list = v1::server_reflection_request::MessageRequest::ListServices(String::new());
    let ask = v1::ServerReflectionRequest { host: String::new(), message_request: Some(list) };
    let mut answers = client.server_reflection_info(futures::stream::iter([ask])).await.unwrap().into_inner();
    let answer = answers.next().await.unwrap().unwrap().message_response;
    if let Some(v1::server_reflection_response::MessageResponse::ListServicesResponse(list)) = answer {
        names.push(list.service.into_iter().map(|service| service.name).collect::<Vec<_>>());
    }
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel(&running.address).await);
    let list = v1alpha::server_reflection_request::MessageRequest::ListServices(String::new());
    let ask = v1alpha::ServerReflectionRequest { host: String::new(), message_request: Some(list) };
    let mut answers = client.server_reflection_info(futures::stream::iter([ask])).await.unwrap().into_inner();
    let answer = answers.next().await.unwrap().unwrap().message_response;
    if let Some(v1alpha::server_reflection_response::MessageResponse::ListServicesResponse(list)) = answer {
        names.push(list.service.into_iter().map(|service| service.name).collect::<Vec<_>>());
    }
    assert_eq!(names.len(), 2);
    for names in names {
        for service in ["bespoke.v1.GenerationService", "bespoke.v1.TokenizerService", "grpc.health.v1.Health"] {
            assert!(names.iter().any(|name| name == service), "{service} is not in {names:?}");
        }
    }
}

#[tokio::test]
async fn sigterm_drains_and_the_process_exits_well() {
    let model = TinyModel::default().write_hf().unwrap();
    let mut process = Process::serve(model.path(), &["--grace-s", "20"]);
    let client = Client::connect(&process.address).await.unwrap();
    let mut stream = client.generate_stream(&request(greedy("before", 200))).await.unwrap();
    assert!(matches!(stream.next().await, Some(Ok(Event::Started(_)))));
    process.signal("TERM");
    let deadline = Instant::now() + Duration::from_secs(10);
    while client.generate(&request(greedy("after", 1))).await.is_ok() {
        assert!(Instant::now() < deadline, "the server still takes requests");
    }
    let rest: Vec<_> = stream.collect().await;
    assert!(matches!(rest.last(), Some(Ok(Event::Finished(_)))), "{:?}", rest.last());
    drop(client);
    let status = tokio::task::spawn_blocking(move || process.child.wait().unwrap()).await.unwrap();
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn the_grace_period_ends_what_does_not_end_itself() {
    let mut running = Running::tiny(|config| config.grace = Duration::from_millis(100)).await;
    let mut stalled = bulky(&running.address).await;
    stalled.next().await.unwrap().unwrap();
    let drained = tokio::time::timeout(Duration::from_secs(10), running.drain());
    let read = async {
        // The grace period is over then, and the connection not yet cut.
        tokio::time::sleep(Duration::from_millis(200)).await;
        stalled.collect::<Vec<_>>().await
    };
    let (drained, rest) = tokio::join!(drained, read);
    drained.unwrap().unwrap();
    let ended = rest.last().unwrap();
    assert!(matches!(ended, Err(status) if status.code() == tonic::Code::Unavailable), "{ended:?}");
}
