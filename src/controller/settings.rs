//! The controller's arguments, checked: nothing behind this file sees the command line's types raw.

use std::net::SocketAddr;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use globset::{Glob, GlobSet, GlobSetBuilder};

/// The namespace of worker Pods, their volumes and their Secrets, as in ACK.
pub(crate) const POPULATOR_NAMESPACE: &str = "ack-volume-populator";
/// The namespace of the controller itself.
pub(crate) const CONTROLLER_NAMESPACE: &str = "ossvp-system";

/// Labels and annotations with a domain that a resource may give its worker Pod: where it runs and
/// on what, never as whom. Keys without a domain are free, but for those that `policy` names.
const KEYS: [&str; 10] = [
    "alibabacloud.com/eci",
    "alibabacloud.com/acs",
    "alibabacloud.com/compute-class",
    "alibabacloud.com/compute-qos",
    "k8s.aliyun.com/eci-use-specs",
    "k8s.aliyun.com/eci-spot-strategy",
    "k8s.aliyun.com/eci-spot-price-limit",
    "k8s.aliyun.com/eci-spot-duration",
    "k8s.aliyun.com/eci-extra-ephemeral-storage",
    "app.kubernetes.io/{component,instance,name,part-of,version}",
];

/// Serve the OSSVolumePopulator resource of a cluster
#[derive(Debug, Clone, Args)]
pub struct ControllerArgs {
    /// The namespace of worker Pods, prime PVCs and Secrets
    #[arg(long, env = "OSSVP_NAMESPACE", default_value = POPULATOR_NAMESPACE)]
    pub namespace: String,

    /// VolumePopulator: serve the resource at all; VolumePopulatorPodHandler: mode generic
    #[arg(long, env = "OSSVP_FEATURE_GATES", value_name = "GATE=BOOL,...",
          default_value_t = Gates::default())]
    pub feature_gates: Gates,

    /// The image of worker Pods, in which `ossvp` is the entry point: the controller's own
    #[arg(long, env = "OSSVP_WORKER_IMAGE", value_name = "IMAGE", help_heading = "Worker")]
    pub worker_image: String,

    /// A ConfigMap of the populator namespace whose ca.crt holds certificate authorities for the
    /// workers to trust besides the built-in ones
    #[arg(long, env = "OSSVP_WORKER_CA_CONFIGMAP", value_name = "NAME", help_heading = "Worker")]
    pub worker_ca_configmap: Option<String>,

    /// Where workers exchange their service account's token for a role's credentials, other than the
    /// region's STS
    #[arg(long, env = "OSSVP_WORKER_STS_ENDPOINT", value_name = "URL", help_heading = "Worker")]
    pub worker_sts_endpoint: Option<String>,

    /// restricted: as Pod Security demands; root-no-caps: user 0 without capabilities, for volumes
    /// whose root only root may write (NAS, CPFS)
    #[arg(long, env = "OSSVP_WORKER_SECURITY", value_enum, default_value_t = Security::Restricted,
          help_heading = "Worker")]
    pub worker_security: Security,

    /// Secrets and RAM roles only for the namespaces that are granted them: by the annotation
    /// storage.alibabacloud.com/allowed-namespaces of the Secret, or of a service account that
    /// storage.alibabacloud.com/role-arn gives the role
    #[arg(long, env = "OSSVP_REQUIRE_GRANT", help_heading = "Safety")]
    pub require_grant: bool,

    /// Endpoints that resources may name besides *.aliyuncs.com: a host, host:port, *.domain, or *
    /// for any; repeatable
    #[arg(
        long,
        env = "OSSVP_ALLOW_ENDPOINT",
        value_name = "PATTERN",
        value_delimiter = ',',
        help_heading = "Safety"
    )]
    pub allow_endpoint: Vec<String>,

    /// Keys of labels and annotations that resources may give a worker Pod besides those for ECI
    /// and ACS, and those without a domain: a glob, such as example.com/*; repeatable
    #[arg(
        long,
        env = "OSSVP_ALLOW_KEY",
        value_name = "GLOB",
        value_delimiter = ',',
        help_heading = "Safety"
    )]
    pub allow_key: Vec<String>,

    /// A priority class that resources may name; repeatable
    #[arg(
        long,
        env = "OSSVP_ALLOW_PRIORITY_CLASS",
        value_name = "NAME",
        value_delimiter = ',',
        help_heading = "Safety"
    )]
    pub allow_priority_class: Vec<String>,

    /// Let worker Pods tolerate the taints of control-plane nodes
    #[arg(long, env = "OSSVP_ALLOW_CONTROL_PLANE", help_heading = "Safety")]
    pub allow_control_plane: bool,

    /// Ask the NAS API, which drives CPFS, by its addresses within the region's VPC: nas-vpc.REGION;
    /// NAS_ENDPOINT names another
    #[arg(long, env = "ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED", help_heading = "CPFS",
          value_parser = clap::builder::BoolishValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub vpc_endpoint: bool,

    /// Where /metrics, /healthz and /readyz are served
    #[arg(
        long,
        env = "OSSVP_LISTEN",
        value_name = "ADDRESS",
        default_value = "[::]:8080",
        help_heading = "Process"
    )]
    pub listen: SocketAddr,

    /// The namespace of the Lease by which one replica leads
    #[arg(long, env = "OSSVP_LEASE_NAMESPACE", value_name = "NAMESPACE",
          default_value = CONTROLLER_NAMESPACE, help_heading = "Process")]
    pub lease_namespace: String,

    /// The only replica: lead without a Lease
    #[arg(long, env = "OSSVP_NO_LEADER_ELECTION", help_heading = "Process")]
    pub no_leader_election: bool,
}

