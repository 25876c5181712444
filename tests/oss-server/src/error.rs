//! Errors as OSS writes them.

use chrono::{DateTime, SecondsFormat, Utc};

/// A refusal, before it becomes a response.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    pub(crate) status: u16,
    pub(crate) code: String,
    pub(crate) message: String,
    /// The error code by which OSS's documentation lists causes.
    pub(crate) ec: &'static str,
    /// Further elements of the body.
    pub(crate) details: Vec<(&'static str, String)>,
    pub(crate) headers: Vec<(String, String)>,
}

impl ApiError {
    pub(crate) fn new(status: u16, code: &str, message: &str, ec: &'static str) -> Self {
        Self {
            status,
            code: code.into(),
            message: message.into(),
            ec,
            details: Vec::new(),
            headers: Vec::new(),
        }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.details.push((name, value.into()));
        self
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub(crate) fn no_such_bucket(bucket: &str) -> Self {
        Self::new(404, "NoSuchBucket", "The specified bucket does not exist.", "0015-00000101")
            .with("BucketName", bucket)
    }
    pub(crate) fn no_such_key(key: &str) -> Self {
        Self::new(404, "NoSuchKey", "The specified key does not exist.", "0026-00000001")
            .with("Key", key)
    }
    pub(crate) fn no_such_upload(id: &str) -> Self {
        let message = "The specified upload does not exist. The upload ID may be invalid, or the \
                       upload may have been aborted or completed.";
        Self::new(404, "NoSuchUpload", message, "0042-00000002").with("UploadId", id)
    }
    pub(crate) fn symlink_target_missing(key: &str) -> Self {
        let message = "The target of the symlink does not exist.";
        Self::new(404, "SymlinkTargetNotExist", message, "0026-00000012").with("Key", key)
    }
    pub(crate) fn symlink_of_symlink() -> Self {
        let message = "The target object is a symlink object.";
        Self::new(400, "InvalidTargetType", message, "0026-00000011")
    }
    pub(crate) fn not_a_symlink() -> Self {
        Self::new(400, "NotSymlink", "The object is not symlink", "0043-00000101")
    }
    pub(crate) fn frozen(key: &str) -> Self {
        let message = "The operation is not valid for the object's state";
        Self::new(403, "InvalidObjectState", message, "0017-00000902").with("ObjectName", key)
    }
    pub(crate) fn precondition(condition: &str) -> Self {
        let message = "At least one of the pre-conditions you specified did not hold.";
        Self::new(412, "PreconditionFailed", message, "0026-00000101").with("Condition", condition)
    }
    pub(crate) fn invalid_range() -> Self {
        let message = "The requested range cannot be satisfied";
        Self::new(416, "InvalidRange", message, "0026-00000201")
    }
    pub(crate) fn access_denied(message: &str) -> Self {
        Self::new(403, "AccessDenied", message, "0003-00000001")
    }
    pub(crate) fn wrong_endpoint(bucket: &str, endpoint: &str) -> Self {
        let message = "The bucket you are attempting to access must be addressed using the \
                       specified endpoint. Please send all future requests to this endpoint.";
        Self::new(403, "AccessDenied", message, "0003-00001403")
            .with("Bucket", bucket)
            .with("Endpoint", endpoint)
    }
    pub(crate) fn unknown_key(id: &str) -> Self {
        let message = "The OSS Access Key Id you provided does not exist in our records.";
        Self::new(403, "InvalidAccessKeyId", message, "0002-00000902").with("OSSAccessKeyId", id)
    }
    pub(crate) fn bad_token() -> Self {
        let message = "The security token you provided is invalid.";
        Self::new(403, "InvalidSecurityToken", message, "0002-00000008")
    }
    pub(crate) fn token_expired() -> Self {
        let message = "The security token you provided has expired.";
        Self::new(403, "SecurityTokenExpired", message, "0002-00000007")
    }
    pub(crate) fn signature_mismatch(id: &str, sent: &str, to_sign: &str, canonical: &str) -> Self {
        let message = "The request signature we calculated does not match the signature you \
                       provided. Check your key and signing method.";
        Self::new(403, "SignatureDoesNotMatch", message, "0002-00000040")
            .with("OSSAccessKeyId", id)
            .with("SignatureProvided", sent)
            .with("StringToSign", to_sign)
            .with("CanonicalRequest", canonical)
    }
    pub(crate) fn skewed(signed_at: DateTime<Utc>, now: DateTime<Utc>) -> Self {
        let message = "The difference between the request time and the current time is too large.";
        let time = |t: DateTime<Utc>| t.to_rfc3339_opts(SecondsFormat::Millis, true);
        Self::new(403, "RequestTimeTooSkewed", message, "0002-00000504")
            .with("MaxAllowedSkewMilliseconds", "900000")
            .with("RequestTime", time(signed_at))
            .with("ServerTime", time(now))
    }
    pub(crate) fn bad_payload() -> Self {
        let message = "The provided content sha256 does not match the body.";
        Self::new(400, "ContentSHA256Mismatch", message, "0002-00000227")
    }
    pub(crate) fn bad_digest() -> Self {
        let message = "The Content-MD5 you specified did not match what we received.";
        Self::new(400, "InvalidDigest", message, "0017-00000504")
    }
    pub(crate) fn invalid_argument(message: &str) -> Self {
        Self::new(400, "InvalidArgument", message, "0002-00000003")
    }
    pub(crate) fn malformed_xml() -> Self {
        let message = "The XML you provided was not well-formed.";
        Self::new(400, "MalformedXML", message, "0016-00000001")
    }
    pub(crate) fn not_implemented() -> Self {
        Self::new(
            501,
            "NotImplemented",
            "This server does not have this operation.",
            "0009-00000001",
        )
    }

    /// A refusal that quotes the request in all it says.
    pub(crate) fn echo(
        status: u16,
        code: &str,
        call: &crate::request::Call,
        head: &http::request::Parts,
    ) -> Self {
        let said = |name: &str| call.header(name).unwrap_or_default().to_owned();
        let authorization = said("authorization");
        let token = call.dialect_header("security-token").unwrap_or_default();
        let signature = authorization.rsplit("Signature=").next().unwrap_or_default();
        let signed = format!(
            "OSS4-HMAC-SHA256\n{}\n{}",
            call.dialect_header("date").unwrap_or_default(),
            head.uri
        );
        let quoted = format!("{signature} of {authorization} with {token} for {signed}");
        let location = format!("https://{signature}@elsewhere.example/{signature}");
        let mut error = Self::new(status, code, &quoted, "0002-00000040")
            .with("SignatureProvided", signature)
            .with("StringToSign", &signed)
            .with("Token-0", token)
            .with("Region", token)
            .with("OSSAccessKeyId", said("authorization"));
        for (name, value) in [
            ("location", location.as_str()),
            ("x-amz-bucket-region", token),
            ("etag", &authorization),
        ] {
            error = error.header(name, value);
        }
        error
    }

    /// The body.
    pub(crate) fn xml(&self, request_id: &str, host: &str) -> String {
        let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error>\n");
        let mut element = |name: &str, value: &str| {
            out.push_str(&format!("  <{name}>"));
            escape(value, &mut out);
            out.push_str(&format!("</{name}>\n"));
        };
        element("Code", &self.code);
        element("Message", &self.message);
        element("RequestId", request_id);
        element("HostId", host);
        for (name, value) in &self.details {
            element(name, value);
        }
        element("EC", self.ec);
        out.push_str("</Error>\n");
        out
    }
}

/// Appends text as XML content; what XML 1.0 cannot carry goes as a character reference, which is
/// what servers send when a listing was not asked to encode its keys.
pub(crate) fn escape(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\r' => out.push_str("&#13;"),
            c if c.is_ascii_control() && !matches!(c, '\n' | '\t') => {
                out.push_str(&format!("&#x{:X};", c as u32));
            }
            c => out.push(c),
        }
    }
}
