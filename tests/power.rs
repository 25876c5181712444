//! The power goes: whatever the disk had not flushed may be gone, in any order. A volume that says
//! it is complete is, and any other is finished by the next run.
//!
//! The volume is a real file system on a disk of `faulty::disk`, which keeps every write and flush.
//! A run fills it; then the disk is cut at many moments of its past, mounted on a machine that says
//! it was booted again, and filled by the same command.
//!
//! `OSSVP_TEST_CUTS` sets how many cuts of each recorded run are tried, `OSSVP_TEST_SEED` which. A
//! disk that a test fails on is kept under `target/tmp`.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use faulty::Dice;
use faulty::disk::{Disk, Machine, Mounted, MsFlags, Survives};
use oss_server::{Fault, OssServer, PutOptions};
use sha2::{Digest, Sha256};
use support::cases::{Part, measured, not_here, shown};
use support::{BUCKET, Place, Ran, Run, bytes, number, ossvp, populate, server, tree, wait_until};

const SOURCE: &str = "oss://bucket/data/";
/// How many cuts of each run that has ended; as many more are made while it goes on.
const CUTS: u64 = 5;

/// A file system to lose power under.
#[derive(Debug, Clone, Copy)]
struct Kind {
    name: &'static str,
    /// The smallest that its mkfs makes, with room.
    size: u64,
    /// What the disk below it writes whole or not at all.
    sector: u64,
    format: &'static [&'static str],
    options: &'static str,
}

const EXT4: Kind = Kind {
    name: "ext4",
    size: 128 << 20,
    // a superblock, which is 1 KiB, that is torn is beyond ext4 itself: its checksum is wrong then, and
    // mount refuses
    sector: 1024,
    // or the kernel goes on formatting while we look
    format: &["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
    options: "",
};
const XFS: Kind = Kind {
    name: "xfs",
    size: 320 << 20,
    // a directory's block that is torn is beyond xfs itself: its log has only what changed in it
    sector: 4096,
    format: &["-q", "-f"],
    // images of one disk have one id, and several may be mounted
    options: "nouuid",
};

/// A machine with a directory of its own, or why there can be none here.
struct Lab {
    machine: Machine,
    _home: tempfile::TempDir,
}

impl Lab {
    fn open() -> Result<Self, String> {
        let home = tempfile::tempdir().unwrap();
        Ok(Self { machine: Machine::start(home.path())?, _home: home })
    }

    fn formatted(&self, kind: Kind) -> Result<Disk, String> {
        let disk = Disk::new(kind.size, kind.sector);
        match self.machine.format(&disk, kind.name, kind.format) {
            Ok(()) => Ok(disk.copy()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(format!("mkfs.{}: {error}", kind.name))
            }
            Err(error) => panic!("mkfs.{}: {error}", kind.name),
        }
    }

    fn mount(&self, disk: &Disk, kind: Kind) -> Mounted {
        self.machine.mount(disk, kind.name, MsFlags::empty(), kind.options).unwrap()
    }
}

/// What is to be in the volume, and who has it.
struct Filling {
    server: OssServer,
    part_size: &'static str,
    expected: BTreeMap<String, Vec<u8>>,
}

impl Filling {
    fn new() -> Self {
        Self { server: server(), part_size: "256KiB", expected: BTreeMap::new() }
    }

    fn file(&mut self, path: &str, length: usize) {
        let body = bytes(self.expected.len() as u64, length);
        self.put(path, body.clone());
        for (at, _) in path.match_indices('/') {
            self.expected.insert(path[..=at].to_owned(), Vec::new());
        }
        self.expected.insert(path.to_owned(), body);
    }

    fn put(&self, path: &str, body: Vec<u8>) {
        // the same on every server
        let modified = chrono::DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        let options = PutOptions::new().modified(modified);
        self.server.put_with(BUCKET, &format!("data/{path}"), body, options);
    }

    fn directory(&mut self, path: &str) {
        self.put(path, Vec::new());
        self.expected.insert(path.to_owned(), Vec::new());
    }

    fn bytes(&self) -> u64 {
        self.expected.values().map(|body| body.len() as u64).sum()
    }

    /// Many small objects, some of over 1 MiB, and a large one in parts, which arrives last but for
    /// a few.
    fn mixed() -> Self {
        let mut filling = Self::new();
        for n in 0..50_usize {
            filling.file(&format!("a{}/small-{n:02}", n % 4), 200 + n * n * 17);
        }
        filling.file("b/middle-1", 1_200_001);
        filling.directory("b/nothing-here/");
        filling.file("c/middle-2", 1_400_000);
        filling.file("d/large", (5 << 20) + 4321);
        for n in 0..20_usize {
            filling.file(&format!("e/f/small-{n:02}"), 100 + n * 1500);
        }
        filling.file("e/g/empty", 0);
        filling
    }

    /// A few objects of each sort.
    fn few() -> Self {
        let mut filling = Self { part_size: "64KiB", ..Self::new() };
        filling.file("a/one", 1000);
        filling.file("a/two", 70_000);
        filling.directory("b/");
        filling.file("c/large", 300_001);
        filling.file("d", 5);
        filling
    }

    fn command(&self, volume: &Path, more: &[&str]) -> std::process::Command {
        let mut command = populate(&self.server, SOURCE, volume);
        command.args(["--part-size", self.part_size]).args(more);
        command
    }

    /// Panics unless the volume has every object, to the last byte, and nothing else.
    #[track_caller]
    fn is_in(&self, volume: &Path) {
        let mut found = tree(volume);
        found.remove("lost+found/");
        let names = |tree: &BTreeMap<String, Vec<u8>>| tree.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&found), names(&self.expected));
        for (path, body) in &self.expected {
            assert!(found[path] == *body, "{path} is not as the source has it");
        }
    }
}

