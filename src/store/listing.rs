//! One page of a ListObjectsV2 answer: pure, bytes to [`Page`].

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use memchr::{memchr, memchr2, memmem};
use percent_encoding::percent_decode_str;
use quick_xml::Reader;
use quick_xml::events::Event;

use crate::keys::{Dialect, Key};

use super::answer::clean;
use super::error::StoreError;

/// One object of a listing, everything as listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The exact key.
    pub key: Key,
    /// In bytes.
    pub size: u64,
    /// With its quotes, as listed.
    pub etag: Option<String>,
    /// When the object was last written.
    pub modified: DateTime<Utc>,
    /// OSS `Type=Symlink`: nobody says whether size and ETag are the link's or its target's, so
    /// only the answer to a GET counts.
    pub symlink: bool,
    /// In an archive class and not restored. A GET may work all the same (archive direct read).
    pub archived: bool,
}

/// A page of a listing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) objects: Vec<Listed>,
    /// Where the next page begins; `None` at the end.
    pub(super) next: Option<String>,
}

/// Why a page is none.
#[derive(Debug)]
pub(super) enum PageError {
    /// Not what the protocol says; another attempt may do better.
    Malformed(String),
    /// A key that cannot be used.
    Key(StoreError),
}

/// The most objects of a page: ten times what is asked for, and what sources give at most. Each takes
/// more memory than it takes bytes in the page.
const MAX_OBJECTS: usize = 10_000;

/// The longest ETag in bytes; those in use have some 40. It goes into headers and into one line of
/// the manifest.
const MAX_ETAG: usize = 1024;

/// An element that matters, wherever it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    ListBucketResult,
    EncodingType,
    IsTruncated,
    KeyCount,
    NextContinuationToken,
    Contents,
    Key,
    Size,
    ETag,
    LastModified,
    Type,
    StorageClass,
    RestoreInfo,
    RestoreStatus,
    RestoreExpiryDate,
    Other,
}

impl Name {
    fn of(name: &str) -> Self {
        match name {
            "ListBucketResult" => Self::ListBucketResult,
            "EncodingType" => Self::EncodingType,
            "IsTruncated" => Self::IsTruncated,
            "KeyCount" => Self::KeyCount,
            "NextContinuationToken" => Self::NextContinuationToken,
            "Contents" => Self::Contents,
            "Key" => Self::Key,
            "Size" => Self::Size,
            "ETag" => Self::ETag,
            "LastModified" => Self::LastModified,
            "Type" => Self::Type,
            "StorageClass" => Self::StorageClass,
            "RestoreInfo" => Self::RestoreInfo,
            "RestoreStatus" => Self::RestoreStatus,
            "RestoreExpiryDate" => Self::RestoreExpiryDate,
            _ => Self::Other,
        }
    }
}

/// What is known of an object before its element ends.
#[derive(Default)]
struct Draft {
    key: Option<String>,
    size: Option<u64>,
    etag: Option<String>,
    modified: Option<DateTime<Utc>>,
    symlink: bool,
    archive: bool,
    restored: bool,
}

/// An object whose key may still be encoded: what says so may come later.
struct Undecoded {
    key: String,
    size: u64,
    etag: Option<String>,
    modified: DateTime<Utc>,
    symlink: bool,
    archived: bool,
}

/// Reads a page; never panics, whatever the bytes.
///
/// Texts are percent-decoded only where the page says `<EncodingType>url</EncodingType>`: keys, and
/// for OSS the continuation token too (as its official SDKs do; S3 never encodes the token).
pub(super) fn parse(body: &[u8], dialect: Dialect) -> Result<Page, PageError> {
    let body = utf8(body)?;
    let reading = match plain(body) {
        Some(reading) => reading?,
        None => general(body)?,
    };
    reading.page(dialect)
}

/// What [`parse`] does, the long way.
#[cfg(any(test, fuzzing))]
pub(super) fn parse_in_general(body: &[u8], dialect: Dialect) -> Result<Page, PageError> {
    general(utf8(body)?)?.page(dialect)
}

