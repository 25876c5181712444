//! Listings: streamed, a few pages ahead, checked.

use std::sync::atomic::Ordering::Relaxed;

use futures::{StreamExt, TryStreamExt};
use oss_server::{Fault, OssServer};
use ossvp::store::{Class, StoreError};

use crate::support::{BUCKET, Setup, key, keys, listed, server, start, until};

fn many(count: usize) -> OssServer {
    let server = start(server());
    for index in 0..count {
        server.put(BUCKET, &format!("d/{index:06}"), "x");
    }
    server
}

fn pages(server: &OssServer) -> usize {
    server.log().iter().filter(|l| l.target.contains("list-type=2")).count()
}

#[tokio::test]
async fn all_pages_come_in_order() {
    let server = many(3500);
    for source in [Setup::oss(&server).open(), Setup::s3(&server).open()] {
        let expected: Vec<String> = (0..3500).map(|i| format!("d/{i:06}")).collect();
        assert_eq!(keys(&source).await, expected);
        assert_eq!(source.meter().list.load(Relaxed), 4);
    }
}

#[tokio::test]
async fn three_pages_are_asked_for_ahead_and_no_more() {
    const PAGES: usize = 8;
    let server = many(PAGES * 1000 - 500);
    let source = Setup::oss(&server).open();
    let mut listing = source.list(None);
    for page in 1..PAGES {
        listing.try_next().await.unwrap().unwrap();
        // without anybody waiting for more
        let all = (page + 3).min(PAGES);
        until("the next three pages", || pages(&server) >= all).await;
        assert!(pages(&server) <= page + 3, "{} asked for, {page} used", pages(&server));
    }
}

#[tokio::test]
async fn a_listing_can_begin_behind_a_key() {
    let server = many(2500);
    for source in [Setup::oss(&server).open(), Setup::s3(&server).open()] {
        let after = |text: &str| source.list(Some(&key(text))).try_concat();
        let rest = after("d/002498").await.unwrap();
        assert_eq!(rest.iter().map(|o| o.key.as_str()).collect::<Vec<_>>(), ["d/002499"]);
        assert_eq!(after("d/000000").await.unwrap().len(), 2499);
        assert_eq!(after("e").await.unwrap(), []);
    }
}

#[tokio::test]
async fn a_repeated_token_ends_the_listing() {
    let server = many(2500);
    server.fault(Fault::list().skip(1).repeat_token());
    let source = Setup::oss(&server).open();
    let error = listed(&source).await.unwrap_err();
    assert!(matches!(error, StoreError::Malformed { .. }), "{error:?}");
    assert_eq!(error.class(), Class::Transient);
}

#[tokio::test]
async fn a_broken_page_is_asked_for_again() {
    let server = many(2500);
    server.fault(Fault::list().nth(2).short_body(1000));
    server.fault(Fault::list().nth(3).reset_after(1000));
    server.fault(Fault::list().nth(4).status(503, "ServiceUnavailable"));
    let source = Setup::oss(&server).open();
    assert_eq!(keys(&source).await.len(), 2500);
    assert_eq!(source.meter().retries.load(Relaxed), 3);
}

#[tokio::test]
async fn what_is_no_listing_is_no_empty_listing() {
    let server = many(10);
    server.fault(Fault::list().flip_byte(2));
    let error = listed(&Setup::oss(&server).open()).await.unwrap_err();
    assert_eq!(error.class(), Class::Transient, "{error:?}");
}

#[tokio::test]
async fn nothing_follows_an_error() {
    let server = many(10);
    server.fault(Fault::list().status(403, "AccessDenied"));
    let all: Vec<_> = Setup::oss(&server).open().list(None).collect().await;
    assert_eq!(all.len(), 1);
    assert!(matches!(all[0], Err(StoreError::AccessDenied { .. })), "{all:?}");
}

#[tokio::test]
async fn a_page_has_a_bound() {
    let server = many(10);
    server.fault(Fault::list().huge_xml(17 << 20));
    let error = listed(&Setup::oss(&server).open()).await.unwrap_err();
    assert!(error.to_string().contains("longer"), "{error}");
}
