//! Verifies who signed a request, and that nothing signed was changed.

use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::error::ApiError;
use crate::request::{Call, Dialect};
use crate::store::{Credential, Store, base64, hex};

const UNRESERVED: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const UNRESERVED_AND_SLASH: AsciiSet = UNRESERVED.remove(b'/');

/// How far a request's clock may be off.
const SKEW: TimeDelta = TimeDelta::minutes(15);

/// Who sent a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    Anonymous,
    Key { id: String, allowed: bool },
}

/// Checks the signature of `call` at the server's time `now`.
pub(crate) fn verify(
    call: &Call,
    store: &Store,
    region: &str,
    now: DateTime<Utc>,
) -> Result<Caller, ApiError> {
    let Some(authorization) = call.header("authorization") else {
        return Ok(Caller::Anonymous);
    };
    if let Some(fields) = authorization.strip_prefix("OSS4-HMAC-SHA256 ") {
        return verify_v4(call, fields, &OSS4, store, region, now);
    }
    if let Some(fields) = authorization.strip_prefix("AWS4-HMAC-SHA256 ") {
        return verify_v4(call, fields, &AWS4, store, region, now);
    }
    if let Some(fields) = authorization.strip_prefix("OSS ") {
        return verify_v1(call, fields, store, now);
    }
    Err(ApiError::invalid_argument("Authorization header is invalid."))
}

/// What the two signatures of version 4 differ in.
#[derive(Debug)]
struct Scheme {
    dialect: Dialect,
    algorithm: &'static str,
    key_prefix: &'static str,
    service: &'static str,
    terminator: &'static str,
    signed_headers: &'static str,
}

const OSS4: Scheme = Scheme {
    dialect: Dialect::Oss,
    algorithm: "OSS4-HMAC-SHA256",
    key_prefix: "aliyun_v4",
    service: "oss",
    terminator: "aliyun_v4_request",
    signed_headers: "AdditionalHeaders",
};

const AWS4: Scheme = Scheme {
    dialect: Dialect::S3,
    algorithm: "AWS4-HMAC-SHA256",
    key_prefix: "AWS4",
    service: "s3",
    terminator: "aws4_request",
    signed_headers: "SignedHeaders",
};

fn verify_v4(
    call: &Call,
    fields: &str,
    scheme: &Scheme,
    store: &Store,
    region: &str,
    now: DateTime<Utc>,
) -> Result<Caller, ApiError> {
    let malformed = || ApiError::invalid_argument("Authorization header is invalid.");
    let field =
        |name: &str| fields.split(',').find_map(|f| f.trim().strip_prefix(name)?.strip_prefix('='));
    let credential = field("Credential").ok_or_else(malformed)?;
    let signature = field("Signature").ok_or_else(malformed)?;
    let named: Vec<String> = field(scheme.signed_headers)
        .unwrap_or("")
        .split(';')
        .filter(|name| !name.is_empty())
        .map(str::to_ascii_lowercase)
        .collect();

    // From the right: an access key id may itself hold a slash.
    let scope: Vec<&str> = credential.rsplitn(5, '/').collect();
    let [terminator, service, signed_region, date, id] = scope[..] else {
        return Err(malformed());
    };
    if terminator != scheme.terminator || service != scheme.service {
        return Err(ApiError::invalid_argument(
            "Invalid credential scope in Authorization header.",
        ));
    }

    let stamp = call
        .dialect_header("date")
        .ok_or_else(|| ApiError::access_denied("OSS authentication requires a valid Date."))?;
    let signed_at = NaiveDateTime::parse_from_str(stamp, "%Y%m%dT%H%M%SZ")
        .map_err(|_| ApiError::access_denied("OSS authentication requires a valid Date."))?
        .and_utc();
    let key = check_key(call, store, id, now)?;
    check_skew(signed_at, now)?;
    if !stamp.starts_with(date) {
        return Err(ApiError::invalid_argument("Invalid signing date in Authorization header."));
    }
    let any_region = scheme.dialect == Dialect::S3 && signed_region == "AWS_GLOBAL";
    if signed_region != region && !any_region {
        return Err(ApiError::invalid_argument("Invalid signing region in Authorization header."));
    }

    let canonical = match scheme.dialect {
        Dialect::Oss => canonical_oss(call, &named),
        Dialect::S3 => canonical_s3(call, &named)?,
    };
    let scope = format!("{date}/{signed_region}/{service}/{terminator}");
    let digest = hex(&Sha256::digest(canonical.as_bytes()));
    let string_to_sign = format!("{}\n{stamp}\n{scope}\n{digest}", scheme.algorithm);
    let secret = format!("{}{}", scheme.key_prefix, key.secret);
    let signing_key = [date, signed_region, service, terminator]
        .iter()
        .fold(secret.into_bytes(), |key, part| hmac_sha256(&key, part.as_bytes()));
    let expected = hex(&hmac_sha256(&signing_key, string_to_sign.as_bytes()));
    if expected != signature {
        return Err(ApiError::signature_mismatch(id, signature, &string_to_sign, &canonical));
    }
    Ok(Caller::Key { id: id.to_owned(), allowed: key.allowed })
}

