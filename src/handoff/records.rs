//! What a run writes down: marker, outcome, progress lines, report.

use serde::{Deserialize, Serialize};

use super::args::{ShardOf, Unmappable};
use super::exit::ExitCode;
use crate::keys::Dialect;

/// The marker's format.
pub const MARKER_VERSION: u32 = 1;

/// The most bytes an outcome has. The kubelet keeps 4 KiB of a termination message, and 2 KiB where
/// it falls back to logs; half of the former leaves room for either.
pub const OUTCOME_LIMIT: usize = 2048;

/// What makes two runs the same: where the objects come from and which of them are taken.
///
/// Not the endpoint: an internal and a public one serve the same bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceIdentity {
    /// The protocol.
    pub dialect: Dialect,
    /// The bucket, or the directory of a `file://` source.
    pub bucket: String,
    /// The prefix.
    pub prefix: String,
    /// Globs of `--include`, in order.
    pub include: Vec<String>,
    /// Globs of `--exclude`, in order.
    pub exclude: Vec<String>,
    /// What becomes of keys that are no safe path.
    pub unmappable: Unmappable,
}

impl std::fmt::Display for SourceIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.dialect {
            Dialect::Oss => write!(f, "oss://{}/{}", self.bucket, self.prefix),
            Dialect::S3 => write!(f, "s3://{}/{}", self.bucket, self.prefix),
            Dialect::File => write!(f, "file://{}", self.bucket),
        }?;
        match self.include.len() + self.exclude.len() {
            0 => Ok(()),
            1 => f.write_str(" (1 filter)"),
            n => write!(f, " ({n} filters)"),
        }
    }
}

impl SourceIdentity {
    /// The source in words, with as much of it as tells it from `other`.
    pub fn told_from(&self, other: &Self) -> String {
        let mut text = self.to_string();
        if text != other.to_string() {
            return text;
        }
        if self.unmappable != other.unmappable {
            let mode = match self.unmappable {
                Unmappable::Fail => "fail",
                Unmappable::Escape => "escape",
                Unmappable::Skip => "skip",
            };
            text += &format!(" with --unmappable {mode}");
        }
        if (&self.include, &self.exclude) != (&other.include, &other.exclude) {
            for (flag, globs) in [("include", &self.include), ("exclude", &self.exclude)] {
                globs.iter().for_each(|glob| text += &format!(" --{flag} {glob:?}"));
            }
        }
        text
    }
}

/// By what a file's bytes were found to be the object's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Checked {
    /// CRC-64/XZ, which OSS states.
    Crc64,
    /// CRC-64/NVME, which S3 states.
    Crc64Nvme,
    /// CRC-32C (Castagnoli).
    Crc32c,
    /// CRC-32 (ISO-HDLC).
    Crc32,
    /// SHA-256.
    Sha256,
    /// MD5: Content-MD5, or an ETag that is one.
    Md5,
    /// The source stated nothing.
    Unverified,
    /// `--verify off`.
    Off,
}

/// How many objects were verified by each kind of checksum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// By CRC-64/XZ.
    pub crc64: u64,
    /// By CRC-64/NVME.
    pub crc64nvme: u64,
    /// By CRC-32C.
    pub crc32c: u64,
    /// By CRC-32.
    pub crc32: u64,
    /// By SHA-256.
    pub sha256: u64,
    /// By MD5.
    pub md5: u64,
    /// Objects for which the source stated nothing.
    pub unverified: u64,
    /// Objects that were not compared, because of `--verify off`.
    pub off: u64,
}

impl Tally {
    /// Counts one object.
    pub fn count(&mut self, checked: Checked) {
        *match checked {
            Checked::Crc64 => &mut self.crc64,
            Checked::Crc64Nvme => &mut self.crc64nvme,
            Checked::Crc32c => &mut self.crc32c,
            Checked::Crc32 => &mut self.crc32,
            Checked::Sha256 => &mut self.sha256,
            Checked::Md5 => &mut self.md5,
            Checked::Unverified => &mut self.unverified,
            Checked::Off => &mut self.off,
        } += 1;
    }

    /// Counts what `other` counted.
    pub fn add(&mut self, other: &Self) {
        let Self { crc64, crc64nvme, crc32c, crc32, sha256, md5, unverified, off } = other;
        self.crc64 += crc64;
        self.crc64nvme += crc64nvme;
        self.crc32c += crc32c;
        self.crc32 += crc32;
        self.sha256 += sha256;
        self.md5 += md5;
        self.unverified += unverified;
        self.off += off;
    }

