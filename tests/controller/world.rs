//! A cluster with the controller in it, as its own manifests install it.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

use cluster::{AuditEvent, ControlPlane};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, ResourceExt};
use nas_server::{Import, NasServer, Outcome, Times};
use serde_json::json;
use stand_in::{FILESETS, Image, NodeSpec, Options, StandIn};
use tokio::runtime::Runtime;

/// The namespace of workers.
pub const POPULATORS: &str = "ack-volume-populator";
/// The namespace of the controller.
pub const SYSTEM: &str = "ossvp-system";
/// The controller's user.
pub const USER: &str = "system:serviceaccount:ossvp-system:ossvp-controller";
/// The workers' image.
pub const IMAGE: &str = "example.com/ossvp:test";
const OWN_IMAGE: &str = "--worker-image=";
const NAS_ID: &str = "nas-id";
const NAS_SECRET: &str = "nas-secret";
/// The region of all file systems.
pub const REGION: &str = "cn-wulanchabu";
/// File systems, one for each test that needs its own.
pub const FILE_SYSTEMS: [&str; 6] =
    ["bmcpfs-a", "bmcpfs-b", "bmcpfs-c", "bmcpfs-d", "bmcpfs-e", "bmcpfs-full"];
/// Holds the source's path, in a volume that CPFS has filled.
pub const IMPORTED: &str = "imported";
const PROVISIONER: &str = "stand-in.csi.example.com";

/// One runtime for all tests: worlds outlive the test that began them.
static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap());
static SHARED: LazyLock<Arc<World>> = LazyLock::new(|| {
    let world = World::start(&["--allow-endpoint=127.0.0.1", "--allow-priority-class=low"]);
    world.start_controller();
    Arc::new(world)
});
/// Worlds of a test's own take their turns: each is a control plane.
static TURN: Mutex<()> = Mutex::new(());

/// Runs a test in the world that most tests share.
pub fn shared<F: Future<Output = ()>>(test: impl FnOnce(Arc<World>) -> F) {
    let world = SHARED.clone();
    RUNTIME.block_on(test(world));
}

/// Runs a test in a world of its own, whose controller has not been started and will have `flags`.
pub fn alone<F: Future<Output = ()>>(flags: &[&str], test: impl FnOnce(Arc<World>) -> F) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let world = Arc::new(World::start(flags));
    RUNTIME.block_on(test(world));
}

pub struct World {
    pub plane: ControlPlane,
    pub client: Client,
    pub stand_in: StandIn,
    /// What drives CPFS.
    pub nas: Arc<NasServer>,
    /// The controller's own kubeconfig.
    pub kubeconfig: PathBuf,
    pub flags: Vec<String>,
    controllers: Mutex<Vec<Controller>>,
    /// What the watch over the promise found broken.
    broken: Arc<Mutex<Vec<String>>>,
}

/// A controller process.
pub struct Controller {
    child: Mutex<Child>,
    log: PathBuf,
}

impl World {
    fn start(flags: &[&str]) -> Self {
        let plane = ControlPlane::start().unwrap();
        let client = client(&plane.kubeconfig());
        let volumes = Arc::new(OnceLock::new());
        let nas = Arc::new(cpfs(volumes.clone()));
        let made = {
            let nas = nas.clone();
            move |file_system: &str, id: &str, path: &str| nas.fileset(file_system, id, path)
        };
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let options = Options::new()
            .provisioner(PROVISIONER)
            .filesets(made)
            .node(NodeSpec::named("node-a").label("zone", "a"))
            .node(NodeSpec::named("node-b").label("zone", "b"))
            .image(IMAGE, Image::program(env!("CARGO_BIN_EXE_ossvp")).user(65532))
            .image("busybox", Image::shell());
        let stand_in = StandIn::start_alone(&plane.kubeconfig(), options).unwrap();
        volumes.set(stand_in.volume("any").parent().unwrap().to_owned()).unwrap();
        let mut world = Self {
            nas,
            kubeconfig: PathBuf::new(),
            plane,
            client,
            stand_in,
            flags,
            controllers: Mutex::default(),
            broken: Arc::default(),
        };
        world.install();
        world.kubeconfig = Self::log_in(&world.plane);
        RUNTIME.block_on(world.prepare());
        world.watch_the_promise();
        world
    }

    /// As a user would: `ossvp manifests | kubectl apply -f -`, but that the controller is no Pod.
    pub fn install(&self) {
        let mut manifests = Command::new(env!("CARGO_BIN_EXE_ossvp"));
        // the image is said once
        let flags = self.flags.iter().filter(|flag| !flag.starts_with(OWN_IMAGE));
        manifests.args(["manifests", "--image", IMAGE, "--replicas=0", "--"]).args(flags);
        let manifests = manifests.output().unwrap();
        assert!(manifests.status.success(), "{}", String::from_utf8_lossy(&manifests.stderr));
        let file = self.plane.folder().join("manifests.yaml");
        std::fs::write(&file, manifests.stdout).unwrap();
        self.kubectl(&["apply", "--server-side", "-f", file.to_str().unwrap()]);
        self.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"]);
    }