fn utf8(body: &[u8]) -> Result<&str, PageError> {
    std::str::from_utf8(body).map_err(|_| malformed("the listing is not UTF-8"))
}

/// What is known of a page before it ends.
#[derive(Default)]
struct Reading {
    /// The open elements; only the first levels matter.
    open: Vec<Name>,
    draft: Draft,
    objects: Vec<Undecoded>,
    encoded: bool,
    truncated: Option<bool>,
    next: Option<String>,
    count: Option<usize>,
}

impl Reading {
    fn start(&mut self, name: &str) -> Result<(), PageError> {
        if self.open.len() >= MAX_DEPTH {
            return Err(malformed("XML: too many levels"));
        }
        self.open.push(Name::of(name));
        match self.open.as_slice() {
            [root] if *root != Name::ListBucketResult => Err(malformed("the answer is no listing")),
            [_, Name::Contents] if self.objects.len() == MAX_OBJECTS => {
                Err(malformed("more objects than any page has"))
            }
            _ => Ok(()),
        }
    }

    /// The end of an element, and the text between it and the tag before.
    fn end(&mut self, text: Cow<'_, str>) -> Result<(), PageError> {
        match self.open.as_slice() {
            [_, Name::EncodingType] => self.encoded = text.trim().eq_ignore_ascii_case("url"),
            [_, Name::IsTruncated] => {
                self.truncated = match text.trim() {
                    "true" => Some(true),
                    "false" => Some(false),
                    _ => return Err(malformed("IsTruncated is neither true nor false")),
                }
            }
            [_, Name::KeyCount] => self.count = text.trim().parse().ok(),
            [_, Name::NextContinuationToken] => self.next = Some(text.into_owned()),
            [_, Name::Contents] => self.objects.push(std::mem::take(&mut self.draft).finish()?),
            [_, Name::Contents, field] => self.draft.take(*field, text),
            // S3, only if asked for: the same in elements
            [_, Name::Contents, Name::RestoreStatus, Name::RestoreExpiryDate] => {
                self.draft.restored = true;
            }
            _ => {}
        }
        self.open.pop();
        Ok(())
    }

    fn page(self, dialect: Dialect) -> Result<Page, PageError> {
        let Self { objects, encoded, truncated, next, count, .. } = self;
        let objects = objects
            .into_iter()
            .map(|object| object.listed(encoded))
            .collect::<Result<Vec<_>, _>>()?;
        // a page that lost keys on its way must not pass for the end of the listing
        if count.is_some_and(|count| count > objects.len()) {
            return Err(malformed("it holds fewer keys than it says"));
        }
        let next = next.filter(|token| !token.is_empty());
        let next = match (truncated, next) {
            (None, _) => return Err(malformed("it does not say whether it goes on")),
            (Some(false), None) => None,
            (Some(false), Some(_)) => {
                return Err(malformed("it ends, but has a continuation token"));
            }
            (Some(true), Some(token)) => {
                let decode = encoded && dialect != Dialect::S3;
                Some(if decode { url_decode(token)? } else { token })
            }
            (Some(true), None) => {
                return Err(malformed("the listing goes on, but has no continuation token"));
            }
        };
        Ok(Page { objects, next })
    }
}

fn malformed(reason: &str) -> PageError {
    PageError::Malformed(reason.to_owned())
}

