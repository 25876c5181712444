//! The network and the source misbehave, in every way that a server or what stands before it can:
//! each fault alone, for a listing, a whole object and a part, once and always, in both dialects,
//! with the real binary. However a run ends, there is no wrong byte under an object's name and no
//! marker without all objects; and once the fault is gone, running again finishes.
//!
//! `OSSVP_TEST_ONLY` runs the cases whose name holds it. `OSSVP_TEST_SEED` and `OSSVP_TEST_ROUNDS`
//! set what the mixture draws, and how often.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use oss_server::{Action, Builder, Fault, Matcher, Operation, OssServer};
use rustix::process::{Pid, Signal, kill_process};
use support::cases::{Part, measured, not_here, shown};
use support::{BUCKET, ID, Place, Ran, SECRET, bytes, files, ossvp, wait_until};

/// No run may take longer, whatever is done to it.
const WATCHDOG: Duration = Duration::from_secs(120);
/// Cases at once: most of their time is waiting.
const AT_ONCE: usize = 12;

const KEYS: [&str; 5] = ["data/a", "data/b", "data/large", "data/s p", "data/z"];

fn body(key: &str) -> Vec<u8> {
    let n = KEYS.iter().position(|known| *known == key).unwrap() as u64;
    bytes(n, if key == "data/large" { 300_000 } else { 10_000 })
}

fn builder() -> Builder {
    OssServer::builder().bucket(BUCKET).credentials(ID, SECRET).threads(1)
}

fn filled(builder: Builder) -> OssServer {
    let server = builder.start_blocking().unwrap();
    KEYS.iter().for_each(|key| server.put(BUCKET, key, body(key)));
    server
}

/// The dialect, as the scheme of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Scheme {
    Oss,
    S3,
}

impl Scheme {
    fn source(self) -> &'static str {
        match self {
            Self::Oss => "oss://bucket/data/",
            Self::S3 => "s3://bucket/data/",
        }
    }
}

/// `ossvp populate` from `endpoint` without credentials.
fn bare(endpoint: &str, scheme: Scheme, volume: &Path) -> Command {
    let mut command = ossvp();
    command.args(["populate", scheme.source()]).arg(volume);
    command.args(["--endpoint", endpoint, "--region", "cn-hangzhou", "--part-size", "64KiB"]);
    command.args(["--progress", "none"]);
    command
}

fn signed(endpoint: &str, scheme: Scheme, volume: &Path) -> Command {
    let mut command = bare(endpoint, scheme, volume);
    command.env("OSS_ACCESS_KEY_ID", ID).env("OSS_ACCESS_KEY_SECRET", SECRET);
    command.env("AWS_ACCESS_KEY_ID", ID).env("AWS_SECRET_ACCESS_KEY", SECRET);
    command
}

/// As [`signed`], but gives up soon: after three attempts, each waiting no longer than `timeout`.
fn hasty(endpoint: &str, scheme: Scheme, volume: &Path, timeout: &str) -> Command {
    let mut command = signed(endpoint, scheme, volume);
    command.args(["--timeout", timeout, "--retry-for", "0s"]);
    command
}

/// Runs a command to its end, which must come within [`WATCHDOG`].
fn watched(command: &mut Command, what: &str) -> (Ran, Duration) {
    let begun = Instant::now();
    let child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
    let id = Pid::from_child(&child);
    let (ended, watching) = std::sync::mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        let hangs = watching.recv_timeout(WATCHDOG).is_err();
        if hangs {
            kill_process(id, Signal::KILL).unwrap();
        }
        hangs
    });
    let ran = Ran::from(child.wait_with_output().unwrap());
    let _ = ended.send(());
    assert!(!watchdog.join().unwrap(), "{what} hangs: {}", ran.stderr);
    (ran, begun.elapsed())
}

/// What the objects are, and were: no file may hold anything else.
#[derive(Debug, Default)]
struct Versions(BTreeMap<String, BTreeSet<Bytes>>);

impl Versions {
    fn of(server: &OssServer, keys: &[String]) -> Self {
        let mut versions = Self::default();
        versions.note(server, keys);
        versions
    }

