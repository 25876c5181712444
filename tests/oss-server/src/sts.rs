//! Where temporary credentials come from: STS and the instance's metadata service.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};

use crate::reply::Reply;
use crate::request::{Call, decode_query};
use crate::store::{Credential, Store};
use crate::synthetic::mix;

/// Whom STS believes, and what the metadata service says.
#[derive(Debug, Default)]
pub(crate) struct Config {
    pub(crate) role_arn: Option<String>,
    pub(crate) provider_arn: Option<String>,
    pub(crate) oidc_token: Option<String>,
    /// What else is asked of a token.
    pub(crate) oidc_check: Option<fn(&str) -> bool>,
    /// How long issued credentials live, whatever a request asks for.
    pub(crate) lifetime: Option<TimeDelta>,
    pub(crate) instance_role: Option<String>,
    /// Whether the metadata service answers only who shows its token.
    pub(crate) hardened: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Sts {
    config: Mutex<Config>,
    issued: AtomicU64,
}

/// A refusal in the manner of Alibaba Cloud's OpenAPI.
struct Refusal(u16, &'static str, String);

impl Sts {
    pub(crate) fn new(config: Config) -> Self {
        Self { config: Mutex::new(config), issued: AtomicU64::new(0) }
    }

    pub(crate) fn config(&self) -> MutexGuard<'_, Config> {
        self.config.lock().expect("no panic while the lock is held")
    }

    /// How many sets of credentials were handed out.
    pub(crate) fn issued(&self) -> u64 {
        self.issued.load(Relaxed)
    }

    /// AssumeRoleWithOIDC, its parameters in the query or in a form.
    pub(crate) fn assume_role(
        &self,
        store: &Store,
        call: &Call,
        body: &[u8],
        now: DateTime<Utc>,
        id: &str,
    ) -> Reply {
        let form = std::str::from_utf8(body).ok().and_then(|body| decode_query(body).ok());
        let form = form.unwrap_or_default();
        let parameter = |name: &str| {
            let in_form = form.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str());
            call.query(name).or(in_form).unwrap_or("")
        };
        let json = parameter("Format").eq_ignore_ascii_case("json");
        match self.check(&parameter) {
            Ok(lifetime) => {
                let (key_id, key, expires) = self.issue(store, lifetime, now);
                let fields = [
                    ("AccessKeyId", key_id.as_str()),
                    ("AccessKeySecret", &key.secret),
                    ("SecurityToken", key.token.as_deref().unwrap_or("")),
                    ("Expiration", &expires),
                ];
                let role = parameter("RoleArn");
                let session = parameter("RoleSessionName");
                if json {
                    let fields: serde_json::Map<_, _> =
                        fields.map(|(k, v)| (k.to_owned(), v.into())).into_iter().collect();
                    let answer = serde_json::json!({
                        "RequestId": id,
                        "AssumedRoleUser": { "Arn": format!("{role}/{session}"), "AssumedRoleId": "33157794895460****" },
                        "Credentials": fields,
                    });
                    Reply::json(200, answer.to_string())
                } else {
                    let fields = fields.map(|(k, v)| format!("<{k}>{v}</{k}>")).concat();
                    Reply::xml(format!(
                        "<?xml version='1.0' encoding='UTF-8'?><AssumeRoleWithOIDCResponse>\
                         <RequestId>{id}</RequestId><Credentials>{fields}</Credentials>\
                         </AssumeRoleWithOIDCResponse>"
                    ))
                }
            }
            Err(Refusal(status, code, message)) if json => {
                let answer = serde_json::json!({
                    "RequestId": id, "HostId": call.host, "Code": code, "Message": message,
                });
                Reply::json(status, answer.to_string())
            }
            Err(Refusal(status, code, message)) => {
                let mut reply = Reply::xml(format!(
                    "<?xml version='1.0' encoding='UTF-8'?><Error><RequestId>{id}</RequestId>\
                     <HostId>{}</HostId><Code>{code}</Code><Message>{message}</Message></Error>",
                    call.host
                ));
                reply.status = status;
                reply
            }
        }
    }

