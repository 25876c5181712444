//! The whole of it on a real node: scheduler, kubelet, containerd, a CSI driver, and the controller
//! as the Deployment that its manifests make.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use cluster::{Api, ControlPlane, Image, Node};
use oss_server::{Fault, OssServer, PutOptions};
use serde_json::{Value, json};
use support::{BUCKET, ID, SECRET};

const IMAGE: &str = "example.com/ossvp:test";
const POPULATORS: &str = "ack-volume-populator";
const ROLE: &str = "acs:ram::1234567:role/oss-populator";
const PROVIDER: &str = "acs:ram::1234567:oidc-provider/my-provider";

struct World {
    node: Node,
    plane: ControlPlane,
    server: OssServer,
    busybox: &'static str,
}

static WORLD: LazyLock<Option<World>> = LazyLock::new(|| {
    if let Err(why) = Node::supported() {
        eprintln!("not shown here: {why}");
        return None;
    }
    Some(World::start())
});

impl World {
    fn start() -> Self {
        let plane = ControlPlane::start().unwrap_or_else(|error| panic!("{error}"));
        let node = Node::start(&plane).unwrap_or_else(|error| panic!("{error}"));
        let server = OssServer::builder()
            .listen(SocketAddr::new(node.host_ip().into(), 0))
            .bucket(BUCKET)
            .credentials(ID, SECRET)
            .oidc_checked(ROLE, PROVIDER, |token| {
                let claims = claims(token);
                let account = "system:serviceaccount:ack-volume-populator:ossvp-worker";
                claims["aud"] == json!(["sts.aliyuncs.com"]) && claims["sub"] == account
            })
            .start_blocking()
            .unwrap();
        let binary = Path::new(env!("CARGO_BIN_EXE_ossvp"));
        let image = Image::new(IMAGE)
            .dynamic_program("/ossvp", binary)
            .unwrap()
            .user(65532)
            .entrypoint(&["/ossvp"]);
        node.import(&image).unwrap_or_else(|error| panic!("{error}"));
        let busybox = node.import_busybox().unwrap_or_else(|error| panic!("{error}"));
        let world = Self { node, plane, server, busybox };
        world.install();
        world
    }

    /// `ossvp manifests | kubectl apply -f -`, and the credentials.
    fn install(&self) {
        let host = self.node.host_ip();
        let output = Command::new(env!("CARGO_BIN_EXE_ossvp"))
            .args(["manifests", "--image", IMAGE, "--"])
            .arg(format!("--allow-endpoint={host}"))
            .arg(format!("--worker-sts-endpoint={}", self.server.endpoint()))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let file = self.plane.folder().join("manifests.yaml");
        std::fs::write(&file, output.stdout).unwrap();
        self.kubectl(&["apply", "--server-side", "-f", file.to_str().unwrap()]);
        let secret = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "oss-secret"},
            "stringData": {"accessKeyId": ID, "accessKeySecret": SECRET},
        });
        self.api().create(&format!("/api/v1/namespaces/{POPULATORS}/secrets"), &secret).unwrap();
        // both replicas are ready, as their probes see them
        let path = "/apis/apps/v1/namespaces/ossvp-system/deployments/ossvp-controller";
        self.wait(path, "two ready replicas", |it| it["status"]["readyReplicas"] == 2);
    }

    fn api(&self) -> &Api {
        self.plane.api()
    }

    fn kubectl(&self, args: &[&str]) -> String {
        let mut command = Command::new(self.plane.kubectl());
        let output =
            command.env("KUBECONFIG", self.plane.kubeconfig()).args(args).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(output.status.success(), "kubectl {args:?}: {text}");
        text
    }

    /// As [`Api::wait`], with what the cluster looks like if it never comes.
    fn wait(&self, path: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.api().wait(path, what, wanted).unwrap_or_else(|error| {
            let all = self.kubectl(&["get", "pvc,pv,job,pod,ossvp", "-A", "-o", "wide"]);
            let events = self.kubectl(&["get", "events", "-A"]);
            let log =
                ["-n", "ossvp-system", "logs", "-l", "app.kubernetes.io/name=ossvp", "--tail=40"];
            panic!("{error}\n{all}\n{events}\n{}", self.kubectl(&log))
        })
    }

    /// A namespace with a resource `models` that fills from `prefix`, with `generic`.
    fn case(&self, name: &str, prefix: &str, generic: Value) -> Case<'_> {
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        self.api().create("/api/v1/namespaces", &namespace).unwrap();
        let account = format!("/api/v1/namespaces/{name}/serviceaccounts/default");
        self.wait(&account, "its account", Value::is_object);
        let source = json!({
            "apiVersion": "storage.alibabacloud.com/v1beta1",
            "kind": "OSSVolumePopulator",
            "metadata": {"name": "models"},
            "spec": {
                "bucket": BUCKET,
                "region": self.server.region(),
                "endpoint": self.server.endpoint(),
                "path": format!("/{prefix}/"),
                "generic": generic,
            },
        });
        let sources =
            format!("/apis/storage.alibabacloud.com/v1beta1/namespaces/{name}/ossvolumepopulators");
        self.api().create(&sources, &source).unwrap();
        Case { world: self, namespace: name.to_owned() }
    }
}

