//! What the volume held before: another source's files, an older or newer version's, half of a run, or
//! what someone wrote there to do harm. What was asked for comes to be there, or the run says what is.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::path::Path;

use oss_server::{Fault, OssServer, PutOptions};
use support::cases::{Part, shown, shown_by};
use support::{BUCKET, Place, Run, files, ossvp, populate, server};

const SOURCE: &str = "oss://bucket/data/";
const PART: Part = Part::Past;

/// A line of a manifest, sealed as ossvp seals its own.
fn sealed(body: &str) -> String {
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, body.as_bytes());
    format!("{body}\t#{crc:08x}\n")
}

/// A server with two objects, and a volume that holds the first of them: the second was refused.
fn a_part(server: &OssServer, volume: &Path, source: &str, more: &[&str]) {
    server.fault(Fault::get("data/z").status(403, "AccessDenied"));
    server.fault(Fault::get("other/z").status(403, "AccessDenied"));
    let flags = ["--concurrency", "1"];
    populate(server, source, volume).args(flags).args(more).run().ended(3);
    server.clear_faults();
    assert!(!files(volume).is_empty(), "a part of it");
}

#[test]
fn a_part_of_another_source_is_refused_by_name_and_force_discards_it() {
    let source_of = |server: &OssServer| {
        for key in ["data/a", "data/z", "other/b", "other/z"] {
            server.put(BUCKET, key, key);
        }
        for key in ["data/a", "data/z"] {
            server.put("second", key, format!("second {key}"));
        }
    };
    let filter = ["--exclude", "nothing"];
    let skip = ["--unmappable", "skip"];
    type Case<'a> = (&'a str, [&'a str; 2], [&'a [&'a str]; 2], [&'a str; 2]);
    let cases: [Case<'_>; 7] = [
        (
            "another prefix",
            ["oss://bucket/other/", SOURCE],
            [&[], &[]],
            ["oss://bucket/other/", "oss://bucket/data/"],
        ),
        (
            "another bucket",
            ["oss://second/data/", SOURCE],
            [&[], &[]],
            ["oss://second/data/", "oss://bucket/data/"],
        ),
        (
            "another protocol",
            ["s3://bucket/data/", SOURCE],
            [&[], &[]],
            ["s3://bucket/data/", "oss://bucket/data/"],
        ),
        (
            "other filters",
            [SOURCE, SOURCE],
            [&[], &filter],
            ["oss://bucket/data/", "oss://bucket/data/ (1 filter)"],
        ),
        (
            "filters, then none",
            [SOURCE, SOURCE],
            [&filter, &[]],
            ["oss://bucket/data/ (1 filter)", "oss://bucket/data/"],
        ),
        (
            "another --unmappable",
            [SOURCE, SOURCE],
            [&[], &skip],
            [
                "oss://bucket/data/ with --unmappable fail",
                "oss://bucket/data/ with --unmappable skip",
            ],
        ),
        (
            "another filter",
            [SOURCE, SOURCE],
            [&["--exclude", "x"], &["--include", "*"]],
            [
                "oss://bucket/data/ (1 filter) --exclude \"x\"",
                "oss://bucket/data/ (1 filter) --include \"*\"",
            ],
        ),
    ];
    for (what, [held, asked], [held_flags, asked_flags], [held_name, asked_name]) in cases {
        let builder = OssServer::builder().bucket(BUCKET).bucket("second");
        let server = builder.credentials(support::ID, support::SECRET).start_blocking().unwrap();
        source_of(&server);
        let place = Place::new();
        a_part(&server, &place.volume(), held, held_flags);
        std::fs::write(place.volume().join("mine"), "a user's own").unwrap();
        let before = support::tree(&place.volume());
        let run = || {
            let mut command = populate(&server, asked, &place.volume());
            command.args(asked_flags);
            command
        };
        let ran = run().run().ended(8);
        let said = format!("the volume holds a part of {held_name}, not {asked_name}");
        assert!(ran.stderr.contains(&said), "{what}: {}", ran.stderr);
        let ran = ran.says("use another volume, or --force to discard it");
        assert_eq!(support::tree(&place.volume()), before, "{what}");
        run().arg("--force").run().ended(0);
        let names: Vec<_> = files(&place.volume()).into_keys().collect();
        assert_eq!(names, ["a", "mine", "z"], "{what}");
        assert_eq!(files(&place.volume())["a"], b"data/a", "{what}");
        ossvp().arg("verify").arg(place.volume()).run().ended(0);
        shown_by(
            &ran,
            PART,
            &format!("the volume holds a part of {what}"),
            "names both and what to do; --force removes that source's files, leaves others' alone, and finishes",
        );
    }
}

