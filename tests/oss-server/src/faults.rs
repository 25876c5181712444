//! Faults on request: rules that say which requests go wrong, and how.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::request::{Call, Operation};
use crate::synthetic::mix;

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// An error instead of the answer, with these headers.
    Status {
        /// The HTTP status.
        status: u16,
        /// The error's code, such as `ServiceUnavailable`.
        code: String,
        /// Further headers, such as `x-oss-qos-delay-time`.
        #[serde(default)]
        headers: Vec<(String, String)>,
    },
    /// A TCP reset instead of an answer.
    ResetBeforeHeaders,
    /// A TCP reset after so many bytes of the body; a client that reads slowly gets fewer.
    ResetAfter(u64),
    /// The connection closed in an orderly way after so many bytes: fewer than Content-Length says.
    ShortBody(u64),
    /// Silence after so many bytes, for so many milliseconds or for ever.
    Stall {
        /// Bytes of the body sent before.
        after: u64,
        /// `None`: for ever.
        ms: Option<u64>,
    },
    /// So many bytes more than there are, in Content-Length and in the body.
    LongBody(u64),
    /// So many bytes behind the end of the answer, which nothing announced.
    Trailing(u64),
    /// The byte at this offset inverted: of the object for a GET, of the body for anything else.
    FlipByte(u64),
    /// Another ETag (without quotes).
    Etag(String),
    /// Another Content-Range, word for word.
    ContentRange(String),
    /// A 206 that holds this half-open range, whatever was asked for.
    OtherRange(u64, u64),
    /// A 200 with the whole object for a Range.
    IgnoreRange,
    /// The Date header so many seconds off.
    DateOffset(i64),
    /// A 307 to the same URL.
    RedirectLoop,
    /// The same continuation token as the request's.
    RepeatToken,
    /// A header of so many bytes.
    HugeHeader(u64),
    /// So many bytes of white space behind the XML, announced by Content-Length.
    HugeXml(u64),
    /// Another CRC-64 than the body's.
    Crc(u64),
    /// No CRC-64 at all.
    NoCrc,
    /// So many milliseconds before the first byte.
    Delay(u64),
    /// Another value for this header of the answer, or none.
    Header(String, Option<String>),
    /// The lowest bit of this byte of this header's value inverted: what stays is a header.
    FlipHeader(String, usize),
    /// As `FlipByte`, but only the lowest bit: what stays may still be text.
    FlipBit(u64),
    /// In a listing, the first of the one text replaced by the other.
    Replace(String, String),
    /// This body with this status and type instead of the answer, as a proxy would.
    Instead {
        /// The HTTP status.
        status: u16,
        /// The Content-Type.
        content_type: String,
        /// The body.
        body: String,
    },
    /// These bytes instead of an answer, then an orderly close.
    Raw(String),
    /// An error of this status and code that quotes the request: its Authorization, its token and
    /// what was signed, in every element and header.
    Echo {
        /// The HTTP status.
        status: u16,
        /// The error's code.
        code: String,
    },
    /// From this byte of the body on, one byte every so many milliseconds.
    Trickle {
        /// Bytes of the body sent before.
        after: u64,
        /// Between two bytes.
        ms: u64,
    },
    /// A header that does not end, one byte every so many milliseconds.
    SlowHeader(u64),
    /// A listing whose pages come again and again, each with a token of its own.
    RepeatPage,
    /// A listing that begins anew behind each page, with a token of its own.
    BeginAnew,
    /// Empty pages without end, each with a token of its own.
    EmptyPages,
    /// The object is deleted, and then the request is answered.
    Vanish,
    /// The object is replaced by another of its size, and then the request is answered.
    Overwrite,
}

/// A rule: which requests it meets, and what it does to them.
///
/// Rules are made in one expression, matcher first, action last; more than one may meet a request.
///
/// ```
/// use oss_server::{Fault, Operation};
/// let _ = Fault::get("data/a").times(1).flip_byte(17);
/// let _ = Fault::on(Operation::ListObjectsV2).nth(2).status(503, "ServiceUnavailable");
/// let _ = Fault::get_prefix("data/").probability(0.01, 42).reset_after(100_000);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    #[serde(flatten)]
    matcher: Matcher,
    action: Action,
}

/// The first half of a [`Fault`]: becomes one with the name of what goes wrong.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
#[must_use]
pub struct Matcher {
    operation: Option<Operation>,
    key: Option<String>,
    prefix: Option<String>,
    range_start: Option<u64>,
    from_key: bool,
    /// Matches that pass unharmed first.
    skip: u64,
    times: Option<u64>,
    every: Option<u64>,
    probability: Option<f64>,
    seed: u64,
}

impl Fault {
    /// Every request.
    pub fn any() -> Matcher {
        Matcher::default()
    }
    /// Requests of one kind.
    pub fn on(operation: Operation) -> Matcher {
        Matcher { operation: Some(operation), ..Matcher::default() }
    }
    /// GETs of one key.
    pub fn get(key: &str) -> Matcher {
        Self::on(Operation::GetObject).key(key)
    }
    /// GETs of every key that begins so.
    pub fn get_prefix(prefix: &str) -> Matcher {
        Self::on(Operation::GetObject).prefix(prefix)
    }
    /// Listings of version 2.
    pub fn list() -> Matcher {
        Self::on(Operation::ListObjectsV2)
    }
}

