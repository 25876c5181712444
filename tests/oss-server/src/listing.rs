//! Pages of a listing, rendered straight into one buffer.

use std::fmt::Write;

use chrono::{DateTime, Utc};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::error::{ApiError, escape};
use crate::request::{Call, Dialect, Operation};
use crate::store::{Bucket, Entry, base64};

/// What `encoding-type=url` leaves as it is.
const PLAIN: AsciiSet =
    NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// The most keys in one page.
pub(crate) const MOST: usize = 1000;

/// What a listing that does not end repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Circle {
    None,
    /// The token.
    Token,
    /// The page, under tokens of its own.
    Page,
    /// Everything from its beginning.
    Begin,
    /// Pages without a key.
    Empty,
}

/// The page that `call` asks for, of at most `bound` keys.
pub(crate) fn page(
    bucket: &Bucket,
    call: &Call,
    circle: Circle,
    bound: usize,
) -> Result<String, ApiError> {
    let repeat_token = circle == Circle::Token;
    let v2 = call.operation == Operation::ListObjectsV2;
    let prefix = call.query("prefix").unwrap_or("");
    let delimiter = call.query("delimiter").filter(|d| !d.is_empty());
    let encode = match call.query("encoding-type") {
        None | Some("") => false,
        Some("url") => true,
        Some(_) => {
            return Err(ApiError::invalid_argument(
                "Invalid Encoding Method specified in Request.",
            ));
        }
    };
    let most = match call.query("max-keys") {
        // OSS lists 100 keys unless asked for more, S3 1000.
        None | Some("") if call.dialect == Dialect::S3 => MOST,
        None | Some("") => 100,
        Some(text) => match text.parse::<usize>() {
            Ok(n @ 1..=MOST) => n,
            Ok(n) if n > MOST && call.dialect == Dialect::S3 => MOST,
            _ => {
                return Err(ApiError::invalid_argument(
                    "Argument max-keys must be an integer between 1 and 1000.",
                ));
            }
        },
    };
    let token = call.query("continuation-token").filter(|t| v2 && !t.is_empty());
    // Where the page before ended: behind it this one starts.
    let after = match (v2, token) {
        (true, Some(token)) => decode_token(token).ok_or_else(|| {
            ApiError::invalid_argument("The continuation token provided is incorrect.")
        })?,
        (true, None) => call.query("start-after").unwrap_or("").to_owned(),
        (false, _) => call.query("marker").unwrap_or("").to_owned(),
    };
    // A page that ended with a common prefix ended behind all below it; start-after did not.
    let skips = !v2 || token.is_some();
    let folder = delimiter.filter(|d| skips && after.ends_with(d) && after.len() > prefix.len());
    let start = if folder.is_some() { successor(&after) } else { Some(after.clone()) };
    let wanted = Wanted {
        prefix,
        delimiter,
        after: &after,
        most: most.min(bound),
        encode,
        owner: !v2 || call.query("fetch-owner") == Some("true"),
    };
    let mut page = start.map(|start| wanted.collect(bucket, &start)).unwrap_or_default();
    match circle {
        Circle::None | Circle::Token => {}
        Circle::Page => (page.truncated, page.last) = (true, after.clone()),
        Circle::Begin => (page.truncated, page.last) = (true, String::new()),
        Circle::Empty => {
            page = Page { truncated: true, last: after.clone(), ..Page::default() };
        }
    }

    let mut out = String::with_capacity(page.contents.len() + page.folders.len() + 1024);
    out.push_str("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult>\n");
    let mut element = |name: &str, value: &str, encode: bool| {
        write(&mut out, name, value, encode);
    };
    element("Name", &call.bucket, false);
    element("Prefix", prefix, encode);
    element("MaxKeys", &most.to_string(), false);
    element("Delimiter", delimiter.unwrap_or(""), encode);
    if encode {
        element("EncodingType", "url", false);
    }
    element("IsTruncated", if page.truncated || repeat_token { "true" } else { "false" }, false);
    // The SDKs of OSS decode it, those of S3 do not.
    let encode_token_too = encode && call.dialect == Dialect::Oss;
    if v2 {
        element("StartAfter", call.query("start-after").unwrap_or(""), encode);
        if let Some(token) = token {
            element("ContinuationToken", token, false);
        }
        element("KeyCount", &page.count.to_string(), false);
        match (repeat_token, token) {
            (true, Some(token)) => element("NextContinuationToken", token, encode_token_too),
            _ if page.truncated || repeat_token => {
                let mut next = encode_token(&page.last);
                if circle != Circle::None && circle != Circle::Token {
                    // another each time, of the same meaning
                    let turn =
                        token.and_then(|token| token.rsplit_once('.')?.1.parse::<u64>().ok());
                    next.push_str(&format!(".{}", turn.unwrap_or(0) + 1));
                }
                element("NextContinuationToken", &next, encode_token_too);
            }
            _ => {}
        }
    } else {
        element("Marker", &after, encode);
        if page.truncated {
            element("NextMarker", &page.last, encode);
        }
    }
    out.push_str(&page.contents);
    out.push_str(&page.folders);
    out.push_str("</ListBucketResult>\n");
    Ok(out)
}

#[derive(Debug, Default)]
struct Page {
    contents: String,
    folders: String,
    count: usize,
    truncated: bool,
    /// The last key or common prefix of the page.
    last: String,
}

