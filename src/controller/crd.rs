//! The resource `OSSVolumePopulator`, as users write it and as they read its status.
#![allow(unreachable_pub, reason = "KubeSchema repeats the structs where nothing reaches them")]
#![allow(clippy::duplicated_attributes, reason = "each column has a name and a type")]

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, ResourceRequirements, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The API group of the resource, and the prefix of our own labels and annotations.
pub const GROUP: &str = "storage.alibabacloud.com";
/// The resource's kind.
pub const KIND: &str = "OSSVolumePopulator";

/// Where the objects of a volume come from, and how they get there.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[kube(
    group = "storage.alibabacloud.com",
    version = "v1beta1",
    kind = "OSSVolumePopulator",
    plural = "ossvolumepopulators",
    singular = "ossvolumepopulator",
    shortname = "ossvp",
    category = "storage",
    namespaced,
    status = "OSSVolumePopulatorStatus",
    derive = "PartialEq",
    doc = "A prefix of an OSS bucket whose objects fill new volumes. A PersistentVolumeClaim of the same namespace names it in dataSourceRef.",
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(name = "Bucket", type_ = "string", json_path = ".spec.bucket"),
    printcolumn(name = "Path", type_ = "string", json_path = ".spec.path"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Progress", type_ = "string", json_path = ".status.progress"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("self.mode != 'generic' || has(self.generic)", "generic: mode generic needs generic.secretRef or generic.rrsaConfigs, so that the worker may read the bucket"),
    validation = ("self.mode == 'generic' || !has(self.generic)", "generic: only for mode generic"),
    validation = ("self.mode == 'bmcpfs-dataflow' || !has(self.bmcpfsDataflow)", "bmcpfsDataflow: only for mode bmcpfs-dataflow")
)]
pub struct OSSVolumePopulatorSpec {
    /// The bucket's name.
    #[schemars(length(min = 3, max = 63), regex(pattern = "^[a-z0-9][a-z0-9-]*[a-z0-9]$"))]
    pub bucket: String,
    /// The bucket's region, such as cn-hangzhou.
    #[schemars(length(min = 1, max = 64), regex(pattern = "^[a-z0-9-]+$"))]
    pub region: String,
    /// The address of OSS, such as oss-cn-hangzhou-internal.aliyuncs.com; https unless it says http://.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^(https?://)?[A-Za-z0-9.\[\]:-]+/?$")
    )]
    pub endpoint: String,
    /// The prefix of the objects' keys, such as /models/qwen3/; a leading slash is dropped. Without
    /// it, the whole bucket.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1023))]
    #[x_kube(validation = ("!self.split('/').exists(segment, segment == '..')", "path: no segment may be '..'"))]
    pub path: String,
    /// Who moves the data: a worker Pod (generic), or CPFS itself (bmcpfs-dataflow).
    #[serde(default)]
    pub mode: Mode,
    /// For mode bmcpfs-dataflow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bmcpfs_dataflow: Option<BmcpfsDataflow>,
    /// For mode generic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generic: Option<Generic>,
}

/// Who moves the data.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    #[default]
    Generic,
    BmcpfsDataflow,
}

/// What CPFS is asked for.
#[derive(Serialize, Deserialize, KubeSchema, Debug, Clone, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BmcpfsDataflow {
    /// The most MB/s that the data flow moves: 600, 1200 or 1500. Without it, CPFS's own default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = ("self in [600, 1200, 1500]", "throughput: 600, 1200 or 1500"))]
    pub throughput: Option<i64>,
    /// SSL encrypts the transfer. Without it, no encryption.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_security_type: Option<SourceSecurityType>,
    /// Whether the data comes with the metadata, or with the first read of each file.
    #[serde(default)]
    pub data_type: DataType,
}

/// How the transfer from OSS is secured.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceSecurityType {
    SSL,
}

/// What is moved before the volume is bound.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum DataType {
    Metadata,
    #[default]
    MetadataAndData,
}

