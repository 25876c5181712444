//! File systems that lack something, are slow, or refuse a name.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use faulty::directory::{Kind, On, Options};
use oss_server::Fault;
use rustix::io::Errno;

use crate::common::{Bad, FLAGS, PART, SOURCE, canary, everything, holds_to_its_promise, put_some};
use crate::support::cases::shown;
use crate::support::{BUCKET, Run, bytes, files, ossvp, populate, server};

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
