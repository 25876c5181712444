//! Who may use what, and what a resource may not do to the cluster.

use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret, ServiceAccount};
use kube::ResourceExt;
use kube::api::{Patch, PatchParams, PostParams};
use oss_server::OssServer;
use ossvp::controller::crd::OSSVolumePopulator;
use serde_json::json;

use crate::case::Case;
use crate::dataflow::{at_once, imported, spec};
use crate::support::{BUCKET, ID, SECRET};
use crate::world::{alone, shared, until};

const ROLE: &str = "acs:ram::1234567:role/oss-populator";
const PROVIDER: &str = "acs:ram::1234567:oidc-provider/my-provider";

#[test]
fn what_would_give_a_worker_other_rights_is_refused_and_the_resource_says_so_at_once() {
    shared(|world| async move {
        let case = Case::new(&world, "rights").await;
        for (name, change, words) in [
            (
                "endpoint",
                json!({"endpoint": "oss.example.com"}),
                "--allow-endpoint=oss.example.com",
            ),
            (
                "annotation",
                json!({"generic": {"annotations": {"k8s.aliyun.com/eci-ram-role-name": "admin"}}}),
                "k8s.aliyun.com/eci-ram-role-name is not allowed",
            ),
            (
                "label",
                json!({"generic": {"labels": {"pod-identity.alibabacloud.com/injection": "on"}}}),
                "--allow-key=pod-identity.alibabacloud.com/injection",
            ),
            (
                "toleration",
                json!({"generic": {"tolerations": [{"operator": "Exists"}]}}),
                "reaches the control plane's nodes",
            ),
            (
                "priority",
                json!({"generic": {"priorityClassName": "system-node-critical"}}),
                "--allow-priority-class=system-node-critical",
            ),
            (
                "affinity",
                json!({"generic": {"affinity": {"podAntiAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": [
                        {"topologyKey": "zone", "namespaceSelector": {}, "labelSelector": {}},
                    ],
                }}}}),
                "use nodeAffinity",
            ),
            ("root", json!({"generic": {"runAsUser": 0}}), "--worker-security=root-no-caps"),
        ] {
            let mut spec = case.spec(json!({}));
            crate::case::merge(&mut spec, change);
            case.source(name, spec).await;
            // before any claim names it
            let refused = |source: &OSSVolumePopulator| {
                let status = source.status.as_ref()?;
                let ready = status.conditions.iter().find(|it| it.type_ == "Ready")?;
                (ready.status == "False" && ready.message.contains(words)).then_some(())
            };
            case.object(&case.api(), name, "not ready", refused).await;
            let claim = case.claim(name, name, "immediate", json!({})).await;
            case.event(name, Some(name), &["PopulatorRefused", words]).await;
            case.no_scaffolding(&claim.uid().unwrap()).await;
        }
    });
}

#[test]
fn without_its_gate_the_generic_mode_makes_nothing_and_has_no_right_to() {
    let flags = ["--feature-gates=VolumePopulatorPodHandler=false", "--allow-endpoint=*"];
    alone(&flags, |world| async move {
        world.start_controller();
        let case = Case::new(&world, "gated").await;
        case.source("models", case.spec(json!({}))).await;
        let claim = case.claim("data", "models", "immediate", json!({})).await;
        case.event(
            "data",
            Some("models"),
            &["PopulatorModeUnsupported", "VolumePopulatorPodHandler"],
        )
        .await;
        case.no_scaffolding(&claim.uid().unwrap()).await;
        let may = |verb: &str, what: &str| {
            let user = format!("--as={}", crate::world::USER);
            let args = ["auth", "can-i", verb, what, "-n", crate::world::POPULATORS, &user];
            world.try_kubectl(&args).0
        };
        assert!(!may("create", "jobs") && may("list", "jobs"));
        // CPFS needs no Pods
        world.nas.set_times(at_once());
        world.cpfs_class("cpfs", "bmcpfs-a", json!({})).await;
        case.source("by-cpfs", spec("models", json!({}))).await;
        let claim = case.claim("fileset", "by-cpfs", "cpfs", json!({})).await;
        imported(&case, "fileset").await;
        case.cleaned(&claim.uid().unwrap()).await;
    });
}

