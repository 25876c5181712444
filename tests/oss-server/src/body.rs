//! The body of an answer: slices of an object, at the connection's pace, with what goes wrong.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame};
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::stats::{Counters, InFlight};
use crate::store::{Content, Object};

/// The most handed to hyper at once.
const FRAME: u64 = 1 << 20;

/// hyper flushes what it has while a body is pending: so long it takes at most to leave.
const FLUSH: Duration = Duration::from_millis(20);

/// What takes a connection out of hyper's hands.
#[derive(Debug)]
pub(crate) enum Seize {
    /// A TCP reset.
    Reset,
    /// An orderly close.
    Close,
    /// So many bytes that no answer announced, then an orderly close.
    Trail(u64),
    /// An answer whose header goes on for so many bytes.
    Header(u64),
    /// An answer whose header goes on for ever, a byte at a time.
    SlowHeader(Duration),
    /// These bytes, then an orderly close.
    Raw(Bytes),
}

/// What the requests of one connection share.
#[derive(Debug)]
pub(crate) struct Connection {
    seize: Mutex<Option<oneshot::Sender<Seize>>>,
    /// When the next byte may leave, under a bandwidth.
    due: Mutex<Instant>,
    pub(crate) bandwidth: Option<u64>,
}

impl Connection {
    pub(crate) fn new(bandwidth: Option<u64>) -> (Arc<Self>, oneshot::Receiver<Seize>) {
        let (sender, receiver) = oneshot::channel();
        let seize = Mutex::new(Some(sender));
        (Arc::new(Self { seize, due: Mutex::new(Instant::now()), bandwidth }), receiver)
    }

    fn due(&self) -> std::sync::MutexGuard<'_, Instant> {
        self.due.lock().expect("no panic while the lock is held")
    }

    pub(crate) fn seize(&self, how: Seize) {
        if let Some(sender) = self.seize.lock().expect("no panic while the lock is held").take() {
            // The connection may have ended by itself already.
            let _ = sender.send(how);
        }
    }
}

/// What goes wrong with one body; offsets count from its first byte.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Offsets, and which bits are inverted.
    pub(crate) flips: Vec<(u64, u8)>,
    /// From this offset on, one byte at a time.
    pub(crate) trickle: Option<(u64, Duration)>,
    pub(crate) stalls: Vec<(u64, Option<Duration>)>,
    pub(crate) cut: Option<(u64, Cut)>,
    /// Bytes of filler behind the true ones.
    pub(crate) extra: u64,
    pub(crate) trailing: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Cut {
    Reset,
    Close,
}

#[derive(Debug)]
enum Source {
    Text(Bytes),
    Object(Arc<Object>, u64),
}

impl Source {
    fn slice(&self, offset: u64, max: u64) -> Bytes {
        match self {
            Source::Text(bytes) => Content::Stored(bytes.clone()).slice(offset, max),
            Source::Object(object, first) => object.content.slice(first + offset, max),
        }
    }
}

/// A body that hyper polls. Its length is the answer's Content-Length, which may be a lie.
#[derive(Debug)]
pub(crate) struct Payload {
    source: Source,
    /// True bytes there are to send.
    len: u64,
    sent: u64,
    plan: Plan,
    wait: Option<Pin<Box<Sleep>>>,
    then: Option<Seize>,
    connection: Option<Arc<Connection>>,
    counters: Option<Arc<Counters>>,
    /// Held until the body is dropped.
    _in_flight: Option<InFlight>,
}

impl Payload {
    pub(crate) fn text(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let len = bytes.len() as u64;
        Self::new(Source::Text(bytes), len)
    }

    /// Bytes `range` of an object.
    pub(crate) fn object(object: Arc<Object>, range: std::ops::Range<u64>) -> Self {
        Self::new(Source::Object(object, range.start), range.end - range.start)
    }

