//! Labels, annotations and names of what the controller makes. Pure.

/// Keeps a claim until everything that was made for it is gone.
pub(crate) const FINALIZER: &str = "storage.alibabacloud.com/populate-target-protection";
/// On prime PVC, Job and Pods: the UID of the claim they are made for.
pub(crate) const CLAIM_UID: &str = "storage.alibabacloud.com/pvc-uid";
/// On prime PVC, Job and Pods, as annotation: namespace and name of the claim, with a `/` between.
pub(crate) const CLAIM: &str = "storage.alibabacloud.com/pvc";
/// On the prime PVC, as annotation: digest of the spec by which its volume is filled.
pub(crate) const SPEC_DIGEST: &str = "storage.alibabacloud.com/spec-digest";
/// On the prime PVC, as annotation: the node that its volume is made for. The provisioner takes
/// [`SELECTED_NODE`] away when that node can have none; this one stays.
pub(crate) const MADE_FOR_NODE: &str = "storage.alibabacloud.com/made-for-node";
/// On the prime PVC, as annotation: how the population failed for good, as JSON.
pub(crate) const FAILURE: &str = "storage.alibabacloud.com/failure";
/// On the prime PVC, as annotation: how often all shards had to look again, as JSON.
pub(crate) const ROUNDS: &str = "storage.alibabacloud.com/rounds";
/// On the Job, as annotation: the UID of the prime PVC whose volume it fills.
pub(crate) const PRIME_UID: &str = "storage.alibabacloud.com/prime-uid";
/// On the Job, as annotation: what its Pods prove themselves with, and which version of it.
pub(crate) const ACCESS: &str = "storage.alibabacloud.com/access";
/// On the prime PVC, as annotation: what CPFS is asked for, as JSON.
pub(crate) const DATA_FLOW: &str = "storage.alibabacloud.com/data-flow";
/// Keeps a prime PVC until CPFS has nothing more that was made for it.
pub(crate) const DATA_FLOW_FINALIZER: &str = "storage.alibabacloud.com/data-flow-protection";
/// On the PV, as annotation: namespace of the claim and name of the resource.
pub(crate) const POPULATED_FROM: &str = "storage.alibabacloud.com/populated-from";
/// On Secrets and service accounts of the populator namespace, as annotation: the namespaces whose
/// resources may use them (`--require-grant`), separated by commas; `*` is all.
pub(crate) const ALLOWED_NAMESPACES: &str = "storage.alibabacloud.com/allowed-namespaces";
/// On service accounts of the populator namespace, as annotation: the RAM role that is granted.
pub(crate) const ROLE_ARN: &str = "storage.alibabacloud.com/role-arn";
/// On service accounts of the populator namespace, as annotation: the bucket that CPFS may be asked
/// for (`--require-grant`).
pub(crate) const BUCKET: &str = "storage.alibabacloud.com/bucket";
/// On everything that the controller makes.
pub(crate) const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "ossvp");

/// Kubernetes' own finalizer of claims; once a claim is being deleted, it goes with the last Pod.
pub(crate) const IN_USE: &str = "kubernetes.io/pvc-protection";
/// What CSI's external-provisioner and the PV controller look at.
pub(crate) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

/// The service account that worker Pods run as, unless a grant names another.
pub(crate) const WORKER_ACCOUNT: &str = "ossvp-worker";
/// What Kubernetes says on a Pod of an Indexed Job, as annotation.
pub(crate) const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// The variable by which it says the same in each container.
pub(crate) const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";
/// What tells one node from another.
pub(crate) const NODE: &str = "kubernetes.io/hostname";
/// The worker's container.
pub(crate) const CONTAINER: &str = "populate";

/// The name of a claim's prime PVC.
pub(crate) fn prime(uid: &str) -> String {
    format!("prime-{uid}")
}

/// How the descriptions of data flows begin that the controller has made.
pub(crate) const DATA_FLOWS: &str = "ossvp-";

/// What marks a data flow as made for a prime PVC: its description.
pub(crate) fn data_flow(prime_uid: &str) -> String {
    format!("{DATA_FLOWS}{prime_uid}")
}

/// The name of a claim's Job.
pub(crate) fn job(uid: &str) -> String {
    format!("populate-{uid}")
}