impl Filling {
    /// Panics unless the volume has the SHA-256 of every file, or none if none are `wanted`.
    #[track_caller]
    fn sums_are_in(&self, volume: &Path, wanted: bool) {
        let Ok(text) = std::fs::read_to_string(volume.join(".ossvp/SHA256SUMS")) else {
            return assert!(!wanted, "no SHA256SUMS");
        };
        let found: BTreeSet<_> = text.lines().map(str::to_owned).collect();
        let files = self.expected.iter().filter(|(path, _)| !path.ends_with('/'));
        let line = |(path, body): (&String, &Vec<u8>)| {
            let digest: String = Sha256::digest(body).iter().map(|b| format!("{b:02x}")).collect();
            format!("{digest}  {path}")
        };
        assert_eq!(found, files.map(line).collect());
    }
}

/// The valid lines of a manifest with their offsets.
fn lines(volume: &Path) -> Vec<(u64, Vec<String>)> {
    let text = std::fs::read(volume.join(".ossvp/manifest")).unwrap_or_default();
    let mut lines = Vec::new();
    let mut offset = 0;
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let valid = line.strip_suffix(b"\n").and_then(|line| {
            let (body, crc) = std::str::from_utf8(line).ok()?.rsplit_once("\t#")?;
            let found = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, body.as_bytes());
            (format!("{found:08x}") == crc).then_some(body)
        });
        let Some(body) = valid else { break };
        lines.push((offset, body.split('\t').map(str::to_owned).collect()));
        offset += line.len() as u64;
    }
    lines
}

/// The files that the manifest says are on the device.
fn vouched_for(volume: &Path) -> BTreeSet<String> {
    let mut files = BTreeMap::new();
    let mut synced = 0;
    let mut untrusted = Vec::new();
    for (offset, fields) in lines(volume) {
        match fields[0].as_str() {
            "f" => _ = files.insert(fields[7].clone(), offset),
            "s" => synced = fields[1].parse::<u64>().unwrap(),
            "u" => untrusted.push(fields[1].parse::<u64>().unwrap()..offset),
            _ => {}
        }
    }
    files.retain(|_, offset| {
        *offset < synced && !untrusted.iter().any(|range| range.contains(offset))
    });
    files.into_keys().collect()
}

/// The objects that a run fetched, by its own log.
fn fetched(ran: &Ran) -> BTreeSet<String> {
    let lines = ran.stderr.lines().filter_map(|line| {
        let line = serde_json::from_str::<serde_json::Value>(line).ok()?;
        (line["message"] == "committed").then(|| line["path"].as_str().unwrap().to_owned())
    });
    lines.collect()
}

/// Keeps the disk that a test fails on.
struct Evidence<'a> {
    disk: &'a Disk,
    what: String,
}

impl Drop for Evidence<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let words: Vec<_> = self
                .what
                .split(|c: char| !c.is_ascii_alphanumeric())
                .filter(|w| !w.is_empty())
                .collect();
            let name = format!("{}.img", words.join("-"));
            let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
            let saved = self.disk.save(&path);
            eprintln!("failed after: {}; disk: {} {saved:?}", self.what, path.display());
        }
    }
}

/// What came of cuts.
#[derive(Debug, Default)]
struct Tally {
    cuts: u64,
    complete: u64,
    fetched_bytes: u64,
    /// Fetched before the cut and again behind it.
    again_bytes: u64,
    /// Files that a checkpoint had covered.
    vouched: u64,
    kept: u64,
    /// Files that were kept after they were read again.
    read_again: u64,
    parts_kept: u64,
}

impl Tally {
    fn and(self, other: Self) -> Self {
        let Self {
            cuts,
            complete,
            fetched_bytes,
            again_bytes,
            vouched,
            kept,
            read_again,
            parts_kept,
        } = other;
        Self {
            cuts: self.cuts + cuts,
            complete: self.complete + complete,
            fetched_bytes: self.fetched_bytes + fetched_bytes,
            again_bytes: self.again_bytes + again_bytes,
            vouched: self.vouched + vouched,
            kept: self.kept + kept,
            read_again: self.read_again + read_again,
            parts_kept: self.parts_kept + parts_kept,
        }
    }
}

/// Whose power was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Off {
    /// The machine's: it has another boot id.
    Machine,
    /// The disk's alone: it was torn off, and comes back to the same machine.
    Disk,
}

impl Off {
    fn any(dice: &mut Dice) -> Self {
        if dice.below(3) == 0 { Self::Disk } else { Self::Machine }
    }
}

/// What came of a recovery.
struct Recovered {
    /// Whether the volume was complete before it.
    complete: bool,
    /// The disk's moment when the run ended: nothing was unmounted yet.
    ended: usize,
}

