//! The wire border holds: valid values survive the way over the wire, and whatever else comes in is refused by name.

mod domain_values;
mod wire_values;

use bespoke_domain::{Event, Invalid, Request, Score, ScoreRequest};
use bespoke_proto::{
    GenerateRequest, GenerateResponse, GenerateStreamRequest, GenerateStreamResponse, Generated, RenderPromptRequest,
    RenderPromptResponse, RenderedPrompt, ScoreResponse, field_violations, invalid_status,
};
use proptest::{prelude::*, test_runner::RngSeed};
use prost::Message;

/// Every run draws the same values.
fn seeded() -> ProptestConfig {
    ProptestConfig { cases: 1000, rng_seed: RngSeed::Fixed(2), failure_persistence: None, ..ProptestConfig::default() }
}

/// Sends a message through its encoding.
fn sent<M: Message + Default>(message: &M) -> M {
    M::decode(message.encode_to_vec().as_slice()).expect("invariant: an encoded message decodes")
}

proptest! {
    #![proptest_config(seeded())]

    #[test]
    fn requests_survive(request in domain_values::request()) {
        let wire = GenerateStreamRequest::from(&request);
        prop_assert_eq!(&Request::try_from(sent(&wire)), &Ok(request.clone()));
        let wire = GenerateRequest::from(&request);
        prop_assert_eq!(&Request::try_from(sent(&wire)), &Ok(request));
    }

    #[test]
    fn score_requests_survive(request in domain_values::score_request()) {
        let wire = bespoke_proto::ScoreRequest::from(&request);
        prop_assert_eq!(ScoreRequest::try_from(sent(&wire)), Ok(request));
    }

    #[test]
    fn events_survive(event in domain_values::event()) {
        let wire = GenerateStreamResponse::from(event.clone());
        prop_assert_eq!(Event::try_from(sent(&wire)), Ok(event));
    }

    #[test]
    fn whole_answers_survive(generated in domain_values::generated()) {
        let wire = GenerateResponse::from(generated.clone());
        prop_assert_eq!(Generated::try_from(sent(&wire)), Ok(generated));
    }

    #[test]
    fn scores_survive(score in domain_values::score()) {
        let wire = ScoreResponse::from(score.clone());
        prop_assert_eq!(Score::try_from(sent(&wire)), Ok(score));
    }

    #[test]
    fn rendered_prompts_survive(rendered in domain_values::rendered_prompt()) {
        let wire = RenderPromptResponse::from(rendered.clone());
        prop_assert_eq!(RenderedPrompt::try_from(sent(&wire)), Ok(rendered));
    }
}

/// Holds a conversion to its promise: a named error, or a value that survives the wire and passes again.
fn holds<W, D>(wire: W, back: impl Fn(&D) -> W) -> Result<(), TestCaseError>
where
    W: Message + Default,
    D: TryFrom<W, Error = Invalid> + PartialEq + std::fmt::Debug,
{
    match D::try_from(wire) {
        Ok(value) => prop_assert_eq!(&D::try_from(sent(&back(&value))), &Ok(value)),
        Err(invalid) => {
            prop_assert!(!invalid.field.is_empty() && !invalid.reason.is_empty());
            prop_assert_eq!(field_violations(&invalid_status(&invalid)), [invalid]);
        }
    }
    Ok(())
}

/// Decodes bytes as every message that has a conversion and holds each to its promise.
fn bytes_hold(bytes: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(wire) = GenerateStreamRequest::decode(bytes) {
        holds(wire, |request: &Request| request.into())?;
    }
    if let Ok(wire) = bespoke_proto::ScoreRequest::decode(bytes) {
        holds(wire, |request: &ScoreRequest| request.into())?;
    }
    if let Ok(wire) = GenerateStreamResponse::decode(bytes) {
        holds(wire, |event: &Event| event.clone().into())?;
    }
    if let Ok(wire) = GenerateResponse::decode(bytes) {
        holds(wire, |generated: &Generated| generated.clone().into())?;
    }
    if let Ok(wire) = ScoreResponse::decode(bytes) {
        holds(wire, |score: &Score| score.clone().into())?;
    }
    if let Ok(wire) = RenderPromptResponse::decode(bytes) {
        holds(wire, |rendered: &RenderedPrompt| rendered.clone().into())?;
    }
    if let Ok(wire) = RenderPromptRequest::decode(bytes)
        && let Err(invalid) = wire.into_parts()
    {
        prop_assert!(!invalid.field.is_empty());
    }
    Ok(())
}

proptest! {
    #![proptest_config(seeded())]

    #[test]
    fn arbitrary_requests_are_refused_by_name_or_valid(wire in wire_values::generate()) {
        holds(wire, |request: &Request| request.into())?;
    }

    #[test]
    fn arbitrary_score_requests_are_refused_by_name_or_valid(wire in wire_values::score()) {
        holds(wire, |request: &ScoreRequest| request.into())?;
    }

    #[test]
    fn arbitrary_events_are_refused_by_name_or_valid(wire in wire_values::event()) {
        holds(wire, |event: &Event| event.clone().into())?;
    }

    #[test]
    fn arbitrary_bytes_hold(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        bytes_hold(&bytes)?;
    }

    #[test]
    fn damaged_messages_hold(
        request in domain_values::request(),
        event in domain_values::event(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        for mut bytes in [
            GenerateStreamRequest::from(&request).encode_to_vec(),
            GenerateStreamResponse::from(event).encode_to_vec(),
        ] {
            for (index, byte) in &damage {
                let index = index.index(bytes.len());
                bytes[index] = *byte;
            }
            bytes_hold(&bytes)?;
        }
    }
}
