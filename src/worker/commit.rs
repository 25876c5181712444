//! Commits: a staged file gets its name, and the manifest gets its line. At the end, the marker.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::at::{VolumeError, errno, uninterrupted};
use super::failure::Failure;
use super::inspect::{self, Held, History, Lines, MANIFEST, MARKER};
use super::list::{Entry, Target};
use super::manifest::{FileRecord, Line, VERSION};
use super::progress::Counters;
use super::sort::Sorter;
use super::sums;
use super::verify::Digests;
use super::volume::{Published, Volume};
use crate::handoff::{Checked, Marker, SourceIdentity, Tally};
use crate::keys::{VolumePath, hex};
use crate::lock::lock;

pub(crate) const SUMS: &str = "SHA256SUMS";

/// Proof that so many files stand under their own names, whole and checked, and that the manifest
/// says so. Only this module makes one that proves anything, and a marker takes nothing less.
#[derive(Debug, Default)]
#[must_use = "a commit that is not counted is missing from the marker"]
pub(crate) struct Committed(u64);

impl Committed {
    /// Both proofs in one.
    pub(crate) fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

/// A staged file, complete, that may get its name.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Its name among the staged files.
    pub(crate) name: String,
    pub(crate) file: std::os::fd::OwnedFd,
    pub(crate) digests: Digests,
    pub(crate) checked: Checked,
}

/// What came of a commit.
#[derive(Debug)]
pub(crate) enum Commit {
    Done(Committed),
    /// Something has the name already.
    Occupied(Unnamed),
}

/// A staged file, complete, whose name something else has.
#[derive(Debug)]
pub(crate) struct Unnamed {
    name: String,
    digests: Digests,
    checked: Checked,
}

/// Keeps the manifest.
#[derive(Debug)]
pub(crate) struct Ledger {
    volume: Arc<Volume>,
    counters: Arc<Counters>,
    folds_names: bool,
    /// Held while a file gets its name and its line, where two names may be one file: nobody may
    /// look for the other name in between.
    naming: Mutex<()>,
    /// Held during a checkpoint, so that none is under way when the manifest is settled.
    checkpointing: Mutex<()>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: File,
    end: u64,
    /// Over all lines, where all of them are this run's.
    digest: Option<Sha256>,
    /// Where the manifest ended after a checkpoint that found nothing new behind it.
    quiet: u64,
    /// Whether lines were superseded, so that the manifest must be written anew at the end.
    superseded: bool,
    /// Whether the last line is written: no checkpoint may follow.
    closed: bool,
    committed: u64,
    bytes: u64,
    directories: u64,
    tally: Tally,
}

/// A manifest that only lacks its last line.
#[derive(Debug)]
pub(crate) struct Settled {
    /// The SHA-256 of its lines.
    digest: Sha256,
    /// Where they end.
    end: u64,
}

/// What was committed in all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Totals {
    pub(crate) objects: u64,
    pub(crate) bytes: u64,
    pub(crate) directories: u64,
    pub(crate) tally: Tally,
}

impl Ledger {
    /// Opens the manifest behind its last valid line, or begins one.
    pub(crate) fn open(
        volume: &Arc<Volume>,
        counters: &Arc<Counters>,
        identity: &SourceIdentity,
        history: &History,
        folds_names: bool,
    ) -> Result<Self, Failure> {
        let file = volume.own().open(MANIFEST)?;
        file.set_len(history.end).map_err(|error| volume.writing(MANIFEST, 0, errno(&error)))?;
        let ledger = Self {
            volume: Arc::clone(volume),
            counters: Arc::clone(counters),
            folds_names,
            naming: Mutex::default(),
            checkpointing: Mutex::default(),
            state: Mutex::new(State {
                file,
                end: history.end,
                digest: history.is_none().then(Sha256::new),
                quiet: 0,
                superseded: !history.is_none(),
                closed: false,
                committed: 0,
                bytes: 0,
                directories: 0,
                tally: Tally::default(),
            }),
        };
        let mut state = ledger.state();
        if history.is_none() {
            let identity = Box::new(identity.clone());
            ledger.append(&mut state, &Line::Header { version: VERSION, identity })?;
        }
        if let Some(from) = history.note_untrusted {
            ledger.append(&mut state, &Line::Untrusted { from })?;
        }
        let at = chrono::Utc::now().to_rfc3339();
        ledger.append(&mut state, &Line::Begin { boot: inspect::boot_id(), at })?;
        drop(state);
        Ok(ledger)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // a panic elsewhere ends the run; what was appended is valid line by line
        lock(&self.state)
    }