/// The canonical request of OSS's version 4: `/bucket/key` whatever the style of the URL, all of
/// `x-oss-*`, Content-Type and Content-MD5, and what AdditionalHeaders names.
fn canonical_oss(call: &Call, additional: &[String]) -> String {
    let mut path = String::from("/");
    if !call.bucket.is_empty() {
        path.push_str(&call.bucket);
        path.push('/');
        path.push_str(&call.key);
    }
    let mut headers: Vec<(&str, String)> = call
        .headers
        .keys()
        .map(|name| name.as_str())
        .filter(|name| {
            name.starts_with("x-oss-")
                || matches!(*name, "content-type" | "content-md5")
                || additional.iter().any(|a| a == name)
        })
        .map(|name| (name, header_value(call, name)))
        .collect();
    headers.sort();
    let payload = call.header("x-oss-content-sha256").unwrap_or("UNSIGNED-PAYLOAD");
    format!(
        "{}\n{}\n{}\n{}\n{}\n{payload}",
        call.method,
        utf8_percent_encode(&path, &UNRESERVED_AND_SLASH),
        canonical_query(call, false),
        lines(&headers),
        additional.join(";"),
    )
}

/// The canonical request of AWS's version 4 for S3: the path as the URL has it, the named headers.
fn canonical_s3(call: &Call, signed: &[String]) -> Result<String, ApiError> {
    let must = |name: &str| {
        (name == "host" || name.starts_with("x-amz-")) && !signed.iter().any(|s| s == name)
    };
    if call.headers.keys().any(|name| must(name.as_str())) {
        return Err(ApiError::access_denied(
            "There were headers present in the request which were not signed",
        ));
    }
    let payload = call.header("x-amz-content-sha256").ok_or_else(|| {
        ApiError::invalid_argument("Missing required header for this request: x-amz-content-sha256")
    })?;
    if payload.starts_with("STREAMING-") {
        return Err(ApiError::invalid_argument("aws-chunked encoding is not supported."));
    }
    let path = crate::request::decode(&call.raw_path)
        .map_err(|_| ApiError::invalid_argument("The path is not UTF-8."))?;
    let headers: Vec<(&str, String)> =
        signed.iter().map(|name| (name.as_str(), header_value(call, name))).collect();
    Ok(format!(
        "{}\n{}\n{}\n{}\n{}\n{payload}",
        call.method,
        utf8_percent_encode(&path, &UNRESERVED_AND_SLASH),
        canonical_query(call, true),
        lines(&headers),
        signed.join(";"),
    ))
}

fn lines(headers: &[(&str, String)]) -> String {
    headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect()
}

fn header_value(call: &Call, name: &str) -> String {
    let values: Vec<_> = call
        .headers
        .get_all(name)
        .iter()
        .map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_owned())
        .collect();
    values.join(",")
}

/// Sorted and encoded again; OSS leaves out the `=` of an empty value, S3 keeps it.
fn canonical_query(call: &Call, equals_always: bool) -> String {
    let mut pairs: Vec<(String, String)> = call
        .query
        .iter()
        .map(|(name, value)| {
            let encode = |s| utf8_percent_encode(s, &UNRESERVED).to_string();
            (encode(name.as_str()), encode(value.as_str()))
        })
        .collect();
    pairs.sort();
    let pairs: Vec<String> = pairs
        .into_iter()
        .map(|(name, value)| match value.is_empty() && !equals_always {
            true => name,
            false => format!("{name}={value}"),
        })
        .collect();
    pairs.join("&")
}

