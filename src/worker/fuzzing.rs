//! Doors for `tests/fuzz`: what reads bytes of a volume or of a source, without the volume around
//! it. Nothing here decides anything.

use std::fs::File;
use std::io::Write;

use rustix::fs::{MemfdFlags, memfd_create};

use super::failure::Failure;
use super::inspect::{self, Held, Past};
use super::manifest::{self, Line};
use super::{large, sums};
use crate::handoff::Marker;
use crate::keys::VolumePath;

/// A line as [`std::fmt::Debug`] shows it, and written anew, if `bytes` are one.
pub fn line(bytes: &[u8]) -> Option<(String, Vec<u8>)> {
    let line = Line::decode(bytes)?;
    Some((format!("{line:?}"), line.encode()))
}

/// What a line of the manifest says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "as in the manifest's lines")]
pub enum Said {
    Header,
    Begin,
    File { relative: String, path: String },
    Directory { relative: String, path: String },
    Gone { relative: String },
    Synced { before: u64 },
    Untrusted { from: u64 },
}

/// What a line without its end says.
pub fn said(line: &[u8]) -> Option<Said> {
    let path = |path: &VolumePath| path.as_str().to_owned();
    Some(match Line::decode(line)? {
        Line::Header { .. } => Said::Header,
        Line::Begin { .. } => Said::Begin,
        Line::File(record) => Said::File { path: path(&record.path), relative: record.relative },
        Line::Directory { relative, path: made } => Said::Directory { relative, path: path(&made) },
        Line::Gone { relative } => Said::Gone { relative },
        Line::Synced { before } => Said::Synced { before },
        Line::Untrusted { from } => Said::Untrusted { from },
    })
}

/// `body` with its checksum and a line end.
pub fn sealed(body: &str) -> Vec<u8> {
    manifest::seal(body.to_owned())
}

/// What [`sealed`] was given, of a line without its end.
pub fn unsealed(line: &[u8]) -> Option<&str> {
    manifest::unseal(line)
}

/// What is held: key, path, whether it is a file, whether its bytes are trusted.
pub type Kept = (String, String, bool, bool);

/// What a manifest says: where its lines end, and what is held, in key order.
///
/// # Errors
/// As a run that finds it.
pub fn history(bytes: &[u8]) -> Result<Option<(u64, Vec<Kept>)>, Failure> {
    let spill = Box::new(|| Ok(memory(b"")));
    let Some(Past { mut history, identity: _ }) = inspect::past_of(memory(bytes), spill)? else {
        return Ok(None);
    };
    let mut kept = Vec::new();
    while let Some(held) = history.next()? {
        kept.push(match held {
            Held::File { record, trusted } => {
                (record.relative, record.path.as_str().to_owned(), true, trusted)
            }
            Held::Directory { relative, path } => (relative, path.as_str().to_owned(), false, true),
        });
    }
    Ok(Some((history.end, kept)))
}

/// What a marker says.
///
/// # Errors
/// As a run that finds it.
pub fn marker(text: &str) -> Result<Option<Marker>, Failure> {
    inspect::marker_of(text)
}

/// What notes say of an object of so many `parts`: each CRC, and where valid lines end.
pub fn notes(bytes: &[u8], header: &str, parts: usize) -> Option<(Vec<Option<u64>>, u64)> {
    large::read_notes(&memory(bytes), header, parts)
}

/// A line of `SHA256SUMS`, without its end.
pub fn sum(line: &[u8]) -> Option<(String, [u8; 32])> {
    sums::parsed(line)
}

/// The line of `SHA256SUMS` for a path.
pub fn sum_line(digest: &[u8; 32], path: &str) -> String {
    sums::line(digest, path)
}

fn memory(bytes: &[u8]) -> File {
    let mut file = File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("memory"));
    file.write_all(bytes).and_then(|()| std::io::Seek::rewind(&mut file)).expect("memory");
    file
}
