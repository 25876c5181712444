//! The life of one Pod on its node: volumes, initial containers, containers, end.
//!
//! Each pass looks at what is wanted and what is there and does the next step; what wakes it is a
//! change in the cluster, a process that ended, a test's order, or a time that was set.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use rustix::process::Signal;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::container::{Exit, Place, Unit};
use super::status::{End, Since, State, View};
use super::volumes::{self, Volumes};
use crate::events::{Kind, Voice};
use crate::provisioner::until;
use crate::record::Deed;
use crate::world::World;

/// How often what was missing is looked for, or what the API refused is tried.
const RETRY: Duration = Duration::from_millis(500);

/// What a test wants of a Pod.
#[derive(Debug)]
pub(crate) enum Order {
    Signal(Signal),
    OutOfMemory,
    Evict(String),
}

/// An order, and where to say whether there was anything to obey.
pub(crate) type Ordered = (Order, oneshot::Sender<bool>);

/// One Pod on its node.
pub(crate) struct Life {
    world: Arc<World>,
    pod: Arc<Pod>,
    node: String,
    voice: Voice,
    started: Timestamp,
    initial: Vec<Unit>,
    main: Vec<Unit>,
    volumes: Option<Volumes>,
    exits: (mpsc::UnboundedSender<Exit>, mpsc::UnboundedReceiver<Exit>),
    /// Set once it is to end: the grace, and when it is over.
    ending: Option<(Duration, Instant)>,
    evicted: Option<String>,
    /// Nothing runs any more, nor will.
    over: bool,
    /// Its place on the host is gone.
    cleared: bool,
    removed: bool,
    published: Option<Value>,
    since: Since,
    retry: Option<Instant>,
}

impl Life {
    pub(crate) fn new(world: Arc<World>, pod: Arc<Pod>, node: String) -> Self {
        let spec = pod.spec.clone().unwrap_or_default();
        let initial = spec.init_containers.unwrap_or_default();
        let after = if initial.is_empty() { "ContainerCreating" } else { "PodInitializing" };
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        // of a stand-in before this one
        let over = matches!(phase, Some("Failed" | "Succeeded"));
        Self {
            voice: Voice { component: "kubelet".to_owned(), host: Some(node.clone()) },
            started: Timestamp::now(),
            initial: initial.iter().map(|one| Unit::new(one, after)).collect(),
            main: spec.containers.iter().map(|one| Unit::new(one, after)).collect(),
            volumes: None,
            exits: mpsc::unbounded_channel(),
            ending: None,
            evicted: None,
            over,
            cleared: over,
            removed: false,
            published: over.then_some(Value::Null),
            since: Since::default(),
            retry: None,
            world,
            pod,
            node,
        }
    }

