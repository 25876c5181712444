//! Verifies who signed a request (ACS3-HMAC-SHA256), that nothing signed was changed, and that it is
//! sent for the first time.

use std::collections::{BTreeMap, HashSet};

use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use hmac::{Hmac, KeyInit, Mac};
use http::request::Parts;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};

use crate::error::ApiError;

const UNRESERVED: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// How far a request's clock may be off.
const SKEW: TimeDelta = TimeDelta::minutes(15);

/// What must be signed; and everything else that begins like the service's own headers.
const SIGNED: [&str; 6] = [
    "host",
    "x-acs-action",
    "x-acs-content-sha256",
    "x-acs-date",
    "x-acs-signature-nonce",
    "x-acs-version",
];

/// Whose signatures are known, and which were seen.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    /// By id: secret, and the token of a temporary one.
    pub(crate) keys: BTreeMap<String, (String, Option<String>)>,
    nonces: HashSet<String>,
}

impl Keys {
    /// The access key's id, if it may ask.
    pub(crate) fn verify(
        &mut self,
        head: &Parts,
        query: &BTreeMap<String, String>,
        body: &[u8],
        now: DateTime<Utc>,
    ) -> Result<String, ApiError> {
        let header = |name: &str| {
            head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim)
        };
        let malformed = || {
            let message = "The Authorization in the header is not valid.";
            ApiError::new(400, "InvalidAuthorization", message)
        };
        let authorization = header("authorization").ok_or_else(|| {
            ApiError::new(400, "MissingAuthorization", "Authorization is mandatory.")
        })?;
        let fields = authorization.strip_prefix("ACS3-HMAC-SHA256 ").ok_or_else(malformed)?;
        let field = |name: &str| {
            let find =
                |field: &str| field.trim().strip_prefix(name)?.strip_prefix('=').map(str::to_owned);
            fields.split(',').find_map(find).ok_or_else(malformed)
        };
        let (id, names, signature) =
            (field("Credential")?, field("SignedHeaders")?, field("Signature")?);
        let names: Vec<&str> = names.split(';').collect();
        let is_sorted = names.windows(2).all(|pair| pair[0] < pair[1]);
        let own = head.headers.keys().map(http::HeaderName::as_str);
        let own = own.filter(|name| name.starts_with("x-acs-") || *name == "content-type");
        let all = own.chain(SIGNED).all(|name| names.contains(&name));
        if !is_sorted || !all {
            return Err(mismatch("a header is not signed"));
        }

        let (secret, token) = self.keys.get(&id).ok_or_else(|| {
            ApiError::new(404, "InvalidAccessKeyId.NotFound", "Specified access key is not found.")
        })?;
        if header("x-acs-security-token").map(str::to_owned) != *token {
            let message = "Specified SecurityToken is not valid.";
            return Err(ApiError::new(400, "InvalidSecurityToken.Malformed", message));
        }
        let digest = hex(&Sha256::digest(body));
        if header("x-acs-content-sha256") != Some(&digest) {
            return Err(mismatch("the body's digest is another"));
        }
        let canonical = canonical(head, query, &names, &digest).ok_or_else(malformed)?;
        let to_sign = format!("ACS3-HMAC-SHA256\n{}", hex(&Sha256::digest(&canonical)));
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).map_err(|_| malformed())?;
        mac.update(to_sign.as_bytes());
        if hex(&mac.finalize().into_bytes()) != signature {
            return Err(mismatch(&canonical));
        }

        let date = header("x-acs-date").unwrap_or_default();
        let date = NaiveDateTime::parse_from_str(date, "%Y-%m-%dT%H:%M:%SZ").map_err(|_| {
            let message = "Specified time stamp or date value is not well formatted.";
            ApiError::new(400, "InvalidTimeStamp.Format", message)
        })?;
        if (now - date.and_utc()).abs() > SKEW {
            let message = "Specified time stamp or date value is expired.";
            return Err(ApiError::new(400, "InvalidTimeStamp.Expired", message));
        }
        let nonce = header("x-acs-signature-nonce").unwrap_or_default();
        if nonce.is_empty() || !self.nonces.insert(format!("{id} {nonce}")) {
            let message = "Specified signature nonce was used already.";
            return Err(ApiError::new(400, "SignatureNonceUsed", message));
        }
        Ok(id)
    }
}

fn mismatch(canonical: &str) -> ApiError {
    let message = format!(
        "Specified signature is not matched with our calculation. server string to sign is:{canonical}"
    );
    ApiError::new(400, "SignatureDoesNotMatch", message)
}

fn canonical(
    head: &Parts,
    query: &BTreeMap<String, String>,
    names: &[&str],
    digest: &str,
) -> Option<String> {
    let encode = |text: &str| utf8_percent_encode(text, &UNRESERVED).to_string();
    let query: Vec<_> =
        query.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
    let mut lines = String::new();
    for name in names {
        let values: Option<Vec<&str>> =
            head.headers.get_all(*name).iter().map(|value| value.to_str().ok()).collect();
        let values = values.filter(|values| !values.is_empty())?;
        lines.push_str(&format!("{name}:{}\n", values.join(",").trim()));
    }
    Some(format!(
        "{}\n{}\n{}\n{lines}\n{}\n{digest}",
        head.method,
        head.uri.path(),
        query.join("&"),
        names.join(";")
    ))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
