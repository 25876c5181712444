//! A local directory as a source.
//!
//! Not `object_store::local::LocalFileSystem`: it leaves out files with names like `a#1`, and one
//! control character in a name fails the listing of the whole directory. Keys here are the names
//! themselves, so every file with a name in UTF-8 is listed and read.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{GetOptions, GetResult, GetResultPayload, ObjectMeta};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::keys::{Dialect, Key};

use super::error::{Cause, StoreError};
use super::listing::Listed;
use super::location::key_at;
use super::meter::Meter;
use super::objects::{Pieces, resolve};
use super::read_only::Readable;
use super::stated::Stated;

/// One read of a file, in bytes: tokio hands each to a thread, which costs some 10 µs, little beside
/// the 260 µs that a disk of 1 GB/s takes for it.
const PIECE: usize = 256 * 1024;

/// The files below one directory.
#[derive(Debug, Clone)]
pub(super) struct Files {
    root: Arc<FilePath>,
    piece: usize,
    meter: Arc<Meter>,
}

impl std::fmt::Display for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "directory {}", self.root.display())
    }
}

/// What a directory holds.
struct Entry {
    /// A directory's ends in `/`, so that entries sort as the keys below them do.
    key: String,
    /// `None` for a directory.
    file: Option<Listed>,
}

/// A directory on the way to the current key.
struct Open {
    /// Device and inode, to notice a symlink that leads back up.
    id: (u64, u64),
    entries: VecDeque<Entry>,
}

struct Walk {
    files: Files,
    after: Option<Key>,
    /// From the root down; `None` before the start.
    way: Option<Vec<Open>>,
}

impl Files {
    /// # Errors
    /// [`StoreError::Directory`] if `root` is no directory that can be listed.
    pub(super) fn open(
        root: &FilePath,
        piece: Option<usize>,
        meter: Arc<Meter>,
    ) -> Result<Self, StoreError> {
        std::fs::read_dir(root).map_err(|error| no_directory(root, error))?;
        Ok(Self { root: root.into(), piece: piece.unwrap_or(PIECE).clamp(1, PIECE), meter })
    }

