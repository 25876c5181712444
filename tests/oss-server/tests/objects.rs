//! What objects answer with.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, unreachable_pub, reason = "not every test file uses all of the support")]

mod support;

use base64::Engine;
use oss_server::{OssServer, PutOptions};
use support::{Answer, End, send};

fn server() -> OssServer {
    let server = OssServer::builder().public_bucket("b").start_blocking().unwrap();
    server.put("b", "k", "0123456789");
    server
}

fn get(server: &OssServer, key: &str, headers: &[(&str, &str)]) -> Answer {
    send(server.address(), "GET", &format!("/b/{key}"), headers, b"")
}

#[test]
fn a_range_is_partial_and_its_crc_is_of_the_whole() {
    let server = server();
    let whole = get(&server, "k", &[]);
    for (range, body, content_range) in [
        ("bytes=0-0", "0", "bytes 0-0/10"),
        ("bytes=3-5", "345", "bytes 3-5/10"),
        ("bytes=7-", "789", "bytes 7-9/10"),
        ("bytes=-2", "89", "bytes 8-9/10"),
    ] {
        let answer = get(&server, "k", &[("range", range)]);
        assert_eq!((answer.status, answer.text()), (206, body));
        assert_eq!(answer.header("content-range"), Some(content_range));
        let crc = "x-oss-hash-crc64ecma";
        assert_eq!(answer.header(crc), whole.header(crc));
    }
}

#[test]
fn an_invalid_range_is_the_whole_object_unless_the_standard_is_asked_for() {
    let server = server();
    let standard = ("x-oss-range-behavior", "standard");
    for (range, status) in [("bytes=10-", 416), ("bytes=5-20", 206), ("bytes=5-2", 200)] {
        assert_eq!(get(&server, "k", &[("range", range)]).status, 200, "{range}");
        let answer = get(&server, "k", &[("range", range), standard]);
        assert_eq!(answer.status, status, "{range}");
    }
    server.put("b", "empty", "");
    let answer = get(&server, "empty", &[("range", "bytes=0-"), standard]);
    assert_eq!((answer.status, answer.code()), (416, "InvalidRange"));
}

#[test]
fn conditions_are_kept() {
    let server = server();
    let etag = server.etag("b", "k").unwrap();
    assert_eq!(etag, "\"781E5E245D69B566979B86E28D23F2C7\"");
    assert_eq!(get(&server, "k", &[("if-match", &etag)]).status, 200);
    assert_eq!(get(&server, "k", &[("if-match", etag.trim_matches('"'))]).status, 200);
    assert_eq!(get(&server, "k", &[("if-match", "\"x\"")]).code(), "PreconditionFailed");
    assert_eq!(get(&server, "k", &[("if-none-match", &etag)]).status, 304);
    server.put("b", "k", "other");
    assert_eq!(get(&server, "k", &[("if-match", &etag)]).status, 412);
}

#[test]
fn an_error_of_head_is_in_its_headers() {
    let server = server();
    let answer = send(server.address(), "HEAD", "/b/none", &[], b"");
    assert_eq!((answer.status, answer.header("x-oss-ec")), (404, Some("0026-00000001")));
    let error = base64::engine::general_purpose::STANDARD
        .decode(answer.header("x-oss-err").unwrap())
        .unwrap();
    assert!(String::from_utf8(error).unwrap().contains("<Code>NoSuchKey</Code>"));
    let answer = send(server.address(), "HEAD", "/b/k", &[], b"");
    assert_eq!((answer.status, answer.header("content-length")), (200, Some("10")));
    assert_eq!((answer.end, answer.body.len()), (End::Complete, 0));
}

#[test]
fn a_link_is_followed_and_may_lead_nowhere() {
    let server = server();
    server.put_symlink("b", "link", "k");
    server.put_symlink("b", "loop", "link");
    server.put_symlink("b", "dangling", "none");
    let answer = get(&server, "link", &[]);
    assert_eq!((answer.status, answer.text()), (200, "0123456789"));
    assert_eq!(answer.header("x-oss-object-type"), Some("Symlink"));
    assert_eq!(answer.header("etag"), server.etag("b", "k").as_deref());
    assert_ne!(server.etag("b", "link"), server.etag("b", "k"));
    assert_eq!(get(&server, "dangling", &[]).code(), "SymlinkTargetNotExist");
    assert_eq!(get(&server, "loop", &[]).code(), "InvalidTargetType");
    assert_eq!(get(&server, "link?symlink", &[]).header("x-oss-symlink-target"), Some("k"));
}

