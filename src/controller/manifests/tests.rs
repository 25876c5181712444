//! The manifests, read back as a cluster would.

use super::*;
use crate::cli::{Cli, Command};

fn printed(flags: &[&str]) -> Vec<Value> {
    let line = ["ossvp", "manifests"].iter().chain(flags);
    let Command::Manifests(args) = Cli::try_parse_from(line).unwrap().command else {
        panic!("not manifests");
    };
    let text = manifests(&args).unwrap();
    let documents = text.split("---\n").filter(|document| !document.is_empty());
    documents.map(|document| serde_saphyr::from_str(document).unwrap()).collect()
}

fn of<'d>(documents: &'d [Value], kind: &str, name: &str) -> &'d Value {
    let mut found =
        documents.iter().filter(|it| it["kind"] == kind && it["metadata"]["name"] == name);
    let one = found.next().unwrap_or_else(|| panic!("no {kind} {name}"));
    assert!(found.next().is_none(), "two of {kind} {name}");
    one
}

fn verbs(role: &Value, group: &str, resource: &str) -> Vec<String> {
    let rules = role["rules"].as_array().unwrap().iter();
    let names = |list: &Value, name: &str| list.as_array().unwrap().iter().any(|it| it == name);
    let matching = rules
        .filter(|rule| names(&rule["apiGroups"], group) && names(&rule["resources"], resource));
    let verbs = matching.flat_map(|rule| rule["verbs"].as_array().unwrap().clone());
    verbs.map(|verb| verb.as_str().unwrap().to_owned()).collect()
}

