//! A driver of the Container Storage Interface. Its volumes are this machine's files, everything
//! else is as in a real one: the kubelet and the external-provisioner speak gRPC with it.
//!
//! csi-driver-host-path would do most of this, but is not to be had as a Go module.

mod grpc;
mod messages;
mod registration;
mod volumes;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use tokio::net::UnixListener;

use grpc::Status;
use messages::{
    Capabilities, CreateVolumeRequest, CreateVolumeResponse, DeleteVolumeRequest, Empty,
    NodeGetInfoResponse, NodePublishVolumeRequest, NodeStageVolumeRequest,
    NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, PluginInfo, Topology, Volume,
};
pub(crate) use volumes::Volumes;

/// The driver's name, which classes give as their `provisioner`.
pub(crate) const NAME: &str = "volumes.cluster.test";
/// The label by which the scheduler knows which node has a volume.
pub(crate) const TOPOLOGY: &str = "topology.cluster.test/node";
/// The driver's socket below the kubelet's folder.
pub(crate) const SOCKET: &str = "plugins/cluster.sock";
/// Where the kubelet looks for new plugins, below its folder.
const REGISTRATION: &str = "plugins_registry/cluster.sock";

/// The size of a volume whose claim asks for none.
const SIZE: i64 = 64 << 20;

/// The sockets on which the driver is asked.
#[derive(Debug)]
pub(crate) struct Sockets {
    driver: std::os::unix::net::UnixListener,
    registration: std::os::unix::net::UnixListener,
}

impl Sockets {
    /// Makes them in the kubelet's folder.
    pub(crate) fn bind(kubelet: &Path) -> std::io::Result<Self> {
        let bind = |name: &str| {
            let path = kubelet.join(name);
            path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            let listener = std::os::unix::net::UnixListener::bind(path)?;
            listener.set_nonblocking(true)?;
            Ok::<_, std::io::Error>(listener)
        };
        Ok(Self { driver: bind(SOCKET)?, registration: bind(REGISTRATION)? })
    }

    /// Answers for ever.
    pub(crate) async fn serve(self, volumes: Arc<Volumes>) -> std::io::Result<()> {
        let driver = UnixListener::from_std(self.driver)?;
        let registration = UnixListener::from_std(self.registration)?;
        let answer = Arc::new(move |method: String, request: Bytes| {
            let volumes = volumes.clone();
            async move {
                // mounting and making file systems takes its time
                tokio::task::spawn_blocking(move || answer(&volumes, &method, request))
                    .await
                    .unwrap_or_else(|error| Err(Status::internal(error)))
            }
        });
        tokio::join!(grpc::serve(driver, answer), registration::serve(registration));
        Ok(())
    }
}

fn answer(volumes: &Volumes, method: &str, request: Bytes) -> Result<Vec<u8>, Status> {
    const CREATE_DELETE_VOLUME: i32 = 1;
    const STAGE_UNSTAGE_VOLUME: i32 = 1;
    const CONTROLLER_SERVICE: i32 = 1;
    const VOLUME_ACCESSIBILITY_CONSTRAINTS: i32 = 2;
    match method {
        "/csi.v1.Identity/Probe" => Ok(Empty {}.encode_to_vec()),
        "/csi.v1.Identity/GetPluginInfo" => {
            let vendor_version = env!("CARGO_PKG_VERSION").to_owned();
            Ok(PluginInfo { name: NAME.to_owned(), vendor_version }.encode_to_vec())
        }
        "/csi.v1.Identity/GetPluginCapabilities" => {
            let numbers = [CONTROLLER_SERVICE, VOLUME_ACCESSIBILITY_CONSTRAINTS];
            Ok(Capabilities::of(&numbers).encode_to_vec())
        }
        "/csi.v1.Controller/ControllerGetCapabilities" => {
            Ok(Capabilities::of(&[CREATE_DELETE_VOLUME]).encode_to_vec())
        }
        "/csi.v1.Controller/CreateVolume" => create(volumes, &decode(request)?),
        "/csi.v1.Controller/DeleteVolume" => {
            let request: DeleteVolumeRequest = decode(request)?;
            done(volumes.delete(&request.volume_id))
        }
        "/csi.v1.Node/NodeGetCapabilities" => {
            Ok(Capabilities::of(&[STAGE_UNSTAGE_VOLUME]).encode_to_vec())
        }
        "/csi.v1.Node/NodeGetInfo" => Ok(NodeGetInfoResponse {
            node_id: super::NAME.to_owned(),
            accessible_topology: Some(topology()),
        }
        .encode_to_vec()),
        "/csi.v1.Node/NodeStageVolume" => {
            let request: NodeStageVolumeRequest = decode(request)?;
            done(volumes.stage(&request.volume_id, &request.staging_target_path))
        }
        "/csi.v1.Node/NodeUnstageVolume" => {
            let request: NodeUnstageVolumeRequest = decode(request)?;
            done(volumes.unstage(&request.staging_target_path))
        }
        "/csi.v1.Node/NodePublishVolume" => {
            let request: NodePublishVolumeRequest = decode(request)?;
            let NodePublishVolumeRequest { staging_target_path, target_path, readonly } = request;
            done(volumes.publish(&staging_target_path, &target_path, readonly))
        }
        "/csi.v1.Node/NodeUnpublishVolume" => {
            let request: NodeUnpublishVolumeRequest = decode(request)?;
            done(volumes.unpublish(&request.target_path))
        }
        other => Err(Status::unimplemented(other)),
    }
}

fn create(volumes: &Volumes, request: &CreateVolumeRequest) -> Result<Vec<u8>, Status> {
    let CreateVolumeRequest { name, capacity_range, parameters } = request;
    let asked = capacity_range.as_ref().map_or(0, |range| range.required_bytes);
    let capacity_bytes = if asked == 0 { SIZE } else { asked };
    let size = u64::try_from(capacity_bytes)
        .map_err(|_| Status::invalid(format!("no size of a volume: {capacity_bytes}")))?;
    volumes.create(name, parameters.get("kind").map(String::as_str), size)?;
    let accessible_topology = vec![topology()];
    let volume = Volume { capacity_bytes, volume_id: name.clone(), accessible_topology };
    Ok(CreateVolumeResponse { volume: Some(volume) }.encode_to_vec())
}

fn topology() -> Topology {
    let segments = HashMap::from([(TOPOLOGY.to_owned(), super::NAME.to_owned())]);
    Topology { segments }
}

fn decode<M: Message + Default>(request: Bytes) -> Result<M, Status> {
    M::decode(request).map_err(Status::internal)
}

fn done(result: Result<(), Status>) -> Result<Vec<u8>, Status> {
    result.map(|()| Empty {}.encode_to_vec())
}
