//! Writing other than by one PUT: parts, appends, copies; and deleting many at once.

use std::sync::atomic::Ordering::Relaxed;

use bytes::{Bytes, BytesMut};
use md5::{Digest, Md5};

use crate::error::{ApiError, escape};
use crate::objects::{check_key, find, insert, options};
use crate::put::PutOptions;
use crate::reply::Reply;
use crate::request::{Call, Dialect, decode};
use crate::server::Server;
use crate::store::{Content, Kind, Object, Store, Upload, crc64, upper_hex};

pub(crate) fn initiate(server: &Server, call: &Call) -> Result<Reply, ApiError> {
    check_key(&call.key)?;
    if !server.store.read(|buckets| buckets.contains_key(&call.bucket)) {
        return Err(ApiError::no_such_bucket(&call.bucket));
    }
    let id = format!("{:032X}", server.request_ids.fetch_add(1, Relaxed) + (1 << 60));
    let upload = Upload {
        bucket: call.bucket.clone(),
        key: call.key.clone(),
        options: options(call),
        parts: Default::default(),
    };
    server.store.uploads().insert(id.clone(), upload);
    let key = named(call);
    Ok(Reply::xml(format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<InitiateMultipartUploadResult>\n\
         <Bucket>{}</Bucket>\n{key}<UploadId>{id}</UploadId>\n</InitiateMultipartUploadResult>\n",
        call.bucket
    )))
}

/// The key in an answer, encoded if the request asked for it.
fn named(call: &Call) -> String {
    let mut out = String::new();
    if call.query("encoding-type") == Some("url") {
        out.push_str("<EncodingType>url</EncodingType>\n<Key>");
        let all = percent_encoding::NON_ALPHANUMERIC;
        out.extend(percent_encoding::utf8_percent_encode(&call.key, all));
    } else {
        out.push_str("<Key>");
        escape(&call.key, &mut out);
    }
    out.push_str("</Key>\n");
    out
}

pub(crate) fn part(store: &Store, call: &Call, body: Bytes) -> Result<Reply, ApiError> {
    crate::sign::check_payload(call, &body)?;
    let number = call
        .query("partNumber")
        .and_then(|n| n.parse::<u32>().ok())
        .filter(|n| (1..=10_000).contains(n))
        .ok_or_else(|| ApiError::invalid_argument("Part number must be 1 to 10000."))?;
    let id = call.query("uploadId").unwrap_or("");
    let etag = upper_hex(&Md5::digest(&body));
    let mut reply = Reply::new(200).header("etag", format!("\"{etag}\""));
    if call.dialect == Dialect::Oss {
        reply.set("x-oss-hash-crc64ecma", &crc64(&body).to_string());
    }
    let mut uploads = store.uploads();
    let upload = ours(uploads.get_mut(id), call, id)?;
    upload.parts.insert(number, body);
    Ok(reply)
}

fn ours<'a>(
    upload: Option<&'a mut Upload>,
    call: &Call,
    id: &str,
) -> Result<&'a mut Upload, ApiError> {
    upload
        .filter(|upload| upload.bucket == call.bucket && upload.key == call.key)
        .ok_or_else(|| ApiError::no_such_upload(id))
}

pub(crate) fn list_parts(store: &Store, call: &Call) -> Result<Reply, ApiError> {
    let number = |name: &str| call.query(name).and_then(|n| n.parse::<u32>().ok());
    let id = call.query("uploadId").unwrap_or("");
    let after = number("part-number-marker").unwrap_or(0);
    let most = number("max-parts").unwrap_or(1000).clamp(1, 1000) as usize;
    let mut uploads = store.uploads();
    let upload = ours(uploads.get_mut(id), call, id)?;
    let mut parts = String::new();
    let mut last = after;
    let mut rest = upload.parts.range(after + 1..);
    for (number, part) in rest.by_ref().take(most) {
        parts.push_str(&format!(
            "<Part>\n<PartNumber>{number}</PartNumber>\n\
             <LastModified>2025-01-01T00:00:00.000Z</LastModified>\n\
             <ETag>&quot;{}&quot;</ETag>\n<Size>{}</Size>\n\
             <HashCrc64ecma>{}</HashCrc64ecma>\n</Part>\n",
            upper_hex(&Md5::digest(part)),
            part.len(),
            crc64(part),
        ));
        last = *number;
    }
    let truncated = rest.next().is_some();
    let key = named(call);
    Ok(Reply::xml(format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListPartsResult>\n\
         <Bucket>{}</Bucket>\n{key}<UploadId>{id}</UploadId>\n\
         <PartNumberMarker>{after}</PartNumberMarker>\n\
         <NextPartNumberMarker>{last}</NextPartNumberMarker>\n<MaxParts>{most}</MaxParts>\n\
         <IsTruncated>{truncated}</IsTruncated>\n{parts}</ListPartsResult>\n",
        call.bucket
    )))
}

