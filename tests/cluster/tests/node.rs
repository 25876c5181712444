//! A whole cluster: Pods that run, their logs, their volumes, their network.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use cluster::{Api, ControlPlane, Image, Node, eventually};
use serde_json::{Value, json};

struct Cluster {
    node: Node,
    control_plane: ControlPlane,
    image: &'static str,
}

/// A static is never dropped; this one is gone all the same when the process of the tests is.
static SHARED: LazyLock<Option<Cluster>> = LazyLock::new(|| {
    if let Err(why) = Node::supported() {
        eprintln!("not shown here: {why}");
        return None;
    }
    let control_plane = ControlPlane::start().unwrap_or_else(|error| panic!("{error}"));
    let node = Node::start(&control_plane).unwrap_or_else(|error| panic!("{error}"));
    let image = node.import_busybox().unwrap_or_else(|error| panic!("{error}"));
    Some(Cluster { node, control_plane, image })
});

/// A namespace of a test's own.
fn namespace(api: &Api) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("test-{}", NEXT.fetch_add(1, Relaxed));
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    api.create("/api/v1/namespaces", &object).unwrap();
    let account = format!("/api/v1/namespaces/{name}/serviceaccounts/default");
    api.wait(&account, "existence", Value::is_object).unwrap();
    name
}

impl Cluster {
    fn api(&self) -> &Api {
        self.control_plane.api()
    }

    /// Runs a script in a Pod to its end, with the claim at `/volume` if there is one, and returns
    /// the Pod and its log.
    fn runs(
        &self,
        namespace: &str,
        name: &str,
        script: &str,
        claim: Option<&str>,
        more: Value,
    ) -> (Value, String) {
        let mut pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "main",
                    "image": self.image,
                    "command": ["sh", "-c", script],
                }],
            },
        });
        if let Some(claim) = claim {
            pod["spec"]["volumes"] =
                json!([{"name": "volume", "persistentVolumeClaim": {"claimName": claim}}]);
            pod["spec"]["containers"][0]["volumeMounts"] =
                json!([{"name": "volume", "mountPath": "/volume"}]);
        }
        if more.is_object() {
            pod["spec"]["securityContext"] = more;
        }
        let pods = format!("/api/v1/namespaces/{namespace}/pods");
        self.api().create(&pods, &pod).unwrap();
        let path = format!("{pods}/{name}");
        let ended = |pod: &Value| {
            let phase = &pod["status"]["phase"];
            phase == "Succeeded" || phase == "Failed"
        };
        let pod = self.api().wait(&path, "the end", ended).unwrap_or_else(|e| panic!("{e}"));
        let log = self.api().text(&format!("{path}/log")).unwrap();
        (pod, log)
    }

    fn claim(&self, namespace: &str, class: &str, size: &str) -> String {
        let claim = json!({
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "claim"},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": class,
                "resources": {"requests": {"storage": size}},
            },
        });
        let path = format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims");
        self.api().create(&path, &claim).unwrap();
        format!("{path}/claim")
    }
}

fn phase(object: &Value) -> &str {
    object["status"]["phase"].as_str().unwrap_or_default()
}

fn bound(claim: &Value) -> bool {
    phase(claim) == "Bound"
}

#[test]
fn a_pod_runs_to_its_end_and_its_log_comes_through_the_api() {
    let Some(cluster) = &*SHARED else { return };
    let namespace = namespace(cluster.api());
    let (pod, log) = cluster.runs(&namespace, "hello", "echo hello; id -u", None, Value::Null);
    assert_eq!((phase(&pod), log.as_str()), ("Succeeded", "hello\n0\n"));
}

#[test]
fn a_pod_that_fails_shows_its_exit_code_and_its_last_words() {
    let Some(cluster) = &*SHARED else { return };
    let namespace = namespace(cluster.api());
    let script = "echo too small >/dev/termination-log; exit 7";
    let (pod, _) = cluster.runs(&namespace, "fails", script, None, Value::Null);
    let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((phase(&pod), &ended["exitCode"]), ("Failed", &json!(7)));
    assert_eq!(ended["message"], "too small\n");
}

