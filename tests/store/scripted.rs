//! Answers that no well-meaning server gives, word for word.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use object_store::GetOptions;
use ossvp::store::{Class, Connection, Found, StoreError};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::{Setup, answer, bounded, chain, get, get_range, keys, policy, texts};

/// Answers each request by what `script` makes of its head and its number, then hangs up.
async fn serve(script: impl Fn(&str, usize) -> String + Send + Sync + 'static) -> Setup {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Some(format!("http://{}", listener.local_addr().unwrap()));
    let (script, count) = (Arc::new(script), Arc::new(AtomicUsize::new(0)));
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (script, count) = (script.clone(), count.clone());
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { return };
                    head.push(byte);
                }
                let head = String::from_utf8(head).unwrap();
                let answer = script(&head, count.fetch_add(1, Relaxed));
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    let connection = Connection { endpoint, anonymous: true, ..Connection::default() };
    let url = "oss://models/".to_owned();
    Setup { url, connection, env: Default::default(), home: None, policy: policy() }
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn page(keys: &[&str], next: Option<&str>) -> String {
    let entries: String = keys
        .iter()
        .map(|key| {
            format!(
                "<Contents><Key>{key}</Key><Size>1</Size>\
                 <LastModified>2024-01-01T00:00:00.000Z</LastModified></Contents>"
            )
        })
        .collect();
    let next = match next {
        None => "<IsTruncated>false</IsTruncated>".to_owned(),
        Some(token) => format!(
            "<IsTruncated>true</IsTruncated>\
             <NextContinuationToken>{token}</NextContinuationToken>"
        ),
    };
    ok(&format!("<ListBucketResult>{entries}{next}</ListBucketResult>"))
}

/// The keys listed, and the error behind them.
async fn list(setup: Setup) -> (Vec<String>, StoreError) {
    let mut all: Vec<_> = setup.open().list(None).collect().await;
    let error = all.pop().unwrap().unwrap_err();
    (all.into_iter().flat_map(|page| texts(page.unwrap())).collect(), error)
}

#[tokio::test]
async fn a_circle_of_tokens_is_found_whatever_its_length() {
    for length in [1, 2, 3, 7] {
        let setup = serve(move |_, n| page(&[&format!("a{n}")], Some(&format!("t{}", n % length))));
        let (keys, error) = list(setup.await).await;
        assert!(keys.len() <= 32, "{length}: {}", keys.len());
        assert!(matches!(error, StoreError::Malformed { .. }), "{error:?}");
        assert_eq!(error.class(), Class::Transient);
    }
}

#[tokio::test]
async fn a_circle_of_pages_is_found_whatever_its_tokens() {
    for length in [1, 2, 3, 7] {
        let key = move |n| format!("a{}", n % length);
        let setup = serve(move |_, n| page(&[&key(n)], Some(&format!("t{n}"))));
        let (keys, error) = list(setup.await).await;
        assert!(keys.len() <= 32, "{length}: {}", keys.len());
        assert!(matches!(error, StoreError::Malformed { .. }), "{error:?}");
    }
}

