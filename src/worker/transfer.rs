//! Transfers: what one request brings, from the answer to the commit.
//!
//! The unit of work is a whole object, or one part of a large one. The last part that arrives checks
//! and commits its object.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use object_store::{GetOptions, GetRange, GetResult, ObjectStore};
use tokio::sync::Semaphore;

use super::commit::{Commit, Committed, Finished, Ledger, digests_of, read_digests};
use super::failure::Failure;
use super::large::{Large, Opening};
use super::list::Entry;
use super::manifest::FileRecord;
use super::options::Options;
use super::plan::Action;
use super::progress::Counters;
use super::staging;
use super::verify::{Demands, Digester, Digests, Expected, Judged, Mismatch, Wanted};
use super::volume::Volume;
use super::write::{Calls, Staged, Writer, blocking};
use crate::handoff::{Direct, VerifyMode};
use crate::keys::{Dialect, VolumePath};
use crate::store::{Source, Stated, StoreError, explain, location};

/// Parts that may write past the page cache at once. Each holds a buffer of 1 MiB, and that many
/// writes keep any one device busy.
const DIRECT_PARTS: usize = 32;

/// Files that may be read again at once. Each holds a thread and a buffer, which the requests in
/// flight would make hundreds of, and that many reads keep any one device busy.
const READERS: usize = 32;

/// How often an object is fetched before its checksum is taken to be really wrong.
const ATTEMPTS: u32 = 3;

/// The largest object that is received whole before its file is made: then all its file calls are
/// made in one go, and one that arrives wrong leaves nothing behind.
const SMALL: usize = 128 << 10;

/// What the transfers of one lane need.
#[derive(Debug, Clone)]
pub(crate) struct Transfers {
    objects: Arc<dyn ObjectStore>,
    dialect: Dialect,
    volume: Arc<Volume>,
    ledger: Arc<Ledger>,
    /// Calls that make, name and remove files.
    naming: Arc<Calls>,
    /// Calls that write to them.
    writing: Arc<Calls>,
    counters: Arc<Counters>,
    options: Arc<Options>,
    demands: Demands,
    direct: Arc<Semaphore>,
    readers: Arc<Semaphore>,
    names: Arc<AtomicU64>,
}

/// One request.
#[derive(Debug)]
pub(crate) enum Unit {
    Whole { entry: Box<Entry>, replaces: bool },
    Part { large: Arc<Large>, index: usize },
    Reread { entry: Box<Entry>, record: Box<FileRecord> },
    Adopt(Box<Entry>),
}

impl Unit {
    /// Whether it begins with a request, and not with a look at what is there.
    pub(crate) fn asks(&self) -> bool {
        match self {
            Self::Whole { .. } | Self::Adopt(_) => true,
            Self::Part { large, index } => !large.is_noted(*index),
            Self::Reread { .. } => false,
        }
    }
}

/// What came of an action or a request.
#[derive(Debug)]
pub(crate) enum Step {
    Committed(Committed),
    /// A directory, a removal, a part that was not the last.
    Nothing,
    /// A request to make.
    Unit(Unit),
    /// An object to fetch in parts.
    Large(Arc<Large>),
}

/// What came of one attempt to fetch a whole object.
enum Attempt {
    Committed(Committed),
    Large(Arc<Large>),
    Mismatch(Box<Entry>, Mismatch),
}

/// Where a body goes.
enum Body {
    Held(Held),
    Written(Writer),
}

/// A small body in memory. One that comes in one frame stays in it; of more frames each would hold
/// the whole buffer that it came in.
#[derive(Default)]
struct Held {
    size: usize,
    only: Bytes,
    several: Vec<u8>,
}

impl Held {
    fn push(&mut self, frame: Bytes) {
        if frame.len() == self.size {
            self.only = frame;
            return;
        }
        self.several.reserve_exact(self.size - self.several.len());
        self.several.extend_from_slice(&frame);
    }

    /// Gives back the buffer that it came in.
    fn move_out(&mut self) {
        if self.several.is_empty() {
            self.several = std::mem::take(&mut self.only).to_vec();
        }
    }

