//! The objects that the controller makes. Pure: from claim, resource and settings to what is sent to
//! the API server.

use std::collections::BTreeMap;
use std::path::PathBuf;

use k8s_openapi::api::batch::v1::{
    Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement,
    PodFailurePolicyOnPodConditionsPattern, PodFailurePolicyRule,
};
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, EnvVar, EnvVarSource, KeyToPath,
    PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec,
    PersistentVolumeClaimVolumeSource, PodSecurityContext, PodSpec, PodTemplateSpec,
    ProjectedVolumeSource, ResourceRequirements, SeccompProfile, SecretKeySelector,
    SecurityContext, ServiceAccountTokenProjection, TopologySpreadConstraint, Volume, VolumeMount,
    VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::ResourceExt;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::crd::{Addressing, Generic, Mode, OSSVolumePopulatorSpec, Unmappable, Verify};
use super::policy::{Access, Refusal};
use super::settings::{Security, WorkerSettings};
use super::{names, words};
use crate::handoff::{self, Direct, ExitCode, PopulateArgs, ProgressStyle, Rate, ShardOf, Verdict};
use crate::keys::{Dialect, Prefix, SourceUrl, hex};

/// Where things are in the worker's container.
const VOLUME: &str = "/volume";
const OUTCOME: &str = "/dev/termination-log";
const CA_FOLDER: &str = "/etc/ossvp/ca";
const CA_FILE: &str = "ca.crt";
/// As ACK's own webhook mounts it.
pub(super) const TOKEN_FOLDER: &str = "/var/run/secrets/ack.alibabacloud.com/rrsa-tokens";
pub(super) const TOKEN_FILE: &str = "token";
/// Whom the token is for: STS checks it.
pub(super) const TOKEN_AUDIENCE: &str = "sts.aliyuncs.com";
/// The kubelet renews the token when four fifths of it are over; ACK allows up to 12 hours.
pub(super) const TOKEN_SECONDS: i64 = 3600;

/// User and group of a worker that no one gave any: the one that images call `nonroot`.
const NOBODY: i64 = 65532;
/// Worker Pods of each share that may fail before the population does. With the Job controller's
/// backoff of 10 s, doubling, up to 6 minutes, that is some 16 minutes of trying.
const BACKOFF_LIMIT: i32 = 6;

/// How many workers fill a volume by `spec`.
pub(crate) fn workers(spec: &OSSVolumePopulatorSpec) -> u32 {
    // elsewhere CPFS does the work, whatever is left of another mode
    let generic = spec.generic.as_ref().filter(|_| spec.mode == Mode::Generic);
    let asked = generic.and_then(|generic| generic.parallelism);
    // as the resource's own rule, for clusters that do not check it
    asked.unwrap_or(1).clamp(1, ShardOf::MOST)
}

