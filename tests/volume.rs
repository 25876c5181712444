//! The volume goes wrong: full, broken, read-only, not what it seems, or shared with someone hostile.
//! Whatever it does, there is no marker before every object is there to the last byte, nothing short
//! or wrong has a final name, nothing outside is touched, and the next run on a sound volume
//! finishes.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use faulty::directory::{Directory, Folding, Kind, On, Options};
use oss_server::{Fault, OssServer, PutOptions};
use rustix::io::Errno;
use support::cases::{Part, measured, not_here, shown, shown_by};
use support::mount::{Mounted, ext4};
use support::{BUCKET, Place, Ran, Run, bytes, files, ossvp, populate, server, tree, wait_until};

const SOURCE: &str = "oss://bucket/data/";
const PART: Part = Part::Volume;

/// The seed of everything drawn here.
fn seed() -> u64 {
    let seed = std::env::var("OSSVP_TEST_SEED").map_or(20_261_123, |seed| seed.parse().unwrap());
    println!("OSSVP_TEST_SEED={seed}");
    seed
}

/// Every how many calls one is failed where each is a run of its own and there are many.
fn stride() -> u64 {
    std::env::var("OSSVP_TEST_EVERY").map_or(9, |every| every.parse().unwrap())
}

/// splitmix64.
struct Drawn(u64);

