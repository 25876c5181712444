//! Real file systems, mounted for a test: what only root may do, and not everywhere.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::Place;
use super::cases::not_here;

/// A file system that is mounted as long as this lives.
pub struct Mounted(PathBuf);

impl Mounted {
    /// Says why not where nothing can be mounted.
    pub fn new(args: &[&str], what: &Path, at: &Path) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        does(Command::new("mount").args(args).arg(what).arg(at))?;
        Some(Self(at.to_owned()))
    }

    /// The file system in `image`.
    pub fn image(image: &Path, at: &Path) -> Option<Self> {
        Self::new(&["-o", "loop"], image, at)
    }

    /// An ext4 file system of 16 MiB in the volume's place.
    pub fn small(place: &Place) -> Option<Self> {
        let image = place.file("image");
        ext4(&image, 16 << 20, &[])?;
        Self::image(&image, &place.volume())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.0).status().unwrap();
        assert!(unmounted.success() || std::thread::panicking(), "a loop device would be left");
    }
}

/// Makes an image of `size` bytes with an ext4 file system; `more` arguments for mkfs.
pub fn ext4(image: &Path, size: u64, more: &[&str]) -> Option<()> {
    std::fs::File::create(image).unwrap().set_len(size).unwrap();
    does(Command::new("/sbin/mkfs.ext4").args(["-q", "-F"]).args(more).arg(image))
}

/// Runs what only root may do; says why not where it fails.
fn does(command: &mut Command) -> Option<()> {
    let why = match command.output() {
        Ok(output) if output.status.success() => return Some(()),
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    not_here(format_args!("{:?}: {why}", command.get_program()));
    None
}
