//! What can go wrong with a source, and what to do about it.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::keys::{Bucket, Dialect, Key, NameError};

use super::answer::Answer;

/// The error below a [`StoreError`]; shared, so that a [`StoreError`] can be cloned.
pub type Cause = Arc<dyn Error + Send + Sync>;

/// What a request was about: an object, or the bucket itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The bucket.
    pub bucket: Bucket,
    /// The object, if the request was about one.
    pub key: Option<Key>,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.key {
            Some(key) => write!(f, "object {key} of bucket {}", self.bucket),
            None => write!(f, "bucket {}", self.bucket),
        }
    }
}

/// Why the source could not be read.
///
/// Display is one line that names what failed and what helps; it never holds a secret, a token or
/// a signature. Request ids are kept, because support asks for them.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The endpoint cannot be used.
    #[error("endpoint {given:?}: {reason}")]
    Endpoint {
        /// As given.
        given: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The region cannot be used, or is needed and unknown.
    #[error("region: {reason}")]
    Region {
        /// What is wrong with it.
        reason: String,
    },
    /// An addressing style that does not exist.
    #[error("addressing {0:?}: expected auto, virtual, path or cname")]
    Addressing(String),
    /// The extra roots cannot be used.
    #[error("certificates in {}: {reason}", path.display())]
    CaBundle {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The proxy that the environment names cannot be used.
    #[error("proxy {0:?} from the environment: expected http://, https:// or socks5://host:port")]
    Proxy(String),
    /// Nothing offers credentials.
    #[error(
        "no credentials found: {places}, or take --anonymous if the bucket is public{}",
        detail.as_deref().map(|detail| format!(" ({detail})")).unwrap_or_default()
    )]
    NoCredentials {
        /// What would do.
        places: &'static str,
        /// What the last resort said.
        detail: Option<String>,
    },
    /// One half of a pair of environment variables.
    #[error("{set} is set but {missing} is not: set both or neither")]
    HalfCredentials {
        /// The variable that is set.
        set: &'static str,
        /// The variable that is not.
        missing: &'static str,
    },
    /// A source of credentials exists but gives none.
    #[error("credentials from {provider}: {reason}")]
    Credentials {
        /// Where they were to come from.
        provider: &'static str,
        /// What it said, or what is wrong.
        reason: String,
        /// Whether it may work later.
        transient: bool,
    },
    /// The bucket does not exist.
    #[error("bucket {bucket} does not exist at {host} ({answer}): check its name and region")]
    NoSuchBucket {
        /// The bucket.
        bucket: Bucket,
        /// The endpoint asked.
        host: String,
        /// What was answered.
        answer: Box<Answer>,
    },
    /// The credentials may not do this.
    #[error("access to {subject} is denied ({answer}): {}", grant(*needed))]
    AccessDenied {
        /// What was asked for.
        subject: Box<Subject>,
        /// The permission that the request needs; `None` if it was not signed.
        needed: Option<&'static str>,
        /// What was answered.
        answer: Box<Answer>,
    },
    /// The access key is not known, or its token is no longer valid.
    #[error("the access key was not accepted for {subject} ({answer}): check the key id and token")]
    AccessKey {
        /// What was asked for.
        subject: Box<Subject>,
        /// What was answered.
        answer: Box<Answer>,
    },
    /// The signature does not match.
    #[error("the signature for {subject} does not match ({answer}): check the access key's secret")]
    Signature {
        /// What was asked for.
        subject: Box<Subject>,
        /// What was answered.
        answer: Box<Answer>,
    },
    /// The clocks differ, also after correcting for it.
    #[error("the clock differs too much from that of {host} ({answer}): set this host's clock")]
    ClockSkew {
        /// The endpoint asked.
        host: String,
        /// What was answered.
        answer: Box<Answer>,
    },
    /// The bucket lives at another endpoint.
    #[error("bucket {bucket} is not served by {host} ({answer}): {}", use_instead("endpoint", right.as_deref()))]
    WrongEndpoint {
        /// The bucket.
        bucket: Bucket,
        /// The endpoint asked.
        host: String,
        /// The endpoint to use, if the answer names it.
        right: Option<String>,
        /// What was answered.
        answer: Box<Answer>,
    },
    /// The region signed for is not the bucket's.
    #[error("bucket {bucket} is not in region {region} ({answer}): {}", use_instead("region", right.as_deref()))]
    WrongRegion {
        /// The bucket.
        bucket: Bucket,
        /// The region signed for.
        region: String,
        /// The region to use, if the answer names it.
        right: Option<String>,
        /// What was answered.
        answer: Box<Answer>,
    },
    /// The object is in an archive class and not restored.
    #[error(
        "{subject} is archived ({answer}): restore it first, by `ossutil restore` or in the console"
    )]
    Archived {
        /// The object.
        subject: Box<Subject>,
        /// What was answered.
        answer: Box<Answer>,
    },
    /// A symlink whose target is missing or is a symlink.
    #[error(
        "{subject} is a symlink without a target that can be read ({answer}): put the target back or remove the symlink"
    )]
    Dangling {
        /// The symlink.
        subject: Box<Subject>,
        /// What was answered.
        answer: Box<Answer>,
    },
    /// Any other refusal.
    #[error("the request for {subject} was refused ({answer})")]
    Refused {
        /// What was asked for.
        subject: Box<Subject>,
        /// What was answered.
        answer: Box<Answer>,
    },
    /// The object is no longer there.
    #[error("{subject} is gone ({answer})")]
    Gone {
        /// The object.
        subject: Box<Subject>,
        /// What was answered.
        answer: Box<Answer>,
    },
    /// The object is not the one that `If-Match` asked for.
    #[error("{subject} has changed ({answer})")]
    Changed {
        /// The object.
        subject: Box<Subject>,
        /// What was answered.
        answer: Box<Answer>,
    },
    /// An answer of a resumed body is of another object than the first.
    #[error("{subject} has changed while it was read: {what} was {was}, is {is}")]
    ChangedMeanwhile {
        /// The object.
        subject: Box<Subject>,
        /// What differs.
        what: &'static str,
        /// As first answered.
        was: String,
        /// As answered now.
        is: String,
    },
    /// The object is as the caller has it (`If-None-Match`, `If-Modified-Since`).
    #[error("{subject} is not modified")]
    NotModified {
        /// The object.
        subject: Box<Subject>,
    },
    /// The range asked for is none of this object.
    #[error("{subject}: no bytes in the range asked for")]
    NoSuchRange {
        /// The object.
        subject: Box<Subject>,
    },
    /// No connection.
    #[error("cannot connect to {host}{hint}")]
    Unreachable {
        /// Host and port.
        host: String,
        /// What may be wrong, or nothing.
        hint: &'static str,
        /// Why.
        #[source]
        source: Cause,
    },
    /// The host's certificate is not trusted.
    #[error(
        "the certificate of {host} is not trusted: check the endpoint, or name its authority by --ca-bundle"
    )]
    Certificate {
        /// Host and port.
        host: String,
        /// Why.
        #[source]
        source: Cause,
    },
    /// The connection broke, or what came over it was no HTTP.
    #[error("the connection for {subject} broke")]
    Broken {
        /// What was asked for.
        subject: Box<Subject>,
        /// Why.
        #[source]
        source: Cause,
    },
    /// No answer in time.
    #[error("no answer for {subject} within {seconds} s")]
    NoAnswer {
        /// What was asked for.
        subject: Box<Subject>,
        /// How long it was waited for.
        seconds: u64,
    },
    /// No byte of a body in time, or hardly any.
    #[error("{subject}: less than {least} bytes in {seconds} s, at offset {offset}")]
    Stalled {
        /// The object.
        subject: Box<Subject>,
        /// The offset in the object of the byte that did not come.
        offset: u64,
        /// How many bytes there should have been.
        least: u64,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The source cannot answer now.
    #[error("the source could not answer for {subject} ({answer})")]
    Unavailable {
        /// What was asked for.
        subject: Box<Subject>,
        /// What was answered.
        answer: Box<Answer>,
    },
    /// An answer that breaks the protocol.
    #[error("wrong answer for {subject}: {reason}")]
    Malformed {
        /// What was asked for.
        subject: Box<Subject>,
        /// What is wrong.
        reason: String,
    },
    /// A listing in parts that do not make a whole.
    #[error(
        "the listing of {subject} was asked for in parts that do not meet: it changed meanwhile, or is in no order"
    )]
    Torn {
        /// What was asked for.
        subject: Box<Subject>,
    },
    /// A listing with a key that was not asked for.
    #[error("the listing holds {key}, which does not begin with {prefix:?}")]
    OutsidePrefix {
        /// The prefix asked for.
        prefix: String,
        /// The key.
        key: Key,
    },
    /// A listed key that is none.
    #[error("the listing holds a key that cannot be used: {reason}")]
    BadKey {
        /// What is wrong with it.
        reason: String,
    },
    /// A local directory that cannot be listed.
    #[error("cannot list directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: Cause,
    },
    /// A local file that cannot be read.
    #[error("cannot read file {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Cause,
    },
    /// A local file that is no longer the one listed.
    #[error("file {} has changed", path.display())]
    FileChanged {
        /// The file.
        path: PathBuf,
    },
    /// The source is only read.
    #[error("{0} is not supported: a source is only read")]
    Unsupported(&'static str),
    /// An error of another [`object_store::ObjectStore`], such as a decorator.
    #[error("the object store failed")]
    Other {
        /// What it said.
        #[source]
        source: Cause,
    },
}

