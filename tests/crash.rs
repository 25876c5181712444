//! A run that is killed, at whatever moment, leaves nothing wrong behind, and the next one finishes
//! it without fetching again what was there.
//!
//! First at every step: the worker is traced, and killed before its n-th call that changes the
//! volume, for every n, or in the middle of its n-th write. Then at random times.
//!
//! `OSSVP_CRASH=full` takes larger volumes and every kind of kill for each step.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use faulty::calls::{self, Call, End, Verdict, trace};
use oss_server::{Fault, Operation, OssServer, PutOptions};
use ossvp::handoff::Marker;
use support::cases::{Part, measured, not_here, shown};
use support::{BUCKET, Place, Ran, Run, bytes, ossvp, populate, server, tree};

/// What is in a directory: contents by path, directories end in `/`.
type Tree = BTreeMap<String, Vec<u8>>;
/// How often each range of each object was asked for.
type Asked = BTreeMap<(String, String), u64>;

const CONCURRENCY: u64 = 2;
const PART: u64 = 64 << 10;
/// Times of objects, in seconds since 1970: the same on every server, so that a volume that was
/// filled from one is that of another.
const OLD: i64 = 1_600_000_000;
const NEW: i64 = 1_700_000_000;

fn seed() -> u64 {
    let seed = std::env::var("OSSVP_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    seed.unwrap_or(20_260_801)
}

fn is_full() -> bool {
    std::env::var("OSSVP_CRASH").is_ok_and(|value| value == "full")
}

/// A number below `bound`, of a stream of them.
fn random(stream: u64, bound: u64) -> u64 {
    u64::from_le_bytes(bytes(seed() ^ stream.rotate_left(20), 8).try_into().unwrap()) % bound
}

/// An object: where it goes, its bytes and its time.
#[derive(Debug, Clone)]
struct Object {
    path: String,
    body: Vec<u8>,
    at: i64,
}

/// What a prefix holds, by keys relative to it.
#[derive(Debug, Clone, Default)]
struct Objects(BTreeMap<String, Object>);

impl Objects {
    fn with(self, key: &str, body: impl Into<Vec<u8>>, at: i64) -> Self {
        self.with_path(key, key, body, at)
    }

    fn with_path(mut self, key: &str, path: &str, body: impl Into<Vec<u8>>, at: i64) -> Self {
        let object = Object { path: path.to_owned(), body: body.into(), at };
        self.0.insert(key.to_owned(), object);
        self
    }

    fn put(&self, server: &OssServer, prefix: &str) {
        for (key, Object { body, at, .. }) in &self.0 {
            let at = chrono::DateTime::from_timestamp(*at, 0).unwrap();
            let options = PutOptions::new().modified(at);
            server.put_with(BUCKET, &format!("{prefix}{key}"), body.clone(), options);
        }
    }

    /// What a volume of them looks like.
    fn tree(&self) -> Tree {
        let mut tree = Tree::new();
        for Object { path, body, .. } in self.0.values() {
            for (slash, _) in path.match_indices('/') {
                tree.insert(path[..=slash].to_owned(), Vec::new());
            }
            tree.insert(path.clone(), body.clone());
        }
        tree
    }

    fn bytes(&self) -> usize {
        self.0.values().map(|object| object.body.len()).sum()
    }
}

/// A run that is killed again and again.
struct Scene {
    name: &'static str,
    /// What the source holds, under `prefix`.
    objects: Objects,
    prefix: &'static str,
    /// What the volume holds before the run, if there is one already, and what was its source.
    before: Option<(Place, Objects)>,
    args: &'static [&'static str],
    /// What goes wrong at the source, anew for each volume.
    faults: Vec<Fault>,
    /// Requests whose work one kill may lose.
    in_flight: u64,
    /// Whether the file system takes its time over names: then files are staged in rooms, and linked.
    slow_names: bool,
}

