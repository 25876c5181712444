//! Where requests go: pure.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use http::Uri;
use http::uri::{Authority, PathAndQuery, Scheme};

use crate::keys::{Bucket, Dialect};

use super::error::StoreError;
use super::sign::encode;

/// How a request names its bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Addressing {
    /// [`Addressing::Path`] for an IP address or localhost, else [`Addressing::Virtual`].
    #[default]
    Auto,
    /// In the host: `bucket.endpoint`.
    Virtual,
    /// In the path: `endpoint/bucket/key`.
    Path,
    /// Not at all: the endpoint is a domain of the bucket's own.
    Cname,
}

impl FromStr for Addressing {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        match text {
            "auto" => Ok(Self::Auto),
            "virtual" => Ok(Self::Virtual),
            "path" => Ok(Self::Path),
            "cname" => Ok(Self::Cname),
            _ => Err(StoreError::Addressing(text.to_owned())),
        }
    }
}

impl std::fmt::Display for Addressing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Virtual => "virtual",
            Self::Path => "path",
            Self::Cname => "cname",
        })
    }
}

/// An endpoint, settled: how to reach one bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    scheme: Scheme,
    /// Host and port as in the `Host` header, the bucket included where it belongs there.
    authority: Authority,
    bucket: Bucket,
    path_style: bool,
    /// Empty only where nothing is signed.
    region: String,
}

impl Endpoint {
    /// Settles what [`super::Connection`] leaves open.
    ///
    /// # Errors
    /// [`StoreError::Endpoint`] and [`StoreError::Region`].
    pub(super) fn settle(
        dialect: Dialect,
        bucket: &Bucket,
        endpoint: Option<&str>,
        region: Option<&str>,
        addressing: Addressing,
        anonymous: bool,
    ) -> Result<Self, StoreError> {
        let endpoint = endpoint.map(str::trim).filter(|text| !text.is_empty());
        let region = region.map(str::trim).filter(|text| !text.is_empty());
        let region = region.map(|text| check_region(dialect, text)).transpose()?;
        let given = match (endpoint, &region) {
            (Some(endpoint), _) => endpoint.to_owned(),
            (None, Some(region)) => match dialect {
                Dialect::S3 => format!("s3.{region}.amazonaws.com"),
                Dialect::Oss | Dialect::File => format!("oss-{region}.aliyuncs.com"),
            },
            (None, None) => {
                return Err(StoreError::Region {
                    reason: "neither --region nor --endpoint is given: give one of them".to_owned(),
                });
            }
        };
        let (scheme, authority) = parse(&given)?;
        let host = authority.host().to_ascii_lowercase();
        let local =
            host == "localhost" || host.starts_with('[') || host.parse::<Ipv4Addr>().is_ok();
        let addressing = match addressing {
            Addressing::Auto if local => Addressing::Path,
            Addressing::Auto => Addressing::Virtual,
            other => other,
        };
        // people paste the bucket's own domain from the console
        let holds_bucket = host
            .strip_prefix(bucket.as_str())
            .is_some_and(|rest| rest.starts_with('.') && rest.ends_with(".aliyuncs.com"));
        let authority = match addressing {
            Addressing::Virtual if host.parse::<Ipv4Addr>().is_ok() || host.starts_with('[') => {
                let reason =
                    "an IP address takes no bucket in front: use --addressing path or cname";
                return Err(StoreError::Endpoint { given: public(&given), reason });
            }
            Addressing::Virtual if !holds_bucket => {
                format!("{bucket}.{authority}").parse().map_err(|_| StoreError::Endpoint {
                    given: public(&given),
                    reason: "not a host name",
                })?
            }
            _ => authority,
        };
        let region = match region.or_else(|| guess_region(dialect, &host)) {
            Some(region) => region,
            None if dialect == Dialect::S3 => "us-east-1".to_owned(),
            None if anonymous => String::new(),
            None => {
                let reason = format!("endpoint {host} does not tell its region: give --region too");
                return Err(StoreError::Region { reason });
            }
        };
        let path_style = addressing == Addressing::Path;
        Ok(Self { scheme, authority, bucket: bucket.clone(), path_style, region })
    }

    pub(super) fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    pub(super) fn region(&self) -> &str {
        &self.region
    }

