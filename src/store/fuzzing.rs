//! Doors for `tests/fuzz`: what reads bytes of the network, of files and of users, without the I/O
//! around it. Nothing here decides anything.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::FutureExt;
use http::{HeaderMap, StatusCode, Uri};
use object_store::GetRange;
use reqsign_core::{Context, FileRead, HttpSend, StaticEnv};

use super::answer::Answer;
use super::credentials::Credential;
use super::endpoint::{Addressing, Endpoint};
use super::error::{StoreError, Subject};
use super::listing::{Listed, Page, PageError};
use super::providers::Chain;
use super::retry::{Attempts, RetryPolicy};
use super::rrsa::Rrsa;
use super::stated::Stated;
use super::transport::{Options, Transport};
use super::verdict::{Asked, Kind, Verdict};
use super::{client, endpoint, listing, objects, providers, rrsa, sign, stated, verdict};
use crate::keys::{Bucket, Dialect, Key};

/// A page of a listing and where the next one begins; what an error would say.
pub fn page(body: &[u8], dialect: Dialect) -> Result<(Vec<Listed>, Option<String>), String> {
    told(listing::parse(body, dialect))
}

/// The same, the long way.
pub fn page_in_general(
    body: &[u8],
    dialect: Dialect,
) -> Result<(Vec<Listed>, Option<String>), String> {
    told(listing::parse_in_general(body, dialect))
}

fn told(page: Result<Page, PageError>) -> Result<(Vec<Listed>, Option<String>), String> {
    match page {
        Ok(page) => Ok((page.objects, page.next)),
        Err(PageError::Malformed(reason)) => Err(reason),
        Err(PageError::Key(error)) => Err(error.to_string()),
    }
}

/// The percent-encoding of a URL's path or query.
pub fn encode(text: &str, is_path: bool) -> String {
    sign::encode(text, is_path)
}

/// A refusal, in which `secret` must not be quoted.
pub fn refusal(status: StatusCode, headers: &HeaderMap, body: &[u8], secret: &str) -> Answer {
    Answer::read(status, headers, body, &[secret])
}

/// What a refusal means: the error, and whether time, the clock or another credential may help.
pub fn judged(answer: Answer, dialect: Dialect, bucket: &Bucket, key: Option<&Key>) -> StoreError {
    let asked = Asked {
        dialect,
        kind: if key.is_some() { Kind::Get } else { Kind::List },
        subject: Box::new(Subject { bucket: bucket.clone(), key: key.cloned() }),
        host: "host",
        region: "cn-hangzhou",
        temporary: true,
        anonymous: false,
    };
    match verdict::judge(asked, answer) {
        Verdict::Passing(error)
        | Verdict::Clock(error)
        | Verdict::Credential(error)
        | Verdict::Final(error) => error,
    }
}

/// What headers state of an object.
pub fn stated(headers: &HeaderMap, partial: bool) -> Stated {
    Stated::read(headers, partial)
}

/// The bytes that an answer holds, and the object's size.
pub fn fitting(
    status: StatusCode,
    headers: &HeaderMap,
    wanted: Option<&GetRange>,
    pinned: bool,
) -> Result<(Range<u64>, u64), String> {
    objects::fitting(status, headers, wanted, pinned)
}

/// The next attempt's pause, as the headers of a refusal ask for it.
pub fn pause(headers: &HeaderMap, now: DateTime<Utc>, dice: f64) -> Option<std::time::Duration> {
    let asked = client::delay(headers, now);
    let since = std::time::Duration::ZERO;
    Attempts::default().pause(&RetryPolicy::default(), asked, since, true, dice)
}

/// The time that requests are signed with, `later` than the answer that stated a date.
pub fn signed_time(
    headers: &HeaderMap,
    now: DateTime<Utc>,
    later: chrono::TimeDelta,
) -> Option<String> {
    let theirs = stated::http_date(headers, "date").filter(client::is_plausible)?;
    let time = client::their_time(now + later, client::clock_offset(theirs, now));
    Some(format!("{} {}", sign::timestamp(time), sign::day(time)))
}

/// The URL of `key` at an endpoint as people write it.
pub fn url(
    dialect: Dialect,
    bucket: &Bucket,
    given: Option<&str>,
    region: Option<&str>,
    addressing: Addressing,
    key: &str,
) -> Result<Uri, StoreError> {
    let settled = endpoint::Endpoint::settle(dialect, bucket, given, region, addressing, false);
    settled.and_then(|endpoint: Endpoint| endpoint.url(Some(key), &[]))
}

/// Id and token.
pub type Found = (String, Option<String>);

fn found(credential: Credential) -> Found {
    (credential.id, credential.token)
}

/// What `~/.ossutilconfig` holds.
pub fn ossutil(text: &str) -> Option<Found> {
    providers::parse_ossutil(text).map(found)
}

/// What STS answers to a request with `token`.
pub fn sts(status: StatusCode, body: &[u8], token: &str) -> Result<Found, StoreError> {
    rrsa::answered("sts.aliyuncs.com", status, body, [token].into_iter()).map(found)
}

/// What the chain finds where every file, and every answer of the metadata service, is `contents`.
pub fn chain(dialect: Dialect, env: &[(&str, &str)], contents: &[u8]) -> Result<Found, StoreError> {
    let envs: HashMap<String, String> =
        env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let env = StaticEnv { home_dir: Some("/home".into()), envs };
    let contents = Everywhere(Bytes::copy_from_slice(contents));
    let context = Context::new()
        .with_env(env.clone())
        .with_file_read(contents.clone())
        .with_http_send(contents);
    let chain = Chain::within(dialect, Arc::new(env), context, rrsa().clone());
    chain.fetch().now_or_never().expect("nothing here waits").map(found)
}

/// Never asked: the environment names no token.
fn rrsa() -> &'static Rrsa {
    static RRSA: OnceLock<Rrsa> = OnceLock::new();
    RRSA.get_or_init(|| {
        let policy = RetryPolicy::default();
        let transport = Transport::new(&Options {
            env: &StaticEnv { home_dir: None, envs: HashMap::new() },
            ca_bundle: None,
            connect_timeout: policy.connect_timeout,
            answer_timeout: policy.first_byte_timeout,
            proxied: false,
        });
        let transport = transport.expect("nothing is asked for that can be wrong");
        Rrsa::new(transport, "cn-hangzhou", false, policy.first_byte_timeout)
    })
}

#[derive(Debug, Clone)]
struct Everywhere(Bytes);

impl FileRead for Everywhere {
    async fn file_read(&self, _: &str) -> reqsign_core::Result<Vec<u8>> {
        Ok(self.0.to_vec())
    }
}

impl HttpSend for Everywhere {
    async fn http_send(
        &self,
        _: http::Request<Bytes>,
    ) -> reqsign_core::Result<http::Response<Bytes>> {
        Ok(http::Response::new(self.0.clone()))
    }
}
