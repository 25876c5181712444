//! Every byte is checked by what the source states, and nothing unchecked passes for checked.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use crc_fast::{CrcAlgorithm, checksum};
use md5::Md5;
use oss_server::{Fault, Operation, OssServer, PutOptions};
use ossvp::handoff::Tally;
use sha2::{Digest, Sha256};
use support::{BUCKET, Place, Ran, Run, bytes, files, populate, server};

/// Whole at the part size below.
const SMALL: usize = 10_000;
/// In five parts.
const LARGE: usize = 300_000;

fn run(server: &OssServer, place: &Place, dialect: &str, flags: &[&str]) -> Ran {
    let source = format!("{dialect}://{BUCKET}/data/");
    populate(server, &source, &place.volume()).args(["--part-size", "64KiB"]).args(flags).run()
}

/// What vouches for one object of `size` bytes that is stored with `options`.
fn vouched(dialect: &str, size: usize, options: PutOptions, flags: &[&str]) -> Tally {
    let (server, place) = (server(), Place::new());
    let body = bytes(1, size);
    server.put_with(BUCKET, "data/object", body.clone(), options);
    let ran = run(&server, &place, dialect, flags).ended(0);
    assert_eq!(files(&place.volume()), BTreeMap::from([("object".to_owned(), body)]));
    ran.marker().verified
}