impl Scene {
    /// A run without faults on a new volume.
    fn new(name: &'static str, objects: Objects, args: &'static [&'static str]) -> Self {
        // each request holds one of so many permits until its part is noted, or its object
        // committed: only those can be lost
        let in_flight = CONCURRENCY;
        Self {
            name,
            objects,
            prefix: "data/",
            before: None,
            args,
            faults: Vec::new(),
            in_flight,
            slow_names: false,
        }
    }

    /// Forgets what the server was asked, and lets go wrong again what shall.
    fn rearm(&self, server: &OssServer) {
        // what a killed client asked for last may still be on its way into the log
        assert!(server.wait_until(Duration::from_secs(60), |stats| stats.open_connections == 0));
        server.reset_stats();
        server.clear_faults();
        self.faults.iter().for_each(|fault| server.fault(fault.clone()));
    }

    fn serve(&self) -> OssServer {
        let server = server();
        self.objects.put(&server, self.prefix);
        server
    }

    fn command(&self, server: &OssServer, volume: &Path) -> Command {
        let mut command = run(server, self.prefix, volume, CONCURRENCY);
        command.args(self.args);
        command
    }

    /// A volume as it is before the run.
    fn set(&self) -> Place {
        let place = Place::new();
        if let Some((before, _)) = &self.before {
            // with times, by which a worker knows its files
            let status =
                Command::new("cp").arg("-a").arg(before.volume()).arg(place.volume()).status();
            assert!(status.unwrap().success());
        }
        place
    }

    fn asks_sha256(&self) -> bool {
        self.args.contains(&"--sha256")
    }

    /// Nothing under a name of its own is anything but a whole object, of now or before, and what is
    /// marked as complete is.
    fn check_killed(&self, volume: &Path, finished: &Finished) {
        if !volume.exists() {
            return;
        }
        let found = tree(volume);
        let new = self.objects.tree();
        let old = self.before.as_ref().map(|(_, objects)| objects.tree()).unwrap_or_default();
        for (path, content) in &found {
            let whole = [&new, &old].iter().any(|tree| tree.get(path) == Some(content));
            // a directory that has something below it needs no placeholder
            assert!(whole, "{path}, {} bytes, is no object", content.len());
        }
        if let Some(marker) = marker(&volume.join(".ossvp")) {
            if is_of(&marker, self.prefix) && marker.sha256 >= self.asks_sha256() {
                self.check_complete(volume, finished);
            } else {
                // the marker of before stands, so everything is still as it was
                assert_eq!(shapes(&found), shapes(&old), "the marker of before stands");
                ossvp().arg("verify").arg(volume).run().ended(0);
            }
        }
        // a shard may only vouch for files that stand; here the other one has the rest
        if marker(&volume.join(".ossvp/shard-0-of-2")).is_some() {
            assert_eq!(shapes(&found), shapes(&new), "a shard's marker stands");
        }
    }

    /// The volume is the source, and says so.
    fn check_complete(&self, volume: &Path, finished: &Finished) {
        let (found, expected) = (tree(volume), self.objects.tree());
        assert_eq!(shapes(&found), shapes(&expected));
        assert!(found == expected, "a file has wrong bytes");
        let marker = marker(&volume.join(".ossvp")).expect("a marker");
        assert!(is_of(&marker, self.prefix), "{marker:?}");
        let objects = expected.keys().filter(|path| !path.ends_with('/')).count() as u64;
        assert_eq!((marker.objects, marker.sha256), (objects, self.asks_sha256()));
        let verified = ossvp().arg("verify").arg(volume).run().ended(0);
        assert!(verified.stderr.contains(&format!("{objects} files")), "{}", verified.stderr);
        if self.asks_sha256() {
            let sums = std::fs::read_to_string(volume.join(".ossvp/SHA256SUMS")).unwrap();
            assert_eq!(sums.lines().count() as u64, objects);
            let mut check = Command::new("sha256sum");
            check.args(["--check", "--quiet", "--strict", ".ossvp/SHA256SUMS"]);
            let checked = check.current_dir(volume).run();
            assert_eq!(checked.code, 0, "{checked:?}");
        }
        // what a killed run left lying about is gone, too
        if let Finished { own: Some(own), .. } = finished {
            assert_eq!(&names(&volume.join(".ossvp")), own);
        }
    }

    /// Objects and bytes that were fetched more often than an undisturbed run fetches them.
    fn twice(&self, server: &OssServer, finished: &Finished) -> (u64, u64) {
        let (mut requests, mut bytes) = (0, 0);
        for ((key, range), count) in asked(server) {
            let once = finished.asked.get(&(key.clone(), range.clone())).copied().unwrap_or(0);
            assert!(once > 0, "{key} {range} need not be fetched at all");
            let again = count.saturating_sub(once);
            requests += again;
            bytes += again * self.length(&key, &range);
        }
        (requests, bytes)
    }

    fn length(&self, key: &str, range: &str) -> u64 {
        let size = self.objects.0[key.strip_prefix(self.prefix).unwrap()].body.len() as u64;
        match range.strip_prefix("bytes=").and_then(|range| range.split_once('-')) {
            Some((first, last)) => {
                let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
                last.min(size - 1) + 1 - first
            }
            None => size,
        }
    }
}

/// What an undisturbed run does.
#[derive(Debug, Default)]
struct Finished {
    asked: Asked,
    /// Our own files that it leaves.
    own: Option<BTreeSet<String>>,
    /// The kinds of its calls: how many of each, and how many that write.
    kinds: BTreeMap<String, (u64, u64)>,
    calls: u64,
}

fn run(server: &OssServer, prefix: &str, volume: &Path, concurrency: u64) -> Command {
    let mut command = populate(server, &format!("oss://{BUCKET}/{prefix}"), volume);
    command.args(["--concurrency", &concurrency.to_string(), "--part-size", "64KiB"]);
    command
}

fn shapes(tree: &Tree) -> Vec<(&str, usize)> {
    tree.iter().map(|(path, content)| (path.as_str(), content.len())).collect()
}

fn marker(own: &Path) -> Option<Marker> {
    let text = std::fs::read(own.join("complete.json")).ok()?;
    Some(serde_json::from_slice(&text).expect("a marker is whole"))
}

fn is_of(marker: &Marker, prefix: &str) -> bool {
    marker.source.prefix == prefix
}

/// The names of all that is below a directory.
fn names(root: &Path) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            names.insert(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            if path.is_dir() {
                directories.push(path);
            }
        }
    }
    names
}

