//! What a cluster needs for the controller to run in it. Pure: from arguments to YAML.

use clap::{Args, Parser};
use kube::CustomResourceExt;
use serde_json::{Value, json};

use super::crd::{GROUP, KIND, OSSVolumePopulator};
use super::settings::{CONTROLLER_NAMESPACE, ControllerArgs, Security};
use super::{build, lead, names};

/// Print what `kubectl apply -f -` needs: namespaces, resource definition, rights, controller
#[derive(Debug, Clone, Args)]
pub struct ManifestsArgs {
    /// The image of controller and workers
    #[arg(long, env = "OSSVP_IMAGE", default_value = concat!("ossvp:", env!("CARGO_PKG_VERSION")))]
    pub image: String,

    /// The namespace of the controller
    #[arg(long, default_value = CONTROLLER_NAMESPACE)]
    pub namespace: String,

    /// How many controllers there are, of which one leads
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(i32).range(0..=10))]
    pub replicas: i32,

    /// The RAM role by which the controller asks CPFS for data flows (mode bmcpfs-dataflow), such as
    /// acs:ram::1234567:role/ossvp-controller; it must trust the controller's service account
    #[arg(
        long,
        value_name = "ARN",
        requires = "cpfs_oidc_provider_arn",
        conflicts_with = "cpfs_secret",
        help_heading = "CPFS"
    )]
    pub cpfs_role_arn: Option<String>,

    /// The cluster's OIDC provider, such as acs:ram::1234567:oidc-provider/ack-rrsa-c1234
    #[arg(long, value_name = "ARN", requires = "cpfs_role_arn", help_heading = "CPFS")]
    pub cpfs_oidc_provider_arn: Option<String>,

    /// Instead of a role, a Secret of the controller's namespace with accessKeyId and accessKeySecret
    #[arg(long, value_name = "NAME", help_heading = "CPFS")]
    pub cpfs_secret: Option<String>,

    /// Also print the VolumePopulator that makes the kind known to Kubernetes' volume data source
    /// validator: only for a cluster that has its resource definition, and where the controller may
    /// not register itself
    #[arg(long)]
    pub volume_populator: bool,

    /// Arguments of the controller, behind --: such as --namespace, --feature-gates,
    /// --allow-endpoint
    #[arg(last = true, value_name = "CONTROLLER ARGUMENTS")]
    pub controller: Vec<String>,
}

/// The controller's command line, as the Deployment has it.
#[derive(Parser)]
#[command(name = "ossvp controller", disable_help_flag = true)]
struct ControllerLine {
    #[command(flatten)]
    args: ControllerArgs,
}

/// The YAML documents.
///
/// # Errors
/// What the controller would say of its arguments.
pub fn manifests(args: &ManifestsArgs) -> Result<String, clap::Error> {
    let ManifestsArgs {
        image,
        namespace,
        replicas,
        cpfs_role_arn,
        cpfs_oidc_provider_arn,
        cpfs_secret,
        volume_populator,
        controller,
    } = args;
    let own = [format!("--worker-image={image}"), format!("--lease-namespace={namespace}")];
    let line: Vec<String> = own.into_iter().chain(controller.iter().cloned()).collect();
    let program = std::iter::once("ossvp controller".to_owned());
    let parsed = ControllerLine::try_parse_from(program.chain(line.iter().cloned()))?.args;
    let mut documents = namespaces(namespace, &parsed);
    documents.push(definition());
    documents.extend(accounts(namespace, &parsed.namespace));
    documents.extend(rights(namespace, &parsed));
    let port = parsed.listen.port();
    let mut deployment = deployment(namespace, image, *replicas, &line, port);
    let pod = &mut deployment["spec"]["template"]["spec"];
    if let (Some(role), Some(provider)) = (cpfs_role_arn, cpfs_oidc_provider_arn) {
        with_role(pod, role, provider);
    }
    if let Some(secret) = cpfs_secret {
        pod["containers"][0]["env"] = key_pair(secret);
    }
    documents.push(deployment);
    if *volume_populator {
        documents.push(json!({
            "apiVersion": "populator.storage.k8s.io/v1beta1",
            "kind": "VolumePopulator",
            "metadata": {"name": format!("ossvolumepopulators.{GROUP}")},
            "sourceKind": {"group": GROUP, "kind": KIND},
        }));
    }
    let texts = documents
        .iter()
        .map(|document| serde_saphyr::to_string(document).expect("JSON without NaN is YAML"));
    Ok(texts.map(|text| format!("---\n{}\n", text.trim_end())).collect())
}

