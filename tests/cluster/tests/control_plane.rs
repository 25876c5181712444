//! The control plane alone: everything of Kubernetes that needs no node.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use cluster::{Api, ControlPlane, Error, eventually};
use serde_json::{Value, json};

/// A static is never dropped; this one is gone all the same when the process of the tests is.
static SHARED: LazyLock<ControlPlane> = LazyLock::new(|| {
    ControlPlane::options().user("eve", &["strangers"]).start().unwrap_or_else(|e| panic!("{e}"))
});

/// A namespace of a test's own.
fn namespace(api: &Api) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("test-{}", NEXT.fetch_add(1, Relaxed));
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    api.create("/api/v1/namespaces", &object).unwrap();
    name
}

#[test]
fn a_namespace_gets_its_default_service_account() {
    let api = SHARED.api();
    let namespace = namespace(api);
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/default");
    api.wait(&path, "existence", Value::is_object).unwrap();
}

#[test]
fn a_job_makes_pods() {
    let api = SHARED.api();
    let namespace = namespace(api);
    let job = json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "work"},
        "spec": {"completions": 3, "parallelism": 3, "completionMode": "Indexed", "template": {"spec": {
            "restartPolicy": "Never",
            "containers": [{"name": "work", "image": "work"}],
        }}},
    });
    api.create(&format!("/apis/batch/v1/namespaces/{namespace}/jobs"), &job).unwrap();
    let pods = format!("/api/v1/namespaces/{namespace}/pods");
    let three = |list: &Value| list["items"].as_array().is_some_and(|items| items.len() == 3);
    let list = api.wait(&pods, "three items", three).unwrap();
    assert_eq!(list["items"][0]["metadata"]["ownerReferences"][0]["kind"], "Job");
}

#[test]
fn a_volume_and_a_claim_are_bound() {
    let api = SHARED.api();
    let namespace = namespace(api);
    let volume = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": format!("pv-{namespace}")},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": namespace,
            "hostPath": {"path": "/nowhere"},
        },
    });
    api.create("/api/v1/persistentvolumes", &volume).unwrap();
    let claim = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "claim"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": namespace,
            "resources": {"requests": {"storage": "1Gi"}},
        },
    });
    let claims = format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims");
    api.create(&claims, &claim).unwrap();
    let bound = |claim: &Value| claim["status"]["phase"] == "Bound";
    let claim = api.wait(&format!("{claims}/claim"), "binding", bound).unwrap();
    assert_eq!(claim["spec"]["volumeName"], format!("pv-{namespace}"));
}

#[test]
fn a_user_without_rights_is_refused_and_the_audit_log_says_so() {
    let eve = SHARED.api_for(SHARED.token("eve").unwrap());
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "hers"}});
    let refused = eve.create("/api/v1/namespaces/default/pods", &pod).unwrap_err();
    assert!(matches!(refused, Error::Refused { status: 403, .. }), "{refused}");
    let event = SHARED.audit().wait("eve", |event| event.user == "eve").unwrap();
    assert_eq!(
        (event.verb.as_str(), event.resource.as_str(), event.namespace.as_str(), event.code),
        ("create", "pods", "default", 403)
    );
}

#[test]
fn the_audit_log_holds_the_body_of_what_changes_something() {
    let api = SHARED.api();
    let namespace = namespace(api);
    let path = format!("/api/v1/namespaces/{namespace}");
    api.patch(&path, &json!({"metadata": {"labels": {"team": "blue"}}})).unwrap();
    let event = SHARED
        .audit()
        .wait("the patch", |event| event.verb == "patch" && event.name == namespace)
        .unwrap();
    assert_eq!(event.request.unwrap()["metadata"]["labels"]["team"], "blue");
}

