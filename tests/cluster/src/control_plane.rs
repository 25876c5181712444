//! etcd, kube-apiserver and kube-controller-manager.

use std::fs::File;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::api::Api;
use crate::audit::{Audit, POLICY};
use crate::component::{self, Component};
use crate::keeper::Keeper;
use crate::kubeconfig::kubeconfig;
use crate::pki::Pki;
use crate::{Error, Options};

/// The address of the `kubernetes` service.
pub(crate) const SERVICE_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// A Kubernetes without nodes. Everything that it started is gone when it is dropped.
///
/// Its users are `admin` (group `system:masters`), `system:kube-controller-manager`,
/// `system:kube-scheduler`, `system:node:node`, `csi-provisioner`, `coredns`, and those of the
/// [`Options`].
#[derive(Debug)]
pub struct ControlPlane {
    bin: PathBuf,
    folder: PathBuf,
    url: String,
    address: SocketAddr,
    ca_pem: String,
    tokens: Vec<(String, String)>,
    api: Api,
    audit: Audit,
    components: Vec<Component>,
    // after the components: it removes their folder
    keeper: Keeper,
}

impl ControlPlane {
    /// Starts one with the settings of [`Options::default`].
    ///
    /// # Errors
    ///
    /// As [`Options::start`].
    pub fn start() -> Result<Self, Error> {
        Options::default().start()
    }

    /// What else than the defaults is wanted.
    pub fn options() -> Options {
        Options::default()
    }