/// The arguments of the worker that fills a volume by `spec`; of several, those of the first.
///
/// # Errors
/// A field that is no argument.
pub(crate) fn arguments(
    spec: &OSSVolumePopulatorSpec,
    ca_bundle: bool,
) -> Result<PopulateArgs, Refusal> {
    let invalid = |field: &str, error: &dyn std::fmt::Display| Refusal {
        reason: "PopulatorInvalid",
        message: format!("{field}: {error}"),
    };
    let generic = spec.generic.clone().unwrap_or_default();
    let bucket = spec.bucket.parse().map_err(|error| invalid("bucket", &error))?;
    for (field, globs) in
        [("generic.include", &generic.include), ("generic.exclude", &generic.exclude)]
    {
        globs
            .iter()
            .try_for_each(|glob| check_glob(glob))
            .map_err(|error| invalid(field, &error))?;
    }
    let part_size = generic.part_size.as_deref().map(str::parse).transpose();
    let workers = workers(spec);
    let too_little = |field: &str| {
        invalid(field, &format!("too little for {workers} workers; raise it, or lower parallelism"))
    };
    let throughput = generic.throughput.map(|all| {
        let all: Rate =
            all.to_string().parse().map_err(|error| invalid("generic.throughput", &error))?;
        all.shared_by(workers).ok_or_else(|| too_little("generic.throughput"))
    });
    let concurrency = generic.concurrency.map(|all| match all / workers {
        0 => Err(too_little("generic.concurrency")),
        share => Ok(share),
    });
    Ok(PopulateArgs {
        source: SourceUrl::Bucket {
            dialect: Dialect::Oss,
            bucket,
            prefix: Prefix::new(spec.path.trim_start_matches('/')),
        },
        volume: Some(PathBuf::from(VOLUME)),
        endpoint: Some(spec.endpoint.clone()),
        region: Some(spec.region.clone()),
        addressing: match generic.addressing.unwrap_or(Addressing::Auto) {
            Addressing::Auto => "auto",
            Addressing::Virtual => "virtual",
            Addressing::Path => "path",
            Addressing::Cname => "cname",
        }
        .to_owned(),
        anonymous: false,
        ca_bundle: ca_bundle.then(|| PathBuf::from(CA_FOLDER).join(CA_FILE)),
        timeout: None,
        retry_for: None,
        include: generic.include,
        exclude: generic.exclude,
        unmappable: match generic.unmappable.unwrap_or(Unmappable::Fail) {
            Unmappable::Fail => handoff::Unmappable::Fail,
            Unmappable::Escape => handoff::Unmappable::Escape,
            Unmappable::Skip => handoff::Unmappable::Skip,
        },
        shard: ShardOf { index: 0, count: workers },
        allow_empty: generic.allow_empty,
        throughput: throughput.transpose()?,
        request_rate: None,
        concurrency: concurrency.transpose()?,
        part_size: part_size.map_err(|error| invalid("generic.partSize", &error))?,
        direct: Direct::Auto,
        verify: match generic.verify.unwrap_or(Verify::Auto) {
            Verify::Auto => handoff::VerifyMode::Auto,
            Verify::Require => handoff::VerifyMode::Require,
            Verify::Off => handoff::VerifyMode::Off,
        },
        sha256: generic.sha256,
        plan_first: false,
        dry_run: false,
        force: false,
        outcome: Some(PathBuf::from(OUTCOME)),
        report: None,
        progress: ProgressStyle::Json,
    })
}

/// A newline would make two of it, and a NUL no argument at all.
fn check_glob(glob: &str) -> Result<(), String> {
    if glob.contains(['\n', '\0']) {
        return Err(format!("{glob:?}: neither newlines nor NULs"));
    }
    globset::Glob::new(glob).map(drop).map_err(|error| error.to_string())
}

/// What tells one spec from another: 32 hex digits.
pub(crate) fn digest(spec: &OSSVolumePopulatorSpec) -> String {
    // maps are sorted and absent fields are left out, so that equal specs have equal texts
    let text = serde_json::to_vec(spec).expect("a spec came from JSON");
    hex(&Sha256::digest(text)[..16])
}

fn ours(claim: &PersistentVolumeClaim) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
    let (key, value) = names::MANAGED_BY;
    let uid = claim.uid().unwrap_or_default();
    let labels = [(key, value.to_owned()), (names::CLAIM_UID, uid)];
    let path = format!("{}/{}", claim.namespace().unwrap_or_default(), claim.name_any());
    let owned = |(key, value): (&str, String)| (key.to_owned(), value);
    (labels.map(owned).into(), [(names::CLAIM, path)].map(owned).into())
}

/// The prime PVC: what the user's claim asks for, in the populator namespace and without a data
/// source, so that the provisioner makes the volume.
pub(crate) fn prime(
    claim: &PersistentVolumeClaim,
    digest: &str,
    namespace: &str,
) -> PersistentVolumeClaim {
    let spec = claim.spec.clone().unwrap_or_default();
    let (mut labels, mut annotations) = ours(claim);
    // a backup of a half-filled volume is of no use
    labels.insert("velero.io/exclude-from-backup".to_owned(), "true".to_owned());
    annotations.insert(names::SPEC_DIGEST.to_owned(), digest.to_owned());
    if let Some(node) = claim.annotations().get(names::SELECTED_NODE) {
        annotations.insert(names::SELECTED_NODE.to_owned(), node.clone());
        annotations.insert(names::MADE_FOR_NODE.to_owned(), node.clone());
    }
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(names::prime(&claim.uid().unwrap_or_default())),
            namespace: Some(namespace.to_owned()),
            labels: Some(labels),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: spec.access_modes,
            resources: spec.resources,
            storage_class_name: spec.storage_class_name,
            volume_attributes_class_name: spec.volume_attributes_class_name,
            volume_mode: spec.volume_mode,
            // what would bind it to a certain volume, or fill it by other means
            selector: None,
            volume_name: None,
            data_source: None,
            data_source_ref: None,
        }),
        status: None,
    }
}

