//! A prefix becomes a directory, and the directory vouches for it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use oss_server::{Fault, Generated, Sizes};
use support::{BUCKET, Place, Run, bytes, files, ossvp, populate, server, tree};

#[test]
fn a_prefix_becomes_a_directory() {
    let server = server();
    let place = Place::new();
    let mut expected = BTreeMap::new();
    for n in 0..50 {
        let path = format!("dir-{}/file-{n}", n % 5);
        let body = bytes(n, (n * 1000) as usize);
        server.put(BUCKET, &format!("data/{path}"), body.clone());
        expected.insert(path, body);
    }
    server.put(BUCKET, "other/file", "not ours");
    server.put(BUCKET, "data/", "");

    let ran = populate(&server, "oss://bucket/data/", &place.volume()).run().ended(0);

    assert_eq!(files(&place.volume()), expected);
    let marker = ran.marker();
    assert_eq!(marker.objects, 50);
    assert_eq!(marker.bytes, expected.values().map(|body| body.len() as u64).sum::<u64>());
    assert_eq!(marker.verified.crc64, 50);
    let file = std::fs::metadata(place.volume().join("dir-1/file-1")).unwrap();
    assert_eq!(file.permissions().mode() & 0o777, 0o644);
    assert!(file.mtime() > 0 && file.mtime() <= chrono::Utc::now().timestamp());
    let directory = std::fs::metadata(place.volume().join("dir-1")).unwrap();
    assert_eq!(directory.permissions().mode() & 0o777, 0o755);
    assert_eq!(std::fs::read_dir(place.volume().join(".ossvp/staged")).unwrap().count(), 0);

    ossvp().arg("verify").arg(place.volume()).run().ended(0);
}

#[test]
fn a_volume_that_belongs_to_a_group_is_writable_for_it() {
    let server = server();
    let place = Place::new();
    server.put(BUCKET, "data/dir/file", "a");
    server.put(BUCKET, "data/large", bytes(1, 200_000));
    // as the kubelet leaves the root of a volume with an fsGroup
    std::fs::create_dir(place.volume()).unwrap();
    std::os::unix::fs::chown(place.volume(), None, Some(4242)).unwrap();
    std::fs::set_permissions(place.volume(), PermissionsExt::from_mode(0o2775)).unwrap();

    populate(&server, "oss://bucket/data/", &place.volume())
        .args(["--part-size", "64KiB"])
        .run()
        .ended(0);

    for (path, mode) in [("dir", 0o2775), ("dir/file", 0o664), ("large", 0o664)] {
        let found = std::fs::metadata(place.volume().join(path)).unwrap();
        assert_eq!((found.permissions().mode() & 0o7777, found.gid()), (mode, 4242), "{path}");
    }
}

#[test]
fn a_second_run_fetches_nothing() {
    let server = server();
    let place = Place::new();
    server.put(BUCKET, "data/a", "a");
    populate(&server, "oss://bucket/data/", &place.volume()).run().ended(0);
    server.reset_stats();
    let ran = populate(&server, "oss://bucket/data/", &place.volume()).run().ended(0);
    assert_eq!(server.stats().requests, 0);
    assert!(ran.stderr.contains("already complete"), "{}", ran.stderr);
}

#[test]
fn a_large_object_is_fetched_in_parts_at_once() {
    let server = server();
    let place = Place::new();
    let body = bytes(7, 5_000_001);
    server.put(BUCKET, "data/large", body.clone());
    let ran = populate(&server, "oss://bucket/data/", &place.volume())
        .args(["--part-size", "1MiB"])
        .run()
        .ended(0);
    assert_eq!(files(&place.volume()), BTreeMap::from([("large".to_owned(), body)]));
    assert_eq!(ran.report().figures.requests_get, 5);
    assert_eq!(ran.report().figures.requests_head, 0);
    assert_eq!(ran.marker().verified.crc64, 1);
}

#[test]
fn placeholders_become_directories() {
    let server = server();
    let place = Place::new();
    server.put(BUCKET, "data/", "");
    server.put(BUCKET, "data/empty/", "");
    server.put(BUCKET, "data/full/", "");
    server.put(BUCKET, "data/full/file", "x");
    let ran = populate(&server, "oss://bucket/data/", &place.volume()).run().ended(0);
    let names: Vec<_> = tree(&place.volume()).into_keys().collect();
    assert_eq!(names, ["empty/", "full/", "full/file"]);
    assert_eq!((ran.marker().objects, ran.marker().directories), (1, 2));
}

