//! The names of things: where objects come from and where they go.
//!
//! Each type checks its invariants once, when it is made; everything behind it relies on them.
//! Nothing here does I/O.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest key in bytes: OSS takes 1,023, S3 1,024, a local path up to 4,095.
pub const MAX_KEY: usize = 4095;

/// The longest segment of a path in bytes (NAME_MAX of every Linux file system in use).
pub const MAX_SEGMENT: usize = 255;

/// The longest relative path in bytes (PATH_MAX less the closing NUL).
pub const MAX_PATH: usize = 4095;

/// The directory of the volume root that is ours; no object may be written below it.
pub const OWN_DIRECTORY: &str = ".ossvp";

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a bucket name.
    #[error(
        "bucket name {0:?}: 3 to 63 characters, lower-case letters, digits and hyphens (dots for s3://), neither first nor last a hyphen"
    )]
    Bucket(String),
    /// Not a key.
    #[error("a key has 1 to {MAX_KEY} bytes, this one has {0}")]
    KeyLength(usize),
    /// Not a relative path.
    #[error("{path:?} is no path inside a volume: {reason}")]
    Path {
        /// The refused path.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Not a source.
    #[error(
        "source {0:?}: expected oss://bucket/prefix/, s3://bucket/prefix/ or file:///directory/"
    )]
    Source(String),
}

/// A bucket's name.
///
/// 3 to 63 bytes of `a-z`, `0-9`, `-` (and `.`, which S3 allows), neither first nor last a hyphen or
/// a dot (Alibaba Cloud OSS, "Object naming conventions"; Amazon S3, "Bucket naming rules").
///
/// ```
/// use ossvp::keys::Bucket;
/// assert!("training-data".parse::<Bucket>().is_ok());
/// for bad in ["", "ab", "UPPER", "-abc", "abc-", "a_b_c", "a/b/c"] {
///     assert!(bad.parse::<Bucket>().is_err(), "{bad}");
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bucket(String);

impl Bucket {
    /// The name as it stands in a URL.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Bucket {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
        let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = name.as_bytes();
        let fits = (3..=63).contains(&bytes.len())
            && bytes.iter().copied().all(inner)
            && bytes.first().copied().is_some_and(edge)
            && bytes.last().copied().is_some_and(edge);
        if fits { Ok(Self(name.to_owned())) } else { Err(NameError::Bucket(name.to_owned())) }
    }
}

impl TryFrom<String> for Bucket {
    type Error = NameError;
    fn try_from(name: String) -> Result<Self, NameError> {
        name.parse()
    }
}

impl From<Bucket> for String {
    fn from(bucket: Bucket) -> Self {
        bucket.0
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An object's key, exact: any UTF-8, 1 to [`MAX_KEY`] bytes.
///
/// Keys order as a listing does: by bytes.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Clone for Key {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }

    // the derived one would not use the memory again
    fn clone_from(&mut self, source: &Self) {
        self.0.clone_from(&source.0);
    }
}

impl Key {
    /// Takes a key as the source lists it.
    ///
    /// # Errors
    /// [`NameError::KeyLength`] if it is empty or longer than any source allows.
    pub fn new(key: impl Into<String>) -> Result<Self, NameError> {
        let key = key.into();
        if key.is_empty() || key.len() > MAX_KEY {
            return Err(NameError::KeyLength(key.len()));
        }
        Ok(Self(key))
    }

    /// The key's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Quoted, with control characters escaped: a key may hold a newline, and messages are one line.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// What the wanted keys begin with: a string prefix, as OSS means it, without regard to `/`.
///
/// ```
/// use ossvp::keys::{Key, Prefix};
/// let relative = |prefix: &str, key: &str| {
///     Prefix::new(prefix).relative(&Key::new(key).unwrap()).map(str::to_owned)
/// };
/// // ends in `/` or is empty: what follows the prefix
/// assert_eq!(relative("data/", "data/a/b").as_deref(), Some("a/b"));
/// assert_eq!(relative("", "data/a").as_deref(), Some("data/a"));
/// // otherwise: what follows the prefix's last `/`
/// assert_eq!(relative("data/mo", "data/model.bin").as_deref(), Some("model.bin"));
/// assert_eq!(relative("mo", "model/a").as_deref(), Some("model/a"));
/// // the placeholder that is the prefix itself is the volume root
/// assert_eq!(relative("data/", "data/").as_deref(), Some(""));
/// assert_eq!(relative("data/", "other/a"), None);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Prefix(String);

impl Prefix {
    /// Takes a prefix literally; the empty one is the whole bucket.
    pub fn new(prefix: impl Into<String>) -> Self {
        Self(prefix.into())
    }

