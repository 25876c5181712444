//! Memory does not grow with the source. The peak is that of the `ossvp` process alone, as its
//! report gives it (`VmHWM`); the server is in this one.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::{Mutex, PoisonError};

use oss_server::{Generated, OssServer, PutOptions, Sizes};
use support::{BUCKET, ID, Place, Ran, Run, SECRET, populate};

const MIB: u64 = 1 << 20;

/// A server that keeps no log: it would grow with every request.
fn server() -> OssServer {
    OssServer::builder().bucket(BUCKET).credentials(ID, SECRET).log(false).start_blocking().unwrap()
}

fn generate(server: &OssServer, prefix: &str, count: u64, size: u64) {
    let sizes = Sizes::Fixed(size);
    let prefix = prefix.to_owned();
    server.generate(BUCKET, Generated { prefix, count, sizes, seed: 1, fan_out: 1000 });
}

#[track_caller]
fn within(ran: &Ran, what: &str, limit: u64) {
    let figures = ran.report().figures;
    let peak = figures.peak_rss_bytes;
    println!("{what}: peak of {} KiB, {:.1} s", peak / 1024, figures.seconds);
    assert!(peak > 0, "there is no VmHWM here, so this proves nothing");
    assert!(peak < limit, "{what}: {} MiB, at most {} MiB", peak / MIB, limit / MIB);
}

/// One at a time: how high the level of concurrency goes, and with it memory, depends on what else the
/// machine does.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn a_million_keys_are_planned_within_64_mib() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let server = server();
    let place = Place::new();
    generate(&server, "data/", 1_000_000, 1000);
    let ran =
        populate(&server, "oss://bucket/data/", &place.volume()).arg("--dry-run").run().ended(0);
    let plan = ran.report().plan.unwrap();
    assert_eq!((plan.objects, plan.bytes), (1_000_000, 1_000_000_000));
    within(&ran, "a million keys planned", 64 * MIB);
}

/// At whatever level of concurrency is found: a request that waits holds no buffer.
#[test]
fn a_volume_is_filled_within_96_mib() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let server = server();
    let place = Place::new();
    server.put_synthetic(BUCKET, "data/large", 300 * MIB, 1, PutOptions::new());
    generate(&server, "data/small/", 3000, 16 << 10);
    let ran = populate(&server, "oss://bucket/data/", &place.volume()).run().ended(0);
    assert_eq!(ran.marker().objects, 3001);
    assert_eq!(ran.marker().bytes, 300 * MIB + 3000 * (16 << 10));
    within(&ran, "an object of 300 MiB and 3000 small ones filled", 96 * MIB);
}