impl Drawn {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// Waits for the end of a run that may hang: opening a FIFO would wait for ever.
#[track_caller]
fn ended_in_time(command: &mut Command) -> Ran {
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

/// A few objects in a few directories, one of them in parts.
fn put_some(server: &OssServer) -> BTreeMap<String, Vec<u8>> {
    let sizes = [("a", 100), ("d/b", 5000), ("d/e/c", 10), ("large", (1 << 20) + 5), ("z", 0)];
    server.put(BUCKET, "data/dir/", "");
    let put = |(n, (path, size)): (usize, (&str, usize))| {
        let body = bytes(n as u64, size);
        server.put(BUCKET, &format!("data/{path}"), body.clone());
        (path.to_owned(), body)
    };
    sizes.into_iter().enumerate().map(put).collect()
}

const FLAGS: [&str; 4] = ["--part-size", "512KiB", "--concurrency", "2"];

/// What a run that failed leaves is right as far as it goes. A marker may stand if the last call of
/// all failed, the sync of its directory, but then everything is there.
#[track_caller]
fn holds_to_its_promise(volume: &Path, expected: &BTreeMap<String, Vec<u8>>, why: &str) {
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
fn everything(root: &Path) -> BTreeMap<PathBuf, String> {
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
fn canary(place: &Place) -> PathBuf {
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
struct Bad {
    directory: Directory,
    place: Place,
}

impl Bad {
    /// Says why not where FUSE is not to be had.
    fn new(options: Options) -> Option<Self> {
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

    fn volume(&self) -> PathBuf {
        self.place.volume()
    }

    fn real(&self) -> PathBuf {
        self.place.file("real")
    }

    /// An empty volume again.
    fn empty(&self) {
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

/// What a sweep saw.
#[derive(Default)]
struct Swept {
    runs: u64,
    /// Runs that went on in spite of it.
    borne: u64,
}

/// Fails the n-th call that `on` meets, for every n, `every` of them: each time on an empty volume, until a run makes
/// fewer calls. The next run, on a sound volume, finishes.
fn sweep(
    on: &On,
    errno: Errno,
    sticky: bool,
    every: u64,
    codes: &[i32],
    said: &str,
) -> Option<Swept> {
    let server = server();
    let expected = put_some(&server);
    let bad = Bad::new(Options::default())?;
    let mut swept = Swept::default();
    let mut n = 1;
    loop {
        bad.empty();
        let met = if sticky { on.clone().from(n) } else { on.clone().nth(n) };
        bad.directory.rule(met.fails(errno));
        let ran = ended_in_time(populate(&server, SOURCE, &bad.volume()).args(FLAGS));
        let fired = bad.directory.fired();
        bad.directory.clear();
        let why = format!("{errno:?} at call {n}: {}", ran.stderr);
        if ran.code == 0 {
            assert!(bad.place.is_marked(), "{why}");
            assert_eq!(files(&bad.volume()), expected, "{why}");
        } else {
            assert!(fired > 0, "{why}");
            assert!(codes.contains(&ran.code), "{} {why}", ran.code);
            let said_once = ran.stderr.lines().filter(|line| line.starts_with("ossvp: ")).count();
            assert!(said_once == 1 && ran.stderr.contains(said), "{why}");
            holds_to_its_promise(&bad.volume(), &expected, &why);
        }
        if fired == 0 {
            assert!(swept.runs > 5, "the sweep met next to nothing");
            return Some(swept);
        }
        swept.runs += 1;
        swept.borne += u64::from(ran.code == 0);
        let whole = files(&bad.volume()).len() as u64;
        let again = populate(&server, SOURCE, &bad.volume()).args(FLAGS).run();
        let again = again.ended(0);
        assert_eq!(files(&bad.volume()), expected, "{why}");
        assert!(bad.place.is_marked(), "{why}");
        if ran.code != 0 && !again.stderr.contains("already complete") {
            // a file may have its name but no line yet: that costs one question, no bytes
            let kept = again.report().figures.objects_kept;
            assert_eq!(kept, whole, "{why}: kept {kept} of {whole}");
        }
        n += every;
    }
}

/// All kinds but those that only look.
const BUT_LOOKS: &[Kind] = &[
    Kind::Setattr,
    Kind::Open,
    Kind::Create,
    Kind::Read,
    Kind::Write,
    Kind::Fallocate,
    Kind::Rename,
    Kind::Unlink,
    Kind::Mkdir,
    Kind::Rmdir,
    Kind::Opendir,
    Kind::Readdir,
    Kind::Fsync,
    Kind::Fsyncdir,
    Kind::Flush,
    Kind::Statfs,
];

#[test]
fn the_device_may_fail_at_any_call() {
    let said = "Input/output error";
    let on = On::kinds(BUT_LOOKS);
    let Some(swept) = sweep(&on, Errno::IO, false, 1, &[7], said) else { return };
    let looks = On::kinds(&[Kind::Lookup, Kind::Getattr]);
    let Some(looked) = sweep(&looks, Errno::IO, false, stride(), &[7], said) else { return };
    shown(
        PART,
        "the device fails (EIO) at the n-th call, for every n",
        "ends naming the call and the path, without a marker; the next run finishes and keeps every whole file",
        7,
    );
    let (runs, borne) = (swept.runs + looked.runs, swept.borne + looked.borne);
    measured(PART, &format!("EIO: {runs} calls failed, one a run; {borne} did no harm at once"));
}

#[test]
fn the_volume_may_be_full_at_any_call() {
    let kinds = [
        Kind::Create,
        Kind::Write,
        Kind::Mkdir,
        Kind::Rename,
        Kind::Fallocate,
        Kind::Fsync,
        Kind::Flush,
        Kind::Setattr,
    ];
    let on = On::kinds(&kinds);
    let Some(swept) = sweep(&on, Errno::NOSPC, false, 1, &[7], "") else { return };
    shown(
        PART,
        "no room left (ENOSPC) at the n-th write, create, mkdir, rename, reservation or sync, for every n",
        "ends with both figures or what helps, without a marker; with room again the next run finishes and keeps every whole file",
        7,
    );
    measured(PART, &format!("ENOSPC: {} calls failed, one a run", swept.runs));
}

#[test]
fn quotas_and_servers_that_go_away_end_a_run_with_what_helps() {
    let changes = On::kinds(Kind::CHANGES);
    let any = On::kinds(BUT_LOOKS);
    let every = stride();
    let Some(_) = sweep(&changes, Errno::DQUOT, false, every, &[7], "the quota is used up") else {
        return;
    };
    shown(
        PART,
        "the quota is used up (EDQUOT) in mid-run",
        "ends saying so; with room again the next run finishes",
        7,
    );
    sweep(&changes, Errno::ROFS, true, every, &[7], "the volume is mounted read-only").unwrap();
    shown(
        PART,
        "the volume turns read-only (EROFS) in mid-run, at any call",
        "ends saying so, without a marker; writable again, the next run finishes",
        7,
    );
    let said = "run again to go on once it is back";
    sweep(&any, Errno::STALE, true, every, &[4], said).unwrap();
    shown(
        PART,
        "the file server goes away (ESTALE) in mid-run, at any call",
        "ends as something that passes, without a marker; the next run finishes",
        4,
    );
    // a directory that is being read and a close cannot be tried again
    let swept = sweep(&any, Errno::INTR, false, every, &[4], "Interrupted").unwrap();
    assert!(swept.borne * 2 > swept.runs, "{} of {}", swept.borne, swept.runs);
    shown(
        PART,
        "a call is interrupted (EINTR) by the file system",
        "is made again; where that cannot be (a close, a directory being read), the run ends with 4 and the next one finishes",
        0,
    );
}

#[test]
fn short_writes_are_gone_on_with() {
    let server = server();
    let expected = put_some(&server);
    let Some(bad) = Bad::new(Options::default()) else { return };
    for most in [1, 4095, 5000] {
        bad.empty();
        let on = On::kind(Kind::Write);
        // one byte at a time would take for ever
        let on = if most == 1 { on.times(500) } else { on };
        bad.directory.rule(on.short(most));
        populate(&server, SOURCE, &bad.volume()).args(FLAGS).run().ended(0);
        assert!(bad.directory.fired() > 100);
        assert_eq!(files(&bad.volume()), expected);
        ossvp().arg("verify").arg(bad.volume()).run().ended(0);
    }
    shown(PART, "writes take less than they were given", "goes on with the rest", 0);
}

#[test]
fn a_close_that_fails_keeps_a_file_from_its_name() {
    let server = server();
    let expected = put_some(&server);
    let Some(bad) = Bad::new(Options::default()) else { return };
    let staged = |call: &faulty::directory::Call| call.paths[0].starts_with(".ossvp/staged/");
    bad.directory.rule(On::kind(Kind::Flush).that(staged).nth(1).fails(Errno::NOSPC));
    let ran = populate(&server, SOURCE, &bad.volume()).args(FLAGS).run().ended(7);
    let ran = ran.says("the volume is full");
    holds_to_its_promise(&bad.volume(), &expected, "a failed close");
    assert!(files(&bad.volume()).len() < expected.len());
    bad.directory.clear();
    populate(&server, SOURCE, &bad.volume()).args(FLAGS).run().ended(0);
    assert_eq!(files(&bad.volume()), expected);
    shown_by(
        &ran,
        PART,
        "a close reports that writes failed, as on NFS",
        "the file gets no name; the next run fetches it again",
    );
}

#[test]
fn a_manifest_that_cannot_be_synced_keeps_the_volume_from_its_marker() {
    let server = server();
    let expected = put_some(&server);
    let Some(bad) = Bad::new(Options::default()) else { return };
    for (path, n) in [(".ossvp/manifest", 1), (".ossvp/complete.json.new", 1), (".ossvp", 1)] {
        bad.empty();
        let on = On::kinds(&[Kind::Fsync, Kind::Fsyncdir]).path(path);
        bad.directory.rule(on.nth(n).fails(Errno::IO));
        let ran = populate(&server, SOURCE, &bad.volume()).args(FLAGS).run().ended(7);
        assert_eq!(bad.directory.fired(), 1, "{path}");
        holds_to_its_promise(&bad.volume(), &expected, &ran.stderr);
        // nothing vouches for what was written before: it is read again
        let manifest = std::fs::read_to_string(bad.volume().join(".ossvp/manifest")).unwrap();
        assert_eq!(manifest.contains("\ns\t"), path != ".ossvp/manifest", "{manifest}");
        bad.directory.clear();
        populate(&server, SOURCE, &bad.volume()).args(FLAGS).run().ended(0);
        assert_eq!(files(&bad.volume()), expected);
    }
    shown(
        PART,
        "fsync of the manifest, the marker or their directory fails",
        "ends without a marker that counts; the next run finishes",
        7,
    );
}

#[test]
fn a_small_disk_is_full_at_any_file_and_goes_on_with_room() {
    let (server, place) = (server(), Place::new());
    let mut expected = BTreeMap::new();
    for n in 0..150u64 {
        let (path, body) = (format!("d{}/{n}", n % 5), bytes(n, (n * 53 % 3000) as usize));
        server.put(BUCKET, &format!("data/{path}"), body.clone());
        expected.insert(path, body);
    }
    let image = place.file("image");
    let Some(()) = ext4(&image, 4 << 20, &["-b", "1024", "-m", "0"]) else { return };
    let Some(_mounted) = Mounted::image(&image, &place.volume()) else { return };
    let ballast = place.volume().join("ballast");
    let (mut full, mut small, mut filled) = (0, 0, 0);
    for room in (0..480).step_by(32) {
        for entry in std::fs::read_dir(place.volume()).unwrap() {
            let path = entry.unwrap().path();
            let _ = std::fs::remove_dir_all(&path).or_else(|_| std::fs::remove_file(&path));
        }
        let file = std::fs::File::create(&ballast).unwrap();
        let free = rustix::fs::fstatvfs(&file).unwrap();
        let most = (free.f_bavail * free.f_frsize).saturating_sub(room << 10);
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, most).unwrap();
        let ran = populate(&server, SOURCE, &place.volume()).args(["--direct", "off"]).run();
        let why = format!("{room} KiB: {}", ran.stderr);
        let mut found = files(&place.volume());
        found.remove("ballast");
        drop(file);
        std::fs::remove_file(&ballast).unwrap();
        if ran.code == 0 {
            assert_eq!(found, expected);
            filled += 1;
            continue;
        }
        assert_eq!(ran.code, 7, "{why}");
        full += u32::from(ran.stderr.contains("full") || ran.stderr.contains("no room left"));
        small += u32::from(ran.stderr.contains("too small"));
        holds_to_its_promise(&place.volume(), &expected, &why);
        let again = populate(&server, SOURCE, &place.volume()).run().ended(0);
        assert_eq!(again.report().figures.objects_kept, found.len() as u64, "{why}");
        assert_eq!(files(&place.volume()), expected, "{why}");
        assert!(place.is_marked());
    }
    assert!(full > 2 && small > 0 && filled > 0, "{full} full, {small} too small, {filled} filled");
    shown(
        PART,
        "a small ext4 disk is full, at any file",
        "ends with both figures or what helps; with room again the next run keeps what is committed and finishes",
        7,
    );
}

/// A run that waits for the rest of `data/stalls` until the server lets go.
fn stalled(server: &OssServer, volume: &Path, flags: &[&str]) -> Child {
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

#[test]
fn bytes_that_the_device_lost_are_found_missing_though_memory_still_shows_them() {
    // an ext4 on a loop device whose file is on a file system that fails
    let (server, place) = (server(), Place::new());
    let Some(bad) = Bad::new(Options::default()) else { return };
    let mut expected = BTreeMap::new();
    for n in 0..30u64 {
        let (path, body) = (format!("{n:02}"), bytes(n, 9000));
        server.put(BUCKET, &format!("data/{path}"), body.clone());
        expected.insert(path, body);
    }
    server.put(BUCKET, "data/stalls", "content");
    expected.insert("stalls".to_owned(), b"content".to_vec());
    let image = bad.volume().join("image");
    let Some(()) = ext4(&image, 16 << 20, &[]) else { return };
    let mount = || Mounted::image(&image, &place.volume());
    let Some(mounted) = mount() else { return };
    rustix::fs::syncfs(std::fs::File::open(place.volume()).unwrap()).unwrap();

    server.fault(Fault::get("data/stalls").stall_after(1, Duration::from_secs(2)));
    let run = stalled(&server, &place.volume(), &["--direct", "off"]);
    wait_until("all but one", || files(&place.volume()).len() == 30);
    // as the kernel would, some time later, write one of them back
    bad.directory.rule(On::kind(Kind::Write).nth(1).fails(Errno::IO));
    let lost = std::fs::File::open(place.volume().join("05")).unwrap();
    assert_eq!(rustix::fs::fsync(&lost).unwrap_err(), Errno::IO);
    let ran = Ran::from(run.wait_with_output().unwrap()).ended(7).says("Input/output error");
    assert_eq!(bad.directory.fired(), 1);
    bad.directory.clear();
    server.clear_faults();
    assert!(!place.is_marked());
    // memory shows what the device has not
    holds_to_its_promise(&place.volume(), &expected, "while the page cache lives");

    let again = populate(&server, SOURCE, &place.volume()).args(["--direct", "off"]).run().ended(0);
    let figures = again.report().figures;
    assert!(again.stderr.contains("lost bytes"), "{}", again.stderr);
    assert!(figures.objects_fetched > 0 && figures.objects_kept > 0, "{figures:?}");
    // an open file would keep the file system, and its loop device, for ever
    drop(lost);
    drop(mounted);
    let Some(_mounted) = mount() else { return };
    assert_eq!(files(&place.volume()), expected, "from the device");
    ossvp().arg("verify").arg(place.volume()).run().ended(0);
    shown_by(
        &ran,
        PART,
        "the kernel could not write back what had been written, and tells syncfs once",
        "ends without a marker; the next run reads past the page cache, and fetches what the device lost",
    );
}

#[test]
fn a_disk_that_turns_read_only_in_mid_run_is_filled_once_it_is_mended() {
    let (server, place) = (server(), Place::new());
    server.put(BUCKET, "data/a", "content");
    server.put(BUCKET, "data/stalls", bytes(1, 5000));
    let image = place.file("image");
    let Some(()) = ext4(&image, 16 << 20, &["-e", "remount-ro"]) else { return };
    let Some(mounted) = Mounted::image(&image, &place.volume()) else { return };
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let at = format!(" {} ", place.volume().display());
    let device = mounts.lines().find(|line| line.contains(&at)).unwrap();
    let device = device.split(' ').next().unwrap().rsplit('/').next().unwrap();
    let trigger = PathBuf::from(format!("/sys/fs/ext4/{device}/trigger_fs_error"));
    if !trigger.exists() {
        return not_here("no trigger_fs_error of ext4");
    }
    server.fault(Fault::get("data/stalls").stall_after(1, Duration::from_secs(2)));
    let run = stalled(&server, &place.volume(), &[]);
    wait_until("a file", || place.volume().join("a").exists());
    std::fs::write(&trigger, "1").unwrap();
    let ran = Ran::from(run.wait_with_output().unwrap()).ended(7);
    let ran = ran.says("Read-only file system");
    assert!(!place.is_marked());
    server.clear_faults();
    drop(mounted);
    // 1: errors were mended
    let mended = Command::new("/sbin/e2fsck").args(["-f", "-y"]).arg(&image).output().unwrap();
    assert!(mended.status.code().is_some_and(|code| code <= 1), "{mended:?}");
    let Some(_mounted) = Mounted::image(&image, &place.volume()) else { return };
    populate(&server, SOURCE, &place.volume()).run().ended(0);
    assert_eq!(files(&place.volume())["stalls"], bytes(1, 5000));
    shown_by(
        &ran,
        PART,
        "ext4 finds an error in mid-run and turns read-only",
        "ends saying so, without a marker; after e2fsck the next run finishes",
    );
}

#[test]
fn a_directory_where_a_file_must_be_and_a_file_where_a_directory_must_be() {
    let server = server();
    let expected = put_some(&server);
    let run = |volume: &Path| populate(&server, SOURCE, volume).args(FLAGS).run();

    // a directory that holds someone's file is not ours to remove
    let place = Place::new();
    std::fs::create_dir_all(place.volume().join("a")).unwrap();
    std::fs::write(place.volume().join("a/mine"), "mine").unwrap();
    let ran = run(&place.volume()).ended(8).says("a directory where a file must be; remove it");
    assert!(!place.is_marked());
    assert_eq!(std::fs::read(place.volume().join("a/mine")).unwrap(), b"mine");
    std::fs::remove_file(place.volume().join("a/mine")).unwrap();
    // an empty one gives way
    run(&place.volume()).ended(0);
    assert_eq!(files(&place.volume()), expected);
    shown_by(
        &ran,
        PART,
        "a directory that holds someone's file stands where a file must be",
        "names it, and leaves it alone; removed, the next run finishes",
    );

    for (wrong, is) in [("d", "d"), ("d/e", "d/e"), ("dir", "dir")] {
        let place = Place::new();
        std::fs::create_dir_all(place.volume().join(wrong).parent().unwrap()).unwrap();
        std::fs::write(place.volume().join(wrong), "mine").unwrap();
        let ran = run(&place.volume()).ended(8);
        let ran = ran.says(&format!("{is} is a file where a directory must be; remove it"));
        assert!(!place.is_marked());
        assert_eq!(std::fs::read(place.volume().join(wrong)).unwrap(), b"mine");
        std::fs::remove_file(place.volume().join(wrong)).unwrap();
        run(&place.volume()).ended(0);
        assert_eq!(files(&place.volume()), expected);
        shown_by(
            &ran,
            PART,
            "a file stands where a directory must be",
            "names it, and leaves it alone; removed, the next run finishes",
        );
    }

    // as late as can be: just before the call that needs the place
    let Some(bad) = Bad::new(Options::default()) else { return };
    type Plant = fn(&Path);
    let directory: Plant = |at| {
        std::fs::create_dir(at).unwrap();
        std::fs::write(at.join("mine"), "mine").unwrap();
    };
    let file: Plant = |at| std::fs::write(at, "mine").unwrap();
    for (kind, path, plant) in [(Kind::Rename, "a", directory), (Kind::Mkdir, "d/e", file)] {
        bad.empty();
        let at = bad.real().join(path);
        let planted = at.clone();
        bad.directory.rule(On::kind(kind).path(path).nth(1).runs(move || plant(&planted)));
        run(&bad.volume()).ended(8).says("must be; remove it");
        assert_eq!(bad.directory.fired(), 1);
        assert!(!bad.place.is_marked());
        bad.directory.clear();
        let _ = std::fs::remove_dir_all(&at).or_else(|_| std::fs::remove_file(&at));
        run(&bad.volume()).ended(0);
        assert_eq!(files(&bad.volume()), expected);
    }
    shown(
        PART,
        "such a file or directory appears during the run",
        "names it, without a marker; removed, the next run finishes",
        8,
    );
}

fn make_fifo(at: &Path) {
    assert!(Command::new("mkfifo").arg(at).status().unwrap().success());
}

/// What a name of ossvp's own can be that is no file, and what is expected of a run then: 0 where
/// nothing is lost by replacing it, 8 where a person must look.
const OWN_NAMES: [(&str, i32); 11] = [
    (".ossvp/complete.json", 8),
    (".ossvp/manifest", 8),
    (".ossvp/lock", 8),
    (".ossvp/unordered", 8),
    (".ossvp/complete.json.new", 0),
    (".ossvp/SHA256SUMS.new", 0),
    (".ossvp/SHA256SUMS", 0),
    (".ossvp/probe-a\u{e9}", 0),
    (".ossvp/staged/w0", 0),
    (".ossvp/staged/LARGE", 0),
    (".ossvp/staged/LARGE.parts", 0),
];

/// The name of the large object's staged file.
fn own_name(volume: &Path, name: &str) -> PathBuf {
    use sha2::Digest;
    let digest = sha2::Sha256::digest(b"large");
    let hex: String = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    volume.join(name.replace("LARGE", &hex))
}

#[test]
fn what_is_no_file_is_never_waited_for() {
    let server = server();
    let expected = put_some(&server);
    let run = |volume: &Path| {
        ended_in_time(populate(&server, SOURCE, volume).args(FLAGS).arg("--sha256"))
    };
    type Plant = fn(&Path);
    let socket: Plant = |at| drop(std::os::unix::net::UnixListener::bind(at).unwrap());
    let device: Plant = |at| {
        let mknod = Command::new("mknod").arg(at).args(["c", "1", "3"]).status().unwrap();
        if !mknod.success() {
            // not for everyone to make
            make_fifo(at);
        }
    };
    for (n, plant) in [make_fifo as Plant, socket, device].into_iter().enumerate() {
        let place = Place::new();
        std::fs::create_dir_all(place.volume().join("d")).unwrap();
        plant(&place.volume().join("a"));
        plant(&place.volume().join("d/b"));
        let ran = run(&place.volume()).ended(0);
        assert!(ran.stderr.contains("replaced a file that was not ossvp's"), "{}", ran.stderr);
        assert_eq!(files(&place.volume()), expected);
        // in the place of a file that is recorded
        std::fs::remove_file(place.volume().join("a")).unwrap();
        plant(&place.volume().join("a"));
        let verify = ended_in_time(ossvp().arg("verify").arg(place.volume()));
        verify.ended(6);
        std::fs::remove_file(place.volume().join(".ossvp/complete.json")).unwrap();
        run(&place.volume()).ended(0);
        assert_eq!(files(&place.volume()), expected);

        let place = Place::new();
        std::fs::create_dir(place.volume()).unwrap();
        plant(&place.volume().join("d"));
        run(&place.volume()).ended(8).says("d is a special file where a directory must be");
        for (name, code) in OWN_NAMES {
            if n > 0 && code == 0 {
                continue;
            }
            let place = Place::new();
            std::fs::create_dir_all(place.volume().join(".ossvp/staged")).unwrap();
            let at = own_name(&place.volume(), name);
            plant(&at);
            let ran = run(&place.volume());
            assert_eq!(ran.code, code, "{name}: {}", ran.stderr);
            if code == 8 {
                let said = format!("{name} is a special file where a file must be; remove it");
                ran.says(&said);
                std::fs::remove_file(&at).unwrap();
                run(&place.volume()).ended(0);
            }
            assert_eq!(files(&place.volume()), expected, "{name}");
        }
    }
    shown(
        PART,
        "a FIFO, a socket or a device stands where an object's file must be",
        "is replaced, with a warning, and never opened to wait; verify names it",
        0,
    );
    shown(
        PART,
        "a FIFO, a socket or a device stands where a directory, the marker, the manifest or the lock must be",
        "names it; removed, the next run finishes",
        8,
    );
}

#[test]
fn a_planted_symlink_is_never_followed() {
    let server = server();
    let expected = put_some(&server);
    let run = |volume: &Path| {
        ended_in_time(populate(&server, SOURCE, volume).args(FLAGS).arg("--sha256"))
    };
    let mut plants: Vec<(&str, &str, i32)> = vec![
        // in the place of a file: replaced
        ("a", "file", 0),
        ("a", "nowhere", 0),
        ("d/b", "file", 0),
        ("d/e/c", "file", 0),
        ("a", "d", 0),
        // of a directory: an error
        ("d", "d", 8),
        ("d", "nowhere", 8),
        ("d/e", "d/e", 8),
        ("dir", "dir", 8),
        (".ossvp", "", 8),
        (".ossvp/staged", "staged", 8),
    ];
    plants.extend(OWN_NAMES.into_iter().map(|(name, code)| (name, "file", code)));
    for (name, target, code) in plants {
        let place = Place::new();
        let canary = canary(&place);
        let before = everything(&canary);
        let at = own_name(&place.volume(), name);
        std::fs::create_dir_all(at.parent().unwrap()).unwrap();
        if name.starts_with(".ossvp/") && name != ".ossvp/staged" {
            std::fs::create_dir_all(place.volume().join(".ossvp/staged")).unwrap();
        }
        symlink(canary.join(target), &at).unwrap();
        let ran = run(&place.volume());
        let why = format!("{name} -> {target}: {}", ran.stderr);
        assert_eq!(everything(&canary), before, "{why}");
        assert_eq!(ran.code, code, "{why}");
        if code == 8 {
            assert!(ran.stderr.contains(&format!("{name} is a symlink where a ")), "{why}");
            std::fs::remove_file(&at).unwrap();
            run(&place.volume()).ended(0);
        }
        assert!(!at.is_symlink(), "{why}");
        assert_eq!(files(&place.volume()), expected, "{why}");
        assert_eq!(everything(&canary), before, "{why}");
    }
    shown(
        PART,
        "a symlink stands in the place of an object's file",
        "is replaced, never followed: nothing outside changes",
        0,
    );
    shown(
        PART,
        "a symlink stands in the place of a directory, .ossvp, its staged files, the manifest, the marker or the lock",
        "names it, never follows it: nothing outside changes; removed, the next run finishes",
        8,
    );

    // the volume itself may be named through one: that is the user's own
    let place = Place::new();
    std::fs::create_dir_all(place.file("disk/volume")).unwrap();
    symlink(place.file("disk"), place.file("way")).unwrap();
    let through = place.file("way/volume");
    run(&through).ended(0);
    assert_eq!(files(&place.file("disk/volume")), expected);
    // but not one that leads nowhere
    symlink(place.file("nowhere"), place.file("dangling")).unwrap();
    run(&place.file("dangling")).ended(7).says("cannot open the volume");
    assert!(!place.file("nowhere").exists());
    shown(
        PART,
        "the volume's path, or a part of it, is a symlink",
        "is followed: it is the user's own choice; nothing is made where it leads nowhere",
        0,
    );
}

#[test]
fn a_planted_hard_link_is_never_written_through() {
    let server = server();
    let expected = put_some(&server);
    let run = |volume: &Path| {
        ended_in_time(populate(&server, SOURCE, volume).args(FLAGS).arg("--sha256"))
    };
    let objects = ["a", "d/b", "d/e/c", "large"].map(|name| (name, 0));
    let own = OWN_NAMES.into_iter().map(|(name, _)| match name {
        ".ossvp/manifest" => (name, 8),
        name => (name, 0),
    });
    for (name, code) in objects.into_iter().chain(own) {
        let place = Place::new();
        let canary = canary(&place);
        let contents = |canary: &Path| {
            let stat = std::fs::metadata(canary.join("file")).unwrap();
            (tree(canary), stat.mtime(), stat.mtime_nsec(), stat.mode())
        };
        let before = contents(&canary);
        let at = own_name(&place.volume(), name);
        std::fs::create_dir_all(at.parent().unwrap()).unwrap();
        std::fs::create_dir_all(place.volume().join(".ossvp/staged")).unwrap();
        std::fs::hard_link(canary.join("file"), &at).unwrap();
        let ran = run(&place.volume());
        let why = format!("{name}: {}", ran.stderr);
        assert_eq!(contents(&canary), before, "{why}");
        assert_eq!(ran.code, code, "{why}");
        if code == 8 {
            assert!(ran.stderr.contains("a file with several names (hard links)"), "{why}");
            std::fs::remove_file(&at).unwrap();
            run(&place.volume()).ended(0);
        }
        assert_eq!(files(&place.volume()), expected, "{why}");
        assert_eq!(contents(&canary), before, "{why}");
    }
    shown(
        PART,
        "a hard link to a file outside stands in the place of an object's file or a staged file",
        "is replaced, never written through",
        0,
    );
    shown(
        PART,
        "the manifest is a hard link to a file outside",
        "names it, and writes nothing to it; removed, the next run finishes",
        8,
    );
}

#[test]
fn a_link_that_a_crash_left_is_not_written_through() {
    // a file system whose renames know no flags: a file is linked to its name, then its staged name
    // goes; here the second fails
    let server = server();
    let first = bytes(1, (1 << 20) + 5);
    server.put(BUCKET, "data/large", first.clone());
    let Some(bad) = Bad::new(Options::default().plain_renames()) else { return };
    let run = || populate(&server, SOURCE, &bad.volume()).args(FLAGS).run();
    bad.directory.rule(
        On::kind(Kind::Unlink)
            .path(&own_name(Path::new(""), ".ossvp/staged/LARGE").display().to_string())
            .fails(Errno::IO),
    );
    run().ended(7);
    assert_eq!(bad.directory.fired(), 1);
    bad.directory.clear();
    assert_eq!(std::fs::metadata(bad.real().join("large")).unwrap().nlink(), 2);
    // another version, of which the first part arrives
    let second = bytes(2, (1 << 20) + 5);
    server.put(BUCKET, "data/large", second.clone());
    server.fault(Fault::get("data/large").range_start(1 << 20).status(403, "AccessDenied"));
    run().ended(3);
    assert_eq!(files(&bad.volume())["large"], first, "the old version, whole");
    server.clear_faults();
    run().ended(0);
    assert_eq!(files(&bad.volume())["large"], second);
    shown(
        PART,
        "a crash leaves a staged file linked to its final name, where renames know no flags (NFS)",
        "a newer version is written to a file of its own",
        "0 on the next run",
    );
}

#[test]
fn file_systems_without_flags_or_links_are_filled() {
    let server = server();
    let expected = put_some(&server);
    for links in [true, false] {
        let Some(bad) = Bad::new(Options::default().plain_renames()) else { return };
        if !links {
            bad.directory.rule(On::kind(Kind::Link).fails(Errno::PERM));
        }
        // someone's file is replaced there too
        std::fs::write(bad.real().join("a"), "someone's").unwrap();
        populate(&server, SOURCE, &bad.volume()).args(FLAGS).run().ended(0);
        assert_eq!(files(&bad.volume()), expected);
        assert_eq!(bad.directory.fired() > 0, !links);
        ossvp().arg("verify").arg(bad.volume()).run().ended(0);
    }
    shown(
        PART,
        "the file system knows no flags of a rename (NFS), and no hard links either (some FUSE)",
        "is filled all the same",
        0,
    );
}

/// Calls on names in rooms of the directory of staged files.
fn in_a_room(call: &faulty::directory::Call) -> bool {
    // of a link only the new name is known
    call.kind == Kind::Link || call.paths.iter().any(|path| path.starts_with(".ossvp/staged/room-"))
}

#[test]
fn on_a_slow_file_system_files_are_staged_side_by_side_and_a_kill_leaves_nothing() {
    let server = server();
    let mut expected = BTreeMap::new();
    for n in 0..200u64 {
        let (path, body) = (format!("d{}/{n}", n / 20), bytes(n, 500));
        server.put(BUCKET, &format!("data/{path}"), body.clone());
        expected.insert(path, body);
    }
    let mount = || {
        let options = Options::default().threads(32).remember(Duration::from_secs(1));
        Bad::new(options.plain_renames())
    };
    // as a NAS, and above what is taken for a fast file system
    let slow = || On::kinds(Kind::METADATA).delayed(Duration::from_millis(1));
    let staged = |bad: &Bad| bad.real().join(".ossvp/staged");
    let left = |bad: &Bad| std::fs::read_dir(staged(bad)).unwrap().count();

    let Some(bad) = mount() else { return };
    bad.directory.rule(slow());
    let canary = canary(&bad.place);
    std::fs::create_dir_all(staged(&bad)).unwrap();
    symlink(&canary, staged(&bad).join("room-1")).unwrap();
    let before = everything(&canary);
    bad.directory.log();
    populate(&server, SOURCE, &bad.volume()).run().ended(0);
    assert_eq!(files(&bad.volume()), expected);
    assert_eq!(everything(&canary), before);
    let calls = bad.directory.calls();
    let made = calls.iter().filter(|call| call.kind == Kind::Create && in_a_room(call));
    let made: Vec<&str> = made.map(|call| &*call.paths[0]).collect();
    // from the first one on: what names take is known before
    assert_eq!(made.len(), expected.len());
    let rooms: BTreeSet<&str> =
        made.iter().filter_map(|path| Some(path.rsplit_once('/')?.0)).collect();
    assert!(rooms.len() > 16, "{rooms:?}");
    assert_eq!(left(&bad), 0);
    bad.directory.clear();
    ossvp().arg("verify").arg(bad.volume()).run().ended(0);

    // the source turns out to list in no order when files have been staged in rooms already
    let Some(bad) = mount() else { return };
    bad.directory.rule(slow());
    let strays = Fault::list().times(1).replace("<Key>data/d5/110<", "<Key>data/a<");
    server.fault(strays);
    let ran = populate(&server, SOURCE, &bad.volume()).run().ended(0);
    let _ = ran.says("listing out of order");
    bad.directory.clear();
    assert_eq!(files(&bad.volume()), expected);

    for (kind, n) in [(Kind::Mkdir, 5), (Kind::Create, 50), (Kind::Link, 100), (Kind::Unlink, 50)] {
        let Some(bad) = mount() else { return };
        let run = || populate(&server, SOURCE, &bad.volume());
        bad.directory.rule(slow());
        let worker = Arc::new(Mutex::new(None));
        let killed = Arc::clone(&worker);
        bad.directory.rule(On::kind(kind).that(in_a_room).nth(n).runs(move || {
            if let Some(worker) = *killed.lock().unwrap() {
                rustix::process::kill_process(worker, rustix::process::Signal::KILL).unwrap();
            }
        }));
        let mut child = {
            // it waits for whoever it is to kill
            let mut worker = worker.lock().unwrap();
            let child = run().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            *worker = Some(rustix::process::Pid::from_child(&child));
            child
        };
        assert_eq!(child.wait().unwrap().signal(), Some(9), "{kind:?}");
        bad.directory.clear();
        holds_to_its_promise(&bad.volume(), &expected, "a kill");
        bad.directory.rule(slow());
        run().run().ended(0);
        bad.directory.clear();
        assert_eq!(files(&bad.volume()), expected);
        assert_eq!(left(&bad), 0, "{kind:?}");
        ossvp().arg("verify").arg(bad.volume()).run().ended(0);
    }
    shown(
        PART,
        "calls on names take milliseconds (NAS), and the worker is killed in a room of staged files",
        "files are staged side by side; the next run finishes and leaves no room behind",
        0,
    );
}

/// A directory, unless a symlink stands there.
fn opened(at: Option<&std::os::fd::OwnedFd>, name: &str) -> Option<std::os::fd::OwnedFd> {
    use rustix::fs::{CWD, Mode, OFlags};
    use std::os::fd::AsFd;
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let at = at.map_or(CWD, |at| at.as_fd());
    rustix::fs::openat(at, name, flags, Mode::empty()).ok()
}

#[test]
fn nothing_outside_changes_while_someone_swaps_directories_for_symlinks() {
    let server = server();
    let expected = put_some(&server);
    let runs: u64 = std::env::var("OSSVP_TEST_RUNS").map_or(25, |runs| runs.parse().unwrap());
    let mut codes = BTreeMap::<i32, u32>::new();
    let mut drawn = Drawn(seed());
    for _ in 0..runs {
        let place = Place::new();
        let canary = canary(&place);
        let before = everything(&canary);
        std::fs::create_dir(place.volume()).unwrap();
        let stop = AtomicBool::new(false);
        let swap_seed = drawn.below(u64::MAX);
        let ran = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut drawn = Drawn(swap_seed);
                let names = [
                    "a",
                    "d",
                    "d/e",
                    "d/b",
                    "dir",
                    "large",
                    ".ossvp",
                    ".ossvp/staged",
                    ".ossvp/manifest",
                    ".ossvp/complete.json.new",
                    ".ossvp/lock",
                ];
                let volume = opened(None, place.volume().to_str().unwrap()).unwrap();
                let mut swaps = 0u32;
                while !stop.load(Relaxed) {
                    swaps += 1;
                    let name = names[drawn.below(names.len() as u64) as usize];
                    // not through a symlink of its own
                    let (parent, last) = match name.split_once('/') {
                        Some((parent, last)) => (opened(Some(&volume), parent), last),
                        None => (opened(Some(&volume), "."), name),
                    };
                    let Some(parent) = parent else { continue };
                    let targets =
                        [canary.clone(), canary.join("file"), canary.join(last), canary.join("d")];
                    let aside = format!("aside-{swaps}");
                    // whatever fails here was not there yet, or is the run's again by now
                    let _ = rustix::fs::renameat(&parent, last, &volume, &aside);
                    let _ = rustix::fs::symlinkat(&targets[drawn.below(4) as usize], &parent, last);
                    for _ in 0..drawn.below(2000) {
                        std::hint::spin_loop();
                    }
                    if drawn.below(3) > 0 {
                        let flags = rustix::fs::AtFlags::empty();
                        let _ = rustix::fs::unlinkat(&parent, last, flags);
                        let _ = rustix::fs::renameat(&volume, &aside, &parent, last);
                    }
                }
            });
            let ran = ended_in_time(populate(&server, SOURCE, &place.volume()).args(FLAGS));
            stop.store(true, Relaxed);
            ran
        });
        assert_eq!(everything(&canary), before, "{}", ran.stderr);
        *codes.entry(ran.code).or_default() += 1;
        assert!([0, 1, 7, 8].contains(&ran.code), "{} {}", ran.code, ran.stderr);
        // alone again, with what they left removed by hand
        for entry in std::fs::read_dir(place.volume()).unwrap() {
            let path = entry.unwrap().path();
            let _ = std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir_all(&path));
        }
        populate(&server, SOURCE, &place.volume()).args(FLAGS).run().ended(0);
        assert_eq!(files(&place.volume()), expected);
        assert_eq!(everything(&canary), before);
    }
    assert!(codes.keys().any(|code| *code != 0), "no swap was met: {codes:?}");
    shown(
        PART,
        "someone swaps directories and files for symlinks, and back, while runs go on",
        "nothing outside the volume is made, written or removed",
        "0, 7 or 8",
    );
    measured(
        PART,
        &format!(
            "{runs} runs against a thread that swaps without pause: nothing outside the volume changed"
        ),
    );
}

#[test]
fn nothing_outside_changes_whichever_call_a_swap_comes_before() {
    let server = server();
    let expected = put_some(&server);
    let Some(bad) = Bad::new(Options::default()) else { return };
    let canary = canary(&bad.place);
    let before = everything(&canary);
    let calls = On::kinds(&[Kind::Lookup, Kind::Open, Kind::Create, Kind::Mkdir, Kind::Rename]);
    let mut tried = 0;
    for (swapped, to) in [("d", "d"), ("d/e", "d/e"), ("dir", "dir"), (".ossvp", "")] {
        // every call that names it, and some of those that name what is below it
        for (every, below) in [(1, ""), (stride(), "/")] {
            let named = format!("{swapped}{below}");
            let mut n = 1;
            loop {
                bad.empty();
                let (at, aside) = (bad.real().join(swapped), bad.real().join("aside"));
                let target = canary.join(to);
                let swap = move || {
                    if std::fs::rename(&at, &aside).is_ok() {
                        symlink(&target, &at).unwrap();
                    }
                };
                let named = named.clone();
                let meets = move |call: &faulty::directory::Call| {
                    let meets = |path: &String| {
                        *path == named || named.ends_with('/') && path.starts_with(&named)
                    };
                    call.paths.iter().any(meets)
                };
                bad.directory.rule(calls.clone().that(meets).nth(n).runs(swap));
                let ran = ended_in_time(populate(&server, SOURCE, &bad.volume()).args(FLAGS));
                let fired = bad.directory.fired();
                bad.directory.clear();
                let why = format!("{swapped}{below} at {n}: {}", ran.stderr);
                assert_eq!(everything(&canary), before, "{why}");
                assert!([0, 1, 7, 8].contains(&ran.code), "{why}");
                if fired == 0 {
                    assert_eq!(files(&bad.volume()), expected);
                    break;
                }
                tried += 1;
                n += every;
            }
        }
    }
    assert!(tried > 10, "{tried}");
    shown(
        PART,
        "a directory becomes a symlink just before the n-th call that names something",
        "nothing outside the volume is made, written or removed",
        "0, 7 or 8",
    );
}

#[test]
fn a_name_that_the_file_system_refuses_is_named_with_its_key() {
    type Refuses = fn(&str) -> bool;
    let cases: [(&str, Refuses, Errno); 4] = [
        ("a:b", |name| name.contains(':'), Errno::INVAL),
        ("dot./x", |name| name.ends_with('.') && name != "." && name != "..", Errno::INVAL),
        ("n-\u{fffd}", |name| name.contains('\u{fffd}'), Errno::ILSEQ),
        ("", |name| name.len() > 143, Errno::NAMETOOLONG),
    ];
    for (key, refuses, errno) in cases {
        let long = "n".repeat(144);
        let key = if key.is_empty() { &long } else { key };
        for plain in [false, true] {
            let server = server();
            server.put(BUCKET, "data/fine", "fine");
            server.put(BUCKET, &format!("data/{key}"), "refused");
            let options =
                if plain { Options::default().plain_renames() } else { Options::default() };
            let Some(bad) = Bad::new(options) else { return };
            let named = [Kind::Lookup, Kind::Create, Kind::Mkdir, Kind::Rename, Kind::Link];
            bad.directory.rule(On::kinds(&named).name(refuses).fails(errno));
            let run = |more: &[&str]| populate(&server, SOURCE, &bad.volume()).args(more).run();
            for mode in ["fail", "skip", "escape"] {
                let ran = run(&["--unmappable", mode, "--force"]).ended(8);
                let ran = ran.says(&format!("key \"data/{key}\" cannot be a path in the volume"));
                let ran = ran.says("its file system refuses").says("--exclude");
                assert!(!bad.place.is_marked(), "{}", ran.stderr);
            }
            let glob = format!("--exclude={}/**", key.split('/').next().unwrap());
            let glob = if key.contains('/') { glob } else { format!("--exclude={key}") };
            run(&[&glob, "--force"]).ended(0);
            assert_eq!(files(&bad.volume()).into_keys().collect::<Vec<_>>(), ["fine"]);
        }
    }
    shown(
        PART,
        "the file system refuses a name: a colon, a dot at the end, bytes it cannot spell, more than 143 bytes",
        "names the key and what helps, in every mode of --unmappable; with --exclude the next run finishes",
        8,
    );
}

/// Which names are one name, and two spellings of one.
const FOLDINGS: [(Folding, &str, [&str; 2]); 2] = [
    (Folding::Case, "Name", ["Name", "name"]),
    // in the order of bytes: parted, composed
    (Folding::Forms, "Nam\u{e9}", ["Name\u{301}", "Nam\u{e9}"]),
];

fn folding(folding: Folding) -> Option<Bad> {
    Bad::new(Options::default().folding(folding))
}

#[test]
fn where_names_are_folded_single_keys_are_filled_resumed_and_verified() {
    for (fold, name, _) in FOLDINGS {
        let server = server();
        let mut expected = put_some(&server);
        for n in 0..40u64 {
            let path = format!("{name}/{n}-{name}");
            server.put(BUCKET, &format!("data/{path}"), bytes(n, 500));
            expected.insert(path, bytes(n, 500));
        }
        let Some(bad) = folding(fold) else { return };
        let run = || populate(&server, SOURCE, &bad.volume()).args(FLAGS).run();
        run().ended(0);
        assert_eq!(files(&bad.volume()), expected);
        ossvp().arg("verify").arg(bad.volume()).run().ended(0);
        std::fs::remove_file(bad.volume().join(".ossvp/complete.json")).unwrap();
        let figures = run().ended(0).report().figures;
        assert_eq!((figures.objects_kept, figures.requests_get), (45, 0), "{fold:?}");
        // lines that were lost: taken for what they are by their checksum
        std::fs::remove_file(bad.volume().join(".ossvp/complete.json")).unwrap();
        let manifest = bad.volume().join(".ossvp/manifest");
        let text = std::fs::read_to_string(&manifest).unwrap();
        let kept: String = text.lines().take(3).flat_map(|line| [line, "\n"]).collect();
        std::fs::write(&manifest, kept).unwrap();
        let figures = run().ended(0).report().figures;
        assert_eq!((figures.objects_kept, figures.requests_get), (45, 0), "{fold:?}");
        assert_eq!(files(&bad.volume()), expected);
    }
    shown(
        PART,
        "the file system folds case or Unicode forms (SMB, ext4 casefold), and each name has one key",
        "is filled, resumed and verified as any other",
        0,
    );
}

#[test]
fn where_names_are_folded_two_keys_of_one_file_are_an_error_in_every_mode() {
    for (fold, _, [first, second]) in FOLDINGS {
        // what the two keys are: files, or a file and a directory, above or below
        let below = |name: &str| format!("{name}/x");
        let slash = |name: &str| format!("{name}/");
        let pairs = [
            [first.to_owned(), second.to_owned()],
            [format!("d/{first}"), format!("d/{second}")],
            [below(first), second.to_owned()],
            [first.to_owned(), below(second)],
            [slash(first), second.to_owned()],
            [first.to_owned(), slash(second)],
            [below(first), below(second)],
        ];
        for keys in pairs {
            for mode in ["fail", "skip", "escape"] {
                let server = server();
                for key in &keys {
                    let body = if key.ends_with('/') { "" } else { key.as_str() };
                    server.put(BUCKET, &format!("data/{key}"), body.to_owned());
                }
                let Some(bad) = folding(fold) else { return };
                let run = |more: &[&str]| {
                    let mut command = populate(&server, SOURCE, &bad.volume());
                    command.args(["--unmappable", mode]).args(more).run()
                };
                let ran = run(&[]);
                let why = format!("{fold:?} {mode} {keys:?}: {}", ran.stderr);
                assert_eq!(ran.code, 8, "{why}");
                assert!(ran.stderr.contains("are one file on this file system"), "{why}");
                assert!(!bad.place.is_marked(), "{why}");
                for (path, body) in files(&bad.volume()) {
                    assert_eq!(path.as_bytes(), body, "{why}");
                }
                // and again: nothing has been overwritten
                run(&[]).ended(8);
                for (path, body) in files(&bad.volume()) {
                    assert_eq!(path.as_bytes(), body, "{why}");
                }
                server.delete(BUCKET, &format!("data/{}", keys[1]));
                run(&[]).ended(0);
                ossvp().arg("verify").arg(bad.volume()).run().ended(0);
            }
        }
    }
    shown(
        PART,
        "two keys would be one file there, or a file and a directory",
        "names both, in every mode of --unmappable, and overwrites neither",
        8,
    );
}

#[test]
fn where_names_are_folded_directories_of_two_spellings_are_one() {
    for (fold, _, [first, second]) in FOLDINGS {
        let server = server();
        for key in
            [format!("{first}/"), format!("{first}/a"), format!("{second}/"), format!("{second}/b")]
        {
            let body = if key.ends_with('/') { "" } else { "content" };
            server.put(BUCKET, &format!("data/{key}"), body);
        }
        let Some(bad) = folding(fold) else { return };
        let run = || populate(&server, SOURCE, &bad.volume()).run();
        run().ended(0);
        for path in [format!("{first}/a"), format!("{second}/b")] {
            assert_eq!(std::fs::read(bad.volume().join(path)).unwrap(), b"content");
        }
        ossvp().arg("verify").arg(bad.volume()).run().ended(0);
        // one of the spellings goes
        std::fs::remove_file(bad.volume().join(".ossvp/complete.json")).unwrap();
        for key in [format!("{first}/"), format!("{first}/a")] {
            server.delete(BUCKET, &format!("data/{key}"));
        }
        run().ended(0);
        assert_eq!(files(&bad.volume()).len(), 1);
        assert_eq!(std::fs::read(bad.volume().join(second).join("b")).unwrap(), b"content");
        ossvp().arg("verify").arg(bad.volume()).run().ended(0);
    }
    shown(
        PART,
        "two keys put different files into directories that are one there",
        "the directories become one, and each path leads to its bytes",
        0,
    );
}

#[test]
fn where_names_are_folded_a_key_may_change_its_spelling() {
    for (fold, _, [first, second]) in FOLDINGS {
        // both ways: the new spelling comes before the old one in the listing, or after it
        for (old, new) in [(first, second), (second, first)] {
            for (old, new, same_time) in [
                (old.to_owned(), new.to_owned(), true),
                (old.to_owned(), new.to_owned(), false),
                (format!("{old}/x"), format!("{new}/x"), true),
                (old.to_owned(), format!("{new}/x"), false),
                (format!("{old}/x"), new.to_owned(), false),
            ] {
                let server = server();
                let at = chrono::DateTime::from_timestamp(1_700_000_000, 0).unwrap();
                let put = |key: &str, body: &str| {
                    let options = PutOptions::new();
                    let options = if same_time { options.modified(at) } else { options };
                    server.put_with(BUCKET, &format!("data/{key}"), body.to_owned(), options);
                };
                // enough between the two for the one to be long done when the other comes
                for n in 0..300 {
                    server.put(BUCKET, &format!("data/Namf/{n:03}"), "between");
                }
                put(&old, "content");
                let Some(bad) = folding(fold) else { return };
                let run = || {
                    let mut command = populate(&server, SOURCE, &bad.volume());
                    command.args(["--concurrency", "4"]).run()
                };
                run().ended(0);
                std::fs::remove_file(bad.volume().join(".ossvp/complete.json")).unwrap();
                server.delete(BUCKET, &format!("data/{old}"));
                put(&new, "content");
                let why = format!("{fold:?}, {old} becomes {new}, same time: {same_time}");
                let ran = run();
                assert_eq!(ran.code, 0, "{why}: {}", ran.stderr);
                let found = std::fs::read(bad.volume().join(&new));
                assert_eq!(found.ok().as_deref(), Some(&b"content"[..]), "{why}");
                assert_eq!(files(&bad.volume()).len(), 301, "{why}");
                ossvp().arg("verify").arg(bad.volume()).run().ended(0);
            }
        }
    }
    shown(
        PART,
        "a key gets another spelling at the source, and the old one is no longer listed",
        "the old file goes before the new one comes, and nothing is lost",
        0,
    );
}

#[test]
fn where_names_are_folded_several_workers_are_refused_and_one_is_not() {
    for (fold, _, _) in FOLDINGS {
        let server = server();
        let expected = put_some(&server);
        let Some(bad) = folding(fold) else { return };
        let run =
            |more: &[&str]| populate(&server, SOURCE, &bad.volume()).args(FLAGS).args(more).run();
        for shard in ["0/2", "1/2", "0/3"] {
            let said = "names that differ only in case are one file on this file system: fill it by one worker";
            let ran = run(&["--shard", shard]).ended(8).says(said);
            assert!(files(&bad.volume()).is_empty(), "{}", ran.stderr);
        }
        // as the message says
        run(&[]).ended(0);
        assert_eq!(files(&bad.volume()), expected);
    }
    shown(
        PART,
        "several workers (--shard) are started where names are folded",
        "are refused before anything is fetched; one worker fills the volume",
        8,
    );
}

#[test]
fn where_names_are_folded_ossvps_own_directory_has_no_second_name() {
    let Some(bad) = folding(Folding::Case) else { return };
    // U+017F is an s to those who fold by Unicode's table
    for key in
        [".o\u{17f}svp/complete.json", ".o\u{17f}svp/", ".o\u{17f}svp", ".OSSVP/manifest", ".Ossvp"]
    {
        bad.empty();
        let server = server();
        server.put(BUCKET, "data/a", "content");
        server.put(BUCKET, &format!("data/{key}"), "");
        let ran = populate(&server, SOURCE, &bad.volume()).run();
        assert_eq!(ran.code, 8, "{key}: {}", ran.stderr);
        assert!(!bad.place.is_marked(), "{key}");
        server.delete(BUCKET, &format!("data/{key}"));
        populate(&server, SOURCE, &bad.volume()).run().ended(0);
    }
    shown(PART, "a key is another spelling of .ossvp there", "is refused, and named", 8);
}

#[test]
fn of_two_workers_that_start_at_once_one_fills() {
    let mut drawn = Drawn(seed());
    let races = 20;
    let (mut held, mut late) = (0, 0);
    for race in 0..races {
        let server = server();
        let expected = put_some(&server);
        server.fault(Fault::any().delay(Duration::from_millis(5 + drawn.below(30))));
        let place = Place::new();
        let waits = [drawn.below(30), drawn.below(30)];
        let ran: Vec<Ran> = std::thread::scope(|scope| {
            let workers = waits.map(|ms| {
                let (server, volume) = (&server, place.volume());
                scope.spawn(move || {
                    // not a wait for anything: who comes first is what is drawn
                    std::thread::sleep(Duration::from_millis(ms));
                    populate(server, SOURCE, &volume).args(FLAGS).run()
                })
            });
            workers.into_iter().map(|worker| worker.join().unwrap()).collect()
        });
        let why = format!("race {race}: {ran:?}");
        let filled = ran.iter().filter(|ran| ran.stderr.contains("ossvp: complete: ")).count();
        assert_eq!(filled, 1, "{why}");
        for other in ran.iter().filter(|ran| !ran.stderr.contains("ossvp: complete: ")) {
            match other.code {
                4 => {
                    let said = format!(
                        "another worker holds the volume {}; wait for it, or stop it",
                        place.volume().display()
                    );
                    assert!(other.stderr.contains(&said), "{why}");
                    held += 1;
                }
                0 => {
                    assert!(other.stderr.contains("already complete"), "{why}");
                    late += 1;
                }
                code => panic!("{code}: {why}"),
            }
        }
        assert_eq!(files(&place.volume()), expected, "{why}");
        ossvp().arg("verify").arg(place.volume()).run().ended(0);
    }
    assert!(held > races / 2, "{held} held, {late} late");
    shown(
        PART,
        "two workers are started on one volume at once",
        "one fills it, the other names the volume and ends",
        4,
    );
}

#[test]
fn a_lock_outlives_no_worker() {
    let (server, place) = (server(), Place::new());
    server.put(BUCKET, "data/stalls", "content");
    // a file that another host left says nothing: only a lock does
    std::fs::create_dir_all(place.volume().join(".ossvp")).unwrap();
    std::fs::write(place.volume().join(".ossvp/lock"), "pid 1 on another-host").unwrap();
    for _ in 0..5 {
        server.fault(Fault::get("data/stalls").stall_forever_after(1));
        let mut holder = stalled(&server, &place.volume(), &[]);
        populate(&server, SOURCE, &place.volume()).run().ended(4).says("another worker holds");
        holder.kill().unwrap();
        holder.wait().unwrap();
        server.clear_faults();
    }
    let ran = populate(&server, SOURCE, &place.volume()).run().ended(0);
    assert_eq!(files(&place.volume())["stalls"], b"content");
    shown_by(
        &ran,
        PART,
        "the worker that held the volume was killed, or a lock file of another host is left",
        "is no obstacle: the lock went with its worker",
    );
}