/// What a service account's token says.
fn claims(token: &str) -> Value {
    use base64::Engine;
    let payload = token.split('.').nth(1).unwrap_or_default();
    let payload = base64::prelude::BASE64_URL_SAFE_NO_PAD.decode(payload).unwrap_or_default();
    serde_json::from_slice(&payload).unwrap_or_default()
}

fn by_secret() -> Value {
    json!({"secretRef": "oss-secret"})
}

struct Case<'w> {
    world: &'w World,
    namespace: String,
}

fn claim_spec(class: &str, size: &str) -> Value {
    json!({
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": class,
        "resources": {"requests": {"storage": size}},
        "dataSourceRef": {
            "apiGroup": "storage.alibabacloud.com", "kind": "OSSVolumePopulator", "name": "models",
        },
    })
}

impl Case<'_> {
    fn path(&self, kind: &str) -> String {
        format!("/api/v1/namespaces/{}/{kind}", self.namespace)
    }

    /// Makes the claim `data`; its UID.
    fn claim(&self, class: &str, size: &str) -> String {
        self.claim_of(claim_spec(class, size))
    }

    fn claim_of(&self, spec: Value) -> String {
        let claim = json!({
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "data"},
            "spec": spec,
        });
        let path = self.path("persistentvolumeclaims");
        let claim = self.world.api().create(&path, &claim).unwrap();
        claim["metadata"]["uid"].as_str().unwrap().to_owned()
    }

    /// A Pod that runs `script` with `volume` at `/data`, as someone else than the worker.
    fn pod(&self, script: &str, volume: Value) {
        let mut volume = volume;
        volume["name"] = "data".into();
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "task"},
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 0,
                "securityContext": {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 65532},
                "containers": [{
                    "name": "task",
                    "image": self.world.busybox,
                    "command": ["sh", "-c", script],
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                }],
                "volumes": [volume],
            },
        });
        self.world.api().create(&self.path("pods"), &pod).unwrap();
    }

    /// The Pod's log, once it is done.
    fn log(&self) -> String {
        let path = self.path("pods/task");
        let done = |pod: &Value| {
            let phase = &pod["status"]["phase"];
            phase == "Succeeded" || phase == "Failed"
        };
        let pod = self.world.wait(&path, "the Pod's end", done);
        let log = self.world.api().text(&format!("{path}/log")).unwrap();
        assert_eq!(pod["status"]["phase"], "Succeeded", "{log}");
        log
    }

    fn bound(&self, name: &str) -> Value {
        let path = self.path(&format!("persistentvolumeclaims/{name}"));
        self.world.wait(&path, "binding", |claim| claim["status"]["phase"] == "Bound")
    }

    /// Waits until prime PVC, Job and Pods of the claim are gone.
    fn cleaned(&self, uid: &str) {
        let path = format!(
            "/api/v1/namespaces/{POPULATORS}/pods?labelSelector=storage.alibabacloud.com/pvc-uid={uid}"
        );
        self.world.wait(&path, "no Pods", |list| list["items"].as_array().unwrap().is_empty());
        let prime = format!("/api/v1/namespaces/{POPULATORS}/persistentvolumeclaims/prime-{uid}");
        self.world.api().wait_gone(&prime).unwrap();
        let job = format!("/apis/batch/v1/namespaces/{POPULATORS}/jobs/populate-{uid}");
        self.world.api().wait_gone(&job).unwrap();
    }

    /// The name of a worker Pod that runs and is not `other`.
    fn worker(&self, uid: &str, other: &str) -> String {
        let path = format!(
            "/api/v1/namespaces/{POPULATORS}/pods?labelSelector=storage.alibabacloud.com/pvc-uid={uid}"
        );
        let running = |list: &Value| {
            let pods = list["items"].as_array().unwrap();
            let mut running = pods.iter().filter(|it| it["status"]["phase"] == "Running");
            running.find(|it| it["metadata"]["name"] != other).cloned()
        };
        let list = self.world.wait(&path, "a running worker", |list| running(list).is_some());
        running(&list).unwrap()["metadata"]["name"].as_str().unwrap().to_owned()
    }

    /// The one worker Pod that runs, once `done` others have ended well; its name, and which share it
    /// fills.
    fn last_of(&self, uid: &str, done: usize, other: &str) -> (String, String) {
        let path = format!(
            "/api/v1/namespaces/{POPULATORS}/pods?labelSelector=storage.alibabacloud.com/pvc-uid={uid}"
        );
        let last = |list: &Value| {
            let pods = list["items"].as_array().unwrap();
            let in_phase =
                |phase: &'static str| pods.iter().filter(move |it| it["status"]["phase"] == phase);
            let running = in_phase("Running").find(|it| it["metadata"]["name"] != other)?;
            let metadata = &running["metadata"];
            let index = &metadata["annotations"]["batch.kubernetes.io/job-completion-index"];
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            (in_phase("Succeeded").count() == done).then(|| (text(&metadata["name"]), text(index)))
        };
        let what = "all workers but one are done";
        last(&self.world.wait(&path, what, |list| last(list).is_some())).unwrap()
    }

    /// Waits for an event of the claim.
    fn event(&self, reason: &str) -> String {
        let path = self.path("events?fieldSelector=involvedObject.kind=PersistentVolumeClaim");
        let found = |list: &Value| {
            let events = list["items"].as_array().unwrap();
            let event = events.iter().find(|event| event["reason"] == reason)?;
            Some(event["message"].as_str().unwrap().to_owned())
        };
        let list = self.world.wait(&path, reason, |list| found(list).is_some());
        found(&list).unwrap()
    }
}

