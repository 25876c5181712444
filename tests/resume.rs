//! A run that was stopped is finished by the next one, and nothing is fetched twice for no reason.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Stdio};

use oss_server::{Fault, OssServer};
use support::cases::{Part, shown};
use support::{BUCKET, Place, Run, bytes, files, ossvp, populate, server, wait_until};

fn start(command: &mut std::process::Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

fn lines_of_parts(volume: &Path) -> usize {
    let Ok(staged) = std::fs::read_dir(volume.join(".ossvp/staged")) else { return 0 };
    staged
        .filter_map(|entry| {
            let path = entry.unwrap().path();
            (path.extension()? == "parts").then(|| std::fs::read_to_string(path).unwrap())
        })
        .map(|notes| notes.lines().filter(|line| line.starts_with("p\t")).count())
        .sum()
}

#[test]
fn committed_files_are_not_fetched_again_after_a_kill() {
    let server = server();
    let place = Place::new();
    let mut expected = BTreeMap::new();
    for n in 0..40 {
        let body = bytes(n, 10_000);
        server.put(BUCKET, &format!("data/{n:02}"), body.clone());
        expected.insert(format!("{n:02}"), body);
    }
    server.fault(Fault::get("data/30").stall_forever_after(1000));
    let source = "oss://bucket/data/";
    let child = start(populate(&server, source, &place.volume()).args(["--concurrency", "2"]));
    // one of two connections hangs; the other goes on to the end
    wait_until("39 files", || place.volume().exists() && files(&place.volume()).len() == 39);
    kill(child);
    assert!(!place.volume().join(".ossvp/complete.json").exists());
    assert!(!place.volume().join("30").exists(), "a file that is not whole has no name");

    server.clear_faults();
    server.reset_stats();
    let ran = populate(&server, source, &place.volume()).run().ended(0);
    assert_eq!(files(&place.volume()), expected);
    let figures = ran.report().figures;
    // the kill may have come between the last file's name and its line in the manifest
    assert!(figures.objects_kept >= 38, "{figures:?}");
    assert_eq!(figures.objects_kept + figures.objects_fetched, 40);
    ossvp().arg("verify").arg(place.volume()).run().ended(0);
}

fn stop_inside_a_large_object(server: &OssServer, volume: &Path, direct: &str) -> Vec<u8> {
    let body = bytes(3, 10 << 20);
    server.put(BUCKET, "data/large", body.clone());
    // the tenth part hangs
    server.fault(Fault::get("data/large").range_start(9 << 20).stall_forever_after(1000));
    let child = start(populate(server, "oss://bucket/data/", volume).args([
        "--part-size",
        "1MiB",
        "--direct",
        direct,
    ]));
    wait_until("nine parts", || lines_of_parts(volume) == 9);
    kill(child);
    server.clear_faults();
    server.reset_stats();
    body
}

#[test]
fn parts_of_a_large_object_are_kept_after_a_kill() {
    for direct in ["off", "on"] {
        let server = server();
        let place = Place::new();
        let body = stop_inside_a_large_object(&server, &place.volume(), direct);
        let ran = populate(&server, "oss://bucket/data/", &place.volume())
            .args(["--part-size", "1MiB", "--direct", direct])
            .run()
            .ended(0);
        assert_eq!(files(&place.volume())["large"], body);
        let figures = ran.report().figures;
        assert_eq!((figures.parts_kept, figures.requests_get), (9, 1), "direct {direct}");
        assert_eq!(ran.marker().verified.crc64, 1);
    }
}

#[test]
fn a_kept_part_that_lost_bytes_is_fetched_again() {
    let server = server();
    let place = Place::new();
    let body = stop_inside_a_large_object(&server, &place.volume(), "off");
    let staged = std::fs::read_dir(place.volume().join(".ossvp/staged")).unwrap();
    let staged =
        staged.map(|entry| entry.unwrap().path()).find(|path| path.extension().is_none()).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(staged).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0; 100], 2 << 20).unwrap();
    drop(file);
    let ran = populate(&server, "oss://bucket/data/", &place.volume())
        .args(["--part-size", "1MiB"])
        .run()
        .ended(0);
    assert_eq!(files(&place.volume())["large"], body);
    assert_eq!(ran.report().figures.parts_kept, 8);
}