/// What a worker Pod may do on its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Security {
    /// Pod Security's level restricted
    Restricted,
    /// User 0 without capabilities, for Pod Security's level baseline
    RootNoCaps,
}

/// Which parts of the controller are switched on.
///
/// ```
/// use ossvp::controller::Gates;
/// let gates: Gates = "VolumePopulator=true,VolumePopulatorPodHandler=false".parse()?;
/// assert!(gates.volume_populator && !gates.pod_handler);
/// assert!("VolumePopulator=maybe".parse::<Gates>().is_err());
/// // gates of other controllers are ignored, so that one list serves all
/// assert!("OtherFeature=true".parse::<Gates>().is_ok());
/// # Ok::<(), String>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gates {
    /// `VolumePopulator`.
    pub volume_populator: bool,
    /// `VolumePopulatorPodHandler`.
    pub pod_handler: bool,
}

impl Default for Gates {
    fn default() -> Self {
        Self { volume_populator: true, pod_handler: true }
    }
}

impl FromStr for Gates {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let mut gates = Self::default();
        for gate in text.split(',').map(str::trim).filter(|gate| !gate.is_empty()) {
            let refuse = || format!("feature gate {gate:?}: expected NAME=true or NAME=false");
            let (name, value) = gate.split_once('=').ok_or_else(refuse)?;
            let value = value.parse().map_err(|_| refuse())?;
            match name {
                "VolumePopulator" => gates.volume_populator = value,
                "VolumePopulatorPodHandler" => gates.pod_handler = value,
                _ => {}
            }
        }
        Ok(gates)
    }
}

impl std::fmt::Display for Gates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { volume_populator, pod_handler } = self;
        write!(f, "VolumePopulator={volume_populator},VolumePopulatorPodHandler={pod_handler}")
    }
}

/// Arguments that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Not a glob.
    #[error("--allow-key {0:?}")]
    Key(String, #[source] globset::Error),
    /// A worker cannot be made of nothing.
    #[error("--worker-image: empty")]
    Image,
}

/// What the controller is to do, and what it lets resources ask for.
#[derive(Debug, Clone)]
pub struct Settings {
    pub(crate) namespace: String,
    pub(crate) gates: Gates,
    pub(crate) worker: WorkerSettings,
    pub(crate) require_grant: bool,
    pub(crate) endpoints: Vec<String>,
    pub(crate) keys: GlobSet,
    pub(crate) priority_classes: Vec<String>,
    pub(crate) control_plane: bool,
    /// Whether the NAS API is asked within the VPC.
    pub(crate) vpc: bool,
    pub(crate) listen: SocketAddr,
    pub(crate) lease_namespace: Option<String>,
}

/// What no resource decides about a worker.
#[derive(Debug, Clone)]
pub(crate) struct WorkerSettings {
    pub(crate) image: String,
    pub(crate) ca_configmap: Option<String>,
    pub(crate) sts_endpoint: Option<String>,
    pub(crate) security: Security,
}

impl Settings {
    /// Checks `args`.
    ///
    /// # Errors
    /// [`SettingsError`], naming the flag.
    pub fn new(args: ControllerArgs) -> Result<Self, SettingsError> {
        let ControllerArgs {
            namespace,
            feature_gates,
            worker_image,
            worker_ca_configmap,
            worker_sts_endpoint,
            worker_security,
            require_grant,
            allow_endpoint,
            allow_key,
            allow_priority_class,
            allow_control_plane,
            vpc_endpoint,
            listen,
            lease_namespace,
            no_leader_election,
        } = args;
        if worker_image.trim().is_empty() {
            return Err(SettingsError::Image);
        }
        Ok(Self {
            namespace,
            gates: feature_gates,
            worker: WorkerSettings {
                image: worker_image,
                ca_configmap: worker_ca_configmap,
                sts_endpoint: worker_sts_endpoint,
                security: worker_security,
            },
            require_grant,
            endpoints: allow_endpoint,
            keys: keys(&allow_key)?,
            priority_classes: allow_priority_class,
            control_plane: allow_control_plane,
            vpc: vpc_endpoint,
            listen,
            lease_namespace: (!no_leader_election).then_some(lease_namespace),
        })
    }
}

fn keys(more: &[String]) -> Result<GlobSet, SettingsError> {
    let mut set = GlobSetBuilder::new();
    for glob in KEYS.into_iter().chain(more.iter().map(String::as_str)) {
        set.add(Glob::new(glob).map_err(|error| SettingsError::Key(glob.to_owned(), error))?);
    }
    set.build().map_err(|error| SettingsError::Key(more.join(" "), error))
}

#[cfg(test)]
impl Settings {
    /// As without any flag.
    pub(crate) fn of_tests() -> Self {
        use clap::Parser;
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            args: ControllerArgs,
        }
        let line = Line::try_parse_from(["ossvp", "--worker-image", "ossvp:test"]).unwrap();
        Self::new(line.args).unwrap()
    }
}
