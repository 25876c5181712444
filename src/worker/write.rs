//! Staged files: bytes on their way to a name of their own.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use memmap2::{Advice, MmapMut};
use rustix::fs::{FsWord, OFlags};
use rustix::io::Errno;
use tokio::sync::Semaphore;

use super::at::{drop_cached, errno};
use super::failure::Failure;
use super::progress::Counters;
use super::volume::Volume;
use crate::handoff::Direct;
use crate::keys::VolumePath;
use crate::lock::lock;

/// A file system whose every call takes longer is worth a hop to another thread, which costs some 10
/// to 20 µs; local ones answer in 1 to 50 µs, NAS and CPFS in 1 to 5 ms.
pub(crate) const SLOW: Duration = Duration::from_micros(300);
/// How many calls are looked at together. Of these the fastest counts: one that waited for a lock or
/// for a core says nothing about the file system, and more threads would only make it wait longer.
const WINDOW: u64 = 32;
/// More calls than there are ever requests.
const MOST_CALLS: u32 = 1 << 20;

/// Runs file calls of one kind where they harm the network least: at once while they are fast, on a
/// thread for calls that block while the file system turns out to be slow. Names and bytes are kinds of
/// their own: a NAS takes bytes into its cache at once, and milliseconds to make a file.
#[derive(Debug)]
pub(crate) struct Calls {
    counters: Arc<Counters>,
    /// A permit for each call that runs where it may block.
    under_way: Arc<Semaphore>,
    count: AtomicU64,
    /// The fastest call of this window, and of the last, in ns.
    fastest_ns: AtomicU64,
    last_ns: AtomicU64,
}

impl Calls {
    /// Of calls that are taken to last as long as `one`, until enough of them are seen.
    pub(crate) fn new(counters: &Arc<Counters>, one: Duration) -> Arc<Self> {
        Arc::new(Self {
            counters: Arc::clone(counters),
            under_way: Arc::new(Semaphore::new(MOST_CALLS as usize)),
            count: AtomicU64::new(0),
            fastest_ns: AtomicU64::new(u64::MAX),
            last_ns: AtomicU64::new(nanoseconds(one)),
        })
    }

    /// Runs `call`: here, or where it may block.
    pub(crate) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        call: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        if self.are_slow() { self.aside(call).await } else { self.timed(call) }
    }

    /// Whether the file system takes its time over them.
    pub(crate) fn are_slow(&self) -> bool {
        self.last_ns.load(Relaxed) > SLOW.as_nanos() as u64
    }

    /// Runs `call` where it may block.
    pub(crate) async fn aside<T: Send + 'static>(
        self: &Arc<Self>,
        call: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let under_way = Arc::clone(&self.under_way).acquire_owned().await;
        let calls = Arc::clone(self);
        blocking(move || {
            let _under_way = under_way;
            calls.timed(call)
        })
        .await
    }

    /// Waits for the calls that go on without whoever made them.
    pub(crate) async fn settled(&self) {
        // an error would say that the semaphore is closed, which it never is
        let _ = self.under_way.acquire_many(MOST_CALLS).await;
    }

    fn timed<T>(&self, call: impl FnOnce() -> T) -> T {
        let (value, took) = timed(call);
        let ns = nanoseconds(took);
        self.counters.writing_ns.fetch_add(ns, Relaxed);
        self.fastest_ns.fetch_min(ns, Relaxed);
        if self.count.fetch_add(1, Relaxed) % WINDOW == WINDOW - 1 {
            self.last_ns.store(self.fastest_ns.swap(u64::MAX, Relaxed), Relaxed);
        }
        value
    }
}

/// What a call gave, and how long it took.
pub(crate) fn timed<T>(call: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    (call(), start.elapsed())
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Runs a call that may take long where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(call)
        .await
        .map_err(|error| Failure::Unexpected(format!("a file call did not finish: {error}")))?
}

/// The alignment that O_DIRECT asks for on every file system in use: a page.
pub(crate) const ALIGNMENT: usize = 4096;
/// From this size on a file's space is reserved before it is written: a smaller one is allocated in
/// one piece anyway when it is written back, and the call costs as much as making the file.
const RESERVED: u64 = 1 << 20;
/// Bytes of one O_DIRECT write: with writes of 1 MiB a bare client left nothing to be gained by
/// larger ones on ext4.
const DIRECT_WRITE: usize = 1 << 20;

