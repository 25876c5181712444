//! The manifest's lines: what was committed, in the order in which it was. Pure.
//!
//! A line is a kind, fields and a checksum, separated by tabs; tabs, line ends and `%` inside a
//! field are percent-encoded:
//!
//! | kind | fields | meaning |
//! |---|---|---|
//! | `ossvp-manifest` | version, source identity (JSON) | the header, first line |
//! | `b` | boot id, time | a run begins |
//! | `f` | CRC-64, size, ETag, mtime (ms), checked by, SHA-256, path, key | a file is committed |
//! | `d` | path, key | a directory is made |
//! | `x` | key | no longer listed, removed |
//! | `s` | offset | all lines before this offset are on the device (`syncfs` returned) |
//! | `u` | offset | files of the lines from this offset on may have lost bytes in a power cut |
//!
//! The key is relative to the prefix, `=` if it is the path. The last field is `#` and the CRC-32C
//! of everything before its tab. A reader stops at the first line that does not check: what was
//! torn off by a crash was not committed.

use std::fmt::Write as _;

use crc_fast::{CrcAlgorithm, checksum};

use crate::handoff::{Checked, SourceIdentity};
use crate::keys::{VolumePath, hex};

/// The manifest's format.
pub(crate) const VERSION: u32 = 1;
/// The longest line a reader takes in bytes: a key and a path of 4 KiB each, three times over for
/// their escapes, and an identity with many filters.
pub(crate) const MAX_LINE: usize = 1 << 20;

/// A committed file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileRecord {
    /// The key, relative to the prefix.
    pub(crate) relative: String,
    pub(crate) path: VolumePath,
    pub(crate) size: u64,
    /// As listed.
    pub(crate) etag: Option<String>,
    /// As listed, in ms since 1970.
    pub(crate) modified_ms: i64,
    /// CRC-64/XZ of the file.
    pub(crate) crc64: u64,
    pub(crate) checked: Checked,
    pub(crate) sha256: Option<[u8; 32]>,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Line {
    Header { version: u32, identity: Box<SourceIdentity> },
    Begin { boot: String, at: String },
    File(Box<FileRecord>),
    Directory { relative: String, path: VolumePath },
    Gone { relative: String },
    Synced { before: u64 },
    Untrusted { from: u64 },
}

const CHECKED: [(Checked, &str); 8] = [
    (Checked::Crc64, "crc64"),
    (Checked::Crc64Nvme, "crc64nvme"),
    (Checked::Crc32c, "crc32c"),
    (Checked::Crc32, "crc32"),
    (Checked::Sha256, "sha256"),
    (Checked::Md5, "md5"),
    (Checked::Unverified, "unverified"),
    (Checked::Off, "off"),
];

impl Line {
    /// The line with its checksum and line end.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut line = String::with_capacity(160);
        match self {
            Self::Header { version, identity } => {
                let identity =
                    serde_json::to_string(identity).expect("plain strings always serialise");
                fields(&mut line, &["ossvp-manifest", &version.to_string(), &identity]);
            }
            Self::Begin { boot, at } => fields(&mut line, &["b", boot, at]),
            Self::File(record) => {
                let FileRecord { relative, path, size, etag, modified_ms, crc64, checked, sha256 } =
                    record.as_ref();
                let checked = CHECKED.iter().find(|(kind, _)| kind == checked);
                let sha256 = sha256.map_or_else(|| "-".to_owned(), |digest| hex(&digest));
                let key = key_field(relative, path.as_str());
                fields(
                    &mut line,
                    &[
                        "f",
                        &format!("{crc64:016x}"),
                        &size.to_string(),
                        etag.as_deref().unwrap_or("-"),
                        &modified_ms.to_string(),
                        checked.map_or("off", |(_, name)| name),
                        &sha256,
                        path.as_str(),
                        &key,
                    ],
                );
            }
            Self::Directory { relative, path } => {
                fields(&mut line, &["d", path.as_str(), relative]);
            }
            Self::Gone { relative } => fields(&mut line, &["x", relative]),
            Self::Synced { before } => fields(&mut line, &["s", &before.to_string()]),
            Self::Untrusted { from } => fields(&mut line, &["u", &from.to_string()]),
        }
        seal(line)
    }

    /// Reads a line without its line end, or `None` if it does not check.
    pub(crate) fn decode(line: &[u8]) -> Option<Self> {
        let mut parts = unseal(line)?.split('\t').map(unescaped);
        let mut next = || parts.next()?;
        let line = match next()?.as_str() {
            "ossvp-manifest" => Self::Header {
                version: next()?.parse().ok()?,
                identity: serde_json::from_str(&next()?).ok()?,
            },
            "b" => Self::Begin { boot: next()?, at: next()? },
            "f" => {
                let crc64 = u64::from_str_radix(&next()?, 16).ok()?;
                let size = next()?.parse().ok()?;
                let etag = Some(next()?).filter(|etag| etag != "-");
                let modified_ms = next()?.parse().ok()?;
                let checked = next()?;
                let checked = CHECKED.iter().find(|(_, name)| *name == checked)?.0;
                let sha256 = match next()?.as_str() {
                    "-" => None,
                    digest => Some(unhex(digest)?),
                };
                let path: VolumePath = next()?.parse().ok()?;
                let relative = match next()? {
                    key if key == "=" => path.as_str().to_owned(),
                    key => key.strip_prefix('=').map(str::to_owned)?,
                };
                Self::File(Box::new(FileRecord {
                    relative,
                    path,
                    size,
                    etag,
                    modified_ms,
                    crc64,
                    checked,
                    sha256,
                }))
            }
            "d" => {
                let path = next()?.parse().ok()?;
                Self::Directory { path, relative: next()? }
            }
            "x" => Self::Gone { relative: next()? },
            "s" => Self::Synced { before: next()?.parse().ok()? },
            "u" => Self::Untrusted { from: next()?.parse().ok()? },
            _ => return None,
        };
        Some(line)
    }
}