/// Reads a page that is written as sources write them; `None` where anything else is in it, be it
/// XML or not. With it a page takes half of the time that it takes with [`general`] alone, which reads
/// the same wherever this reads anything.
///
/// By bytes where it can be, since a `char` is compared by a call.
fn plain(body: &str) -> Option<Result<Reading, PageError>> {
    let mut reading = Reading::default();
    let mut open: Vec<&str> = Vec::new();
    let mut rest = body;
    loop {
        let mut end = memchr2(b'<', b'&', rest.as_bytes())?;
        let refers = rest.as_bytes()[end] == b'&';
        if refers {
            end += memchr(b'<', &rest.as_bytes()[end..])?;
        }
        let (text, tag) = rest.split_at(end);
        if let Some(closing) = tag.strip_prefix("</") {
            rest = closing.strip_prefix(open.pop()?)?.strip_prefix(">")?;
            let text = if refers { Cow::Owned(resolved(text)?) } else { Cow::Borrowed(text) };
            if let Err(error) = reading.end(text) {
                return Some(Err(error));
            }
            if open.is_empty() {
                return Some(Ok(reading));
            }
            continue;
        }
        // a text before any other tag is nobody's, but not everything is a text
        if refers {
            return None;
        }
        if open.is_empty()
            && let Some(declaration) = tag.strip_prefix("<?xml ")
        {
            rest = declaration.split_once("?>")?.1;
            continue;
        }
        let tag = &tag[1..];
        let (name, behind) =
            tag.split_at(tag.bytes().position(|byte| !byte.is_ascii_alphanumeric())?);
        let (attributes, behind) = behind.split_at(memchr(b'>', behind.as_bytes())?);
        rest = &behind[1..];
        let (attributes, is_empty) = match attributes.strip_suffix('/') {
            Some(attributes) => (attributes, true),
            None => (attributes, false),
        };
        if name.is_empty() || !(attributes.is_empty() || are_plain(attributes)) {
            return None;
        }
        if is_empty {
            // what is before it and behind it is one text, which only those have that hold no others
            let holds_others = matches!(reading.open.as_slice(), [_] | [_, Name::Contents]);
            if !(text.is_empty() || holds_others) {
                return None;
            }
            continue;
        }
        open.push(name);
        if let Err(error) = reading.start(name) {
            return Some(Err(error));
        }
    }
}

/// A text with its references replaced; `None` if there is another than XML's own.
fn resolved(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = memchr(b'&', rest.as_bytes()) {
        out.push_str(&rest[..at]);
        let (name, behind) = rest[at + 1..].split_once(';')?;
        out.push(entity(name)?);
        rest = behind;
    }
    out.push_str(rest);
    Some(out)
}

/// Whether what is between a tag's name and the next `>` are attributes, and not a part of one.
fn are_plain(attributes: &str) -> bool {
    let quotes = attributes.bytes().filter(|byte| *byte == b'"').count();
    attributes.starts_with(' ') && quotes.is_multiple_of(2) && !attributes.contains('\'')
}

/// Reads a page in whatever XML it is written.
fn general(body: &str) -> Result<Reading, PageError> {
    let mut reader = Reader::from_str(body);
    let mut reading = Reading::default();
    let mut text = String::new();
    loop {
        let event = reader
            .read_event()
            .map_err(|error| PageError::Malformed(clean(&format!("XML: {error}"))))?;
        match event {
            Event::Start(tag) => {
                text.clear();
                reading.start(tag.local_name().into_inner())?;
            }
            Event::Text(piece) => text.push_str(&piece),
            Event::CData(piece) => text.push_str(&piece),
            Event::GeneralRef(name) => match entity(&name) {
                Some(c) => text.push(c),
                None => return Err(malformed("XML: unknown entity")),
            },
            Event::End(_) => {
                reading.end(Cow::Borrowed(&text))?;
                text.clear();
                if reading.open.is_empty() {
                    return Ok(reading);
                }
            }
            Event::Eof => return Err(malformed("the listing is cut off")),
            _ => {}
        }
    }
}

/// The token of the next page, read ahead of all else; the page itself may still say otherwise.
pub(super) fn peek(body: &[u8], dialect: Dialect) -> Option<String> {
    let between = |open: &str, close: &str| {
        let from = memmem::find(body, open.as_bytes())? + open.len();
        let text = &body[from..];
        std::str::from_utf8(&text[..memmem::find(text, close.as_bytes())?]).ok()
    };
    let token = between("<NextContinuationToken>", "</NextContinuationToken>")?;
    // anything but plain text is for the parser
    if token.is_empty() || token.contains(['<', '&']) {
        return None;
    }
    let encoded = between("<EncodingType>", "</EncodingType>") == Some("url");
    let decode = encoded && dialect != Dialect::S3;
    if decode { url_decode(token.to_owned()).ok() } else { Some(token.to_owned()) }
}

