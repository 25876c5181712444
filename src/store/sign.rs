//! Signature version 4 in its two dialects, pure.
//!
//! OSS: `OSS4-HMAC-SHA256`, as in the official Go SDK v2, `oss/signer/v4.go`. S3:
//! `AWS4-HMAC-SHA256`, as in Amazon's "Authenticating Requests (AWS Signature Version 4)".

use std::fmt::Write;

use chrono::{DateTime, Datelike, Timelike, Utc};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::keys::{Dialect, hex};

/// What stands for the body's digest: bodies are empty, and TLS protects the request.
pub(super) const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";

/// The four values that make one signing key, and the algorithm's names.
struct Words {
    algorithm: &'static str,
    secret_prefix: &'static str,
    service: &'static str,
    terminator: &'static str,
}

/// The dialects differ in words and in three details of the canonical request.
fn words(dialect: Dialect) -> Words {
    match dialect {
        Dialect::Oss | Dialect::File => Words {
            algorithm: "OSS4-HMAC-SHA256",
            secret_prefix: "aliyun_v4",
            service: "oss",
            terminator: "aliyun_v4_request",
        },
        Dialect::S3 => Words {
            algorithm: "AWS4-HMAC-SHA256",
            secret_prefix: "AWS4",
            service: "s3",
            terminator: "aws4_request",
        },
    }
}

/// A request as far as its signature covers it.
#[derive(Debug)]
pub(super) struct Unsigned<'a> {
    pub(super) dialect: Dialect,
    pub(super) region: &'a str,
    pub(super) time: DateTime<Utc>,
    pub(super) method: &'a str,
    pub(super) bucket: &'a str,
    /// Raw, not encoded; `None` for a request to the bucket.
    pub(super) key: Option<&'a str>,
    /// Whether the request's target begins with the bucket. OSS signs `/bucket/key` either way.
    pub(super) path_style: bool,
    /// Raw pairs.
    pub(super) query: &'a [(&'static str, String)],
    /// All headers to sign, lower-case names; for OSS those beyond `x-oss-*`, `content-type` and
    /// `content-md5` become its "additional headers".
    pub(super) headers: &'a [(&'a str, &'a str)],
}

/// The time as both dialects write it in `x-oss-date` and `x-amz-date`.
pub(super) fn timestamp(time: DateTime<Utc>) -> String {
    let mut text = day(time);
    text.push('T');
    for part in [time.hour(), time.minute(), time.second()] {
        push_two_digits(&mut text, part);
    }
    text.push('Z');
    text
}

/// `YYYYMMDD`.
pub(super) fn day(time: DateTime<Utc>) -> String {
    let mut text = String::with_capacity(16);
    write!(text, "{:04}", time.year()).expect("a String takes all");
    push_two_digits(&mut text, time.month());
    push_two_digits(&mut text, time.day());
    text
}

/// A number below 100; without the machinery of formats, which every request would pay for.
fn push_two_digits(text: &mut String, number: u32) {
    for digit in [number / 10 % 10, number % 10] {
        text.push(char::from_digit(digit, 10).unwrap_or_default());
    }
}

/// Derives the key that signs one day's requests to one region.
pub(super) fn signing_key(dialect: Dialect, secret: &str, day: &str, region: &str) -> SigningKey {
    let Words { secret_prefix, service, terminator, .. } = words(dialect);
    let start = format!("{secret_prefix}{secret}");
    let key = hmac(start.as_bytes(), day.as_bytes());
    let key = hmac(&key, region.as_bytes());
    let key = hmac(&key, service.as_bytes());
    SigningKey(keyed(&hmac(&key, terminator.as_bytes())))
}

/// What signs one day's requests in one region.
#[derive(Clone)]
pub(super) struct SigningKey(Hmac<Sha256>);

