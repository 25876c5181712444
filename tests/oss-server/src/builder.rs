//! What a server starts with.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::net::TcpListener;

use crate::faults::Faults;
use crate::handle::OssServer;
use crate::listing::MOST;
use crate::request::Addressing;
use crate::server::{Pace, Server, accept};
use crate::stats::Counters;
use crate::store::{Bucket, Credential, Store};
use crate::sts::{Config, Sts};
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
    expired: bool,
    crc_in_s3: bool,
    page: usize,
    sts: Config,
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
            expired: false,
            crc_in_s3: false,
            page: MOST,
            sts: Config::default(),
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

    /// Answers of the S3 dialect carry `x-oss-hash-crc64ecma` too.
    pub fn crc_in_s3(mut self) -> Self {
        self.crc_in_s3 = true;
        self
    }
    /// The most keys in one page of a listing, however many are asked for: at most 1000.
    pub fn page(mut self, keys: usize) -> Self {
        self.page = keys.clamp(1, MOST);
        self
    }
    /// STS believes this token of this provider for this role.
    pub fn oidc(mut self, role_arn: &str, provider_arn: &str, token: &str) -> Self {
        self.sts.role_arn = Some(role_arn.into());
        self.sts.provider_arn = Some(provider_arn.into());
        self.sts.oidc_token = Some(token.into());
        self
    }
    /// As [`Builder::oidc`], for any token that `check` takes.
    pub fn oidc_checked(
        mut self,
        role_arn: &str,
        provider_arn: &str,
        check: fn(&str) -> bool,
    ) -> Self {
        self.sts.role_arn = Some(role_arn.into());
        self.sts.provider_arn = Some(provider_arn.into());
        self.sts.oidc_check = Some(check);
        self
    }
    /// The metadata service at `/latest/` tells of this RAM role.
    pub fn instance_role(mut self, name: &str) -> Self {
        self.sts.instance_role = Some(name.into());
        self
    }
    /// The metadata service answers only who shows its token.
    pub fn instance_token_required(mut self) -> Self {
        self.sts.hardened = true;
        self
    }
    /// How long credentials live that the server issues, whatever a request asks for.
    pub fn lifetime(mut self, lifetime: TimeDelta) -> Self {
        self.sts.lifetime = Some(lifetime);
        self
    }
    /// TLS, with a CA made for this run: [`OssServer::ca_pem`].
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// TLS with a certificate that has expired.
    pub fn expired(mut self) -> Self {
        self.expired = true;
        self.tls()
    }

    /// Starts the server on threads of its own.
    pub async fn start(self) -> std::io::Result<OssServer> {
        self.start_blocking()
    }

    /// As [`Builder::start`], for callers without a runtime.
    pub fn start_blocking(self) -> std::io::Result<OssServer> {
        let socket = std::net::TcpListener::bind(self.listen)?;
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        let tls = match self.tls {
            true => Some(
                Tls::generate(&self.addressing.names(), self.expired)
                    .map_err(std::io::Error::other)?,
            ),
            false => None,
        };
        // Last of what can fail: a runtime must not be dropped inside another one.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(self.threads)
            .thread_name("oss-server")
            .enable_all()
            .build()?;
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
            crc_in_s3: self.crc_in_s3,
            page: self.page,
            sts: Sts::new(self.sts),
        });
        let listener = {
            let _guard = runtime.enter();
            TcpListener::from_std(socket)?
        };
        runtime.spawn(accept(server.clone(), listener));
        Ok(OssServer::new(server, address, runtime))
    }
}
