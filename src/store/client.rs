//! Requests: signed, sent, judged, and sent again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Datelike, TimeDelta, Utc};
use http::header::{AUTHORIZATION, HOST, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use tokio::time::Instant;

use crate::keys::{Dialect, Key};
use crate::telemetry::chain;

use super::answer::Answer;
use super::credentials::{Credential, Credentials};
use super::endpoint::Endpoint;
use super::error::{StoreError, Subject};
use super::meter::Meter;
use super::retry::{Attempts, RetryPolicy};
use super::sign::{self, UNSIGNED_PAYLOAD, Unsigned};
use super::stated::http_date;
use super::transport::{Arriving, BodyError, SendError, Transport, is_plain, read_body};
use super::turns::Turns;
use super::verdict::{Asked, Kind, Verdict, is_throttling, judge};

/// The longest body of a refusal that is read; OSS's have some 500 bytes.
const MAX_REFUSAL: usize = 64 * 1024;

/// How many times the patience with one frame a whole body gets. A page of a listing has some 500 KB:
/// that is 2 KB/s.
const WHOLE: u32 = 10;

/// How long OSS wants to be left alone, in milliseconds.
const QOS_DELAY: HeaderName = HeaderName::from_static("x-oss-qos-delay-time");

/// Date, digest and token of a signed request.
const OSS: [HeaderName; 3] = [
    HeaderName::from_static("x-oss-date"),
    HeaderName::from_static("x-oss-content-sha256"),
    HeaderName::from_static("x-oss-security-token"),
];
const AMZ: [HeaderName; 3] = [
    HeaderName::from_static("x-amz-date"),
    HeaderName::from_static("x-amz-content-sha256"),
    HeaderName::from_static("x-amz-security-token"),
];

/// A request before it is signed.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) kind: Kind,
    pub(super) key: Option<Key>,
    pub(super) query: Vec<(&'static str, String)>,
    pub(super) headers: Vec<(HeaderName, String)>,
}

/// Why an attempt failed, and what may make the next one succeed.
#[derive(Debug)]
pub(super) enum Failure {
    /// Time; the source may have asked for some.
    Passing { error: StoreError, asked: Option<Duration> },
    /// The source's clock.
    Clock { error: StoreError, theirs: DateTime<Utc> },
    /// Other credentials.
    Credential { error: StoreError, used: Arc<Credential> },
    /// Nothing.
    Final(StoreError),
}

impl Failure {
    pub(super) fn passing(error: StoreError) -> Self {
        Self::Passing { error, asked: None }
    }
}

/// What is left of the patience with one request or body.
#[derive(Debug)]
pub(super) struct Budget {
    attempts: Attempts,
    since: Instant,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self { attempts: Attempts::default(), since: Instant::now() }
    }

    /// Bytes came: the budget is whole again.
    pub(super) fn progress(&mut self) {
        self.attempts.progress();
        self.since = Instant::now();
    }
}

/// The client of one bucket.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) dialect: Dialect,
    pub(super) endpoint: Endpoint,
    /// `None` to ask anonymously.
    pub(super) credentials: Option<Arc<Credentials>>,
    pub(super) transport: Transport,
    pub(super) policy: RetryPolicy,
    pub(super) meter: Arc<Meter>,
    /// Turns to send a request, if there is a limit.
    pub(super) turns: Option<Arc<Turns>>,
    /// The largest piece of a body that is handed out, in bytes.
    pub(super) max_frame: usize,
    /// The source's clock less ours, in milliseconds.
    pub(super) clock_offset: Arc<AtomicI64>,
    /// Whether the source has ever answered.
    pub(super) answered: Arc<AtomicBool>,
}

impl Client {
    /// The same with connections of its own.
    pub(super) fn apart(&self) -> Self {
        Self { transport: self.transport.apart(), ..self.clone() }
    }

    pub(super) fn subject(&self, key: Option<&Key>) -> Box<Subject> {
        Box::new(Subject { bucket: self.endpoint.bucket().clone(), key: key.cloned() })
    }

    /// Waits until a request may be sent.
    pub(super) async fn turn(&self) {
        if let Some(turns) = &self.turns {
            turns.turn().await;
        }
    }

