//! Reading and writing objects.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::body::Payload;
use crate::error::ApiError;
use crate::faults::Action;
use crate::put::PutOptions;
use crate::reply::Reply;
use crate::request::{Call, Dialect};
use crate::server::Server;
use crate::store::{Content, Kind, Object, Store};

/// An object as a GET finds it: itself, or what its link leads to.
#[derive(Debug)]
pub(crate) struct Found {
    /// What the bytes, ETag and CRC are of.
    pub(crate) object: Arc<Object>,
    /// The link that led there.
    pub(crate) link: Option<Arc<Object>>,
}

pub(crate) fn find(store: &Store, call: &Call) -> Result<Found, ApiError> {
    let buckets = store.buckets.read().expect("no panic while the lock is held");
    let bucket = buckets.get(&call.bucket).ok_or_else(|| ApiError::no_such_bucket(&call.bucket))?;
    let object = bucket.get(&call.key).ok_or_else(|| ApiError::no_such_key(&call.key))?;
    let Kind::Symlink(target) = &object.kind else {
        return Ok(Found { object, link: None });
    };
    let target = bucket.get(target).ok_or_else(|| ApiError::symlink_target_missing(&call.key))?;
    if matches!(target.kind, Kind::Symlink(_)) {
        return Err(ApiError::symlink_of_symlink());
    }
    Ok(Found { object: target, link: Some(object) })
}

/// GET and HEAD of an object.
pub(crate) async fn get(
    server: &Server,
    call: &Call,
    faults: &[Action],
) -> Result<Reply, ApiError> {
    let found = find(&server.store, call)?;
    let object = found.object;
    let size = object.content.len();
    if let Some(unmet) = conditions(call, &object) {
        return unmet;
    }
    let head = call.method == http::Method::HEAD;
    if !head && object.is_frozen() {
        return Err(ApiError::frozen(&call.key));
    }
    let asked = asked_range(call, size)?;
    let range = faults.iter().fold(asked.clone(), |range, fault| match fault {
        Action::IgnoreRange => None,
        Action::OtherRange(start, end) => Some((*start).min(size)..(*end).min(size)),
        _ => range,
    });

    let mut reply = Reply::new(if range.is_some() { 206 } else { 200 }).describe(call, &object);
    if let Some(range) = &range {
        let last = range.end.saturating_sub(1);
        reply.set("content-range", &format!("bytes {}-{last}/{size}", range.start));
        // The MD5 is of the whole object, and OSS leaves it out of a part.
        reply.headers.remove("content-md5");
    }
    match call.dialect {
        Dialect::Oss => {
            let kind = found.link.as_ref().map_or(object.kind.name(), |link| link.kind.name());
            reply.set("x-oss-object-type", kind);
            if let Some(link) = &found.link {
                reply.set(
                    "last-modified",
                    &crate::reply::http_date(link.modified.max(object.modified)),
                );
            }
            if matches!(object.kind, Kind::Appendable) {
                reply.set("x-oss-next-append-position", &size.to_string());
            }
        }
        Dialect::S3 => {
            let wanted = call
                .header("x-amz-checksum-mode")
                .is_some_and(|mode| mode.eq_ignore_ascii_case("enabled"));
            if let (true, None, Some((algorithm, value))) = (wanted, &range, &object.checksum) {
                reply.set(&format!("x-amz-checksum-{algorithm}"), value);
                reply.set("x-amz-checksum-type", &object.checksum_type);
            }
        }
    }
    if (call.dialect == Dialect::Oss || server.crc_in_s3)
        && let Some(crc) = crc(&object).await
    {
        reply.set("x-oss-hash-crc64ecma", &crc.to_string());
    }
    let range = range.unwrap_or(0..size);
    if head {
        reply.set("content-length", &(range.end - range.start).to_string());
    } else {
        reply.offset = range.start;
        reply.body = Payload::object(object, range);
    }
    Ok(reply)
}

/// The CRC; that of a large synthetic body is computed where it holds up nobody else.
async fn crc(object: &Arc<Object>) -> Option<u64> {
    if object.content.len() <= 4 << 20 {
        return object.crc64();
    }
    let object = object.clone();
    tokio::task::spawn_blocking(move || object.crc64()).await.ok().flatten()
}