#[test]
fn every_document_is_an_object_of_its_own() {
    let documents = printed(&["--volume-populator"]);
    let mut seen = std::collections::BTreeSet::new();
    for document in &documents {
        let [version, kind, name] =
            [&document["apiVersion"], &document["kind"], &document["metadata"]["name"]]
                .map(|field| field.as_str().unwrap_or_else(|| panic!("{document}")).to_owned());
        let namespace = document["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
        assert!(seen.insert((version, kind, namespace, name)), "twice: {document}");
    }
    let kinds: Vec<&str> = documents.iter().map(|it| it["kind"].as_str().unwrap()).collect();
    assert_eq!(
        kinds,
        [
            "Namespace",
            "Namespace",
            "CustomResourceDefinition",
            "ServiceAccount",
            "ServiceAccount",
            "ClusterRole",
            "ClusterRoleBinding",
            "Role",
            "RoleBinding",
            "Role",
            "RoleBinding",
            "Deployment",
            "VolumePopulator",
        ],
        "namespaces and definition before what needs them"
    );
    assert_eq!(printed(&[]).len(), 12, "VolumePopulator needs a definition that may not be there");
    let populator = documents.last().unwrap();
    assert_eq!(
        populator["sourceKind"],
        json!({"group": "storage.alibabacloud.com", "kind": "OSSVolumePopulator"})
    );
}

#[test]
fn bindings_name_roles_and_accounts_that_are_there() {
    let documents = printed(&["--namespace=here", "--", "--namespace=there"]);
    for binding in documents.iter().filter(|it| it["kind"].as_str().unwrap().ends_with("Binding")) {
        let role = &binding["roleRef"];
        let role = of(&documents, role["kind"].as_str().unwrap(), role["name"].as_str().unwrap());
        assert_eq!(role["metadata"]["namespace"], binding["metadata"]["namespace"]);
        let subject = &binding["subjects"][0];
        assert_eq!(subject["namespace"], "here");
        let account = of(&documents, "ServiceAccount", subject["name"].as_str().unwrap());
        assert_eq!(account["metadata"]["namespace"], "here");
    }
    let namespace = |kind: &str, name: &str| {
        of(&documents, kind, name)["metadata"]["namespace"].as_str().unwrap().to_owned()
    };
    assert_eq!(namespace("ServiceAccount", "ossvp-worker"), "there");
    assert_eq!(namespace("Role", "ossvp-populator"), "there");
    assert_eq!(namespace("Role", "ossvp-leader"), "here");
    assert_eq!(namespace("Deployment", "ossvp-controller"), "here");
    let (here, there) = (of(&documents, "Namespace", "here"), of(&documents, "Namespace", "there"));
    assert!(here != there);
    let both = printed(&["--namespace=one", "--", "--namespace=one"]);
    assert_eq!(both.iter().filter(|it| it["kind"] == "Namespace").count(), 1);
}

#[test]
fn the_deployment_runs_the_controller_with_the_arguments_that_were_given() {
    let own = ["--feature-gates=VolumePopulator=true", "--allow-endpoint=minio:9000"];
    let flags = ["--image=registry/ossvp:1", "--namespace=here", "--replicas=3", "--"];
    let documents = printed(&[&flags[..], &own[..]].concat());
    let deployment = of(&documents, "Deployment", "ossvp-controller");
    assert_eq!(deployment["spec"]["replicas"], 3);
    let template = &deployment["spec"]["template"];
    assert_eq!(deployment["spec"]["selector"]["matchLabels"], template["metadata"]["labels"]);
    let container = &template["spec"]["containers"][0];
    assert_eq!(container["image"], "registry/ossvp:1");
    let args = container["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap());
    let Command::Controller(args) =
        Cli::try_parse_from(std::iter::once("ossvp").chain(args)).unwrap().command
    else {
        panic!("not a controller");
    };
    assert_eq!(args.worker_image, "registry/ossvp:1");
    assert_eq!(args.lease_namespace, "here");
    assert_eq!(args.allow_endpoint, ["minio:9000"]);
    // where the probes look
    assert_eq!(args.listen.port().to_string(), container["ports"][0]["containerPort"].to_string());
    for field in ["serviceAccountName", "automountServiceAccountToken"] {
        assert!(!template["spec"][field].is_null(), "{field}");
    }
    let args = ManifestsArgs {
        controller: vec!["--no-such-flag".to_owned()],
        image: String::new(),
        namespace: String::new(),
        replicas: 1,
        volume_populator: false,
        cpfs_role_arn: None,
        cpfs_oidc_provider_arn: None,
        cpfs_secret: None,
    };
    assert!(manifests(&args).unwrap_err().to_string().contains("--no-such-flag"));
}

#[test]
fn rights_are_the_least_that_the_arguments_need() {
    let role = |flags: &[&str]| {
        of(&printed(&[&["--"], flags].concat()), "Role", "ossvp-populator").clone()
    };
    let all = role(&[]);
    let watch = ["get", "list", "watch"];
    assert_eq!(verbs(&all, "batch", "jobs"), ["get", "list", "watch", "create", "delete"]);
    assert_eq!(verbs(&all, "", "pods/log"), ["get"]);
    assert_eq!(verbs(&all, "", "secrets"), ["list", "watch"]);
    assert_eq!(verbs(&all, "", "serviceaccounts"), [""; 0]);
    let gated = role(&["--feature-gates=VolumePopulatorPodHandler=false"]);
    assert_eq!(verbs(&gated, "batch", "jobs"), watch);
    assert_eq!(verbs(&gated, "", "pods/log"), [""; 0]);
    assert_eq!(verbs(&role(&["--require-grant"]), "", "serviceaccounts"), ["list", "watch"]);

    let documents = printed(&[]);
    let anywhere = of(&documents, "ClusterRole", "ossvp-controller");
    for (group, resource) in [("", "secrets"), ("batch", "jobs"), ("", "pods"), ("", "configmaps")]
    {
        assert_eq!(verbs(anywhere, group, resource), [""; 0], "{resource}");
    }
    assert_eq!(verbs(anywhere, "", "persistentvolumeclaims"), ["get", "list", "watch", "patch"]);
    assert_eq!(verbs(anywhere, "", "persistentvolumes"), ["get", "patch"]);
    for role in documents.iter().filter(|it| it["kind"].as_str().unwrap().ends_with("Role")) {
        let text = role["rules"].to_string();
        for too_much in ["\"*\"", "escalate", "bind", "impersonate", "deletecollection", "exec"] {
            assert!(!text.contains(too_much), "{too_much}: {text}");
        }
    }
}

#[test]
fn the_namespaces_enforce_what_the_pods_keep_to() {
    let level = |flags: &[&str], name: &str| {
        let documents = printed(flags);
        let labels = &of(&documents, "Namespace", name)["metadata"]["labels"];
        labels["pod-security.kubernetes.io/enforce"].as_str().unwrap().to_owned()
    };
    assert_eq!(level(&[], "ack-volume-populator"), "restricted");
    assert_eq!(level(&[], "ossvp-system"), "restricted");
    let root = ["--", "--worker-security=root-no-caps"];
    assert_eq!(level(&root, "ack-volume-populator"), "baseline");
    assert_eq!(level(&root, "ossvp-system"), "restricted");
}

/// Asserts that `schema` has every property of `value`.
fn has(schema: &Value, value: &Value, path: &str) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                let path = format!("{path}.{field}");
                let free = &schema["additionalProperties"];
                let inner = &schema["properties"][field];
                assert!(inner.is_object() || free.is_object(), "{path}");
                has(if inner.is_object() { inner } else { free }, value, &path);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| has(&schema["items"], item, path)),
        Value::String(_) => assert_eq!(schema["type"], "string", "{path}"),
        _ => assert_eq!(schema["type"], "integer", "{path}"),
    }
}