/// Fills a volume, and gives it another marker.
fn marked(server: &OssServer, place: &Place, marker: impl AsRef<[u8]>) {
    populate(server, SOURCE, &place.volume()).run().ended(0);
    std::fs::write(place.volume().join(".ossvp/complete.json"), marker).unwrap();
    server.reset_stats();
}

#[test]
fn a_marker_of_a_newer_version_is_refused_and_garbage_is_none() {
    let server = server();
    server.put(BUCKET, "data/a", "content");
    let newer = r#"{"version": 2, "something": "else"}"#;
    let place = Place::new();
    marked(&server, &place, newer);
    let ran = populate(&server, SOURCE, &place.volume()).run().ended(8);
    let ran = ran.says(".ossvp/complete.json in the volume is of version 2, this ossvp writes 1; --force discards it");
    ossvp().arg("verify").arg(place.volume()).run().ended(8);
    populate(&server, SOURCE, &place.volume()).arg("--force").run().ended(0);
    ossvp().arg("verify").arg(place.volume()).run().ended(0);
    shown_by(
        &ran,
        PART,
        "the marker is of a newer version of ossvp",
        "names both versions; --force discards it and finishes",
    );
    let long = vec![b' '; 5 << 20];
    let garbage: [&[u8]; 9] = [
        b"",
        b"garbage",
        b"{",
        b"{}",
        b"[]",
        b"null",
        br#"{"version": 1}"#,
        b"\xff\xfe\x00",
        &long,
    ];
    for garbage in garbage {
        let place = Place::new();
        marked(&server, &place, garbage);
        let ran = populate(&server, SOURCE, &place.volume()).run().ended(0);
        assert_eq!(ran.report().figures.objects_kept, 1, "{garbage:?}");
        assert!(ran.stderr.contains("the marker cannot be read"), "{garbage:?}: {}", ran.stderr);
        ossvp().arg("verify").arg(place.volume()).run().ended(0);
    }
    shown(
        PART,
        "the marker is garbage, or torn",
        "counts as none: every file is looked at, and kept",
        0,
    );
}

#[test]
fn a_marker_that_says_less_than_is_asked_for_is_not_enough() {
    let (server, place) = (server(), Place::new());
    server.put(BUCKET, "data/a", "content");
    server.put_with(BUCKET, "data/b", "content", PutOptions::new().without_crc().in_parts(4));
    let run = |more: &[&str]| populate(&server, SOURCE, &place.volume()).args(more).run();
    let gets = || server.gets(BUCKET, "data/a") + server.gets(BUCKET, "data/b");
    run(&["--verify", "off"]).ended(0);
    assert_eq!(gets(), 2);
    // nothing was compared: all is fetched again
    run(&[]).ended(0);
    assert_eq!(gets(), 4);
    assert!(run(&[]).ended(0).stderr.contains("already complete"));
    // SHA-256 is computed from what is there
    run(&["--sha256"]).ended(0);
    assert_eq!(gets(), 4);
    assert!(place.volume().join(".ossvp/SHA256SUMS").exists());
    assert!(run(&["--sha256"]).ended(0).stderr.contains("already complete"));
    // of b the source states nothing
    let ran = run(&["--verify", "require"]).ended(6).says("has no checksum that the source states");
    assert!(!place.is_marked());
    run(&[]).ended(0);
    shown(
        PART,
        "the volume is complete, but --verify or --sha256 now ask for more",
        "the marker goes first, what is missing is done",
        0,
    );
    shown_by(
        &ran,
        PART,
        "the volume is complete, --verify require is asked for, and the source states no checksum of an object",
        "names the object, and the volume has no marker",
    );
}