/// No object is larger: OSS's have at most 48.8 TB, S3's 50 TB. Sums of sizes that a source makes up
/// stay in range by this.
pub(super) const MAX_OBJECT: u64 = 1 << 50;

/// The deepest element of a listing is on level 4.
const MAX_DEPTH: usize = 16;

impl Draft {
    /// Takes the text of an element.
    fn take(&mut self, field: Name, text: Cow<'_, str>) {
        match field {
            Name::Key => self.key = Some(text.into_owned()),
            Name::ETag => self.etag = Some(text.into_owned()),
            Name::Size => self.size = text.trim().parse().ok(),
            Name::LastModified => {
                let time = DateTime::parse_from_rfc3339(text.trim()).ok();
                self.modified = time.map(|time| time.with_timezone(&Utc));
            }
            Name::Type => self.symlink = text.trim() == "Symlink",
            Name::StorageClass => {
                self.archive = matches!(
                    text.trim(),
                    "Archive" | "ColdArchive" | "DeepColdArchive" | "GLACIER" | "DEEP_ARCHIVE"
                );
            }
            // `ongoing-request="false", expiry-date="…"` once restored
            Name::RestoreInfo => self.restored = text.contains("expiry-date"),
            _ => {}
        }
    }

    fn finish(self) -> Result<Undecoded, PageError> {
        let Self { key, size, etag, modified, symlink, archive, restored } = self;
        let missing = |what| PageError::Malformed(format!("a listed object has no {what}"));
        let key = key.ok_or_else(|| missing("key"))?;
        let size = size.filter(|size| *size <= MAX_OBJECT).ok_or_else(|| missing("size"))?;
        let modified = modified.ok_or_else(|| missing("time"))?;
        let etag = etag.filter(|etag| !etag.is_empty());
        if etag.as_ref().is_some_and(|etag| etag.len() > MAX_ETAG) {
            return Err(PageError::Malformed("an ETag is longer than any".to_owned()));
        }
        Ok(Undecoded { key, size, etag, modified, symlink, archived: archive && !restored })
    }
}

impl Undecoded {
    fn listed(self, encoded: bool) -> Result<Listed, PageError> {
        let Self { key, size, etag, modified, symlink, archived } = self;
        let key = if encoded { url_decode(key)? } else { key };
        let key = Key::new(key).map_err(|e| PageError::Key(StoreError::bad_key(&e)))?;
        Ok(Listed { key, size, etag, modified, symlink, archived })
    }
}

/// The character that an XML reference stands for, if it is one of XML's own.
pub(super) fn entity(name: &str) -> Option<char> {
    match name {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => {
            let number = name.strip_prefix('#')?;
            let code = match number.strip_prefix('x') {
                Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                None => number.parse().ok()?,
            };
            char::from_u32(code)
        }
    }
}