#[test]
fn with_grants_required_secrets_and_roles_are_only_for_the_namespaces_that_have_them() {
    let server = OssServer::builder()
        .bucket(BUCKET)
        .credentials(ID, SECRET)
        .oidc_checked(ROLE, PROVIDER, |token| {
            let claims = claims(token);
            let tenant = "system:serviceaccount:ack-volume-populator:tenant";
            claims["aud"] == json!(["sts.aliyuncs.com"]) && claims["sub"] == tenant
        })
        .start_blocking()
        .unwrap();
    let sts = format!("--worker-sts-endpoint={}", server.endpoint());
    let flags = ["--require-grant", "--allow-endpoint=127.0.0.1", &sts];
    alone(&flags, |world| async move {
        world.start_controller();
        let case = Case::new(&world, "granted").await;

        case.source("by-secret", case.spec(json!({}))).await;
        let claim = case.claim("by-secret", "by-secret", "immediate", json!({})).await;
        case.event("by-secret", Some("by-secret"), &["PopulatorNotGranted", "allowed-namespaces"])
            .await;
        case.no_scaffolding(&claim.uid().unwrap()).await;
        let allowed = format!("elsewhere,{}", case.namespace);
        let grant = json!({"metadata": {"annotations": {
            "storage.alibabacloud.com/allowed-namespaces": allowed,
        }}});
        let secrets = case.populators::<Secret>();
        let granted = Patch::Merge(&grant);
        secrets.patch(&case.namespace, &PatchParams::default(), &granted).await.unwrap();
        case.filled("by-secret").await;

        // what only the role may read
        for (path, body) in &case.files {
            server.put(BUCKET, &format!("data/{path}"), body.clone());
        }
        let mut spec = case.spec(json!({
            "secretRef": null,
            "rrsaConfigs": {"roleArn": ROLE, "oidcProviderArn": PROVIDER},
        }));
        spec["endpoint"] = server.endpoint().into();
        spec["region"] = server.region().into();
        case.source("by-role", spec).await;
        case.claim("by-role", "by-role", "immediate", json!({})).await;
        case.event("by-role", Some("by-role"), &["PopulatorNotGranted", ROLE]).await;
        let mut account = grant.clone();
        account["metadata"]["name"] = "tenant".into();
        account["metadata"]["annotations"]["storage.alibabacloud.com/role-arn"] = ROLE.into();
        let account: ServiceAccount = serde_json::from_value(account).unwrap();
        case.populators().create(&PostParams::default(), &account).await.unwrap();
        case.filled("by-role").await;
        assert_eq!(server.issued(), 1);
    });
}

/// What a service account's token says.
fn claims(token: &str) -> serde_json::Value {
    use base64::Engine;
    let payload = token.split('.').nth(1).unwrap_or_default();
    let payload = base64::prelude::BASE64_URL_SAFE_NO_PAD.decode(payload).unwrap_or_default();
    serde_json::from_slice(&payload).unwrap_or_default()
}

#[test]
fn workers_trust_the_administrators_authorities_and_may_be_root_without_capabilities() {
    let server =
        OssServer::builder().bucket(BUCKET).credentials(ID, SECRET).tls().start_blocking().unwrap();
    let flags = [
        "--allow-endpoint=127.0.0.1",
        "--worker-ca-configmap=roots",
        "--worker-security=root-no-caps",
    ];
    alone(&flags, |world| async move {
        world.start_controller();
        let case = Case::new(&world, "trusting").await;
        for (path, body) in &case.files {
            server.put(BUCKET, &format!("data/{path}"), body.clone());
        }
        let roots =
            json!({"metadata": {"name": "roots"}, "data": {"ca.crt": server.ca_pem().unwrap()}});
        let roots: ConfigMap = serde_json::from_value(roots).unwrap();
        case.populators().create(&PostParams::default(), &roots).await.unwrap();
        let mut spec = case.spec(json!({}));
        spec["endpoint"] = server.endpoint().into();
        case.source("models", spec).await;
        // a file system whose root belongs to root, and knows no fsGroup
        let more = json!({"accessModes": ["ReadWriteMany"]});
        let claim = case.claim("data", "models", "nas", more).await;
        let uid = claim.uid().unwrap();
        let pod = until(&world, "a worker", || async { case.pods(&uid).await.pop() }).await;
        assert_eq!(user(&pod), Some(0));
        case.filled("data").await;
    });
}

fn user(pod: &Pod) -> Option<i64> {
    pod.spec.as_ref()?.security_context.as_ref()?.run_as_user
}

#[test]
fn a_restricted_worker_on_a_volume_of_roots_names_the_setting_that_helps() {
    shared(|world| async move {
        let case = Case::new(&world, "rootly").await;
        case.source("models", case.spec(json!({}))).await;
        case.claim("data", "models", "nas", json!({"accessModes": ["ReadWriteMany"]})).await;
        let event =
            case.event("data", Some("models"), &["PopulatorFailed", "generic.fsGroup"]).await;
        assert!(event.contains("generic.runAsUser"), "{event}");
        let claims = case.api::<PersistentVolumeClaim>();
        case.delete(&claims, "data").await;
        case.gone(&claims, "data").await;
    });
}
