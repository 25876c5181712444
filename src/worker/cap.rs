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
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
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

/// Tokens, one for each `cell` bytes. Knows no time but that of its clock, and never waits.
#[derive(Debug)]
struct Bucket<C: Clock> {
    limiter: RateLimiter<NotKeyed, InMemoryState, C, NoOpMiddleware<C::Instant>>,
    clock: C,
    cell: u64,
    burst_cells: u32,
}

impl<C: Clock + Clone> Bucket<C> {
    fn new(rate: Rate, clock: C) -> Self {
        let rate = rate.bytes_per_second();
        // at least 4,000 ns a cell, also at rates of many GB/s
        let cell = SMALLEST_CELL.max(rate / 250_000);
        let interval = Duration::from_nanos((cell as f64 * 1e9 / rate as f64).round() as u64);
        let depth = (rate as f64 * DEPTH_SECONDS / cell as f64) as u32;
        let burst = NonZeroU32::new(depth).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::with_period(interval)
            .expect("a cell takes at least 4,000 ns")
            .allow_burst(burst);
        let limiter = RateLimiter::direct_with_clock(quota, clock.clone());
        Self { limiter, clock, cell, burst_cells: burst.get() }
    }

    /// The whole cells that `bytes` more bytes make with the `odd` ones before them.
    fn cells(&self, odd: &mut u64, bytes: usize) -> u32 {
        let due = *odd + bytes as u64;
        *odd = due % self.cell;
        u32::try_from(due / self.cell).unwrap_or(u32::MAX)
    }

    /// Takes up to a burst of `cells` off, or says how long it is until that can be.
    fn admit(&self, cells: &mut u32) -> Result<(), Duration> {
        let Some(now) = NonZeroU32::new((*cells).min(self.burst_cells)) else { return Ok(()) };
        match self.limiter.check_n(now) {
            Ok(Ok(())) => {
                *cells -= now.get();
                Ok(())
            }
            Ok(Err(not_until)) => Err(not_until.wait_time_from(self.clock.now())),
            Err(_) => unreachable!("never more than the burst is asked for"),
        }
    }
}

/// A bandwidth cap, shared by all connections.
#[derive(Debug)]
pub struct Cap {
    bucket: Bucket<DefaultClock>,
    /// Bytes taken that do not make a whole cell yet. The lock is fair and is held while waiting,
    /// so connections are served in the order in which they ask, and none starves.
    odd_bytes: tokio::sync::Mutex<u64>,
    waited_us: AtomicU64,
}

impl Cap {
    /// A full bucket that refills at `rate`.
    pub fn new(rate: Rate) -> Self {
        Self {
            bucket: Bucket::new(rate, DefaultClock::default()),
            odd_bytes: tokio::sync::Mutex::new(0),
            waited_us: AtomicU64::new(0),
        }
    }

    /// The most bytes that may pass at once.
    pub fn burst_bytes(&self) -> usize {
        let bytes = u64::from(self.bucket.burst_cells) * self.bucket.cell;
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    /// Seconds that callers spent waiting, summed.
    pub fn waited_seconds(&self) -> f64 {
        self.waited_us.load(Ordering::Relaxed) as f64 / 1e6
    }

    /// Waits until `bytes` bytes may pass.
    pub async fn take(&self, bytes: usize) {
        let asked = Instant::now();
        let mut odd_bytes = self.odd_bytes.lock().await;
        let mut cells = self.bucket.cells(&mut odd_bytes, bytes);
        while cells > 0 {
            if let Err(wait) = self.bucket.admit(&mut cells) {
                tokio::time::sleep(wait).await;
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

    async fn put_opts(
        &self,
        at: &Path,
        data: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use governor::clock::FakeRelativeClock;

    /// Takes pieces of `piece` bytes as fast as the bucket lets for `seconds`, with a timer that
    /// wakes up to `late` after it should; says what passed when, in seconds.
    fn passed(rate: &str, piece: usize, seconds: f64, late: Duration) -> Vec<(f64, u64)> {
        let clock = FakeRelativeClock::default();
        let bucket = Bucket::new(rate.parse().unwrap(), clock.clone());
        let (mut odd, mut now, mut passed) = (0, Duration::ZERO, Vec::new());
        while now.as_secs_f64() < seconds {
            let mut cells = bucket.cells(&mut odd, piece);
            while cells > 0 {
                if let Err(wait) = bucket.admit(&mut cells) {
                    // tokio's timer has a grain of a millisecond and is never early
                    let wait = wait.max(Duration::from_micros(1)) + late;
                    clock.advance(wait);
                    now += wait;
                }
            }
            passed.push((now.as_secs_f64(), piece as u64));
        }
        passed
    }

    fn most_in(passed: &[(f64, u64)], window: f64) -> (u64, u64) {
        let (mut least, mut most, mut sum, mut first) = (u64::MAX, 0, 0, 0);
        for (n, (now, bytes)) in passed.iter().enumerate() {
            sum += bytes;
            while now - passed[first].0 > window {
                sum -= passed[first].1;
                first += 1;
            }
            most = most.max(sum);
            if *now >= 1.0 + window && n + 1 < passed.len() {
                least = least.min(sum);
            }
        }
        (least, most)
    }

    #[test]
    fn the_rate_holds_over_any_five_seconds_and_no_burst_passes_a_quarter_second() {
        for rate in ["1MB/s", "10MB/s", "187.5MB/s", "300MB/s", "600MB/s", "900MB/s", "1GB/s"] {
            let bytes = rate.parse::<Rate>().unwrap().bytes_per_second() as f64;
            for late in [0, 1, 5].map(Duration::from_millis) {
                let piece = (bytes / 100.0).min(131_072.0) as usize;
                let passed = passed(rate, piece, 12.0, late);
                // the first second may use up the full bucket
                let later: Vec<_> = passed.iter().copied().filter(|(now, _)| *now > 1.0).collect();
                let (least, most) = most_in(&later, 5.0);
                let exact = bytes * 5.0;
                assert!((most as f64) < exact * 1.03, "{rate} late {late:?}: most {most}");
                assert!((least as f64) > exact * 0.97, "{rate} late {late:?}: least {least}");
                // at any instant, no more than a quarter of a second's worth at once
                let (_, burst) = most_in(&passed, 0.0);
                assert!((burst as f64) <= bytes * 0.25, "{rate} late {late:?}: burst {burst}");
            }
        }
    }

    #[test]
    fn odd_bytes_are_not_lost() {
        let bucket = Bucket::new("1MB/s".parse().unwrap(), FakeRelativeClock::default());
        let mut odd = 0;
        let cells: u32 = (0..4096).map(|_| bucket.cells(&mut odd, 3)).sum();
        assert_eq!((cells, odd), (3, 0));
    }

    #[tokio::test]
    async fn connections_are_served_in_the_order_in_which_they_ask() {
        let cap = Arc::new(Cap::new("1MB/s".parse().unwrap()));
        cap.take(cap.burst_bytes()).await;
        let mut waiting = tokio::task::JoinSet::new();
        for n in 0..8 {
            let cap = Arc::clone(&cap);
            waiting.spawn(async move {
                cap.take(16 << 10).await;
                n
            });
            tokio::task::yield_now().await;
        }
        let mut order = Vec::new();
        while let Some(done) = waiting.join_next().await {
            order.push(done.unwrap());
        }
        assert_eq!(order, (0..8).collect::<Vec<_>>());
    }
}
