//! Many faults at once, drawn by a seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use faulty::Dice;
use oss_server::{Action, Fault, Matcher, OssServer};

use crate::common::{
    PORTAL, Scheme, Versions, builder, finishes, instead, promised, same, signed, status, watched,
};
use crate::support::cases::{Part, measured, shown};
use crate::support::{BUCKET, Place, bytes};

/// What a mixture is made of: objects that are small and large, in pages of a listing.
const MANY: usize = 200;

fn many(seed: u64) -> (OssServer, Vec<String>) {
    let server = builder().threads(2).log(false).start_blocking().unwrap();
    let mut keys = Vec::new();
    for n in 0..MANY {
        let key = format!("data/d{}/{n:04}", n % 7);
        let size = match n % 40 {
            0 => 0,
            1 => 700_000,
            2 => 64 << 10,
            3 => (64 << 10) + 1,
            n => n * 331,
        };
        server.put(BUCKET, &key, bytes(seed ^ n as u64, size));
        keys.push(key);
    }
    (server, keys)
}

/// A fault of a mixture: what of, and one of the exit codes it may end a run with.
fn drawn(dice: &mut Dice) -> (Fault, &'static [i32]) {
    let get = Fault::get_prefix("data/");
    let list = Fault::list();
    let at = dice.below(40_000);
    let raw = || Action::Raw("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort".to_owned());
    let (matcher, action, codes): (Matcher, Action, &[i32]) = match dice.below(26) {
        0 => (get, status(503, "ServiceUnavailable", &[]), &[4]),
        1 => (get, status(500, "InternalError", &[("retry-after", "31536000")]), &[4]),
        2 => (get, status(429, "", &[("x-oss-qos-delay-time", "20")]), &[4]),
        3 => (get, Action::ResetBeforeHeaders, &[4]),
        4 => (get, Action::ResetAfter(at), &[4]),
        5 => (get, Action::ShortBody(at), &[4]),
        6 => (get, Action::Stall { after: at, ms: Some(300) }, &[4]),
        7 => (get, Action::Stall { after: at, ms: None }, &[4]),
        8 => (get, Action::LongBody(at % 50 + 1), &[4, 5]),
        9 => (get, Action::Trailing(at % 50 + 1), &[4]),
        10 => (get, Action::FlipByte(at % 3000), &[6]),
        11 => (get, Action::FlipBit(at % 3000), &[6]),
        12 => (get, Action::FlipHeader("etag".into(), 4), &[5]),
        13 => (get, Action::FlipHeader("x-oss-hash-crc64ecma".into(), 1), &[4, 6]),
        14 => (get, Action::OtherRange(at, at + 1000), &[4, 5]),
        15 => (get, Action::IgnoreRange, &[4]),
        16 => (get, raw(), &[4]),
        17 => (get, instead(200, "text/html", PORTAL), &[4, 5]),
        18 => (get, status(403, "RequestTimeTooSkewed", &[]), &[4]),
        19 => (get, Action::Trickle { after: at, ms: 50 }, &[4]),
        20 => (list, status(503, "ServiceUnavailable", &[]), &[4]),
        21 => (list, Action::ResetAfter(at), &[4]),
        22 => (list, Action::ShortBody(at), &[4]),
        // of a page any bit: names, sizes, times, ETags
        23 => (list, Action::FlipBit(at), &[3, 4, 5, 7, 8]),
        24 => (get, Action::Vanish, &[5]),
        _ => (get, Action::Overwrite, &[5]),
    };
    let probability = match action {
        // what no retry helps against seldom, or no run would get anywhere
        Action::Vanish | Action::Overwrite => 0.002,
        Action::FlipByte(_) | Action::FlipBit(_) | Action::FlipHeader(..) => 0.1,
        _ => 0.02 + dice.below(20) as f64 / 100.0,
    };
    (matcher.probability(probability, dice.roll()).action(action), codes)
}

/// One mixture: says with which code it ended.
fn mixed(seed: u64) -> (i32, Duration, u64) {
    let mut dice = Dice::new(seed);
    let (server, keys) = many(seed);
    let mut versions = Versions::of(&server, &keys);
    let mut may_end = BTreeSet::from([0]);
    for _ in 0..3 + dice.below(8) {
        let (fault, codes) = drawn(&mut dice);
        may_end.extend(codes);
        server.fault(fault);
    }
    let scheme = if dice.roll().is_multiple_of(2) { Scheme::Oss } else { Scheme::S3 };
    let place = Place::new();
    let what = format!("OSSVP_TEST_SEED={seed}");
    // what a bit of a listing hides may be seen by another check than the one that it would meet
    let mut command = signed(&server.endpoint(), scheme, &place.volume());
    command.args(["--timeout", "1s", "--retry-for", "5s"]);
    let (ran, took) = watched(&mut command, &what);
    versions.note(&server, &keys);
    assert!(
        may_end.contains(&ran.code),
        "{what}: {} is none of {may_end:?}: {}",
        ran.code,
        ran.stderr
    );
    promised(&ran, ran.code, &place, &versions, &what);
    let faults = server.stats().faults;
    server.clear_faults();
    if ran.code == 0 {
        same(&server, &keys, &place.volume(), &what);
    } else {
        finishes(
            &mut signed(&server.endpoint(), scheme, &place.volume()),
            &server,
            &keys,
            &place,
            &what,
        );
    }
    (ran.code, took, faults)
}

#[test]
fn mixtures_of_faults_end_with_a_right_code_and_the_next_run_finishes() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let first = number("OSSVP_TEST_SEED");
    let rounds = number("OSSVP_TEST_ROUNDS").unwrap_or(if first.is_some() { 1 } else { 16 });
    let first = first.unwrap_or(1);
    println!("seeds {first} to {}", first + rounds - 1);
    let next = AtomicUsize::new(0);
    let (ended, failed) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let round = next.fetch_add(1, Relaxed) as u64;
                    if round >= rounds {
                        return;
                    }
                    match std::panic::catch_unwind(|| mixed(first + round)) {
                        Ok(end) => ended.lock().unwrap().push(end),
                        Err(_) => failed.lock().unwrap().push(first + round),
                    }
                }
            });
        }
    });
    assert_eq!(failed.into_inner().unwrap(), [0; 0], "seeds that failed");
    let ended = ended.into_inner().unwrap();
    let mut codes: BTreeMap<i32, usize> = BTreeMap::new();
    ended.iter().for_each(|(code, ..)| *codes.entry(*code).or_default() += 1);
    let longest = ended.iter().map(|(_, took, _)| *took).max().unwrap();
    let faults: u64 = ended.iter().map(|(.., faults)| faults).sum();
    assert!(faults > 20 * rounds, "only {faults} faults in {rounds} rounds");
    shown(
        Part::Network,
        "many faults at once, drawn by a seed, over 200 objects",
        "no wrong byte, no marker unless all is there; the next run without faults finishes",
        "0 or what one of the faults alone ends with",
    );
    measured(
        Part::Network,
        &format!(
            "{rounds} mixtures of 3 to 10 faults, {faults} faults met: exit codes {codes:?}, the \
             longest run {:.1} s",
            longest.as_secs_f64()
        ),
    );
}