#[test]
fn a_volume_is_made_at_once_and_what_one_pod_writes_the_next_reads() {
    let Some(cluster) = &*SHARED else { return };
    for class in ["directory", "ext4"] {
        let namespace = namespace(cluster.api());
        let claim = cluster.claim(&namespace, class, "16Mi");
        cluster.api().wait(&claim, "binding", bound).unwrap();
        let script = "echo kept >/volume/file";
        let (pod, log) = cluster.runs(&namespace, "writes", script, Some("claim"), Value::Null);
        assert_eq!(phase(&pod), "Succeeded", "{log}");
        let script = "cat /volume/file";
        let (_, log) = cluster.runs(&namespace, "reads", script, Some("claim"), Value::Null);
        assert_eq!(log, "kept\n");
        let volume = cluster.api().get(&claim).unwrap()["spec"]["volumeName"].clone();
        cluster.api().delete(&claim).unwrap();
        for pod in ["writes", "reads"] {
            cluster.api().delete(&format!("/api/v1/namespaces/{namespace}/pods/{pod}")).unwrap();
        }
        let volume = format!("/api/v1/persistentvolumes/{}", volume.as_str().unwrap());
        cluster.api().wait_gone(&volume).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn a_volume_that_waits_for_its_first_consumer_is_made_on_its_node() {
    let Some(cluster) = &*SHARED else { return };
    let namespace = namespace(cluster.api());
    let path = cluster.claim(&namespace, "ext4-wait", "16Mi");
    let script = "echo kept >/volume/file && cat /volume/file";
    let (_, log) = cluster.runs(&namespace, "first", script, Some("claim"), Value::Null);
    assert_eq!(log, "kept\n");
    let claim = cluster.api().get(&path).unwrap();
    let selected = &claim["metadata"]["annotations"]["volume.kubernetes.io/selected-node"];
    assert_eq!(selected, cluster.node.name());
    let volume = claim["spec"]["volumeName"].as_str().unwrap();
    let volume = cluster.api().get(&format!("/api/v1/persistentvolumes/{volume}")).unwrap();
    let terms = &volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"];
    assert_eq!(terms[0]["matchExpressions"][0]["values"][0], cluster.node.name());
}

#[test]
fn an_ext4_volume_is_as_small_as_it_was_asked_for() {
    let Some(cluster) = &*SHARED else { return };
    let namespace = namespace(cluster.api());
    cluster.claim(&namespace, "ext4", "8Mi");
    let script = "dd if=/dev/zero of=/volume/file bs=1M count=16";
    let (pod, log) = cluster.runs(&namespace, "writes", script, Some("claim"), Value::Null);
    assert_eq!(phase(&pod), "Failed");
    assert!(log.contains("No space left on device"), "{log}");
}

#[test]
fn an_ext4_volume_is_the_fs_groups_and_without_one_only_roots() {
    let Some(cluster) = &*SHARED else { return };
    let namespace = namespace(cluster.api());
    cluster.claim(&namespace, "ext4", "16Mi");
    let script = "touch /volume/file && stat -c %g /volume /volume/file";
    let nobody = json!({"runAsUser": 65534, "runAsGroup": 65534});
    let (pod, log) = cluster.runs(&namespace, "without", script, Some("claim"), nobody);
    assert_eq!(phase(&pod), "Failed");
    assert!(log.contains("Permission denied"), "{log}");
    let with = json!({"runAsUser": 65534, "runAsGroup": 65534, "fsGroup": 2000});
    let (_, log) = cluster.runs(&namespace, "with", script, Some("claim"), with);
    assert_eq!(log, "2000\n2000\n");
}

#[test]
fn a_pod_as_restricted_as_can_be_runs() {
    let Some(cluster) = &*SHARED else { return };
    let namespace = namespace(cluster.api());
    let restricted = json!({
        "runAsNonRoot": true,
        "runAsUser": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    let (_, log) = cluster.runs(&namespace, "restricted", "id -u", None, restricted);
    assert_eq!(log, "65532\n");
}

/// Answers one request of HTTP with its path.
fn serve(cluster: &Cluster) -> (String, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind((cluster.node.host_ip(), 0)).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        let path = line.split(' ').nth(1).unwrap().to_owned();
        write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len()).unwrap();
    });
    (url, server)
}

#[test]
fn a_pod_reaches_a_server_of_the_test() {
    let Some(cluster) = &*SHARED else { return };
    let namespace = namespace(cluster.api());
    let (url, server) = serve(cluster);
    let script = format!("wget -q -O - {url}/object");
    let (_, log) = cluster.runs(&namespace, "client", &script, None, Value::Null);
    assert_eq!(log, "/object");
    server.join().unwrap();
}

#[test]
fn a_pod_reaches_the_api_server_by_its_service() {
    let Some(cluster) = &*SHARED else { return };
    let namespace = namespace(cluster.api());
    // without TLS, which this wget does not check: an answer that says so is an answer
    let script = "wget -q -O - http://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT/ 2>&1";
    let (_, log) = cluster.runs(&namespace, "client", script, None, Value::Null);
    assert!(log.contains("400 Bad Request"), "{log}");
}

#[test]
fn a_pod_finds_another_by_the_name_of_its_headless_service() {
    let Some(cluster) = &*SHARED else { return };
    let namespace = namespace(cluster.api());
    let path = |kind: &str| format!("/api/v1/namespaces/{namespace}/{kind}");
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "main",
                "image": cluster.image,
                "command": ["sh", "-c", "echo found >/tmp/page && httpd -f -p 8080 -h /tmp"],
            }],
        },
    });
    cluster.api().create(&path("pods"), &pod).unwrap();
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"clusterIP": "None", "selector": {"app": "web"}, "ports": [{"port": 8080}]},
    });
    cluster.api().create(&path("services"), &service).unwrap();
    cluster.api().wait(&path("pods/web"), "a run", |pod| phase(pod) == "Running").unwrap();
    // alone, with its namespace, and in full: the first two by the domains that a Pod searches
    let script = format!(
        "for name in web web.{namespace}.svc web.{namespace}.svc.cluster.local; do
            until wget -q -O - http://$name:8080/page; do sleep 0.2; done
        done"
    );
    let (_, log) = cluster.runs(&namespace, "client", &script, None, Value::Null);
    assert_eq!(log.matches("found").count(), 3, "{log}");
}

