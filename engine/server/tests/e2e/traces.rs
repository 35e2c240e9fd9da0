//! Traces as a collector sees them.

use std::time::Duration;

use bespoke_proto::{GenerateStreamRequest, generation_service_client::GenerationServiceClient};
use futures::StreamExt;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::Span,
};
use tokio::{net::TcpListener, sync::mpsc};
use tonic::{Request, Response, Status, transport::server::TcpIncoming};

use crate::support::{Running, greedy, request};

/// A collector that passes on what it is sent.
struct Collector(mpsc::Sender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.send(request.into_inner()).await.unwrap();
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_goes_on_with_its_callers_trace() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (sender, mut sent) = mpsc::channel(16);
    let collector = tonic::transport::Server::builder().add_service(TraceServiceServer::new(Collector(sender)));
    let collector = tokio::spawn(collector.serve_with_incoming(TcpIncoming::from(listener)));
    let mut running = Running::tiny(|config| config.observability.otlp_endpoint = Some(endpoint)).await;
    let channel = tonic::transport::Channel::from_shared(running.address.clone()).unwrap().connect().await.unwrap();
    let mut call = Request::new(GenerateStreamRequest::from(&request(greedy("traced words", 5))));
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    call.metadata_mut().insert("traceparent", parent.parse().unwrap());
    let stream = GenerationServiceClient::new(channel).generate_stream(call).await.unwrap().into_inner();
    assert!(stream.count().await > 1);
    // What waits is sent at the end.
    running.drain().await.unwrap();
    let exported = tokio::time::timeout(Duration::from_secs(5), sent.recv()).await.unwrap().unwrap();
    collector.abort();
    assert!(!format!("{exported:?}").contains("traced words"));
    let scopes = exported.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
    let spans: Vec<Span> = scopes.flat_map(|scope| scope.spans).collect();
    let find = |name: &str| spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("{name}: {spans:?}"));
    let whole = find("bespoke.v1.GenerationService/GenerateStream");
    assert_eq!(hex(&whole.trace_id), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(hex(&whole.parent_span_id), "b7ad6b7169203331");
    let stages = ["queue", "prefill", "decode"].map(find);
    for stage in stages {
        assert_eq!((&stage.trace_id, &stage.parent_span_id), (&whole.trace_id, &whole.span_id));
    }
    assert_eq!(stages[0].end_time_unix_nano, stages[1].start_time_unix_nano);
    assert_eq!(stages[1].end_time_unix_nano, stages[2].start_time_unix_nano);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_harms_nothing() {
    let away = Some("http://127.0.0.1:1".to_owned());
    let mut running = Running::tiny(|config| config.observability.otlp_endpoint = away).await;
    assert!(running.client.generate(&request(greedy("alone", 3))).await.is_ok());
    tokio::time::timeout(Duration::from_secs(8), running.drain()).await.unwrap().unwrap();
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