/// The Job that fills the prime PVC's volume: by one Pod, or by an index for each share.
///
/// # Errors
/// A field of the spec that is no argument of the worker.
pub(crate) fn job(
    claim: &PersistentVolumeClaim,
    prime: &PersistentVolumeClaim,
    spec: &OSSVolumePopulatorSpec,
    access: &Access,
    worker: &WorkerSettings,
) -> Result<Job, Refusal> {
    let generic = spec.generic.clone().unwrap_or_default();
    let args = arguments(spec, worker.ca_configmap.is_some())?;
    let (labels, mut annotations) = ours(claim);
    let prime_uid = prime.uid().unwrap_or_default();
    let template = PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(generic.labels.clone().into_iter().chain(labels.clone()).collect()),
            annotations: Some(
                generic.annotations.clone().into_iter().chain(annotations.clone()).collect(),
            ),
            ..ObjectMeta::default()
        }),
        spec: Some(pod(&generic, &args, prime, access, worker)),
    };
    let backoff_limit = generic.backoff_limit.unwrap_or(BACKOFF_LIMIT);
    // at most 256
    let workers = args.shard.count as i32;
    let spec = JobSpec {
        pod_failure_policy: Some(failure_policy(workers > 1)),
        template,
        ..JobSpec::default()
    };
    let spec = match workers {
        1 => JobSpec { backoff_limit: Some(backoff_limit), ..spec },
        _ => JobSpec {
            completion_mode: Some("Indexed".to_owned()),
            completions: Some(workers),
            parallelism: Some(workers),
            // a cluster that does not count by index drops these two, and keeps to the Job's limit,
            // which another one never comes to: before that, an index has come to its own
            backoff_limit_per_index: Some(backoff_limit),
            max_failed_indexes: Some(0),
            backoff_limit: Some(backoff_limit * workers),
            ..spec
        },
    };
    annotations.insert(names::PRIME_UID.to_owned(), prime_uid.clone());
    annotations.insert(names::ACCESS.to_owned(), words::access(access));
    Ok(Job {
        metadata: ObjectMeta {
            name: Some(names::job(&claim.uid().unwrap_or_default())),
            namespace: prime.namespace(),
            labels: Some(labels),
            annotations: Some(annotations),
            // should everything else fail, a Job does not outlive the claim that it fills
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "PersistentVolumeClaim".to_owned(),
                name: prime.name_any(),
                uid: prime_uid,
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    })
}

/// What the Job controller makes of exit codes. The first rule that matches counts.
fn failure_policy(shared: bool) -> PodFailurePolicy {
    let codes = |wanted: fn(ExitCode) -> bool| {
        let all = ExitCode::ALL.into_iter().filter(|code| wanted(*code));
        Some(PodFailurePolicyOnExitCodesRequirement {
            container_name: Some(names::CONTAINER.to_owned()),
            operator: "In".to_owned(),
            values: all.map(|code| i32::from(code.number())).collect(),
        })
    };
    let rule = |action: &str, on_exit_codes, on_pod_conditions| PodFailurePolicyRule {
        action: action.to_owned(),
        on_exit_codes,
        on_pod_conditions,
    };
    let disrupted = PodFailurePolicyOnPodConditionsPattern {
        type_: "DisruptionTarget".to_owned(),
        status: Some("True".to_owned()),
    };
    let mut rules = vec![
        // an evicted Pod, or one whose node went away, says nothing about the volume
        rule("Ignore", None, Some(vec![disrupted])),
        rule("FailJob", codes(|code| code.verdict() == Verdict::Stop), None),
        rule("Ignore", codes(|code| code.verdict() == Verdict::RetryAtOnce), None),
    ];
    if shared {
        // a new listing is of use only to all of them, also when this Pod is evicted
        rules.insert(0, rule("FailJob", codes(|code| code == ExitCode::Changed), None));
    }
    PodFailurePolicy { rules }
}

/// The worker's command line. Which share is its own, a Pod of several learns by a variable that the
/// Job controller gives it.
fn command_line(args: &PopulateArgs) -> Vec<String> {
    let first = format!("--shard={}", args.shard);
    let own = format!("--shard=$({})/{}", names::INDEX_VARIABLE, args.shard.count);
    let shared = args.shard.count > 1;
    let line = handoff::argv(args).into_iter();
    line.map(|arg| if shared && arg == first { own.clone() } else { literal(&arg) }).collect()
}

