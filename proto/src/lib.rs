//! The `bespoke.v1` wire types and every conversion between them and the domain.
//!
//! Place in the flow: the server turns a wire request into a domain request here (`TryFrom`, which refuses what breaks a
//! rule and names the wire field), and events of the engine into wire messages (`From`); the client goes the other way. All
//! conversions are total: bytes from outside give a value that cannot be wrong or an [`Invalid`](bespoke_domain::Invalid).
//! The messages of [`inference`], a public protocol, are turned by the server itself, by names that they carry as text.
//! `Debug` of wire messages hides the texts of users and models.

mod debug;
mod embedding;
mod event;
mod field;
mod generated;
mod params;
mod prompt;
mod request;
mod status;
mod tokenizer;

pub use field::on_the_wire;
pub use generated::{Generated, GeneratedText};
pub use params::TIME_LIMIT_MS_MAX;
pub use status::{Resource, field_violations, invalid_status, resource, retry_after};
pub use tokenizer::RenderedPrompt;
pub use v1::*;

/// All files of `bespoke.v1` and `inference`, encoded as a `google.protobuf.FileDescriptorSet`, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/bespoke.v1.bin"));

#[allow(missing_docs, clippy::all, rustdoc::all, reason = "generated code; the .proto files are its documentation")]
mod v1 {
    include!(concat!(env!("OUT_DIR"), "/bespoke.v1.rs"));
}

/// The Open Inference Protocol v2 of KServe and Triton.
#[allow(missing_docs, clippy::all, rustdoc::all, reason = "generated code; the .proto files are its documentation")]
pub mod inference {
    include!(concat!(env!("OUT_DIR"), "/inference.rs"));
}
