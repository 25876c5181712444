//! A disk that loses what was not flushed when its power goes, and the machine around it.
//!
//! The kernel sees an ordinary loop device. Behind it stands one file of a FUSE file system that
//! this process serves from memory, past the page cache (`O_DIRECT` of the loop driver), so that
//! every write of the block layer arrives here, in its order, and every flush as an fsync. All of
//! them are kept: a [`Disk`] can be cut at any moment of its past, and what a real disk with a
//! volatile cache may have left there is a disk again.
//!
//! The device has no FUA, so the kernel makes a flush of it (`/sys/block/loop*/queue/fua` is 0).
//!
//! Nothing here may touch a file on the disk that it serves while it holds the disk's lock, or the
//! kernel and this process would wait for each other.

use std::ffi::OsStr;
use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyWrite, Request, WriteFlags,
};
pub use nix::mount::MsFlags;
use nix::mount::{MntFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::Dice;

const PAGE: u64 = 4096;
/// Pages that are shared between images together.
const LEAF: u64 = 256;

type Page = [u8; PAGE as usize];
type Leaf = [Option<Arc<Page>>; LEAF as usize];

/// The bytes of a disk. A copy costs next to nothing: it shares all pages that do not differ.
#[derive(Debug, Clone)]
struct Image {
    leaves: Vec<Option<Arc<Leaf>>>,
}

impl Image {
    fn zeros(size: u64) -> Self {
        Self { leaves: vec![None; usize::try_from(size.div_ceil(PAGE * LEAF)).unwrap_or(0)] }
    }

    /// Splits `length` bytes from `at` on at the ends of pages: leaf, page and bytes in the page.
    fn pieces(at: u64, length: u64) -> impl Iterator<Item = (usize, usize, Range<usize>)> {
        let end = at + length;
        let mut at = at;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let page = at / PAGE;
            let stop = end.min((page + 1) * PAGE);
            let within = (at % PAGE) as usize..(stop - page * PAGE) as usize;
            at = stop;
            Some(((page / LEAF) as usize, (page % LEAF) as usize, within))
        })
    }

    fn read(&self, at: u64, length: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(length as usize);
        for (leaf, page, within) in Self::pieces(at, length) {
            match self.leaves[leaf].as_deref().and_then(|leaf| leaf[page].as_deref()) {
                Some(page) => out.extend_from_slice(&page[within]),
                None => out.resize(out.len() + within.len(), 0),
            }
        }
        out
    }

    fn leaf(&mut self, leaf: usize) -> &mut Leaf {
        let empty = || Arc::new([const { None }; LEAF as usize]);
        Arc::make_mut(self.leaves[leaf].get_or_insert_with(empty))
    }

    fn write(&mut self, at: u64, mut bytes: &[u8]) {
        for (leaf, page, within) in Self::pieces(at, bytes.len() as u64) {
            let (here, rest) = bytes.split_at(within.len());
            let page = self.leaf(leaf)[page].get_or_insert_with(|| Arc::new([0; PAGE as usize]));
            Arc::make_mut(page)[within].copy_from_slice(here);
            bytes = rest;
        }
    }

    fn clear(&mut self, at: u64, length: u64) {
        for (leaf, page, within) in Self::pieces(at, length) {
            if self.leaves[leaf].is_none() {
                continue;
            }
            match &mut self.leaf(leaf)[page] {
                whole if within.len() == PAGE as usize => *whole = None,
                Some(page) => Arc::make_mut(page)[within].fill(0),
                None => {}
            }
        }
    }
}

/// What reached the disk.
#[derive(Debug)]
enum Event {
    Write {
        at: u64,
        bytes: Vec<u8>,
    },
    /// Zeros written, or space given back: both read as zeros.
    Clear {
        at: u64,
        length: u64,
    },
    /// A flush has returned; everything before it is safe. What the disk held then.
    Flush(Image),
}

#[derive(Debug)]
struct State {
    /// What the disk held at first.
    first: Image,
    /// What it holds now, its cache included.
    now: Image,
    past: Vec<Event>,
}

/// Which of the writes that no flush has covered survive the cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survives {
    /// None: the disk kept all of them in its cache.
    None,
    /// All: the disk had written everything when the power went.
    All,
    /// Some of them, in no order.
    Some { seed: u64 },
    /// Some of them, and of some of these only what comes before some sector.
    Torn { seed: u64 },
}

