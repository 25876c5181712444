//! Faults on the way: what is tried again, and when it ends.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use object_store::GetOptions;
use oss_server::{Action, Fault, OssServer};
use ossvp::store::{Class, Source, StoreError, explain};

use crate::support::{
    BUCKET, Setup, answer, bounded, chain, get, get_range, listed, pattern, server, start,
};

const SIZE: usize = 1 << 20;

fn with_object() -> OssServer {
    let server = start(server());
    server.put(BUCKET, "a", pattern(SIZE));
    server
}

fn retries(source: &Source) -> u64 {
    source.meter().retries.load(Relaxed)
}

/// The ranges and conditions of all GETs.
fn asked(server: &OssServer) -> Vec<(Option<String>, Option<String>)> {
    server.log().into_iter().map(|l| (l.range, l.if_match)).collect()
}

#[tokio::test]
async fn a_broken_body_goes_on_from_its_last_byte() {
    for action in [
        Action::ResetAfter(300_000),
        Action::ShortBody(300_000),
        Action::Stall { after: 300_000, ms: None },
    ] {
        let server = with_object();
        server.fault(Fault::get("a").times(1).action(action.clone()));
        for setup in [Setup::oss(&server), Setup::s3(&server)] {
            let source = setup.policy(|p| p.stall_timeout = Duration::from_millis(300)).open();
            assert_eq!(get(&source, "a").await.unwrap(), pattern(SIZE), "{action:?}");
            assert_eq!(source.meter().bytes.load(Relaxed), SIZE as u64);
        }
        let etag = server.etag(BUCKET, "a");
        let asked = asked(&server);
        assert_eq!(asked.len(), 3, "{asked:?}");
        assert_eq!(asked[0], (None, None));
        let (range, if_match) = &asked[1];
        assert_eq!(*if_match, etag);
        let range = range.as_deref().unwrap();
        let start: usize = range["bytes=".len()..].split('-').next().unwrap().parse().unwrap();
        assert!(0 < start && start <= 300_000, "{range}");
        assert!(range.ends_with(&format!("-{}", SIZE - 1)), "{range}");
    }
}

#[tokio::test]
async fn a_broken_part_goes_on_within_its_range() {
    let server = with_object();
    server.fault(Fault::get("a").times(2).reset_after(100_000));
    let source = Setup::oss(&server).open();
    let part = get_range(&source, "a", bounded(200_000, 700_000)).await.unwrap();
    assert_eq!(part, pattern(SIZE).slice(200_000..700_000));
    assert_eq!(asked(&server).len(), 3);
}

#[tokio::test]
async fn progress_renews_the_budget() {
    let server = with_object();
    // far more breaks than attempts
    server.fault(Fault::get("a").short_body(50_000));
    let source = Setup::oss(&server).open();
    assert_eq!(get(&source, "a").await.unwrap(), pattern(SIZE));
    assert!(retries(&source) >= 20, "{}", retries(&source));
}

#[tokio::test]
async fn no_progress_ends_it() {
    let server = with_object();
    server.fault(Fault::get("a").skip(1).short_body(0));
    server.fault(Fault::get("a").times(1).short_body(1000));
    let source = Setup::oss(&server).open();
    let error = get(&source, "a").await.unwrap_err();
    assert_eq!(error.class(), Class::Transient, "{error:?}");
    assert_eq!(asked(&server).len(), 4);
}

#[tokio::test]
async fn many_faults_at_once_change_no_byte() {
    let server = start(server());
    let body = pattern(SIZE / 4);
    for index in 0..40 {
        server.put(BUCKET, &format!("d/{index}"), body.clone());
    }
    server.fault(Fault::get_prefix("d/").probability(0.2, 1).reset_after(70_000));
    server.fault(Fault::get_prefix("d/").probability(0.2, 2).short_body(30_000));
    server.fault(Fault::get_prefix("d/").probability(0.2, 3).status(503, "ServiceUnavailable"));
    server.fault(Fault::get_prefix("d/").probability(0.1, 4).ignore_range());
    server.fault(Fault::get_prefix("d/").probability(0.1, 5).reset_before_headers());
    // enough that bad luck does not end it
    let source = Setup::oss(&server).policy(|p| p.attempts = 30).open();
    let bodies = (0..40).map(async |index| get(&source, &format!("d/{index}")).await.unwrap());
    for read in futures::future::join_all(bodies).await {
        assert!(read == body);
    }
    assert_eq!(source.meter().bytes.load(Relaxed), 40 * body.len() as u64);
}

