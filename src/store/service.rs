//! Alibaba Cloud's other services, asked with the connections, roots, proxies and credentials that
//! the source is asked with.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use reqsign_core::Env;

use crate::keys::Dialect;
use crate::lock::lock;

use super::RetryPolicy;
use super::answer::{clean, hide};
pub(crate) use super::credentials::Credential;
use super::credentials::Credentials;
use super::error::{Cause, StoreError};
use super::meter::Meter;
use super::providers::Chain;
pub(crate) use super::retry::Attempts;
use super::rrsa::Rrsa;
pub(crate) use super::sign::{encode, hmac};
use super::transport::{BodyError, Options, SendError, Transport, read_body};
use super::verdict;

/// Why there is no whole answer.
#[derive(Debug)]
pub(crate) enum Unanswered {
    /// No connection: nothing was asked.
    Connect(Cause),
    /// The host's certificate is not trusted: nothing was asked.
    Certificate(Cause),
    /// The connection broke: whether what was asked is done is not known.
    Broken(Cause),
    /// Nothing in time: whether what was asked is done is not known.
    Late,
    /// More than any answer has.
    Long,
}

/// What is needed to ask.
pub(crate) struct Service {
    env: Arc<dyn Env>,
    transport: Transport,
    policy: RetryPolicy,
    vpc: bool,
    /// By the region whose STS gives them: where only the region's own network is reached, no
    /// other one answers.
    credentials: Mutex<BTreeMap<String, Arc<Credentials>>>,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("vpc", &self.vpc).finish_non_exhaustive()
    }
}

impl Service {
    /// `vpc`: credentials are asked for at internal endpoints.
    ///
    /// # Errors
    /// [`StoreError::CaBundle`] and [`StoreError::Proxy`].
    pub(crate) fn new(
        env: Arc<dyn Env>,
        ca_bundle: Option<&Path>,
        policy: RetryPolicy,
        vpc: bool,
    ) -> Result<Self, StoreError> {
        let transport = Transport::new(&Options {
            env: env.as_ref(),
            ca_bundle,
            connect_timeout: policy.connect_timeout,
            answer_timeout: policy.connect_timeout,
            proxied: true,
        })?;
        Ok(Self { env, transport, policy, vpc, credentials: Mutex::default() })
    }

    /// The credential to sign with now.
    ///
    /// # Errors
    /// As [`StoreError::class`] tells: what the chain of the source's credentials says.
    pub(crate) async fn credential(&self, region: &str) -> Result<Arc<Credential>, StoreError> {
        self.of(region)?.get().await
    }

    /// The credential after `used` was refused: another one, or `used` itself again where there is
    /// no other.
    ///
    /// # Errors
    /// As [`Self::credential`].
    pub(crate) async fn another(
        &self,
        region: &str,
        used: &Arc<Credential>,
    ) -> Result<Arc<Credential>, StoreError> {
        self.of(region)?.replace(used).await
    }

    fn of(&self, region: &str) -> Result<Arc<Credentials>, StoreError> {
        let mut all = lock(&self.credentials);
        if let Some(known) = all.get(region) {
            return Ok(known.clone());
        }
        let timeout = self.policy.first_byte_timeout;
        let rrsa = Rrsa::new(self.transport.clone(), region, self.vpc, timeout);
        let chain = Chain::new(Dialect::Oss, self.env.clone(), rrsa)?;
        let new = Credentials::new(chain, self.policy.refresh_ahead, Arc::new(Meter::default()));
        all.insert(region.to_owned(), new.clone());
        Ok(new)
    }

    /// Sends a request; its answer has at most `bound` bytes.
    pub(crate) async fn ask(
        &self,
        request: Request<Bytes>,
        bound: usize,
    ) -> Result<Response<Bytes>, Unanswered> {
        let timeout = self.policy.first_byte_timeout;
        let sent = self.transport.send(request, timeout).await;
        let (parts, body) = sent
            .map_err(|error| match error {
                SendError::Connect(cause) => Unanswered::Connect(cause),
                SendError::Certificate(cause) => Unanswered::Certificate(cause),
                SendError::Broken(cause) => Unanswered::Broken(cause),
                SendError::Late => Unanswered::Late,
            })?
            .into_parts();
        let body = read_body(body, bound, self.policy.stall_timeout, timeout).await;
        let body = body.map_err(|error| match error {
            BodyError::Broken(cause) => Unanswered::Broken(cause),
            BodyError::Late => Unanswered::Late,
            BodyError::Long => Unanswered::Long,
        })?;
        Ok(Response::from_parts(parts, body))
    }
}

/// What may be shown of a service's words: one line, without the secrets it quotes.
pub(crate) fn shown(text: &str, credential: &Credential) -> String {
    clean(&hide(text.to_owned(), credential.secrets().into_iter()))
}

/// Whether an answer's status is one that a later attempt may not get.
pub(crate) fn is_passing(status: u16) -> bool {
    StatusCode::from_u16(status).is_ok_and(verdict::is_passing)
}
