//! Malformed messages: no panic, no hang, and every answer is a status that makes sense.

use std::time::Duration;

use bespoke_client::{Prompt, PromptSpec};
use bespoke_proto::GenerateRequest;
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{RngAlgorithm, TestRng, TestRunner},
};
use prost::{Message as _, bytes::Bytes};
use tonic::{
    Code, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::Channel,
};

use crate::support::{Running, answer, events, greedy, request};

/// Sends and receives the bytes of messages as they are.
#[derive(Clone, Copy, Default)]
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        prost::bytes::BufMut::put(buffer, item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = prost::bytes::Buf::remaining(buffer);
        Ok(Some(prost::bytes::Buf::copy_to_bytes(buffer, length)))
    }
}

const METHODS: [&str; 6] = [
    "/bespoke.v1.GenerationService/Generate",
    "/bespoke.v1.GenerationService/Score",
    "/bespoke.v1.TokenizerService/Tokenize",
    "/bespoke.v1.TokenizerService/Detokenize",
    "/bespoke.v1.TokenizerService/RenderPrompt",
    "/bespoke.v1.ModelService/GetServerInfo",
];

/// Calls a method with raw bytes. Panics where no answer comes.
async fn call(channel: &Channel, method: &'static str, body: Vec<u8>) -> Result<Bytes, Status> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let path = tonic::codegen::http::uri::PathAndQuery::from_static(method);
    let answered = grpc.unary(tonic::Request::new(body.into()), path, RawCodec);
    let answer = tokio::time::timeout(Duration::from_secs(20), answered).await;
    answer.unwrap_or_else(|_| panic!("{method} does not answer")).map(tonic::Response::into_inner)
}

/// A valid request with some bytes overwritten, removed or doubled, or bytes of no meaning.
fn bodies() -> impl Strategy<Value = Vec<u8>> {
    let mut generate = greedy("a prompt that is changed", 8);
    generate.logprobs.top = 3;
    generate.stop.strings = vec!["end".to_owned()];
    let valid = GenerateRequest::from(&request(generate)).encode_to_vec();
    let change = (any::<prop::sample::Index>(), any::<u8>(), 0..3);
    let damaged = prop::collection::vec(change, 1..6).prop_map(move |changes| {
        let mut body = valid.clone();
        for (place, byte, kind) in changes {
            let place = place.index(body.len());
            match kind {
                0 => body[place] = byte,
                1 => drop(body.remove(place)),
                _ => body.insert(place, byte),
            }
        }
        body
    });
    prop_oneof![damaged, prop::collection::vec(any::<u8>(), 0..64)]
}

#[tokio::test]
async fn damaged_messages_get_a_proper_status() {
    let running = Running::tiny(|_| {}).await;
    let channel = Channel::from_shared(running.address.clone()).unwrap().connect().await.unwrap();
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut runner = TestRunner::new_with_rng(Default::default(), rng);
    let mut refused = 0;
    for round in 0..400 {
        let body = bodies().new_tree(&mut runner).unwrap().current();
        if let Err(status) = call(&channel, METHODS[round % METHODS.len()], body).await {
            refused += 1;
            // INTERNAL is what gRPC answers to bytes that are no message of the method.
            let undecodable = status.code() == Code::Internal && status.message().contains("decode");
            let proper = matches!(status.code(), Code::InvalidArgument | Code::NotFound) || undecodable;
            assert!(proper, "{status:?}");
        }
    }
    assert!(refused > 100, "the bodies are not malformed enough: {refused} of 400 refused");
    running.idle().await;
    assert_eq!(answer(&events(&running.client, greedy("still alive", 4)).await).1.len(), 4);
}

#[tokio::test]
async fn huge_and_empty_prompts_are_answered() {
    let running = Running::tiny(|_| {}).await;
    for text in ["a".repeat(1 << 20), " ".repeat(1 << 20), "🙂".repeat(1 << 18), "\u{0}".repeat(1 << 20)] {
        let error = running.client.generate(&request(greedy(&text, 1))).await.unwrap_err();
        assert_eq!(error.code(), Some(bespoke_client::Code::InvalidArgument), "{error}");
    }
    let error = running.client.generate(&request(greedy(&"a".repeat(5 << 20), 1))).await.unwrap_err();
    assert_eq!(error.code(), Some(bespoke_client::Code::OutOfRange), "{error}");
    let empty = running.client.generate(&request(greedy("", 3))).await;
    match empty {
        Ok(generated) => assert_eq!(generated.choices[0].token_ids.len(), 3),
        Err(error) => assert_eq!(error.code(), Some(bespoke_client::Code::InvalidArgument), "{error}"),
    }
    let mut wide = greedy("", 1);
    wide.spec = PromptSpec::new(Prompt::Tokens(vec![u32::MAX; 1000]));
    let error = running.client.generate(&request(wide)).await.unwrap_err();
    assert_eq!(error.code(), Some(bespoke_client::Code::InvalidArgument), "{error}");
    running.idle().await;
}

#[tokio::test]
async fn invalid_utf8_is_refused() {
    let running = Running::tiny(|_| {}).await;
    let channel = Channel::from_shared(running.address.clone()).unwrap().connect().await.unwrap();
    // Field 1 (text) of TokenizeRequest with bytes that are no UTF-8.
    let status = call(&channel, METHODS[2], vec![0x0a, 2, 0xff, 0xfe]).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal, "{status:?}");
    // Token ids whose bytes are no UTF-8 decode to replacement characters.
    let tokens =
        running.client.tokenize(bespoke_client::TokenizeRequest { text: "ü".to_owned(), ..Default::default() });
    let first = tokens.await.unwrap().token_ids[0];
    assert_eq!(running.client.detokenize(vec![first], true).await.unwrap(), "\u{fffd}");
}