#[tokio::test]
async fn a_paused_consumer_is_no_stall() {
    let server = start(server());
    // more than the buffers on the way hold
    let body = pattern(16 << 20);
    server.put(BUCKET, "a", body.clone());
    let source =
        Setup::oss(&server).policy(|p| p.stall_timeout = Duration::from_millis(100)).open();
    let mut pieces = answer(&source, "a", GetOptions::default()).await.unwrap().into_stream();
    let mut read = Vec::new();
    let mut pauses = 0;
    while let Some(piece) = pieces.try_next().await.unwrap() {
        read.extend_from_slice(&piece);
        if read.len() > (pauses + 1) * (4 << 20) {
            pauses += 1;
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
    }
    assert!(read == body && pauses >= 3);
    assert_eq!(retries(&source), 0);
}

#[tokio::test]
async fn a_changed_object_is_not_mixed() {
    let server = with_object();
    server.fault(Fault::get("a").times(1).reset_after(100_000));
    let source = Setup::oss(&server).open();
    let mut pieces = answer(&source, "a", GetOptions::default()).await.unwrap().into_stream();
    server.put(BUCKET, "a", vec![7; SIZE]);
    let error = loop {
        match pieces.try_next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the body ended well"),
            Err(error) => break explain(error),
        }
    };
    assert_eq!(error.class(), Class::Changed, "{error:?}");
}

#[tokio::test]
async fn an_etag_that_differs_is_a_change() {
    let server = with_object();
    server.fault(Fault::get("a").nth(1).reset_after(100_000));
    server.fault(Fault::get("a").nth(2).etag("other"));
    let source = Setup::oss(&server).open();
    assert_eq!(get(&source, "a").await.unwrap(), pattern(SIZE), "one broken answer is none");

    server.clear_faults();
    server.fault(Fault::get("a").nth(1).reset_after(100_000));
    server.fault(Fault::get("a").skip(1).etag("other"));
    let error = get(&Setup::oss(&server).open(), "a").await.unwrap_err();
    assert!(matches!(error, StoreError::ChangedMeanwhile { .. }), "{error:?}");
    assert_eq!(error.class(), Class::Changed);
}

#[tokio::test]
async fn a_wrong_answer_to_a_range_is_asked_for_again_and_never_used() {
    for action in [
        Action::IgnoreRange,
        Action::OtherRange(0, 100),
        Action::OtherRange(100, 250),
        Action::ContentRange("bytes 100-199/*".into()),
        Action::ContentRange("bytes 0-99/1048576".into()),
    ] {
        let server = with_object();
        server.fault(Fault::get("a").times(1).action(action.clone()));
        let source = Setup::oss(&server).open();
        let part = get_range(&source, "a", bounded(100, 200)).await.unwrap();
        assert_eq!(part, pattern(SIZE).slice(100..200), "{action:?}");
        assert_eq!(retries(&source), 1, "{action:?}");
        server.clear_faults();
        server.fault(Fault::get("a").action(action.clone()));
        let error = get_range(&source, "a", bounded(100, 200)).await.unwrap_err();
        assert!(matches!(error, StoreError::Malformed { .. }), "{action:?} {error:?}");
        assert_eq!(error.class(), Class::Transient);
    }
}

#[tokio::test]
async fn a_longer_body_is_seen_by_its_size() {
    let server = with_object();
    server.fault(Fault::get("a").times(1).long_body(10));
    let source = Setup::oss(&server).open();
    // of a whole GET, only the caller knows the size that was listed
    let result = answer(&source, "a", GetOptions::default()).await.unwrap();
    assert_eq!(result.meta.size, SIZE as u64 + 10);
    server.fault(Fault::get("a").times(1).long_body(10));
    let part = get_range(&source, "a", bounded(100, 200)).await.unwrap();
    assert_eq!(part, pattern(SIZE).slice(100..200));
    assert_eq!(retries(&source), 1);
}

#[tokio::test]
async fn bytes_behind_the_end_harm_nothing() {
    let server = with_object();
    server.fault(Fault::get("a").trailing(100));
    let source = Setup::oss(&server).open();
    for _ in 0..3 {
        assert_eq!(get(&source, "a").await.unwrap(), pattern(SIZE));
    }
}