/// What was asked for since the server's log was emptied, without what was refused.
fn asked(server: &OssServer) -> Asked {
    let mut asked = Asked::new();
    for line in server.log() {
        if line.operation == Operation::GetObject && line.status < 300 {
            let key = line.target.split('?').next().unwrap();
            let key = key.strip_prefix(&format!("/{BUCKET}/")).unwrap().to_owned();
            *asked.entry((key, line.range.unwrap_or_default())).or_default() += 1;
        }
    }
    asked
}

/// What a call does to what, in a few words: kinds of steps, not steps.
fn kind(call: &Call) -> String {
    let path = call.path.to_str().unwrap();
    let own = path.strip_prefix(".ossvp");
    let (shard, own) = match own.and_then(|own| own.strip_prefix("/shard-")) {
        None => ("", own.map(|own| own.trim_start_matches('/'))),
        Some(shard) => ("a shard's ", Some(shard.split_once('/').map_or("", |(_, own)| own))),
    };
    let what = match own {
        None if path.is_empty() => "the volume's root",
        None => "an object's name",
        Some("") => "our directory",
        Some(own) => match own.strip_prefix("staged/") {
            Some(name) if name.ends_with(".parts") => "notes of parts",
            Some(name) if name.starts_with('w') => "a staged object",
            Some(name) if name.starts_with("room-") && name.contains('/') => "a staged object",
            Some(name) if name.starts_with("room-") => "a room",
            Some(_) => "a staged object in parts",
            None => own,
        },
    };
    format!("{} {shard}{what}", call.name)
}

/// When a run is to be killed.
#[derive(Debug, Clone)]
enum Strike {
    Never,
    /// Before its n-th call.
    BeforeAny(u64),
    /// Before its n-th call of a kind: threads change the order of calls, but hardly how many
    /// there are of each kind, so that no step is left out.
    Before(String, u64),
    /// In the middle of its n-th call of a kind that writes.
    Within(String, u64),
}

fn can_tear(call: &Call) -> bool {
    call.bytes.is_some_and(|bytes| bytes > 1)
}

