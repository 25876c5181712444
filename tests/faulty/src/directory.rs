//! A directory that misbehaves: a FUSE file system that passes every call on to a real directory,
//! but for those that a rule says otherwise of.
//!
//! The kernel is the real one, so what a process sees is what a bad disk, a full NAS or a server that
//! went away makes it see: the same system calls fail with the same numbers. Names are looked up
//! afresh at each call unless [`Options::remember`] says otherwise.
//!
//! ```no_run
//! use faulty::directory::{Directory, Kind, On};
//! use rustix::io::Errno;
//! let directory = Directory::mount("/tmp/real".as_ref(), "/tmp/faulty".as_ref())?;
//! directory.rule(On::kind(Kind::Write).nth(3).fails(Errno::NOSPC));
//! // … the third write below /tmp/faulty fails …
//! assert_eq!(directory.fired(), 1);
//! # Ok::<(), std::io::Error>(())
//! ```

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyWrite, Request, SessionACL, TimeOrNow, WriteFlags,
};
use rustix::fs::{
    self, AtFlags, CWD, FallocateFlags, Gid, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps,
    UTIME_NOW, UTIME_OMIT, Uid,
};
use rustix::io::Errno;
use unicode_normalization::UnicodeNormalization;

/// A kind of call, as the kernel parts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "named as the system calls are")]
pub enum Kind {
    Lookup,
    Getattr,
    Setattr,
    Open,
    Create,
    Read,
    Write,
    Fallocate,
    Rename,
    Link,
    Unlink,
    Mkdir,
    Rmdir,
    Mknod,
    Symlink,
    Readlink,
    Opendir,
    Readdir,
    Fsync,
    Fsyncdir,
    /// A descriptor is closed; its error is the answer of `close`.
    Flush,
    Release,
    Statfs,
}

impl Kind {
    /// Those that change the directory, and fail where it is full or read-only.
    pub const CHANGES: &[Self] = &[
        Self::Setattr,
        Self::Create,
        Self::Write,
        Self::Fallocate,
        Self::Rename,
        Self::Link,
        Self::Unlink,
        Self::Mkdir,
        Self::Rmdir,
        Self::Mknod,
        Self::Symlink,
    ];
    /// Those that a file server answers from its metadata.
    pub const METADATA: &[Self] = &[
        Self::Lookup,
        Self::Getattr,
        Self::Setattr,
        Self::Open,
        Self::Create,
        Self::Rename,
        Self::Link,
        Self::Unlink,
        Self::Mkdir,
        Self::Rmdir,
        Self::Mknod,
        Self::Symlink,
        Self::Readlink,
        Self::Opendir,
        Self::Readdir,
    ];
}

/// One call that came: its kind, and the paths that it named, relative to the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Its kind.
    pub kind: Kind,
    /// The path, of a rename both; the directory itself is empty.
    pub paths: Vec<String>,
}

type Test = Arc<dyn Fn(&Call) -> bool + Send + Sync>;

#[derive(Clone)]
enum Action {
    Fail(Errno),
    Short(usize),
    Delay(Duration),
    Run(Arc<dyn Fn() + Send + Sync>),
}

/// The first half of a [`Rule`]: which calls it meets. Becomes one by saying what happens to them.
#[derive(Clone, Default)]
#[must_use]
pub struct On {
    kinds: Option<Vec<Kind>>,
    tests: Vec<Test>,
    skip: u64,
    times: Option<u64>,
}

/// Which calls go wrong, and how.
#[derive(Clone)]
pub struct Rule {
    on: On,
    action: Action,
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let On { kinds, tests, skip, times } = &self.on;
        f.debug_struct("Rule")
            .field("kinds", kinds)
            .field("tests", &tests.len())
            .field("skip", skip)
            .field("times", times)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for On {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("On").field("kinds", &self.kinds).finish_non_exhaustive()
    }
}

impl On {
    /// Every call. [`Kind::Release`] is never met: nobody hears its answer.
    pub fn any() -> Self {
        Self::default()
    }

