//! What an answer's headers state of an object: pure.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use http::header::{CONTENT_LENGTH, CONTENT_RANGE};
use http::{HeaderMap, HeaderName, HeaderValue};

use std::ops::Range;

/// CRC-64/XZ of the whole object, in decimal.
const CRC64: HeaderName = HeaderName::from_static("x-oss-hash-crc64ecma");

/// What the answer to a GET or HEAD states of the whole object; rides in
/// [`object_store::GetResult::extensions`].
///
/// A checksum that covers less than the whole object is left out: S3's composite ones, and
/// `Content-MD5` of a range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stated {
    /// `x-oss-hash-crc64ecma`: CRC-64/XZ of the whole object, also in the answer to a Range.
    pub crc64: Option<u64>,
    /// `x-amz-checksum-crc64nvme`.
    pub crc64nvme: Option<u64>,
    /// `x-amz-checksum-crc32c`.
    pub crc32c: Option<u32>,
    /// `x-amz-checksum-crc32`.
    pub crc32: Option<u32>,
    /// `x-amz-checksum-sha256`.
    pub sha256: Option<[u8; 32]>,
    /// `Content-MD5`, or an ETag that is an MD5.
    pub md5: Option<[u8; 16]>,
    /// User metadata `sha256`, 64 hexadecimal digits.
    pub user_sha256: Option<[u8; 32]>,
    /// As answered, with its quotes.
    pub etag: Option<String>,
    /// OSS: the object is a symlink, and all else is about its target.
    pub symlink: bool,
}

impl Stated {
    /// Whether OSS's checksum is a number where there is one: one that cannot be read is not one that
    /// was never there.
    pub(super) fn is_readable(headers: &HeaderMap) -> bool {
        let number = |value: &HeaderValue| value.to_str().ok()?.trim().parse::<u64>().ok();
        headers.get_all(CRC64).iter().all(|value| number(value).is_some())
    }

    /// Reads the headers of an answer; `partial` for the answer to a Range.
    pub(super) fn read(headers: &HeaderMap, partial: bool) -> Self {
        // a dozen headers and a score of names: looking along them is cheaper than a hash of each
        let named: Vec<(&str, &HeaderValue)> =
            headers.iter().map(|(name, value)| (name.as_str(), value)).collect();
        let value = |name: &str| named.iter().find(|(found, _)| *found == name).map(|(_, v)| *v);
        let text = |name: &str| value(name).and_then(|v| v.to_str().ok()).map(str::trim);
        let etag = text("etag").map(str::to_owned);
        let symlink = text("x-oss-object-type") == Some("Symlink");
        let composite = text("x-amz-checksum-type") == Some("COMPOSITE");
        let whole = |name: &str| text(name).filter(|_| !composite && !partial);
        let content_md5 = text("content-md5").filter(|_| !partial).and_then(base64_bytes);
        Self {
            crc64: text(CRC64.as_str()).and_then(|crc| crc.parse().ok()),
            crc64nvme: whole("x-amz-checksum-crc64nvme")
                .and_then(base64_bytes)
                .map(u64::from_be_bytes),
            crc32c: whole("x-amz-checksum-crc32c").and_then(base64_bytes).map(u32::from_be_bytes),
            crc32: whole("x-amz-checksum-crc32").and_then(base64_bytes).map(u32::from_be_bytes),
            sha256: whole("x-amz-checksum-sha256").and_then(base64_bytes),
            md5: content_md5.or_else(|| etag.as_deref().and_then(|etag| etag_md5(etag, value))),
            user_sha256: text("x-oss-meta-sha256")
                .or_else(|| text("x-amz-meta-sha256"))
                .and_then(hex_bytes),
            etag,
            symlink,
        }
    }
}

/// The MD5 that an ETag is: only of an object put at once, and not where the server's encryption
/// makes the ETag something else (SSE-KMS, SSE-C), nor of an appendable object or a symlink.
fn etag_md5<'a>(etag: &str, value: impl Fn(&str) -> Option<&'a HeaderValue>) -> Option<[u8; 16]> {
    let is = |name: &str, text: &str| {
        value(name).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(text.as_bytes()))
    };
    let encrypted = is("x-oss-server-side-encryption", "KMS")
        || is("x-oss-server-side-encryption", "SM4")
        || is("x-amz-server-side-encryption", "aws:kms")
        || is("x-amz-server-side-encryption", "aws:kms:dsse")
        || value("x-amz-server-side-encryption-customer-algorithm").is_some()
        || value("x-oss-server-side-encryption-customer-algorithm").is_some();
    let kind = value("x-oss-object-type");
    if encrypted || kind.is_some_and(|kind| kind != "Normal") {
        return None;
    }
    hex_bytes(etag.strip_prefix('"')?.strip_suffix('"')?)
}

