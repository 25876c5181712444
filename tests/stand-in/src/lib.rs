//! Stands in for node, scheduler and CSI driver beside a real kube-apiserver and
//! kube-controller-manager, so that a controller can be tested in seconds against what it will meet.
//!
//! What the API shows is meant to be as it is with the real ones: the events, conditions, waiting
//! reasons and annotations that others act on. A Pod's command is really run, in mounts of its own,
//! with its volumes, environment and user; a volume is a real directory, or a file system of a real
//! size.
//!
//! - [`StandIn`] is the handle: it starts everything, and ends everything when it is dropped.
//! - `world` is the cluster as last seen; three loops act on it, each on all of it at every change.
//! - `provisioner` makes and removes volumes, kept by `disk`.
//! - `scheduler` binds Pods to nodes.
//! - `kubelet` has a life for every Pod on a node, and serves logs.
//!
//! It needs root: for mount namespaces, loop devices, and to run processes as the users that Pods
//! name. [`StandIn::start`] says so where it is not.
//!
//! It leaves out: probes, lifecycle hooks, sidecars, what resources ask for, seccomp, Services,
//! affinity between Pods, topology spread, preemption, preferences, static volumes for claims that
//! wait for a consumer, block volumes, attaching, resizing, snapshots, clones, and later changes of
//! mounted Secrets and tokens.

mod disk;
mod events;
mod handle;
mod kubelet;
mod options;
mod provisioner;
mod quantity;
mod record;
mod rules;
mod scheduler;
mod world;

pub use handle::{Error, StandIn};
pub use options::{FILESETS, Image, NodeSpec, Options, PROVISIONER, ProvisionFailure};
pub use record::Deed;
pub use rules::Rule;
