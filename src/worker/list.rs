//! The listing, object by object: what is listed, where it goes, and which of it is ours to fetch.

use std::cmp::Ordering;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::{io, vec};

use chrono::DateTime;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use sha2::{Digest, Sha256};

use super::at::{VolumeError, errno};
use super::failure::Failure;
use super::inspect::Capacity;
use super::layout::{Layout, LayoutError, Place};
use super::options::{Filter, Options};
use super::progress::{Counters, add_stated};
use super::sort::{Sorted, Sorter, SpillFile};
use crate::handoff::ShardOf;
use crate::keys::{Key, Prefix, VolumePath, hex};
use crate::store::{Found, Listed, Source, StoreError};

/// What an object weighs besides its bytes when shards share the work: a small object costs a
/// request and a file, about as much as this many bytes on a fast connection.
const OBJECT_WEIGHT: u64 = 64 << 10;

/// How long a page has to be waited for, for another lister to be worth its while: a few times as long as
/// one takes to be read and placed. What comes faster is used about as fast as it can be, in order.
const WORTH: Duration = Duration::from_millis(3);

/// The action that a spooled listing fails with where there is no room for it.
const SORT: &str = "sort";

/// Where an entry goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    File(VolumePath),
    Directory(VolumePath),
}

/// An object that the volume will have.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: Key,
    /// How many bytes of the key are no part of the path: the prefix's parent.
    pub(crate) parent_len: usize,
    pub(crate) target: Target,
    /// As listed.
    pub(crate) size: u64,
    /// As listed.
    pub(crate) etag: Option<String>,
    /// As listed, in ms since 1970.
    pub(crate) modified_ms: i64,
    /// Size and ETag above may be the link's: only the answer to a GET counts.
    pub(crate) symlink: bool,
    /// What a `SHA256SUMS` object says of it.
    pub(crate) sha256: Option<[u8; 32]>,
    /// Whether it belongs to this shard.
    pub(crate) mine: bool,
}

impl Entry {
    /// The key without the prefix's parent.
    pub(crate) fn relative(&self) -> &str {
        &self.key.as_str()[self.parent_len..]
    }

    /// The path of an entry that is a file.
    pub(crate) fn file(&self) -> Result<&VolumePath, Failure> {
        match &self.target {
            Target::File(path) => Ok(path),
            Target::Directory(_) => Err(Failure::Unexpected(format!("{} is no file", self.key))),
        }
    }
}

/// How the records come into the order of their keys.
pub(crate) enum Order {
    /// As the source has them.
    Source,
    /// The first of them as the source has them; those that come early are sorted meanwhile.
    Early(SpillFile),
    /// All are sorted before the first one comes. With a capacity, every key is placed and all must fit
    /// before there is a listing.
    Sorted(SpillFile, Option<Capacity>),
}