    /// Makes one attempt; an answer other than 2xx is a failure.
    pub(super) async fn once(&self, ask: &Ask) -> Result<Response<Arriving>, Failure> {
        let credential = match &self.credentials {
            None => None,
            Some(credentials) => {
                Some(credentials.get().await.map_err(|error| match error.class() {
                    super::Class::Transient => Failure::passing(error),
                    _ => Failure::Final(error),
                })?)
            }
        };
        let request = self.request(ask, credential.as_deref()).map_err(Failure::Final)?;
        let authorization = request.headers().get(AUTHORIZATION).cloned();
        Meter::count(match ask.kind {
            Kind::List => &self.meter.list,
            Kind::Get => &self.meter.get,
            Kind::Head => &self.meter.head,
        });
        let sent = Instant::now();
        let response = self
            .transport
            .send(request, self.policy.first_byte_timeout)
            .await
            .map_err(|error| self.unsent(ask, error))?;
        self.answered.store(true, Ordering::Relaxed);
        if response.status().is_success() {
            if ask.kind == Kind::Get {
                self.meter.add_first_byte(sent.elapsed());
            }
            if ask.kind != Kind::List {
                Meter::count(&self.meter.granted);
            }
            if response.headers().contains_key(QOS_DELAY) {
                self.throttled(ask.kind);
            }
            return Ok(response);
        }
        Err(self.refusal(ask, response, credential, authorization).await)
    }

    /// After a failed attempt: waits until the next one may be made.
    ///
    /// # Errors
    /// The failure itself once nothing is left to be tried.
    pub(super) async fn recover(
        &self,
        failure: Failure,
        budget: &mut Budget,
    ) -> Result<(), StoreError> {
        let attempts = &mut budget.attempts;
        match failure {
            Failure::Final(error) => return Err(error),
            Failure::Clock { error, theirs } => {
                // the second time because the first may have been told wrong
                if attempts.clock_set == 2 {
                    return Err(error);
                }
                attempts.clock_set += 1;
                let offset = clock_offset(theirs, Utc::now());
                self.clock_offset.store(offset, Ordering::Relaxed);
                tracing::warn!(offset_ms = offset, "clock corrected by the source's");
            }
            Failure::Credential { error, used } => {
                let credentials = self.credentials.as_ref();
                let (Some(credentials), false) =
                    (credentials, std::mem::replace(&mut attempts.refreshed, true))
                else {
                    return Err(error);
                };
                match credentials.replace(&used).await {
                    Ok(fresh) if fresh.is_same(&used) => return Err(error),
                    Ok(_) => {}
                    Err(error) if error.class() == super::Class::Transient => {
                        // who issues them is away for a moment: not the end of a run
                        attempts.refreshed = false;
                        self.wait(budget, error, None).await?;
                    }
                    Err(error) => return Err(error),
                }
            }
            Failure::Passing { error, asked } => self.wait(budget, error, asked).await?,
        }
        Meter::count(&self.meter.retries);
        Ok(())
    }

