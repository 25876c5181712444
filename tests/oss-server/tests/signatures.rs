//! Signatures, made by reqsign and judged by the server.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, unreachable_pub, reason = "not every test file uses all of the support")]

mod support;

use chrono::{TimeDelta, Utc};
use oss_server::OssServer;
use support::{Answer, send, sign_oss, sign_s3};

const KEY: (&str, &str) = ("id", "secret");

fn server() -> OssServer {
    let server = OssServer::builder()
        .bucket("b")
        .public_bucket("open")
        .foreign_bucket("far", "cn-beijing")
        .credentials(KEY.0, KEY.1)
        .powerless("weak", "secret")
        .session("sts", "secret", "token", Some(Utc::now() + TimeDelta::hours(1)))
        .start_blocking()
        .unwrap();
    for key in ["k", "a//b", "a/./b/../c", " +%&=?#", "中/\u{1}\n"] {
        server.put("b", key, key.to_owned());
    }
    server.put("open", "k", "k");
    server
}

fn encode(key: &str) -> String {
    const ENCODED: percent_encoding::AsciiSet =
        percent_encoding::NON_ALPHANUMERIC.remove(b'/').remove(b'.');
    percent_encoding::utf8_percent_encode(key, &ENCODED).to_string()
}

/// Virtual-host style, because that is where reqsign's version 4 is right about the bucket.
fn oss(server: &OssServer, target: &str, key: (&str, &str, Option<&str>)) -> Answer {
    let host = "b.oss-cn-hangzhou.aliyuncs.com";
    let headers = sign_oss("GET", &format!("http://{host}{target}"), "b", &[], key);
    request(server, target, host, &headers)
}

fn s3(server: &OssServer, target: &str, headers: &[(&str, &str)]) -> Answer {
    let host = format!("{}", server.address());
    let headers = sign_s3("GET", &format!("http://{host}{target}"), headers, KEY);
    request(server, target, &host, &headers)
}

fn request(server: &OssServer, target: &str, host: &str, headers: &[(String, String)]) -> Answer {
    let mut all = vec![("host", host)];
    all.extend(headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).filter(|(n, _)| *n != "host"));
    send(server.address(), "GET", target, &all, b"")
}

#[test]
fn version_4_of_oss_is_accepted_for_any_key() {
    let server = server();
    for key in ["k", "a//b", "a/./b/../c", " +%&=?#", "中/\u{1}\n"] {
        let answer = oss(&server, &format!("/{}", encode(key)), (KEY.0, KEY.1, None));
        assert_eq!((answer.status, answer.text()), (200, key), "{}", answer.text());
        assert!(answer.header("x-oss-request-id").is_some());
    }
    let target = "/?list-type=2&prefix=a%2F&delimiter=%2F&max-keys=5&encoding-type=url";
    assert_eq!(oss(&server, target, (KEY.0, KEY.1, None)).status, 200);
}

#[test]
fn version_4_of_s3_is_accepted_for_any_key() {
    let server = server();
    for key in ["k", "a//b", "a/./b/../c", " +%&=?#", "中/\u{1}\n"] {
        let answer = s3(&server, &format!("/b/{}", encode(key)), &[]);
        assert_eq!((answer.status, answer.text()), (200, key), "{}", answer.text());
        assert!(answer.header("x-amz-request-id").is_some());
        assert_eq!(answer.header("x-oss-hash-crc64ecma"), None);
    }
    let target = "/b/?list-type=2&prefix=a%2F&delimiter=%2F&max-keys=5&start-after=";
    assert_eq!(s3(&server, target, &[]).status, 200);
}

