//! A handle on a running server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use tokio::runtime::Runtime;

use crate::builder::Builder;
use crate::faults::Fault;
use crate::objects::symlink;
use crate::put::PutOptions;
use crate::server::Server;
use crate::stats::{Logged, Stats};
use crate::store::{Bucket, Content, Credential};
use crate::synthetic::Generated;

/// A running server; it stops when this is dropped.
#[derive(Debug)]
pub struct OssServer {
    server: Arc<Server>,
    address: SocketAddr,
    /// Taken by `drop`, which may run inside another runtime.
    runtime: Option<Runtime>,
}

impl OssServer {
    pub(crate) fn new(server: Arc<Server>, address: SocketAddr, runtime: Runtime) -> Self {
        Self { server, address, runtime: Some(runtime) }
    }
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

    /// Lets a key pair be unknown from now on.
    pub fn revoke(&self, id: &str) {
        let mut keys =
            self.server.store.credentials.write().expect("no panic while the lock is held");
        keys.remove(id);
    }

    /// The ids, secrets and tokens of all key pairs, issued ones too.
    pub fn key_pairs(&self) -> Vec<[String; 3]> {
        let keys = self.server.store.credentials.read().expect("no panic while the lock is held");
        let pair = |(id, key): (&String, &Credential)| {
            [id.clone(), key.secret.clone(), key.token.clone().unwrap_or_default()]
        };
        keys.iter().map(pair).collect()
    }

    /// How many sets of credentials STS and the metadata service have issued.
    pub fn issued(&self) -> u64 {
        self.server.sts.issued()
    }

    /// Sets how long credentials live that are issued from now on.
    pub fn set_lifetime(&self, lifetime: TimeDelta) {
        self.server.sts.config().lifetime = Some(lifetime);
    }

    /// Sets the OIDC token that STS believes from now on.
    pub fn set_oidc_token(&self, token: &str) {
        self.server.sts.config().oidc_token = Some(token.into());
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

    /// Waits until the counters are as wanted; says whether they were within `time`.
    pub fn wait_until(&self, time: Duration, wanted: impl Fn(&Stats) -> bool) -> bool {
        let end = std::time::Instant::now() + time;
        while !wanted(&self.stats()) {
            if std::time::Instant::now() >= end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }

    /// Switches the log and the counts by key.
    pub fn set_log(&self, on: bool) {
        self.server.counters.logging.store(on, Relaxed);
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
