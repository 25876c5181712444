//! The controller: a claim that names an `OSSVolumePopulator` gets a volume that a worker has filled.
//!
//! One pass over one claim is a line of steps, each in its own file:
//!
//! | step | file | what |
//! |---|---|---|
//! | observe | `observe`, `observed` | what is there for the claim, reduced to facts |
//! | decide | [`decide`], `policy`, `words` | pure: the next action, and what users are told |
//! | show | `status`, `events` | the resource's status, and events on claim and resource |
//! | apply | `apply`, `build` | at most one change, conditional on what was seen |
//!
//! Nothing is remembered between passes but what was told already. Whatever a pass decides to do from
//! the caches is decided again from what the API server says, and only then done.

mod apply;
mod build;
pub mod crd;
mod decide;
mod events;
mod lead;
mod manifests;
mod metrics;
mod names;
mod observe;
mod observed;
mod policy;
mod serve;
mod settings;
mod status;
mod watches;
mod words;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::controller::{self, Action as Requeue};
use kube::{Client, Config, ResourceExt};
use serde_json::json;
use tokio::net::TcpListener;

use self::crd::{OSSVolumePopulator, OSSVolumePopulatorStatus, Phase};
use self::decide::{Action, Decision, Notice, decide};
use self::events::Recorder;
pub use self::manifests::{ManifestsArgs, manifests};
use self::metrics::Metrics;
use self::observe::{ClaimKey, From, Observer, Seen};
use self::observed::Source;
use self::policy::Refusal;
use self::serve::Health;
pub use self::settings::{ControllerArgs, Gates, Security, Settings, SettingsError};
use self::status::Update;
pub use self::words::in_resource_terms;

/// Claims that are looked at at once. A pass is a few requests, most of them for one claim in
/// progress every ten seconds; the API server's own priority and fairness bounds the rest.
const AT_ONCE: u16 = 16;
/// When a claim is looked at again after something was done to it, should no watch tell.
const AFTER_ACTION: Duration = Duration::from_secs(5);
/// When it is looked at again if the API server knew better than the caches, or someone was faster;
/// doubled each time, since a cache that stays wrong must not keep anyone busy.
const CACHES_LAG: Duration = Duration::from_millis(200);
const LONGEST_LAG: Duration = Duration::from_secs(10);
/// How often what is remembered of claims and resources that are gone is forgotten.
const FORGET: Duration = Duration::from_secs(60);
/// How long a pass may take: a dozen requests, of which the API server gives up each after a minute
/// at most.
const LONGEST_PASS: Duration = Duration::from_secs(120);
/// How long a connection may be silent: longer than a watch, which the API server ends within 290
/// seconds.
const SILENCE: Duration = Duration::from_secs(295);
/// The first and the longest pause after a pass that failed.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const LAST_BACKOFF: Duration = Duration::from_secs(60);