    fn append(&self, state: &mut State, line: &Line) -> Result<(), Failure> {
        let bytes = line.encode();
        // one write a line: a kill between two lines loses none, in one tears only the last
        std::os::unix::fs::FileExt::write_all_at(&state.file, &bytes, state.end)
            .map_err(|error| self.volume.writing(MANIFEST, bytes.len() as u64, errno(&error)))?;
        state.end += bytes.len() as u64;
        if let Some(digest) = &mut state.digest {
            digest.update(&bytes);
        }
        Ok(())
    }

    /// Gives a finished staged file its name, unless something has it, and records it.
    pub(crate) fn commit(&self, entry: &Entry, finished: Finished) -> Result<Commit, Failure> {
        let path = entry.file()?;
        let Finished { name, file, digests, checked } = finished;
        let _alone = self.alone();
        let published = self.volume.publish(&name, file, path, entry.modified_ms);
        match published.map_err(|error| self.named(entry, error))? {
            Published::New => {
                Ok(Commit::Done(self.adopt(entry, path.clone(), digests, checked)?))
            }
            Published::Exists => Ok(Commit::Occupied(Unnamed { name, digests, checked })),
        }
    }

    /// Gives a staged file its name in place of what has it, and records it.
    pub(crate) fn take_place(
        &self,
        entry: &Entry,
        unnamed: Unnamed,
        replaces: bool,
    ) -> Result<Committed, Failure> {
        let path = entry.file()?;
        let Unnamed { name, digests, checked } = unnamed;
        let _alone = self.alone();
        self.replace(entry, path, &name, &digests, replaces)?;
        self.adopt(entry, path.clone(), digests, checked)
    }

