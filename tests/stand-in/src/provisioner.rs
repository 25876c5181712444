//! The CSI driver and its external-provisioner, in what the API shows of them.

mod volume;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::time::Instant;

use crate::events::{Kind, Voice};
use crate::record::Deed;
use crate::world::World;

/// The PV binder asks a provisioner for a volume by this annotation.
const PROVISIONER: [&str; 2] =
    ["volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner"];
/// The scheduler tells by this annotation where a claim's consumer will run.
pub(crate) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

/// The real one begins at one second too, and doubles; tests want it at once when a rule is lifted.
const RETRY: Duration = Duration::from_secs(1);

/// Provisions and removes for as long as it is polled.
pub(crate) async fn run(world: Arc<World>) {
    let component = format!("{}_stand-in", world.options.provisioner);
    let mut provisioner =
        Provisioner { voice: Voice { component, host: None }, world, again: HashMap::new() };
    let mut changes = provisioner.world.changes();
    loop {
        changes.borrow_and_update();
        provisioner.pass().await;
        let next = provisioner.again.values().min().copied();
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = until(next) => {}
        }
    }
}

/// Never, if there is nothing to wait for.
pub(crate) async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

struct Provisioner {
    world: Arc<World>,
    voice: Voice,
    /// When what failed (a claim's uid, a volume's name) is tried again.
    again: HashMap<String, Instant>,
}

impl Provisioner {
    async fn pass(&mut self) {
        let now = Instant::now();
        self.again.retain(|_, when| *when > now);
        for claim in self.world.claims.state() {
            let uid = claim.uid().unwrap_or_default();
            if self.wants(&claim) && !self.again.contains_key(&uid) {
                self.provision(&claim).await;
            }
        }
        for volume in self.world.volumes.state() {
            if self.is_to_go(&volume) && !self.again.contains_key(&volume.name_any()) {
                self.remove(&volume).await;
            }
        }
    }

    fn drives(&self, driver: &str) -> bool {
        self.world.options.drives(driver)
    }

