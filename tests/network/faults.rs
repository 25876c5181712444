//! Each fault alone, for a listing, a whole object and a part, once and always, in both dialects.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use oss_server::Action;

use crate::common::{
    ERROR_XML, On, PORTAL, Scheme, Versions, WATCHDOG, builder, filled, finishes, hasty, header,
    instead, keys, promised, replace, same, signed, status, watched,
};
use crate::support::Place;
use crate::support::cases::{Part, measured, shown};

/// Cases at once: most of their time is waiting.
const AT_ONCE: usize = 12;

/// A fault, and how a run must end that always meets it: for a listing, an object, a part; `-` where
/// it has no meaning. Once is 0 unless said otherwise.
struct Case {
    name: &'static str,
    actions: Vec<Action>,
    always: [i32; 3],
    once: [i32; 3],
    timeout: &'static str,
    schemes: &'static [Scheme],
    /// What the message must hold besides the thing.
    says: &'static str,
    /// Whether a part is the first: where it matters which of them ends the run.
    first: bool,
    /// Whether the message can name the thing: not if everything ends with the first request.
    names: bool,
}

/// No such case.
const NONE: i32 = -1;
const BOTH: &[Scheme] = &[Scheme::Oss, Scheme::S3];

fn case(name: &'static str, action: Action, always: [i32; 3]) -> Case {
    Case {
        name,
        actions: vec![action],
        always,
        once: [0; 3],
        timeout: "20s",
        schemes: BOTH,
        says: "",
        names: true,
        first: false,
    }
}

impl Case {
    fn once(mut self, once: [i32; 3]) -> Self {
        self.once = once;
        self
    }
    /// Ends alike if it happens once.
    fn at_once(mut self) -> Self {
        self.once = self.always;
        self
    }
    /// Something is waited for: no longer than this.
    fn waits(mut self, timeout: &'static str) -> Self {
        self.timeout = timeout;
        self
    }
    fn and(mut self, action: Action) -> Self {
        self.actions.push(action);
        self
    }
    fn oss_only(mut self) -> Self {
        self.schemes = &[Scheme::Oss];
        self
    }
    fn says(mut self, text: &'static str) -> Self {
        self.says = text;
        self
    }
    fn first_part(mut self) -> Self {
        self.first = true;
        self
    }
    fn nameless(mut self) -> Self {
        self.names = false;
        self
    }
}