/// Where the records come from.
enum Raw {
    Source(BoxStream<'static, Result<Vec<Listed>, StoreError>>),
    Several { found: BoxStream<'static, Result<Found, StoreError>>, early: Sorter },
    Spooled(Sorted),
}

/// The listing in key order.
pub(crate) struct Listing {
    raw: Raw,
    /// What is left of a page.
    page: vec::IntoIter<Listed>,
    layout: Layout,
    filter: Arc<Filter>,
    prefix: Prefix,
    shards: Shards,
    digest: Sha256,
    counters: Arc<Counters>,
    previous: Option<Key>,
}

impl std::fmt::Debug for Listing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listing").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl Listing {
    fn new(raw: Raw, options: &Options, counters: Arc<Counters>) -> Self {
        let prefix = options.source.prefix();
        Self {
            raw,
            page: Vec::new().into_iter(),
            layout: Layout::new(prefix.clone(), options.unmappable),
            filter: Arc::clone(&options.filter),
            prefix,
            shards: Shards::new(options.shard),
            digest: Sha256::new(),
            counters,
            previous: None,
        }
    }

    /// The listing of `source`, in the order of its keys.
    pub(crate) async fn open(
        source: &Source,
        options: &Options,
        counters: Arc<Counters>,
        order: Order,
    ) -> Result<Self, Failure> {
        let raw = match order {
            Order::Source => Raw::Source(source.list(None)),
            Order::Early(spill) => {
                Raw::Several { found: source.list_by_several(WORTH), early: Sorter::new(spill) }
            }
            Order::Sorted(spill, capacity) => {
                let mut raw = Raw::Spooled(sorted(source, spill).await?);
                if let Some(capacity) = capacity {
                    let rehearsed = Arc::<Counters>::default();
                    let mut rehearsal = Self::new(raw, options, Arc::clone(&rehearsed));
                    while rehearsal.next().await?.is_some() {
                        capacity.takes(&rehearsed)?;
                    }
                    raw = rehearsal.raw;
                    if let Raw::Spooled(sorted) = &mut raw {
                        sorted.rewind().map_err(spool_failed)?;
                    }
                }
                raw
            }
        };
        Ok(Self::new(raw, options, counters))
    }

    async fn next_listed(&mut self) -> Result<Option<Listed>, Failure> {
        loop {
            if let Some(listed) = self.page.next() {
                return Ok(Some(listed));
            }
            match &mut self.raw {
                Raw::Source(pages) => match pages.next().await.transpose()? {
                    Some(page) => self.page = page.into_iter(),
                    None => return Ok(None),
                },
                Raw::Several { found, early } => match found.next().await.transpose()? {
                    Some(Found::Next(page)) => self.page = page.into_iter(),
                    Some(Found::Early(page)) => push(early, &page)?,
                    None => {
                        let ended = Raw::Source(futures::stream::empty().boxed());
                        if let Raw::Several { early, .. } = std::mem::replace(&mut self.raw, ended)
                        {
                            self.raw = Raw::Spooled(early.finish().map_err(spool_failed)?);
                        }
                    }
                },
                Raw::Spooled(sorted) => {
                    let Some((key, value)) = sorted.next().map_err(spool_failed)? else {
                        return Ok(None);
                    };
                    let listed = unpacked(key, &value)
                        .ok_or_else(|| spool_failed(io::ErrorKind::InvalidData.into()))?;
                    return Ok(Some(listed));
                }
            }
        }
    }

    /// The next entry that passes the filters.
    ///
    /// # Errors
    /// What the source answers, or a key that has no place in the volume.
    pub(crate) async fn next(&mut self) -> Result<Option<Entry>, Failure> {
        while let Some(listed) = self.next_listed().await? {
            match &mut self.previous {
                Some(previous) => {
                    match listed.key.cmp(previous) {
                        Ordering::Greater => {}
                        Ordering::Equal => return Err(Failure::Twice(listed.key)),
                        Ordering::Less => {
                            let (previous, key) = (previous.clone(), listed.key);
                            return Err(Failure::OutOfOrder { previous, key });
                        }
                    }
                    previous.clone_from(&listed.key);
                }
                none => *none = Some(listed.key.clone()),
            }
            if let Some(entry) = self.place(listed)? {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    fn place(&mut self, listed: Listed) -> Result<Option<Entry>, Failure> {
        let Listed { key, size, etag, modified, symlink, archived } = listed;
        self.digest_in(&key, size, etag.as_deref());
        let placed = match self.layout.place(&key, size) {
            Ok(Place::Root) => return Ok(None),
            Ok(Place::File(path)) => Ok(Some(Target::File(path))),
            Ok(Place::Directory(path)) => Ok(Some(Target::Directory(path))),
            Ok(Place::Nowhere(reason)) => {
                tracing::debug!(%key, reason, "key left out");
                self.counters.unmappable.fetch_add(1, Relaxed);
                Ok(None)
            }
            // filters speak of paths; of a key that has none, the key itself comes closest
            Err(LayoutError::Unmappable { .. }) if !self.takes_key(&key) => {
                self.counters.skipped.fetch_add(1, Relaxed);
                Ok(None)
            }
            Err(error) => Err(error),
        };
        self.counters.listed_objects.fetch_add(1, Relaxed);
        add_stated(&self.counters.listed_bytes, size);
        let Some(target) = placed? else { return Ok(None) };
        let (Target::File(path) | Target::Directory(path)) = &target;
        if !self.filter.takes(path.as_str()) {
            self.counters.skipped.fetch_add(1, Relaxed);
            return Ok(None);
        }
        self.counters.taken.fetch_add(1, Relaxed);
        let mine = self.shards.mine(size);
        if archived {
            tracing::debug!(%key, "object is in an archive class: the source may refuse it");
        }
        if mine && matches!(target, Target::File(_)) {
            self.counters.wanted_objects.fetch_add(1, Relaxed);
            add_stated(&self.counters.wanted_bytes, size);
        }
        let parent_len = self.prefix.parent_len();
        let modified_ms = modified.timestamp_millis();
        let sha256 = None;
        Ok(Some(Entry { key, parent_len, target, size, etag, modified_ms, symlink, sha256, mine }))
    }

    fn takes_key(&self, key: &Key) -> bool {
        self.filter.takes(self.prefix.relative(key).unwrap_or_default())
    }

    fn digest_in(&mut self, key: &Key, size: u64, etag: Option<&str>) {
        // lengths before texts: two listings have one digest only if they are one listing
        let etag = etag.unwrap_or("");
        self.digest.update((key.as_str().len() as u64).to_le_bytes());
        self.digest.update(key.as_str());
        self.digest.update(size.to_le_bytes());
        self.digest.update((etag.len() as u64).to_le_bytes());
        self.digest.update(etag);
    }

    /// The digest of everything that was listed: 64 hex digits.
    pub(crate) fn digest(self) -> String {
        hex(&self.digest.finalize())
    }
}

/// All that `source` lists.
async fn sorted(source: &Source, spill: SpillFile) -> Result<Sorted, Failure> {
    let mut sorter = Sorter::new(spill);
    let pages = source.list_by_several(WORTH).map_ok(|found| match found {
        Found::Next(page) | Found::Early(page) => page,
    });
    match gather(pages.boxed(), &mut sorter).await {
        Err(Failure::Store(error @ StoreError::Torn { .. })) => {
            tracing::warn!(%error, "listing again, page by page");
            sorter.clear();
            gather(source.list(None), &mut sorter).await?;
        }
        gathered => gathered?,
    }
    sorter.finish().map_err(spool_failed)
}

/// Takes all of a listing.
async fn gather(
    mut pages: BoxStream<'static, Result<Vec<Listed>, StoreError>>,
    sorter: &mut Sorter,
) -> Result<(), Failure> {
    while let Some(page) = pages.next().await {
        push(sorter, &page?)?;
    }
    Ok(())
}

fn push(sorter: &mut Sorter, page: &[Listed]) -> Result<(), Failure> {
    for listed in page {
        sorter.push(listed.key.as_str().as_bytes(), &packed(listed)).map_err(spool_failed)?;
    }
    Ok(())
}

/// Whether a listing failed because it came in parts, which did not meet or had no room, and not by what
/// it holds.
pub(crate) fn is_in_parts(failure: &Failure) -> bool {
    matches!(
        failure,
        Failure::Store(StoreError::Torn { .. })
            | Failure::Volume(VolumeError::Call { action: SORT, .. })
    )
}

fn spool_failed(error: io::Error) -> Failure {
    VolumeError::Call { action: SORT, path: "the listing".to_owned(), source: errno(&error) }.into()
}

/// Who takes which object: the shard that has the least so far. Every shard lists everything and
/// comes to the same answer, without memory for each object.
#[derive(Debug)]
struct Shards {
    mine: usize,
    weights: Vec<u64>,
}

impl Shards {
    fn new(shard: ShardOf) -> Self {
        Self { mine: shard.index as usize, weights: vec![0; shard.count as usize] }
    }

    fn mine(&mut self, size: u64) -> bool {
        if self.weights.len() == 1 {
            return true;
        }
        let lightest = self.weights.iter_mut().enumerate().min_by_key(|(n, weight)| (**weight, *n));
        let (n, weight) = lightest.expect("there is at least one shard");
        *weight = weight.saturating_add(size).saturating_add(OBJECT_WEIGHT);
        n == self.mine
    }
}

/// Everything of a [`Listed`] but its key.
fn packed(listed: &Listed) -> Vec<u8> {
    let Listed { key: _, size, etag, modified, symlink, archived } = listed;
    let flags = u8::from(*symlink) | u8::from(*archived) << 1 | u8::from(etag.is_some()) << 2;
    let etag = etag.as_deref().unwrap_or("").as_bytes();
    let mut value = Vec::with_capacity(17 + etag.len());
    value.push(flags);
    value.extend_from_slice(&size.to_le_bytes());
    value.extend_from_slice(&modified.timestamp_millis().to_le_bytes());
    value.extend_from_slice(etag);
    value
}

fn unpacked(key: Vec<u8>, value: &[u8]) -> Option<Listed> {
    let (flags, rest) = value.split_first()?;
    let (size, rest) = rest.split_first_chunk::<8>()?;
    let (modified, etag) = rest.split_first_chunk::<8>()?;
    Some(Listed {
        key: Key::new(String::from_utf8(key).ok()?).ok()?,
        size: u64::from_le_bytes(*size),
        etag: (flags & 4 != 0).then(|| String::from_utf8(etag.to_vec()).ok()).flatten(),
        modified: DateTime::from_timestamp_millis(i64::from_le_bytes(*modified))?,
        symlink: flags & 1 != 0,
        archived: flags & 2 != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn each_object_belongs_to_exactly_one_shard_and_bytes_are_balanced(
            sizes in prop::collection::vec(0u64..10_000_000, 1..400), count in 1u32..9,
        ) {
            let mut shards: Vec<Shards> =
                (0..count).map(|index| Shards::new(ShardOf { index, count })).collect();
            let mut bytes = vec![0u64; count as usize];
            for size in &sizes {
                let owners: Vec<usize> = shards.iter_mut().enumerate()
                    .filter_map(|(n, shard)| shard.mine(*size).then_some(n)).collect();
                prop_assert_eq!(owners.len(), 1);
                bytes[owners[0]] += size + OBJECT_WEIGHT;
            }
            let spread = bytes.iter().max().unwrap() - bytes.iter().min().unwrap();
            prop_assert!(spread <= sizes.iter().max().unwrap() + OBJECT_WEIGHT);
        }

        #[test]
        fn a_listed_object_survives_the_spool(
            key in ".{1,30}", size: u64, etag in prop::option::of("\".*\""),
            ms in 0i64..4_000_000_000_000, symlink: bool, archived: bool,
        ) {
            let listed = Listed {
                key: Key::new(key).unwrap(), size, etag,
                modified: DateTime::from_timestamp_millis(ms).unwrap(), symlink, archived,
            };
            let back = unpacked(listed.key.as_str().into(), &packed(&listed)).unwrap();
            prop_assert_eq!(format!("{back:?}"), format!("{listed:?}"));
        }
    }
}
