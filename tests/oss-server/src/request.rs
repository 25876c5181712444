//! From a raw HTTP request to what it asks for: dialect, bucket, exact key, operation.

use std::collections::HashMap;
use std::net::IpAddr;

use http::{HeaderMap, Method};
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};

/// Which of the protocol's two dialects a request speaks; the answer speaks it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Oss,
    S3,
}

impl Dialect {
    /// `x-oss-` or `x-amz-`.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Dialect::Oss => "x-oss-",
            Dialect::S3 => "x-amz-",
        }
    }
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// GET of the service.
    ListBuckets,
    /// `?list-type=2`.
    ListObjectsV2,
    /// A listing without `list-type`.
    ListObjects,
    /// `?location`.
    GetBucketLocation,
    /// `?bucketInfo`.
    GetBucketInfo,
    /// PUT of a bucket.
    PutBucket,
    /// DELETE of a bucket.
    DeleteBucket,
    /// HEAD of a bucket.
    HeadBucket,
    /// GET of an object, also of a range.
    GetObject,
    /// HEAD of an object.
    HeadObject,
    /// `?objectMeta`.
    GetObjectMeta,
    /// PUT of an object.
    PutObject,
    /// PUT of an object with a copy source.
    CopyObject,
    /// DELETE of an object.
    DeleteObject,
    /// `POST ?delete`.
    DeleteObjects,
    /// `POST ?uploads`.
    InitiateMultipartUpload,
    /// `PUT ?partNumber&uploadId`.
    UploadPart,
    /// `POST ?uploadId`.
    CompleteMultipartUpload,
    /// `GET ?uploadId`.
    ListParts,
    /// `DELETE ?uploadId`.
    AbortMultipartUpload,
    /// `POST ?append`.
    AppendObject,
    /// `PUT ?symlink`.
    PutSymlink,
    /// `GET ?symlink`.
    GetSymlink,
    /// `POST ?restore`.
    RestoreObject,
    /// STS: AssumeRoleWithOIDC.
    AssumeRole,
    /// The instance's metadata service.
    InstanceMetadata,
    /// Anything else: answered with NotImplemented.
    Other,
}

/// A request as the handlers see it.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) dialect: Dialect,
    pub(crate) operation: Operation,
    pub(crate) method: Method,
    pub(crate) host: String,
    /// The path as it was sent, not decoded.
    pub(crate) raw_path: String,
    /// Empty where the request names none.
    pub(crate) bucket: String,
    /// Decoded once and never normalised; empty where the request names none.
    pub(crate) key: String,
    /// Decoded, in the order sent.
    pub(crate) query: Vec<(String, String)>,
    pub(crate) headers: HeaderMap,
    /// The access key that signed, once it is verified.
    pub(crate) access_key_id: Option<String>,
}

impl Call {
    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// `x-oss-<name>` or `x-amz-<name>`.
    pub(crate) fn dialect_header(&self, name: &str) -> Option<&str> {
        self.header(&format!("{}{name}", self.dialect.prefix()))
    }

    /// The first offset the Range header asks for, and the offset behind the last; `None` for the
    /// whole object and for ranges that only the object's size can resolve.
    pub(crate) fn requested_range(&self) -> Option<(u64, u64)> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        let last = if last.is_empty() { u64::MAX } else { last.parse::<u64>().ok()? + 1 };
        Some((first.parse().ok()?, last))
    }
}

/// Where requests are addressed to.
#[derive(Debug, Default)]
pub(crate) struct Addressing {
    /// Hosts that are the service itself, beside IP addresses and `localhost`.
    pub(crate) endpoints: Vec<String>,
    /// Hosts that are one bucket.
    pub(crate) cnames: HashMap<String, String>,
}

impl Addressing {
    /// All names this server goes by.
    pub(crate) fn names(&self) -> Vec<String> {
        self.endpoints.iter().chain(self.cnames.keys()).cloned().collect()
    }

