//! What stands in the volume already, or is put there by someone hostile.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use faulty::Dice;
use faulty::directory::{Kind, On, Options};
use oss_server::Fault;
use rustix::io::Errno;

use crate::common::{
    Bad, FLAGS, PART, SOURCE, canary, ended_in_time, everything, put_some, seed, stride,
};
use crate::support::cases::{measured, shown, shown_by};
use crate::support::{BUCKET, Place, Run, bytes, files, number, ossvp, populate, server, tree};

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
    let runs = number("OSSVP_TEST_RUNS", 25);
    let mut codes = BTreeMap::<i32, u32>::new();
    let mut dice = Dice::new(seed());
    for _ in 0..runs {
        let place = Place::new();
        let canary = canary(&place);
        let before = everything(&canary);
        std::fs::create_dir(place.volume()).unwrap();
        let stop = AtomicBool::new(false);
        let swap_seed = dice.below(u64::MAX);
        let ran = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut dice = Dice::new(swap_seed);
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
                    let name = names[dice.below(names.len() as u64) as usize];
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
                    let _ = rustix::fs::symlinkat(&targets[dice.below(4) as usize], &parent, last);
                    for _ in 0..dice.below(2000) {
                        std::hint::spin_loop();
                    }
                    if dice.below(3) > 0 {
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