    /// Nobody else names anything meanwhile, where two names may be one file.
    fn alone(&self) -> Option<std::sync::MutexGuard<'_, ()>> {
        self.folds_names.then(|| lock(&self.naming))
    }

    /// Why an entry could not have its place. Where names are folded, what is in the way may be
    /// another key's.
    fn named(&self, entry: &Entry, error: VolumeError) -> Failure {
        if let VolumeError::InTheWay { path: found, .. } = &error
            && self.folds_names
            && let Ok(found) = found.parse::<VolumePath>()
            && let Ok(Some(stat)) = self.volume.stat(&found)
            && let Ok(Some(other)) = self.other_at(&found, &stat)
        {
            return Failure::OnePath { key: entry.key.clone(), other };
        }
        Failure::at(&entry.key)(error)
    }

    /// Records that the file at `path`, with these checksums, is the object.
    pub(crate) fn adopt(
        &self,
        entry: &Entry,
        path: VolumePath,
        digests: Digests,
        checked: Checked,
    ) -> Result<Committed, Failure> {
        self.record(FileRecord {
            relative: entry.relative().to_owned(),
            path,
            size: digests.length,
            etag: entry.etag.clone(),
            modified_ms: entry.modified_ms,
            crc64: digests.crc64,
            checked,
            sha256: digests.sha256,
        })
    }

    /// Records a file that stands under its name, checked.
    pub(crate) fn record(&self, record: FileRecord) -> Result<Committed, Failure> {
        let line = Line::File(Box::new(record));
        let mut state = self.state();
        self.append(&mut state, &line)?;
        let Line::File(record) = line else { unreachable!("it was made one above") };
        Ok(count(&mut state, &record, &self.counters))
    }

    /// Counts a file that an earlier run committed.
    pub(crate) fn keep(&self, record: &FileRecord) -> Committed {
        self.counters.kept_objects.fetch_add(1, Relaxed);
        self.counters.done_bytes.fetch_add(record.size, Relaxed);
        count(&mut self.state(), record, &self.counters)
    }

    /// Makes a directory, and records it unless it is `kept`.
    pub(crate) fn directory(&self, entry: &Entry, kept: bool) -> Result<(), Failure> {
        let Target::Directory(path) = &entry.target else {
            return Err(Failure::Unexpected(format!("{} is no directory", entry.key)));
        };
        let _alone = self.alone();
        let made = self.volume.make_directory(path);
        made.map_err(|error| self.named(entry, error))?;
        let mut state = self.state();
        state.directories += 1;
        if kept {
            return Ok(());
        }
        let line = Line::Directory { relative: entry.relative().to_owned(), path: path.clone() };
        self.append(&mut state, &line)
    }

    /// Removes what the source does not list any more.
    pub(crate) fn remove(&self, held: &Held) -> Result<(), Failure> {
        let _alone = self.alone();
        if let Held::File { record, .. } = held
            && self.is_of_another(record)?
        {
            return self.forget(held);
        }
        held.remove_from(&self.volume)?;
        self.counters.removed_objects.fetch_add(1, Relaxed);
        let mut state = self.state();
        self.append(&mut state, &Line::Gone { relative: held.relative().to_owned() })
    }

    /// Whether the file that is found at a record's path is by now that of another key, whose name
    /// is folded into this one.
    fn is_of_another(&self, record: &FileRecord) -> Result<bool, Failure> {
        if !self.folds_names || self.volume.is_spelled(&record.path)? {
            return Ok(false);
        }
        let Some(stat) = self.volume.stat(&record.path)? else { return Ok(false) };
        Ok(self.other_at(&record.path, &stat)?.is_some())
    }

    /// Forgets what is no longer ours to keep, and leaves it where it is.
    pub(crate) fn forget(&self, held: &Held) -> Result<(), Failure> {
        let mut state = self.state();
        self.append(&mut state, &Line::Gone { relative: held.relative().to_owned() })
    }

    /// The staged file `name` takes the place of what stands at `path`.
    fn replace(
        &self,
        entry: &Entry,
        path: &VolumePath,
        name: &str,
        digests: &Digests,
        replaces: bool,
    ) -> Result<(), Failure> {
        let stands = self.volume.stat(path)?;
        let kind = stands.map(|stat| FileType::from_raw_mode(stat.st_mode));
        if !replaces
            && self.folds_names
            && let Some(stands) = &stands
            && let Some(other) = self.other_at(path, stands)?
        {
            return Err(Failure::OnePath { key: entry.key.clone(), other });
        }
        if kind.is_some_and(FileType::is_dir) {
            // the listing has this key as a file, so nothing below it is listed: what earlier
            // runs committed there is stale
            self.clear_directory(path)?;
        } else if !replaces {
            let same = match kind {
                None => true,
                Some(kind) => kind.is_file() && self.has_bytes(path, digests)?,
            };
            if !same {
                tracing::warn!(path = path.as_str(), "replaced a file that was not ossvp's");
            }
        }
        Ok(self.volume.replace(name, path)?)
    }

    /// The path of another key that takes this very file or directory at `path`, as which `stands`:
    /// a file system that folds names gives two keys one file.
    fn other_at(&self, path: &VolumePath, stands: &Stat) -> Result<Option<VolumePath>, Failure> {
        let Some(file) = self.volume.own().read(MANIFEST)? else { return Ok(None) };
        let depth = path.as_str().split('/').count();
        let mut lines = Lines::new(file)?;
        let mut found: Option<(String, VolumePath)> = None;
        while let Some((_, line)) = lines.next()? {
            let (relative, other) = match line {
                // a file of another size needs no look
                Line::File(record)
                    if record.size != stands.st_size as u64
                        && record.path.as_str().split('/').count() == depth =>
                {
                    continue;
                }
                Line::File(record) => (record.relative, record.path),
                Line::Directory { relative, path } => (relative, path),
                Line::Gone { relative } => {
                    // it was there, and is no longer listed
                    found = found.filter(|(found, _)| *found != relative);
                    continue;
                }
                _ => continue,
            };
            let mut ends = other.as_str().match_indices('/').map(|(at, _)| at);
            let end = ends.nth(depth - 1).unwrap_or(other.as_str().len());
            let above = &other.as_str()[..end];
            if above != path.as_str()
                && above.split('/').count() == depth
                && let Ok(above) = above.parse::<VolumePath>()
                && self.volume.stat(&above)?.is_some_and(|stat| stat.st_ino == stands.st_ino)
            {
                found = Some((relative, other));
            }
        }
        Ok(found.map(|(_, path)| path))
    }

    fn has_bytes(&self, path: &VolumePath, digests: &Digests) -> Result<bool, Failure> {
        let Some(found) = read_digests(&self.volume, path, super::verify::Wanted::default())?
        else {
            return Ok(false);
        };
        Ok(found.length == digests.length && found.crc64 == digests.crc64)
    }

    /// Removes committed files below the directory `path` and then the directory, which must be
    /// empty by then: others' files are not ours to remove.
    fn clear_directory(&self, path: &VolumePath) -> Result<(), Failure> {
        let below = format!("{}/", path.as_str());
        if let Some(file) = self.volume.own().read(MANIFEST)? {
            let mut lines = Lines::new(file)?;
            while let Some((_, line)) = lines.next()? {
                match line {
                    Line::File(record) if record.path.as_str().starts_with(&below) => {
                        self.volume.remove(&record.path, false)?;
                        self.volume.remove_empty_parents(&record.path)?;
                    }
                    Line::Directory { path: made, .. } if made.as_str().starts_with(&below) => {
                        self.volume.remove(&made, true)?;
                        self.volume.remove_empty_parents(&made)?;
                    }
                    _ => {}
                }
            }
        }
        Ok(self.volume.remove(path, true)?)
    }

    /// Syncs the file system, and notes up to where the manifest can be trusted after a power cut.
    ///
    /// # Errors
    /// A failed sync ends the run: the kernel tells of lost writes once, and not again at the end.
    pub(crate) fn checkpoint(&self) -> Result<(), Failure> {
        let _alone = lock(&self.checkpointing);
        let end = {
            let state = self.state();
            if state.closed || state.quiet == state.end {
                return Ok(());
            }
            state.end
        };
        self.sync_before(end)
    }

    /// Syncs the file system, and notes that all lines before `end` are on the device; lines that are
    /// appended meanwhile are not vouched for.
    fn sync_before(&self, end: u64) -> Result<(), Failure> {
        self.volume.sync()?;
        // not every file system hears a sync of all it has: those behind FUSE do not
        self.sync_manifest()?;
        let mut state = self.state();
        let nothing_since = state.end == end;
        self.append(&mut state, &Line::Synced { before: end })?;
        if nothing_since {
            state.quiet = state.end;
        }
        drop(state);
        // else the line itself would come to the device with the next sync only
        self.sync_manifest()
    }

    fn sync_manifest(&self) -> Result<(), Failure> {
        let file = self.state().file.try_clone();
        let synced = file
            .map_err(|error| errno(&error))
            .and_then(|file| uninterrupted(|| rustix::fs::fdatasync(&file)));
        Ok(synced.map_err(|errno| self.volume.writing(MANIFEST, 0, errno))?)
    }

    /// Syncs everything, and says so in the settled manifest's last line: where the marker is taken
    /// away, the files can still be trusted. The manifest's SHA-256.
    pub(crate) fn conclude(&self, settled: Settled) -> Result<String, Failure> {
        let Settled { mut digest, end } = settled;
        self.sync_before(end)?;
        digest.update(Line::Synced { before: end }.encode());
        Ok(hex(&digest.finalize()))
    }

    /// Waits for a checkpoint under way; none follows.
    pub(crate) fn close(&self) {
        let _alone = lock(&self.checkpointing);
        self.state().closed = true;
    }

    /// What was committed so far.
    pub(crate) fn totals(&self) -> Totals {
        let state = self.state();
        Totals {
            objects: state.committed,
            bytes: state.bytes,
            directories: state.directories,
            tally: state.tally,
        }
    }

    /// Settles the manifest: one line a file; with `sha256`, also `SHA256SUMS`.
    pub(crate) fn settle(&self, sha256: bool) -> Result<Settled, Failure> {
        let mut state = self.state();
        let removed = self.counters.removed_objects.load(Relaxed) > 0;
        if state.superseded {
            let file = self.compacted(&state.file, state.end)?;
            state.end = file.metadata().map_or(0, |meta| meta.len());
            state.file = file;
            state.superseded = false;
        } else if let Some(digest) = state.digest.clone()
            && !sha256
            && !removed
        {
            // nothing is to be made of the lines: that they read back is all
            if self.read_back(state.end)? != digest.clone().finalize() {
                return Err(Failure::Unexpected("the manifest does not read back".to_owned()));
            }
            self.volume.own().remove(SUMS)?;
            return Ok(Settled { digest, end: state.end });
        }
        let mut sums = match sha256 {
            true => Some(BufWriter::new(self.volume.own().draft("SHA256SUMS.new")?)),
            false => None,
        };
        let mut lines = Lines::new(self.written()?)?;
        let mut digest = Sha256::new();
        while let Some((_, line)) = lines.next()? {
            digest.update(lines.raw());
            if let (true, Line::Directory { path, .. }) = (removed, &line) {
                // it may have gone as the empty parent of the last file that was removed from it
                self.volume.make_directory(path)?;
            }
            if let (Some(sums), Line::File(record)) = (&mut sums, &line)
                && let Some(sha256) = &record.sha256
            {
                sums.write_all(sums::line(sha256, record.path.as_str()).as_bytes())
                    .map_err(|error| self.volume.writing(SUMS, 0, errno(&error)))?;
            }
        }
        if lines.end() != state.end {
            return Err(Failure::Unexpected("the manifest does not read back".to_owned()));
        }
        match sums {
            Some(sums) => {
                let file = sums
                    .into_inner()
                    .map_err(|error| self.volume.writing(SUMS, 0, errno(error.error())))?;
                self.volume.own().settle("SHA256SUMS.new", SUMS, &file)?;
            }
            None => self.volume.own().remove(SUMS)?,
        }
        Ok(Settled { digest, end: state.end })
    }

    /// The manifest as it stands on the volume.
    fn written(&self) -> Result<File, Failure> {
        let gone = || Failure::Unexpected("the manifest is gone".to_owned());
        self.volume.own().read(MANIFEST)?.ok_or_else(gone)
    }

    /// The SHA-256 of the first `end` bytes that stand on the volume.
    fn read_back(&self, end: u64) -> Result<sha2::digest::Output<Sha256>, Failure> {
        let wrong = |error: std::io::Error| inspect::reading(MANIFEST, &error);
        let mut lines = BufReader::with_capacity(1 << 17, self.written()?.take(end));
        let mut digest = Sha256::new();
        loop {
            let piece = lines.fill_buf().map_err(wrong)?;
            if piece.is_empty() {
                return Ok(digest.finalize());
            }
            digest.update(piece);
            let length = piece.len();
            lines.consume(length);
        }
    }

    /// Writes the manifest anew, in key order, the last line of each key only.
    fn compacted(&self, file: &File, end: u64) -> Result<File, Failure> {
        let wrong = |error: std::io::Error| -> Failure {
            self.volume.writing(MANIFEST, 0, errno(&error)).into()
        };
        let mut lines = Lines::new(file.try_clone().map_err(wrong)?)?;
        let draft = self.volume.own().draft("manifest.new")?;
        let mut out = BufWriter::with_capacity(1 << 17, draft);
        let mut sorter = Sorter::new(self.volume.own().spill());
        let mut begin = Vec::new();
        while let Some((_, line)) = lines.next()? {
            match &line {
                Line::Header { .. } => out.write_all(lines.raw()).map_err(wrong)?,
                Line::Begin { .. } => begin = lines.raw().to_vec(),
                Line::File(record) => {
                    sorter.push(record.relative.as_bytes(), lines.raw()).map_err(wrong)?;
                }
                Line::Directory { relative, .. } => {
                    sorter.push(relative.as_bytes(), lines.raw()).map_err(wrong)?;
                }
                Line::Gone { relative } => {
                    sorter.push(relative.as_bytes(), b"").map_err(wrong)?;
                }
                Line::Synced { .. } | Line::Untrusted { .. } => {}
            }
        }
        if lines.end() != end {
            return Err(Failure::Unexpected("the manifest does not read back".to_owned()));
        }
        out.write_all(&begin).map_err(wrong)?;
        let mut sorted = sorter.finish().map_err(wrong)?;
        let mut pending: Option<(Vec<u8>, Vec<u8>)> = None;
        loop {
            let next = sorted.next().map_err(wrong)?;
            if let Some((key, line)) = pending.take()
                && next.as_ref().is_none_or(|(next_key, _)| *next_key != key)
            {
                out.write_all(&line).map_err(wrong)?;
            }
            if next.is_none() {
                break;
            }
            pending = next;
        }
        let mut file = out.into_inner().map_err(|error| wrong(error.into_error()))?;
        file.seek(SeekFrom::Start(0)).map_err(wrong)?;
        self.volume.own().settle("manifest.new", MANIFEST, &file)?;
        Ok(file)
    }

    /// Writes the marker: the last thing that happens to a volume. `committed` must prove every
    /// object that the listing has.
    pub(crate) fn mark(&self, marker: &Marker, committed: &Committed) -> Result<(), Failure> {
        let listed = self.counters.wanted_objects.load(Relaxed);
        if committed.0 != listed || marker.objects != listed {
            return Err(Failure::Unexpected(format!(
                "{} objects are committed, {listed} were listed",
                committed.0
            )));
        }
        let text = serde_json::to_string_pretty(marker).expect("plain strings always serialise");
        Ok(self.volume.own().write(MARKER, text.as_bytes())?)
    }
}