    pub(crate) fn try_start(options: &Options, bin: &Path) -> Result<Self, Error> {
        let folder = tempfile::Builder::new()
            .prefix("ossvp-cluster-")
            .tempdir()
            .map_err(Error::file("create a folder in", std::env::temp_dir()))?
            .keep();
        let keeper = Keeper::new(&folder, &[])
            .map_err(|source| Error::Start { name: "the keeper".to_owned(), source })?;
        let [etcd, etcd_peer, secure, controllers] = free_ports()?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, secure));
        let url = format!("https://{address}");
        let pki = Pki::generate(&folder)?;
        let service = SERVICE_IP.to_string();
        let hosts = ["127.0.0.1", "localhost", &service, "kubernetes.default.svc"];
        pki.server(&folder, "kube-apiserver", &hosts)?;
        pki.server(&folder, "kube-controller-manager", &hosts[..2])?;
        // for logs, which the API server fetches from the kubelet
        pki.client(&folder, "kubelet-client", "system:masters")?;

        let mut tokens = Vec::new();
        let mut lines = String::new();
        let own = [
            ("admin", "system:masters"),
            ("system:kube-controller-manager", ""),
            ("system:kube-scheduler", ""),
            ("system:node:node", "system:nodes"),
            ("csi-provisioner", "system:masters"),
            ("coredns", "system:masters"),
        ];
        let more = options.users.iter().map(|(name, groups)| (name.as_str(), groups.as_str()));
        for (name, groups) in own.into_iter().chain(more) {
            let token = random_token()?;
            lines += &format!("{token},{name},{name},\"{groups}\"\n");
            tokens.push((name.to_owned(), token));
        }
        write(&folder.join("tokens.csv"), &lines)?;
        write(&folder.join("audit-policy.json"), POLICY)?;
        for (name, token) in &tokens {
            let text = kubeconfig(&url, &pki.ca_pem, token);
            write(&kubeconfig_path(&folder, name), &text)?;
        }
        let api = Api::new(address, &pki.ca_pem, &tokens[0].1)
            .map_err(|source| Error::Machine { what: "a client", source })?;
        let mut cluster = Self {
            bin: bin.to_owned(),
            audit: Audit::new(folder.join("audit.jsonl")),
            folder,
            url,
            address,
            ca_pem: pki.ca_pem,
            tokens,
            api,
            components: Vec::new(),
            keeper,
        };
        cluster.etcd(etcd, etcd_peer)?;
        cluster.api_server(etcd, secure, options)?;
        cluster.wait_for("a ready API server", |api| {
            let answer = api.request("GET", "/readyz", "", &[])?;
            Ok((answer.status == 200).then_some(()).ok_or(answer.text()))
        })?;
        cluster.controller_manager(controllers, options)?;
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, controllers));
        let controllers = Api::new(at, &cluster.ca_pem, "")
            .map_err(|source| Error::Machine { what: "a client", source })?;
        cluster.wait_for("a healthy kube-controller-manager", |_| {
            let answer = controllers.request("GET", "/healthz", "", &[])?;
            Ok((answer.status == 200).then_some(()).ok_or(answer.text()))
        })?;
        // its controllers start one after the other: what every test needs comes from this one
        cluster.wait_for("the default service account", |api| {
            let path = "/api/v1/namespaces/default/serviceaccounts/default";
            let answer = api.request("GET", path, "", &[])?;
            Ok((answer.status == 200).then_some(()).ok_or(answer.text()))
        })?;
        Ok(cluster)
    }

    fn etcd(&mut self, port: u16, peer: u16) -> Result<(), Error> {
        let (url, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer}"));
        let mut command = Command::new(self.bin.join("etcd"));
        command
            .arg("--data-dir")
            .arg(self.folder.join("etcd"))
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            // its data need not outlive the machine
            .arg("--unsafe-no-fsync");
        self.run("etcd", command)
    }

    fn api_server(&mut self, etcd: u16, port: u16, options: &Options) -> Result<(), Error> {
        let file = |name: &str| self.folder.join(name).display().to_string();
        let mut command = Command::new(self.bin.join("kube-apiserver"));
        command
            .arg(format!("--etcd-servers=http://127.0.0.1:{etcd}"))
            .args(["--bind-address=127.0.0.1", &format!("--secure-port={port}")])
            // must be given on a machine without a network, and may not be loopback; nobody uses it
            .args(["--advertise-address=192.0.2.1", "--endpoint-reconciler-type=none"])
            .arg(format!("--tls-cert-file={}", file("kube-apiserver.crt")))
            .arg(format!("--tls-private-key-file={}", file("kube-apiserver.key")))
            .arg(format!("--token-auth-file={}", file("tokens.csv")))
            .arg("--authorization-mode=Node,RBAC")
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(format!("--service-account-key-file={}", file("sa.pub")))
            .arg(format!("--service-account-signing-key-file={}", file("sa.key")))
            .args(["--service-cluster-ip-range=10.96.0.0/16", "--allow-privileged=true"])
            .arg("--kubelet-preferred-address-types=InternalIP")
            .arg(format!("--kubelet-client-certificate={}", file("kubelet-client.crt")))
            .arg(format!("--kubelet-client-key={}", file("kubelet-client.key")))
            .arg(format!("--audit-policy-file={}", file("audit-policy.json")))
            .arg(format!("--audit-log-path={}", file("audit.jsonl")))
            // MB: never begun anew during a test
            .arg("--audit-log-maxsize=4096")
            .args(options.feature_gates())
            .args(&options.api_server);
        self.run("kube-apiserver", command)
    }

    fn controller_manager(&mut self, port: u16, options: &Options) -> Result<(), Error> {
        let file = |name: &str| self.folder.join(name).display().to_string();
        let kubeconfig = self.kubeconfig_of("system:kube-controller-manager")?;
        let mut command = Command::new(self.bin.join("kube-controller-manager"));
        command
            .arg(format!("--kubeconfig={}", kubeconfig.display()))
            .args(["--bind-address=127.0.0.1", &format!("--secure-port={port}")])
            .arg(format!("--tls-cert-file={}", file("kube-controller-manager.crt")))
            .arg(format!("--tls-private-key-file={}", file("kube-controller-manager.key")))
            .arg(format!("--root-ca-file={}", file("ca.crt")))
            .arg(format!("--service-account-private-key-file={}", file("sa.key")))
            .args(["--use-service-account-credentials", "--leader-elect=false"])
            .arg(format!("--flex-volume-plugin-dir={}", file("flex")))
            // the binder repairs what it missed every 15 s by default
            .arg("--pvclaimbinder-sync-period=1s")
            // 20 a second by default: a test with many Pods would wait for nothing else
            .args(["--kube-api-qps=500", "--kube-api-burst=1000"])
            .args(options.feature_gates())
            .args(&options.controller_manager);
        self.run("kube-controller-manager", command)
    }

    fn run(&mut self, name: &str, mut command: Command) -> Result<(), Error> {
        command.current_dir(&self.folder);
        let component = Component::start(name, command, &self.folder, &self.keeper)?;
        self.components.push(component);
        Ok(())
    }

    fn wait_for<T>(
        &mut self,
        what: &str,
        mut look: impl FnMut(&Api) -> Result<Result<T, String>, Error>,
    ) -> Result<T, Error> {
        let api = &self.api;
        component::wait_for(&mut self.components, what, || look(api))
    }

    /// An error if a component no longer runs.
    ///
    /// # Errors
    ///
    /// [`Error::Ended`], with the end of its log.
    pub fn check(&mut self) -> Result<(), Error> {
        self.components.iter_mut().try_for_each(Component::running)
    }

    /// The API server's URL, `https://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The API server's address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The CA that vouches for the API server, in PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Where the binaries are.
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// kubectl, of the API server's version.
    pub fn kubectl(&self) -> PathBuf {
        self.bin.join("kubectl")
    }

    /// The folder of this cluster's files; a test may add its own.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What a component wrote: `etcd`, `kube-apiserver` or `kube-controller-manager`.
    pub fn log(&self, component: &str) -> PathBuf {
        self.folder.join(format!("{component}.log"))
    }

    /// A client with all rights.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// A client with the rights of a token, e.g. of a service account.
    pub fn api_for(&self, token: &str) -> Api {
        self.api.with_token(token)
    }

    /// What was asked of the API server.
    pub fn audit(&self) -> &Audit {
        &self.audit
    }

    /// The token of a user.
    ///
    /// # Errors
    ///
    /// [`Error::User`] if there is no such user.
    pub fn token(&self, user: &str) -> Result<&str, Error> {
        let found = self.tokens.iter().find(|(name, _)| name == user);
        found.map(|(_, token)| token.as_str()).ok_or_else(|| Error::User(user.to_owned()))
    }

    /// The kubeconfig of `admin`.
    pub fn kubeconfig(&self) -> PathBuf {
        kubeconfig_path(&self.folder, "admin")
    }

    /// The kubeconfig of a user.
    ///
    /// # Errors
    ///
    /// [`Error::User`] if there is no such user.
    pub fn kubeconfig_of(&self, user: &str) -> Result<PathBuf, Error> {
        self.token(user)?;
        Ok(kubeconfig_path(&self.folder, user))
    }

    /// Writes a kubeconfig for a token, e.g. of a service account.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn kubeconfig_for(&self, token: &str) -> Result<PathBuf, Error> {
        let file = tempfile::Builder::new()
            .prefix("token-")
            .suffix(".kubeconfig")
            .tempfile_in(&self.folder)
            .map_err(Error::file("create a file in", &self.folder))?;
        let (_, path) = file.keep().map_err(|error| {
            let path = error.file.path().to_owned();
            Error::File { action: "keep", path, source: error.error }
        })?;
        write(&path, &kubeconfig(&self.url, &self.ca_pem, token))?;
        Ok(path)
    }

    /// A token of a service account, for an hour.
    ///
    /// # Errors
    ///
    /// If there is no such account.
    pub fn service_account_token(&self, namespace: &str, name: &str) -> Result<String, Error> {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token");
        let request = serde_json::json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": 3600},
        });
        let answer = self.api.create(&path, &request)?;
        Ok(answer["status"]["token"].as_str().unwrap_or_default().to_owned())
    }
}

fn kubeconfig_path(folder: &Path, user: &str) -> PathBuf {
    folder.join(format!("{}.kubeconfig", user.replace(':', "-")))
}

pub(crate) fn write(path: &Path, text: &str) -> Result<(), Error> {
    std::fs::write(path, text).map_err(Error::file("write", path))
}

/// Ports that nobody uses, all different since all are held until the last is found.
pub(crate) fn free_ports<const N: usize>() -> Result<[u16; N], Error> {
    let mut ports = [0; N];
    let mut held = Vec::new();
    for port in &mut ports {
        let found = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|listener| Ok((listener.local_addr()?.port(), listener)));
        let (number, listener) =
            found.map_err(|source| Error::Machine { what: "a free port", source })?;
        *port = number;
        held.push(listener);
    }
    Ok(ports)
}

fn random_token() -> Result<String, Error> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|source| Error::Machine { what: "random bytes", source })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
