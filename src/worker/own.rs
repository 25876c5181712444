//! Our own files on a volume: manifest, marker, locks. In `.ossvp`, or in a shard's directory in it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{self, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::at::{
    DIRECTORY, Names, VolumeError, errno, failed, in_the_way, names, new_file, open_file,
    open_or_make_directory, remove_file, uninterrupted, write_failed,
};
use super::sort::SpillFile;
use crate::handoff::ShardOf;

/// A directory of ours.
#[derive(Debug)]
pub(crate) struct Own {
    fd: OwnedFd,
    /// As messages show it, relative to the volume root.
    path: String,
}

impl Own {
    pub(crate) fn new(fd: OwnedFd, path: impl Into<String>) -> Self {
        Self { fd, path: path.into() }
    }

    /// Opens the directory `name` in `at`, made if missing.
    pub(crate) fn make(at: impl AsFd, name: &str, path: &str) -> Result<Self, VolumeError> {
        Ok(Self::new(open_or_make_directory(at, name, path)?, path))
    }

    /// The same directory once more.
    pub(crate) fn try_clone(&self) -> Result<Self, VolumeError> {
        let fd = self.fd.try_clone().map_err(|error| failed("open", &self.path)(errno(&error)))?;
        Ok(Self::new(fd, &self.path))
    }

    fn shard_name(shard: ShardOf) -> String {
        format!("shard-{}-of-{}", shard.index, shard.count)
    }

    /// The directory of one shard, made if missing.
    pub(crate) fn make_shard(&self, shard: ShardOf) -> Result<Self, VolumeError> {
        let name = Self::shard_name(shard);
        Self::make(&self.fd, &name, &format!("{}/{name}", self.path))
    }

    /// The directory of one shard, if it exists; the whole volume's is this one.
    pub(crate) fn shard(&self, shard: ShardOf) -> Result<Option<Self>, VolumeError> {
        let name = if shard == ShardOf::WHOLE { ".".to_owned() } else { Self::shard_name(shard) };
        let path = format!("{}/{name}", self.path);
        match uninterrupted(|| fs::openat(&self.fd, name.as_str(), DIRECTORY, Mode::empty())) {
            Ok(fd) => Ok(Some(Self::new(fd, path))),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                Err(in_the_way(&self.fd, &name, &path, "a directory"))
            }
            Err(errno) => Err(failed("open", path)(errno)),
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// As messages show the file `name` here.
    pub(crate) fn shown(&self, name: &str) -> String {
        format!("{}/{name}", self.path)
    }

    /// The names of directories of shards, whatever their count.
    pub(crate) fn shards(&self) -> Result<Vec<ShardOf>, VolumeError> {
        let shard = |name: &String| {
            name.strip_prefix("shard-")?.replace("-of-", "/").parse::<ShardOf>().ok()
        };
        Ok(names(&self.fd, &self.path)?.iter().filter_map(shard).collect())
    }

    /// Opens a file to read and write it, made if missing.
    pub(crate) fn open(&self, name: &str) -> Result<File, VolumeError> {
        let flags = OFlags::CREATE | OFlags::RDWR;
        Ok(open_file(&self.fd, name, &self.shown(name), flags, Names::One)?.into())
    }

    /// Makes a new file, in place of what an earlier run left under its name.
    pub(crate) fn draft(&self, name: &str) -> Result<File, VolumeError> {
        Ok(new_file(&self.fd, name, &self.shown(name), OFlags::RDWR)?.into())
    }

    /// Opens a file for reading, if it exists.
    pub(crate) fn read(&self, name: &str) -> Result<Option<File>, VolumeError> {
        match open_file(&self.fd, name, &self.shown(name), OFlags::RDONLY, Names::Any) {
            Ok(file) => Ok(Some(file.into())),
            Err(VolumeError::Call { source: Errno::NOENT, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes a lock that a crash releases, or says that another has it. It is held while the file
    /// is open.
    pub(crate) fn try_lock(
        &self,
        name: &str,
        operation: FlockOperation,
    ) -> Result<Option<File>, VolumeError> {
        let flags = OFlags::CREATE | OFlags::RDWR;
        let file = open_file(&self.fd, name, &self.shown(name), flags, Names::Any)?;
        match uninterrupted(|| fs::flock(&file, operation)) {
            Ok(()) => Ok(Some(file.into())),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(failed("lock", self.shown(name))(errno)),
        }
    }

    /// Writes a file so that it is there whole or not at all, also after a power cut.
    pub(crate) fn write(&self, name: &str, contents: &[u8]) -> Result<(), VolumeError> {
        let draft = format!("{name}.new");
        let file = self.draft(&draft)?;
        io::Write::write_all(&mut &file, contents).map_err(|error| {
            write_failed(&self.fd, &self.shown(&draft), contents.len() as u64, errno(&error))
        })?;
        self.settle(&draft, name, &file)
    }

    /// Syncs the file `draft`, renames it to `name` and syncs the rename.
    pub(crate) fn settle(&self, draft: &str, name: &str, file: &File) -> Result<(), VolumeError> {
        self.sync_file(draft, file)?;
        self.rename(draft, name)?;
        self.sync()
    }

    /// Renames the file `draft` to `name`.
    fn rename(&self, draft: &str, name: &str) -> Result<(), VolumeError> {
        uninterrupted(|| fs::renameat(&self.fd, draft, &self.fd, name)).map_err(|errno| match errno
        {
            Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST => {
                in_the_way(&self.fd, name, &self.shown(name), "a file")
            }
            errno => failed("name", self.shown(name))(errno),
        })
    }

    /// Syncs the file `name`.
    fn sync_file(&self, name: &str, file: &File) -> Result<(), VolumeError> {
        uninterrupted(|| fs::fsync(file))
            .map_err(|errno| write_failed(&self.fd, &self.shown(name), 0, errno))
    }

    /// Removes a file, if it exists, and syncs that.
    pub(crate) fn remove(&self, name: &str) -> Result<(), VolumeError> {
        match self.discard(name)? {
            true => self.sync(),
            false => Ok(()),
        }
    }

    /// Removes a file, if it exists, and says whether.
    pub(crate) fn discard(&self, name: &str) -> Result<bool, VolumeError> {
        remove_file(&self.fd, name, &self.shown(name))
    }

    /// Syncs the directory: which names are in it.
    pub(crate) fn sync(&self) -> Result<(), VolumeError> {
        uninterrupted(|| fs::fsync(&self.fd)).map_err(failed("sync", &self.path))
    }

    /// A maker of files without a name, for what sorting cannot hold in memory.
    pub(crate) fn spill(self: &Arc<Self>) -> SpillFile {
        let own = Arc::clone(self);
        Box::new(move || {
            // through its errno, from which the exit code is made
            let plain = |error| match error {
                VolumeError::Call { source, .. } => io::Error::from(source),
                other => io::Error::other(other),
            };
            let file = own.draft("spill").map_err(plain)?;
            own.discard("spill").map_err(plain)?;
            Ok(file)
        })
    }
}
