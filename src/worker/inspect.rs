//! What the volume holds already: a marker, a manifest, or nothing.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

use super::at::{Room, VolumeError, errno};
use super::failure::Failure;
use super::manifest::{FileRecord, Line, MAX_LINE, VERSION, version_of};
use super::own::Own;
use super::progress::Counters;
use super::sort::{Sorted, Sorter, SpillFile};
use super::volume::Volume;
use crate::handoff::{MARKER_VERSION, Marker, ShardOf, SourceIdentity};
use crate::keys::VolumePath;

pub(crate) const MARKER: &str = "complete.json";
pub(crate) const MANIFEST: &str = "manifest";

/// The most bytes of a marker that are read: an identity with many filters fits many times.
const MARKER_LIMIT: u64 = 4 << 20;

/// Something an earlier run committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Held {
    File {
        record: Box<FileRecord>,
        /// Whether its bytes are on the device for certain: they were synced since they were written.
        trusted: bool,
    },
    Directory {
        relative: String,
        path: VolumePath,
    },
}

impl Held {
    /// Takes it off the volume, with the directories that are empty then.
    pub(crate) fn remove_from(&self, volume: &Volume) -> Result<(), VolumeError> {
        match self {
            Self::File { record, .. } => {
                volume.remove(&record.path, false)?;
                volume.remove_empty_parents(&record.path)
            }
            Self::Directory { path, .. } => volume.remove(path, true),
        }
    }

    /// The key that it was made for, relative to the prefix.
    pub(crate) fn relative(&self) -> &str {
        match self {
            Self::File { record, .. } => &record.relative,
            Self::Directory { relative, .. } => relative,
        }
    }
}

/// The marker in a directory of ours, if there is one that can be read.
pub(crate) fn marker(own: &Own) -> Result<Option<Marker>, Failure> {
    let Some(file) = own.read(MARKER)? else { return Ok(None) };
    let mut text = String::new();
    if let Err(error) = file.take(MARKER_LIMIT).read_to_string(&mut text)
        && error.kind() != io::ErrorKind::InvalidData
    {
        return Err(reading(MARKER, &error).into());
    }
    marker_of(&text)
}

/// What the text of a marker says, if it is one.
///
/// # Errors
/// [`Failure::Version`] for a marker of another version.
pub(crate) fn marker_of(text: &str) -> Result<Option<Marker>, Failure> {
    if let Ok(marker) = serde_json::from_str::<Marker>(text)
        && marker.version == MARKER_VERSION
        && (1..=ShardOf::MOST).contains(&marker.shards)
    {
        return Ok(Some(marker));
    }
    let value = serde_json::from_str::<serde_json::Value>(text).unwrap_or_default();
    match value.get("version").and_then(serde_json::Value::as_u64) {
        Some(found) if found != u64::from(MARKER_VERSION) => Err(Failure::Version {
            file: ".ossvp/complete.json",
            found: u32::try_from(found).unwrap_or(u32::MAX),
            known: MARKER_VERSION,
        }),
        // renamed into place whole and synced: if it cannot be read, it never was ours to trust
        _ => {
            tracing::warn!("the marker cannot be read: the volume is taken as not complete");
            Ok(None)
        }
    }
}

pub(crate) fn reading(file: &str, error: &io::Error) -> VolumeError {
    VolumeError::Call { action: "read", path: format!(".ossvp/{file}"), source: errno(error) }
}

/// What sorting the manifest met: on the volume it needs room of its own.
fn sorting(error: &io::Error) -> VolumeError {
    VolumeError::Call { action: "sort", path: ".ossvp/manifest".to_owned(), source: errno(error) }
}

/// The lines of a manifest with their offsets, up to the first that does not check.
#[derive(Debug)]
pub(crate) struct Lines {
    reader: BufReader<File>,
    offset: u64,
    line: Vec<u8>,
}

impl Lines {
    pub(crate) fn new(mut file: File) -> Result<Self, Failure> {
        file.seek(SeekFrom::Start(0)).map_err(|error| reading(MANIFEST, &error))?;
        Ok(Self { reader: BufReader::with_capacity(1 << 17, file), offset: 0, line: Vec::new() })
    }