fn refusals() -> Vec<Case> {
    const ALL_4: [i32; 3] = [4; 3];
    const ALL_3: [i32; 3] = [3; 3];
    let year = "31536000";
    vec![
        case("500 InternalError", status(500, "InternalError", &[]), ALL_4).says("500"),
        case("502 of a gateway", status(502, "BadGateway", &[]), ALL_4).oss_only(),
        case("503 ServiceUnavailable", status(503, "ServiceUnavailable", &[]), ALL_4).says("503"),
        case("504 of a gateway", status(504, "GatewayTimeout", &[]), ALL_4).oss_only(),
        case("408 RequestTimeout", status(408, "RequestTimeout", &[]), ALL_4).oss_only(),
        case("429 TooManyRequests", status(429, "TooManyRequests", &[]), ALL_4).oss_only(),
        case(
            "403 DownloadTrafficRateLimitExceeded",
            status(403, "DownloadTrafficRateLimitExceeded", &[]),
            ALL_4,
        ),
        case(
            "503 that asks for a year of silence (x-oss-qos-delay-time)",
            status(503, "QpsLimitExceeded", &[("x-oss-qos-delay-time", "31536000000")]),
            ALL_4,
        )
        .waits("1s"),
        case(
            "503 that asks for a year of silence (Retry-After)",
            status(503, "SlowDown", &[("retry-after", year)]),
            ALL_4,
        )
        .waits("1s"),
        case(
            "503 that asks for silence up to the year 9999",
            status(503, "SlowDown", &[("retry-after", "Fri, 31 Dec 9999 23:59:59 GMT")]),
            ALL_4,
        )
        .waits("1s"),
        case(
            "503 with a negative Retry-After",
            status(503, "SlowDown", &[("retry-after", "-5"), ("x-oss-qos-delay-time", "-1")]),
            ALL_4,
        ),
        case(
            "503 with a Retry-After of garbage",
            status(503, "SlowDown", &[("retry-after", "soon, 99999999999999999999")]),
            ALL_4,
        ),
        case("400 InvalidArgument", status(400, "InvalidArgument", &[]), ALL_3).at_once(),
        case("403 AccessDenied", status(403, "AccessDenied", &[]), ALL_3).at_once().says("denied"),
        case("403 InvalidAccessKeyId", status(403, "InvalidAccessKeyId", &[]), ALL_3)
            .at_once()
            .says("access key"),
        case("403 SecurityTokenExpired", status(403, "SecurityTokenExpired", &[]), ALL_3)
            .at_once()
            .says("access key"),
        case("403 whose text is cut off", status(403, "SecurityTokenExpired", &[]), ALL_3)
            .and(Action::ShortBody(20)),
        case("403 InvalidObjectState", status(403, "InvalidObjectState", &[]), [NONE, 3, 3])
            .at_once()
            .says("archived"),
        case("403 RequestTimeTooSkewed", status(403, "RequestTimeTooSkewed", &[]), ALL_4)
            .nameless()
            .says("clock"),
        case(
            "403 RequestTimeTooSkewed with a Date of garbage",
            status(403, "RequestTimeTooSkewed", &[("date", "today")]),
            ALL_4,
        )
        .nameless(),
        case(
            "403 RequestTimeTooSkewed with a Date in the year 9999",
            status(403, "RequestTimeTooSkewed", &[("date", "Fri, 31 Dec 9999 23:59:59 GMT")]),
            ALL_4,
        )
        .nameless(),
        case("404 NoSuchBucket", status(404, "NoSuchBucket", &[]), ALL_3)
            .at_once()
            .nameless()
            .says("does not exist"),
        case("404 NoSuchKey", status(404, "NoSuchKey", &[]), [NONE, 5, 5]).at_once().says("gone"),
        case("412 PreconditionFailed", status(412, "PreconditionFailed", &[]), [NONE, 5, 5])
            .at_once()
            .says("changed"),
        case("416 InvalidRange", status(416, "InvalidRange", &[]), [NONE, 5, 5])
            .oss_only()
            .at_once(),
        case("304 to a GET", status(304, "", &[]), [NONE, 5, 5]).oss_only().at_once(),
        case("407 of a proxy", status(407, "", &[]), ALL_3).oss_only().at_once(),
        case("501 NotImplemented", status(501, "NotImplemented", &[]), ALL_3).oss_only().at_once(),
        case("a redirect to itself", Action::RedirectLoop, ALL_3).at_once().nameless(),
        case("a page of a proxy, with 200", instead(200, "text/html", PORTAL), ALL_4),
        case("an error document, with 200", instead(200, "application/xml", ERROR_XML), ALL_4),
        case("an empty answer, with 200", instead(200, "text/plain", ""), ALL_4),
        case("an answer 204", instead(204, "text/plain", ""), ALL_4),
        case(
            "a page of a proxy as long as the object, with 200",
            instead(200, "text/html", format!("{PORTAL}{}", " ".repeat(10_000 - PORTAL.len()))),
            [NONE, 4, NONE],
        )
        .says("ETag"),
        case("a page of a proxy, with 206", instead(206, "text/html", PORTAL), [NONE, NONE, 4]),
        case("the object is deleted before its fetch", Action::Vanish, [NONE, 5, 5])
            .at_once()
            .says("gone"),
        case("the object is replaced before its fetch", Action::Overwrite, [NONE, 5, 5])
            .at_once()
            .says("changed"),
    ]
}

