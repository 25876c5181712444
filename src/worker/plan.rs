//! The plan: what is listed, merged with what the volume holds, becomes what is to be done.
//!
//! Both come in key order, so one entry of each is all that is held.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use rustix::fs::{FileType, Stat};

use super::at::VolumeError;
use super::failure::Failure;
use super::inspect::{Capacity, Held, History};
use super::list::{Entry, Listing, Target};
use super::manifest::FileRecord;
use super::progress::Counters;
use super::sums::Sums;
use super::verify::Demands;
use super::volume::Volume;

/// How far a time in whole seconds may be off before its file counts as touched: some file systems
/// keep times in steps of one second, FAT of two.
const TIME_STEP_MS: i64 = 2000;

/// One thing to do.
#[derive(Debug, Clone)]
pub(crate) enum Action {
    /// Fetch the object; `replaces` says that an older version of it is in the volume.
    Fetch { entry: Entry, replaces: bool },
    /// Leave the file as it is.
    Keep(Box<FileRecord>),
    /// Take a file that has no record for the object, if its bytes are the object's: a crash may
    /// come between a file's name and its line in the manifest.
    Adopt(Entry),
    /// Read the file again: fetch it if its bytes are not what was committed.
    Reread { entry: Entry, record: Box<FileRecord> },
    /// Make a directory; `kept` says that it is recorded already.
    MakeDirectory { entry: Entry, kept: bool },
    /// Remove what the source does not list any more.
    Remove(Held),
    /// Forget what is another shard's by now, or someone else's: it stays where it is.
    Forget(Held),
}

/// What to do with a listed object, given what is held under its key. Pure.
pub(crate) fn decide(entry: Entry, held: Option<Held>, demands: Demands) -> Action {
    match (&entry.target, held) {
        (Target::Directory(_), held) => {
            Action::MakeDirectory { entry, kept: matches!(held, Some(Held::Directory { .. })) }
        }
        (Target::File(_), None | Some(Held::Directory { .. })) => {
            Action::Fetch { entry, replaces: false }
        }
        (Target::File(path), Some(Held::File { record, trusted })) => {
            let same_sha = match (entry.sha256, record.sha256) {
                (Some(stated), Some(recorded)) => stated == recorded,
                _ => true,
            };
            let same = *path == record.path && same_version(&entry, &record) && same_sha;
            if !same || !demands.satisfied(record.checked) {
                Action::Fetch { entry, replaces: true }
            } else if !trusted || (demands.sha256 && record.sha256.is_none()) {
                Action::Reread { entry, record }
            } else {
                Action::Keep(record)
            }
        }
    }
}

/// Whether a key has another place than before: with `--unmappable escape`, that depends on the
/// keys beside it.
fn moved(target: &Target, held: &Held) -> bool {
    match (target, held) {
        (Target::File(now), Held::File { record, .. }) => *now != record.path,
        (Target::Directory(now), Held::Directory { path, .. }) => now != path,
        (Target::File(_), Held::Directory { .. }) => true,
        (Target::Directory(_), Held::File { .. }) => true,
    }
}

/// Whether the record was made from the listed version: the ETag decides, else the time.
fn same_version(entry: &Entry, record: &FileRecord) -> bool {
    let same_size = entry.symlink || entry.size == record.size;
    same_size
        && match (&entry.etag, &record.etag) {
            (Some(listed), Some(recorded)) => listed == recorded,
            _ => entry.modified_ms == record.modified_ms,
        }
}

/// How a committed file stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    AsCommitted,
    Changed,
    Gone,
}

/// Whether it is a regular file of this size and time.
fn stands(stat: &Stat, size: u64, modified_ms: i64) -> bool {
    let ns = i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec);
    let wanted_ns = i128::from(modified_ms) * 1_000_000;
    let coarse =
        stat.st_mtime_nsec == 0 && (ns - wanted_ns).abs() <= i128::from(TIME_STEP_MS) * 1_000_000;
    FileType::from_raw_mode(stat.st_mode).is_file()
        && stat.st_size as u64 == size
        && (ns == wanted_ns || coarse)
}

/// How a committed file stands, by size and time.
pub(crate) fn look(volume: &Volume, record: &FileRecord) -> Result<Look, VolumeError> {
    let Some(stat) = volume.stat(&record.path)? else { return Ok(Look::Gone) };
    let same = stands(&stat, record.size, record.modified_ms);
    Ok(if same { Look::AsCommitted } else { Look::Changed })
}

/// Merges listing and history.
#[derive(Debug)]
pub(crate) struct Planner {
    listing: Listing,
    listed: Option<Entry>,
    /// An entry whose old place is being removed.
    moving: Option<Entry>,
    history: History,
    /// Where names are folded: entries whose place something has that is not recorded under their
    /// key. It may be a stale file of another spelling, so they come after all removals.
    late: VecDeque<Entry>,
    /// Whether an earlier run may have left files without a record.
    adopts: bool,
    held: Option<Held>,
    sums: Sums,
    needs: Needs,
    volume: Option<Arc<Volume>>,
    counters: Arc<Counters>,
    started: bool,
}

