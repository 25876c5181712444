//! Listings: complete, in order, and the same whatever the pages.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, unreachable_pub, reason = "not every test file uses all of the support")]

mod support;

use oss_server::{Generated, OssServer};
use support::{Answer, send};

const KEYS: [&str; 9] = ["a", "a/", "a/b", "a//b", "b\n", "c/d/e", "c/f", "ü", "\u{10ffff}/x"];

fn server() -> OssServer {
    let server = OssServer::builder().public_bucket("b").start_blocking().unwrap();
    for key in KEYS {
        server.put("b", key, key.to_owned());
    }
    server
}

fn list(server: &OssServer, query: &str) -> Answer {
    send(server.address(), "GET", &format!("/b/?{query}&encoding-type=url"), &[], b"")
}

/// What stands between all `<name>` and `</name>`.
fn all(answer: &Answer, name: &str) -> Vec<String> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    answer
        .text()
        .split(&open)
        .skip(1)
        .map(|rest| rest.split(&close).next().unwrap().to_owned())
        .map(|text| percent_encoding::percent_decode_str(&text).decode_utf8().unwrap().into_owned())
        .collect()
}

/// Follows the pages: keys and common prefixes in the order they came.
fn pages(server: &OssServer, query: &str, v1: bool) -> (Vec<String>, Vec<String>) {
    let (mut keys, mut folders) = (Vec::new(), Vec::new());
    let mut next = String::new();
    loop {
        let answer = list(server, &format!("{query}{next}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        keys.extend(all(&answer, "Key"));
        for common in all(&answer, "CommonPrefixes") {
            folders.push(common.trim().replace("<Prefix>", "").replace("</Prefix>", ""));
        }
        let truncated = all(&answer, "IsTruncated") == ["true"];
        let token = all(&answer, if v1 { "NextMarker" } else { "NextContinuationToken" });
        assert_eq!(truncated, token.len() == 1);
        let Some(token) = token.first() else { return (keys, folders) };
        let name = if v1 { "marker" } else { "continuation-token" };
        let all = percent_encoding::NON_ALPHANUMERIC;
        next = format!("&{name}={}", percent_encoding::utf8_percent_encode(token, all));
    }
}

#[test]
fn pages_of_any_size_hold_every_key_once_in_order() {
    let server = server();
    let mut wanted = KEYS.to_vec();
    wanted.sort();
    for most in 1..=KEYS.len() + 1 {
        let v2 = pages(&server, &format!("list-type=2&max-keys={most}"), false);
        assert_eq!(v2, (wanted.iter().map(|k| k.to_string()).collect(), vec![]), "{most}");
        assert_eq!(pages(&server, &format!("max-keys={most}"), true), v2);
    }
}

#[test]
fn a_delimiter_folds_what_is_below_it_whatever_the_page() {
    let server = server();
    for most in 1..=5 {
        for (query, v1) in [("list-type=2&", false), ("", true)] {
            let (keys, folders) =
                pages(&server, &format!("{query}delimiter=%2F&max-keys={most}"), v1);
            assert_eq!(keys, ["a", "b\n", "ü"], "{most} {query}");
            assert_eq!(folders, ["a/", "c/", "\u{10ffff}/"], "{most} {query}");
        }
    }
    let (keys, folders) = pages(&server, "list-type=2&prefix=a%2F&delimiter=%2F&max-keys=1", false);
    assert_eq!((keys, folders), (vec!["a/".into(), "a/b".into()], vec!["a//".to_owned()]));
}

#[test]
fn prefix_and_start_after_are_strings() {
    let server = server();
    assert_eq!(pages(&server, "list-type=2&prefix=c%2F", false).0, ["c/d/e", "c/f"]);
    assert_eq!(pages(&server, "list-type=2&prefix=c&start-after=c%2Fd%2Fe", false).0, ["c/f"]);
    assert_eq!(pages(&server, "list-type=2&start-after=b%0A&max-keys=1", false).0.len(), 4);
    assert!(pages(&server, "list-type=2&prefix=none", false).0.is_empty());
}

#[test]
fn start_after_a_folder_is_before_what_is_in_it() {
    let server = server();
    let query = "list-type=2&delimiter=%2F&start-after=a%2F";
    let (keys, folders) = pages(&server, query, false);
    assert_eq!(keys, ["b\n", "ü"]);
    assert_eq!(folders, ["a/", "c/", "\u{10ffff}/"]);
}

#[test]
fn generated_objects_mix_with_stored_ones() {
    let server = server();
    let set: Generated = "small=2500x16KiB".parse().unwrap();
    server.generate("b", set);
    server.put("b", "small/00000007.bin", "stored");
    server.put("b", "small/00000007.bin.more", "stored");
    assert!(server.delete("b", "small/00000009.bin"));
    let (keys, _) = pages(&server, "list-type=2&max-keys=999&prefix=small%2F", false);
    assert_eq!(keys.len(), 2500);
    assert!(keys.is_sorted());
    assert_eq!(
        &keys[6..10],
        [
            "small/00000006.bin",
            "small/00000007.bin",
            "small/00000007.bin.more",
            "small/00000008.bin"
        ]
    );
    assert_eq!(keys[10], "small/00000010.bin");
    let answer = list(&server, "list-type=2&max-keys=1&prefix=small%2F00000008");
    assert_eq!(all(&answer, "Size"), ["16384"]);
    let etag = server.etag("b", "small/00000008.bin").unwrap();
    assert_eq!(all(&answer, "ETag")[0].replace("&quot;", "\""), etag);
    let got = send(server.address(), "GET", "/b/small/00000008.bin", &[], b"");
    assert_eq!(got.header("etag"), Some(etag.as_str()));
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Xz, &got.body);
    assert_eq!(got.header("x-oss-hash-crc64ecma"), Some(crc.to_string().as_str()));
}

#[test]
fn without_encoding_control_characters_are_character_references() {
    let server = server();
    server.put("b", "z\u{1}", "");
    let answer = send(server.address(), "GET", "/b/?list-type=2&prefix=z", &[], b"");
    assert!(answer.text().contains("<Key>z&#x1;</Key>"));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let server = server();
    for query in [
        "list-type=2&max-keys=0",
        "list-type=2&max-keys=1001",
        "list-type=2&max-keys=x",
        "list-type=2&continuation-token=nonsense",
    ] {
        let answer = list(&server, query);
        assert_eq!((answer.status, answer.code()), (400, "InvalidArgument"), "{query}");
    }
    let answer = send(server.address(), "GET", "/none/?list-type=2", &[], b"");
    assert_eq!((answer.status, answer.code()), (404, "NoSuchBucket"));
}
