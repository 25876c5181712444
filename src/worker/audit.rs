//! `ossvp verify`: reads a filled volume again and compares it with its manifest.

use std::fs::File;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

use super::at::failed;
use super::commit::read_digests;
use super::failure::Failure;
use super::inspect::{self, Lines, MANIFEST};
use super::manifest::{FileRecord, Line};
use super::verify::{Digests, Wanted};
use super::volume::Volume;
use crate::handoff::{ExitCode, ShardOf};
use crate::keys::hex;
use crate::lock::lock;

/// What was found.
#[derive(Debug)]
pub struct Audit {
    /// Files that are as they were committed.
    pub intact: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files, directories or records that differ.
    pub differences: u64,
}

impl Audit {
    /// 0, or 6 on any difference.
    pub fn exit_code(&self) -> ExitCode {
        if self.differences == 0 { ExitCode::Complete } else { ExitCode::Mismatch }
    }
}

/// Reads every file of the volume at `path`, on all cores, and tells `differs` of each difference
/// as it is found.
///
/// # Errors
/// [`Failure::NoMarker`] if the volume was never complete; what is not there, or cannot be read.
pub fn audit(path: &Path, differs: &(dyn Fn(&str) + Sync)) -> Result<Audit, Failure> {
    // nothing there is another mistake than nothing of ours in it
    rustix::fs::stat(path).map_err(failed("open the volume", path.display().to_string()))?;
    let incomplete = || Failure::NoMarker(path.to_owned());
    let volume = Volume::look(path)?.ok_or_else(incomplete)?;
    let marker = inspect::marker(volume.base())?.ok_or_else(incomplete)?;
    let mut audit = Audit { intact: 0, bytes: 0, differences: 0 };
    let mut digests = Vec::new();
    for index in 0..marker.shards {
        let own = volume.base().shard(ShardOf { index, count: marker.shards })?;
        match own.map_or(Ok(None), |own| own.read(MANIFEST))? {
            Some(manifest) => digests.push(audit.read(&volume, manifest, differs)?),
            None => {
                digests.push("missing".to_owned());
                break;
            }
        }
    }
    let named = match digests.as_slice() {
        [digest] => *digest == marker.manifest_sha256,
        several => hex(&Sha256::digest(several.concat())) == marker.manifest_sha256,
    };
    if !named {
        differs("the manifest is not the one that the marker names");
        audit.differences += 1;
    }
    Ok(audit)
}

impl Audit {
    /// Compares everything that one manifest records; the manifest's SHA-256.
    fn read(
        &mut self,
        volume: &Volume,
        manifest: File,
        differs: &(dyn Fn(&str) + Sync),
    ) -> Result<String, Failure> {
        let records = Mutex::new(Records { lines: Lines::new(manifest)?, digest: Sha256::new() });
        let found = Mutex::new((0, 0, 0));
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let results: Vec<Result<(), Failure>> = std::thread::scope(|scope| {
            let work = || -> Result<(), Failure> {
                while let Some(line) = lock(&records).next()? {
                    let difference = compare(volume, &line)?;
                    let mut found = lock(&found);
                    match (&difference, &line) {
                        (Some(difference), _) => {
                            found.2 += 1;
                            differs(difference);
                        }
                        (None, Line::File(record)) => {
                            found.0 += 1;
                            found.1 += record.size;
                        }
                        (None, _) => {}
                    }
                }
                Ok(())
            };
            let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            let joined = threads.into_iter().map(|thread| {
                let panicked = |_| Failure::Unexpected("a thread of verify panicked".to_owned());
                thread.join().map_err(panicked).flatten()
            });
            joined.collect()
        });
        results.into_iter().collect::<Result<(), Failure>>()?;

        let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.intact += found.0;
        self.bytes += found.1;
        self.differences += found.2;
        let records = records.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(hex(&records.digest.finalize()))
    }
}

struct Records {
    lines: Lines,
    digest: Sha256,
}

impl Records {
    fn next(&mut self) -> Result<Option<Line>, Failure> {
        let Some((_, line)) = self.lines.next()? else { return Ok(None) };
        self.digest.update(self.lines.raw());
        Ok(Some(line))
    }
}

/// What is wrong with what `line` records, if anything.
fn compare(volume: &Volume, line: &Line) -> Result<Option<String>, Failure> {
    match line {
        Line::File(record) => compare_file(volume, record),
        Line::Directory { path, .. } => {
            let stat = volume.stat(path)?;
            let directory =
                stat.is_some_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir());
            Ok((!directory).then(|| format!("{path}: no such directory")))
        }
        Line::Header { .. }
        | Line::Begin { .. }
        | Line::Gone { .. }
        | Line::Synced { .. }
        | Line::Untrusted { .. } => Ok(None),
    }
}

fn compare_file(volume: &Volume, record: &FileRecord) -> Result<Option<String>, Failure> {
    let FileRecord { path, size, crc64, sha256, .. } = record;
    let wanted = Wanted { sha256: sha256.is_some(), ..Wanted::default() };
    let found = match read_digests(volume, path, wanted) {
        Ok(Some(found)) => found,
        Ok(None) => return Ok(Some(format!("{path}: no such file"))),
        // one file that cannot be read is a finding; the others are still worth reading
        Err(failure) => return Ok(Some(format!("{path}: {}", crate::telemetry::chain(&failure)))),
    };
    let Digests { length, crc64: found_crc64, sha256: found_sha256, .. } = found;
    Ok(if length != *size {
        Some(format!("{path}: {length} bytes, the manifest says {size}"))
    } else if found_crc64 != *crc64 {
        Some(format!("{path}: crc64 is {found_crc64}, the manifest says {crc64}"))
    } else if found_sha256 != *sha256 {
        let [found, recorded] =
            [found_sha256, *sha256].map(|sha| sha.map_or_else(String::new, |sha| hex(&sha)));
        Some(format!("{path}: sha256 is {found}, the manifest says {recorded}"))
    } else {
        None
    })
}