/// What the plan must meet as a whole.
#[derive(Debug)]
pub(crate) struct Needs {
    pub(crate) demands: Demands,
    /// Where it must fit.
    pub(crate) capacity: Option<Capacity>,
    /// The source, if it must not be empty.
    pub(crate) not_empty: Option<String>,
    /// Whether two names may be one file on the volume.
    pub(crate) folds_names: bool,
}

impl Planner {
    pub(crate) fn new(
        listing: Listing,
        history: History,
        sums: Sums,
        needs: Needs,
        volume: Option<Arc<Volume>>,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            listing,
            listed: None,
            moving: None,
            late: VecDeque::new(),
            adopts: !history.is_none(),
            history,
            held: None,
            sums,
            needs,
            volume,
            counters,
            started: false,
        }
    }

    /// The next thing to do, in key order; `None` when everything was said.
    ///
    /// # Errors
    /// What the listing answers; [`Failure::TooSmall`] as soon as what is listed cannot fit.
    pub(crate) async fn next(&mut self) -> Result<Option<Action>, Failure> {
        if !self.started {
            self.started = true;
            self.listed = self.listing.next().await?;
            // before anything is removed that an empty listing does not have
            let taken = self.counters.taken.load(Relaxed) + self.counters.unmappable.load(Relaxed);
            let empty = self.listed.is_none() && taken == 0;
            if let (true, Some(source)) = (empty, &self.needs.not_empty) {
                return Err(Failure::NothingListed(source.clone()));
            }
            self.held = self.history.next()?;
        }
        if let Some(entry) = self.moving.take() {
            return Ok(Some(decide(entry, None, self.needs.demands)));
        }
        loop {
            let order = match (&self.listed, &self.held) {
                (None, None) => {
                    if let Some(entry) = self.late.pop_front() {
                        return Ok(Some(decide(entry, None, self.needs.demands)));
                    }
                    self.counters.listing_done.store(true, Relaxed);
                    return Ok(None);
                }
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some(entry), Some(held)) => entry.relative().cmp(held.relative()),
            };
            let held = if order.is_ge() { self.take_held()? } else { None };
            if order.is_gt() {
                return held.map(|held| self.removal(held)).transpose();
            }
            let Some(entry) = self.listed.take() else { return Ok(None) };
            self.listed = self.listing.next().await?;
            self.check_room()?;
            if let Some(action) = self.merged(entry, held)? {
                return Ok(Some(action));
            }
        }
    }

    /// What to do with a listed object and what is held under its key.
    fn merged(&mut self, mut entry: Entry, held: Option<Held>) -> Result<Option<Action>, Failure> {
        let moved = held.as_ref().is_some_and(|held| moved(&entry.target, held));
        if !entry.mine {
            // its file may be another shard's by now; its old place is nobody's
            return match held {
                Some(held) if moved => self.removal(held).map(Some),
                held => Ok(held.map(Action::Forget)),
            };
        }
        entry.sha256 = self.sums.of(entry.relative())?;
        let held = match held {
            Some(held) if moved => {
                self.moving = Some(entry);
                return self.removal(held).map(Some);
            }
            // a file that someone touched is not the one that was committed
            Some(Held::File { record, .. }) if self.look(&record)? != Look::AsCommitted => None,
            held => held,
        };
        if held.is_none() && self.adopts && self.looks_like(&entry)? {
            if let Some(Capacity { bytes, .. }) = &mut self.needs.capacity {
                // neither free nor recorded so far
                *bytes = bytes.saturating_add(entry.size);
            }
            return Ok(Some(Action::Adopt(entry)));
        }
        if held.is_none() && self.needs.folds_names && self.is_taken(&entry)? {
            self.late.push_back(entry);
            return Ok(None);
        }
        Ok(Some(decide(entry, held, self.needs.demands)))
    }

    /// Whether something stands in the entry's way.
    fn is_taken(&self, entry: &Entry) -> Result<bool, Failure> {
        let Some(volume) = &self.volume else { return Ok(false) };
        let taken = match &entry.target {
            Target::File(path) => volume.is_taken(path, false),
            Target::Directory(path) => volume.is_taken(path, true),
        };
        taken.map_err(Failure::at(&entry.key))
    }

    /// Whether a file stands in the entry's place that might be it, by size and time.
    fn looks_like(&self, entry: &Entry) -> Result<bool, Failure> {
        let (Target::File(path), Some(volume)) = (&entry.target, &self.volume) else {
            return Ok(false);
        };
        if entry.symlink {
            return Ok(false);
        }
        let stat = volume.stat(path).map_err(Failure::at(&entry.key))?;
        Ok(stat.is_some_and(|stat| stands(&stat, entry.size, entry.modified_ms))
            && (!self.needs.folds_names || volume.is_spelled(path)?))
    }

    /// Removes what is no longer listed, unless someone changed it since.
    fn removal(&self, held: Held) -> Result<Action, Failure> {
        if let Held::File { record, .. } = &held
            && self.look(record)? == Look::Changed
        {
            let path = record.path.as_str();
            tracing::warn!(path, "no longer listed, but changed by someone: left where it is");
            return Ok(Action::Forget(held));
        }
        Ok(Action::Remove(held))
    }

    fn take_held(&mut self) -> Result<Option<Held>, Failure> {
        let next = self.history.next()?;
        Ok(std::mem::replace(&mut self.held, next))
    }

    fn look(&self, record: &FileRecord) -> Result<Look, Failure> {
        match &self.volume {
            Some(volume) => Ok(look(volume, record)?),
            None => Ok(Look::AsCommitted),
        }
    }

    fn check_room(&self) -> Result<(), Failure> {
        self.needs.capacity.map_or(Ok(()), |capacity| capacity.takes(&self.counters))
    }

    /// The digest of the whole listing, once [`Planner::next`] has said everything.
    pub(crate) fn listing_digest(self) -> String {
        self.listing.digest()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handoff::{Checked, VerifyMode};
    use crate::keys::Key;

    fn entry() -> Entry {
        Entry {
            key: Key::new("p/a").unwrap(),
            parent_len: 2,
            target: Target::File("a".parse().unwrap()),
            size: 5,
            etag: Some("\"e\"".into()),
            modified_ms: 1000,
            symlink: false,
            sha256: None,
            mine: true,
        }
    }

    fn record() -> FileRecord {
        FileRecord {
            relative: "a".into(),
            path: "a".parse().unwrap(),
            size: 5,
            etag: Some("\"e\"".into()),
            modified_ms: 1000,
            crc64: 1,
            checked: Checked::Crc64,
            sha256: None,
        }
    }

    #[test]
    fn each_case_has_its_action() {
        let auto = Demands { verify: VerifyMode::Auto, sha256: false };
        let require = Demands { verify: VerifyMode::Require, sha256: false };
        let off = Demands { verify: VerifyMode::Off, sha256: false };
        let sums = Demands { verify: VerifyMode::Auto, sha256: true };
        let unverified = FileRecord { checked: Checked::Unverified, ..record() };
        let unchecked = FileRecord { checked: Checked::Off, ..record() };
        let no_etag = |modified_ms| FileRecord { etag: None, modified_ms, ..record() };
        for (name, record, trusted, demands, wanted) in [
            ("the same version is kept", record(), true, auto, "keep"),
            (
                "another ETag is fetched",
                FileRecord { etag: Some("\"f\"".into()), ..record() },
                true,
                auto,
                "fetch",
            ),
            ("another size is fetched", FileRecord { size: 6, ..record() }, true, auto, "fetch"),
            ("without an ETag the time decides", no_etag(1000), true, auto, "keep"),
            ("without an ETag another time is fetched", no_etag(2000), true, auto, "fetch"),
            (
                "with an ETag the time does not count",
                FileRecord { modified_ms: 9, ..record() },
                true,
                auto,
                "keep",
            ),
            ("what may be lost is read again", record(), false, auto, "reread"),
            ("a missing SHA-256 is computed", record(), true, sums, "reread"),
            (
                "a recorded SHA-256 is enough",
                FileRecord { sha256: Some([0; 32]), ..record() },
                true,
                sums,
                "keep",
            ),
            ("unverified satisfies auto", unverified.clone(), true, auto, "keep"),
            ("unverified does not satisfy require", unverified, true, require, "fetch"),
            ("off does not satisfy auto", unchecked.clone(), true, auto, "fetch"),
            ("off satisfies off", unchecked, true, off, "keep"),
        ] {
            let held = Some(Held::File { record: Box::new(record), trusted });
            let found = match decide(entry(), held, demands) {
                Action::Fetch { .. } => "fetch",
                Action::Keep(_) => "keep",
                Action::Reread { .. } => "reread",
                Action::MakeDirectory { .. }
                | Action::Adopt(_)
                | Action::Remove(_)
                | Action::Forget(_) => "other",
            };
            assert_eq!(found, wanted, "{name}");
        }
        let stated = Entry { sha256: Some([1; 32]), ..entry() };
        let record = Box::new(FileRecord { sha256: Some([2; 32]), ..record() });
        let held = Held::File { record, trusted: true };
        assert!(matches!(decide(stated, Some(held), sums), Action::Fetch { replaces: true, .. }));
        assert!(matches!(decide(entry(), None, auto), Action::Fetch { replaces: false, .. }));
    }
}
