//! Reads what is there for one claim: from the watches' caches, or, before anything is done, from the
//! API server itself.

use std::borrow::Cow;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::future::try_join3;
use futures::stream::{self, StreamExt};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{
    Event, PersistentVolume, PersistentVolumeClaim, Pod, Secret, ServiceAccount,
};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, ListParams, LogParams};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use super::cpfs::{Described, Descriptions, Nas, NasError, Task};
use super::crd::{KIND, OSSVolumePopulator};
use super::observed::dataflow::{Dataflow, Known, Plan};
use super::observed::shards::{self, Share};
use super::observed::{
    Class, Observed, Prime, PrimePhase, Source, Stray, Target, Volume, Worker, WorkerState,
};
use super::policy::{self, Credentials, SecretSeen};
use super::settings::Settings;
use super::{Error, build, names, words};
use crate::handoff::Progress;

/// Lines of a worker's log in which the newest progress is looked for: it writes one every 10 s, and
/// at most some warnings in between.
const LOG_LINES: i64 = 50;
/// Bytes of them: a line of a hostile key may be long.
const LOG_BYTES: i64 = 64 << 10;
/// How long the first lists may take before it is said that they do.
const FIRST_LISTS: Duration = Duration::from_secs(30);
/// Logs of one volume's workers that are read at once. Of 256 on nodes that all do not answer, the
/// reading takes 40 s, within a pass's two minutes.
const LOGS_AT_ONCE: usize = 32;
/// How long a kubelet may take to answer: progress is shown, never waited for.
const LOG_TIMEOUT: Duration = Duration::from_secs(5);

/// What the NAS API says of a file system that is gone.
const NO_FILE_SYSTEM: &str = "InvalidFileSystem.NotFound";

/// What the watches hold.
pub(super) struct Caches {
    /// Claims that name our resource, and prime PVCs.
    pub(super) claims: Store<PersistentVolumeClaim>,
    pub(super) sources: Store<OSSVolumePopulator>,
    pub(super) classes: Store<StorageClass>,
    pub(super) jobs: Store<Job>,
    pub(super) pods: Store<Pod>,
    /// Without their values.
    pub(super) secrets: Store<Secret>,
    /// Empty unless grants are required.
    pub(super) accounts: Store<ServiceAccount>,
}

/// Which claim.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ClaimKey {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
}

/// Where to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    Caches,
    Server,
}

/// One claim's objects, and the facts that decisions are made of.
pub(super) struct Seen {
    pub(super) facts: Observed,
    pub(super) target: Option<Arc<PersistentVolumeClaim>>,
    pub(super) source_name: String,
    pub(super) source: Option<Arc<OSSVolumePopulator>>,
    pub(super) prime: Option<Arc<PersistentVolumeClaim>>,
    pub(super) volume: Option<PersistentVolume>,
    pub(super) job: Option<Arc<Job>>,
}

impl ClaimKey {
    /// Of a user's claim, or of the claim that a prime PVC was made for.
    pub(super) fn of(claim: &PersistentVolumeClaim, populators: &str) -> Option<Self> {
        if claim.namespace().as_deref() != Some(populators) {
            return Some(Self {
                namespace: claim.namespace()?,
                name: claim.name_any(),
                uid: claim.uid()?,
            });
        }
        let (namespace, name) = claim.annotations().get(names::CLAIM)?.split_once('/')?;
        let uid = claim.labels().get(names::CLAIM_UID)?;
        Some(Self { namespace: namespace.to_owned(), name: name.to_owned(), uid: uid.clone() })
    }

    /// The claim, if it is there: another one may have its name.
    pub(super) fn found_in(
        &self,
        claims: &Store<PersistentVolumeClaim>,
    ) -> Option<ObjectRef<PersistentVolumeClaim>> {
        let claim = ObjectRef::new(&self.name).within(&self.namespace);
        let found = claims.get(&claim)?;
        (found.uid().as_ref() == Some(&self.uid)).then_some(claim)
    }
}