/// The page that `head` asks for, of one key each; the first one where it names no token.
fn paged(keys: &[&'static str], head: &str) -> String {
    let at = head
        .split("continuation-token=")
        .nth(1)
        .map_or(0, |token| token.split(['&', ' ']).next().unwrap().parse::<usize>().unwrap());
    let next = (at + 1 < keys.len()).then(|| (at + 1).to_string());
    page(&keys[at..=at], next.as_deref())
}

async fn by_several(setup: Setup) -> Result<Vec<String>, StoreError> {
    let found: Vec<_> = setup.open().list_by_several(Duration::ZERO).try_collect().await?;
    let page = |found| match found {
        Found::Next(page) | Found::Early(page) => page,
    };
    Ok(found.into_iter().flat_map(|found| texts(page(found))).collect())
}

#[tokio::test]
async fn a_source_that_begins_anew_behind_a_key_is_listed_by_one() {
    let keys = ["az", "bz", "cz", "dz", "ez", "fz", "gz", "hz", "iz", "jz", "kz"];
    let claims = Arc::new(AtomicUsize::new(0));
    let count = claims.clone();
    let setup = serve(move |head, _| {
        count.fetch_add(usize::from(head.contains("start-after=")), Relaxed);
        paged(&keys, head)
    });
    assert_eq!(by_several(setup.await).await.unwrap(), keys);
    assert_eq!(claims.load(Relaxed), 1, "once is enough");
}

#[tokio::test]
async fn a_source_in_no_order_is_listed_by_one() {
    let keys = ["a/b", "a/c", "a-d", "a-e", "b", "c", "d", "e", "f", "g"];
    let setup = serve(move |head, _| {
        assert!(!head.contains("start-after="), "{head}");
        paged(&keys, head)
    });
    assert_eq!(by_several(setup.await).await.unwrap(), keys);
}

/// A source with an order of its own, in which each character has a rank: what it lists behind a text
/// is what is behind that text in this order.
fn ranked(keys: Vec<String>, ranks: Vec<char>) -> impl Fn(&str, usize) -> String {
    move |head, _| {
        let given =
            |name: &str| Some(head.split(name).nth(1)?.split(['&', ' ']).next()?.to_owned());
        let rank = |text: &str| -> Vec<_> {
            text.chars().map(|c| ranks.iter().position(|rank| *rank == c)).collect()
        };
        let mut keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        keys.sort_by_key(|key| rank(key));
        let at = match (given("continuation-token="), given("start-after=")) {
            (Some(token), _) => token.parse().unwrap(),
            (None, Some(behind)) => {
                let behind = rank(&behind.replace("%2F", "/"));
                keys.iter().position(|key| rank(key) > behind).unwrap_or(keys.len())
            }
            (None, None) => 0,
        };
        let next = (at + 1 < keys.len()).then(|| (at + 1).to_string());
        page(keys.get(at).map(std::slice::from_ref).unwrap_or_default(), next.as_deref())
    }
}

#[test]
fn no_order_loses_a_key_or_doubles_one() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let divided = Arc::new(AtomicUsize::new(0));
    let config = Config { cases: 100, failure_persistence: None, ..Config::default() };
    let keys = prop::collection::btree_set("[ab][a-c/-]{1,4}", 1..60);
    // an order that shows late: the first pages are in that by bytes, too, and show all characters
    let early = ["0a-", "1b/", "2c-", "3a/"];
    let ranks = Just(vec!['-', '/', 'a', 'b', 'c']).prop_shuffle();
    let ranks = prop_oneof![ranks, Just(vec!['/', '-', 'a', 'b', 'c'])];
    let run = |(keys, ranks): (std::collections::BTreeSet<String>, Vec<char>)| {
        let keys: Vec<String> = early.map(str::to_owned).into_iter().chain(keys).collect();
        let ranks = ['0', '1', '2', '3'].into_iter().chain(ranks).collect();
        let (answer, divided) = (ranked(keys.clone(), ranks), divided.clone());
        let setup = runtime.block_on(serve(move |head, n| {
            divided.fetch_add(usize::from(head.contains("start-after=")), Relaxed);
            answer(head, n)
        }));
        match runtime.block_on(by_several(setup)) {
            Ok(mut listed) => {
                listed.sort();
                prop_assert_eq!(listed, keys);
            }
            // no listing, and none that passes for one
            Err(error) => prop_assert!(matches!(error, StoreError::Torn { .. }), "{:?}", error),
        }
        Ok(())
    };
    TestRunner::new(config).run(&(keys, ranks), run).unwrap();
    assert!(divided.load(Relaxed) > 50, "most of these listings were to be divided");
}

#[tokio::test]
async fn a_key_outside_the_prefix_is_an_error() {
    let setup = serve(|_, _| page(&["data/a", "database"], None)).await.prefix("data/");
    let (keys, error) = list(setup).await;
    assert_eq!(keys, [""; 0], "nothing of a page that is not of what was asked for");
    assert!(matches!(error, StoreError::OutsidePrefix { .. }), "{error:?}");
}

#[tokio::test]
async fn a_listing_that_does_not_end_is_an_error() {
    let (keys, error) = list(serve(|_, n| page(&[], Some(&format!("t{n}")))).await).await;
    assert_eq!(keys, [""; 0]);
    assert!(error.to_string().contains("does not end"), "{error}");
}

#[tokio::test]
async fn a_body_without_a_length_is_not_trusted() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let error = get(&serve(|_, _| chunked.to_owned()).await.open(), "a").await.unwrap_err();
    assert!(matches!(error, StoreError::Malformed { .. }), "{error:?}");
}

