//! Calls at a directory's descriptor, and how they fail.

use std::borrow::Cow;
use std::io;
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::handoff::ExitCode;

pub(crate) const DIRECTORY: OFlags =
    OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::RDONLY);
/// Less the umask, which [`share`] sets.
pub(crate) const DIRECTORY_MODE: Mode = Mode::from_bits_truncate(0o775);
pub(crate) const FILE_MODE: Mode = Mode::from_bits_truncate(0o664);

/// Makes what is written from now on writable for the group if `root` is so that new files inherit
/// its group, as the kubelet leaves a volume with an fsGroup; else, only for the owner. The umask is
/// the process's, and a process fills one volume.
pub(crate) fn share(root: impl AsFd, path: &str) -> Result<(), VolumeError> {
    let stat = uninterrupted(|| fs::fstat(&root)).map_err(failed("look at", path))?;
    let shared = Mode::SGID | Mode::WGRP;
    let others = Mode::WGRP | Mode::WOTH;
    let umask = rustix::process::umask(others);
    rustix::process::umask(match Mode::from_raw_mode(stat.st_mode).contains(shared) {
        true => umask - Mode::WGRP,
        false => umask | others,
    });
    Ok(())
}

/// What went wrong on the volume, where.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A call failed.
    #[error("cannot {action} {}{}", shown(path), hint(*source))]
    Call {
        /// What was attempted.
        action: &'static str,
        /// On what, relative to the volume root.
        path: String,
        /// The system's answer.
        source: Errno,
    },
    /// Something stands where a directory or a file of ours must be.
    #[error(
        "{} is {found} where {wanted} must be; remove it, or fill an empty volume",
        shown(path)
    )]
    InTheWay {
        /// The path, relative to the volume root.
        path: String,
        /// What is there.
        found: &'static str,
        /// What must be there.
        wanted: &'static str,
    },
    /// The file system has no such names.
    #[error(
        "the volume's file system refuses the path {path:?}; leave its key out (--exclude), or use another file system"
    )]
    Refused {
        /// The path, relative to the volume root.
        path: String,
        /// The system's answer.
        source: Errno,
    },
    /// Another process fills this volume.
    #[error("another worker holds the volume {0}; wait for it, or stop it")]
    Held(PathBuf),
    /// The file system has less room than is needed.
    #[error(
        "the volume is full: {needed} more bytes were needed for {}, {available} are available of {total}; use a larger volume, or fewer objects (--include, --exclude)",
        shown(path)
    )]
    Full {
        /// What was being written.
        path: String,
        /// How much it needs.
        needed: u64,
        /// How much there is.
        available: u64,
        /// The file system's size.
        total: u64,
    },
}

/// A path in a message, which is one line whatever the path holds.
fn shown(path: &str) -> Cow<'_, str> {
    match path.contains(char::is_control) {
        true => Cow::Owned(format!("{path:?}")),
        false => Cow::Borrowed(path),
    }
}

fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::ACCESS | Errno::PERM => {
            " (the volume's root must be writable for this user; in a Pod: generic.fsGroup, or generic.runAsUser)"
        }
        Errno::ROFS => " (the volume is mounted read-only)",
        Errno::NOSPC => {
            " (the volume has no room left for it; use a larger volume, or fewer objects: --include, --exclude)"
        }
        Errno::DQUOT => {
            " (the quota is used up; raise it, or fill fewer objects: --include, --exclude)"
        }
        Errno::IO => {
            " (the volume's device or server failed; its node's kernel log says more; run again to go on)"
        }
        errno if is_away(errno) => {
            " (the volume's server or mount went away; run again to go on once it is back)"
        }
        Errno::NOLCK | Errno::NOSYS | Errno::OPNOTSUPP => {
            " (the volume's file system, as it is mounted, cannot do this)"
        }
        _ => "",
    }
}

