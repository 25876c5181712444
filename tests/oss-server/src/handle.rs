//! The library's surface: a builder, and a handle on a running server.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::faults::{Fault, Faults};
use crate::objects::symlink;
use crate::request::Addressing;
use crate::server::{Pace, Server, accept};
use crate::stats::{Counters, Logged, Stats};
use crate::store::{Bucket, Content, Credential, PutOptions, Store};
use crate::synthetic::Generated;
use crate::tls::Tls;

/// What a server starts with.
#[derive(Debug)]
#[must_use]
pub struct Builder {
    listen: SocketAddr,
    region: String,
    store: Store,
    addressing: Addressing,
    pace: Pace,
    clock: i64,
    threads: usize,
    log: bool,
    tls: bool,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            region: "cn-hangzhou".into(),
            store: Store::default(),
            addressing: Addressing::default(),
            pace: Pace::default(),
            clock: 0,
            threads: 2,
            log: true,
            tls: false,
        }
    }
}

impl Builder {
    /// Where to listen; a free port of 127.0.0.1 unless told otherwise.
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = address;
        self
    }
    /// The region signatures must name; `cn-hangzhou` unless told otherwise. Goes before buckets.
    pub fn region(mut self, region: &str) -> Self {
        self.region = region.into();
        self
    }
    /// A private bucket.
    pub fn bucket(self, name: &str) -> Self {
        let region = self.region.clone();
        self.add_bucket(name, Bucket::new(&region, false))
    }
    /// A bucket anyone may read.
    pub fn public_bucket(self, name: &str) -> Self {
        let region = self.region.clone();
        self.add_bucket(name, Bucket::new(&region, true))
    }
    /// A bucket of another region: requests are sent away with its endpoint.
    pub fn foreign_bucket(self, name: &str, region: &str) -> Self {
        self.add_bucket(name, Bucket::new(region, false))
    }
    fn add_bucket(mut self, name: &str, bucket: Bucket) -> Self {
        let buckets = self.store.buckets.get_mut().expect("nobody else has the lock yet");
        buckets.insert(name.into(), bucket);
        self
    }
    /// A key pair that may do everything.
    pub fn credentials(self, id: &str, secret: &str) -> Self {
        self.add_key(id, secret, None, None, true)
    }
    /// A temporary key pair; its token must come with every request.
    pub fn session(
        self,
        id: &str,
        secret: &str,
        token: &str,
        expires: Option<DateTime<Utc>>,
    ) -> Self {
        self.add_key(id, secret, Some(token), expires, true)
    }
    /// A key pair that may do nothing: a good signature that meets AccessDenied.
    pub fn powerless(self, id: &str, secret: &str) -> Self {
        self.add_key(id, secret, None, None, false)
    }
    fn add_key(
        mut self,
        id: &str,
        secret: &str,
        token: Option<&str>,
        expires: Option<DateTime<Utc>>,
        allowed: bool,
    ) -> Self {
        let credential =
            Credential { secret: secret.into(), token: token.map(str::to_owned), expires, allowed };
        let keys = self.store.credentials.get_mut().expect("nobody else has the lock yet");
        keys.insert(id.into(), credential);
        self
    }
    /// A host that is the service: `<bucket>.<host>` is then a bucket.
    pub fn endpoint_host(mut self, host: &str) -> Self {
        self.addressing.endpoints.push(host.into());
        self
    }
    /// A host that is one bucket.
    pub fn cname(mut self, host: &str, bucket: &str) -> Self {
        self.addressing.cnames.insert(host.into(), bucket.into());
        self
    }
    /// Waits so long before the first byte of every answer.
    pub fn ttfb(mut self, time: Duration) -> Self {
        self.pace.ttfb = time;
        self
    }
    /// Bytes per second of one connection.
    pub fn per_connection(mut self, bytes_per_second: u64) -> Self {
        self.pace.bandwidth = Some(bytes_per_second);
        self
    }
    /// Requests per second; those above are answered with 503.
    pub fn admit(mut self, requests_per_second: u64) -> Self {
        self.pace.admit = Some(requests_per_second);
        self
    }
    /// A clock so many seconds ahead of the true one (behind it if negative).
    pub fn clock_ahead(mut self, seconds: i64) -> Self {
        self.clock = seconds;
        self
    }
    /// Threads that serve; 2 unless told otherwise.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }
    /// Whether requests are logged and counted by key; they are unless told otherwise.
    pub fn log(mut self, on: bool) -> Self {
        self.log = on;
        self
    }

    /// TLS, with a CA made for this run: [`OssServer::ca_pem`].
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Starts the server on threads of its own.
    pub async fn start(self) -> std::io::Result<OssServer> {
        self.start_blocking()
    }

    /// As [`Builder::start`], for callers without a runtime.
    pub fn start_blocking(self) -> std::io::Result<OssServer> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(self.threads)
            .thread_name("oss-server")
            .enable_all()
            .build()?;
        let socket = std::net::TcpListener::bind(self.listen)?;
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        let tls = match self.tls {
            true => Some(Tls::generate(&self.addressing.names()).map_err(std::io::Error::other)?),
            false => None,
        };
        let server = Arc::new(Server {
            store: self.store,
            region: self.region,
            addressing: self.addressing,
            faults: Mutex::new(Faults::default()),
            counters: Arc::new(Counters::new(self.log)),
            clock: AtomicI64::new(self.clock),
            pace: Mutex::new(self.pace),
            admitted: Mutex::new(None),
            request_ids: AtomicU64::new(0),
            tls,
        });
        let listener = {
            let _guard = runtime.enter();
            TcpListener::from_std(socket)?
        };
        runtime.spawn(accept(server.clone(), listener));
        Ok(OssServer { server, address, runtime: Some(runtime) })
    }
}