#[test]
fn what_is_not_rightly_signed_is_refused() {
    let server = server();
    let code = |answer: Answer| (answer.status, answer.code().to_owned());
    let refused = |code: &str| (403, code.to_owned());
    assert_eq!(code(oss(&server, "/k", ("id", "wrong", None))), refused("SignatureDoesNotMatch"));
    assert_eq!(code(oss(&server, "/k", ("none", "x", None))), refused("InvalidAccessKeyId"));
    assert_eq!(code(oss(&server, "/k", ("weak", "secret", None))), refused("AccessDenied"));
    assert_eq!(code(oss(&server, "/k", ("sts", "secret", None))), refused("InvalidSecurityToken"));
    assert_eq!(
        code(oss(&server, "/k", ("sts", "secret", Some("other")))),
        refused("InvalidSecurityToken")
    );
    assert_eq!(oss(&server, "/k", ("sts", "secret", Some("token"))).status, 200);
    server.expire("sts");
    assert_eq!(
        code(oss(&server, "/k", ("sts", "secret", Some("token")))),
        refused("SecurityTokenExpired")
    );
    assert_eq!(code(send(server.address(), "GET", "/b/k", &[], b"")), refused("AccessDenied"));
    assert_eq!(send(server.address(), "GET", "/open/k", &[], b"").status, 200);
    assert_eq!(code(send(server.address(), "PUT", "/open/k", &[], b"x")), refused("AccessDenied"));
}

#[test]
fn a_signature_covers_the_target_and_the_headers() {
    let server = server();
    let host = "b.oss-cn-hangzhou.aliyuncs.com";
    let headers = sign_oss("GET", &format!("http://{host}/k"), "b", &[], (KEY.0, KEY.1, None));
    assert_eq!(request(&server, "/k", host, &headers).status, 200);
    assert_eq!(request(&server, "/a//b", host, &headers).code(), "SignatureDoesNotMatch");
    let mut more = headers.clone();
    more.push(("x-oss-range-behavior".into(), "standard".into()));
    assert_eq!(request(&server, "/k", host, &more).code(), "SignatureDoesNotMatch");
    let mut more = headers.clone();
    more.push(("range".into(), "bytes=0-0".into()));
    assert_eq!(request(&server, "/k", host, &more).status, 206);
}

#[test]
fn a_clock_that_is_off_is_refused_with_the_servers_time() {
    let server = server();
    server.set_clock_ahead(-1000);
    let answer = oss(&server, "/k", (KEY.0, KEY.1, None));
    assert_eq!((answer.status, answer.code()), (403, "RequestTimeTooSkewed"));
    let date = chrono::DateTime::parse_from_rfc2822(answer.header("date").unwrap()).unwrap();
    assert!((Utc::now() - date.to_utc()).num_seconds() >= 999);
    assert_eq!(s3(&server, "/b/k", &[]).code(), "RequestTimeTooSkewed");
    server.set_clock_ahead(600);
    assert_eq!(oss(&server, "/k", (KEY.0, KEY.1, None)).status, 200);
}

#[test]
fn a_bucket_elsewhere_names_its_endpoint() {
    let server = server();
    let host = "far.oss-cn-hangzhou.aliyuncs.com";
    let headers = sign_oss("GET", &format!("http://{host}/k"), "far", &[], (KEY.0, KEY.1, None));
    let answer = request(&server, "/k", host, &headers);
    assert_eq!((answer.status, answer.code()), (403, "AccessDenied"));
    assert!(answer.text().contains("<Endpoint>oss-cn-beijing.aliyuncs.com</Endpoint>"));
}

#[test]
fn a_body_must_hash_to_what_its_headers_say() {
    let server = server();
    let put = |headers: &[(&str, &str)], body: &[u8]| {
        let host = server.address().to_string();
        let signed = sign_s3("PUT", &format!("http://{host}/b/new"), headers, KEY);
        let headers: Vec<_> = signed.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        send(server.address(), "PUT", "/b/new", &headers, body)
    };
    let sha256 = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881";
    let md5 = [("content-md5", "ndTkYSaMgDT1yFZOFVxnpg==")];
    assert_eq!(put(&[("x-amz-content-sha256", sha256)], b"x").status, 200);
    assert_eq!(put(&[("x-amz-content-sha256", sha256)], b"y").code(), "ContentSHA256Mismatch");
    assert_eq!(put(&md5, b"x").status, 200);
    assert_eq!(put(&md5, b"y").code(), "InvalidDigest");
    assert_eq!(put(&[("content-md5", "nonsense")], b"x").code(), "InvalidDigest");
    assert_eq!(server.read("b", "new").as_deref(), Some(&b"x"[..]));
}
