//! The listing of a prefix, page by page, a few pages ahead.
//!
//! The token of the next page is taken out of a page before the page itself is read, so that the source
//! makes the one while the other is read; and pages are read side by side.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinError;

use crate::aside::Aside;
use crate::keys::{Key, Prefix};

use super::client::{Ask, Client, Failure};
use super::error::StoreError;
use super::listing::{Listed, Page, PageError, parse, peek};
use super::verdict::Kind;

/// The most keys of a page; neither OSS nor S3 gives more.
const MAX_KEYS: &str = "1000";

/// The longest page that is read: 1,000 keys of 1,023 bytes, each byte as `%XX`, are 3 MiB, and an
/// entry's other fields have some 600 bytes. As many pages as are asked for ahead may be in memory.
const MAX_PAGE: usize = 8 * 1024 * 1024;

/// Pages without a key in a row before the source is taken to run in circles. Filters and lifecycle
/// rules make a few; the tokens of a circle repeat sooner or later, but not at once.
const MAX_EMPTY_PAGES: u32 = 1000;

/// The most pages that a lone lister asks for before they are wanted: one that the source makes, and one
/// for each of two cores to read.
const AHEAD: usize = 3;

/// What pages are asked for with.
struct Asking {
    client: Arc<Client>,
    prefix: Prefix,
    after: Option<Key>,
    /// For the pages that are asked for before they are wanted.
    room: Arc<Semaphore>,
}

/// A page being fetched.
struct Ahead {
    /// The token that it was asked for with.
    token: Option<String>,
    page: Aside<Result<Fetched, StoreError>>,
    /// The page behind it, once its body has come.
    next: oneshot::Receiver<Ahead>,
}

/// A page and the room that it takes.
struct Fetched {
    page: Page,
    _room: OwnedSemaphorePermit,
}

/// What one page has.
#[derive(Debug)]
pub(super) struct Paged {
    pub(super) objects: Vec<Listed>,
    /// Whether pages follow.
    pub(super) more: bool,
}

/// Goes through the pages of a listing.
pub(super) struct Lister {
    asking: Arc<Asking>,
    ahead: Option<Ahead>,
    empty_pages: u32,
    pages: u64,
    /// The token of an earlier page and what its keys are, kept anew at every power of two of pages:
    /// a circle of any length meets it (Brent's algorithm).
    milestone: Option<(String, Option<u64>)>,
}

/// Lists the objects under `prefix` behind `after`, page by page, in the source's order.
///
/// Ends after its first error.
pub(super) fn list(
    client: Arc<Client>,
    prefix: Prefix,
    after: Option<Key>,
) -> BoxStream<'static, Result<Vec<Listed>, StoreError>> {
    let lister = Lister::new(client, prefix, after, AHEAD);
    futures::stream::try_unfold(Some(lister), |lister| async move {
        let Some(mut lister) = lister else { return Ok(None) };
        let Paged { objects, more } = lister.page().await?;
        Ok::<_, StoreError>(Some((objects, more.then_some(lister))))
    })
    .fuse()
    .boxed()
}

impl Lister {
    /// Asks for nothing yet.
    pub(super) fn new(
        client: Arc<Client>,
        prefix: Prefix,
        after: Option<Key>,
        most_ahead: usize,
    ) -> Self {
        let room = Arc::new(Semaphore::new(most_ahead));
        Self {
            asking: Arc::new(Asking { client, prefix, after, room }),
            ahead: None,
            empty_pages: 0,
            pages: 0,
            milestone: None,
        }
    }