/// Memory is mapped in such pieces, each of which can be one large page: a write from it is one run of
/// memory to the device, where 256 pages are as many segments, and more than one request can have.
const LARGE_PAGE: usize = 2 << 20;

/// Buffers that were used and are there already: what is new to a process costs a fault a page. They
/// last as long as the process: there are never more than parts that write past the page cache at once.
static SPARE: Mutex<Vec<&'static mut [u8]>> = Mutex::new(Vec::new());

/// Maps one large page more: a buffer, and another to spare.
fn map() -> io::Result<[&'static mut [u8]; 2]> {
    // where a mapping begins is for the kernel to say: so much that a large page is in it
    let mapped = Box::leak(Box::new(MmapMut::map_anon(2 * LARGE_PAGE)?));
    // without large pages everything is as before
    let _ = mapped.advise(Advice::HugePage);
    let skipped = mapped.as_ptr().align_offset(LARGE_PAGE);
    let (one, other) = mapped[skipped..][..LARGE_PAGE].split_at_mut(DIRECT_WRITE);
    Ok([one, other])
}

/// Bytes that begin at an aligned address.
#[derive(Debug)]
struct Aligned {
    bytes: &'static mut [u8],
    used: usize,
}

impl Drop for Aligned {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            lock(&SPARE).push(std::mem::take(&mut self.bytes));
        }
    }
}

impl Aligned {
    fn new() -> io::Result<Self> {
        let mut spare = lock(&SPARE);
        let bytes = match spare.pop() {
            Some(bytes) => bytes,
            None => {
                let [bytes, other] = map()?;
                spare.push(other);
                bytes
            }
        };
        Ok(Self { bytes, used: 0 })
    }

    /// What stands in for a buffer that is being written.
    fn none() -> Self {
        Self { bytes: &mut [], used: 0 }
    }

    /// Takes what fits of `bytes` and says how much that was.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(DIRECT_WRITE - self.used);
        self.bytes[self.used..][..taken].copy_from_slice(&bytes[..taken]);
        self.used += taken;
        taken
    }

    /// Fills up with zeros to a whole number of pages.
    fn pad(&mut self) {
        let end = self.used.next_multiple_of(ALIGNMENT);
        self.bytes[self.used..end].fill(0);
        self.used = end;
    }

    fn filled(&self) -> &[u8] {
        &self.bytes[..self.used]
    }
}

/// A staged file of known size, written at any offset by several at once.
#[derive(Debug)]
pub(crate) struct Staged {
    file: std::fs::File,
    path: VolumePath,
    size: u64,
    direct: bool,
    /// Whether there may be bytes behind the end: padding, or an older version's.
    trim: bool,
    volume: Arc<Volume>,
    calls: Arc<Calls>,
}

impl Staged {
    /// Opens the staged file `name` for `path` and reserves its `size` bytes.
    pub(crate) fn open(
        volume: &Arc<Volume>,
        calls: &Arc<Calls>,
        name: &str,
        path: &VolumePath,
        size: u64,
        fresh: bool,
        direct: Direct,
    ) -> Result<Self, Failure> {
        let wanted = match direct {
            Direct::On => true,
            Direct::Off => false,
            Direct::Auto => takes_direct(volume),
        };
        let direct_flag = if wanted { OFlags::DIRECT } else { OFlags::empty() };
        let (fd, direct) = match volume.staging().stage(name, fresh, direct_flag) {
            Ok(fd) => (fd, wanted),
            // a file system that knows no O_DIRECT refuses the flag
            Err(_) if wanted => (volume.staging().stage(name, false, OFlags::empty())?, false),
            Err(error) => return Err(error.into()),
        };
        if size >= RESERVED && file_system(volume) != Some(TMPFS) {
            volume.reserve(&fd, path, size)?;
        }
        Ok(Self {
            file: fd.into(),
            path: path.clone(),
            size,
            direct,
            trim: direct || !fresh,
            volume: Arc::clone(volume),
            calls: Arc::clone(calls),
        })
    }

    fn failed(&self, needed: usize, error: &io::Error) -> Failure {
        self.volume.writing(self.path.as_str(), needed as u64, errno(error)).into()
    }

    /// Writes `bytes` at `offset`.
    pub(crate) fn write(&self, bytes: &[u8], offset: u64) -> Result<(), Failure> {
        let written = self.file.write_all_at(bytes, offset);
        written.map_err(|error| self.failed(bytes.len(), &error))
    }