/// How the worker Pod fills the volume.
#[derive(Serialize, Deserialize, KubeSchema, Debug, Clone, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("has(self.secretRef) != has(self.rrsaConfigs)", "generic: exactly one of secretRef and rrsaConfigs")
)]
pub struct Generic {
    /// Labels of the worker Pod.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations of the worker Pod.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// A Secret of the populator namespace with accessKeyId and accessKeySecret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub secret_ref: Option<String>,
    /// A RAM role that the worker assumes by its service account's token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rrsa_configs: Option<RrsaConfigs>,
    /// Where the worker Pod may run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Which taints the worker Pod tolerates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// Labels of the nodes on which the worker Pod may run.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// The worker Pod's priority class; the administrator must have allowed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
    /// The worker's requests and limits. Without it, 500m and 128Mi are requested and 512Mi are the
    /// limit of memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// The worker's user id, for volumes whose root belongs to a certain user. Default: 65532.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub run_as_user: Option<i64>,
    /// The group that the volume is made writable for. Default: 65532.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub fs_group: Option<i64>,
    /// How many worker Pods fill the volume side by side, each its share of the objects, on nodes of
    /// their own if there are enough. Above 1 only for claims of accessModes ReadWriteMany. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 256))]
    pub parallelism: Option<u32>,
    /// How many worker Pods of each share may fail before the population does. Default: 6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub backoff_limit: Option<i32>,
    /// The most MB/s (10^6 bytes) that all workers together fetch. Without it, as fast as they can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub throughput: Option<u64>,
    /// How the bucket is named in a request. Default: auto.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addressing: Option<Addressing>,
    /// Requests in flight, of all workers together. Without it, each finds its level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4096))]
    pub concurrency: Option<u32>,
    /// Bytes of one ranged request, from 64KiB, such as 16MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = r"^[0-9]+(\.[0-9]+)? ?([kKMGT]i?B|B)?$"))]
    pub part_size: Option<String>,
    /// Globs on the path in the volume: only objects that match one are taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), inner(length(min = 1, max = 1023)))]
    pub include: Vec<String>,
    /// Globs on the path in the volume: objects that match one are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), inner(length(min = 1, max = 1023)))]
    pub exclude: Vec<String>,
    /// Which checksums to insist on ("off" needs the quotes in YAML). Default: auto.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<Verify>,
    /// Whether each file's SHA-256 is recorded in .ossvp/SHA256SUMS.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sha256: bool,
    /// What becomes of a key that is no safe path. Default: fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unmappable: Option<Unmappable>,
    /// Whether a prefix without objects makes an empty volume instead of an error.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_empty: bool,
}

/// A RAM role for service accounts.
#[derive(Serialize, Deserialize, KubeSchema, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RrsaConfigs {
    /// The role, such as acs:ram::1234567:role/oss-populator.
    #[schemars(length(max = 512), regex(pattern = "^acs:ram::[^:]+:role/.+$"))]
    pub role_arn: String,
    /// The cluster's OIDC provider, such as acs:ram::1234567:oidc-provider/my-provider.
    #[schemars(length(max = 512), regex(pattern = "^acs:ram::[^:]+:oidc-provider/.+$"))]
    pub oidc_provider_arn: String,
}

/// How the bucket is named in a request.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum Addressing {
    Auto,
    Virtual,
    Path,
    Cname,
}

/// Which checksums to insist on.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum Verify {
    Auto,
    Require,
    Off,
}

/// What becomes of a key that is no safe path.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum Unmappable {
    Fail,
    Escape,
    Skip,
}

/// What became of the volumes that name the resource.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct OSSVolumePopulatorStatus {
    /// The generation of the spec that the conditions speak of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The phase of the volume that needs most attention.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// How much of all volumes in progress is there, such as 59%.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// One line for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// CPFS data flows, by the UID of the claim.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub bmcpfs_dataflow: BTreeMap<String, DataflowStatus>,
    /// Ready: the spec can be used. Reconciling: a volume is being filled. Stalled: one cannot be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The volumes, at most 50 finished ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["pvcUID"]))]
    pub populations: Vec<Population>,
}

/// A data flow of CPFS.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct DataflowStatus {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_flow_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_flow_task_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_set_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_system_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
}

/// How far a volume is, in the order of its life.
#[derive(
    Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash,
)]
pub enum Phase {
    Finished,
    Deleting,
    Waiting,
    Provisioning,
    Populating,
    Rebinding,
    Failed,
}

/// One volume.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Population {
    /// The claim's UID.
    #[serde(rename = "pvcUID")]
    pub pvc_uid: String,
    /// The claim's name.
    pub pvc_name: String,
    /// How far it is.
    pub phase: Phase,
    /// Why, or what is waited for.
    pub message: String,
    /// How much of it is there, such as 59%, once the source is listed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// Bytes in the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Bytes listed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
    /// Objects in the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects: Option<u64>,
    /// Bytes a second, lately or of the whole run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    /// The newest worker Pod, in the populator namespace; of several, one that does not run yet, else
    /// one that does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_name: Option<String>,
    /// How many worker Pods have failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_pods: Option<i32>,
    /// When the worker was first asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When the volume was handed over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
}
