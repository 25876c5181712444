//! The volume root and everything that happens below it.
//!
//! No call here leaves the root: each directory is opened from its parent's descriptor with
//! `O_NOFOLLOW`, so a symlink at any level is an error and never a way out.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::fs::{
    self, AtFlags, FallocateFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, Stat,
    Timespec, Timestamps,
};
use rustix::io::Errno;

use super::at::{
    DIRECTORY, DIRECTORY_MODE, Names, Room, VolumeError, close, drop_cached, errno, failed,
    is_refusal, naming, open_file, open_or_make_directory, room, share, uninterrupted,
    write_failed,
};
use super::own::Own;
use super::staging::{Place, Staging};
use super::write::{SLOW, timed};
use crate::handoff::ShardOf;
use crate::keys::{OWN_DIRECTORY, VolumePath};
use crate::lock::lock;

/// The file whose lock says that a worker is there; a crash releases it.
const LOCK: &str = "lock";

/// Open directories kept for the next file. Objects come in key order, or where names are slow out of
/// some thousand that are planned, so the same few directories are used again and again; the number
/// only bounds descriptors.
const CACHED_DIRECTORIES: usize = 256;

/// How often the probe is made and removed once more where that seems slow: a busy machine is no slow
/// file system.
const NAMINGS: u32 = 3;

/// How a staged file came to its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Published {
    /// Nothing was there.
    New,
    /// Something is there; the staged file still has its staged name.
    Exists,
}

/// What a probe found out about a volume's file system.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Probed {
    /// Whether two names that differ only in case, or in Unicode composition, are one file.
    pub(crate) folds_names: bool,
    /// What it takes to make a file, or to remove one; nothing where none could be made.
    pub(crate) naming_takes: Duration,
}

/// An opened volume. While one that is being filled lives, no other worker has it.
#[derive(Debug)]
pub(crate) struct Volume {
    root: OwnedFd,
    /// `.ossvp`.
    base: Arc<Own>,
    /// `.ossvp`, or a shard's directory in it.
    own: Arc<Own>,
    /// What only a volume that is being filled has.
    filling: Option<Filling>,
    directories: Mutex<HashMap<String, Slot>>,
}

/// A directory that is opened once for all who want it; held while it is opened.
type Slot = Arc<Mutex<Option<Arc<OwnedFd>>>>;

#[derive(Debug)]
struct Filling {
    staging: Staging,
    _locks: Vec<File>,
}