/// The name of the resource that a claim asks to be filled from, if it is one of ours.
pub(super) fn source_of(claim: &PersistentVolumeClaim) -> Option<&str> {
    let spec = claim.spec.as_ref()?;
    let ours = |group: Option<&str>, kind: &str| group == Some(super::crd::GROUP) && kind == KIND;
    if let Some(source) = &spec.data_source_ref {
        let here = source.namespace.is_none() || source.namespace == claim.namespace();
        let named = ours(source.api_group.as_deref(), &source.kind) && here;
        return named.then_some(source.name.as_str()).filter(|name| !name.is_empty());
    }
    let source = spec.data_source.as_ref()?;
    let named = ours(source.api_group.as_deref(), &source.kind);
    named.then_some(source.name.as_str()).filter(|name| !name.is_empty())
}

pub(super) struct Observer {
    pub(super) client: Client,
    pub(super) nas: Nas,
    pub(super) descriptions: Descriptions,
    pub(super) caches: Caches,
    pub(super) settings: Settings,
}

impl Caches {
    /// Waits until each holds what there is, and says so if that takes long.
    pub(super) async fn wait(&self) {
        let Self { claims, sources, classes, jobs, pods, secrets, accounts } = self;
        let filled = async {
            // a writer goes only with the process
            let _ = futures::join!(
                claims.wait_until_ready(),
                sources.wait_until_ready(),
                classes.wait_until_ready(),
                jobs.wait_until_ready(),
                pods.wait_until_ready(),
                secrets.wait_until_ready(),
                accounts.wait_until_ready(),
            );
        };
        let mut filled = std::pin::pin!(filled);
        while tokio::time::timeout(FIRST_LISTS, &mut filled).await.is_err() {
            tracing::warn!("still waiting for the first lists of all that is watched");
        }
    }
}

impl Observer {
    /// Whether the claim itself is there.
    pub(super) fn has(&self, key: &ClaimKey) -> bool {
        key.found_in(&self.caches.claims).is_some()
    }

    /// Everything that is there for `key`.
    pub(super) async fn observe(&self, key: &ClaimKey, from: From) -> Result<Seen, Error> {
        let ClaimKey { namespace, name, uid } = key;
        let here = &self.settings.namespace;
        let claims = |namespace: &str| Api::namespaced(self.client.clone(), namespace);
        let (target, prime, job) = try_join3(
            read(from, &self.caches.claims, claims(namespace), Some(namespace), name),
            read(from, &self.caches.claims, claims(here), Some(here), &names::prime(uid)),
            read(
                from,
                &self.caches.jobs,
                Api::namespaced(self.client.clone(), here),
                Some(here),
                &names::job(uid),
            ),
        )
        .await?;
        let target = target.filter(|claim| claim.uid().as_ref() == Some(uid));
        let source_name = target.as_deref().and_then(source_of).unwrap_or_default().to_owned();
        let source = match source_name.as_str() {
            "" => None,
            name => {
                let api = Api::namespaced(self.client.clone(), namespace);
                read(from, &self.caches.sources, api, Some(namespace), name).await?
            }
        };
        let pods = self.pods(uid, from).await?;
        let prime_facts = prime.as_deref().map(Prime::of);
        let target_facts = target.as_deref().map(Target::of);
        let begun = prime.is_some() || job.is_some();
        let volume = prime_facts.as_ref().and_then(|prime| prime.volume.clone()).or_else(|| {
            let target = target_facts.as_ref()?;
            target.volume.clone().filter(|_| target.finalizer || begun)
        });
        let volume = match volume {
            None => None,
            Some(name) => {
                let api = Api::<PersistentVolume>::all(self.client.clone());
                api.get_opt(&name).await.map_err(|error| Error::read("PV", &name, error))?
            }
        };
        let dataflow = match &prime_facts {
            Some(prime) => self.dataflow(prime, from).await,
            None => Dataflow::Unasked,
        };
        let mut worker = job.as_deref().map(|job| Worker::of(job, &pods));
        let mut warning = None;
        if from == From::Caches {
            warning = self.warning(prime.as_deref(), job.as_deref(), worker.as_ref(), &pods).await;
            if let Some(worker) = &mut worker {
                worker.progress = self.progress(worker).await;
            }
        }
        let facts = Observed {
            source: match &source {
                None => Source::Missing,
                Some(source) => self.admit(source, namespace),
            },
            class: match &target {
                None => Class::default(),
                Some(target) => self.class(target, from).await?,
            },
            target: target_facts,
            prime: prime_facts,
            volume: volume.as_ref().map(Volume::of),
            worker,
            strays: Stray::among(&pods, job.as_deref()),
            dataflow,
            warning,
        };
        Ok(Seen { facts, target, source_name, source, prime, volume, job })
    }

