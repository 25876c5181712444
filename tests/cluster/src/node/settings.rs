//! The settings of what runs on the node.

use std::net::Ipv4Addr;
use std::path::Path;

use serde_json::{Value, json};

/// The image that holds a Pod's namespaces.
pub(crate) const PAUSE: &str = "cluster.test/pause:1";

/// What the names of Services end in.
const DOMAIN: &str = "cluster.local";

/// containerd's, in TOML.
pub(crate) fn containerd(bin: &Path, folder: &Path) -> String {
    let (bin, folder) = (bin.display(), folder.display());
    format!(
        r#"version = 3
root = "{folder}/containerd"
state = "/run/containerd"

[grpc]
address = "/run/containerd/containerd.sock"

[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE}"

[plugins."io.containerd.cri.v1.runtime"]
# a machine may not let its root lower it, and then no Pod would start
restrict_oom_score_adj = true

[plugins."io.containerd.cri.v1.runtime".containerd]
default_runtime_name = "runc"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "{bin}/runc"
SystemdCgroup = false

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{bin}"]
conf_dir = "{folder}/cni"

# both would make folders on the host
[plugins."io.containerd.internal.v1.opt"]
path = "{folder}/opt"

[plugins."io.containerd.nri.v1.nri"]
disable = true
"#
    )
}

/// The network of Pods: a bridge whose addresses the host knows the way to.
pub(crate) fn cni(pod_net: &str) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [{
            "type": "bridge",
            "bridge": "pods",
            "isGateway": true,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": pod_net}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    })
}

/// CoreDNS's: the names of Services.
pub(crate) fn coredns(ip: Ipv4Addr, kubeconfig: &Path) -> String {
    format!(
        ".:53 {{
    bind {ip}
    errors
    kubernetes {DOMAIN} {{
        kubeconfig {}
    }}
}}
",
        kubeconfig.display()
    )
}

/// The kubelet's.
pub(crate) fn kubelet(ca: &Path, folder: &Path, cgroup: &str, dns: Ipv4Addr) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": ca},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "clusterDNS": [dns],
        "clusterDomain": DOMAIN,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{cgroup}"),
        "failCgroupV1": false,
        "failSwapOn": false,
        // for what is no Service nobody answers; the host's file may name a server that a Pod cannot
        // reach
        "resolvConf": folder.join("resolv.conf"),
        // a disk that is nearly full is the host's matter
        "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
        "imageGCHighThresholdPercent": 100,
        "makeIPTablesUtilChains": false,
        "registerNode": true,
        // as fast as its own checks of such values allow: tests wait for it
        "syncFrequency": "1s",
        "volumeStatsAggPeriod": "10s",
        "shutdownGracePeriod": "0s",
        // parallel tests start many Pods at once
        "kubeAPIQPS": 200,
        "kubeAPIBurst": 400,
        "eventRecordQPS": 0,
        "serializeImagePulls": false,
    })
}