impl Volume {
    /// Opens the volume at `path` for one `shard`, makes what is ours in it and takes its lock.
    ///
    /// # Errors
    /// [`VolumeError::Held`] if another worker has it, [`VolumeError::Call`] otherwise.
    pub(crate) fn open(path: &Path, shard: ShardOf) -> Result<Self, VolumeError> {
        let shown = path.display().to_string();
        match fs::mkdir(path, DIRECTORY_MODE - Mode::WGRP) {
            Ok(()) | Err(Errno::EXIST) => {}
            // an existing directory on a read-only file system answers ROFS: the next call tells
            Err(Errno::ROFS | Errno::ACCESS) if path.is_dir() => {}
            Err(errno) => {
                let action = "make the volume's directory (its parent must exist and be writable)";
                return Err(failed(action, shown)(errno));
            }
        }
        // the root itself may be named through symlinks: the user chose it
        let root =
            fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY, Mode::empty())
                .map_err(failed("open the volume", &shown))?;
        share(&root, &shown)?;
        let base = Own::make(&root, OWN_DIRECTORY, OWN_DIRECTORY)?;
        let held = |locked: Option<File>| locked.ok_or_else(|| VolumeError::Held(path.to_owned()));
        // shards share the volume with each other, and with no one else
        let (own, locks) = if shard == ShardOf::WHOLE {
            let lock = held(base.try_lock(LOCK, FlockOperation::NonBlockingLockExclusive)?)?;
            (base.try_clone()?, vec![lock])
        } else {
            let volume = held(base.try_lock(LOCK, FlockOperation::NonBlockingLockShared)?)?;
            let own = base.make_shard(shard)?;
            let lock = held(own.try_lock(LOCK, FlockOperation::NonBlockingLockExclusive)?)?;
            (own, vec![volume, lock])
        };
        let staging = Staging::open(&own)?;
        Ok(Self {
            root,
            base: Arc::new(base),
            own: Arc::new(own),
            filling: Some(Filling { staging, _locks: locks }),
            directories: Mutex::default(),
        })
    }

    /// Opens the volume at `path` only to read it; `None` if nothing of ours is there.
    pub(crate) fn look(path: &Path) -> Result<Option<Self>, VolumeError> {
        let shown = path.display().to_string();
        let opened = |action, at| match at {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(failed(action, &shown)(errno)),
        };
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        let Some(root) = opened("open the volume", fs::open(path, flags, Mode::empty()))? else {
            return Ok(None);
        };
        let base =
            opened("open .ossvp in", fs::openat(&root, OWN_DIRECTORY, DIRECTORY, Mode::empty()))?;
        Ok(base.map(|base| {
            let own = Arc::new(Own::new(base, OWN_DIRECTORY));
            Self { root, base: Arc::clone(&own), own, filling: None, directories: Mutex::default() }
        }))
    }

    /// This run's own directory: `.ossvp`, or a shard's in it.
    pub(crate) fn own(&self) -> &Arc<Own> {
        &self.own
    }

    /// `.ossvp`, which all shards share.
    pub(crate) fn base(&self) -> &Own {
        &self.base
    }

    /// Its staged files.
    pub(crate) fn staging(&self) -> &Staging {
        &self.filling.as_ref().expect("only a volume that is being filled is written to").staging
    }

    /// The directory `path`, made with its parents where missing; `None` is the root.
    fn directory(&self, path: Option<&str>) -> Result<Arc<OwnedFd>, VolumeError> {
        let Some(path) = path else {
            let root = self.root.try_clone().map_err(|error| errno(&error));
            return Ok(Arc::new(root.map_err(failed("open", "the volume root"))?));
        };
        let slot = {
            let mut cache = lock(&self.directories);
            if cache.len() >= CACHED_DIRECTORIES && !cache.contains_key(path) {
                // any half: the others are likely to be wanted again
                let mut keep = false;
                cache.retain(|_, _| {
                    keep = !keep;
                    keep
                });
            }
            Arc::clone(cache.entry(path.to_owned()).or_default())
        };
        let mut kept = lock(&slot);
        if let Some(directory) = &*kept {
            return Ok(Arc::clone(directory));
        }
        let (parent, name) = match path.rsplit_once('/') {
            Some((parent, name)) => (Some(self.directory(Some(parent))?), name),
            None => (None, path),
        };
        let at = parent.as_deref().map_or(self.root.as_fd(), AsFd::as_fd);
        let directory = Arc::new(open_or_make_directory(at, name, path)?);
        if parent.is_none() && self.is_base(&directory)? {
            // some file systems fold more than case, or drop trailing dots
            let found = "another name of ossvp's own directory";
            let wanted = "a directory for objects";
            return Err(VolumeError::InTheWay { path: path.to_owned(), found, wanted });
        }
        *kept = Some(Arc::clone(&directory));
        Ok(directory)
    }

    fn is_base(&self, directory: &OwnedFd) -> Result<bool, VolumeError> {
        let stat = |fd: BorrowedFd<'_>| fs::fstat(fd).map_err(failed("look at", OWN_DIRECTORY));
        let (found, base) = (stat(directory.as_fd())?, stat(self.base.fd())?);
        Ok((found.st_dev, found.st_ino) == (base.st_dev, base.st_ino))
    }

    fn cached(&self, path: &str) -> Option<Arc<OwnedFd>> {
        let slot = lock(&self.directories).get(path).cloned()?;
        let kept = lock(&slot);
        kept.clone()
    }

    /// Forgets open directories, after some were removed.
    fn forget_directories(&self) {
        lock(&self.directories).clear();
    }

    /// Runs `call` with the descriptor of the directory that holds `path`, made where missing, and
    /// its name there. A directory may go while it is empty, when files that are no longer listed
    /// are removed beside a file that is about to come: then it is made again.
    fn beside<T>(
        &self,
        path: &VolumePath,
        call: impl Fn(BorrowedFd<'_>, &str) -> Result<T, Errno>,
    ) -> Result<T, VolumeError> {
        self.while_directories_go(|| {
            let done = match path.parent() {
                None => uninterrupted(|| call(self.root.as_fd(), path.name())),
                parent => {
                    let directory = self.directory(parent)?;
                    uninterrupted(|| call(directory.as_fd(), path.name()))
                }
            };
            done.map_err(naming("name", path.as_str()))
        })
    }

    /// Calls again while a directory on the way is gone: each time something else has made progress.
    fn while_directories_go<T>(
        &self,
        call: impl Fn() -> Result<T, VolumeError>,
    ) -> Result<T, VolumeError> {
        const TRIES: u32 = 100;
        for _ in 1..TRIES {
            match call() {
                Err(VolumeError::Call { source: Errno::NOENT, .. }) => self.forget_directories(),
                done => return done,
            }
        }
        call()
    }

    /// As [`Volume::beside`], but makes nothing: `None` where the directory does not exist.
    fn beside_existing<T>(
        &self,
        path: &VolumePath,
        call: impl Fn(BorrowedFd<'_>, &str) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let call = |at: BorrowedFd<'_>, name: &str| uninterrupted(|| call(at, name));
        let Some(parent) = path.parent() else {
            return call(self.root.as_fd(), path.name());
        };
        if let Some(directory) = self.cached(parent) {
            return call(directory.as_fd(), path.name());
        }
        let mut at: Option<OwnedFd> = None;
        for name in parent.split('/') {
            let from = at.as_ref().map_or(self.root.as_fd(), AsFd::as_fd);
            at = Some(uninterrupted(|| fs::openat(from, name, DIRECTORY, Mode::empty()))?);
        }
        call(at.as_ref().map_or(self.root.as_fd(), AsFd::as_fd), path.name())
    }

    /// What stands at `path`, symlinks not followed; `None` if nothing does.
    pub(crate) fn stat(&self, path: &VolumePath) -> Result<Option<Stat>, VolumeError> {
        let stat = |at: BorrowedFd<'_>, name: &str| fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW);
        match self.beside_existing(path, stat) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(errno) => Err(naming("look at", path.as_str())(errno)),
        }
    }

    /// Whether something stands in the way of `path`: there, unless both are directories, or as a
    /// file in the place of a directory above.
    pub(crate) fn is_taken(&self, path: &VolumePath, directory: bool) -> Result<bool, VolumeError> {
        let stat = |at: BorrowedFd<'_>, name: &str| fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW);
        match self.beside_existing(path, stat) {
            Ok(stat) => Ok(!(directory && FileType::from_raw_mode(stat.st_mode).is_dir())),
            Err(Errno::NOENT) => Ok(false),
            Err(Errno::NOTDIR | Errno::LOOP) => Ok(true),
            Err(errno) => Err(naming("look at", path.as_str())(errno)),
        }
    }

    /// Whether `path` stands in its directories in just this spelling: where names are folded, it is
    /// found by others too.
    pub(crate) fn is_spelled(&self, path: &VolumePath) -> Result<bool, VolumeError> {
        let wrong = || failed("look for", path.as_str());
        let mut at: Option<OwnedFd> = None;
        for name in path.as_str().split('/') {
            let from = at.as_ref().map_or(self.root.as_fd(), AsFd::as_fd);
            // a second descriptor: reading a directory moves its position
            let directory = fs::openat(from, ".", DIRECTORY, Mode::empty()).map_err(wrong())?;
            let mut found = false;
            for entry in fs::Dir::read_from(directory).map_err(wrong())? {
                found |= entry.map_err(wrong())?.file_name().to_bytes() == name.as_bytes();
            }
            if !found {
                return Ok(false);
            }
            at = match fs::openat(from, name, DIRECTORY, Mode::empty()) {
                Ok(fd) => Some(fd),
                // the last segment; or something that cannot hold the others
                Err(Errno::NOTDIR | Errno::LOOP) => break,
                Err(Errno::NOENT) => return Ok(false),
                Err(errno) => return Err(wrong()(errno)),
            };
        }
        Ok(true)
    }

    /// Opens the file at `path` for reading.
    ///
    /// # Errors
    /// [`VolumeError::InTheWay`] if it is none.
    pub(crate) fn read(&self, path: &VolumePath) -> Result<File, VolumeError> {
        let open = |at: BorrowedFd<'_>, name: &str| {
            Ok(open_file(at, name, path.as_str(), OFlags::RDONLY, Names::Any))
        };
        let opened = self.beside_existing(path, open).map_err(failed("open", path.as_str()))?;
        Ok(opened?.into())
    }

    /// Asks the kernel to read the file at `path` from its device the next time.
    pub(crate) fn drop_cached(&self, path: &VolumePath) {
        if let Ok(file) = self.read(path) {
            drop_cached(&file);
        }
    }

    /// Makes the directory `path`.
    pub(crate) fn make_directory(&self, path: &VolumePath) -> Result<(), VolumeError> {
        self.while_directories_go(|| self.directory(Some(path.as_str())).map(drop))
    }

    /// Removes the file or the empty directory at `path`; nothing there is fine, and so is a
    /// directory that is not empty (it still holds others' files).
    pub(crate) fn remove(&self, path: &VolumePath, directory: bool) -> Result<(), VolumeError> {
        let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        let gone = self.beside_existing(path, |at, name| fs::unlinkat(at, name, flags));
        if directory && gone.is_ok() {
            self.forget_directories();
        }
        match gone {
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
            // a directory took the file's place: after a power cut, or by someone's hand
            Err(Errno::ISDIR) if !directory => Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::BUSY) if directory => Ok(()),
            Err(errno) => Err(failed("remove", path.as_str())(errno)),
        }
    }

    /// Removes directories that are empty, from the one that holds `path` upwards.
    pub(crate) fn remove_empty_parents(&self, path: &VolumePath) -> Result<(), VolumeError> {
        let mut path = path.parent();
        while let Some(parent) = path.and_then(|path| path.parse::<VolumePath>().ok()) {
            self.remove(&parent, true)?;
            if self.stat(&parent)?.is_some() {
                break;
            }
            path = path.and_then(|path| path.rsplit_once('/')).map(|(parent, _)| parent);
        }
        Ok(())
    }

    /// Reserves `size` bytes for a staged file, where the file system can.
    pub(crate) fn reserve(
        &self,
        file: impl AsFd,
        path: &VolumePath,
        size: u64,
    ) -> Result<(), VolumeError> {
        if size == 0 {
            return Ok(());
        }
        match fs::fallocate(file, FallocateFlags::empty(), 0, size) {
            Ok(()) => Ok(()),
            // NFS before 4.2 and some FUSE file systems have none
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::INTR) => Ok(()),
            Err(errno) => Err(self.writing(path.as_str(), size, errno)),
        }
    }

    /// A failed write of `needed` bytes for `path`: with both figures if the volume is full.
    pub(crate) fn writing(&self, path: &str, needed: u64, errno: Errno) -> VolumeError {
        write_failed(&self.root, path, needed, errno)
    }

    /// Gives the staged file `name` its own name, unless something has it.
    ///
    /// The file's close is checked first: NFS reports failed writes there.
    pub(crate) fn publish(
        &self,
        name: &str,
        file: OwnedFd,
        path: &VolumePath,
        modified_ms: i64,
    ) -> Result<Published, VolumeError> {
        let time = Timespec {
            tv_sec: modified_ms.div_euclid(1000),
            tv_nsec: (modified_ms.rem_euclid(1000) * 1_000_000) as _,
        };
        let times = Timestamps { last_access: time, last_modification: time };
        uninterrupted(|| fs::futimens(&file, &times))
            .map_err(failed("set the time of", path.as_str()))?;
        close(file).map_err(|errno| self.writing(path.as_str(), 0, errno))?;
        let staged = self.staging().place(name)?;
        self.beside(path, |at, own_name| {
            let rename =
                || fs::renameat_with(&staged.at, staged.name, at, own_name, RenameFlags::NOREPLACE);
            let named = match staged.in_a_room {
                true => link(&staged, at, own_name),
                false => match rename() {
                    // NFS and some FUSE file systems know no flags
                    Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                        link(&staged, at, own_name)
                    }
                    other => other,
                },
            };
            match named {
                Ok(()) => Ok(Published::New),
                Err(Errno::EXIST) => Ok(Published::Exists),
                Err(errno) => Err(errno),
            }
        })
    }

    /// Gives the staged file `name` its own name, in place of a file that has it.
    pub(crate) fn replace(&self, name: &str, path: &VolumePath) -> Result<(), VolumeError> {
        let staged = self.staging().place(name)?;
        let rename = |at: BorrowedFd<'_>, own_name: &str| {
            fs::renameat(&staged.at, staged.name, at, own_name)
        };
        match self.beside(path, rename) {
            Err(VolumeError::Call {
                source: Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST,
                ..
            }) => {
                let found = "a directory";
                Err(VolumeError::InTheWay { path: path.to_string(), found, wanted: "a file" })
            }
            other => other,
        }
    }

    /// The room on the volume's file system.
    pub(crate) fn room(&self) -> Result<Room, VolumeError> {
        room(&self.root)
    }

    /// Waits until everything written to the file system is on its device.
    pub(crate) fn sync(&self) -> Result<(), VolumeError> {
        uninterrupted(|| fs::syncfs(&self.root))
            .map_err(|errno| self.writing("the volume", 0, errno))
    }

    /// Makes a file and removes it, to find out how names are treated here.
    pub(crate) fn probe(&self) -> Result<Probed, VolumeError> {
        // where names may not hold an accent, none can be composed
        for (probe, others) in [
            ("probe-a\u{e9}", ["PROBE-A\u{e9}", "probe-ae\u{301}"]),
            ("probe-ae", ["PROBE-AE", "Probe-ae"]),
        ] {
            let own = &self.own;
            let (file, making) = match timed(|| own.draft(probe)) {
                (Err(VolumeError::Call { source, .. }), _) if is_refusal(source) => continue,
                (made, took) => (made?, took),
            };
            let looking = || failed("look at", own.shown("probe"));
            let inode = fs::fstat(&file).map_err(looking())?.st_ino;
            let mut folds_names = false;
            for other in others {
                let at = || fs::statat(own.fd(), other, AtFlags::SYMLINK_NOFOLLOW);
                match uninterrupted(at) {
                    Ok(stat) => folds_names |= stat.st_ino == inode,
                    Err(Errno::NOENT) => {}
                    Err(errno) if is_refusal(errno) => {}
                    // not taken for a no: two keys would become one file
                    Err(errno) => return Err(looking()(errno)),
                }
            }
            let naming_takes = time_naming(own, probe, making)?;
            return Ok(Probed { folds_names, naming_takes });
        }
        Ok(Probed::default())
    }
}