/// Undoes `encoding-type=url`, in which S3 writes a space as `+` and a plus as `%2B`.
fn url_decode(text: String) -> Result<String, PageError> {
    let text = if text.contains('+') { text.replace('+', " ") } else { text };
    let bytes = match Cow::from(percent_decode_str(&text)) {
        Cow::Borrowed(_) => return Ok(text),
        Cow::Owned(bytes) => bytes,
    };
    String::from_utf8(bytes).map_err(|error| {
        let text = clean(&String::from_utf8_lossy(error.as_bytes()));
        PageError::Key(StoreError::BadKey { reason: format!("{text:?} is not UTF-8") })
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OSS: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://doc.oss-cn-hangzhou.aliyuncs.com">
  <Name>models</Name><Prefix>a%2F</Prefix><MaxKeys>1000</MaxKeys>
  <EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>
  <NextContinuationToken>CgJi%2BYw--</NextContinuationToken>
  <Contents><Key>a%2F%20b%2B%0A%E4%BD%A0&amp;</Key><LastModified>2020-05-18T05:45:43.000Z</LastModified>
    <ETag>"35A27C2B9EAEEB6F48FD7FB5861D****"</ETag><Type>Symlink</Type><Size>25</Size>
    <StorageClass>Standard</StorageClass><Owner><ID>1</ID><DisplayName>x</DisplayName></Owner></Contents>
  <Contents><Key>b</Key><LastModified>2020-05-18T05:45:43Z</LastModified><ETag>&quot;AB&quot;</ETag>
    <Type>Normal</Type><Size>1125899906842624</Size><StorageClass>ColdArchive</StorageClass></Contents>
  <Contents><Key>c</Key><LastModified>2020-05-18T05:45:43Z</LastModified><Size>0</Size>
    <StorageClass>Archive</StorageClass>
    <RestoreInfo>ongoing-request="false", expiry-date="Sat, 05 Nov 2022 07:38:08 GMT"</RestoreInfo></Contents>
  <Contents><Key>d</Key><LastModified>2020-05-18T05:45:43Z</LastModified><Size>0</Size>
    <StorageClass>Archive</StorageClass><RestoreInfo>ongoing-request="true"</RestoreInfo></Contents>
  <KeyCount>4</KeyCount>
</ListBucketResult>"#;

    const S3: &str = r#"<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
  <IsTruncated>true</IsTruncated><NextContinuationToken>1ueGcxLPRx1Tr/XYExHnhbYLgveDs2J%2B</NextContinuationToken>
  <EncodingType>url</EncodingType>
  <Contents><Key>my+image%2B.jpg</Key><LastModified>2009-10-12T17:50:30.000Z</LastModified>
    <ETag>"fba9dede5f27731c9771645a39863328"</ETag><Size>434234</Size><StorageClass>GLACIER</StorageClass>
    <RestoreStatus><IsRestoreInProgress>false</IsRestoreInProgress><RestoreExpiryDate>2012-12-21T00:00:00.000Z</RestoreExpiryDate></RestoreStatus></Contents>
</ListBucketResult>"#;

    #[test]
    fn reads_a_page_of_oss() {
        let page = parse(OSS.as_bytes(), Dialect::Oss).unwrap();
        assert_eq!(page.next.as_deref(), Some("CgJi+Yw--"));
        assert_eq!(peek(OSS.as_bytes(), Dialect::Oss), page.next);
        let [first, second, third, fourth] = page.objects.as_slice() else { panic!("{page:?}") };
        assert_eq!(first.key.as_str(), "a/ b+\n你&");
        assert_eq!(first.etag.as_deref(), Some("\"35A27C2B9EAEEB6F48FD7FB5861D****\""));
        assert_eq!(first.modified.to_rfc3339(), "2020-05-18T05:45:43+00:00");
        assert!(first.symlink && !first.archived && first.size == 25);
        assert_eq!((second.etag.as_deref(), second.size), (Some("\"AB\""), MAX_OBJECT));
        assert!(second.archived && !second.symlink);
        assert!(!third.archived && third.etag.is_none());
        assert!(fourth.archived);
    }

    #[test]
    fn reads_a_page_of_s3() {
        let page = parse(S3.as_bytes(), Dialect::S3).unwrap();
        assert_eq!(peek(S3.as_bytes(), Dialect::S3), page.next);
        assert_eq!(page.next.as_deref(), Some("1ueGcxLPRx1Tr/XYExHnhbYLgveDs2J%2B"));
        assert_eq!(page.objects[0].key.as_str(), "my image+.jpg");
        assert!(!page.objects[0].archived);
    }

    /// Reads a page in both ways, which must read the same; says whether the short one did.
    fn read_in_both_ways(body: &[u8], dialect: Dialect) -> bool {
        let (one, other) = (parse(body, dialect), parse_in_general(body, dialect));
        let text = String::from_utf8_lossy(body);
        assert_eq!(format!("{one:?}"), format!("{other:?}"), "{text}");
        plain(&text).is_some()
    }

    #[test]
    fn what_is_read_the_short_way_reads_the_same_in_general() {
        let replaced = |from: &str, to: &str| OSS.replacen(from, to, 1);
        for body in [
            OSS.to_owned(),
            S3.to_owned(),
            replaced("<Size>25</Size>", "<Size>25<a>6</a>7</Size>"),
            replaced("<Size>25</Size>", "<Size><a/>25</Size><a b=\"c\"/>"),
            replaced("<Size>25</Size>", "<Size> 25 </Size>"),
            replaced("<Size>25</Size>", "<Size b=\"c\" d=\"e\">25</Size>"),
            replaced("<Key>b</Key>", "<Key>&lt;&#x4F60;&#20320;&apos;b&amp;amp;</Key>"),
            replaced("<Key>b</Key>", "<Key>\r\nb]]></Key>"),
            format!("\u{feff}{OSS}"),
        ] {
            assert!(read_in_both_ways(body.as_bytes(), Dialect::Oss), "{body}");
        }
        for body in [
            replaced("<Size>25</Size>", "<Size>2<a/>5</Size>"),
            replaced("<Size>25</Size>", "<Size><![CDATA[25]]></Size>"),
            replaced("<Size>25</Size>", "<Size>25<!-- 6 --></Size>"),
            replaced("<Size>25</Size>", "<Size>25</Size >"),
            replaced("<Size>25</Size>", "<Size b=\">\">25</Size>"),
            replaced("<Size>25</Size>", "<Size b='\"'>25</Size>"),
            replaced("<Size>25</Size>", "<Size><?a ?>25</Size>"),
            replaced("<Size>25</Size>", "<Size>&bomb;<a></a>25</Size>"),
            replaced("<Size>25</Size>", "<Size>25</Type>"),
            OSS.replace("Size>", "a:Size>"),
            OSS[..OSS.len() - 20].to_owned(),
        ] {
            assert!(!read_in_both_ways(body.as_bytes(), Dialect::Oss), "{body}");
        }
    }

    #[test]
    fn decodes_only_what_is_encoded() {
        let body = OSS.replace("<EncodingType>url</EncodingType>", "");
        let page = parse(body.as_bytes(), Dialect::Oss).unwrap();
        assert_eq!(page.objects[0].key.as_str(), "a%2F%20b%2B%0A%E4%BD%A0&");
        assert_eq!(page.next.as_deref(), Some("CgJi%2BYw--"));
    }

    #[test]
    fn refuses_what_is_no_page() {
        let replaced = |from: &str, to: &str| OSS.replacen(from, to, 1);
        let listed = "<Contents><Key>a</Key><Size>0</Size>\
            <LastModified>2020-05-18T05:45:43Z</LastModified></Contents>";
        for body in [
            String::new(),
            "<html></html>".to_owned(),
            OSS[..OSS.len() - 20].to_owned(),
            replaced("<NextContinuationToken>CgJi%2BYw--</NextContinuationToken>", ""),
            replaced("<Size>25</Size>", "<Size>-1</Size>"),
            replaced("<Size>25</Size>", "<Size>18446744073709551615</Size>"),
            replaced("<Size>25</Size>", ""),
            replaced("<Key>b</Key>", ""),
            replaced("2020-05-18T05:45:43.000Z", "yesterday"),
            replaced("&amp;", "&bomb;"),
            replaced("<IsTruncated>true</IsTruncated>", ""),
            replaced("<IsTruncated>true", "<IsTruncated>false"),
            replaced("<IsTruncated>true", "<IsTruncated>trte"),
            replaced("<KeyCount>4", "<KeyCount>5"),
            "<a>".repeat(1000),
            replaced("</ETag>", &"x".repeat(2000)),
            replaced("</ETag>", &format!("{}</ETag>", "x".repeat(2000))),
            format!("<ListBucketResult>{}", listed.repeat(20_000)),
            format!("<ListBucketResult><{}></a\nb>", "x".repeat(100_000)),
        ] {
            let error = parse(body.as_bytes(), Dialect::Oss).expect_err(&body);
            let PageError::Malformed(reason) = error else { panic!("{error:?}") };
            assert!(reason.len() < 1000 && !reason.contains('\n'), "{reason}");
        }
        let too_long = format!("<Key>{}</Key>", "x".repeat(5000));
        for key in ["<Key>%FF</Key>", "<Key></Key>", &too_long] {
            let body = replaced("<Key>b</Key>", key);
            let error = parse(body.as_bytes(), Dialect::Oss).expect_err(key);
            assert!(matches!(error, PageError::Key(_)), "{error:?}");
        }
    }

    /// A listing has no checksum, so a changed name or size cannot be seen here: the object's own
    /// answers tell. What is lost would never be asked for.
    #[test]
    fn no_flipped_bit_loses_a_key_or_the_rest_of_the_listing() {
        let whole = parse(OSS.as_bytes(), Dialect::Oss).unwrap();
        let mut refused = 0;
        for at in 0..OSS.len() {
            for bit in 0..8 {
                let mut body = OSS.as_bytes().to_vec();
                body[at] ^= 1 << bit;
                match parse(&body, Dialect::Oss) {
                    Ok(page) => {
                        let seen = (page.objects.len(), page.next.is_some());
                        assert_eq!(seen, (whole.objects.len(), true), "byte {at}, bit {bit}");
                    }
                    Err(_) => refused += 1,
                }
            }
        }
        assert!(refused > OSS.len(), "{refused}");
    }

    #[test]
    fn two_hex_digits_behind_a_percent_are_a_byte_and_nothing_else_is() {
        for (text, decoded) in [
            ("a%2Fb+c%2B", Some("a/b c+")),
            ("%e4%BD%a0%25", Some("\u{4f60}%")),
            ("100%", Some("100%")),
            ("%2", Some("%2")),
            ("%g0%+a%%41", Some("%g0% a%A")),
            ("%FF", None),
        ] {
            assert_eq!(url_decode(text.to_owned()).ok().as_deref(), decoded, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(body in prop::collection::vec(any::<u8>(), 0..400)) {
            read_in_both_ways(&body, Dialect::Oss);
        }

        #[test]
        fn no_xml_reads_in_two_ways(
            pieces in prop::collection::vec((0..OSS.len(), prop::sample::select(&[
                "<", ">", "/", "&", ";", "\"", "'", "<a>", "</a>", "<a/>", "<a b=\"", "<!--", "-->", "]]>",
                "<![CDATA[", "<?", "?>", "<Key>", "</Key>", "</Contents>", "<Size/>", "&#9;", "<a\tb>", " ",
            ][..])), 1..4),
        ) {
            let mut body = OSS.to_owned();
            for (at, piece) in pieces {
                let at = body.floor_char_boundary(at);
                body.insert_str(at, piece);
            }
            read_in_both_ways(body.as_bytes(), Dialect::Oss);
        }

        #[test]
        fn no_mutation_makes_it_panic(
            edits in prop::collection::vec((0..OSS.len(), any::<u8>()), 1..12),
            cut in 0..OSS.len(),
        ) {
            let mut body = OSS.as_bytes().to_vec();
            for (at, byte) in edits {
                body[at] = byte;
            }
            read_in_both_ways(&body, Dialect::Oss);
            read_in_both_ways(&body[cut..], Dialect::S3);
            read_in_both_ways(&body[..cut], Dialect::S3);
        }

        #[test]
        fn every_key_comes_through(key in "\\PC{1,30}|[\\x01-\\x20%+&<>é]{1,20}") {
            let encoded = super::super::sign::encode(&key, true);
            let body = OSS.replacen("<Key>b</Key>", &format!("<Key>{encoded}</Key>"), 1);
            let page = parse(body.as_bytes(), Dialect::Oss).unwrap();
            prop_assert_eq!(page.objects[1].key.as_str(), key);
        }
    }
}