impl Matcher {
    /// Only requests for this key.
    pub fn key(mut self, key: &str) -> Self {
        self.key = Some(key.into());
        self
    }
    /// Only requests whose key begins so.
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.prefix = Some(prefix.into());
        self
    }
    /// Only requests whose Range begins at this offset.
    pub fn range_start(mut self, offset: u64) -> Self {
        self.range_start = Some(offset);
        self
    }
    /// Only listings that begin behind a key (`start-after`), and of those the first page.
    pub fn from_key(mut self) -> Self {
        self.from_key = true;
        self
    }
    /// Only the first so many that match.
    pub fn times(mut self, n: u64) -> Self {
        self.times = Some(n);
        self
    }
    /// Only the n-th that matches, counted from 1.
    pub fn nth(mut self, n: u64) -> Self {
        self.skip = n.saturating_sub(1);
        self.times = Some(1);
        self
    }
    /// So many matches pass unharmed first.
    pub fn skip(mut self, n: u64) -> Self {
        self.skip = n;
        self
    }
    /// Every n-th that matches.
    pub fn every(mut self, n: u64) -> Self {
        self.every = Some(n);
        self
    }
    /// Each with this probability, drawn from a seed that the server prints.
    pub fn probability(mut self, probability: f64, seed: u64) -> Self {
        self.probability = Some(probability);
        self.seed = seed;
        self
    }

    /// Any action.
    pub fn action(self, action: Action) -> Fault {
        Fault { matcher: self, action }
    }
    /// An error of this status and code.
    pub fn status(self, status: u16, code: &str) -> Fault {
        self.status_with(status, code, &[])
    }
    /// An error of this status and code with further headers.
    pub fn status_with(self, status: u16, code: &str, headers: &[(&str, &str)]) -> Fault {
        let headers = headers.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        self.action(Action::Status { status, code: code.into(), headers })
    }
    /// A TCP reset instead of an answer.
    pub fn reset_before_headers(self) -> Fault {
        self.action(Action::ResetBeforeHeaders)
    }
    /// A TCP reset after so many bytes of the body.
    pub fn reset_after(self, bytes: u64) -> Fault {
        self.action(Action::ResetAfter(bytes))
    }
    /// The connection closed after so many bytes of the body.
    pub fn short_body(self, bytes: u64) -> Fault {
        self.action(Action::ShortBody(bytes))
    }
    /// Silence for a while after so many bytes of the body.
    pub fn stall_after(self, bytes: u64, time: Duration) -> Fault {
        self.action(Action::Stall { after: bytes, ms: Some(time.as_millis() as u64) })
    }
    /// Silence for ever after so many bytes of the body.
    pub fn stall_forever_after(self, bytes: u64) -> Fault {
        self.action(Action::Stall { after: bytes, ms: None })
    }
    /// So many bytes more than there are, announced by Content-Length.
    pub fn long_body(self, extra: u64) -> Fault {
        self.action(Action::LongBody(extra))
    }
    /// So many bytes behind the end of the answer, announced by nothing.
    pub fn trailing(self, extra: u64) -> Fault {
        self.action(Action::Trailing(extra))
    }
    /// The byte at an offset of the object (for a listing: of the body) inverted. Meets only GETs
    /// that ask for this byte.
    pub fn flip_byte(self, offset: u64) -> Fault {
        self.action(Action::FlipByte(offset))
    }
    /// Another ETag, without quotes.
    pub fn etag(self, etag: &str) -> Fault {
        self.action(Action::Etag(etag.into()))
    }
    /// Another Content-Range.
    pub fn content_range(self, value: &str) -> Fault {
        self.action(Action::ContentRange(value.into()))
    }
    /// A 206 that holds another range.
    pub fn other_range(self, range: std::ops::Range<u64>) -> Fault {
        self.action(Action::OtherRange(range.start, range.end))
    }
    /// The whole object for a Range.
    pub fn ignore_range(self) -> Fault {
        self.action(Action::IgnoreRange)
    }
    /// A Date header so many seconds off.
    pub fn date_offset(self, seconds: i64) -> Fault {
        self.action(Action::DateOffset(seconds))
    }
    /// A 307 to the same URL.
    pub fn redirect_loop(self) -> Fault {
        self.action(Action::RedirectLoop)
    }
    /// The continuation token of the request again.
    pub fn repeat_token(self) -> Fault {
        self.action(Action::RepeatToken)
    }
    /// A header of so many bytes.
    pub fn huge_header(self, bytes: u64) -> Fault {
        self.action(Action::HugeHeader(bytes))
    }
    /// XML with so many bytes of white space in it.
    pub fn huge_xml(self, bytes: u64) -> Fault {
        self.action(Action::HugeXml(bytes))
    }
    /// Another CRC-64.
    pub fn crc(self, crc: u64) -> Fault {
        self.action(Action::Crc(crc))
    }
    /// No CRC-64.
    pub fn no_crc(self) -> Fault {
        self.action(Action::NoCrc)
    }
    /// A wait before the first byte.
    pub fn delay(self, time: Duration) -> Fault {
        self.action(Action::Delay(time.as_millis() as u64))
    }

    /// Another value for a header.
    pub fn header(self, name: &str, value: &str) -> Fault {
        self.action(Action::Header(name.into(), Some(value.into())))
    }
    /// An answer without a header.
    pub fn no_header(self, name: &str) -> Fault {
        self.action(Action::Header(name.into(), None))
    }
    /// One text for another in a listing.
    pub fn replace(self, from: &str, to: &str) -> Fault {
        self.action(Action::Replace(from.into(), to.into()))
    }
    /// Something else with status 200.
    pub fn instead(self, content_type: &str, body: &str) -> Fault {
        let (content_type, body) = (content_type.into(), body.into());
        self.action(Action::Instead { status: 200, content_type, body })
    }
    /// An error that quotes the request.
    pub fn echo(self, status: u16, code: &str) -> Fault {
        self.action(Action::Echo { status, code: code.into() })
    }

    fn meets(&self, call: &Call, action: &Action) -> bool {
        let range = call.requested_range();
        let wanted_byte = match action {
            Action::FlipByte(offset) | Action::FlipBit(offset)
                if call.operation == Operation::GetObject =>
            {
                range.is_none_or(|(first, end)| (first..end).contains(offset))
            }
            _ => true,
        };
        let from_key =
            call.query("start-after").is_some() && call.query("continuation-token").is_none();
        wanted_byte
            && (from_key || !self.from_key)
            && self.operation.is_none_or(|operation| operation == call.operation)
            && self.key.as_ref().is_none_or(|key| *key == call.key)
            && self.prefix.as_ref().is_none_or(|prefix| call.key.starts_with(prefix.as_str()))
            && self.range_start.is_none_or(|start| range.map_or(0, |(first, _)| first) == start)
    }

    /// Whether the `n`-th match, counted from 0, is one to harm.
    fn strikes(&self, n: u64) -> bool {
        let Some(n) = n.checked_sub(self.skip) else { return false };
        let every = self.every.unwrap_or(1).max(1);
        let draw = || mix(self.seed ^ mix(n)) as f64 / u64::MAX as f64;
        n % every == every - 1
            && self.times.is_none_or(|times| n / every < times)
            && self.probability.is_none_or(|probability| draw() < probability)
    }
}

