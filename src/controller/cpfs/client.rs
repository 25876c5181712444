//! Calls: signed, sent, judged, and sent again with the same token.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::Utc;
use http::header::{ACCEPT, AUTHORIZATION, HOST, USER_AGENT};
use http::uri::{Authority, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri};
use reqsign_core::{Env, OsEnv};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};

use crate::store::service::{Attempts, Credential, Service, Unanswered, shown};
use crate::store::{RetryPolicy, StoreError};
use crate::telemetry::chain;

use super::acs3::{Unsigned, digest_of, query_string, timestamp};
use super::error::NasError;
use super::filesets::{self, Fileset};
use super::flows::{self, DataFlow, NewDataFlow};
use super::page::{Listing, Page, listing, parameters};
use super::tasks::{self, NewTask, Task};

const VERSION: &str = "2017-06-26";

/// The longest answer that is read. A page of 100 tasks has some 100 KB, and their lists of entries
/// may have 64 KB each.
const MAX_ANSWER: usize = 8 << 20;

/// A pass over a claim must not hang on one call; what is not done by then is done by the next pass.
const LONGEST_CALL: Duration = Duration::from_secs(20);

/// How long the API wants to be left alone, in milliseconds (the official SDK's core, `client.py`).
const RETRY_AFTER: &str = "x-acs-retry-after";

/// The NAS API, in whatever region a call names.
#[derive(Debug)]
pub(crate) struct Nas {
    service: Service,
    /// Where it is asked, whatever the region.
    endpoint: Option<(Scheme, Authority)>,
    vpc: bool,
    policy: RetryPolicy,
    longest: Duration,
}

/// What a refusal says.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Refusal {
    code: String,
    message: String,
    request_id: String,
}

/// What the process brings; tests bring their own.
#[derive(Debug)]
pub(super) struct Surroundings {
    pub(super) env: Arc<dyn Env>,
    pub(super) policy: RetryPolicy,
    pub(super) longest: Duration,
}

impl Nas {
    /// With what the environment says: `NAS_ENDPOINT`, `ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED` (as
    /// `vpc`: internal endpoints), `OSSVP_CA_BUNDLE`, proxies, and the credentials as for a source.
    ///
    /// # Errors
    /// [`NasError::Endpoint`] and [`NasError::Setup`]. Credentials are first looked for by a call.
    pub(crate) fn from_env(vpc: bool) -> Result<Self, NasError> {
        let policy = RetryPolicy {
            connect_timeout: Duration::from_secs(5),
            first_byte_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(10),
            // the official SDK's order of size; five attempts take 3 s of pauses at most
            backoff_first: Duration::from_millis(200),
            backoff_max: Duration::from_secs(5),
            server_delay_max: Duration::from_secs(5),
            attempts: 5,
            ..RetryPolicy::default()
        };
        Self::within(Surroundings { env: Arc::new(OsEnv), policy, longest: LONGEST_CALL }, vpc)
    }