    fn note(&mut self, server: &OssServer, keys: &[String]) {
        for key in keys {
            if let Some(body) = server.read(BUCKET, key) {
                let path = key.strip_prefix("data/").unwrap().to_owned();
                self.0.entry(path).or_default().insert(body);
            }
        }
    }

    #[track_caller]
    fn hold(&self, volume: &Path, what: &str) {
        if !volume.exists() {
            return;
        }
        for (path, found) in files(volume) {
            let right = self.0.get(&path).is_some_and(|known| known.contains(&found[..]));
            assert!(right, "{what}: {path} has bytes that no object ever had");
        }
    }
}

/// What stands in the volume is what the server has, no more and no less.
#[track_caller]
fn same(server: &OssServer, keys: &[String], volume: &Path, what: &str) {
    let wanted: BTreeMap<String, Vec<u8>> = keys
        .iter()
        .filter_map(|key| {
            let path = key.strip_prefix("data/").unwrap().to_owned();
            Some((path, server.read(BUCKET, key)?.to_vec()))
        })
        .collect();
    let found = files(volume);
    assert_eq!(wanted.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>(), "{what}");
    assert!(wanted == found, "{what}: bytes differ");
}

fn keys() -> Vec<String> {
    KEYS.map(str::to_owned).to_vec()
}

/// The promise, of a run that has ended: code, bytes, marker, message.
#[track_caller]
fn promised(ran: &Ran, code: i32, place: &Place, versions: &Versions, what: &str) {
    assert_eq!(ran.code, code, "{what}: {}", ran.stderr);
    assert_eq!(place.is_marked(), code == 0, "{what}");
    versions.hold(&place.volume(), what);
    let said = ran.stderr.lines().last().unwrap_or_default();
    assert!(said.starts_with("ossvp: "), "{what}: no message: {}", ran.stderr);
}

/// Running again, with the fault gone.
#[track_caller]
fn finishes(command: &mut Command, server: &OssServer, keys: &[String], place: &Place, what: &str) {
    let (ran, _) = watched(command, what);
    assert_eq!(ran.code, 0, "{what}, run again: {}", ran.stderr);
    assert!(place.is_marked(), "{what}");
    same(server, keys, &place.volume(), what);
}

/// What a fault meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum On {
    Listing,
    Object,
    Part,
}

impl On {
    const ALL: [Self; 3] = [Self::Listing, Self::Object, Self::Part];

    fn matcher(self) -> Matcher {
        match self {
            Self::Listing => Fault::list(),
            Self::Object => Fault::get("data/b"),
            // whatever is asked of this object
            Self::Part => Fault::get("data/large"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Listing => "a listing",
            Self::Object => "an object",
            Self::Part => "a part",
        }
    }

    /// What the message of a failed run must name.
    fn thing(self) -> &'static [&'static str] {
        match self {
            Self::Listing => &["bucket", "listing", "listed"],
            Self::Object => &["\"data/b\""],
            Self::Part => &["\"data/large\""],
        }
    }
}

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

fn status(status: u16, code: &str, headers: &[(&str, &str)]) -> Action {
    let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    Action::Status { status, code: code.into(), headers }
}

fn instead(status: u16, content_type: &str, body: impl Into<String>) -> Action {
    Action::Instead { status, content_type: content_type.into(), body: body.into() }
}

fn header(name: &str, value: &str) -> Action {
    Action::Header(name.into(), Some(value.into()))
}

fn replace(from: &str, to: &str) -> Action {
    Action::Replace(from.into(), to.into())
}

const PORTAL: &str = "<!DOCTYPE html><html><head><title>Log in</title></head><body><form></body>";
const ERROR_XML: &str = "<?xml version=\"1.0\"?><Error><Code>InternalError</Code></Error>";

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

/// Takes connections and never says anything.
fn silent() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // the kernel takes them; nobody reads
    (listener, address)
}

