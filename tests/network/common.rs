//! What the tests of the network share.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use oss_server::{Action, Builder, Fault, Matcher, OssServer};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{BUCKET, ID, Place, Ran, SECRET, bytes, files, ossvp};

/// No run may take longer, whatever is done to it.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(120);
pub(crate) const KEYS: [&str; 5] = ["data/a", "data/b", "data/large", "data/s p", "data/z"];

pub(crate) fn body(key: &str) -> Vec<u8> {
    let n = KEYS.iter().position(|known| *known == key).unwrap() as u64;
    bytes(n, if key == "data/large" { 300_000 } else { 10_000 })
}

pub(crate) fn builder() -> Builder {
    OssServer::builder().bucket(BUCKET).credentials(ID, SECRET).threads(1)
}

pub(crate) fn filled(builder: Builder) -> OssServer {
    let server = builder.start_blocking().unwrap();
    KEYS.iter().for_each(|key| server.put(BUCKET, key, body(key)));
    server
}

/// The dialect, as the scheme of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scheme {
    Oss,
    S3,
}

impl Scheme {
    pub(crate) fn source(self) -> &'static str {
        match self {
            Self::Oss => "oss://bucket/data/",
            Self::S3 => "s3://bucket/data/",
        }
    }
}

/// `ossvp populate` from `endpoint` without credentials.
pub(crate) fn bare(endpoint: &str, scheme: Scheme, volume: &Path) -> Command {
    let mut command = ossvp();
    command.args(["populate", scheme.source()]).arg(volume);
    command.args(["--endpoint", endpoint, "--region", "cn-hangzhou", "--part-size", "64KiB"]);
    command.args(["--progress", "none"]);
    command
}

pub(crate) fn signed(endpoint: &str, scheme: Scheme, volume: &Path) -> Command {
    let mut command = bare(endpoint, scheme, volume);
    command.env("OSS_ACCESS_KEY_ID", ID).env("OSS_ACCESS_KEY_SECRET", SECRET);
    command.env("AWS_ACCESS_KEY_ID", ID).env("AWS_SECRET_ACCESS_KEY", SECRET);
    command
}

/// As [`signed`], but gives up soon: after three attempts, each waiting no longer than `timeout`.
pub(crate) fn hasty(endpoint: &str, scheme: Scheme, volume: &Path, timeout: &str) -> Command {
    let mut command = signed(endpoint, scheme, volume);
    command.args(["--timeout", timeout, "--retry-for", "0s"]);
    command
}

/// Runs a command to its end, which must come within [`WATCHDOG`].
pub(crate) fn watched(command: &mut Command, what: &str) -> (Ran, Duration) {
    let begun = Instant::now();
    let child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
    let id = Pid::from_child(&child);
    let (ended, watching) = std::sync::mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        let hangs = watching.recv_timeout(WATCHDOG).is_err();
        if hangs {
            kill_process(id, Signal::KILL).unwrap();
        }
        hangs
    });
    let ran = Ran::from(child.wait_with_output().unwrap());
    let _ = ended.send(());
    assert!(!watchdog.join().unwrap(), "{what} hangs: {}", ran.stderr);
    (ran, begun.elapsed())
}

/// What the objects are, and were: no file may hold anything else.
#[derive(Debug, Default)]
pub(crate) struct Versions(BTreeMap<String, BTreeSet<Bytes>>);

impl Versions {
    pub(crate) fn of(server: &OssServer, keys: &[String]) -> Self {
        let mut versions = Self::default();
        versions.note(server, keys);
        versions
    }

    pub(crate) fn note(&mut self, server: &OssServer, keys: &[String]) {
        for key in keys {
            if let Some(body) = server.read(BUCKET, key) {
                let path = key.strip_prefix("data/").unwrap().to_owned();
                self.0.entry(path).or_default().insert(body);
            }
        }
    }

    #[track_caller]
    pub(crate) fn hold(&self, volume: &Path, what: &str) {
        if !volume.exists() {
            return;
        }
        for (path, found) in files(volume) {
            let right = self.0.get(&path).is_some_and(|known| known.contains(&found[..]));
            assert!(right, "{what}: {path} has bytes that no object ever had");
        }
    }
}

/// What stands in the volume is what the server has, no more and no less.
#[track_caller]
pub(crate) fn same(server: &OssServer, keys: &[String], volume: &Path, what: &str) {
    let wanted: BTreeMap<String, Vec<u8>> = keys
        .iter()
        .filter_map(|key| {
            let path = key.strip_prefix("data/").unwrap().to_owned();
            Some((path, server.read(BUCKET, key)?.to_vec()))
        })
        .collect();
    let found = files(volume);
    assert_eq!(wanted.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>(), "{what}");
    assert!(wanted == found, "{what}: bytes differ");
}

pub(crate) fn keys() -> Vec<String> {
    KEYS.map(str::to_owned).to_vec()
}

/// The promise, of a run that has ended: code, bytes, marker, message.
#[track_caller]
pub(crate) fn promised(ran: &Ran, code: i32, place: &Place, versions: &Versions, what: &str) {
    assert_eq!(ran.code, code, "{what}: {}", ran.stderr);
    assert_eq!(place.is_marked(), code == 0, "{what}");
    versions.hold(&place.volume(), what);
    let said = ran.stderr.lines().last().unwrap_or_default();
    assert!(said.starts_with("ossvp: "), "{what}: no message: {}", ran.stderr);
}

/// Running again, with the fault gone.
#[track_caller]
pub(crate) fn finishes(
    command: &mut Command,
    server: &OssServer,
    keys: &[String],
    place: &Place,
    what: &str,
) {
    let (ran, _) = watched(command, what);
    assert_eq!(ran.code, 0, "{what}, run again: {}", ran.stderr);
    assert!(place.is_marked(), "{what}");
    same(server, keys, &place.volume(), what);
}

/// What a fault meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum On {
    Listing,
    Object,
    Part,
}

impl On {
    pub(crate) const ALL: [Self; 3] = [Self::Listing, Self::Object, Self::Part];

    pub(crate) fn matcher(self) -> Matcher {
        match self {
            Self::Listing => Fault::list(),
            Self::Object => Fault::get("data/b"),
            // whatever is asked of this object
            Self::Part => Fault::get("data/large"),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Listing => "a listing",
            Self::Object => "an object",
            Self::Part => "a part",
        }
    }

    /// What the message of a failed run must name.
    pub(crate) fn thing(self) -> &'static [&'static str] {
        match self {
            Self::Listing => &["bucket", "listing", "listed"],
            Self::Object => &["\"data/b\""],
            Self::Part => &["\"data/large\""],
        }
    }
}

pub(crate) fn status(status: u16, code: &str, headers: &[(&str, &str)]) -> Action {
    let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    Action::Status { status, code: code.into(), headers }
}

pub(crate) fn instead(status: u16, content_type: &str, body: impl Into<String>) -> Action {
    Action::Instead { status, content_type: content_type.into(), body: body.into() }
}

pub(crate) fn header(name: &str, value: &str) -> Action {
    Action::Header(name.into(), Some(value.into()))
}

pub(crate) fn replace(from: &str, to: &str) -> Action {
    Action::Replace(from.into(), to.into())
}

pub(crate) const PORTAL: &str =
    "<!DOCTYPE html><html><head><title>Log in</title></head><body><form></body>";
pub(crate) const ERROR_XML: &str =
    "<?xml version=\"1.0\"?><Error><Code>InternalError</Code></Error>";