    pub(super) fn within(surroundings: Surroundings, vpc: bool) -> Result<Self, NasError> {
        let Surroundings { env, policy, longest } = surroundings;
        let set = |name: &str| {
            env.var(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
        };
        let endpoint = set("NAS_ENDPOINT").map(|given| endpoint(&given)).transpose()?;
        let vpc = vpc
            || set("ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED")
                .is_some_and(|on| on.eq_ignore_ascii_case("true"));
        let roots = set("OSSVP_CA_BUNDLE").map(PathBuf::from);
        let service = Service::new(env, roots.as_deref(), policy.clone(), vpc);
        let service = service.map_err(NasError::Setup)?;
        Ok(Self { service, endpoint, vpc, policy, longest })
    }

    /// Ties a directory to one of a bucket; its id.
    ///
    /// # Errors
    /// [`NasError`], as for all calls.
    pub(crate) async fn create_data_flow(
        &self,
        region: &str,
        new: &NewDataFlow,
    ) -> Result<String, NasError> {
        let created: flows::Created = self.call(region, "CreateDataFlow", new.query()).await?;
        Ok(created.data_flow_id)
    }

    /// All data flows of a file system.
    pub(crate) async fn describe_data_flows(
        &self,
        region: &str,
        file_system: &str,
    ) -> Result<Vec<DataFlow>, NasError> {
        let query = listing(file_system, None);
        self.list::<flows::Described>(region, "DescribeDataFlows", query).await
    }

    /// Begins to end a data flow. Its data stays in both places.
    pub(crate) async fn delete_data_flow(
        &self,
        region: &str,
        file_system: &str,
        flow: &str,
        token: &str,
    ) -> Result<(), NasError> {
        let query = parameters([
            ("FileSystemId", Some(file_system)),
            ("DataFlowId", Some(flow)),
            ("ClientToken", Some(token)),
        ]);
        self.call(region, "DeleteDataFlow", query).await.map(|_: Done| ())
    }

    /// Begins an import; the task's id.
    pub(crate) async fn create_data_flow_task(
        &self,
        region: &str,
        new: &NewTask,
    ) -> Result<String, NasError> {
        let created: tasks::Created = self.call(region, "CreateDataFlowTask", new.query()).await?;
        Ok(created.task_id)
    }

    /// All tasks of some data flows, with their reports.
    pub(crate) async fn describe_data_flow_tasks(
        &self,
        region: &str,
        file_system: &str,
        flows: &[&str],
    ) -> Result<Vec<Task>, NasError> {
        if flows.is_empty() {
            return Ok(vec![]);
        }
        let mut query = listing(file_system, Some(("DataFlowIds", &flows.join(","))));
        query.extend(parameters([("WithReports", Some("true"))]));
        let tasks = self.list::<tasks::Described>(region, "DescribeDataFlowTasks", query).await?;
        // a part of an id is a filter too
        Ok(tasks.into_iter().filter(|task| flows.contains(&task.flow.as_str())).collect())
    }

    /// Begins to stop a task.
    pub(crate) async fn cancel_data_flow_task(
        &self,
        region: &str,
        file_system: &str,
        flow: &str,
        task: &str,
        token: &str,
    ) -> Result<(), NasError> {
        let query = parameters([
            ("FileSystemId", Some(file_system)),
            ("DataFlowId", Some(flow)),
            ("TaskId", Some(task)),
            ("ClientToken", Some(token)),
        ]);
        self.call(region, "CancelDataFlowTask", query).await.map(|_: Done| ())
    }

    /// All filesets of a file system, or the one with this id.
    pub(crate) async fn describe_filesets(
        &self,
        region: &str,
        file_system: &str,
        fileset: Option<&str>,
    ) -> Result<Vec<Fileset>, NasError> {
        let query = listing(file_system, fileset.map(|id| ("FsetIds", id)));
        let found = self.list::<filesets::Described>(region, "DescribeFilesets", query).await?;
        let wanted = |found: &Fileset| fileset.is_none_or(|id| found.id == id);
        Ok(found.into_iter().filter(wanted).collect())
    }

    /// Every page.
    async fn list<L: Listing>(
        &self,
        region: &str,
        action: &'static str,
        query: Vec<(String, String)>,
    ) -> Result<Vec<L::Item>, NasError> {
        let deadline = Instant::now() + self.longest;
        let host = self.host(region)?.1;
        let (mut all, mut token) = (Vec::new(), None::<String>);
        loop {
            let mut query = query.clone();
            query.extend(parameters([("NextToken", token.as_deref())]));
            let listed: L = self.call_until(deadline, region, action, query).await?;
            let Page { items, next } = listed.page();
            all.extend(items);
            match next {
                None => return Ok(all),
                Some(next) if Some(&next) == token.as_ref() => {
                    let reason = "the next page is the same".to_owned();
                    return Err(NasError::Malformed { action, host: host.to_string(), reason });
                }
                next => token = next,
            }
        }
    }

    async fn call<T: DeserializeOwned>(
        &self,
        region: &str,
        action: &'static str,
        query: Vec<(String, String)>,
    ) -> Result<T, NasError> {
        self.call_until(Instant::now() + self.longest, region, action, query).await
    }

    async fn call_until<T: DeserializeOwned>(
        &self,
        deadline: Instant,
        region: &str,
        action: &'static str,
        query: Vec<(String, String)>,
    ) -> Result<T, NasError> {
        let place = self.host(region)?;
        let host = place.1.to_string();
        // a host of all regions needs it, the regions' own take it; as Alibaba Cloud's CSI driver
        let mut query = query;
        query.extend(parameters([("RegionId", Some(region))]));
        let late = || NasError::NoAnswer { action, host: host.clone() };
        let calling = self.call_patiently(deadline, region, action, &place, &query);
        let body = timeout_at(deadline, calling).await.unwrap_or_else(|_| Err(late()))?;
        serde_json::from_slice(&body).map_err(|error| {
            let reason = error.to_string();
            NasError::Malformed { action, host: host.clone(), reason }
        })
    }

    async fn call_patiently(
        &self,
        deadline: Instant,
        region: &str,
        action: &'static str,
        place: &(Scheme, Authority),
        query: &[(String, String)],
    ) -> Result<Bytes, NasError> {
        let mut attempts = Attempts::default();
        let mut refused: Option<Arc<Credential>> = None;
        loop {
            let credential = match &refused {
                None => self.service.credential(region).await,
                Some(used) => self.service.another(region, used).await,
            };
            let answer = match credential {
                Ok(credential) => {
                    let answer = self.attempt(action, place, query, &credential).await;
                    answer.map_err(|(error, asked)| (error, asked, Some(credential)))
                }
                Err(StoreError::NoCredentials { .. }) => Err((NasError::NoCredentials, None, None)),
                Err(source) => Err((NasError::Credentials { action, source }, None, None)),
            };
            let (error, asked, used) = match answer {
                Ok(body) => return Ok(body),
                Err(failed) => failed,
            };
            if error.is_of_credential() && refused.is_none() {
                refused = used;
                continue;
            }
            if !error.is_passing() {
                return Err(error);
            }
            let dice = rand::random::<f64>();
            let pause = attempts.pause(&self.policy, asked, Duration::ZERO, false, dice);
            let Some(pause) = pause.filter(|pause| Instant::now() + *pause < deadline) else {
                return Err(error);
            };
            let (attempt, backoff_ms) = (attempts.failed(), pause.as_millis());
            tracing::debug!(attempt, backoff_ms, error = %chain(&error), "trying again");
            tokio::time::sleep(pause).await;
        }
    }

    /// The body of a good answer, or what is wrong and the pause asked for.
    async fn attempt(
        &self,
        action: &'static str,
        place: &(Scheme, Authority),
        query: &[(String, String)],
        credential: &Credential,
    ) -> Result<Bytes, (NasError, Option<Duration>)> {
        let request = request(action, place, query, credential).map_err(|error| (error, None))?;
        let host = place.1.to_string();
        let answer = self.service.ask(request, MAX_ANSWER).await;
        let answer = answer.map_err(|error| match error {
            Unanswered::Connect(source) | Unanswered::Broken(source) => {
                (NasError::Unreachable { action, host, source }, None)
            }
            Unanswered::Certificate(source) => {
                (NasError::Certificate { action, host, source }, None)
            }
            Unanswered::Late => (NasError::NoAnswer { action, host }, None),
            Unanswered::Long => {
                let reason = format!("more than {MAX_ANSWER} bytes");
                (NasError::Malformed { action, host, reason }, None)
            }
        })?;
        let (parts, body) = answer.into_parts();
        if parts.status.is_success() {
            return Ok(body);
        }
        let Refusal { code, message, request_id } =
            serde_json::from_slice(&body).unwrap_or_default();
        let [code, message, request_id] =
            [code, message, request_id].map(|text| shown(&text, credential));
        let status = parts.status.as_u16();
        let error = NasError::Refused { action, code, message, request_id, status };
        Err((error, pause_asked(&parts.headers)))
    }

    /// Where a region's API is asked.
    pub(super) fn host(&self, region: &str) -> Result<(Scheme, Authority), NasError> {
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if region.is_empty() || region.len() > 63 || !region.bytes().all(fits) {
            return Err(NasError::Region(region.to_owned()));
        }
        if let Some(endpoint) = &self.endpoint {
            return Ok(endpoint.clone());
        }
        let network = if self.vpc { "-vpc" } else { "" };
        let host = format!("nas{network}.{region}.aliyuncs.com").parse();
        Ok((Scheme::HTTPS, host.map_err(|_| NasError::Region(region.to_owned()))?))
    }
}

/// An answer that says nothing.
#[derive(Debug, Deserialize)]
struct Done {}

/// A signed request. Its time and nonce are its own.
fn request(
    action: &'static str,
    (scheme, authority): &(Scheme, Authority),
    query: &[(String, String)],
    credential: &Credential,
) -> Result<Request<Bytes>, NasError> {
    let digest = digest_of(b"");
    let mut headers = vec![
        ("host", authority.to_string()),
        ("x-acs-action", action.to_owned()),
        ("x-acs-content-sha256", digest.clone()),
        ("x-acs-date", timestamp(Utc::now())),
        ("x-acs-signature-nonce", format!("{:032x}", rand::random::<u128>())),
        ("x-acs-version", VERSION.to_owned()),
    ];
    if let Some(token) = &credential.token {
        headers.push(("x-acs-accesskey-id", credential.id.clone()));
        headers.push(("x-acs-security-token", token.clone()));
    }
    let unsigned = Unsigned { method: "POST", query, headers: &headers, digest: &digest };
    let authorization = unsigned.authorization(&credential.id, credential.secret());
    let unusable = |what: &str| NasError::Malformed {
        action,
        host: authority.to_string(),
        reason: format!("{what} cannot be sent"),
    };
    let uri = Uri::builder()
        .scheme(scheme.clone())
        .authority(authority.clone())
        .path_and_query(format!("/?{}", query_string(query)))
        .build()
        .map_err(|_| unusable("so long a query"))?;
    let mut request = Request::new(Bytes::new());
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = uri;
    for (name, value) in &headers {
        let name = if *name == "host" { HOST } else { HeaderName::from_static(name) };
        let value = HeaderValue::from_str(value).map_err(|_| unusable("the access key"))?;
        request.headers_mut().insert(name, value);
    }
    let authorization =
        HeaderValue::from_str(&authorization).map_err(|_| unusable("the access key"))?;
    let agent = HeaderValue::from_static(concat!("ossvp/", env!("CARGO_PKG_VERSION")));
    let json = HeaderValue::from_static("application/json");
    for (name, value) in [(AUTHORIZATION, authorization), (USER_AGENT, agent), (ACCEPT, json)] {
        request.headers_mut().insert(name, value);
    }
    Ok(request)
}

fn pause_asked(headers: &HeaderMap) -> Option<Duration> {
    let said = headers.get(RETRY_AFTER)?.to_str().ok()?;
    said.parse().ok().map(Duration::from_millis)
}

/// `NAS_ENDPOINT`: a host, with a port and a scheme if need be; a bare host means https.
fn endpoint(given: &str) -> Result<(Scheme, Authority), NasError> {
    let refuse = |reason| {
        // a login is not shown
        let given = given.rsplit('@').next().unwrap_or_default().to_owned();
        NasError::Endpoint { given, reason }
    };
    let (scheme, rest) = match given.split_once("://") {
        None | Some(("https", _)) => (Scheme::HTTPS, given.trim_start_matches("https://")),
        Some(("http", rest)) => (Scheme::HTTP, rest),
        Some(_) => return Err(refuse("the scheme must be https or http")),
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let authority: Authority = rest.parse().map_err(|_| refuse("not a host"))?;
    if rest.contains('@') || authority.host().is_empty() {
        return Err(refuse("not a host"));
    }
    Ok((scheme, authority))
}