#[test]
fn the_definition_takes_what_the_document_writes() {
    let documents = printed(&[]);
    let name = "ossvolumepopulators.storage.alibabacloud.com";
    let definition = &of(&documents, "CustomResourceDefinition", name)["spec"];
    assert_eq!(definition["scope"], "Namespaced");
    assert_eq!(definition["names"]["shortNames"], json!(["ossvp"]));
    assert_eq!(definition["names"]["kind"], "OSSVolumePopulator");
    let version = &definition["versions"][0];
    assert_eq!(version["name"], "v1beta1");
    assert_eq!(version["subresources"], json!({"status": {}}));
    let columns = version["additionalPrinterColumns"].as_array().unwrap().iter();
    let columns: Vec<&str> = columns.map(|column| column["name"].as_str().unwrap()).collect();
    assert_eq!(columns, ["Mode", "Bucket", "Path", "Phase", "Progress", "Age"]);

    // of others kubectl warns
    let known = ["int32", "int64", "double", "date-time"];
    let text = definition.to_string();
    for format in text.split("\"format\":\"").skip(1) {
        let format = format.split('"').next().unwrap();
        assert!(known.contains(&format), "{format}");
    }

    let spec = &version["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let generic = crate::controller::policy::tests::spec(|spec| {
        spec["generic"]["secretRef"] = "oss-secret".into();
    });
    has(spec, &serde_json::to_value(generic).unwrap(), "spec");
    let dataflow = json!({
        "bucket": "bucket",
        "region": "cn-hangzhou",
        "endpoint": "oss-cn-hangzhou-internal.aliyuncs.com",
        "path": "/Qwen3-32B/",
        "mode": "bmcpfs-dataflow",
        "bmcpfsDataflow": {"throughput": 1200, "sourceSecurityType": "SSL", "dataType": "metadata"},
    });
    has(spec, &dataflow, "spec");
    let parsed: crate::controller::crd::OSSVolumePopulatorSpec =
        serde_json::from_value(dataflow.clone()).unwrap();
    assert_eq!(serde_json::to_value(parsed).unwrap(), dataflow);
    assert_eq!(spec["required"], json!(["bucket", "endpoint", "region"]));
    assert_eq!(spec["properties"]["mode"]["enum"], json!(["generic", "bmcpfs-dataflow"]));

    let rules = |schema: &Value| -> Vec<String> {
        let rules = schema["x-kubernetes-validations"].as_array().unwrap().iter();
        rules.map(|rule| rule["rule"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(rules(spec).len(), 3);
    assert_eq!(rules(&spec["properties"]["path"]).len(), 1);
    assert_eq!(
        rules(&spec["properties"]["generic"]),
        ["has(self.secretRef) != has(self.rrsaConfigs)"]
    );
    let throughput = &spec["properties"]["bmcpfsDataflow"]["properties"]["throughput"];
    assert_eq!(rules(throughput), ["self in [600, 1200, 1500]"]);

    let status = &version["schema"]["openAPIV3Schema"]["properties"]["status"];
    for field in ["message", "bmcpfsDataflow", "conditions", "populations", "observedGeneration"] {
        assert!(status["properties"][field].is_object(), "{field}");
    }
}

#[test]
fn the_controller_asks_cpfs_by_a_role_or_by_a_secret() {
    let pod = |flags: &[&str]| {
        let documents = printed(flags);
        of(&documents, "Deployment", "ossvp-controller")["spec"]["template"]["spec"].clone()
    };
    let role = "acs:ram::1234567:role/ossvp-controller";
    let provider = "acs:ram::1234567:oidc-provider/ack-rrsa-c1";
    let by_role = pod(&["--cpfs-role-arn", role, "--cpfs-oidc-provider-arn", provider]);
    let container = &by_role["containers"][0];
    let value = |name: &str| {
        let env = container["env"].as_array().unwrap();
        env.iter().find(|it| it["name"] == name).unwrap()["value"].as_str().unwrap().to_owned()
    };
    assert_eq!(value("ALIBABA_CLOUD_ROLE_ARN"), role);
    assert_eq!(value("ALIBABA_CLOUD_OIDC_PROVIDER_ARN"), provider);
    let folder = container["volumeMounts"][0]["mountPath"].as_str().unwrap();
    let token = &by_role["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"];
    let file = format!("{folder}/{}", token["path"].as_str().unwrap());
    assert_eq!(value("ALIBABA_CLOUD_OIDC_TOKEN_FILE"), file);
    assert_eq!(token["audience"], "sts.aliyuncs.com");
    assert_eq!(container["volumeMounts"][0]["name"], by_role["volumes"][0]["name"]);

    let by_secret = pod(&["--cpfs-secret", "cpfs"]);
    let env = &by_secret["containers"][0]["env"];
    assert_eq!(env[0]["valueFrom"]["secretKeyRef"], json!({"name": "cpfs", "key": "accessKeyId"}));
    assert_eq!(pod(&[])["containers"][0]["env"], Value::Null);
    for half in [&["--cpfs-role-arn", role][..], &["--cpfs-oidc-provider-arn", provider]] {
        let line = ["ossvp", "manifests"].iter().chain(half);
        assert!(Cli::try_parse_from(line).is_err());
    }
}