/// Mounts what a cut left, holds it against the promise, fills it again and holds it again.
fn recover(
    lab: &Lab,
    kind: Kind,
    filling: &Filling,
    disk: &Disk,
    arguments: &[&str],
    off: Off,
    tally: &mut Tally,
) -> Recovered {
    if off == Off::Machine {
        lab.machine.reboot().unwrap();
    }
    let mounted = lab.mount(disk, kind);
    let volume = mounted.path();
    let complete = std::fs::read(volume.join(".ossvp/complete.json")).is_ok_and(|marker| {
        serde_json::from_slice::<serde_json::Value>(&marker).is_ok_and(|marker| marker.is_object())
    });
    let sums = arguments.contains(&"--sha256");
    if complete {
        filling.is_in(volume);
        filling.sums_are_in(volume, sums);
    }
    let vouched = vouched_for(volume);
    let mut command = filling.command(volume, &["--log-format", "json", "-v"]);
    let ran = command.args(arguments).run().ended(0);
    let ended = disk.moment();
    filling.is_in(volume);
    filling.sums_are_in(volume, sums);
    ossvp().arg("verify").arg(volume).run().ended(0);
    let figures = ran.report().figures;
    let fetched = fetched(&ran);
    if complete {
        assert_eq!(figures.requests_get, 0, "a complete volume is not filled again");
    } else {
        let needless: Vec<_> = fetched.intersection(&vouched).collect();
        assert!(needless.is_empty(), "on the device by a checkpoint, yet fetched: {needless:?}");
    }
    tally.cuts += 1;
    tally.complete += u64::from(complete);
    tally.fetched_bytes += figures.bytes_fetched;
    if !complete {
        tally.vouched += vouched.len() as u64;
        tally.kept += figures.objects_kept;
        tally.read_again += figures.objects_kept.saturating_sub(vouched.len() as u64);
        tally.parts_kept += figures.parts_kept;
    }
    Recovered { complete, ended }
}

/// What may survive a cut.
fn any(dice: &mut Dice) -> Survives {
    let seed = dice.roll();
    match dice.below(6) {
        0 => Survives::None,
        1 => Survives::All,
        2 | 3 => Survives::Some { seed },
        _ => Survives::Torn { seed },
    }
}

/// A flush that has just returned, or the moment before it, with all that it covers in the cache.
fn around(flush: usize, dice: &mut Dice) -> (usize, Survives) {
    let seed = dice.roll();
    match dice.below(4) {
        0 | 1 => (flush, Survives::None),
        2 => (flush - 1, Survives::Some { seed }),
        _ => (flush - 1, Survives::Torn { seed }),
    }
}

/// A cut of the whole past of `disk`: around one of its last flushes, where the marker is written,
/// around any, or anywhere between.
fn any_cut(disk: &Disk, dice: &mut Dice) -> (usize, Survives) {
    let flushes = disk.flushes();
    let last = match dice.below(3) {
        0 => 12.min(flushes.len()),
        1 => flushes.len(),
        _ => 0,
    };
    if last == 0 {
        return (dice.below(disk.moment() as u64 + 1) as usize, any(dice));
    }
    around(flushes[flushes.len() - 1 - dice.below(last as u64) as usize], dice)
}

/// Which disk the recorded run begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begin {
    /// An empty one.
    Empty,
    /// One that a run of the same boot has begun to fill, until it was killed.
    Killed,
    /// One that has lost bytes of files which its manifest has, in an earlier boot.
    Damaged,
}

/// A run on its way, recorded.
struct Recording {
    kind: Kind,
    direct: &'static str,
    begin: Begin,
    filling: Filling,
    disk: Disk,
    /// How many bytes there are to fetch.
    missing: u64,
    /// How many bytes the source had sent by which moments.
    sent: Mutex<Vec<(usize, u64)>>,
    /// When the line of the first checkpoint was seen.
    checkpoint: Mutex<Option<usize>>,
}

