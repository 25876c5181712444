//! A large object on its way: a staged file that many parts write, and a note of each part, so
//! that a later run goes on where this one stopped.
//!
//! `.ossvp/staged/<name>` is the file, `.ossvp/staged/<name>.parts` the notes: a header that pins
//! the version (ETag, size, time, part size), then a line for each part with its CRC-64/XZ. A part
//! that is noted is read again and must still match before it counts.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::ops::Range;
use std::sync::{Arc, Mutex};

use rustix::fs::OFlags;
use sha2::{Digest, Sha256};

use super::at::errno;
use super::commit::digests_of;
use super::failure::Failure;
use super::list::{Entry, Target};
use super::manifest::{fields, seal, unseal};
use super::verify::{Digests, Wanted};
use super::volume::Volume;
use super::write::{ALIGNMENT, Calls, Staged};
use crate::handoff::Direct;
use crate::keys::{VolumePath, hex};
use crate::lock::lock;
use crate::store::Stated;

/// What the names of notes end in.
pub(crate) const PARTS: &str = ".parts";
/// The longest line of notes that is read.
const MAX_LINE: u64 = 16 << 10;

/// A large object.
#[derive(Debug)]
pub(crate) struct Large {
    entry: Entry,
    path: VolumePath,
    replaces: bool,
    etag: Option<String>,
    size: u64,
    part_size: u64,
    name: String,
    volume: Arc<Volume>,
    stated: Mutex<Option<Stated>>,
    wanted: Wanted,
    /// CRCs that an earlier run noted.
    noted: Vec<Option<u64>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    staged: Option<Arc<Staged>>,
    notes: File,
    notes_end: u64,
    parts: Vec<Option<Digests>>,
    left: usize,
}

/// What an object in parts is opened with.
#[derive(Debug)]
pub(crate) struct Opening<'a> {
    pub(crate) volume: &'a Arc<Volume>,
    pub(crate) calls: &'a Arc<Calls>,
    pub(crate) part_size: u64,
    pub(crate) direct: Direct,
    /// What is computed over each part.
    pub(crate) wanted: Wanted,
}

impl Large {
    /// Opens the staged file of `entry`, an object of `size` bytes in the version `etag`, and what
    /// an earlier run noted of it.
    pub(crate) fn open(
        opening: Opening<'_>,
        entry: Entry,
        replaces: bool,
        size: u64,
        etag: Option<String>,
    ) -> Result<Arc<Self>, Failure> {
        let Opening { volume, calls, part_size, direct, wanted } = opening;
        let Target::File(path) = entry.target.clone() else {
            return Err(Failure::Unexpected(format!("{} is no file", entry.key)));
        };
        let parts = usize::try_from(size.div_ceil(part_size)).unwrap_or(usize::MAX);
        let name = hex(&Sha256::digest(entry.relative().as_bytes())[..16]);

        let mut header = String::new();
        let version = [etag.as_deref().unwrap_or("-"), &size.to_string(), &part_size.to_string()];
        fields(&mut header, &["ossvp-parts", "1"]);
        header.push('\t');
        fields(&mut header, &version);
        header.push('\t');
        fields(&mut header, &[&entry.modified_ms.to_string()]);

        let flags = OFlags::CREATE | OFlags::RDWR;
        let notes = File::from(volume.staging().stage(&format!("{name}{PARTS}"), false, flags)?);
        let read = read_notes(&notes, &header, parts);
        let (noted, notes_end) = match read {
            Some(read) => read,
            None => (vec![None; parts], 0),
        };
        let write = |error: &std::io::Error| volume.writing(path.as_str(), 0, errno(error));
        notes.set_len(notes_end).map_err(|error| write(&error))?;
        let resumed = notes_end > 0;
        // a part that began or ended within a page could not be written past the page cache
        let direct = match part_size % ALIGNMENT as u64 {
            0 => direct,
            _ => Direct::Off,
        };
        let staged = Staged::open(volume, calls, &name, &path, size, false, direct)?;
        if resumed {
            // after a failed write-back the cache still shows bytes that the device has lost
            staged.drop_cached();
        }
        let large = Self {
            path,
            replaces,
            etag,
            size,
            part_size,
            name,
            volume: Arc::clone(volume),
            stated: Mutex::default(),
            wanted,
            noted,
            state: Mutex::new(State {
                staged: Some(Arc::new(staged)),
                notes,
                notes_end,
                parts: vec![None; parts],
                left: parts,
            }),
            entry,
        };
        if !resumed {
            large.note(&mut large.state_mut(), header)?;
        }
        Ok(Arc::new(large))
    }

    fn state_mut(&self) -> std::sync::MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn note(&self, state: &mut State, body: String) -> Result<(), Failure> {
        let line = seal(body);
        std::os::unix::fs::FileExt::write_all_at(&state.notes, &line, state.notes_end)
            .map_err(|error| self.volume.writing(self.path.as_str(), 0, errno(&error)))?;
        state.notes_end += line.len() as u64;
        Ok(())
    }