/// Each worker on a node of its own, as far as there are any: it is the network card of one that
/// bounds how fast it is. Not if the resource says which Pods its workers go beside.
fn spread(
    generic: &Generic,
    args: &PopulateArgs,
    prime: &PersistentVolumeClaim,
) -> Option<Vec<TopologySpreadConstraint>> {
    let affinity = generic.affinity.as_ref();
    let told =
        affinity.is_some_and(|it| it.pod_affinity.is_some() || it.pod_anti_affinity.is_some());
    let claim = prime.labels().get_key_value(names::CLAIM_UID);
    let of_claim = claim.map(|(key, uid)| LabelSelector {
        match_labels: Some(BTreeMap::from([(key.clone(), uid.clone())])),
        ..LabelSelector::default()
    });
    (args.shard.count > 1 && !told).then(|| {
        vec![TopologySpreadConstraint {
            max_skew: 1,
            topology_key: names::NODE.to_owned(),
            when_unsatisfiable: "ScheduleAnyway".to_owned(),
            label_selector: of_claim,
            ..TopologySpreadConstraint::default()
        }]
    })
}

fn pod(
    generic: &Generic,
    args: &PopulateArgs,
    prime: &PersistentVolumeClaim,
    access: &Access,
    worker: &WorkerSettings,
) -> PodSpec {
    let restricted = worker.security == Security::Restricted;
    let user = generic.run_as_user.unwrap_or(if restricted { NOBODY } else { 0 });
    let group = generic.fs_group.unwrap_or(if restricted { NOBODY } else { 0 });
    let mut volumes = vec![Volume {
        name: "target".to_owned(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: prime.name_any(),
            read_only: None,
        }),
        ..Volume::default()
    }];
    let mut mounts = vec![mount("target", VOLUME, false)];
    if let Some(name) = &worker.ca_configmap {
        mounts.push(mount("ca", CA_FOLDER, true));
        volumes.push(Volume {
            name: "ca".to_owned(),
            config_map: Some(ConfigMapVolumeSource {
                name: name.clone(),
                items: Some(vec![KeyToPath {
                    key: CA_FILE.to_owned(),
                    path: CA_FILE.to_owned(),
                    mode: None,
                }]),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        });
    }
    if matches!(access, Access::Role { .. }) {
        mounts.push(mount("rrsa", TOKEN_FOLDER, true));
        volumes.push(Volume {
            name: "rrsa".to_owned(),
            projected: Some(ProjectedVolumeSource {
                sources: Some(vec![VolumeProjection {
                    service_account_token: Some(ServiceAccountTokenProjection {
                        audience: Some(TOKEN_AUDIENCE.to_owned()),
                        expiration_seconds: Some(TOKEN_SECONDS),
                        path: TOKEN_FILE.to_owned(),
                    }),
                    ..VolumeProjection::default()
                }]),
                ..ProjectedVolumeSource::default()
            }),
            ..Volume::default()
        });
    }
    PodSpec {
        containers: vec![Container {
            name: names::CONTAINER.to_owned(),
            image: Some(worker.image.clone()),
            args: Some(command_line(args)),
            env: Some(environment(generic, access, worker)),
            resources: Some(generic.resources.clone().unwrap_or_else(resources)),
            volume_mounts: Some(mounts),
            termination_message_path: Some(OUTCOME.to_owned()),
            // a panic leaves no outcome, but a log
            termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
            security_context: Some(SecurityContext {
                allow_privilege_escalation: Some(false),
                capabilities: Some(Capabilities { add: None, drop: Some(vec!["ALL".to_owned()]) }),
                read_only_root_filesystem: Some(true),
                seccomp_profile: Some(seccomp()),
                ..SecurityContext::default()
            }),
            ..Container::default()
        }],
        volumes: Some(volumes),
        restart_policy: Some("Never".to_owned()),
        service_account_name: Some(access.account().to_owned()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        affinity: generic.affinity.clone(),
        topology_spread_constraints: spread(generic, args, prime),
        tolerations: Some(generic.tolerations.clone()),
        node_selector: Some(generic.node_selector.clone()),
        priority_class_name: generic.priority_class_name.clone(),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(user != 0),
            run_as_user: Some(user),
            run_as_group: Some(group),
            fs_group: Some(group),
            // a volume of millions of files is not gone through again by the next Pod
            fs_group_change_policy: Some("OnRootMismatch".to_owned()),
            seccomp_profile: Some(seccomp()),
            ..PodSecurityContext::default()
        }),
        ..PodSpec::default()
    }
}