/// What the controller cannot do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No cluster, or no right to it.
    #[error(
        "cannot reach the API server; is KUBECONFIG set, or is this a Pod with a service account?"
    )]
    Client(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The address is taken.
    #[error("cannot listen on {address}; choose another by --listen")]
    Listen {
        /// Where.
        address: std::net::SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The Lease.
    #[error("cannot take part in the election of a leader by Lease {namespace}/{name}")]
    Lease {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: &'static str,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another replica leads now.
    #[error("the lease is lost; another replica leads")]
    Deposed,
    /// The API server, or the network.
    #[error("the API server did not answer within {} s", LONGEST_PASS.as_secs())]
    Slow,
    /// The watches ended, which they never do.
    #[error("the watches have ended")]
    Ended,
    /// An object.
    #[error("cannot read {kind} {name}")]
    Read {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// The API server's answer.
        #[source]
        error: Answer,
    },
    /// An action.
    #[error("cannot do {action}")]
    Apply {
        /// What.
        action: String,
        /// The API server's answer.
        #[source]
        error: Answer,
    },
    /// The caches asked for an action that the API server's objects do not.
    #[error("the caches are behind")]
    CachesLag,
    /// An action's object.
    #[error("cannot do {action}: the {what} is gone")]
    Vanished {
        /// What.
        action: String,
        /// What was needed.
        what: &'static str,
    },
    /// A spec that passed and does not any more.
    #[error("{0}")]
    Refused(String),
    /// The resource's status.
    #[error("cannot write the status of {name}")]
    Publish {
        /// The resource.
        name: String,
        /// The API server's answer.
        #[source]
        error: Answer,
    },
}

/// What the API server answered, in its own words and only once.
#[derive(Debug)]
pub struct Answer(kube::Error);

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            kube::Error::Api(status) => f.write_str(&status.message),
            error => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for Answer {}

impl Error {
    fn read(kind: &str, name: &str, error: kube::Error) -> Self {
        Self::Read { kind: kind.to_owned(), name: name.to_owned(), error: Answer(error) }
    }

    /// Whether someone else was faster, and another look is all that is needed.
    fn is_race(&self) -> bool {
        match self {
            Self::Apply { error: Answer(error), .. } => is_stale(error),
            Self::Vanished { .. } | Self::CachesLag => true,
            _ => false,
        }
    }
}

/// Whether an object is not as it was seen: a test of a JSON patch that fails is 422, and no field is
/// to blame.
fn is_stale(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.is_conflict() || status.code == 422 && causes.count() == 0
}

fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_not_found())
}

/// Runs until `stop`: waits to lead, then fills volumes.
///
/// # Errors
/// What keeps the process from working at all; what concerns one claim is told there and tried again.
pub async fn run(settings: Settings, stop: impl Future<Output = ()> + Send) -> Result<(), Error> {
    let mut stop = std::pin::pin!(stop);
    let address = settings.listen;
    let listener = TcpListener::bind(address).await;
    let listener = listener.map_err(|source| Error::Listen { address, source })?;
    // port 0 is any
    let address = listener.local_addr().unwrap_or(address);
    tracing::info!(%address, "serving metrics and health");
    let health = Arc::new(Health { metrics: Metrics::new(), ready: AtomicBool::new(false) });
    let serving = tokio::spawn(serve::serve(listener, health.clone()));

    let client = connect().await?;
    health.ready.store(true, Ordering::Relaxed);
    let result = if settings.gates.volume_populator {
        let identity = lead::identity();
        let won = tokio::select! {
            () = stop.as_mut() => None,
            won = lead::win(&client, &settings, &identity) => Some(won?),
        };
        match won {
            None => Ok(()),
            Some(mut lease) => {
                health.metrics.leads(true);
                let result = tokio::select! {
                    () = stop => Ok(()),
                    () = work(client, settings, identity, health.clone()) => Err(Error::Ended),
                    () = lease.lost() => Err(Error::Deposed),
                };
                lease.release().await;
                result
            }
        }
    } else {
        tracing::info!("the feature gate VolumePopulator is off: nothing is served");
        stop.await;
        Ok(())
    };
    serving.abort();
    result
}

async fn connect() -> Result<Client, Error> {
    let mut config = Config::infer().await.map_err(|error| Error::Client(error.into()))?;
    config.read_timeout = Some(SILENCE);
    let client = Client::try_from(config).map_err(|error| Error::Client(error.into()))?;
    let version = client.apiserver_version().await;
    let version = version.map_err(|error| Error::Client(error.into()))?;
    tracing::info!(version = version.git_version, "the API server answers");
    Ok(client)
}

/// What a pass works with.
struct Context {
    client: Client,
    observer: Observer,
    recorder: Recorder,
    health: Arc<Health>,
    /// The status of each resource as it was last written, for one writer at a time. It is ours alone:
    /// what others write into it goes with our next change.
    shown: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Option<OSSVolumePopulatorStatus>>>>>,
    phases: Mutex<HashMap<String, Phase>>,
    failures: Mutex<HashMap<String, u32>>,
}