/// A port that is taken, so that no other test gets it, and that nobody listens at.
fn unheard() -> (tokio::net::TcpSocket, SocketAddr) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// Runs against `endpoint`, where nothing good is, and then against the server.
#[track_caller]
fn unreachable(name: &str, endpoint: &str, code: i32, says: &str, more: &[(&str, &str)]) {
    for scheme in [Scheme::Oss, Scheme::S3] {
        let (server, place) = (filled(builder()), Place::new());
        let mut command = hasty(endpoint, scheme, &place.volume(), "2s");
        command.args(["--addressing", "path"]).envs(more.iter().copied());
        let (ran, _) = watched(&mut command, name);
        promised(&ran, code, &place, &Versions::default(), name);
        let said = ran.stderr.lines().last().unwrap();
        assert!(said.contains(says), "{name}: {said}");
        let again = &mut signed(&server.endpoint(), scheme, &place.volume());
        finishes(again, &server, &keys(), &place, name);
    }
    let what = "no wrong byte, no marker; the next run without the fault finishes";
    shown(Part::Network, name, what, code);
}

#[test]
fn a_source_that_cannot_be_reached_is_4_and_named() {
    let (_socket, free) = unheard();
    let (_listener, quiet) = silent();
    let tls = filled(builder().tls());
    let plain = filled(builder());
    let cannot = "cannot connect to ";
    let silent = "no answer for bucket";
    unreachable("a port that nobody listens at", &format!("http://{free}"), 4, cannot, &[]);
    unreachable(
        "a host that takes connections and is silent",
        &format!("http://{quiet}"),
        4,
        silent,
        &[],
    );
    unreachable("a TLS handshake that stands still", &format!("https://{quiet}"), 4, "", &[]);
    unreachable(
        "TLS where the server speaks none",
        &plain.endpoint().replace("http:", "https:"),
        4,
        "",
        &[],
    );
    unreachable(
        "no TLS where the server speaks it",
        &tls.endpoint().replace("https:", "http:"),
        4,
        "",
        &[],
    );
    unreachable(
        "a host name that does not exist",
        "http://nowhere.invalid",
        4,
        "nowhere.invalid",
        &[],
    );
    let proxy = format!("http://user:proxy-password@{free}");
    unreachable(
        "a proxy that nobody listens at",
        &plain.endpoint(),
        4,
        cannot,
        &[("HTTP_PROXY", &proxy)],
    );
    let proxy = format!("http://{quiet}");
    unreachable(
        "a proxy that takes connections and is silent",
        &tls.endpoint(),
        4,
        "",
        &[("HTTPS_PROXY", &proxy)],
    );
}

#[test]
fn a_certificate_that_is_not_trusted_is_3() {
    let says = "the certificate of 127.0.0";
    let unknown = filled(builder().tls());
    unreachable("a certificate of an unknown authority", &unknown.endpoint(), 3, says, &[]);
    let place = Place::new();
    let trust = |server: &OssServer| {
        std::fs::write(place.file("ca.pem"), server.ca_pem().unwrap()).unwrap();
        place.file("ca.pem").to_str().unwrap().to_owned()
    };
    let expired = filled(builder().expired());
    let bundle = [("OSSVP_CA_BUNDLE", trust(&expired))];
    let bundle = bundle.each_ref().map(|(name, path)| (*name, path.as_str()));
    unreachable("a certificate that has expired", &expired.endpoint(), 3, says, &bundle);
    let other = filled(builder().listen(([0, 0, 0, 0], 0).into()).tls());
    let elsewhere = format!("https://127.0.0.9:{}", other.address().port());
    let bundle = [("OSSVP_CA_BUNDLE", trust(&other))];
    let bundle = bundle.each_ref().map(|(name, path)| (*name, path.as_str()));
    unreachable("a certificate for another host", &elsewhere, 3, says, &bundle);
}

/// `inner` in a mount namespace of its own, where the file of each pair stands in the place of the
/// system's. It ends in 99 where that cannot be.
fn with_files(inner: &Command, files: &[(String, PathBuf)]) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c"]).arg(
        "while [ \"$1\" != -- ]; do mount --bind \"$2\" \"$1\" || exit 99; shift 2; done; \
         shift; exec \"$@\"",
    );
    command.arg("sh");
    for (place, file) in files {
        command.arg(place).arg(file);
    }
    command.arg("--").arg(inner.get_program()).args(inner.get_args());
    command.env_clear().envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

