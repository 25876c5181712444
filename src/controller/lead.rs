//! Which replica leads, and what it does first.
//!
//! That two never write at once does not rest on the Lease alone, since clocks and networks fail:
//! every change is conditional on what was seen, and made twice it is made once.

use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, PostParams};
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder};
use serde_json::json;
use tokio::sync::watch::{Receiver, Sender};
use tokio::task::JoinHandle;

use super::Error;
use super::crd::{GROUP, KIND};
use super::settings::Settings;

/// The Lease.
pub(super) const LEASE: &str = "ossvp-controller";
/// How long a leader that fell silent is waited for, and how long before that it renews, both in
/// seconds, as Kubernetes' own controllers do.
const SECONDS: u64 = 15;
const GRACE: u64 = 5;

/// A Lease that is held.
pub(super) struct Held {
    leads: Receiver<bool>,
    renewal: Renewal,
}

/// What keeps a Lease.
enum Renewal {
    By(JoinHandle<kube_lease_manager::Result<LeaseManager>>),
    /// There is none; the sender is kept, since its end would be the loss of one.
    Needless(#[allow(dead_code, reason = "kept")] Sender<bool>),
}

/// This process: its host's name (in a Pod, the Pod's) and something that no other replica has.
pub(super) fn identity() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{host}_{:08x}", rand::random::<u32>())
}

/// Waits until this process leads; at once where it needs no Lease.
pub(super) async fn win(
    client: &Client,
    settings: &Settings,
    identity: &str,
) -> Result<Held, Error> {
    let Some(namespace) = &settings.lease_namespace else {
        let (sender, leads) = tokio::sync::watch::channel(true);
        return Ok(Held { leads, renewal: Renewal::Needless(sender) });
    };
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Lease {
        namespace: namespace.clone(),
        name: LEASE,
        source,
    };
    let manager = LeaseManagerBuilder::new(client.clone(), LEASE)
        .with_namespace(namespace)
        .with_identity(identity)
        .with_duration(SECONDS)
        .with_grace(GRACE)
        .build()
        .await
        .map_err(|error| failed(error.into()))?;
    let (mut leads, task) = manager.watch().await;
    tracing::info!(identity, namespace, "waiting to lead");
    leads.wait_for(|leads| *leads).await.map_err(|error| failed(error.into()))?;
    tracing::info!(identity, "leading");
    Ok(Held { leads, renewal: Renewal::By(task) })
}

impl Held {
    /// Returns when another replica may lead.
    pub(super) async fn lost(&mut self) {
        // an error is the end of the task that renews
        let _ = self.leads.wait_for(|leads| !leads).await;
    }

    /// Lets the next replica lead at once.
    pub(super) async fn release(self) {
        let Self { leads, renewal } = self;
        drop(leads);
        if let Renewal::By(task) = renewal {
            // what cannot be released runs out by itself
            let _ = tokio::time::timeout(std::time::Duration::from_secs(2), task).await;
        }
    }
}

/// Makes our kind known to the validator of volume populators, where a cluster has it: it only warns
/// about kinds it does not know.
pub(super) async fn register(client: &Client) {
    let kind = GroupVersionKind::gvk("populator.storage.k8s.io", "v1beta1", "VolumePopulator");
    let resource = ApiResource::from_gvk(&kind);
    let mut populator = DynamicObject::new(&format!("ossvolumepopulators.{GROUP}"), &resource);
    populator.data = json!({"sourceKind": {"group": GROUP, "kind": KIND}});
    let api = Api::<DynamicObject>::all_with(client.clone(), &resource);
    match api.create(&PostParams::default(), &populator).await {
        Ok(_) => tracing::info!("registered as a volume populator"),
        Err(kube::Error::Api(status)) if status.is_already_exists() || status.is_not_found() => {}
        Err(error) => tracing::warn!(%error, "cannot be registered as a volume populator"),
    }
}