async fn work(client: Client, settings: Settings, identity: String, health: Arc<Health>) {
    lead::register(&client).await;
    let (caches, claims, sources) = watches::start(&client, &settings);
    let (claim_store, source_store) = (caches.claims.clone(), caches.sources.clone());
    let context = Arc::new(Context {
        recorder: Recorder::new(client.clone(), identity),
        observer: Observer { client: client.clone(), caches, settings },
        client,
        health,
        shown: Mutex::default(),
        phases: Mutex::default(),
        failures: Mutex::default(),
    });
    let forgetful = context.clone();
    // a pass waits for caches to be full: what is missing in them would look deleted
    context.observer.caches.wait().await;
    let config = controller::Config::default().concurrency(AT_ONCE);
    let volumes = controller::applier(
        |claim, context| Box::pin(reconcile(claim, context)),
        |claim, error, context| context.try_again(&claim.uid().unwrap_or_default(), error),
        context.clone(),
        claim_store,
        claims,
        config.clone(),
    );
    let resources = controller::applier(
        |source, context| Box::pin(review(source, context)),
        |source, error, context| context.try_again(&source.uid().unwrap_or_default(), error),
        context,
        source_store,
        sources,
        config,
    );
    let forget = async {
        loop {
            tokio::time::sleep(FORGET).await;
            forgetful.forget();
        }
    };
    let log = |result: Result<(), controller::Error<Error, kube::runtime::watcher::Error>>| async {
        use kube::runtime::controller::Error::{ObjectNotFound, QueueError, ReconcilerFailed};
        match result {
            // it is gone, and so is what was made for it; or the pass said so itself
            Ok(()) | Err(ObjectNotFound(_) | ReconcilerFailed(..)) => {}
            Err(QueueError(error)) => tracing::warn!(%error, "a watch broke; starting it again"),
            Err(error) => tracing::warn!(%error, "a pass could not be made"),
        }
    };
    let volumes = volumes.map(|result| result.map(drop)).for_each(log);
    let resources = resources.map(|result| result.map(drop)).for_each(log);
    tokio::select! {
        () = volumes => {}
        () = resources => {}
        () = forget => {}
    }
}

/// One pass over one claim.
async fn reconcile(
    claim: Arc<PersistentVolumeClaim>,
    context: Arc<Context>,
) -> Result<Requeue, Error> {
    let populators = &context.observer.settings.namespace;
    let Some(key) = ClaimKey::of(&claim, populators) else { return Ok(Requeue::await_change()) };
    if claim.namespace().as_ref() == Some(populators) && context.observer.has(&key) {
        // a prime PVC whose claim is there has its pass under the claim's name
        return Ok(Requeue::await_change());
    }
    let result = tokio::time::timeout(LONGEST_PASS, pass(&key, &context)).await;
    let result = result.unwrap_or(Err(Error::Slow));
    context.health.metrics.passed(result.as_ref().err().is_none_or(Error::is_race));
    if result.is_ok() {
        context.lock(&context.failures).remove(&claim.uid().unwrap_or_default());
    }
    result
}

