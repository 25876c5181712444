//! A node that runs Pods.

mod cgroup;
mod driver;
mod image;
mod machine;
mod serving;
mod settings;

use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::component::{Component, wait_for};
use crate::control_plane::{SERVICE_IP, free_ports, write};
use crate::keeper::Keeper;
use crate::kubeconfig::kubeconfig;
use crate::{Api, ControlPlane, Error, binaries};
pub use image::Image;
use machine::{Machine, run};
use serving::Serving;
use settings::PAUSE;

/// The node's name.
const NAME: &str = "node";

/// What a node should be like.
#[derive(Debug, Clone, Default)]
pub struct NodeOptions {
    volumes: Option<PathBuf>,
    fs_group_policy: Option<String>,
    kubelet: Vec<String>,
}

impl NodeOptions {
    /// Where the volumes are kept; without it, in the node's own folder. What it holds is what all
    /// volumes of the kind `directory` hold together.
    #[must_use]
    pub fn volumes(mut self, folder: &Path) -> Self {
        self.volumes = Some(folder.to_owned());
        self
    }

    /// The `fsGroupPolicy` of the driver, `File` without it: the kubelet gives every volume to the
    /// Pod's fsGroup. `None` is what file servers have.
    #[must_use]
    pub fn fs_group_policy(mut self, policy: &str) -> Self {
        self.fs_group_policy = Some(policy.to_owned());
        self
    }

    /// One more flag for the kubelet.
    #[must_use]
    pub fn kubelet_flag(mut self, flag: &str) -> Self {
        self.kubelet.push(flag.to_owned());
        self
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] where the machine does not allow it, or why it does not work.
    pub fn start(self, control_plane: &ControlPlane) -> Result<Node, Error> {
        Node::supported().map_err(Error::Unsupported)?;
        Node::start_with(&self, control_plane)
    }
}

/// A node, with a scheduler, a driver for volumes, and classes of them. There is no kube-proxy: Pods
/// find headless Services by their names, and of the others only `kubernetes`.
///
/// | class | volumes | bound |
/// |---|---|---|
/// | `directory` | folders of the host, without a size | at once |
/// | `directory-wait` | the same | when a Pod wants them |
/// | `ext4` | ext4 file systems of the size that the claim asks | at once |
/// | `ext4-wait` | the same | when a Pod wants them |
///
/// To be dropped before its control plane.
#[derive(Debug)]
pub struct Node {
    folder: PathBuf,
    bin: PathBuf,
    // stops before the network in which it listens
    _serving: Serving,
    components: Vec<Component>,
    machine: Machine,
    // the last: it removes the folder
    keeper: Keeper,
}

