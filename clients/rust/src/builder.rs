//! How a client connects.

use std::time::Duration;

use bespoke_proto::{
    embedding_service_client::EmbeddingServiceClient, generation_service_client::GenerationServiceClient,
    model_service_client::ModelServiceClient, tokenizer_service_client::TokenizerServiceClient,
};
use tonic::{
    metadata::AsciiMetadataValue,
    transport::{Certificate, ClientTlsConfig, Endpoint, Identity},
};

use crate::{Client, ClientError};

/// Settings of a [`Client`].
#[derive(Clone, Debug)]
pub struct Builder {
    uri: String,
    connect_timeout: Duration,
    deadline: Option<Duration>,
    message_bytes_max: usize,
    authorization: Option<AsciiMetadataValue>,
    tls: Option<ClientTlsConfig>,
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Log-probabilities of a long prompt with 20 alternatives a token take some 300 bytes a token; this holds 100,000 tokens.
const MESSAGE_BYTES_MAX: usize = 32 * 1024 * 1024;

impl Builder {
    pub(crate) fn new(uri: String) -> Self {
        Self {
            uri,
            connect_timeout: CONNECT_TIMEOUT,
            deadline: None,
            message_bytes_max: MESSAGE_BYTES_MAX,
            authorization: None,
            tls: None,
        }
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

    /// Sends a bearer token with each call. Use TLS with it: without, anybody on the way can read it.
    ///
    /// **Errors**: [`ClientError::Token`] for a token with other than printable ASCII characters.
    pub fn token(mut self, token: &str) -> Result<Self, ClientError> {
        let mut value = AsciiMetadataValue::try_from(format!("Bearer {token}")).map_err(|_| ClientError::Token)?;
        value.set_sensitive(true);
        self.authorization = Some(value);
        Ok(self)
    }

    /// Sets the authorities, as PEM, of which one must have signed the server's certificate. An address that begins with
    /// `https` needs them.
    pub fn authorities(mut self, pem: &str) -> Self {
        self.tls = Some(self.tls.unwrap_or_default().ca_certificate(Certificate::from_pem(pem)));
        self
    }

    /// Sets the name in the server's certificate, where it is not the host of the address.
    pub fn server_name(mut self, name: &str) -> Self {
        self.tls = Some(self.tls.unwrap_or_default().domain_name(name));
        self
    }

    /// Shows a certificate of the client's own; both as PEM.
    pub fn certificate(mut self, certificate: &str, key: &str) -> Self {
        self.tls = Some(self.tls.unwrap_or_default().identity(Identity::from_pem(certificate, key)));
        self
    }

    /// Connects.
    ///
    /// **Errors**: [`ClientError::Connect`] for an address that is wrong or does not answer in time, or a certificate that
    /// is wrong.
    pub async fn connect(self) -> Result<Client, ClientError> {
        let mut endpoint = Endpoint::from_shared(self.uri)?.connect_timeout(self.connect_timeout).tcp_nodelay(true);
        if let Some(tls) = self.tls {
            endpoint = endpoint.tls_config(tls)?;
        }
        let channel = endpoint.connect().await?;
        let bytes_max = self.message_bytes_max;
        Ok(Client {
            generation: GenerationServiceClient::new(channel.clone()).max_decoding_message_size(bytes_max),
            tokenizer: TokenizerServiceClient::new(channel.clone()).max_decoding_message_size(bytes_max),
            embedding: EmbeddingServiceClient::new(channel.clone()).max_decoding_message_size(bytes_max),
            model: ModelServiceClient::new(channel).max_decoding_message_size(bytes_max),
            deadline: self.deadline,
            authorization: self.authorization,
        })
    }
}