async fn pass(key: &ClaimKey, context: &Context) -> Result<Requeue, Error> {
    let mut seen = context.observer.observe(key, From::Caches).await?;
    let mut decision = decide(&seen.facts, Timestamp::now());
    if decision.action.is_some() {
        seen = context.observer.observe(key, From::Server).await?;
        decision = decide(&seen.facts, Timestamp::now());
        if decision.action.is_none() {
            return Err(Error::CachesLag);
        }
    }
    let shown = context.show(key, &seen, &decision).await;
    let Some(action) = &decision.action else {
        return shown.map(|()| decision.wait.map_or_else(Requeue::await_change, Requeue::requeue));
    };
    // what cannot be shown is done all the same
    if let Err(error) = shown {
        tracing::warn!(error = crate::telemetry::chain(&error), "the status is behind");
    }
    let ClaimKey { namespace, name: pvc, uid: _ } = key;
    let done = apply::apply(&context.client, &context.observer.settings, &seen, action).await;
    context.health.metrics.acted(action.name(), done.is_ok());
    match &done {
        Ok(()) => {
            tracing::info!(
                namespace,
                pvc,
                action = action.name(),
                reason = decision.message,
                "done"
            );
            context.count(&seen, &decision);
        }
        // the next pass sees what they did
        Err(error) if error.is_race() => {}
        Err(error) => {
            let (reason, what) = action.failure();
            decision.message = format!("{what}: {}", crate::telemetry::chain(error));
            decision.notices = vec![Notice {
                warning: true,
                reason,
                message: decision.message.clone(),
                key: decision.message.clone(),
                happened: None,
            }];
            decision.action = None;
            if let Err(error) = context.show(key, &seen, &decision).await {
                tracing::warn!(error = crate::telemetry::chain(&error), "the status is behind");
            }
        }
    }
    done.map(|()| Requeue::requeue(AFTER_ACTION))
}

/// One pass over one resource: whether it can be used, also before any claim names it.
async fn review(source: Arc<OSSVolumePopulator>, context: Arc<Context>) -> Result<Requeue, Error> {
    let result = tokio::time::timeout(LONGEST_PASS, context.publish(&source, None)).await;
    result.unwrap_or(Err(Error::Slow))?;
    context.lock(&context.failures).remove(&source.uid().unwrap_or_default());
    Ok(Requeue::await_change())
}

