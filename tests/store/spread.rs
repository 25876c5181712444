//! Listings by several listers: every key once.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use oss_server::{Fault, Generated, OssServer, Sizes};
use ossvp::store::{Found, Source, StoreError};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::support::{BUCKET, Setup, server, start, texts, until};

/// However soon a page comes, another lister is worth its while.
const ALWAYS: Duration = Duration::ZERO;

/// What a listing by several listers has, sorted; a key that comes twice is there twice.
async fn sorted(source: &Source) -> Result<Vec<String>, StoreError> {
    let found: Vec<_> = source.list_by_several(ALWAYS).try_collect().await?;
    let (mut next, mut early) = (Vec::new(), Vec::new());
    for one in found {
        match one {
            Found::Next(page) => next.extend(texts(page)),
            Found::Early(page) => early.extend(texts(page)),
        }
    }
    assert!(next.is_sorted(), "what comes next is in order: {next:?}");
    early.sort();
    assert!(next.last() < early.first() || early.is_empty(), "nothing is behind what is early");
    Ok([next, early].concat())
}

fn generate(server: &OssServer, count: u64) {
    let (prefix, sizes) = ("d/".to_owned(), Sizes::Fixed(1));
    server.generate(BUCKET, Generated { prefix, count, sizes, seed: 1, fan_out: 0 });
}

/// A server of `count` keys, which come in pages of so many.
fn generated(page: usize, count: u64) -> OssServer {
    let server = start(server().page(page));
    generate(&server, count);
    server
}

/// How many requests for the first page behind a key were answered.
fn claims(server: &OssServer) -> usize {
    let log = server.log();
    let first =
        |target: &str| target.contains("start-after=") && !target.contains("continuation-token=");
    log.iter().filter(|logged| first(&logged.target)).count()
}

fn a_key() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ab]{1,6}",
        "([a-c]{1,2}/){0,4}[a-c]{0,3}x",
        "d[0-9]{4}",
        "year=202[0-9]/month=0[1-9]/part-0000[0-9]\\.parquet",
        "[0-9a-f]{8}-[0-9a-f]{4}",
        "[aé\u{7f}\u{7ff}\u{800}\u{d7ff}\u{e000}\u{ffff}\u{10000}\u{10ffff}]{1,4}",
        "[ -~]{1,8}",
        "a{1,200}",
    ]
}

#[test]
fn every_key_comes_exactly_once() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let case = AtomicUsize::new(0);
    let divided = AtomicUsize::new(0);
    let config = Config { cases: 40, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new(config);
    let servers = [1, 2, 7].map(|keys| start(server().page(keys)));
    let sets = (0..3usize, prop::collection::btree_set(a_key(), 0..150), a_key());
    runner
        .run(&sets, |(server, keys, beside)| {
            let server = &servers[server];
            let prefix = format!("{}-", case.fetch_add(1, Relaxed));
            keys.iter().for_each(|key| server.put(BUCKET, &format!("{prefix}{key}"), "x"));
            // beside the prefix, on both sides
            server.put(BUCKET, &format!("-{beside}"), "x");
            server.put(BUCKET, &format!("~{beside}"), "x");
            let expected: Vec<String> = keys.iter().map(|key| format!("{prefix}{key}")).collect();
            for setup in [Setup::oss(server), Setup::s3(server)] {
                let source = setup.prefix(&prefix).open();
                let before = claims(server);
                prop_assert_eq!(runtime.block_on(sorted(&source)).unwrap(), &expected[..]);
                divided.fetch_add(usize::from(claims(server) > before), Relaxed);
            }
            Ok(())
        })
        .unwrap();
    assert!(divided.into_inner() > 40, "most of these listings are long enough to be divided");
}

#[tokio::test]
async fn a_short_listing_takes_no_further_request() {
    for (count, requests) in [(0, 1), (1, 1), (1000, 1), (3999, 4)] {
        let server = start(server());
        generate(&server, count);
        let source = Setup::oss(&server).open();
        assert_eq!(sorted(&source).await.unwrap().len() as u64, count);
        assert_eq!(source.meter().list.load(Relaxed), requests, "{count} keys");
    }
}

#[tokio::test]
async fn pages_that_come_soon_enough_are_asked_for_by_one_lister() {
    let server = generated(100, 10_000);
    let source = Setup::oss(&server).open();
    // longer than any page here is waited for
    let found: Vec<_> = source.list_by_several(Duration::MAX).try_collect().await.unwrap();
    assert_eq!(found.len(), 100);
    assert!(found.iter().all(|one| matches!(one, Found::Next(page) if page.len() == 100)));
    assert_eq!((claims(&server), source.meter().list.load(Relaxed)), (0, 100));
}

