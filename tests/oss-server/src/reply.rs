//! An answer in the making.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::body::Payload;
use crate::request::Call;
use crate::store::Object;

/// Status, headers and body, before request ids, lengths and faults.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Payload,
    /// Where in the object the body begins: what flipped bytes are counted from.
    pub(crate) offset: u64,
}

impl Reply {
    pub(crate) fn new(status: u16) -> Self {
        Self { status, headers: HeaderMap::new(), body: Payload::text(Bytes::new()), offset: 0 }
    }

    pub(crate) fn xml(text: String) -> Self {
        let mut reply = Self::new(200).header("content-type", "application/xml");
        reply.body = Payload::text(text);
        reply
    }

    pub(crate) fn json(status: u16, text: String) -> Self {
        let mut reply = Self::new(status).header("content-type", "application/json");
        reply.body = Payload::text(text);
        reply
    }

    pub(crate) fn header(mut self, name: &str, value: impl AsRef<str>) -> Self {
        self.set(name, value.as_ref());
        self
    }

    /// Sets a header; one that HTTP cannot carry is left out, as OSS could not send it either.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value.as_bytes()))
        {
            self.headers.insert(name, value);
        }
    }

    /// The headers that describe an object in the dialect of the request.
    pub(crate) fn describe(mut self, call: &Call, object: &Object) -> Self {
        let own = call.dialect.prefix();
        self.set("etag", &object.etag);
        self.set("last-modified", &http_date(object.modified));
        self.set("accept-ranges", "bytes");
        for (name, value) in &object.headers {
            let name = name.replace("x-oss-", own);
            self.set(&name, value);
        }
        for (name, value) in &object.metadata {
            self.set(&format!("{own}meta-{name}"), value);
        }
        self.set(&format!("{own}storage-class"), &object.storage_class);
        if let Some(restore) = &object.restore {
            self.set(&format!("{own}restore"), restore);
        }
        self
    }
}

pub(crate) fn http_date(at: chrono::DateTime<chrono::Utc>) -> String {
    at.format("%a, %d %b %Y %H:%M:%S GMT").to_string()
}
