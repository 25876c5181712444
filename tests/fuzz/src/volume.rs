//! What a volume holds, which may be anyone's: paths, manifest, notes of parts, sums, marker.

use std::collections::BTreeMap;

use object_store::path::Path;
use ossvp::handoff::{MARKER_VERSION, ShardOf, Unmappable};
use ossvp::keys::{Key, MAX_KEY, Prefix};
use ossvp::store::{key_at, location};
use ossvp::telemetry::chain;
use ossvp::worker::fuzzing::{
    Said, history, line, marker, notes, said, sealed, sum, sum_line, unsealed,
};
use ossvp::worker::layout::{Layout, Place};

use super::heap::within;
use super::layout::Model;
use super::network::one_line;

// what ends a key without content and one with, and what repeats the byte before so many times
const EMPTY: u8 = 0xfe;
const FULL: u8 = 0xff;
const REPEAT: u8 = 0xfd;
/// The most keys of one input: the model is not fast.
const MOST_KEYS: usize = 40;

fn keys(bytes: &[u8]) -> Vec<(String, u64)> {
    let (mut keys, mut key) = (Vec::new(), Vec::new());
    let mut bytes = bytes.iter();
    while let Some(byte) = bytes.next() {
        match *byte {
            EMPTY | FULL => {
                let text = String::from_utf8_lossy(&key).into_owned();
                if !text.is_empty() && text.len() <= MAX_KEY && keys.len() < MOST_KEYS {
                    keys.push((text, u64::from(*byte == FULL)));
                }
                key.clear();
            }
            REPEAT => {
                let times = bytes.next().map_or(0, |n| usize::from(*n) * 2);
                key.extend(key.last().copied().into_iter().cycle().take(times).collect::<Vec<_>>());
            }
            byte => key.push(byte),
        }
    }
    keys
}

/// Where keys go, in any order and in a listing's, and how they travel.
pub(crate) fn layout(bytes: &[u8]) {
    let keys = keys(bytes);
    for mode in [Unmappable::Fail, Unmappable::Skip, Unmappable::Escape] {
        let [mut bare, mut below] = ["", "p/"].map(|prefix| Layout::new(Prefix::new(prefix), mode));
        for (key, size) in &keys {
            let placed = bare.place(&Key::new(key).unwrap(), *size).ok();
            assert!(mode != Unmappable::Escape || !matches!(placed, Some(Place::Nowhere(_))));
            if let Ok(deeper) = Key::new(format!("p/{key}")) {
                assert_eq!(below.place(&deeper, *size).ok(), placed, "{key:?}");
            }
        }
    }
    let mut paths = BTreeMap::new();
    for (key, _) in &keys {
        let key = Key::new(key).unwrap();
        let path = location(&key);
        assert_eq!(key_at(&path).as_ref(), Some(&key));
        let other = paths.insert(path, key.clone());
        assert!(other.as_ref().is_none_or(|other| *other == key), "{key} and {other:?}");
    }
    let text = String::from_utf8_lossy(bytes);
    if let Ok(path) = Path::parse(text.as_ref())
        && let Some(key) = key_at(&path)
    {
        assert_eq!(location(&key), path);
    }
    assert_eq!(Model(keys.into_iter().collect()).agrees(), Ok(()));
}

/// What ossvp reads of its own files.
pub(crate) fn records(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    match first % 5 {
        0 => one_record(rest),
        1 => manifest(rest),
        2 => parts(rest),
        3 => sums(rest),
        _ => complete(rest),
    }
}

fn one_record(bytes: &[u8]) {
    let _ = line(bytes);
    let Ok(body) = std::str::from_utf8(bytes) else { return };
    let whole = sealed(body);
    let whole = &whole[..whole.len() - 1];
    assert_eq!(unsealed(whole), Some(body));
    let Some((shown, again)) = within(40, whole.len(), || line(whole)) else { return };
    let (end, again) = again.split_last().unwrap();
    assert!(*end == b'\n' && !again.contains(&b'\n'), "{shown}");
    assert_eq!(line(again).map(|(shown, _)| shown), Some(shown));
    // a torn line does not check
    for cut in [again.len() - 1, again.len() / 2, bytes.len() % again.len()] {
        assert_eq!(line(&again[..cut]), None);
    }
}

const IDENTITY: &str = "ossvp-manifest\t1\t{\"dialect\":\"oss\",\"bucket\":\"b\",\"prefix\":\"\",\
    \"include\":[],\"exclude\":[],\"unmappable\":\"fail\"}";

/// A header and lines as someone left them: `!` before one keeps it from being sealed.
fn lines(header: &str, bytes: &[u8]) -> Vec<u8> {
    let mut text = sealed(header);
    for body in bytes.split(|byte| *byte == b'\n') {
        match (body.strip_prefix(b"!"), std::str::from_utf8(body)) {
            (Some(raw), _) => {
                text.extend_from_slice(raw);
                text.push(b'\n');
            }
            (None, Ok(body)) => text.extend_from_slice(&sealed(body)),
            (None, Err(_)) => {}
        }
    }
    text
}

