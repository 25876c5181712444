//! The `SHA256SUMS` object of a source: what `--sha256` compares with, where there is one.

use std::io;

use futures::StreamExt;
use object_store::GetOptions;

use super::at::{VolumeError, errno};
use super::failure::Failure;
use super::manifest::unhex;
use super::sort::{Sorted, Sorter, SpillFile};
use crate::keys::{Prefix, hex};
use crate::store::{Source, explain, location};

/// The name of the object, right under the prefix.
const NAME: &str = "SHA256SUMS";
/// The longest line: a digest and an escaped path.
const MAX_LINE: usize = 16 << 10;

/// Stated digests in key order, with as much memory for any number of them.
#[derive(Debug, Default)]
pub(crate) struct Sums {
    sorted: Option<Sorted>,
    next: Option<(Vec<u8>, Vec<u8>)>,
}

impl Sums {
    /// Fetches `SHA256SUMS` under `prefix`, if the source has it.
    ///
    /// # Errors
    /// What the source answers; [`Failure::Sums`] if a line is none of `sha256sum`'s.
    pub(crate) async fn fetch(
        source: &Source,
        prefix: &Prefix,
        spill: SpillFile,
    ) -> Result<Self, Failure> {
        // beside a prefix that is no directory it would speak of other objects too
        let key = prefix.key(NAME).ok().filter(|key| prefix.relative(key).is_some());
        let Some(key) = key else { return Ok(Self::default()) };
        let objects = source.objects();
        let answer = match objects.get_opts(&location(&key), GetOptions::default()).await {
            Ok(answer) => answer,
            Err(object_store::Error::NotFound { .. }) => return Ok(Self::default()),
            Err(error) => return Err(explain(error).into()),
        };
        let mut sorter = Sorter::new(spill);
        let (mut rest, mut line) = (Vec::new(), 0);
        let mut body = answer.into_stream();
        let mut take = |text: &[u8]| {
            line += 1;
            let (path, digest) = parsed(text).ok_or(Failure::Sums { key: key.clone(), line })?;
            sorter.push(path.as_bytes(), &digest).map_err(sorting)
        };
        while let Some(frame) = body.next().await {
            for byte in frame.map_err(|error| Failure::from(explain(error)))? {
                match byte {
                    b'\n' => {
                        take(&rest)?;
                        rest.clear();
                    }
                    // a line too long is refused by its length below
                    _ if rest.len() <= MAX_LINE => rest.push(byte),
                    _ => {}
                }
            }
        }
        if !rest.is_empty() {
            take(&rest)?;
        }
        let mut sorted = sorter.finish().map_err(sorting)?;
        let next = sorted.next().map_err(sorting)?;
        Ok(Self { sorted: Some(sorted), next })
    }

    /// What is stated of the key `relative`; keys must be asked for in order.
    pub(crate) fn of(&mut self, relative: &str) -> Result<Option<[u8; 32]>, Failure> {
        let mut found = None;
        while let (Some(sorted), Some((key, digest))) = (&mut self.sorted, &self.next) {
            match key.as_slice().cmp(relative.as_bytes()) {
                std::cmp::Ordering::Greater => break,
                std::cmp::Ordering::Equal => found = digest.as_slice().try_into().ok(),
                std::cmp::Ordering::Less => {}
            }
            self.next = sorted.next().map_err(sorting)?;
        }
        Ok(found)
    }
}

fn sorting(error: io::Error) -> Failure {
    VolumeError::Call { action: "sort", path: NAME.to_owned(), source: errno(&error) }.into()
}

/// A line of `sha256sum`: 64 hex digits, two spaces or a space and `*`, the path; a line that
/// begins with `\` has `\\`, `\n` and `\r` in the path escaped (GNU coreutils manual, "md5sum
/// invocation").
pub(crate) fn parsed(line: &[u8]) -> Option<(String, [u8; 32])> {
    if line.len() > MAX_LINE {
        return None;
    }
    let line = std::str::from_utf8(line).ok()?;
    let line = line.strip_suffix('\r').unwrap_or(line);
    let (escaped, line) = match line.strip_prefix('\\') {
        Some(line) => (true, line),
        None => (false, line),
    };
    let (digest, path) = line.split_at_checked(64)?;
    let path = path.strip_prefix("  ").or_else(|| path.strip_prefix(" *"))?;
    let path = if escaped { unescaped(path)? } else { path.to_owned() };
    let path = path.strip_prefix("./").map(str::to_owned).unwrap_or(path);
    (!path.is_empty()).then_some((path, unhex(digest)?))
}

fn unescaped(path: &str) -> Option<String> {
    let mut out = String::with_capacity(path.len());
    let mut chars = path.chars();
    while let Some(c) = chars.next() {
        out.push(match c {
            '\\' => match chars.next()? {
                '\\' => '\\',
                'n' => '\n',
                'r' => '\r',
                _ => return None,
            },
            c => c,
        });
    }
    Some(out)
}

/// The line that `sha256sum -c` reads for `path`.
pub(crate) fn line(digest: &[u8; 32], path: &str) -> String {
    let digest = hex(digest);
    if path.contains(['\\', '\n', '\r']) {
        let path = path.replace('\\', "\\\\").replace('\n', "\\n").replace('\r', "\\r");
        return format!("\\{digest}  {path}\n");
    }
    format!("{digest}  {path}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_written_line_reads_back(digest: [u8; 32], path in "[^\0]{1,40}") {
            let written = line(&digest, &path);
            let body = written.strip_suffix('\n').unwrap();
            prop_assert!(!body.contains('\n'));
            let expected = path.strip_prefix("./").unwrap_or(&path).to_owned();
            prop_assume!(!expected.is_empty());
            prop_assert_eq!(parsed(body.as_bytes()), Some((expected, digest)));
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>) {
            let _ = parsed(&bytes);
        }
    }
}
