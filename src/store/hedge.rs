//! Hedged requests: what does not come over one connection is asked for over another as well, and
//! whichever comes first counts.
//!
//! A hedge never fails a request, and never repeats one that failed: it only goes beside one that is
//! still waited for. It takes a connection that served another request a moment ago if there is one,
//! else a new one, which leads to the next of the endpoint's addresses.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::Response;
use object_store::GetRange;

use super::client::{Ask, Budget, Client, Failure};
use super::error::StoreError;
use super::objects::Opened;
use super::stated::Stated;
use super::transport::Arriving;

/// How many answers of another version there must be in a row.
const DOUBTS: u32 = 3;

impl Client {
    /// Makes one attempt, and others beside it while no answer begins in time.
    pub(super) async fn hedged(&self, ask: &Ask) -> Result<Response<Arriving>, Failure> {
        self.turn().await;
        let mut first = std::pin::pin!(self.once(ask));
        tokio::select! {
            biased;
            answer = &mut first => return answer,
            () = tokio::time::sleep(self.policy.hedge_after) => {}
        }
        // few requests ever come to this, and every one would have room for it
        let first: Attempt<'_> = Box::pin(async { (Which::First, first.await) });
        Box::pin(self.first_of_several(ask, first)).await
    }

    /// Waits for `first`; while it does, makes further attempts, each after twice the time.
    async fn first_of_several<'a>(
        &'a self,
        ask: &'a Ask,
        first: Attempt<'a>,
    ) -> Result<Response<Arriving>, Failure> {
        let mut attempts = FuturesUnordered::from_iter([first]);
        let mut failed = None;
        let mut pause = self.policy.hedge_after;
        loop {
            if failed.is_none() && self.meter.hedge() {
                tracing::debug!(key = ?ask.key, "no answer yet: asked elsewhere, too");
                attempts.push(Box::pin(async {
                    self.turn().await;
                    (Which::Hedge, self.once(ask).await)
                }));
            }
            pause = pause.saturating_mul(2);
            let mut silent = std::pin::pin!(tokio::time::sleep(pause));
            loop {
                tokio::select! {
                    biased;
                    answer = attempts.next() => match answer {
                        Some((_, Ok(answer))) => return Ok(answer),
                        // the others may do better
                        Some((Which::First, Err(failure @ Failure::Passing { .. }))) => {
                            failed = Some(failure);
                        }
                        Some((Which::First, Err(failure))) => return Err(failure),
                        Some((Which::Hedge, Err(_))) => {}
                        None => return Err(failed.expect("the first attempt has ended")),
                    },
                    () = &mut silent => break,
                }
            }
        }
    }
}

/// Which of several attempts.
#[derive(Debug, Clone, Copy)]
enum Which {
    First,
    Hedge,
}

type Attempt<'a> =
    Pin<Box<dyn Future<Output = (Which, Result<Response<Arriving>, Failure>)> + Send + 'a>>;

/// One version of an object, of which bytes can be asked for.
#[derive(Debug)]
pub(super) struct Version {
    pub(super) client: Arc<Client>,
    /// The request for it, without a range.
    pub(super) ask: Ask,
    pub(super) etag: Option<String>,
    pub(super) size: u64,
}

/// What came first.
pub(super) enum First {
    /// From where it was waited for.
    Here(Option<io::Result<Bytes>>),
    /// The same bytes from elsewhere, and what follows them.
    Elsewhere(Bytes, Arriving),
}

impl Version {
    /// The next frame of `arriving`, whose bytes are `rest`; from elsewhere if it does not come in time
    /// and comes from there.
    pub(super) async fn next(&self, arriving: &mut Arriving, rest: Range<u64>) -> First {
        let mut frame = std::pin::pin!(arriving.frame());
        tokio::select! {
            biased;
            frame = &mut frame => return First::Here(frame),
            () = tokio::time::sleep(self.client.policy.hedge_after) => {}
        }
        if rest.is_empty() || !self.client.meter.hedge() {
            return First::Here(frame.await);
        }
        tracing::debug!(key = ?self.ask.key, offset = rest.start, "no bytes: asked elsewhere, too");
        tokio::select! {
            frame = &mut frame => First::Here(frame),
            Some((frame, arriving)) = Box::pin(self.elsewhere(rest)) => {
                First::Elsewhere(frame, arriving)
            }
        }
    }

    /// The first frame of `rest` over another connection, and what follows it.
    async fn elsewhere(&self, rest: Range<u64>) -> Option<(Bytes, Arriving)> {
        let mut arriving = self.open(rest, &mut Budget::new()).await.ok()?;
        let frame = arriving.frame().await?.ok()?;
        Some((frame, arriving))
    }

    /// The bytes `rest`. An answer of another version, while the source says that nothing has
    /// changed, may be one broken answer: it is asked for again before it counts.
    pub(super) async fn open(
        &self,
        rest: Range<u64>,
        budget: &mut Budget,
    ) -> Result<Arriving, StoreError> {
        let rest = GetRange::Bounded(rest);
        for _ in 1..DOUBTS {
            match self.open_once(&rest, budget).await {
                Err(StoreError::ChangedMeanwhile { .. }) => {}
                opened => return opened,
            }
        }
        self.open_once(&rest, budget).await
    }

    async fn open_once(
        &self,
        rest: &GetRange,
        budget: &mut Budget,
    ) -> Result<Arriving, StoreError> {
        let mut ask = self.ask.clone();
        ask.headers.extend(self.client.range_headers(rest));
        let opened = self.client.open(&ask, Some(rest), budget).await?;
        let Opened { headers, body, range: _, size } = opened;
        let etag = Stated::read(&headers, true).etag;
        let changed = |what, was: String, is: String| StoreError::ChangedMeanwhile {
            subject: self.client.subject(self.ask.key.as_ref()),
            what,
            was,
            is,
        };
        if etag != self.etag {
            let show = |etag: &Option<String>| etag.clone().unwrap_or_else(|| "none".to_owned());
            return Err(changed("ETag", show(&self.etag), show(&etag)));
        }
        if size != self.size {
            return Err(changed("size", self.size.to_string(), size.to_string()));
        }
        Ok(body)
    }
}