impl Recording {
    /// Fills the volume slowly, so that it takes longer than a checkpoint is away (30 s).
    fn record(&self) {
        let lab = Lab::open().unwrap();
        let mounted = lab.mount(&self.disk, self.kind);
        let volume = mounted.path();
        let rate = format!("{}B/s", self.missing / 38);
        let mut arguments = vec!["--direct", self.direct, "--concurrency", "4"];
        let start = |arguments: &[&str]| {
            let mut command = self.filling.command(volume, arguments);
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        };
        self.filling.server.reset_stats();
        if self.begin == Begin::Killed {
            let mut child = start(&arguments);
            wait_until("30 files", || lines(volume).len() > 30);
            child.kill().unwrap();
            child.wait().unwrap();
        }
        arguments.extend(["--throughput", &rate]);
        let mut child: Child = start(&arguments);
        let status = loop {
            let now = (self.disk.moment(), self.filling.server.stats().bytes);
            self.sent.lock().unwrap().push(now);
            let mut checkpoint = self.checkpoint.lock().unwrap();
            if checkpoint.is_none() && lines(volume).iter().any(|(_, line)| line[0] == "s") {
                *checkpoint = Some(self.disk.moment());
            }
            drop(checkpoint);
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        assert_eq!(status.code(), Some(0));
        self.filling.is_in(volume);
    }

    /// The first flush behind which the checkpoint counts.
    fn checkpointed(&self, lab: &Lab) -> usize {
        let seen = self.checkpoint.lock().unwrap().expect("a run of over 30 s has a checkpoint");
        let counts = |flush: &usize| {
            let cut = self.disk.cut(*flush, Survives::None);
            !vouched_for(lab.mount(&cut, self.kind).path()).is_empty()
        };
        let mut soon = self.disk.flushes().into_iter().filter(|flush| *flush > seen).take(6);
        soon.find(counts).expect("the line of a checkpoint comes to the device at once")
    }

    /// What was sent before the power went at `moment`, and is `fetched` again since.
    fn sent_again(&self, moment: usize, fetched: u64) -> u64 {
        let sent = self.sent.lock().unwrap();
        let until = sent.partition_point(|(at, _)| *at <= moment);
        let before = sent[..until].last().map_or(0, |(_, bytes)| *bytes);
        (before + fetched).saturating_sub(self.filling.bytes())
    }
}

/// A disk whose manifest has files that are not there, or not with their bytes; and how many bytes
/// are missing.
fn damaged(lab: &Lab, kind: Kind, filling: &Filling, direct: &str) -> (Disk, u64) {
    // whoever calls sync(2) on this machine saves what should be lost
    let tries = std::iter::repeat_with(|| damage(lab, kind, filling, direct)).take(20);
    tries.flatten().next().expect("a disk that lost some files, and kept others")
}

fn damage(lab: &Lab, kind: Kind, filling: &Filling, direct: &str) -> Option<(Disk, u64)> {
    let disk = lab.formatted(kind).unwrap();
    lab.machine.reboot().unwrap();
    let mounted = lab.mount(&disk, kind);
    let volume = mounted.path();
    const STALLED: &str = "e/f/small-19";
    filling.server.fault(Fault::get(&format!("data/{STALLED}")).stall_forever_after(1000));
    let mut command = filling.command(volume, &["--direct", direct]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let all = filling.expected.keys().filter(|path| !path.ends_with('/')).count();
    let files = |volume: &Path| lines(volume).iter().filter(|(_, line)| line[0] == "f").count();
    wait_until("all files but one", || files(volume) == all - 1);
    // the kernel may write files back in any order: here the manifest and every third file
    let files = filling.expected.keys().filter(|path| !path.ends_with('/') && *path != STALLED);
    for path in files.step_by(3).map(String::as_str).chain([".ossvp/manifest"]) {
        std::fs::File::open(volume.join(path)).unwrap().sync_all().unwrap();
    }
    let cut = disk.cut(disk.moment(), Survives::None);
    child.kill().unwrap();
    child.wait().unwrap();
    drop(mounted);
    filling.server.clear_faults();

    let mounted = lab.mount(&cut.copy(), kind);
    let lines = lines(mounted.path());
    let lines = lines.iter().filter(|(_, line)| line[0] == "f");
    let [mut sound, mut short, mut wrong] = [0; 3];
    let mut missing = filling.expected[STALLED].len() as u64;
    for (_, line) in lines {
        let expected = &filling.expected[&line[7]];
        let found = std::fs::read(mounted.path().join(&line[7])).unwrap_or_default();
        if found == *expected {
            sound += 1;
            continue;
        }
        missing += expected.len() as u64;
        *if found.len() == expected.len() { &mut wrong } else { &mut short } += 1;
    }
    // the last are files whose space was reserved: they have their size, and zeros
    println!("{}: {sound} files are sound, {short} short, {wrong} wrong", kind.name);
    (sound > 0 && short > 0 && wrong > 0).then_some((cut, missing))
}

/// Cuts the disk of a run while it goes on and when it has ended, fills it again, cuts that, and so
/// on.
fn lose_power_often(kind: Kind, direct: &'static str, begin: Begin, seed: u64) -> Tally {
    let lab = Lab::open().unwrap();
    let mut dice = Dice::new(seed);
    let filling = Filling::mixed();
    let (disk, missing) = match begin {
        Begin::Damaged => damaged(&lab, kind, &filling, direct),
        Begin::Empty | Begin::Killed => (lab.formatted(kind).unwrap(), filling.bytes()),
    };
    let (sent, checkpoint) = (Mutex::default(), Mutex::default());
    let recording = Recording { kind, direct, begin, filling, disk, missing, sent, checkpoint };
    let mut tally = Tally::default();
    std::thread::scope(|scope| {
        let recorder = scope.spawn(|| recording.record());
        // another server with the same objects: the recorded one's figures stay its own
        let filling = Filling::mixed();
        while !recorder.is_finished() {
            let cut = (recording.disk.moment(), any(&mut dice));
            lose_power_twice(&lab, &recording, &filling, cut, &mut dice, &mut tally);
        }
        recorder.join().unwrap();
        let cut = (recording.checkpointed(&lab), Survives::None);
        lose_power_twice(&lab, &recording, &filling, cut, &mut dice, &mut tally);
        for _ in 0..number("OSSVP_TEST_CUTS", CUTS) {
            let cut = any_cut(&recording.disk, &mut dice);
            lose_power_twice(&lab, &recording, &filling, cut, &mut dice, &mut tally);
        }
    });
    println!("{}, direct {direct}, {begin:?}: {tally:?}", kind.name);
    assert!(tally.vouched > 0, "no cut came between a checkpoint and the marker");
    tally
}

/// Cuts the recorded disk, fills it again, cuts that again, and once more when a run has ended.
fn lose_power_twice(
    lab: &Lab,
    recording: &Recording,
    filling: &Filling,
    (moment, survives): (usize, Survives),
    dice: &mut Dice,
    tally: &mut Tally,
) {
    let Recording { kind, direct, begin, disk, .. } = recording;
    let arguments = ["--direct", direct];
    let (name, end) = (kind.name, disk.moment());
    let off = Off::any(dice);
    let what = format!("{name}, {direct}, {begin:?}, {off:?}, {moment} of {end}, {survives:?}");
    let cut = disk.cut(moment, survives);
    let (disk, before) = (cut.copy(), tally.fetched_bytes);
    {
        let _evidence = Evidence { disk: &cut, what: what.clone() };
        recover(lab, *kind, filling, &disk, &arguments, off, tally);
    }
    if *begin != Begin::Damaged {
        tally.again_bytes += recording.sent_again(moment, tally.fetched_bytes - before);
    }

    let (moment, survives) = any_cut(&disk, dice);
    let off = Off::any(dice);
    let what = format!("{what}, then {off:?}, {moment} of {}, {survives:?}", disk.moment());
    let cut = disk.cut(moment, survives);
    let disk = cut.copy();
    let _evidence = Evidence { disk: &cut, what };
    let ended = recover(lab, *kind, filling, &disk, &arguments, off, tally).ended;

    let ended = disk.cut(ended, Survives::None);
    let last = recover(lab, *kind, filling, &ended, &arguments, Off::Machine, tally);
    assert!(last.complete, "a run that ended with 0 left no marker on the device");
}

/// A lab and a disk in it; says why not where there is none.
fn formatted_disk(kind: Kind) -> Option<(Lab, Disk)> {
    let lab = Lab::open().map_err(not_here).ok()?;
    let disk = lab.formatted(kind).map_err(not_here).ok()?;
    Some((lab, disk))
}

fn seed() -> u64 {
    let seed = number("OSSVP_TEST_SEED", 1);
    println!("seed {seed}");
    seed
}

fn lose_power_on(kind: Kind) {
    if formatted_disk(kind).is_none() {
        return;
    }
    let seed = seed();
    let begins = [Begin::Empty, Begin::Killed, Begin::Damaged];
    let direct = ["on", "off", "off"];
    let tally = std::thread::scope(|scope| {
        let runs: Vec<_> = std::iter::zip(begins, direct)
            .zip(seed..)
            .map(|((begin, direct), seed)| {
                scope.spawn(move || lose_power_often(kind, direct, begin, seed))
            })
            .collect();
        let joined = runs.into_iter().map(|run| run.join().unwrap());
        joined.fold(Tally::default(), Tally::and)
    });
    let Tally { cuts, complete, fetched_bytes, again_bytes, vouched, kept, read_again, parts_kept } =
        tally;
    assert!(complete > 0 && complete < cuts, "{cuts} cuts, {complete} behind the marker");
    let name = kind.name;
    for (case, what, code) in [
        (
            "the power goes during a run",
            "not marked; the next run reads again what no checkpoint covered, and fetches what \
             lost bytes or is missing",
            "0 on the next run",
        ),
        (
            "the power goes after a run that was killed, and one that went on in the same boot",
            "both runs' files are read again where no checkpoint covered them",
            "0 on the next run",
        ),
        (
            "the manifest survived the power, files that it has did not: some are empty, some zeros",
            "they are fetched again; a checkpoint of the next run does not vouch for the others \
             before they are read",
            "0 on the next run",
        ),
        (
            "the power goes again, during the run that repairs",
            "as the first time",
            "0 on the next run",
        ),
        ("the power goes when a run has ended with 0", "marked, and every byte is there", "0"),
    ] {
        shown(Part::Power, &format!("{name}: {case}"), what, code);
    }
    measured(
        Part::Power,
        &format!(
            "{name}: {cuts} cuts, {complete} of them behind the marker. The others kept {kept} files \
             and {parts_kept} parts of large ones; {vouched} files were covered by a checkpoint and \
             none of them was fetched, {read_again} were read again. The next runs fetched \
             {fetched_bytes} bytes; {again_bytes} of those had been fetched before",
        ),
    );
}

#[test]
fn a_volume_on_ext4_is_complete_or_can_be_finished_whenever_the_power_goes() {
    lose_power_on(EXT4);
}

#[test]
fn a_volume_on_xfs_is_complete_or_can_be_finished_whenever_the_power_goes() {
    lose_power_on(XFS);
}

/// Cuts the power between the steps of a run: on a file system that writes everything through, each
/// step is on the disk before the next begins, from the first `mkdir` on.
fn lose_power_at_each_step(kind: Kind) {
    let Some((lab, disk)) = formatted_disk(kind) else { return };
    let seed = seed();
    let filling = Filling::few();
    let arguments = ["--sha256", "--concurrency", "2"];
    let mounted =
        lab.machine.mount(&disk, kind.name, MsFlags::MS_SYNCHRONOUS, kind.options).unwrap();
    filling.command(mounted.path(), &arguments).run().ended(0);
    drop(mounted);

    let mut dice = Dice::new(seed);
    let mut tally = Tally::default();
    let flushes = disk.flushes();
    let count = number("OSSVP_TEST_CUTS", CUTS) as usize * 4;
    assert!(flushes.len() > 60, "only {} flushes: nothing is written through", flushes.len());
    for flush in flushes.iter().step_by(flushes.len().div_ceil(count)) {
        let cut = around(*flush, &mut dice);
        let what = format!("{} step by step, {cut:?} of {}", kind.name, disk.moment());
        let disk = disk.cut(cut.0, cut.1);
        let _evidence = Evidence { disk: &disk, what };
        recover(&lab, kind, &filling, &disk.copy(), &arguments, Off::Machine, &mut tally);
    }
    println!("{} of {} flushes: {tally:?}", tally.cuts, flushes.len());
    assert!(tally.complete > 0 && tally.complete < tally.cuts, "{tally:?}");
    shown(
        Part::Power,
        &format!("{}: the power goes between two steps, from the first mkdir on", kind.name),
        "not marked, and finished by the next run; or marked, every byte and SHA256SUMS there",
        "0 on the next run",
    );
}

#[test]
fn power_that_goes_between_two_steps_of_a_run_on_ext4_loses_no_promise() {
    lose_power_at_each_step(EXT4);
}

#[test]
fn power_that_goes_between_two_steps_of_a_run_on_xfs_loses_no_promise() {
    lose_power_at_each_step(XFS);
}

/// A complete volume is filled anew because its source changed; the power goes meanwhile.
fn lose_power_while_filling_anew(kind: Kind) {
    let Some((lab, disk)) = formatted_disk(kind) else { return };
    let seed = seed();
    let old = Filling::mixed();
    let mounted = lab.mount(&disk, kind);
    old.command(mounted.path(), &[]).run().ended(0);
    let begin = disk.moment();
    // objects of the same size, of another, one that is gone and one that is new
    let mut new = Filling::mixed();
    for (path, length) in [("a0/small-20", 7000), ("b/middle-1", 1_200_001), ("d/large", 3 << 20)] {
        new.expected.insert(path.to_owned(), bytes(1000 + length as u64, length));
        new.put(path, new.expected[path].clone());
    }
    new.file("b/new", 10_000);
    assert!(new.server.delete(BUCKET, "data/a1/small-01"));
    new.expected.remove("a1/small-01");
    new.command(mounted.path(), &["--force"]).run().ended(0);
    drop(mounted);

    let mut dice = Dice::new(seed);
    let count = number("OSSVP_TEST_CUTS", CUTS) as usize * 2;
    let [mut marked_old, mut marked_new, mut unmarked] = [0; 3];
    let flushes: Vec<_> = disk.flushes().into_iter().filter(|flush| *flush > begin).collect();
    let stride = flushes.len().div_ceil(count);
    let mut tries: Vec<_> =
        flushes.iter().step_by(stride).map(|flush| around(*flush, &mut dice)).collect();
    tries.push((begin, Survives::All));
    for _ in 0..count {
        let moment = begin + dice.below((disk.moment() - begin) as u64) as usize;
        tries.push((moment, any(&mut dice)));
    }
    for cut in tries {
        let what = format!("{} filled anew, {cut:?} of {}", kind.name, disk.moment());
        let disk = disk.cut(cut.0, cut.1);
        let _evidence = Evidence { disk: &disk, what };
        lab.machine.reboot().unwrap();
        let mounted = lab.mount(&disk.copy(), kind);
        let volume = mounted.path();
        let marker = std::fs::read(volume.join(".ossvp/complete.json")).ok();
        let marker: Option<ossvp::handoff::Marker> =
            marker.and_then(|marker| serde_json::from_slice(&marker).ok());
        new.command(volume, &[]).run().ended(0);
        ossvp().arg("verify").arg(volume).run().ended(0);
        match marker {
            Some(marker) if marker.bytes == old.bytes() => {
                marked_old += 1;
                old.is_in(volume);
            }
            Some(_) => {
                marked_new += 1;
                new.is_in(volume);
            }
            None => {
                unmarked += 1;
                new.is_in(volume);
            }
        }
    }
    println!("{marked_old} marked as before, {unmarked} not marked, {marked_new} marked anew");
    assert!(marked_old > 0 && unmarked > 0 && marked_new > 0);
    shown(
        Part::Power,
        &format!("{}: the power goes while a complete volume is filled anew (--force)", kind.name),
        "marked with all of the old objects, not marked, or marked with all of the new ones; \
         what is not marked is finished by the next run",
        0,
    );
}

#[test]
fn a_volume_on_ext4_that_is_filled_anew_is_not_marked_between_old_and_new() {
    lose_power_while_filling_anew(EXT4);
}

#[test]
fn a_volume_on_xfs_that_is_filled_anew_is_not_marked_between_old_and_new() {
    lose_power_while_filling_anew(XFS);
}

/// Puts `bytes` in the place of a file's own, and leaves its time.
fn replace(path: &Path, bytes: &[u8]) {
    let time = std::fs::metadata(path).unwrap().modified().unwrap();
    std::fs::write(path, bytes).unwrap();
    std::fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

/// A volume that lacks only its marker, and of which one file has lost its bytes.
fn without_marker() -> (Filling, Place) {
    let (filling, place) = (Filling::few(), Place::new());
    filling.command(&place.volume(), &[]).run().ended(0);
    std::fs::remove_file(place.volume().join(".ossvp/complete.json")).unwrap();
    (filling, place)
}

#[test]
fn whatever_a_power_cut_leaves_of_the_manifest_the_next_run_finishes_the_volume() {
    let zeros = |text: &[u8], from: usize| [&text[..from], &vec![0; text.len() - from]].concat();
    let garbage = |text: &[u8], from: usize| [&text[..from], &bytes(9, text.len())].concat();
    type Damage<'a> = &'a dyn Fn(&[u8]) -> Vec<u8>;
    let header = |text: &[u8]| text.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    let cases: [(&str, Damage<'_>); 8] = [
        ("the manifest is empty", &|_| Vec::new()),
        ("the manifest is zeros", &|text| zeros(text, 0)),
        ("the manifest is garbage", &|text| garbage(text, 0)),
        ("the manifest's header is torn", &|text| text[..header(text) / 2].to_vec()),
        ("the manifest is a header and zeros", &|text| zeros(text, header(text))),
        ("the manifest is a header and garbage", &|text| garbage(text, header(text))),
        ("the manifest ends in zeros in the middle of a line", &|text| zeros(text, text.len() / 2)),
        ("the manifest has a hole", &|text| {
            let mut text = text.to_vec();
            let middle = header(&text) + 200;
            text[middle..middle + 100].fill(0);
            text
        }),
    ];
    for (case, damage) in cases {
        println!("{case}");
        let (filling, place) = without_marker();
        let manifest = place.volume().join(".ossvp/manifest");
        let text = std::fs::read(&manifest).unwrap();
        let left = damage(&text);
        std::fs::write(&manifest, &left).unwrap();
        // of the files whose lines are lost, the last has lost its bytes too
        let has_lines: BTreeSet<_> = lines(&place.volume())
            .into_iter()
            .filter_map(|(_, line)| line.get(7).cloned())
            .collect();
        let mut files = filling.expected.iter().rev();
        let lost = files.find(|(path, body)| !body.is_empty() && !has_lines.contains(*path));
        let (path, body) = lost.expect("some line is lost");
        replace(&place.volume().join(path), &vec![0; body.len()]);

        filling.command(&place.volume(), &[]).run().ended(0);
        filling.is_in(&place.volume());
        ossvp().arg("verify").arg(place.volume()).run().ended(0);
        let what = "read up to there; files behind it are fetched, or kept if the source's checksum says so";
        shown(Part::Power, case, what, "0 on the next run");
    }
}

#[test]
fn whatever_a_power_cut_leaves_beside_the_manifest_the_next_run_finishes_the_volume() {
    type Damage<'a> = &'a dyn Fn(&Path);
    let write = |path: PathBuf, bytes: &[u8]| std::fs::write(path, bytes).unwrap();
    let marker = |own: &Path| own.join("complete.json");
    let cases: [(&str, &str, Damage<'_>); 9] = [
        ("the marker is empty", "taken as no marker", &|own| write(marker(own), b"")),
        ("the marker is zeros", "taken as no marker", &|own| write(marker(own), &[0; 900])),
        ("the marker is garbage", "taken as no marker", &|own| write(marker(own), &bytes(8, 900))),
        ("the marker is torn", "taken as no marker", &|own| {
            write(marker(own), b"{\n  \"version\": 1,\n  \"source\": {\n    \"dia");
        }),
        ("drafts of marker and manifest are left", "written anew", &|own| {
            write(own.join("complete.json.new"), &[0; 900]);
            write(own.join("manifest.new"), &bytes(7, 5000));
            write(own.join("SHA256SUMS.new"), &[0; 10]);
        }),
        ("a lock file has content", "the lock is not in the file", &|own| {
            write(own.join("lock"), b"\0\0garbage");
        }),
        ("staged files are left", "removed", &|own| {
            write(own.join("staged/w0"), &[0; 4096]);
            write(own.join("staged/w17"), b"");
            write(own.join("spill"), &[0; 4096]);
        }),
        ("our directory is there, and empty", "filled from the start", &|own| {
            std::fs::remove_dir_all(own).unwrap();
            std::fs::create_dir(own).unwrap();
        }),
        ("our directory is gone", "filled from the start", &|own| {
            std::fs::remove_dir_all(own).unwrap();
        }),
    ];
    for (case, what, damage) in cases {
        println!("{case}");
        let (filling, place) = without_marker();
        damage(&place.volume().join(".ossvp"));
        filling.command(&place.volume(), &[]).run().ended(0);
        filling.is_in(&place.volume());
        ossvp().arg("verify").arg(place.volume()).run().ended(0);
        let staged = std::fs::read_dir(place.volume().join(".ossvp/staged")).unwrap();
        assert_eq!(staged.count(), 0);
        shown(Part::Power, case, what, "0 on the next run");
    }
}

#[test]
fn parts_that_are_noted_and_whose_bytes_a_power_cut_took_are_fetched_again() {
    type Damage<'a> = &'a dyn Fn(&Path, &Path);
    let size = |path: &Path| std::fs::metadata(path).unwrap().len();
    let zeros = |path: &Path, from: u64| {
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.write_all_at(&vec![0; (size(path) - from) as usize], from).unwrap();
    };
    let cases: [(&str, u64, Damage<'_>); 6] = [
        ("all bytes of a large staged file are zeros", 0, &|staged, _| zeros(staged, 0)),
        ("the end of a large staged file is zeros", 2, &|staged, _| zeros(staged, 2 * 65_536)),
        ("a large staged file is empty", 0, &|staged, _| std::fs::write(staged, b"").unwrap()),
        ("a large staged file is gone", 0, &|staged, _| std::fs::remove_file(staged).unwrap()),
        ("the notes of parts are zeros", 0, &|_, notes| zeros(notes, 0)),
        ("the notes of parts end in zeros", 3, &|_, notes| {
            let text = std::fs::read_to_string(notes).unwrap();
            let ends: Vec<_> = text.match_indices('\n').map(|(at, _)| at as u64 + 1).collect();
            // a header and three parts, and half of the fourth
            zeros(notes, ends[3] + 5);
        }),
    ];
    for (case, kept, damage) in cases {
        println!("{case}");
        let (filling, place) = (Filling::few(), Place::new());
        let fault = Fault::get("data/c/large").range_start(4 * 65_536);
        filling.server.fault(fault.stall_forever_after(100));
        let mut command =
            filling.command(&place.volume(), &["--direct", "off", "--concurrency", "1"]);
        let mut child: Child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let staged = || {
            let entries = std::fs::read_dir(place.volume().join(".ossvp/staged"));
            let paths = entries.into_iter().flatten().map(|entry| entry.unwrap().path());
            paths.into_iter().find(|path| path.extension().is_some_and(|name| name == "parts"))
        };
        wait_until("four parts", || {
            let notes = staged().and_then(|notes| std::fs::read_to_string(notes).ok());
            notes.is_some_and(|notes| notes.lines().count() == 5)
        });
        child.kill().unwrap();
        child.wait().unwrap();
        filling.server.clear_faults();
        let notes = staged().unwrap();
        damage(&notes.with_extension(""), &notes);

        let ran = filling.command(&place.volume(), &[]).run().ended(0);
        assert_eq!(ran.report().figures.parts_kept, kept, "{case}");
        filling.is_in(&place.volume());
        ossvp().arg("verify").arg(place.volume()).run().ended(0);
        let what = "each noted part is read again, and fetched if it is not what was noted";
        shown(Part::Power, case, what, "0 on the next run");
    }
}

/// The disk is torn off and comes back, and the machine goes on: nothing but the disk's state tells.
fn tear_off_the_disk(kind: Kind) {
    let lab = match Lab::open() {
        Ok(lab) => lab,
        Err(why) => return not_here(why),
    };
    if let Err(why) = lab.formatted(kind) {
        return not_here(why);
    }
    let filling = Filling::mixed();
    let (disk, _) = damaged(&lab, kind, &filling, "off");
    let _evidence = Evidence { disk: &disk, what: format!("{} torn off", kind.name) };
    let mut tally = Tally::default();
    recover(&lab, kind, &filling, &disk.copy(), &["--direct", "off"], Off::Disk, &mut tally);
    shown(
        Part::Power,
        &format!("{}: the disk loses power and comes back, the machine stays on", kind.name),
        "files that no checkpoint covered are read again, also in the same boot",
        "0 on the next run",
    );
}

#[test]
fn a_disk_on_ext4_that_is_torn_off_and_comes_back_to_the_same_boot_loses_no_promise() {
    tear_off_the_disk(EXT4);
}

#[test]
fn a_disk_on_xfs_that_is_torn_off_and_comes_back_to_the_same_boot_loses_no_promise() {
    tear_off_the_disk(XFS);
}

#[test]
fn the_disk_of_these_tests_loses_what_was_not_flushed() {
    let lab = match Lab::open() {
        Ok(lab) => lab,
        Err(why) => return not_here(why),
    };
    let disk = Disk::new(1 << 20, 512);
    let attached = lab.machine.attach(&disk).unwrap();
    assert_eq!(attached.setting("queue/write_cache").unwrap(), "write back");
    assert_eq!(attached.setting("queue/fua").unwrap(), "0");
    let device = std::fs::File::options().read(true).write(true).open(attached.device()).unwrap();
    device.write_all_at(&[1; 8192], 0).unwrap();
    device.sync_all().unwrap();
    let flushed = disk.moment();
    device.write_all_at(&[2; 8192], 4096).unwrap();
    // the page cache gives it to the disk, no one flushes the disk
    drop(device);
    wait_until("the write", || disk.moment() > flushed);
    drop(attached);

    let read = |disk: &Disk| {
        let attached = lab.machine.attach(disk).unwrap();
        let mut bytes = [0; 12288];
        std::fs::File::open(attached.device()).unwrap().read_exact_at(&mut bytes, 0).unwrap();
        [bytes[0], bytes[4096], bytes[8192]]
    };
    let end = disk.moment();
    assert_eq!(read(&disk.cut(end, Survives::None)), [1, 1, 0]);
    assert_eq!(read(&disk.cut(end, Survives::All)), [1, 2, 2]);
    assert_eq!(read(&disk.cut(0, Survives::All)), [0, 0, 0]);

    // and so does a file system on it
    let disk = match lab.formatted(EXT4) {
        Ok(disk) => disk,
        Err(why) => return not_here(why),
    };
    let mounted = lab.mount(&disk, EXT4);
    std::fs::write(mounted.path().join("synced"), "kept").unwrap();
    std::fs::File::open(mounted.path().join("synced")).unwrap().sync_all().unwrap();
    std::fs::write(mounted.path().join("not-synced"), "lost").unwrap();
    let cut = disk.cut(disk.moment(), Survives::None).copy();
    drop(mounted);
    let mounted = lab.mount(&cut, EXT4);
    assert_eq!(std::fs::read(mounted.path().join("synced")).unwrap(), b"kept");
    assert!(!mounted.path().join("not-synced").exists());
}