/// Runs `command` until it is struck; `hit` hears of every call with whether it is the last.
fn strike(
    scene: &Scene,
    command: &Command,
    volume: &Path,
    strike: &Strike,
    mut hit: impl FnMut(&Call, bool),
) -> (End, Ran) {
    let said = tempfile::NamedTempFile::new().unwrap();
    let mut calls = 0;
    let end = trace(command, volume, said.reopen().unwrap(), |call| {
        if scene.slow_names && call.path.to_str().unwrap().contains("/probe-") {
            std::thread::sleep(Duration::from_millis(2));
        }
        calls += u64::from(match strike {
            Strike::Never => false,
            Strike::BeforeAny(_) => true,
            Strike::Before(of, _) => *of == kind(call),
            Strike::Within(of, _) => can_tear(call) && *of == kind(call),
        });
        let verdict = match strike {
            Strike::BeforeAny(n) | Strike::Before(_, n) if *n == calls => Verdict::Kill,
            Strike::Within(_, n) if *n == calls => Verdict::Tear,
            _ => Verdict::Pass,
        };
        hit(call, verdict != Verdict::Pass);
        verdict
    });
    let said = std::fs::read_to_string(said.path()).unwrap();
    let end = end.unwrap_or_else(|error| panic!("{error}: {said}"));
    let code = match end {
        End::Exited(code) => code,
        End::Killed => 137,
    };
    (end, Ran { code, stdout: said.clone(), stderr: said })
}

/// What all kills of a scene came to.
#[derive(Debug, Default)]
struct Toll {
    kills: u64,
    torn: u64,
    requests: u64,
    bytes: u64,
    /// The most that a single kill cost.
    most_requests: u64,
    most_bytes: u64,
    struck: BTreeMap<String, u64>,
}

impl Toll {
    fn add(&mut self, other: &Self) {
        let Self { kills, torn, requests, bytes, most_requests, most_bytes, struck } = other;
        self.kills += kills;
        self.torn += torn;
        self.requests += requests;
        self.bytes += bytes;
        self.most_requests = self.most_requests.max(*most_requests);
        self.most_bytes = self.most_bytes.max(*most_bytes);
        for (kind, count) in struck {
            *self.struck.entry(kind.clone()).or_default() += count;
        }
    }
}

/// Kills a run as the first of `strikes` says, and the run that follows as the next says; then lets
/// one finish. `None` if the first run was done before.
fn attempt(
    scene: &Scene,
    server: &OssServer,
    finished: &Finished,
    strikes: &[Strike],
) -> Option<Toll> {
    scene.rearm(server);
    let place = scene.set();
    let volume = place.volume();
    let mut toll = Toll::default();
    for (nth, how) in strikes.iter().enumerate() {
        let command = scene.command(server, &volume);
        let (end, ran) = strike(scene, &command, &volume, how, |call, struck| {
            if struck {
                *toll.struck.entry(kind(call)).or_default() += 1;
                toll.torn += u64::from(matches!(how, Strike::Within(..)));
            }
        });
        if end != End::Killed {
            ran.ended(0);
            scene.check_complete(&volume, finished);
            if nth == 0 {
                return None;
            }
            break;
        }
        toll.kills += 1;
        scene.check_killed(&volume, finished);
    }
    scene.command(server, &volume).run().ended(0);
    scene.check_complete(&volume, finished);
    let (requests, bytes) = scene.twice(server, finished);
    assert!(requests <= toll.kills * scene.in_flight, "{requests} requests again");
    assert!(bytes <= toll.kills * scene.in_flight * PART, "{bytes} bytes again");
    toll.requests = requests;
    toll.bytes = bytes;
    if toll.kills == 1 {
        (toll.most_requests, toll.most_bytes) = (requests, bytes);
    }
    Some(toll)
}

/// Lets a run finish, traced.
fn undisturbed(scene: &Scene, server: &OssServer) -> Finished {
    // on a busy machine any file system may seem slow
    for _ in 0..100 {
        scene.rearm(server);
        let place = scene.set();
        let mut finished = Finished::default();
        let command = scene.command(server, &place.volume());
        let (_, ran) = strike(scene, &command, &place.volume(), &Strike::Never, |call, _| {
            let (calls, writes) = finished.kinds.entry(kind(call)).or_default();
            *calls += 1;
            *writes += u64::from(can_tear(call));
            finished.calls += 1;
        });
        ran.ended(0);
        scene.check_complete(&place.volume(), &finished);
        let links = finished.kinds.keys().any(|kind| kind.starts_with("linkat"));
        if links == scene.slow_names {
            finished.asked = asked(server);
            finished.own = Some(names(&place.volume().join(".ossvp")));
            return finished;
        }
    }
    panic!("{}: names never were as slow as they should be", scene.name);
}

