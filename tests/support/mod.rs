//! What the tests share: the real binary as a process, the OSS server, and looking at a volume.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of this")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

pub mod cases;
pub mod layout;
pub mod mount;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use faulty::Dice;
use oss_server::OssServer;
use ossvp::handoff::{Marker, Outcome, Report};

pub const ID: &str = "test-key-id";
pub const SECRET: &str = "test-key-secret";
pub const BUCKET: &str = "bucket";

/// A server with one bucket and one access key.
pub fn server() -> OssServer {
    OssServer::builder().bucket(BUCKET).credentials(ID, SECRET).log(true).start_blocking().unwrap()
}

/// A directory for a volume, removed at the end.
pub struct Place {
    root: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap() }
    }

    /// The volume; it does not exist yet.
    pub fn volume(&self) -> PathBuf {
        self.root.path().join("volume")
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Whether the volume has a completion marker.
    pub fn is_marked(&self) -> bool {
        self.volume().join(".ossvp/complete.json").exists()
    }
}

/// The `ossvp` command line, in an environment that has nothing of this machine's.
pub fn ossvp() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ossvp"));
    command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", "/nonexistent");
    command.env("ALIBABA_CLOUD_ECS_METADATA_DISABLED", "true");
    command
}

/// `ossvp populate` of `source` on `server`, with its credentials.
pub fn populate(server: &OssServer, source: &str, volume: &Path) -> Command {
    let mut command = ossvp();
    command
        .env("OSS_ACCESS_KEY_ID", ID)
        .env("OSS_ACCESS_KEY_SECRET", SECRET)
        .env("AWS_ACCESS_KEY_ID", ID)
        .env("AWS_SECRET_ACCESS_KEY", SECRET)
        .args(["populate", source])
        .arg(volume)
        .args(["--endpoint", &server.endpoint(), "--region", server.region()])
        .args(["--progress", "none", "--report", "-"]);
    command
}

/// A run that has ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn report(&self) -> Report {
        let start = self.stdout.find("{\n").unwrap_or_else(|| panic!("no report: {self:?}"));
        let mut reports = serde_json::Deserializer::from_str(&self.stdout[start..]).into_iter();
        reports.next().unwrap().unwrap()
    }

    pub fn outcome(&self) -> Outcome {
        self.report().outcome
    }

    pub fn marker(&self) -> Marker {
        self.report().marker.unwrap_or_else(|| panic!("no marker: {self:?}"))
    }

    /// Panics with everything that was said unless the run ended with `code`.
    #[track_caller]
    pub fn ended(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// Panics unless stderr has `text`.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "no {text:?} in stderr: {}", self.stderr);
        self
    }
}

/// Waits until `condition` holds.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub trait Run {
    fn run(&mut self) -> Ran;
}

impl Run for Command {
    fn run(&mut self) -> Ran {
        self.output().unwrap().into()
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let signal = output.status.signal().map(|signal| 128 + signal);
        Self {
            code: output.status.code().or(signal).unwrap(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Every file below `root` but ossvp's own, with its contents; directories end in `/`.
pub fn tree(root: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(root: &Path, at: &Path, tree: &mut BTreeMap<String, Vec<u8>>) {
        for entry in std::fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            if name == ".ossvp" {
                continue;
            }
            if path.is_dir() && !path.is_symlink() {
                tree.insert(format!("{name}/"), Vec::new());
                walk(root, &path, tree);
            } else {
                tree.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    let mut tree = BTreeMap::new();
    walk(root, root, &mut tree);
    tree
}

/// Only the files of [`tree`].
pub fn files(root: &Path) -> BTreeMap<String, Vec<u8>> {
    tree(root).into_iter().filter(|(name, _)| !name.ends_with('/')).collect()
}

/// What the environment says of a number that a test may be given.
pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Deterministic bytes that differ from those of any other `seed`.
pub fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut dice = Dice::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        out.extend_from_slice(&dice.roll().to_le_bytes());
    }
    out.truncate(length);
    out
}