    /// Whether a resource may be served. Secrets and service accounts are read from the caches: they
    /// are looked at again by the API server and the kubelet when a Pod uses them.
    pub(super) fn admit(&self, source: &OSSVolumePopulator, namespace: &str) -> Source {
        let generic = source.spec.generic.as_ref();
        let granted = |annotation: &str, value: &str| {
            let accounts = self.caches.accounts.state();
            let granting = accounts
                .iter()
                .filter(|it| it.annotations().get(annotation).map(String::as_str) == Some(value));
            let mut grants: Vec<_> =
                granting.map(|it| (it.name_any(), allowed(it.as_ref()))).collect();
            grants.sort();
            grants
        };
        let credentials = generic.map_or_else(
            || Some(Credentials::Bucket { grants: granted(names::BUCKET, &source.spec.bucket) }),
            |generic| {
                if let Some(name) = &generic.secret_ref {
                    let here = ObjectRef::new(name).within(&self.settings.namespace);
                    let found = self.caches.secrets.get(&here).map(|secret| seen_secret(&secret));
                    return Some(Credentials::Secret { name: name.clone(), found });
                }
                let arn = generic.rrsa_configs.as_ref()?.role_arn.clone();
                let grants = granted(names::ROLE_ARN, &arn);
                Some(Credentials::Role { arn, grants })
            },
        );
        match policy::admit(&source.spec, namespace, credentials.as_ref(), &self.settings) {
            Ok(access) => Source::Usable {
                digest: build::digest(&source.spec),
                access,
                workers: build::workers(&source.spec),
            },
            Err(refusal) => Source::Refused(refusal),
        }
    }

    /// What CPFS has of a prime PVC's plan. That it cannot be asked is a fact too.
    async fn dataflow(&self, prime: &Prime, from: From) -> Dataflow {
        let Some(plan) = &prime.plan else { return Dataflow::Unasked };
        let Plan { region, file_system, .. } = plan;
        let anew = from == From::Server;
        let described =
            self.descriptions.of(&self.nas, region, file_system, names::DATA_FLOWS, anew).await;
        match described {
            Ok(described) => match self.with_tasks(plan, &described).await {
                Ok(tasks) => {
                    let flows = &described.flows;
                    Dataflow::Known(Box::new(Known::of(plan, &prime.uid, flows, &tasks)))
                }
                Err(error) => Dataflow::Unknown(words::cpfs(&error)),
            },
            Err(error) if error.code() == NO_FILE_SYSTEM => {
                Dataflow::NoFileSystem(words::cpfs(&error))
            }
            Err(error) => Dataflow::Unknown(words::cpfs(&error)),
        }
    }