#[tokio::test]
async fn a_long_listing_is_asked_for_by_eight_listers_at_once() {
    let server = generated(100, 40_000);
    // long enough that no page is there before the others are asked for
    server.fault(Fault::list().delay(Duration::from_millis(20)));
    let source = Setup::oss(&server).open();
    let keys = sorted(&source).await.unwrap();
    assert!(keys.is_sorted_by(|a, b| a < b), "no key twice");
    assert_eq!(keys.len(), 40_000);
    // at times one's last body is still on its way while its next page is asked for
    let peak = server.stats().peak_concurrent;
    assert!((6..=16).contains(&peak), "{peak} at once");
    // 400 pages, and what was asked for in vain or behind a seam
    let requests = source.meter().list.load(Relaxed);
    // one that is given up before it is answered is not in the log
    assert!(requests >= server.log().len() as u64);
    assert!((400..600).contains(&requests), "{requests} requests");
}

#[tokio::test]
async fn refusals_and_broken_pages_lose_no_key() {
    let server = generated(50, 5000);
    server.fault(Fault::list().every(5).status(503, "ServiceUnavailable"));
    server.fault(Fault::list().every(7).short_body(1000));
    server.fault(Fault::list().from_key().every(2).reset_before_headers());
    let source = Setup::oss(&server).policy(|policy| policy.attempts = 20).open();
    let keys = sorted(&source).await.unwrap();
    assert!(keys.is_sorted_by(|a, b| a < b), "no key twice");
    assert_eq!(keys.len(), 5000);
    assert!(claims(&server) > 0);
    assert!(source.meter().retries.load(Relaxed) > 20);
}

#[tokio::test]
async fn a_source_that_asks_to_slow_down_meets_no_further_lister() {
    let server = generated(50, 2000);
    server.fault(Fault::list().header("x-oss-qos-delay-time", "1"));
    let source = Setup::oss(&server).open();
    assert_eq!(sorted(&source).await.unwrap().len(), 2000);
    assert_eq!(claims(&server), 0);
}

#[tokio::test]
async fn a_claim_that_is_refused_leaves_the_listing_to_one() {
    let server = generated(50, 2000);
    server.fault(Fault::list().from_key().status(400, "InvalidArgument"));
    let source = Setup::oss(&server).open();
    assert_eq!(sorted(&source).await.unwrap().len(), 2000);
    assert_eq!(claims(&server), 1);
}

#[tokio::test]
async fn parts_that_do_not_meet_are_an_error_and_no_listing() {
    let server = generated(50, 5000);
    // a key that nobody else lists
    server.fault(Fault::list().from_key().replace(".bin</Key>", ".bin0</Key>"));
    let source = Setup::oss(&server).open();
    let error = sorted(&source).await.unwrap_err();
    assert!(matches!(error, StoreError::Torn { .. }), "{error:?}");
}

#[tokio::test]
async fn one_failure_ends_all() {
    let server = generated(50, 50_000);
    let source = Setup::oss(&server).open();
    let mut listing = source.list_by_several(ALWAYS);
    while claims(&server) < 5 {
        listing.try_next().await.unwrap().unwrap();
    }
    server.fault(Fault::list().status(403, "AccessDenied"));
    let rest: Vec<_> = listing.collect().await;
    let (last, before) = rest.split_last().unwrap();
    assert!(matches!(last, Err(StoreError::AccessDenied { .. })), "{last:?}");
    assert!(before.iter().all(Result::is_ok), "nothing follows an error");
    until("the end of all requests", || server.stats().concurrent == 0).await;
}

#[tokio::test]
async fn a_listing_that_is_dropped_asks_for_nothing_more() {
    let server = generated(50, 50_000);
    let source = Setup::oss(&server).open();
    let mut listing = source.list_by_several(ALWAYS);
    while claims(&server) < 5 {
        listing.try_next().await.unwrap().unwrap();
    }
    // so that some are under way at any time, if any lister goes on
    server.fault(Fault::list().delay(Duration::from_millis(20)));
    drop(listing);
    until("the end of all requests", || server.stats().concurrent == 0).await;
    let requests = source.meter().list.load(Relaxed);
    assert!(requests < 500, "{requests} of 1000 pages");
}

#[tokio::test]
async fn nothing_but_the_bucket_decides_what_is_listed() {
    // keys that end in the middle of what divides them
    let server = start(server().page(1));
    let keys: BTreeSet<String> = ["a", "a/", "a//", "a/a", "a/a/", "ab", "ab/", "b", "c/", "c/c"]
        .into_iter()
        .flat_map(|key| ["", "\u{10ffff}", " ", "%", "+"].map(|end| format!("{key}{end}")))
        .collect();
    keys.iter().for_each(|key| server.put(BUCKET, key, ""));
    for setup in [Setup::oss(&server), Setup::s3(&server)] {
        let listed = sorted(&setup.open()).await.unwrap();
        assert_eq!(listed, keys.iter().cloned().collect::<Vec<_>>());
    }
    assert!(claims(&server) > 2);
}