#[tokio::test]
async fn a_body_longer_than_its_range_is_an_error() {
    let chunked = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-3/10\r\n\
        Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let source = serve(|_, _| chunked.to_owned()).await.open();
    let error = get_range(&source, "a", bounded(0, 4)).await.unwrap_err();
    assert!(error.to_string().contains("longer"), "{error}");
    assert_eq!(get_range(&source, "a", bounded(0, 5)).await.unwrap_err().class(), Class::Transient);
}

#[tokio::test]
async fn a_resumed_body_must_be_of_the_same_size() {
    let source = serve(|_, n| match n {
        0 => "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello".to_owned(),
        _ => "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 5-9/11\r\n\
              Content-Length: 5\r\n\r\nworld"
            .to_owned(),
    });
    let error = get(&source.await.open(), "a").await.unwrap_err();
    assert!(matches!(error, StoreError::ChangedMeanwhile { .. }), "{error:?}");
}

#[tokio::test]
async fn a_body_is_resumed_with_the_headers_of_its_dialect() {
    let source = serve(|head, n| match n {
        0 => "HTTP/1.1 200 OK\r\nETag: \"e\"\r\nContent-Length: 10\r\n\r\nhello".to_owned(),
        _ => {
            let head = head.to_ascii_lowercase();
            assert!(head.contains("range: bytes=5-9\r\n"), "{head}");
            assert!(head.contains("if-match: \"e\"\r\n"), "{head}");
            assert!(head.contains("x-oss-range-behavior: standard\r\n"), "{head}");
            "HTTP/1.1 206 Partial Content\r\nETag: \"e\"\r\nContent-Range: bytes 5-9/10\r\n\
             Content-Length: 5\r\n\r\nworld"
                .to_owned()
        }
    });
    assert_eq!(get(&source.await.open(), "a").await.unwrap(), "helloworld");
}

#[tokio::test]
async fn the_bytes_of_encoded_objects_come_as_they_are() {
    let source = serve(|head, _| {
        assert!(!head.to_ascii_lowercase().contains("accept-encoding"), "{head}");
        "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\n\x1f+raw".to_owned()
    });
    assert_eq!(get(&source.await.open(), "a").await.unwrap(), "\x1f+raw");
}

#[tokio::test]
async fn what_is_no_http_breaks_the_connection() {
    let source = serve(|_, _| "SSH-2.0-OpenSSH_9.6\r\n".to_owned()).await.open();
    let error = get(&source, "a").await.unwrap_err();
    assert!(matches!(error, StoreError::Broken { .. }), "{error:?}");
    assert!(!chain(&error).contains('\n'));
}

#[tokio::test]
async fn an_answer_from_elsewhere_names_its_region() {
    let body = "<Error><Code>AuthorizationHeaderMalformed</Code><Message>the region 'us-east-1' is \
        wrong; expecting 'eu-west-1'</Message><Region>eu-west-1</Region></Error>";
    let refusal =
        format!("HTTP/1.1 400 Bad Request\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let source = serve(move |_, _| refusal.clone()).await.open();
    let error = answer(&source, "a", GetOptions::default()).await.unwrap_err();
    assert!(error.to_string().contains("use region eu-west-1"), "{error}");

    let redirect = "HTTP/1.1 301 Moved Permanently\r\nx-amz-bucket-region: eu-west-1\r\n\
        Location: https://models.s3.eu-west-1.amazonaws.com/a\r\nContent-Length: 0\r\n\r\n";
    let source = serve(|_, _| redirect.to_owned()).await.open();
    let error = get(&source, "a").await.unwrap_err();
    assert!(error.to_string().contains("use endpoint s3.eu-west-1.amazonaws.com"), "{error}");
}

#[tokio::test]
async fn a_token_that_only_looks_like_one_leads_nowhere() {
    let setup = serve(|head, _| {
        ok(&match () {
            () if head.contains("continuation-token=true") => page(&["c", "d"], None),
            // what a comment says is not what the page says
            () if head.contains("continuation-token=false") => page(&["x"], None),
            () => page(&["a", "b"], Some("true")).replacen(
                '>',
                "><!-- <NextContinuationToken>false</NextContinuationToken> -->",
                1,
            ),
        })
    });
    let listed = keys(&setup.await.open()).await;
    assert_eq!(listed, ["a", "b", "c", "d"]);
}
