//! One process that lives under faults all the time: descriptors, threads and memory stay flat.
//!
//! `OSSVP_SOAK_SECONDS` says how long (20 unless told otherwise; the long one has 1200).
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use oss_server::{Action, Fault, Operation, OssServer, PutOptions};
use rustix::process::{Pid, Signal, kill_process};
use support::cases::{Part, measured, shown};
use support::{BUCKET, Place, Ran, files, ossvp};

const ROLE: &str = "acs:ram::1234567890123456:role/worker";
const PROVIDER: &str = "acs:ram::1234567890123456:oidc-provider/ack-rrsa";

/// What the volume may grow to, in bytes, however long it takes.
const MOST_BYTES: u64 = 6_000_000_000;
const FASTEST: u64 = 20_000_000;
const MEAN_SIZE: u64 = 34_000;

/// Small objects, some in a few parts, a few in many: everywhere in the listing.
fn size(n: u64) -> u64 {
    match n % 500 {
        0 => 4 << 20,
        n if n % 50 == 0 => 300_000,
        n => n * 80,
    }
}

fn key(n: u64) -> String {
    format!("data/{:03}/{n:07}", n / 1000)
}

/// Faults that a run goes on through. Those that end it after three in a row are seldom enough.
fn disturb(server: &OssServer) {
    let get = || Fault::get_prefix("data/");
    let after = |after, ms| Action::Stall { after, ms };
    let status = |status, code: &str| Action::Status { status, code: code.into(), headers: vec![] };
    let mut faults = vec![
        (get(), 0.02, status(503, "ServiceUnavailable")),
        (get(), 0.01, status(500, "InternalError")),
        (get(), 0.01, status(429, "TooManyRequests")),
        (get(), 0.001, status(403, "RequestTimeTooSkewed")),
        (get(), 0.001, status(403, "SecurityTokenExpired")),
        (get(), 0.02, Action::ResetBeforeHeaders),
        (get(), 0.02, Action::ResetAfter(3000)),
        (get(), 0.02, Action::ResetAfter(50_000)),
        (get(), 0.01, Action::ShortBody(20_000)),
        (get(), 0.003, after(10, None)),
        (get(), 0.003, after(10_000, None)),
        (get(), 0.01, after(1000, Some(500))),
        (get(), 0.002, Action::Trickle { after: 500, ms: 100 }),
        (get(), 0.002, Action::Delay(60_000)),
        (get(), 0.002, Action::SlowHeader(100)),
        (get(), 0.002, Action::HugeHeader(10 << 20)),
        (get(), 0.01, Action::Trailing(100)),
        (get(), 0.01, Action::Raw("HTTP/1.1 200 OK\r\nContent-Le".to_owned())),
        (get(), 0.01, Action::IgnoreRange),
        (get(), 0.002, Action::FlipByte(100)),
        (get(), 0.002, Action::FlipHeader("etag".into(), 4)),
        (get(), 0.002, Action::LongBody(10)),
        (Fault::list(), 0.2, status(503, "ServiceUnavailable")),
        (Fault::list(), 0.1, Action::ResetAfter(10_000)),
        (Fault::list(), 0.1, Action::ShortBody(1000)),
        (Fault::list(), 0.05, Action::Delay(60_000)),
        (Fault::on(Operation::AssumeRole), 0.3, status(503, "ServiceUnavailable")),
    ];
    for (seed, (matcher, probability, action)) in faults.drain(..).enumerate() {
        server.fault(matcher.probability(probability, seed as u64).action(action));
    }
}

/// What a process has at one moment.
#[derive(Debug, Clone, Copy)]
struct Sample {
    /// Without open directories: those of the volume are kept for the next file, 256 of them.
    descriptors: u64,
    threads: u64,
    resident_kib: u64,
}

impl Sample {
    fn of(child: &Child) -> Self {
        let proc = Path::new("/proc").join(child.id().to_string());
        let entries = |name: &str| std::fs::read_dir(proc.join(name)).unwrap();
        let is_directory = |entry: &std::fs::DirEntry| entry.path().is_dir();
        let open = entries("fd").filter(|entry| !is_directory(entry.as_ref().unwrap()));
        let status = std::fs::read_to_string(proc.join("status")).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let resident = resident.trim().trim_end_matches(" kB").parse().unwrap();
        let threads = entries("task").count() as u64;
        Self { descriptors: open.count() as u64, threads, resident_kib: resident }
    }
}

