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
use std::time::Duration;

use faulty::disk::{Dice, Disk, Machine, MsFlags, Survives};
use oss_server::OssServer;
use support::cases::{Part, measured, not_here, shown};
use support::{BUCKET, Ran, Run, bytes, ossvp, populate, server, tree, wait_until};

const SOURCE: &str = "oss://bucket/data/";

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// A file system to lose power under.
#[derive(Debug, Clone, Copy)]
struct Kind {
    name: &'static str,
    /// The smallest that its mkfs makes, with room.
    size: u64,
    format: &'static [&'static str],
    options: &'static str,
}

const EXT4: Kind = Kind {
    name: "ext4",
    size: 128 << 20,
    // or the kernel goes on formatting while we look
    format: &["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
    options: "",
};
const XFS: Kind = Kind {
    name: "xfs",
    size: 320 << 20,
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
        let disk = Disk::new(kind.size);
        match self.machine.format(&disk, kind.name, kind.format) {
            Ok(()) => Ok(disk.copy()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(format!("mkfs.{}: {error}", kind.name))
            }
            Err(error) => panic!("mkfs.{}: {error}", kind.name),
        }
    }

    fn mount(&self, disk: &Disk, kind: Kind) -> faulty::disk::Mounted {
        self.machine.mount(disk, kind.name, MsFlags::empty(), kind.options).unwrap()
    }
}

/// What is to be in the volume, and who has it.
struct Filling {
    server: OssServer,
    expected: BTreeMap<String, Vec<u8>>,
}

impl Filling {
    fn new() -> Self {
        Self { server: server(), expected: BTreeMap::new() }
    }

    fn file(&mut self, path: &str, length: usize) {
        let body = bytes(self.expected.len() as u64, length);
        self.server.put(BUCKET, &format!("data/{path}"), body.clone());
        for (at, _) in path.match_indices('/') {
            self.expected.insert(path[..=at].to_owned(), Vec::new());
        }
        self.expected.insert(path.to_owned(), body);
    }

    fn directory(&mut self, path: &str) {
        self.server.put(BUCKET, &format!("data/{path}"), "");
        self.expected.insert(path.to_owned(), Vec::new());
    }

    fn bytes(&self) -> u64 {
        self.expected.values().map(|body| body.len() as u64).sum()
    }

    /// Many small objects, some of over 1 MiB, and a large one in parts.
    fn mixed() -> Self {
        let mut filling = Self::new();
        for n in 0..50_usize {
            filling.file(&format!("a{}/small-{n:02}", n % 4), 200 + n * n * 17);
        }
        filling.file("b/middle-1", 1_200_001);
        filling.directory("b/nothing-here/");
        filling.file("c/large", (5 << 20) + 4321);
        filling.file("d/middle-2", 1_400_000);
        for n in 0..20_usize {
            filling.file(&format!("e/f/small-{n:02}"), 100 + n * 1500);
        }
        filling.file("e/g/empty", 0);
        filling
    }

