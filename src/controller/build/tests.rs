//! What is sent to the API server, field by field.

mod shards;
mod volume;

use clap::Parser;
use proptest::prelude::*;

use super::*;
use crate::cli::{Cli, Command};
use crate::controller::policy::KeyPair;
use crate::controller::policy::tests::{settings, spec};

fn claim(change: impl FnOnce(&mut Value)) -> PersistentVolumeClaim {
    let mut claim = json!({
        "metadata": {
            "name": "disk-0",
            "namespace": "argo",
            "uid": "62a4e7ec-fae1-4f11-848f-b57c00000000",
            "resourceVersion": "41",
            "labels": {"team": "x"},
            "annotations": {"note": "y", "volume.kubernetes.io/storage-provisioner": "disk"},
        },
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "20Gi"}},
            "storageClassName": "alicloud-disk-essd",
            "volumeMode": "Filesystem",
            "dataSource": {"apiGroup": "storage.alibabacloud.com", "kind": "OSSVolumePopulator", "name": "generic-demo"},
            "dataSourceRef": {"apiGroup": "storage.alibabacloud.com", "kind": "OSSVolumePopulator", "name": "generic-demo"},
            "selector": {"matchLabels": {"a": "b"}},
        },
    });
    change(&mut claim);
    serde_json::from_value(claim).unwrap()
}

fn prime_of(claim: &PersistentVolumeClaim) -> PersistentVolumeClaim {
    let mut made = prime(claim, "d1", "ack-volume-populator");
    made.metadata.uid = Some("prime-uid".to_owned());
    made
}

fn role() -> Access {
    Access::Role { account: "ossvp-worker".to_owned() }
}

fn key_pair(token: Option<&str>) -> Access {
    let keys = KeyPair {
        id: "accessKeyId".to_owned(),
        secret: "akSecret".to_owned(),
        token: token.map(str::to_owned),
    };
    Access::Secret { name: "oss-secret".to_owned(), keys, version: "7".to_owned() }
}

fn made(spec: &OSSVolumePopulatorSpec, access: &Access, flags: &[&str]) -> Value {
    let claim = claim(|_| ());
    let job = job(&claim, &prime_of(&claim), spec, access, &settings(flags).worker).unwrap();
    serde_json::to_value(job).unwrap()
}

fn pod_of(job: &Value) -> &Value {
    &job["spec"]["template"]["spec"]
}

fn container_of(job: &Value) -> &Value {
    &pod_of(job)["containers"][0]
}

/// What the kubelet makes of an argument, or of a variable's value: `$(NAME)` becomes the variable,
/// `$$` a `$`, and every other `$` stays.
fn expanded(text: &str) -> String {
    let mut shown = String::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('$') {
        shown.push_str(before);
        rest = match (behind.strip_prefix('$'), behind.strip_prefix('(')) {
            (Some(behind), _) => {
                shown.push('$');
                behind
            }
            (None, Some(named)) if named.contains(')') => {
                let (name, behind) = named.split_once(')').unwrap();
                // as of the first Pod of an Indexed Job
                shown.push_str(if name == names::INDEX_VARIABLE { "0" } else { "EXPANDED" });
                behind
            }
            (None, _) => {
                shown.push('$');
                behind
            }
        };
    }
    shown + rest
}

fn parsed(job: &Value) -> PopulateArgs {
    let args = container_of(job)["args"].as_array().unwrap();
    let args = args.iter().map(|arg| expanded(arg.as_str().unwrap()));
    let line = std::iter::once("ossvp".to_owned()).chain(args);
    match Cli::try_parse_from(line).unwrap().command {
        Command::Populate(args) => *args,
        other => panic!("not populate: {other:?}"),
    }
}

