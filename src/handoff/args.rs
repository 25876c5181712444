//! The command line of `populate` and `verify`, as one type each.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::quantity::{ByteSize, Rate, Span};
use crate::keys::SourceUrl;

/// Which checksums a run insists on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum VerifyMode {
    /// The best checksum that the source states; objects without one are counted as unverified
    Auto,
    /// As auto, but an object without a checksum fails the run
    Require,
    /// Compare nothing
    Off,
}

/// What becomes of a key that is no safe path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Unmappable {
    /// Stop, naming the key
    Fail,
    /// Give it an escaped path of its own
    Escape,
    /// Leave it out and count it
    Skip,
}

/// Whether large objects bypass the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Direct {
    /// On ext4 and xfs
    Auto,
    /// Wherever the file system takes it
    On,
    /// Never
    Off,
}

/// How progress is shown on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProgressStyle {
    /// A bar on a terminal, else JSON lines
    Auto,
    /// A bar
    Bar,
    /// One JSON line every 10 seconds
    Json,
    /// Nothing
    None,
}

/// The form of log lines on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// One worker's share of a volume: shard `index` of `count`.
///
/// ```
/// use ossvp::handoff::ShardOf;
/// assert_eq!("2/8".parse::<ShardOf>()?.to_string(), "2/8");
/// for bad in ["", "1", "8/8", "0/0", "0/257", "-1/2"] {
///     assert!(bad.parse::<ShardOf>().is_err(), "{bad}");
/// }
/// # Ok::<(), String>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ShardOf {
    /// Which share, from 0.
    pub index: u32,
    /// How many shares there are, 1 to [`ShardOf::MOST`].
    pub count: u32,
}

impl ShardOf {
    /// The most shards of one volume. The status of an Indexed Job grows with its indexes
    /// (Kubernetes enhancement 3850); a few hundred are harmless.
    pub const MOST: u32 = 256;
    /// The whole.
    pub const WHOLE: Self = Self { index: 0, count: 1 };
}

impl FromStr for ShardOf {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parts =
            text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match parts {
            Some((index, count)) if index < count && count <= Self::MOST => {
                Ok(Self { index, count })
            }
            _ => Err(format!("shard {text:?}: expected I/N with I below N and N at most 256")),
        }
    }
}

impl fmt::Display for ShardOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

impl TryFrom<String> for ShardOf {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ShardOf> for String {
    fn from(shard: ShardOf) -> Self {
        shard.to_string()
    }
}

/// Fill a directory with the objects under a prefix
#[derive(Debug, Clone, PartialEq, Args)]
pub struct PopulateArgs {
    /// Where the objects are: oss://bucket/prefix/, s3://bucket/prefix/ or file:///directory/
    #[arg(env = "OSSVP_SOURCE")]
    pub source: SourceUrl,

    /// The directory to fill; made if its parent exists. Not needed for a dry run
    #[arg(env = "OSSVP_VOLUME", required_unless_present = "dry_run")]
    pub volume: Option<PathBuf>,

    /// The service's address, e.g. oss-cn-hangzhou-internal.aliyuncs.com; a bare host means https
    /// [default: the region's public endpoint]
    #[arg(long, env = "OSSVP_ENDPOINT", help_heading = "Source")]
    pub endpoint: Option<String>,

    /// The region that requests are signed for, e.g. cn-hangzhou
    #[arg(long, env = "OSSVP_REGION", help_heading = "Source")]
    pub region: Option<String>,