    fn bytes(&self) -> &[u8] {
        if self.several.is_empty() { &self.only } else { &self.several }
    }
}

impl Transfers {
    /// One for each of so many lanes: connections of their own, everything else shared.
    pub(crate) fn for_lanes(
        lanes: usize,
        source: &Source,
        volume: &Arc<Volume>,
        ledger: &Arc<Ledger>,
        naming: &Arc<Calls>,
        counters: &Arc<Counters>,
        options: &Arc<Options>,
    ) -> Vec<Arc<Self>> {
        let first = Self {
            objects: source.objects(),
            dialect: source.dialect(),
            volume: Arc::clone(volume),
            ledger: Arc::clone(ledger),
            naming: Arc::clone(naming),
            writing: Calls::new(counters, Duration::ZERO),
            counters: Arc::clone(counters),
            options: Arc::clone(options),
            demands: options.demands(),
            direct: Arc::new(Semaphore::new(DIRECT_PARTS)),
            readers: Arc::new(Semaphore::new(READERS)),
            names: Arc::default(),
        };
        let with = |_| Arc::new(Self { objects: source.objects(), ..first.clone() });
        (0..lanes).map(with).collect()
    }

    /// Waits for file calls that go on although their request was dropped.
    pub(crate) async fn settled(&self) {
        self.naming.settled().await;
        self.writing.settled().await;
    }

    /// Whether the file system takes its time over names.
    pub(crate) fn names_are_slow(&self) -> bool {
        self.naming.are_slow()
    }

    /// Does what needs no request at once, and makes a unit of what does.
    pub(crate) async fn begin(&self, action: Action) -> Result<Step, Failure> {
        let ledger = Arc::clone(&self.ledger);
        Ok(match action {
            Action::Keep(record) => Step::Committed(ledger.keep(&record)),
            Action::MakeDirectory { entry, kept } => {
                self.naming.run(move || ledger.directory(&entry, kept)).await?;
                Step::Nothing
            }
            Action::Remove(held) => {
                self.naming.run(move || ledger.remove(&held)).await?;
                Step::Nothing
            }
            Action::Forget(held) => {
                self.writing.run(move || ledger.forget(&held)).await?;
                Step::Nothing
            }
            Action::Adopt(entry) if self.dialect == Dialect::File => {
                self.fetch(entry, false).await?
            }
            Action::Adopt(entry) => Step::Unit(Unit::Adopt(Box::new(entry))),
            Action::Reread { entry, record } => {
                Step::Unit(Unit::Reread { entry: Box::new(entry), record })
            }
            Action::Fetch { entry, replaces } => self.fetch(entry, replaces).await?,
        })
    }

    /// Whether an object is fetched in parts; of a symlink the size is not known yet.
    pub(crate) fn is_large(&self, entry: &Entry) -> bool {
        !entry.symlink && entry.size > self.options.part_size
    }

    /// An object in one request, or a large one that is opened for its parts.
    async fn fetch(&self, entry: Entry, replaces: bool) -> Result<Step, Failure> {
        if !self.is_large(&entry) {
            return Ok(Step::Unit(Unit::Whole { entry: Box::new(entry), replaces }));
        }
        let etag = entry.etag.clone();
        Ok(Step::Large(self.large(entry, replaces, etag).await?))
    }

    /// Opens an object in parts, in the version `etag`.
    async fn large(
        &self,
        entry: Entry,
        replaces: bool,
        etag: Option<String>,
    ) -> Result<Arc<Large>, Failure> {
        let (volume, calls) = (Arc::clone(&self.volume), Arc::clone(&self.writing));
        let (direct, wanted) = (self.options.direct, self.part_digests());
        let part_size = self.options.part_size_for(entry.size);
        let open = move || {
            let opening = Opening { volume: &volume, calls: &calls, part_size, direct, wanted };
            let size = entry.size;
            Large::open(opening, entry, replaces, size, etag)
        };
        self.naming.run(open).await
    }

