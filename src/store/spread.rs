//! The listing of a prefix by several listers at once.
//!
//! Where a page takes the source much longer than it takes us, one lister waits most of the time, as only
//! a page names where the next one begins. So the rest of a range that has gone on for a while is divided:
//! another lister asks for the keys behind some text, and the first of them, the *seam*, is where the
//! range before it ends.
//!
//! Every key comes exactly once, in whatever order the source lists, if only what it lists behind a text
//! is an end of all that it lists: a range goes up to the very key that the next one begins with. Where
//! it does not meet that key, the listing is [`StoreError::Torn`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::{BoxStream, FuturesUnordered};

use crate::aside::Aside;
use crate::keys::{Key, Prefix};
use crate::telemetry::chain;

use super::client::Client;
use super::divide::{Alphabet, divide};
use super::error::StoreError;
use super::lister::{Lister, Paged, unfinished};
use super::listing::Listed;

/// The most listers at once. A page of 1,000 keys takes 50 to 150 ms to come, and some 1.5 ms of a core to
/// be read and sorted: with eight, one comes every 6 to 20 ms, which leaves the core room. They ask at
/// most 160 times a second, of the 10,000 that OSS grants an account.
const LISTERS: usize = 8;

/// Pages asked for before they are wanted, of each lister: one that the source makes, one that is read.
const AHEAD: usize = 2;

/// The range that begins with the first key of all.
const FIRST: u64 = 0;

/// The share that a page has in what is known of the wait for a page.
const WEIGHT: f64 = 0.25;

/// Pages that a range has shown before the rest of it is divided: as long as it was, it will go on for,
/// at a guess, and a request for nothing costs as much as a page.
const SHOWN: u32 = 4;

/// Pages that a range has to show for each request that found nothing behind it: what is asked for in
/// vain is at most a third of all requests.
const VAIN: u32 = 2;

/// Of so many keys the characters of one are looked at.
const SAMPLED: usize = 50;

/// The longest text that a listing may begin behind, in bytes: the longest key of OSS.
const MAX_START: usize = 1023;

/// Keys that one lister lists.
#[derive(Debug, Default)]
struct Range {
    /// The last key that came.
    last: Option<Key>,
    /// Where it ends: the first key of the range behind it. `None` for the last range.
    seam: Option<Key>,
    /// No key is between this and the seam.
    nothing_behind: Option<Key>,
    /// Pages since it was divided, less those that were paid for requests in vain.
    shown: u32,
    /// Whether a lister asks for a part of it.
    claimed: bool,
}

/// Whom a page is for.
#[derive(Debug)]
enum Who {
    Range(u64),
    /// A lister that asks for the keys of a range behind a text; a range itself once it has found some.
    Claim {
        of: u64,
        behind: Key,
    },
}

struct Arrived {
    who: Who,
    lister: Lister,
    page: Result<Paged, StoreError>,
}

struct Spread {
    client: Arc<Client>,
    prefix: Prefix,
    /// The first key of all.
    first: Option<Key>,
    alphabet: Alphabet,
    ranges: BTreeMap<u64, Range>,
    /// The number of the next range.
    next: u64,
    listers: FuturesUnordered<Aside<Arrived>>,
    /// Whether ranges are divided: not once the source lists in another order than by bytes, or does not
    /// begin behind what it is told to.
    divides: bool,
    /// How often the source had asked to slow down, at the last look.
    throttled: u64,
    /// Pages since that has grown.
    calm: usize,
    /// How long a page has to be waited for, for another lister to be worth its while.
    worth: Duration,
    /// How long a page was waited for of late; the first one, which connects, is no measure.
    wait: Option<Duration>,
}

/// Objects of a listing by several listers, which follow each other in the source's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// All before them have come.
    Next(Vec<Listed>),
    /// Some that are before them are still to come.
    Early(Vec<Listed>),
}