#[tokio::test]
async fn passing_refusals_are_tried_again() {
    for (status, code) in [
        (500, "InternalError"),
        (502, "BadGateway"),
        (503, "ServiceUnavailable"),
        (504, "GatewayTimeout"),
        (408, "RequestTimeout"),
        (429, "TooManyRequests"),
        (400, "RequestTimeout"),
        (403, "DownloadTrafficRateLimitExceeded"),
    ] {
        let server = with_object();
        server.fault(Fault::get("a").times(3).status(status, code));
        let source = Setup::oss(&server).open();
        assert_eq!(get(&source, "a").await.unwrap(), pattern(SIZE), "{status} {code}");
        assert_eq!(retries(&source), 3);
        server.clear_faults();
        server.fault(Fault::get("a").status(status, code));
        let error = get(&source, "a").await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
        assert_eq!(error.class(), Class::Transient);
    }
}

#[tokio::test]
async fn refusals_that_stay_are_not_tried_again() {
    for (status, code) in [
        (400, "InvalidArgument"),
        (401, "Whatever"),
        (403, "AccessDenied"),
        (403, "UserDisable"),
        (405, "X"),
        (501, "X"),
    ] {
        let server = with_object();
        server.fault(Fault::get("a").status(status, code));
        let error = get(&Setup::oss(&server).open(), "a").await.unwrap_err();
        assert_eq!(error.class(), Class::Refused, "{error:?}");
        assert_eq!(server.stats().requests, 1);
    }
}

#[tokio::test]
async fn the_delay_that_the_source_asks_for_is_kept() {
    for header in [("x-oss-qos-delay-time", "250"), ("retry-after", "1")] {
        let server = with_object();
        server.fault(Fault::get("a").times(1).status_with(503, "QpsLimitExceeded", &[header]));
        let bound = Duration::from_millis(250);
        let source = Setup::oss(&server).policy(|p| p.server_delay_max = bound).open();
        let start = Instant::now();
        get(&source, "a").await.unwrap();
        assert!(start.elapsed() >= bound, "{header:?}: {:?}", start.elapsed());
        assert_eq!(source.meter().throttled.load(Relaxed), 1);
    }
}

#[tokio::test]
async fn resets_and_silence_before_an_answer_are_tried_again() {
    let server = with_object();
    server.fault(Fault::get("a").times(2).reset_before_headers());
    let source = Setup::oss(&server).open();
    assert_eq!(get(&source, "a").await.unwrap(), pattern(SIZE));

    server.fault(Fault::get("a").times(1).delay(Duration::from_secs(3600)));
    let source =
        Setup::oss(&server).policy(|p| p.first_byte_timeout = Duration::from_millis(300)).open();
    assert_eq!(get(&source, "a").await.unwrap(), pattern(SIZE));
    assert_eq!(retries(&source), 1);
}

#[tokio::test]
async fn endless_headers_are_cut_off() {
    let server = with_object();
    server.fault(Fault::get("a").huge_header(64 << 20));
    let error = get(&Setup::oss(&server).open(), "a").await.unwrap_err();
    assert!(matches!(error, StoreError::Broken { .. }), "{error:?}");
}

#[tokio::test]
async fn clocks_that_differ_are_corrected() {
    for ahead in [3600, -3600] {
        let server = start(server().clock_ahead(ahead));
        server.put(BUCKET, "a", "x");
        for source in [Setup::oss(&server).open(), Setup::s3(&server).open()] {
            assert_eq!(get(&source, "a").await.unwrap(), "x");
            assert_eq!(listed(&source).await.unwrap().len(), 1);
            assert_eq!(retries(&source), 1, "once, and not again for each request");
        }
    }
}

#[tokio::test]
async fn clocks_that_cannot_be_corrected_are_an_error() {
    let server = with_object();
    server.fault(Fault::any().status(403, "RequestTimeTooSkewed"));
    let error = get(&Setup::oss(&server).open(), "a").await.unwrap_err();
    assert!(matches!(error, StoreError::ClockSkew { .. }), "{error:?}");
    assert_eq!(server.stats().requests, 3);
    assert!(chain(&error).contains("clock"), "{error}");
}

/// Long enough that a test which does not hedge hangs, short enough that one which does is quick.
const HEDGE: Duration = Duration::from_millis(50);

fn hedging(server: &OssServer) -> Source {
    Setup::oss(server).policy(|p| p.hedge_after = HEDGE).open()
}

fn hedged(source: &Source) -> u64 {
    source.meter().hedged.load(Relaxed)
}

