//! What a layout must be, written as simply as can be: from all keys at once, with all memory.

use std::collections::{BTreeMap, BTreeSet};

use ossvp::handoff::Unmappable;
use ossvp::keys::{Key, Prefix, VolumePath};
use ossvp::worker::layout::{Layout, Place};

/// Keys and sizes, and the answers that follow from all of them at once.
#[derive(Debug)]
pub struct Model(pub BTreeMap<String, u64>);

impl Model {
    fn sound(key: &str, size: u64) -> bool {
        let path = match key.strip_suffix('/') {
            Some(_) if size > 0 => return false,
            Some(path) => path,
            None => key,
        };
        let bad = |segment: &str| {
            ["", ".", ".."].contains(&segment) || segment.len() > 255 || segment.contains('\0')
        };
        let own = path.split('/').next().is_some_and(|first| first.to_lowercase() == ".ossvp");
        !own && !path.split('/').any(bad) && path.len() <= 4095
    }

    /// The keys of which `is` says so, told which of the keys that end before one of its slashes,
    /// or are it without the last, it has said so of.
    fn those(&self, is: impl Fn(&str, u64, &BTreeSet<&str>) -> bool) -> BTreeSet<&str> {
        let mut those = BTreeSet::new();
        for (key, size) in &self.0 {
            if is(key, *size, &those) {
                those.insert(key.as_str());
            }
        }
        those
    }

    /// The keys that are a path as they stand: none of the others is a file above them.
    fn mapped(&self) -> BTreeSet<&str> {
        self.those(|key, size, mapped| {
            let file_above =
                |(at, _): (usize, &str)| !key[..at].ends_with('/') && mapped.contains(&key[..at]);
            Self::sound(key, size) && !key.match_indices('/').any(file_above)
        })
    }

    /// With `escape`, all that is no placeholder is a file, and so is a placeholder below its own
    /// name.
    fn files(&self) -> BTreeSet<&str> {
        self.those(|key, size, files| match key.strip_suffix('/') {
            Some(above) if size == 0 => files.contains(above),
            _ => true,
        })
    }

    /// Whether layouts in all three modes are as they must be; if not, why.
    pub fn agrees(&self) -> Result<(), String> {
        let layout = |mode| Layout::new(Prefix::new(""), mode);
        let key = |key: &str| Key::new(key).map_err(|error| error.to_string());
        let (mapped, files) = (self.mapped(), self.files());

        let mut fail = layout(Unmappable::Fail);
        let mut failed = None;
        for (name, size) in &self.0 {
            if fail.place(&key(name)?, *size).is_err() {
                failed = Some(name);
                break;
            }
        }
        let first = self.0.keys().find(|name| !mapped.contains(name.as_str()));
        if failed != first {
            return Err(format!("{failed:?} was refused, not {first:?}"));
        }

        let mut skip = layout(Unmappable::Skip);
        for (name, size) in &self.0 {
            let placed = match skip.place(&key(name)?, *size).map_err(|error| error.to_string())? {
                Place::File(path) => Some(path.as_str().to_owned()),
                Place::Directory(path) => Some(format!("{}/", path.as_str())),
                Place::Nowhere(_) => None,
                Place::Root => return Err(format!("{name:?} is the root")),
            };
            if placed.as_ref() != mapped.contains(name.as_str()).then_some(name) {
                return Err(format!("{name:?} became {placed:?}"));
            }
        }

        let mut escape = layout(Unmappable::Escape);
        let (mut all, mut are_files) = (BTreeMap::new(), BTreeSet::new());
        for (name, size) in &self.0 {
            let (path, file) =
                match escape.place(&key(name)?, *size).map_err(|error| error.to_string())? {
                    Place::File(path) => (path, true),
                    Place::Directory(path) => (path, false),
                    other => return Err(format!("{name:?} became {other:?}")),
                };
            let path = path.as_str().to_owned();
            if file != files.contains(name.as_str()) || path.parse::<VolumePath>().is_err() {
                return Err(format!("{name:?} became {path:?}, a file: {file}"));
            }
            if let Some(back) = unescaped(&path)
                && (if file { back } else { back + "/" }) != *name
            {
                return Err(format!("{name:?} became {path:?}, which is another key's"));
            }
            if file {
                are_files.insert(path.clone());
            }
            if let Some(other) = all.insert(path.clone(), name) {
                return Err(format!("{name:?} became {path:?}, and so did {other:?}"));
            }
        }
        for path in all.keys() {
            if path.match_indices('/').any(|(at, _)| are_files.contains(&path[..at])) {
                return Err(format!("{path:?} lies below a file"));
            }
        }
        Ok(())
    }
}

/// The key that an escaped path stands for, unless a segment was cut.
fn unescaped(path: &str) -> Option<String> {
    let segment = |segment: &str| {
        let tail = segment.len().checked_sub(17).and_then(|at| segment.get(at..));
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if tail.is_some_and(|tail| tail.starts_with('%') && tail[1..].bytes().all(hex)) {
            return None;
        }
        let whole = match segment.strip_prefix('%') {
            Some(rest) if rest.is_empty() || rest.starts_with("%2F") => rest,
            _ => segment,
        };
        let [dot, slash, nul] = [("%2E", "."), ("%2F", "/"), ("%00", "\0")];
        let decoded = [dot, slash, nul, ("%25", "%")]
            .iter()
            .fold(whole.to_owned(), |text, (code, plain)| text.replace(code, plain));
        Some(decoded)
    };
    path.split('/').map(segment).collect::<Option<Vec<_>>>().map(|segments| segments.join("/"))
}