/// A disk with a volatile cache, in memory.
#[derive(Debug, Clone)]
pub struct Disk {
    size: u64,
    sector: u64,
    state: Arc<Mutex<State>>,
}

impl Disk {
    /// A disk of `size` bytes of zeros. It writes a `sector` whole or not at all.
    pub fn new(size: u64, sector: u64) -> Self {
        Self::holding(size, sector, Image::zeros(size))
    }

    fn holding(size: u64, sector: u64, image: Image) -> Self {
        let state = State { first: image.clone(), now: image, past: Vec::new() };
        Self { size, sector, state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another disk that holds what this one holds now, and has no past.
    pub fn copy(&self) -> Self {
        Self::holding(self.size, self.sector, self.state().now.clone())
    }

    /// How many writes and flushes have reached the disk so far: a moment that it can be cut at.
    pub fn moment(&self) -> usize {
        self.state().past.len()
    }

    /// The moments at which a flush had just returned.
    pub fn flushes(&self) -> Vec<usize> {
        let state = self.state();
        let past = state.past.iter().enumerate();
        past.filter(|(_, event)| matches!(event, Event::Flush(_))).map(|(n, _)| n + 1).collect()
    }

    /// What is left of this disk if its power goes at `moment`: everything that a flush had covered
    /// by then, and of the rest what `survives`.
    pub fn cut(&self, moment: usize, survives: Survives) -> Self {
        let state = self.state();
        let past = &state.past[..moment];
        let flush = past.iter().rposition(|event| matches!(event, Event::Flush(_)));
        let mut image = match flush.map(|at| &past[at]) {
            Some(Event::Flush(image)) => image.clone(),
            _ => state.first.clone(),
        };
        let mut dice = Dice::new(match survives {
            Survives::Some { seed } | Survives::Torn { seed } => seed,
            Survives::None | Survives::All => 0,
        });
        // one in four, half, or three in four: what a disk keeps depends on how busy it is
        let odds = 1 + dice.below(3);
        for event in &past[flush.map_or(0, |at| at + 1)..] {
            let kept = match survives {
                Survives::None => false,
                Survives::All => true,
                Survives::Some { .. } | Survives::Torn { .. } => dice.below(4) < odds,
            };
            if !kept {
                continue;
            }
            let torn = matches!(survives, Survives::Torn { .. }) && dice.below(3) == 0;
            let mut reaches = |at: u64, length: u64| match torn {
                true => {
                    (at + dice.below(length)).next_multiple_of(self.sector).min(at + length) - at
                }
                false => length,
            };
            match event {
                Event::Write { at, bytes } => {
                    image.write(*at, &bytes[..reaches(*at, bytes.len() as u64) as usize]);
                }
                Event::Clear { at, length } => image.clear(*at, reaches(*at, *length)),
                Event::Flush(_) => {}
            }
        }
        Self::holding(self.size, self.sector, image)
    }

    /// Writes the disk's bytes to a file, for whoever wants to look at it; zeros become holes.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let image = self.state().now.clone();
        let file = std::fs::File::create(path)?;
        file.set_len(self.size)?;
        for (n, leaf) in image.leaves.iter().enumerate() {
            let pages = leaf.iter().flat_map(|leaf| leaf.iter().enumerate());
            for (page, bytes) in pages {
                if let Some(bytes) = bytes {
                    let at = (n as u64 * LEAF + page as u64) * PAGE;
                    std::os::unix::fs::FileExt::write_all_at(&file, &bytes[..], at)?;
                }
            }
        }
        Ok(())
    }
}

/// Serves a disk as the file `disk`.
#[derive(Debug)]
struct Serving(Disk);

const FILE: INodeNo = INodeNo(2);
/// The file never changes but by what the kernel itself writes.
const ALWAYS: Duration = Duration::from_secs(86_400);

impl Serving {
    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let (kind, perm, size) = match inode {
            INodeNo::ROOT => (FileType::Directory, 0o700, 0),
            FILE => (FileType::RegularFile, 0o600, self.0.size),
            _ => return None,
        };
        Some(FileAttr {
            ino: inode,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: PAGE as u32,
            flags: 0,
        })
    }

