//! What single parts of the work cost: a checksum, a page of a listing, a signature, the place of a
//! key, and one whole transfer.
//!
//! `cargo bench --bench parts`, on a machine that does nothing else; a word as an argument chooses.
#![allow(clippy::unwrap_used, reason = "a measurement may panic")]

use std::fmt::Write;
use std::hint::black_box;
use std::process::{Command, Stdio};

use chrono::DateTime;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use oss_server::{Generated, OssServer, PutOptions, Sizes};
use ossvp::handoff::Unmappable;
use ossvp::keys::{Dialect, Key, Prefix};
use ossvp::store::measuring::{Signer, page};
use ossvp::worker::layout::Layout;
use ossvp::worker::measuring::{combined, crc64};

const MIB: u64 = 1 << 20;

fn checksums(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("crc64");
    let bytes: Vec<u8> = (0..MIB).map(|at| (at % 251) as u8).collect();
    group.throughput(Throughput::Bytes(MIB));
    group.bench_function("of 1 MiB", |bencher| bencher.iter(|| crc64(black_box(&bytes))));
    group.throughput(Throughput::Elements(1));
    group.bench_function("combined with a part of 8 MiB", |bencher| {
        bencher.iter(|| combined(black_box(1), black_box(2), 8 * MIB));
    });
    group.finish();
}

/// A page as OSS writes it.
fn listing() -> String {
    let mut text =
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListBucketResult><Name>bucket</Name>\
                    <EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>\
                    <KeyCount>1000</KeyCount>"
            .to_owned();
    for number in 0..1000 {
        write!(
            text,
            "<Contents><Key>data%2F{number:04}.bin</Key><LastModified>2025-01-01T00:00:00.000Z\
             </LastModified><ETag>\"{number:032X}\"</ETag><Type>Normal</Type><Size>16384</Size>\
             <StorageClass>Standard</StorageClass></Contents>"
        )
        .unwrap();
    }
    text + "</ListBucketResult>"
}

fn pages(criterion: &mut Criterion) {
    let listing = listing();
    assert_eq!(page(listing.as_bytes(), Dialect::Oss), Some(1000));
    let mut group = criterion.benchmark_group("listing");
    group.throughput(Throughput::Elements(1000));
    group.bench_function("page of 1,000 keys", |bencher| {
        bencher.iter(|| page(black_box(listing.as_bytes()), Dialect::Oss));
    });
    group.finish();
}

fn signatures(criterion: &mut Criterion) {
    let time = DateTime::from_timestamp(1_750_000_000, 0).unwrap();
    let signer = Signer::new("secret", time);
    criterion.bench_function("sign one GET", |bencher| {
        bencher.iter(|| signer.get(black_box("data/d01/f0001"), time));
    });
}

fn places(criterion: &mut Criterion) {
    let keys = |make: fn(u32) -> String| -> Vec<Key> {
        (0..1000).map(|number| Key::new(make(number)).unwrap()).collect()
    };
    let plain = keys(|number| format!("data/{:02}/{number:04}.bin", number / 100));
    let escaped = keys(|number| format!("data/{number:04}//100%"));
    let mut group = criterion.benchmark_group("layout");
    group.throughput(Throughput::Elements(1000));
    for (name, keys) in [("1,000 plain keys", plain), ("1,000 escaped keys", escaped)] {
        group.bench_function(name, |bencher| {
            let layout = || Layout::new(Prefix::new("data/"), Unmappable::Escape);
            bencher.iter_batched(
                layout,
                |mut layout| keys.iter().for_each(|key| drop(black_box(layout.place(key, 1)))),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

/// The program as it is run, process and sync included.
fn transfer(criterion: &mut Criterion) {
    let server = OssServer::builder().bucket("bucket").credentials("id", "secret").log(false);
    let server = server.start_blocking().unwrap();
    server.put_synthetic("bucket", "large/object", 64 * MIB, 1, PutOptions::new());
    let small = Generated {
        prefix: "small/".to_owned(),
        count: 1000,
        sizes: Sizes::Fixed(16 << 10),
        seed: 1,
        fan_out: 100,
    };
    server.generate("bucket", small);
    let mut group = criterion.benchmark_group("transfer");
    group.sample_size(10);
    for (source, bytes) in [("large/", 64 * MIB), ("small/", 1000 * (16 << 10))] {
        group.throughput(Throughput::Bytes(bytes));
        group.bench_function(source, |bencher| {
            bencher.iter_batched_ref(
                // in memory where that can be had: a disk has its own moods
                || tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap(),
                |directory| {
                    let status = Command::new(env!("CARGO_BIN_EXE_ossvp"))
                        .args(["populate", &format!("oss://bucket/{source}")])
                        .arg(directory.path().join("volume"))
                        .args(["--endpoint", &server.endpoint(), "--region", server.region()])
                        .args(["--progress", "none"])
                        .env_clear()
                        .envs([("OSS_ACCESS_KEY_ID", "id"), ("OSS_ACCESS_KEY_SECRET", "secret")])
                        .stderr(Stdio::null())
                        .status();
                    assert!(status.unwrap().success());
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, checksums, pages, signatures, places, transfer);
criterion_main!(benches);