    /// Objects whose bytes were compared with a checksum of the source.
    pub fn verified(&self) -> u64 {
        let Self { crc64, crc64nvme, crc32c, crc32, sha256, md5, unverified: _, off: _ } = *self;
        crc64 + crc64nvme + crc32c + crc32 + sha256 + md5
    }
}

/// `.ossvp/complete.json`: the one bit that users trust, and what stands behind it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Marker {
    /// [`MARKER_VERSION`].
    pub version: u32,
    /// What the volume was filled from.
    pub source: SourceIdentity,
    /// Files in the volume that are objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Directories made for `dir/` placeholders.
    pub directories: u64,
    /// Objects that the filters left out.
    pub skipped: u64,
    /// Keys left out because they are no safe path (`--unmappable skip`).
    pub unmappable: u64,
    /// Objects by the kind of checksum that vouches for them.
    pub verified: Tally,
    /// Whether `.ossvp/SHA256SUMS` was written.
    pub sha256: bool,
    /// SHA-256 of the manifest, 64 hex digits; of several manifests, that of their digests' digits
    /// in the shards' order.
    pub manifest_sha256: String,
    /// SHA-256 over the listing (key, size, ETag of every object, in order), 64 hex digits.
    pub listing_digest: String,
    /// Which share of the objects this marker speaks of.
    pub shard: ShardOf,
    /// How many workers' manifests stand behind it: one in `.ossvp`, or, of a whole volume that
    /// was filled in shares, one in each `.ossvp/shard-I-of-N`.
    pub shards: u32,
    /// Start of the run that finished the volume (RFC 3339).
    pub started: String,
    /// When the volume was complete and synced (RFC 3339).
    pub finished: String,
    /// Bytes fetched by that run, divided by its seconds.
    pub bytes_per_s: u64,
    /// The version that wrote it.
    pub ossvp_version: String,
}

/// How a run ended: at most [`OUTCOME_LIMIT`] bytes of JSON for any input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Always `outcome`.
    pub ossvp: String,
    /// 1.
    pub v: u32,
    /// The exit code.
    pub code: u8,
    /// One line: what was done, or the cause of the failure and what helps.
    pub message: String,
    /// The source, filters as a digest.
    pub source: String,
    /// Whether the whole volume is complete. A shard that is not the last to finish has completed
    /// its share alone.
    #[serde(default)]
    pub whole: bool,
    /// Objects in the volume so far.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Objects verified by a checksum of the source.
    pub verified: u64,
    /// Objects without one.
    pub unverified: u64,
    /// Bytes fetched a second by this run.
    pub bytes_per_s: u64,
}

impl Outcome {
    /// An outcome with its code and message; the figures start at zero.
    pub fn new(code: ExitCode, message: impl Into<String>, source: impl Into<String>) -> Self {
        Self {
            ossvp: "outcome".to_owned(),
            v: 1,
            code: code.number(),
            message: message.into(),
            source: source.into(),
            whole: false,
            objects: 0,
            bytes: 0,
            verified: 0,
            unverified: 0,
            bytes_per_s: 0,
        }
    }

    /// One line of JSON, at most [`OUTCOME_LIMIT`] bytes: long strings are cut and end in `…`.
    ///
    /// ```
    /// use ossvp::handoff::{ExitCode, OUTCOME_LIMIT, Outcome};
    /// let long = "\u{1}\"\n".repeat(5000);
    /// let line = Outcome::new(ExitCode::Source, long.clone(), long).to_json();
    /// assert!(line.len() <= OUTCOME_LIMIT);
    /// let back: Outcome = serde_json::from_str(&line).unwrap();
    /// assert_eq!(back.code, 3);
    /// assert!(back.message.ends_with('…'));
    /// ```
    pub fn to_json(&self) -> String {
        // a message says more than a source; JSON may escape one byte to six, hence the loop
        let mut cut = self.clone();
        let (mut message_bytes, mut source_bytes) = (1400, 300);
        loop {
            let line = json(&cut);
            if line.len() <= OUTCOME_LIMIT {
                return line;
            }
            cut.message = shortened(&self.message, message_bytes);
            cut.source = shortened(&self.source, source_bytes);
            message_bytes = message_bytes * 3 / 4;
            source_bytes = source_bytes * 3 / 4;
        }
    }
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain strings and numbers always serialise")
}

/// `text`, or its first `bytes` bytes (at a character's end) and `…`.
pub(crate) fn shortened(text: &str, bytes: usize) -> String {
    if text.len() <= bytes {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(bytes)])
}