/// Whether the volume may answer again later, from here or from another node: no one need change it.
fn is_away(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::STALE | Errno::TIMEDOUT | Errno::NOTCONN | Errno::CONNABORTED | Errno::INTR
    )
}

/// Whether the file system says by this that it has no such names.
pub(crate) fn is_refusal(errno: Errno) -> bool {
    matches!(errno, Errno::NAMETOOLONG | Errno::ILSEQ | Errno::INVAL)
}

impl VolumeError {
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Call { source, .. } if is_away(*source) => ExitCode::Transient,
            Self::Call { .. } => ExitCode::Volume,
            Self::InTheWay { .. } | Self::Refused { .. } => ExitCode::Occupied,
            Self::Held(_) => ExitCode::Transient,
            Self::Full { .. } => ExitCode::Volume,
        }
    }
}

/// A failed call on `path`.
pub(crate) fn failed(
    action: &'static str,
    path: impl Into<String>,
) -> impl FnOnce(Errno) -> VolumeError {
    move |source| VolumeError::Call { action, path: path.into(), source }
}

/// A failed call that named something new at `path`.
pub(crate) fn naming(
    action: &'static str,
    path: impl Into<String>,
) -> impl FnOnce(Errno) -> VolumeError {
    move |source| match (is_refusal(source), path.into()) {
        (true, path) => VolumeError::Refused { path, source },
        (false, path) => VolumeError::Call { action, path, source },
    }
}

/// Calls again when the call was interrupted: some file systems of FUSE answer so on their own, but
/// none that is of use does so for ever.
pub(crate) fn uninterrupted<T>(call: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
    const TRIES: u32 = 100;
    for _ in 1..TRIES {
        match call() {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
    call()
}

/// An I/O error of std as the errno that it came from.
pub(crate) fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

pub(crate) fn open_or_make_directory(
    at: impl AsFd,
    name: &str,
    path: &str,
) -> Result<OwnedFd, VolumeError> {
    for _ in 0..2 {
        match uninterrupted(|| fs::openat(&at, name, DIRECTORY, Mode::empty())) {
            Err(Errno::NOENT) => match uninterrupted(|| fs::mkdirat(&at, name, DIRECTORY_MODE)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(naming("make directory", path)(errno)),
            },
            Err(Errno::NOTDIR | Errno::LOOP) => {
                return Err(in_the_way(at, name, path, "a directory"));
            }
            other => return other.map_err(naming("open directory", path)),
        }
    }
    Err(failed("open directory", path)(Errno::NOENT))
}

/// How many names a file may have that is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Names {
    /// One: what is written to it must not show under another name, inside the volume or outside.
    One,
    /// Any: it is only read, or locked.
    Any,
}

/// Opens a regular file, and nothing else: a symlink leads elsewhere, and opening a FIFO may wait for
/// ever. `flags` must not truncate, because what is opened is looked at first.
pub(crate) fn open_file(
    at: impl AsFd,
    name: &str,
    path: &str,
    flags: OFlags,
    names: Names,
) -> Result<OwnedFd, VolumeError> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match uninterrupted(|| fs::openat(&at, name, flags, FILE_MODE)) {
        Ok(file) => file,
        // a symlink, a directory, a socket or FIFO, a device without a driver
        Err(Errno::LOOP | Errno::ISDIR | Errno::NXIO | Errno::NODEV) => {
            return Err(in_the_way(at, name, path, "a file"));
        }
        Err(errno) => return Err(failed("open", path)(errno)),
    };
    let stat = uninterrupted(|| fs::fstat(&file)).map_err(failed("look at", path))?;
    if !FileType::from_raw_mode(stat.st_mode).is_file() {
        return Err(in_the_way(at, name, path, "a file"));
    }
    if names == Names::One && stat.st_nlink > 1 {
        let (found, wanted) = ("a file with several names (hard links)", "a file of one name");
        return Err(VolumeError::InTheWay { path: path.to_owned(), found, wanted });
    }
    Ok(file)
}