#[test]
fn a_program_of_this_machine_runs_as_an_image() {
    let Some(cluster) = &*SHARED else { return };
    let namespace = namespace(cluster.api());
    let program = Path::new("/usr/bin/sha256sum");
    let image = Image::new("example.com/sha256sum:test")
        .dynamic_program("/sha256sum", program)
        .unwrap()
        .bytes("/etc/words", "words\n")
        .user(1000)
        .entrypoint(&["/sha256sum", "/etc/words"]);
    cluster.node.import(&image).unwrap();
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "sums"},
        "spec": {
            "restartPolicy": "Never",
            "containers": [{"name": "main", "image": image.name()}],
        },
    });
    let pods = format!("/api/v1/namespaces/{namespace}/pods");
    cluster.api().create(&pods, &pod).unwrap();
    let path = format!("{pods}/sums");
    cluster.api().wait(&path, "success", |pod| phase(pod) == "Succeeded").unwrap();
    let log = cluster.api().text(&format!("{path}/log")).unwrap();
    assert!(log.ends_with("  /etc/words\n"), "{log}");
}

#[test]
fn a_pod_that_takes_more_memory_than_it_may_is_killed_and_says_so() {
    let Some(cluster) = &*SHARED else { return };
    let namespace = namespace(cluster.api());
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "eats"},
        "spec": {
            "restartPolicy": "Never",
            "containers": [{
                "name": "main",
                "image": cluster.image,
                "command": ["tail", "/dev/zero"],
                "resources": {"limits": {"memory": "32Mi"}},
            }],
        },
    });
    let pods = format!("/api/v1/namespaces/{namespace}/pods");
    cluster.api().create(&pods, &pod).unwrap();
    let failed = |pod: &Value| phase(pod) == "Failed";
    let pod = cluster.api().wait(&format!("{pods}/eats"), "failure", failed).unwrap();
    let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&ended["reason"], &ended["exitCode"]), (&json!("OOMKilled"), &json!(137)));
}