    /// How the bucket is named in a request: auto, virtual (bucket.host), path (host/bucket), cname
    /// (the host is the bucket's); auto is path for an IP address or localhost, else virtual
    #[arg(long, env = "OSSVP_ADDRESSING", help_heading = "Source", default_value = "auto",
          value_parser = ["auto", "virtual", "path", "cname"])]
    pub addressing: String,

    /// Do not sign requests: a public bucket
    #[arg(long, env = "OSSVP_ANONYMOUS", help_heading = "Source")]
    pub anonymous: bool,

    /// PEM file of certificate authorities to trust besides the built-in ones
    #[arg(long, env = "OSSVP_CA_BUNDLE", help_heading = "Source", value_name = "PATH")]
    pub ca_bundle: Option<PathBuf>,

    /// The longest wait for an answer, or for more of one: 500ms, 30s, 2m [default: 30s]
    #[arg(long, env = "OSSVP_TIMEOUT", help_heading = "Source", value_name = "TIME")]
    pub timeout: Option<Span>,

    /// How long to go on trying what brings nothing, three attempts at least [default: 2m, or 8
    /// attempts, whichever is more]
    #[arg(long, env = "OSSVP_RETRY_FOR", help_heading = "Source", value_name = "TIME")]
    pub retry_for: Option<Span>,

    /// Take only objects whose path in the volume matches a glob (* stops at /, ** does not);
    /// repeatable, newline-separated in the environment
    #[arg(
        long,
        env = "OSSVP_INCLUDE",
        help_heading = "Selection",
        value_name = "GLOB",
        value_delimiter = '\n'
    )]
    pub include: Vec<String>,

    /// Leave out objects whose path in the volume matches a glob; wins over --include
    #[arg(
        long,
        env = "OSSVP_EXCLUDE",
        help_heading = "Selection",
        value_name = "GLOB",
        value_delimiter = '\n'
    )]
    pub exclude: Vec<String>,

    /// What becomes of a key that is no safe path
    #[arg(long, env = "OSSVP_UNMAPPABLE", help_heading = "Selection", value_enum,
          default_value_t = Unmappable::Fail)]
    pub unmappable: Unmappable,

    /// Only this worker's share of the objects
    #[arg(long, env = "OSSVP_SHARD", help_heading = "Selection", value_name = "I/N",
          default_value_t = ShardOf::WHOLE)]
    pub shard: ShardOf,

    /// A prefix without objects is not an error
    #[arg(long, env = "OSSVP_ALLOW_EMPTY", help_heading = "Selection")]
    pub allow_empty: bool,

    /// Cap over all connections: 200MB/s, 1.5Gbit/s, or a bare number of MB/s [default: none]
    #[arg(long, env = "OSSVP_THROUGHPUT", help_heading = "Speed", value_name = "RATE")]
    pub throughput: Option<Rate>,

    /// Requests in a second over all connections, listings included [default: as many as the source
    /// grants]
    #[arg(long, env = "OSSVP_REQUEST_RATE", help_heading = "Speed", value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub request_rate: Option<u32>,

    /// Requests in flight, 1 to 4096 [default: finds its level]
    #[arg(long, env = "OSSVP_CONCURRENCY", help_heading = "Speed", value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub concurrency: Option<u32>,

    /// Bytes of one ranged GET, from 64KiB; larger objects are fetched in parts of this size
    /// [default: 8MiB]
    #[arg(long, env = "OSSVP_PART_SIZE", help_heading = "Speed", value_name = "SIZE")]
    pub part_size: Option<ByteSize>,

    /// O_DIRECT for objects in parts: cheaper and nothing left to sync, but the data is not in this
    /// machine's page cache afterwards, so the first read comes from the disk
    #[arg(long, env = "OSSVP_DIRECT", help_heading = "Speed", value_enum,
          default_value_t = Direct::Auto)]
    pub direct: Direct,

    /// Which checksums to insist on
    #[arg(long, env = "OSSVP_VERIFY", help_heading = "Checks", value_enum,
          default_value_t = VerifyMode::Auto)]
    pub verify: VerifyMode,

    /// Also record each file's SHA-256 in .ossvp/SHA256SUMS (for sha256sum -c, run in the volume),
    /// and check it where the source states one
    #[arg(long, env = "OSSVP_SHA256", help_heading = "Checks")]
    pub sha256: bool,

    /// List everything, and check that it maps and fits, before the first object is fetched
    #[arg(long, env = "OSSVP_PLAN_FIRST", help_heading = "Checks")]
    pub plan_first: bool,

    /// Only list and plan: print what would be fetched and whether it fits
    #[arg(long, env = "OSSVP_DRY_RUN", help_heading = "Checks")]
    pub dry_run: bool,

    /// Discard a marker, or what the volume holds of another source, and list anew
    #[arg(long, env = "OSSVP_FORCE", help_heading = "Checks")]
    pub force: bool,

    /// Write how the run ended to this file, at every exit
    #[arg(long, env = "OSSVP_OUTCOME", help_heading = "Output", value_name = "PATH")]
    pub outcome: Option<PathBuf>,

    /// Write the run's figures as JSON to this file; - is stdout
    #[arg(long, env = "OSSVP_REPORT", help_heading = "Output", value_name = "PATH")]
    pub report: Option<PathBuf>,

    /// How progress is shown on stderr
    #[arg(long, env = "OSSVP_PROGRESS", help_heading = "Output", value_enum,
          default_value_t = ProgressStyle::Auto)]
    pub progress: ProgressStyle,
}

/// Read a filled directory again and compare it with its manifest
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct VerifyArgs {
    /// The directory that `ossvp populate` filled
    #[arg(env = "OSSVP_VOLUME")]
    pub volume: PathBuf,
}