#[test]
fn the_documents_example_becomes_a_job() {
    let spec = spec(|_| ());
    let job = made(&spec, &role(), &[]);
    let ours = json!({
        "app.kubernetes.io/managed-by": "ossvp",
        "storage.alibabacloud.com/pvc-uid": "62a4e7ec-fae1-4f11-848f-b57c00000000",
    });
    assert_eq!(
        job["metadata"],
        json!({
            "name": "populate-62a4e7ec-fae1-4f11-848f-b57c00000000",
            "namespace": "ack-volume-populator",
            "labels": ours,
            "annotations": {
                "storage.alibabacloud.com/pvc": "argo/disk-0",
                "storage.alibabacloud.com/access": "account/ossvp-worker",
                "storage.alibabacloud.com/prime-uid": "prime-uid",
            },
            "ownerReferences": [{
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "name": "prime-62a4e7ec-fae1-4f11-848f-b57c00000000",
                "uid": "prime-uid",
            }],
        })
    );
    assert_eq!(job["spec"]["backoffLimit"], 6);
    assert_eq!(job["spec"].get("ttlSecondsAfterFinished"), None);
    let mut labels = ours;
    labels["alibabacloud.com/eci"] = "true".into();
    assert_eq!(
        job["spec"]["template"]["metadata"],
        json!({
            "labels": labels,
            "annotations": {
                "k8s.aliyun.com/eci-use-specs": "2-4Gi",
                "storage.alibabacloud.com/pvc": "argo/disk-0",
            },
        })
    );
    let pod = pod_of(&job);
    let given = serde_json::to_value(&spec).unwrap();
    assert_eq!(pod["affinity"], given["generic"]["affinity"]);
    assert_eq!(pod["tolerations"], given["generic"]["tolerations"]);
    assert_eq!(pod.get("nodeName"), None);
    assert_eq!(pod["restartPolicy"], "Never");
    assert_eq!(pod["serviceAccountName"], "ossvp-worker");
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(
        pod["volumes"][0],
        json!({
            "name": "target",
            "persistentVolumeClaim": {"claimName": "prime-62a4e7ec-fae1-4f11-848f-b57c00000000"},
        })
    );
    let container = container_of(&job);
    assert_eq!(container["image"], "ossvp:test");
    assert_eq!(container["terminationMessagePath"], "/dev/termination-log");
    assert_eq!(container["resources"]["limits"], json!({"memory": "512Mi"}));
    let args = parsed(&job);
    assert_eq!(args.source.to_string(), "oss://my-test-bucket/many-files/");
    assert_eq!(args.volume, Some("/volume".into()));
    assert_eq!(args.endpoint.as_deref(), Some("oss-cn-hangzhou-internal.aliyuncs.com"));
    assert_eq!(args.region.as_deref(), Some("cn-hangzhou"));
    assert_eq!(args.throughput.map(crate::handoff::Rate::bytes_per_second), Some(1_000_000_000));
    assert_eq!(args.outcome, Some("/dev/termination-log".into()));
    assert_eq!(args, arguments(&spec, false).unwrap());
}

#[test]
fn our_own_labels_and_annotations_win() {
    let spec = spec(|spec| {
        spec["generic"]["labels"] = json!({
            "app.kubernetes.io/managed-by": "me", "storage.alibabacloud.com/pvc-uid": "other", "a": "b",
        });
        spec["generic"]["annotations"] = json!({"storage.alibabacloud.com/pvc": "x/y"});
    });
    let job = made(&spec, &role(), &[]);
    let metadata = &job["spec"]["template"]["metadata"];
    assert_eq!(metadata["labels"]["app.kubernetes.io/managed-by"], "ossvp");
    assert_eq!(
        metadata["labels"]["storage.alibabacloud.com/pvc-uid"],
        "62a4e7ec-fae1-4f11-848f-b57c00000000"
    );
    assert_eq!(metadata["labels"]["a"], "b");
    assert_eq!(metadata["annotations"]["storage.alibabacloud.com/pvc"], "argo/disk-0");
}

#[test]
fn exit_codes_are_told_to_the_job_controller() {
    let policy = &made(&spec(|_| ()), &role(), &[])["spec"]["podFailurePolicy"];
    assert_eq!(
        *policy,
        json!({"rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": {"containerName": "populate", "operator": "In", "values": [2, 3, 6, 7, 8]}},
            {"action": "Ignore", "onExitCodes": {"containerName": "populate", "operator": "In", "values": [130, 143]}},
        ]})
    );
}