/// Makes a new file, in place of whatever has the name.
pub(crate) fn new_file(
    at: impl AsFd,
    name: &str,
    path: &str,
    flags: OFlags,
) -> Result<OwnedFd, VolumeError> {
    remove_file(&at, name, path)?;
    let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    uninterrupted(|| fs::openat(&at, name, flags, FILE_MODE)).map_err(failed("make", path))
}

/// The names in a directory that are UTF-8, as all of ours are.
pub(crate) fn names(directory: impl AsFd, path: &str) -> Result<Vec<String>, VolumeError> {
    let wrong = || failed("read", path);
    let mut names = Vec::new();
    for entry in fs::Dir::read_from(directory).map_err(wrong())? {
        let entry = entry.map_err(wrong())?;
        match entry.file_name().to_str() {
            Ok("." | "..") | Err(_) => {}
            Ok(name) => names.push(name.to_owned()),
        }
    }
    Ok(names)
}

/// Removes what has the name, if anything does, and says whether.
pub(crate) fn remove_file(at: impl AsFd, name: &str, path: &str) -> Result<bool, VolumeError> {
    let unlink = |flags| uninterrupted(|| fs::unlinkat(&at, name, flags));
    let gone = match unlink(AtFlags::empty()) {
        Err(Errno::ISDIR) => unlink(AtFlags::REMOVEDIR),
        other => other,
    };
    match gone {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Err(in_the_way(at, name, path, "a file")),
        Err(errno) => Err(failed("remove", path)(errno)),
    }
}

pub(crate) fn in_the_way(
    at: impl AsFd,
    name: &str,
    path: &str,
    wanted: &'static str,
) -> VolumeError {
    let found = match fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => "a symlink",
            FileType::Directory => "a directory",
            FileType::RegularFile => "a file",
            _ => "a special file",
        },
        Err(_) => "something else",
    };
    VolumeError::InTheWay { path: path.to_owned(), found, wanted }
}

/// The room on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    /// Bytes that this user may still write.
    pub(crate) available: u64,
    /// Files that may still be made; `None` where the file system does not say.
    pub(crate) files: Option<u64>,
    /// Bytes in all.
    pub(crate) total: u64,
}

/// A failed write of `needed` bytes for `path` on the file system of `at`.
pub(crate) fn write_failed(at: impl AsFd, path: &str, needed: u64, errno: Errno) -> VolumeError {
    match (errno, room(at)) {
        (Errno::NOSPC, Ok(Room { available, total, .. })) => {
            VolumeError::Full { path: path.to_owned(), needed, available, total }
        }
        _ => failed("write", path)(errno),
    }
}

/// The room on the file system of `at`.
pub(crate) fn room(at: impl AsFd) -> Result<Room, VolumeError> {
    let stat =
        uninterrupted(|| fs::fstatvfs(&at)).map_err(failed("ask for the room on", "the volume"))?;
    Ok(Room {
        available: stat.f_bavail.saturating_mul(stat.f_frsize),
        // some network file systems answer zero for both: they do not count files
        files: (stat.f_files > 0).then_some(stat.f_favail),
        total: stat.f_blocks.saturating_mul(stat.f_frsize),
    })
}

/// Forgets what the page cache has of a file, so that the next read is the device's answer.
pub(crate) fn drop_cached(file: impl AsFd) {
    // best effort: a file system without a cache has nothing to drop
    let _ = fs::fadvise(file, 0, None, fs::Advice::DontNeed);
}

/// Closes a file and hears what that reports.
pub(crate) fn close(file: OwnedFd) -> Result<(), Errno> {
    // SAFETY: `into_raw_fd` gives up ownership, so the descriptor is valid here and closed once.
    #[allow(
        unsafe_code,
        reason = "the only way to hear close's error, which NFS reports writes by"
    )]
    unsafe {
        rustix::io::try_close(file.into_raw_fd())
    }
}
