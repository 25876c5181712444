//! What the server was asked and what it answered.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use serde::Serialize;

use crate::request::{Call, Operation};

/// How many requests the log keeps; the oldest go first.
const LOG: usize = 100_000;
/// How many keys GETs are counted of: a bucket of a million keys must not grow the server.
const COUNTED_KEYS: usize = 200_000;

/// One line of the log.
#[derive(Debug, Clone, Serialize)]
pub struct Logged {
    /// What the request was.
    pub operation: Operation,
    /// GET, HEAD, PUT, POST, DELETE.
    pub method: String,
    /// The request target as it was sent.
    pub target: String,
    /// The Host header.
    pub host: String,
    /// The Range header.
    pub range: Option<String>,
    /// The If-Match header.
    pub if_match: Option<String>,
    /// The access key id it was signed with.
    pub access_key_id: Option<String>,
    /// The Authorization header.
    pub authorization: Option<String>,
    /// The token of temporary credentials.
    pub security_token: Option<String>,
    /// The answer's status; 0 when the connection was reset before one.
    pub status: u16,
}

/// A copy of the counters.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Stats {
    /// All requests but those to `/__admin`.
    pub requests: u64,
    /// Requests by operation.
    pub by_operation: BTreeMap<Operation, u64>,
    /// Answers by status.
    pub by_status: BTreeMap<u16, u64>,
    /// Bytes of objects handed to connections.
    pub bytes: u64,
    /// Requests in flight now: from the request's head to the body's last byte.
    pub concurrent: u64,
    /// The most that were ever in flight.
    pub peak_concurrent: u64,
    /// Connections accepted.
    pub connections: u64,
    /// Connections open now.
    pub open_connections: u64,
    /// Requests that were turned away with a 503.
    pub wasted: u64,
    /// Faults applied.
    pub faults: u64,
}

impl Stats {
    /// The number of requests of one kind.
    pub fn count(&self, operation: Operation) -> u64 {
        self.by_operation.get(&operation).copied().unwrap_or(0)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) bytes: AtomicU64,
    pub(crate) connections: AtomicU64,
    pub(crate) open_connections: AtomicU64,
    pub(crate) faults: AtomicU64,
    concurrent: AtomicU64,
    peak: AtomicU64,
    pub(crate) logging: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    requests: u64,
    by_operation: BTreeMap<Operation, u64>,
    by_status: BTreeMap<u16, u64>,
    gets: HashMap<(String, String), u64>,
    log: VecDeque<Logged>,
}

impl Counters {
    pub(crate) fn new(logging: bool) -> Self {
        Self { logging: AtomicBool::new(logging), ..Self::default() }
    }

    /// Counts a request in until the guard is dropped.
    pub(crate) fn enter(self: &std::sync::Arc<Self>) -> InFlight {
        let now = self.concurrent.fetch_add(1, Relaxed) + 1;
        self.peak.fetch_max(now, Relaxed);
        InFlight(self.clone())
    }

    pub(crate) fn record(&self, call: &Call, status: u16, logged: impl FnOnce() -> Logged) {
        let op = call.operation;
        let mut inner = self.lock();
        inner.requests += 1;
        *inner.by_operation.entry(op).or_default() += 1;
        *inner.by_status.entry(status).or_default() += 1;
        if !self.logging.load(Relaxed) {
            return;
        }
        if op == Operation::GetObject && inner.gets.len() < COUNTED_KEYS {
            *inner.gets.entry((call.bucket.clone(), call.key.clone())).or_default() += 1;
        }
        if inner.log.len() == LOG {
            inner.log.pop_front();
        }
        inner.log.push_back(logged());
    }

    pub(crate) fn snapshot(&self) -> Stats {
        let inner = self.lock();
        Stats {
            requests: inner.requests,
            by_operation: inner.by_operation.clone(),
            by_status: inner.by_status.clone(),
            bytes: self.bytes.load(Relaxed),
            concurrent: self.concurrent.load(Relaxed),
            peak_concurrent: self.peak.load(Relaxed),
            connections: self.connections.load(Relaxed),
            open_connections: self.open_connections.load(Relaxed),
            wasted: inner.by_status.get(&503).copied().unwrap_or(0),
            faults: self.faults.load(Relaxed),
        }
    }

    pub(crate) fn gets(&self, bucket: &str, key: &str) -> u64 {
        self.lock().gets.get(&(bucket.to_owned(), key.to_owned())).copied().unwrap_or(0)
    }

    pub(crate) fn log(&self) -> Vec<Logged> {
        self.lock().log.iter().cloned().collect()
    }

    pub(crate) fn reset(&self) {
        *self.lock() = Inner::default();
        self.bytes.store(0, Relaxed);
        self.faults.store(0, Relaxed);
        self.peak.store(self.concurrent.load(Relaxed), Relaxed);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().expect("no panic while the lock is held")
    }
}

/// A request in flight.
#[derive(Debug)]
pub(crate) struct InFlight(std::sync::Arc<Counters>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.concurrent.fetch_sub(1, Relaxed);
    }
}