    /// Storage classes.
    async fn prepare(&self) {
        let classes = Api::<StorageClass>::all(self.client.clone());
        for (name, mode, parameters) in [
            ("immediate", "Immediate", json!({})),
            ("consumer", "WaitForFirstConsumer", json!({})),
            ("sized", "Immediate", json!({"sized": "ext4"})),
            ("nas", "Immediate", json!({"csi.storage.k8s.io/fstype": "nfs"})),
        ] {
            self.class(&classes, name, mode, parameters).await;
        }
    }

    /// A StorageClass of CPFS for Lingjun, of its file system's name.
    pub async fn cpfs_class(&self, name: &str, file_system: &str, more: serde_json::Value) {
        let mut parameters = json!({"bmcpfsId": file_system, "path": "/volumes"});
        crate::case::merge(&mut parameters, more);
        let class = serde_json::from_value(json!({
            "metadata": {"name": name},
            "provisioner": FILESETS,
            "volumeBindingMode": "Immediate",
            "reclaimPolicy": "Delete",
            "parameters": parameters,
        }));
        let classes = Api::<StorageClass>::all(self.client.clone());
        classes.create(&PostParams::default(), &class.unwrap()).await.unwrap();
    }

    /// A kubeconfig with a token of the controller's own service account.
    fn log_in(plane: &ControlPlane) -> PathBuf {
        let token = plane.service_account_token(SYSTEM, "ossvp-controller").unwrap();
        plane.kubeconfig_for(&token).unwrap()
    }

    pub async fn class(
        &self,
        classes: &Api<StorageClass>,
        name: &str,
        mode: &str,
        parameters: serde_json::Value,
    ) {
        let class = serde_json::from_value(json!({
            "metadata": {"name": name},
            "provisioner": PROVISIONER,
            "volumeBindingMode": mode,
            "reclaimPolicy": "Delete",
            "parameters": parameters,
        }));
        classes.create(&PostParams::default(), &class.unwrap()).await.unwrap();
    }