    fn check<'a>(&self, parameter: &impl Fn(&str) -> &'a str) -> Result<TimeDelta, Refusal> {
        let config = self.config();
        let action = parameter("Action");
        if action != "AssumeRoleWithOIDC" {
            let message = format!("Specified api {action} is not found.");
            return Err(Refusal(404, "InvalidAction.NotFound", message));
        }
        if parameter("Version") != "2015-04-01" {
            let message = "Specified parameter Version is not valid.".into();
            return Err(Refusal(400, "InvalidParameter", message));
        }
        for name in ["RoleArn", "OIDCProviderArn", "OIDCToken", "RoleSessionName"] {
            if parameter(name).is_empty() {
                let message = format!("{name} is mandatory for this action.");
                return Err(Refusal(400, "MissingParameter", message));
            }
        }
        let differs = |configured: &Option<String>, name| {
            configured.as_ref().is_some_and(|value| value != parameter(name))
        };
        if config.role_arn.is_none() || differs(&config.role_arn, "RoleArn") {
            let message = "The specified Role not exists.".into();
            return Err(Refusal(404, "EntityNotExist.Role", message));
        }
        if differs(&config.provider_arn, "OIDCProviderArn") {
            let message = "The OIDC Provider does not exist.".into();
            return Err(Refusal(404, "EntityNotExist.OIDCProvider", message));
        }
        let refused = config.oidc_check.is_some_and(|check| !check(parameter("OIDCToken")));
        if refused || differs(&config.oidc_token, "OIDCToken") {
            let message = "This JWT is invalid.".into();
            return Err(Refusal(400, "AuthenticationFail.OIDCToken.Invalid", message));
        }
        let asked = match parameter("DurationSeconds") {
            "" => 3600,
            text => text.parse().ok().filter(|s| *s >= 900).ok_or_else(|| {
                let message = "The Min/Max value of DurationSeconds is 15min/1hr.".into();
                Refusal(400, "InvalidParameter.DurationSeconds", message)
            })?,
        };
        Ok(config.lifetime.unwrap_or(TimeDelta::seconds(asked)))
    }

    /// Makes a key pair that the server accepts until it expires.
    fn issue(
        &self,
        store: &Store,
        lifetime: TimeDelta,
        now: DateTime<Utc>,
    ) -> (String, Credential, String) {
        let n = self.issued.fetch_add(1, Relaxed) + 1;
        let seed = mix(n ^ now.timestamp_micros() as u64);
        let id = format!("STS.{n}{:016x}", mix(seed));
        let credential = Credential {
            secret: format!("{:016x}{:016x}", mix(seed ^ 1), mix(seed ^ 2)),
            // The characters of a real token: ones that a query or form must encode.
            token: Some(format!("CAIS+{:016x}/{n}==", mix(seed ^ 3))),
            expires: Some(now + lifetime),
            allowed: true,
        };
        store
            .credentials
            .write()
            .expect("no panic while the lock is held")
            .insert(id.clone(), credential.clone());
        (id, credential, (now + lifetime).to_rfc3339_opts(SecondsFormat::Secs, true))
    }

    /// The metadata service of an ECS instance with a RAM role.
    pub(crate) fn metadata(&self, store: &Store, call: &Call, now: DateTime<Utc>) -> Reply {
        const TOKEN: &str = "AQAAAMETADATATOKEN==";
        let (role, hardened, lifetime) = {
            let config = self.config();
            let lifetime = config.lifetime.unwrap_or(TimeDelta::hours(6));
            (config.instance_role.clone(), config.hardened, lifetime)
        };
        let text = |status: u16, text: &str| {
            let mut reply = Reply::new(status).header("content-type", "text/plain");
            reply.body = crate::body::Payload::text(text.to_owned());
            reply
        };
        let path = call.raw_path.as_str();
        if path == "/latest/api/token" {
            return match (
                call.method.as_str(),
                call.header("x-aliyun-ecs-metadata-token-ttl-seconds"),
            ) {
                ("PUT", Some(_)) => text(200, TOKEN),
                ("PUT", None) => text(400, "missing ttl"),
                _ => text(405, ""),
            };
        }
        if hardened && call.header("x-aliyun-ecs-metadata-token") != Some(TOKEN) {
            return text(403, "forbidden");
        }
        let below = path.strip_prefix("/latest/meta-data/ram/security-credentials/");
        match (below, role) {
            (Some(""), Some(role)) => text(200, &role),
            (Some(asked), Some(role)) if asked == role => {
                let (id, key, expires) = self.issue(store, lifetime, now);
                let answer = serde_json::json!({
                    "AccessKeyId": id,
                    "AccessKeySecret": key.secret,
                    "Expiration": expires,
                    "SecurityToken": key.token,
                    "LastUpdated": now.to_rfc3339_opts(SecondsFormat::Secs, true),
                    "Code": "Success",
                });
                Reply::json(200, answer.to_string())
            }
            _ => text(404, "not found"),
        }
    }
}
