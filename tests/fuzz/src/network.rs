//! What comes over the network: pages of a listing, refusals, headers.

use std::fmt::Write;

use chrono::{DateTime, Datelike, TimeDelta, Utc};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use object_store::GetRange;
use ossvp::handoff::{ExitCode, OUTCOME_LIMIT, Outcome};
use ossvp::keys::{Dialect, Key};
use ossvp::store::fuzzing::{
    encode, fitting, judged, page, page_in_general, pause, refusal as read, signed_time, stated,
};
use ossvp::store::{Listed, StoreError};
use ossvp::telemetry::chain;

use super::asked::SECRET;
use super::heap::within;

/// Heap for each byte of a page or a refusal, at most. An object of a listing takes some 100 bytes
/// in it and some 300 of heap, twice while a vector grows.
const HEAP: usize = 16;

/// A page of a listing: the short way and the long way read the same, and what was read, written again,
/// reads as the same.
pub(crate) fn listing(bytes: &[u8]) {
    let Some((first, body)) = bytes.split_first() else { return };
    let dialect = if first.is_multiple_of(2) { Dialect::Oss } else { Dialect::S3 };
    let read = within(HEAP, body.len(), || page(body, dialect));
    assert_eq!(read, page_in_general(body, dialect));
    let (objects, next) = match read {
        Ok(read) => read,
        Err(reason) => return one_line(&reason, 16 << 10),
    };
    assert!(next.as_ref().is_none_or(|token| !token.is_empty()));
    // the protocol's times have years of four digits
    if objects.iter().any(|object| !(0..=9999).contains(&object.modified.year())) {
        return;
    }
    let again = written(&objects, next.as_deref(), dialect);
    assert_eq!(page(again.as_bytes(), dialect), Ok((objects, next)), "{again}");
}

fn written(objects: &[Listed], next: Option<&str>, dialect: Dialect) -> String {
    let mut out = String::from("<ListBucketResult><EncodingType>url</EncodingType>");
    write!(out, "<IsTruncated>{}</IsTruncated>", next.is_some()).unwrap();
    write!(out, "<KeyCount>{}</KeyCount>", objects.len()).unwrap();
    if let Some(token) = next {
        let token = if dialect == Dialect::S3 { xml(token) } else { encode(token, false) };
        write!(out, "<NextContinuationToken>{token}</NextContinuationToken>").unwrap();
    }
    for Listed { key, size, etag, modified, symlink, archived } in objects {
        let key = encode(key.as_str(), true);
        write!(out, "<Contents><Key>{key}</Key><Size>{size}</Size>").unwrap();
        write!(out, "<LastModified>{}</LastModified>", modified.to_rfc3339()).unwrap();
        let etag = etag.as_deref().map(xml).unwrap_or_default();
        write!(out, "<ETag>{etag}</ETag>").unwrap();
        let kind = if *symlink { "Symlink" } else { "Normal" };
        let class = if *archived { "ColdArchive" } else { "Standard" };
        write!(out, "<Type>{kind}</Type><StorageClass>{class}</StorageClass></Contents>").unwrap();
    }
    out.push_str("</ListBucketResult>");
    out
}

fn xml(text: &str) -> String {
    text.chars().map(|c| format!("&#x{:x};", u32::from(c))).collect()
}

/// A status, header lines, an empty line, a body.
struct Answered<'a> {
    status: StatusCode,
    headers: HeaderMap,
    body: &'a [u8],
}

fn answered(bytes: &[u8]) -> Option<Answered<'_>> {
    let (first, mut rest) = bytes.split_first()?;
    let status = match first {
        0 => StatusCode::OK,
        1 => StatusCode::PARTIAL_CONTENT,
        n => StatusCode::from_u16(300 + u16::from(*n)).ok()?,
    };
    let mut headers = HeaderMap::new();
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let line = &rest[..end];
        rest = &rest[end + 1..];
        if line.is_empty() {
            break;
        }
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        // hyper takes 100 of them
        if let (Ok(name), Ok(value), true) = (name, value, headers.len() < 100) {
            headers.append(name, value);
        }
    }
    Some(Answered { status, headers, body: rest })
}

/// A refusal becomes one line for people, and an error whose outcome keeps its limit.
pub(crate) fn refusal(bytes: &[u8]) {
    let Some(Answered { status, headers, body }) = answered(bytes) else { return };
    let answer = within(HEAP, bytes.len(), || read(status, &headers, body, SECRET));
    one_line(&answer.to_string(), 8 << 10);
    assert!(!format!("{answer:?}").contains(SECRET), "{answer}");
    let bucket = "models".parse().unwrap();
    let key = Key::new("a/b").unwrap();
    for dialect in [Dialect::Oss, Dialect::S3] {
        for key in [None, Some(&key)] {
            error(&judged(answer.clone(), dialect, &bucket, key));
        }
    }
}

/// Headers: of bytes that fit what was asked for, of checksums, of time.
pub(crate) fn headers(bytes: &[u8]) {
    let Some(Answered { status, headers, body }) = answered(bytes) else { return };
    let number = |at: usize| {
        let bytes = body.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(at as u64, u64::from_le_bytes)
    };
    let (a, b) = (number(0), number(8));
    let bounded = (a < b).then_some(GetRange::Bounded(a..b));
    for wanted in [None, bounded, Some(GetRange::Offset(a)), Some(GetRange::Suffix(b))] {
        let pinned = a.is_multiple_of(2);
        let Ok((range, size)) = fitting(status, &headers, wanted.as_ref(), pinned) else {
            continue;
        };
        assert!(!pinned || stated(&headers, true).etag.is_some());
        assert!(range.start <= range.end && range.end <= size, "{range:?} of {size}");
        let exact = match &wanted {
            None => 0..size,
            Some(GetRange::Bounded(asked)) => asked.start..asked.end.min(size),
            Some(GetRange::Offset(start)) => *start..size,
            Some(GetRange::Suffix(length)) => size.saturating_sub(*length)..size,
        };
        assert_eq!(range, exact, "{wanted:?}");
    }
    for partial in [false, true] {
        let stated = stated(&headers, partial);
        if let Some(crc) = stated.crc64 {
            let text = headers["x-oss-hash-crc64ecma"].to_str().unwrap().trim();
            assert_eq!(
                text.trim_start_matches(['+', '0']),
                if crc == 0 { String::new() } else { crc.to_string() }
            );
        }
        one_line(stated.etag.as_deref().unwrap_or_default(), bytes.len());
    }
    let now: DateTime<Utc> = "2026-01-01T00:00:00Z".parse().unwrap();
    let most = std::time::Duration::from_secs(60);
    assert!(pause(&headers, now, 0.5).is_none_or(|pause| pause <= most));
    for later in [0, 1, 7200] {
        if let Some(time) = signed_time(&headers, now, TimeDelta::seconds(later)) {
            assert!(HeaderValue::from_str(&time).is_ok());
        }
    }
}

/// What a run would say of `error`: one line, an outcome within its limit.
pub(crate) fn error(error: &StoreError) {
    let line = chain(error);
    one_line(&line, 16 << 10);
    let outcome = Outcome::new(ExitCode::Source, line, "oss://models/").to_json();
    assert!(outcome.len() <= OUTCOME_LIMIT);
}

#[track_caller]
pub(crate) fn one_line(text: &str, most: usize) {
    assert!(!text.contains(['\n', '\r', '\0', '\u{1b}']), "{text:?}");
    assert!(text.len() <= most, "{} bytes: {text:?}", text.len());
}