/// Which entries a page is to have.
#[derive(Debug)]
struct Wanted<'a> {
    prefix: &'a str,
    delimiter: Option<&'a str>,
    /// Behind this key.
    after: &'a str,
    most: usize,
    encode: bool,
    owner: bool,
}

impl Wanted<'_> {
    fn collect(&self, bucket: &Bucket, start: &str) -> Page {
        let Self { prefix, delimiter, after, most, encode, owner } = *self;
        let mut page = Page { contents: String::with_capacity(most * 280), ..Page::default() };
        let mut day = Day::default();
        let mut walk = bucket.walk(start.max(prefix));
        while let Some(entry) = walk.next() {
            let key = walk.key();
            if !key.starts_with(prefix) {
                break;
            }
            if key <= after && !after.is_empty() {
                continue;
            }
            if page.count == most {
                page.truncated = true;
                break;
            }
            page.count += 1;
            let folder = delimiter.and_then(|delimiter| {
                let end = key[prefix.len()..].find(delimiter)? + prefix.len() + delimiter.len();
                Some(key[..end].to_owned())
            });
            if let Some(folder) = folder {
                page.folders.push_str("<CommonPrefixes>\n");
                write(&mut page.folders, "Prefix", &folder, encode);
                page.folders.push_str("</CommonPrefixes>\n");
                let next = successor(&folder);
                page.last = folder;
                match next {
                    Some(next) => walk.seek(&next),
                    None => break,
                }
                continue;
            }
            page.last.clear();
            page.last.push_str(key);
            render(&mut page.contents, key, &entry, encode, owner, &mut day);
        }
        page
    }
}

fn render(
    out: &mut String,
    key: &str,
    entry: &Entry<'_>,
    encode: bool,
    owner: bool,
    day: &mut Day,
) {
    out.push_str("<Contents>\n");
    write(out, "Key", key, encode);
    match entry {
        Entry::Stored(object) => {
            day.write(out, object.modified.timestamp());
            write(out, "ETag", &object.etag, false);
            write(out, "Type", object.kind.name(), false);
            number(out, "Size", object.content.len());
            write(out, "StorageClass", &object.storage_class, false);
            if let Some(restore) = &object.restore {
                write(out, "RestoreInfo", restore, false);
            }
        }
        Entry::Generated(object) => {
            day.write(out, object.modified());
            write(out, "ETag", &object.etag(), false);
            out.push_str("<Type>Multipart</Type>\n");
            number(out, "Size", object.size);
            out.push_str("<StorageClass>Standard</StorageClass>\n");
        }
    }
    if owner {
        out.push_str(
            "<Owner>\n<ID>1234567890</ID>\n<DisplayName>1234567890</DisplayName>\n</Owner>\n",
        );
    }
    out.push_str("</Contents>\n");
}

/// Writes Last-Modified, whose milliseconds are always 000 on OSS; the calendar is asked once a day, not once a key.
#[derive(Debug, Default)]
struct Day {
    number: i64,
    text: String,
}

impl Day {
    fn write(&mut self, out: &mut String, seconds: i64) {
        let day = seconds.div_euclid(86_400);
        if self.text.is_empty() || self.number != day {
            let at = DateTime::<Utc>::from_timestamp(day * 86_400, 0).unwrap_or_default();
            self.text = at.format("%Y-%m-%dT").to_string();
            self.number = day;
        }
        let s = seconds.rem_euclid(86_400);
        let (hour, minute, second) = (s / 3600, s / 60 % 60, s % 60);
        let written = writeln!(
            out,
            "<LastModified>{}{hour:02}:{minute:02}:{second:02}.000Z</LastModified>",
            self.text
        );
        written.expect("writing to a String does not fail");
    }
}

fn number(out: &mut String, name: &str, value: u64) {
    writeln!(out, "<{name}>{value}</{name}>").expect("writing to a String does not fail");
}

fn write(out: &mut String, name: &str, value: &str, encode: bool) {
    out.push('<');
    out.push_str(name);
    out.push('>');
    if encode {
        out.extend(utf8_percent_encode(value, &PLAIN));
    } else {
        escape(value, out);
    }
    out.push_str("</");
    out.push_str(name);
    out.push_str(">\n");
}

/// The least string behind all that begin with `folder`.
fn successor(folder: &str) -> Option<String> {
    let mut chars: Vec<char> = folder.chars().collect();
    while let Some(last) = chars.pop() {
        // The next scalar value; surrogates are none.
        let next =
            if last == '\u{d7ff}' { Some('\u{e000}') } else { char::from_u32(last as u32 + 1) };
        if let Some(next) = next {
            chars.push(next);
            return Some(chars.into_iter().collect());
        }
    }
    None
}

/// A token is opaque to clients: they must hand it back as it is, whatever it looks like.
fn encode_token(last: &str) -> String {
    format!("{}--", base64(last.as_bytes()))
}

fn decode_token(token: &str) -> Option<String> {
    use base64::Engine;
    let token = token.rsplit_once('.').map_or(token, |(token, _)| token);
    let bytes = base64::engine::general_purpose::STANDARD.decode(token.strip_suffix("--")?).ok()?;
    String::from_utf8(bytes).ok()
}
