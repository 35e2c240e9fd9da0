//! How a client connects.

use std::time::Duration;

use bespoke_proto::{
    generation_service_client::GenerationServiceClient, model_service_client::ModelServiceClient,
    tokenizer_service_client::TokenizerServiceClient,
};
use tonic::transport::Endpoint;

use crate::{Client, ClientError};

/// Settings of a [`Client`].
#[derive(Clone, Debug)]
pub struct Builder {
    uri: String,
    connect_timeout: Duration,
    deadline: Option<Duration>,
    message_bytes_max: usize,
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Log-probabilities of a long prompt with 20 alternatives a token take some 300 bytes a token; this holds 100,000 tokens.
const MESSAGE_BYTES_MAX: usize = 32 * 1024 * 1024;

impl Builder {
    pub(crate) fn new(uri: String) -> Self {
        Self { uri, connect_timeout: CONNECT_TIMEOUT, deadline: None, message_bytes_max: MESSAGE_BYTES_MAX }
    }

    /// Sets how long connecting may take. Default 10 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets how long each call may take, streams to their end. Default: no limit.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Sets the longest message that is received, in bytes. Default 32 MiB.
    pub fn message_bytes_max(mut self, bytes: usize) -> Self {
        self.message_bytes_max = bytes;
        self
    }

    /// Connects.
    ///
    /// **Errors**: [`ClientError::Connect`] for an address that is wrong or does not answer in time.
    pub async fn connect(self) -> Result<Client, ClientError> {
        let endpoint = Endpoint::from_shared(self.uri)?.connect_timeout(self.connect_timeout).tcp_nodelay(true);
        let channel = endpoint.connect().await?;
        let bytes_max = self.message_bytes_max;
        Ok(Client {
            generation: GenerationServiceClient::new(channel.clone()).max_decoding_message_size(bytes_max),
            tokenizer: TokenizerServiceClient::new(channel.clone()).max_decoding_message_size(bytes_max),
            model: ModelServiceClient::new(channel).max_decoding_message_size(bytes_max),
            deadline: self.deadline,
        })
    }
}