#[test]
fn a_manifest_that_is_garbage_is_begun_anew() {
    let server = server();
    for key in ["data/a", "data/d/b"] {
        server.put(BUCKET, key, key);
    }
    let place = Place::new();
    let manifest = place.volume().join(".ossvp/manifest");
    populate(&server, SOURCE, &place.volume()).run().ended(0);
    let sound = std::fs::read(&manifest).unwrap();
    let header = sound.iter().position(|byte| *byte == b'\n').unwrap();
    let flipped = |at: usize| {
        let mut bytes = sound.clone();
        bytes[at] ^= 0x20;
        bytes
    };
    let long = vec![b'x'; 3 << 20];
    let garbage = [
        Vec::new(),
        b"garbage\n".to_vec(),
        b"\n\n\n".to_vec(),
        vec![0; 10_000],
        vec![0xff; 10_000],
        long,
        sound[..header / 2].to_vec(),
        flipped(3),
        flipped(header / 2),
        flipped(header + 3),
        flipped(sound.len() - 5),
        [&sound[..], &sound[..]].concat(),
        [&sound[..], b"f\t"].concat(),
    ];
    for garbage in garbage {
        let _ = std::fs::remove_file(place.volume().join(".ossvp/complete.json"));
        std::fs::write(&manifest, &garbage).unwrap();
        populate(&server, SOURCE, &place.volume()).run().ended(0);
        assert_eq!(files(&place.volume()).len(), 2);
        ossvp().arg("verify").arg(place.volume()).run().ended(0);
    }
    shown(
        PART,
        "the manifest is garbage, or torn",
        "is read up to there; what it no longer records is compared with the source or fetched again",
        0,
    );
}

#[test]
fn a_manifest_of_a_newer_version_is_refused() {
    let (server, place) = (server(), Place::new());
    server.put(BUCKET, "data/a", "a");
    let manifest = place.volume().join(".ossvp/manifest");
    for header in ["ossvp-manifest\t2\t{\"something\":\"else\"}", "ossvp-manifest\t2"] {
        std::fs::create_dir_all(place.volume().join(".ossvp")).unwrap();
        let text = sealed(header) + &sealed("new\tline");
        std::fs::write(&manifest, &text).unwrap();
        let ran = populate(&server, SOURCE, &place.volume()).run().ended(8);
        let said = ".ossvp/manifest in the volume is of version 2, this ossvp writes 1; --force discards it";
        let ran = ran.says(said);
        assert_eq!(std::fs::read_to_string(&manifest).unwrap(), text);
        populate(&server, SOURCE, &place.volume()).arg("--force").run().ended(0);
        ossvp().arg("verify").arg(place.volume()).run().ended(0);
        std::fs::remove_dir_all(place.volume()).unwrap();
        shown_by(
            &ran,
            PART,
            "the manifest is of a newer version of ossvp",
            "names both versions, and is left as it is; --force discards it and finishes",
        );
    }
}

#[test]
fn a_manifest_that_someone_wrote_leads_nowhere() {
    let server = server();
    server.put(BUCKET, "data/a", "a");
    server.put(BUCKET, "data/z", "z");
    let template = Place::new();
    populate(&server, SOURCE, &template.volume()).run().ended(0);
    let sound = std::fs::read_to_string(template.volume().join(".ossvp/manifest")).unwrap();
    let header = sound.lines().next().unwrap();
    let begin = sound.lines().nth(1).unwrap();
    let long = "x/".repeat(3000);
    let paths = [
        "../canary",
        "../../canary",
        "a/../../canary",
        "/etc/hostname",
        "//canary",
        ".ossvp/lock",
        ".ossvp/staged",
        ".OSSVP/lock",
        ".",
        "..",
        "",
        "%00",
        "canary%00",
        "way/canary",
        "way/inner",
        &long,
    ];
    for path in paths {
        for kind in ["f", "d"] {
            let place = Place::new();
            std::fs::create_dir_all(place.file("outside/inner")).unwrap();
            std::fs::write(place.file("canary"), "canary").unwrap();
            std::fs::write(place.file("outside/canary"), "canary").unwrap();
            std::fs::create_dir_all(place.volume().join(".ossvp")).unwrap();
            std::os::unix::fs::symlink(place.file("outside"), place.volume().join("way")).unwrap();
            let canaries = ["canary", "outside/canary"].map(|name| place.file(name));
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000);
            for canary in &canaries {
                let file = std::fs::File::options().write(true).open(canary).unwrap();
                file.set_modified(time).unwrap();
            }
            // as if committed: its size, its time, its CRC; the key is no longer listed
            let line = match kind {
                "f" => format!("f\t0000000000000000\t6\te\t1700000000000\tcrc64\t-\t{path}\t=m"),
                _ => format!("d\t{path}\tm"),
            };
            let text = format!("{header}\n{begin}\n{}", sealed(&line));
            std::fs::write(place.volume().join(".ossvp/manifest"), text).unwrap();
            let ran = populate(&server, SOURCE, &place.volume()).run().ended(0);
            let why = format!("{kind} {path}: {}", ran.stderr);
            for canary in canaries {
                assert_eq!(std::fs::read(&canary).unwrap(), b"canary", "{why}");
            }
            assert!(place.file("outside/inner").exists(), "{why}");
            assert!(place.volume().join(".ossvp/lock").exists(), "{why}");
            assert_eq!(std::fs::read(place.volume().join("z")).unwrap(), b"z", "{why}");
            ossvp().arg("verify").arg(place.volume()).run().ended(0);
        }
    }
    // numbers that cannot be
    let max = u64::MAX;
    for body in [
        format!("s\t{max}"),
        format!("u\t{max}"),
        "s\t-1".to_owned(),
        format!("f\tffffffffffffffff\t{max}\te\t{}\tcrc64\t-\tm\t=", i64::MIN),
        format!("f\tffffffffffffffff\t{max}\te\t{}\tcrc64\t-\ta\t=", i64::MAX),
        "x\tnothing".to_owned(),
        "b\t\t".to_owned(),
    ] {
        let place = Place::new();
        std::fs::create_dir_all(place.volume().join(".ossvp")).unwrap();
        let line = sealed(&body);
        let text = format!("{header}\n{begin}\n{line}{line}");
        std::fs::write(place.volume().join(".ossvp/manifest"), text).unwrap();
        populate(&server, SOURCE, &place.volume()).run().ended(0);
        assert_eq!(files(&place.volume()).len(), 2, "{body}");
    }
    shown(
        PART,
        "someone wrote lines into the manifest, for paths outside, through symlinks or in .ossvp, or with impossible numbers",
        "nothing outside is looked at, removed or written; the volume is filled",
        0,
    );
}