/// The version that a header says, also one whose other fields are not known here.
pub(crate) fn version_of(line: &[u8]) -> Option<u32> {
    let body = unseal(line.strip_suffix(b"\n")?)?;
    let mut fields = body.split('\t');
    (fields.next()? == "ossvp-manifest").then(|| fields.next()?.parse().ok())?
}

/// `=` for a key that is its path, else `=` and the key: a key may itself be `=`.
fn key_field<'a>(relative: &'a str, path: &str) -> std::borrow::Cow<'a, str> {
    if relative == path { "=".into() } else { format!("={relative}").into() }
}

/// `body`, its checksum and a line end.
pub(crate) fn seal(mut body: String) -> Vec<u8> {
    let crc = checksum(CrcAlgorithm::Crc32Iscsi, body.as_bytes());
    writeln!(body, "\t#{crc:08x}").expect("writing to a String cannot fail");
    body.into_bytes()
}

/// What [`seal`] was given, or `None` if the line (without its end) does not check.
pub(crate) fn unseal(line: &[u8]) -> Option<&str> {
    let (body, crc) = std::str::from_utf8(line).ok()?.rsplit_once("\t#")?;
    let found = checksum(CrcAlgorithm::Crc32Iscsi, body.as_bytes());
    (format!("{found:08x}") == crc).then_some(body)
}

/// Appends `fields`, escaped and separated by tabs.
pub(crate) fn fields(line: &mut String, fields: &[&str]) {
    for (n, field) in fields.iter().enumerate() {
        if n > 0 {
            line.push('\t');
        }
        for c in field.chars() {
            match c {
                '%' => line.push_str("%25"),
                '\t' => line.push_str("%09"),
                '\n' => line.push_str("%0A"),
                '\r' => line.push_str("%0D"),
                _ => line.push(c),
            }
        }
    }
}

fn unescaped(field: &str) -> Option<String> {
    percent_encoding::percent_decode_str(field).decode_utf8().ok().map(|text| text.into_owned())
}

/// A SHA-256 of 64 hex digits.
pub(crate) fn unhex(digits: &str) -> Option<[u8; 32]> {
    let digits = digits.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let nibble = |digit: u8| (digit as char).to_digit(16).map(|value| value as u8);
    let mut out = [0; 32];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handoff::Unmappable;
    use crate::keys::Dialect;
    use proptest::prelude::*;

    fn lines() -> impl Strategy<Value = Line> {
        let path = "[^/\0.]{1,20}(/[^/\0.]{1,20}){0,3}"
            .prop_filter_map("a path", |path| path.parse::<VolumePath>().ok());
        let file = (
            (".{1,40}", any::<bool>(), path.clone(), any::<u64>()),
            (prop::option::of("\".*\""), any::<i64>(), any::<u64>()),
            (
                prop::sample::select(CHECKED.map(|(kind, _)| kind).to_vec()),
                prop::option::of(any::<[u8; 32]>()),
            ),
        )
            .prop_map(
                |((key, same, path, size), (etag, modified_ms, crc64), (checked, sha256))| {
                    let relative = if same { path.as_str().to_owned() } else { key };
                    Line::File(Box::new(FileRecord {
                        relative,
                        path,
                        size,
                        etag,
                        modified_ms,
                        crc64,
                        checked,
                        sha256,
                    }))
                },
            );
        let identity = (".*", ".*", prop::collection::vec(".*", 0..3)).prop_map(
            |(bucket, prefix, include)| Line::Header {
                version: VERSION,
                identity: Box::new(SourceIdentity {
                    dialect: Dialect::Oss,
                    bucket,
                    prefix,
                    include,
                    exclude: Vec::new(),
                    unmappable: Unmappable::Fail,
                }),
            },
        );
        prop_oneof![
            file,
            identity,
            (".*", ".*").prop_map(|(boot, at)| Line::Begin { boot, at }),
            (".*", path).prop_map(|(relative, path)| Line::Directory { relative, path }),
            ".*".prop_map(|relative| Line::Gone { relative }),
            any::<u64>().prop_map(|before| Line::Synced { before }),
            any::<u64>().prop_map(|from| Line::Untrusted { from }),
        ]
    }

    proptest! {
        #[test]
        fn a_line_reads_back_and_is_one_line(line in lines()) {
            let bytes = line.encode();
            prop_assert_eq!(bytes.iter().filter(|byte| **byte == b'\n').count(), 1);
            prop_assert_eq!(bytes.last(), Some(&b'\n'));
            prop_assert_eq!(Line::decode(&bytes[..bytes.len() - 1]), Some(line));
        }

        #[test]
        fn a_torn_or_changed_line_does_not_check(line in lines(), at: prop::sample::Index, bit in 0u8..8) {
            let mut bytes = line.encode();
            bytes.pop();
            let at = at.index(bytes.len());
            prop_assert_eq!(Line::decode(&bytes[..at]), None);
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(Line::decode(&bytes), None);
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>) {
            let _ = Line::decode(&bytes);
        }
    }
}
