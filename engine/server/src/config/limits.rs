//! Limits of connections, so that no client can hold what others need.

use std::time::Duration;

use anyhow::bail;
use clap::Args;
use serde::Deserialize;

use super::seconds;

/// The table `limits`.
#[derive(Args, Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitOptions {
    /// Connections that are open at once on one address; one more is closed. 1 to 1000000. Default: 4096.
    #[arg(long, env = "BESPOKE_CONNECTIONS_MAX", value_name = "N")]
    pub connections_max: Option<usize>,
    /// Requests that are open at once on one connection, 1 to 65536. Default: 1024.
    #[arg(long, env = "BESPOKE_STREAMS_MAX", value_name = "N")]
    pub streams_max: Option<u32>,
    /// Size of the headers of a request, in bytes, 1024 to 1048576. Default: 16384.
    #[arg(long, env = "BESPOKE_HEADER_BYTES_MAX", value_name = "BYTES")]
    pub header_bytes_max: Option<u32>,
    /// Seconds for the TLS handshake and the first bytes of a connection, and for HTTP/1.1 headers, 1 to 3600. Default: 10.
    #[arg(long, env = "BESPOKE_HANDSHAKE_TIMEOUT_S", value_name = "SECONDS")]
    pub handshake_timeout_s: Option<u64>,
    /// Seconds in which the message of a request must have come, 1 to 3600. Default: 30.
    #[arg(long, env = "BESPOKE_MESSAGE_TIMEOUT_S", value_name = "SECONDS")]
    pub message_timeout_s: Option<u64>,
    /// Seconds after which a connection is probed again, 1 to 3600. Default: 20.
    #[arg(long, env = "BESPOKE_KEEPALIVE_INTERVAL_S", value_name = "SECONDS")]
    pub keepalive_interval_s: Option<u64>,
    /// Seconds in which a probe must be answered, or the connection ends, 1 to 3600. Default: 20.
    #[arg(long, env = "BESPOKE_KEEPALIVE_TIMEOUT_S", value_name = "SECONDS")]
    pub keepalive_timeout_s: Option<u64>,
    /// Seconds after which a connection takes no more requests, so that clients spread over new servers; 0 is never.
    /// Default: 0.
    #[arg(long, env = "BESPOKE_CONNECTION_AGE_S", value_name = "SECONDS")]
    pub connection_age_s: Option<u64>,
    /// Seconds that requests have to end on a connection that takes no more, 0 to 86400. Default: 300.
    #[arg(long, env = "BESPOKE_CONNECTION_AGE_GRACE_S", value_name = "SECONDS")]
    pub connection_age_grace_s: Option<u64>,
}

/// What holds for each connection.
#[derive(Clone, Debug, PartialEq)]
pub struct ConnectionLimits {
    /// Connections on one address.
    pub connections_max: usize,
    /// Requests on one connection.
    pub streams_max: u32,
    /// The headers of a request, in bytes.
    pub header_bytes_max: u32,
    /// The time for the first bytes.
    pub handshake_timeout: Duration,
    /// The time for the message of a request.
    pub message_timeout: Duration,
    /// The time between probes.
    pub keepalive_interval: Duration,
    /// The time for the answer to a probe.
    pub keepalive_timeout: Duration,
    /// The age at which a connection takes no more requests.
    pub connection_age: Option<Duration>,
    /// The time for requests that are open then.
    pub connection_age_grace: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            streams_max: 1024,
            header_bytes_max: 16 << 10,
            handshake_timeout: Duration::from_secs(10),
            message_timeout: Duration::from_secs(30),
            keepalive_interval: Duration::from_secs(20),
            keepalive_timeout: Duration::from_secs(20),
            connection_age: None,
            connection_age_grace: Duration::from_secs(300),
        }
    }
}

impl LimitOptions {
    /// Takes each option from here, or where it is not given, from `other`.
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            connections_max: self.connections_max.or(other.connections_max),
            streams_max: self.streams_max.or(other.streams_max),
            header_bytes_max: self.header_bytes_max.or(other.header_bytes_max),
            handshake_timeout_s: self.handshake_timeout_s.or(other.handshake_timeout_s),
            message_timeout_s: self.message_timeout_s.or(other.message_timeout_s),
            keepalive_interval_s: self.keepalive_interval_s.or(other.keepalive_interval_s),
            keepalive_timeout_s: self.keepalive_timeout_s.or(other.keepalive_timeout_s),
            connection_age_s: self.connection_age_s.or(other.connection_age_s),
            connection_age_grace_s: self.connection_age_grace_s.or(other.connection_age_grace_s),
        }
    }

    /// Fills in the defaults and checks everything.
    pub(super) fn checked(self) -> anyhow::Result<ConnectionLimits> {
        let default = ConnectionLimits::default();
        let connections_max = self.connections_max.unwrap_or(default.connections_max);
        if !(1..=1_000_000).contains(&connections_max) {
            bail!("connections_max is {connections_max}, must be 1..=1000000");
        }
        let streams_max = self.streams_max.unwrap_or(default.streams_max);
        if !(1..=1 << 16).contains(&streams_max) {
            bail!("streams_max is {streams_max}, must be 1..=65536");
        }
        let header_bytes_max = self.header_bytes_max.unwrap_or(default.header_bytes_max);
        if !(1024..=1 << 20).contains(&header_bytes_max) {
            bail!("header_bytes_max is {header_bytes_max}, must be 1024..=1048576");
        }
        let age = seconds("connection_age_s", self.connection_age_s, Duration::ZERO, 0..=31_536_000)?;
        let grace = (self.connection_age_grace_s, default.connection_age_grace);
        let time = |name, value, default| seconds(name, value, default, 1..=3600);
        Ok(ConnectionLimits {
            connections_max,
            streams_max,
            header_bytes_max,
            handshake_timeout: time("handshake_timeout_s", self.handshake_timeout_s, default.handshake_timeout)?,
            message_timeout: time("message_timeout_s", self.message_timeout_s, default.message_timeout)?,
            keepalive_interval: time("keepalive_interval_s", self.keepalive_interval_s, default.keepalive_interval)?,
            keepalive_timeout: time("keepalive_timeout_s", self.keepalive_timeout_s, default.keepalive_timeout)?,
            connection_age: (!age.is_zero()).then_some(age),
            connection_age_grace: seconds("connection_age_grace_s", grace.0, grace.1, 0..=86_400)?,
        })
    }
}
