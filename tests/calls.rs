//! What a transfer asks of the kernel: system calls for each object and for each MiB, which do not
//! depend on how fast or how busy the machine is. Calls by which threads wait and wake are left out:
//! those do.
//!
//! A bound that no longer holds is a regression, or a reason to change it here.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeMap;
use std::process::Command;

use oss_server::{Generated, OssServer, PutOptions, Sizes};
use support::{BUCKET, ID, Place, SECRET};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Waiting and waking (`write`, to an eventfd: files are written by `pwrite64`, sockets by `sendto`): how
/// often depends on who is faster.
const WAITS: [&str; 5] = ["epoll_wait", "futex", "sched_yield", "restart_syscall", "write"];

fn server() -> OssServer {
    OssServer::builder().bucket(BUCKET).credentials(ID, SECRET).log(false).start_blocking().unwrap()
}

/// The calls of a whole run, by name. The page cache takes the bytes, so that the file system below
/// makes no difference.
fn calls(server: &OssServer, prefix: &str) -> BTreeMap<String, u64> {
    let place = Place::new();
    let trace = place.file("trace");
    let mut command = Command::new("strace");
    command
        .args(["-f", "-q", "-c", "-U", "calls,name", "-o"])
        .arg(&trace)
        .arg(env!("CARGO_BIN_EXE_ossvp"))
        .arg("populate")
        .arg(format!("oss://{BUCKET}/{prefix}"))
        .arg(place.volume())
        .args(["--endpoint", &server.endpoint(), "--region", "cn-hangzhou"])
        .args(["--direct", "off", "--progress", "none", "--concurrency", "16"])
        .env_clear()
        .env("OSS_ACCESS_KEY_ID", ID)
        .env("OSS_ACCESS_KEY_SECRET", SECRET);
    let ran = command.output().expect("strace is there (scripts/setup installs it)");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let trace = std::fs::read_to_string(trace).unwrap();
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let count = words.next()?.parse().ok()?;
        Some((words.next()?.to_owned(), count))
    };
    trace.lines().filter_map(line).filter(|(name, _)| name != "total").collect()
}

/// What `more` has beyond `base`, for each of `units`: start and end of a run cancel out.
#[track_caller]
fn within(
    what: &str,
    base: &BTreeMap<String, u64>,
    more: &BTreeMap<String, u64>,
    units: u64,
    bound: f64,
) {
    let each: Vec<(&str, f64)> = more
        .iter()
        .filter(|(name, _)| !WAITS.contains(&name.as_str()))
        .map(|(name, count)| {
            let count = *count as f64 - base.get(name).copied().unwrap_or_default() as f64;
            (name.as_str(), count / units as f64)
        })
        .filter(|(_, each)| *each >= 0.01)
        .collect();
    let sum: f64 = each.iter().map(|(_, each)| each).sum();
    println!("{what}: {sum:.2} calls, {each:.2?}");
    assert!(sum > 1.0, "{what}: nothing was traced");
    assert!(sum <= bound, "{what}: {sum:.2} calls, at most {bound}: {each:.2?}");
}

#[test]
fn a_small_object_takes_few_calls() {
    let server = server();
    for (prefix, count) in [("few/", 100), ("many/", 10_100)] {
        let sizes = Sizes::Fixed(16 * KIB);
        let prefix = prefix.to_owned();
        server.generate(BUCKET, Generated { prefix, count, sizes, seed: 1, fan_out: 100 });
    }
    let (few, many) = (calls(&server, "few/"), calls(&server, "many/"));
    // One each: send, receive, open, write, time, close, link, unlink, record. Of so many objects, because
    // a machine so busy that names look slow takes some hundreds more, for threads and their directories.
    within("an object of 16 KiB", &few, &many, 10_000, 9.5);
}

#[test]
fn a_large_object_takes_few_calls() {
    let server = server();
    for (key, size) in [("little/a", 16 * MIB), ("much/a", 272 * MIB)] {
        server.put_synthetic(BUCKET, key, size, 1, PutOptions::new());
    }
    let (little, much) = (calls(&server, "little/"), calls(&server, "much/"));
    // 4 to receive 256 KiB each, 4 to write them; a busy machine receives less at a time
    within("a MiB of a large object", &little, &much, 256, 24.0);
}