    /// The prefix's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// How much of the prefix is no part of the path in the volume: all up to its last `/`.
    pub(crate) fn parent_len(&self) -> usize {
        self.0.rfind('/').map_or(0, |slash| slash + 1)
    }

    /// Whether `key` is under this prefix.
    pub fn holds(&self, key: &Key) -> bool {
        // an empty text has no memory, and to compare with that takes some processors 80 ns
        self.0.is_empty() || key.as_str().starts_with(&self.0)
    }

    /// The part of `key` that becomes the path in the volume, or `None` if the key is not under
    /// this prefix.
    pub fn relative<'k>(&self, key: &'k Key) -> Option<&'k str> {
        self.holds(key).then(|| &key.as_str()[self.parent_len()..])
    }

    /// The key that `relative` names under this prefix; the inverse of [`Prefix::relative`].
    ///
    /// # Errors
    /// [`NameError::KeyLength`] as for [`Key::new`].
    pub fn key(&self, relative: &str) -> Result<Key, NameError> {
        Key::new(format!("{}{relative}", &self.0[..self.parent_len()]))
    }
}

/// A path inside the volume.
///
/// - relative, not empty, at most [`MAX_PATH`] bytes
/// - no segment is empty, `.` or `..`, holds a NUL or is longer than [`MAX_SEGMENT`] bytes
/// - its first segment is not [`OWN_DIRECTORY`] in any case
///
/// ```
/// use ossvp::keys::VolumePath;
/// assert!("a/b c/\u{1f600}".parse::<VolumePath>().is_ok());
/// let long = "x".repeat(256);
/// for bad in ["", "/a", "a//b", "a/", "a/./b", "../a", "a\0b", ".ossvp/x", ".OSSVP", &long] {
///     assert!(bad.parse::<VolumePath>().is_err(), "{bad}");
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumePath(String);

impl VolumePath {
    /// Takes a path as it is.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn new(path: String) -> Result<Self, &'static str> {
        if path.len() > MAX_PATH {
            return Err("more than 4095 bytes");
        }
        let mut segments = path.as_bytes().split(|byte| *byte == b'/');
        if segments.clone().next().is_some_and(is_own_directory) {
            return Err("the directory .ossvp is ossvp's own");
        }
        if let Some(reason) = segments.find_map(refuse_segment) {
            return Err(reason);
        }
        Ok(Self(path))
    }

    /// The path's text, relative to the volume root.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The directory that holds it, or `None` at the volume root.
    pub fn parent(&self) -> Option<&str> {
        self.0.rsplit_once('/').map(|(parent, _)| parent)
    }

    /// Its last segment.
    pub fn name(&self) -> &str {
        self.0.rsplit_once('/').map_or(self.0.as_str(), |(_, name)| name)
    }
}

/// Why a single segment cannot stand in a [`VolumePath`], if it cannot.
fn refuse_segment(segment: &[u8]) -> Option<&'static str> {
    match segment {
        b"" => Some("an empty segment"),
        b"." => Some("a segment \".\""),
        b".." => Some("a segment \"..\""),
        _ if segment.len() > MAX_SEGMENT => Some("a segment of more than 255 bytes"),
        _ if segment.contains(&0) => Some("a NUL character"),
        _ => None,
    }
}

/// Whether `segment`, as the first of a path, names [`OWN_DIRECTORY`]. Case is ignored because
/// some file systems ignore it.
pub(crate) fn is_own_directory(segment: &[u8]) -> bool {
    segment.eq_ignore_ascii_case(OWN_DIRECTORY.as_bytes())
}