/// Removes the probe, which was made in `making`; what it takes to make it or to remove it. Each may have
/// waited for a core.
fn time_naming(own: &Own, probe: &str, making: Duration) -> Result<Duration, VolumeError> {
    let mut least = making;
    let mut left = NAMINGS;
    loop {
        let (gone, took) = timed(|| own.discard(probe));
        gone?;
        least = least.min(took);
        if least <= SLOW || left == 0 {
            return Ok(least);
        }
        left -= 1;
        own.draft(probe)?;
    }
}

/// Links a staged file to its own name in `at`: a link does not replace what is there, as a rename does.
fn link(staged: &Place<'_>, at: BorrowedFd<'_>, own_name: &str) -> Result<(), Errno> {
    match fs::linkat(&staged.at, staged.name, at, own_name, AtFlags::empty()) {
        Ok(()) => match uninterrupted(|| fs::unlinkat(&staged.at, staged.name, AtFlags::empty())) {
            // done before, by a call whose answer was lost on its way from a file server
            Err(Errno::NOENT) => Ok(()),
            unlinked => unlinked,
        },
        // no links, or none across directories
        Err(Errno::PERM | Errno::NOSYS | Errno::OPNOTSUPP | Errno::MLINK | Errno::XDEV) => {
            rename_beside(staged, at, own_name)
        }
        Err(errno) => Err(errno),
    }
}

/// Renames a staged file to its own name in `at`, unless something has it. A file system that cannot see
/// to that is asked what is there, and trusted that no one puts something there meanwhile.
fn rename_beside(staged: &Place<'_>, at: BorrowedFd<'_>, own_name: &str) -> Result<(), Errno> {
    match fs::renameat_with(&staged.at, staged.name, at, own_name, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
        renamed => return renamed,
    }
    match fs::statat(at, own_name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Err(Errno::EXIST),
        Err(Errno::NOENT) => fs::renameat(&staged.at, staged.name, at, own_name),
        Err(errno) => Err(errno),
    }
}
