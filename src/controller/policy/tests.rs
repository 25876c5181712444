//! What a resource may ask for, by tables.

use clap::Parser;
use serde_json::{Value, json};

use super::*;
use crate::cli::{Cli, Command};

/// The settings of a controller with these flags.
pub(crate) fn settings(flags: &[&str]) -> Settings {
    let line = ["ossvp", "controller", "--worker-image=ossvp:test"].iter().chain(flags);
    let Command::Controller(args) = Cli::try_parse_from(line).unwrap().command else {
        panic!("not a controller");
    };
    Settings::new(*args).unwrap()
}

/// The seed's resource of mode generic, but for `change`.
pub(crate) fn spec(change: impl FnOnce(&mut Value)) -> OSSVolumePopulatorSpec {
    let mut spec = json!({
        "bucket": "my-test-bucket",
        "region": "cn-hangzhou",
        "endpoint": "oss-cn-hangzhou-internal.aliyuncs.com",
        "path": "/many-files/",
        "mode": "generic",
        "generic": {
            "labels": {"alibabacloud.com/eci": "true"},
            "annotations": {"k8s.aliyun.com/eci-use-specs": "2-4Gi"},
            "rrsaConfigs": {
                "roleArn": "acs:ram::1234567:role/oss-populator",
                "oidcProviderArn": "acs:ram::1234567:oidc-provider/my-oidc-provider",
            },
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "disktype", "operator": "NotIn", "values": ["hdd"]},
                ]}],
            }}},
            "tolerations": [{
                "key": "virtual-kubelet.io/provider",
                "operator": "Equal",
                "value": "alibabacloud",
                "effect": "NoSchedule",
            }],
            "throughput": 1000,
        },
    });
    change(&mut spec);
    serde_json::from_value(spec).unwrap()
}

fn role(grants: &[(&str, &str)]) -> Credentials {
    let grant = |(account, namespaces): &(&str, &str)| {
        ((*account).to_owned(), allowed_namespaces(Some(namespaces)))
    };
    Credentials::Role {
        arn: "acs:ram::1234567:role/oss-populator".to_owned(),
        grants: grants.iter().map(grant).collect(),
    }
}

fn secret(keys: &[&str], allowed: &str) -> Credentials {
    let found = SecretSeen {
        version: "uid.7".to_owned(),
        keys: keys.iter().map(|key| (*key).to_owned()).collect(),
        allowed: allowed_namespaces(Some(allowed)),
    };
    Credentials::Secret { name: "oss-secret".to_owned(), found: Some(found) }
}

fn decided(spec: &OSSVolumePopulatorSpec, flags: &[&str]) -> Result<Access, Refusal> {
    admit(spec, "argo", Some(&role(&[])), &settings(flags))
}

/// The refusal's reason, or nothing, and that its message names what helps.
fn refused(spec: &OSSVolumePopulatorSpec, flags: &[&str]) -> Option<&'static str> {
    let refusal = decided(spec, flags).err()?;
    let Refusal { reason, message } = refusal;
    assert!(message.contains(':') || message.contains(';'), "{message}");
    Some(reason)
}

#[test]
fn the_resource_of_the_document_may_be_served() {
    let told = admit(&spec(|_| ()), "argo", Some(&role(&[])), &Settings::of_tests());
    assert_eq!(told, Ok(Access::Role { account: "ossvp-worker".to_owned() }));
}

