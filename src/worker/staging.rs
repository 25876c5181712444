//! The directory of staged files, and rooms in it.
//!
//! The kernel changes one directory by one call at a time, and files of one file system are renamed
//! across directories one at a time. Where a call takes microseconds nobody notices. On a NAS, where
//! one takes milliseconds, a single directory would let some hundred files a second through, however
//! many requests there are: there each file is staged in one of several rooms, and linked to its name.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::fs::{self, AtFlags, OFlags};

use super::at::{
    FILE_MODE, Names, VolumeError, failed, names, new_file, open_file, open_or_make_directory,
    remove_file, uninterrupted,
};
use super::own::Own;
use crate::lock::lock;

/// The name of the directory for staged files.
const STAGED: &str = "staged";
/// How many rooms: as many calls at once make and remove staged files, four times what a NAS was seen
/// to serve a client side by side.
const ROOMS: u64 = 64;
/// What the names of rooms begin with.
const ROOM: &str = "room-";

/// The name of the staged file `number`; in a room if the file system is `slow`.
pub(crate) fn name(number: u64, slow: bool) -> String {
    match slow {
        true => format!("{ROOM}{}/w{number}", number % ROOMS),
        false => format!("w{number}"),
    }
}

/// The directory.
#[derive(Debug)]
pub(crate) struct Staging {
    fd: Arc<OwnedFd>,
    /// As messages show it, relative to the volume root.
    path: String,
    /// Those that are open, by their names.
    rooms: Mutex<HashMap<String, Arc<OwnedFd>>>,
}

/// Where a staged file is.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    pub(crate) at: Arc<OwnedFd>,
    pub(crate) name: &'a str,
    /// Whether the file system is one for which files are staged in rooms.
    pub(crate) in_a_room: bool,
}

impl Staging {
    /// Opens the directory in `own`, made if missing.
    pub(crate) fn open(own: &Own) -> Result<Self, VolumeError> {
        let path = own.shown(STAGED);
        let fd = Arc::new(open_or_make_directory(own.fd(), STAGED, &path)?);
        Ok(Self { fd, path, rooms: Mutex::default() })
    }

    fn rooms(&self) -> MutexGuard<'_, HashMap<String, Arc<OwnedFd>>> {
        lock(&self.rooms)
    }

    fn shown(&self, name: &str) -> String {
        format!("{}/{name}", self.path)
    }

    /// Where the file `name` is; its room is made if need be.
    pub(crate) fn place<'a>(&'a self, name: &'a str) -> Result<Place<'a>, VolumeError> {
        let Some((room, own_name)) = name.split_once('/') else {
            return Ok(Place { at: Arc::clone(&self.fd), name, in_a_room: false });
        };
        let known = self.rooms().get(room).cloned();
        let at = match known {
            Some(at) => at,
            None => {
                // not under the lock: it takes its time, and two that open it get the same directory
                let at = Arc::new(open_or_make_directory(&*self.fd, room, &self.shown(room))?);
                self.rooms().insert(room.to_owned(), Arc::clone(&at));
                at
            }
        };
        Ok(Place { at, name: own_name, in_a_room: true })
    }

    /// Opens the file `name`; `fresh` refuses one that exists. What is no file of one name is replaced:
    /// it may have been linked to its own name before a crash, or planted.
    pub(crate) fn stage(
        &self,
        name: &str,
        fresh: bool,
        more: OFlags,
    ) -> Result<OwnedFd, VolumeError> {
        let (place, path) = (self.place(name)?, || self.shown(name));
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | more;
        if fresh {
            let flags = flags | OFlags::EXCL;
            return uninterrupted(|| fs::openat(&place.at, place.name, flags, FILE_MODE))
                .map_err(|errno| failed("make", path())(errno));
        }
        match open_file(&place.at, place.name, &path(), flags, Names::One) {
            Err(VolumeError::InTheWay { .. }) => {
                new_file(&place.at, place.name, &path(), OFlags::RDWR | more)
            }
            other => other,
        }
    }

    /// Removes the file `name`, if it exists.
    pub(crate) fn discard(&self, name: &str) -> Result<(), VolumeError> {
        let place = self.place(name)?;
        remove_file(&place.at, place.name, &self.shown(name)).map(drop)
    }

    /// Removes every file that `keep` does not want, and all rooms with what is in them; says how many
    /// bytes are reserved by the others. Nothing may be staged meanwhile.
    pub(crate) fn clean(&self, keep: impl Fn(&str) -> bool) -> Result<u64, VolumeError> {
        self.rooms().clear();
        let mut reserved = 0;
        for name in names(&self.fd, &self.path)? {
            if keep(&name) {
                let stat = fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW);
                // st_blocks counts 512 bytes each (stat(2))
                reserved += stat.map_or(0, |stat| stat.st_blocks as u64 * 512);
                continue;
            }
            let remove = || remove_file(&self.fd, &name, &self.shown(&name));
            match remove() {
                // most rooms are empty, and to look first would take four calls more
                Err(VolumeError::InTheWay { .. }) if name.starts_with(ROOM) => {
                    self.empty_room(&name)?;
                    remove()?
                }
                removed => removed?,
            };
        }
        Ok(reserved)
    }

    fn empty_room(&self, room: &str) -> Result<(), VolumeError> {
        let path = self.shown(room);
        let fd = open_or_make_directory(&self.fd, room, &path)?;
        for name in names(&fd, &path)? {
            remove_file(&fd, &name, &format!("{path}/{name}"))?;
        }
        Ok(())
    }
}