impl Unsigned<'_> {
    /// The value of the `Authorization` header, with the key of [`signing_key`].
    pub(super) fn authorization(&self, access_key_id: &str, key: &SigningKey) -> String {
        let Words { algorithm, service, terminator, .. } = words(self.dialect);
        let mut scope = day(self.time);
        for part in ["/", self.region, "/", service, "/", terminator] {
            scope.push_str(part);
        }
        let (canonical, names) = self.canonical_request();
        let mut mac = key.0.clone();
        let digest = hex(&Sha256::digest(canonical.as_bytes()));
        for part in [algorithm, "\n", &timestamp(self.time), "\n", &scope, "\n", &digest] {
            mac.update(part.as_bytes());
        }
        let signature = hex(&mac.finalize().into_bytes());
        let (signed, comma) = match self.dialect {
            Dialect::S3 => (", SignedHeaders=", ", "),
            Dialect::Oss | Dialect::File if names.is_empty() => ("", ","),
            Dialect::Oss | Dialect::File => (",AdditionalHeaders=", ","),
        };
        let mut text = String::with_capacity(256);
        for part in [algorithm, " Credential=", access_key_id, "/", &scope] {
            text.push_str(part);
        }
        for part in [signed, &names, comma, "Signature=", &signature] {
            text.push_str(part);
        }
        text
    }

    /// The canonical request, and the names of the signed (S3) or additional (OSS) headers.
    fn canonical_request(&self) -> (String, String) {
        let mut text = String::with_capacity(512);
        text.push_str(self.method);
        text.push_str("\n/");
        if self.dialect != Dialect::S3 || self.path_style {
            text.push_str(self.bucket);
            text.push('/');
        }
        encode_into(&mut text, self.key.unwrap_or_default(), true);
        text.push('\n');

        let mut query: Vec<(String, String)> =
            self.query.iter().map(|(k, v)| (encode(k, false), encode(v, false))).collect();
        query.sort();
        for (index, (name, value)) in query.iter().enumerate() {
            let mark = if index > 0 { "&" } else { "" };
            // only OSS leaves out the `=` of an empty value
            let equals = if self.dialect == Dialect::S3 || !value.is_empty() { "=" } else { "" };
            write!(text, "{mark}{name}{equals}{value}").expect("a String takes all");
        }
        text.push('\n');

        let mut headers = self.headers.to_vec();
        headers.sort_unstable();
        for (name, value) in &headers {
            for part in [name, ":", value.trim(), "\n"] {
                text.push_str(part);
            }
        }
        let names: Vec<&str> = headers
            .iter()
            .map(|(name, _)| *name)
            .filter(|name| self.dialect == Dialect::S3 || !always_signed_by_oss(name))
            .collect();
        let names = names.join(";");
        for part in ["\n", &names, "\n", UNSIGNED_PAYLOAD] {
            text.push_str(part);
        }
        (text, names)
    }
}

fn always_signed_by_oss(name: &str) -> bool {
    name.starts_with("x-oss-") || name == "content-type" || name == "content-md5"
}

/// Percent-encodes all bytes but RFC 3986's unreserved ones, and `/` if `keep_slash`.
pub(crate) fn encode(text: &str, keep_slash: bool) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    encode_into(&mut out, text, keep_slash);
    out
}

fn encode_into(out: &mut String, text: &str, keep_slash: bool) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in text.as_bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(byte));
            }
            b'/' if keep_slash => out.push('/'),
            byte => {
                out.push('%');
                out.push(char::from(DIGITS[usize::from(byte >> 4)]));
                out.push(char::from(DIGITS[usize::from(byte & 15)]));
            }
        }
    }
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