/// Lists the objects under `prefix`, page by page, by several listers once a page is waited for longer
/// than `worth`.
///
/// Ends after its first error.
pub(super) fn list(
    client: Arc<Client>,
    prefix: Prefix,
    worth: Duration,
) -> BoxStream<'static, Result<Found, StoreError>> {
    let spread = Spread::new(client, prefix, worth);
    futures::stream::try_unfold(spread, |mut spread| async move {
        let Some((id, objects)) = spread.page().await? else { return Ok(None) };
        let found = if id == FIRST { Found::Next(objects) } else { Found::Early(objects) };
        Ok::<_, StoreError>(Some((found, spread)))
    })
    .fuse()
    .boxed()
}

impl Spread {
    fn new(client: Arc<Client>, prefix: Prefix, worth: Duration) -> Self {
        let throttled = client.meter.throttled.load(Relaxed);
        let whole = Lister::new(client.clone(), prefix.clone(), None, AHEAD);
        let spread = Self {
            client,
            prefix,
            first: None,
            alphabet: Alphabet::default(),
            ranges: BTreeMap::from([(FIRST, Range::default())]),
            next: FIRST + 1,
            listers: FuturesUnordered::new(),
            divides: true,
            throttled,
            calm: 0,
            worth,
            wait: None,
        };
        spread.go_on(Who::Range(FIRST), whole);
        spread
    }

    /// The objects of the next page, and of which range; `None` behind the last of all.
    async fn page(&mut self) -> Result<Option<(u64, Vec<Listed>)>, StoreError> {
        while !self.ranges.is_empty() {
            let asked = Instant::now();
            let Some(arrived) = self.listers.next().await else { break };
            let Arrived { who, lister, page } = arrived.map_err(unfinished)?;
            self.wait = Some(match self.wait {
                None => Duration::ZERO,
                Some(wait) => wait.mul_f64(1.0 - WEIGHT) + asked.elapsed().mul_f64(WEIGHT),
            });
            let (id, page) = match who {
                Who::Range(id) => (id, page?),
                Who::Claim { of, behind } => match self.granted(of, behind, page) {
                    Granted::Range(id, page) => (id, page),
                    Granted::NotYet(behind) => {
                        self.go_on(Who::Claim { of, behind }, lister);
                        continue;
                    }
                    Granted::Nothing => {
                        self.divide();
                        continue;
                    }
                },
            };
            let objects = self.take(id, lister, page)?;
            self.divide();
            return Ok(Some((id, objects)));
        }
        Ok(None)
    }

    /// Waits for the next page of `lister`: aside, so that those behind it are asked for while other
    /// pages are used.
    fn go_on(&self, who: Who, mut lister: Lister) {
        self.listers.push(Aside::spawn(async move {
            let page = lister.page().await;
            Arrived { who, lister, page }
        }));
    }

    /// Takes what a page has of a range, and goes on if that does.
    fn take(&mut self, id: u64, lister: Lister, page: Paged) -> Result<Vec<Listed>, StoreError> {
        let Paged { mut objects, mut more } = page;
        let Some(range) = self.ranges.get_mut(&id) else { return Ok(Vec::new()) };
        if let Some(seam) = &range.seam {
            match objects.iter().position(|object| object.key >= *seam) {
                Some(at) if objects[at].key == *seam => {
                    objects.truncate(at);
                    more = false;
                }
                None if more => {}
                _ => return Err(StoreError::Torn { subject: self.client.subject(None) }),
            }
        }
        let keys = || range.last.iter().chain(objects.iter().map(|object| &object.key));
        if !keys().is_sorted_by(|one, next| one < next) {
            self.divides = false;
        }
        if self.divides {
            keys().step_by(SAMPLED).for_each(|key| self.alphabet.learn(key.as_str()));
        }
        if let Some(object) = objects.last() {
            self.first.get_or_insert_with(|| objects[0].key.clone());
            range.last = Some(object.key.clone());
        }
        range.shown += 1;
        if more {
            self.go_on(Who::Range(id), lister);
        } else {
            self.ranges.remove(&id);
        }
        Ok(objects)
    }