/// Kills a run of `scene` at every step. `None` if processes cannot be traced here.
fn killed_at_every_step(scene: &Scene) -> Option<Toll> {
    if let Err(error) = calls::supported() {
        not_here(format!("no process can be traced: {error}"));
        return None;
    }
    let finished = undisturbed(scene, &scene.serve());
    let mut plan: Vec<Vec<Strike>> = Vec::new();
    for (kind, (calls, writes)) in &finished.kinds {
        let before = (1..=*calls).map(|n| Strike::Before(kind.clone(), n));
        let within = (1..=*writes).map(|n| Strike::Within(kind.clone(), n));
        for first in before.chain(within) {
            // somewhere in the run that follows
            let second = Strike::BeforeAny(1 + random(plan.len() as u64, finished.calls));
            let torn = matches!(first, Strike::Within(..));
            if is_full() || !torn {
                plan.push(vec![first.clone()]);
            }
            if is_full() || torn {
                plan.push(vec![first, second]);
            }
        }
    }
    let total = Mutex::new(Toll::default());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                let server = scene.serve();
                while let Some(strikes) = plan.get(next.fetch_add(1, Relaxed)) {
                    // whatever fails below is about this
                    let about = About(format!("{}: {strikes:?}", scene.name));
                    // a run may get by without a call: threads change that, and a busy machine
                    let once = |_| attempt(scene, &server, &finished, strikes);
                    if let Some(toll) = (0..3).find_map(once) {
                        total.lock().unwrap().add(&toll);
                    }
                    about.forget();
                }
            });
        }
    });
    let total = total.into_inner().unwrap();
    for kind in finished.kinds.keys() {
        assert!(total.struck.contains_key(kind), "never killed at {kind:?}: {:?}", total.struck);
    }
    println!("{}: {} calls, seed {}", scene.name, finished.calls, seed());
    for (kind, count) in &total.struck {
        println!("  {count:4} kills at {kind}");
    }
    measured(
        Part::Crash,
        &format!(
            "{}: {} kinds of calls; killed {} times, {} of them inside a write; {} requests and {} \
             bytes were made again, at most {} requests and {} bytes after a single kill",
            scene.name,
            finished.kinds.len(),
            total.kills,
            total.torn,
            total.requests,
            total.bytes,
            total.most_requests,
            total.most_bytes,
        ),
    );
    Some(total)
}

/// Says what was being done when a test panicked.
struct About(String);

impl About {
    fn forget(mut self) {
        self.0.clear();
    }
}

impl Drop for About {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            eprintln!("{}, seed {}", self.0, seed());
        }
    }
}

/// Small objects, an empty one, placeholders, and one in five parts, the last of them short.
fn ordinary() -> Objects {
    let mut objects = Objects::default()
        .with("a", bytes(1, 700), NEW)
        .with("b/c/", "", NEW)
        .with("b/d", bytes(2, 3000), NEW)
        .with("empty", "", NEW)
        .with("large", bytes(3, 4 * PART as usize + 1234), NEW)
        .with("z", bytes(4, 5000), NEW);
    if is_full() {
        for n in 0..20 {
            objects = objects.with(&format!("m/{}/{n}", n % 3), bytes(n, 500 * n as usize), NEW);
        }
        objects = objects.with("y-large", bytes(5, 9 * PART as usize), NEW);
    }
    objects
}