#[test]
fn a_name_server_that_never_answers_is_4() {
    let Ok(nameserver) = std::net::UdpSocket::bind("127.0.0.77:53") else {
        return not_here("no right to be a name server");
    };
    let place = Place::new();
    std::fs::write(place.file("resolv.conf"), "nameserver 127.0.0.77\n").unwrap();
    std::fs::write(place.file("nsswitch.conf"), "hosts: dns\n").unwrap();
    let mut inner = hasty("http://quiet.example", Scheme::Oss, &place.volume(), "2s");
    inner.args(["--addressing", "path"]);
    let files = ["resolv.conf", "nsswitch.conf"];
    let mut command =
        with_files(&inner, &files.map(|name| (format!("/etc/{name}"), place.file(name))));
    let (ran, took) = watched(&mut command, "a name server that never answers");
    if ran.code == 99 || ran.stderr.contains("unshare") {
        return not_here(format!("no mount namespace: {}", ran.stderr));
    }
    promised(&ran, 4, &place, &Versions::default(), "a name server that never answers");
    assert!(ran.stderr.contains("cannot connect to quiet.example"), "{}", ran.stderr);
    assert!(took < Duration::from_secs(20), "{took:?}");
    nameserver.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    assert!(nameserver.recv(&mut [0; 512]).is_ok(), "it was never asked");
    let server = filled(builder());
    let again = &mut signed(&server.endpoint(), Scheme::Oss, &place.volume());
    finishes(again, &server, &keys(), &place, "a name server that never answers");
    let what = "no wrong byte, no marker; the next run without the fault finishes";
    shown(Part::Network, "a name server that never answers", what, 4);
}

/// A name with two addresses: both are used, one that refuses is passed by, and one that takes
/// connections and never answers costs a moment.
#[test]
fn all_addresses_of_a_name_are_used() {
    let addresses = ["127.0.0.5", "127.0.0.6"];
    let hosts = addresses.map(|address| format!("{address} two.example\n")).concat();
    for second in ["serves", "refuses", "is silent"] {
        let what = format!("the second of two addresses {second}");
        let place = Place::new();
        std::fs::write(place.file("hosts"), &hosts).unwrap();
        std::fs::write(place.file("nsswitch.conf"), "hosts: files\n").unwrap();
        let listen = |address: &str, port| format!("{address}:{port}").parse().unwrap();
        let first = filled(builder().listen(listen(addresses[0], 0)));
        let port = first.address().port();
        let other =
            (second == "serves").then(|| filled(builder().listen(listen(addresses[1], port))));
        let _silent =
            (second == "is silent").then(|| TcpListener::bind((addresses[1], port)).unwrap());
        let endpoint = format!("http://two.example:{port}");
        let mut inner = signed(&endpoint, Scheme::Oss, &place.volume());
        inner.args(["--addressing", "path", "--concurrency", "8"]);
        let own = ["hosts", "nsswitch.conf"];
        let own = own.map(|name| (format!("/etc/{name}"), place.file(name)));
        let mut command = with_files(&inner, &own);
        let (ran, _) = watched(&mut command, &what);
        if ran.code == 99 || ran.stderr.contains("unshare") {
            return not_here(format!("no mount namespace: {}", ran.stderr));
        }
        assert_eq!(ran.code, 0, "{what}: {}", ran.stderr);
        let found = files(&place.volume());
        assert!(
            KEYS.iter().all(|key| found.get(&key["data/".len()..]) == Some(&body(key))),
            "{what}"
        );
        for server in std::iter::once(&first).chain(&other) {
            assert!(
                server.log().iter().any(|line| line.operation == Operation::GetObject),
                "{what}"
            );
        }
        shown(Part::Network, &what, "complete, every byte right", 0);
    }
}

