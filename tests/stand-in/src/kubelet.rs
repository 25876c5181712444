//! The kubelets of all nodes, and the endpoint that they share.

mod container;
mod env;
mod files;
mod identity;
mod launch;
pub(crate) mod log;
pub(crate) mod node;
mod pod;
pub(crate) mod processes;
pub(crate) mod server;
mod status;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::ResourceExt;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

pub(crate) use self::pod::Order;
use self::pod::{Life, Ordered};
use crate::world::World;

/// Every node's address, and every Pod's: they share the host's network.
pub(crate) const ADDRESS: &str = "127.0.0.1";

/// How to give orders to the Pods that live.
#[derive(Debug, Default)]
pub(crate) struct Pods(Mutex<Lives>);

/// By namespace and name the uid of the latest Pod, and who obeys for it.
type Lives = BTreeMap<[String; 2], (String, mpsc::UnboundedSender<Ordered>)>;

impl Pods {
    /// Whether there was a Pod to obey.
    pub(crate) async fn order(&self, namespace: &str, pod: &str, order: Order) -> bool {
        let key = [namespace, pod].map(str::to_owned);
        let Some((_, orders)) = self.lock().get(&key).cloned() else { return false };
        let (answer, answered) = oneshot::channel();
        orders.send((order, answer)).is_ok() && answered.await.unwrap_or(false)
    }

    fn lock(&self) -> MutexGuard<'_, Lives> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives every Pod on one of the nodes its life, for as long as it is polled.
pub(crate) async fn run(world: Arc<World>) {
    let nodes: Vec<String> = world.options.nodes().into_iter().map(|node| node.name).collect();
    let mut lives: JoinSet<String> = JoinSet::new();
    let mut known: BTreeSet<String> = BTreeSet::new();
    let mut changes = world.changes();
    loop {
        changes.borrow_and_update();
        for pod in world.pods.state() {
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
            let Some(node) = node.filter(|node| nodes.contains(node)) else { continue };
            let (namespace, uid) = (pod.namespace().unwrap_or_default(), pod.uid());
            let uid = uid.unwrap_or_default();
            if known.contains(&uid) || !world.options.looks_after(&namespace) {
                continue;
            }
            known.insert(uid.clone());
            let (orders, ordered) = mpsc::unbounded_channel();
            let key = [namespace, pod.name_any()];
            world.orders.lock().insert(key.clone(), (uid.clone(), orders));
            let life = Life::new(Arc::clone(&world), pod, node);
            let world = Arc::clone(&world);
            lives.spawn(async move {
                life.live(ordered).await;
                let mut pods = world.orders.lock();
                if pods.get(&key).is_some_and(|(latest, _)| *latest == uid) {
                    pods.remove(&key);
                }
                uid
            });
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            Some(ended) = lives.join_next() => {
                // one that panicked has said so on stderr, and is not tried again
                if let Ok(uid) = ended {
                    known.remove(&uid);
                }
            }
        }
    }
}