fn connections() -> Vec<Case> {
    const ALL_4: [i32; 3] = [4; 3];
    let raw = |text: &str| Action::Raw(text.to_owned());
    let ok = "HTTP/1.1 200 OK\r\n";
    vec![
        case("a reset before the answer", Action::ResetBeforeHeaders, ALL_4),
        case("a reset after the headers", Action::ResetAfter(0), ALL_4),
        // each attempt brings something: it goes on from its last byte
        case("a reset within the body", Action::ResetAfter(1300), [4, 0, 0]),
        case("a body that ends at once", Action::ShortBody(0), ALL_4),
        case("a body that ends early", Action::ShortBody(1300), [4, 0, 0]),
        case("silence instead of an answer", Action::Delay(3_600_000), ALL_4).waits("2s"),
        case("silence after the headers", Action::Stall { after: 0, ms: None }, ALL_4).waits("2s"),
        case("silence within the body", Action::Stall { after: 10, ms: None }, ALL_4).waits("2s"),
        case("one byte every 200 ms", Action::Trickle { after: 10, ms: 200 }, [NONE, 4, 4])
            .waits("2s"),
        case("a listing with one byte every 200 ms", Action::Trickle { after: 10, ms: 200 }, {
            [4, NONE, NONE]
        })
        .waits("700ms"),
        case("a header of a gigabyte", Action::HugeHeader(1 << 30), ALL_4),
        case("a header without end, one byte every 100 ms", Action::SlowHeader(100), ALL_4)
            .waits("2s"),
        case("a listing of a gigabyte", Action::HugeXml(1 << 30), [4, NONE, NONE]),
        case("a listing of a gigabyte, dripping", Action::HugeXml(1 << 30), [4, NONE, NONE])
            .and(Action::Trickle { after: 1000, ms: 100 })
            .waits("700ms"),
        case("no answer but an orderly close", raw(""), ALL_4),
        case("another protocol", raw("SSH-2.0-OpenSSH_9.6\r\n"), ALL_4),
        case("a status that is none", raw("HTTP/1.1 9999 What\r\n\r\n"), ALL_4),
        case("a status line without end", raw(&"x".repeat(1 << 20)), ALL_4),
        case("a thousand interim answers", raw(&"HTTP/1.1 100 Continue\r\n\r\n".repeat(1000)), {
            ALL_4
        }),
        case(
            "a switch of protocols",
            raw("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n"),
            ALL_4,
        ),
        case("a length that is no number", raw(&format!("{ok}Content-Length: ten\r\n\r\n")), ALL_4),
        case(
            "a length that no number holds",
            raw(&format!("{ok}Content-Length: 99999999999999999999999\r\n\r\n")),
            ALL_4,
        ),
        case("a negative length", raw(&format!("{ok}Content-Length: -1\r\n\r\n")), ALL_4),
        case(
            "two lengths",
            raw(&format!("{ok}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello")),
            ALL_4,
        ),
        case(
            "a chunked body that is cut",
            raw(&format!("{ok}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")),
            ALL_4,
        ),
        case(
            "a chunk whose size is none",
            raw(&format!("{ok}Transfer-Encoding: chunked\r\n\r\nzz\r\n")),
            ALL_4,
        ),
        case(
            "a chunk whose size no number holds",
            raw(&format!("{ok}Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFF\r\n")),
            ALL_4,
        ),
        case("bytes behind the answer", Action::Trailing(100), [0; 3]),
    ]
}

fn headers() -> Vec<Case> {
    let flip = |name: &str, at| Action::FlipHeader(name.into(), at);
    let none = |name: &str| Action::Header(name.into(), None);
    let range = |value: &str| Action::ContentRange(value.into());
    vec![
        case("a flipped bit in the ETag", flip("etag", 3), [NONE, 5, 5]).says("changed"),
        case("no ETag", none("etag"), [NONE, 4, 4]).says("ETag"),
        case("an ETag of garbage", header("etag", "W/\u{e9}"), [NONE, 4, 4]),
        case("a flipped bit in the CRC", flip("x-oss-hash-crc64ecma", 2), [NONE, 6, 6])
            .oss_only()
            .says("checksum"),
        case("a CRC that is no number", header("x-oss-hash-crc64ecma", "none"), [NONE, 4, 4])
            .oss_only()
            .says("checksum"),
        case("no CRC", none("x-oss-hash-crc64ecma"), [NONE, 0, 0]).oss_only(),
        case("a Content-Type of garbage", header("content-type", "\u{e9}/\u{7f}"), [0; 3]),
        case("a Date of garbage", header("date", "yesterday"), [0; 3]),
        case("no Date", none("date"), [0; 3]),
        case("a Date that is an hour ahead", Action::DateOffset(3600), [0; 3]),
        case("a Date that is an hour behind", Action::DateOffset(-3600), [0; 3]),
        case("a length that is too small", header("content-length", "100"), [4, 5, 4]),
        case("a length that is too large", header("content-length", "10010"), [4, 5, 4])
            .and(Action::Stall { after: 10_000, ms: None }),
        case("a body that is longer than it is", Action::LongBody(10), [NONE, 5, 4]),
        case("another range", Action::OtherRange(0, 100), [NONE, NONE, 4]),
        case("the whole object for a range", Action::IgnoreRange, [NONE, NONE, 4]),
        case("no Content-Range", none("content-range"), [NONE, NONE, 4]),
        case("a Content-Range of garbage", range("bytes everything"), [NONE, NONE, 4]),
        case("a Content-Range without a size", range("bytes 0-65535/*"), [NONE, NONE, 4]),
        case("a reversed Content-Range", range("bytes 65535-0/300000"), [NONE, NONE, 4]),
        case("a flipped bit in the range", flip("content-range", 7), [NONE, NONE, 4]),
        case(
            "a flipped bit in the range's size",
            header("content-range", "bytes 0-65535/300001"),
            [NONE, NONE, 5],
        )
        .first_part(),
        case("a flipped bit in the body", Action::FlipBit(7000), [NONE, 6, 6]).says("checksum"),
        case("a flipped byte at the body's start", Action::FlipByte(0), [NONE, 6, 6]),
        case("a flipped byte in the last part", Action::FlipByte(299_999), [NONE, NONE, 6]),
    ]
}