    pub(crate) async fn perform(&self, unit: Unit) -> Result<Step, Failure> {
        match unit {
            Unit::Whole { entry, replaces } => self.whole(entry, replaces).await,
            Unit::Part { large, index } => self.part(large, index).await,
            Unit::Reread { entry, record } => self.reread(*entry, *record).await,
            Unit::Adopt(entry) => self.adopt(*entry).await,
        }
    }

    /// Sends a GET or a HEAD. An answer that contradicts the listing while the source says that
    /// nothing has changed may be one broken answer: it is asked for again before it counts.
    async fn get(
        &self,
        entry: &Entry,
        options: GetOptions,
    ) -> Result<(GetResult, Stated), Failure> {
        let mut attempt = 1;
        loop {
            let sent = self.objects.get_opts(&location(&entry.key), options.clone()).await;
            let contradicts = match &sent {
                Ok(answer) => !entry.symlink && answer.meta.size != entry.size,
                Err(_) => false,
            };
            let answer = sent.map_err(explain);
            let differs = matches!(answer, Err(StoreError::ChangedMeanwhile { .. }));
            if (contradicts || differs) && attempt < ATTEMPTS && self.dialect != Dialect::File {
                tracing::debug!(key = %entry.key, attempt, "the answer is of another version");
                attempt += 1;
                continue;
            }
            let answer = answer?;
            let stated = answer.extensions.get::<Stated>().cloned().unwrap_or_default();
            return Ok((answer, stated));
        }
    }