impl FromStr for VolumePath {
    type Err = NameError;

    fn from_str(path: &str) -> Result<Self, NameError> {
        Self::new(path.to_owned())
            .map_err(|reason| NameError::Path { path: path.to_owned(), reason })
    }
}

impl fmt::Display for VolumePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// Where two texts cease to be the same, in bytes; never within a character.
pub(crate) fn fork(one: &str, other: &str) -> usize {
    let same = one.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
    one.floor_char_boundary(same)
}

/// Lower-case hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// Which protocol a source speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    /// Alibaba Cloud OSS: `OSS4-HMAC-SHA256`, `x-oss-*`.
    Oss,
    /// Amazon S3 and what is compatible: `AWS4-HMAC-SHA256`, `x-amz-*`.
    S3,
    /// A local directory.
    File,
}

/// Where the objects are: `oss://bucket/prefix/`, `s3://bucket/prefix/` or `file:///directory/`.
///
/// For `file://`, the directory is the bucket and the prefix is empty.
///
/// ```
/// use ossvp::keys::SourceUrl;
/// let source: SourceUrl = "oss://models/Qwen3-32B/".parse()?;
/// assert_eq!(source.prefix().as_str(), "Qwen3-32B/");
/// assert_eq!(source.to_string(), "oss://models/Qwen3-32B/");
/// // OSS has no keys with a leading `/`, so one in front of the prefix is dropped
/// assert_eq!("oss://models//many-files/".parse::<SourceUrl>()?.prefix().as_str(), "many-files/");
/// assert_eq!("oss://models".parse::<SourceUrl>()?.prefix().as_str(), "");
/// for bad in ["models/x", "oss://", "gs://models/x", "file://relative/dir", "oss://UP/x"] {
///     assert!(bad.parse::<SourceUrl>().is_err(), "{bad}");
/// }
/// # Ok::<(), ossvp::keys::NameError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceUrl {
    /// A prefix of a bucket, in the OSS or the S3 dialect.
    Bucket {
        /// [`Dialect::Oss`] or [`Dialect::S3`].
        dialect: Dialect,
        /// The bucket.
        bucket: Bucket,
        /// The prefix in it.
        prefix: Prefix,
    },
    /// A local directory, absolute.
    Directory(PathBuf),
}

impl SourceUrl {
    /// The protocol that this URL asks for.
    pub fn dialect(&self) -> Dialect {
        match self {
            Self::Bucket { dialect, .. } => *dialect,
            Self::Directory(_) => Dialect::File,
        }
    }

    /// The prefix that every wanted key begins with.
    pub fn prefix(&self) -> Prefix {
        match self {
            Self::Bucket { prefix, .. } => prefix.clone(),
            Self::Directory(_) => Prefix::default(),
        }
    }
}

impl FromStr for SourceUrl {
    type Err = NameError;

    fn from_str(url: &str) -> Result<Self, NameError> {
        let refuse = || NameError::Source(url.to_owned());
        let (scheme, rest) = url.split_once("://").ok_or_else(refuse)?;
        let dialect = match scheme {
            "oss" => Dialect::Oss,
            "s3" => Dialect::S3,
            "file" if rest.starts_with('/') => return Ok(Self::Directory(PathBuf::from(rest))),
            _ => return Err(refuse()),
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        // a key pair in front of the bucket belongs into no message about a bucket's name
        if bucket.is_empty() || bucket.contains(['@', ':']) {
            return Err(refuse());
        }
        let prefix = match dialect {
            Dialect::Oss => prefix.trim_start_matches('/'),
            Dialect::S3 | Dialect::File => prefix,
        };
        Ok(Self::Bucket { dialect, bucket: bucket.parse()?, prefix: Prefix::new(prefix) })
    }
}

impl fmt::Display for SourceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bucket { dialect: Dialect::S3, bucket, prefix } => {
                write!(f, "s3://{bucket}/{}", prefix.as_str())
            }
            Self::Bucket { bucket, prefix, .. } => write!(f, "oss://{bucket}/{}", prefix.as_str()),
            Self::Directory(path) => write!(f, "file://{}", path.display()),
        }
    }
}