/// GetObjectMeta: a HEAD with little in it, and of the link itself.
pub(crate) fn meta(store: &Store, call: &Call) -> Result<Reply, ApiError> {
    let object = read(store, call)?;
    let mut reply = Reply::new(200)
        .header("etag", &object.etag)
        .header("last-modified", crate::reply::http_date(object.modified))
        .header("content-length", object.content.len().to_string());
    if let Some(crc) = object.crc64() {
        reply.set("x-oss-hash-crc64ecma", &crc.to_string());
    }
    Ok(reply)
}

/// What happens to the object just before the request is answered.
pub(crate) fn disturb(store: &Store, call: &Call, faults: &[Action]) {
    let vanishes = faults.contains(&Action::Vanish);
    if !vanishes && !faults.contains(&Action::Overwrite) {
        return;
    }
    let mut buckets = store.buckets.write().expect("no panic while the lock is held");
    let Some(bucket) = buckets.get_mut(&call.bucket) else { return };
    let Some(object) = bucket.get(&call.key) else { return };
    if vanishes {
        bucket.remove(&call.key);
        return;
    }
    let (mut old, mut at) = (Vec::new(), 0);
    while at < object.content.len() {
        let piece = object.content.slice(at, u64::MAX);
        at += piece.len() as u64;
        old.extend(piece.iter().map(|byte| byte ^ 0x55));
    }
    bucket.insert(&call.key, PutOptions::new().into_object(Content::Stored(old.into())));
}

fn read(store: &Store, call: &Call) -> Result<Arc<Object>, ApiError> {
    let buckets = store.buckets.read().expect("no panic while the lock is held");
    let bucket = buckets.get(&call.bucket).ok_or_else(|| ApiError::no_such_bucket(&call.bucket))?;
    bucket.get(&call.key).ok_or_else(|| ApiError::no_such_key(&call.key))
}

fn conditions(call: &Call, object: &Object) -> Option<Result<Reply, ApiError>> {
    let names = |list: &str| {
        list.split(',')
            .map(|tag| tag.trim().trim_matches('"'))
            .any(|tag| tag == "*" || tag.eq_ignore_ascii_case(object.etag.trim_matches('"')))
    };
    let date = |name: &str| {
        chrono::DateTime::parse_from_rfc2822(call.header(name)?).ok().map(|at| at.timestamp())
    };
    let modified = object.modified.timestamp();
    if call.header("if-match").is_some_and(|list| !names(list)) {
        return Some(Err(ApiError::precondition("If-Match")));
    }
    if date("if-unmodified-since").is_some_and(|at| modified > at) {
        return Some(Err(ApiError::precondition("If-Unmodified-Since")));
    }
    let unchanged = call.header("if-none-match").is_some_and(names)
        || date("if-modified-since").is_some_and(|at| modified <= at);
    unchanged.then(|| Ok(Reply::new(304).describe(call, object)))
}

/// The range to send; `None` is the whole object.
///
/// OSS sends the whole object for a range that is not within it, unless told to behave as the
/// standard says, which S3 always does.
fn asked_range(call: &Call, size: u64) -> Result<Option<Range<u64>>, ApiError> {
    let Some(text) = call.header("range") else { return Ok(None) };
    let standard = call.dialect == Dialect::S3
        || call.header("x-oss-range-behavior").is_some_and(|b| b.eq_ignore_ascii_case("standard"));
    let Some(spec) = text.strip_prefix("bytes=").and_then(|spec| spec.split_once('-')) else {
        return Ok(None);
    };
    let (first, last) = match spec {
        ("", suffix) => match suffix.parse::<u64>() {
            Ok(0) if standard => return Err(ApiError::invalid_range()),
            Ok(n) if n > 0 => (size.saturating_sub(n), size.saturating_sub(1)),
            _ => return Ok(None),
        },
        (first, "") => match first.parse() {
            Ok(first) => (first, size.saturating_sub(1)),
            Err(_) => return Ok(None),
        },
        (first, last) => match (first.parse(), last.parse()) {
            (Ok(first), Ok(last)) if first <= last => (first, last),
            _ => return Ok(None),
        },
    };
    match (first < size, last < size) {
        (true, true) => Ok(Some(first..last + 1)),
        (true, false) if standard => Ok(Some(first..size)),
        (false, _) if standard => Err(ApiError::invalid_range()),
        _ => Ok(None),
    }
}

