//! What each fault looks like from the other end of the connection.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, unreachable_pub, reason = "not every test file uses all of the support")]

mod support;

use std::time::Duration;

use oss_server::{Action, Fault, Operation, OssServer, PutOptions};
use support::{Answer, End, send, send_for};

const SIZE: usize = 300_000;

fn server() -> (OssServer, Vec<u8>) {
    let server = OssServer::builder().public_bucket("b").start_blocking().unwrap();
    let body: Vec<u8> = (0..SIZE).map(|i| (i * 7 % 251) as u8).collect();
    server.put("b", "k", body.clone());
    (server, body)
}

fn get(server: &OssServer, headers: &[(&str, &str)]) -> Answer {
    send(server.address(), "GET", "/b/k", headers, b"")
}

#[test]
fn without_a_fault_the_object_comes_whole_with_its_crc() {
    let (server, body) = server();
    let answer = get(&server, &[]);
    assert_eq!((answer.status, answer.end), (200, End::Complete));
    assert!(answer.body == body);
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Xz, &body);
    assert_eq!(answer.header("x-oss-hash-crc64ecma"), Some(crc.to_string().as_str()));
}

#[test]
fn a_status_is_answered_as_often_as_asked() {
    let (server, _) = server();
    let slow = [("x-oss-qos-delay-time", "150")];
    server.fault(Fault::get("k").times(2).status_with(503, "QpsLimitExceeded", &slow));
    for _ in 0..2 {
        let answer = get(&server, &[]);
        assert_eq!((answer.status, answer.code()), (503, "QpsLimitExceeded"));
        assert_eq!(answer.header("x-oss-qos-delay-time"), Some("150"));
    }
    assert_eq!(get(&server, &[]).status, 200);
    let stats = server.stats();
    assert_eq!((stats.wasted, stats.faults, stats.count(Operation::GetObject)), (2, 2, 3));
    assert_eq!(server.gets("b", "k"), 3);
}

#[test]
fn a_connection_is_reset_before_the_answer_or_within_it() {
    let (server, body) = server();
    server.fault(Fault::get("k").times(1).reset_before_headers());
    let answer = get(&server, &[]);
    assert_eq!((answer.status, answer.end), (0, End::Reset));
    server.fault(Fault::get("k").times(1).reset_after(100_000));
    let answer = get(&server, &[]);
    assert_eq!((answer.status, answer.end, answer.body.len()), (200, End::Reset, 100_000));
    assert!(answer.body == body[..100_000]);
}

#[test]
fn a_body_is_short_or_long_or_followed_by_something() {
    let (server, _) = server();
    server.fault(Fault::get("k").times(1).short_body(1000));
    let answer = get(&server, &[]);
    assert_eq!((answer.end, answer.body.len()), (End::Closed, 1000));
    server.fault(Fault::get("k").times(1).long_body(10));
    let answer = get(&server, &[]);
    assert_eq!((answer.end, answer.body.len()), (End::Complete, SIZE + 10));
    server.fault(Fault::get("k").times(1).short_body(0));
    let answer = get(&server, &[]);
    assert_eq!((answer.status, answer.end, answer.body.len()), (200, End::Closed, 0));
}

#[test]
fn a_body_stalls_for_a_while_or_for_ever() {
    let (server, body) = server();
    for at in [5000, 6000] {
        server.fault(Fault::get("k").times(1).stall_after(at, Duration::from_millis(100)));
    }
    let start = std::time::Instant::now();
    let answer = get(&server, &[]);
    assert!(answer.body == body && start.elapsed() >= Duration::from_millis(200));
    server.fault(Fault::get("k").times(1).stall_forever_after(5000));
    let patience = Duration::from_millis(300);
    let answer = send_for(patience, server.address(), "GET", "/b/k", &[], b"");
    assert_eq!((answer.end, answer.body.len()), (End::Silence, 5000));
}

#[test]
fn a_byte_is_flipped_in_the_part_that_holds_it() {
    let (server, body) = server();
    server.fault(Fault::get("k").times(1).flip_byte(150_000));
    let answer = get(&server, &[("range", "bytes=0-99999")]);
    assert!(answer.status == 206 && answer.body == body[..100_000]);
    let answer = get(&server, &[("range", "bytes=100000-199999")]);
    let wrong: Vec<usize> = (0..100_000).filter(|i| answer.body[*i] != body[100_000 + i]).collect();
    assert_eq!(wrong, [50_000]);
    assert!(get(&server, &[]).body == body);
}