    /// The bucket a host names; `None` is path style.
    fn bucket_of(&self, host: &str) -> Option<String> {
        let name = match host.strip_prefix('[') {
            Some(v6) => v6.split(']').next().unwrap_or(v6),
            None => host.split(':').next().unwrap_or(host),
        };
        if let Some(bucket) = self.cnames.get(name) {
            return Some(bucket.clone());
        }
        let is_service = |name: &str| {
            name == "localhost"
                || self.endpoints.iter().any(|endpoint| endpoint == name)
                || ["oss-", "oss.", "s3.oss-"].iter().any(|start| name.starts_with(start))
        };
        if name.parse::<IpAddr>().is_ok() || is_service(name) {
            return None;
        }
        let (bucket, rest) = name.split_once('.')?;
        is_service(rest).then(|| bucket.to_owned())
    }
}

/// A request that could not be understood.
#[derive(Debug)]
pub(crate) struct NotUtf8;

pub(crate) fn decode(raw: &str) -> Result<String, NotUtf8> {
    percent_decode_str(raw).decode_utf8().map(|s| s.into_owned()).map_err(|_| NotUtf8)
}

pub(crate) fn decode_query(raw: &str) -> Result<Vec<(String, String)>, NotUtf8> {
    raw.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(&name.replace('+', " "))?, decode(&value.replace('+', " "))?))
        })
        .collect()
}

pub(crate) fn parse(head: &http::request::Parts, addressing: &Addressing) -> Result<Call, NotUtf8> {
    let headers = &head.headers;
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let host = text("host")
        .map(str::to_owned)
        .or_else(|| head.uri.authority().map(|a| a.to_string()))
        .unwrap_or_default();
    let raw_path = head.uri.path().to_owned();
    let query = decode_query(head.uri.query().unwrap_or(""))?;

    let (bucket, raw_key) = match addressing.bucket_of(&host) {
        Some(bucket) => (bucket, raw_path.strip_prefix('/').unwrap_or("")),
        None => {
            let path = raw_path.strip_prefix('/').unwrap_or("");
            let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
            (decode(bucket)?, key)
        }
    };
    let key = decode(raw_key)?;

    let signed_by = text("authorization").unwrap_or("");
    let is_s3 = signed_by.starts_with("AWS4-")
        || (!signed_by.starts_with("OSS")
            && (headers.keys().any(|name| name.as_str().starts_with("x-amz-"))
                || host.split('.').take(2).any(|label| label == "s3")));
    let dialect = if is_s3 { Dialect::S3 } else { Dialect::Oss };

    let mut call = Call {
        dialect,
        operation: Operation::Other,
        method: head.method.clone(),
        host,
        raw_path,
        bucket,
        key,
        query,
        headers: headers.clone(),
        access_key_id: None,
    };
    call.operation = operation(&call);
    Ok(call)
}

fn operation(call: &Call) -> Operation {
    use Operation::*;
    let has = |name: &str| call.query(name).is_some();
    let method = call.method.as_str();
    if call.raw_path.starts_with("/latest/") && call.bucket == "latest" {
        return InstanceMetadata;
    }
    if call.query("Action") == Some("AssumeRoleWithOIDC")
        || (method == "POST" && call.bucket.is_empty())
    {
        return AssumeRole;
    }
    match (method, call.bucket.is_empty(), call.key.is_empty()) {
        ("GET", true, _) => ListBuckets,
        (_, true, _) => Other,
        ("GET", _, true) if call.query("list-type") == Some("2") => ListObjectsV2,
        ("GET", _, true) if has("location") => GetBucketLocation,
        ("GET", _, true) if has("bucketInfo") => GetBucketInfo,
        ("GET", _, true) if is_listing(call) => ListObjects,
        ("PUT", _, true) if call.query.is_empty() => PutBucket,
        ("DELETE", _, true) if call.query.is_empty() => DeleteBucket,
        ("HEAD", _, true) => HeadBucket,
        ("POST", _, true) if has("delete") => DeleteObjects,
        (_, _, true) => Other,
        ("GET", ..) if has("symlink") => GetSymlink,
        ("PUT", ..) if has("symlink") => PutSymlink,
        ("GET" | "HEAD", ..) if has("objectMeta") => GetObjectMeta,
        ("GET", ..) if has("uploadId") => ListParts,
        ("GET", ..) if has("acl") || has("tagging") => Other,
        ("GET", ..) => GetObject,
        ("HEAD", ..) => HeadObject,
        ("POST", ..) if has("uploads") => InitiateMultipartUpload,
        ("PUT", ..) if has("uploadId") => UploadPart,
        ("POST", ..) if has("uploadId") => CompleteMultipartUpload,
        ("DELETE", ..) if has("uploadId") => AbortMultipartUpload,
        ("POST", ..) if has("append") => AppendObject,
        ("POST", ..) if has("restore") => RestoreObject,
        ("PUT", ..) if call.dialect_header("copy-source").is_some() => CopyObject,
        ("PUT", ..) => PutObject,
        ("DELETE", ..) => DeleteObject,
        _ => Other,
    }
}