#[test]
fn a_service_account_has_the_rights_that_rbac_gives_it() {
    let api = SHARED.api();
    let namespace = namespace(api);
    let account = format!("/api/v1/namespaces/{namespace}/serviceaccounts/default");
    api.wait(&account, "existence", Value::is_object).unwrap();
    let token = SHARED.service_account_token(&namespace, "default").unwrap();
    let config_maps = format!("/api/v1/namespaces/{namespace}/configmaps");
    let its = SHARED.api_for(&token);
    assert!(matches!(its.get(&config_maps), Err(Error::Refused { status: 403, .. })));
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "view"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": namespace}],
    });
    let bindings =
        format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings");
    api.create(&bindings, &binding).unwrap();
    // the authorizer sees the binding through a watch
    eventually("the right to list", || its.get(&config_maps).ok()).unwrap();
}

#[test]
fn a_pod_that_is_not_restricted_enough_is_refused_where_the_namespace_says_so() {
    let api = SHARED.api();
    let namespace = namespace(api);
    let labels = json!({"pod-security.kubernetes.io/enforce": "restricted"});
    let path = format!("/api/v1/namespaces/{namespace}");
    api.patch(&path, &json!({"metadata": {"labels": labels}})).unwrap();
    let account = format!("{path}/serviceaccounts/default");
    api.wait(&account, "existence", Value::is_object).unwrap();
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "root"},
        "spec": {"containers": [{"name": "root", "image": "root"}]},
    });
    let refused = api.create(&format!("{path}/pods"), &pod).unwrap_err();
    assert!(refused.to_string().contains("violates PodSecurity"), "{refused}");
}

#[test]
fn kubectl_works_with_each_kubeconfig() {
    let kubectl = |kubeconfig: &Path, args: &[&str]| {
        let output = Command::new(SHARED.kubectl())
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(args)
            .output()
            .unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let version = kubectl(&SHARED.kubeconfig(), &["version"]);
    assert!(version.contains("Server Version: v1."), "{version}");
    let eve = SHARED.kubeconfig_for(SHARED.token("eve").unwrap()).unwrap();
    let who = kubectl(&eve, &["auth", "whoami"]);
    assert!(who.contains("eve") && who.contains("strangers"), "{who}");
}

#[test]
fn a_flag_that_does_not_exist_is_named() {
    let error =
        ControlPlane::options().api_server_flag("--no-such-flag").start().unwrap_err().to_string();
    assert!(error.contains("kube-apiserver ended"), "{error}");
    assert!(error.contains("unknown flag: --no-such-flag"), "{error}");
}

#[test]
fn nothing_is_left_when_it_is_dropped() {
    let cluster = ControlPlane::start().unwrap_or_else(|error| panic!("{error}"));
    let (folder, address) = (cluster.folder().to_owned(), cluster.address());
    drop(cluster);
    assert!(!folder.exists(), "{}", folder.display());
    std::net::TcpStream::connect(address).unwrap_err();
}

/// What [`nothing_is_left_when_the_process_is_killed`] kills.
#[test]
#[ignore = "waits to be killed"]
fn waits_to_be_killed() {
    println!("{}", SHARED.folder().display());
    loop {
        std::thread::park();
    }
}

#[test]
fn nothing_is_left_when_the_process_is_killed() {
    use std::io::{BufRead, BufReader};
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["waits_to_be_killed", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let folder = BufReader::new(process.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap)
        .find_map(|line| line.find('/').map(|at| line[at..].to_owned()))
        .unwrap();
    assert!(using(&folder) >= 3, "{folder}");
    process.kill().unwrap();
    process.wait().unwrap();
    let gone = || (!Path::new(&folder).exists() && using(&folder) == 0).then_some(());
    eventually("the end of all processes and files", gone).unwrap();
}

/// How many processes have the folder as theirs.
fn using(folder: &str) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter(|entry| {
            std::fs::read_link(entry.path().join("cwd"))
                .is_ok_and(|cwd| cwd.to_string_lossy().trim_end_matches(" (deleted)") == folder)
        })
        .count()
}