#[tokio::test]
async fn a_body_that_falls_silent_goes_on_over_another_connection() {
    for action in [
        Action::Stall { after: 300_000, ms: None },
        // not one byte
        Action::Stall { after: 0, ms: None },
    ] {
        let server = with_object();
        server.fault(Fault::get("a").times(1).action(action.clone()));
        let source = hedging(&server);
        assert_eq!(get(&source, "a").await.unwrap(), pattern(SIZE), "{action:?}");
        assert_eq!(source.meter().bytes.load(Relaxed), SIZE as u64);
        // nothing had failed
        assert_eq!((hedged(&source), retries(&source)), (1, 0), "{action:?}");
        let asked = asked(&server);
        assert_eq!(asked.len(), 2, "{asked:?}");
        assert_eq!(asked[1].1, server.etag(BUCKET, "a"));
    }
}

#[tokio::test]
async fn an_answer_that_does_not_begin_is_asked_for_over_another_connection() {
    let server = with_object();
    server.fault(Fault::get("a").times(1).delay(Duration::from_secs(3600)));
    let source = hedging(&server);
    assert_eq!(get(&source, "a").await.unwrap(), pattern(SIZE));
    assert_eq!((hedged(&source), retries(&source)), (1, 0));
}

#[tokio::test]
async fn a_hedge_that_fails_does_no_harm() {
    let server = with_object();
    server.fault(Fault::get("a").times(1).stall_after(300_000, Duration::from_millis(500)));
    server.fault(Fault::get("a").skip(1).status(503, "ServiceUnavailable"));
    let source = hedging(&server);
    assert_eq!(get(&source, "a").await.unwrap(), pattern(SIZE));
    assert!(hedged(&source) >= 1);
}

#[tokio::test]
async fn a_hedge_brings_no_other_version() {
    let server = with_object();
    server.fault(Fault::get("a").times(1).stall_after(300_000, Duration::from_millis(500)));
    let source = hedging(&server);
    let pieces = answer(&source, "a", GetOptions::default()).await.unwrap().into_stream();
    server.put(BUCKET, "a", vec![7; SIZE]);
    let read: Vec<_> = pieces.try_collect().await.unwrap();
    assert_eq!(read.concat(), pattern(SIZE));
    assert!(hedged(&source) >= 1);
}

#[tokio::test]
async fn a_hedge_that_is_answered_with_another_version_is_not_used() {
    let server = with_object();
    server.fault(Fault::get("a").times(1).stall_after(300_000, Duration::from_millis(500)));
    // by a server that does not know If-Match
    server.fault(Fault::get("a").skip(1).etag("another"));
    server.fault(Fault::get("a").skip(1).flip_byte(SIZE as u64 - 1));
    let source = hedging(&server);
    assert_eq!(get(&source, "a").await.unwrap(), pattern(SIZE));
    assert!(hedged(&source) >= 1);
}

#[tokio::test]
async fn a_hedge_that_is_refused_ends_nothing() {
    let server = with_object();
    server.fault(Fault::get("a").times(1).delay(Duration::from_millis(500)));
    server.fault(Fault::get("a").skip(1).status(403, "AccessDenied"));
    let source = hedging(&server);
    assert_eq!(get(&source, "a").await.unwrap(), pattern(SIZE));
    assert!(hedged(&source) >= 1);
}

#[tokio::test]
async fn a_source_that_is_slow_as_a_whole_is_not_asked_for_everything_twice() {
    let server = start(server());
    for index in 0..100 {
        server.put(BUCKET, &format!("d/{index}"), pattern(1000));
    }
    server.fault(Fault::get_prefix("d/").delay(Duration::from_millis(300)));
    let source = hedging(&server);
    let bodies = (0..100).map(async |index| get(&source, &format!("d/{index}")).await.unwrap());
    futures::future::join_all(bodies).await;
    let hedged = hedged(&source);
    assert!((1..=8 + 100 / 20).contains(&hedged), "{hedged}");
}

#[tokio::test]
async fn no_more_requests_are_sent_in_a_second_than_permitted() {
    let server = start(server());
    for index in 0..60 {
        server.put(BUCKET, &format!("d/{index}"), pattern(1000));
    }
    let mut setup = Setup::oss(&server);
    setup.connection.request_rate = std::num::NonZeroU32::new(100);
    // waiting for a turn is no silence
    let source = setup.policy(|p| p.hedge_after = HEDGE).open();
    let begun = Instant::now();
    let bodies = (0..60).map(async |index| get(&source, &format!("d/{index}")).await.unwrap());
    futures::future::join_all(bodies).await;
    // ten at once, then one each 10 ms; a busy machine only takes longer
    assert!(begun.elapsed() >= Duration::from_millis(495), "{:?}", begun.elapsed());
    assert_eq!(asked(&server).len() as u64, 60 + hedged(&source));
}