    /// The tasks that were described, and those of a data flow that someone else made.
    async fn with_tasks<'d>(
        &self,
        plan: &Plan,
        described: &'d Described,
    ) -> Result<Cow<'d, [Task]>, NasError> {
        let Described { flows, tasks } = described;
        match Known::flow_of(plan, flows) {
            Some(flow) if !flow.is_marked(names::DATA_FLOWS) => {
                let Plan { region, file_system, .. } = plan;
                let theirs =
                    self.nas.describe_data_flow_tasks(region, file_system, &[&flow.id]).await?;
                Ok(theirs.into())
            }
            _ => Ok(tasks.into()),
        }
    }

    async fn class(&self, target: &PersistentVolumeClaim, from: From) -> Result<Class, Error> {
        let name = target.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
        let class = match name {
            None | Some("") => None,
            Some(name) => {
                read(from, &self.caches.classes, Api::all(self.client.clone()), None, name).await?
            }
        };
        Ok(Class::of(name, class.as_deref()))
    }

    async fn pods(&self, uid: &str, from: From) -> Result<Vec<Arc<Pod>>, Error> {
        let selects =
            |pod: &Pod| pod.labels().get(names::CLAIM_UID).map(String::as_str) == Some(uid);
        if from == From::Caches {
            return Ok(self.caches.pods.state_filter(selects));
        }
        let api = Api::<Pod>::namespaced(self.client.clone(), &self.settings.namespace);
        let wanted = ListParams::default().labels(&format!("{}={uid}", names::CLAIM_UID));
        let pods = api.list(&wanted).await.map_err(|error| Error::read("Pods", uid, error))?;
        Ok(pods.items.into_iter().map(Arc::new).collect())
    }

    /// The newest warning about what holds the worker up: in the populator namespace, where users
    /// cannot look.
    async fn warning(
        &self,
        prime: Option<&PersistentVolumeClaim>,
        job: Option<&Job>,
        worker: Option<&Worker>,
        pods: &[Arc<Pod>],
    ) -> Option<String> {
        let newest = worker.and_then(|worker| worker.pod.as_ref());
        let newest = newest.and_then(|newest| pods.iter().find(|it| it.name_any() == newest.name));
        let scheduled =
            newest.and_then(|pod| pod.spec.as_ref()).is_some_and(|spec| spec.node_name.is_some());
        let uid = match worker {
            None => prime.filter(|prime| Prime::of(prime).phase == PrimePhase::Pending)?.uid(),
            Some(worker) if worker.state == WorkerState::Active && !worker.deleting => {
                match &worker.pod {
                    None => job?.uid(),
                    Some(pod) if pod.running => return None,
                    Some(_) => newest?.uid(),
                }
            }
            _ => return None,
        }?;
        let api = Api::<Event>::namespaced(self.client.clone(), &self.settings.namespace);
        let about = ListParams::default().fields(&format!("involvedObject.uid={uid},type=Warning"));
        let events = match api.list(&about).await {
            Ok(events) => events.items,
            Err(error) => {
                tracing::debug!(%error, "events cannot be read");
                return None;
            }
        };
        let newest = events
            .into_iter()
            // of every prime PVC, once its volume is another's
            .filter(|event| event.reason.as_deref() != Some("ClaimMisbound"))
            // over, once there is a node
            .filter(|event| !scheduled || event.reason.as_deref() != Some("FailedScheduling"))
            .max_by_key(|event| {
                let seen = event.last_timestamp.as_ref().map(|time| time.0);
                seen.or_else(|| event.event_time.as_ref().map(|time| time.0))
            })?;
        let reason = newest.reason.unwrap_or_default();
        Some(format!("{reason}: {}", newest.message.unwrap_or_default()))
    }

    /// How far all workers together are.
    async fn progress(&self, worker: &Worker) -> Option<Progress> {
        let shares = worker.shares.iter().map(|share| async move {
            match share {
                Share::Unknown => None,
                Share::Log(pod) => self.progress_in_log(pod).await,
                Share::Done(objects, bytes, rate) => Some(shards::done(*objects, *bytes, *rate)),
            }
        });
        let shares = stream::iter(shares).buffered(LOGS_AT_ONCE);
        shards::summed(&shares.collect::<Vec<_>>().await)
    }

    async fn progress_in_log(&self, pod: &str) -> Option<Progress> {
        let api = Api::<Pod>::namespaced(self.client.clone(), &self.settings.namespace);
        let tail = LogParams {
            container: Some(names::CONTAINER.to_owned()),
            tail_lines: Some(LOG_LINES),
            limit_bytes: Some(LOG_BYTES),
            ..LogParams::default()
        };
        let log = match tokio::time::timeout(LOG_TIMEOUT, api.logs(pod, &tail)).await {
            Ok(Ok(log)) => log,
            Ok(Err(error)) => {
                tracing::debug!(%error, pod, "the log cannot be read");
                return None;
            }
            Err(_) => {
                tracing::debug!(pod, "the log does not come");
                return None;
            }
        };
        newest_progress(&log)
    }
}

