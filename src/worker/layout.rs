//! From key to path: where in the volume each object goes. Pure.
//!
//! Keys must come in listing order (by bytes): whether a key lies below another key that is a file
//! is decided by a stack of the file keys that are string prefixes of the current one, so memory is
//! bounded by the length of a key.

use std::borrow::Cow;

use sha2::{Digest, Sha256};

use crate::handoff::Unmappable;
use crate::keys::{Key, MAX_PATH, MAX_SEGMENT, Prefix, VolumePath, fork, hex, is_own_directory};

/// Where one key goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A file.
    File(VolumePath),
    /// A directory: the key is a `dir/` placeholder.
    Directory(VolumePath),
    /// The placeholder that is the prefix itself: the volume root, and no object.
    Root,
    /// Nowhere: the key is no safe path.
    Nowhere(&'static str),
}

/// Why a key was refused with `--unmappable fail`, or was not under the prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The key is no safe path.
    #[error(
        "key {key} cannot be a path in the volume: {reason}; --unmappable escape gives such keys a path of their own, --unmappable skip leaves them out, --exclude leaves out what matches"
    )]
    Unmappable {
        /// The key.
        key: Key,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The source listed something else than was asked for.
    #[error("the source listed key {0}, which is not under the prefix")]
    Stray(Key),
}

const BELOW_A_FILE: &str = "a key that is its beginning is a file";
const CONTENT_IN_DIRECTORY: &str = "it ends in / but has content";

/// How many characters of a shortened name are its digest, `%` included.
const DIGEST_LEN: usize = 17;

/// Decides where keys go, one after the other, in listing order.
///
/// ```
/// use ossvp::handoff::Unmappable;
/// use ossvp::keys::{Key, Prefix};
/// use ossvp::worker::layout::{Layout, Place};
///
/// let mut layout = Layout::new(Prefix::new("p/"), Unmappable::Escape);
/// let mut place = |key: &str, size| match layout.place(&Key::new(key).unwrap(), size).unwrap() {
///     Place::File(path) => path.as_str().to_owned(),
///     Place::Directory(path) => format!("{}/", path.as_str()),
///     Place::Root => "(root)".to_owned(),
///     Place::Nowhere(_) => unreachable!("escape finds a place for every key"),
/// };
/// assert_eq!(place("p/", 0), "(root)");
/// assert_eq!(place("p/100%", 1), "100%25");
/// assert_eq!(place("p/a", 1), "a");
/// assert_eq!(place("p/a-", 1), "a-");
/// assert_eq!(place("p/a/b", 1), "a%2Fb");
/// assert_eq!(place("p/b//c", 1), "b/%/c");
/// assert_eq!(place("p/c/../d", 1), "c/%2E%2E/d");
/// assert_eq!(place("p/d/", 0), "d/");
/// ```
#[derive(Debug)]
pub struct Layout {
    prefix: Prefix,
    mode: Unmappable,
    /// The last relative key that became a file.
    file: String,
    /// The lengths of those of its beginnings that became files and are string prefixes of the last key,
    /// ascending.
    ends: Vec<usize>,
}

impl Layout {
    /// A layout for the keys under `prefix`.
    pub fn new(prefix: Prefix, mode: Unmappable) -> Self {
        Self { prefix, mode, file: String::new(), ends: Vec::new() }
    }

    /// Where `key`, an object of `size` bytes, goes.
    ///
    /// # Errors
    /// [`LayoutError::Unmappable`] with `--unmappable fail`; [`LayoutError::Stray`] if the key is
    /// not under the prefix.
    pub fn place(&mut self, key: &Key, size: u64) -> Result<Place, LayoutError> {
        let Some(relative) = self.prefix.relative(key) else {
            return Err(LayoutError::Stray(key.clone()));
        };
        if relative.is_empty() && size == 0 {
            return Ok(Place::Root);
        }
        let common = fork(&self.file, relative);
        self.ends.truncate(self.ends.partition_point(|end| *end <= common));
        // byte offsets of the slashes behind which a key would lie below a file
        let below: Vec<usize> = self
            .ends
            .iter()
            .copied()
            .filter(|end| relative.as_bytes().get(*end) == Some(&b'/'))
            .collect();
        let place = match self.mode {
            Unmappable::Escape => escaped(relative, size, &below),
            Unmappable::Fail | Unmappable::Skip => literal(relative, size, &below),
        };
        match (place, self.mode) {
            (Place::Nowhere(reason), Unmappable::Fail) => {
                Err(LayoutError::Unmappable { key: key.clone(), reason })
            }
            (place, _) => {
                // a key that comes twice is one file
                let known = self.ends.last() == Some(&relative.len());
                if matches!(place, Place::File(_)) && !known {
                    self.ends.push(relative.len());
                    relative.clone_into(&mut self.file);
                }
                Ok(place)
            }
        }
    }
}