/// The resource's definition.
fn definition() -> Value {
    let mut crd = serde_json::to_value(OSSVolumePopulator::crd()).expect("a definition is JSON");
    without_unsigned(&mut crd);
    crd
}

/// Takes away the formats that Kubernetes does not know and `kubectl apply` would warn of; that such
/// a number has no sign its `minimum` says too.
fn without_unsigned(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            let format = fields.get("format").and_then(Value::as_str);
            if format.is_some_and(|format| format.starts_with("uint")) {
                fields.remove("format");
            }
            fields.values_mut().for_each(without_unsigned);
        }
        Value::Array(items) => items.iter_mut().for_each(without_unsigned),
        _ => {}
    }
}

/// The controller assumes a RAM role by its service account's token, as workers do.
fn with_role(pod: &mut Value, role: &str, provider: &str) {
    let file = format!("{}/{}", build::TOKEN_FOLDER, build::TOKEN_FILE);
    pod["containers"][0]["env"] = json!([
        {"name": "ALIBABA_CLOUD_ROLE_ARN", "value": role},
        {"name": "ALIBABA_CLOUD_OIDC_PROVIDER_ARN", "value": provider},
        {"name": "ALIBABA_CLOUD_OIDC_TOKEN_FILE", "value": file},
    ]);
    pod["containers"][0]["volumeMounts"] =
        json!([{"name": "rrsa-token", "mountPath": build::TOKEN_FOLDER, "readOnly": true}]);
    pod["volumes"] = json!([{"name": "rrsa-token", "projected": {"sources": [
        {"serviceAccountToken": {
            "path": build::TOKEN_FILE,
            "audience": build::TOKEN_AUDIENCE,
            "expirationSeconds": build::TOKEN_SECONDS,
        }},
    ]}}]);
}

fn key_pair(secret: &str) -> Value {
    let entry = |variable: &str, key: &str| {
        json!({
            "name": variable,
            "valueFrom": {"secretKeyRef": {"name": secret, "key": key}},
        })
    };
    json!([
        entry("ALIBABA_CLOUD_ACCESS_KEY_ID", "accessKeyId"),
        entry("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "accessKeySecret"),
    ])
}

fn labels() -> Value {
    json!({"app.kubernetes.io/name": "ossvp"})
}

fn namespaces(namespace: &str, args: &ControllerArgs) -> Vec<Value> {
    let workers = match args.worker_security {
        Security::Restricted => "restricted",
        Security::RootNoCaps => "baseline",
    };
    let document = |name: &str, level: &str| {
        let mut labels = labels();
        labels["pod-security.kubernetes.io/enforce"] = level.into();
        json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": labels},
        })
    };
    match namespace == args.namespace {
        true => vec![document(namespace, workers)],
        false => vec![document(namespace, "restricted"), document(&args.namespace, workers)],
    }
}

fn accounts(namespace: &str, populators: &str) -> [Value; 2] {
    let account = |name: &str, namespace: &str| {
        json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": name, "namespace": namespace, "labels": labels()},
            "automountServiceAccountToken": false,
        })
    };
    [account("ossvp-controller", namespace), account(names::WORKER_ACCOUNT, populators)]
}

fn rule(group: &str, resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": [group], "resources": resources, "verbs": verbs})
}

