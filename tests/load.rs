//! Much of everything: memory and descriptors do not grow with the source, also where a run was
//! killed in its middle, and nothing is fetched twice.
//!
//! `cargo test` does this with 10,000 objects and 1 GB; `scripts/load` with a million and 50 GB.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use oss_server::{Generated, Operation, OssServer, PutOptions, Sizes};
use support::cases::{Part, measured, not_here, shown};
use support::{BUCKET, ID, Place, Ran, SECRET, ossvp, populate, wait_until};

const MIB: u64 = 1 << 20;
/// What each process may need at most, with every flag at its default. Against a source as near as
/// this the level climbs to 512 requests, each a connection, a staged file and at times a thread; a
/// run that goes on has sorted what an earlier one committed before (16 MiB). With 32 requests it is
/// less: tests/memory.rs.
const MEMORY: u64 = 128 * MIB;
/// At most: a connection and a file for each of 512 requests, 256 directories, and a few.
const DESCRIPTORS: u64 = 2 * 512 + 256 + 64;
const SOURCE: &str = "oss://bucket/data/";

/// Objects of 1 KiB, and GB of the one large object: `OSSVP_TEST_LOAD`, such as `1000000:50`.
fn sizes() -> (u64, u64) {
    let asked = std::env::var("OSSVP_TEST_LOAD").unwrap_or("10000:1".to_owned());
    let (objects, gigabytes) = asked.split_once(':').expect("objects:gigabytes");
    (objects.parse().unwrap(), gigabytes.parse::<u64>().unwrap() * 1_000_000_000)
}

/// A server that keeps no log: it would grow with every request.
fn server() -> OssServer {
    OssServer::builder().bucket(BUCKET).credentials(ID, SECRET).log(false).start_blocking().unwrap()
}

/// A place with so much room, or the reason why there is none.
fn place_for(bytes: u64) -> Option<Place> {
    let place = Place::new();
    let room = rustix::fs::statvfs(place.file("")).unwrap();
    let free = room.f_bavail * room.f_frsize;
    // others use the disk too
    if free > bytes + bytes / 10 + (2 << 30) {
        return Some(place);
    }
    not_here(format!("{} GB are needed and {} free", bytes / 1_000_000_000, free / 1_000_000_000));
    None
}