    /// Watches for as long as the world lasts that no claim of ours is bound to a volume without its
    /// completion marker.
    fn watch_the_promise(&self) {
        let (client, broken) = (self.client.clone(), self.broken.clone());
        let volumes = self.stand_in.volume("any").parent().unwrap().to_owned();
        RUNTIME.spawn(async move {
            let claims = Api::<PersistentVolumeClaim>::all(client.clone());
            loop {
                let bound = claims.list(&ListParams::default()).await.into_iter().flatten();
                for claim in bound {
                    let spec = claim.spec.clone().unwrap_or_default();
                    let ours =
                        spec.data_source_ref.is_some_and(|it| it.kind == "OSSVolumePopulator");
                    let Some(volume) = spec.volume_name.filter(|_| ours) else { continue };
                    let marker = match volumes.join(&volume).join(IMPORTED) {
                        imported if imported.exists() => imported,
                        _ => volumes.join(&volume).join(".ossvp/complete.json"),
                    };
                    if claim.metadata.deletion_timestamp.is_some() || marker.exists() {
                        continue;
                    }
                    // unless both went away meanwhile
                    let volumes = Api::<PersistentVolume>::all(client.clone());
                    if let Ok(Some(volume)) = volumes.get_opt(&volume).await
                        && volume.metadata.deletion_timestamp.is_none()
                        && !marker.exists()
                    {
                        let name = format!(
                            "{}/{}",
                            claim.namespace().unwrap_or_default(),
                            claim.name_any()
                        );
                        broken.lock().unwrap().push(name);
                    }
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
    }

    /// Panics if a claim was ever bound to a volume that was not filled.
    pub fn promise_holds(&self) {
        let mut broken = self.broken.lock().unwrap().clone();
        // bound by hand, by the test that looks at that
        broken.retain(|claim| !claim.starts_with("by-hand-"));
        assert!(broken.is_empty(), "bound to volumes that are not filled: {broken:?}");
    }

    /// Starts one more controller with the world's flags.
    pub fn start_controller(&self) {
        let mut controllers = self.controllers.lock().unwrap();
        let log = self.plane.folder().join(format!("controller-{}.log", controllers.len()));
        controllers.push(Controller::start(self, &self.kubeconfig, &[], log));
    }

    pub fn controller_log(&self) -> String {
        let controllers = self.controllers.lock().unwrap();
        let logs =
            controllers.iter().map(|it| std::fs::read_to_string(&it.log).unwrap_or_default());
        logs.collect::<Vec<_>>().join("\n--- next controller ---\n")
    }

    /// Runs kubectl as the administrator; its output.
    #[track_caller]
    pub fn kubectl(&self, args: &[&str]) -> String {
        let (ok, output) = self.try_kubectl(args);
        assert!(ok, "kubectl {args:?}: {output}");
        output
    }

    /// Applies YAML as the administrator.
    pub fn kubectl_apply(&self, yaml: &str) {
        let file = self.plane.folder().join("applied.yaml");
        std::fs::write(&file, yaml).unwrap();
        self.kubectl(&["apply", "-f", file.to_str().unwrap()]);
    }

    /// Whether kubectl was content, and what it said.
    pub fn try_kubectl(&self, args: &[&str]) -> (bool, String) {
        let mut command = Command::new(self.plane.kubectl());
        command.env("KUBECONFIG", self.plane.kubeconfig()).args(args);
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    /// What the controller asked of the API server so far.
    pub fn requests(&self) -> Vec<AuditEvent> {
        let events = self.plane.audit().events().unwrap();
        events.into_iter().filter(|event| event.user == USER).collect()
    }
}

impl Controller {
    pub fn start(world: &World, kubeconfig: &std::path::Path, more: &[&str], log: PathBuf) -> Self {
        // it goes when the test's process does, however that ends: a static is never dropped
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", env!("CARGO_BIN_EXE_ossvp")]);
        let image = format!("{OWN_IMAGE}{IMAGE}");
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("KUBECONFIG", kubeconfig)
            .env("NAS_ENDPOINT", world.nas.endpoint())
            .env("ALIBABA_CLOUD_ACCESS_KEY_ID", NAS_ID)
            .env("ALIBABA_CLOUD_ACCESS_KEY_SECRET", NAS_SECRET)
            .args(["controller", "-v", "--listen=127.0.0.1:0"])
            .args((!world.flags.iter().any(|it| it.starts_with(OWN_IMAGE))).then_some(image))
            .args(&world.flags)
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap());
        Self { child: Mutex::new(spawn(command)), log }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child.lock().unwrap());
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    /// Whether the process has ended, and how.
    pub fn ended(&self) -> Option<std::process::ExitStatus> {
        self.child.lock().unwrap().try_wait().unwrap()
    }
}

/// CPFS, half a minute in each second. What it imports is put into the volumes' folder, once that is
/// known.
fn cpfs(volumes: Arc<OnceLock<PathBuf>>) -> NasServer {
    let server = NasServer::builder()
        .region(REGION)
        .credentials(NAS_ID, NAS_SECRET)
        .bucket("models")
        .bucket("partial")
        .bucket("broken")
        .untagged_bucket("untagged")
        .speed(30.0)
        .times(Times {
            create_flow: Duration::from_secs(60),
            run_task: Duration::from_secs(600),
            ..Times::default()
        })
        .on_import(move |import| imported(import, volumes.get().unwrap()));
    let server = FILE_SYSTEMS.into_iter().fold(server, |server, id| server.file_system(id, &[]));
    server.start_blocking().unwrap()
}

/// What comes of an import, by the bucket's name.
fn imported(import: &Import, volumes: &std::path::Path) -> Outcome {
    let all = Outcome {
        files_total: 10,
        files_done: 10,
        bytes_total: 1000,
        bytes_done: 1000,
        ..Outcome::default()
    };
    match import.bucket.as_str() {
        "partial" => {
            let report = ("FailedFiles".to_owned(), "/.dataflow_report/failed.csv".to_owned());
            Outcome { files_done: 9, reports: vec![report], ..all }
        }
        "broken" => Outcome { error: Some("ReadFailed".to_owned()), files_done: 3, ..all },
        _ => {
            let volume = import.destination.trim_matches('/').rsplit('/').next().unwrap();
            let file = volumes.join(volume).join(IMPORTED);
            // unless its volume went away under it
            let _ = std::fs::write(file, &import.source);
            all
        }
    }
}

/// Spawns from a thread that lives as long as the process: a child is told of the end of the thread
/// that it comes from.
fn spawn(command: Command) -> Child {
    type Order = (Command, mpsc::Sender<std::io::Result<Child>>);
    static SPAWNER: LazyLock<Mutex<mpsc::Sender<Order>>> = LazyLock::new(|| {
        let (sender, orders) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in orders {
                // whoever asked may have panicked
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(sender)
    });
    let (answer, spawned) = mpsc::channel();
    SPAWNER.lock().unwrap_or_else(PoisonError::into_inner).send((command, answer)).unwrap();
    spawned.recv().unwrap().unwrap()
}

impl Drop for Controller {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// A client by a kubeconfig file.
fn client(kubeconfig: &std::path::Path) -> Client {
    let config = Kubeconfig::read_from(kubeconfig).unwrap();
    let _in_runtime = RUNTIME.enter();
    let config =
        RUNTIME.block_on(Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()));
    Client::try_from(config.unwrap()).unwrap()
}

/// Waits until `look` finds what it looks for; `what` it is, in case it never comes.
pub async fn until<T, F>(world: &World, what: &str, mut look: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let start = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        if start.elapsed() > Duration::from_secs(120) {
            let (_, claims) =
                world.try_kubectl(&["get", "pvc,job,pod,pv,ossvp", "-A", "-o", "wide"]);
            let (_, events) = world.try_kubectl(&["get", "events", "-A"]);
            let log = world.controller_log();
            let tail = log.lines().rev().take(60).collect::<Vec<_>>();
            let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
            panic!("never: {what}\n{claims}\n{events}\n{tail}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
