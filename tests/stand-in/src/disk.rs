//! Volumes as directories of the host, some of them file systems of a real size.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::TempDir;

/// What a volume is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Make {
    /// A directory of the host, without a size of its own.
    Directory,
    /// An ext4 file system in a loop-mounted image.
    Ext4(u64),
    /// A tmpfs.
    Tmpfs(u64),
}

/// All that stand-in nodes keep on the host: below one directory, gone with this.
#[derive(Debug)]
pub(crate) struct Disk {
    root: TempDir,
    state: Mutex<State>,
    _keeper: Keeper,
}

/// Unmounts and removes what is left once this is dropped or the process of the test is dead: a
/// static is never dropped, and a killed test drops nothing.
#[derive(Debug)]
struct Keeper(Child);

impl Keeper {
    fn new(root: &Path) -> io::Result<Self> {
        // newest mounts first
        let script = "trap '' INT TERM HUP
while read -r _; do :; done
cut -d ' ' -f 2 /proc/self/mounts | grep -F \"$1/\" | tac | while read -r at; do
    umount \"$at\" || umount --lazy \"$at\"
done
rm -rf --one-file-system \"$1\"";
        Command::new("/bin/sh")
            .args(["-c", script, "keeper"])
            .arg(root)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .map(Self)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // nothing here may panic, and what fails could not be mended
        let _done = self.0.wait();
    }
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    /// In the order of mounting.
    mounts: Vec<PathBuf>,
    /// Who uses a volume: `None` of it may be removed meanwhile.
    users: BTreeMap<String, BTreeSet<String>>,
}

impl Disk {
    pub(crate) fn new() -> io::Result<Self> {
        let root = tempfile::Builder::new().prefix("stand-in-").tempdir()?;
        // a Pod's user must get through to what is mounted for it
        std::fs::set_permissions(root.path(), PermissionsExt::from_mode(0o755))?;
        for part in ["volumes", "images", "pods"] {
            std::fs::create_dir(root.path().join(part))?;
        }
        let keeper = Keeper::new(root.path())?;
        Ok(Self { root, state: Mutex::default(), _keeper: keeper })
    }

    /// Where a volume's data is.
    pub(crate) fn volume(&self, name: &str) -> PathBuf {
        self.root.path().join("volumes").join(name)
    }

    /// Where what belongs to one Pod is.
    pub(crate) fn pod(&self, uid: &str) -> PathBuf {
        self.root.path().join("pods").join(uid)
    }

    /// The names of all volumes.
    pub(crate) fn volumes(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.root.path().join("volumes"))? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    /// Makes a volume; one that is there already is left as it is. Blocks.
    pub(crate) fn make(&self, name: &str, make: Make) -> io::Result<()> {
        let place = self.volume(name);
        if place.exists() {
            return Ok(());
        }
        std::fs::create_dir(&place)?;
        let made = match make {
            Make::Directory => Ok(()),
            Make::Tmpfs(size) => self
                .mount(&["-t", "tmpfs", "-o", &format!("size={size},mode=755"), "tmpfs"], &place),
            Make::Ext4(size) => self.make_ext4(name, size, &place),
        };
        if made.is_err() {
            std::fs::remove_dir(&place)?;
        }
        made
    }

    fn make_ext4(&self, name: &str, size: u64, place: &Path) -> io::Result<()> {
        let image = self.image(name);
        std::fs::File::create(&image)?.set_len(size)?;
        does(Command::new("mkfs.ext4").args(["-q", "-F", "-E", "nodiscard"]).arg(&image))?;
        self.mount(&["-o", "loop", &image.to_string_lossy()], place)
    }

    /// Removes a volume and its data; one that is gone is no error. Blocks.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        if let Some(pod) = self.lock().users.get(name).and_then(BTreeSet::first) {
            let message = format!("volume {name} is still attached: used by Pod {pod}");
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, message));
        }
        let place = self.volume(name);
        self.unmount(&place)?;
        unless_gone(std::fs::remove_dir_all(place))?;
        unless_gone(std::fs::remove_file(self.image(name)))
    }

    /// A Pod uses these volumes from now on, until [`Disk::release`].
    pub(crate) fn hold(&self, pod: &str, volume: &str) {
        self.lock().users.entry(volume.to_owned()).or_default().insert(pod.to_owned());
    }

    /// A Pod uses nothing any more.
    pub(crate) fn release(&self, pod: &str) {
        self.lock().users.retain(|_, pods| {
            pods.remove(pod);
            !pods.is_empty()
        });
    }

    /// Mounts, and remembers it. `args` end in what is mounted. Blocks.
    pub(crate) fn mount(&self, args: &[&str], at: &Path) -> io::Result<()> {
        let mut state = self.lock();
        if state.closed {
            return Err(io::Error::other("the stand-in has been stopped"));
        }
        does(Command::new("mount").args(args).arg(at))?;
        state.mounts.push(at.to_owned());
        Ok(())
    }

    /// Unmounts what is mounted here or below. Blocks.
    pub(crate) fn unmount(&self, at: &Path) -> io::Result<()> {
        let mut state = self.lock();
        while let Some(last) = state.mounts.iter().rposition(|mount| mount.starts_with(at)) {
            does(Command::new("umount").arg(&state.mounts[last]))?;
            state.mounts.remove(last);
        }
        Ok(())
    }

    /// Unmounts and removes everything; nothing can be mounted afterwards. Blocks.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        while let Some(mount) = state.mounts.pop() {
            // lazily where something still has it open: a loop device goes with its last user
            let unmounted = does(Command::new("umount").arg(&mount))
                .or_else(|_| does(Command::new("umount").arg("--lazy").arg(&mount)));
            if let Err(error) = unmounted {
                eprintln!("{} stays mounted: {error}", mount.display());
                return;
            }
        }
        // what a task is writing at this moment goes with the last of them
        let _again = std::fs::remove_dir_all(self.root.path());
    }

    fn image(&self, name: &str) -> PathBuf {
        self.root.path().join("images").join(format!("{name}.ext4"))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.close();
    }
}

fn does(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{:?}: {}", command.get_program(), said.trim())))
}

fn unless_gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_as_large_as_it_was_made_and_leaves_nothing() {
        let disk = Disk::new().unwrap();
        let sixteen = 16 << 20;
        for make in [Make::Directory, Make::Ext4(sixteen), Make::Tmpfs(sixteen)] {
            disk.make("v", make).unwrap();
            disk.make("v", make).unwrap();
            let written = std::fs::write(disk.volume("v").join("f"), vec![1; 20 << 20]);
            assert_eq!(written.is_ok(), make == Make::Directory, "{make:?}: {written:?}");
            disk.hold("pod", "v");
            assert_eq!(disk.remove("v").unwrap_err().kind(), io::ErrorKind::ResourceBusy);
            disk.release("pod");
            disk.remove("v").unwrap();
            disk.remove("v").unwrap();
            assert!(disk.volumes().unwrap().is_empty());
            assert_eq!(std::fs::read_dir(disk.root.path().join("images")).unwrap().count(), 0);
        }
    }
}