    fn inside(&self, at: u64, length: u64) -> bool {
        at.checked_add(length).is_some_and(|end| end <= self.0.size)
    }
}

impl Filesystem for Serving {
    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attributes(FILE) {
            Some(attributes) if name == "disk" => reply.entry(&ALWAYS, &attributes, Generation(0)),
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, inode: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(inode) {
            Some(attributes) => reply.attr(&ALWAYS, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _req: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _req: &Request,
        _inode: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let length = u64::from(size).min(self.0.size.saturating_sub(offset));
        let bytes = self.0.state().now.read(offset, length);
        reply.data(&bytes);
    }

    fn write(
        &self,
        _req: &Request,
        _inode: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if !self.inside(offset, data.len() as u64) {
            return reply.error(Errno::ENOSPC);
        }
        let mut state = self.0.state();
        state.now.write(offset, data);
        state.past.push(Event::Write { at: offset, bytes: data.to_vec() });
        drop(state);
        reply.written(data.len() as u32);
    }

    fn fsync(
        &self,
        _req: &Request,
        _inode: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let mut state = self.0.state();
        let image = state.now.clone();
        state.past.push(Event::Flush(image));
        drop(state);
        reply.ok();
    }

    /// The loop driver makes this of a discard and of a request for zeros. Space is never reserved.
    fn fallocate(
        &self,
        _req: &Request,
        _inode: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        const KEEP_SIZE: i32 = 1;
        const PUNCH_HOLE: i32 = 2;
        const ZERO_RANGE: i32 = 16;
        if mode & (PUNCH_HOLE | ZERO_RANGE) == 0
            || mode & !(KEEP_SIZE | PUNCH_HOLE | ZERO_RANGE) != 0
        {
            return reply.error(Errno::EOPNOTSUPP);
        }
        if !self.inside(offset, length) {
            return reply.error(Errno::ENOSPC);
        }
        let mut state = self.0.state();
        state.now.clear(offset, length);
        state.past.push(Event::Clear { at: offset, length });
        drop(state);
        reply.ok();
    }
}

/// A machine that can be started again: mounts of its own and a boot id of its own, on a real
/// kernel. It is there for the thread that started it and for the processes which that starts;
/// when the thread ends, so do its mounts, whatever happened.
#[derive(Debug)]
pub struct Machine {
    home: PathBuf,
    /// Its mounts are this thread's: a machine cannot go to another.
    _here: PhantomData<*const ()>,
}

/// Where the kernel says which boot this is (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
static BOOTS: AtomicU64 = AtomicU64::new(1);
static DISKS: AtomicU64 = AtomicU64::new(1);

impl Machine {
    /// Starts a machine that keeps what it needs in the directory `home`.
    ///
    /// # Errors
    /// What is missing here: rights, FUSE, loop devices, or a program.
    pub fn start(home: &Path) -> Result<Self, String> {
        fn missing(what: &'static str) -> impl Fn(io::Error) -> String {
            move |error| format!("{what}: {error}")
        }
        for device in ["/dev/fuse", "/dev/loop-control"] {
            std::fs::File::options()
                .read(true)
                .write(true)
                .open(device)
                .map_err(missing(device))?;
        }
        Command::new("losetup").arg("--version").output().map_err(missing("losetup"))?;
        let own = |error: nix::Error| format!("mounts of its own: {error}");
        unshare(CloneFlags::CLONE_NEWNS).map_err(own)?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).map_err(own)?;
        let machine = Self { home: home.to_owned(), _here: PhantomData };
        machine.reboot().map_err(missing("a boot id"))?;
        let id = machine.boot_file();
        mount(Some(&id), BOOT_ID, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(own)?;
        Ok(machine)
    }

    fn boot_file(&self) -> PathBuf {
        self.home.join("boot_id")
    }

    /// From now on it is another boot of this machine, by what the kernel says of it.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn reboot(&self) -> io::Result<()> {
        let id = format!(
            "00000000-0000-4000-{:04x}-{:012x}",
            std::process::id() & 0xffff,
            BOOTS.fetch_add(1, Relaxed)
        );
        std::fs::write(self.boot_file(), format!("{id}\n"))
    }

    /// Attaches `disk` as a block device.
    ///
    /// # Errors
    /// What mounting or `losetup` answers.
    pub fn attach(&self, disk: &Disk) -> io::Result<Attached> {
        let directory = self.home.join(format!("disk-{}", DISKS.fetch_add(1, Relaxed)));
        std::fs::create_dir_all(&directory)?;
        let session = fuser::spawn_mount(Serving(disk.clone()), &directory, &Config::default())?;
        let mut attached =
            Attached { device: String::new(), directory, session: Some(session), detached: false };
        let out = Command::new("losetup")
            .args(["--find", "--show", "--direct-io=on"])
            .arg(attached.directory.join("disk"))
            .output()?;
        if !out.status.success() {
            let said = String::from_utf8_lossy(&out.stderr).trim().to_owned();
            return Err(io::Error::other(said));
        }
        attached.device = String::from_utf8_lossy(&out.stdout).trim().to_owned();
        // through the page cache the kernel would merge and reorder writes before they come here
        match attached.setting("loop/dio")?.as_str() {
            "1" => Ok(attached),
            _ => Err(io::Error::other("the loop device does not write past the page cache")),
        }
    }

    /// Makes a file system on `disk` with `mkfs.<kind>` and these arguments.
    ///
    /// # Errors
    /// What that says.
    pub fn format(&self, disk: &Disk, kind: &str, arguments: &[&str]) -> io::Result<()> {
        let attached = self.attach(disk)?;
        let out =
            Command::new(format!("mkfs.{kind}")).args(arguments).arg(attached.device()).output()?;
        match out.status.success() {
            true => Ok(()),
            false => Err(io::Error::other(String::from_utf8_lossy(&out.stderr).into_owned())),
        }
    }

    /// Mounts the file system of this `kind` that `disk` holds.
    ///
    /// # Errors
    /// What mount(2) answers.
    pub fn mount(
        &self,
        disk: &Disk,
        kind: &str,
        flags: MsFlags,
        options: &str,
    ) -> io::Result<Mounted> {
        let mut attached = self.attach(disk)?;
        let at = attached.directory.with_extension("mounted");
        std::fs::create_dir_all(&at)?;
        mount(Some(attached.device()), &at, Some(kind), flags, Some(options))?;
        // from now on the device goes with the mount, also if this process is killed
        attached.detach();
        Ok(Mounted { at, attached })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // the thread may start another one
        let _ = umount2(BOOT_ID, MntFlags::MNT_DETACH);
    }
}

/// A disk that is attached to a machine.
#[derive(Debug)]
pub struct Attached {
    device: String,
    directory: PathBuf,
    session: Option<BackgroundSession>,
    detached: bool,
}

impl Attached {
    /// The path of the block device.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// What `/sys` says of the device.
    ///
    /// # Errors
    /// No such setting.
    pub fn setting(&self, name: &str) -> io::Result<String> {
        let device = self.device.trim_start_matches("/dev/");
        let text = std::fs::read_to_string(format!("/sys/block/{device}/{name}"))?;
        Ok(text.trim().to_owned())
    }