#[test]
fn archived_objects_are_refused_until_restored() {
    let server = server();
    for class in ["Archive", "ColdArchive", "DeepColdArchive"] {
        server.put_with("b", "cold", "x", PutOptions::new().storage_class(class));
        let answer = get(&server, "cold", &[]);
        assert_eq!((answer.status, answer.code()), (403, "InvalidObjectState"));
        server.put_with("b", "cold", "x", PutOptions::new().storage_class(class).restoring());
        assert_eq!(get(&server, "cold", &[]).status, 403);
        server.put_with("b", "cold", "x", PutOptions::new().storage_class(class).restored());
        let answer = get(&server, "cold", &[]);
        assert_eq!((answer.status, answer.header("x-oss-storage-class")), (200, Some(class)));
    }
    server.put_with("b", "ia", "x", PutOptions::new().storage_class("IA"));
    assert_eq!(get(&server, "ia", &[]).status, 200);
}

#[test]
fn an_object_says_what_it_was_put_with() {
    let server = server();
    let options = PutOptions::new()
        .content_type("text/x-test")
        .content_md5()
        .metadata("colour", "red")
        .sse_kms("key-1")
        .without_crc();
    server.put_with("b", "k", "0123456789", options);
    let answer = get(&server, "k", &[]);
    assert_eq!(answer.header("content-type"), Some("text/x-test"));
    assert_eq!(answer.header("content-md5"), Some("eB5eJF1ptWaXm4bijSPyxw=="));
    assert_eq!(answer.header("x-oss-meta-colour"), Some("red"));
    assert_eq!(answer.header("x-oss-server-side-encryption"), Some("KMS"));
    assert_eq!(answer.header("x-oss-hash-crc64ecma"), None);
    assert_ne!(answer.header("etag"), Some("\"781E5E245D69B566979B86E28D23F2C7\""));
    assert_eq!(get(&server, "k", &[("range", "bytes=0-1")]).header("content-md5"), None);
    server.put_with("b", "k", "0123456789", PutOptions::new().in_parts(4));
    assert!(get(&server, "k", &[]).header("etag").unwrap().ends_with("-3\""));
    server.put_with("b", "k", "0123456789", PutOptions::new().wrong_crc(7));
    assert_eq!(get(&server, "k", &[]).header("x-oss-hash-crc64ecma"), Some("7"));
}

#[test]
fn s3_checksums_come_when_asked_for_and_not_with_a_range() {
    let server = server();
    server.put_with("b", "k", "x", PutOptions::new().checksum("sha256", "abc=", "COMPOSITE"));
    let plain = [("x-amz-content-sha256", "UNSIGNED-PAYLOAD")];
    let mode = ("x-amz-checksum-mode", "ENABLED");
    assert_eq!(get(&server, "k", &plain).header("x-amz-checksum-sha256"), None);
    let answer = get(&server, "k", &[plain[0], mode]);
    assert_eq!(answer.header("x-amz-checksum-sha256"), Some("abc="));
    assert_eq!(answer.header("x-amz-checksum-type"), Some("COMPOSITE"));
    assert_eq!(answer.header("x-amz-storage-class"), Some("Standard"));
    assert_eq!(answer.header("x-oss-hash-crc64ecma"), None);
    let answer = get(&server, "k", &[plain[0], mode, ("range", "bytes=0-0")]);
    assert_eq!((answer.status, answer.header("x-amz-checksum-sha256")), (206, None));
    let server = OssServer::builder().public_bucket("b").crc_in_s3().start_blocking().unwrap();
    server.put("b", "k", "x");
    assert!(get(&server, "k", &plain).header("x-oss-hash-crc64ecma").is_some());
}

#[test]
fn a_synthetic_object_is_served_in_parts_with_one_crc() {
    let server = server();
    let size = 5 * (1 << 20) + 321;
    server.put_synthetic("b", "big", size, 9, PutOptions::new());
    let whole = get(&server, "big", &[]);
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Xz, &whole.body).to_string();
    assert_eq!(whole.body.len() as u64, size);
    assert_eq!(whole.header("x-oss-hash-crc64ecma"), Some(crc.as_str()));
    let part = get(&server, "big", &[("range", "bytes=1048000-3200000")]);
    assert!(part.body == whole.body[1_048_000..=3_200_000]);
    assert_eq!(part.header("x-oss-hash-crc64ecma"), Some(crc.as_str()));
    assert!(server.read("b", "big").unwrap() == whole.body);
    // Larger than any memory; its CRC is computed only when an answer needs it.
    server.put_synthetic("b", "huge", 50_000_000_000_000, 9, PutOptions::new().without_crc());
    let range = [("range", "bytes=49999999999990-")];
    assert_eq!(get(&server, "huge", &range).body.len(), 10);
}