fn literal(relative: &str, size: u64, below: &[usize]) -> Place {
    let (path, directory) = match relative.strip_suffix('/') {
        Some(path) => (path, true),
        None => (relative, false),
    };
    if !below.is_empty() {
        return Place::Nowhere(BELOW_A_FILE);
    }
    match VolumePath::new(path.to_owned()) {
        Ok(_) if directory && size > 0 => Place::Nowhere(CONTENT_IN_DIRECTORY),
        placed => placed_as(placed, directory),
    }
}

fn placed_as(placed: Result<VolumePath, &'static str>, directory: bool) -> Place {
    match placed {
        Ok(path) if directory => Place::Directory(path),
        Ok(path) => Place::File(path),
        Err(reason) => Place::Nowhere(reason),
    }
}

/// The injective escape: `%` becomes `%25`; a NUL, a segment that is `.` or `..`, and the dot of a
/// leading `.ossvp` are percent-encoded; an empty segment becomes `%`; a slash behind a file
/// becomes `%2F`; what is too long is cut and ends in `%` and its digest.
fn escaped(relative: &str, size: u64, below: &[usize]) -> Place {
    let ends_below = below.last().is_some_and(|slash| slash + 1 == relative.len());
    let directory = size == 0 && relative.ends_with('/') && !ends_below;
    let body = if directory { &relative[..relative.len() - 1] } else { relative };

    let mut path = String::with_capacity(body.len() + 8);
    let mut start = 0;
    for slash in body.match_indices('/').map(|(at, _)| at).chain([body.len()]) {
        if below.contains(&slash) {
            continue;
        }
        if start > 0 {
            path.push('/');
        }
        path.push_str(&escaped_segment(&body[start..slash], start, below));
        start = slash + 1;
    }
    let path = if path.len() > MAX_PATH { cut(&path, relative, MAX_PATH) } else { path };
    placed_as(VolumePath::new(path), directory)
}

/// One segment, which begins at byte `start` of the relative key and may hold slashes behind files.
fn escaped_segment<'s>(segment: &'s str, start: usize, below: &[usize]) -> Cow<'s, str> {
    let plain = !segment.is_empty()
        && !segment.contains(['%', '\0', '/'])
        && segment != "."
        && segment != ".."
        && !(start == 0 && is_own_directory(segment.as_bytes()))
        && segment.len() <= MAX_SEGMENT;
    if plain {
        return Cow::Borrowed(segment);
    }
    let mut out = String::with_capacity(segment.len() + 8);
    let mut piece_start = 0;
    let slashes =
        below.iter().filter_map(|at| at.checked_sub(start)).filter(|at| *at < segment.len());
    for (n, end) in slashes.chain([segment.len()]).enumerate() {
        if n > 0 {
            out.push_str("%2F");
        }
        let piece = &segment[piece_start..end];
        match piece {
            // behind an escaped slash nothing is empty or special: the name around it is not
            "" if n == 0 => out.push('%'),
            "." | ".." if n == 0 && end == segment.len() => {
                out.push_str(&piece.replace('.', "%2E"))
            }
            _ => {
                let own = n == 0 && start == 0 && is_own_directory(piece.as_bytes());
                let rest = if own {
                    out.push_str("%2E");
                    &piece[1..]
                } else {
                    piece
                };
                for c in rest.chars() {
                    match c {
                        '%' => out.push_str("%25"),
                        '\0' => out.push_str("%00"),
                        _ => out.push(c),
                    }
                }
            }
        }
        piece_start = end + 1;
    }
    // a name that only looks as if it had been cut (how long a cut one is depends on where its
    // characters end) gets a digest of its own, so that no two names meet
    if out.len() > MAX_SEGMENT || looks_cut(&out) {
        out = cut(&out, segment, MAX_SEGMENT);
    }
    Cow::Owned(out)
}

fn looks_cut(name: &str) -> bool {
    let tail = name.len().checked_sub(DIGEST_LEN).and_then(|at| name.as_bytes().get(at..));
    tail.is_some_and(|tail| {
        tail[0] == b'%' && tail[1..].iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// The first bytes of `name` and `%` and 16 hex digits of the SHA-256 of `whole`: at most `limit`
/// bytes.
fn cut(name: &str, whole: &str, limit: usize) -> String {
    let mut keep = name.floor_char_boundary(limit - DIGEST_LEN);
    // a segment must not grow past its own limit by the digest
    let segment_start = name[..keep].rfind('/').map_or(0, |slash| slash + 1);
    keep = keep.min(segment_start + MAX_SEGMENT - DIGEST_LEN);
    keep = name.floor_char_boundary(keep);
    let mut out = name[..keep].to_owned();
    out.push('%');
    out.push_str(&hex(&Sha256::digest(whole.as_bytes())[..8]));
    out
}