/// One line of progress on stderr.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Always `progress`.
    pub ossvp: String,
    /// 1.
    pub v: u32,
    /// Objects in the volume.
    pub objects: u64,
    /// Bytes in the volume, those of unfinished objects included.
    pub bytes: u64,
    /// Bytes listed so far.
    pub bytes_total: u64,
    /// Whether `bytes_total` is final.
    pub listing_done: bool,
    /// Bytes a second over the last seconds.
    pub bytes_per_s: u64,
    /// Seconds until the end at that rate, once the listing is done.
    pub eta_s: Option<u64>,
}

impl Progress {
    /// One line of JSON.
    pub fn to_json(&self) -> String {
        json(self)
    }
}

/// What a run did and what it took (`--report`).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Always `report`.
    pub ossvp: String,
    /// 1.
    pub v: u32,
    /// How it ended.
    pub outcome: Outcome,
    /// The marker, if the volume is complete.
    pub marker: Option<Marker>,
    /// What would be done (`--dry-run`).
    pub plan: Option<Plan>,
    /// What it took.
    pub figures: Figures,
}

/// What a run would do (`--dry-run`), exact.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Files that the volume will have.
    pub objects: u64,
    /// Their bytes, as listed.
    pub bytes: u64,
    /// Directories made for `dir/` placeholders.
    pub directories: u64,
    /// Objects that would be fetched.
    pub fetch_objects: u64,
    /// Their bytes, as listed.
    pub fetch_bytes: u64,
    /// Files that would be removed, because the source no longer lists them.
    pub remove_objects: u64,
    /// Objects that the filters leave out.
    pub skipped: u64,
    /// Keys left out because they are no safe path.
    pub unmappable: u64,
    /// Bytes that the volume takes: free, committed or reserved. `None` without a volume.
    pub capacity: Option<u64>,
    /// Whether bytes and files fit. `None` without a volume.
    pub fits: Option<bool>,
    /// Objects by size: bound in bytes (a power of four, the first one below which all of the class
    /// are), objects, bytes.
    pub sizes: Vec<(u64, u64, u64)>,
}

impl Plan {
    /// Counts an object of `size` bytes in its class.
    pub fn count(&mut self, size: u64) {
        // what is listed may add up to more than there can be
        self.objects += 1;
        self.bytes = self.bytes.saturating_add(size);
        // 4^k above the size, from 4 KiB on: what is smaller costs a request all the same
        let mut bound = 4096_u64;
        while bound <= size && bound < 1 << 62 {
            bound <<= 2;
        }
        match self.sizes.binary_search_by_key(&bound, |(bound, ..)| *bound) {
            Ok(at) => {
                self.sizes[at].1 += 1;
                self.sizes[at].2 = self.sizes[at].2.saturating_add(size);
            }
            Err(at) => self.sizes.insert(at, (bound, 1, size)),
        }
    }
}

/// The figures of one run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Figures {
    /// Seconds from start to end.
    pub seconds: f64,
    /// Seconds until the listing was done.
    pub seconds_listing: f64,
    /// Seconds from the first fetch to the last commit.
    pub seconds_fetching: f64,
    /// Seconds of waiting for the cap, summed over all connections.
    pub seconds_capped: f64,
    /// Seconds of file calls (making, writing, naming, recording), summed over all of them.
    pub seconds_writing: f64,
    /// Seconds of the final sync.
    pub seconds_syncing: f64,
    /// Objects listed under the prefix.
    pub objects_listed: u64,
    /// Bytes listed under the prefix.
    pub bytes_listed: u64,
    /// Objects fetched by this run.
    pub objects_fetched: u64,
    /// Bytes fetched by this run, those fetched again included.
    pub bytes_fetched: u64,
    /// Objects that were in the volume already.
    pub objects_kept: u64,
    /// Files removed because the source no longer lists them.
    pub objects_removed: u64,
    /// Parts of large objects that were in the volume already.
    pub parts_kept: u64,
    /// Objects fetched again because a checksum did not match.
    pub refetched: u64,
    /// LIST requests sent.
    pub requests_list: u64,
    /// GET requests sent.
    pub requests_get: u64,
    /// HEAD requests sent.
    pub requests_head: u64,
    /// Requests repeated.
    pub retries: u64,
    /// Requests sent beside one that was waited for too long.
    pub hedged: u64,
    /// Answers that asked for fewer requests (429, 503, `x-oss-qos-delay-time`).
    pub throttled: u64,
    /// Requests in flight, one sample a second: seconds from start, level.
    pub concurrency: Vec<(u32, u32)>,
    /// CPU seconds, user and system.
    pub cpu_seconds: f64,
    /// Peak resident memory in bytes.
    pub peak_rss_bytes: u64,
}