#[test]
fn parts_of_another_version_are_not_kept() {
    let server = server();
    let place = Place::new();
    stop_inside_a_large_object(&server, &place.volume(), "off");
    let body = bytes(4, 10 << 20);
    server.put(BUCKET, "data/large", body.clone());
    let ran = populate(&server, "oss://bucket/data/", &place.volume())
        .args(["--part-size", "1MiB"])
        .run()
        .ended(0);
    assert_eq!(files(&place.volume())["large"], body);
    assert_eq!(ran.report().figures.parts_kept, 0);
}

/// Fills, then takes the marker away, as if the last step had been missed.
fn filled_without_marker(server: &OssServer, volume: &Path) {
    populate(server, "oss://bucket/data/", volume).run().ended(0);
    std::fs::remove_file(volume.join(".ossvp/complete.json")).unwrap();
    server.reset_stats();
}

#[test]
fn what_changed_at_the_source_is_fetched_and_what_is_gone_is_removed() {
    let server = server();
    let place = Place::new();
    for name in ["same", "changed", "gone", "dir/gone", "was-file", "was-dir/a", "was-dir/b"] {
        server.put(BUCKET, &format!("data/{name}"), format!("old {name}"));
    }
    server.put(BUCKET, "data/gone-dir/", "");
    filled_without_marker(&server, &place.volume());

    server.put(BUCKET, "data/changed", "new changed");
    server.put(BUCKET, "data/added", "new");
    for gone in ["gone", "dir/gone", "gone-dir/", "was-file", "was-dir/a", "was-dir/b"] {
        assert!(server.delete(BUCKET, &format!("data/{gone}")));
    }
    server.put(BUCKET, "data/was-file/x", "x");
    server.put(BUCKET, "data/was-dir", "now a file");

    let ran = populate(&server, "oss://bucket/data/", &place.volume()).run().ended(0);
    let names: Vec<_> = support::tree(&place.volume()).into_keys().collect();
    assert_eq!(names, ["added", "changed", "same", "was-dir", "was-file/", "was-file/x"]);
    assert_eq!(files(&place.volume())["changed"], b"new changed");
    let figures = ran.report().figures;
    assert_eq!((figures.objects_kept, figures.objects_fetched), (1, 4));
    ossvp().arg("verify").arg(place.volume()).run().ended(0);
    shown(
        Part::Past,
        "objects were changed, removed or added at the source since the volume was begun",
        "fetches what changed or is new, removes what is gone, keeps the rest",
        0,
    );
}

#[test]
fn a_file_that_someone_touched_is_fetched_again() {
    let server = server();
    let place = Place::new();
    server.put(BUCKET, "data/a", "content");
    server.put(BUCKET, "data/b", "content");
    filled_without_marker(&server, &place.volume());
    std::fs::write(place.volume().join("a"), "CONTENT").unwrap();
    let ran = populate(&server, "oss://bucket/data/", &place.volume()).run().ended(0);
    assert_eq!(files(&place.volume())["a"], b"content");
    assert_eq!(ran.report().figures.objects_fetched, 1);
    assert!(ran.stderr.contains("replaced a file"), "{}", ran.stderr);
}

#[test]
fn files_written_since_the_last_sync_are_read_again_after_a_power_cut() {
    let server = server();
    let place = Place::new();
    for name in ["kept", "lost"] {
        server.put(BUCKET, &format!("data/{name}"), "content");
    }
    filled_without_marker(&server, &place.volume());
    // no sync followed
    let manifest = place.volume().join(".ossvp/manifest");
    let text = std::fs::read_to_string(&manifest).unwrap();
    let synced = text.find("\ns\t").unwrap() + 1;
    std::fs::write(&manifest, &text[..synced]).unwrap();
    // what a power cut leaves of a file whose pages were not written: its size, and zeros
    let lost = place.volume().join("lost");
    let time = std::fs::metadata(&lost).unwrap().modified().unwrap();
    std::fs::write(&lost, [0; 7]).unwrap();
    std::fs::File::options().write(true).open(&lost).unwrap().set_modified(time).unwrap();

    let ran = populate(&server, "oss://bucket/data/", &place.volume()).run().ended(0);
    assert_eq!(files(&place.volume())["lost"], b"content");
    let figures = ran.report().figures;
    assert_eq!((figures.objects_kept, figures.objects_fetched), (1, 1));
    assert!(ran.stderr.contains("lost bytes"), "{}", ran.stderr);
    ossvp().arg("verify").arg(place.volume()).run().ended(0);
}