#[test]
fn no_redirect_is_followed() {
    let trap = OssServer::builder().public_bucket(BUCKET).start_blocking().unwrap();
    KEYS.iter().for_each(|key| trap.put(BUCKET, key, bytes(99, 10_000)));
    for status in [301, 302, 303, 307, 308] {
        for on in On::ALL {
            let (server, place) = (filled(builder()), Place::new());
            let own = server.endpoint();
            let other = trap.endpoint();
            for to in [format!("{own}/bucket/elsewhere"), format!("{other}/bucket/data/b")] {
                server.fault(on.matcher().action(self::status(status, "", &[("location", &to)])));
                let what = format!("{status} for {}", on.name());
                let mut command = hasty(&own, Scheme::Oss, &place.volume(), "20s");
                let (ran, _) = watched(&mut command, &what);
                promised(&ran, 3, &place, &Versions::of(&server, &keys()), &what);
                server.clear_faults();
            }
            assert!(server.log().iter().all(|logged| !logged.target.contains("elsewhere")));
            let again = &mut signed(&own, Scheme::Oss, &place.volume());
            finishes(again, &server, &keys(), &place, "a redirect");
        }
    }
    assert_eq!(trap.stats().requests, 0, "{:?}", trap.log());
    let what =
        "not followed: nobody else sees a signature; the next run without the fault finishes";
    shown(Part::Network, "a redirect to another path or another host", what, 3);
}

const ROLE: &str = "acs:ram::1234567890123456:role/worker";
const PROVIDER: &str = "acs:ram::1234567890123456:oidc-provider/ack-rrsa";

/// With a service account's token, as in a Pod with RRSA.
fn rrsa(server: &OssServer, place: &Place) -> Command {
    std::fs::write(place.file("token"), "token-1").unwrap();
    let mut command = bare(&server.endpoint(), Scheme::Oss, &place.volume());
    command
        .env("ALIBABA_CLOUD_ROLE_ARN", ROLE)
        .env("ALIBABA_CLOUD_OIDC_PROVIDER_ARN", PROVIDER)
        .env("ALIBABA_CLOUD_OIDC_TOKEN_FILE", place.file("token"))
        .env("ALIBABA_CLOUD_STS_ENDPOINT", server.endpoint())
        .args(["--timeout", "20s", "--retry-for", "0s"]);
    command
}

#[test]
fn credentials_that_end_in_mid_run_are_replaced_where_there_are_others() {
    for code in ["SecurityTokenExpired", "InvalidSecurityToken", "InvalidAccessKeyId"] {
        for on in On::ALL {
            let server = filled(builder().oidc(ROLE, PROVIDER, "token-1"));
            let place = Place::new();
            let what = format!("403 {code} for {}", on.name());
            // STS fails as well when it is asked again, and then gives others
            server.fault(on.matcher().times(2).status(403, code));
            let sts = Fault::on(Operation::AssumeRole);
            server.fault(sts.nth(2).status(503, "ServiceUnavailable"));
            let (ran, _) = watched(&mut rrsa(&server, &place), &what);
            promised(&ran, 0, &place, &Versions::of(&server, &keys()), &what);
            same(&server, &keys(), &place.volume(), &what);
            assert_eq!(server.issued(), 2, "{what}");

            // others are refused as well
            let place = Place::new();
            server.clear_faults();
            server.fault(on.matcher().status(403, code));
            let (ran, _) = watched(&mut rrsa(&server, &place), &what);
            promised(&ran, 3, &place, &Versions::of(&server, &keys()), &what);
            server.clear_faults();
            finishes(&mut rrsa(&server, &place), &server, &keys(), &place, &what);

            // and STS gives none any more
            let place = Place::new();
            server.fault(on.matcher().status(403, code));
            let sts = Fault::on(Operation::AssumeRole);
            server.fault(sts.skip(1).status(503, "ServiceUnavailable"));
            let (ran, _) = watched(&mut rrsa(&server, &place), &what);
            promised(&ran, 4, &place, &Versions::of(&server, &keys()), &what);
            assert!(ran.stderr.contains("credentials from RRSA"), "{}", ran.stderr);
            server.clear_faults();
            finishes(&mut rrsa(&server, &place), &server, &keys(), &place, &what);
        }
        let case = |what: &str| format!("403 {code} in mid-run with RRSA, {what}");
        shown(Part::Network, &case("once, while STS fails once"), "replaced; complete", 0);
        let again = "no wrong byte, no marker; the next run without the fault finishes";
        shown(Part::Network, &case("again with other credentials"), again, 3);
        shown(Part::Network, &case("and STS gives no others"), again, 4);
    }
}

