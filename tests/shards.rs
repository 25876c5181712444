//! Several workers fill one volume, each its share; the last of them completes it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;

use faulty::calls::{self, End, Verdict, trace};
use oss_server::{Fault, Operation, OssServer, PutOptions};
use support::cases::{Part, not_here, shown, shown_by};
use support::{BUCKET, Place, Ran, Run, bytes, files, ossvp, populate, server, wait_until};

fn put(server: &OssServer, objects: u64) -> BTreeMap<String, Vec<u8>> {
    let mut expected = BTreeMap::new();
    for n in 0..objects {
        let (path, body) = (format!("d{}/{n}", n % 7), bytes(n, (n * 37 % 5000) as usize));
        server.put(BUCKET, &format!("data/{path}"), body.clone());
        expected.insert(path, body);
    }
    expected
}

fn shard(server: &OssServer, volume: &Path, shard: &str, more: &[&str]) -> Ran {
    populate(server, "oss://bucket/data/", volume).args(["--shard", shard]).args(more).run()
}

#[test]
fn the_last_shard_completes_the_volume() {
    let server = server();
    let place = Place::new();
    let expected = put(&server, 200);
    std::thread::scope(|scope| {
        for n in 0..4 {
            let (server, volume) = (&server, place.volume());
            scope.spawn(move || shard(server, &volume, &format!("{n}/4"), &["--sha256"]).ended(0));
        }
    });
    assert_eq!(files(&place.volume()), expected);
    let marker = std::fs::read(place.volume().join(".ossvp/complete.json")).unwrap();
    let marker: ossvp::handoff::Marker = serde_json::from_slice(&marker).unwrap();
    assert_eq!((marker.objects, marker.verified.crc64, marker.shards), (200, 200, 4));
    let verified = ossvp().arg("verify").arg(place.volume()).run().ended(0);
    assert!(verified.stderr.contains("200 files"), "{}", verified.stderr);
    let sums = std::process::Command::new("sha256sum")
        .args(["--check", "--quiet", "--strict", ".ossvp/SHA256SUMS"])
        .current_dir(place.volume())
        .output()
        .unwrap();
    assert!(sums.status.success(), "{sums:?}");
    // a whole run finds it complete
    server.reset_stats();
    populate(&server, "oss://bucket/data/", &place.volume()).run().ended(0);
    assert_eq!(server.stats().requests, 0);

    std::fs::write(place.volume().join("d1/1"), "changed").unwrap();
    ossvp().arg("verify").arg(place.volume()).run().ended(6);
}

#[test]
fn one_shard_alone_completes_nothing() {
    let server = server();
    let place = Place::new();
    put(&server, 20);
    let ran = shard(&server, &place.volume(), "0/2", &[]).ended(0);
    assert!(ran.outcome().message.starts_with("shard 0/2 complete"), "{:?}", ran.outcome());
    assert!(!place.volume().join(".ossvp/complete.json").exists());
    ossvp().arg("verify").arg(place.volume()).run().ended(8);
    // and again: its own share is done
    server.reset_stats();
    shard(&server, &place.volume(), "0/2", &[]).ended(0);
    assert_eq!(server.stats().requests, 0);
}

#[test]
fn shards_that_saw_different_listings_are_found_out() {
    let server = server();
    let place = Place::new();
    put(&server, 20);
    shard(&server, &place.volume(), "0/2", &[]).ended(0);
    server.put(BUCKET, "data/late", "arrived between the two");
    shard(&server, &place.volume(), "1/2", &[]).ended(5).says("different listings");
    assert!(!place.volume().join(".ossvp/complete.json").exists());
    // the next round agrees
    shard(&server, &place.volume(), "0/2", &[]).ended(0);
    shard(&server, &place.volume(), "1/2", &[]).ended(0);
    assert_eq!(files(&place.volume()).len(), 21);
    ossvp().arg("verify").arg(place.volume()).run().ended(0);
}

