//! What a test asks for at the start.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Taint;

/// The provisioner's name where a test gives none.
pub const PROVISIONER: &str = "stand-in.csi.example.com";

/// The driver of CPFS for Lingjun.
pub const FILESETS: &str = "bmcpfsplugin.csi.alibabacloud.com";

/// Is told of each fileset that is made.
pub(crate) type Filesets = Arc<dyn Fn(&str, &str, &str) + Send + Sync>;

/// What stands in, and for what.
#[derive(Clone)]
pub struct Options {
    pub(crate) provisioner: String,
    pub(crate) filesets: Option<Filesets>,
    pub(crate) nodes: Vec<NodeSpec>,
    pub(crate) images: BTreeMap<String, Image>,
    pub(crate) namespaces: BTreeSet<String>,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("provisioner", &self.provisioner).finish_non_exhaustive()
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::new()
    }
}

impl Options {
    /// One node `node-a`, no image, every namespace, and [`PROVISIONER`].
    pub fn new() -> Self {
        Self {
            provisioner: PROVISIONER.to_owned(),
            filesets: None,
            nodes: Vec::new(),
            images: BTreeMap::new(),
            namespaces: BTreeSet::new(),
        }
    }

    /// The name that StorageClasses give as their provisioner, and the CSI driver's.
    #[must_use]
    pub fn provisioner(mut self, name: impl Into<String>) -> Self {
        self.provisioner = name.into();
        self
    }

    /// CPFS for Lingjun's driver is here too: its classes have a parameter `bmcpfsId`, and what it makes
    /// is a fileset, of which `made` is told file system, id and path. With the parameter `handle` of
    /// `joined`, a volume's handle is file system and fileset with a `+` in between, and its attributes
    /// say nothing; without, the handle is the file system, and the attributes say the rest.
    #[must_use]
    pub fn filesets(mut self, made: impl Fn(&str, &str, &str) + Send + Sync + 'static) -> Self {
        self.filesets = Some(Arc::new(made));
        self
    }

    /// One more node; without any there is `node-a`.
    #[must_use]
    pub fn node(mut self, node: NodeSpec) -> Self {
        self.nodes.push(node);
        self
    }

    /// What an image's name means here. A name without a tag stands for every tag and digest.
    #[must_use]
    pub fn image(mut self, name: impl Into<String>, image: Image) -> Self {
        self.images.insert(name.into(), image);
        self
    }

    /// Only Pods and claims in these namespaces are looked after.
    #[must_use]
    pub fn only_namespaces<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.namespaces.extend(names.into_iter().map(Into::into));
        self
    }

    pub(crate) fn nodes(&self) -> Vec<NodeSpec> {
        match self.nodes.as_slice() {
            [] => vec![NodeSpec::named("node-a")],
            nodes => nodes.to_vec(),
        }
    }

    /// Whether volumes of this driver are made here.
    pub(crate) fn drives(&self, driver: &str) -> bool {
        driver == self.provisioner || driver == FILESETS && self.filesets.is_some()
    }

    pub(crate) fn looks_after(&self, namespace: &str) -> bool {
        self.namespaces.is_empty() || self.namespaces.contains(namespace)
    }

    pub(crate) fn image_named(&self, name: &str) -> Option<&Image> {
        self.images.get(name).or_else(|| self.images.get(repository(name)))
    }
}

/// An image's name without its tag and digest. A colon before the last slash is a port.
fn repository(image: &str) -> &str {
    let name = image.split_once('@').map_or(image, |(name, _digest)| name);
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

/// A Node object to register.
#[derive(Debug, Clone)]
pub struct NodeSpec {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) taints: Vec<Taint>,
}

impl NodeSpec {
    /// Its labels are those that every kubelet sets: host name, system, architecture.
    pub fn named(name: impl Into<String>) -> Self {
        let name = name.into();
        let labels = [
            ("kubernetes.io/hostname", name.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", "amd64"),
        ];
        let labels = labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned()));
        Self { labels: labels.collect(), name, taints: Vec::new() }
    }

    /// One more label.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// One more taint; `effect` as in the API, e.g. `NoSchedule`.
    #[must_use]
    pub fn taint(mut self, key: &str, value: &str, effect: &str) -> Self {
        let value = (!value.is_empty()).then(|| value.to_owned());
        let taint =
            Taint { key: key.to_owned(), value, effect: effect.to_owned(), time_added: None };
        self.taints.push(taint);
        self
    }
}

/// What stands in for a container image: the host's own files, some of them at another path.
#[derive(Debug, Clone, Default)]
pub struct Image {
    pub(crate) files: BTreeMap<String, PathBuf>,
    pub(crate) entrypoint: Vec<String>,
    pub(crate) command: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) user: Option<u32>,
}

impl Image {
    /// An image whose entry point is this program of the host, at `/<file name>` in the container.
    ///
    /// # Panics
    ///
    /// If `host` has no file name.
    pub fn program(host: impl Into<PathBuf>) -> Self {
        let host = host.into();
        let name = host.file_name().expect("a program has a file name").to_string_lossy();
        let path = format!("/{name}");
        let files = BTreeMap::from([(path.clone(), host)]);
        Self { files, entrypoint: vec![path], ..Self::default() }
    }

    /// An image like busybox: no entry point, the host's `/bin/sh` and what else the host has.
    pub fn shell() -> Self {
        Self { command: vec!["/bin/sh".to_owned()], ..Self::default() }
    }

    /// Where the program is in the container.
    #[must_use]
    pub fn at(mut self, path: impl Into<String>) -> Self {
        let path = path.into();
        if let Some((_, host)) = self.files.pop_first() {
            self.files.insert(path.clone(), host);
            self.entrypoint = vec![path];
        }
        self
    }

    /// The image's own user and group (`USER uid:uid`); root where it has none.
    #[must_use]
    pub fn user(mut self, id: u32) -> Self {
        self.user = Some(id);
        self
    }

    /// A variable of the image's own (`ENV`).
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }
}

/// How provisioning fails while a rule says so.
#[derive(Debug, Clone)]
pub struct ProvisionFailure {
    pub(crate) message: String,
    pub(crate) reschedule: bool,
}

impl ProvisionFailure {
    /// Shown in the event `ProvisioningFailed`.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), reschedule: false }
    }

    /// The driver cannot do it on this node: the claim loses its selected node, and the scheduler
    /// chooses again.
    #[must_use]
    pub fn reschedule(mut self) -> Self {
        self.reschedule = true;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_found_by_its_whole_name_and_then_without_its_tag() {
        let options = Options::new()
            .image("busybox", Image::shell())
            .image("registry:5000/ossvp:1", Image::program("/bin/true").at("/ossvp").user(7));
        for known in ["busybox", "busybox:1.36", "busybox@sha256:00", "registry:5000/ossvp:1"] {
            assert!(options.image_named(known).is_some(), "{known}");
        }
        for unknown in ["registry:5000/ossvp:2", "registry:5000/ossvp", "other/busybox"] {
            assert!(options.image_named(unknown).is_none(), "{unknown}");
        }
        let image = options.image_named("registry:5000/ossvp:1").unwrap();
        assert_eq!(image.entrypoint, ["/ossvp"]);
        assert_eq!(image.files["/ossvp"], PathBuf::from("/bin/true"));
    }
}