/// What the kubelet makes `text` of: it would put the value of a variable, such as the key's secret,
/// where a path says `$(OSS_ACCESS_KEY_SECRET)`.
fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: Some(read_only),
        ..VolumeMount::default()
    }
}

fn seccomp() -> SeccompProfile {
    SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }
}

/// Without limits a Pod is the first to be evicted, without a limit of memory it may take the
/// node's. A worker at the level it finds was seen at 70 to 180 MB.
fn resources() -> ResourceRequirements {
    let amounts = |amounts: &[(&str, &str)]| {
        let amount =
            |(name, amount): &(&str, &str)| ((*name).to_owned(), Quantity((*amount).to_owned()));
        Some(amounts.iter().map(amount).collect())
    };
    ResourceRequirements {
        requests: amounts(&[("cpu", "500m"), ("memory", "128Mi")]),
        limits: amounts(&[("memory", "512Mi")]),
        claims: None,
    }
}

fn environment(generic: &Generic, access: &Access, worker: &WorkerSettings) -> Vec<EnvVar> {
    let value = |name: &str, value: &str| EnvVar {
        name: name.to_owned(),
        value: Some(literal(value)),
        value_from: None,
    };
    // the node's own role is not the resource's to use
    let mut environment = vec![value("ALIBABA_CLOUD_ECS_METADATA_DISABLED", "true")];
    match access {
        Access::Secret { name, keys, version: _ } => {
            let entry = |variable: &str, key: &str| EnvVar {
                name: variable.to_owned(),
                value: None,
                value_from: Some(EnvVarSource {
                    secret_key_ref: Some(SecretKeySelector {
                        name: name.clone(),
                        key: key.to_owned(),
                        optional: None,
                    }),
                    ..EnvVarSource::default()
                }),
            };
            environment.push(entry("OSS_ACCESS_KEY_ID", &keys.id));
            environment.push(entry("OSS_ACCESS_KEY_SECRET", &keys.secret));
            environment.extend(keys.token.as_ref().map(|key| entry("OSS_SESSION_TOKEN", key)));
        }
        // no worker reads for CPFS
        Access::Cpfs => {}
        Access::Role { account: _ } => {
            if let Some(role) = &generic.rrsa_configs {
                environment.push(value("ALIBABA_CLOUD_ROLE_ARN", &role.role_arn));
                environment.push(value("ALIBABA_CLOUD_OIDC_PROVIDER_ARN", &role.oidc_provider_arn));
            }
            let token = format!("{TOKEN_FOLDER}/{TOKEN_FILE}");
            environment.push(value("ALIBABA_CLOUD_OIDC_TOKEN_FILE", &token));
            let sts = worker.sts_endpoint.as_ref();
            environment.extend(sts.map(|url| value("ALIBABA_CLOUD_STS_ENDPOINT", url)));
        }
    }
    environment
}

/// The JSON patch that makes `volume` the claim's, if it is still as it was seen: the test of its
/// resource version fails when anyone has touched it since.
pub(crate) fn rebind(
    volume: &PersistentVolume,
    claim: &PersistentVolumeClaim,
    source: &str,
) -> Value {
    let namespace = claim.namespace().unwrap_or_default();
    let from = format!("{namespace}/{source}");
    let claim_ref = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "namespace": namespace,
        "name": claim.name_any(),
        "uid": claim.uid(),
        "resourceVersion": claim.resource_version(),
    });
    let annotation = match volume.metadata.annotations {
        Some(_) => {
            json!({"op": "add", "path": pointer(names::POPULATED_FROM), "value": from})
        }
        None => json!({
            "op": "add", "path": "/metadata/annotations", "value": {names::POPULATED_FROM: from}
        }),
    };
    json!([
        {"op": "test", "path": "/metadata/resourceVersion", "value": volume.resource_version()},
        {"op": "replace", "path": "/spec/claimRef", "value": claim_ref},
        annotation,
    ])
}

/// The JSON pointer of an annotation.
pub(crate) fn pointer(annotation: &str) -> String {
    format!("/metadata/annotations/{}", annotation.replace('~', "~0").replace('/', "~1"))
}

#[cfg(test)]
mod tests;
