//! A body that resumes by itself.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use tokio::time::Instant;

use super::client::{Budget, Failure};
use super::error::{StoreError, Subject};
use super::hedge::{First, Version};
use super::objects::Pieces;
use super::transport::Arriving;

/// Bytes a second below which a connection is as good as silent. The slowest link that is worth a
/// run, 1 Mbit/s, gives each of 512 connections twice as much.
const LEAST_RATE: u64 = 128;

/// The rest of a body.
///
/// - what is handed out is consecutive: each piece begins at `at`, and the last one ends at `end`
/// - all of it is of one object: each answer has the ETag and the size of the first
/// - the retry budget is whole after every [`LEAST_RATE`] bytes a second that the source may be
///   silent: bytes that drip renew nothing
pub(super) struct Body {
    of: Version,
    /// The offset in the object of the next byte to receive.
    at: u64,
    end: u64,
    incoming: Option<Arriving>,
    /// Received, not yet handed out.
    waiting: Bytes,
    budget: Budget,
    /// Bytes since the last progress, and how long was waited for them on this connection.
    came: u64,
    waited: Duration,
}

impl Body {
    /// The bytes `range` of a version, which are `incoming`.
    pub(super) fn new(of: Version, incoming: Arriving, range: Range<u64>) -> Self {
        let budget = Budget::new();
        let (at, end, incoming) = (range.start, range.end, Some(incoming));
        let (waiting, came, waited) = (Bytes::new(), 0, Duration::ZERO);
        Self { of, at, end, incoming, waiting, budget, came, waited }
    }

    /// The pieces, none larger than the client's bound.
    pub(super) fn into_stream(self, path: &str) -> Pieces {
        let path: Arc<str> = path.into();
        futures::stream::unfold(Some(self), move |body| {
            let path = path.clone();
            async move {
                let mut body = body?;
                match body.piece().await {
                    Ok(Some(piece)) => Some((Ok(piece), Some(body))),
                    Ok(None) => None,
                    Err(error) => {
                        Some((Err(error.into_object_store(&path, body.of.client.dialect)), None))
                    }
                }
            }
        })
        .fuse()
        .boxed()
    }

    async fn piece(&mut self) -> Result<Option<Bytes>, StoreError> {
        if self.waiting.is_empty() {
            match self.receive().await? {
                Some(data) => self.waiting = data,
                None => return Ok(None),
            }
        }
        let piece = self.waiting.split_to(self.waiting.len().min(self.of.client.max_frame));
        self.of.client.meter.add_bytes(piece.len());
        Ok(Some(piece))
    }

    /// The next frame, however many connections it takes.
    async fn receive(&mut self) -> Result<Option<Bytes>, StoreError> {
        loop {
            let failure = match &mut self.incoming {
                None if self.at == self.end => return Ok(None),
                None => {
                    tracing::debug!(key = ?self.of.ask.key, offset = self.at, "body resumed");
                    self.waited = Duration::ZERO;
                    let rest = self.at..self.end;
                    self.incoming = Some(self.of.open(rest, &mut self.budget).await?);
                    continue;
                }
                Some(incoming) if self.at == self.end && incoming.is_end() => {
                    return Ok(None);
                }
                // the timer runs only while somebody waits for this future, and bytes that are
                // there win over it: a consumer that pauses is no stall
                Some(incoming) => {
                    let stall = self.of.client.policy.stall_timeout;
                    let left = stall.saturating_sub(self.waited);
                    let begun = Instant::now();
                    let next = self.of.next(incoming, self.at..self.end);
                    let next = tokio::time::timeout(left, next).await;
                    self.waited += begun.elapsed();
                    match next {
                        Ok(First::Here(Some(Ok(frame)))) => return self.take(frame).map(Some),
                        Ok(First::Elsewhere(frame, arriving)) => {
                            self.incoming = Some(arriving);
                            self.waited = Duration::ZERO;
                            return self.take(frame).map(Some);
                        }
                        Ok(First::Here(None)) if self.at == self.end => return Ok(None),
                        Ok(First::Here(None)) => {
                            self.malformed(format!("the body ends at offset {}", self.at))
                        }
                        Ok(First::Here(Some(Err(error)))) => {
                            StoreError::Broken { subject: self.subject(), source: Arc::new(error) }
                        }
                        Err(_) => StoreError::Stalled {
                            subject: self.subject(),
                            offset: self.at,
                            least: self.least(),
                            seconds: stall.as_secs(),
                        },
                    }
                }
            };
            self.incoming = None;
            if self.at == self.end {
                // all bytes are here, only the end was missing
                return Ok(None);
            }
            self.of.client.recover(Failure::passing(failure), &mut self.budget).await?;
        }
    }

    fn take(&mut self, data: Bytes) -> Result<Bytes, StoreError> {
        if data.len() as u64 > self.end - self.at {
            return Err(self.malformed("the body is longer than its headers say".to_owned()));
        }
        self.at += data.len() as u64;
        self.came += data.len() as u64;
        if self.came >= self.least() {
            (self.came, self.waited) = (0, Duration::ZERO);
            self.budget.progress();
        }
        Ok(data)
    }

    /// What must come within the time that the source may be silent.
    fn least(&self) -> u64 {
        let ms = self.of.client.policy.stall_timeout.as_millis();
        u64::try_from(ms).unwrap_or(u64::MAX).saturating_mul(LEAST_RATE) / 1000
    }

    fn subject(&self) -> Box<Subject> {
        self.of.client.subject(self.of.ask.key.as_ref())
    }

    fn malformed(&self, reason: String) -> StoreError {
        StoreError::Malformed { subject: self.subject(), reason }
    }
}