#[test]
fn what_stands_in_the_place_of_ossvps_own_directories_is_named() {
    let server = server();
    server.put(BUCKET, "data/a", "a");
    for (name, shards) in [
        (".ossvp", &[][..]),
        (".ossvp/staged", &[]),
        (".ossvp/shard-0-of-2", &["--shard", "0/2"]),
        (".ossvp/shard-1-of-3", &[]),
    ] {
        let place = Place::new();
        let at = place.volume().join(name);
        std::fs::create_dir_all(at.parent().unwrap()).unwrap();
        std::fs::write(&at, "mine").unwrap();
        let run = || populate(&server, SOURCE, &place.volume()).args(shards).run();
        let ran = run().ended(8);
        let ran = ran.says(&format!("{name} is a file where a directory must be; remove it"));
        assert_eq!(std::fs::read(&at).unwrap(), b"mine");
        std::fs::remove_file(&at).unwrap();
        run().ended(0);
        shown_by(
            &ran,
            PART,
            "a file stands where .ossvp or a directory in it must be",
            "names it, and leaves it alone; removed, the next run finishes",
        );
    }
    // directories that no one uses, or that are none of a shard
    let place = Place::new();
    for name in ["shard-0-of-2", "shard-7-of-3", "shard-x-of-y", "shard-", "else"] {
        std::fs::create_dir_all(place.volume().join(".ossvp").join(name)).unwrap();
    }
    populate(&server, SOURCE, &place.volume()).run().ended(0);
    ossvp().arg("verify").arg(place.volume()).run().ended(0);
    shown(
        PART,
        "empty directories of workers that never filled anything are left",
        "are no obstacle",
        0,
    );
}

#[test]
fn force_discards_what_other_workers_had_staged() {
    let (server, place) = (server(), Place::new());
    server.put(BUCKET, "data/a", "a");
    server.put(BUCKET, "data/large", support::bytes(1, 300_000));
    server.fault(Fault::get("data/large").range_start(262_144).status(403, "AccessDenied"));
    let mut part = 0;
    for shard in ["0/2", "1/2"] {
        let flags = ["--part-size", "64KiB", "--shard", shard];
        part += populate(&server, SOURCE, &place.volume()).args(flags).run().code;
    }
    assert_eq!(part, 3, "one of the two");
    server.clear_faults();
    populate(&server, SOURCE, &place.volume()).run().ended(8);
    populate(&server, SOURCE, &place.volume()).arg("--force").run().ended(0);
    for shard in 0..2 {
        let staged = place.volume().join(format!(".ossvp/shard-{shard}-of-2/staged"));
        assert_eq!(std::fs::read_dir(staged).unwrap().count(), 0);
    }
    shown(
        PART,
        "--force discards what several workers had begun",
        "their staged files go too, and take no room",
        0,
    );
}