fn grant(needed: Option<&str>) -> String {
    match needed {
        Some(needed) => format!("grant {needed} to these credentials"),
        None => "it is not public; give credentials, and leave out --anonymous".to_owned(),
    }
}

fn use_instead(what: &str, right: Option<&str>) -> String {
    match right {
        Some(right) => format!("use {what} {right}"),
        None => format!("check the {what}"),
    }
}

/// What a failure means for the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A setting cannot be used.
    Usage,
    /// The source says no, and will say so again.
    Refused,
    /// The source may answer later; the retries are used up.
    Transient,
    /// The object is not what was listed.
    Changed,
}

impl StoreError {
    /// What this failure means for the run.
    pub fn class(&self) -> Class {
        match self {
            Self::Endpoint { .. }
            | Self::Region { .. }
            | Self::Addressing(_)
            | Self::CaBundle { .. }
            | Self::Proxy(_)
            | Self::Unsupported(_) => Class::Usage,
            Self::NoCredentials { .. }
            | Self::HalfCredentials { .. }
            | Self::NoSuchBucket { .. }
            | Self::AccessDenied { .. }
            | Self::AccessKey { .. }
            | Self::Signature { .. }
            | Self::WrongEndpoint { .. }
            | Self::WrongRegion { .. }
            | Self::Archived { .. }
            | Self::Dangling { .. }
            | Self::Refused { .. }
            | Self::Certificate { .. }
            | Self::BadKey { .. }
            | Self::Directory { .. } => Class::Refused,
            Self::Credentials { transient, .. } => {
                if *transient {
                    Class::Transient
                } else {
                    Class::Refused
                }
            }
            Self::Gone { .. }
            | Self::Changed { .. }
            | Self::ChangedMeanwhile { .. }
            | Self::NotModified { .. }
            | Self::FileChanged { .. }
            | Self::NoSuchRange { .. } => Class::Changed,
            Self::ClockSkew { .. }
            | Self::Unreachable { .. }
            | Self::Broken { .. }
            | Self::NoAnswer { .. }
            | Self::Stalled { .. }
            | Self::Unavailable { .. }
            | Self::Malformed { .. }
            | Self::Torn { .. }
            | Self::OutsidePrefix { .. }
            | Self::Other { .. } => Class::Transient,
            Self::File { source, .. } => {
                match source.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
                    Some(std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
                        Class::Changed
                    }
                    Some(std::io::ErrorKind::PermissionDenied) => Class::Refused,
                    _ => Class::Transient,
                }
            }
        }
    }

    pub(super) fn bad_key(error: &NameError) -> Self {
        Self::BadKey { reason: error.to_string() }
    }

    /// As the error of an [`object_store::ObjectStore`] for the object at `path`.
    pub(super) fn into_object_store(self, path: &str, dialect: Dialect) -> object_store::Error {
        let path = path.to_owned();
        match &self {
            Self::Gone { .. } => object_store::Error::NotFound { path, source: Box::new(self) },
            Self::File { .. } if self.class() == Class::Changed => {
                object_store::Error::NotFound { path, source: Box::new(self) }
            }
            Self::Changed { .. } | Self::ChangedMeanwhile { .. } | Self::FileChanged { .. } => {
                object_store::Error::Precondition { path, source: Box::new(self) }
            }
            Self::NotModified { .. } => {
                object_store::Error::NotModified { path, source: Box::new(self) }
            }
            Self::AccessDenied { .. } => {
                object_store::Error::PermissionDenied { path, source: Box::new(self) }
            }
            Self::NoCredentials { .. } | Self::AccessKey { .. } | Self::Signature { .. } => {
                object_store::Error::Unauthenticated { path, source: Box::new(self) }
            }
            Self::Unsupported(_) => object_store::Error::NotSupported { source: Box::new(self) },
            _ => {
                let store = match dialect {
                    Dialect::Oss => "oss",
                    Dialect::S3 => "s3",
                    Dialect::File => "file",
                };
                object_store::Error::Generic { store, source: Box::new(self) }
            }
        }
    }
}