#[test]
fn a_key_pair_comes_from_the_secret_and_a_role_by_a_token_of_our_own() {
    let job = made(&spec(|_| ()), &key_pair(Some("stsToken")), &[]);
    let from = |key: &str| json!({"secretKeyRef": {"name": "oss-secret", "key": key}});
    assert_eq!(
        container_of(&job)["env"],
        json!([
            {"name": "ALIBABA_CLOUD_ECS_METADATA_DISABLED", "value": "true"},
            {"name": "OSS_ACCESS_KEY_ID", "valueFrom": from("accessKeyId")},
            {"name": "OSS_ACCESS_KEY_SECRET", "valueFrom": from("akSecret")},
            {"name": "OSS_SESSION_TOKEN", "valueFrom": from("stsToken")},
        ])
    );
    assert_eq!(pod_of(&job)["volumes"].as_array().unwrap().len(), 1, "no token");
    assert_eq!(
        container_of(&made(&spec(|_| ()), &key_pair(None), &[]))["env"].as_array().unwrap().len(),
        3
    );

    let sts = "--worker-sts-endpoint=https://sts.example.com";
    let job = made(&spec(|_| ()), &Access::Role { account: "team".to_owned() }, &[sts]);
    let token = "/var/run/secrets/ack.alibabacloud.com/rrsa-tokens";
    assert_eq!(
        container_of(&job)["env"],
        json!([
            {"name": "ALIBABA_CLOUD_ECS_METADATA_DISABLED", "value": "true"},
            {"name": "ALIBABA_CLOUD_ROLE_ARN", "value": "acs:ram::1234567:role/oss-populator"},
            {"name": "ALIBABA_CLOUD_OIDC_PROVIDER_ARN", "value": "acs:ram::1234567:oidc-provider/my-oidc-provider"},
            {"name": "ALIBABA_CLOUD_OIDC_TOKEN_FILE", "value": format!("{token}/token")},
            {"name": "ALIBABA_CLOUD_STS_ENDPOINT", "value": "https://sts.example.com"},
        ])
    );
    assert_eq!(pod_of(&job)["serviceAccountName"], "team");
    assert_eq!(
        pod_of(&job)["volumes"][1],
        json!({"name": "rrsa", "projected": {"sources": [{"serviceAccountToken": {
            "audience": "sts.aliyuncs.com", "expirationSeconds": 3600, "path": "token",
        }}]}})
    );
    assert_eq!(
        container_of(&job)["volumeMounts"][1],
        json!({"name": "rrsa", "mountPath": token, "readOnly": true})
    );
}

#[test]
fn authorities_come_from_a_config_map() {
    let job = made(&spec(|_| ()), &role(), &["--worker-ca-configmap=roots"]);
    assert_eq!(
        pod_of(&job)["volumes"][1],
        json!({"name": "ca", "configMap": {"name": "roots", "items": [{"key": "ca.crt", "path": "ca.crt"}]}})
    );
    assert_eq!(
        container_of(&job)["volumeMounts"][1],
        json!({"name": "ca", "mountPath": "/etc/ossvp/ca", "readOnly": true})
    );
    assert_eq!(parsed(&job).ca_bundle, Some("/etc/ossvp/ca/ca.crt".into()));
}

