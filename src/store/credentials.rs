//! Who asks: the access key, where it comes from, and when it is fetched anew.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use crate::keys::Dialect;
use crate::lock::lock;

use super::error::StoreError;
use super::meter::Meter;
use super::providers::Chain;
use super::sign::{self, SigningKey};

/// The pause between refreshes ahead of the expiry: where one fails, or brings the same again, the
/// requests that go on must not each try it; in five minutes there are thirty.
const REFRESH_PAUSE: Duration = Duration::from_secs(10);

/// An access key, with the token and the expiry of a temporary one.
pub(crate) struct Credential {
    pub(crate) id: String,
    secret: String,
    pub(crate) token: Option<String>,
    expires: Option<DateTime<Utc>>,
    /// The key that signs one day's requests, and that day; derived at its first request.
    signing_key: Mutex<Option<(String, SigningKey)>>,
}

/// Shows neither the secret nor the token.
impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("id", &self.id)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

impl Credential {
    pub(super) fn new(
        id: String,
        secret: String,
        token: Option<String>,
        expires: Option<DateTime<Utc>>,
    ) -> Self {
        Self { id, secret, token, expires, signing_key: Mutex::default() }
    }

    /// The key that signs requests of `day`.
    pub(super) fn signing_key(&self, dialect: Dialect, day: &str, region: &str) -> SigningKey {
        let mut cached = lock(&self.signing_key);
        match cached.as_ref() {
            Some((cached_day, key)) if cached_day == day => key.clone(),
            _ => {
                let key = sign::signing_key(dialect, &self.secret, day, region);
                *cached = Some((day.to_owned(), key.clone()));
                key
            }
        }
    }

    /// What signs.
    pub(crate) fn secret(&self) -> &str {
        &self.secret
    }

    /// What must not be shown.
    pub(crate) fn secrets(&self) -> [&str; 2] {
        [&self.secret, self.token.as_deref().unwrap_or_default()]
    }

    /// Whether both would sign alike.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        (&self.id, &self.secret, &self.token) == (&other.id, &other.secret, &other.token)
    }

    fn lives(&self, now: DateTime<Utc>, ahead: Duration) -> bool {
        let ahead = chrono::Duration::from_std(ahead).unwrap_or(chrono::Duration::MAX);
        self.expires.is_none_or(|expires| expires - now > ahead)
    }
}

/// The credentials of one source: fetched at the first request, refreshed in the background ahead
/// of their expiry by one task at a time; the old ones serve until they expire.
#[derive(Debug)]
pub(super) struct Credentials {
    chain: Chain,
    ahead: Duration,
    meter: Arc<Meter>,
    current: Mutex<Option<Arc<Credential>>>,
    /// When a refresh ahead of the expiry was last begun.
    refreshed: Mutex<Option<Instant>>,
    /// Held while fetching.
    fetching: tokio::sync::Mutex<()>,
}

impl Credentials {
    pub(super) fn new(chain: Chain, ahead: Duration, meter: Arc<Meter>) -> Arc<Self> {
        Arc::new(Self {
            chain,
            ahead,
            meter,
            current: Mutex::default(),
            refreshed: Mutex::default(),
            fetching: tokio::sync::Mutex::default(),
        })
    }

    /// The credential to sign with now.
    ///
    /// # Errors
    /// What the chain says if there is none that is still valid.
    pub(super) async fn get(self: &Arc<Self>) -> Result<Arc<Credential>, StoreError> {
        let now = Utc::now();
        match self.current() {
            Some(credential) if credential.lives(now, self.ahead) => Ok(credential),
            Some(credential) if credential.lives(now, Duration::ZERO) => {
                self.refresh_behind();
                Ok(credential)
            }
            _ => self.fetch(|current| !current.lives(now, Duration::ZERO)).await,
        }
    }

    /// The credential after the source refused `used`: another one, or `used` itself again where
    /// there is no other.
    pub(super) async fn replace(
        self: &Arc<Self>,
        used: &Arc<Credential>,
    ) -> Result<Arc<Credential>, StoreError> {
        self.fetch(|current| Arc::ptr_eq(current, used)).await
    }

    fn current(&self) -> Option<Arc<Credential>> {
        lock(&self.current).clone()
    }

    fn refresh_behind(self: &Arc<Self>) {
        {
            let mut tried = lock(&self.refreshed);
            if tried.is_some_and(|tried| tried.elapsed() < REFRESH_PAUSE) {
                return;
            }
            *tried = Some(Instant::now());
        }
        let this = self.clone();
        tokio::spawn(async move {
            let ahead = this.ahead;
            if let Err(error) = this.fetch(|current| !current.lives(Utc::now(), ahead)).await {
                tracing::warn!(%error, "credentials not refreshed, the old ones serve on");
            }
        });
    }

    /// Fetches unless somebody else did meanwhile, that is, unless `stale` denies it of the current
    /// one.
    async fn fetch(
        &self,
        stale: impl Fn(&Arc<Credential>) -> bool,
    ) -> Result<Arc<Credential>, StoreError> {
        let _fetching = self.fetching.lock().await;
        if let Some(current) = self.current().filter(|current| !stale(current)) {
            return Ok(current);
        }
        Meter::count(&self.meter.credentials);
        let mut fetched = self.chain.fetch().await?;
        if !fetched.lives(Utc::now(), Duration::ZERO) {
            // our clock is wrong: they serve until the source refuses them
            tracing::warn!(expires = ?fetched.expires, "credentials already expired when they came");
            fetched.expires = None;
        }
        let fetched = Arc::new(fetched);
        tracing::debug!(expires = ?fetched.expires, "credentials fetched");
        *lock(&self.current) = Some(fetched.clone());
        Ok(fetched)
    }
}