/// The last line that is one of progress.
fn newest_progress(log: &str) -> Option<Progress> {
    let lines = log.lines().rev().filter(|line| line.starts_with('{'));
    let mut progress = lines.filter_map(|line| serde_json::from_str::<Progress>(line).ok());
    progress.find(|progress| progress.ossvp == "progress" && progress.v == 1)
}

fn seen_secret(secret: &Secret) -> SecretSeen {
    let uid = secret.uid().unwrap_or_default();
    SecretSeen {
        version: format!("{uid}.{}", secret.resource_version().unwrap_or_default()),
        keys: secret.data.iter().flat_map(|data| data.keys().cloned()).collect(),
        allowed: allowed(secret),
    }
}

fn allowed(object: &impl ResourceExt) -> Vec<String> {
    let annotation = object.annotations().get(names::ALLOWED_NAMESPACES);
    policy::allowed_namespaces(annotation.map(String::as_str))
}

async fn read<K>(
    from: From,
    cache: &Store<K>,
    api: Api<K>,
    namespace: Option<&str>,
    name: &str,
) -> Result<Option<Arc<K>>, Error>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + 'static,
{
    match from {
        From::Caches => {
            let object = ObjectRef::new(name);
            Ok(cache
                .get(&namespace.iter().fold(object, |object, namespace| object.within(namespace))))
        }
        From::Server => {
            let object = api.get_opt(name).await;
            Ok(object.map_err(|error| Error::read(&K::kind(&()), name, error))?.map(Arc::new))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_names_our_resource_by_group_kind_and_name_in_its_own_namespace() {
        let named = |changes: serde_json::Value| {
            let mut source = serde_json::json!({
                "apiGroup": "storage.alibabacloud.com", "kind": "OSSVolumePopulator", "name": "models",
            });
            let fields = changes.as_object().unwrap().clone();
            source.as_object_mut().unwrap().extend(fields);
            source
        };
        let of = |field: &str, source: serde_json::Value| {
            let claim =
                serde_json::json!({"metadata": {"namespace": "team"}, "spec": {field: source}});
            let claim: PersistentVolumeClaim = serde_json::from_value(claim).unwrap();
            source_of(&claim).map(str::to_owned)
        };
        let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        for (changes, name) in [
            ("{}", Some("models")),
            (r#"{"namespace": "team"}"#, Some("models")),
            (r#"{"namespace": "other"}"#, None),
            (r#"{"apiGroup": "other.example.com"}"#, None),
            (r#"{"apiGroup": null}"#, None),
            (r#"{"kind": "PersistentVolumeClaim"}"#, None),
            (r#"{"name": ""}"#, None),
        ] {
            let found = of("dataSourceRef", named(json(changes)));
            assert_eq!(found.as_deref(), name, "{changes}");
        }
        assert_eq!(of("dataSource", named(json("{}"))).as_deref(), Some("models"));
        let neither = PersistentVolumeClaim::default();
        assert_eq!(source_of(&neither), None);
    }

    #[test]
    fn the_last_line_of_a_log_that_parses_as_progress_counts() {
        let line = |objects| {
            format!(
                r#"{{"ossvp":"progress","v":1,"objects":{objects},"bytes":2,"bytes_total":3,"listing_done":true,"bytes_per_s":1,"eta_s":null}}"#
            )
        };
        let log = [&line(1), "a warning", &line(2), "{\"ossvp\":\"progress\"", "{}"].join("\n");
        assert_eq!(newest_progress(&log).map(|progress| progress.objects), Some(2));
        assert_eq!(newest_progress("nothing\n"), None);
    }
}