pub(crate) fn complete(store: &Store, call: &Call, body: &[u8]) -> Result<Reply, ApiError> {
    let xml = std::str::from_utf8(body).map_err(|_| ApiError::malformed_xml())?;
    let id = call.query("uploadId").unwrap_or("");
    let mut uploads = store.uploads();
    let upload = ours(uploads.get_mut(id), call, id)?;

    let numbers: Option<Vec<u32>> =
        elements(xml, "PartNumber").map(|number| number.trim().parse().ok()).collect();
    let numbers = numbers.filter(|n| !n.is_empty()).ok_or_else(ApiError::malformed_xml)?;
    if !numbers.is_sorted() {
        let message = "The list of parts was not in ascending order.";
        return Err(ApiError::new(400, "InvalidPartOrder", message, "0042-00000205"));
    }
    let stated = elements(xml, "ETag").map(|etag| etag.replace("&quot;", "").replace('"', ""));
    let mut whole = BytesMut::new();
    let mut digests = Vec::new();
    for (number, etag) in numbers.iter().zip(stated) {
        let part = upload
            .parts
            .get(number)
            .filter(|part| upper_hex(&Md5::digest(part)).eq_ignore_ascii_case(etag.trim()));
        let Some(part) = part else {
            let message = "One or more of the specified parts could not be found or the specified \
                           entity tag might not have matched the part's entity tag.";
            return Err(ApiError::new(400, "InvalidPart", message, "0042-00000202"));
        };
        digests.extend_from_slice(&Md5::digest(part));
        whole.extend_from_slice(part);
    }
    let etag = format!("\"{}-{}\"", upper_hex(&Md5::digest(&digests)), numbers.len());
    let options = std::mem::take(&mut upload.options);
    uploads.remove(id);
    drop(uploads);
    let object = Object {
        kind: Kind::Multipart,
        etag: etag.clone(),
        ..options.into_object(Content::Stored(whole.freeze()))
    };
    let written = insert(store, call, object)?;
    let key = named(call);
    let mut reply = Reply::xml(format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<CompleteMultipartUploadResult>\n\
         <Location>http://{}/{}</Location>\n<Bucket>{}</Bucket>\n{key}<ETag>{}</ETag>\n\
         </CompleteMultipartUploadResult>\n",
        call.host,
        percent_encoding::utf8_percent_encode(&call.key, percent_encoding::NON_ALPHANUMERIC),
        call.bucket,
        etag.replace('"', "&quot;"),
    ));
    reply.headers.extend(written.headers);
    Ok(reply)
}

pub(crate) fn abort(store: &Store, call: &Call) -> Result<Reply, ApiError> {
    let id = call.query("uploadId").unwrap_or("");
    let mut uploads = store.uploads();
    ours(uploads.get_mut(id), call, id)?;
    uploads.remove(id);
    Ok(Reply::new(204))
}

pub(crate) fn append(store: &Store, call: &Call, body: Bytes) -> Result<Reply, ApiError> {
    check_key(&call.key)?;
    crate::sign::check_payload(call, &body)?;
    let position: u64 = call
        .query("position")
        .and_then(|position| position.parse().ok())
        .ok_or_else(|| ApiError::invalid_argument("The position is missing."))?;
    let before = store.read(|buckets| buckets.get(&call.bucket).and_then(|b| b.get(&call.key)));
    let mut whole = BytesMut::new();
    match &before {
        Some(object) if object.kind != Kind::Appendable => {
            let message = "The object is not appendable";
            return Err(ApiError::new(409, "ObjectNotAppendable", message, "0026-00000007"));
        }
        Some(object) => whole.extend_from_slice(&object.content.slice(0, u64::MAX)),
        None => {}
    }
    if position != whole.len() as u64 {
        let message = "Position is not equal to file length";
        let error = ApiError::new(409, "PositionNotEqualToLength", message, "0026-00000016");
        return Err(error.header("x-oss-next-append-position", &whole.len().to_string()));
    }
    whole.extend_from_slice(&body);
    let next = whole.len().to_string();
    let object = options(call).appendable().into_object(Content::Stored(whole.freeze()));
    Ok(insert(store, call, object)?.header("x-oss-next-append-position", next))
}

