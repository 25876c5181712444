//! A Pod's volumes, made ready on the host.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, PersistentVolume, Pod, Volume};
use kube::ResourceExt;

use super::env::Variables;
use super::files::{self, Files};
use super::launch::Bind;
use crate::quantity;
use crate::scheduler::fit;
use crate::world::World;

/// A volume's place on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ready {
    host: PathBuf,
    read_only: bool,
}

/// Every volume of a Pod by its name in the Pod.
pub(crate) type Volumes = BTreeMap<String, Ready>;

/// Makes all volumes ready, or says in the kubelet's words why one is not.
pub(crate) async fn prepare(world: &Arc<World>, pod: &Pod, node: &str) -> Result<Volumes, String> {
    let mut ready = Volumes::new();
    for volume in pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref()).into_iter().flatten() {
        let one = one(world, pod, node, volume).await.map_err(|why| {
            format!("MountVolume.SetUp failed for volume \"{}\" : {why}", volume.name)
        })?;
        ready.insert(volume.name.clone(), one);
    }
    Ok(ready)
}

async fn one(world: &Arc<World>, pod: &Pod, node: &str, volume: &Volume) -> Result<Ready, String> {
    let namespace = pod.namespace().unwrap_or_default();
    let uid = pod.uid().unwrap_or_default();
    let host = world.disk.pod(&uid).join("volumes").join(&volume.name);
    let group = files::pod_group(pod);
    let files: Files = if let Some(source) = &volume.persistent_volume_claim {
        let read_only = source.read_only == Some(true);
        return claim(world, pod, node, &source.claim_name, read_only).await;
    } else if volume.ephemeral.is_some() {
        let name = format!("{}-{}", pod.name_any(), volume.name);
        return claim(world, pod, node, &name, false).await;
    } else if let Some(source) = &volume.empty_dir {
        let memory = source.medium.as_deref() == Some("Memory");
        let size = source.size_limit.as_ref().and_then(quantity::bytes);
        let world = Arc::clone(world);
        return blocking(move || empty(&world, host, group, memory.then_some(size))).await;
    } else if let Some(source) = &volume.host_path {
        return Ok(Ready { host: source.path.clone().into(), read_only: false });
    } else if let Some(source) = &volume.secret {
        let name = source.secret_name.as_deref().unwrap_or_default();
        let items = source.items.as_deref();
        files::secret(world, &namespace, name, items, source.default_mode, source.optional).await?
    } else if let Some(source) = &volume.config_map {
        let items = source.items.as_deref();
        let (name, mode) = (&source.name, source.default_mode);
        files::config_map(world, &namespace, name, items, mode, source.optional).await?
    } else if let Some(source) = &volume.downward_api {
        files::downward(pod, source.items.as_deref(), source.default_mode)?
    } else if let Some(source) = &volume.projected {
        let sources = source.sources.as_deref().unwrap_or_default();
        files::projected(world, pod, sources, source.default_mode).await?
    } else {
        return Err("the stand-in mounts no volume of this kind".to_owned());
    };
    blocking(move || {
        if host.exists() {
            // of an attempt in which another volume was not ready
            std::fs::remove_dir_all(&host)?;
        }
        files::write(&host, &files, group)?;
        Ok(Ready { host, read_only: true })
    })
    .await
}

async fn claim(
    world: &Arc<World>,
    pod: &Pod,
    node: &str,
    name: &str,
    read_only: bool,
) -> Result<Ready, String> {
    let namespace = pod.namespace().unwrap_or_default();
    let claim = world.claim(&namespace, name);
    let claim = claim.ok_or_else(|| format!("persistentvolumeclaims \"{name}\" not found"))?;
    let bound = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
    let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref());
    let volume = volume.filter(|_| bound).ok_or_else(|| {
        format!("PVC {namespace}/{name} has non-bound phase or empty pvc.Spec.VolumeName")
    })?;
    let pv = world.volume(volume).ok_or_else(|| format!("failed to find PV {volume}"))?;
    let reference = pv.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    if reference.and_then(|reference| reference.uid.clone()) != claim.uid() {
        return Err(format!("PV {volume} is not bound to PVC {namespace}/{name}"));
    }
    if world.node(node).is_none_or(|node| !fit::reaches(&pv, &node)) {
        return Err(format!("node {node} does not match the node affinity of PV {volume}"));
    }
    let csi = pv.spec.as_ref().and_then(|spec| spec.csi.as_ref());
    let csi = csi.filter(|csi| world.options.drives(&csi.driver));
    let handle = csi.map(|_| pv.name_any()).ok_or_else(|| {
        format!("the driver of PV {volume} is not found in the list of registered CSI drivers")
    })?;
    let host = world.disk.volume(&handle);
    if !host.is_dir() {
        return Err(format!("the driver has no volume {handle}"));
    }
    world.disk.hold(&pod.uid().unwrap_or_default(), &handle);
    let context = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let policy = context.and_then(|context| context.fs_group_change_policy.as_deref());
    let lazily = policy == Some("OnRootMismatch");
    let group = files::pod_group(pod).filter(|_| has_groups(&pv) && !read_only);
    blocking(move || {
        if let Some(group) = group {
            give(&host, group, lazily)?;
        }
        Ok(Ready { host, read_only })
    })
    .await
}