fn listings() -> Vec<Case> {
    let of = |name, action, always, once| {
        case(name, action, [always, NONE, NONE]).once([once, NONE, NONE])
    };
    vec![
        of("a listing that is cut within a name", replace("data/b</Key>", "data"), 4, 0),
        of("a listing without its end", replace("</ListBucketResult>", ""), 4, 0),
        of(
            "a listing that does not say whether it goes on",
            replace("<IsTruncated>false</IsTruncated>", ""),
            4,
            0,
        ),
        of(
            "a flipped bit in whether the listing goes on",
            replace("<IsTruncated>false", "<IsTruncated>falsd"),
            4,
            0,
        ),
        of(
            "a listing that goes on, without a token",
            replace("<IsTruncated>false", "<IsTruncated>true"),
            4,
            0,
        ),
        of(
            "a listing that ends, with a token",
            replace("<KeyCount>", "<NextContinuationToken>x</NextContinuationToken><KeyCount>"),
            4,
            0,
        ),
        of("a listing of fewer keys than it says", replace("<KeyCount>5", "<KeyCount>6"), 4, 0),
        of("an unknown entity in a listing", replace("<Key>data/b", "<Key>&bomb;"), 4, 0),
        of("a listing that is not UTF-8", Action::FlipByte(300), 4, 0),
        of("a key outside the prefix", replace("<Key>data/b", "<Key>date/b"), 4, 0),
        of("an element that is closed by another", replace("data/b</Key>", "data/b</Kex>"), 4, 0),
        of("a size that is none", replace("<Size>10000", "<Size>1000O"), 4, 0),
        of("a size that no object has", replace("<Size>10000", "<Size>18446744073709551615"), 4, 0),
        of(
            "a size that no number holds",
            replace("<Size>10000", "<Size>99999999999999999999999"),
            4,
            0,
        ),
        of("a time that is none", replace("<LastModified>2", "<LastModified>x"), 4, 0),
        // what a page says of one object is not known to be wrong before the object is asked for
        of("a flipped bit in a size", replace("<Size>10000", "<Size>10001"), 5, 5).nameless(),
        of("a flipped bit in a listed ETag", replace("<ETag>&quot;", "<ETag>&quot;0"), 5, 5)
            .nameless(),
        of("a flipped bit in a key", replace("<Key>data/z", "<Key>data/{"), 5, 5).nameless(),
        of(
            "a flipped bit in what is encoded",
            replace("<EncodingType>url", "<EncodingType>urm"),
            5,
            5,
        )
        .nameless(),
        of("a key twice", replace("<Key>data/b", "<Key>data/a"), 4, 4),
        // sorted first, and asked for again
        of("a key out of order", replace("<Key>data/a", "<Key>data/y"), 5, 0).nameless(),
        of("a flipped bit in a type", replace("<Type>Normal", "<Type>Normam"), 0, 0),
        of("a flipped bit in a storage class", replace("<StorageClass>S", "<StorageClass>R"), 0, 0),
        of("a continuation token that comes again", Action::RepeatToken, 4, 0),
        of("a page that comes again, each time with another token", Action::RepeatPage, 4, 0),
        of("a listing that goes back to its beginning", Action::BeginAnew, 4, 0),
        of("empty pages without end, each with another token", Action::EmptyPages, 4, 0),
        of("a listing with a thousand levels", replace("<KeyCount>", &"<x>".repeat(1000)), 4, 0),
    ]
}

/// One run of one case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Job {
    case: usize,
    on: On,
    scheme: Scheme,
    always: bool,
}

