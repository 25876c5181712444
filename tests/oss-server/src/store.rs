//! What the server holds: buckets, their objects, credentials, uploads in progress.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex, OnceLock, RwLock};

use bytes::Bytes;
use chrono::{DateTime, Utc};

use crate::put::PutOptions;
use crate::synthetic::{self, Generated, GeneratedObject};

/// The body of an object.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    Stored(Bytes),
    Synthetic { seed: u64, len: u64 },
}

impl Content {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Content::Stored(bytes) => bytes.len() as u64,
            Content::Synthetic { len, .. } => *len,
        }
    }

    /// At least one and at most `max` bytes from `offset`, without a copy.
    pub(crate) fn slice(&self, offset: u64, max: u64) -> Bytes {
        match self {
            Content::Stored(bytes) => {
                let end = (offset.saturating_add(max)).min(bytes.len() as u64);
                bytes.slice(offset as usize..end as usize)
            }
            Content::Synthetic { seed, len } => {
                synthetic::slice(*seed, offset, max.min(len - offset))
            }
        }
    }
}

/// What an object is, as `x-oss-object-type` and the listing's `Type` name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Normal,
    Multipart,
    Appendable,
    Symlink(String),
}

impl Kind {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Kind::Normal => "Normal",
            Kind::Multipart => "Multipart",
            Kind::Appendable => "Appendable",
            Kind::Symlink(_) => "Symlink",
        }
    }
}

/// How the CRC of an object comes about.
#[derive(Debug)]
pub(crate) enum Crc {
    Known(u64),
    /// An object older than the feature, or a copy: the header is absent.
    Omitted,
    /// Computed from a synthetic body when first asked for.
    Lazy(OnceLock<u64>),
}

/// One object with what its answers say about it.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) content: Content,
    pub(crate) crc: Crc,
    /// With its quotes.
    pub(crate) etag: String,
    pub(crate) modified: DateTime<Utc>,
    pub(crate) kind: Kind,
    pub(crate) storage_class: String,
    /// The value of `x-oss-restore`; an archived object without `ongoing-request="false"` is
    /// refused.
    pub(crate) restore: Option<String>,
    /// Content-Type, Content-MD5 and other headers to answer with as they are.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) metadata: Vec<(String, String)>,
    /// `(algorithm, value)`: `("sha256", base64)` becomes `x-amz-checksum-sha256`.
    pub(crate) checksum: Option<(String, String)>,
    /// FULL_OBJECT or COMPOSITE.
    pub(crate) checksum_type: String,
}

impl Object {
    pub(crate) fn crc64(&self) -> Option<u64> {
        match (&self.crc, &self.content) {
            (Crc::Known(crc), _) => Some(*crc),
            (Crc::Lazy(cell), Content::Synthetic { seed, len }) => {
                Some(*cell.get_or_init(|| synthetic::crc64(*seed, *len)))
            }
            _ => None,
        }
    }

    /// Whether a GET is refused with InvalidObjectState.
    pub(crate) fn is_frozen(&self) -> bool {
        matches!(self.storage_class.as_str(), "Archive" | "ColdArchive" | "DeepColdArchive")
            && !self.restore.as_deref().is_some_and(|r| r.contains("ongoing-request=\"false\""))
    }
}

pub(crate) fn crc64(bytes: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Xz, bytes)
}

pub(crate) fn upper_hex(bytes: &[u8]) -> String {
    hex(bytes).to_ascii_uppercase()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        write!(out, "{byte:02x}").expect("writing to a String does not fail");
        out
    })
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// A bucket: stored objects over generated ones.
#[derive(Debug, Default)]
pub(crate) struct Bucket {
    pub(crate) region: String,
    pub(crate) public: bool,
    /// `None` hides a generated object that was deleted.
    stored: BTreeMap<String, Option<Arc<Object>>>,
    pub(crate) generated: Vec<Generated>,
    /// Generated objects large enough that their CRC is worth keeping.
    cached: Mutex<HashMap<String, Arc<Object>>>,
}

/// What a listing says of an object.
#[derive(Debug)]
pub(crate) enum Entry<'a> {
    Stored(&'a Object),
    Generated(GeneratedObject),
}

impl Bucket {
    pub(crate) fn new(region: &str, public: bool) -> Self {
        Self { region: region.into(), public, ..Self::default() }
    }

    pub(crate) fn insert(&mut self, key: &str, object: Object) {
        self.stored.insert(key.to_owned(), Some(Arc::new(object)));
    }

    pub(crate) fn remove(&mut self, key: &str) -> bool {
        let existed = self.get(key).is_some();
        if self.generated.iter().any(|set| set.index_of(key).is_some()) {
            self.stored.insert(key.to_owned(), None);
        } else {
            self.stored.remove(key);
        }
        existed
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.walk("").next().is_none()
    }