    /// Calls of one kind.
    pub fn kind(kind: Kind) -> Self {
        Self::kinds(&[kind])
    }

    /// Calls of any of these kinds.
    pub fn kinds(kinds: &[Kind]) -> Self {
        Self { kinds: Some(kinds.to_vec()), ..Self::default() }
    }

    /// Only those that name this path.
    pub fn path(self, path: &str) -> Self {
        let path = path.to_owned();
        self.that(move |call| call.paths.contains(&path))
    }

    /// Only those that name a path whose last segment is so.
    pub fn name(self, test: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        self.that(move |call| {
            call.paths.iter().any(|path| test(path.rsplit('/').next().unwrap_or(path)))
        })
    }

    /// Only those for which `test` holds.
    pub fn that(mut self, test: impl Fn(&Call) -> bool + Send + Sync + 'static) -> Self {
        self.tests.push(Arc::new(test));
        self
    }

    /// Only the n-th that is met, counted from 1.
    pub fn nth(self, n: u64) -> Self {
        Self { times: Some(1), ..self.from(n) }
    }

    /// Only the n-th that is met, counted from 1, and all after it.
    pub fn from(mut self, n: u64) -> Self {
        self.skip = n.saturating_sub(1);
        self
    }

    /// So many at most.
    pub fn times(mut self, times: u64) -> Self {
        self.times = Some(times);
        self
    }

    /// They fail, and have no effect.
    pub fn fails(self, errno: Errno) -> Rule {
        Rule { on: self, action: Action::Fail(errno) }
    }

    /// Of a write only so many bytes are taken.
    pub fn short(self, bytes: usize) -> Rule {
        Rule { on: self, action: Action::Short(bytes) }
    }

    /// They take so much longer. Others go on meanwhile, as many as the directory has threads.
    pub fn delayed(self, time: Duration) -> Rule {
        Rule { on: self, action: Action::Delay(time) }
    }

    /// Something happens in the real directory just before them.
    pub fn runs(self, action: impl Fn() + Send + Sync + 'static) -> Rule {
        Rule { on: self, action: Action::Run(Arc::new(action)) }
    }
}

/// Which names are one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Folding {
    /// Every name is its own.
    #[default]
    None,
    /// Names that differ in case only, as on SMB; the first spelling stays.
    Case,
    /// Names that differ in Unicode composition only, as on ext4 with its `casefold` and on HFS+.
    Forms,
    /// Both.
    Both,
}

impl Folding {
    /// What all spellings of a name have in common.
    fn key(self, name: &OsStr) -> OsString {
        let Some(text) = name.to_str() else { return name.to_owned() };
        let case = |text: &str| text.to_uppercase().to_lowercase();
        match self {
            Self::None => text.to_owned(),
            Self::Case => case(text),
            Self::Forms => text.nfc().collect(),
            Self::Both => case(&text.nfc().collect::<String>()).nfc().collect(),
        }
        .into()
    }
}

/// How a directory is mounted.
#[derive(Debug, Clone)]
pub struct Options {
    folding: Folding,
    threads: usize,
    remember: Duration,
    writeback: bool,
    plain_renames: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            folding: Folding::None,
            threads: 8,
            remember: Duration::ZERO,
            writeback: false,
            plain_renames: false,
        }
    }
}

impl Options {
    /// Names that are one name.
    #[must_use]
    pub fn folding(mut self, folding: Folding) -> Self {
        self.folding = folding;
        self
    }

    /// How many calls are served at once.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// How long the kernel may take names and attributes for unchanged, as a client of NFS does.
    #[must_use]
    pub fn remember(mut self, time: Duration) -> Self {
        self.remember = time;
        self
    }

    /// The kernel keeps what is written and brings it here later.
    #[must_use]
    pub fn writeback(mut self) -> Self {
        self.writeback = true;
        self
    }

    /// A rename knows no flags, as on NFS.
    #[must_use]
    pub fn plain_renames(mut self) -> Self {
        self.plain_renames = true;
        self
    }