/// The least that works; the tests run with exactly these, and find each of them used.
fn rights(namespace: &str, args: &ControllerArgs) -> Vec<Value> {
    const WATCH: [&str; 3] = ["get", "list", "watch"];
    let anywhere = vec![
        // users' claims: the finalizer, and a selected node that is given up
        rule("", &["persistentvolumeclaims"], &["get", "list", "watch", "patch"]),
        // the rebind
        rule("", &["persistentvolumes"], &["get", "patch"]),
        rule("", &["events"], &["create"]),
        rule("storage.k8s.io", &["storageclasses"], &WATCH),
        rule(GROUP, &["ossvolumepopulators"], &WATCH),
        rule(GROUP, &["ossvolumepopulators/status"], &["patch"]),
        rule("populator.storage.k8s.io", &["volumepopulators"], &["create"]),
    ];
    let mut with_workers = vec![
        rule("", &["persistentvolumeclaims"], &["create", "delete"]),
        // why a volume, or a Pod, does not come
        rule("", &["events"], &["list"]),
        // which entries a key pair has, and whether it was changed; no other namespace's
        rule("", &["secrets"], &["list", "watch"]),
        rule("", &["pods"], &["list", "watch"]),
    ];
    let mut jobs = rule("batch", &["jobs"], &WATCH);
    if args.feature_gates.pod_handler {
        jobs = rule("batch", &["jobs"], &["get", "list", "watch", "create", "delete"]);
        with_workers.push(rule("", &["pods/log"], &["get"]));
        // what someone's deletion of a Job leaves behind
        with_workers.push(rule("", &["pods"], &["delete"]));
    }
    with_workers.push(jobs);
    if args.require_grant {
        with_workers.push(rule("", &["serviceaccounts"], &["list", "watch"]));
    }
    let mut lease = rule("coordination.k8s.io", &["leases"], &["get", "patch"]);
    lease["resourceNames"] = json!([lead::LEASE]);
    let leading = vec![rule("coordination.k8s.io", &["leases"], &["create"]), lease];
    let mut documents = role("ossvp-controller", None, &anywhere, namespace);
    documents.extend(role("ossvp-populator", Some(&args.namespace), &with_workers, namespace));
    documents.extend(role("ossvp-leader", Some(namespace), &leading, namespace));
    documents
}

/// A role and its binding to the controller, of one namespace or of all.
fn role(name: &str, within: Option<&str>, rules: &[Value], controller: &str) -> Vec<Value> {
    let kind = if within.is_some() { "Role" } else { "ClusterRole" };
    let mut metadata = json!({"name": name, "labels": labels()});
    if let Some(namespace) = within {
        metadata["namespace"] = namespace.into();
    }
    let api = "rbac.authorization.k8s.io";
    vec![
        json!({
            "apiVersion": format!("{api}/v1"),
            "kind": kind,
            "metadata": metadata,
            "rules": rules,
        }),
        json!({
            "apiVersion": format!("{api}/v1"),
            "kind": format!("{kind}Binding"),
            "metadata": metadata,
            "roleRef": {"apiGroup": api, "kind": kind, "name": name},
            "subjects": [
                {"kind": "ServiceAccount", "name": "ossvp-controller", "namespace": controller},
            ],
        }),
    ]
}

fn deployment(namespace: &str, image: &str, replicas: i32, line: &[String], port: u16) -> Value {
    let command: Vec<&str> =
        std::iter::once("controller").chain(line.iter().map(String::as_str)).collect();
    let probe = |path: &str| json!({"httpGet": {"path": path, "port": "http"}});
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "ossvp-controller", "namespace": namespace, "labels": labels()},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app.kubernetes.io/name": "ossvp", "app.kubernetes.io/component": "controller"}},
            "template": {
                "metadata": {"labels": {"app.kubernetes.io/name": "ossvp", "app.kubernetes.io/component": "controller"}},
                "spec": {
                    "serviceAccountName": "ossvp-controller",
                    "automountServiceAccountToken": true,
                    "securityContext": {
                        "runAsNonRoot": true,
                        "runAsUser": 65532,
                        "runAsGroup": 65532,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    // one node's loss is not the loss of both
                    "topologySpreadConstraints": [{
                        "maxSkew": 1,
                        "topologyKey": "kubernetes.io/hostname",
                        "whenUnsatisfiable": "ScheduleAnyway",
                        "labelSelector": {"matchLabels": {"app.kubernetes.io/name": "ossvp", "app.kubernetes.io/component": "controller"}},
                    }],
                    "containers": [{
                        "name": "controller",
                        "image": image,
                        "args": command,
                        "ports": [{"name": "http", "containerPort": port}],
                        "livenessProbe": probe("/healthz"),
                        "readinessProbe": probe("/readyz"),
                        "resources": {
                            "requests": {"cpu": "50m", "memory": "64Mi"},
                            "limits": {"memory": "256Mi"},
                        },
                        "securityContext": {
                            "allowPrivilegeEscalation": false,
                            "capabilities": {"drop": ["ALL"]},
                            "readOnlyRootFilesystem": true,
                        },
                    }],
                },
            },
        },
    })
}

#[cfg(test)]
mod tests;
