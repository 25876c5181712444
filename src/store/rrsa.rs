//! RRSA: a service account's token becomes credentials by STS `AssumeRoleWithOIDC`.
//!
//! The request is the official SDK's (credentials-go, `providers/oidc.go`): unsigned, the token in
//! the form.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use http::header::{CONTENT_TYPE, HOST};
use http::{Request, StatusCode, Uri};
use reqsign_core::Env;
use serde::Deserialize;

use super::answer::{clean, hide};
use super::credentials::Credential;
use super::endpoint::public;
use super::error::StoreError;
use super::providers::set;
use super::sign::encode;
use super::transport::{SendError, Transport, read_body};
use super::verdict::{is_passing, is_throttling};
use crate::telemetry::chain;

const PROVIDER: &str = "RRSA";

/// The form's field that holds a secret.
const TOKEN: &str = "OIDCToken";

/// An hour, which every role allows.
const DURATION: &str = "3600";

/// The longest answer that is read; real ones have some 3 KiB.
const MAX_ANSWER: usize = 64 * 1024;

/// What is needed to ask STS.
#[derive(Clone)]
pub(super) struct Rrsa {
    transport: Transport,
    region: String,
    vpc: bool,
    timeout: Duration,
}

impl fmt::Debug for Rrsa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rrsa").field("region", &self.region).field("vpc", &self.vpc).finish()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Assumed {
    credentials: Given,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Given {
    access_key_id: String,
    access_key_secret: String,
    security_token: String,
    expiration: DateTime<Utc>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Refused {
    code: String,
    message: String,
    request_id: String,
}

impl Rrsa {
    /// `vpc`: the source is asked by its region's internal endpoint, so STS is too.
    pub(super) fn new(transport: Transport, region: &str, vpc: bool, timeout: Duration) -> Self {
        Self { transport, region: region.to_owned(), vpc, timeout }
    }

    /// Credentials, or `None` where the environment names no token.
    pub(super) async fn fetch(&self, env: &dyn Env) -> Result<Option<Credential>, StoreError> {
        const TOKEN_FILE: &str = "ALIBABA_CLOUD_OIDC_TOKEN_FILE";
        let Some(token_file) = set(env, TOKEN_FILE) else { return Ok(None) };
        let need = |missing| {
            set(env, missing).ok_or(StoreError::HalfCredentials { set: TOKEN_FILE, missing })
        };
        let role = need("ALIBABA_CLOUD_ROLE_ARN")?;
        let provider = need("ALIBABA_CLOUD_OIDC_PROVIDER_ARN")?;
        // the kubelet replaces it, so it is read each time
        let token = tokio::fs::read_to_string(&token_file)
            .await
            .map_err(|error| refuse(format!("cannot read the token {token_file}: {error}")))?;
        let session = set(env, "ALIBABA_CLOUD_ROLE_SESSION_NAME");
        let form = [
            ("RoleArn", role.as_str()),
            ("OIDCProviderArn", &provider),
            (TOKEN, token.trim()),
            ("RoleSessionName", session.as_deref().unwrap_or("ossvp")),
            ("DurationSeconds", DURATION),
        ];
        self.assume(&self.endpoint(env)?, &form).await.map(Some)
    }

    fn endpoint(&self, env: &dyn Env) -> Result<Uri, StoreError> {
        let given = set(env, "ALIBABA_CLOUD_STS_ENDPOINT");
        let vpc = self.vpc
            || set(env, "ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED")
                .is_some_and(|on| on.eq_ignore_ascii_case("true"));
        let host = given.unwrap_or_else(|| match (self.region.as_str(), vpc) {
            ("", _) => "sts.aliyuncs.com".to_owned(),
            (region, true) => format!("sts-vpc.{region}.aliyuncs.com"),
            (region, false) => format!("sts.{region}.aliyuncs.com"),
        });
        let base = if host.contains("://") { host.clone() } else { format!("https://{host}") };
        let now = encode(&Utc::now().format("%Y-%m-%dT%H:%M:%SZ").to_string(), false);
        let query =
            format!("Action=AssumeRoleWithOIDC&Format=JSON&Version=2015-04-01&Timestamp={now}");
        format!("{}/?{query}", base.trim_end_matches('/'))
            .parse()
            .ok()
            .filter(|uri: &Uri| uri.authority().is_some_and(|at| !at.as_str().contains('@')))
            .ok_or_else(|| {
                let reason = "STS cannot be asked there";
                StoreError::Endpoint { given: public(&host), reason }
            })
    }

    async fn assume(&self, at: &Uri, form: &[(&str, &str)]) -> Result<Credential, StoreError> {
        let host = at.authority().map(|a| a.as_str().to_owned()).unwrap_or_default();
        let body: Vec<String> =
            form.iter().map(|(name, value)| format!("{name}={}", encode(value, false))).collect();
        let request = Request::post(at)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(HOST, &host)
            .body(Bytes::from(body.join("&")))
            .map_err(|_| refuse(format!("{host} cannot be asked")))?;
        let sent = self.transport.send(request, self.timeout).await;
        let response = sent.map_err(|error| match error {
            SendError::Late => passing(format!("no answer from {host}")),
            SendError::Certificate(cause) => {
                refuse(format!("the certificate of {host} is not trusted: {}", chain(&cause)))
            }
            SendError::Connect(cause) | SendError::Broken(cause) => {
                passing(format!("no connection with {host}: {}", chain(&cause)))
            }
        })?;
        let status = response.status();
        let body = read_body(response.into_body(), MAX_ANSWER, self.timeout, self.timeout).await;
        let body = body.map_err(|_| passing(format!("no whole answer from {host}")))?;
        let tokens = form.iter().filter(|(name, _)| *name == TOKEN).map(|(_, value)| *value);
        answered(&host, status, &body, tokens)
    }
}

/// What an answer of STS gives, or why not.
pub(super) fn answered<'a>(
    host: &str,
    status: StatusCode,
    body: &[u8],
    tokens: impl Iterator<Item = &'a str>,
) -> Result<Credential, StoreError> {
    if status.is_success() {
        // serde's message could quote the secret
        let assumed: Assumed = serde_json::from_slice(body)
            .map_err(|_| passing(format!("{host} answered something else than credentials")))?;
        let Given { access_key_id, access_key_secret, security_token, expiration } =
            assumed.credentials;
        let (token, expires) = (Some(security_token), Some(expiration));
        return Ok(Credential::new(access_key_id, access_key_secret, token, expires));
    }
    let Refused { code, message, request_id } = serde_json::from_slice(body).unwrap_or_default();
    let reason = format!(
        "{host} refused AssumeRoleWithOIDC ({} {code}: {message}, request id {request_id})",
        status.as_u16()
    );
    let reason = clean(&hide(reason, tokens));
    let later = is_passing(status) || is_throttling(&code);
    Err(if later { passing(reason) } else { refuse(reason) })
}

fn refuse(reason: String) -> StoreError {
    StoreError::Credentials { provider: PROVIDER, reason, transient: false }
}

fn passing(reason: String) -> StoreError {
    StoreError::Credentials { provider: PROVIDER, reason, transient: true }
}