#[test]
fn headers_and_ranges_lie() {
    let (server, body) = server();
    let range = [("range", "bytes=100-199")];
    server.fault(Fault::get("k").times(1).etag("other"));
    assert_eq!(get(&server, &[]).header("etag"), Some("\"other\""));
    server.fault(Fault::get("k").times(1).content_range("bytes 1-2/3"));
    assert_eq!(get(&server, &range).header("content-range"), Some("bytes 1-2/3"));
    server.fault(Fault::get("k").times(1).other_range(0..50));
    let answer = get(&server, &range);
    assert_eq!((answer.status, answer.body.as_slice()), (206, &body[..50]));
    server.fault(Fault::get("k").times(1).ignore_range());
    let answer = get(&server, &range);
    assert_eq!((answer.status, answer.body.len()), (200, SIZE));
    server.fault(Fault::get("k").times(1).crc(1));
    assert_eq!(get(&server, &[]).header("x-oss-hash-crc64ecma"), Some("1"));
    server.fault(Fault::get("k").times(1).no_crc());
    assert_eq!(get(&server, &[]).header("x-oss-hash-crc64ecma"), None);
    server.fault(Fault::get("k").times(1).redirect_loop());
    let answer = get(&server, &[]);
    assert_eq!(answer.header("location"), Some(format!("{}/b/k", server.endpoint()).as_str()));
}

#[test]
fn a_header_or_a_listing_does_not_end() {
    let (server, _) = server();
    server.fault(Fault::get("k").times(1).huge_header(1 << 20));
    let answer = get(&server, &[]);
    assert_eq!((answer.status, answer.end, answer.body.len()), (0, End::Closed, 1 << 20));
    server.fault(Fault::list().times(1).huge_xml(1 << 20));
    let answer = send(server.address(), "GET", "/b/?list-type=2", &[], b"");
    assert!(answer.body.len() > 1 << 20 && answer.end == End::Complete);
}

#[test]
fn a_token_is_repeated() {
    let (server, _) = server();
    server.put("b", "l", "");
    let list = |target: &str| {
        let answer = send(server.address(), "GET", target, &[], b"");
        let text = answer.text().to_owned();
        text.split_once("<NextContinuationToken>")
            .map(|(_, rest)| rest.split_once('<').unwrap().0.replace('=', "%3D").to_owned())
    };
    let token = list("/b/?list-type=2&max-keys=1").unwrap();
    let next = format!("/b/?list-type=2&max-keys=1&continuation-token={token}");
    assert_eq!(list(&next), None);
    server.fault(Fault::list().repeat_token());
    assert_eq!(list(&next), Some(token));
}

#[test]
fn a_byte_of_a_listing_is_flipped() {
    let (server, _) = server();
    let list = || send(server.address(), "GET", "/b/?list-type=2", &[], b"").body;
    let right = list();
    server.fault(Fault::list().times(1).flip_byte(40));
    let wrong = list();
    assert_eq!(wrong[40], !right[40]);
    assert!(wrong[..40] == right[..40] && wrong[41..] == right[41..]);
}