/// A run that stands still in `data/b`, so that something can change behind its back.
fn amid(server: &OssServer, place: &Place, command: &mut Command, change: impl FnOnce()) -> Ran {
    server.fault(Fault::get("data/b").times(1).stall_after(10, Duration::from_secs(2)));
    let gets = server.gets(BUCKET, "data/b");
    command.args(["--concurrency", "1"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    wait_until("a request that stalls", || server.gets(BUCKET, "data/b") > gets);
    change();
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!(place.is_marked(), ran.code == 0);
    ran
}

#[test]
fn a_key_that_is_revoked_in_mid_run_is_3() {
    for scheme in [Scheme::Oss, Scheme::S3] {
        let (server, place) = (filled(builder()), Place::new());
        let mut command = hasty(&server.endpoint(), scheme, &place.volume(), "20s");
        let ran = amid(&server, &place, &mut command, || server.revoke(ID));
        let versions = Versions::of(&server, &keys());
        promised(&ran, 3, &place, &versions, "a revoked key");
        assert!(ran.stderr.contains("the access key was not accepted"), "{}", ran.stderr);
        assert!(place.volume().join("a").exists(), "what was committed stays");
        server.set_credentials(ID, SECRET, None, None);
        let again = &mut signed(&server.endpoint(), scheme, &place.volume());
        finishes(again, &server, &keys(), &place, "a revoked key");
    }
    let what = "what is committed stays; the next run with a key that is valid finishes";
    shown(Part::Network, "an access key that is revoked in mid-run", what, 3);
}

#[test]
fn a_session_that_expires_in_mid_run_is_3() {
    let server = filled(builder().session("STS.session", "session-secret", "session-token", None));
    let place = Place::new();
    let mut command = bare(&server.endpoint(), Scheme::Oss, &place.volume());
    command.env("OSS_ACCESS_KEY_ID", "STS.session").env("OSS_ACCESS_KEY_SECRET", "session-secret");
    command.env("OSS_SESSION_TOKEN", "session-token");
    let ran = amid(&server, &place, &mut command, || server.expire("STS.session"));
    promised(&ran, 3, &place, &Versions::of(&server, &keys()), "an expired session");
    let again = &mut signed(&server.endpoint(), Scheme::Oss, &place.volume());
    finishes(again, &server, &keys(), &place, "an expired session");
    let what = "what is committed stays; the next run with other credentials finishes";
    shown(
        Part::Network,
        "a session that expires in mid-run, without a provider of others",
        what,
        3,
    );
}

#[test]
fn a_clock_that_leaps_by_an_hour_in_mid_run_is_followed() {
    for scheme in [Scheme::Oss, Scheme::S3] {
        for ahead in [3600, -3600] {
            let (server, place) = (filled(builder()), Place::new());
            let mut command = hasty(&server.endpoint(), scheme, &place.volume(), "20s");
            let ran = amid(&server, &place, &mut command, || server.set_clock_ahead(ahead));
            promised(&ran, 0, &place, &Versions::of(&server, &keys()), "a leap of the clock");
            same(&server, &keys(), &place.volume(), "a leap of the clock");
        }
    }
    shown(Part::Network, "clocks that differ by an hour, from some moment on", "corrected", 0);
}

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

/// The next of a row of numbers that looks like chance.
fn draw(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A fault of a mixture: what of, and one of the exit codes it may end a run with.
fn drawn(state: &mut u64) -> (Fault, &'static [i32]) {
    let get = Fault::get_prefix("data/");
    let list = Fault::list();
    let at = draw(state) % 40_000;
    let raw = || Action::Raw("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort".to_owned());
    let (matcher, action, codes): (Matcher, Action, &[i32]) = match draw(state) % 26 {
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
        _ => 0.02 + (draw(state) % 20) as f64 / 100.0,
    };
    (matcher.probability(probability, draw(state)).action(action), codes)
}

/// One mixture: says with which code it ended.
fn mixed(seed: u64) -> (i32, Duration, u64) {
    let mut state = seed;
    let (server, keys) = many(seed);
    let mut versions = Versions::of(&server, &keys);
    let mut may_end = BTreeSet::from([0]);
    for _ in 0..3 + draw(&mut state) % 8 {
        let (fault, codes) = drawn(&mut state);
        may_end.extend(codes);
        server.fault(fault);
    }
    let scheme = if draw(&mut state).is_multiple_of(2) { Scheme::Oss } else { Scheme::S3 };
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
