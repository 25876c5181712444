//! What the tests of the volume share.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use faulty::directory::{Directory, Options};
use oss_server::OssServer;

use crate::support::cases::{Part, not_here};
use crate::support::{BUCKET, Place, Ran, bytes, files, number, populate, wait_until};

pub(crate) const SOURCE: &str = "oss://bucket/data/";
pub(crate) const PART: Part = Part::Volume;

/// The seed of everything drawn here.
pub(crate) fn seed() -> u64 {
    let seed = number("OSSVP_TEST_SEED", 20_261_123);
    println!("OSSVP_TEST_SEED={seed}");
    seed
}

/// Every how many calls one is failed where each is a run of its own and there are many.
pub(crate) fn stride() -> u64 {
    number("OSSVP_TEST_EVERY", 9)
}

/// Waits for the end of a run that may hang: opening a FIFO would wait for ever.
#[track_caller]
pub(crate) fn ended_in_time(command: &mut Command) -> Ran {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it hangs: {command:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap().into()
}

/// A run that waits for the rest of `data/stalls` until the server lets go.
pub(crate) fn stalled(server: &OssServer, volume: &Path, flags: &[&str]) -> Child {
    let gets = server.gets(BUCKET, "data/stalls");
    let child = populate(server, SOURCE, volume)
        .args(["--concurrency", "2"])
        .args(flags)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("a stalled request", || server.gets(BUCKET, "data/stalls") > gets);
    child
}

/// A few objects in a few directories, one of them in parts.
pub(crate) fn put_some(server: &OssServer) -> BTreeMap<String, Vec<u8>> {
    let sizes = [("a", 100), ("d/b", 5000), ("d/e/c", 10), ("large", (1 << 20) + 5), ("z", 0)];
    server.put(BUCKET, "data/dir/", "");
    let put = |(n, (path, size)): (usize, (&str, usize))| {
        let body = bytes(n as u64, size);
        server.put(BUCKET, &format!("data/{path}"), body.clone());
        (path.to_owned(), body)
    };
    sizes.into_iter().enumerate().map(put).collect()
}

pub(crate) const FLAGS: [&str; 4] = ["--part-size", "512KiB", "--concurrency", "2"];

/// What a run that failed leaves is right as far as it goes. A marker may stand if the last call of
/// all failed, the sync of its directory, but then everything is there.
#[track_caller]
pub(crate) fn holds_to_its_promise(volume: &Path, expected: &BTreeMap<String, Vec<u8>>, why: &str) {
    let found = files(volume);
    let marked = volume.join(".ossvp/complete.json").exists();
    assert!(
        !marked || (found == *expected && why.contains("cannot sync .ossvp")),
        "{why}: a marker"
    );
    for (path, body) in found {
        assert!(expected.get(&path) == Some(&body), "{why}: {path} has {} bytes", body.len());
    }
}

/// Everything below `root` and how it stands: kinds, bytes, times, modes, names in all.
pub(crate) fn everything(root: &Path) -> BTreeMap<PathBuf, String> {
    fn walk(at: &Path, found: &mut BTreeMap<PathBuf, String>) {
        let meta = std::fs::symlink_metadata(at).unwrap();
        let mut how = format!(
            "{:o} {} {} {} {}",
            meta.mode(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.len(),
            meta.nlink()
        );
        if meta.is_file() {
            write!(how, " {:?}", std::fs::read(at).unwrap()).unwrap();
        }
        found.insert(at.to_owned(), how);
        if meta.is_dir() {
            for entry in std::fs::read_dir(at).unwrap() {
                walk(&entry.unwrap().path(), found);
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(root, &mut found);
    found
}

/// A directory beside the volume that no run may touch. It holds what a run would look for, were it
/// led there.
pub(crate) fn canary(place: &Place) -> PathBuf {
    let canary = place.file("canary");
    for directory in ["", "d", "d/e", "staged", "dir"] {
        std::fs::create_dir_all(canary.join(directory)).unwrap();
    }
    for file in ["a", "d/b", "d/e/c", "large", "manifest", "lock", "complete.json", "file"] {
        std::fs::write(canary.join(file), format!("canary {file}")).unwrap();
    }
    canary
}

/// A volume on a file system that fails on request.
pub(crate) struct Bad {
    pub(crate) directory: Directory,
    pub(crate) place: Place,
}

impl Bad {
    /// Says why not where FUSE is not to be had.
    pub(crate) fn new(options: Options) -> Option<Self> {
        let place = Place::new();
        let (real, at) = (place.file("real"), place.volume());
        std::fs::create_dir(&real).unwrap();
        std::fs::create_dir(&at).unwrap();
        match options.mount(&real, &at) {
            Ok(directory) => Some(Self { directory, place }),
            Err(error) => {
                not_here(format_args!("FUSE: {error}"));
                None
            }
        }
    }

    pub(crate) fn volume(&self) -> PathBuf {
        self.place.volume()
    }

    pub(crate) fn real(&self) -> PathBuf {
        self.place.file("real")
    }

    /// An empty volume again.
    pub(crate) fn empty(&self) {
        self.directory.clear();
        for entry in std::fs::read_dir(self.real()).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                std::fs::remove_dir_all(path).unwrap();
            } else {
                std::fs::remove_file(path).unwrap();
            }
        }
    }
}