    /// The next page.
    pub(super) async fn page(&mut self) -> Result<Paged, StoreError> {
        let Ahead { page, next: mut behind, .. } =
            self.ahead.take().unwrap_or_else(|| self.asking.fetch(None));
        let fetched = page.await.unwrap_or_else(|error| Err(unfinished(error)))?;
        let Page { objects, next } = fetched.page;
        if let Some(token) = next {
            let here = (token.clone(), digest(&objects));
            if let Some((token, objects)) = &self.milestone {
                if *token == here.0 {
                    return Err(self.malformed("a continuation token comes twice"));
                }
                if objects.is_some() && *objects == here.1 {
                    return Err(self.malformed("a page comes twice"));
                }
            }
            self.pages += 1;
            if self.pages.is_power_of_two() {
                self.milestone = Some(here);
            }
            self.empty_pages = if objects.is_empty() { self.empty_pages + 1 } else { 0 };
            if self.empty_pages > MAX_EMPTY_PAGES {
                return Err(self.malformed("the listing does not end"));
            }
            // what was asked for ahead is what the page itself names, unless the page is a strange one
            let asked = behind.try_recv().ok().filter(|it| it.token.as_ref() == Some(&token));
            self.ahead = Some(asked.unwrap_or_else(|| self.asking.fetch(Some(token))));
            return Ok(Paged { objects, more: true });
        }
        Ok(Paged { objects, more: false })
    }

    fn malformed(&self, reason: &str) -> StoreError {
        self.asking.malformed(reason.to_owned())
    }
}

impl Asking {
    /// Asks for the page of `token`, or for the first, as soon as there is room for it; then for the one
    /// behind it, from the same task: what another would have to be woken for, the source waits for.
    fn fetch(self: &Arc<Self>, token: Option<String>) -> Ahead {
        let mut query = vec![
            ("list-type", "2".to_owned()),
            ("encoding-type", "url".to_owned()),
            ("max-keys", MAX_KEYS.to_owned()),
        ];
        if !self.prefix.as_str().is_empty() {
            query.push(("prefix", self.prefix.as_str().to_owned()));
        }
        match (&token, &self.after) {
            (Some(token), _) => query.push(("continuation-token", token.clone())),
            (None, Some(after)) => query.push(("start-after", after.as_str().to_owned())),
            (None, None) => {}
        }
        let ask = Ask { kind: Kind::List, key: None, query, headers: Vec::new() };
        let (told, next) = oneshot::channel();
        let mut told = Some(told);
        let asking = Arc::clone(self);
        let page = Aside::spawn(async move {
            let room = Arc::clone(&asking.room).acquire_owned().await;
            let room = room.expect("the semaphore is never closed");
            let read = |body: Bytes| {
                if let Some(token) = peek(&body, asking.client.dialect)
                    && let Some(told) = told.take()
                {
                    // whoever does not take it any more drops it, and with that stops it
                    let _ = told.send(asking.fetch(Some(token)));
                }
                let asking = Arc::clone(&asking);
                // a millisecond's work, for which the requests beside it need not wait
                let reading = tokio::task::spawn_blocking(move || asking.page_of(&body));
                async move {
                    reading.await.unwrap_or_else(|error| Err(Failure::Final(unfinished(error))))
                }
            };
            let page = asking.client.whole(&ask, MAX_PAGE, read).await?;
            Ok(Fetched { page, _room: room })
        });
        Ahead { token, page, next }
    }

    /// The page that `body` is.
    fn page_of(&self, body: &[u8]) -> Result<Page, Failure> {
        let page = parse(body, self.client.dialect).map_err(|error| match error {
            PageError::Key(error) => Failure::Final(error),
            PageError::Malformed(reason) => Failure::passing(self.malformed(reason)),
        })?;
        match stray(&page, &self.prefix) {
            Some(error) => Err(Failure::passing(error)),
            None => Ok(page),
        }
    }

    fn malformed(&self, reason: String) -> StoreError {
        StoreError::Malformed { subject: self.client.subject(None), reason }
    }
}

pub(super) fn unfinished(error: JoinError) -> StoreError {
    StoreError::Other { source: Arc::new(error) }
}

/// Why a page is not of what was asked for.
fn stray(page: &Page, prefix: &Prefix) -> Option<StoreError> {
    let stray = page.objects.iter().find(|object| !prefix.holds(&object.key))?;
    let (prefix, key) = (prefix.as_str().to_owned(), stray.key.clone());
    Some(StoreError::OutsidePrefix { prefix, key })
}

/// What tells a page from others: a page that comes twice has the same keys, whatever its token.
fn digest(objects: &[Listed]) -> Option<u64> {
    let mut hasher = DefaultHasher::new();
    objects.iter().for_each(|object| object.key.as_str().hash(&mut hasher));
    (!objects.is_empty()).then(|| hasher.finish())
}
