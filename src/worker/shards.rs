//! Many workers on one volume: when the last of them is done, the volume is.
//!
//! Each shard has its own directory in `.ossvp` with manifest, staged files, lock and marker. The
//! shard that finds all others' markers there writes the volume's.

use std::io::{self, BufWriter, Write};

use rustix::fs::FlockOperation;
use sha2::{Digest, Sha256};

use super::at::errno;
use super::commit::SUMS;
use super::failure::Failure;
use super::inspect::{self, Lines, MANIFEST, MARKER};
use super::manifest::{Line, hex};
use super::own::Own;
use super::volume::Volume;
use crate::handoff::{Marker, ShardOf};

/// The file whose lock says who looks at all markers.
const COMPLETION: &str = "completion";

/// The marker of the whole volume, if every shard agrees with `mine` on what was listed; `None`
/// while some are not done.
///
/// # Errors
/// [`Failure::ShardsDiffer`] if shards saw different listings. All their markers are removed, so that
/// every shard lists anew and looks at each of its files again: while they differed, one may have
/// removed or replaced what another had.
pub(crate) fn join(volume: &Volume, mine: &Marker) -> Result<Option<Marker>, Failure> {
    let base = volume.base();
    // held until the end of this function: two shards that end at once look one after the other
    let _lock = base.try_lock(COMPLETION, FlockOperation::LockExclusive)?;
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
    for (own, _) in &markers {
        remake_directories(volume, own)?;
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

/// Makes the directories that a shard's manifest records: another shard may have removed one as the
/// empty parent of a file of its own.
fn remake_directories(volume: &Volume, own: &Own) -> Result<(), Failure> {
    let Some(manifest) = own.read(MANIFEST)? else { return Ok(()) };
    let mut lines = Lines::new(manifest)?;
    while let Some((_, line)) = lines.next()? {
        if let Line::Directory { path, .. } = line {
            volume.make_directory(&path)?;
        }
    }
    Ok(())
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