/// Pod Security Standards, level restricted, of Kubernetes 1.36: every control.
fn restricted(pod: &Value) -> Result<(), String> {
    let check = |holds: bool, control: &str| if holds { Ok(()) } else { Err(control.to_owned()) };
    for field in ["hostNetwork", "hostPID", "hostIPC", "initContainers", "ephemeralContainers"] {
        check(pod.get(field).is_none(), field)?;
    }
    let kinds = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    for volume in pod["volumes"].as_array().unwrap() {
        let mut fields = volume.as_object().unwrap().keys().filter(|key| *key != "name");
        check(fields.all(|key| kinds.contains(&key.as_str())), "volumes")?;
    }
    let of_pod = &pod["securityContext"];
    for field in ["sysctls", "seLinuxOptions", "appArmorProfile", "windowsOptions"] {
        check(of_pod.get(field).is_none(), field)?;
    }
    check(of_pod["runAsNonRoot"] == true, "runAsNonRoot")?;
    check(of_pod["runAsUser"].as_i64().is_some_and(|user| user != 0), "runAsUser")?;
    check(of_pod["seccompProfile"]["type"] == "RuntimeDefault", "seccompProfile")?;
    for container in pod["containers"].as_array().unwrap() {
        let context = &container["securityContext"];
        for field in [
            "privileged",
            "procMount",
            "seLinuxOptions",
            "appArmorProfile",
            "runAsUser",
            "runAsNonRoot",
        ] {
            check(context.get(field).is_none(), field)?;
        }
        check(context["allowPrivilegeEscalation"] == false, "allowPrivilegeEscalation")?;
        check(context["capabilities"] == json!({"drop": ["ALL"]}), "capabilities")?;
        check(context["seccompProfile"]["type"] == "RuntimeDefault", "seccompProfile")?;
        check(context["readOnlyRootFilesystem"] == true, "readOnlyRootFilesystem")?;
        for field in ["ports", "livenessProbe", "lifecycle", "command"] {
            check(container.get(field).is_none(), field)?;
        }
    }
    Ok(())
}

#[test]
fn a_worker_is_restricted_unless_the_administrator_says_otherwise() {
    let everything: &[&str] = &["--worker-ca-configmap=roots"];
    for access in [role(), key_pair(None)] {
        assert_eq!(restricted(pod_of(&made(&spec(|_| ()), &access, everything))), Ok(()));
    }
    let user = spec(|spec| {
        (spec["generic"]["runAsUser"], spec["generic"]["fsGroup"]) = (1000.into(), 2000.into())
    });
    let job = made(&user, &role(), &[]);
    assert_eq!(restricted(pod_of(&job)), Ok(()));
    let context = |job: &Value, field: &str| pod_of(job)["securityContext"][field].clone();
    let ids = |job: &Value| {
        ["runAsUser", "runAsGroup", "fsGroup"].map(|field| context(job, field).as_i64())
    };
    assert_eq!(ids(&job), [Some(1000), Some(2000), Some(2000)]);
    assert_eq!(ids(&made(&spec(|_| ()), &role(), &[])), [Some(65532); 3]);
    assert_eq!(context(&job, "fsGroupChangePolicy"), "OnRootMismatch");

    let root = made(&spec(|_| ()), &role(), &["--worker-security=root-no-caps"]);
    assert_eq!(ids(&root), [Some(0); 3]);
    assert_eq!(context(&root, "runAsNonRoot"), false);
    assert_eq!(container_of(&root)["securityContext"]["capabilities"], json!({"drop": ["ALL"]}));
    assert_eq!(restricted(pod_of(&root)), Err("runAsNonRoot".to_owned()));
    let user = made(&user, &role(), &["--worker-security=root-no-caps"]);
    assert_eq!(ids(&user), [Some(1000), Some(2000), Some(2000)]);
    assert_eq!(context(&user, "runAsNonRoot"), true);
}

#[test]
fn no_field_of_the_resource_names_a_variable_of_the_container() {
    let leak = "$(OSS_ACCESS_KEY_SECRET)";
    let spec = spec(|spec| {
        spec["path"] = format!("/{leak}/$$/$x/$").into();
        spec["generic"]["include"] = json!([leak]);
        spec["generic"]["rrsaConfigs"]["roleArn"] = format!("acs:ram::1:role/{leak}").into();
    });
    let job = made(&spec, &role(), &[]);
    let args = parsed(&job);
    assert_eq!(args.source.to_string(), format!("oss://my-test-bucket/{leak}/$$/$x/$"));
    assert_eq!(args.include, [leak]);
    let arn = container_of(&job)["env"][1]["value"].as_str().unwrap();
    assert_eq!(expanded(arn), format!("acs:ram::1:role/{leak}"));
}