/// The median and the most of one figure over some samples.
fn summary(samples: &[Sample], figure: impl Fn(&Sample) -> u64) -> (u64, u64) {
    let mut values: Vec<u64> = samples.iter().map(figure).collect();
    values.sort_unstable();
    (values[values.len() / 2], *values.last().unwrap())
}

#[test]
fn descriptors_threads_and_memory_stay_flat_under_faults() {
    let seconds = std::env::var("OSSVP_SOAK_SECONDS").ok();
    let seconds: u64 = seconds.map_or(20, |text| text.parse().unwrap());
    let rate = FASTEST.min(MOST_BYTES / seconds);
    // more than can come in this time: it never ends by itself
    let count = rate * seconds / MEAN_SIZE * 2 + 20_000;
    let server = OssServer::builder()
        .bucket(BUCKET)
        .oidc(ROLE, PROVIDER, "token")
        // refreshed every 10 s
        .lifetime(TimeDelta::seconds(60))
        .log(false)
        .start_blocking()
        .unwrap();
    for n in 0..count {
        server.put_synthetic(BUCKET, &key(n), size(n), n, PutOptions::new());
    }
    disturb(&server);
    let place = Place::new();
    std::fs::write(place.file("token"), "token").unwrap();
    let stderr = std::fs::File::create(place.file("stderr")).unwrap();
    let mut child = ossvp()
        .env("ALIBABA_CLOUD_ROLE_ARN", ROLE)
        .env("ALIBABA_CLOUD_OIDC_PROVIDER_ARN", PROVIDER)
        .env("ALIBABA_CLOUD_OIDC_TOKEN_FILE", place.file("token"))
        .env("ALIBABA_CLOUD_STS_ENDPOINT", server.endpoint())
        .args(["populate", "oss://bucket/data/"])
        .arg(place.volume())
        .args(["--endpoint", &server.endpoint(), "--region", server.region()])
        .args(["--throughput", &format!("{rate}B/s"), "--concurrency", "24"])
        .args(["--part-size", "64KiB", "--timeout", "2s", "--progress", "json"])
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .unwrap();
    let (begun, mut samples) = (Instant::now(), Vec::new());
    while begun.elapsed() < Duration::from_secs(seconds) {
        std::thread::sleep(Duration::from_millis(500));
        if let Some(ended) = child.try_wait().unwrap() {
            let said = std::fs::read_to_string(place.file("stderr")).unwrap();
            panic!("it ended by itself: {ended}: {}", &said[said.len().saturating_sub(2000)..]);
        }
        samples.push(Sample::of(&child));
    }
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!(ran.code, 143);
    assert!(!place.is_marked());

    // the first quarter is the time in which connections, buffers and threads come to be
    let quarter = samples.len() / 4;
    let (early, late) = (&samples[quarter..2 * quarter], &samples[3 * quarter..]);
    type Figure = (&'static str, fn(&Sample) -> u64, u64);
    let figures: [Figure; 3] = [
        ("descriptors", |sample| sample.descriptors, 16),
        ("threads", |sample| sample.threads, 4),
        ("KiB resident", |sample| sample.resident_kib, 6 << 10),
    ];
    let said = figures.map(|(name, figure, _)| {
        let ((early, early_most), (late, late_most)) =
            (summary(early, figure), summary(late, figure));
        format!("{name} {early} (at most {early_most}), later {late} ({late_most})")
    });
    println!("{}", said.join("; "));
    for (name, figure, slack) in figures {
        let ((early, early_most), (late, late_most)) =
            (summary(early, figure), summary(late, figure));
        assert!(late <= early + early / 10 + slack, "{name} grow: from {early} to {late}");
        assert!(
            late_most <= early_most + early_most / 4 + slack,
            "{name}: {early_most}, {late_most}"
        );
    }
    let faults = server.stats().faults;
    let found = files(&place.volume());
    assert!(faults > 50 && found.len() > 50, "{faults} faults, {} files", found.len());
    for (n, (path, body)) in found.iter().enumerate() {
        if n % (found.len() / 2000 + 1) == 0 {
            let right = server.read(BUCKET, &format!("data/{path}"));
            assert!(right.is_some_and(|right| right == body[..]), "{path} is wrong");
        }
    }
    shown(
        Part::Load,
        "faults all the time, in one process that lives through them",
        "descriptors, threads and memory stay where they were; interrupted, no file is wrong",
        143,
    );
    measured(
        Part::Load,
        &format!(
            "{seconds} s under {faults} faults, {} objects of {} requests: {}",
            found.len(),
            server.stats().requests,
            said.join("; ")
        ),
    );
}