    /// Pauses before the next attempt, if there is one.
    async fn wait(
        &self,
        budget: &mut Budget,
        error: StoreError,
        asked: Option<Duration>,
    ) -> Result<(), StoreError> {
        let elapsed = budget.since.elapsed();
        let patient = self.answered.load(Ordering::Relaxed);
        let dice = rand::random::<f64>();
        let attempts = &mut budget.attempts;
        let Some(pause) = attempts.pause(&self.policy, asked, elapsed, patient, dice) else {
            return Err(error);
        };
        let (attempt, backoff_ms) = (attempts.failed(), pause.as_millis());
        // one failure is everyday life, three in a row are worth a look
        if attempt < 3 {
            tracing::debug!(attempt, backoff_ms, error = %chain(&error), "trying again");
        } else {
            tracing::warn!(attempt, backoff_ms, error = %chain(&error), "trying again");
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// Sends the request for a page until it is answered, and reads the answer's whole body.
    ///
    /// # Errors
    /// What `read` makes of the body, or the last failure.
    pub(super) async fn whole<T, R: Future<Output = Result<T, Failure>>>(
        &self,
        ask: &Ask,
        bound: usize,
        mut read: impl FnMut(Bytes) -> R,
    ) -> Result<T, StoreError> {
        let mut budget = Budget::new();
        let granted = || self.meter.granted.load(Ordering::Relaxed);
        let mut seen = granted();
        loop {
            let attempt = async {
                let body = self.hedged(ask).await?.into_body();
                let stall = self.policy.stall_timeout;
                let body = read_body(body, bound, stall, stall.saturating_mul(WHOLE)).await;
                read(body.map_err(|error| self.unread(ask, error))?).await
            };
            match attempt.await {
                Ok(read) => return Ok(read),
                Err(failure) => {
                    let now = granted();
                    if now > seen {
                        // not away: it serves objects, of which a page names the next thousand
                        seen = now;
                        budget.attempts.hasten();
                    }
                    self.recover(failure, &mut budget).await?;
                }
            }
        }
    }

    fn request(
        &self,
        ask: &Ask,
        credential: Option<&Credential>,
    ) -> Result<Request<Bytes>, StoreError> {
        let key = ask.key.as_ref().map(Key::as_str);
        let method = if ask.kind == Kind::Head { Method::HEAD } else { Method::GET };
        let value = |text: &str| {
            HeaderValue::from_str(text).map_err(|_| StoreError::Malformed {
                subject: self.subject(ask.key.as_ref()),
                reason: "a value does not fit into a header".to_owned(),
            })
        };
        let mut headers = HeaderMap::with_capacity(12);
        headers.insert(HOST, value(self.endpoint.host())?);
        headers.insert(
            USER_AGENT,
            HeaderValue::from_static(concat!("ossvp/", env!("CARGO_PKG_VERSION"))),
        );
        for (name, text) in &ask.headers {
            headers.insert(name, value(text)?);
        }
        if let Some(credential) = credential {
            let time = their_time(Utc::now(), self.clock_offset.load(Ordering::Relaxed));
            let [date, digest, token] = match self.dialect {
                Dialect::S3 => AMZ,
                Dialect::Oss | Dialect::File => OSS,
            };
            headers.insert(date, value(&sign::timestamp(time))?);
            headers.insert(digest, HeaderValue::from_static(UNSIGNED_PAYLOAD));
            if let Some(secret) = &credential.token {
                let mut secret = value(secret)?;
                secret.set_sensitive(true);
                headers.insert(token, secret);
            }
            let mut authorization =
                value(&self.authorization(&method, key, &ask.query, &headers, credential, time))?;
            authorization.set_sensitive(true);
            headers.insert(AUTHORIZATION, authorization);
        }
        let mut request = Request::new(Bytes::new());
        *request.method_mut() = method;
        *request.uri_mut() = self.endpoint.url(key, &ask.query)?;
        *request.headers_mut() = headers;
        Ok(request)
    }

    /// Signs what the dialect demands: all its own headers, and for S3 the host. Anything more would
    /// break behind gateways that rewrite it, and is what the official SDKs leave out too.
    fn authorization(
        &self,
        method: &Method,
        key: Option<&str>,
        query: &[(&'static str, String)],
        headers: &HeaderMap,
        credential: &Credential,
        time: DateTime<Utc>,
    ) -> String {
        let signed: Vec<(&str, &str)> = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap_or_default()))
            .filter(|(name, _)| match self.dialect {
                Dialect::S3 => *name == "host" || name.starts_with("x-amz-"),
                Dialect::Oss | Dialect::File => name.starts_with("x-oss-"),
            })
            .collect();
        let region = self.endpoint.region();
        let unsigned = Unsigned {
            dialect: self.dialect,
            region,
            time,
            method: method.as_str(),
            bucket: self.endpoint.bucket().as_str(),
            key,
            path_style: self.endpoint.path_style(),
            query,
            headers: &signed,
        };
        let signing_key = credential.signing_key(self.dialect, &sign::day(time), region);
        unsigned.authorization(&credential.id, &signing_key)
    }

    fn throttled(&self, kind: Kind) {
        Meter::count(&self.meter.throttled);
        if kind != Kind::List {
            Meter::count(&self.meter.refused);
        }
    }

    fn unsent(&self, ask: &Ask, error: SendError) -> Failure {
        let host = self.endpoint.host().to_owned();
        match error {
            SendError::Certificate(source) => {
                Failure::Final(StoreError::Certificate { host, source })
            }
            SendError::Connect(source) => {
                let hint = if is_plain(&*source) {
                    ": it does not speak TLS there; check the port, or begin --endpoint with http://"
                } else if self.endpoint.is_internal() {
                    ": an -internal endpoint can be reached only from its own region's VPC"
                } else if self.endpoint.puts_bucket_before_foreign_host() {
                    ": check the endpoint's name and the network; if it has no host for each bucket, take --addressing path"
                } else {
                    ": check the endpoint's name and the network"
                };
                Failure::passing(StoreError::Unreachable { host, hint, source })
            }
            SendError::Broken(source) => {
                let subject = self.subject(ask.key.as_ref());
                Failure::passing(StoreError::Broken { subject, source })
            }
            SendError::Late => Failure::passing(StoreError::NoAnswer {
                subject: self.subject(ask.key.as_ref()),
                seconds: self.policy.first_byte_timeout.as_secs(),
            }),
        }
    }

    fn unread(&self, ask: &Ask, error: BodyError) -> Failure {
        let subject = self.subject(ask.key.as_ref());
        Failure::passing(match error {
            BodyError::Broken(source) => StoreError::Broken { subject, source },
            BodyError::Late => {
                let seconds = self.policy.stall_timeout.as_secs();
                StoreError::NoAnswer { subject, seconds }
            }
            BodyError::Long => {
                let reason = "the answer is longer than any of its kind".to_owned();
                StoreError::Malformed { subject, reason }
            }
        })
    }

    async fn refusal(
        &self,
        ask: &Ask,
        response: Response<Arriving>,
        credential: Option<Arc<Credential>>,
        authorization: Option<HeaderValue>,
    ) -> Failure {
        let (parts, body) = response.into_parts();
        // a refusal that cannot be read still has its status
        let stall = self.policy.stall_timeout;
        let body = read_body(body, MAX_REFUSAL, stall, stall).await;
        let cut = matches!(body, Err(BodyError::Broken(_) | BodyError::Late));
        let body = body.unwrap_or_default();
        let authorization = authorization.as_ref().and_then(|value| value.to_str().ok());
        let signature = authorization.and_then(|text| Some(text.split_once("Signature=")?.1));
        let mut secrets = vec![authorization.unwrap_or_default(), signature.unwrap_or_default()];
        secrets.extend(credential.iter().flat_map(|credential| credential.secrets()));
        let answer = Answer::read(parts.status, &parts.headers, &body, &secrets);
        let asked = delay(&parts.headers, Utc::now());
        if parts.headers.contains_key(QOS_DELAY)
            || matches!(answer.status, 429 | 503)
            || is_throttling(answer.code())
        {
            self.throttled(ask.kind);
        }
        let temporary = credential.as_ref().is_some_and(|credential| credential.token.is_some());
        let asked_for = Asked {
            dialect: self.dialect,
            kind: ask.kind,
            subject: self.subject(ask.key.as_ref()),
            host: self.endpoint.host(),
            region: self.endpoint.region(),
            temporary,
            anonymous: credential.is_none(),
        };
        match judge(asked_for, answer) {
            Verdict::Passing(error) => Failure::Passing { error, asked },
            // the code that did not arrive may have been one against which something helps
            Verdict::Final(error) if cut => Failure::Passing { error, asked },
            Verdict::Final(error) => Failure::Final(error),
            Verdict::Clock(error) => match http_date(&parts.headers, "date").filter(is_plausible) {
                Some(theirs) => Failure::Clock { error, theirs },
                // it may say the time when it is asked again
                None => Failure::passing(error),
            },
            Verdict::Credential(error) => match credential {
                Some(used) => Failure::Credential { error, used },
                None => Failure::Final(error),
            },
        }
    }
}

/// The source's clock less ours, in milliseconds.
pub(super) fn clock_offset(theirs: DateTime<Utc>, now: DateTime<Utc>) -> i64 {
    (theirs - now).num_milliseconds()
}

/// What the source's clock shows; ours, where theirs has come to the end of time.
pub(super) fn their_time(now: DateTime<Utc>, offset_ms: i64) -> DateTime<Utc> {
    let offset = TimeDelta::try_milliseconds(offset_ms);
    offset.and_then(|offset| now.checked_add_signed(offset)).unwrap_or(now)
}

/// Whether a clock may show this: one wrong answer must not set the clock of all other requests to
/// where nothing is signed.
pub(super) fn is_plausible(time: &DateTime<Utc>) -> bool {
    (2020..2200).contains(&time.year())
}

/// How long the source asks to be left alone.
pub(super) fn delay(headers: &HeaderMap, now: DateTime<Utc>) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).map(str::trim);
    let qos =
        text("x-oss-qos-delay-time").and_then(|ms| ms.parse().ok()).map(Duration::from_millis);
    let after = text("retry-after").and_then(|text| match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => (http_date(headers, "retry-after")? - now).to_std().ok(),
    });
    qos.max(after)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_clock_at_the_end_of_time_is_not_followed() {
        let now = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        let later = now + TimeDelta::seconds(3);
        let end = DateTime::<Utc>::MAX_UTC;
        assert_eq!(their_time(later, clock_offset(end, now)), later);
        assert_eq!(their_time(later, i64::MIN), later);
        assert_eq!(their_time(later, clock_offset(now, later)), now);
    }

    #[test]
    fn the_longer_of_two_delays_counts() {
        let now = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        let asked = |pairs: &[(&'static str, &'static str)]| {
            let pair = |(name, value): &(&'static str, &'static str)| {
                (HeaderName::from_static(name), HeaderValue::from_static(value))
            };
            delay(&pairs.iter().map(pair).collect(), now)
        };
        let qos = ("x-oss-qos-delay-time", "1500");
        assert_eq!(asked(&[]), None);
        assert_eq!(asked(&[qos]), Some(Duration::from_millis(1500)));
        assert_eq!(asked(&[qos, ("retry-after", "1")]), Some(Duration::from_millis(1500)));
        assert_eq!(asked(&[qos, ("retry-after", "2")]), Some(Duration::from_secs(2)));
        let date = ("retry-after", "Tue, 14 Nov 2023 22:13:30 GMT");
        assert_eq!(asked(&[date]), Some(Duration::from_secs(10)));
        assert_eq!(asked(&[("retry-after", "Tue, 14 Nov 2023 22:13:10 GMT")]), None);
        assert_eq!(asked(&[("retry-after", "soon")]), None);
    }
}