#[test]
fn bytes_follow_an_answer_that_nothing_announced() {
    use std::io::{Read, Write};
    let (server, body) = server();
    server.fault(Fault::get("k").trailing(100));
    let mut stream = std::net::TcpStream::connect(server.address()).unwrap();
    stream.write_all(b"GET /b/k HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let start = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    assert!(answer[start..start + SIZE] == body);
    assert_eq!(answer.len(), start + SIZE + 100);
}

#[test]
fn an_answer_is_late_and_its_date_is_off() {
    let (server, _) = server();
    server.fault(Fault::get("k").delay(Duration::from_millis(100)));
    server.fault(Fault::get("k").date_offset(-3600));
    let start = std::time::Instant::now();
    let answer = get(&server, &[]);
    assert!(start.elapsed() >= Duration::from_millis(100));
    let date = chrono::DateTime::parse_from_rfc2822(answer.header("date").unwrap()).unwrap();
    assert!((chrono::Utc::now() - date.to_utc()).num_seconds() >= 3590);
    assert!(server.wait_until(Duration::from_secs(5), |stats| stats.concurrent == 0));
    assert_eq!(server.stats().peak_concurrent, 1);
}

#[tokio::test]
async fn a_server_starts_and_stops_within_a_runtime() {
    let server = OssServer::builder().public_bucket("b").start().await.unwrap();
    let taken = OssServer::builder().listen(server.address()).start().await;
    assert!(taken.is_err());
    let address = server.address();
    drop(server);
    let gone = tokio::task::spawn_blocking(move || {
        let end = std::time::Instant::now() + Duration::from_secs(5);
        while std::net::TcpStream::connect(address).is_ok() && std::time::Instant::now() < end {}
        std::net::TcpStream::connect(address).is_err()
    });
    assert!(gone.await.unwrap());
}

#[test]
fn requests_above_the_admission_are_turned_away() {
    let server = OssServer::builder().public_bucket("b").admit(20).start_blocking().unwrap();
    server.put("b", "k", "x");
    let statuses: Vec<u16> = (0..20).map(|_| get(&server, &[]).status).collect();
    assert!(statuses.contains(&200) && statuses.contains(&503), "{statuses:?}");
}

#[test]
fn a_connection_has_its_bandwidth() {
    let server =
        OssServer::builder().public_bucket("b").per_connection(100_000_000).start_blocking();
    let server = server.unwrap();
    server.put_synthetic("b", "k", 20_000_000, 1, PutOptions::new());
    let took = || {
        let start = std::time::Instant::now();
        assert_eq!(get(&server, &[]).body.len(), 20_000_000);
        start.elapsed().as_secs_f64()
    };
    // Nothing makes it faster; whatever else this machine does makes it slower.
    let took: Vec<f64> = (0..10).map(|_| took()).collect();
    assert!(took.iter().all(|took| *took > 0.15), "{took:?}");
    assert!(took.iter().any(|took| *took < 0.3), "{took:?}");
}

#[test]
fn headers_bits_and_texts_change_on_their_way() {
    let (server, body) = server();
    let once = || Fault::any().times(1);
    server.fault(once().header("etag", "\"other\""));
    assert_eq!(get(&server, &[]).header("etag"), Some("\"other\""));
    server.fault(once().no_header("etag"));
    assert_eq!(get(&server, &[]).header("etag"), None);
    let crc = get(&server, &[]).header("x-oss-hash-crc64ecma").unwrap().to_owned();
    server.fault(once().action(Action::FlipHeader("x-oss-hash-crc64ecma".into(), 0)));
    let flipped = get(&server, &[]).header("x-oss-hash-crc64ecma").unwrap().to_owned();
    assert_eq!(flipped.as_bytes()[0], crc.as_bytes()[0] ^ 1);
    assert_eq!(flipped[1..], crc[1..]);
    server.fault(once().action(Action::FlipBit(5)));
    let answer = get(&server, &[]);
    let differ: Vec<_> = (0..SIZE).filter(|n| answer.body[*n] != body[*n]).collect();
    assert_eq!((differ, answer.body[5]), (vec![5], body[5] ^ 1));
    server.fault(once().instead("text/html", "<html>"));
    assert_eq!(get(&server, &[]).body, b"<html>");
    server.fault(once().action(Action::Raw("what?".into())));
    assert_eq!(get(&server, &[]).status, 0);
    server.fault(Fault::list().replace("<Key>k", "<Key>l"));
    let page = send(server.address(), "GET", "/b/?list-type=2", &[], b"");
    assert!(String::from_utf8(page.body).unwrap().contains("<Key>l</Key>"));
}

#[test]
fn a_refusal_may_quote_the_request() {
    let (server, _) = server();
    server.fault(Fault::any().echo(403, "SignatureDoesNotMatch"));
    let answer = get(&server, &[("authorization", "OSS4 Signature=abc")]);
    let text = String::from_utf8(answer.body).unwrap();
    assert_eq!(answer.status, 403);
    assert!(text.contains("<SignatureProvided>abc<"), "{text}");
}

#[test]
fn an_object_may_go_or_change_just_before_its_answer() {
    let (server, body) = server();
    server.fault(Fault::get("k").times(1).action(Action::Overwrite));
    let other = get(&server, &[]);
    assert!(other.status == 200 && other.body.len() == SIZE && other.body != body);
    server.fault(Fault::get("k").times(1).action(Action::Vanish));
    assert_eq!(get(&server, &[]).status, 404);
    assert!(server.read("b", "k").is_none());
}

#[test]
fn pages_may_come_again_under_other_tokens() {
    let (server, _) = server();
    for action in [Action::RepeatPage, Action::BeginAnew, Action::EmptyPages] {
        server.clear_faults();
        server.fault(Fault::list().action(action.clone()));
        let mut tokens = std::collections::BTreeSet::new();
        let mut target = "/b/?list-type=2".to_owned();
        for _ in 0..4 {
            let page = send(server.address(), "GET", &target, &[], b"");
            let text = String::from_utf8(page.body).unwrap();
            assert_eq!(text.contains("<Key>k<"), action != Action::EmptyPages, "{text}");
            let (_, rest) = text.split_once("<NextContinuationToken>").unwrap();
            let token = rest.split('<').next().unwrap().to_owned();
            target = format!("/b/?list-type=2&continuation-token={}", token.replace('=', "%3D"));
            assert!(tokens.insert(token), "{action:?}: {tokens:?}");
        }
    }
}