#[test]
fn a_torn_manifest_is_read_up_to_the_tear_and_files_behind_it_are_adopted() {
    let server = server();
    let place = Place::new();
    for n in 0..20 {
        server.put(BUCKET, &format!("data/{n:02}"), bytes(n, 500));
    }
    filled_without_marker(&server, &place.volume());
    let manifest = place.volume().join(".ossvp/manifest");
    let text = std::fs::read_to_string(&manifest).unwrap();
    let paths: Vec<_> = text.lines().filter(|line| line.starts_with("f\t")).collect();
    let path = |line: &str| line.split('\t').nth(7).unwrap().to_owned();
    // the second half of the lines is gone, and the first of them is torn
    let tear = text.find(paths[10]).unwrap() + 20;
    std::fs::write(&manifest, &text[..tear]).unwrap();
    // of their files one has lost its bytes, and keeps size and time
    let lost = place.volume().join(path(paths[15]));
    let content = std::fs::read(&lost).unwrap();
    let time = std::fs::metadata(&lost).unwrap().modified().unwrap();
    std::fs::write(&lost, [0; 500]).unwrap();
    std::fs::File::options().write(true).open(&lost).unwrap().set_modified(time).unwrap();
    server.reset_stats();

    let ran = populate(&server, "oss://bucket/data/", &place.volume()).run().ended(0);
    let figures = ran.report().figures;
    assert_eq!((figures.objects_kept, figures.objects_fetched), (19, 1));
    assert_eq!((figures.requests_head, figures.requests_get), (10, 1));
    assert_eq!(std::fs::read(&lost).unwrap(), content);
    ossvp().arg("verify").arg(place.volume()).run().ended(0);
}

#[test]
fn another_source_is_refused_and_force_discards_it() {
    let server = server();
    let place = Place::new();
    server.put(BUCKET, "data/a", "a");
    server.put(BUCKET, "data/sub/b", "b");
    server.put(BUCKET, "other/c", "c");
    populate(&server, "oss://bucket/data/", &place.volume()).run().ended(0);
    std::fs::write(place.volume().join("mine"), "a user's own").unwrap();

    let other = || populate(&server, "oss://bucket/other/", &place.volume());
    other().run().ended(8).says("the volume holds oss://bucket/data/, not oss://bucket/other/");
    let filtered = || populate(&server, "oss://bucket/data/", &place.volume());
    filtered().args(["--exclude", "a"]).run().ended(8);
    std::fs::remove_file(place.volume().join(".ossvp/complete.json")).unwrap();
    other().run().ended(8).says("a part of oss://bucket/data/");

    other().arg("--force").run().ended(0);
    let names: Vec<_> = support::tree(&place.volume()).into_keys().collect();
    assert_eq!(names, ["c", "mine"]);
    ossvp().arg("verify").arg(place.volume()).run().ended(0);
}

#[test]
fn a_plan_first_fetches_nothing_unless_everything_maps() {
    let server = server();
    let place = Place::new();
    for n in 0..2000 {
        server.put(BUCKET, &format!("data/{n:04}"), "x");
    }
    server.put(BUCKET, "data/z//z", "x");
    let run =
        |more: &[&str]| populate(&server, "oss://bucket/data/", &place.volume()).args(more).run();
    run(&["--plan-first"]).ended(8).says("data/z//z");
    assert_eq!(files(&place.volume()).len(), 0);
    run(&["--plan-first", "--exclude", "z/**"]).ended(0);
    assert_eq!(files(&place.volume()).len(), 2000);
}

#[test]
fn without_a_plan_what_comes_before_an_unmappable_key_may_be_committed() {
    let server = server();
    let place = Place::new();
    for n in 0..2000 {
        server.put(BUCKET, &format!("data/{n:04}"), "x");
    }
    server.put(BUCKET, "data/z//z", "x");
    populate(&server, "oss://bucket/data/", &place.volume()).run().ended(8);
    let kept = files(&place.volume()).len();
    server.delete(BUCKET, "data/z//z");
    let ran = populate(&server, "oss://bucket/data/", &place.volume()).run().ended(0);
    let figures = ran.report().figures;
    assert!(figures.objects_kept <= kept as u64, "{figures:?}");
    assert_eq!(figures.objects_kept + figures.objects_fetched, 2000);
}