    fn wants(&self, claim: &PersistentVolumeClaim) -> bool {
        let ours = |key: &&str| claim.annotations().get(*key).is_some_and(|it| self.drives(it));
        let bound = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref());
        claim.metadata.deletion_timestamp.is_none()
            && bound.is_none_or(str::is_empty)
            && PROVISIONER.iter().any(ours)
            && self.world.options.looks_after(&claim.namespace().unwrap_or_default())
    }

    async fn provision(&mut self, claim: &PersistentVolumeClaim) {
        let world = Arc::clone(&self.world);
        let Some(class) = class_of(&world, claim) else { return };
        let selected = claim.annotations().get(SELECTED_NODE).map(String::as_str);
        let waits = class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer");
        if waits && selected.is_none_or(str::is_empty) {
            return;
        }
        let name = format!("pvc-{}", claim.uid().unwrap_or_default());
        if world.volume(&name).is_some() {
            // the PV binder's turn
            return;
        }
        let source = source(claim);
        if let Some(Source::Unknown) = source {
            self.leave(claim).await;
            return;
        }
        if world.rules.provisioning.of(claim).is_some() {
            return;
        }
        let namespace = claim.namespace().unwrap_or_default();
        let begins = format!(
            "External provisioner is provisioning volume for claim \"{namespace}/{}\"",
            claim.name_any()
        );
        world.say_once(&self.voice, claim, "Provisioning", &begins).await;
        if let Some(failure) = world.rules.failures.of(claim) {
            self.failed(claim, &class, &failure.message, failure.reschedule && waits).await;
            return;
        }
        if let Some(Source::Known(kind)) = source {
            let message = format!("a {kind} as the source is not supported");
            self.failed(claim, &class, &message, false).await;
            return;
        }
        match self.make(claim, &class, selected.filter(|_| waits)).await {
            Ok(volume) => self.create(claim, volume).await,
            Err(message) => self.failed(claim, &class, &message, false).await,
        }
    }

    /// A claim with a source of a kind that this driver does not know.
    async fn leave(&self, claim: &PersistentVolumeClaim) {
        let message = "Assuming an external populator will provision the volume";
        if self.world.say_once(&self.voice, claim, "Provisioning", message).await {
            self.world.record.add(Deed::LeftToPopulator {
                namespace: claim.namespace().unwrap_or_default(),
                claim: claim.name_any(),
            });
        }
    }

    async fn make(
        &self,
        claim: &PersistentVolumeClaim,
        class: &StorageClass,
        selected: Option<&str>,
    ) -> Result<PersistentVolume, String> {
        let node = match selected {
            Some(name) => {
                Some(self.world.node(name).ok_or_else(|| format!("node {name:?} not found"))?)
            }
            None => None,
        };
        let (volume, make) = volume::volume(class, claim, node.as_deref())?;
        let world = Arc::clone(&self.world);
        let name = volume.name_any();
        let made = tokio::task::spawn_blocking(move || world.disk.make(&name, make));
        made.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        if let Some(made) = self.world.options.filesets.as_deref()
            && let Some(fileset) = volume::fileset(class, &volume)
        {
            made(&fileset.file_system, &fileset.id, &fileset.path);
        }
        Ok(volume)
    }

    async fn create(&mut self, claim: &PersistentVolumeClaim, volume: PersistentVolume) {
        let world = &self.world;
        let created = world.cluster().create(&PostParams::default(), &volume).await;
        let name = volume.name_any();
        // if it worked, the mirror shows the volume long before
        self.again.insert(claim.uid().unwrap_or_default(), Instant::now() + RETRY);
        if world.heed(&format!("creating {name}"), created).is_none() {
            return;
        }
        let message = format!("Successfully provisioned volume {name}");
        world.say(&self.voice, claim, Kind::Normal, "ProvisioningSucceeded", &message).await;
        world.record.add(Deed::Provisioned {
            namespace: claim.namespace().unwrap_or_default(),
            claim: claim.name_any(),
            volume: name,
        });
    }

    async fn failed(
        &mut self,
        claim: &PersistentVolumeClaim,
        class: &StorageClass,
        message: &str,
        reschedule: bool,
    ) {
        let namespace = claim.namespace().unwrap_or_default();
        self.again.insert(claim.uid().unwrap_or_default(), Instant::now() + RETRY);
        let full = format!(
            "failed to provision volume with StorageClass {:?}: {message}",
            class.name_any()
        );
        self.world.say(&self.voice, claim, Kind::Warning, "ProvisioningFailed", &full).await;
        self.world.record.add(Deed::ProvisioningFailed {
            namespace: namespace.clone(),
            claim: claim.name_any(),
            message: message.to_owned(),
        });
        if reschedule {
            let without = json!({ "metadata": { "annotations": { SELECTED_NODE: null } } });
            let claims = self.world.namespaced::<PersistentVolumeClaim>(&namespace);
            let name = claim.name_any();
            let patched =
                claims.patch(&name, &PatchParams::default(), &Patch::Merge(&without)).await;
            self.world.heed(&format!("taking the node from claim {name}"), patched);
        }
    }

    /// Released volumes whose policy is Delete, and those that were asked to go while bound to
    /// nothing.
    fn is_to_go(&self, volume: &PersistentVolume) -> bool {
        let ours = volume.annotations().get(volume::PROVISIONED_BY);
        let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
        let spec = volume.spec.as_ref();
        let policy = spec.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
        let namespace = spec.and_then(|spec| spec.claim_ref.as_ref()?.namespace.as_deref());
        let going = volume.metadata.deletion_timestamp.is_some();
        ours.is_some_and(|driver| self.drives(driver))
            && matches!(phase, Some("Released" | "Failed"))
            && policy == Some("Delete")
            && namespace.is_none_or(|namespace| self.world.options.looks_after(namespace))
            && (!going || guarded(volume))
    }

    async fn remove(&mut self, volume: &PersistentVolume) {
        let name = volume.name_any();
        self.again.insert(name.clone(), Instant::now() + RETRY);
        let world = Arc::clone(&self.world);
        let removed = {
            let (world, name) = (Arc::clone(&world), name.clone());
            tokio::task::spawn_blocking(move || world.disk.remove(&name)).await
        };
        let error = match removed {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(error) = error {
            world.say(&self.voice, volume, Kind::Warning, "VolumeFailedDelete", &error).await;
            return;
        }
        let volumes = world.cluster::<PersistentVolume>();
        let deleted = volumes.delete(&name, &DeleteParams::default()).await;
        let what = format!("deleting {name}");
        if world.heed(&what, deleted).is_none() || !guarded(volume) {
            return;
        }
        if world.heed(&what, without_finalizer(&volumes, &name).await).is_some() {
            world.record.add(Deed::VolumeDeleted { volume: name });
        }
    }
}

fn guarded(volume: &PersistentVolume) -> bool {
    volume.finalizers().iter().any(|finalizer| finalizer == volume::FINALIZER)
}

/// Others remove theirs at the same time, so this goes by the version that was read.
async fn without_finalizer(volumes: &Api<PersistentVolume>, name: &str) -> kube::Result<()> {
    loop {
        let mut volume = volumes.get(name).await?;
        volume.finalizers_mut().retain(|finalizer| finalizer != volume::FINALIZER);
        match volumes.replace(name, &PostParams::default(), &volume).await {
            Err(kube::Error::Api(status)) if status.is_conflict() => {}
            other => return other.map(drop),
        }
    }
}

fn class_of(world: &World, claim: &PersistentVolumeClaim) -> Option<Arc<StorageClass>> {
    let class = world.class(claim.spec.as_ref()?.storage_class_name.as_deref()?)?;
    world.options.drives(&class.provisioner).then_some(class)
}

enum Source {
    /// What CSI drivers may know.
    Known(String),
    Unknown,
}

fn source(claim: &PersistentVolumeClaim) -> Option<Source> {
    let spec = claim.spec.as_ref()?;
    let reference = spec.data_source_ref.as_ref().map(|source| (&source.api_group, &source.kind));
    let plain = spec.data_source.as_ref().map(|source| (&source.api_group, &source.kind));
    let (group, kind) = reference.or(plain)?;
    Some(match (group.as_deref().unwrap_or_default(), kind.as_str()) {
        ("", "PersistentVolumeClaim") | ("snapshot.storage.k8s.io", "VolumeSnapshot") => {
            Source::Known(kind.clone())
        }
        _ => Source::Unknown,
    })
}
