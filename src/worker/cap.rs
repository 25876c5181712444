//! The bandwidth cap: a token bucket over the sum of all connections, as a decorator of
//! [`ObjectStore`].

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use crate::handoff::Rate;

/// The smallest cell in bytes. governor keeps a cell's interval in whole nanoseconds: at 1 GB/s a
/// cell of 4 KiB takes 4,096 ns, exact to 0.02 %.
const SMALLEST_CELL: u64 = 4096;

/// The bucket's depth in seconds. A quarter of a second is the most that may come at once; a tenth
/// is twenty times the timer's grain of 1 to 5 ms, so no token is lost to a late wake-up.
const DEPTH_SECONDS: f64 = 0.1;

/// A bucket of tokens, one for each `cell` bytes.
#[derive(Debug)]
pub struct Cap {
    limiter: DefaultDirectRateLimiter,
    clock: DefaultClock,
    cell: u64,
    burst_cells: u32,
    /// Bytes taken that do not make a whole cell yet. The lock is fair and is held while waiting,
    /// so connections are served in the order in which they ask, and none starves.
    odd_bytes: tokio::sync::Mutex<u64>,
    waited_us: AtomicU64,
}

impl Cap {
    /// A full bucket that refills at `rate`.
    pub fn new(rate: Rate) -> Self {
        let rate = rate.bytes_per_second();
        // at least 4,000 ns a cell, also at rates of many GB/s
        let cell = SMALLEST_CELL.max(rate / 250_000);
        let interval = Duration::from_nanos((cell as f64 * 1e9 / rate as f64).round() as u64);
        let depth = (rate as f64 * DEPTH_SECONDS / cell as f64) as u32;
        let burst = NonZeroU32::new(depth).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::with_period(interval)
            .expect("a cell takes at least 4,000 ns")
            .allow_burst(burst);
        Self {
            limiter: RateLimiter::direct(quota),
            clock: DefaultClock::default(),
            cell,
            burst_cells: burst.get(),
            odd_bytes: tokio::sync::Mutex::new(0),
            waited_us: AtomicU64::new(0),
        }
    }

    /// The most bytes that may pass at once.
    pub fn burst_bytes(&self) -> usize {
        usize::try_from(u64::from(self.burst_cells) * self.cell).unwrap_or(usize::MAX)
    }

    /// Seconds that callers spent waiting, summed.
    pub fn waited_seconds(&self) -> f64 {
        self.waited_us.load(Ordering::Relaxed) as f64 / 1e6
    }

    /// Waits until `bytes` bytes, at most [`Cap::burst_bytes`], may pass.
    pub async fn take(&self, bytes: usize) {
        let asked = Instant::now();
        let mut odd_bytes = self.odd_bytes.lock().await;
        let due = *odd_bytes + bytes as u64;
        *odd_bytes = due % self.cell;
        let mut cells = u32::try_from(due / self.cell).unwrap_or(u32::MAX);
        while let Some(now) = NonZeroU32::new(cells.min(self.burst_cells)) {
            match self.limiter.check_n(now) {
                Ok(Ok(())) => cells -= now.get(),
                Ok(Err(not_until)) => {
                    tokio::time::sleep(not_until.wait_time_from(self.clock.now())).await;
                }
                Err(_) => unreachable!("never more than the burst is asked for"),
            }
        }
        drop(odd_bytes);
        let waited = u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.waited_us.fetch_add(waited, Ordering::Relaxed);
    }
}

/// An [`ObjectStore`] whose bodies pass through a [`Cap`].
#[derive(Debug)]
pub struct Capped {
    inner: Arc<dyn ObjectStore>,
    cap: Arc<Cap>,
}

impl Capped {
    /// Puts `cap` around `inner`.
    pub fn new(inner: Arc<dyn ObjectStore>, cap: Arc<Cap>) -> Self {
        Self { inner, cap }
    }
}

impl fmt::Display for Capped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, capped", self.inner)
    }
}

/// Delivers each byte only once it is paid for. A frame above the burst passes in pieces.
fn paid(
    cap: Arc<Cap>,
    body: BoxStream<'static, Result<Bytes>>,
) -> BoxStream<'static, Result<Bytes>> {
    stream::unfold((cap, body, Bytes::new()), |(cap, mut body, mut left)| async move {
        if left.is_empty() {
            left = match body.next().await? {
                Ok(frame) => frame,
                Err(error) => return Some((Err(error), (cap, body, Bytes::new()))),
            };
        }
        let piece = left.split_to(left.len().min(cap.burst_bytes()));
        cap.take(piece.len()).await;
        Some((Ok(piece), (cap, body, left)))
    })
    .boxed()
}

#[async_trait]
impl ObjectStore for Capped {
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let head = options.head;
        let GetResult { payload, meta, range, attributes, extensions } =
            self.inner.get_opts(location, options).await?;
        if head {
            return Ok(GetResult { payload, meta, range, attributes, extensions });
        }
        let whole = GetResult { payload, meta, range, attributes, extensions: Default::default() };
        let (meta, range) = (whole.meta.clone(), whole.range.clone());
        let attributes = whole.attributes.clone();
        let body = paid(Arc::clone(&self.cap), whole.into_stream());
        Ok(GetResult {
            payload: GetResultPayload::Stream(body),
            meta,
            range,
            attributes,
            extensions,
        })
    }

    async fn put_opts(&self, at: &Path, data: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.inner.put_opts(at, data, options).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, options).await
    }

    fn delete_stream(
        &self,
        at: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(at)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