    /// Shows the directory `real` at the directory `at`.
    ///
    /// # Errors
    /// Where FUSE is not to be had: no `/dev/fuse`, no right to mount.
    pub fn mount(self, real: &Path, at: &Path) -> io::Result<Directory> {
        allow_many_descriptors();
        let rules = Arc::<Rules>::default();
        let passed = Passed::new(real, self.clone(), Arc::clone(&rules))?;
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("faulty".to_owned()),
            MountOption::DefaultPermissions,
            MountOption::Dev,
        ];
        config.acl = SessionACL::All;
        config.n_threads = Some(self.threads.max(1));
        let session = fuser::spawn_mount(passed, at, &config)?;
        Ok(Directory { at: at.to_owned(), rules, session: Some(session) })
    }
}

/// Every name that the kernel remembers costs a descriptor here.
fn allow_many_descriptors() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // best effort: few files need few
    let _ = setrlimit(Resource::Nofile, limit);
}

/// A mounted directory; unmounted when dropped.
#[derive(Debug)]
pub struct Directory {
    at: PathBuf,
    rules: Arc<Rules>,
    session: Option<BackgroundSession>,
}

impl Directory {
    /// Shows the directory `real` at the directory `at`, faithfully until there are rules.
    ///
    /// # Errors
    /// As [`Options::mount`].
    pub fn mount(real: &Path, at: &Path) -> io::Result<Self> {
        Options::default().mount(real, at)
    }

    /// Adds a rule. All rules see every call, in order, until one of them fails it.
    pub fn rule(&self, rule: Rule) {
        lock(&self.rules.rules).push((rule, AtomicU64::new(0)));
    }

    /// Removes all rules, and forgets what they did.
    pub fn clear(&self) {
        lock(&self.rules.rules).clear();
        self.rules.fired.store(0, Relaxed);
    }

    /// How many calls rules have met.
    pub fn fired(&self) -> u64 {
        self.rules.fired.load(Relaxed)
    }

    /// Begins a log of calls anew.
    pub fn log(&self) {
        *lock(&self.rules.log) = Some(Vec::new());
    }

    /// The calls since [`Directory::log`].
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.rules.log).clone().unwrap_or_default()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // also while someone is still in there
        let _ = nix::mount::umount2(&self.at, nix::mount::MntFlags::MNT_DETACH);
        drop(self.session.take());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Default)]
struct Rules {
    /// Each with how many calls it has met.
    rules: Mutex<Vec<(Rule, AtomicU64)>>,
    fired: AtomicU64,
    log: Mutex<Option<Vec<Call>>>,
}

impl Rules {
    fn idle(&self) -> bool {
        lock(&self.rules).is_empty() && lock(&self.log).is_none()
    }

    /// What happens to `call`: an error, or the most bytes that it may write.
    fn meet(&self, call: &Call) -> Result<usize, Errno> {
        if let Some(log) = lock(&self.log).as_mut() {
            log.push(call.clone());
        }
        let mut most = usize::MAX;
        let mut delay = Duration::ZERO;
        let mut runs = Vec::new();
        let mut failed = None;
        for (rule, met) in lock(&self.rules).iter() {
            let On { kinds, tests, skip, times } = &rule.on;
            let meets = kinds.as_ref().is_none_or(|kinds| kinds.contains(&call.kind))
                && call.kind != Kind::Release
                && tests.iter().all(|test| test(call));
            if !meets {
                continue;
            }
            let before = met.fetch_add(1, Relaxed);
            if before < *skip || times.is_some_and(|times| before >= skip + times) {
                continue;
            }
            self.fired.fetch_add(1, Relaxed);
            match &rule.action {
                Action::Fail(errno) => {
                    failed = Some(*errno);
                    break;
                }
                Action::Short(bytes) => most = most.min(*bytes),
                Action::Delay(time) => delay += *time,
                Action::Run(run) => runs.push(Arc::clone(run)),
            }
        }
        // no lock is held: others are served meanwhile
        if !delay.is_zero() {
            std::thread::sleep(delay);
        }
        runs.iter().for_each(|run| run());
        failed.map_or(Ok(most), Err)
    }
}