/// A GET of a bucket without a subresource is a listing, whatever other parameters it carries.
fn is_listing(call: &Call) -> bool {
    const SUBRESOURCES: [&str; 9] = [
        "acl",
        "cors",
        "lifecycle",
        "logging",
        "policy",
        "tagging",
        "uploads",
        "versions",
        "website",
    ];
    !SUBRESOURCES.iter().any(|name| call.query(name).is_some())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn call(method: &str, host: &str, target: &str) -> Call {
        let request =
            http::Request::builder().method(method).uri(target).header("host", host).body(());
        let addressing = Addressing {
            endpoints: vec!["oss.test".into()],
            cnames: [("data.example.com".to_owned(), "b".to_owned())].into(),
        };
        parse(&request.unwrap().into_parts().0, &addressing).unwrap()
    }

    #[test]
    fn the_bucket_is_in_the_host_or_in_the_path() {
        for (host, target, bucket, key) in [
            ("127.0.0.1:80", "/b/k", "b", "k"),
            ("[::1]:80", "/b/k", "b", "k"),
            ("localhost:80", "/b", "b", ""),
            ("b.localhost:80", "/k", "b", "k"),
            ("b.oss.test", "/k/", "b", "k/"),
            ("oss.test", "/b/", "b", ""),
            ("b.oss-cn-hangzhou.aliyuncs.com", "/k", "b", "k"),
            ("oss-cn-hangzhou.aliyuncs.com", "/", "", ""),
            ("data.example.com", "/k", "b", "k"),
        ] {
            let call = call("GET", host, target);
            assert_eq!((call.bucket.as_str(), call.key.as_str()), (bucket, key), "{host}{target}");
        }
    }

    #[test]
    fn keys_are_decoded_once_and_never_normalised() {
        for (target, key) in [
            ("/b/a//b", "a//b"),
            ("/b//a", "/a"),
            ("/b/a/../b", "a/../b"),
            ("/b/a/%2e%2e/./b", "a/.././b"),
            ("/b/%2525", "%25"),
            ("/b/a+b%20c", "a+b c"),
            ("/b/%0A%01", "\n\u{1}"),
            ("/b/%E4%B8%AD", "中"),
        ] {
            assert_eq!(call("GET", "127.0.0.1", target).key, key);
        }
    }

    #[test]
    fn operations_are_told_apart() {
        for (method, target, operation) in [
            ("GET", "/b/?list-type=2&prefix=a", Operation::ListObjectsV2),
            ("GET", "/b/?prefix=a", Operation::ListObjects),
            ("GET", "/b/k", Operation::GetObject),
            ("GET", "/b/k?symlink", Operation::GetSymlink),
            ("HEAD", "/b/k?objectMeta", Operation::GetObjectMeta),
            ("PUT", "/b/k?partNumber=1&uploadId=x", Operation::UploadPart),
            ("PUT", "/b", Operation::PutBucket),
            ("PUT", "/latest/api/token", Operation::InstanceMetadata),
            ("POST", "/?Action=AssumeRoleWithOIDC", Operation::AssumeRole),
        ] {
            assert_eq!(call(method, "127.0.0.1", target).operation, operation, "{target}");
        }
    }
}