    /// Until the Pod is gone.
    pub(crate) async fn live(mut self, mut orders: mpsc::UnboundedReceiver<Ordered>) {
        let mut changes = self.world.changes();
        loop {
            changes.borrow_and_update();
            let now = self.world.pod(&self.namespace(), &self.pod.name_any());
            match now.filter(|pod| pod.uid() == self.pod.uid()) {
                Some(pod) => self.pod = pod,
                None => break,
            }
            self.retry = None;
            if self.world.is_lost(&self.node) {
                self.lose();
            } else {
                self.step().await;
                self.publish().await;
                self.remove().await;
            }
            let next = self.next();
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { break },
                Some(exit) = self.exits.1.recv() => self.exited(&exit),
                Some((order, answer)) = orders.recv() => {
                    // who asked may have gone
                    let _gone = answer.send(self.obey(order));
                }
                () = until(next) => {}
            }
        }
        // deleted by force, or gone with its node
        self.signal(Signal::KILL);
        while self.units().any(|unit| unit.seen.is_running()) {
            let Some(exit) = self.exits.1.recv().await else { break };
            self.exited(&exit);
        }
        self.clear().await;
        let (namespace, pod) = (self.namespace(), self.pod.name_any());
        if !self.removed {
            self.world.record.add(Deed::Removed { namespace, pod });
        }
    }

    fn namespace(&self) -> String {
        self.pod.namespace().unwrap_or_default()
    }

    fn units(&self) -> impl Iterator<Item = &Unit> {
        self.initial.iter().chain(&self.main)
    }

    fn policy(&self) -> String {
        let policy = self.pod.spec.as_ref().and_then(|spec| spec.restart_policy.clone());
        policy.unwrap_or_else(|| "Always".to_owned())
    }

    /// When to look again though nothing changed.
    fn next(&self) -> Option<Instant> {
        let deadline = self.ending.filter(|_| !self.over).map(|(_, deadline)| deadline);
        let starts = self.volumes.is_some() && self.ending.is_none() && !self.over;
        let due = self.units().filter_map(|unit| unit.next()).filter(|_| starts);
        // one that is not its turn is due in the past, and no reason to look
        let due = due.filter(|due| *due > Instant::now());
        due.chain(deadline).chain(self.retry).min()
    }

    async fn step(&mut self) {
        if self.over {
            self.clear().await;
            return;
        }
        if let Some(grace) = self.grace() {
            self.end(grace);
        } else if self.world.rules.pods.of(&self.pod).is_none() {
            self.go_on().await;
        }
        if self.over {
            self.clear().await;
        }
    }

    /// How long it has, if it is to end.
    fn grace(&self) -> Option<Duration> {
        let whole = self.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
        let seconds = match (&self.pod.metadata.deletion_timestamp, &self.evicted) {
            (Some(_), _) => self.pod.metadata.deletion_grace_period_seconds.or(whole),
            (None, Some(_)) => whole,
            (None, None) => return None,
        };
        Some(Duration::from_secs(u64::try_from(seconds.unwrap_or(30)).unwrap_or(0)))
    }

    fn end(&mut self, grace: Duration) {
        let now = Instant::now();
        match &mut self.ending {
            None => {
                self.ending = Some((grace, now + grace));
                self.signal(Signal::TERM);
            }
            // asked again, with less patience
            Some((before, deadline)) if grace < *before => {
                (*before, *deadline) = (grace, (*deadline).min(now + grace));
            }
            Some(_) => {}
        }
        if self.ending.is_some_and(|(_, deadline)| deadline <= now) {
            self.signal(Signal::KILL);
        }
        if self.units().any(|unit| unit.seen.is_running()) {
            return;
        }
        for unit in self.initial.iter_mut().chain(&mut self.main) {
            if matches!(unit.seen.state, State::Waiting { .. }) {
                unit.seen.state = State::Ended(End::unknown());
            }
        }
        self.over = true;
    }

    async fn go_on(&mut self) {
        if self.volumes.is_none() {
            match volumes::prepare(&self.world, &self.pod, &self.node).await {
                Ok(volumes) => self.volumes = Some(volumes),
                Err(why) => {
                    self.retry = Some(Instant::now() + RETRY);
                    let world = &self.world;
                    world.say(&self.voice, &*self.pod, Kind::Warning, "FailedMount", &why).await;
                    return;
                }
            }
        }
        let policy = self.policy();
        // an initial container that succeeded is not for its Pod's policy to run again
        let initial_policy = if policy == "Always" { "OnFailure" } else { &policy };
        for unit in &mut self.initial {
            unit.restart(initial_policy);
        }
        for unit in &mut self.main {
            unit.restart(&policy);
        }
        let Some(volumes) = &self.volumes else { return };
        let place = Place {
            world: &self.world,
            pod: &self.pod,
            voice: &self.voice,
            volumes,
            exits: &self.exits.0,
        };
        let now = Instant::now();
        let first =
            self.initial.iter_mut().find(|unit| unit.seen.end().is_none_or(|end| end.code != 0));
        if let Some(unit) = first {
            if unit.next().is_some_and(|due| due <= now) {
                unit.start(&place).await;
            }
        } else {
            for unit in &mut self.main {
                if unit.next().is_some_and(|due| due <= now) {
                    unit.start(&place).await;
                }
            }
        }
        self.over = matches!(self.view().phase(), "Failed" | "Succeeded");
        if self.units().any(|unit| unit.seen.end().is_some()) && !self.over {
            // a start that failed, with a policy that tries again
            self.retry = Some(now + RETRY);
        }
    }

    fn exited(&mut self, exit: &Exit) {
        let units = self.initial.iter_mut().chain(&mut self.main);
        for unit in units.filter(|unit| unit.seen.name == exit.container) {
            unit.exited(exit, &self.world, &self.pod);
        }
    }

    /// Whether there was anything to obey.
    fn obey(&mut self, order: Order) -> bool {
        let running = self.units().any(|unit| unit.seen.is_running());
        match order {
            Order::Signal(signal) => self.signal(signal),
            Order::OutOfMemory => {
                let units = self.initial.iter_mut().chain(&mut self.main);
                units.filter(|unit| unit.seen.is_running()).for_each(Unit::run_out_of_memory);
            }
            Order::Evict(message) => {
                let evicts = !self.over && self.evicted.is_none();
                if evicts {
                    self.evicted = Some(message);
                }
                return evicts;
            }
        }
        running
    }

    fn signal(&self, signal: Signal) {
        self.units().filter(|unit| unit.seen.is_running()).for_each(|unit| unit.signal(signal));
    }

    /// With its node: what it knew is gone, and nobody is told yet.
    fn lose(&mut self) {
        if !self.over {
            self.initial.iter_mut().chain(&mut self.main).for_each(Unit::lose);
        }
    }

    fn view(&self) -> View<'_> {
        View {
            uid: self.pod.metadata.uid.as_deref().unwrap_or_default(),
            restart_policy: self
                .pod
                .spec
                .as_ref()
                .and_then(|spec| spec.restart_policy.as_deref())
                .unwrap_or("Always"),
            started: self.started,
            address: super::ADDRESS,
            mounted: self.volumes.is_some(),
            initial: self.initial.iter().map(|unit| &unit.seen).collect(),
            main: self.main.iter().map(|unit| &unit.seen).collect(),
            evicted: self.evicted.as_deref(),
            over: self.over,
        }
    }

    async fn publish(&mut self) {
        if self.removed || self.published == Some(Value::Null) {
            return;
        }
        let mut since = std::mem::take(&mut self.since);
        let status = self.view().status(&mut since);
        self.since = since;
        if self.published.as_ref() == Some(&status) {
            return;
        }
        let (name, uid) = (self.pod.name_any(), self.pod.uid());
        // the uid, so that it is never another Pod of the same name
        let mut patch = status.clone();
        patch["metadata"] = serde_json::json!({ "uid": uid });
        let pods = self.world.namespaced::<Pod>(&self.namespace());
        let patched =
            pods.patch_status(&name, &PatchParams::default(), &Patch::Strategic(&patch)).await;
        if self.world.heed(&format!("status of Pod {name}"), patched).is_some() {
            self.published = Some(status);
        } else {
            self.retry = Some(Instant::now() + RETRY);
        }
    }

    /// Once it has ended and everyone was told: gone from its node, and so from the API, unless a
    /// finalizer keeps it.
    async fn remove(&mut self) {
        let told = self.published.is_some() && self.retry.is_none();
        let deleting = self.pod.metadata.deletion_timestamp.is_some();
        if self.removed || !self.over || !told || !deleting {
            return;
        }
        let (namespace, pod) = (self.namespace(), self.pod.name_any());
        let preconditions = Preconditions { uid: self.pod.uid(), resource_version: None };
        let params = DeleteParams::default().grace_period(0).preconditions(preconditions);
        let deleted = self.world.namespaced::<Pod>(&namespace).delete(&pod, &params).await;
        let gone = matches!(&deleted, Err(kube::Error::Api(status)) if status.is_not_found());
        if self.world.heed(&format!("removing Pod {pod}"), deleted).is_some() || gone {
            self.removed = true;
            self.world.record.add(Deed::Removed { namespace, pod });
        } else {
            self.retry = Some(Instant::now() + RETRY);
        }
    }

    /// Its volumes are free, and nothing of it is left on the host.
    async fn clear(&mut self) {
        if self.cleared {
            return;
        }
        self.cleared = true;
        let uid = self.pod.uid().unwrap_or_default();
        let world = Arc::clone(&self.world);
        let cleared = tokio::task::spawn_blocking(move || {
            world.disk.release(&uid);
            let place = world.disk.pod(&uid);
            world.disk.unmount(&place)?;
            match std::fs::remove_dir_all(place) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                other => other,
            }
        });
        let error = match cleared.await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        let what = format!("clearing Pod {}", self.pod.name_any());
        self.world.record.add(Deed::Refused { what, error });
    }
}