/// The error that another wraps. An [`std::io::Error`]'s own source skips what it wraps.
pub(super) fn beneath<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e (dyn Error + 'static)> {
    match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        Some(wrapped) => Some(wrapped),
        None => error.source(),
    }
}

/// The [`StoreError`] inside an error of [`super::Source::objects`], however deep decorators have
/// wrapped it; an error that holds none becomes the nearest equivalent.
pub fn explain(error: object_store::Error) -> StoreError {
    let mut below: Option<&(dyn Error + 'static)> = Some(&error);
    while let Some(inner) = below {
        if let Some(found) = inner.downcast_ref::<StoreError>() {
            return found.clone();
        }
        below = beneath(inner);
    }
    let file = |path: String, kind: std::io::ErrorKind| StoreError::File {
        path: PathBuf::from(path),
        source: Arc::new(std::io::Error::from(kind)),
    };
    match error {
        object_store::Error::NotFound { path, .. } => file(path, std::io::ErrorKind::NotFound),
        object_store::Error::PermissionDenied { path, .. } => {
            file(path, std::io::ErrorKind::PermissionDenied)
        }
        object_store::Error::Precondition { path, .. }
        | object_store::Error::NotModified { path, .. } => {
            StoreError::FileChanged { path: PathBuf::from(path) }
        }
        error => StoreError::Other { source: Arc::new(error) },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn changed() -> StoreError {
        StoreError::FileChanged { path: "a".into() }
    }

    #[test]
    fn an_error_is_found_however_deep_it_is_wrapped() {
        let wrap = |source: Box<dyn Error + Send + Sync>| object_store::Error::Generic {
            store: "cap",
            source,
        };
        let direct = changed().into_object_store("a", Dialect::File);
        let in_io = std::io::Error::other(changed().into_object_store("a", Dialect::File));
        for error in [
            changed().into_object_store("a", Dialect::Oss),
            wrap(Box::new(direct)),
            wrap(Box::new(wrap(Box::new(in_io)))),
        ] {
            let found = explain(error);
            assert!(matches!(found, StoreError::FileChanged { .. }), "{found:?}");
        }
    }

    #[test]
    fn errors_of_other_stores_have_a_class() {
        let cause = || "cause".into();
        let path = || "a".to_owned();
        for (error, class) in [
            (object_store::Error::NotFound { path: path(), source: cause() }, Class::Changed),
            (object_store::Error::Precondition { path: path(), source: cause() }, Class::Changed),
            (
                object_store::Error::PermissionDenied { path: path(), source: cause() },
                Class::Refused,
            ),
            (object_store::Error::Generic { store: "x", source: cause() }, Class::Transient),
        ] {
            assert_eq!(explain(error).class(), class);
        }
    }

    #[test]
    fn messages_are_one_line_whatever_the_key() {
        let subject = Subject {
            bucket: "models".parse().unwrap(),
            key: Some(Key::new("a\nb\u{1b}[31m").unwrap()),
        };
        assert_eq!(subject.to_string(), r#"object "a\nb\u{1b}[31m" of bucket models"#);
    }
}
