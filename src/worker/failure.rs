//! How a run fails, and with which exit code.

use crate::handoff::ExitCode;
use crate::keys::{Key, VolumePath};
use crate::store::{Class, StoreError};

use super::at::VolumeError;
use super::layout::LayoutError;
use super::options::OptionsError;
use super::verify::Mismatch;

/// Why a run did not complete the volume.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command line.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The source.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A key has no place in the volume.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A key's path is a name that the volume's file system does not have.
    #[error(
        "key {key} cannot be a path in the volume: its file system refuses {path:?} ({errno}); leave the key out (--exclude), or use another file system"
    )]
    Refused {
        /// The key.
        key: Key,
        /// Its path, or that of a directory above it.
        path: String,
        /// The system's answer.
        errno: rustix::io::Errno,
    },
    /// What the volume is too small for, before it is full.
    #[error(
        "the volume is too small: at least {needed} {what} listed so far, the volume holds {holds}; use a larger volume, or fewer objects (--include, --exclude)"
    )]
    TooSmall {
        /// How many bytes or files are needed.
        needed: u64,
        /// `bytes` or `files`.
        what: &'static str,
        /// How many fit.
        holds: u64,
    },
    /// The source lists a key twice.
    #[error("the source listed key {0} twice; run again for a new listing")]
    Twice(Key),
    /// The source lists keys in another order than by bytes.
    #[error(
        "the source listed key {key} after {previous}, not in byte order; --plan-first sorts the listing before the first fetch"
    )]
    OutOfOrder {
        /// The key before.
        previous: Key,
        /// The key that should not come now.
        key: Key,
    },
    /// Nothing to fill the volume with.
    #[error(
        "nothing under {0}: check bucket and prefix (a prefix that names a directory ends in /) and the filters, or allow it with --allow-empty"
    )]
    NothingListed(String),
    /// The volume is, or is on its way to be, another source's.
    #[error("the volume holds {}{held}, not {asked}; use another volume, or --force to discard it", if *partial { "a part of " } else { "" })]
    Foreign {
        /// Whether it was not complete.
        partial: bool,
        /// What it holds.
        held: String,
        /// What was asked for.
        asked: String,
    },
    /// The volume was begun with another number of workers.
    #[error(
        "the volume holds a part that {held} filled, not {asked}; go on with the same --shard, use another volume, or discard it by one run with --force and without --shard"
    )]
    Division {
        /// Who filled it.
        held: String,
        /// Who would.
        asked: String,
    },
    /// Several workers, where two names may be one file.
    #[error(
        "names that differ only in case are one file on this file system: fill it by one worker, without --shard"
    )]
    FoldsNames,
    /// `verify` of a volume that is not complete.
    #[error("{} has no completion marker: it was not filled by ossvp, or not to the end; run ossvp populate again", _0.display())]
    NoMarker(std::path::PathBuf),
    /// A file of ours that this version cannot read.
    #[error(
        "{file} in the volume is of version {found}, this ossvp writes {known}; --force discards it"
    )]
    Version {
        /// The file.
        file: &'static str,
        /// Its version.
        found: u32,
        /// The version that we know.
        known: u32,
    },
    /// An object's bytes are not what the source states, also after fetching again.
    #[error("object {key} does not match its checksum, fetched {attempts} times")]
    Mismatch {
        /// The object.
        key: Key,
        /// How often it was fetched.
        attempts: u32,
        /// Both values.
        source: Mismatch,
    },
    /// `--verify require`, and nothing to verify by.
    #[error(
        "object {0} has no checksum that the source states, and --verify require asks for one; --verify auto counts such objects as unverified"
    )]
    Unverifiable(Key),
    /// An object is not the listed one any more.
    #[error("object {key} changed during the run: {what}; run again for a new listing")]
    Changed {
        /// The object.
        key: Key,
        /// What differs.
        what: String,
    },
    /// Two keys for one path.
    #[error(
        "keys {key} and {other} are one file on this file system; --exclude one of them, or use a file system that tells such names apart"
    )]
    OnePath {
        /// The key that came second.
        key: Key,
        /// The file that is there.
        other: VolumePath,
    },
    /// The shards of a volume saw different listings.
    #[error(
        "shard {shard} and shards {differing:?} saw different listings: the source changed; run all shards again"
    )]
    ShardsDiffer {
        /// This shard.
        shard: crate::handoff::ShardOf,
        /// The indexes of those that saw something else.
        differing: Vec<u32>,
    },
    /// What a shard had committed was changed after it was done.
    #[error(
        "{path}, which shard {index} had committed, was changed since: by a shard that had an older listing, or by someone else; run all shards again"
    )]
    ShardDisturbed {
        /// Whose file it is.
        index: u32,
        /// The file.
        path: VolumePath,
    },
    /// `SHA256SUMS` of the source cannot be read.
    #[error("object {key} is no list of SHA-256 checksums: line {line} is not `digest  path`")]
    Sums {
        /// The object.
        key: Key,
        /// The line, from 1.
        line: u64,
    },
    /// A signal.
    #[error("interrupted; run again to go on")]
    Interrupted(ExitCode),
    /// A report or an outcome could not be written.
    #[error("cannot write {path}")]
    Output {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Something that should not happen.
    #[error("{0}")]
    Unexpected(String),
}

impl Failure {
    /// What went wrong on the volume at the place of `key`.
    pub(crate) fn at(key: &Key) -> impl FnOnce(VolumeError) -> Self {
        move |error| match error {
            VolumeError::Refused { path, source: errno } => {
                Self::Refused { key: key.clone(), path, errno }
            }
            error => Self::Volume(error),
        }
    }

    /// The exit code that says this.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Options(_) => ExitCode::Usage,
            Self::Store(error) => match error.class() {
                Class::Usage => ExitCode::Usage,
                Class::Refused => ExitCode::Source,
                Class::Transient => ExitCode::Transient,
                Class::Changed => ExitCode::Changed,
            },
            Self::Layout(LayoutError::Unmappable { .. }) => ExitCode::Occupied,
            Self::Layout(LayoutError::Stray(_)) | Self::Twice(_) => ExitCode::Transient,
            Self::Volume(error) => error.exit_code(),
            Self::TooSmall { .. } => ExitCode::Volume,
            Self::NothingListed(_) | Self::OutOfOrder { .. } | Self::Sums { .. } => {
                ExitCode::Source
            }
            Self::Refused { .. }
            | Self::Foreign { .. }
            | Self::NoMarker(_)
            | Self::Division { .. }
            | Self::FoldsNames
            | Self::Version { .. }
            | Self::OnePath { .. } => ExitCode::Occupied,
            Self::Mismatch { .. } | Self::Unverifiable(_) => ExitCode::Mismatch,
            Self::Changed { .. } | Self::ShardsDiffer { .. } | Self::ShardDisturbed { .. } => {
                ExitCode::Changed
            }
            Self::Interrupted(code) => *code,
            Self::Output { .. } | Self::Unexpected(_) => ExitCode::Unexpected,
        }
    }
}
