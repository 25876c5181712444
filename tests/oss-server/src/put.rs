//! What an object is put with, and the object that makes.

use std::sync::OnceLock;

use chrono::{DateTime, Utc};
use md5::{Digest, Md5};

use crate::store::{Content, Crc, Kind, Object, base64, crc64, upper_hex};
use crate::synthetic::GeneratedObject;

/// What may be said of an object when it is put. The default is an ordinary upload.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct PutOptions {
    pub(crate) content_type: Option<String>,
    pub(crate) content_md5: bool,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) metadata: Vec<(String, String)>,
    pub(crate) storage_class: Option<String>,
    pub(crate) restore: Option<String>,
    pub(crate) modified: Option<DateTime<Utc>>,
    pub(crate) omit_crc: bool,
    pub(crate) wrong_crc: Option<u64>,
    pub(crate) etag: Option<String>,
    pub(crate) parts: Option<u64>,
    pub(crate) appendable: bool,
    pub(crate) sse_kms: Option<String>,
    pub(crate) checksum: Option<(String, String)>,
    pub(crate) checksum_type: Option<String>,
}

impl PutOptions {
    /// An ordinary upload.
    pub fn new() -> Self {
        Self::default()
    }
    /// The object's Content-Type.
    pub fn content_type(mut self, value: &str) -> Self {
        self.content_type = Some(value.into());
        self
    }
    /// Uploaded with Content-MD5, which every whole answer then repeats.
    pub fn content_md5(mut self) -> Self {
        self.content_md5 = true;
        self
    }
    /// A header every answer about the object carries.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
    /// User metadata: `x-oss-meta-<name>` or `x-amz-meta-<name>`.
    pub fn metadata(mut self, name: &str, value: &str) -> Self {
        self.metadata.push((name.into(), value.into()));
        self
    }
    /// Standard, IA, Archive, ColdArchive or DeepColdArchive.
    pub fn storage_class(mut self, class: &str) -> Self {
        self.storage_class = Some(class.into());
        self
    }
    /// An archived object that has been restored and can be read.
    pub fn restored(mut self) -> Self {
        self.restore =
            Some("ongoing-request=\"false\", expiry-date=\"Sun, 16 Apr 2045 08:12:33 GMT\"".into());
        self
    }
    /// An archived object whose restoration goes on.
    pub fn restoring(mut self) -> Self {
        self.restore = Some("ongoing-request=\"true\"".into());
        self
    }
    /// Last-Modified.
    pub fn modified(mut self, at: DateTime<Utc>) -> Self {
        self.modified = Some(at);
        self
    }
    /// No `x-oss-hash-crc64ecma`: as objects older than the feature, and copies.
    pub fn without_crc(mut self) -> Self {
        self.omit_crc = true;
        self
    }
    /// A CRC that is not the body's.
    pub fn wrong_crc(mut self, crc: u64) -> Self {
        self.wrong_crc = Some(crc);
        self
    }
    /// An ETag of one's own, without quotes.
    pub fn etag(mut self, etag: &str) -> Self {
        self.etag = Some(format!("\"{etag}\""));
        self
    }
    /// As uploaded in parts of so many bytes: Type Multipart, an ETag that ends in `-N`.
    pub fn in_parts(mut self, part: u64) -> Self {
        self.parts = Some(part);
        self
    }
    /// As written by AppendObject.
    pub fn appendable(mut self) -> Self {
        self.appendable = true;
        self
    }
    /// Reports encryption with this KMS key: the ETag is then no MD5.
    pub fn sse_kms(mut self, key_id: &str) -> Self {
        self.sse_kms = Some(key_id.into());
        self
    }
    /// An S3 checksum (`("sha256", base64)`), and whether it is FULL_OBJECT or COMPOSITE.
    pub fn checksum(mut self, algorithm: &str, value: &str, kind: &str) -> Self {
        self.checksum = Some((algorithm.into(), value.into()));
        self.checksum_type = Some(kind.into());
        self
    }

    pub(crate) fn into_object(self, content: Content) -> Object {
        let stored = match &content {
            Content::Stored(bytes) => Some(bytes.clone()),
            Content::Synthetic { .. } => None,
        };
        let crc = match (self.omit_crc, self.wrong_crc, &stored) {
            (true, _, _) => Crc::Omitted,
            (_, Some(crc), _) => Crc::Known(crc),
            (_, _, Some(bytes)) => Crc::Known(crc64(bytes)),
            (_, _, None) => Crc::Lazy(OnceLock::new()),
        };
        let md5 = stored.as_ref().map(Md5::digest);
        let opaque = |tag: String| format!("\"{}\"", upper_hex(&Md5::digest(tag.as_bytes())));
        let (kind, natural_etag) = match (&content, self.parts, &stored) {
            (_, Some(part), Some(bytes)) => {
                let pieces: Vec<_> =
                    bytes.chunks(part.max(1) as usize).map(|p| Md5::digest(p).to_vec()).collect();
                let of_parts = Md5::digest(pieces.concat());
                (Kind::Multipart, format!("\"{}-{}\"", upper_hex(&of_parts), pieces.len()))
            }
            (Content::Synthetic { seed, len }, _, _) => {
                let object = GeneratedObject { seed: *seed, size: *len, index: 0 };
                (Kind::Multipart, object.etag())
            }
            _ => (Kind::Normal, format!("\"{}\"", upper_hex(md5.as_deref().unwrap_or(&[])))),
        };
        let kind = if self.appendable { Kind::Appendable } else { kind };
        let natural_etag = if self.sse_kms.is_some() || self.appendable {
            opaque(format!("{natural_etag}, not an MD5"))
        } else {
            natural_etag
        };
        let mut headers = self.headers;
        let content_type = self.content_type.unwrap_or_else(|| "application/octet-stream".into());
        headers.push(("content-type".into(), content_type));
        if let (true, Some(md5)) = (self.content_md5, &md5) {
            headers.push(("content-md5".into(), base64(md5)));
        }
        if let Some(key) = self.sse_kms {
            headers.push(("x-oss-server-side-encryption".into(), "KMS".into()));
            headers.push(("x-oss-server-side-encryption-key-id".into(), key));
        }
        Object {
            content,
            crc,
            etag: self.etag.unwrap_or(natural_etag),
            modified: self.modified.unwrap_or_else(Utc::now),
            kind,
            storage_class: self.storage_class.unwrap_or_else(|| "Standard".into()),
            restore: self.restore,
            headers,
            metadata: self.metadata,
            checksum: self.checksum,
            checksum_type: self.checksum_type.unwrap_or_else(|| "FULL_OBJECT".into()),
        }
    }
}