#[test]
fn credentials_go_to_oss_only_or_where_the_administrator_allows() {
    let rows: &[(&str, &[&str], bool)] = &[
        ("oss-cn-hangzhou-internal.aliyuncs.com", &[], true),
        ("https://oss-cn-hangzhou.aliyuncs.com/", &[], true),
        ("http://oss-cn-hangzhou.aliyuncs.com", &[], true),
        ("OSS-CN-Hangzhou.AliyunCS.com", &[], true),
        ("oss-cn-hangzhou.aliyuncs.com:443", &[], true),
        ("my-test-bucket.oss-cn-hangzhou.aliyuncs.com", &[], true),
        ("cn-hangzhou.oss.aliyuncs.com", &[], true),
        // look-alikes
        ("evilaliyuncs.com", &[], false),
        ("aliyuncs.com", &[], false),
        (".aliyuncs.com", &[], false),
        ("oss.aliyuncs.com.evil.com", &[], false),
        ("aliyuncs.com@evil.com", &[], false),
        ("oss.aliyuncs.com:x@evil.com", &[], false),
        ("evil.com@oss.aliyuncs.com", &[], false),
        ("evil.com/oss.aliyuncs.com", &[], false),
        ("evil.com?.aliyuncs.com", &[], false),
        ("evil.com#.aliyuncs.com", &[], false),
        ("evil.com\\.aliyuncs.com", &[], false),
        ("evil.com:80.aliyuncs.com", &[], false),
        ("http://https://evil.com/.aliyuncs.com", &[], false),
        ("ftp://oss.aliyuncs.com", &[], false),
        ("oss.aliyuncs.com\n", &[], false),
        ("oss.aliyuncs.com%2e", &[], false),
        ("", &[], false),
        // what nobody allowed
        ("minio.storage.svc", &[], false),
        ("minio.storage.svc:9000", &[], false),
        ("169.254.169.254", &[], false),
        ("http://[fd00::1]:9000", &[], false),
        // what the administrator did allow
        ("minio.storage.svc", &["--allow-endpoint=minio.storage.svc"], true),
        ("http://MinIO.storage.svc:9000", &["--allow-endpoint=minio.storage.svc"], true),
        ("minio.storage.svc:9000", &["--allow-endpoint=Minio.storage.svc:9000"], true),
        ("minio.storage.svc:9001", &["--allow-endpoint=minio.storage.svc:9000"], false),
        ("minio.storage.svc", &["--allow-endpoint=minio.storage.svc:9000"], false),
        ("a.minio.storage.svc", &["--allow-endpoint=minio.storage.svc"], false),
        ("a.b.example.com:9000", &["--allow-endpoint=other,*.example.com"], true),
        ("example.com", &["--allow-endpoint=*.example.com"], false),
        ("evilexample.com", &["--allow-endpoint=*.example.com"], false),
        ("evilexample.com", &["--allow-endpoint=*example.com"], false),
        ("http://[fd00::1]:9000", &["--allow-endpoint=[fd00::1]"], true),
        ("http://[fd00::1]:9000", &["--allow-endpoint=[fd00::1]:9000"], true),
        ("http://[fd00::1]", &["--allow-endpoint=[fd00::1]"], true),
        ("fd00::1", &["--allow-endpoint=[fd00::1]"], true),
        ("fd00::1", &["--allow-endpoint=fd00::1"], true),
        ("[fd00::2]", &["--allow-endpoint=[fd00::1]"], false),
        ("169.254.169.254", &["--allow-endpoint=*"], true),
    ];
    for (endpoint, flags, allowed) in rows {
        let spec = spec(|spec| spec["endpoint"] = (*endpoint).into());
        let told = decided(&spec, flags);
        assert_eq!(told.is_ok(), *allowed, "{endpoint} {flags:?}: {told:?}");
    }
    let minio = spec(|spec| spec["endpoint"] = "http://minio:9000".into());
    let told = decided(&minio, &[]).unwrap_err();
    assert_eq!(told.reason, "PopulatorRefused");
    assert!(told.message.ends_with("--allow-endpoint=minio"), "{}", told.message);
}

