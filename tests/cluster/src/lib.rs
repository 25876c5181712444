//! A real Kubernetes for tests, as processes of this machine: no containers, no image registry.
//!
//! [`ControlPlane`] is etcd, kube-apiserver and kube-controller-manager. `build` beside this crate
//! builds them the first time (minutes) and finds them again from then on; starting takes seconds.
//! [`Node`] adds a machine that runs Pods: kube-scheduler, kubelet, containerd, and a driver for
//! volumes with its external-provisioner, in namespaces of their own, which only root may make.
//!
//! The program `cluster` starts both and runs a command beside them: `cargo run -p cluster -- bash`.
//!
//! All that a cluster starts and writes is gone when it is dropped, and also when the process of
//! the test is killed.

mod api;
mod audit;
mod binaries;
mod component;
mod control_plane;
mod error;
mod keeper;
mod kubeconfig;
mod node;
mod options;
mod pki;
mod wait;

pub use api::{Answer, Api};
pub use audit::{Audit, AuditEvent};
pub use control_plane::ControlPlane;
pub use error::Error;
pub use node::{Image, Node, NodeOptions};
pub use options::Options;
pub use wait::eventually;
