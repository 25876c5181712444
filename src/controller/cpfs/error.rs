//! Why a call of the NAS API did not do what was asked.

use crate::store::service::is_passing;
use crate::store::{Cause, Class, StoreError};

/// Why a call of the NAS API did not do what was asked.
///
/// Display is one line without secrets. A call that failed with one that is passing may have done
/// what was asked all the same: it is to be repeated with the same token.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum NasError {
    /// A region that is no word of a host name.
    #[error("region {0:?}: expected one like cn-wulanchabu")]
    Region(String),
    /// `NAS_ENDPOINT` cannot be used.
    #[error("NAS_ENDPOINT {given:?}: {reason}")]
    Endpoint { given: String, reason: &'static str },
    /// Roots or proxies cannot be used.
    #[error("cannot ask the NAS API")]
    Setup(#[source] StoreError),
    /// Nothing offers credentials.
    #[error(
        "no credentials for the NAS API: give the controller's service account a RAM role, or set \
         ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET"
    )]
    NoCredentials,
    /// A source of credentials exists but gives none.
    #[error("no credentials for {action}")]
    Credentials {
        action: &'static str,
        #[source]
        source: StoreError,
    },
    /// No connection, or one that broke.
    #[error("{action}: no connection with {host}")]
    Unreachable {
        action: &'static str,
        host: String,
        #[source]
        source: Cause,
    },
    /// The host's certificate is not trusted.
    #[error("{action}: the certificate of {host} is not trusted")]
    Certificate {
        action: &'static str,
        host: String,
        #[source]
        source: Cause,
    },
    /// Nothing in time.
    #[error("{action}: no answer from {host} in time")]
    NoAnswer { action: &'static str, host: String },
    /// An answer that says something else.
    #[error("{action}: {host} answered what cannot be read: {reason}")]
    Malformed { action: &'static str, host: String, reason: String },
    /// The API says no.
    #[error("{action} was refused ({status} {code}: {message}, request id {request_id})")]
    Refused { action: &'static str, code: String, message: String, request_id: String, status: u16 },
}

impl NasError {
    /// The API's code, such as `InvalidDataFlow.NotFound`; empty where it did not answer with one.
    pub(crate) fn code(&self) -> &str {
        match self {
            Self::Refused { code, .. } => code,
            _ => "",
        }
    }

    /// Whether the API asked for fewer calls.
    pub(crate) fn is_throttled(&self) -> bool {
        match self {
            Self::Refused { code, status, .. } => code.starts_with("Throttling") || *status == 429,
            _ => false,
        }
    }

    /// Whether the same call is worth trying again.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Region(_)
            | Self::Endpoint { .. }
            | Self::Setup(_)
            | Self::NoCredentials
            | Self::Certificate { .. } => false,
            Self::Credentials { source, .. } => source.class() == Class::Transient,
            Self::Unreachable { .. } | Self::NoAnswer { .. } | Self::Malformed { .. } => true,
            // the nonce is used where a request was sent anew by the connection
            Self::Refused { code, status, .. } => {
                self.is_throttled() || is_passing(*status) || code == "SignatureNonceUsed"
            }
        }
    }

    /// Whether other credentials may be accepted.
    pub(super) fn is_of_credential(&self) -> bool {
        let code = self.code();
        code.starts_with("InvalidSecurityToken") || code.starts_with("InvalidAccessKeyId")
    }
}