    pub(crate) fn get(&self, key: &str) -> Option<Arc<Object>> {
        if let Some(stored) = self.stored.get(key) {
            return stored.clone();
        }
        let (set, index) = self.generated.iter().find_map(|set| Some((set, set.index_of(key)?)))?;
        let generated = set.object(index);
        let large = generated.size > 4 << 20;
        let mut cached = self.cached.lock().expect("no panic while the lock is held");
        if let Some(object) = cached.get(key) {
            return Some(object.clone());
        }
        let content = Content::Synthetic { seed: generated.seed, len: generated.size };
        let modified = DateTime::from_timestamp(generated.modified(), 0);
        let options = PutOptions { modified, ..PutOptions::new() };
        let object = Arc::new(Object { etag: generated.etag(), ..options.into_object(content) });
        if large {
            cached.insert(key.to_owned(), object.clone());
        }
        Some(object)
    }

    /// All objects from `start` on, in the order of their keys.
    pub(crate) fn walk(&self, start: &str) -> Walk<'_> {
        Walk {
            stored: self
                .stored
                .range::<str, _>((Bound::Included(start), Bound::Unbounded))
                .peekable(),
            generated: self
                .generated
                .iter()
                .filter_map(|set| Cursor::new(set, set.lower_bound(start)))
                .collect(),
            key: String::new(),
            bucket: self,
        }
    }
}

/// The next object of one generated set.
#[derive(Debug)]
struct Cursor<'a> {
    set: &'a Generated,
    index: u64,
    key: String,
}

impl<'a> Cursor<'a> {
    fn new(set: &'a Generated, index: u64) -> Option<Self> {
        let mut key = String::new();
        set.key(index, &mut key);
        (index < set.count).then_some(Self { set, index, key })
    }
}

type Stored<'a> =
    std::iter::Peekable<std::collections::btree_map::Range<'a, String, Option<Arc<Object>>>>;

/// A merge of the stored and the generated objects.
pub(crate) struct Walk<'a> {
    stored: Stored<'a>,
    generated: Vec<Cursor<'a>>,
    /// The key last returned: kept here so that a page of a million keys allocates nothing a key.
    key: String,
    bucket: &'a Bucket,
}

impl<'a> Walk<'a> {
    /// The next object; its key is then [`Walk::key`].
    pub(crate) fn next(&mut self) -> Option<Entry<'a>> {
        loop {
            let first = self
                .generated
                .iter()
                .enumerate()
                .min_by(|(_, a), (_, b)| a.key.cmp(&b.key))
                .map(|(i, _)| i);
            let stored = self.stored.peek().map(|(key, _)| key.as_str());
            let from_generated = match (first, stored) {
                (None, None) => return None,
                (Some(i), Some(key)) => self.generated[i].key.as_str() < key,
                (Some(_), None) => true,
                (None, Some(_)) => false,
            };
            if let (true, Some(i)) = (from_generated, first) {
                let cursor = &mut self.generated[i];
                self.key.clear();
                self.key.push_str(&cursor.key);
                let object = cursor.set.object(cursor.index);
                self.advance(i);
                return Some(Entry::Generated(object));
            }
            let (key, object) = self.stored.next()?;
            // A stored object stands before a generated one of the same key.
            while let Some(i) = self.generated.iter().position(|cursor| cursor.key == *key) {
                self.advance(i);
            }
            if let Some(object) = object {
                self.key.clear();
                self.key.push_str(key);
                return Some(Entry::Stored(object));
            }
        }
    }

    /// The key of what [`Walk::next`] returned last.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// Goes on at the first key at or after `start`: how a delimiter skips a folder.
    pub(crate) fn seek(&mut self, start: &str) {
        *self = self.bucket.walk(start);
    }

    fn advance(&mut self, i: usize) {
        let cursor = &mut self.generated[i];
        cursor.index += 1;
        if cursor.index < cursor.set.count {
            cursor.set.key(cursor.index, &mut cursor.key);
        } else {
            self.generated.swap_remove(i);
        }
    }
}

/// A key pair the server accepts.
#[derive(Debug, Clone)]
pub(crate) struct Credential {
    pub(crate) secret: String,
    pub(crate) token: Option<String>,
    pub(crate) expires: Option<DateTime<Utc>>,
    /// Whether it may touch buckets at all; without, a good signature meets AccessDenied.
    pub(crate) allowed: bool,
}

impl Store {
    /// Looks at the buckets.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&BTreeMap<String, Bucket>) -> T) -> T {
        look(&self.buckets.read().expect("no panic while the lock is held"))
    }

    pub(crate) fn uploads(&self) -> std::sync::MutexGuard<'_, HashMap<String, Upload>> {
        self.uploads.lock().expect("no panic while the lock is held")
    }
}

/// Parts uploaded so far.
#[derive(Debug, Default)]
pub(crate) struct Upload {
    pub(crate) bucket: String,
    pub(crate) key: String,
    pub(crate) options: PutOptions,
    pub(crate) parts: BTreeMap<u32, Bytes>,
}

/// All the server's state that requests change.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) buckets: RwLock<BTreeMap<String, Bucket>>,
    pub(crate) credentials: RwLock<HashMap<String, Credential>>,
    pub(crate) uploads: Mutex<HashMap<String, Upload>>,
}