/// A manifest, one line a line of the input.
fn manifest(bytes: &[u8]) {
    let text = lines(IDENTITY, bytes);
    // what is sorted is held once, in a vector that grows, beside what was read of it
    let found = within(40, text.len() + (256 << 10) / 40, || history(&text));
    let (end, found) = found.unwrap().expect("the header is ours");
    assert_eq!((end, found), remembered(&text), "{:?}", String::from_utf8_lossy(&text));
}

/// As [`history`], from all lines at once.
fn remembered(text: &[u8]) -> (u64, Vec<(String, String, bool, bool)>) {
    let mut lines: Vec<(u64, Said)> = Vec::new();
    let mut end = 0;
    for whole in text.split_inclusive(|byte| *byte == b'\n') {
        let Some(line) = whole.strip_suffix(b"\n").and_then(said) else { break };
        if end > 0 && line == Said::Header {
            break;
        }
        lines.push((end, line));
        end += whole.len() as u64;
    }
    let synced = |line: &(u64, Said)| match line.1 {
        Said::Synced { before } => before,
        _ => 0,
    };
    let synced = lines.iter().map(synced).max().unwrap_or(0);
    // what was not synced may be lost, if there is a file among it
    let is_file = |line: &Said| matches!(line, Said::File { .. });
    let lost = lines.iter().any(|(at, line)| *at >= synced && is_file(line));
    let trusted = |at: u64| {
        let withdrawn = |(later, line): &(u64, Said)| matches!(line, Said::Untrusted { from } if *from <= at && at < *later);
        let unsynced = lost && at >= synced;
        !unsynced && !lines.iter().any(withdrawn)
    };
    let mut held = BTreeMap::new();
    for (at, line) in &lines {
        match line {
            Said::File { relative, path } => {
                held.insert(relative.clone(), Some((path.clone(), true, trusted(*at))));
            }
            Said::Directory { relative, path } => {
                held.insert(relative.clone(), Some((path.clone(), false, true)));
            }
            Said::Gone { relative } => {
                held.insert(relative.clone(), None);
            }
            Said::Header | Said::Begin | Said::Synced { .. } | Said::Untrusted { .. } => {}
        }
    }
    let held = held.into_iter().filter_map(|(relative, held)| {
        held.map(|(path, is_file, trusted)| (relative, path, is_file, trusted))
    });
    (end, held.collect())
}

/// Notes of an object in parts, one line a line of the input.
fn parts(bytes: &[u8]) {
    let Some((count, bytes)) = bytes.split_first() else { return };
    let count = usize::from(*count);
    let header = "ossvp-parts\t1\te\t9\t1\t0";
    let text = lines(header, bytes);
    assert_eq!(within(40, text.len(), || notes(&text, "another", count)), None);
    let (noted, end) =
        within(40, text.len(), || notes(&text, header, count)).expect("the header is ours");
    assert_eq!(noted.len(), count);
    assert!(end as usize <= text.len() && text[..end as usize].ends_with(b"\n"));
    let mut naive = vec![None; count];
    for line in
        text[..end as usize].split(|byte| *byte == b'\n').skip(1).filter(|line| !line.is_empty())
    {
        let fields: Vec<&str> = unsealed(line).expect("valid up to the end").split('\t').collect();
        let [kind, index, crc] = fields[..] else { panic!("{fields:?}") };
        assert_eq!(kind, "p");
        naive[index.parse::<usize>().unwrap()] = Some(u64::from_str_radix(crc, 16).unwrap());
    }
    assert_eq!(noted, naive);
}

/// A line of `SHA256SUMS`.
fn sums(bytes: &[u8]) {
    let Some((path, digest)) = within(20, bytes.len(), || sum(bytes)) else { return };
    let written = sum_line(&digest, &path);
    let whole = written.strip_suffix('\n').unwrap();
    assert!(!whole.contains('\n'));
    // a leading `./` is dropped, so it is not written either, unless it is a part of the path
    let again = path.strip_prefix("./").unwrap_or(&path);
    if !again.is_empty() && !path.ends_with('\r') {
        assert_eq!(sum(whole.as_bytes()), Some((again.to_owned(), digest)));
    }
}

/// A marker: what is taken for one can be relied upon.
fn complete(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match within(40, bytes.len(), || marker(text)) {
        Ok(Some(found)) => {
            assert_eq!(found.version, MARKER_VERSION);
            assert!((1..=ShardOf::MOST).contains(&found.shards), "{} shards", found.shards);
            let again = serde_json::to_string_pretty(&found).unwrap();
            assert_eq!(marker(&again).unwrap(), Some(found));
        }
        Ok(None) => {}
        Err(failure) => one_line(&chain(&failure), 1 << 10),
    }
}