#[test]
fn a_whole_run_and_a_shard_exclude_each_other() {
    let server = server();
    let place = Place::new();
    put(&server, 5);
    server.fault(Fault::get_prefix("data/").stall_forever_after(5));
    let mut child = populate(&server, "oss://bucket/data/", &place.volume())
        .args(["--shard", "0/2"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while !place.volume().join(".ossvp/shard-0-of-2/manifest").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it should hang");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let whole = populate(&server, "oss://bucket/data/", &place.volume()).run();
    whole.ended(4).says("another worker holds the volume");
    shard(&server, &place.volume(), "0/2", &[]).ended(4);
    child.kill().unwrap();
    child.wait().unwrap();
    server.clear_faults();
    for n in ["0/2", "1/2"] {
        shard(&server, &place.volume(), n, &[]).ended(0);
    }
    ossvp().arg("verify").arg(place.volume()).run().ended(0);
    shown(
        Part::Volume,
        "a whole run is started beside a shard, or the same shard twice",
        "the second names the volume and ends; once the first is gone, running again finishes",
        4,
    );
}

#[test]
fn an_object_that_changes_hands_between_two_rounds_is_not_lost() {
    let server = server();
    let place = Place::new();
    let mut expected = put(&server, 60);
    shard(&server, &place.volume(), "0/2", &[]).ended(0);
    // in front of all others and heavy: every later object may change hands
    let body = bytes(1000, 300_000);
    server.put(BUCKET, "data/a-first", body.clone());
    expected.insert("a-first".to_owned(), body);
    shard(&server, &place.volume(), "1/2", &[]).ended(5).says("different listings");
    assert!(!place.volume().join(".ossvp/complete.json").exists());
    shard(&server, &place.volume(), "0/2", &[]).ended(0);
    shard(&server, &place.volume(), "1/2", &[]).ended(0);
    assert_eq!(files(&place.volume()), expected);
    let verified = ossvp().arg("verify").arg(place.volume()).run().ended(0);
    assert!(verified.stderr.contains("61 files"), "{}", verified.stderr);
}

#[test]
fn another_number_of_workers_is_refused_until_one_discards_the_rest() {
    let server = server();
    let place = Place::new();
    let expected = put(&server, 20);
    let whole = || populate(&server, "oss://bucket/data/", &place.volume());
    shard(&server, &place.volume(), "0/2", &[]).ended(0);
    shard(&server, &place.volume(), "0/3", &[]).ended(8).says("2 workers filled, not 3 workers");
    whole().run().ended(8).says("2 workers filled, not one worker");
    shard(&server, &place.volume(), "0/3", &["--force"]).ended(8);
    whole().arg("--force").run().ended(0);
    assert_eq!(files(&place.volume()), expected);
    std::fs::remove_file(place.volume().join(".ossvp/complete.json")).unwrap();
    let ran = shard(&server, &place.volume(), "0/2", &[]).ended(8);
    let ran = ran.says("one worker filled, not 2 workers");
    shown_by(
        &ran,
        Part::Past,
        "the volume was begun by another number of workers",
        "names both numbers and what to do; one run with --force and without --shard discards and fills it",
    );
}

#[test]
fn shards_that_discard_another_source_leave_each_others_new_files_alone() {
    let server = server();
    let place = Place::new();
    for n in 0..10 {
        server.put(BUCKET, &format!("other/{n}"), bytes(n, 100));
    }
    // in front of all others, so that every path changes hands
    let mut expected = BTreeMap::new();
    for (n, path) in ["+", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9"].iter().enumerate() {
        let body = bytes(100 + n as u64, 200);
        server.put(BUCKET, &format!("data/{path}"), body.clone());
        expected.insert((*path).to_owned(), body);
    }
    for n in ["0/2", "1/2"] {
        populate(&server, "oss://bucket/other/", &place.volume())
            .args(["--shard", n])
            .run()
            .ended(0);
    }
    // as if both had been stopped before their last step
    for own in ["", "shard-0-of-2/", "shard-1-of-2/"] {
        std::fs::remove_file(place.volume().join(format!(".ossvp/{own}complete.json"))).unwrap();
    }
    for n in ["0/2", "1/2"] {
        shard(&server, &place.volume(), n, &[]).ended(8);
    }
    for n in ["1/2", "0/2"] {
        shard(&server, &place.volume(), n, &["--force"]).ended(0);
    }
    let found = files(&place.volume());
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    assert!(found == expected, "a file has wrong bytes");
    let verified = ossvp().arg("verify").arg(place.volume()).run().ended(0);
    shown_by(
        &verified,
        Part::Past,
        "two shards with --force, one after the other, over a part of another source",
        "the second removes nothing that the first has fetched",
    );
}

/// Numbers from 0 to 1, the same in every run.
fn fractions() -> impl Iterator<Item = f64> {
    let words = (0..).map(|seed| u64::from_le_bytes(bytes(seed, 8).try_into().unwrap()));
    words.map(|word| (word >> 11) as f64 / (1_u64 << 53) as f64)
}

/// Asks each of `count` workers what it would fetch, and checks that together it is everything, and
/// that none has more than a `count`-th by more than a twentieth and one object.
fn is_balanced(sizes: &[u64], counts: &[u32]) {
    let server = server();
    for (n, size) in sizes.iter().enumerate() {
        server.put_synthetic(BUCKET, &format!("data/{n:05}"), *size, 1, PutOptions::new());
    }
    let (sum, largest) = (sizes.iter().sum::<u64>(), *sizes.iter().max().unwrap());
    let place = Place::new();
    for count in counts {
        let planned = |n: &u32| {
            let share = format!("{n}/{count}");
            let plan = shard(&server, &place.volume(), &share, &["--dry-run"]).ended(0).report();
            let plan = plan.plan.unwrap();
            (plan.objects, plan.bytes)
        };
        let (objects, shares): (Vec<u64>, Vec<u64>) = (0..*count).map(|n| planned(&n)).unzip();
        assert_eq!(objects.iter().sum::<u64>(), sizes.len() as u64);
        assert_eq!(shares.iter().sum::<u64>(), sum);
        let (mean, most) = (sum / u64::from(*count), *shares.iter().max().unwrap());
        let beyond = 100.0 * (most as f64 / mean as f64 - 1.0);
        println!("{count} shares of {sum} bytes: the largest is {beyond:.2} % above the mean");
        assert!(most <= mean + mean / 20 + largest, "{shares:?}");
    }
    assert!(!place.volume().exists());
}

#[test]
fn shares_of_ten_thousand_objects_of_all_sizes_are_planned_alike() {
    // log-normal: half of them below 256 KiB, one in forty above 12 MiB
    let mut fractions = fractions();
    let sizes: Vec<u64> = (0..10_000)
        .map(|_| {
            let (radius, angle) = (fractions.next().unwrap(), fractions.next().unwrap());
            let normal =
                (-2.0 * (1.0 - radius).ln()).sqrt() * (std::f64::consts::TAU * angle).cos();
            (262_144.0 * (2.0 * normal).exp()) as u64
        })
        .collect();
    is_balanced(&sizes, &[2, 4, 8]);
}

#[test]
fn shares_of_forty_large_files_are_planned_alike() {
    let sizes: Vec<u64> =
        fractions().take(40).map(|part| 1_000_000_000 + (9e9 * part) as u64).collect();
    is_balanced(&sizes, &[2, 4, 8]);
}

#[test]
fn a_share_of_nothing_is_complete_too() {
    let server = server();
    let place = Place::new();
    let expected = put(&server, 2);
    for n in 0..4 {
        let share = format!("{n}/4");
        let ran = shard(&server, &place.volume(), &share, &[]).ended(0);
        assert_eq!(ran.outcome().whole, n == 3, "{:?}", ran.outcome());
    }
    assert_eq!(files(&place.volume()), expected);
}

#[test]
fn a_shard_that_is_killed_is_replaced_and_goes_on() {
    let server = server();
    let place = Place::new();
    let expected = put(&server, 40);
    // the last object of all: of one of the two
    let held = expected.keys().next_back().unwrap();
    let wait = [("x-oss-qos-delay-time", "300")];
    server.fault(Fault::get(&format!("data/{held}")).status_with(503, "ServiceUnavailable", &wait));
    let begin = |n: u32| {
        let mut command = populate(&server, "oss://bucket/data/", &place.volume());
        command.args(["--shard", &format!("{n}/2")]);
        let (out, log) = (Stdio::null(), Stdio::null());
        command.stdout(out).stderr(log).spawn().unwrap()
    };
    let mut workers = [begin(0), begin(1)];
    wait_until("all other objects are there", || {
        place.volume().exists() && files(&place.volume()).len() + 1 >= expected.len()
    });
    wait_until("one is done", || {
        workers.iter_mut().any(|worker| worker.try_wait().unwrap().is_some())
    });
    let at = workers.iter_mut().position(|worker| worker.try_wait().unwrap().is_none()).unwrap();
    workers[at].kill().unwrap();
    workers[at].wait().unwrap();
    assert!(!place.is_marked());
    server.clear_faults();
    server.reset_stats();
    let ran = shard(&server, &place.volume(), &format!("{at}/2"), &[]).ended(0);
    assert!(ran.outcome().whole);
    assert_eq!(files(&place.volume()), expected);
    // it fetched what was held, and nothing else
    assert_eq!(server.stats().count(Operation::GetObject), 1);
}

#[test]
fn the_volume_is_not_marked_by_a_marker_that_its_shard_takes_back() {
    if let Err(error) = calls::supported() {
        return not_here(format!("no process can be traced: {error}"));
    }
    let server = server();
    let place = Place::new();
    put(&server, 4);
    shard(&server, &place.volume(), "0/2", &[]).ended(0);
    let command = |n: &str, more: &[&str]| {
        let mut command = populate(&server, "oss://bucket/data/", &place.volume());
        command.args(["--shard", n]).args(more);
        command
    };
    // the second shard has seen all markers and is about to write the volume's, when the first one
    // begins again and finds another object
    let mut again = None;
    let said = tempfile::tempfile().unwrap();
    let end = trace(&command("1/2", &[]), &place.volume(), said, |call| {
        if call.path == Path::new(".ossvp/complete.json.new") && again.is_none() {
            server.put(BUCKET, "data/d0/0", "new");
            let mut command = command("0/2", &["--force"]);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            let (sender, receiver) = std::sync::mpsc::channel();
            let child = std::thread::spawn(move || {
                let mut child = command.spawn().unwrap();
                sender.send(format!(" {} ", child.id())).unwrap();
                child.wait().unwrap()
            });
            let id = receiver.recv().unwrap();
            wait_until("the first shard waits for the second", || {
                let locks = std::fs::read_to_string("/proc/locks").unwrap();
                let mut locks = locks.lines();
                locks.any(|lock| lock.contains("-> FLOCK") && lock.contains(&id))
                    || child.is_finished()
            });
            again = Some(child);
        }
        Verdict::Pass
    });
    assert_eq!(end.unwrap(), End::Exited(0));
    // it saw another listing than the second one
    assert_eq!(again.unwrap().join().unwrap().code(), Some(5));
    assert!(!place.is_marked());
    for n in ["0/2", "1/2"] {
        shard(&server, &place.volume(), n, &[]).ended(0);
    }
    assert_eq!(files(&place.volume())["d0/0"], b"new");
    ossvp().arg("verify").arg(place.volume()).run().ended(0);
    shown(
        Part::Past,
        "a shard with --force while the last one is about to mark the volume",
        "it waits, takes the marker away, and says if it saw another listing",
        5,
    );
}