fn try_case(case: &Case, job: Job) -> Duration {
    let Job { on, scheme, always, .. } = job;
    let times = if always { "always" } else { "once" };
    let what = format!("{} for {}, {times}, {scheme:?}", case.name, on.name());
    let (server, place) = (filled(builder()), Place::new());
    for action in &case.actions {
        let mut matcher = if always { on.matcher() } else { on.matcher().times(1) };
        if case.first && on == On::Part {
            matcher = matcher.range_start(0);
        }
        server.fault(matcher.action(action.clone()));
    }
    let mut versions = Versions::of(&server, &keys());
    let mut command = hasty(&server.endpoint(), scheme, &place.volume(), case.timeout);
    let (ran, took) = watched(&mut command, &what);
    versions.note(&server, &keys());
    let code = if always { case.always } else { case.once }[on as usize];
    promised(&ran, code, &place, &versions, &what);
    assert!(server.stats().faults > 0, "{what}: the fault met nothing");
    if code == 0 {
        same(&server, &keys(), &place.volume(), &what);
    } else {
        let said = ran.stderr.lines().last().unwrap_or_default();
        let named = !case.names || on.thing().iter().any(|thing| said.contains(thing));
        assert!(named && said.contains(case.says), "{what}: {said}");
        server.clear_faults();
        let again = &mut signed(&server.endpoint(), scheme, &place.volume());
        finishes(again, &server, &keys(), &place, &what);
    }
    took
}

/// Tries every case on everything it has a meaning for, and records what was seen.
fn try_all(cases: &[Case]) {
    let only = std::env::var("OSSVP_TEST_ONLY").unwrap_or_default();
    let mut jobs = Vec::new();
    for (index, case) in cases.iter().enumerate().filter(|(_, case)| case.name.contains(&only)) {
        for on in On::ALL.into_iter().filter(|on| case.always[*on as usize] != NONE) {
            for &scheme in case.schemes {
                jobs.push(Job { case: index, on, scheme, always: true });
                // what happens once is forgotten before the dialects differ
                if scheme == Scheme::Oss {
                    jobs.push(Job { case: index, on, scheme, always: false });
                }
            }
        }
    }
    // what waits longest goes first
    jobs.sort_by_key(|job| (cases[job.case].timeout == "20s", !job.always));
    let longest = Mutex::new((Duration::ZERO, String::new()));
    let (next, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Relaxed)) {
                    let case = &cases[job.case];
                    let tried = std::panic::catch_unwind(|| try_case(case, *job));
                    let Ok(took) = tried else {
                        failed.fetch_add(1, Relaxed);
                        continue;
                    };
                    if took > Duration::from_secs(8) {
                        println!("{took:.1?}: {} for {}", case.name, job.on.name());
                    }
                    let mut longest = longest.lock().unwrap();
                    if took > longest.0 {
                        *longest = (took, format!("{} for {}", case.name, job.on.name()));
                    }
                }
            });
        }
    });
    assert_eq!(failed.into_inner(), 0, "cases of {} failed", jobs.len());
    for case in cases {
        record(case);
    }
    let (took, which) = longest.into_inner().unwrap();
    measured(
        Part::Network,
        &format!(
            "{} runs, each ended by itself; the longest took {:.1} s ({which}), the watchdog {} s",
            jobs.len(),
            took.as_secs_f64(),
            WATCHDOG.as_secs(),
        ),
    );
}

/// One row for all that end alike.
fn record(case: &Case) {
    for (times, codes) in [("once", case.once), ("always", case.always)] {
        let mut by_code: BTreeMap<i32, Vec<&str>> = BTreeMap::new();
        for on in On::ALL.into_iter().filter(|on| case.always[*on as usize] != NONE) {
            by_code.entry(codes[on as usize]).or_default().push(on.name());
        }
        for (code, on) in by_code {
            let what = match code {
                0 => "complete, every byte right",
                _ => "no wrong byte, no marker; the next run without the fault finishes",
            };
            let on = on.join(", ");
            shown(Part::Network, &format!("{}, {times}, for {on}", case.name), what, code);
        }
    }
}

#[test]
fn every_refusal_ends_with_its_code_and_the_next_run_finishes() {
    try_all(&refusals());
}

#[test]
fn every_way_a_connection_fails_ends_with_its_code_and_the_next_run_finishes() {
    try_all(&connections());
}

#[test]
fn every_wrong_header_and_byte_ends_with_its_code_and_the_next_run_finishes() {
    try_all(&headers());
}

#[test]
fn every_wrong_listing_ends_with_its_code_and_the_next_run_finishes() {
    try_all(&listings());
}
