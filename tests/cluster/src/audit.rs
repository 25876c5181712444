//! Who asked the API server for what, and what it answered.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::Error;
use crate::wait::{Look, until};

/// Metadata of every request, and the bodies of those that change something.
pub(crate) const POLICY: &str = r#"{
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "Request", "verbs": ["create", "update", "patch", "delete", "deletecollection"]},
        {"level": "Metadata"}
    ]
}"#;

/// How long an event may take to reach the file after the client has its answer: it is written in
/// the request's last moments, so only a stalled machine needs it all.
const LIMIT: Duration = Duration::from_secs(10);

/// A request that the API server has answered.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct AuditEvent {
    /// Who asked, e.g. `system:serviceaccount:default:default`. The name that is impersonated, if
    /// one is.
    pub user: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete` or `deletecollection`.
    pub verb: String,
    /// The plural, e.g. `pods`; empty for what is no resource, e.g. `/readyz`.
    pub resource: String,
    /// E.g. `status`; empty for the resource itself.
    pub subresource: String,
    /// Empty for what has none.
    pub namespace: String,
    /// Empty for lists, and for what is created (see `request`).
    pub name: String,
    /// The HTTP status of the answer; 0 while a watch goes on.
    pub code: u16,
    /// The path and the query.
    pub uri: String,
    /// The client's `User-Agent`.
    pub agent: String,
    /// The request's body, of requests that change something.
    pub request: Option<Value>,
    /// The event as the server wrote it.
    pub raw: Value,
}

impl AuditEvent {
    fn parse(line: &str) -> Option<Self> {
        let raw: Value = serde_json::from_str(line).ok()?;
        let text = |pointer: &str| raw.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let user = raw
            .pointer("/impersonatedUser/username")
            .and_then(Value::as_str)
            .unwrap_or_else(|| text("/user/username"));
        let code = raw.pointer("/responseStatus/code").and_then(Value::as_u64).unwrap_or(0);
        Some(Self {
            user: user.to_owned(),
            verb: text("/verb").to_owned(),
            resource: text("/objectRef/resource").to_owned(),
            subresource: text("/objectRef/subresource").to_owned(),
            namespace: text("/objectRef/namespace").to_owned(),
            name: text("/objectRef/name").to_owned(),
            code: u16::try_from(code).unwrap_or(0),
            uri: text("/requestURI").to_owned(),
            agent: text("/userAgent").to_owned(),
            request: raw.get("requestObject").cloned(),
            raw,
        })
    }
}

/// The audit log of a cluster: one JSON object a line.
#[derive(Debug, Clone)]
pub struct Audit(PathBuf);

impl Audit {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// All events so far, in the order in which they ended. A watch is there twice: begun and ended.
    ///
    /// # Errors
    ///
    /// If the file cannot be read.
    pub fn events(&self) -> Result<Vec<AuditEvent>, Error> {
        let text = match std::fs::read_to_string(&self.0) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            read => read.map_err(Error::file("read", &self.0))?,
        };
        // a line that is being written has no end yet
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        Ok(whole.lines().filter_map(AuditEvent::parse).collect())
    }

    /// Waits for an event: an answer may arrive before its event is written.
    ///
    /// # Errors
    ///
    /// [`Error::Late`] if there is none within 10 s.
    pub fn wait(
        &self,
        what: &str,
        matches: impl Fn(&AuditEvent) -> bool,
    ) -> Result<AuditEvent, Error> {
        until(
            &format!("an audit event of {what}"),
            LIMIT,
            || {
                let events = self.events()?;
                let seen = format!("{} other events", events.len());
                Ok(events.into_iter().find(&matches).map_or(Look::NotYet(seen), Look::Done))
            },
            String::new,
        )
    }
}