/// The rules in force and how often each has matched.
#[derive(Debug, Default)]
pub(crate) struct Faults(Vec<(Fault, u64)>);

impl Faults {
    pub(crate) fn add(&mut self, fault: Fault) {
        if let (Some(p), seed) = (fault.matcher.probability, fault.matcher.seed) {
            eprintln!("oss-server: fault {:?} with probability {p}, seed {seed}", fault.action);
        }
        self.0.push((fault, 0));
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn list(&self) -> Vec<Fault> {
        self.0.iter().map(|(fault, _)| fault.clone()).collect()
    }

    /// What goes wrong with this request.
    pub(crate) fn strike(&mut self, call: &Call) -> Vec<Action> {
        let mut actions = Vec::new();
        for (fault, matches) in &mut self.0 {
            if fault.matcher.meets(call, &fault.action) {
                if fault.matcher.strikes(*matches) {
                    actions.push(fault.action.clone());
                }
                *matches += 1;
            }
        }
        actions
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn struck(matcher: Matcher) -> Vec<u64> {
        (0..10).filter(|n| matcher.strikes(*n)).collect()
    }

    #[test]
    fn a_rule_strikes_when_it_says() {
        assert_eq!(struck(Fault::any()).len(), 10);
        assert_eq!(struck(Fault::any().times(2)), [0, 1]);
        assert_eq!(struck(Fault::any().nth(3)), [2]);
        assert_eq!(struck(Fault::any().every(4)), [3, 7]);
        assert_eq!(struck(Fault::any().every(3).times(2)), [2, 5]);
        assert_eq!(struck(Fault::any().skip(8)), [8, 9]);
        let seldom = Fault::any().probability(0.5, 1);
        assert_eq!(struck(seldom.clone()), struck(seldom));
    }

    #[test]
    fn a_rule_reads_as_json() {
        let json = r#"{"operation":"get_object","key":"k","times":1,"action":{"flip_byte":17}}"#;
        assert_eq!(
            serde_json::from_str::<Fault>(json).unwrap(),
            Fault::get("k").times(1).flip_byte(17)
        );
        let json = r#"{"action":{"status":{"status":503,"code":"ServiceUnavailable"}}}"#;
        let parsed: Fault = serde_json::from_str(json).unwrap();
        assert_eq!(parsed, Fault::any().status(503, "ServiceUnavailable"));
        let json = r#"{"action":"reset_before_headers"}"#;
        let parsed: Fault = serde_json::from_str(json).unwrap();
        assert_eq!(parsed, Fault::any().reset_before_headers());
    }
}
