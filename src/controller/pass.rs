//! One pass over one claim or resource: observe, decide, show, apply.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::controller::Action as Requeue;
use kube::{Client, ResourceExt};
use serde_json::json;

use super::apply;
use super::crd::{OSSVolumePopulator, OSSVolumePopulatorStatus, Phase};
use super::decide::{Action, Decision, Notice, decide};
use super::error::{Answer, Error, is_gone, is_stale};
use super::events::Recorder;
use super::observe::{ClaimKey, From, Observer, Seen};
use super::observed::Source;
use super::policy::Refusal;
use super::serve::Health;
use super::status::{self, Update};
use crate::lock::lock;

/// When a claim is looked at again after something was done to it, should no watch tell.
const AFTER_ACTION: Duration = Duration::from_secs(5);
/// When it is looked at again if the API server knew better than the caches, or someone was faster;
/// doubled each time, since a cache that stays wrong must not keep anyone busy.
const CACHES_LAG: Duration = Duration::from_millis(200);
const LONGEST_LAG: Duration = Duration::from_secs(10);
/// How long a pass may take: a dozen requests, of which the API server gives up each after a minute
/// at most.
pub(super) const LONGEST_PASS: Duration = Duration::from_secs(120);
/// The first and the longest pause after a pass that failed.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const LAST_BACKOFF: Duration = Duration::from_secs(60);

/// What a pass works with.
pub(super) struct Context {
    pub(super) client: Client,
    pub(super) observer: Observer,
    recorder: Recorder,
    health: Arc<Health>,
    /// The status of each resource as it was last written, for one writer at a time. It is ours alone:
    /// what others write into it goes with our next change.
    shown: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Option<OSSVolumePopulatorStatus>>>>>,
    phases: Mutex<HashMap<String, Phase>>,
    failures: Mutex<HashMap<String, u32>>,
}

impl Context {
    pub(super) fn new(
        client: Client,
        observer: Observer,
        recorder: Recorder,
        health: Arc<Health>,
    ) -> Self {
        Self {
            client,
            observer,
            recorder,
            health,
            shown: Mutex::default(),
            phases: Mutex::default(),
            failures: Mutex::default(),
        }
    }
}

/// One pass over one claim.
pub(super) async fn reconcile(
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
        lock(&context.failures).remove(&claim.uid().unwrap_or_default());
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
    let done = apply::apply(
        &context.client,
        &context.observer.nas,
        &context.observer.settings,
        &seen,
        action,
    )
    .await;
    if let Some(plan) = seen.facts.prime.as_ref().and_then(|prime| prime.plan.as_ref()) {
        context.observer.descriptions.forget(&plan.region, &plan.file_system);
    }
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
                // a request id is new each time
                key: match error {
                    Error::Cpfs { code, .. } if !code.is_empty() => {
                        format!("{} {code}", action.name())
                    }
                    _ => decision.message.clone(),
                },
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
pub(super) async fn review(
    source: Arc<OSSVolumePopulator>,
    context: Arc<Context>,
) -> Result<Requeue, Error> {
    let result = tokio::time::timeout(LONGEST_PASS, context.publish(&source, None)).await;
    result.unwrap_or(Err(Error::Slow))?;
    lock(&context.failures).remove(&source.uid().unwrap_or_default());
    Ok(Requeue::await_change())
}

impl Context {
    /// Forgets claims and resources that are gone.
    pub(super) fn forget(&self) {
        let claims = self.observer.caches.claims.state();
        let sources = self.observer.caches.sources.state();
        let claims: HashSet<String> = claims.iter().filter_map(|it| it.uid()).collect();
        let sources: HashSet<String> = sources.iter().filter_map(|it| it.uid()).collect();
        lock(&self.shown).retain(|uid, _| sources.contains(uid));
        lock(&self.failures).retain(|uid, _| claims.contains(uid) || sources.contains(uid));
        let mut phases = lock(&self.phases);
        phases.retain(|uid, _| claims.contains(uid));
        self.health.metrics.claims(phases.values().copied());
    }

    pub(super) fn try_again(&self, uid: &str, error: &Error) -> Requeue {
        let mut failures = lock(&self.failures);
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
            let mut phases = lock(&self.phases);
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
        let shown = lock(&self.shown).entry(uid.clone()).or_default().clone();
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
                lock(&self.shown).remove(&uid);
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
        let Seen { facts, .. } = seen;
        let plan = facts.prime.as_ref().and_then(|prime| prime.plan.as_ref());
        let worker = facts.worker.as_ref();
        let began = worker.and_then(|it| it.created).or_else(|| plan.map(|plan| plan.time));
        let took = began.map(|began| Timestamp::now().duration_since(began).unsigned_abs());
        let figures = match (worker, facts.dataflow.task()) {
            (Some(worker), _) => worker.ended.as_ref().and_then(|ended| ended.figures),
            (None, Some(task)) => Some((task.files.done, task.bytes.done, task.rate)),
            (None, None) => None,
        };
        match (&decision.action, decision.phase, plan) {
            (Some(Action::DeleteJob), Phase::Finished, _) | (Some(Action::Rebind), _, Some(_)) => {
                let figures = figures.map(|(objects, bytes, _)| (objects, bytes));
                self.health.metrics.ended(true, took, figures);
            }
            (Some(Action::RecordFailure(_)), ..) => self.health.metrics.ended(false, took, None),
            _ => {}
        }
    }
}