#[test]
fn verify_names_every_difference() {
    let server = server();
    let place = Place::new();
    for name in ["short", "changed", "gone", "fine"] {
        server.put(BUCKET, &format!("data/{name}"), "some content");
    }
    server.put(BUCKET, "data/directory/", "");
    let verify = || ossvp().arg("verify").arg(place.volume()).run();
    verify().ended(7).says("cannot open the volume");
    std::fs::create_dir(place.volume()).unwrap();
    verify().ended(8).says("no completion marker");
    populate(&server, "oss://bucket/data/", &place.volume()).run().ended(0);

    std::fs::write(place.volume().join("short"), "some").unwrap();
    std::fs::write(place.volume().join("changed"), "same content").unwrap();
    std::fs::remove_file(place.volume().join("gone")).unwrap();
    std::fs::remove_dir(place.volume().join("directory")).unwrap();
    std::fs::write(place.volume().join("new"), "written by a workload").unwrap();

    let ran = verify().ended(6);
    let mut lines: Vec<_> =
        ran.stdout.lines().map(|line| line.split(':').next().unwrap()).collect();
    lines.sort_unstable();
    assert_eq!(lines, ["\"changed\"", "\"directory\"", "\"gone\"", "\"short\""]);
    // and what it says helps
    ran.says("1 files and 12 bytes").says("4 differences; run ossvp populate again with --force");
    let mut again = populate(&server, "oss://bucket/data/", &place.volume());
    again.arg("--force").run().ended(0);
    verify().ended(0).says(" 0 differences\n");
}

#[test]
fn a_directory_is_a_source_too() {
    let place = Place::new();
    let from = place.file("from");
    for name in ["b", "a/x", "a-b", "a/y/z", "a%2F", "A"] {
        let path = from.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, name).unwrap();
    }
    let source = format!("file://{}", from.display());
    let ran = ossvp()
        .args(["populate", &source])
        .arg(place.volume())
        .args(["--report", "-"])
        .run()
        .ended(0);
    assert_eq!(files(&place.volume()), files(&from));
    assert_eq!(ran.marker().verified.unverified, 6);
}

#[test]
fn a_dry_run_plans_and_writes_nothing() {
    let server = server();
    let place = Place::new();
    server.put(BUCKET, "data/a", bytes(1, 1000));
    server.put(BUCKET, "data/b", bytes(2, 100_000));
    server.put(BUCKET, "data/c.tmp", bytes(3, 10));
    let ran = populate(&server, "oss://bucket/data/", &place.volume())
        .args(["--dry-run", "--exclude", "*.tmp"])
        .run()
        .ended(0);
    let plan = ran.report().plan.unwrap();
    assert_eq!((plan.objects, plan.bytes, plan.skipped), (2, 101_000, 1));
    assert_eq!(plan.sizes, [(4096, 1, 1000), (262_144, 1, 100_000)]);
    assert_eq!(plan.fits, Some(true));
    assert!(!place.volume().exists());
}

/// A page that takes so long is waited for, and has several listers list.
const WAITED_FOR: Duration = Duration::from_millis(30);

#[test]
fn a_listing_in_parts_that_do_not_meet_is_read_by_one() {
    let server = server();
    let place = Place::new();
    let (prefix, sizes) = ("data/".to_owned(), Sizes::Fixed(10));
    server.generate(BUCKET, Generated { prefix, count: 20_000, sizes, seed: 1, fan_out: 0 });
    server.fault(Fault::list().delay(WAITED_FOR));
    // a key that no other part has
    server.fault(Fault::list().from_key().replace(".bin</Key>", ".bin0</Key>"));
    let ran = populate(&server, "oss://bucket/data/", &place.volume())
        .arg("--dry-run")
        .run()
        .ended(0)
        .says("listing again, page by page");
    let plan = ran.report().plan.unwrap();
    assert_eq!((plan.objects, plan.bytes), (20_000, 200_000));
}

#[test]
fn a_dry_run_without_room_to_sort_lists_page_by_page() {
    let server = server();
    let place = Place::new();
    // more than is sorted in memory
    let (prefix, sizes) = (format!("data/{}/", "d".repeat(250)), Sizes::Fixed(10));
    server.generate(BUCKET, Generated { prefix, count: 100_000, sizes, seed: 1, fan_out: 0 });
    server.fault(Fault::list().delay(WAITED_FOR));
    let ran = populate(&server, "oss://bucket/data/", &place.volume())
        .arg("--dry-run")
        .env("TMPDIR", place.volume().join("nowhere"))
        .run()
        .ended(0)
        .says("cannot sort the listing")
        .says("listing again, page by page");
    assert_eq!(ran.report().plan.unwrap().objects, 100_000);
}