    pub(crate) fn entry(&self) -> &Entry {
        &self.entry
    }

    pub(crate) fn path(&self) -> &VolumePath {
        &self.path
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn replaces(&self) -> bool {
        self.replaces
    }

    /// The version that every part must be of.
    pub(crate) fn etag(&self) -> Option<&str> {
        self.etag.as_deref()
    }

    /// How many parts there are.
    pub(crate) fn parts(&self) -> usize {
        self.noted.len()
    }

    /// The bytes of part `index`, half-open.
    pub(crate) fn range(&self, index: usize) -> Range<u64> {
        let start = index as u64 * self.part_size;
        start..start.saturating_add(self.part_size).min(self.size)
    }

    /// Keeps what an answer stated of the whole object.
    pub(crate) fn state(&self, stated: Stated) {
        // every answer of one version states the same, and one that lost its checksum on the way
        // should not be the one that counts
        let mut kept = lock(&self.stated);
        if kept.as_ref().is_none_or(|kept| kept.crc64.is_none()) {
            *kept = Some(stated);
        }
    }

    /// Keeps what the answer to another fetch of the whole object stated.
    pub(crate) fn state_anew(&self, stated: Stated) {
        *lock(&self.stated) = Some(stated);
    }

    pub(crate) fn stated(&self) -> Option<Stated> {
        lock(&self.stated).clone()
    }

    pub(crate) fn staged(&self) -> Result<Arc<Staged>, Failure> {
        self.state_mut().staged.clone().ok_or_else(|| self.gone())
    }

    pub(crate) fn take_staged(&self) -> Result<Arc<Staged>, Failure> {
        self.state_mut().staged.take().ok_or_else(|| self.gone())
    }

    fn gone(&self) -> Failure {
        Failure::Unexpected(format!("{} was committed before its last part", self.path))
    }

    /// The staged file for reading.
    pub(crate) fn reader(&self) -> Result<File, Failure> {
        self.staged()?.reader(&self.name)
    }

    /// Whether an earlier run noted part `index`.
    pub(crate) fn is_noted(&self, index: usize) -> bool {
        self.noted.get(index).is_some_and(Option::is_some)
    }

    /// The checksums of part `index`, if an earlier run noted it and its bytes still match.
    pub(crate) fn kept_part(&self, index: usize) -> Result<Option<Digests>, Failure> {
        let Some(noted) = self.noted.get(index).copied().flatten() else { return Ok(None) };
        let Range { start, end } = self.range(index);
        let found =
            digests_of(&self.reader()?, self.path.as_str(), start, end - start, self.wanted)?;
        Ok((found.length == end - start && found.crc64 == noted).then_some(found))
    }

    /// Takes part `index` as written, and notes it for a later run if it is `fresh`. Says whether
    /// it was the last.
    pub(crate) fn note_part(
        &self,
        index: usize,
        digests: Digests,
        fresh: bool,
    ) -> Result<bool, Failure> {
        let mut state = self.state_mut();
        if fresh {
            self.note(&mut state, format!("p\t{index}\t{:016x}", digests.crc64))?;
        }
        state.parts[index] = Some(digests);
        state.left -= 1;
        Ok(state.left == 0)
    }

    /// The checksums of the whole, from those of the parts.
    pub(crate) fn joined(&self) -> Result<Digests, Failure> {
        let state = self.state_mut();
        state.parts.iter().try_fold(Digests::empty(), |whole, part| match part {
            Some(part) => Ok(whole.join(part)),
            None => Err(Failure::Unexpected(format!("{} misses a part", self.path))),
        })
    }

    /// Removes the notes: the parts are committed, or are not to be trusted.
    pub(crate) fn forget_parts(&self) -> Result<(), Failure> {
        Ok(self.volume.staging().discard(&format!("{}{PARTS}", self.name))?)
    }
}

/// What the notes hold for this `header`: the CRC of each noted part, and where valid lines end.
pub(crate) fn read_notes(
    notes: &File,
    header: &str,
    parts: usize,
) -> Option<(Vec<Option<u64>>, u64)> {
    let mut reader = BufReader::new(notes);
    let mut line = Vec::new();
    let mut next = |line: &mut Vec<u8>| -> Option<u64> {
        line.clear();
        let read = (&mut reader).take(MAX_LINE).read_until(b'\n', line).ok()?;
        (line.pop() == Some(b'\n')).then_some(read as u64)
    };
    let mut end = next(&mut line)?;
    if unseal(&line)? != header {
        return None;
    }
    let mut noted = vec![None; parts];
    while let Some(length) = next(&mut line) {
        let part = unseal(&line).and_then(|body| {
            let (index, crc) = body.strip_prefix("p\t")?.split_once('\t')?;
            Some((index.parse::<usize>().ok()?, u64::from_str_radix(crc, 16).ok()?))
        });
        let Some((index, crc)) = part else { break };
        let Some(slot) = noted.get_mut(index) else { break };
        *slot = Some(crc);
        end += length;
    }
    Some((noted, end))
}
