//! Images made of files of this machine.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use sha2::{Digest, Sha256};

use super::machine::run;
use crate::Error;

/// What an image holds. It has one layer and nothing that is not named here.
#[derive(Debug, Clone)]
pub struct Image {
    name: String,
    entries: Vec<Entry>,
    entrypoint: Vec<String>,
    user: String,
}

#[derive(Debug, Clone)]
struct Entry {
    path: PathBuf,
    content: Content,
}

#[derive(Debug, Clone)]
enum Content {
    Bytes(Vec<u8>, u32),
    File(PathBuf, u32),
    Link(String),
    Folder(u32),
}

impl Image {
    /// An empty image. The name needs a host and a tag, e.g. `example.com/ossvp:test`.
    pub fn new(name: &str) -> Self {
        let (entrypoint, user) = (Vec::new(), String::new());
        Self { name: name.to_owned(), entries: Vec::new(), entrypoint, user }
            .with("/tmp", Content::Folder(0o1777))
    }

    fn with(mut self, path: impl AsRef<Path>, content: Content) -> Self {
        let path = path.as_ref();
        let path = path.strip_prefix("/").unwrap_or(path).to_owned();
        self.entries.push(Entry { path, content });
        self
    }

    /// A file with these bytes.
    #[must_use]
    pub fn bytes(self, path: &str, bytes: impl Into<Vec<u8>>) -> Self {
        self.with(path, Content::Bytes(bytes.into(), 0o644))
    }

    /// A static program.
    #[must_use]
    pub fn program(self, path: &str, from: &Path) -> Self {
        self.with(path, Content::File(from.to_owned(), 0o755))
    }

    /// A symbolic link.
    #[must_use]
    pub fn link(self, path: &str, to: &str) -> Self {
        self.with(path, Content::Link(to.to_owned()))
    }

    /// A program and the libraries that it needs of this machine, each under its own path.
    ///
    /// # Errors
    ///
    /// If its libraries cannot be listed.
    pub fn dynamic_program(mut self, path: &str, from: &Path) -> Result<Self, Error> {
        let listed = match run(Command::new("ldd").arg(from)) {
            // a static one
            Err(Error::Failed { .. }) => String::new(),
            listed => listed?,
        };
        for line in listed.lines() {
            // `libm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x...)` or `/lib64/ld-linux... (0x...)`
            let library = line.split_whitespace().find(|word| word.starts_with('/'));
            if let Some(library) = library {
                self = self.with(library, Content::File(library.into(), 0o755));
            }
        }
        Ok(self.program(path, from))
    }

    /// What a container runs if its Pod does not say.
    #[must_use]
    pub fn entrypoint(mut self, words: &[&str]) -> Self {
        self.entrypoint = words.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Who a container runs as if its Pod does not say; a number, since there is no `/etc/passwd`.
    #[must_use]
    pub fn user(mut self, user: u32) -> Self {
        self.user = user.to_string();
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Writes it as `docker save` would.
    pub(crate) fn write(&self, to: &Path) -> Result<(), Error> {
        let failed = || Error::file("write the image", to);
        let layer = self.layer().map_err(failed())?;
        let digest: String =
            Sha256::digest(&layer).iter().map(|byte| format!("{byte:02x}")).collect();
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": {"Entrypoint": self.entrypoint, "User": self.user, "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
        });
        let manifest =
            json!([{"Config": "config.json", "RepoTags": [self.name], "Layers": ["layer.tar"]}]);
        let archive = || {
            let mut tar = tar::Builder::new(std::fs::File::create(to)?);
            add(&mut tar, "manifest.json", manifest.to_string().as_bytes(), 0o644)?;
            add(&mut tar, "config.json", config.to_string().as_bytes(), 0o644)?;
            add(&mut tar, "layer.tar", &layer, 0o644)?;
            tar.into_inner()?.flush()
        };
        archive().map_err(failed())
    }

    fn layer(&self) -> std::io::Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        for Entry { path, content } in &self.entries {
            match content {
                Content::Bytes(bytes, mode) => add(&mut tar, path, bytes, *mode)?,
                Content::File(from, mode) => add(&mut tar, path, &std::fs::read(from)?, *mode)?,
                Content::Link(to) => {
                    let mut header = header(tar::EntryType::Symlink, 0, 0o777);
                    tar.append_link(&mut header, path, to)?;
                }
                Content::Folder(mode) => {
                    let mut header = header(tar::EntryType::Directory, 0, *mode);
                    tar.append_data(&mut header, path, &[][..])?;
                }
            }
        }
        tar.into_inner()
    }
}

fn header(kind: tar::EntryType, size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header
}

fn add(
    tar: &mut tar::Builder<impl Write>,
    path: impl AsRef<Path>,
    bytes: &[u8],
    mode: u32,
) -> std::io::Result<()> {
    let mut header = header(tar::EntryType::Regular, bytes.len() as u64, mode);
    tar.append_data(&mut header, path, bytes)
}