    /// The next line, with the offset of its first byte.
    pub(crate) fn next(&mut self) -> Result<Option<(u64, Line)>, Failure> {
        self.line.clear();
        let mut bounded = (&mut self.reader).take(MAX_LINE as u64);
        bounded.read_until(b'\n', &mut self.line).map_err(|error| reading(MANIFEST, &error))?;
        let Some(line) = self.line.strip_suffix(b"\n").and_then(Line::decode) else {
            return Ok(None);
        };
        let offset = self.offset;
        self.offset += self.line.len() as u64;
        Ok(Some((offset, line)))
    }

    /// The bytes of the line that [`Lines::next`] gave last, line end included.
    pub(crate) fn raw(&self) -> &[u8] {
        &self.line
    }

    /// Where the valid lines end.
    pub(crate) fn end(&self) -> u64 {
        self.offset
    }
}

/// What earlier runs committed, in key order, with as much memory for any number of files.
#[derive(Debug)]
pub(crate) struct History {
    sorted: Option<Sorted>,
    next: Option<(Vec<u8>, Vec<u8>)>,
    untrusted: Vec<Range<u64>>,
    /// Where the manifest's valid lines end; the next run appends there.
    pub(crate) end: u64,
    /// From where on lines of earlier runs are not to be trusted, if any are not; the next run notes
    /// it.
    pub(crate) note_untrusted: Option<u64>,
    /// Bytes of all files that are recorded, superseded ones counted again.
    pub(crate) bytes: u64,
    /// Files recorded, likewise.
    pub(crate) files: u64,
}

impl History {
    pub(crate) fn none() -> Self {
        Self {
            sorted: None,
            next: None,
            untrusted: Vec::new(),
            end: 0,
            note_untrusted: None,
            bytes: 0,
            files: 0,
        }
    }

    pub(crate) fn is_none(&self) -> bool {
        self.end == 0
    }

    /// Whether nothing was committed.
    pub(crate) fn is_empty(&self) -> bool {
        self.next.is_none()
    }

    /// The next file or directory, by key.
    pub(crate) fn next(&mut self) -> Result<Option<Held>, Failure> {
        let Some(sorted) = &mut self.sorted else { return Ok(None) };
        let broken = |error: io::Error| Failure::from(reading(MANIFEST, &error));
        loop {
            let Some((key, mut value)) = self.next.take() else { return Ok(None) };
            // of several records of one key the last one counts
            self.next = sorted.next().map_err(broken)?;
            while let Some((next_key, next_value)) = &mut self.next
                && *next_key == key
            {
                value = std::mem::take(next_value);
                self.next = sorted.next().map_err(broken)?;
            }
            let (offset, line) = value
                .split_first_chunk::<8>()
                .ok_or_else(|| broken(io::ErrorKind::InvalidData.into()))?;
            let offset = u64::from_le_bytes(*offset);
            match Line::decode(line) {
                Some(Line::File(record)) => {
                    let trusted = !self.untrusted.iter().any(|range| range.contains(&offset));
                    return Ok(Some(Held::File { record, trusted }));
                }
                Some(Line::Directory { relative, path }) => {
                    return Ok(Some(Held::Directory { relative, path }));
                }
                _ => {} // gone
            }
        }
    }
}

/// What the manifest says, before it is sorted.
#[derive(Debug)]
pub(crate) struct Past {
    pub(crate) identity: SourceIdentity,
    pub(crate) history: History,
}

/// Reads the manifest, if there is one.
///
/// # Errors
/// [`Failure::Version`] for a manifest of another version.
pub(crate) fn past(own: &Own, spill: SpillFile) -> Result<Option<Past>, Failure> {
    own.read(MANIFEST)?.map_or(Ok(None), |file| past_of(file, spill))
}