/// A file or directory that the kernel knows.
#[derive(Debug)]
struct Node {
    fd: Arc<OwnedFd>,
    lookups: u64,
}

#[derive(Debug)]
enum Handle {
    File(File),
    Directory(Vec<(u64, FileType, OsString)>),
}

/// The file system: each of the kernel's inodes is a descriptor of the real file, so that a rename
/// under way, or a symlink that someone puts in a directory's place, changes nothing of it.
#[derive(Debug)]
struct Passed {
    root: PathBuf,
    options: Options,
    rules: Arc<Rules>,
    nodes: Mutex<HashMap<u64, Node>>,
    handles: Mutex<HashMap<u64, Arc<Handle>>>,
    next_handle: AtomicU64,
}

/// An open that names a thing without looking into it.
const PATH: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Passed {
    fn new(real: &Path, options: Options, rules: Arc<Rules>) -> io::Result<Self> {
        let root = real.canonicalize()?;
        let fd = fs::open(&root, PATH | OFlags::DIRECTORY, Mode::empty())?;
        let node = Node { fd: Arc::new(fd), lookups: 1 };
        Ok(Self {
            root,
            options,
            rules,
            nodes: Mutex::new(HashMap::from([(INodeNo::ROOT.0, node)])),
            handles: Mutex::default(),
            next_handle: AtomicU64::new(1),
        })
    }

    fn node(&self, ino: INodeNo) -> Result<Arc<OwnedFd>, Errno> {
        lock(&self.nodes).get(&ino.0).map(|node| Arc::clone(&node.fd)).ok_or(Errno::STALE)
    }

    fn path_of(&self, ino: INodeNo) -> String {
        let Ok(node) = self.node(ino) else { return String::new() };
        let Ok(path) = std::fs::read_link(magic(&node)) else { return String::new() };
        path.strip_prefix(&self.root).unwrap_or(&path).to_string_lossy().into_owned()
    }

    fn path_at(&self, parent: INodeNo, name: &OsStr) -> String {
        let parent = self.path_of(parent);
        let name = name.to_string_lossy();
        if parent.is_empty() { name.into_owned() } else { format!("{parent}/{name}") }
    }

    fn meet(&self, kind: Kind, paths: impl FnOnce() -> Vec<String>) -> Result<usize, Errno> {
        if self.rules.idle() {
            return Ok(usize::MAX);
        }
        self.rules.meet(&Call { kind, paths: paths() })
    }

    fn met_at(&self, kind: Kind, parent: INodeNo, name: &OsStr) -> Result<usize, Errno> {
        self.meet(kind, || vec![self.path_at(parent, name)])
    }

    fn met(&self, kind: Kind, ino: INodeNo) -> Result<usize, Errno> {
        self.meet(kind, || vec![self.path_of(ino)])
    }

    /// The name that stands in the directory for `name`.
    fn spelled(&self, parent: &OwnedFd, name: &OsStr) -> OsString {
        let there = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        if self.options.folding == Folding::None || there {
            return name.to_owned();
        }
        let wanted = self.options.folding.key(name);
        let names = entries(parent).unwrap_or_default().into_iter().map(|(_, _, name)| name);
        let mut same = names.filter(|found| self.options.folding.key(found) == wanted);
        same.next().unwrap_or_else(|| name.to_owned())
    }

    /// Takes what stands at `name` into the table.
    fn known(&self, parent: &OwnedFd, name: &OsStr) -> Result<FileAttr, Errno> {
        let fd = fs::openat(parent, name, PATH, Mode::empty())?;
        let stat = stat(fd.as_fd())?;
        let mut nodes = lock(&self.nodes);
        let node = nodes.entry(number(&stat)).or_insert(Node { fd: Arc::new(fd), lookups: 0 });
        node.lookups += 1;
        Ok(attr(&stat))
    }

    fn attr_of(&self, ino: INodeNo, handle: Option<FileHandle>) -> Result<FileAttr, Errno> {
        let stat = match handle.and_then(|handle| self.handle(handle).ok()).as_deref() {
            Some(Handle::File(file)) => stat(file.as_fd())?,
            _ => stat(self.node(ino)?.as_fd())?,
        };
        Ok(FileAttr { ino, ..attr(&stat) })
    }

    fn keep(&self, handle: Handle) -> FileHandle {
        let number = self.next_handle.fetch_add(1, Relaxed);
        lock(&self.handles).insert(number, Arc::new(handle));
        FileHandle(number)
    }

    fn handle(&self, handle: FileHandle) -> Result<Arc<Handle>, Errno> {
        lock(&self.handles).get(&handle.0).cloned().ok_or(Errno::BADF)
    }

    fn file<T>(
        &self,
        handle: FileHandle,
        call: impl FnOnce(&File) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match self.handle(handle)?.as_ref() {
            Handle::File(file) => call(file),
            Handle::Directory(_) => Err(Errno::ISDIR),
        }
    }

    /// A new thing belongs to who made it, with the mode that was asked for.
    fn owned(&self, request: &Request, parent: &OwnedFd, name: &OsStr, mode: u32) {
        let (uid, gid) = (Uid::from_raw(request.uid()), Gid::from_raw(request.gid()));
        // as much as this user may
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let _ = fs::chownat(parent, name, Some(uid), Some(gid), flags);
        let _ = fs::chmodat(parent, name, Mode::from_raw_mode(mode), AtFlags::empty());
    }

    fn open_file(&self, ino: INodeNo, flags: i32) -> Result<FileHandle, Errno> {
        let flags = passed_on(flags) | OFlags::CLOEXEC;
        let file = fs::open(magic(&*self.node(ino)?), flags, Mode::empty())?;
        Ok(self.keep(Handle::File(file.into())))
    }

    #[allow(clippy::too_many_arguments, reason = "as the kernel asks it")]
    fn change(
        &self,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        times: [Option<TimeOrNow>; 2],
        handle: Option<FileHandle>,
    ) -> Result<FileAttr, Errno> {
        self.met(Kind::Setattr, ino)?;
        let path = magic(&*self.node(ino)?);
        if let Some(mode) = mode {
            fs::chmodat(CWD, &path, Mode::from_raw_mode(mode), AtFlags::empty())?;
        }
        if uid.is_some() || gid.is_some() {
            let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
            fs::chownat(CWD, &path, uid, gid, AtFlags::empty())?;
        }
        if let Some(size) = size {
            let opened = handle.and_then(|handle| self.handle(handle).ok());
            match opened.as_deref() {
                Some(Handle::File(file)) => fs::ftruncate(file, size)?,
                _ => {
                    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
                    fs::ftruncate(fs::open(&path, flags, Mode::empty())?, size)?;
                }
            }
        }
        if times.iter().any(Option::is_some) {
            let [last_access, last_modification] = times.map(timespec);
            let times = Timestamps { last_access, last_modification };
            fs::utimensat(CWD, &path, &times, AtFlags::empty())?;
        }
        self.attr_of(ino, handle)
    }

    fn make(
        &self,
        request: &Request,
        kind: Kind,
        parent: INodeNo,
        name: &OsStr,
        mode: Option<u32>,
        call: impl FnOnce(&OwnedFd) -> Result<(), Errno>,
    ) -> Result<FileAttr, Errno> {
        self.met_at(kind, parent, name)?;
        let parent = self.node(parent)?;
        if self.spelled(&parent, name) != name {
            return Err(Errno::EXIST);
        }
        call(&parent)?;
        if let Some(mode) = mode {
            self.owned(request, &parent, name, mode);
        }
        self.known(&parent, name)
    }

    fn removed(
        &self,
        kind: Kind,
        parent: INodeNo,
        name: &OsStr,
        flags: AtFlags,
    ) -> Result<(), Errno> {
        self.met_at(kind, parent, name)?;
        let parent = self.node(parent)?;
        fs::unlinkat(&*parent, self.spelled(&parent, name), flags)
    }
}