    fn command(&self, volume: &Path, more: &[&str]) -> std::process::Command {
        let mut command = populate(&self.server, SOURCE, volume);
        command.args(["--part-size", "256KiB"]).args(more);
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

/// The valid lines of a manifest with their offsets.
fn lines(volume: &Path) -> Vec<(u64, Vec<String>)> {
    let text = std::fs::read(volume.join(".ossvp/manifest")).unwrap_or_default();
    let mut lines = Vec::new();
    let mut offset = 0;
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let valid = line.strip_suffix(b"\n").and_then(|line| {
            let (body, crc) = std::str::from_utf8(line).ok()?.rsplit_once("\t#")?;
            let found =
                crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, body.as_bytes());
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
            let name = self.what.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
            let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.img"));
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
    vouched: u64,
    kept: u64,
    /// Files that were read again, or taken for an object by its checksum.
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

/// Mounts what a cut left, holds it against the promise, fills it again and holds it again. Says
/// whether it was complete.
fn recover(
    lab: &Lab,
    kind: Kind,
    filling: &Filling,
    disk: &Disk,
    arguments: &[&str],
    tally: &mut Tally,
) -> bool {
    lab.machine.reboot().unwrap();
    let mounted = lab.mount(disk, kind);
    let volume = mounted.path();
    let complete = std::fs::read(volume.join(".ossvp/complete.json")).is_ok_and(|marker| {
        serde_json::from_slice::<serde_json::Value>(&marker).is_ok_and(|marker| marker.is_object())
    });
    if complete {
        filling.is_in(volume);
    }
    let vouched = vouched_for(volume);
    let mut command = filling.command(volume, &["--log-format", "json", "-v"]);
    let ran = command.args(arguments).run().ended(0);
    filling.is_in(volume);
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
    tally.vouched += vouched.len() as u64;
    tally.kept += figures.objects_kept;
    tally.read_again += figures.objects_kept.saturating_sub(vouched.len() as u64);
    tally.parts_kept += figures.parts_kept;
    complete
}

/// Cuts of `disk` to try: around its last flushes, where the marker is written, around its first,
/// and anywhere.
fn cuts(disk: &Disk, count: usize, dice: &mut Dice) -> Vec<(usize, Survives)> {
    let flushes = disk.flushes();
    let end = disk.moment();
    let any = |dice: &mut Dice| {
        let seed = dice.roll();
        match dice.below(6) {
            0 => Survives::None,
            1 => Survives::All,
            2 | 3 => Survives::Some { seed },
            _ => Survives::Torn { seed },
        }
    };
    let mut cuts = Vec::new();
    // each flush: just done, and everything up to it still in the cache
    let around = |at: usize, dice: &mut Dice| {
        let before = match dice.below(2) {
            0 => Survives::Some { seed: dice.roll() },
            _ => Survives::Torn { seed: dice.roll() },
        };
        [(at, Survives::None), (at - 1, before)]
    };
    let edge = (count / 6).min(flushes.len());
    for at in flushes[..edge / 2].iter().chain(&flushes[flushes.len() - edge..]) {
        cuts.extend(around(*at, dice));
    }
    while cuts.len() < count {
        if dice.below(2) == 0 && !flushes.is_empty() {
            let at = flushes[dice.below(flushes.len() as u64) as usize];
            cuts.extend(around(at, dice));
        } else {
            cuts.push((dice.below(end as u64 + 1) as usize, any(dice)));
        }
    }
    cuts
}

/// A run that was recorded.
struct Recorded {
    disk: Disk,
    /// How many bytes the source had sent by which moments.
    sent: Vec<(usize, u64)>,
}

impl Recorded {
    fn sent_by(&self, moment: usize) -> u64 {
        let until = self.sent.partition_point(|(at, _)| *at <= moment);
        self.sent[..until].last().map_or(0, |(_, bytes)| *bytes)
    }
}

/// Waits for the end of a run, and notes what is sent until then.
fn follow(mut child: Child, filling: &Filling, disk: &Disk, sent: &mut Vec<(usize, u64)>) -> i32 {
    loop {
        sent.push((disk.moment(), filling.server.stats().bytes));
        if let Some(status) = child.try_wait().unwrap() {
            return status.code().unwrap_or(-1);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn start(command: &mut std::process::Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Records a run that takes longer than a checkpoint is away (30 s), because of a cap.
fn record(
    lab: &Lab,
    kind: Kind,
    filling: &Filling,
    options: &str,
    direct: &str,
    killed: bool,
) -> Recorded {
    let disk = lab.formatted(kind).unwrap();
    lab.machine.reboot().unwrap();
    let options = [kind.options, options].join(",");
    let options = options.trim_matches(',');
    let mounted = lab.machine.mount(&disk, kind.name, MsFlags::empty(), options).unwrap();
    let volume = mounted.path();
    let rate = format!("{}B/s", filling.bytes() / 34);
    let arguments = ["--direct", direct, "--concurrency", "4", "--throughput", rate.as_str()];
    let mut sent = Vec::new();
    if killed {
        // a run of the same boot that ended early: its files are trusted as little
        let mut child = start(&mut filling.command(volume, &arguments));
        wait_until("30 files", || tree(volume).len() > 34);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let child = start(&mut filling.command(volume, &arguments));
    assert_eq!(follow(child, filling, &disk, &mut sent), 0);
    filling.is_in(volume);
    drop(mounted);
    Recorded { disk, sent }
}

/// Records a run, cuts its disk, fills it again, cuts that, and so on.
fn lose_power_often(kind: Kind, options: &str, direct: &str, killed: bool, seed: u64) -> Tally {
    let lab = Lab::open().unwrap();
    let filling = Filling::mixed();
    let recorded = record(&lab, kind, &filling, options, direct, killed);
    let mut dice = Dice::new(seed);
    let mut tally = Tally::default();
    let count = number("OSSVP_TEST_CUTS", 16) as usize;
    let arguments = ["--direct", direct];
    for (moment, survives) in cuts(&recorded.disk, count, &mut dice) {
        let name = kind.name;
        let end = recorded.disk.moment();
        let what = format!("{name}, direct {direct}, seed {seed}: {moment} of {end}, {survives:?}");
        let cut = recorded.disk.cut(moment, survives);
        let (disk, before) = (cut.copy(), tally.fetched_bytes);
        {
            let _evidence = Evidence { disk: &cut, what: what.clone() };
            recover(&lab, kind, &filling, &disk, &arguments, &mut tally);
        }
        let fetched = tally.fetched_bytes - before;
        tally.again_bytes +=
            (recorded.sent_by(moment) + fetched).saturating_sub(filling.bytes());

        // the second run's power goes too
        let (moment, survives) = cuts(&disk, 1, &mut dice)[0];
        let what = format!("{what}, then {moment} of {}, {survives:?}", disk.moment());
        let cut = disk.cut(moment, survives);
        let disk = cut.copy();
        let _evidence = Evidence { disk: &cut, what };
        recover(&lab, kind, &filling, &disk, &arguments, &mut tally);
        // and once more, when it has ended with 0
        let cut = disk.cut(disk.moment(), Survives::None).copy();
        let complete = recover(&lab, kind, &filling, &cut, &arguments, &mut tally);
        assert!(complete, "a run that ended with 0 left no marker on the device");
    }
    tally
}

fn lose_power_on(kind: Kind) {
    if let Err(why) = Lab::open().and_then(|lab| lab.formatted(kind)) {
        return not_here(why);
    }
    let seed = number("OSSVP_TEST_SEED", 1);
    println!("seed {seed}");
    let tally = std::thread::scope(|scope| {
        let buffered = scope.spawn(|| lose_power_often(kind, "", "off", true, seed));
        let direct = scope.spawn(|| lose_power_often(kind, "", "on", false, seed + 1));
        let joined = [buffered.join(), direct.join()];
        joined.map(Result::unwrap).into_iter().fold(Tally::default(), Tally::and)
    });
    println!("{tally:?}");
}

#[test]
fn a_volume_on_ext4_is_complete_or_can_be_finished_whenever_the_power_goes() {
    lose_power_on(EXT4);
}

#[test]
fn a_volume_on_xfs_is_complete_or_can_be_finished_whenever_the_power_goes() {
    lose_power_on(XFS);
}

#[test]
fn the_disk_of_these_tests_loses_what_was_not_flushed() {
    let lab = match Lab::open() {
        Ok(lab) => lab,
        Err(why) => return not_here(why),
    };
    let disk = Disk::new(1 << 20);
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