    fn new(source: Source, len: u64) -> Self {
        Self {
            source,
            len,
            sent: 0,
            plan: Plan::default(),
            wait: None,
            then: None,
            connection: None,
            counters: None,
            _in_flight: None,
        }
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// A text's bytes; none of an object's.
    pub(crate) fn as_text(&self) -> Option<&str> {
        match &self.source {
            Source::Text(bytes) => std::str::from_utf8(bytes).ok(),
            Source::Object(..) => None,
        }
    }

    /// Ties the body to its connection and its faults, on the way out.
    pub(crate) fn dispatch(
        mut self,
        plan: Plan,
        connection: Arc<Connection>,
        counters: Arc<Counters>,
        in_flight: InFlight,
    ) -> Self {
        self.plan = plan;
        self.connection = Some(connection);
        self.counters = Some(counters);
        self._in_flight = Some(in_flight);
        self
    }

    fn seize_after(&mut self, pause: Duration, how: Seize) {
        self.wait = Some(Box::pin(sleep_until(Instant::now() + pause)));
        self.then = Some(how);
    }

    /// The end of the next frame: no further than the next thing to happen.
    fn next_stop(&self, end: u64) -> u64 {
        let stalls = self.plan.stalls.iter().map(|(at, _)| *at);
        let cut = self.plan.cut.iter().map(|(at, _)| *at);
        let trickle = self.plan.trickle.iter().map(|(after, _)| *after);
        stalls.chain(cut).chain(trickle).filter(|at| *at > self.sent).fold(end, u64::min)
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let this = &mut *self;
        loop {
            if let Some(wait) = &mut this.wait {
                std::task::ready!(wait.as_mut().poll(cx));
                this.wait = None;
                if let (Some(how), Some(connection)) = (this.then.take(), &this.connection) {
                    connection.seize(how);
                    return Poll::Pending;
                }
            }
            if let Some(i) = this.plan.stalls.iter().position(|(at, _)| *at == this.sent) {
                // For ever: the client hangs up, or waits. hyper may poll again all the same.
                let Some(pause) = this.plan.stalls[i].1 else { return Poll::Pending };
                this.plan.stalls.swap_remove(i);
                this.wait = Some(Box::pin(sleep_until(Instant::now() + pause)));
                continue;
            }
            if let Some((at, cut)) = this.plan.cut
                && at == this.sent
            {
                let how = match cut {
                    Cut::Reset => Seize::Reset,
                    Cut::Close => Seize::Close,
                };
                this.seize_after(FLUSH, how);
                continue;
            }
            let end = this.len + this.plan.extra;
            if this.sent == end {
                return Poll::Ready(None);
            }
            let mut max = this.next_stop(end).min(this.sent + FRAME) - this.sent;
            if let Some((_, pause)) = this.plan.trickle.filter(|(after, _)| *after <= this.sent) {
                max = 1;
                this.wait = Some(Box::pin(sleep_until(Instant::now() + pause)));
            }
            let pace = this.connection.clone().and_then(|c| Some((c.bandwidth?, c)));
            if let Some((bandwidth, connection)) = &pace {
                max = max.min((bandwidth / 100).clamp(1024, FRAME));
                let due = *connection.due();
                // A timer ticks in milliseconds: being a little ahead keeps the mean rate right.
                if due > Instant::now() + Duration::from_millis(2) {
                    this.wait = Some(Box::pin(sleep_until(due)));
                    continue;
                }
            }
            let mut bytes = if this.sent < this.len {
                this.source.slice(this.sent, max.min(this.len - this.sent))
            } else {
                Bytes::from(vec![b' '; max as usize])
            };
            if let Some((bandwidth, connection)) = &pace {
                let mut due = connection.due();
                let now = Instant::now();
                let earliest = now.checked_sub(Duration::from_millis(20)).unwrap_or(now);
                let seconds = bytes.len() as f64 / (*bandwidth).max(1) as f64;
                *due = (*due).max(earliest) + Duration::from_secs_f64(seconds);
            }
            let range = this.sent..this.sent + bytes.len() as u64;
            for (at, bits) in this.plan.flips.iter().filter(|(at, _)| range.contains(at)) {
                let mut flipped = BytesMut::from(&bytes[..]);
                flipped[(at - range.start) as usize] ^= bits;
                bytes = flipped.freeze();
            }
            this.sent = range.end;
            if let (Some(counters), Source::Object(..)) = (&this.counters, &this.source) {
                counters.bytes.fetch_add(bytes.len() as u64, Relaxed);
            }
            // hyper does not ask again for a body that has its whole length.
            if let (true, Some(trailing), Some(connection)) =
                (this.sent == end, this.plan.trailing, this.connection.clone())
            {
                tokio::spawn(async move {
                    tokio::time::sleep(FLUSH).await;
                    connection.seize(Seize::Trail(trailing));
                });
            }
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
    }
}