fn fresh(name: &'static str, args: &'static [&'static str]) -> Scene {
    Scene::new(name, ordinary(), args)
}

const RIGHT: &str = "no short or wrong file has its name, and a marker stands only on a complete volume; \
                     the next run finishes, and fetches again at most what was in flight";

fn shows(scene: &Scene, when: &str) {
    if killed_at_every_step(scene).is_some() {
        let case = format!("killed at any call that changes the volume, {when}");
        shown(Part::Crash, &case, RIGHT, "0 on the next run");
    }
}

#[test]
fn a_run_that_is_killed_at_any_step_is_finished_by_the_next() {
    shows(&fresh("a new volume", &[]), "while a new one is filled");
}

#[test]
fn a_run_with_sha256_that_is_killed_at_any_step_is_finished_by_the_next() {
    shows(&fresh("a new volume with --sha256", &["--sha256"]), "with --sha256");
}

#[test]
fn a_run_with_slow_names_that_is_killed_at_any_step_is_finished_by_the_next() {
    let name = "a new volume where names are slow";
    let scene = Scene { slow_names: true, ..fresh(name, &[]) };
    shows(&scene, "while one is filled whose file system takes its time over names");
}

#[test]
fn a_run_past_the_page_cache_that_is_killed_at_any_step_is_finished_by_the_next() {
    shows(&fresh("a new volume with --direct on", &["--direct", "on"]), "with --direct on");
}

/// So that a key gets another place when one that is its directory becomes an object.
const ESCAPE: &[&str] = &["--unmappable", "escape"];

/// A volume that an earlier run was killed on, when two parts of its large object were noted; the
/// source has changed since.
fn resumed() -> Scene {
    let same = Objects::default()
        .with("a/same", bytes(10, 900), OLD)
        .with("kept/", "", OLD)
        .with("same", bytes(11, 1100), OLD)
        .with("z-large", bytes(12, 5 * PART as usize - 77), OLD);
    let old = same
        .clone()
        .with("changed", bytes(13, 800), OLD)
        .with("gone", bytes(14, 10), OLD)
        .with("gone-dir/", "", OLD)
        .with("gone-dir/deep/x", bytes(15, 20), OLD)
        .with("moved/x", bytes(18, 70), OLD)
        .with("was-dir/x", bytes(16, 30), OLD)
        .with("was-file", bytes(17, 40), OLD);
    let new = same
        .with("added", bytes(20, 600), NEW)
        .with("changed", bytes(21, 800), NEW)
        .with("moved", bytes(24, 80), NEW)
        .with_path("moved/x", "moved%2Fx", bytes(18, 70), OLD)
        .with("was-dir", bytes(22, 50), NEW)
        .with("was-file/x", bytes(23, 60), NEW);
    let server = server();
    old.put(&server, "data/");
    let place = Place::new();
    let mut command = run(&server, "data/", &place.volume(), 1);
    command.args(ESCAPE);
    let mut noted = 0;
    let said = tempfile::tempfile().unwrap();
    let end = trace(&command, &place.volume(), said, |call| {
        let is_note = call.bytes.is_some() && kind(call).contains("notes of parts");
        noted += u64::from(is_note);
        // the first line names the object's version
        if noted > 3 { Verdict::Kill } else { Verdict::Pass }
    });
    // a machine that cannot trace is told of later
    assert!(end.is_err() || end.is_ok_and(|end| end == End::Killed));
    Scene {
        before: Some((place, old)),
        ..Scene::new("a volume of an earlier version", new, ESCAPE)
    }
}

#[test]
fn a_resuming_run_that_is_killed_at_any_step_is_finished_by_the_next() {
    let scene = resumed();
    if calls::supported().is_ok() {
        // all that a resuming run may find is there
        let (server, place) = (scene.serve(), scene.set());
        let figures = scene.command(&server, &place.volume()).run().ended(0).report().figures;
        let kept = (figures.objects_kept, figures.parts_kept, figures.objects_removed);
        assert_eq!((figures.objects_fetched, kept), (7, (2, 2, 6)), "{figures:?}");
    }
    shows(
        &scene,
        "while files of an earlier version are kept, replaced, moved and removed, and a large \
         object is resumed",
    );
}

/// Fills a volume with `objects`, undisturbed.
fn filled(objects: &Objects, prefix: &str, args: &[&str]) -> Place {
    let server = server();
    objects.put(&server, prefix);
    let place = Place::new();
    run(&server, prefix, &place.volume(), CONCURRENCY).args(args).run().ended(0);
    place
}

#[test]
fn a_run_that_fetches_wrong_bytes_again_may_be_killed_at_any_step() {
    let objects = Objects::default()
        .with("a", bytes(70, 900), NEW)
        .with("b/c", bytes(71, 700), NEW)
        .with("large", bytes(72, 2 * PART as usize + 99), NEW);
    // of a large object nobody knows which part is wrong: all three are lost, besides another request
    let in_flight = CONCURRENCY - 1 + 3;
    let faults = vec![
        Fault::get("data/a").times(1).flip_byte(17),
        Fault::get("data/large").times(1).flip_byte(PART + 5),
    ];
    let scene =
        Scene { faults, in_flight, ..Scene::new("bytes that arrive wrong once", objects, &[]) };
    shows(&scene, "while objects that arrived with wrong bytes are fetched again");
}

#[test]
fn a_run_that_adds_sha256_to_a_complete_volume_may_be_killed_at_any_step() {
    let objects = Objects::default()
        .with("a", bytes(30, 900), OLD)
        .with("b/c", bytes(31, 1100), OLD)
        .with("d/", "", OLD)
        .with("large", bytes(32, 2 * PART as usize), OLD);
    let before = Some((filled(&objects, "data/", &[]), objects.clone()));
    let name = "a complete volume that gets --sha256";
    let scene = Scene { before, ..Scene::new(name, objects, &["--sha256"]) };
    shows(&scene, "while --sha256 is added to a complete one");
}

#[test]
fn the_last_shard_may_be_killed_at_any_step() {
    let objects = Objects::default()
        .with("a/1", bytes(40, 900), NEW)
        .with("a/2", bytes(41, 1100), NEW)
        .with("b/", "", NEW)
        .with("c/1", bytes(42, 1300), NEW)
        .with("large", bytes(43, 3 * PART as usize), NEW)
        .with("z/1", bytes(44, 100), NEW)
        .with("z/2", bytes(45, 0), NEW);
    let before =
        Some((filled(&objects, "data/", &["--shard", "1/2", "--sha256"]), objects.clone()));
    let args = &["--shard", "0/2", "--sha256"];
    let scene = Scene { before, ..Scene::new("the last of two shards", objects, args) };
    shows(&scene, "while the last shard completes its share and the volume");
}

#[test]
fn a_run_that_discards_another_source_may_be_killed_at_any_step() {
    let old = Objects::default()
        .with("a", bytes(50, 900), OLD)
        .with("b/c", bytes(51, 1100), OLD)
        .with("b/d/", "", OLD)
        .with("e/f", bytes(52, 100), OLD);
    let new = Objects::default()
        .with("a", bytes(53, 900), NEW)
        .with("b", bytes(54, 800), NEW)
        .with("e/g", bytes(55, 100), NEW)
        .with("large", bytes(56, 2 * PART as usize), NEW);
    let before = Some((filled(&old, "other/", &[]), old));
    let scene = Scene { before, ..Scene::new("--force over another source", new, &["--force"]) };
    shows(&scene, "while --force discards another source");
}

#[test]
fn runs_that_are_killed_at_random_times_are_finished_and_fetch_little_twice() {
    const THREADS: u64 = 4;
    let kills: u64 = if is_full() { 1000 } else { 200 };
    let mut objects = Objects::default();
    for n in 0..60 {
        objects = objects.with(&format!("d{}/{n:02}", n % 5), bytes(n, 100 * n as usize), NEW);
    }
    for n in 60..63 {
        let body = bytes(n, (4 + n as usize % 3) * PART as usize - 4321);
        objects = objects.with(&format!("d{}/large-{n}", n % 5), body, NEW);
    }
    // slow enough that it takes a while
    let args = &["--throughput", "2.5MB/s"];
    let scene = Scene::new("killed at random times", objects, args);
    let total = Mutex::new((Toll::default(), 0, 0));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (scene, total) = (&scene, &total);
            scope.spawn(move || {
                let server = scene.serve();
                let whole = Place::new();
                scene.command(&server, &whole.volume()).run().ended(0);
                let finished = Finished {
                    asked: asked(&server),
                    own: Some(names(&whole.volume().join(".ossvp"))),
                    ..Finished::default()
                };
                let mut stream = thread << 32;
                while total.lock().unwrap().0.kills < kills {
                    let about = About(format!("{}: number {stream}", scene.name));
                    let (toll, most) = killed_until_done(scene, &server, &finished, &mut stream);
                    let mut total = total.lock().unwrap();
                    total.0.add(&toll);
                    total.1 += 1;
                    total.2 = most.max(total.2);
                    about.forget();
                }
            });
        }
    });
    let (toll, volumes, most) = total.into_inner().unwrap();
    assert!(toll.kills >= kills);
    println!("{}: seed {}", scene.name, seed());
    measured(
        Part::Crash,
        &format!(
            "{}: {} kills on {volumes} volumes of {} objects, up to {most} on one; {} requests and \
             {} bytes were made again, of {} bytes a volume; {CONCURRENCY} requests of at most \
             {PART} bytes were in flight",
            scene.name,
            toll.kills,
            scene.objects.0.len(),
            toll.requests,
            toll.bytes,
            scene.objects.bytes(),
        ),
    );
    shown(
        Part::Crash,
        "killed at random times, again and again until a run is done before",
        RIGHT,
        "0 on the next run",
    );
}