/// What the machine still has of a node with this folder.
fn left(folder: &Path) -> Vec<String> {
    let name = folder.file_name().unwrap().to_str().unwrap();
    let groups = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
    let groups = groups.map(|entry| entry.path().join(name)).filter(|group| group.exists());
    let folder = Some(folder.to_owned()).filter(|folder| folder.exists());
    let paths = groups.chain(folder).map(|path| path.display().to_string());
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let mounts = mounts.lines().filter(|line| line.contains(name)).map(str::to_owned);
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let processes = processes
        .map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default())
        .filter(|line| line.contains(name) && !line.contains("keeper"));
    paths.chain(mounts).chain(processes).collect()
}

#[test]
fn nothing_is_left_when_it_is_dropped() {
    if let Err(why) = Node::supported() {
        eprintln!("not shown here: {why}");
        return;
    }
    let control_plane = ControlPlane::start().unwrap_or_else(|error| panic!("{error}"));
    let node = Node::start(&control_plane).unwrap_or_else(|error| panic!("{error}"));
    let folder = node.log("kubelet").parent().unwrap().to_owned();
    assert!(left(&folder).len() > 3);
    drop(node);
    assert_eq!(left(&folder), [""; 0]);
}

/// What [`nothing_is_left_when_the_process_is_killed`] kills while a Pod has a volume.
#[test]
#[ignore = "waits to be killed"]
fn waits_to_be_killed() {
    let Some(cluster) = &*SHARED else { return };
    let namespace = namespace(cluster.api());
    cluster.claim(&namespace, "ext4", "16Mi");
    let script = "echo running && sleep 1000";
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "sleeps"},
        "spec": {
            "containers": [{
                "name": "main",
                "image": cluster.image,
                "command": ["sh", "-c", script],
                "volumeMounts": [{"name": "volume", "mountPath": "/volume"}],
            }],
            "volumes": [{"name": "volume", "persistentVolumeClaim": {"claimName": "claim"}}],
        },
    });
    let pods = format!("/api/v1/namespaces/{namespace}/pods");
    cluster.api().create(&pods, &pod).unwrap();
    let running = |pod: &Value| phase(pod) == "Running";
    cluster.api().wait(&format!("{pods}/sleeps"), "the start", running).unwrap();
    println!("{}", cluster.node.log("kubelet").parent().unwrap().display());
    loop {
        std::thread::park();
    }
}

#[test]
fn nothing_is_left_when_the_process_is_killed() {
    if let Err(why) = Node::supported() {
        eprintln!("not shown here: {why}");
        return;
    }
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["waits_to_be_killed", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let folder = BufReader::new(process.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap)
        .find_map(|line| line.find('/').map(|at| PathBuf::from(&line[at..])))
        .unwrap();
    assert!(left(&folder).len() > 3);
    process.kill().unwrap();
    process.wait().unwrap();
    let gone = || left(&folder).is_empty().then_some(());
    if eventually("the end of all that the node was", gone).is_err() {
        panic!("left: {:?}", left(&folder));
    }
}
