//! `populate`'s arguments, checked: nothing behind this file sees the command line's types raw.

use std::num::NonZeroU32;
use std::path::PathBuf;

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};

use super::verify::Demands;
use crate::handoff::{
    ByteSize, Direct, PopulateArgs, ProgressStyle, Rate, ShardOf, SourceIdentity, Span, Unmappable,
    VerifyMode,
};
use crate::keys::SourceUrl;
use crate::store::{Addressing, Connection};

/// Bytes of one ranged GET. At 100 MB/s a connection it takes 80 ms, so that 20 ms to the first byte
/// cost a fifth of the time, which a few more requests in flight win back; and a part that is lost
/// in a kill costs little.
pub(crate) const PART_SIZE: u64 = 8 << 20;
/// The smallest part size that `--part-size` takes.
const SMALLEST_PART: u64 = 64 << 10;
/// The shortest time that `--timeout` takes.
const SHORTEST_TIMEOUT: std::time::Duration = std::time::Duration::from_millis(10);
/// The most parts of one object: their state is kept in memory while it is fetched, some 120 bytes
/// each. Larger objects get larger parts (5 TB: 500 MB).
const MOST_PARTS: u64 = 10_000;
/// The most bytes of one body frame, which is also what is written at once: as many as are received at
/// once. Measured with 4 objects of 1 GiB, writes of half that took a tenth more CPU time.
const LARGEST_FRAME: usize = 256 << 10;

/// Arguments that cannot be used together, or not at all.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// Not a glob.
    #[error("glob {glob:?} of --include or --exclude")]
    Glob {
        /// As it was given.
        glob: String,
        /// What is wrong with it.
        source: globset::Error,
    },
    /// Too small.
    #[error("--part-size {0}: at least 64KiB")]
    PartSize(ByteSize),
    /// Nothing is answered in no time.
    #[error("--timeout: at least 10ms")]
    Timeout,
    /// Not an addressing style.
    #[error("--addressing {0}: auto, virtual, path or cname")]
    Addressing(String),
    /// A copy onto itself.
    #[error("the volume {0} lies in the source directory, or the other way round")]
    Overlap(PathBuf),
}

/// What a run is to do.
#[derive(Debug)]
pub struct Options {
    pub(crate) source: SourceUrl,
    pub(crate) volume: Option<PathBuf>,
    pub(crate) connection: Connection,
    pub(crate) filter: std::sync::Arc<Filter>,
    pub(crate) unmappable: Unmappable,
    pub(crate) identity: SourceIdentity,
    pub(crate) shard: ShardOf,
    pub(crate) allow_empty: bool,
    pub(crate) throughput: Option<Rate>,
    pub(crate) concurrency: Option<u32>,
    pub(crate) part_size: u64,
    pub(crate) direct: Direct,
    pub(crate) verify: VerifyMode,
    pub(crate) sha256: bool,
    pub(crate) plan_first: bool,
    pub(crate) dry_run: bool,
    pub(crate) force: bool,
    pub(crate) outcome: Option<PathBuf>,
    pub(crate) report: Option<PathBuf>,
    pub(crate) progress: ProgressStyle,
}

impl Options {
    /// What is asked of every file.
    pub(crate) fn demands(&self) -> Demands {
        Demands { verify: self.verify, sha256: self.sha256 }
    }

