//! Alibaba Cloud's signature ACS3-HMAC-SHA256, pure: one key, no derivation, no region.
//!
//! As in the official SDK's core (alibabacloud-tea-openapi 0.4.6, `utils.py`), which signs every
//! header; the documentation asks for `host`, `content-type` and `x-acs-*`.

use chrono::{DateTime, SecondsFormat, Utc};
use sha2::{Digest, Sha256};

use crate::keys::hex;
use crate::store::service::{encode, hmac};

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
        let signature = hex(&hmac(secret.as_bytes(), to_sign.as_bytes()));
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What the official SDK's core signs, by `Utils.get_authorization`.
    #[test]
    fn signs_as_the_official_client_does() {
        const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest_of(b""), EMPTY);
        let headers = |action: &str| {
            vec![
                ("host", "nas.cn-wulanchabu.aliyuncs.com".to_owned()),
                ("x-acs-action", action.to_owned()),
                ("x-acs-version", "2017-06-26".to_owned()),
                ("x-acs-date", "2026-01-02T03:04:05Z".to_owned()),
                ("x-acs-signature-nonce", "0123456789abcdef".to_owned()),
                ("x-acs-content-sha256", EMPTY.to_owned()),
            ]
        };
        let mut temporary = headers("CreateDataFlow");
        temporary.push(("x-acs-accesskey-id", "id".to_owned()));
        temporary.push(("x-acs-security-token", "CAIS+t/k==".to_owned()));
        let few =
            vec![("host", " example.com ".to_owned()), ("x-acs-date", headers("")[3].1.clone())];
        for (query, headers, names, signature) in [
            (
                &[("FileSystemId", "bmcpfs-1"), ("MaxResults", "100")][..],
                headers("DescribeDataFlows"),
                "host;x-acs-action;x-acs-content-sha256;x-acs-date;x-acs-signature-nonce;x-acs-version",
                "f6955f2498599f92627110713ddd26539fa6a7a8cc1d7f7dbbc6f0d2d2e384cc",
            ),
            (
                &[
                    ("FileSystemPath", "/a b/ü/"),
                    ("SourceStorage", "oss://1:models"),
                    ("SourceStoragePath", "/~-_.!*'()+&=?#%/"),
                    ("Description", ""),
                    ("Filters.1.Key", "x"),
                    ("Filters.10.Key", "y"),
                    ("Filters.2.Key", "z"),
                ],
                temporary,
                "host;x-acs-accesskey-id;x-acs-action;x-acs-content-sha256;x-acs-date;\
                 x-acs-security-token;x-acs-signature-nonce;x-acs-version",
                "f158d16319af804a6c4efb2b5a6679cd7d6d06649e418ccf242b0b6182ab8bb8",
            ),
            (
                &[],
                headers("DescribeDataFlows"),
                "host;x-acs-action;x-acs-content-sha256;x-acs-date;x-acs-signature-nonce;x-acs-version",
                "9646eed84751f6d5dd9723964f7b9276b46061b5838e748d4b925f3d5215a4d6",
            ),
            (
                &[("A", "b")],
                few,
                "host;x-acs-date",
                "c781d69771b486220eb43c1215e670428c82ed0cf498fd7214f4fbb9ab57aa6c",
            ),
        ] {
            let query: Vec<_> =
                query.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            let unsigned =
                Unsigned { method: "POST", query: &query, headers: &headers, digest: EMPTY };
            assert_eq!(
                unsigned.authorization("id", "secret"),
                format!(
                    "ACS3-HMAC-SHA256 Credential=id,SignedHeaders={names},Signature={signature}"
                )
            );
        }
    }

    #[test]
    fn the_time_is_in_seconds_of_utc() {
        let time = DateTime::from_timestamp(1_767_323_045, 999_999_999).unwrap();
        assert_eq!(timestamp(time), "2026-01-02T03:04:05Z");
    }
}