    pub(super) fn path_style(&self) -> bool {
        self.path_style
    }

    /// The `Host` header.
    pub(super) fn host(&self) -> &str {
        self.authority.as_str()
    }

    /// Whether the endpoint only answers inside its region's VPC.
    pub(super) fn is_internal(&self) -> bool {
        self.authority.host().contains("-internal.")
    }

    /// Whether the bucket is a part of the host's name at a service of which it is not known that it
    /// has such hosts.
    pub(super) fn puts_bucket_before_foreign_host(&self) -> bool {
        let rest = self.authority.host().strip_prefix(self.bucket.as_str());
        rest.is_some_and(|rest| {
            let known = [".aliyuncs.com", ".amazonaws.com"];
            rest.starts_with('.') && !known.iter().any(|known| rest.ends_with(known))
        })
    }

    /// The URL of a request; encoded byte by byte and never normalised.
    ///
    /// # Errors
    /// [`StoreError::BadKey`] if it is too long for a URL (64 KiB).
    pub(super) fn url(
        &self,
        key: Option<&str>,
        query: &[(&'static str, String)],
    ) -> Result<Uri, StoreError> {
        let mut target = String::from("/");
        if self.path_style {
            target.push_str(self.bucket.as_str());
            target.push('/');
        }
        target.push_str(&encode(key.unwrap_or_default(), true));
        for (index, (name, value)) in query.iter().enumerate() {
            target.push(if index == 0 { '?' } else { '&' });
            target.push_str(&encode(name, false));
            target.push('=');
            target.push_str(&encode(value, false));
        }
        let too_long = |_| StoreError::BadKey { reason: "its URL is too long".to_owned() };
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(PathAndQuery::try_from(target).map_err(too_long)?);
        Ok(Uri::from_parts(parts).expect("scheme, authority and path are all there"))
    }
}

/// What may be shown of an endpoint that cannot be one: neither a password nor a signature.
pub(super) fn public(given: &str) -> String {
    let (scheme, rest) =
        given.split_once("://").map_or(("", given), |(scheme, rest)| (scheme, rest));
    let colon = if scheme.is_empty() { "" } else { "://" };
    let (rest, query) = rest.split_once(['?', '#']).map_or((rest, ""), |(rest, _)| (rest, "?…"));
    let (user, host) = rest.rsplit_once('@').map_or(("", rest), |(_, host)| ("…@", host));
    format!("{scheme}{colon}{user}{host}{query}")
}

/// Scheme and authority of an endpoint as people write it; a port that is the scheme's own is
/// dropped, as clients drop it from `Host`.
fn parse(given: &str) -> Result<(Scheme, Authority), StoreError> {
    let refuse = |reason| StoreError::Endpoint { given: public(given), reason };
    let (scheme, rest) = match given.split_once("://") {
        None => (Scheme::HTTPS, given),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (Scheme::HTTPS, rest),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (Scheme::HTTP, rest),
        Some(_) => return Err(refuse("the scheme must be https or http")),
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains(['/', '?', '#']) {
        return Err(refuse("expected a host and no path: the bucket goes into the source"));
    }
    if rest.contains('@') {
        return Err(refuse("no user name here: credentials come from the environment"));
    }
    let bracketed;
    let rest = if rest.parse::<Ipv6Addr>().is_ok() {
        bracketed = format!("[{rest}]");
        bracketed.as_str()
    } else {
        rest
    };
    let authority: Authority = rest.parse().map_err(|_| refuse("not a host name"))?;
    let host = authority.host();
    let name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let fits = match inner {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty() && !host.starts_with('.') && host.bytes().all(name),
    };
    if !fits {
        return Err(refuse("not a host name"));
    }
    let port = match authority.as_str().get(host.len()..) {
        Some("") | None => None,
        Some(_) => {
            Some(authority.port_u16().ok_or_else(|| refuse("the port is no number up to 65535"))?)
        }
    };
    let default = if scheme == Scheme::HTTPS { 443 } else { 80 };
    if port == Some(default) {
        let host = host.parse().map_err(|_| refuse("not a host name"))?;
        return Ok((scheme, host));
    }
    Ok((scheme, authority))
}

/// A region as the signature wants it: `cn-hangzhou`, also where `oss-cn-hangzhou` is given.
fn check_region(dialect: Dialect, given: &str) -> Result<String, StoreError> {
    let region = match dialect {
        Dialect::S3 => given,
        Dialect::Oss | Dialect::File => given.strip_prefix("oss-").unwrap_or(given),
    };
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if region.is_empty() || !region.bytes().all(fits) {
        let reason = format!("{given:?} is none: expected one like cn-hangzhou");
        return Err(StoreError::Region { reason });
    }
    Ok(region.to_owned())
}

/// The region that the name of a public endpoint tells.
fn guess_region(dialect: Dialect, host: &str) -> Option<String> {
    let region = if let Some(name) = host.strip_suffix(".aliyuncs.com") {
        // the last label is `oss-{region}[-internal]`, or `oss` behind the region (dual stack)
        let (before, last) = name.rsplit_once('.').unwrap_or(("", name));
        match last.strip_prefix("oss-") {
            Some(region) => region.strip_suffix("-internal").unwrap_or(region),
            None if last == "oss" => before.rsplit('.').next().unwrap_or_default(),
            None => "",
        }
    } else if dialect == Dialect::S3 {
        let name = host.strip_suffix(".amazonaws.com.cn").or(host.strip_suffix(".amazonaws.com"))?;
        match name.rsplit_once('.') {
            Some((_, "s3" | "dualstack")) | None => "",
            Some((_, region)) => region,
        }
    } else {
        ""
    };
    let known = !region.is_empty() && !region.starts_with("accelerate");
    known.then(|| region.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settle(
        dialect: Dialect,
        endpoint: &str,
        region: &str,
        addressing: Addressing,
    ) -> Result<Endpoint, StoreError> {
        let bucket: Bucket = "models".parse().unwrap();
        let some = |text: &'static str| Some(text).filter(|text| !text.is_empty());
        let endpoint: &'static str = Box::leak(endpoint.to_owned().into_boxed_str());
        let region: &'static str = Box::leak(region.to_owned().into_boxed_str());
        Endpoint::settle(dialect, &bucket, some(endpoint), some(region), addressing, false)
    }

    #[test]
    fn endpoints_are_settled() {
        use Addressing::{Auto, Cname, Path, Virtual};
        use Dialect::{Oss, S3};
        let table = [
            (
                Oss,
                "",
                "cn-hangzhou",
                Auto,
                "https://models.oss-cn-hangzhou.aliyuncs.com/k",
                "cn-hangzhou",
            ),
            (
                Oss,
                "",
                "oss-cn-hangzhou",
                Auto,
                "https://models.oss-cn-hangzhou.aliyuncs.com/k",
                "cn-hangzhou",
            ),
            (
                Oss,
                "oss-cn-beijing-internal.aliyuncs.com",
                "",
                Auto,
                "https://models.oss-cn-beijing-internal.aliyuncs.com/k",
                "cn-beijing",
            ),
            (
                Oss,
                "http://oss-cn-beijing.aliyuncs.com/",
                "",
                Auto,
                "http://models.oss-cn-beijing.aliyuncs.com/k",
                "cn-beijing",
            ),
            (
                Oss,
                "models.oss-cn-beijing.aliyuncs.com",
                "",
                Auto,
                "https://models.oss-cn-beijing.aliyuncs.com/k",
                "cn-beijing",
            ),
            (
                Oss,
                "cn-beijing.oss.aliyuncs.com",
                "",
                Auto,
                "https://models.cn-beijing.oss.aliyuncs.com/k",
                "cn-beijing",
            ),
            (
                Oss,
                "oss-accelerate.aliyuncs.com",
                "cn-beijing",
                Auto,
                "https://models.oss-accelerate.aliyuncs.com/k",
                "cn-beijing",
            ),
            (Oss, "HTTP://127.0.0.1:9000", "cn-x", Auto, "http://127.0.0.1:9000/models/k", "cn-x"),
            (Oss, "http://[::1]:9000", "cn-x", Auto, "http://[::1]:9000/models/k", "cn-x"),
            (Oss, "::1", "cn-x", Auto, "https://[::1]/models/k", "cn-x"),
            (Oss, "http://localhost:80", "cn-x", Auto, "http://localhost/models/k", "cn-x"),
            (
                Oss,
                "http://localhost:9000",
                "cn-x",
                Virtual,
                "http://models.localhost:9000/k",
                "cn-x",
            ),
            (Oss, "oss.example.com", "cn-x", Path, "https://oss.example.com/models/k", "cn-x"),
            (Oss, "data.example.com:443", "cn-x", Cname, "https://data.example.com/k", "cn-x"),
            (Oss, "http://127.0.0.1:1", "cn-x", Cname, "http://127.0.0.1:1/k", "cn-x"),
            (S3, "", "eu-west-1", Auto, "https://models.s3.eu-west-1.amazonaws.com/k", "eu-west-1"),
            (
                S3,
                "s3.oss-cn-hangzhou.aliyuncs.com",
                "",
                Auto,
                "https://models.s3.oss-cn-hangzhou.aliyuncs.com/k",
                "cn-hangzhou",
            ),
            (
                S3,
                "s3.dualstack.eu-west-1.amazonaws.com",
                "",
                Auto,
                "https://models.s3.dualstack.eu-west-1.amazonaws.com/k",
                "eu-west-1",
            ),
            (S3, "s3.amazonaws.com", "", Auto, "https://models.s3.amazonaws.com/k", "us-east-1"),
            (S3, "http://127.0.0.1:9000", "", Auto, "http://127.0.0.1:9000/models/k", "us-east-1"),
        ];
        for (dialect, endpoint, region, addressing, url, signed) in table {
            let settled = settle(dialect, endpoint, region, addressing).expect(endpoint);
            assert_eq!(settled.url(Some("k"), &[]).unwrap().to_string(), url);
            assert_eq!(settled.region(), signed, "{endpoint}");
        }
    }

    #[test]
    fn bad_settings_are_usage_errors() {
        use Addressing::{Auto, Virtual};
        for (endpoint, region, addressing) in [
            ("", "", Auto),
            ("ftp://x", "cn-x", Auto),
            ("http://h/path", "cn-x", Auto),
            ("http://u:p@h", "cn-x", Auto),
            ("h:99999", "cn-x", Auto),
            ("h:", "cn-x", Auto),
            ("a b", "cn-x", Auto),
            ("[::zz]", "cn-x", Auto),
            ("http://", "cn-x", Auto),
            (".example.com", "cn-x", Auto),
            ("127.0.0.1", "cn-x", Virtual),
            ("oss.example.com", "", Auto),
            ("oss-accelerate.aliyuncs.com", "", Auto),
            ("oss.example.com", "CN/x", Auto),
        ] {
            let error = settle(Dialect::Oss, endpoint, region, addressing).expect_err(endpoint);
            assert_eq!(error.class(), super::super::Class::Usage, "{endpoint}");
            assert!(!error.to_string().contains('\n'));
        }
    }

    #[test]
    fn urls_hold_keys_exactly() {
        let endpoint =
            settle(Dialect::Oss, "http://127.0.0.1:9", "cn-x", Addressing::Auto).unwrap();
        let url = |key: &str| endpoint.url(Some(key), &[]).unwrap().path().to_owned();
        assert_eq!(url("a//b/../c/./"), "/models/a//b/../c/./");
        assert_eq!(url("/a b+%2F?#é\n\\\""), "/models//a%20b%2B%252F%3F%23%C3%A9%0A%5C%22");
        let query = [("list-type", "2".to_owned()), ("prefix", "a b/&=".to_owned())];
        let list = endpoint.url(None, &query).unwrap();
        assert_eq!(
            list.to_string(),
            "http://127.0.0.1:9/models/?list-type=2&prefix=a%20b%2F%26%3D"
        );
    }

    proptest! {
        #[test]
        fn no_endpoint_makes_it_panic(given in "\\PC{0,20}|[a:/.@\\[\\]?#0-9%-]{0,16}") {
            let bucket: Bucket = "models".parse().unwrap();
            for addressing in [Addressing::Auto, Addressing::Virtual, Addressing::Cname] {
                let settled = Endpoint::settle(
                    Dialect::Oss, &bucket, Some(&given), Some("cn-x"), addressing, false,
                );
                if let Ok(settled) = settled {
                    let url = settled.url(Some("a b"), &[]).unwrap();
                    prop_assert!(url.authority().is_some() && url.path().ends_with("/a%20b"));
                }
            }
        }
    }
}