#[test]
fn a_digest_tells_specs_apart_and_nothing_else() {
    let base = digest(&spec(|_| ()));
    assert_eq!(base.len(), 32);
    // written down: another version of ossvp must not give volumes up that are being filled
    assert_eq!(base, "4c95c8a889640ae51701654df320c6c1");
    let again = spec(|spec| *spec = serde_json::from_str(&spec.to_string()).unwrap());
    assert_eq!(digest(&again), base);
    let defaults = spec(|spec| {
        spec["generic"]["sha256"] = false.into();
        spec["generic"]["include"] = json!([]);
        spec["bmcpfsDataflow"] = Value::Null;
    });
    assert_eq!(digest(&defaults), base, "what is left out and what is empty");
    let changes: [fn(&mut Value); 8] = [
        |spec| spec["bucket"] = "other-bucket".into(),
        |spec| spec["path"] = "/many-files".into(),
        |spec| spec["region"] = "cn-beijing".into(),
        |spec| spec["endpoint"] = "oss-cn-hangzhou.aliyuncs.com".into(),
        |spec| spec["generic"]["throughput"] = 999.into(),
        |spec| spec["generic"]["labels"]["a"] = "b".into(),
        |spec| spec["generic"]["allowEmpty"] = true.into(),
        |spec| spec["generic"]["include"] = json!(["a", "b"]),
    ];
    let digests = changes.map(|change| digest(&spec(change)));
    for (at, one) in digests.iter().enumerate() {
        assert!(*one != base && !digests[..at].contains(one), "change {at}");
    }
}

prop_compose! {
    fn any_spec()(bucket in "[a-z0-9][a-z0-9-]{1,20}[a-z0-9]", region in "[a-z0-9-]{1,20}",
        endpoint in r"(https?://)?[A-Za-z0-9.\[\]:-]{1,30}/?", path in "/{0,2}[^\0]{0,40}|[$()A-Z_]{0,20}",
        globs in (proptest::collection::vec("[^\0\n]{1,20}", 0..3), proptest::collection::vec("[$(){A-Z*]{1,9}", 0..3)),
        speed in (proptest::option::of(1u64..=1_000_000), proptest::option::of(1u32..=4096)),
        part_size in proptest::option::of(r"[1-9][0-9]{0,3}(\.[0-9])? ?([kKMGT]i?B|B)?"),
        words in (0usize..5, 0usize..4, 0usize..4), switches: [bool; 2],
        parallelism in proptest::option::of(1u32..=256))
        -> OSSVolumePopulatorSpec {
        let one = |of: &[&str], at: usize| of.get(at).map_or(Value::Null, |it| (*it).into());
        spec(|spec| {
            spec["bucket"] = bucket.into();
            spec["region"] = region.into();
            spec["endpoint"] = endpoint.into();
            spec["path"] = path.into();
            let generic = &mut spec["generic"];
            generic["include"] = json!(globs.0);
            generic["exclude"] = json!(globs.1);
            generic["throughput"] = json!(speed.0);
            generic["concurrency"] = json!(speed.1);
            generic["partSize"] = json!(part_size);
            generic["addressing"] = one(&["auto", "virtual", "path", "cname"], words.0);
            generic["verify"] = one(&["auto", "require", "off"], words.1);
            generic["unmappable"] = one(&["fail", "escape", "skip"], words.2);
            generic["sha256"] = switches[0].into();
            generic["allowEmpty"] = switches[1].into();
            generic["parallelism"] = json!(parallelism);
        })
    }
}

proptest! {
    #[test]
    fn a_worker_reads_what_the_resource_says(spec in any_spec()) {
        if let Ok(args) = arguments(&spec, false) {
            prop_assert_eq!(parsed(&made(&spec, &role(), &[])), args);
        }
    }
}
