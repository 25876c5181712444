//! The controller, against a real API server and the real controllers of Kubernetes: binder, Job
//! controller, garbage collector. A stand-in plays node, scheduler and CSI driver, and runs the real
//! worker, which fetches from an OSS server.
//!
//! Where the cases of other populators' tests are found, and where we differ on purpose:
//!
//! | case | test |
//! |---|---|
//! | claim of the populators' own namespace; no data source; other group, kind; empty name; another namespace | `flow::a_claim_in_the_populator_namespace_itself_is_ignored`, `flow::claims_of_other_populators_and_without_any_are_left_alone`, and the table at `source_of` |
//! | data source across namespaces, with or without a grant | never served: the resource is of the claim's namespace |
//! | data source or class absent: nothing is made | `flow::a_claim_waits_for_…` |
//! | WaitForFirstConsumer without a node | `flow::a_claim_that_waits_for_its_consumer_…` |
//! | prime PVC of the same shape, RWX and RWOP included; labels not copied | `build::tests::volume`, `flow::a_claim_for_a_single_pod_…`, `safety::workers_…_may_be_root…` |
//! | a Pod is created: with the node's name | ours goes where PV, affinity and tolerations let it: no `nodeName` |
//! | a Pod failed: it is deleted and made again | a Job retries with a backoff and keeps failed Pods: `failures::*` |
//! | PV absent; wait for the rebind; clean up; delete the claim | `decide::tests`, `decide::model`, `deletion::*` |
//! | `ClaimMisbound` of the prime PVC is not copied | `Case::reasons`: exactly our own events |
//! | a volume bound by hand is not filled | `flow::a_claim_bound_by_hand_…` |
//! | events and progress, 100% at the end | `flow::progress_…`, `flow::a_claim_of_an_immediate_class_…` |
//! | several workers fill one volume | `shards::*`; no other populator does that |
//! | a spec that changes is refused | ours fills a fresh volume: `failures::a_changed_spec_…` |
//! | the source deleted in mid-run | `deletion::a_resource_deleted_…`, `deletion::a_claim_deleted_after_its_resource_…` |
//! | killed after each step | `restart::*` |
//! | the kind is registered where that is possible | `restart::one_of_two_replicas_…` |

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(unreachable_pub, reason = "a test binary has no outside")]

mod case;
mod dataflow;
mod deletion;
mod failures;
mod flow;
mod resource;
mod restart;
mod safety;
mod shards;
mod world;

#[path = "../support/mod.rs"]
mod support;
