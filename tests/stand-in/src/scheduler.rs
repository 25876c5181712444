//! The scheduler: binds Pods to nodes, and claims that wait for a consumer to the node it will get.

pub(crate) mod fit;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Binding, Node, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use crate::events::{Kind, Voice};
use crate::provisioner::SELECTED_NODE;
use crate::record::Deed;
use crate::world::World;

/// Schedules for as long as it is polled.
pub(crate) async fn run(world: Arc<World>) {
    let voice = Voice { component: "default-scheduler".to_owned(), host: None };
    let mut scheduler = Scheduler { world, voice, bound: HashMap::new(), told: HashMap::new() };
    let mut changes = scheduler.world.changes();
    loop {
        changes.borrow_and_update();
        scheduler.pass().await;
        if changes.changed().await.is_err() {
            return;
        }
    }
}

struct Scheduler {
    world: Arc<World>,
    voice: Voice,
    /// By the Pod's uid: to which node, until the mirror shows it.
    bound: HashMap<String, String>,
    /// By the Pod's uid: what was last said against it.
    told: HashMap<String, String>,
}

/// What is to be done for a Pod now.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Bind(String),
    /// These claims are to be provisioned for a node first.
    Select(String, Vec<String>),
    /// They are being provisioned.
    Wait,
    Refuse(String),
}

impl Scheduler {
    async fn pass(&mut self) {
        let pods = self.world.pods.state();
        let uids: Vec<_> = pods.iter().filter_map(|pod| pod.uid()).collect();
        self.bound.retain(|uid, _| uids.contains(uid));
        self.told.retain(|uid, _| uids.contains(uid));
        for pod in &pods {
            if !self.is_pending(pod) {
                continue;
            }
            match self.decide(pod) {
                Verdict::Bind(node) => self.bind(pod, node).await,
                Verdict::Select(node, claims) => {
                    for claim in claims {
                        self.select(pod, &claim, &node).await;
                    }
                }
                Verdict::Wait => {}
                Verdict::Refuse(message) => self.refuse(pod, message).await,
            }
        }
    }

    fn is_pending(&self, pod: &Pod) -> bool {
        let Some(spec) = pod.spec.as_ref() else { return false };
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        spec.node_name.is_none()
            && pod.metadata.deletion_timestamp.is_none()
            && !matches!(phase, Some("Failed" | "Succeeded"))
            && spec.scheduler_name.as_deref().is_none_or(|name| name == "default-scheduler")
            && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
            && !self.bound.contains_key(&pod.uid().unwrap_or_default())
            && self.world.options.looks_after(&pod.namespace().unwrap_or_default())
            && self.world.rules.scheduling.of(pod).is_none()
    }

    fn decide(&self, pod: &Pod) -> Verdict {
        let nodes = self.nodes();
        let total = nodes.len();
        let none = |why: &str| Verdict::Refuse(format!("0/{total} nodes are available: {why}."));
        let mut volumes = Vec::new();
        let mut waiting = Vec::new();
        for (name, owned) in claims(pod) {
            let claim = self.world.claim(&pod.namespace().unwrap_or_default(), &name);
            match self.claim(&name, claim, owned) {
                Ok(Claimed::Bound(volume)) => volumes.push(volume),
                Ok(Claimed::Waiting(claim)) => waiting.push(claim),
                Err(why) => return none(&why),
            }
        }
        let volumes: Vec<&PersistentVolume> = volumes.iter().map(AsRef::as_ref).collect();
        let mut refusals: BTreeMap<String, usize> = BTreeMap::new();
        let mut fitting = Vec::new();
        for node in &nodes {
            match self.refusal(pod, &volumes, &waiting, node) {
                None => fitting.push(node),
                Some(why) => *refusals.entry(why).or_default() += 1,
            }
        }
        let Some(node) = fitting.into_iter().min_by_key(|node| self.load(node)) else {
            let why: Vec<_> =
                refusals.iter().map(|(why, count)| format!("{count} {why}")).collect();
            return none(&why.join(", "));
        };
        let node = node.name_any();
        if waiting.is_empty() {
            return Verdict::Bind(node);
        }
        waiting.retain(|claim| selected(claim).is_none());
        match waiting.as_slice() {
            [] => Verdict::Wait,
            claims => Verdict::Select(node, claims.iter().map(|claim| claim.name_any()).collect()),
        }
    }

    /// The nodes that this stand-in made, in the order of their names.
    fn nodes(&self) -> Vec<Arc<Node>> {
        let mut nodes: Vec<_> = self.world.options.nodes();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        nodes.iter().filter_map(|spec| self.world.node(&spec.name)).collect()
    }

    /// The number of Pods there: fewer first, equal ones by name.
    fn load(&self, node: &Node) -> usize {
        let name = node.name_any();
        let there = |pod: &Pod| {
            let bound = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
            let bound = bound.or_else(|| self.bound.get(&pod.uid()?));
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            bound == Some(&name) && !matches!(phase, Some("Failed" | "Succeeded"))
        };
        self.world.pods.state().iter().filter(|pod| there(pod)).count()
    }

