//! A server, a source that reads from it, and short ways to use both.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{GetOptions, GetRange, GetResult, ObjectStore};
use oss_server::{Builder, OssServer};
use ossvp::keys::Key;
use ossvp::store::{
    Connection, Listed, RetryPolicy, Source, StoreError, Surroundings, explain, location,
};
use reqsign_core::StaticEnv;

pub(crate) const BUCKET: &str = "models";

/// No message holds it by chance.
pub(crate) const SECRET: &str = "hush-hush";

/// A server with one bucket and one key pair, not yet started.
pub(crate) fn server() -> Builder {
    OssServer::builder().bucket(BUCKET).credentials("id", SECRET)
}

pub(crate) fn start(builder: Builder) -> OssServer {
    builder.start_blocking().unwrap()
}

/// Patience for tests: pauses of milliseconds, timeouts that a busy machine keeps.
pub(crate) fn policy() -> RetryPolicy {
    RetryPolicy {
        connect_timeout: Duration::from_secs(5),
        first_byte_timeout: Duration::from_secs(10),
        stall_timeout: Duration::from_secs(10),
        // a test that wants hedges says so
        hedge_after: Duration::from_secs(60),
        backoff_first: Duration::from_millis(1),
        backoff_max: Duration::from_millis(4),
        server_delay_max: Duration::from_millis(20),
        attempts: 4,
        patience: Duration::ZERO,
        patient_from_start: false,
        refresh_ahead: Duration::from_secs(300),
    }
}

/// What a source is opened with.
pub(crate) struct Setup {
    pub(crate) url: String,
    pub(crate) connection: Connection,
    pub(crate) env: HashMap<String, String>,
    pub(crate) home: Option<PathBuf>,
    pub(crate) policy: RetryPolicy,
}

impl Setup {
    pub(crate) fn oss(server: &OssServer) -> Self {
        Self::of("oss", server).env("OSS_ACCESS_KEY_ID", "id").env("OSS_ACCESS_KEY_SECRET", SECRET)
    }

    pub(crate) fn s3(server: &OssServer) -> Self {
        Self::of("s3", server).env("AWS_ACCESS_KEY_ID", "id").env("AWS_SECRET_ACCESS_KEY", SECRET)
    }

    /// Without credentials.
    pub(crate) fn of(scheme: &str, server: &OssServer) -> Self {
        let connection = Connection {
            endpoint: Some(server.endpoint()),
            region: Some(server.region().to_owned()),
            ..Connection::default()
        };
        let url = format!("{scheme}://{BUCKET}/");
        Self { url, connection, env: HashMap::new(), home: None, policy: policy() }
    }

    pub(crate) fn prefix(mut self, prefix: &str) -> Self {
        self.url.push_str(prefix);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    pub(crate) fn connection(mut self, change: impl FnOnce(&mut Connection)) -> Self {
        change(&mut self.connection);
        self
    }

    pub(crate) fn policy(mut self, change: impl FnOnce(&mut RetryPolicy)) -> Self {
        change(&mut self.policy);
        self
    }

    pub(crate) fn try_open(self) -> Result<Source, StoreError> {
        let env = Arc::new(StaticEnv { home_dir: self.home, envs: self.env });
        let surroundings = Surroundings { env, policy: self.policy };
        Source::open_in(&self.url.parse().unwrap(), &self.connection, surroundings)
    }

    pub(crate) fn open(self) -> Source {
        self.try_open().unwrap()
    }
}

pub(crate) fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

pub(crate) fn bounded(start: u64, end: u64) -> Option<GetRange> {
    Some(GetRange::Bounded(start..end))
}

pub(crate) async fn listed(source: &Source) -> Result<Vec<Listed>, StoreError> {
    source.list(None).try_concat().await
}

pub(crate) async fn keys(source: &Source) -> Vec<String> {
    texts(listed(source).await.unwrap()).collect()
}

/// The keys of a page.
pub(crate) fn texts(page: Vec<Listed>) -> impl Iterator<Item = String> {
    page.into_iter().map(|listed| listed.key.as_str().to_owned())
}

/// Sends a GET; the body is not read.
pub(crate) async fn answer(
    source: &Source,
    name: &str,
    options: GetOptions,
) -> Result<GetResult, StoreError> {
    source.objects().get_opts(&location(&key(name)), options).await.map_err(explain)
}

/// A GET and its whole body.
pub(crate) async fn get_with(
    source: &Source,
    name: &str,
    options: GetOptions,
) -> Result<Bytes, StoreError> {
    let result = answer(source, name, options).await?;
    result.bytes().await.map_err(explain)
}

pub(crate) async fn get(source: &Source, name: &str) -> Result<Bytes, StoreError> {
    get_with(source, name, GetOptions::default()).await
}

pub(crate) async fn get_range(
    source: &Source,
    name: &str,
    range: Option<GetRange>,
) -> Result<Bytes, StoreError> {
    get_with(source, name, GetOptions { range, ..GetOptions::default() }).await
}

pub(crate) async fn head(source: &Source, name: &str) -> Result<GetResult, StoreError> {
    answer(source, name, GetOptions { head: true, ..GetOptions::default() }).await
}

/// An error and all below it.
pub(crate) fn chain(error: &StoreError) -> String {
    let mut line = error.to_string();
    let mut below = std::error::Error::source(error);
    while let Some(error) = below {
        line.push_str(": ");
        line.push_str(&error.to_string());
        below = error.source();
    }
    line
}

/// Bytes that differ from offset to offset.
pub(crate) fn pattern(len: usize) -> Bytes {
    (0..len as u32).map(|i| (i.wrapping_mul(0x9E37_79B9) >> 24) as u8).collect::<Vec<u8>>().into()
}

/// Waits until something holds, and fails the test if it does not.
pub(crate) async fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("waited in vain for {what}");
}