    fn detach(&mut self) {
        if !self.device.is_empty() && !self.detached {
            // of a device in use it makes one that goes with its last user
            let _ = Command::new("losetup").args(["--detach", &self.device]).output();
            self.detached = true;
        }
    }

    /// Whether the device still has our file.
    fn is_attached(&self) -> bool {
        let file = self.directory.join("disk");
        self.setting("loop/backing_file").is_ok_and(|path| Path::new(&path) == file)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.detach();
        let start = Instant::now();
        while self.is_attached() && start.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(1));
        }
        // it goes when its last user does; a plain unmount could find the device still closing
        let _ = umount2(&self.directory, MntFlags::MNT_DETACH);
        drop(self.session.take());
        let _ = std::fs::remove_dir(&self.directory);
    }
}

/// A file system on a disk, mounted.
#[derive(Debug)]
pub struct Mounted {
    at: PathBuf,
    attached: Attached,
}

impl Mounted {
    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// The device below it.
    pub fn attached(&self) -> &Attached {
        &self.attached
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let start = Instant::now();
        // a process that was killed may still be closing its files
        while umount2(&self.at, MntFlags::empty()) == Err(nix::Error::EBUSY)
            && start.elapsed() < Duration::from_secs(10)
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
        let _ = std::fs::remove_dir(&self.at);
    }
}