impl Context {
    fn lock<'a, T>(&self, mutex: &'a Mutex<T>) -> std::sync::MutexGuard<'a, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets claims and resources that are gone.
    fn forget(&self) {
        let claims = self.observer.caches.claims.state();
        let sources = self.observer.caches.sources.state();
        let claims: HashSet<String> = claims.iter().filter_map(|it| it.uid()).collect();
        let sources: HashSet<String> = sources.iter().filter_map(|it| it.uid()).collect();
        self.lock(&self.shown).retain(|uid, _| sources.contains(uid));
        self.lock(&self.failures).retain(|uid, _| claims.contains(uid) || sources.contains(uid));
        let mut phases = self.lock(&self.phases);
        phases.retain(|uid, _| claims.contains(uid));
        self.health.metrics.claims(phases.values().copied());
    }

    fn try_again(&self, uid: &str, error: &Error) -> Requeue {
        let mut failures = self.lock(&self.failures);
        let failed = failures.entry(uid.to_owned()).or_default();
        let (first, last) = match error.is_race() {
            true => (CACHES_LAG, LONGEST_LAG),
            false => (FIRST_BACKOFF, LAST_BACKOFF),
        };
        let pause = (first * 2u32.saturating_pow(*failed)).min(last);
        *failed = (*failed + 1).min(16);
        let backoff_ms = pause.as_millis() as u64;
        let cause = crate::telemetry::chain(error);
        match error.is_race() {
            true => tracing::debug!(uid, cause, backoff_ms, "looking again"),
            false => tracing::warn!(uid, error = cause, backoff_ms, "a pass failed"),
        }
        Requeue::requeue(pause)
    }

    /// Tells users what was seen and decided: first in the resource's status, then by events.
    async fn show(&self, key: &ClaimKey, seen: &Seen, decision: &Decision) -> Result<(), Error> {
        {
            let mut phases = self.lock(&self.phases);
            match (&seen.target, decision.phase, &decision.action) {
                (None, ..)
                | (_, Phase::Finished | Phase::Deleting, None | Some(Action::RemoveFinalizer)) => {
                    phases.remove(&key.uid);
                }
                (Some(_), phase, _) => {
                    phases.insert(key.uid.clone(), phase);
                }
            }
            self.health.metrics.claims(phases.values().copied());
        }
        if let Some(source) = &seen.source {
            self.publish(source, Some((key, seen, decision))).await?;
        }
        for notice in &decision.notices {
            if let Some(claim) = &seen.target {
                self.recorder.tell(notice, claim.as_ref()).await;
            }
            if let Some(source) = &seen.source {
                self.recorder.tell(notice, source.as_ref()).await;
            }
        }
        Ok(())
    }

    /// Writes the resource's status if it says something else by now.
    async fn publish(
        &self,
        source: &OSSVolumePopulator,
        about: Option<(&ClaimKey, &Seen, &Decision)>,
    ) -> Result<(), Error> {
        let (namespace, name) = (source.namespace().unwrap_or_default(), source.name_any());
        let uid = source.uid().unwrap_or_default();
        let shown = self.lock(&self.shown).entry(uid.clone()).or_default().clone();
        let mut shown = shown.lock().await;
        let current = shown.clone().or_else(|| source.status.clone()).unwrap_or_default();
        let refusal = match self.observer.admit(source, &namespace) {
            Source::Refused(refusal) => Some(refusal),
            Source::Usable { .. } | Source::Missing => None,
        };
        let next = self.next(&current, source, refusal.as_ref(), about);
        if next == current {
            return Ok(());
        }
        let api = Api::<OSSVolumePopulator>::namespaced(self.client.clone(), &namespace);
        let by = PatchParams {
            field_manager: Some(apply::MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let patch = json!([
            {"op": "test", "path": "/metadata/uid", "value": uid},
            {"op": "add", "path": "/status", "value": next},
        ]);
        let patch = serde_json::from_value(patch).expect("a list of operations");
        match api.patch_status(&name, &by, &Patch::Json::<()>(patch)).await {
            Ok(_) => *shown = Some(next),
            // it is gone, or another one by the name is there
            Err(error) if is_stale(&error) || is_gone(&error) => {
                self.lock(&self.shown).remove(&uid);
            }
            Err(error) => return Err(Error::Publish { name, error: Answer(error) }),
        }
        Ok(())
    }

    fn next(
        &self,
        current: &OSSVolumePopulatorStatus,
        source: &OSSVolumePopulator,
        refusal: Option<&Refusal>,
        about: Option<(&ClaimKey, &Seen, &Decision)>,
    ) -> OSSVolumePopulatorStatus {
        let now = Timestamp::now();
        let update: Option<Update> = about.and_then(|(key, seen, decision)| {
            let entry = current.populations.iter().find(|it| it.pvc_uid == key.uid);
            status::update(&key.name, &seen.facts, decision, entry, now)
        });
        // a claim may go while nobody looks
        let mut current = current.clone();
        let namespace = source.namespace().unwrap_or_default();
        current.populations.retain(|it| {
            let key = ClaimKey {
                namespace: namespace.clone(),
                name: it.pvc_name.clone(),
                uid: it.pvc_uid.clone(),
            };
            it.phase == Phase::Finished || self.observer.has(&key)
        });
        status::next(&current, source.metadata.generation, refusal, update.as_ref(), now)
    }

    /// Counts a population that has come to its end.
    fn count(&self, seen: &Seen, decision: &Decision) {
        let Some(worker) = &seen.facts.worker else { return };
        let took =
            worker.created.map(|created| Timestamp::now().duration_since(created).unsigned_abs());
        let figures = worker.ended.as_ref().and_then(|ended| ended.figures);
        match (&decision.action, decision.phase) {
            (Some(Action::DeleteJob), Phase::Finished) => {
                let figures = figures.map(|(objects, bytes, _)| (objects, bytes));
                self.health.metrics.ended(true, took, figures);
            }
            (Some(Action::RecordFailure(_)), _) => self.health.metrics.ended(false, took, None),
            _ => {}
        }
    }
}