/// What a PUT's headers say of the object.
pub(crate) fn options(call: &Call) -> PutOptions {
    const KEPT: [&str; 5] =
        ["cache-control", "content-disposition", "content-encoding", "content-language", "expires"];
    let mut options = PutOptions::new();
    if let Some(value) = call.header("content-type") {
        options = options.content_type(value);
    }
    if call.header("content-md5").is_some() {
        options = options.content_md5();
    }
    if let Some(class) = call.dialect_header("storage-class") {
        options = options.storage_class(class);
    }
    let meta = format!("{}meta-", call.dialect.prefix());
    for (name, value) in &call.headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        if let Some(name) = name.as_str().strip_prefix(&meta) {
            options = options.metadata(name, &value);
        } else if KEPT.contains(&name.as_str()) {
            options = options.header(name.as_str(), &value);
        }
    }
    for algorithm in ["sha256", "crc32", "crc32c", "crc64nvme", "sha1"] {
        if let Some(value) = call.header(&format!("x-amz-checksum-{algorithm}")) {
            options = options.checksum(algorithm, value, "FULL_OBJECT");
        }
    }
    options
}

pub(crate) fn put(store: &Store, call: &Call, body: Bytes) -> Result<Reply, ApiError> {
    check_key(&call.key)?;
    crate::sign::check_payload(call, &body)?;
    let object = options(call).into_object(Content::Stored(body));
    insert(store, call, object)
}

pub(crate) fn check_key(key: &str) -> Result<(), ApiError> {
    if key.is_empty() || key.len() > 1023 {
        return Err(ApiError::new(
            400,
            "InvalidObjectName",
            "The length of object name must be between 1 and 1023.",
            "0016-00000005",
        ));
    }
    Ok(())
}

/// Puts an object and says so.
pub(crate) fn insert(store: &Store, call: &Call, object: Object) -> Result<Reply, ApiError> {
    let mut reply = Reply::new(200).header("etag", &object.etag);
    if let (Dialect::Oss, Some(crc)) = (call.dialect, object.crc64()) {
        reply.set("x-oss-hash-crc64ecma", &crc.to_string());
    }
    let mut buckets = store.buckets.write().expect("no panic while the lock is held");
    let bucket =
        buckets.get_mut(&call.bucket).ok_or_else(|| ApiError::no_such_bucket(&call.bucket))?;
    bucket.insert(&call.key, object);
    Ok(reply)
}

pub(crate) fn delete(store: &Store, call: &Call) -> Result<Reply, ApiError> {
    let mut buckets = store.buckets.write().expect("no panic while the lock is held");
    let bucket =
        buckets.get_mut(&call.bucket).ok_or_else(|| ApiError::no_such_bucket(&call.bucket))?;
    bucket.remove(&call.key);
    Ok(Reply::new(204))
}

pub(crate) fn put_symlink(store: &Store, call: &Call) -> Result<Reply, ApiError> {
    check_key(&call.key)?;
    let target = call
        .header("x-oss-symlink-target")
        .ok_or_else(|| ApiError::invalid_argument("Missing x-oss-symlink-target."))?;
    let target = crate::request::decode(target)
        .map_err(|_| ApiError::invalid_argument("The target is not UTF-8."))?;
    insert(store, call, symlink(&target, options(call)))
}

/// A link; its own ETag is that of nothing a GET answers with.
pub(crate) fn symlink(target: &str, options: PutOptions) -> Object {
    let object = options.into_object(Content::Stored(Bytes::copy_from_slice(target.as_bytes())));
    Object { content: Content::Stored(Bytes::new()), kind: Kind::Symlink(target.into()), ..object }
}

pub(crate) fn get_symlink(store: &Store, call: &Call) -> Result<Reply, ApiError> {
    let object = read(store, call)?;
    let Kind::Symlink(target) = &object.kind else { return Err(ApiError::not_a_symlink()) };
    let target = percent_encoding::utf8_percent_encode(target, percent_encoding::NON_ALPHANUMERIC);
    Ok(Reply::new(200).describe(call, &object).header("x-oss-symlink-target", target.to_string()))
}