    /// Depth first, the entries of each directory sorted as key text. A page is the files of a directory
    /// up to the next one in it. Memory holds the entries of the directories on the way to the current
    /// file, and no more.
    pub(super) fn list(
        &self,
        after: Option<Key>,
    ) -> BoxStream<'static, Result<Vec<Listed>, StoreError>> {
        let walk = Walk { files: self.clone(), after, way: None };
        futures::stream::unfold(Some(walk), |walk| async {
            let mut walk = walk?;
            match walk.page().await {
                Ok(Some(page)) => Some((Ok(page), Some(walk))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
        .fuse()
        .boxed()
    }

    /// The file of a key; `None` for keys that name no file below the root.
    fn file_of(&self, key: &Key) -> Option<PathBuf> {
        let safe = |segment: &str| !matches!(segment, "" | "." | "..") && !segment.contains('\0');
        key.as_str().split('/').all(safe).then(|| self.root.join(key.as_str()))
    }

    fn pieces(
        &self,
        file: tokio::fs::File,
        file_path: PathBuf,
        path: String,
        range: Range<u64>,
    ) -> Pieces {
        let (piece, meter) = (self.piece, self.meter.clone());
        let start = Some((file, range.end - range.start));
        futures::stream::unfold(start, move |state| {
            let (file_path, path, meter) = (file_path.clone(), path.clone(), meter.clone());
            async move {
                let (mut file, left) = state?;
                if left == 0 {
                    return None;
                }
                let want = usize::try_from(left).unwrap_or(usize::MAX).min(piece);
                let read = read_some(&mut file, want).await;
                let error = match read {
                    Ok(bytes) if bytes.is_empty() => StoreError::FileChanged { path: file_path },
                    Ok(bytes) => {
                        meter.add_bytes(bytes.len());
                        let left = left - bytes.len() as u64;
                        return Some((Ok(bytes), Some((file, left))));
                    }
                    Err(error) => no_file(&file_path, error),
                };
                Some((Err(error.into_object_store(&path, Dialect::File)), None))
            }
        })
        .fuse()
        .boxed()
    }
}

async fn read_some(file: &mut tokio::fs::File, want: usize) -> io::Result<Bytes> {
    let mut buffer = BytesMut::with_capacity(want);
    (&mut *file).take(want as u64).read_buf(&mut buffer).await?;
    Ok(buffer.freeze())
}

impl Walk {
    async fn page(&mut self) -> Result<Option<Vec<Listed>>, StoreError> {
        loop {
            let Some(way) = &mut self.way else {
                let root = self.read(String::new()).await?;
                self.way = Some(vec![root]);
                continue;
            };
            let Some(open) = way.last_mut() else { return Ok(None) };
            let mut page = Vec::new();
            while let Some(entry) = open.entries.pop_front_if(|entry| entry.file.is_some()) {
                let is_wanted =
                    |listed: &Listed| self.after.as_ref().is_none_or(|after| listed.key > *after);
                page.extend(entry.file.filter(is_wanted));
            }
            if !page.is_empty() {
                return Ok(Some(page));
            }
            let Some(Entry { key, .. }) = open.entries.pop_front() else {
                way.pop();
                continue;
            };
            // a directory's keys may lie behind `after` although the directory does not
            let after = self.after.as_ref().map_or("", Key::as_str);
            if *key <= *after && !after.starts_with(&key) {
                continue;
            }
            let open = self.read(key.clone()).await?;
            let way = self.way.get_or_insert_default();
            if way.iter().any(|above| above.id == open.id) {
                let error = io::Error::other("a symlink leads back up to it");
                return Err(no_directory(&self.files.root.join(&key), error));
            }
            way.push(open);
        }
    }

    /// Reads the directory that `key` names (empty: the root).
    async fn read(&self, key: String) -> Result<Open, StoreError> {
        Meter::count(&self.files.meter.list);
        let directory = self.files.root.join(&key);
        let reading = tokio::task::spawn_blocking(move || read_directory(&directory, &key));
        reading.await.map_err(|error| StoreError::Other { source: Arc::new(error) })?
    }
}

fn read_directory(directory: &FilePath, key: &str) -> Result<Open, StoreError> {
    let fail = |error| no_directory(directory, error);
    let metadata = std::fs::metadata(directory).map_err(fail)?;
    let id = (metadata.dev(), metadata.ino());
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let path = entry.path();
        let name = entry.file_name().into_string().map_err(|name| StoreError::BadKey {
            reason: format!("the file name {name:?} in {} is not UTF-8", directory.display()),
        })?;
        // follows symlinks
        let metadata = match std::fs::metadata(&path) {
            Ok(metadata) => metadata,
            // gone since it was listed, unless it is a symlink without a target
            Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_symlink() => {
                continue;
            }
            Err(error) => return Err(no_file(&path, error)),
        };
        let key = format!("{key}{name}");
        if metadata.is_dir() {
            entries.push(Entry { key: format!("{key}/"), file: None });
        } else if metadata.is_file() {
            let listed = Listed {
                key: Key::new(key.clone()).map_err(|error| StoreError::bad_key(&error))?,
                size: metadata.len(),
                etag: Some(etag(&metadata)),
                modified: modified(&metadata),
                symlink: false,
                archived: false,
            };
            entries.push(Entry { key, file: Some(listed) });
        } else {
            let error = io::Error::other("it is neither a file nor a directory");
            return Err(no_file(&path, error));
        }
    }
    entries.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    Ok(Open { id, entries: entries.into() })
}

/// Changes whenever the file does, as far as the file system tells.
fn etag(metadata: &std::fs::Metadata) -> String {
    let nanos = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
    format!("\"{:x}-{nanos:x}-{:x}\"", metadata.ino(), metadata.len())
}

fn modified(metadata: &std::fs::Metadata) -> DateTime<Utc> {
    let nanos = u32::try_from(metadata.mtime_nsec()).unwrap_or_default();
    DateTime::from_timestamp(metadata.mtime(), nanos).unwrap_or_default()
}

fn no_directory(path: &FilePath, error: io::Error) -> StoreError {
    StoreError::Directory { path: path.to_owned(), source: Arc::new(error) as Cause }
}

fn no_file(path: &FilePath, error: io::Error) -> StoreError {
    StoreError::File { path: path.to_owned(), source: Arc::new(error) as Cause }
}

#[async_trait]
impl Readable for Files {
    async fn read(&self, path: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        let into = |error: StoreError| error.into_object_store(path.as_ref(), Dialect::File);
        let file_path = key_at(path).and_then(|key| self.file_of(&key)).ok_or_else(|| {
            into(no_file(FilePath::new(path.as_ref()), io::ErrorKind::NotFound.into()))
        })?;
        let fail = |error| into(no_file(&file_path, error));
        let mut file = tokio::fs::File::open(&file_path).await.map_err(fail)?;
        let metadata = file.metadata().await.map_err(fail)?;
        if !metadata.is_file() {
            return Err(fail(io::ErrorKind::NotFound.into()));
        }
        let size = metadata.len();
        let etag = etag(&metadata);
        let meta = ObjectMeta {
            location: path.clone(),
            last_modified: modified(&metadata),
            size,
            e_tag: Some(etag.clone()),
            version: None,
        };
        options.check_preconditions(&meta)?;
        let range = match options.range.as_ref().filter(|_| !options.head) {
            None => 0..size,
            Some(range) => resolve(range, size),
        };
        if range.start > range.end || (range.is_empty() && options.range.is_some()) {
            return Err(into(StoreError::FileChanged { path: file_path }));
        }
        Meter::count(if options.head { &self.meter.head } else { &self.meter.get });
        let stream = if options.head {
            futures::stream::empty().boxed()
        } else {
            file.seek(io::SeekFrom::Start(range.start)).await.map_err(fail)?;
            self.pieces(file, file_path, path.to_string(), range.clone())
        };
        let mut extensions = object_store::Extensions::new();
        extensions.insert(Stated { etag: Some(etag), ..Stated::default() });
        Ok(GetResult {
            payload: GetResultPayload::Stream(stream),
            meta,
            range,
            attributes: object_store::Attributes::default(),
            extensions,
        })
    }
}