/// Puts `files` below `prefix`, each of `bytes`.
fn put(server: &OssServer, prefix: &str, files: u64, bytes: usize) {
    for n in 0..files {
        server.put(BUCKET, &format!("{prefix}/results-{n}/part"), support::bytes(n, bytes));
    }
}

#[test]
fn each_task_of_a_batch_has_a_filled_disk_of_its_own_and_may_write_to_it() {
    let Some(world) = &*WORLD else { return };
    put(&world.server, "many-files", 20, 10_000);
    let case = world.case("argo", "many-files", by_secret());
    let template = json!({"spec": claim_spec("ext4-wait", "64Mi")});
    // what the document's workflow does: writes a log, and lists what it finds
    let script = "echo started >/data/1-logs && ls -A /data && cat /data/results-7/part | wc -c";
    case.pod(script, json!({"ephemeral": {"volumeClaimTemplate": template}}));
    let log = case.log();
    let lines: Vec<&str> = log.lines().collect();
    assert!(lines.contains(&"1-logs") && lines.contains(&"results-7"), "{log}");
    assert_eq!(lines.last(), Some(&"10000"), "{log}");
    let claim = case.bound("task-data");
    case.cleaned(claim["metadata"]["uid"].as_str().unwrap());
    println!("{}", world.kubectl(&["-n", "argo", "describe", "pvc", "task-data"]));
    println!("{}", world.kubectl(&["-n", "argo", "describe", "ossvp", "models"]));

    world.api().delete(&case.path("pods/task")).unwrap();
    world.api().wait_gone(&case.path("persistentvolumeclaims/task-data")).unwrap();
    let volume = claim["spec"]["volumeName"].as_str().unwrap();
    world.api().wait_gone(&format!("/api/v1/persistentvolumes/{volume}")).unwrap();
}

#[test]
fn a_claim_of_an_immediate_class_is_filled_before_any_pod_uses_it() {
    let Some(world) = &*WORLD else { return };
    put(&world.server, "model", 10, 100_000);
    let case = world.case("serving", "model", by_secret());
    let uid = case.claim("ext4", "64Mi");
    case.bound("data");
    case.cleaned(&uid);
    case.pod("cat /data/*/part | wc -c", json!({"persistentVolumeClaim": {"claimName": "data"}}));
    assert_eq!(case.log(), "1000000\n");
}

#[test]
fn a_worker_that_is_killed_is_replaced_and_a_claim_deleted_meanwhile_leaves_nothing() {
    let Some(world) = &*WORLD else { return };
    put(&world.server, "killed", 5, 10_000);
    let hold = || {
        let wait = [("x-oss-qos-delay-time", "300")];
        world.server.fault(Fault::get("killed/results-4/part").status_with(
            503,
            "ServiceUnavailable",
            &wait,
        ));
    };
    hold();
    let case = world.case("killed", "killed", by_secret());
    let uid = case.claim("ext4", "64Mi");
    let first = case.worker(&uid, "");
    world.kubectl(&["-n", POPULATORS, "delete", "pod", &first, "--grace-period=0", "--force"]);
    case.worker(&uid, &first);
    world.server.clear_faults();
    case.bound("data");
    case.cleaned(&uid);
    // what the first one committed was not fetched again
    assert_eq!(world.server.gets(BUCKET, "killed/results-0/part"), 1);

    hold();
    let second = world.case("deleted", "killed", by_secret());
    let uid = second.claim("ext4", "64Mi");
    second.worker(&uid, "");
    world.api().delete(&second.path("persistentvolumeclaims/data")).unwrap();
    world.api().wait_gone(&second.path("persistentvolumeclaims/data")).unwrap();
    second.cleaned(&uid);
    world.server.clear_faults();
}