#[test]
fn labels_and_annotations_say_where_a_worker_runs_and_never_as_whom() {
    let rows: &[(&str, &[&str], bool)] = &[
        ("alibabacloud.com/eci", &[], true),
        ("alibabacloud.com/compute-class", &[], true),
        ("k8s.aliyun.com/eci-use-specs", &[], true),
        ("app.kubernetes.io/part-of", &[], true),
        ("team", &[], true),
        ("aadpodidbinding", &[], false),
        ("aadpodidbinding", &["--allow-key=aadpodidbinding"], true),
        ("k8s.aliyun.com/eci-ram-role-name", &[], false),
        ("k8s.aliyun.com/eci-image-cache", &[], false),
        ("alibabacloud.com/eci-x", &[], false),
        ("pod-identity.alibabacloud.com/injection", &[], false),
        ("pod-identity.alibabacloud.com/role-name", &[], false),
        ("iam.amazonaws.com/role", &[], false),
        ("vault.hashicorp.com/agent-inject", &[], false),
        ("sidecar.istio.io/inject", &[], false),
        ("container.apparmor.security.beta.kubernetes.io/populate", &[], false),
        ("batch.kubernetes.io/job-name", &[], false),
        ("app.kubernetes.io/managed-by", &[], false),
        ("storage.alibabacloud.com/pvc-uid", &[], false),
        ("storage.alibabacloud.com/pvc", &[], false),
        ("example.com/team", &["--allow-key=example.com/*"], true),
        ("other.com/team", &["--allow-key=example.com/*"], false),
    ];
    for field in ["labels", "annotations"] {
        for (key, flags, allowed) in rows {
            let spec = spec(|spec| spec["generic"][field] = json!({*key: "x"}));
            let told = refused(&spec, flags);
            let expected = (!allowed).then_some("PopulatorRefused");
            assert_eq!(told, expected, "{field} {key} {flags:?}");
        }
    }
}

#[test]
fn tolerations_stop_short_of_the_control_plane() {
    let rows: &[(Value, bool)] = &[
        (
            json!({"key": "virtual-kubelet.io/provider", "operator": "Equal", "value": "alibabacloud", "effect": "NoSchedule"}),
            true,
        ),
        (json!({"key": "gpu", "operator": "Exists"}), true),
        (
            json!({"key": "node.kubernetes.io/not-ready", "operator": "Exists", "tolerationSeconds": 9}),
            true,
        ),
        (json!({"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}), false),
        (json!({"key": "node-role.kubernetes.io/master", "operator": "Exists"}), false),
        (json!({"operator": "Exists"}), false),
        (json!({"key": "", "operator": "Exists"}), false),
        (json!({"key": "", "operator": "Exists", "effect": "NoExecute"}), false),
    ];
    for (toleration, allowed) in rows {
        let with = spec(|spec| spec["generic"]["tolerations"] = json!([toleration]));
        let expected = (!allowed).then_some("PopulatorRefused");
        assert_eq!(refused(&with, &[]), expected, "{toleration}");
        assert_eq!(refused(&with, &["--allow-control-plane"]), None, "{toleration}");
    }
}

#[test]
fn affinity_to_pods_may_be_preferred_and_never_required() {
    let term = json!({"topologyKey": "zone", "namespaceSelector": {}, "labelSelector": {}});
    let preferred = json!([{"weight": 1, "podAffinityTerm": term}]);
    let nodes = json!({"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "disktype", "operator": "NotIn", "values": ["hdd"]},
    ]}]});
    let (required, wished) = (
        "requiredDuringSchedulingIgnoredDuringExecution",
        "preferredDuringSchedulingIgnoredDuringExecution",
    );
    for (affinity, allowed) in [
        (json!({"nodeAffinity": {required: nodes}}), true),
        (json!({"podAntiAffinity": {wished: preferred}}), true),
        (json!({"podAffinity": {wished: preferred, required: []}}), true),
        (json!({"podAntiAffinity": {required: [term]}}), false),
        (json!({"podAffinity": {required: [term]}}), false),
    ] {
        let with = spec(|spec| spec["generic"]["affinity"] = affinity.clone());
        let expected = (!allowed).then_some("PopulatorRefused");
        assert_eq!(refused(&with, &[]), expected, "{affinity}");
    }
}