impl Node {
    /// Why this machine cannot be a node, if it cannot: for a test to print.
    ///
    /// # Errors
    ///
    /// The reason.
    pub fn supported() -> Result<(), String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("only root can make a node".to_owned());
        }
        let systems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        let names: Vec<&str> = systems.split_whitespace().collect();
        if let Some(missing) = ["overlay", "ext4"].iter().find(|name| !names.contains(name)) {
            return Err(format!("the kernel has no file system {missing}"));
        }
        if let Some(why) = cgroup::unsupported() {
            return Err(why);
        }
        let probe = "mount -t tmpfs tmpfs /run && cd /run && mkdir a b c d && \
                     mount -t overlay -o lowerdir=a,upperdir=b,workdir=c overlay d && \
                     ip link add probe type veth peer name eborp";
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--net", "--pid", "--fork", "--", "sh", "-ec", probe]);
        run(&mut unshare).map(drop).map_err(|error| format!("no namespaces: {error}"))
    }

    /// Starts one with the settings of [`NodeOptions::default`].
    ///
    /// # Errors
    ///
    /// As [`NodeOptions::start`].
    pub fn start(control_plane: &ControlPlane) -> Result<Self, Error> {
        NodeOptions::default().start(control_plane)
    }

    /// What else than the defaults is wanted.
    pub fn options() -> NodeOptions {
        NodeOptions::default()
    }

    fn start_with(options: &NodeOptions, control_plane: &ControlPlane) -> Result<Self, Error> {
        let bin = binaries::build("node")?;
        let folder = tempfile::Builder::new()
            .prefix("ossvp-node-")
            .tempdir()
            .map_err(Error::file("create a folder in", std::env::temp_dir()))?
            .keep();
        let cgroup = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let keeper = Keeper::new(&folder, &["bash", "-c", cgroup::DOWN, "down", &cgroup])
            .map_err(|source| Error::Start { name: "the keeper".to_owned(), source })?;
        let machine = Machine::new(&folder, &keeper)?;
        cgroup::make(&cgroup)?;

        let volumes = options.volumes.clone().unwrap_or_else(|| folder.join("volumes"));
        std::fs::create_dir_all(&volumes).map_err(Error::file("create", &volumes))?;
        let sockets = driver::Sockets::bind(&folder.join("kubelet"))
            .map_err(Error::file("listen in", folder.join("kubelet")))?;
        let service = machine.listen((SERVICE_IP, 443).into())?;
        let volumes = driver::Volumes { folder: volumes, node: machine.id() };
        let serving = Serving::start(sockets, volumes, service, control_plane.address())?;
        let components = Vec::new();
        let mut node = Self { folder, bin, _serving: serving, components, machine, keeper };

        node.containerd()?;
        node.import(
            &Image::new(PAUSE).program("/pause", &node.bin.join("pause")).entrypoint(&["/pause"]),
        )?;
        node.kubelet(control_plane, &cgroup, options)?;
        node.coredns(control_plane)?;
        node.outside(control_plane)?;
        node.objects(control_plane.api(), options)?;
        node.ready(control_plane.api())?;
        Ok(node)
    }

    fn containerd(&mut self) -> Result<(), Error> {
        let config = self.folder.join("containerd.toml");
        write(&config, &settings::containerd(&self.bin, &self.folder))?;
        let cni = self.folder.join("cni");
        std::fs::create_dir_all(&cni).map_err(Error::file("create", &cni))?;
        let text = settings::cni(&self.machine.pod_net()).to_string();
        write(&cni.join("pods.conflist"), &text)?;
        // it finds its shim there
        let path = format!("{}:{}", self.bin.display(), std::env::var("PATH").unwrap_or_default());
        let mut command = self.machine.enter(self.bin.join("containerd"));
        command.env("PATH", path).arg("--config").arg(config);
        self.run("containerd", command)?;
        let mut version = self.ctr(&["version"]);
        wait_for(&mut self.components, "containerd's answer", || match run(&mut version) {
            Err(Error::Failed { output, .. }) => Ok(Err(output)),
            answer => answer.map(Ok),
        })?;
        Ok(())
    }

    fn kubelet(
        &mut self,
        control_plane: &ControlPlane,
        cgroup: &str,
        options: &NodeOptions,
    ) -> Result<(), Error> {
        let file = |name: &str| self.folder.join(name);
        let ca = control_plane.folder().join("ca.crt");
        let settings = settings::kubelet(&ca, &self.folder, cgroup, self.machine.ip());
        write(&file("kubelet.json"), &settings.to_string())?;
        write(&file("resolv.conf"), "")?;
        let kubeconfig = self.kubeconfig("kubelet", "system:node:node", control_plane)?;
        let mut command = self.machine.enter(self.bin.join("kubelet"));
        command
            .arg("--config")
            .arg(file("kubelet.json"))
            .arg("--kubeconfig")
            .arg(kubeconfig)
            // with the loopback address the API server could not ask it for logs
            .arg(format!("--node-ip={}", self.machine.ip()))
            .arg(format!("--hostname-override={NAME}"))
            .args(&options.kubelet);
        self.run("kubelet", command)
    }

    /// How a component finds the API server from within the node's network.
    fn kubeconfig(
        &self,
        component: &str,
        user: &str,
        control_plane: &ControlPlane,
    ) -> Result<PathBuf, Error> {
        let token = control_plane.token(user)?;
        let text = kubeconfig(&format!("https://{SERVICE_IP}"), control_plane.ca_pem(), token);
        let file = self.folder.join(format!("{component}.kubeconfig"));
        write(&file, &text).map(|()| file)
    }

    /// On the node's own address, where the kubelet sends Pods.
    fn coredns(&mut self, control_plane: &ControlPlane) -> Result<(), Error> {
        let kubeconfig = self.kubeconfig("coredns", "coredns", control_plane)?;
        let config = self.folder.join("Corefile");
        write(&config, &settings::coredns(self.machine.ip(), &kubeconfig))?;
        let mut command = self.machine.enter(self.bin.join("coredns"));
        command.arg("-conf").arg(config);
        self.run("coredns", command)
    }

    /// What of a node's company runs on the host.
    fn outside(&mut self, control_plane: &ControlPlane) -> Result<(), Error> {
        let [scheduler] = free_ports()?;
        let mut command = Command::new(self.bin.join("kube-scheduler"));
        command
            .arg("--kubeconfig")
            .arg(control_plane.kubeconfig_of("system:kube-scheduler")?)
            .args(["--leader-elect=false", "--bind-address=127.0.0.1"])
            .arg(format!("--secure-port={scheduler}"));
        self.run("kube-scheduler", command)?;
        let mut command = Command::new(self.bin.join("csi-provisioner"));
        let socket = self.folder.join("kubelet").join(driver::SOCKET);
        command
            .arg("--kubeconfig")
            .arg(control_plane.kubeconfig_of("csi-provisioner")?)
            .arg("--csi-address")
            .arg(socket)
            .args(["--feature-gates=Topology=true", "--default-fstype=ext4"])
            .args(["--extra-create-metadata", "--retry-interval-max=5s"])
            .args(["--kube-api-qps=200", "--kube-api-burst=400"]);
        self.run("csi-provisioner", command)
    }

    fn run(&mut self, name: &str, mut command: Command) -> Result<(), Error> {
        command.current_dir(&self.folder);
        self.components.push(Component::start(name, command, &self.folder, &self.keeper)?);
        Ok(())
    }

    fn objects(&self, api: &Api, options: &NodeOptions) -> Result<(), Error> {
        let driver = json!({
            "apiVersion": "storage.k8s.io/v1",
            "kind": "CSIDriver",
            "metadata": {"name": driver::NAME},
            "spec": {
                "attachRequired": false,
                "fsGroupPolicy": options.fs_group_policy.as_deref().unwrap_or("File"),
            },
        });
        api.create("/apis/storage.k8s.io/v1/csidrivers", &driver)?;
        for kind in ["directory", "ext4"] {
            for (end, mode) in [("", "Immediate"), ("-wait", "WaitForFirstConsumer")] {
                let class = json!({
                    "apiVersion": "storage.k8s.io/v1",
                    "kind": "StorageClass",
                    "metadata": {"name": format!("{kind}{end}")},
                    "provisioner": driver::NAME,
                    "parameters": {"kind": kind},
                    "volumeBindingMode": mode,
                });
                api.create("/apis/storage.k8s.io/v1/storageclasses", &class)?;
            }
        }
        Ok(())
    }

    /// Waits until Pods with volumes can be scheduled.
    fn ready(&mut self, api: &Api) -> Result<(), Error> {
        let seen = |path: &str, good: &dyn Fn(&Value) -> bool| match api.get(path) {
            Ok(object) if good(&object) => Ok(Ok(())),
            Ok(object) => Ok(Err(object.to_string())),
            Err(Error::Refused { message, .. }) => Ok(Err(message)),
            Err(error) => Err(error),
        };
        let ready = |node: &Value| {
            let empty = Vec::new();
            let conditions = node["status"]["conditions"].as_array().unwrap_or(&empty);
            conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
                // the taint goes a moment after the condition
                && node["spec"].get("taints").is_none()
        };
        let node = format!("/api/v1/nodes/{NAME}");
        wait_for(&mut self.components, "a ready node", || seen(&node, &ready))?;
        let node = format!("/apis/storage.k8s.io/v1/csinodes/{NAME}");
        let registered = |node: &Value| node["spec"]["drivers"][0]["name"] == driver::NAME;
        wait_for(&mut self.components, "the driver's registration", || seen(&node, &registered))
    }

    /// Makes an image known to the node. Pods that use it need `imagePullPolicy: IfNotPresent` or
    /// `Never`, as every name whose tag is not `latest` has by default.
    ///
    /// # Errors
    ///
    /// If a file of it cannot be read, or containerd refuses it.
    pub fn import(&self, image: &Image) -> Result<(), Error> {
        let archive = tempfile::Builder::new()
            .suffix(".tar")
            .tempfile_in(&self.folder)
            .map_err(Error::file("create a file in", &self.folder))?;
        image.write(archive.path())?;
        let path = archive.path().display().to_string();
        run(&mut self.ctr(&["images", "import", "--local", &path])).map(drop)
    }

    /// A program that imports the archive of `docker save` that is its argument: for whoever has
    /// only the machine that the node is on.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn importer(&self) -> Result<PathBuf, Error> {
        let command = self.ctr(&["images", "import", "--local"]);
        let words: Vec<String> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| format!("'{}'", word.to_string_lossy().replace('\'', r"'\''")))
            .collect();
        let file = self.folder.join("import");
        write(&file, &format!("#!/bin/sh\nexec {} \"$1\"\n", words.join(" ")))?;
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&file, mode).map_err(Error::file("make a program of", &file))?;
        Ok(file)
    }

    /// A shell and its tools, as the image `cluster.test/busybox:1`, which this imports.
    ///
    /// # Errors
    ///
    /// As [`Node::import`].
    pub fn import_busybox(&self) -> Result<&'static str, Error> {
        const NAME: &str = "cluster.test/busybox:1";
        let busybox = self.bin.join("busybox");
        let applets = run(Command::new(&busybox).arg("--list"))?;
        let mut image = Image::new(NAME).program("/bin/busybox", &busybox).entrypoint(&["sh"]);
        for applet in applets.lines().filter(|&applet| applet != "busybox") {
            image = image.link(&format!("/bin/{applet}"), "busybox");
        }
        self.import(&image).map(|()| NAME)
    }

    fn ctr(&self, args: &[&str]) -> Command {
        let mut command = self.machine.enter(self.bin.join("ctr"));
        command.args(["--namespace", "k8s.io"]).args(args);
        command
    }

    /// The node's name.
    pub fn name(&self) -> &'static str {
        NAME
    }

    /// The host as Pods see it: what listens on this address of this process, they reach.
    pub fn host_ip(&self) -> Ipv4Addr {
        self.machine.host_ip()
    }

    /// The node's own address.
    pub fn ip(&self) -> Ipv4Addr {
        self.machine.ip()
    }

    /// A program that, once spawned, sees the mounts, the network and the processes of the node.
    pub fn enter(&self, program: &str) -> Command {
        self.machine.enter(program)
    }

    /// What a component wrote: `kubelet`, `containerd`, `coredns`, `kube-scheduler` or
    /// `csi-provisioner`.
    pub fn log(&self, component: &str) -> PathBuf {
        self.folder.join(format!("{component}.log"))
    }

    /// An error if a component no longer runs.
    ///
    /// # Errors
    ///
    /// [`Error::Ended`], with the end of its log.
    pub fn check(&mut self) -> Result<(), Error> {
        self.machine.check()?;
        self.components.iter_mut().try_for_each(Component::running)
    }
}
