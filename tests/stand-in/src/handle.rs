//! The handle that a test holds.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::{EvictParams, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config, ResourceExt};
use rustix::process::Signal;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinSet;

use crate::kubelet::log::Part;
use crate::kubelet::{self, Order, node, server};
use crate::options::{Options, ProvisionFailure};
use crate::record::Deed;
use crate::rules::Rule;
use crate::world::World;
use crate::{provisioner, scheduler};

/// The node lifecycle controller takes its first taint away within 5 s of a node's being ready;
/// a busy machine takes its time until it runs at all.
const READY: Duration = Duration::from_secs(60);

/// What a stand-in could not do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It mounts, and starts processes as other users.
    #[error("a stand-in node needs root")]
    NotRoot,
    /// The host refused.
    #[error("{0}")]
    Host(String, #[source] std::io::Error),
    /// The kubeconfig is none.
    #[error("kubeconfig {}", .0.display())]
    Config(PathBuf, #[source] Box<KubeconfigError>),
    /// The API refused.
    #[error("{0}")]
    Api(String, #[source] Box<kube::Error>),
    /// The control plane did not take the nodes for ready.
    #[error("node {0} is not ready and free of the control plane's taints after {READY:?}")]
    NodeNotReady(String),
    /// A claim has no volume.
    #[error("claim {0} is not bound to a volume of this driver")]
    NotBound(String),
    /// There is no such Pod on a stand-in node, or nothing of it runs.
    #[error("no Pod {0} runs on a stand-in node")]
    NotRunning(String),
    /// No such signal.
    #[error("{0} is no signal")]
    NoSignal(i32),
    /// No such node.
    #[error("{0} is not one of the stand-in's nodes")]
    NoNode(String),
}

/// Node, scheduler and CSI driver, until it is dropped.
///
/// It runs on the runtime that it was started on. A test that blocks that runtime's only thread
/// stops it meanwhile.
#[derive(Debug)]
pub struct StandIn {
    world: Arc<World>,
    port: u16,
    tasks: JoinSet<()>,
    /// Where its requests are made: a connection dies with the runtime that opened it.
    runtime: Handle,
    own: Option<Runtime>,
}

impl StandIn {
    /// Registers the nodes, and returns once Pods can be scheduled to them.
    ///
    /// # Errors
    ///
    /// Without root, or where the host, the API or the node lifecycle controller does not do its
    /// part.
    pub async fn start(client: Client, options: Options) -> Result<Self, Error> {
        if !rustix::process::geteuid().is_root() {
            return Err(Error::NotRoot);
        }
        let host = |what: &str| {
            let what = what.to_owned();
            move |error| Error::Host(what, error)
        };
        let (world, mirrors) =
            World::new(client, options).map_err(host("making a place for volumes"))?;
        let world = Arc::new(world);
        let (listener, port) = server::listen().await.map_err(host("listening as a kubelet"))?;
        let acceptor = server::acceptor().map_err(host("making a certificate"))?;
        let mut this = Self {
            world: Arc::clone(&world),
            port,
            tasks: JoinSet::new(),
            runtime: Handle::current(),
            own: None,
        };
        for mirror in mirrors {
            this.tasks.spawn(mirror);
        }
        let made = node::register_driver(&world).await;
        made.map_err(|error| api("registering the driver", error))?;
        for spec in world.options.nodes() {
            let made = node::register(&world, &spec, port).await;
            made.map_err(|error| api(&format!("registering node {}", spec.name), error))?;
            this.tasks.spawn(node::beat(Arc::clone(&world), spec.name));
        }
        this.tasks.spawn(server::serve(Arc::clone(&world), listener, acceptor));
        this.tasks.spawn(provisioner::run(Arc::clone(&world)));
        this.tasks.spawn(scheduler::run(Arc::clone(&world)));
        this.tasks.spawn(kubelet::run(world));
        this.wait_for_nodes().await?;
        Ok(this)
    }

    /// As [`StandIn::start`], on a runtime of its own: for a static that many tests share. Blocks.
    ///
    /// # Errors
    ///
    /// As [`StandIn::start`].
    pub fn start_alone(kubeconfig: &Path, options: Options) -> Result<Self, Error> {
        let kubeconfig = kubeconfig.to_owned();
        // from a thread of its own, as the caller's may belong to a runtime
        std::thread::spawn(move || {
            let own = Builder::new_multi_thread().worker_threads(2).enable_all().build();
            let own = own.map_err(|error| Error::Host("making a runtime".to_owned(), error))?;
            let mut this =
                own.block_on(async { Self::start(client(&kubeconfig).await?, options).await })?;
            this.own = Some(own);
            Ok(this)
        })
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// What talks to the API does so where the stand-in runs.
    async fn there<T, F>(&self, work: impl FnOnce(Arc<World>) -> F) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let done = self.runtime.spawn(work(Arc::clone(&self.world))).await;
        // the runtime is there as long as this is, and nobody aborts it
        done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    async fn wait_for_nodes(&self) -> Result<(), Error> {
        let mut changes = self.world.changes();
        let closed = || {
            let nodes = self.world.options.nodes().into_iter();
            let is_open =
                |name: &str| self.world.node(name).is_some_and(|node| node::is_open(&node));
            nodes.map(|spec| spec.name).find(|name| !is_open(name))
        };
        let waiting = async {
            while closed().is_some() {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        let waited = tokio::time::timeout(READY, waiting).await;
        match (waited, closed()) {
            (Err(_), Some(name)) => Err(Error::NodeNotReady(name)),
            _ => Ok(()),
        }
    }

    /// Ends everything, and takes the nodes and their Pods out of the API.
    ///
    /// # Errors
    ///
    /// If the API refuses; all else has ended by then.
    pub async fn stop(self) -> Result<(), Error> {
        self.there(|world| async move {
            for spec in world.options.nodes() {
                let gone = node::unregister(&world, &spec.name).await;
                gone.map_err(|error| api(&format!("removing node {}", spec.name), error))?;
            }
            Ok(())
        })
        .await
    }

    /// Where a PersistentVolume's data is on the host.
    pub fn volume(&self, name: &str) -> PathBuf {
        self.world.disk.volume(name)
    }

    /// Where the data of a claim is that is bound.
    ///
    /// # Errors
    ///
    /// If the claim is not bound to a volume of this driver.
    pub async fn volume_of(&self, namespace: &str, claim: &str) -> Result<PathBuf, Error> {
        let (namespace, claim) = (namespace.to_owned(), claim.to_owned());
        self.there(|world| async move {
            let full = format!("{namespace}/{claim}");
            let claims = world.namespaced::<PersistentVolumeClaim>(&namespace);
            let found = claims.get_opt(&claim).await;
            let found = found.map_err(|error| api(&format!("reading claim {full}"), error))?;
            let volume = found.and_then(|claim| claim.spec?.volume_name);
            let volume = volume.ok_or_else(|| Error::NotBound(full.clone()))?;
            let found = world.cluster::<PersistentVolume>().get_opt(&volume).await;
            let found = found.map_err(|error| api(&format!("reading volume {volume}"), error))?;
            let csi = found.and_then(|volume| volume.spec?.csi);
            let csi = csi.filter(|csi| world.options.drives(&csi.driver));
            csi.ok_or(Error::NotBound(full))?;
            Ok(world.disk.volume(&volume))
        })
        .await
    }

    /// The names of all volumes on the host whose PersistentVolume is gone.
    ///
    /// # Errors
    ///
    /// If the host or the API does not tell.
    pub async fn leftovers(&self) -> Result<Vec<String>, Error> {
        // the directories first: one that is made meanwhile is none that was left
        let there = self.world.disk.volumes();
        let mut there =
            there.map_err(|error| Error::Host("listing directories".to_owned(), error))?;
        let listed = self.there(|world| async move {
            world.cluster::<PersistentVolume>().list(&ListParams::default()).await
        });
        let listed = listed.await;
        let listed = listed.map_err(|error| api("listing volumes", error))?;
        let known: Vec<String> = listed.items.iter().map(ResourceExt::name_any).collect();
        there.retain(|name| !known.contains(name));
        Ok(there)
    }

    /// No volume is made for these claims as long as the rule lives.
    pub fn hold_provisioning(
        &self,
        claims: impl Fn(&PersistentVolumeClaim) -> bool + Send + Sync + 'static,
    ) -> Rule {
        self.world.rules.provisioning.add(claims, ())
    }

    /// Making volumes for these claims fails, again each second, as long as the rule lives.
    pub fn fail_provisioning(
        &self,
        claims: impl Fn(&PersistentVolumeClaim) -> bool + Send + Sync + 'static,
        how: ProvisionFailure,
    ) -> Rule {
        self.world.rules.failures.add(claims, how)
    }

    /// Nothing is begun for these Pods by their nodes as long as the rule lives; what runs, runs.
    pub fn hold_pods(&self, pods: impl Fn(&Pod) -> bool + Send + Sync + 'static) -> Rule {
        self.world.rules.pods.add(pods, ())
    }

    /// These Pods are not bound to a node as long as the rule lives.
    pub fn hold_scheduling(&self, pods: impl Fn(&Pod) -> bool + Send + Sync + 'static) -> Rule {
        self.world.rules.scheduling.add(pods, ())
    }

    /// Sends a signal to each of a Pod's main processes. As in any container, one that the process
    /// has no handler for does nothing, but for SIGKILL and SIGSTOP.
    ///
    /// # Errors
    ///
    /// If there is no such signal, or nothing of the Pod runs.
    pub async fn signal(&self, namespace: &str, pod: &str, signal: i32) -> Result<(), Error> {
        let signal = Signal::from_named_raw(signal).ok_or(Error::NoSignal(signal))?;
        self.order(namespace, pod, Order::Signal(signal)).await
    }

    /// Ends a Pod's processes as if they had used up their memory.
    ///
    /// # Errors
    ///
    /// If nothing of the Pod runs.
    pub async fn oom_kill(&self, namespace: &str, pod: &str) -> Result<(), Error> {
        self.order(namespace, pod, Order::OutOfMemory).await
    }

    /// Evicts a Pod through the API, as draining a node does.
    ///
    /// # Errors
    ///
    /// If the API refuses, e.g. for a PodDisruptionBudget.
    pub async fn evict(&self, namespace: &str, pod: &str) -> Result<(), Error> {
        let what = format!("evicting Pod {namespace}/{pod}");
        let (namespace, pod) = (namespace.to_owned(), pod.to_owned());
        let evicted = self.there(|world| async move {
            world.namespaced::<Pod>(&namespace).evict(&pod, &EvictParams::default()).await
        });
        evicted.await.map(drop).map_err(|error| api(&what, error))
    }

    /// Ends a Pod as a kubelet does that runs short of something.
    ///
    /// # Errors
    ///
    /// If the Pod is not on a stand-in node, or has ended.
    pub async fn evict_by_kubelet(
        &self,
        namespace: &str,
        pod: &str,
        message: &str,
    ) -> Result<(), Error> {
        self.order(namespace, pod, Order::Evict(message.to_owned())).await
    }

    async fn order(&self, namespace: &str, pod: &str, order: Order) -> Result<(), Error> {
        match self.world.orders.order(namespace, pod, order).await {
            true => Ok(()),
            false => Err(Error::NotRunning(format!("{namespace}/{pod}"))),
        }
    }

    /// A node is gone: its processes have ended, it says nothing any more, and nobody can tell what
    /// is on it.
    ///
    /// # Errors
    ///
    /// If it is none of the stand-in's nodes, or the API refuses.
    pub async fn lose_node(&self, name: &str) -> Result<(), Error> {
        self.set_lost(name, true).await
    }

    /// A lost node is back, and says what became of its Pods.
    ///
    /// # Errors
    ///
    /// As [`StandIn::lose_node`].
    pub async fn restore_node(&self, name: &str) -> Result<(), Error> {
        self.set_lost(name, false).await
    }

    async fn set_lost(&self, name: &str, lost: bool) -> Result<(), Error> {
        if !self.world.options.nodes().iter().any(|node| node.name == name) {
            return Err(Error::NoNode(name.to_owned()));
        }
        self.world.set_lost(name, lost);
        let (node, port) = (name.to_owned(), self.port);
        let reported =
            self.there(|world| async move { node::report(&world, &node, port, !lost).await }).await;
        reported.map_err(|error| api(&format!("status of node {name}"), error))
    }

    /// What a container's last run has written so far; also of a Pod that is gone.
    pub fn log(&self, namespace: &str, pod: &str, container: &str) -> Option<String> {
        let key = [namespace, pod, container].map(str::to_owned);
        let (text, _) = self.world.logs.get(&key, false)?.read(&Part::default());
        Some(String::from_utf8_lossy(&text).into_owned())
    }

    /// What was done so far.
    pub fn deeds(&self) -> Vec<Deed> {
        self.world.record.all()
    }

    /// Waits until the deeds are as they should be. `what` names it.
    ///
    /// # Panics
    ///
    /// With all deeds, after 30 s.
    pub async fn until(&self, what: &str, seen: impl Fn(&[Deed]) -> bool) {
        self.world.record.until(what, |deeds| seen(deeds).then_some(())).await;
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.tasks.abort_all();
        self.world.processes.close();
        self.world.disk.close();
        if let Some(own) = self.own.take() {
            own.shutdown_background();
        }
    }
}

async fn client(kubeconfig: &Path) -> Result<Client, Error> {
    let unusable = |error| Error::Config(kubeconfig.to_owned(), Box::new(error));
    let read = Kubeconfig::read_from(kubeconfig).map_err(unusable)?;
    let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await;
    Client::try_from(config.map_err(unusable)?).map_err(|error| api("connecting", error))
}

fn api(what: &str, error: kube::Error) -> Error {
    Error::Api(what.to_owned(), Box::new(error))
}