#[test]
fn a_placeholder_outlives_the_last_file_that_was_removed_from_it() {
    let server = server();
    let place = Place::new();
    server.put(BUCKET, "data/dir/", "");
    server.put(BUCKET, "data/dir/old", "x");
    filled_without_marker(&server, &place.volume());
    server.delete(BUCKET, "data/dir/old");
    populate(&server, "oss://bucket/data/", &place.volume()).run().ended(0);
    let names: Vec<_> = support::tree(&place.volume()).into_keys().collect();
    assert_eq!(names, ["dir/"]);
    shown(
        Part::Past,
        "the last file of a listed directory is no longer listed",
        "the directory stays",
        0,
    );
}

#[test]
fn an_empty_listing_removes_nothing() {
    let server = server();
    let place = Place::new();
    server.put(BUCKET, "data/a", "a");
    filled_without_marker(&server, &place.volume());
    server.delete(BUCKET, "data/a");
    server.put(BUCKET, "data/", "");
    populate(&server, "oss://bucket/data/", &place.volume()).run().ended(3).says("nothing under");
    assert_eq!(files(&place.volume()).len(), 1);
    populate(&server, "oss://bucket/data/", &place.volume()).arg("--allow-empty").run().ended(0);
    assert_eq!(files(&place.volume()).len(), 0);
    shown(
        Part::Past,
        "the source lists nothing any more",
        "removes nothing unless --allow-empty is given",
        3,
    );
}

#[test]
fn a_file_that_is_no_longer_listed_but_was_changed_by_someone_stays() {
    let server = server();
    let place = Place::new();
    for name in ["gone", "mine", "stays"] {
        server.put(BUCKET, &format!("data/{name}"), "content");
    }
    filled_without_marker(&server, &place.volume());
    std::fs::write(place.volume().join("mine"), "edited by a user").unwrap();
    server.delete(BUCKET, "data/gone");
    server.delete(BUCKET, "data/mine");
    let ran = populate(&server, "oss://bucket/data/", &place.volume()).run().ended(0);
    let names: Vec<_> = files(&place.volume()).into_keys().collect();
    assert_eq!(names, ["mine", "stays"]);
    assert!(ran.stderr.contains("left where it is"), "{}", ran.stderr);
    ossvp().arg("verify").arg(place.volume()).run().ended(0);
    shown(
        Part::Past,
        "a file that is no longer listed was changed by someone",
        "stays, with a warning",
        0,
    );
}

#[test]
fn a_directory_in_the_place_of_a_file_that_is_no_longer_listed_is_let_be() {
    let server = server();
    let place = Place::new();
    for name in ["a", "b"] {
        server.put(BUCKET, &format!("data/{name}"), "content");
    }
    filled_without_marker(&server, &place.volume());
    // as after a power cut that kept the new directory and lost the line of the old file's end
    std::fs::remove_file(place.volume().join("a")).unwrap();
    std::fs::create_dir(place.volume().join("a")).unwrap();
    std::fs::write(place.volume().join("a/b"), "content").unwrap();
    server.delete(BUCKET, "data/a");
    server.put(BUCKET, "data/a/b", "content");
    populate(&server, "oss://bucket/data/", &place.volume()).run().ended(0);
    let names: Vec<_> = files(&place.volume()).into_keys().collect();
    assert_eq!(names, ["a/b", "b"]);
    shown(
        Part::Past,
        "a directory stands in the place of a file that is no longer listed",
        "is let be, and filled",
        0,
    );
}

#[test]
fn new_files_come_to_directories_that_stale_neighbours_leave_empty() {
    let server = server();
    let place = Place::new();
    let key = |n: u32, name: &str| format!("data/d{n}/x/y/{name}");
    for n in 0..400 {
        server.put(BUCKET, &key(n, "old"), "old");
    }
    filled_without_marker(&server, &place.volume());
    for n in 0..400 {
        server.delete(BUCKET, &key(n, "old"));
        server.put(BUCKET, &key(n, "new"), "new");
    }
    populate(&server, "oss://bucket/data/", &place.volume())
        .args(["--concurrency", "16"])
        .run()
        .ended(0);
    let files = files(&place.volume());
    assert_eq!(files.len(), 400);
    assert!(files.iter().all(|(name, body)| name.ends_with("/new") && body == b"new"));
    ossvp().arg("verify").arg(place.volume()).run().ended(0);
}