fn count(state: &mut State, record: &FileRecord, counters: &Counters) -> Committed {
    state.committed += 1;
    state.bytes += record.size;
    state.tally.count(record.checked);
    counters.done_objects.fetch_add(1, Relaxed);
    Committed(1)
}

/// Bytes read at once when a file is read again: as many as readahead brings at most, and 8 MiB for
/// all that are read at once.
const READ_BYTES: usize = 256 << 10;

/// The checksums of the file at `path`, or `None` if there is no such file.
pub(crate) fn read_digests(
    volume: &Volume,
    path: &VolumePath,
    wanted: super::verify::Wanted,
) -> Result<Option<Digests>, Failure> {
    match volume.read(path) {
        Ok(file) => Ok(Some(digests_of(&file, path.as_str(), 0, u64::MAX, wanted)?)),
        Err(
            VolumeError::Call { source: Errno::NOENT | Errno::NOTDIR | Errno::LOOP, .. }
            | VolumeError::InTheWay { .. },
        ) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The checksums of at most `length` bytes of `file` from `offset` on.
pub(crate) fn digests_of(
    file: &File,
    path: &str,
    offset: u64,
    length: u64,
    wanted: super::verify::Wanted,
) -> Result<Digests, Failure> {
    let mut digester = super::verify::Digester::new(wanted);
    let mut buffer = vec![0; READ_BYTES.min(usize::try_from(length).unwrap_or(READ_BYTES)).max(1)];
    while digester.length() < length {
        let left = usize::try_from(length - digester.length()).unwrap_or(READ_BYTES);
        let want = left.min(buffer.len());
        let at = offset + digester.length();
        match std::os::unix::fs::FileExt::read_at(file, &mut buffer[..want], at) {
            Ok(0) => break,
            Ok(read) => digester.update(&buffer[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                return Err(VolumeError::Call {
                    action: "read",
                    path: path.to_owned(),
                    source: errno(&error),
                }
                .into());
            }
        }
    }
    Ok(digester.finish())
}
