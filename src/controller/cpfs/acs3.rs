//! Alibaba Cloud's signature ACS3-HMAC-SHA256, pure: one key, no derivation, no region.
//!
//! As in the official SDK's core (alibabacloud-tea-openapi 0.4.6, `utils.py`), which signs every
//! header; the documentation asks for `host`, `content-type` and `x-acs-*`.

use chrono::{DateTime, SecondsFormat, Utc};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::keys::hex;
use crate::store::service::encode;

const ALGORITHM: &str = "ACS3-HMAC-SHA256";

/// A request as far as its signature covers it.
#[derive(Debug)]
pub(super) struct Unsigned<'a> {
    pub(super) method: &'a str,
    /// Raw pairs.
    pub(super) query: &'a [(String, String)],
    /// All that are signed, lower-case names.
    pub(super) headers: &'a [(&'static str, String)],
    /// Of the body, in hex.
    pub(super) digest: &'a str,
}

impl Unsigned<'_> {
    /// The value of the `Authorization` header.
    pub(super) fn authorization(&self, id: &str, secret: &str) -> String {
        let mut headers: Vec<_> =
            self.headers.iter().map(|(name, value)| (*name, value.trim())).collect();
        headers.sort_unstable();
        let names = headers.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
        let lines: String =
            headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let (method, query, digest) = (self.method, query_string(self.query), self.digest);
        let canonical = format!("{method}\n/\n{query}\n{lines}\n{names}\n{digest}");
        let to_sign = format!("{ALGORITHM}\n{}", digest_of(canonical.as_bytes()));
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes())
            .expect("HMAC takes keys of any length");
        mac.update(to_sign.as_bytes());
        let signature = hex(&mac.finalize().into_bytes());
        format!("{ALGORITHM} Credential={id},SignedHeaders={names},Signature={signature}")
    }
}

/// The query as it is signed and as it is sent: by name, strictly encoded.
pub(super) fn query_string(query: &[(String, String)]) -> String {
    let mut sorted: Vec<_> = query.iter().collect();
    sorted.sort_unstable();
    let pairs = sorted.into_iter().map(|(name, value)| (encode(name, false), encode(value, false)));
    pairs.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}

/// SHA-256, in hex.
pub(super) fn digest_of(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The time as `x-acs-date` has it.
pub(super) fn timestamp(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}