/// Whether the kubelet gives such a volume to the Pod's group: the default of CSI drivers,
/// `ReadWriteOnceWithFSType`.
fn has_groups(volume: &PersistentVolume) -> bool {
    let spec = volume.spec.as_ref();
    let kind = spec.and_then(|spec| spec.csi.as_ref()?.fs_type.as_deref());
    let modes = spec.and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
    !matches!(kind, None | Some("" | "nfs"))
        && modes.iter().any(|mode| matches!(mode.as_str(), "ReadWriteOnce" | "ReadWriteOncePod"))
}

/// `memory`: whether it is a tmpfs, and how large.
fn empty(
    world: &World,
    host: PathBuf,
    group: Option<u32>,
    memory: Option<Option<u64>>,
) -> io::Result<Ready> {
    // one that is there is of an attempt in which another volume was not ready
    if !host.exists() {
        std::fs::create_dir_all(&host)?;
        if let Some(size) = memory {
            let size = size.map_or_else(|| "50%".to_owned(), |size| size.to_string());
            world.disk.mount(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"], &host)?;
        }
        std::fs::set_permissions(&host, PermissionsExt::from_mode(0o777))?;
        if let Some(group) = group {
            give(&host, group, false)?;
        }
    }
    Ok(Ready { host, read_only: false })
}

/// Gives a volume to a group as the kubelet does: files may be read and written, directories be
/// entered, and what is made there later belongs to the group too. `lazily`: only if its root does
/// not yet.
fn give(root: &Path, group: u32, lazily: bool) -> io::Result<()> {
    let wanted = |directory: bool| if directory { 0o2770 } else { 0o660 };
    let now = std::fs::symlink_metadata(root)?;
    if lazily && now.gid() == group && now.mode() & wanted(true) == wanted(true) {
        return Ok(());
    }
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let now = std::fs::symlink_metadata(&path)?;
        if now.is_symlink() {
            continue;
        }
        lchown(&path, None, Some(group))?;
        let mode = (now.mode() & 0o7777) | wanted(now.is_dir());
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode))?;
        if now.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                open.push(entry?.path());
            }
        }
    }
    Ok(())
}

/// Where a container has its volumes.
pub(crate) fn binds(
    container: &Container,
    volumes: &Volumes,
    variables: &Variables,
) -> Result<Vec<Bind>, String> {
    let mut binds = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let volume = volumes.get(&mount.name);
        let volume = volume.ok_or_else(|| format!("no volume named {}", mount.name))?;
        let below = match (&mount.sub_path, &mount.sub_path_expr) {
            (Some(path), _) => path.clone(),
            (None, Some(path)) => variables.expand(path),
            (None, None) => String::new(),
        };
        let mut host = volume.host.clone();
        if !below.is_empty() {
            host.push(&below);
            if !host.exists() {
                let made = std::fs::create_dir_all(&host);
                made.map_err(|error| format!("failed to create subPath {below:?}: {error}"))?;
            }
        }
        let read_only = volume.read_only || mount.read_only == Some(true);
        binds.push(Bind { host, at: mount.mount_path.clone(), read_only });
    }
    if container.volume_devices.as_ref().is_some_and(|devices| !devices.is_empty()) {
        return Err("the stand-in has no block devices".to_owned());
    }
    Ok(binds)
}

async fn blocking(
    work: impl FnOnce() -> io::Result<Ready> + Send + 'static,
) -> Result<Ready, String> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?;
    done.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_gets_the_whole_volume_unless_its_root_is_its_own() {
        let volume = tempfile::tempdir().unwrap();
        let file = volume.path().join("d/f");
        std::fs::create_dir(volume.path().join("d")).unwrap();
        std::fs::write(&file, "x").unwrap();
        let state = |path: &Path| {
            let now = std::fs::metadata(path).unwrap();
            (now.gid(), now.mode() & 0o7777)
        };
        give(volume.path(), 1234, true).unwrap();
        assert_eq!(state(volume.path()), (1234, 0o2775));
        assert_eq!(state(&volume.path().join("d")), (1234, 0o2775));
        assert_eq!(state(&file), (1234, 0o664));
        lchown(&file, None, Some(0)).unwrap();
        give(volume.path(), 1234, true).unwrap();
        assert_eq!(state(&file).0, 0);
        give(volume.path(), 1234, false).unwrap();
        assert_eq!(state(&file).0, 1234);
    }
}