    /// Has idle listers ask for a part of the ranges that have gone on for longest.
    fn divide(&mut self) {
        let throttled = self.client.meter.throttled.load(Relaxed);
        let refused = std::mem::replace(&mut self.throttled, throttled) != throttled;
        self.calm = if refused { 0 } else { self.calm + 1 };
        // what came with the pages ahead was counted before these are taken
        let calm = self.calm > AHEAD * self.listers.len();
        let is_worth = self.wait.is_some_and(|wait| wait >= self.worth);
        while calm && is_worth && self.divides && self.listers.len() < LISTERS {
            let long = self.ranges.iter_mut().filter(|(_, r)| !r.claimed && r.shown >= SHOWN);
            let Some((&of, range)) = long.max_by_key(|(_, range)| range.shown) else { return };
            let behind = range.middle(&self.prefix, self.first.as_ref(), &self.alphabet);
            let Some(behind) = behind else {
                range.shown = 0;
                continue;
            };
            range.claimed = true;
            let (client, prefix) = (self.client.clone(), self.prefix.clone());
            let lister = Lister::new(client, prefix, Some(behind.clone()), AHEAD);
            self.go_on(Who::Claim { of, behind }, lister);
        }
    }

    /// What becomes of a lister that has asked for the keys of a range behind a text.
    fn granted(&mut self, of: u64, behind: Key, page: Result<Paged, StoreError>) -> Granted {
        // it has come to its end by itself
        let Some(range) = self.ranges.get_mut(&of) else { return Granted::Nothing };
        let page = match page {
            Ok(page) => page,
            Err(error) => {
                // whatever it is, it is no reason to fail as long as the range itself goes on
                tracing::debug!(key = %behind, error = %chain(&error), "no listing behind a key");
                range.claimed = false;
                self.divides = false;
                return Granted::Nothing;
            }
        };
        let found = page.objects.first().map(|object| &object.key);
        if found.is_none() && page.more {
            return Granted::NotYet(behind);
        }
        range.claimed = false;
        let strange = match (found, &range.seam) {
            (None, seam) => seam.is_some(),
            (Some(found), seam) => *found <= behind || seam.as_ref().is_some_and(|s| found > s),
        };
        if strange {
            tracing::debug!(key = %behind, "the source does not list what is behind a key");
            self.divides = false;
            return Granted::Nothing;
        }
        if found == range.seam.as_ref() {
            range.nothing_behind = Some(behind);
        } else if found > range.last.as_ref() {
            let last = None;
            let (seam, nothing_behind) = (range.seam.take(), range.nothing_behind.take());
            range.seam = found.cloned();
            range.nothing_behind = Some(behind);
            range.shown = 0;
            let id = self.next;
            self.next += 1;
            let found = Range { last, seam, nothing_behind, ..Range::default() };
            self.ranges.insert(id, found);
            return Granted::Range(id, page);
        }
        range.shown = range.shown.saturating_sub(VAIN);
        Granted::Nothing
    }
}

enum Granted {
    /// A part of the range, with its first page.
    Range(u64, Paged),
    /// A page without a key, and more behind it.
    NotYet(Key),
    Nothing,
}

impl Range {
    /// A text somewhere in what is left of it.
    fn middle(&self, prefix: &Prefix, first: Option<&Key>, alphabet: &Alphabet) -> Option<Key> {
        // all keys have the prefix, and only texts with it are among them
        let own = |key: &Key| key.as_str().strip_prefix(prefix.as_str()).map(str::to_owned);
        let last = own(self.last.as_ref()?)?;
        let end = self.nothing_behind.as_ref().or(self.seam.as_ref());
        let end = match end {
            Some(end) => Some(own(end)?),
            None => None,
        };
        let text = divide(alphabet, &own(first?)?, &last, end.as_deref())?;
        let text = format!("{}{text}", prefix.as_str());
        (text.len() <= MAX_START).then_some(text).and_then(|text| Key::new(text).ok())
    }
}