/// What a manifest says.
///
/// # Errors
/// As for [`past`].
pub(crate) fn past_of(manifest: File, spill: SpillFile) -> Result<Option<Past>, Failure> {
    let mut lines = Lines::new(manifest)?;
    let identity = match lines.next()? {
        Some((_, Line::Header { version: VERSION, identity })) => *identity,
        Some((_, Line::Header { version, .. })) => {
            return Err(Failure::Version {
                file: ".ossvp/manifest",
                found: version,
                known: VERSION,
            });
        }
        _ => {
            return match version_of(lines.raw()) {
                Some(found) if found != VERSION => {
                    Err(Failure::Version { file: ".ossvp/manifest", found, known: VERSION })
                }
                // a header that was torn off: nothing was committed behind it
                _ => Ok(None),
            };
        }
    };
    let mut sorter = Sorter::new(spill);
    let mut history = History::none();
    let mut synced = 0;
    let mut last_file = None;
    let mut value = Vec::new();
    let mut end = lines.end();
    while let Some((offset, line)) = lines.next()? {
        end = lines.end();
        let relative = match &line {
            Line::File(record) => {
                // a line says what it likes
                history.bytes = history.bytes.saturating_add(record.size);
                history.files += 1;
                last_file = Some(offset);
                &record.relative
            }
            Line::Directory { relative, .. } | Line::Gone { relative } => relative,
            Line::Begin { .. } => continue,
            Line::Synced { before } => {
                synced = synced.max(*before);
                continue;
            }
            Line::Untrusted { from } => {
                history.untrusted.push(*from..offset);
                continue;
            }
            // not ours: the next run cuts the manifest there
            Line::Header { .. } => {
                end = offset;
                break;
            }
        };
        value.clear();
        value.extend_from_slice(&offset.to_le_bytes());
        let raw = lines.raw();
        value.extend_from_slice(&raw[..raw.len() - 1]);
        sorter.push(relative.as_bytes(), &value).map_err(|error| sorting(&error))?;
    }
    history.end = end;
    // what came after the last sync may be lost. It does not help to know that this machine was not
    // booted since: the disk may have lost its power alone, or have been torn off
    if last_file.is_some_and(|last| last >= synced) {
        history.untrusted.push(synced..history.end);
        // so that the next run's own syncs do not vouch for those files before it has read them
        history.note_untrusted = Some(synced);
    }
    let mut sorted = sorter.finish().map_err(|error| sorting(&error))?;
    history.next = sorted.next().map_err(|error| sorting(&error))?;
    history.sorted = Some(sorted);
    Ok(Some(Past { identity, history }))
}

/// How much the volume takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Capacity {
    /// Bytes: what is free, committed or reserved.
    pub(crate) bytes: u64,
    /// Files, likewise, where the file system counts them.
    pub(crate) files: Option<u64>,
}

impl Capacity {
    /// What a volume takes of which `reserved` bytes are allocated to staged files.
    pub(crate) fn of(volume: &Volume, history: &History, reserved: u64) -> Result<Self, Failure> {
        let Room { available, files, total: _ } = volume.room()?;
        Ok(Self {
            bytes: available.saturating_add(history.bytes).saturating_add(reserved),
            files: files.map(|files| files.saturating_add(history.files)),
        })
    }

    /// Whether what is wanted so far fits.
    pub(crate) fn takes(self, counters: &Counters) -> Result<(), Failure> {
        let Self { bytes, files } = self;
        let wanted_bytes = counters.wanted_bytes.load(Relaxed);
        let wanted_files = counters.wanted_objects.load(Relaxed);
        if wanted_bytes > bytes {
            return Err(Failure::TooSmall { needed: wanted_bytes, what: "bytes", holds: bytes });
        }
        match files {
            Some(files) if wanted_files > files => {
                Err(Failure::TooSmall { needed: wanted_files, what: "files", holds: files })
            }
            _ => Ok(()),
        }
    }
}

/// The id of this boot of the machine: for whoever reads a manifest after a power cut.
pub(crate) fn boot_id() -> String {
    match std::fs::read_to_string("/proc/sys/kernel/random/boot_id") {
        Ok(id) => id.trim().to_owned(),
        Err(_) => "unknown".to_owned(),
    }
}