/// HMAC-SHA256.
pub(crate) fn hmac(key: &[u8], text: &[u8]) -> [u8; 32] {
    let mut mac = keyed(key);
    mac.update(text);
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use chrono::NaiveDateTime;
    use proptest::prelude::*;
    use reqsign_core::{Context, SignRequest};

    use super::*;

    const SECRET: &str = "yourAccessKeySecret";

    fn signature_of(unsigned: &Unsigned<'_>) -> String {
        let key = signing_key(unsigned.dialect, SECRET, &day(unsigned.time), unsigned.region);
        let authorization = unsigned.authorization("testid", &key);
        authorization.rsplit_once("Signature=").unwrap().1.to_owned()
    }

    /// The two vectors in reqsign-aliyun-oss 3.2.0, `sign_request.rs`; the first is the one of the
    /// official documentation, "Include signatures in headers".
    #[test]
    fn golden_vectors() {
        let put = Unsigned {
            dialect: Dialect::Oss,
            region: "cn-hangzhou",
            time: DateTime::from_timestamp(1_744_353_684, 0).unwrap(),
            method: "PUT",
            bucket: "examplebucket",
            key: Some("exampleobject"),
            path_style: false,
            query: &[],
            headers: &[
                ("content-disposition", "attachment"),
                ("content-length", "3"),
                ("content-md5", "ICy5YqxZB1uWSwcVLSNLcA=="),
                ("content-type", "text/plain"),
                ("x-oss-content-sha256", UNSIGNED_PAYLOAD),
                ("x-oss-date", "20250411T064124Z"),
            ],
        };
        let key = signing_key(Dialect::Oss, SECRET, "20250411", "cn-hangzhou");
        assert_eq!(
            put.authorization("testid", &key),
            "OSS4-HMAC-SHA256 Credential=testid/20250411/cn-hangzhou/oss/aliyun_v4_request,\
             AdditionalHeaders=content-disposition;content-length,\
             Signature=d3694c2dfc5371ee6acd35e88c4871ac95a7ba01d3a2f476768fe61218590097"
        );
        let get = Unsigned {
            time: DateTime::from_timestamp(1_733_196_187, 0).unwrap(),
            method: "GET",
            query: &[
                ("x-oss-additional-headers", "host".to_owned()),
                (
                    "x-oss-credential",
                    "testid/20241203/cn-hangzhou/oss/aliyun_v4_request".to_owned(),
                ),
                ("x-oss-date", "20241203T032307Z".to_owned()),
                ("x-oss-expires", "86400".to_owned()),
                ("x-oss-signature-version", "OSS4-HMAC-SHA256".to_owned()),
            ],
            headers: &[("host", "examplebucket.oss-cn-hangzhou.aliyuncs.com")],
            ..put
        };
        assert_eq!(
            signature_of(&get),
            "a9ad2ce702a93c7c36ace35dd4e1b80cb76a999c890d7dfe78ff342a23dac8e0"
        );
    }

    /// Signs a request by reqsign, and the same request, as reqsign left it, by us.
    fn both(
        dialect: Dialect,
        path_style: bool,
        key: &str,
        query: &[(&'static str, String)],
        token: Option<String>,
    ) -> (String, String) {
        let bucket = "examplebucket";
        let host = if path_style { "127.0.0.1:9000" } else { "examplebucket.example.com" };
        let pairs: Vec<String> =
            query.iter().map(|(k, v)| format!("{k}={}", encode(v, false))).collect();
        let target = format!(
            "{}/{}{}{}",
            if path_style { "/examplebucket" } else { "" },
            encode(key, true),
            if pairs.is_empty() { "" } else { "?" },
            pairs.join("&")
        );
        let (mut parts, ()) = http::Request::get(format!("https://{host}{target}"))
            .header("range", "bytes=0-9")
            .body(())
            .unwrap()
            .into_parts();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let context = Context::new();
        runtime.block_on(async {
            if dialect == Dialect::S3 {
                let credential = reqsign_aws_v4::Credential {
                    access_key_id: "testid".to_owned(),
                    secret_access_key: SECRET.to_owned(),
                    session_token: token,
                    ..Default::default()
                };
                parts.headers.insert("x-amz-content-sha256", UNSIGNED_PAYLOAD.parse().unwrap());
                let signer = reqsign_aws_v4::RequestSigner::new("s3", "cn-hangzhou");
                signer.sign_request(&context, &mut parts, Some(&credential), None).await.unwrap();
            } else {
                let credential = reqsign_aliyun_oss::Credential {
                    access_key_id: "testid".to_owned(),
                    access_key_secret: SECRET.to_owned(),
                    security_token: token,
                    expires_in: None,
                };
                let signer = reqsign_aliyun_oss::RequestSigner::new(bucket)
                    .with_region("cn-hangzhou")
                    .with_signing_version(reqsign_aliyun_oss::SigningVersion::V4);
                signer.sign_request(&context, &mut parts, Some(&credential), None).await.unwrap();
            }
        });
        let headers: Vec<(&str, &str)> = parts
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .filter(|(name, _)| *name != "authorization")
            .collect();
        let theirs = parts.headers["authorization"].to_str().unwrap();
        let (_, date) = headers.iter().find(|(name, _)| name.ends_with("-date")).unwrap();
        let time = NaiveDateTime::parse_from_str(date, "%Y%m%dT%H%M%SZ").unwrap().and_utc();
        let ours = Unsigned {
            dialect,
            region: "cn-hangzhou",
            time,
            method: "GET",
            bucket,
            key: Some(key),
            path_style,
            query,
            headers: &headers,
        };
        (signature_of(&ours), theirs.rsplit_once("Signature=").unwrap().1.to_owned())
    }

    fn listing(prefix: &str, token: &str) -> [(&'static str, String); 4] {
        [
            ("list-type", "2".to_owned()),
            ("prefix", prefix.to_owned()),
            ("continuation-token", token.to_owned()),
            ("encoding-type", "url".to_owned()),
        ]
    }

    proptest! {
        #[test]
        fn signs_as_reqsign_does(
            key in "\\PC{0,20}|[a./%+ &=?#~\\x01-\\x1f\\\\\"é😀]{1,16}|[a-z]{1020}",
            prefix in "[a/ +%&=é]{0,8}",
            continuation in "[A-Za-z0-9+/=-]{0,12}",
            token in prop::option::of("[A-Za-z0-9+/=]{8}"),
        ) {
            let query = listing(&prefix, &continuation);
            for (dialect, path_style) in
                [(Dialect::Oss, false), (Dialect::Oss, true), (Dialect::S3, false), (Dialect::S3, true)]
            {
                for query in [&[][..], &query[..]] {
                    let (ours, theirs) = both(dialect, path_style, &key, query, token.clone());
                    prop_assert_eq!(ours, theirs, "{:?} {}", dialect, path_style);
                }
            }
        }
    }
}