/// That one object of `size` bytes is refused after three fetches, with both values named, and
/// leaves nothing that could be taken for it.
#[track_caller]
fn refused(dialect: &str, size: usize, options: PutOptions, flags: &[&str], values: &str) {
    let (server, place) = (server(), Place::new());
    server.put_with(BUCKET, "data/object", bytes(1, size), options);
    let key = "object \"data/object\" does not match its checksum, fetched 3 times: ";
    run(&server, &place, dialect, flags).ended(6).says(key).says(values);
    let gets = if size == SMALL { 3 } else { 5 + 2 };
    assert_eq!(server.gets(BUCKET, "data/object"), gets);
    assert_eq!(files(&place.volume()), BTreeMap::new());
    assert!(!place.is_marked());
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn sha256sum_accepts(place: &Place) {
    let checked = Command::new("sha256sum")
        .args(["--check", "--strict", "--quiet", ".ossvp/SHA256SUMS"])
        .current_dir(place.volume())
        .output()
        .unwrap();
    assert!(checked.status.success(), "{checked:?}");
    assert!(checked.stdout.is_empty() && checked.stderr.is_empty(), "{checked:?}");
}

#[test]
fn crc64_vouches_for_whole_objects_and_for_objects_in_parts() {
    for size in [0, SMALL, LARGE] {
        let plain = PutOptions::new();
        assert_eq!(vouched("oss", size, plain, &[]), Tally { crc64: 1, ..Tally::default() });
        // which OSS states of multipart objects too, whose ETag is no MD5
        let multipart = PutOptions::new().in_parts(100_000);
        let tally = vouched("oss", size, multipart, &["--verify", "require"]);
        assert_eq!(tally, Tally { crc64: 1, ..Tally::default() });
    }
}

#[test]
fn parts_of_any_size_make_up_the_object() {
    for part_size in ["65537", "100000", "262144", "299999"] {
        for direct in ["auto", "on", "off"] {
            let (server, place) = (server(), Place::new());
            let body = bytes(1, LARGE);
            server.put(BUCKET, "data/object", body.clone());
            // the later part first: what the earlier one writes must not reach into it
            server.fault(Fault::get("data/object").range_start(0).delay(Duration::from_millis(50)));
            let flags = ["--part-size", part_size, "--direct", direct];
            populate(&server, "oss://bucket/data/", &place.volume()).args(flags).run().ended(0);
            let found = std::fs::read(place.volume().join("object")).unwrap();
            assert!(found == body, "parts of {part_size} bytes, --direct {direct}");
        }
    }
}

#[test]
fn a_wrong_crc64_is_refused() {
    for size in [SMALL, LARGE] {
        let actual = checksum(CrcAlgorithm::Crc64Xz, &bytes(1, size));
        let values = format!("crc64 is {actual}, the source states 12345");
        refused("oss", size, PutOptions::new().wrong_crc(12345), &[], &values);
    }
}

#[test]
fn without_a_crc_md5_vouches_where_the_etag_is_one() {
    let md5 = Tally { md5: 1, ..Tally::default() };
    let unverified = Tally { unverified: 1, ..Tally::default() };
    for size in [SMALL, LARGE] {
        let old = || PutOptions::new().without_crc();
        for (options, tally) in [
            (old(), md5),
            (old().in_parts(100_000), unverified),
            (old().in_parts(1_000_000), unverified),
            (old().sse_kms("key-id"), unverified),
            (old().appendable(), unverified),
        ] {
            assert_eq!(vouched("oss", size, options, &[]), tally);
        }
    }
    let stated = PutOptions::new().without_crc().in_parts(5000).content_md5();
    assert_eq!(vouched("oss", SMALL, stated, &[]), md5);
}

#[test]
fn a_wrong_md5_is_refused() {
    let zeros = "0".repeat(32);
    for size in [SMALL, LARGE] {
        let values =
            format!("md5 is {}, the source states {zeros}", hex(&Md5::digest(bytes(1, size))));
        refused("oss", size, PutOptions::new().without_crc().etag(&zeros), &[], &values);
        refused("s3", size, PutOptions::new().etag(&zeros), &[], &values);
    }
    let stated = PutOptions::new().without_crc().header("content-md5", &STANDARD.encode([0; 16]));
    let values =
        format!("md5 is {}, the source states {zeros}", hex(&Md5::digest(bytes(1, SMALL))));
    refused("oss", SMALL, stated, &[], &values);
}

/// The checksums that S3 may state: name, value in base64, value as messages write it, and what a
/// tally has when it vouched.
fn s3_checksums(body: &[u8]) -> [(&'static str, String, String, Tally); 4] {
    let none = Tally::default();
    let of = |kind| checksum(kind, body);
    let (nvme, c, ieee) = (
        of(CrcAlgorithm::Crc64Nvme),
        of(CrcAlgorithm::Crc32Iscsi) as u32,
        of(CrcAlgorithm::Crc32IsoHdlc) as u32,
    );
    let base64 = |bytes: &[u8]| STANDARD.encode(bytes);
    [
        (
            "crc64nvme",
            base64(&nvme.to_be_bytes()),
            format!("{nvme:016x}"),
            Tally { crc64nvme: 1, ..none },
        ),
        ("crc32c", base64(&c.to_be_bytes()), format!("{c:08x}"), Tally { crc32c: 1, ..none }),
        ("crc32", base64(&ieee.to_be_bytes()), format!("{ieee:08x}"), Tally { crc32: 1, ..none }),
        ("sha256", base64(&Sha256::digest(body)), sha256(body), Tally { sha256: 1, ..none }),
    ]
}

#[test]
fn what_s3_states_vouches_for_whole_objects_and_for_objects_in_parts() {
    for size in [SMALL, LARGE] {
        for (name, right, text, tally) in s3_checksums(&bytes(1, size)) {
            let stated = |value: &str, kind: &str| {
                PutOptions::new().etag("no-md5").checksum(name, value, kind)
            };
            assert_eq!(vouched("s3", size, stated(&right, "FULL_OBJECT"), &[]), tally, "{name}");
            // composite ones are of the parts' checksums, not of the bytes
            let unverified = Tally { unverified: 1, ..Tally::default() };
            assert_eq!(vouched("s3", size, stated(&right, "COMPOSITE"), &[]), unverified, "{name}");

            let zero = vec![0; STANDARD.decode(&right).unwrap().len()];
            let values = format!("{name} is {text}, the source states {}", hex(&zero));
            let wrong = stated(&STANDARD.encode(&zero), "FULL_OBJECT");
            refused("s3", size, wrong, &[], &values);
        }
    }
}

#[test]
fn s3_takes_one_head_for_an_object_in_parts_and_none_for_a_whole_one() {
    for (size, heads) in [(SMALL, 0), (LARGE, 1)] {
        let (server, place) = (server(), Place::new());
        server.put(BUCKET, "data/object", bytes(1, size));
        let ran = run(&server, &place, "s3", &[]).ended(0);
        assert_eq!(server.stats().count(Operation::HeadObject), heads);
        assert_eq!(ran.marker().verified.md5, 1);
    }
}

#[test]
fn a_byte_that_is_flipped_once_is_fetched_again() {
    for (size, at) in [(SMALL, 17), (LARGE, 200_000)] {
        let (server, place) = (server(), Place::new());
        let body = bytes(1, size);
        server.put(BUCKET, "data/object", body.clone());
        server.fault(Fault::get("data/object").times(1).flip_byte(at));
        let ran = run(&server, &place, "oss", &[]).ended(0).says("fetching again");
        assert_eq!(ran.report().figures.refetched, 1);
        assert_eq!(ran.marker().verified.crc64, 1);
        assert_eq!(files(&place.volume()), BTreeMap::from([("object".to_owned(), body)]));
    }
}

#[test]
fn a_byte_that_is_always_flipped_ends_the_run_and_spares_the_others() {
    for (size, at) in [(SMALL, 17), (LARGE, 200_000)] {
        let (server, place) = (server(), Place::new());
        let body = bytes(1, size);
        server.put(BUCKET, "data/fine", "fine");
        server.put(BUCKET, "data/object", body.clone());
        server.fault(Fault::get("data/object").flip_byte(at));
        let mut flipped = body.clone();
        flipped[at as usize] ^= 0xff;
        let [stated, actual] = [&body, &flipped].map(|body| checksum(CrcAlgorithm::Crc64Xz, body));
        let ran = run(&server, &place, "oss", &["--concurrency", "1"])
            .ended(6)
            .says("object \"data/object\" does not match its checksum, fetched 3 times: ")
            .says(&format!("crc64 is {actual}, the source states {stated}"));
        assert_eq!(ran.report().figures.refetched, 2);
        let names: Vec<_> = files(&place.volume()).into_keys().collect();
        assert_eq!(names, ["fine"]);
        assert!(!place.is_marked());

        // the source is repaired: the next run completes the volume
        server.clear_faults();
        run(&server, &place, "oss", &[]).ended(0);
        assert_eq!(files(&place.volume())["object"], body);
    }
}

#[test]
fn an_older_version_stays_until_the_new_one_is_verified() {
    let (server, place) = (server(), Place::new());
    server.put(BUCKET, "data/object", "the first version");
    run(&server, &place, "oss", &[]).ended(0);
    server.put(BUCKET, "data/object", "the other version");
    server.fault(Fault::get("data/object").flip_byte(3));
    std::fs::remove_file(place.volume().join(".ossvp/complete.json")).unwrap();
    run(&server, &place, "oss", &[]).ended(6);
    assert_eq!(files(&place.volume())["object"], b"the first version");
}

#[test]
fn require_names_an_object_without_a_checksum() {
    for (dialect, size) in [("oss", SMALL), ("oss", LARGE), ("s3", SMALL), ("s3", LARGE)] {
        let (server, place) = (server(), Place::new());
        let bare = PutOptions::new().without_crc().etag("no-md5");
        server.put_with(BUCKET, "data/bare", bytes(1, size), bare);
        run(&server, &place, dialect, &["--verify", "require"])
            .ended(6)
            .says("object \"data/bare\" has no checksum")
            .says("--verify auto");
        assert_eq!(files(&place.volume()), BTreeMap::new());
        assert!(!place.is_marked());

        let tally = run(&server, &place, dialect, &["--verify", "auto"]).ended(0).marker().verified;
        assert_eq!(tally, Tally { unverified: 1, ..Tally::default() });

        // that marker does not say what is now required
        run(&server, &place, dialect, &["--verify", "require"]).ended(6).says("\"data/bare\"");
    }
}

#[test]
fn what_was_unverified_is_fetched_again_once_it_must_be_verified() {
    let (server, place) = (server(), Place::new());
    let old = || PutOptions::new().etag("no-md5");
    server.put_with(BUCKET, "data/old", "body", old().without_crc());
    server.put(BUCKET, "data/new", "body");
    run(&server, &place, "oss", &[]).ended(0);
    server.put_with(BUCKET, "data/old", "body", old());
    server.reset_stats();
    let tally = run(&server, &place, "oss", &["--verify", "require"]).ended(0).marker().verified;
    assert_eq!(tally, Tally { crc64: 2, ..Tally::default() });
    assert_eq!([server.gets(BUCKET, "data/old"), server.gets(BUCKET, "data/new")], [1, 0]);
}

#[test]
fn verify_off_compares_nothing_and_says_so() {
    let (server, place) = (server(), Place::new());
    server.put_with(BUCKET, "data/a", "body", PutOptions::new().wrong_crc(1));
    server.put(BUCKET, "data/b", bytes(1, LARGE));
    let off = ["--verify", "off"];
    let ran = run(&server, &place, "oss", &off).ended(0).says("0 verified, 2 unverified");
    assert_eq!(ran.marker().verified, Tally { off: 2, ..Tally::default() });
    server.reset_stats();
    run(&server, &place, "oss", &off).ended(0);
    assert_eq!(server.stats().requests, 0);

    // a marker that vouches for nothing does not stand in for one that does
    run(&server, &place, "oss", &[]).ended(6).says("\"data/a\"");
    assert!(!place.is_marked());
    server.put(BUCKET, "data/a", "body");
    let tally = run(&server, &place, "oss", &[]).ended(0).marker().verified;
    assert_eq!(tally, Tally { crc64: 2, ..Tally::default() });
}

#[test]
fn sha256_in_user_metadata_is_compared() {
    for size in [SMALL, LARGE] {
        let right = sha256(&bytes(1, size));
        let wrong = "0".repeat(64);
        for dialect in ["oss", "s3"] {
            let said = |value: &str| {
                PutOptions::new().without_crc().etag("no-md5").metadata("sha256", value)
            };
            let tally = vouched(dialect, size, said(&right), &["--sha256", "--verify", "require"]);
            assert_eq!(tally, Tally { sha256: 1, ..Tally::default() });
            // nobody asked for it
            let tally = vouched(dialect, size, said(&wrong), &[]);
            assert_eq!(tally, Tally { unverified: 1, ..Tally::default() });
            let values = format!("sha256 is {right}, the source states {wrong}");
            refused(dialect, size, said(&wrong), &["--sha256"], &values);
        }
        // also where a CRC is right
        let values = format!("sha256 is {right}, the source states {wrong}");
        refused("oss", size, PutOptions::new().metadata("sha256", &wrong), &["--sha256"], &values);
    }
}

#[test]
fn sha256sums_of_the_source_are_compared() {
    let names = ["small", "large", "sub/dir", "back\\slash", "new\nline", " blank ", "*star", "-x"];
    let body = |name: &str| {
        let seed = names.iter().position(|other| *other == name).unwrap();
        bytes(seed as u64, if name == "large" { LARGE } else { SMALL })
    };
    let line = |name: &str| match name.replace('\\', "\\\\").replace('\n', "\\n") {
        escaped if escaped != name => format!("\\{}  {escaped}\n", sha256(&body(name))),
        plain => format!("{}  {plain}\n", sha256(&body(name))),
    };
    let bare = || PutOptions::new().without_crc().etag("no-md5");
    let lay_out = |server: &OssServer, sums: &str| {
        for name in names {
            server.put_with(BUCKET, &format!("data/{name}"), body(name), bare());
        }
        server.put(BUCKET, "data/SHA256SUMS", sums.to_owned());
    };
    let all: String = names.map(line).concat();

    let (server, place) = (server(), Place::new());
    lay_out(&server, &all);
    let flags = ["--sha256", "--verify", "require"];
    let ran = run(&server, &place, "oss", &flags).ended(0);
    assert_eq!(ran.marker().verified, Tally { sha256: 8, crc64: 1, ..Tally::default() });
    sha256sum_accepts(&place);

    for name in ["small", "large", "new\nline"] {
        let (server, place) = (support::server(), Place::new());
        lay_out(&server, &all.replace(&sha256(&body(name)), &"0".repeat(64)));
        let key = format!("object {:?} does not match", format!("data/{name}"));
        run(&server, &place, "oss", &["--sha256"]).ended(6).says(&key).says("sha256 is ");
        assert!(!place.volume().join(name).exists());
        // not asked for, not looked at
        run(&server, &place, "oss", &[]).ended(0);
    }
    for (malformed, at) in [
        (format!("{all}no digest\n"), 9),
        (format!("{}  \n", "0".repeat(64)), 1),
        (format!("{}x  small\n", "0".repeat(63)), 1),
        (format!("{} small\n", "0".repeat(64)), 1),
        (format!("\\{}  bad\\escape\n", "0".repeat(64)), 1),
        ("\u{0}".repeat(100_000), 1),
    ] {
        let (server, place) = (support::server(), Place::new());
        lay_out(&server, &malformed);
        let why = format!("object \"data/SHA256SUMS\" is no list of SHA-256 checksums: line {at}");
        run(&server, &place, "oss", &["--sha256"]).ended(3).says(&why);
        assert!(!place.is_marked());
    }
}

#[test]
fn sha256sum_accepts_what_is_recorded() {
    let (server, place) = (server(), Place::new());
    let names = [
        "plain",
        "a b",
        " lead",
        "trail ",
        "back\\slash",
        "new\nline",
        "return\rhere",
        "\\n",
        "-c",
    ];
    for (n, name) in names.iter().enumerate() {
        server.put(BUCKET, &format!("data/{name}"), bytes(n as u64, 1000));
    }
    server.put(BUCKET, "data/empty", "");
    server.put(BUCKET, "data/directory/", "");
    server.put(BUCKET, "data/deep/\u{e9}/large", bytes(1, LARGE));
    let ran = run(&server, &place, "oss", &["--sha256"]).ended(0);
    assert!(ran.marker().sha256);
    sha256sum_accepts(&place);
    let sums = std::fs::read_to_string(place.volume().join(".ossvp/SHA256SUMS")).unwrap();
    assert_eq!(sums.lines().count(), names.len() + 2);

    std::fs::write(place.volume().join("new\nline"), bytes(99, 1000)).unwrap();
    let checked = Command::new("sha256sum")
        .args(["--check", "--strict", "--status", ".ossvp/SHA256SUMS"])
        .current_dir(place.volume())
        .status()
        .unwrap();
    assert!(!checked.success());
}

#[test]
fn sha256_asked_for_later_is_computed_from_the_volume() {
    let (server, place) = (server(), Place::new());
    let wrong = PutOptions::new().metadata("sha256", &"0".repeat(64));
    server.put(BUCKET, "data/a", bytes(1, SMALL));
    server.put(BUCKET, "data/b", bytes(2, LARGE));
    run(&server, &place, "oss", &[]).ended(0);
    server.reset_stats();
    let ran = run(&server, &place, "oss", &["--sha256"]).ended(0);
    assert!(ran.marker().sha256);
    assert_eq!([server.gets(BUCKET, "data/a"), server.gets(BUCKET, "data/b")], [0, 0]);
    sha256sum_accepts(&place);

    // and a marker that says more than is asked for stands
    server.reset_stats();
    run(&server, &place, "oss", &[]).ended(0).says("already complete");
    assert_eq!(server.stats().requests, 0);

    // what the source states is compared then, too
    let (server, place) = (support::server(), Place::new());
    server.put_with(BUCKET, "data/a", bytes(1, SMALL), wrong);
    run(&server, &place, "oss", &[]).ended(0);
    run(&server, &place, "oss", &["--sha256"]).ended(6).says("sha256 is ");
    assert!(!place.is_marked());
}

#[test]
fn sums_beside_a_prefix_that_is_no_directory_are_not_asked_for() {
    let (server, place) = (server(), Place::new());
    server.put(BUCKET, "data/model", "x");
    server.put(BUCKET, "data/SHA256SUMS", "no sums at all");
    let source = format!("oss://{BUCKET}/data/mo");
    populate(&server, &source, &place.volume()).arg("--sha256").run().ended(0);
    assert_eq!(server.gets(BUCKET, "data/SHA256SUMS"), 0);
}