/// Kills runs at random times until one is done before; the kills, and how many there were.
fn killed_until_done(
    scene: &Scene,
    server: &OssServer,
    finished: &Finished,
    stream: &mut u64,
) -> (Toll, u64) {
    scene.rearm(server);
    let place = scene.set();
    let mut toll = Toll::default();
    loop {
        *stream += 1;
        let mut command = scene.command(server, &place.volume());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(random(*stream, 500)));
        child.kill().unwrap();
        let status = child.wait().unwrap();
        if status.signal().is_none() {
            assert!(status.success(), "{status:?}");
            break;
        }
        toll.kills += 1;
        scene.check_killed(&place.volume(), finished);
    }
    // the marker stands: it says so, or is made to
    scene.command(server, &place.volume()).run().ended(0);
    scene.check_complete(&place.volume(), finished);
    (toll.requests, toll.bytes) = scene.twice(server, finished);
    assert!(toll.requests <= toll.kills * scene.in_flight, "{toll:?}");
    assert!(toll.bytes <= toll.kills * scene.in_flight * PART, "{toll:?}");
    let kills = toll.kills;
    (toll, kills)
}

#[test]
fn a_shard_that_lagged_behind_the_source_may_be_killed_at_any_step() {
    if let Err(error) = calls::supported() {
        not_here(format!("no process can be traced: {error}"));
        return;
    }
    let old = Objects::default().with("x", bytes(60, 500), OLD).with("y", bytes(61, 500), OLD);
    // one more in front: x and y change hands, and x has changed itself
    let new = old.clone().with("a", bytes(62, 500), NEW).with("x", bytes(63, 500), NEW).with(
        "z",
        bytes(64, 500),
        NEW,
    );
    let mut kills = 0;
    for n in 1.. {
        let server = server();
        old.put(&server, "data/");
        let place = Place::new();
        let volume = place.volume();
        let shard = |of: &str| {
            let mut command = run(&server, "data/", &volume, CONCURRENCY);
            command.args(["--shard", of]);
            command
        };
        let mut calls = 0;
        let said = tempfile::tempfile().unwrap();
        // the first shard has x of the old listing and is about to name it; until it goes on, the
        // source changes and the other shard is done with all of the new listing
        let end = trace(&shard("0/2"), &volume, said, |call| {
            if ["renameat2", "linkat"].contains(&call.name) && calls == 0 {
                new.put(&server, "data/");
                shard("1/2").run().ended(0);
                assert!(volume.join("x").exists());
                calls = 1;
                return Verdict::Pass;
            }
            calls += u64::from(calls > 0);
            if calls > n { Verdict::Kill } else { Verdict::Pass }
        });
        let end = end.unwrap();
        assert!(marker(&volume.join(".ossvp")).is_none(), "they saw different listings");
        let first = if end == End::Killed { vec!["0/2"] } else { vec!["0/2", "1/2"] };
        kills += u64::from(end == End::Killed);
        // each runs again until it says that it is done
        for round in 0.. {
            assert!(round < 4, "call {n}: no end");
            let codes: Vec<i32> = if round == 0 { first.clone() } else { vec!["0/2", "1/2"] }
                .into_iter()
                .map(|of| shard(of).run().code)
                .collect();
            assert!(codes.iter().all(|code| [0, 5].contains(code)), "call {n}: {codes:?}");
            if marker(&volume.join(".ossvp")).is_some() {
                break;
            }
        }
        assert!(tree(&volume) == new.tree(), "call {n}: marked as complete with wrong bytes");
        ossvp().arg("verify").arg(&volume).run().ended(0);
        if end != End::Killed {
            break;
        }
    }
    assert!(kills > 10);
    shown(
        Part::Crash,
        "a shard killed after it replaced, by an old listing, what another shard had fetched by a new one",
        "the volume is not marked before that other shard has fetched it again",
        "5 or 0 on the next runs",
    );
}
