//! GET and HEAD of single objects.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::StreamExt;
use futures::stream::BoxStream;
use http::header::{ETAG, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_UNMODIFIED_SINCE, RANGE};
use http::{HeaderMap, HeaderName, Response, StatusCode};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, GetResult, GetResultPayload, ObjectMeta};

use crate::keys::{Dialect, Key};

use super::body::Body;
use super::client::{Ask, Budget, Client, Failure};
use super::error::StoreError;
use super::hedge::Version;
use super::listing::MAX_OBJECT;
use super::location::key_at;
use super::read_only::Readable;
use super::stated::{Stated, content_length, content_range, http_date};
use super::transport::Arriving;
use super::verdict::Kind;

const CHECKSUM_MODE: HeaderName = HeaderName::from_static("x-amz-checksum-mode");
const RANGE_BEHAVIOR: HeaderName = HeaderName::from_static("x-oss-range-behavior");

/// The objects of one bucket.
#[derive(Debug)]
pub(super) struct Objects(pub(super) Arc<Client>);

impl std::fmt::Display for Objects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "bucket {} at {}", self.0.endpoint.bucket(), self.0.endpoint.host())
    }
}

/// An answer whose headers are right.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) headers: HeaderMap,
    pub(super) body: Arriving,
    /// What the body holds of the object.
    pub(super) range: Range<u64>,
    /// The object's.
    pub(super) size: u64,
}

impl Client {
    /// Sends a GET until its answer is the one asked for.
    pub(super) async fn open(
        &self,
        ask: &Ask,
        wanted: Option<&GetRange>,
        budget: &mut Budget,
    ) -> Result<Opened, StoreError> {
        let pinned = ask.headers.iter().any(|(name, _)| *name == IF_MATCH);
        loop {
            let opened = match self.hedged(ask).await {
                Ok(response) => check(response, wanted, pinned).map_err(|reason| {
                    let subject = self.subject(ask.key.as_ref());
                    Failure::passing(StoreError::Malformed { subject, reason })
                }),
                Err(failure) => Err(failure),
            };
            match opened {
                Ok(opened) => return Ok(opened),
                Err(failure) => self.recover(failure, budget).await?,
            }
        }
    }

    /// The headers that ask for a range.
    pub(super) fn range_headers(&self, range: &GetRange) -> Vec<(HeaderName, String)> {
        let mut headers = vec![(RANGE, range.to_string())];
        if self.dialect == Dialect::Oss {
            // without it OSS answers 200 to a range that it cannot serve
            headers.push((RANGE_BEHAVIOR, "standard".to_owned()));
        }
        headers
    }
}

/// The bytes that a range is of an object of this size; empty or reversed if there are none.
pub(super) fn resolve(range: &GetRange, size: u64) -> Range<u64> {
    match range {
        GetRange::Bounded(bounds) => bounds.start..bounds.end.min(size),
        GetRange::Offset(start) => *start..size,
        GetRange::Suffix(length) => size.saturating_sub(*length)..size,
    }
}

/// `pinned`: a version was asked for.
fn check(
    response: Response<Arriving>,
    wanted: Option<&GetRange>,
    pinned: bool,
) -> Result<Opened, String> {
    let (parts, body) = response.into_parts();
    let headers = parts.headers;
    let (range, size) = fitting(parts.status, &headers, wanted, pinned)?;
    Ok(Opened { headers, body, range, size })
}

/// The bytes that an answer's body holds, and the object's size, if status and headers fit what was
/// asked for; if not, why.
pub(super) fn fitting(
    status: StatusCode,
    headers: &HeaderMap,
    wanted: Option<&GetRange>,
    pinned: bool,
) -> Result<(Range<u64>, u64), String> {
    let length = content_length(headers);
    let (range, size) = match wanted {
        None if status == StatusCode::OK => {
            let size = length.ok_or("the answer has no Content-Length")?;
            (0..size, size)
        }
        None => return Err(format!("{status} for a GET without a range")),
        Some(_) if status != StatusCode::PARTIAL_CONTENT => {
            return Err(format!("{status} for a GET with a range"));
        }
        Some(wanted) => {
            let (range, size) = content_range(headers).ok_or("206 without a Content-Range")?;
            if range != resolve(wanted, size) {
                return Err(format!(
                    "the bytes {}-{} for the range {wanted}",
                    range.start,
                    range.end.saturating_sub(1)
                ));
            }
            (range, size)
        }
    };
    if size > MAX_OBJECT {
        return Err(format!("no object has {size} bytes"));
    }
    if length.is_some_and(|length| length != range.end - range.start) {
        return Err("Content-Length and Content-Range differ".to_owned());
    }
    if pinned && headers.get(ETAG).is_none_or(|etag| etag.to_str().is_err()) {
        // a proxy's own page is no object, whatever its length
        return Err("it does not say which version it is of: there is no ETag".to_owned());
    }
    if !Stated::is_readable(headers) {
        return Err("its checksum is none".to_owned());
    }
    Ok((range, size))
}

