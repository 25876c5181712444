//! Many workers on one volume: when the last of them is done, the volume is.
//!
//! Each shard has its own directory in `.ossvp` with manifest, staged files, lock and marker. The
//! shard that finds all others' markers there writes the volume's.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::sync::Mutex;

use rustix::fs::FlockOperation;
use sha2::{Digest, Sha256};

use super::at::{VolumeError, errno};
use super::commit::SUMS;
use super::failure::Failure;
use super::inspect::{self, Lines, MANIFEST, MARKER};
use super::manifest::Line;
use super::own::Own;
use super::plan::{self, Look};
use super::volume::Volume;
use crate::handoff::{Marker, ShardOf};
use crate::keys::{VolumePath, hex};
use crate::lock::lock;

/// The file whose lock says who looks at all markers, or takes one away.
const COMPLETION: &str = "completion";
/// How many files are looked at at once. A network file system answers in 1 to 5 ms: alone, one
/// thread would take an hour for a million files.
const LOOKING: usize = 32;

/// Waits until no other shard looks at markers or takes one away; none does while this is held.
pub(crate) fn alone(base: &Own) -> Result<Option<File>, VolumeError> {
    base.try_lock(COMPLETION, FlockOperation::LockExclusive)
}

/// The marker of the whole volume, if every shard agrees with `mine` on what was listed; `None`
/// while some are not done.
///
/// # Errors
/// [`Failure::ShardsDiffer`] if shards saw different listings. All their markers are removed, so that
/// every shard lists anew and looks at each of its files again: while they differed, one may have
/// removed or replaced what another had. [`Failure::ShardDisturbed`] if the latter is seen though they
/// agree: one that had an older listing was stopped before it could tell, and has run again. The marker
/// of each shard whose files are not as it left them is removed.
pub(crate) fn join(volume: &Volume, mine: &Marker) -> Result<Option<Marker>, Failure> {
    let base = volume.base();
    // two shards that end at once look one after the other
    let _alone = alone(base)?;
    let count = mine.shard.count;
    let mut markers = Vec::with_capacity(count as usize);
    for index in 0..count {
        let own = base.shard(ShardOf { index, count })?;
        let Some(own) = own else { return Ok(None) };
        let Some(marker) = inspect::marker(&own)? else { return Ok(None) };
        markers.push((own, marker));
    }
    let agrees = |marker: &Marker| {
        marker.source == mine.source && marker.listing_digest == mine.listing_digest
    };
    let differ = markers.iter().filter(|(_, marker)| !agrees(marker));
    let differing: Vec<u32> = differ.map(|(_, marker)| marker.shard.index).collect();
    if !differing.is_empty() {
        for (own, _) in &markers {
            own.remove(MARKER)?;
        }
        return Err(Failure::ShardsDiffer { shard: mine.shard, differing });
    }
    let mut first = None;
    for (own, marker) in &markers {
        if let Some(path) = disturbed(volume, own)? {
            own.remove(MARKER)?;
            first.get_or_insert(Failure::ShardDisturbed { index: marker.shard.index, path });
        }
    }
    if let Some(disturbed) = first {
        return Err(disturbed);
    }
    let whole = whole(mine, markers.iter().map(|(_, marker)| marker));
    if whole.sha256 {
        let wrong = |error: io::Error| volume.writing(SUMS, 0, errno(&error));
        let mut sums = BufWriter::new(base.draft("SHA256SUMS.new")?);
        for (own, _) in &markers {
            if let Some(mut file) = own.read(SUMS)? {
                io::copy(&mut file, &mut sums).map_err(wrong)?;
            }
        }
        sums.flush().map_err(wrong)?;
        let file = sums.into_inner().map_err(|error| wrong(error.into_error()))?;
        base.settle("SHA256SUMS.new", SUMS, &file)?;
    }
    volume.sync()?;
    let text = serde_json::to_string_pretty(&whole).expect("plain strings always serialise");
    base.write(MARKER, text.as_bytes())?;
    Ok(Some(whole))
}

/// A file of a shard's manifest that does not stand as it was committed, if there is one. Makes the
/// directories that the manifest records: another shard may have removed one as the empty parent of
/// a file of its own.
fn disturbed(volume: &Volume, own: &Own) -> Result<Option<VolumePath>, Failure> {
    let Some(manifest) = own.read(MANIFEST)? else { return Ok(None) };
    let lines = Mutex::new(Lines::new(manifest)?);
    let look = || -> Result<Option<VolumePath>, Failure> {
        loop {
            // the lock goes with this line: the others look at theirs meanwhile
            let line = lock(&lines).next()?;
            match line {
                None => return Ok(None),
                Some((_, Line::Directory { path, .. })) => volume.make_directory(&path)?,
                Some((_, Line::File(record))) => {
                    if plan::look(volume, &record)? != Look::AsCommitted {
                        return Ok(Some(record.path));
                    }
                }
                Some(_) => {}
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..LOOKING).map(|_| scope.spawn(look)).collect();
        threads.into_iter().try_fold(None, |found, thread| {
            let panicked = |_| Failure::Unexpected("a look at the files panicked".to_owned());
            Ok(found.or(thread.join().map_err(panicked).flatten()?))
        })
    })
}

/// What all markers say together.
fn whole<'m>(mine: &Marker, markers: impl Iterator<Item = &'m Marker>) -> Marker {
    let mut manifests = Sha256::new();
    let mut whole = Marker {
        objects: 0,
        bytes: 0,
        directories: 0,
        verified: Default::default(),
        sha256: true,
        shard: ShardOf::WHOLE,
        shards: mine.shard.count,
        bytes_per_s: 0,
        ..mine.clone()
    };
    for marker in markers {
        whole.objects += marker.objects;
        whole.bytes += marker.bytes;
        whole.directories += marker.directories;
        whole.verified.add(&marker.verified);
        whole.sha256 &= marker.sha256;
        // they ran side by side
        whole.bytes_per_s += marker.bytes_per_s;
        whole.started = whole.started.min(marker.started.clone());
        manifests.update(&marker.manifest_sha256);
    }
    whole.manifest_sha256 = hex(&manifests.finalize());
    whole
}