#[test]
fn what_gives_a_pod_more_than_others_have_is_the_administrators_to_allow() {
    let field = |name: &str, value: Value| spec(|spec| spec["generic"][name] = value);
    let rows: &[(OSSVolumePopulatorSpec, &[&str], Option<&str>)] = &[
        (field("priorityClassName", json!("high")), &[], Some("PopulatorRefused")),
        (
            field("priorityClassName", json!("system-node-critical")),
            &["--allow-priority-class=high"],
            Some("PopulatorRefused"),
        ),
        (field("priorityClassName", json!("high")), &["--allow-priority-class=low,high"], None),
        (field("runAsUser", json!(0)), &[], Some("PopulatorRefused")),
        (field("runAsUser", json!(1000)), &[], None),
        (field("runAsUser", json!(0)), &["--worker-security=root-no-caps"], None),
        (field("resources", json!({"claims": [{"name": "gpu"}]})), &[], Some("PopulatorRefused")),
        (field("resources", json!({"limits": {"memory": "1Gi"}})), &[], None),
    ];
    for (spec, flags, reason) in rows {
        assert_eq!(refused(spec, flags), *reason, "{spec:?} {flags:?}");
    }
}

#[test]
fn a_grant_is_asked_for_only_if_the_administrator_wants_that() {
    let pair = ["accessKeyId", "accessKeySecret"];
    let worker = Some("ossvp-worker");
    type Row = (Option<Credentials>, bool, Result<Option<&'static str>, &'static str>);
    let rows: &[Row] = &[
        (None, false, Err("PopulatorInvalid")),
        (Some(secret(&pair, "")), false, Ok(worker)),
        (Some(secret(&pair, "")), true, Err("PopulatorNotGranted")),
        (Some(secret(&pair, "other")), true, Err("PopulatorNotGranted")),
        (Some(secret(&pair, "argo-2,ar go,x")), true, Err("PopulatorNotGranted")),
        (Some(secret(&pair, "other, argo")), true, Ok(worker)),
        (Some(secret(&pair, "*")), true, Ok(worker)),
        (Some(role(&[])), false, Ok(worker)),
        (Some(role(&[("other", "x")])), false, Ok(worker)),
        (Some(role(&[])), true, Err("PopulatorNotGranted")),
        (Some(role(&[("other", "x,y"), ("empty", "")])), true, Err("PopulatorNotGranted")),
        (Some(role(&[("other", "x"), ("argos", "argo"), ("all", "*")])), true, Ok(Some("argos"))),
    ];
    for (credentials, require, expected) in rows {
        let flags: &[&str] = if *require { &["--require-grant"] } else { &[] };
        let told = admit(&spec(|_| ()), "argo", credentials.as_ref(), &settings(flags));
        let told = told.as_ref().map(|it| Some(it.account())).map_err(|refusal| refusal.reason);
        assert_eq!(told, *expected, "{credentials:?} {require}");
    }
}

