//! The volumes of the driver: files and folders of this machine.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::grpc::Status;
use crate::node::machine::{enter, run};

/// What a volume is made of, by the parameter `kind` of its class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A folder: what the host has is what the volume can hold.
    Directory,
    /// An ext4 file system as large as the claim asks, in a sparse file.
    Ext4,
}

/// Where volumes are kept, and the node on which they are mounted.
#[derive(Debug)]
pub(crate) struct Volumes {
    pub(crate) folder: PathBuf,
    /// The node's first process.
    pub(crate) node: u32,
}

impl Volumes {
    /// Makes a volume. Asking for it again makes no second one.
    pub(crate) fn create(&self, id: &str, kind: Option<&str>, size: u64) -> Result<(), Status> {
        let kind = match kind {
            None | Some("directory") => Kind::Directory,
            Some("ext4") => Kind::Ext4,
            Some(other) => return Err(Status::invalid(format!("no kind of volume: {other}"))),
        };
        match kind {
            Kind::Directory => {
                let folder = self.directory(id)?;
                std::fs::create_dir_all(&folder).map_err(Status::internal)?;
                // as a new export of a file server: who may write in it is for the Pod to settle
                run(Command::new("chmod").arg("0755").arg(&folder)).map_err(Status::internal)?;
            }
            Kind::Ext4 => {
                let image = self.image(id)?;
                if let Ok(metadata) = image.metadata() {
                    return match metadata.len() == size {
                        true => Ok(()),
                        false => Err(Status::exists(format!("{id} has another size"))),
                    };
                }
                let partial = image.with_extension("partial");
                let made = || {
                    std::fs::File::create(&partial)?.set_len(size)?;
                    std::io::Result::Ok(())
                };
                made().map_err(Status::internal)?;
                let mut mkfs = Command::new("mkfs.ext4");
                mkfs.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").args(["-q", "-F"]).arg(&partial);
                run(&mut mkfs).map_err(Status::internal)?;
                std::fs::rename(&partial, &image).map_err(Status::internal)?;
            }
        }
        Ok(())
    }

    /// Removes a volume, if it is there.
    pub(crate) fn delete(&self, id: &str) -> Result<(), Status> {
        let gone = |result: std::io::Result<()>| match result {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Status::internal(error))
            }
            _ => Ok(()),
        };
        gone(std::fs::remove_file(self.image(id)?))?;
        gone(std::fs::remove_dir_all(self.directory(id)?))
    }

    /// Mounts a volume where all its users on the node will find it.
    pub(crate) fn stage(&self, id: &str, at: &str) -> Result<(), Status> {
        if self.mounted(at) {
            return Ok(());
        }
        let image = self.image(id)?;
        if image.exists() {
            self.mount(&["-o", "loop"], &image, at)
        } else {
            self.mount(&["--bind"], &self.directory(id)?, at)
        }
    }

    /// Shows a staged volume to a Pod.
    pub(crate) fn publish(&self, staged: &str, at: &str, readonly: bool) -> Result<(), Status> {
        if self.mounted(at) {
            return Ok(());
        }
        // the target's parent is the kubelet's, the target the driver's
        self.run(&["mkdir", "-p", at])?;
        self.mount(&["--bind"], Path::new(staged), at)?;
        match readonly {
            true => self.run(&["mount", "-o", "remount,bind,ro", at]),
            false => Ok(()),
        }
    }

    /// Ends [`Volumes::stage`].
    pub(crate) fn unstage(&self, at: &str) -> Result<(), Status> {
        match self.mounted(at) {
            true => self.run(&["umount", at]),
            false => Ok(()),
        }
    }

    /// Ends [`Volumes::publish`].
    pub(crate) fn unpublish(&self, at: &str) -> Result<(), Status> {
        self.unstage(at)?;
        self.run(&["rm", "-d", "-f", at])
    }

    fn mount(&self, args: &[&str], what: &Path, at: &str) -> Result<(), Status> {
        let what = what.display().to_string();
        self.run(&[&["mount"], args, &[&what, at]].concat())
    }

    fn mounted(&self, at: &str) -> bool {
        self.run(&["mountpoint", "-q", at]).is_ok()
    }

    /// Runs a program where the kubelet sees what it mounts.
    fn run(&self, words: &[&str]) -> Result<(), Status> {
        let mut command = enter(self.node, words[0].as_ref());
        run(command.args(&words[1..])).map(drop).map_err(Status::internal)
    }

    fn image(&self, id: &str) -> Result<PathBuf, Status> {
        Ok(self.folder.join(format!("{}.ext4", plain(id)?)))
    }

    fn directory(&self, id: &str) -> Result<PathBuf, Status> {
        Ok(self.folder.join(plain(id)?))
    }
}

/// A name that stays in its folder.
fn plain(id: &str) -> Result<&str, Status> {
    let good = !id.is_empty() && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    if good { Ok(id) } else { Err(Status::invalid(format!("no identifier of a volume: {id:?}"))) }
}