fn base64_bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

fn hex_bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let digit = |b: u8| char::from(b).to_digit(16);
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()?;
    }
    Some(bytes)
}

/// `Content-Range: bytes 0-9/100`: the range, half-open, and the object's size.
pub(super) fn content_range(headers: &HeaderMap) -> Option<(Range<u64>, u64)> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, size) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, size): (u64, u64, u64) =
        (first.parse().ok()?, last.parse().ok()?, size.parse().ok()?);
    (first <= last && last < size).then_some((first..last + 1, size))
}

/// `Content-Length`.
pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// An HTTP date, as in `Date` and `Last-Modified`.
pub(super) fn http_date(headers: &HeaderMap, name: &str) -> Option<DateTime<Utc>> {
    let text = headers.get(name)?.to_str().ok()?;
    DateTime::parse_from_rfc2822(text.trim()).ok().map(|time| time.with_timezone(&Utc))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        pairs.iter().map(pair).collect()
    }

    const MD5: &str = "\"d41d8cd98f00b204e9800998ecf8427e\"";

    #[test]
    fn reads_what_oss_states() {
        let map = headers(&[
            ("x-oss-hash-crc64ecma", "11051210869376104954"),
            ("content-md5", "1B2M2Y8AsgTpgAmY7PhCfg=="),
            ("x-oss-meta-sha256", &"ab".repeat(32)),
            ("etag", "\"X-1\""),
        ]);
        let stated = Stated::read(&map, false);
        assert_eq!(stated.crc64, Some(0x995d_c9bb_df19_39fa));
        assert_eq!(stated.md5.unwrap()[0], 0xd4);
        assert_eq!(stated.user_sha256, Some([0xab; 32]));
        assert_eq!(stated.etag.as_deref(), Some("\"X-1\""));
        let part = Stated::read(&map, true);
        assert!(part.crc64.is_some() && part.md5.is_none());
    }

    #[test]
    fn reads_what_s3_states() {
        let whole = [
            ("x-amz-checksum-crc32", "AAAAAQ=="),
            ("x-amz-checksum-crc32c", "AAAAAg=="),
            ("x-amz-checksum-crc64nvme", "AAAAAAAAAAM="),
            ("x-amz-checksum-type", "FULL_OBJECT"),
        ];
        let stated = Stated::read(&headers(&whole), false);
        assert_eq!((stated.crc32, stated.crc32c, stated.crc64nvme), (Some(1), Some(2), Some(3)));
        let composite =
            [("x-amz-checksum-crc32", "AAAAAQ=="), ("x-amz-checksum-type", "COMPOSITE")];
        assert_eq!(Stated::read(&headers(&composite), false).crc32, None);
        let old = [("x-amz-checksum-crc32", "AAAAAQ==-3")];
        assert_eq!(Stated::read(&headers(&old), false).crc32, None);
    }

    #[test]
    fn an_etag_is_an_md5_only_where_it_must_be() {
        let md5 = |pairs: &[_]| Stated::read(&headers(pairs), true).md5.is_some();
        assert!(md5(&[("etag", MD5)]));
        assert!(md5(&[("etag", MD5), ("x-oss-object-type", "Normal")]));
        assert!(md5(&[("etag", MD5), ("x-oss-server-side-encryption", "AES256")]));
        assert!(!md5(&[("etag", "\"d41d8cd98f00b204e9800998ecf8427e-2\"")]));
        assert!(!md5(&[("etag", MD5), ("x-oss-object-type", "Appendable")]));
        assert!(!md5(&[("etag", MD5), ("x-oss-object-type", "Symlink")]));
        assert!(!md5(&[("etag", MD5), ("x-oss-server-side-encryption", "KMS")]));
        assert!(!md5(&[("etag", MD5), ("x-amz-server-side-encryption", "aws:kms")]));
        assert!(!md5(&[
            ("etag", MD5),
            ("x-amz-server-side-encryption-customer-algorithm", "AES256")
        ]));
    }

    #[test]
    fn reads_ranges() {
        let range = |text| content_range(&headers(&[("content-range", text)]));
        assert_eq!(range("bytes 0-9/100"), Some((0..10, 100)));
        for bad in ["bytes 0-9/*", "bytes 9-0/100", "bytes 0-100/100", "bytes */100", "0-9/100", ""]
        {
            assert_eq!(range(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(value in "[ -~]{0,80}") {
            for name in ["etag", "content-range", "content-md5", "x-oss-hash-crc64ecma",
                "x-amz-checksum-crc32", "x-oss-meta-sha256", "date", "content-length"] {
                let map = headers(&[(name, &value)]);
                let _ = (Stated::read(&map, false), content_range(&map), content_length(&map));
                let _ = http_date(&map, name);
            }
        }
    }
}