#[test]
fn a_secrets_entries_go_by_many_names() {
    type Row = (&'static [&'static str], Option<[Option<&'static str>; 3]>);
    let rows: &[Row] = &[
        (
            &["accessKeyId", "accessKeySecret"],
            Some([Some("accessKeyId"), Some("accessKeySecret"), None]),
        ),
        (&["akId", "akSecret", "x"], Some([Some("akId"), Some("akSecret"), None])),
        (
            &["AccessKeyId", "AccessKeySecret", "SecurityToken"],
            Some([Some("AccessKeyId"), Some("AccessKeySecret"), Some("SecurityToken")]),
        ),
        (
            &["OSS_ACCESS_KEY_ID", "OSS_ACCESS_KEY_SECRET", "OSS_SESSION_TOKEN"],
            Some([
                Some("OSS_ACCESS_KEY_ID"),
                Some("OSS_ACCESS_KEY_SECRET"),
                Some("OSS_SESSION_TOKEN"),
            ]),
        ),
        // the document's own names before others
        (
            &["akId", "akSecret", "accessKeySecret", "accessKeyId"],
            Some([Some("accessKeyId"), Some("accessKeySecret"), None]),
        ),
        (&["accessKeyId"], None),
        (&["accessKeySecret"], None),
        (&["access-key-id", "access-key-secret"], None),
        (&[], None),
    ];
    for (keys, expected) in rows {
        let told = admit(&spec(|_| ()), "argo", Some(&secret(keys, "")), &settings(&[]));
        match (told, expected) {
            (Ok(Access::Secret { name, keys, version }), Some(pair)) => {
                let found = [Some(keys.id.as_str()), Some(&keys.secret), keys.token.as_deref()];
                assert_eq!(
                    (found, name.as_str(), version.as_str()),
                    (*pair, "oss-secret", "uid.7")
                );
            }
            (Err(refusal), None) => assert_eq!(refusal.reason, "PopulatorSecretInvalid"),
            (told, _) => panic!("{keys:?}: {told:?}"),
        }
    }
    let none = Credentials::Secret { name: "oss-secret".to_owned(), found: None };
    let told = admit(&spec(|_| ()), "argo", Some(&none), &settings(&[])).unwrap_err();
    assert_eq!(told.reason, "PopulatorSecretNotFound");
    assert!(told.message.contains("no Secret oss-secret in namespace ack-volume-populator"));
}

#[test]
fn what_is_not_served_says_so() {
    let with = |change: fn(&mut Value)| spec(change);
    let rows: &[(OSSVolumePopulatorSpec, &[&str], &str)] = &[
        (
            with(|_| ()),
            &["--feature-gates=VolumePopulatorPodHandler=false"],
            "PopulatorModeUnsupported",
        ),
        (
            with(|spec| spec["mode"] = "bmcpfs-dataflow".into()),
            &["--require-grant"],
            "PopulatorNotGranted",
        ),
        (with(|spec| spec["generic"] = Value::Null), &[], "PopulatorInvalid"),
        (with(|spec| spec["path"] = "/a/../b/".into()), &[], "PopulatorInvalid"),
        (with(|spec| spec["path"] = "..".into()), &[], "PopulatorInvalid"),
        (with(|spec| spec["path"] = "a\0b".into()), &[], "PopulatorInvalid"),
        (with(|spec| spec["bucket"] = "A_B".into()), &[], "PopulatorInvalid"),
        (with(|spec| spec["generic"]["partSize"] = "1 parsec".into()), &[], "PopulatorInvalid"),
        (with(|spec| spec["generic"]["throughput"] = 0.into()), &[], "PopulatorInvalid"),
        (with(|spec| spec["generic"]["include"] = json!(["a\nb"])), &[], "PopulatorInvalid"),
        (with(|spec| spec["generic"]["exclude"] = json!(["["])), &[], "PopulatorInvalid"),
    ];
    for (spec, flags, reason) in rows {
        assert_eq!(refused(spec, flags), Some(*reason), "{spec:?} {flags:?}");
    }
    for path in ["", "/", "/many-files", "a..b/", "/..hidden/"] {
        let spec = spec(|spec| spec["path"] = path.into());
        assert_eq!(refused(&spec, &[]), None, "{path}");
    }
}

#[test]
fn a_bucket_is_asked_of_cpfs_for_anyone_or_for_whom_it_was_granted() {
    let spec = spec(|spec| {
        spec["mode"] = "bmcpfs-dataflow".into();
        spec["generic"] = Value::Null;
    });
    let grants = |namespaces: &[&str]| {
        let namespaces = namespaces.iter().map(|it| (*it).to_owned()).collect();
        Credentials::Bucket { grants: vec![("team".to_owned(), namespaces)] }
    };
    let told = |credentials: &Credentials, flags: &[&str]| {
        let told = admit(&spec, "argo", Some(credentials), &settings(flags));
        told.map_err(|refusal| refusal.reason)
    };
    let none = Credentials::Bucket { grants: vec![] };
    // also where no worker may run
    let no_pods = "--feature-gates=VolumePopulatorPodHandler=false";
    assert_eq!(told(&none, &[no_pods]), Ok(Access::Cpfs));
    assert_eq!(told(&none, &["--require-grant"]), Err("PopulatorNotGranted"));
    assert_eq!(told(&grants(&["other"]), &["--require-grant"]), Err("PopulatorNotGranted"));
    assert_eq!(told(&grants(&["other", "argo"]), &["--require-grant"]), Ok(Access::Cpfs));
    assert_eq!(told(&grants(&["*"]), &["--require-grant"]), Ok(Access::Cpfs));
}