    async fn whole(&self, mut entry: Box<Entry>, replaces: bool) -> Result<Step, Failure> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.attempt(entry, replaces).await? {
                Attempt::Committed(committed) => return Ok(Step::Committed(committed)),
                Attempt::Large(large) => return Ok(Step::Large(large)),
                Attempt::Mismatch(back, mismatch) => {
                    self.again(&back, attempts, mismatch)?;
                    entry = back;
                }
            }
        }
    }

    /// Notes a mismatch; an error once the object was fetched [`ATTEMPTS`] times.
    fn again(&self, entry: &Entry, attempts: u32, source: Mismatch) -> Result<(), Failure> {
        if attempts >= ATTEMPTS {
            return Err(Failure::Mismatch { key: entry.key.clone(), attempts, source });
        }
        tracing::warn!(key = %entry.key, attempt = attempts, error = %source, "fetching again");
        self.counters.refetched.fetch_add(1, Relaxed);
        Ok(())
    }

    async fn attempt(&self, mut entry: Box<Entry>, replaces: bool) -> Result<Attempt, Failure> {
        let if_match = if entry.symlink { None } else { entry.etag.clone() };
        let (answer, stated) =
            self.get(&entry, GetOptions { if_match, ..GetOptions::default() }).await?;
        let size = answer.meta.size;
        if entry.symlink {
            self.counters.wanted_bytes.fetch_add(size, Relaxed);
            self.counters.wanted_bytes.fetch_sub(entry.size, Relaxed);
            entry.size = size;
            if size > self.options.part_size {
                let etag = answer.meta.e_tag.clone();
                return Ok(Attempt::Large(self.large(*entry, replaces, etag).await?));
            }
        } else {
            same_size(&entry, size)?;
        }
        let name = staging::name(self.names.fetch_add(1, Relaxed), self.naming.are_slow());
        let wanted = Wanted::for_check(self.demands.expected(&stated), self.demands.sha256);
        let mut body = match usize::try_from(size) {
            Ok(size) if size <= SMALL => Body::Held(Held { size, ..Held::default() }),
            _ => {
                let staged = self.naming.run(self.staging(&name, &entry, size)?).await?;
                Body::Written(Arc::new(staged).writer(0)?)
            }
        };
        let digests = self.receive(answer, wanted, &mut body).await?;
        match self.demands.judge(&stated, entry.sha256, &digests) {
            Judged::Sound(checked) => {
                if let Body::Held(held) = &mut body
                    && self.naming.are_slow()
                {
                    // it will wait, and not alone
                    held.move_out();
                }
                let stage = self.staging(&name, &entry, size)?;
                let finish = move || {
                    let staged = match body {
                        Body::Written(writer) => sole(writer.into_staged())?,
                        Body::Held(held) => {
                            let staged = stage()?;
                            staged.write(held.bytes(), 0)?;
                            staged
                        }
                    };
                    Ok(Finished { name, file: staged.finish()?, digests, checked })
                };
                Ok(Attempt::Committed(self.commit(entry, replaces, finish).await?))
            }
            Judged::Unverifiable => Err(Failure::Unverifiable(entry.key.clone())),
            Judged::Wrong(mismatch) => {
                self.counters.done_bytes.fetch_sub(digests.length, Relaxed);
                if let Body::Written(_) = body {
                    let volume = Arc::clone(&self.volume);
                    self.naming.run(move || Ok(volume.staging().discard(&name)?)).await?;
                }
                Ok(Attempt::Mismatch(entry, mismatch))
            }
        }
    }

    /// The call that opens a new staged file for an object in one request.
    fn staging(
        &self,
        name: &str,
        entry: &Entry,
        size: u64,
    ) -> Result<impl FnOnce() -> Result<Staged, Failure> + Send + 'static + use<>, Failure> {
        let (volume, calls) = (Arc::clone(&self.volume), Arc::clone(&self.writing));
        let (name, path) = (name.to_owned(), entry.file()?.clone());
        Ok(move || Staged::open(&volume, &calls, &name, &path, size, true, Direct::Off))
    }

    /// Finishes a staged file and commits it.
    async fn commit(
        &self,
        entry: Box<Entry>,
        replaces: bool,
        finish: impl FnOnce() -> Result<Finished, Failure> + Send + 'static,
    ) -> Result<Committed, Failure> {
        let ledger = Arc::clone(&self.ledger);
        let commit = move || Ok((ledger.commit(&entry, finish()?)?, entry));
        let committed = match self.naming.run(commit).await? {
            (Commit::Done(committed), _) => committed,
            // it may read a large file, or the manifest: not where requests are served
            (Commit::Occupied(unnamed), entry) => {
                let ledger = Arc::clone(&self.ledger);
                let take = move || ledger.take_place(&entry, unnamed, replaces);
                self.naming.aside(take).await?
            }
        };
        self.counters.fetched_objects.fetch_add(1, Relaxed);
        Ok(committed)
    }

    /// Takes a body in, and computes over it what is wanted.
    async fn receive(
        &self,
        answer: GetResult,
        wanted: Wanted,
        into: &mut Body,
    ) -> Result<Digests, Failure> {
        let expected = answer.range.end - answer.range.start;
        let mut digester = Digester::new(wanted);
        let mut body = answer.into_stream();
        while let Some(frame) = body.next().await {
            let frame = frame.map_err(explain)?;
            digester.update(&frame);
            self.counters.fetched_bytes.fetch_add(frame.len() as u64, Relaxed);
            self.counters.done_bytes.fetch_add(frame.len() as u64, Relaxed);
            match into {
                Body::Held(held) => held.push(frame),
                Body::Written(writer) => writer.write(frame).await?,
            }
        }
        if let Body::Written(writer) = into {
            writer.finish().await?;
        }
        if digester.length() != expected {
            return Err(Failure::Unexpected(format!(
                "a body of {expected} bytes ended after {}",
                digester.length()
            )));
        }
        Ok(digester.finish())
    }

    async fn part(&self, large: Arc<Large>, index: usize) -> Result<Step, Failure> {
        let range = large.range(index);
        let kept = if large.is_noted(index) {
            let large = Arc::clone(&large);
            self.reading(move || large.kept_part(index)).await?
        } else {
            None
        };
        let (digests, fresh) = match kept {
            Some(digests) => {
                self.counters.kept_parts.fetch_add(1, Relaxed);
                self.counters.done_bytes.fetch_add(digests.length, Relaxed);
                (digests, false)
            }
            None => {
                let staged = large.staged()?;
                let _buffer = if staged.is_direct() {
                    Some(self.direct.acquire().await.expect("the semaphore is never closed"))
                } else {
                    None
                };
                let options = GetOptions {
                    if_match: large.etag().map(str::to_owned),
                    range: Some(GetRange::Bounded(range.clone())),
                    ..GetOptions::default()
                };
                let (answer, stated) = self.get(large.entry(), options).await?;
                same_size(large.entry(), answer.meta.size)?;
                large.state(stated);
                let mut body = Body::Written(staged.writer(range.start)?);
                (self.receive(answer, self.part_digests(), &mut body).await?, true)
            }
        };
        let noting = Arc::clone(&large);
        if !self.writing.run(move || noting.note_part(index, digests, fresh)).await? {
            return Ok(Step::Nothing);
        }
        self.finish(&large).await.map(Step::Committed)
    }

    /// What is computed over a part: all that combines, where it is not known yet what the source
    /// states of the whole.
    fn part_digests(&self) -> Wanted {
        match self.dialect {
            Dialect::S3 => Wanted::COMBINING,
            Dialect::Oss | Dialect::File => Wanted::default(),
        }
    }

    /// Checks and commits a large object whose last part has arrived.
    async fn finish(&self, large: &Arc<Large>) -> Result<Committed, Failure> {
        let entry = large.entry();
        let mut digests = large.joined()?;
        let mut attempts = 1;
        loop {
            let stated = self.stated_of(large).await?;
            let wanted = Wanted::for_check(self.demands.expected(&stated), self.demands.sha256);
            if !digests.have(wanted) {
                let (source, whole, length) = (Arc::clone(large), wanted, digests.length);
                let reread = self
                    .reading(move || {
                        // not to the file's end: padding stands there until it is finished
                        digests_of(&source.reader()?, source.path().as_str(), 0, length, whole)
                    })
                    .await?;
                if (reread.length, reread.crc64) != (digests.length, digests.crc64) {
                    return Err(Failure::Unexpected(format!(
                        "{} does not read back from the volume as it was written",
                        large.path()
                    )));
                }
                digests = reread;
            }
            match self.demands.judge(&stated, entry.sha256, &digests) {
                Judged::Unverifiable => return Err(Failure::Unverifiable(entry.key.clone())),
                Judged::Sound(checked) => {
                    let whole = Arc::clone(large);
                    let finish = move || {
                        let file = sole(whole.take_staged()?)?.finish()?;
                        Ok(Finished { name: whole.name().to_owned(), file, digests, checked })
                    };
                    let entry = Box::new(entry.clone());
                    let committed = self.commit(entry, large.replaces(), finish).await?;
                    let whole = Arc::clone(large);
                    self.naming.run(move || whole.forget_parts()).await?;
                    return Ok(committed);
                }
                Judged::Wrong(mismatch) => {
                    // which part is wrong cannot be known
                    large.forget_parts()?;
                    self.again(entry, attempts, mismatch)?;
                    attempts += 1;
                    self.counters.done_bytes.fetch_sub(digests.length, Relaxed);
                    let if_match = large.etag().map(str::to_owned);
                    let options = GetOptions { if_match, ..GetOptions::default() };
                    let (answer, stated) = self.get(entry, options).await?;
                    same_size(entry, answer.meta.size)?;
                    // it may have been the checksum that was wrong
                    large.state_anew(stated.clone());
                    let wanted =
                        Wanted::for_check(self.demands.expected(&stated), self.demands.sha256);
                    let staged = large.staged()?;
                    let mut body = Body::Written(staged.writer(0)?);
                    drop(staged);
                    digests = self.receive(answer, wanted, &mut body).await?;
                }
            }
        }
    }

    /// What the source states of a large object. OSS says it with every part; S3 keeps silent on a
    /// range, and a resume may not have asked for any part.
    async fn stated_of(&self, large: &Large) -> Result<Stated, Failure> {
        match (self.dialect, large.stated()) {
            (Dialect::Oss, Some(stated)) => Ok(stated),
            (Dialect::File, _) => Ok(Stated::default()),
            (Dialect::Oss | Dialect::S3, _) => {
                let if_match = large.etag().map(str::to_owned);
                let options = GetOptions { if_match, head: true, ..GetOptions::default() };
                Ok(self.get(large.entry(), options).await?.1)
            }
        }
    }

    /// Runs a call that reads a file again.
    async fn reading<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let _reader = self.readers.acquire().await.expect("the semaphore is never closed");
        blocking(call).await
    }

    /// The checksums of the file at `path`, past the page cache, which may show what the device has
    /// lost; `None` if there is no such file.
    async fn read_from_device(
        &self,
        path: &VolumePath,
        wanted: Wanted,
    ) -> Result<Option<Digests>, Failure> {
        let (volume, path) = (Arc::clone(&self.volume), path.clone());
        self.reading(move || {
            volume.drop_cached(&path);
            read_digests(&volume, &path, wanted)
        })
        .await
    }

    /// Takes a file that stands in an object's place for the object, if a checksum of the source
    /// says so.
    async fn adopt(&self, entry: Entry) -> Result<Step, Failure> {
        let path = entry.file()?.clone();
        let if_match = entry.etag.clone();
        let options = GetOptions { if_match, head: true, ..GetOptions::default() };
        let stated = self.get(&entry, options).await?.1;
        let Some(expected) = Expected::best(&stated) else {
            return self.fetch(entry, false).await;
        };
        let wanted = Wanted::for_check(Some(expected), self.demands.sha256);
        let found = self.read_from_device(&path, wanted).await?;
        let is_it = |found: &Digests| found.length == entry.size && found.compare(expected).is_ok();
        let judged = found
            .filter(is_it)
            .map(|found| (found, self.demands.judge(&stated, entry.sha256, &found)));
        let Some((digests, Judged::Sound(checked))) = judged else {
            return self.fetch(entry, false).await;
        };
        self.counters.kept_objects.fetch_add(1, Relaxed);
        self.counters.done_bytes.fetch_add(entry.size, Relaxed);
        tracing::debug!(path = path.as_str(), "adopted");
        let ledger = Arc::clone(&self.ledger);
        let adopt = move || ledger.adopt(&entry, path, digests, checked);
        Ok(Step::Committed(self.writing.run(adopt).await?))
    }

    /// Reads a committed file again: it is kept if its bytes are still what was committed.
    async fn reread(&self, entry: Entry, record: FileRecord) -> Result<Step, Failure> {
        let wanted = Wanted { sha256: self.demands.sha256, ..Wanted::default() };
        let found = self.read_from_device(&record.path, wanted).await?;
        let same = |found: &Digests| found.length == record.size && found.crc64 == record.crc64;
        let Some(found) = found.filter(same) else {
            tracing::warn!(
                path = record.path.as_str(),
                "a committed file lost bytes: fetching it again"
            );
            return self.fetch(entry, true).await;
        };
        if self.demands.sha256 && self.demands.verify != VerifyMode::Off {
            let stated = match self.dialect {
                Dialect::File => Stated::default(),
                Dialect::Oss | Dialect::S3 => {
                    let options = GetOptions { head: true, ..GetOptions::default() };
                    self.get(&entry, options).await?.1
                }
            };
            let stated = [stated.user_sha256, entry.sha256];
            let differs = |sha256| found.compare(Expected::Sha256(sha256)).is_err();
            if stated.into_iter().flatten().any(differs) {
                return self.fetch(entry, true).await;
            }
        }
        self.counters.kept_objects.fetch_add(1, Relaxed);
        self.counters.done_bytes.fetch_add(record.size, Relaxed);
        let record = FileRecord { sha256: found.sha256.or(record.sha256), ..record };
        let ledger = Arc::clone(&self.ledger);
        Ok(Step::Committed(self.writing.run(move || ledger.record(record)).await?))
    }
}

fn same_size(entry: &Entry, size: u64) -> Result<(), Failure> {
    if entry.size == size {
        return Ok(());
    }
    let what = format!("it was listed with {} bytes and has {size}", entry.size);
    Err(Failure::Changed { key: entry.key.clone(), what })
}

/// The only owner of a staged file whose writers are done.
fn sole(staged: Arc<Staged>) -> Result<Staged, Failure> {
    Arc::into_inner(staged)
        .ok_or_else(|| Failure::Unexpected("a staged file is still being written".to_owned()))
}