/// CopyObject: the bytes and metadata of another object, which as on OSS may have no CRC.
pub(crate) fn copy(store: &Store, call: &Call) -> Result<Reply, ApiError> {
    check_key(&call.key)?;
    let bad = || ApiError::invalid_argument("The copy source is invalid.");
    let source = call.dialect_header("copy-source").ok_or_else(bad)?;
    let source = decode(source).map_err(|_| bad())?;
    let (bucket, key) = source.trim_start_matches('/').split_once('/').ok_or_else(bad)?;
    let from = Call { bucket: bucket.into(), key: key.into(), ..call.clone() };
    let found = find(store, &from)?.object;
    let object = Object {
        etag: found.etag.clone(),
        kind: Kind::Normal,
        headers: found.headers.clone(),
        metadata: found.metadata.clone(),
        ..PutOptions::new().into_object(found.content.clone())
    };
    let modified = object.modified.format("%Y-%m-%dT%H:%M:%S.000Z");
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<CopyObjectResult>\n\
         <LastModified>{modified}</LastModified>\n<ETag>{}</ETag>\n</CopyObjectResult>\n",
        object.etag.replace('"', "&quot;"),
    );
    insert(store, call, object)?;
    Ok(Reply::xml(text))
}

/// RestoreObject: done at once.
pub(crate) fn restore(store: &Store, call: &Call) -> Result<Reply, ApiError> {
    let object = find(store, call)?.object;
    if !object.is_frozen() {
        let message = "The object is not in an archived storage class, or restored already.";
        return Err(ApiError::new(400, "OperationNotSupported", message, "0016-00000702"));
    }
    let restored = Object {
        content: object.content.clone(),
        crc: object.crc64().map_or(crate::store::Crc::Omitted, crate::store::Crc::Known),
        etag: object.etag.clone(),
        modified: object.modified,
        kind: object.kind.clone(),
        storage_class: object.storage_class.clone(),
        restore: PutOptions::new().restored().restore,
        headers: object.headers.clone(),
        metadata: object.metadata.clone(),
        checksum: object.checksum.clone(),
        checksum_type: object.checksum_type.clone(),
    };
    insert(store, call, restored)?;
    Ok(Reply::new(202))
}

/// DeleteObjects.
pub(crate) fn delete_many(store: &Store, call: &Call, body: &[u8]) -> Result<Reply, ApiError> {
    let xml = std::str::from_utf8(body).map_err(|_| ApiError::malformed_xml())?;
    let quiet = elements(xml, "Quiet").any(|quiet| quiet.trim() == "true");
    let encode = call.query("encoding-type") == Some("url");
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<DeleteResult>\n");
    if encode {
        out.push_str("<EncodingType>url</EncodingType>\n");
    }
    let mut buckets = store.buckets.write().expect("no panic while the lock is held");
    let bucket =
        buckets.get_mut(&call.bucket).ok_or_else(|| ApiError::no_such_bucket(&call.bucket))?;
    for key in elements(xml, "Key").map(unescape) {
        bucket.remove(&key);
        if !quiet {
            let key = if encode { format!("{}", percent(&key)) } else { key };
            out.push_str("<Deleted><Key>");
            escape(&key, &mut out);
            out.push_str("</Key></Deleted>\n");
        }
    }
    out.push_str("</DeleteResult>\n");
    Ok(Reply::xml(out))
}

fn percent(key: &str) -> percent_encoding::PercentEncode<'_> {
    percent_encoding::utf8_percent_encode(key, percent_encoding::NON_ALPHANUMERIC)
}

/// The contents of every `<name>` in what a client sent: flat documents that need no parser.
fn elements<'a>(xml: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let mut rest = xml;
    std::iter::from_fn(move || {
        let start = rest.find(&open)? + open.len();
        let end = start + rest[start..].find(&close)?;
        let found = &rest[start..end];
        rest = &rest[end..];
        Some(found)
    })
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        let end = rest[at..].find(';').map_or(rest.len(), |end| at + end);
        let name = &rest[at + 1..end];
        let number = name.strip_prefix("#x").map(|n| u32::from_str_radix(n, 16));
        let number = number.or(name.strip_prefix('#').map(str::parse));
        out.push(match (name, number) {
            ("lt", _) => '<',
            ("gt", _) => '>',
            ("quot", _) => '"',
            ("apos", _) => '\'',
            (_, Some(Ok(n))) => char::from_u32(n).unwrap_or('\u{fffd}'),
            _ => '&',
        });
        rest = rest.get(end + 1..).unwrap_or("");
    }
    out.push_str(rest);
    out
}