/// A path that leads to what a descriptor stands for.
fn magic(fd: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Which flags of an open mean something here: offsets are the kernel's, and so are caches.
fn passed_on(flags: i32) -> OFlags {
    let flags = OFlags::from_bits_retain(flags as _);
    flags & (OFlags::RDWR | OFlags::WRONLY | OFlags::TRUNC | OFlags::EXCL)
}

fn stat(fd: BorrowedFd<'_>) -> Result<Stat, Errno> {
    fs::statat(fd, "", AtFlags::EMPTY_PATH)
}

/// The kernel's number of a file, the real one's: a hard link has the number of its other names.
fn number(stat: &Stat) -> u64 {
    // 1 is the root, whatever its own number
    if stat.st_ino == INodeNo::ROOT.0 { u64::MAX } else { stat.st_ino }
}

fn kind_of(mode: u32) -> FileType {
    match fs::FileType::from_raw_mode(mode as _) {
        fs::FileType::Directory => FileType::Directory,
        fs::FileType::Symlink => FileType::Symlink,
        fs::FileType::Fifo => FileType::NamedPipe,
        fs::FileType::Socket => FileType::Socket,
        fs::FileType::CharacterDevice => FileType::CharDevice,
        fs::FileType::BlockDevice => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

fn attr(stat: &Stat) -> FileAttr {
    let time = |seconds: i64, ns: i64| {
        let ns = Duration::from_nanos(ns as u64);
        match u64::try_from(seconds) {
            Ok(seconds) => UNIX_EPOCH + Duration::from_secs(seconds) + ns,
            Err(_) => UNIX_EPOCH - Duration::from_secs(seconds.unsigned_abs()) + ns,
        }
    };
    FileAttr {
        ino: INodeNo(number(stat)),
        size: stat.st_size as u64,
        blocks: stat.st_blocks as u64,
        atime: time(stat.st_atime, stat.st_atime_nsec as i64),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec as i64),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec as i64),
        crtime: UNIX_EPOCH,
        kind: kind_of(stat.st_mode),
        perm: (stat.st_mode & 0o7777) as u16,
        nlink: stat.st_nlink as u32,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: stat.st_rdev as u32,
        blksize: stat.st_blksize as u32,
        flags: 0,
    }
}

fn timespec(time: Option<TimeOrNow>) -> Timespec {
    let since = |time: SystemTime| match time.duration_since(UNIX_EPOCH) {
        Ok(after) => {
            Timespec { tv_sec: after.as_secs() as i64, tv_nsec: after.subsec_nanos().into() }
        }
        Err(before) => {
            let before = before.duration();
            let borrow = i64::from(before.subsec_nanos() > 0);
            Timespec {
                tv_sec: -(before.as_secs() as i64) - borrow,
                tv_nsec: borrow * 1_000_000_000 - i64::from(before.subsec_nanos()),
            }
        }
    };
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(TimeOrNow::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(TimeOrNow::SpecificTime(time)) => since(time),
    }
}

/// What a directory holds, `.` and `..` included.
fn entries(directory: &OwnedFd) -> Result<Vec<(u64, FileType, OsString)>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = fs::openat(directory, ".", flags, Mode::empty())?;
    let mut found = Vec::new();
    for entry in fs::Dir::read_from(&opened)? {
        let entry = entry?;
        let kind = match entry.file_type() {
            fs::FileType::Directory => FileType::Directory,
            fs::FileType::Symlink => FileType::Symlink,
            fs::FileType::Fifo => FileType::NamedPipe,
            fs::FileType::Socket => FileType::Socket,
            fs::FileType::CharacterDevice => FileType::CharDevice,
            fs::FileType::BlockDevice => FileType::BlockDevice,
            _ => FileType::RegularFile,
        };
        let name = OsString::from_vec(entry.file_name().to_bytes().to_vec());
        found.push((entry.ino(), kind, name));
    }
    Ok(found)
}

