//! The device and its file system fail: full, broken, read-only.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use faulty::directory::{Kind, On, Options};
use oss_server::Fault;
use rustix::io::Errno;

use crate::common::{
    Bad, FLAGS, PART, SOURCE, ended_in_time, holds_to_its_promise, put_some, stalled, stride,
};
use crate::support::cases::{measured, not_here, shown, shown_by};
use crate::support::mount::{Mounted, ext4};
use crate::support::{BUCKET, Place, Ran, Run, bytes, files, ossvp, populate, server, wait_until};

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