/// The signature oss2 makes unless told otherwise.
fn verify_v1(
    call: &Call,
    fields: &str,
    store: &Store,
    now: DateTime<Utc>,
) -> Result<Caller, ApiError> {
    let (id, signature) = fields
        .split_once(':')
        .ok_or_else(|| ApiError::invalid_argument("Authorization header is invalid."))?;
    let date = call.header("x-oss-date").or(call.header("date")).unwrap_or("");
    let key = check_key(call, store, id, now)?;
    let signed_at = DateTime::parse_from_rfc2822(date)
        .map_err(|_| ApiError::access_denied("OSS authentication requires a valid Date."))?;
    check_skew(signed_at.to_utc(), now)?;

    let mut headers: Vec<_> =
        call.headers.keys().map(|n| n.as_str()).filter(|n| n.starts_with("x-oss-")).collect();
    headers.sort_unstable();
    let headers: String =
        headers.iter().map(|name| format!("{name}:{}\n", header_value(call, name))).collect();
    let mut resource = String::from("/");
    if !call.bucket.is_empty() {
        resource.push_str(&format!("{}/{}", call.bucket, call.key));
    }
    let mut sub: Vec<String> = call
        .query
        .iter()
        .filter(|(name, _)| V1_SUBRESOURCES.contains(&name.as_str()))
        .map(|(name, value)| match value.as_str() {
            "" => name.clone(),
            value => format!("{name}={value}"),
        })
        .collect();
    sub.sort();
    if !sub.is_empty() {
        resource.push_str(&format!("?{}", sub.join("&")));
    }
    let string_to_sign = format!(
        "{}\n{}\n{}\n{date}\n{headers}{resource}",
        call.method,
        header_value(call, "content-md5"),
        header_value(call, "content-type"),
    );
    let mut mac = Hmac::<Sha1>::new_from_slice(key.secret.as_bytes())
        .expect("HMAC takes a key of any length");
    mac.update(string_to_sign.as_bytes());
    if base64(&mac.finalize().into_bytes()) != signature {
        return Err(ApiError::signature_mismatch(id, signature, &string_to_sign, ""));
    }
    Ok(Caller::Key { id: id.to_owned(), allowed: key.allowed })
}

/// The query parameters version 1 signs, of those this server knows.
const V1_SUBRESOURCES: [&str; 22] = [
    "acl",
    "append",
    "bucketInfo",
    "callback",
    "continuation-token",
    "delete",
    "location",
    "objectMeta",
    "partNumber",
    "position",
    "response-cache-control",
    "response-content-disposition",
    "response-content-encoding",
    "response-content-language",
    "response-content-type",
    "response-expires",
    "restore",
    "security-token",
    "symlink",
    "tagging",
    "uploadId",
    "uploads",
];

fn check_key(
    call: &Call,
    store: &Store,
    id: &str,
    now: DateTime<Utc>,
) -> Result<Credential, ApiError> {
    let credentials = store.credentials.read().expect("no panic while the lock is held");
    let key = credentials.get(id).ok_or_else(|| ApiError::unknown_key(id))?;
    let token = call.dialect_header("security-token");
    match (&key.token, token) {
        (Some(expected), Some(sent)) if expected != sent => {
            return Err(ApiError::bad_token());
        }
        (Some(_), None) | (None, Some(_)) => return Err(ApiError::bad_token()),
        _ => {}
    }
    if key.expires.is_some_and(|at| at <= now) {
        return Err(ApiError::token_expired());
    }
    Ok(key.clone())
}

fn check_skew(signed_at: DateTime<Utc>, now: DateTime<Utc>) -> Result<(), ApiError> {
    if (signed_at - now).abs() > SKEW {
        return Err(ApiError::skewed(signed_at, now));
    }
    Ok(())
}

/// Whether the body of a request has the hashes that its headers state.
pub(crate) fn check_payload(call: &Call, body: &[u8]) -> Result<(), ApiError> {
    // Anything shorter is a word such as UNSIGNED-PAYLOAD.
    let stated = call.dialect_header("content-sha256").filter(|stated| stated.len() == 64);
    if stated.is_some_and(|stated| !stated.eq_ignore_ascii_case(&hex(&Sha256::digest(body)))) {
        return Err(ApiError::bad_payload());
    }
    if let Some(md5) = call.header("content-md5")
        && md5 != base64(&md5::Md5::digest(body))
    {
        return Err(ApiError::bad_digest());
    }
    Ok(())
}

fn hmac_sha256(key: &[u8], data: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(data);
    mac.finalize().into_bytes().to_vec()
}