    /// A writer of the bytes from `offset` on; with O_DIRECT, `offset` must be aligned.
    pub(crate) fn writer(self: &Arc<Self>, offset: u64) -> Result<Writer, Failure> {
        let aligned = offset.is_multiple_of(ALIGNMENT as u64);
        let buffer = (self.direct && aligned).then(Aligned::new).transpose();
        let buffer = buffer.map_err(|error| self.failed(DIRECT_WRITE, &error))?;
        Ok(Writer { staged: Arc::clone(self), offset, buffer })
    }

    /// Whether writes bypass the page cache.
    pub(crate) fn is_direct(&self) -> bool {
        self.direct
    }

    /// Makes the next reader see what the device holds.
    pub(crate) fn drop_cached(&self) {
        drop_cached(&self.file);
    }

    /// A second descriptor that reads through the page cache.
    pub(crate) fn reader(&self, name: &str) -> Result<std::fs::File, Failure> {
        Ok(self.volume.staging().stage(name, false, OFlags::empty())?.into())
    }

    /// Cuts off what padding or an older version left behind the end; gives up the descriptor.
    pub(crate) fn finish(self) -> Result<OwnedFd, Failure> {
        if self.trim {
            self.file.set_len(self.size).map_err(|error| self.failed(0, &error))?;
        }
        Ok(self.file.into())
    }
}

/// Kinds of file systems, as in statfs(2).
const EXT4: FsWord = 0xef53;
const XFS: FsWord = 0x5846_5342;
/// Reserving here would clear pages that are about to be written: measured, a ninth of all CPU time.
const TMPFS: FsWord = 0x0102_1994;

fn file_system(volume: &Volume) -> Option<FsWord> {
    rustix::fs::fstatfs(volume.own().fd()).ok().map(|stat| stat.f_type)
}

/// Whether the volume's file system is one on which O_DIRECT was measured to pay.
fn takes_direct(volume: &Volume) -> bool {
    matches!(file_system(volume), Some(EXT4 | XFS))
}

/// Writes one run of bytes, in order, from an offset on.
#[derive(Debug)]
pub(crate) struct Writer {
    staged: Arc<Staged>,
    offset: u64,
    buffer: Option<Aligned>,
}

impl Writer {
    /// Writes `frame` behind what was written before.
    pub(crate) async fn write(&mut self, frame: Bytes) -> Result<(), Failure> {
        let Some(buffer) = &mut self.buffer else {
            let (staged, offset) = (Arc::clone(&self.staged), self.offset);
            self.offset += frame.len() as u64;
            return self.staged.calls.run(move || staged.write(&frame, offset)).await;
        };
        let mut bytes = &frame[..];
        loop {
            let taken = buffer.take(bytes);
            bytes = &bytes[taken..];
            if buffer.used < DIRECT_WRITE {
                return Ok(());
            }
            let full = std::mem::replace(buffer, Aligned::none());
            *buffer = write_direct(&self.staged, full, self.offset).await?;
            self.offset += DIRECT_WRITE as u64;
        }
    }

    /// The file that it wrote to.
    pub(crate) fn into_staged(self) -> Arc<Staged> {
        self.staged
    }

    /// Writes what is left in the buffer.
    pub(crate) async fn finish(&mut self) -> Result<(), Failure> {
        if let Some(mut buffer) = self.buffer.take()
            && buffer.used > 0
        {
            // the padding lies behind the end of the object, where it is cut off: all parts but
            // the last are whole pages
            buffer.pad();
            write_direct(&self.staged, buffer, self.offset).await?;
        }
        Ok(())
    }
}

/// Writes a full or padded buffer on a thread that may block, and gives it back empty.
async fn write_direct(
    staged: &Arc<Staged>,
    mut buffer: Aligned,
    offset: u64,
) -> Result<Aligned, Failure> {
    let target = Arc::clone(staged);
    let write = move || {
        let mut result = target.file.write_all_at(buffer.filled(), offset);
        if result.as_ref().is_err_and(|error| errno(error) == Errno::INVAL) {
            // this device wants another alignment: go on through the page cache
            result = leave_direct(&target.file)
                .and_then(|()| target.file.write_all_at(buffer.filled(), offset));
        }
        let needed = std::mem::replace(&mut buffer.used, 0);
        result.map_err(|error| target.failed(needed, &error))?;
        Ok(buffer)
    };
    staged.calls.aside(write).await
}

fn leave_direct(file: &std::fs::File) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(file.as_fd())?;
    Ok(rustix::fs::fcntl_setfl(file.as_fd(), flags - OFlags::DIRECT)?)
}