    /// Checks `args`.
    ///
    /// # Errors
    /// [`OptionsError`], naming the flag.
    pub fn new(args: PopulateArgs) -> Result<Self, OptionsError> {
        let PopulateArgs {
            source,
            volume,
            endpoint,
            region,
            addressing,
            anonymous,
            ca_bundle,
            timeout,
            retry_for,
            include,
            exclude,
            unmappable,
            shard,
            allow_empty,
            throughput,
            request_rate,
            concurrency,
            part_size,
            direct,
            verify,
            sha256,
            plan_first,
            dry_run,
            force,
            outcome,
            report,
            progress,
        } = args;
        let given = |globs: Vec<String>| -> Vec<String> {
            globs.into_iter().filter(|glob| !glob.is_empty()).collect()
        };
        let (include, exclude) = (given(include), given(exclude));
        let part_bytes = part_size.map_or(PART_SIZE, ByteSize::bytes);
        if part_bytes < SMALLEST_PART {
            return Err(OptionsError::PartSize(ByteSize::new(part_bytes)));
        }
        if timeout.is_some_and(|timeout| timeout.duration() < SHORTEST_TIMEOUT) {
            return Err(OptionsError::Timeout);
        }
        if let (SourceUrl::Directory(from), Some(to)) = (&source, &volume) {
            let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty());
            let real_to = to.canonicalize().or_else(|_| {
                let parent = parent.unwrap_or(std::path::Path::new(".")).canonicalize()?;
                Ok::<_, std::io::Error>(parent.join(to.file_name().unwrap_or_default()))
            });
            if let (Ok(from), Ok(real_to)) = (from.canonicalize(), real_to)
                && (real_to.starts_with(&from) || from.starts_with(&real_to))
            {
                return Err(OptionsError::Overlap(to.clone()));
            }
        }
        let addressing: Addressing =
            addressing.parse().map_err(|_| OptionsError::Addressing(addressing))?;
        let bucket = match &source {
            SourceUrl::Bucket { bucket, .. } => bucket.to_string(),
            SourceUrl::Directory(path) => path.display().to_string(),
        };
        let burst = throughput.map(|rate| super::cap::Cap::new(rate).burst_bytes());
        Ok(Self {
            identity: SourceIdentity {
                dialect: source.dialect(),
                bucket,
                prefix: source.prefix().as_str().to_owned(),
                include: include.clone(),
                exclude: exclude.clone(),
                unmappable,
            },
            connection: Connection {
                endpoint,
                region,
                addressing,
                anonymous,
                ca_bundle,
                read_buffer: Some(burst.unwrap_or(usize::MAX).min(LARGEST_FRAME)),
                timeout: timeout.map(Span::duration),
                retry_for: retry_for.map(Span::duration),
                request_rate: request_rate.and_then(NonZeroU32::new),
            },
            filter: std::sync::Arc::new(Filter::new(&include, &exclude)?),
            source,
            volume,
            unmappable,
            shard,
            allow_empty,
            throughput,
            concurrency,
            part_size: part_bytes,
            direct,
            verify,
            sha256,
            plan_first,
            dry_run,
            force,
            outcome,
            report,
            progress,
        })
    }

    /// How many bytes each part of an object of `size` bytes has: whole MiB (for O_DIRECT) where
    /// the part size allows, at most [`MOST_PARTS`] parts.
    pub(crate) fn part_size_for(&self, size: u64) -> u64 {
        let least = size.div_ceil(MOST_PARTS);
        if least <= self.part_size { self.part_size } else { least.next_multiple_of(1 << 20) }
    }
}

/// Which paths are taken: when no exclude matches and, if there is any include, one matches.
#[derive(Debug)]
pub(crate) struct Filter {
    include: GlobSet,
    exclude: GlobSet,
}

impl Filter {
    pub(crate) fn new(include: &[String], exclude: &[String]) -> Result<Self, OptionsError> {
        let set = |globs: &[String]| {
            let mut set = GlobSetBuilder::new();
            for glob in globs {
                set.add(
                    compiled(glob)
                        .map_err(|source| OptionsError::Glob { glob: glob.clone(), source })?,
                );
            }
            set.build().map_err(|source| OptionsError::Glob { glob: globs.join(" "), source })
        };
        Ok(Self { include: set(include)?, exclude: set(exclude)? })
    }

    pub(crate) fn takes(&self, path: &str) -> bool {
        !self.exclude.is_match(path) && (self.include.is_empty() || self.include.is_match(path))
    }
}

fn compiled(glob: &str) -> Result<Glob, globset::Error> {
    GlobBuilder::new(glob).literal_separator(true).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exclude_wins_over_include_and_a_star_stops_at_a_slash() {
        let globs =
            |globs: &[&str]| globs.iter().map(|glob| (*glob).to_owned()).collect::<Vec<_>>();
        let filter = Filter::new(&globs(&["**/*.bin", "*.json"]), &globs(&["old/**"])).unwrap();
        for (path, taken) in [
            ("a.bin", true),
            ("deep/er/a.bin", true),
            ("config.json", true),
            ("deep/config.json", false),
            ("old/a.bin", false),
            ("older/a.bin", true),
            ("a.txt", false),
        ] {
            assert_eq!(filter.takes(path), taken, "{path}");
        }
        assert!(Filter::new(&globs(&["a[b"]), &[]).is_err());
    }
}