/// A process of which peak memory and descriptors are looked at until it ends.
struct Watched {
    child: Child,
    started: Instant,
    peaks: Arc<Peaks>,
    watcher: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Peaks {
    memory: AtomicU64,
    descriptors: AtomicU64,
    threads: AtomicU64,
    done: AtomicBool,
}

/// What a process took.
#[derive(Debug)]
struct Took {
    seconds: f64,
    memory: u64,
    descriptors: u64,
    threads: u64,
}

impl Watched {
    fn start(command: &mut Command) -> Self {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (peaks, of) = (Arc::new(Peaks::default()), format!("/proc/{}", child.id()));
        let watcher = std::thread::spawn({
            let peaks = Arc::clone(&peaks);
            move || {
                while !peaks.done.load(Relaxed) {
                    peaks.look(&of);
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        });
        Self { child, started: Instant::now(), peaks, watcher }
    }

    /// Kills it.
    fn kill(mut self) -> Took {
        self.peaks.look(&format!("/proc/{}", self.child.id()));
        self.child.kill().unwrap();
        self.end().1
    }

    /// Waits for its end.
    fn end(self) -> (Ran, Took) {
        let ran = Ran::from(self.child.wait_with_output().unwrap());
        self.peaks.done.store(true, Relaxed);
        self.watcher.join().unwrap();
        let took = Took {
            seconds: self.started.elapsed().as_secs_f64(),
            memory: self.peaks.memory.load(Relaxed),
            descriptors: self.peaks.descriptors.load(Relaxed),
            threads: self.peaks.threads.load(Relaxed),
        };
        (ran, took)
    }
}

impl Peaks {
    fn look(&self, process: &str) {
        let status = std::fs::read_to_string(format!("{process}/status")).unwrap_or_default();
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
        };
        self.memory.fetch_max(number("VmHWM:") * 1024, Relaxed);
        self.threads.fetch_max(number("Threads:"), Relaxed);
        let open = std::fs::read_dir(format!("{process}/fd")).map_or(0, Iterator::count);
        self.descriptors.fetch_max(open as u64, Relaxed);
    }
}

/// Holds what a process took against the bounds, and says it.
#[track_caller]
fn bounded(what: &str, took: &Took) -> String {
    let Took { seconds, memory, descriptors, threads } = took;
    let memory_mib = memory / MIB;
    let said = format!(
        "{what}: {seconds:.0} s, {memory_mib} MiB, {descriptors} descriptors, {threads} threads"
    );
    println!("{said}");
    assert!(
        *memory > 0 && *descriptors > 0,
        "{what}: there is no /proc here, so this proves nothing"
    );
    assert!(*memory < MEMORY, "{said}: at most {} MiB", MEMORY / MIB);
    assert!(*descriptors < DESCRIPTORS, "{said}: at most {DESCRIPTORS} descriptors");
    said
}

/// Fills the volume: killed when `half` says so, and then to the end. What was said of each run, and
/// how the second ended.
fn filled_in_two_runs(
    server: &OssServer,
    volume: &Path,
    half: impl Fn() -> bool,
) -> (Vec<String>, Ran) {
    let first = Watched::start(&mut populate(server, SOURCE, volume));
    let watchdog = Instant::now();
    while !half() {
        assert!(watchdog.elapsed() < Duration::from_secs(3600), "it never came to its half");
        std::thread::sleep(Duration::from_millis(5));
    }
    let first = first.kill();
    wait_until("connections close", || server.stats().open_connections == 0);
    assert!(!volume.join(".ossvp/complete.json").exists());

    let (ran, second) = Watched::start(&mut populate(server, SOURCE, volume)).end();
    let ran = ran.ended(0);
    let said = vec![bounded("killed at its half", &first), bounded("run again", &second)];
    let peak = ran.report().figures.peak_rss_bytes;
    assert!(peak < MEMORY, "{} MiB, at most {} MiB", peak / MIB, MEMORY / MIB);
    (said, ran)
}

fn verified(volume: &Path) -> String {
    let (ran, took) = Watched::start(ossvp().arg("verify").arg(volume)).end();
    ran.ended(0);
    bounded("verify", &took)
}

fn gets(server: &OssServer) -> u64 {
    server.stats().count(Operation::GetObject)
}

#[test]
fn many_objects_are_filled_in_bounded_memory_and_fetched_once() {
    let (count, _) = sizes();
    // an inode and a block of the file system each
    let Some(place) = place_for(count * (4096 + 512)) else { return };
    let (server, volume) = (server(), place.volume());
    let prefix = "data/".to_owned();
    let sizes = Sizes::Fixed(1024);
    server.generate(BUCKET, Generated { prefix, count, sizes, seed: 1, fan_out: 1000 });

    let (mut said, ran) = filled_in_two_runs(&server, &volume, || gets(&server) >= count / 2);
    let marker = ran.marker();
    assert_eq!((marker.objects, marker.bytes), (count, count * 1024));
    assert_eq!(marker.verified.crc64, count);
    let figures = ran.report().figures;
    assert_eq!(figures.objects_kept + figures.objects_fetched, count);
    // what was on its way at the kill: requests in flight, and what waits to be read or written
    let lost = gets(&server) - count;
    assert!(lost <= 1024, "{lost} objects were fetched twice");
    assert!(figures.objects_kept + 1024 >= count / 2, "{figures:?}");

    said.push(verified(&volume));
    measured(Part::Load, &format!("{count} objects of 1 KiB: {}", said.join("; ")));
    shown(
        Part::Load,
        "very many small objects, killed at half of them and run again",
        "memory and descriptors stay within their bounds in both runs and in verify; what the first run committed is not fetched again; every object is verified",
        0,
    );
}

#[test]
fn one_large_object_is_filled_in_bounded_memory_and_its_parts_are_kept() {
    let (_, size) = sizes();
    let Some(place) = place_for(size) else { return };
    let (server, volume) = (server(), place.volume());
    server.put_synthetic(BUCKET, "data/large", size, 7, PutOptions::new());
    // the server reads all of it once, before someone waits for the first answer
    server.crc64(BUCKET, "data/large").unwrap();

    let (mut said, ran) = filled_in_two_runs(&server, &volume, || server.stats().bytes >= size / 2);
    let marker = ran.marker();
    assert_eq!((marker.objects, marker.bytes, marker.verified.crc64), (1, size, 1));
    let parts = size.div_ceil(8 << 20);
    let figures = ran.report().figures;
    let seen = figures.parts_kept + figures.requests_get;
    assert!((parts..=parts + figures.retries).contains(&seen), "{figures:?}");
    // half of them, less those on their way at the kill
    assert!(figures.parts_kept + 512 >= parts / 2, "{figures:?}");
    assert!(figures.parts_kept > 0, "{figures:?}");

    said.push(verified(&volume));
    measured(
        Part::Load,
        &format!("one object of {} GB: {}", size / 1_000_000_000, said.join("; ")),
    );
    shown(
        Part::Load,
        "one very large object, killed at its half and run again",
        "memory and descriptors stay within their bounds in both runs and in verify; parts that were written are read again and kept; the whole is verified by its CRC-64",
        0,
    );
}