impl Objects {
    async fn get(
        &self,
        path: &Path,
        key: &Key,
        options: GetOptions,
    ) -> Result<GetResult, StoreError> {
        let client = &self.0;
        let kind = if options.head { Kind::Head } else { Kind::Get };
        let range = options.range.as_ref().filter(|_| !options.head);
        let mut headers = conditions(&options);
        match range {
            Some(range) => headers.extend(client.range_headers(range)),
            None if client.dialect == Dialect::S3 => {
                headers.push((CHECKSUM_MODE, "ENABLED".to_owned()));
            }
            None => {}
        }
        let query: Vec<_> =
            options.version.iter().map(|version| ("versionId", version.clone())).collect();
        let ask = Ask { kind, key: Some(key.clone()), query, headers };
        let mut budget = Budget::new();
        let Opened { headers, body, range, size } = client.open(&ask, range, &mut budget).await?;
        let stated = Stated::read(&headers, options.range.is_some() && !options.head);
        // a server or a cache between may not know If-Match
        if let (Some(asked), Some(answered)) = (&options.if_match, &stated.etag)
            && asked.starts_with('"')
            && asked != answered
        {
            return Err(StoreError::ChangedMeanwhile {
                subject: client.subject(Some(key)),
                what: "ETag",
                was: asked.clone(),
                is: answered.clone(),
            });
        }
        let meta = ObjectMeta {
            location: path.clone(),
            last_modified: http_date(&headers, "last-modified").unwrap_or_default(),
            size,
            e_tag: stated.etag.clone(),
            version: ["x-oss-version-id", "x-amz-version-id"]
                .iter()
                .find_map(|name| headers.get(*name)?.to_str().ok().map(str::to_owned)),
        };
        let stream = if options.head {
            futures::stream::empty().boxed()
        } else {
            let pinned = Ask {
                headers: match (&stated.etag, &options.if_match) {
                    (Some(etag), _) | (None, Some(etag)) => vec![(IF_MATCH, etag.clone())],
                    (None, None) => Vec::new(),
                },
                ..ask
            };
            let etag = stated.etag.clone();
            let version = Version { client: client.clone(), ask: pinned, etag, size };
            Body::new(version, body, range.clone()).into_stream(path.as_ref())
        };
        let mut extensions = object_store::Extensions::new();
        extensions.insert(stated);
        Ok(GetResult {
            payload: GetResultPayload::Stream(stream),
            meta,
            range,
            attributes: object_store::Attributes::default(),
            extensions,
        })
    }
}

/// The conditional headers of a request.
fn conditions(options: &GetOptions) -> Vec<(HeaderName, String)> {
    let date = |time: DateTime<Utc>| time.format("%a, %d %b %Y %H:%M:%S GMT").to_string();
    [
        (IF_MATCH, options.if_match.clone()),
        (IF_NONE_MATCH, options.if_none_match.clone()),
        (IF_MODIFIED_SINCE, options.if_modified_since.map(date)),
        (IF_UNMODIFIED_SINCE, options.if_unmodified_since.map(date)),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value?)))
    .collect()
}

#[async_trait]
impl Readable for Objects {
    async fn read(&self, path: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        let into = |error: StoreError| error.into_object_store(path.as_ref(), self.0.dialect);
        let key = key_at(path).ok_or_else(|| {
            into(StoreError::BadKey { reason: format!("{:?} stands for none", path.as_ref()) })
        })?;
        if let Some(GetRange::Bounded(range)) = &options.range
            && range.start >= range.end
        {
            return Err(into(StoreError::NoSuchRange { subject: self.0.subject(Some(&key)) }));
        }
        self.get(path, &key, options).await.map_err(into)
    }
}

/// A stream of a body's pieces.
pub(super) type Pieces = BoxStream<'static, object_store::Result<Bytes>>;