/// Kills the process of the worker that fills `share` from `source`, as the kernel's out-of-memory
/// killer does.
fn kill_worker(source: &str, share: &str) {
    let is_worker = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        let mut words = line.split('\0');
        words.clone().any(|word| word == format!("--shard={share}"))
            && words.any(|word| word == source)
    };
    let names = std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().file_name());
    let pids = names.filter_map(|name| name.to_str()?.parse::<i32>().ok());
    let workers: Vec<i32> = pids.filter(is_worker).collect();
    let [worker] = workers[..] else { panic!("not one process, but {workers:?}") };
    let worker = rustix::process::Pid::from_raw(worker).unwrap();
    rustix::process::kill_process(worker, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn several_workers_fill_one_shared_directory_and_one_that_is_killed_is_replaced() {
    let Some(world) = &*WORLD else { return };
    // no other process on this machine names it
    let prefix = format!("shared-{}", std::process::id());
    put(&world.server, &prefix, 12, 10_000);
    let held = format!("{prefix}/results-7/part");
    let wait = [("x-oss-qos-delay-time", "300")];
    world.server.fault(Fault::get(&held).status_with(503, "ServiceUnavailable", &wait));
    let generic = json!({"secretRef": "oss-secret", "parallelism": 3});
    let case = world.case("shared", &prefix, generic);
    let mut spec = claim_spec("directory", "64Mi");
    // the kubelet gives it to the Pods' group if it is for one node, too
    spec["accessModes"] = json!(["ReadWriteOnce", "ReadWriteMany"]);
    let uid = case.claim_of(spec);

    let (killed, share) = case.last_of(&uid, 2, "");
    kill_worker(&format!("oss://{BUCKET}/{prefix}/"), &format!("{share}/3"));
    case.event("PopulatorRetrying");
    let pod = world.api().get(&format!("/api/v1/namespaces/{POPULATORS}/pods/{killed}")).unwrap();
    let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(ended["exitCode"], 137, "{pod}");
    let (next, same) = case.last_of(&uid, 2, &killed);
    assert!(next != killed && same == share, "{next} fills {same}, {killed} filled {share}");
    world.server.clear_faults();
    case.bound("data");
    println!("{}", case.event("PopulatorFinished"));
    case.cleaned(&uid);
    // no share was begun again, and what the killed one had committed was not fetched again
    for n in (0..12).filter(|n| *n != 7) {
        assert_eq!(world.server.gets(BUCKET, &format!("{prefix}/results-{n}/part")), 1);
    }
    let script = "cat /data/results-*/part | wc -c && grep '\"shards\"' /data/.ossvp/complete.json";
    case.pod(script, json!({"persistentVolumeClaim": {"claimName": "data"}}));
    let log = case.log();
    let lines: Vec<&str> = log.lines().map(str::trim).collect();
    assert_eq!(lines, ["120000", "\"shards\": 3,"]);
}

#[test]
fn a_volume_that_is_too_small_is_told_with_both_figures() {
    let Some(world) = &*WORLD else { return };
    world.server.put_synthetic(BUCKET, "large/object", 100 << 20, 7, PutOptions::new());
    let case = world.case("small", "large", by_secret());
    let uid = case.claim("ext4", "32Mi");
    let told = case.event("PopulatorFailed");
    assert!(told.contains("104857600") && told.contains("the volume holds"), "{told}");
    println!("{told}");
    // its log is kept until someone decides
    let log = world.kubectl(&["-n", POPULATORS, "logs", &format!("job/populate-{uid}")]);
    assert!(log.contains("104857600"), "{log}");
    world.api().delete(&case.path("persistentvolumeclaims/data")).unwrap();
    world.api().wait_gone(&case.path("persistentvolumeclaims/data")).unwrap();
    case.cleaned(&uid);
}

#[test]
fn a_projected_token_is_exchanged_for_the_roles_credentials() {
    let Some(world) = &*WORLD else { return };
    put(&world.server, "by-role", 3, 1000);
    let role = json!({"roleArn": ROLE, "oidcProviderArn": PROVIDER});
    let case = world.case("rrsa", "by-role", json!({"rrsaConfigs": role}));
    let issued = world.server.issued();
    let uid = case.claim("ext4", "64Mi");
    case.bound("data");
    case.cleaned(&uid);
    assert_eq!(world.server.issued(), issued + 1);
}