/// A running server; it stops when this is dropped.
#[derive(Debug)]
pub struct OssServer {
    server: Arc<Server>,
    address: SocketAddr,
    /// Taken by `drop`, which may run inside another runtime.
    runtime: Option<Runtime>,
}

impl Drop for OssServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl OssServer {
    /// What a server starts with: nothing.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// `http://127.0.0.1:PORT`, or https.
    pub fn endpoint(&self) -> String {
        let scheme = if self.server.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// The CA that vouches for the server, if it speaks TLS.
    pub fn ca_pem(&self) -> Option<&str> {
        self.server.tls.as_ref().map(|tls| tls.ca_pem.as_str())
    }

    /// The address it listens at.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The region signatures must name.
    pub fn region(&self) -> &str {
        &self.server.region
    }

    /// Puts an ordinary object, in place of any other of this key. Makes the bucket if need be.
    pub fn put(&self, bucket: &str, key: &str, body: impl Into<Bytes>) {
        self.put_with(bucket, key, body, PutOptions::new());
    }

    /// Puts an object with what is said of it.
    pub fn put_with(&self, bucket: &str, key: &str, body: impl Into<Bytes>, options: PutOptions) {
        let object = options.into_object(Content::Stored(body.into()));
        self.with_bucket(bucket, |bucket| bucket.insert(key, object));
    }

    /// Puts an object of `size` bytes that is computed from a seed.
    pub fn put_synthetic(
        &self,
        bucket: &str,
        key: &str,
        size: u64,
        seed: u64,
        options: PutOptions,
    ) {
        let object = options.into_object(Content::Synthetic { seed, len: size });
        self.with_bucket(bucket, |bucket| bucket.insert(key, object));
    }

    /// Puts a symlink; its target need not exist.
    pub fn put_symlink(&self, bucket: &str, key: &str, target: &str) {
        let object = symlink(target, PutOptions::new());
        self.with_bucket(bucket, |bucket| bucket.insert(key, object));
    }

    /// Adds a set of computed objects.
    pub fn generate(&self, bucket: &str, set: Generated) {
        self.with_bucket(bucket, |bucket| bucket.generated.push(set));
    }

    /// Deletes an object; says whether there was one.
    pub fn delete(&self, bucket: &str, key: &str) -> bool {
        self.with_bucket(bucket, |bucket| bucket.remove(key))
    }

    /// The whole body of an object.
    pub fn read(&self, bucket: &str, key: &str) -> Option<Bytes> {
        let object = self.with_bucket(bucket, |bucket| bucket.get(key))?;
        let size = object.content.len();
        let mut body = Vec::new();
        while (body.len() as u64) < size {
            let at = body.len() as u64;
            body.extend_from_slice(&object.content.slice(at, size - at));
        }
        Some(body.into())
    }

    /// The ETag of an object, with its quotes.
    pub fn etag(&self, bucket: &str, key: &str) -> Option<String> {
        self.with_bucket(bucket, |bucket| bucket.get(key)).map(|object| object.etag.clone())
    }

    /// The CRC-64 an answer states for an object.
    pub fn crc64(&self, bucket: &str, key: &str) -> Option<u64> {
        self.with_bucket(bucket, |bucket| bucket.get(key))?.crc64()
    }

    fn with_bucket<T>(&self, name: &str, change: impl FnOnce(&mut Bucket) -> T) -> T {
        let mut buckets =
            self.server.store.buckets.write().expect("no panic while the lock is held");
        let bucket = buckets
            .entry(name.to_owned())
            .or_insert_with(|| Bucket::new(&self.server.region, false));
        change(bucket)
    }

    /// Adds a key pair while the server runs, or replaces it.
    pub fn set_credentials(
        &self,
        id: &str,
        secret: &str,
        token: Option<&str>,
        expires: Option<DateTime<Utc>>,
    ) {
        let credential = Credential {
            secret: secret.into(),
            token: token.map(str::to_owned),
            expires,
            allowed: true,
        };
        let mut keys =
            self.server.store.credentials.write().expect("no panic while the lock is held");
        keys.insert(id.into(), credential);
    }

    /// Lets a key pair expire now.
    pub fn expire(&self, id: &str) {
        let mut keys =
            self.server.store.credentials.write().expect("no panic while the lock is held");
        if let Some(key) = keys.get_mut(id) {
            key.expires = Some(self.server.now() - TimeDelta::seconds(1));
        }
    }

    /// Sets how far the server's clock is ahead.
    pub fn set_clock_ahead(&self, seconds: i64) {
        self.server.clock.store(seconds, Relaxed);
    }

    /// Adds a fault.
    pub fn fault(&self, fault: Fault) {
        self.server.faults.lock().expect("no panic while the lock is held").add(fault);
    }

    /// Ends all faults.
    pub fn clear_faults(&self) {
        self.server.faults.lock().expect("no panic while the lock is held").clear();
    }

    /// Sets the time to the first byte from now on.
    pub fn set_ttfb(&self, time: Duration) {
        self.server.pace.lock().expect("no panic while the lock is held").ttfb = time;
    }

    /// Sets the bandwidth of connections made from now on.
    pub fn set_per_connection(&self, bytes_per_second: Option<u64>) {
        self.server.pace.lock().expect("no panic while the lock is held").bandwidth =
            bytes_per_second;
    }

    /// Sets the requests per second that are admitted from now on.
    pub fn set_admit(&self, requests_per_second: Option<u64>) {
        self.server.pace.lock().expect("no panic while the lock is held").admit =
            requests_per_second;
    }

    /// A copy of the counters.
    pub fn stats(&self) -> Stats {
        self.server.counters.snapshot()
    }

    /// Sets the counters, the log and the counts by key to zero.
    pub fn reset_stats(&self) {
        self.server.counters.reset();
    }

    /// How many GETs there were of one key.
    pub fn gets(&self, bucket: &str, key: &str) -> u64 {
        self.server.counters.gets(bucket, key)
    }

    /// The requests logged, oldest first.
    pub fn log(&self) -> Vec<Logged> {
        self.server.counters.log()
    }
}