fn errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.raw_os_error())
}

fn of(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

/// Sends an answer, or the error.
macro_rules! answer {
    ($reply:ident, $result:expr, $value:pat => $sent:expr) => {
        match $result {
            Ok($value) => $sent,
            Err(error) => $reply.error(errno(error)),
        }
    };
}

const FIRST: Generation = Generation(0);

impl Filesystem for Passed {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let mut wanted = InitFlags::FUSE_PARALLEL_DIROPS | InitFlags::FUSE_AUTO_INVAL_DATA;
        if self.options.writeback {
            wanted |= InitFlags::FUSE_WRITEBACK_CACHE;
        }
        for one in wanted.iter() {
            // an older kernel may not have them all
            let _ = config.add_capabilities(one);
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.met_at(Kind::Lookup, parent, name).and_then(|_| {
            let parent = self.node(parent)?;
            self.known(&parent, &self.spelled(&parent, name))
        });
        answer!(reply, found, attr => reply.entry(&self.options.remember, &attr, FIRST))
    }

    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        let mut nodes = lock(&self.nodes);
        if ino != INodeNo::ROOT
            && let Some(node) = nodes.get_mut(&ino.0)
        {
            node.lookups = node.lookups.saturating_sub(lookups);
            if node.lookups == 0 {
                nodes.remove(&ino.0);
            }
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        let found = self.met(Kind::Getattr, ino).and_then(|_| self.attr_of(ino, handle));
        answer!(reply, found, attr => reply.attr(&self.options.remember, &attr))
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        handle: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changed = self.change(ino, mode, uid, gid, size, [atime, mtime], handle);
        answer!(reply, changed, attr => reply.attr(&self.options.remember, &attr))
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let read = self.met(Kind::Readlink, ino).and_then(|_| {
            let node = self.node(ino)?;
            fs::readlinkat(&*node, "", Vec::new())
        });
        answer!(reply, read, target => reply.data(target.as_bytes()))
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let made = self.make(request, Kind::Mknod, parent, name, Some(mode & 0o7777), |parent| {
            let kind = fs::FileType::from_raw_mode(mode as _);
            fs::mknodat(parent, name, kind, Mode::from_raw_mode(mode & 0o7777), rdev.into())
        });
        answer!(reply, made, attr => reply.entry(&self.options.remember, &attr, FIRST))
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let made = self.make(request, Kind::Mkdir, parent, name, Some(mode), |parent| {
            fs::mkdirat(parent, name, Mode::from_raw_mode(mode))
        });
        answer!(reply, made, attr => reply.entry(&self.options.remember, &attr, FIRST))
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.removed(Kind::Unlink, parent, name, AtFlags::empty());
        answer!(reply, removed, () => reply.ok())
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.removed(Kind::Rmdir, parent, name, AtFlags::REMOVEDIR);
        answer!(reply, removed, () => reply.ok())
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let made = self.make(request, Kind::Symlink, parent, name, None, |parent| {
            fs::symlinkat(target, parent, name)
        });
        answer!(reply, made, attr => reply.entry(&self.options.remember, &attr, FIRST))
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: fuser::RenameFlags,
        reply: ReplyEmpty,
    ) {
        let paths = || vec![self.path_at(parent, name), self.path_at(new_parent, new_name)];
        let renamed = self.meet(Kind::Rename, paths).and_then(|_| {
            if self.options.plain_renames && !flags.is_empty() {
                return Err(Errno::INVAL);
            }
            let (from, to) = (self.node(parent)?, self.node(new_parent)?);
            let (name, new_name) = (self.spelled(&from, name), self.spelled(&to, new_name));
            let flags = RenameFlags::from_bits_retain(flags.bits());
            fs::renameat_with(&*from, name, &*to, new_name, flags)
        });
        answer!(reply, renamed, () => reply.ok())
    }

    fn link(
        &self,
        request: &Request,
        ino: INodeNo,
        parent: INodeNo,
        name: &OsStr,
        reply: ReplyEntry,
    ) {
        let made = self.make(request, Kind::Link, parent, name, None, |parent| {
            let from = magic(&*self.node(ino)?);
            fs::linkat(CWD, from, parent, name, AtFlags::SYMLINK_FOLLOW)
        });
        answer!(reply, made, attr => reply.entry(&self.options.remember, &attr, FIRST))
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let opened = self.met(Kind::Open, ino).and_then(|_| self.open_file(ino, flags.0));
        answer!(reply, opened, handle => reply.opened(handle, FopenFlags::empty()))
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let made = self.met_at(Kind::Create, parent, name).and_then(|_| {
            let parent = self.node(parent)?;
            let spelled = self.spelled(&parent, name);
            let there = fs::statat(&*parent, &spelled, AtFlags::SYMLINK_NOFOLLOW).is_ok();
            let flags = passed_on(flags) | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = fs::openat(&*parent, &spelled, flags, Mode::from_raw_mode(mode))?;
            if !there {
                self.owned(request, &parent, &spelled, mode);
            }
            Ok((self.known(&parent, &spelled)?, self.keep(Handle::File(file.into()))))
        });
        answer!(reply, made, (attr, handle) => {
            reply.created(&self.options.remember, &attr, FIRST, handle, FopenFlags::empty());
        })
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut bytes = vec![0; size as usize];
        let read = self.met(Kind::Read, ino).and_then(|_| {
            self.file(handle, |file| {
                let mut filled = 0;
                while filled < bytes.len() {
                    match file.read_at(&mut bytes[filled..], offset + filled as u64) {
                        Ok(0) => break,
                        Ok(read) => filled += read,
                        Err(error) => return Err(of(error)),
                    }
                }
                Ok(filled)
            })
        });
        answer!(reply, read, filled => reply.data(&bytes[..filled]))
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.met(Kind::Write, ino).and_then(|most| {
            let taken = &data[..data.len().min(most)];
            self.file(handle, |file| {
                file.write_all_at(taken, offset).map_err(of).map(|()| taken.len() as u32)
            })
        });
        answer!(reply, written, written => reply.written(written))
    }

    fn flush(&self, _: &Request, ino: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        answer!(reply, self.met(Kind::Flush, ino), _ => reply.ok())
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let _ = self.met(Kind::Release, ino);
        lock(&self.handles).remove(&handle.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        let synced = self.met(Kind::Fsync, ino);
        let synced = synced.and_then(|_| self.file(handle, |file| fs::fsync(file)));
        answer!(reply, synced, () => reply.ok())
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let opened = self.met(Kind::Opendir, ino).map(|_| self.keep(Handle::Directory(Vec::new())));
        answer!(reply, opened, handle => reply.opened(handle, FopenFlags::empty()))
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let read = self.met(Kind::Readdir, ino).and_then(|_| {
            if offset == 0 {
                // read whole at the beginning, as others may remove meanwhile
                let found = Arc::new(Handle::Directory(entries(&*self.node(ino)?)?));
                lock(&self.handles).insert(handle.0, found);
            }
            self.handle(handle)
        });
        answer!(reply, read, read => {
            if let Handle::Directory(found) = read.as_ref() {
                let numbered = found.iter().zip(1..).skip(offset as usize);
                for ((number, kind, name), next) in numbered {
                    if reply.add(INodeNo(*number), next, *kind, name) {
                        break;
                    }
                }
            }
            reply.ok();
        })
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        lock(&self.handles).remove(&handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let synced = self.met(Kind::Fsyncdir, ino).and_then(|_| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            fs::fsync(fs::openat(&*self.node(ino)?, ".", flags, Mode::empty())?)
        });
        answer!(reply, synced, () => reply.ok())
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let stat = self.met(Kind::Statfs, ino).and_then(|_| fs::fstatvfs(&*self.node(ino)?));
        answer!(reply, stat, stat => reply.statfs(
            stat.f_blocks,
            stat.f_bfree,
            stat.f_bavail,
            stat.f_files,
            stat.f_ffree,
            stat.f_bsize as u32,
            stat.f_namemax as u32,
            stat.f_frsize as u32,
        ))
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let reserved = self.met(Kind::Fallocate, ino).and_then(|_| {
            let mode = FallocateFlags::from_bits_retain(mode as u32);
            self.file(handle, |file| fs::fallocate(file, mode, offset, length))
        });
        answer!(reply, reserved, () => reply.ok())
    }
}

#[cfg(test)]
mod tests;