    fn claim(
        &self,
        name: &str,
        claim: Option<Arc<PersistentVolumeClaim>>,
        owned: bool,
    ) -> Result<Claimed, String> {
        let Some(claim) = claim else {
            return Err(if owned {
                format!(
                    "waiting for ephemeral volume controller to create the \
                     persistentvolumeclaim \"{name}\""
                )
            } else {
                format!("persistentvolumeclaim \"{name}\" not found")
            });
        };
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(format!("persistentvolumeclaim \"{name}\" is being deleted"));
        }
        if claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Lost") {
            return Err(format!(
                "persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume"
            ));
        }
        let spec = claim.spec.as_ref();
        let bound = claim.annotations().contains_key("pv.kubernetes.io/bind-completed");
        let volume = spec.and_then(|spec| spec.volume_name.as_deref()).filter(|_| bound);
        if let Some(volume) = volume {
            return self.world.volume(volume).map(Claimed::Bound).ok_or_else(|| {
                "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)"
                    .to_owned()
            });
        }
        let class = spec.and_then(|spec| spec.storage_class_name.as_deref());
        let class = class.and_then(|class| self.world.class(class));
        let mode = class.as_ref().and_then(|class| class.volume_binding_mode.as_deref());
        if mode == Some("WaitForFirstConsumer") {
            return Ok(Claimed::Waiting(claim));
        }
        Err("pod has unbound immediate PersistentVolumeClaims".to_owned())
    }

    fn refusal(
        &self,
        pod: &Pod,
        volumes: &[&PersistentVolume],
        waiting: &[Arc<PersistentVolumeClaim>],
        node: &Node,
    ) -> Option<String> {
        let name = node.name_any();
        let elsewhere = |claim: &Arc<PersistentVolumeClaim>| {
            selected(claim).is_some_and(|selected| selected != name)
        };
        fit::refusal(pod, volumes, node, self.world.is_lost(&name)).or_else(|| {
            let bound = waiting.iter().any(elsewhere);
            bound.then(|| "node(s) didn't find available persistent volumes to bind".to_owned())
        })
    }

    async fn bind(&mut self, pod: &Pod, node: String) {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let binding = Binding {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                uid: pod.uid(),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Node".to_owned()),
                name: Some(node.clone()),
                ..ObjectReference::default()
            },
        };
        let pods = self.world.namespaced::<Pod>(&namespace);
        let post = PostParams::default();
        let bound: kube::Result<serde_json::Value> =
            pods.create_subresource("binding", &name, &post, &binding).await;
        if self.world.heed(&format!("binding Pod {name}"), bound).is_none() {
            return;
        }
        self.bound.insert(pod.uid().unwrap_or_default(), node.clone());
        let message = format!("Successfully assigned {namespace}/{name} to {node}");
        self.world.say(&self.voice, pod, Kind::Normal, "Scheduled", &message).await;
        self.world.record.add(Deed::Scheduled { namespace, pod: name, node });
    }

    async fn select(&self, pod: &Pod, claim: &str, node: &str) {
        let namespace = pod.namespace().unwrap_or_default();
        let claims = self.world.namespaced::<PersistentVolumeClaim>(&namespace);
        let with = json!({ "metadata": { "annotations": { SELECTED_NODE: node } } });
        let patched = claims.patch(claim, &PatchParams::default(), &Patch::Merge(&with)).await;
        if self.world.heed(&format!("selecting a node for claim {claim}"), patched).is_some() {
            let (claim, node) = (claim.to_owned(), node.to_owned());
            self.world.record.add(Deed::NodeSelected { namespace, claim, node });
        }
    }

    async fn refuse(&mut self, pod: &Pod, message: String) {
        let uid = pod.uid().unwrap_or_default();
        if self.told.get(&uid) == Some(&message) {
            return;
        }
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let since =
            pod.status.as_ref().and_then(|status| status.conditions.as_ref()).and_then(|all| {
                let said =
                    all.iter().find(|one| one.type_ == "PodScheduled" && one.status == "False")?;
                said.last_transition_time.clone()
            });
        let status = json!({ "status": { "conditions": [{
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
            "lastTransitionTime": since.unwrap_or(Time(Timestamp::now())),
        }] } });
        let pods = self.world.namespaced::<Pod>(&namespace);
        let patch = Patch::Strategic(&status);
        let patched = pods.patch_status(&name, &PatchParams::default(), &patch).await;
        if self.world.heed(&format!("refusing Pod {name}"), patched).is_none() {
            return;
        }
        self.told.insert(uid, message.clone());
        self.world.say(&self.voice, pod, Kind::Warning, "FailedScheduling", &message).await;
        self.world.record.add(Deed::Unschedulable { namespace, pod: name, message });
    }
}

enum Claimed {
    Bound(Arc<PersistentVolume>),
    /// For its first consumer, which is this one.
    Waiting(Arc<PersistentVolumeClaim>),
}

fn selected(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.annotations().get(SELECTED_NODE).map(String::as_str).filter(|node| !node.is_empty())
}

/// The claims that a Pod's volumes name, and whether each is the Pod's own.
pub(crate) fn claims(pod: &Pod) -> Vec<(String, bool)> {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    let mut claims = Vec::new();
    for volume in volumes {
        if let Some(source) = &volume.persistent_volume_claim {
            claims.push((source.claim_name.clone(), false));
        } else if volume.ephemeral.is_some() {
            claims.push((format!("{}-{}", pod.name_any(), volume.name), true));
        }
    }
    claims
}
