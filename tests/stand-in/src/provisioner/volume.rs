//! From a class, a claim and perhaps a node to a PersistentVolume. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    CSIPersistentVolumeSource, Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm,
    PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, VolumeNodeAffinity,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt};

use crate::disk::Make;
use crate::options::FILESETS;
use crate::quantity;

/// Says who made a volume, and so who removes it.
pub(crate) const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// Keeps a volume's object until its data is gone.
pub(crate) const FINALIZER: &str = "external-provisioner.volume.kubernetes.io/finalizer";

const FSTYPE: &str = "csi.storage.k8s.io/fstype";

/// The volume for a claim, and what it is to be made of.
pub(crate) fn volume(
    class: &StorageClass,
    claim: &PersistentVolumeClaim,
    node: Option<&Node>,
) -> Result<(PersistentVolume, Make), String> {
    let parameters = class.parameters.clone().unwrap_or_default();
    let spec = claim.spec.as_ref().ok_or("the claim has no spec")?;
    let mode = spec.volume_mode.clone().unwrap_or_else(|| "Filesystem".to_owned());
    if mode != "Filesystem" {
        return Err(format!("volumeMode {mode} is not supported"));
    }
    let requests = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    let size = requests.and_then(|requests| requests.get("storage")).ok_or("no size asked for")?;
    let make = make(&parameters, size)?;
    let fs_type = parameters.get(FSTYPE).map_or("ext4", String::as_str);
    let name = format!("pvc-{}", claim.uid().ok_or("the claim has no uid")?);
    let attributes = parameters.iter().filter(|(key, _)| !key.starts_with("csi.storage.k8s.io/"));
    let mut csi = CSIPersistentVolumeSource {
        driver: class.provisioner.clone(),
        volume_handle: name.clone(),
        fs_type: (!fs_type.is_empty()).then(|| fs_type.to_owned()),
        volume_attributes: Some(attributes.map(|(k, v)| (k.clone(), v.clone())).collect()),
        ..CSIPersistentVolumeSource::default()
    };
    if let Some(fileset) = Fileset::of(class, &name) {
        csi.fs_type = None;
        (csi.volume_handle, csi.volume_attributes) = fileset.written(&parameters);
    }
    let policy = class.reclaim_policy.clone().unwrap_or_else(|| "Delete".to_owned());
    let annotations = BTreeMap::from([
        (PROVISIONED_BY.to_owned(), class.provisioner.clone()),
        ("volume.kubernetes.io/provisioner-deletion-secret-name".to_owned(), String::new()),
        ("volume.kubernetes.io/provisioner-deletion-secret-namespace".to_owned(), String::new()),
    ]);
    let metadata = ObjectMeta {
        name: Some(name),
        annotations: Some(annotations),
        finalizers: (policy == "Delete").then(|| vec![FINALIZER.to_owned()]),
        ..ObjectMeta::default()
    };
    let spec = PersistentVolumeSpec {
        access_modes: spec.access_modes.clone(),
        capacity: Some(BTreeMap::from([("storage".to_owned(), size.clone())])),
        claim_ref: Some(claim.object_ref(&())),
        csi: Some(csi),
        mount_options: class.mount_options.clone(),
        node_affinity: affinity(&parameters, node)?,
        persistent_volume_reclaim_policy: Some(policy),
        storage_class_name: Some(class.name_any()),
        volume_attributes_class_name: spec.volume_attributes_class_name.clone(),
        volume_mode: Some(mode),
        ..PersistentVolumeSpec::default()
    };
    Ok((PersistentVolume { metadata, spec: Some(spec), status: None }, make))
}

/// What CPFS for Lingjun's driver makes of a volume.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fileset {
    pub(crate) file_system: String,
    pub(crate) id: String,
    pub(crate) path: String,
}

/// The fileset of a volume, if its class makes filesets.
pub(crate) fn fileset(class: &StorageClass, volume: &PersistentVolume) -> Option<Fileset> {
    Fileset::of(class, &volume.name_any())
}

impl Fileset {
    fn of(class: &StorageClass, volume: &str) -> Option<Self> {
        let parameters = class.parameters.clone().unwrap_or_default();
        let file_system = parameters.get("bmcpfsId").filter(|_| class.provisioner == FILESETS)?;
        let within = parameters.get("path").map_or("/", String::as_str).trim_end_matches('/');
        Some(Self {
            file_system: file_system.clone(),
            id: format!("fset-{volume}"),
            path: format!("{within}/{volume}/"),
        })
    }

    /// Handle and attributes.
    fn written(
        self,
        parameters: &BTreeMap<String, String>,
    ) -> (String, Option<BTreeMap<String, String>>) {
        let Self { file_system, id, path } = self;
        if parameters.get("handle").is_some_and(|handle| handle == "joined") {
            return (format!("{file_system}+{id}"), None);
        }
        let attributes = [("filesetId", id), ("path", path), ("volumeType", "bmcpfs".to_owned())];
        let attributes = attributes.map(|(key, value)| (key.to_owned(), value));
        (file_system, Some(attributes.into()))
    }
}

fn make(parameters: &BTreeMap<String, String>, size: &Quantity) -> Result<Make, String> {
    let bytes = quantity::bytes(size).ok_or_else(|| format!("{} is no size", size.0))?;
    match parameters.get("sized").map(String::as_str) {
        None | Some("false") => Ok(Make::Directory),
        Some("true" | "ext4") => Ok(Make::Ext4(bytes)),
        Some("tmpfs") => Ok(Make::Tmpfs(bytes)),
        Some(other) => Err(format!("parameter sized: {other} is none of ext4, tmpfs")),
    }
}

/// From where a volume can be reached: as the selected node, or as the class says.
fn affinity(
    parameters: &BTreeMap<String, String>,
    node: Option<&Node>,
) -> Result<Option<VolumeNodeAffinity>, String> {
    let (key, value) = match node {
        Some(node) => {
            let key =
                parameters.get("topologyKey").map_or("kubernetes.io/hostname", String::as_str);
            let value = node.labels().get(key);
            let name = node.name_any();
            (key, value.ok_or_else(|| format!("node {name} has no label {key}"))?.as_str())
        }
        None => match parameters.get("topology") {
            Some(topology) => topology.split_once('=').ok_or("parameter topology: no key=value")?,
            None => return Ok(None),
        },
    };
    let requirement = NodeSelectorRequirement {
        key: key.to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![value.to_owned()]),
    };
    let term = NodeSelectorTerm { match_expressions: Some(vec![requirement]), match_fields: None };
    let selector = NodeSelector { node_selector_terms: vec![term] };
    Ok(Some(VolumeNodeAffinity { required: Some(selector) }))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    fn claim() -> PersistentVolumeClaim {
        from_value(json!({
            "metadata": { "name": "data", "namespace": "ns", "uid": "u" },
            "spec": {
                "accessModes": ["ReadWriteMany"],
                "resources": { "requests": { "storage": "20Mi" } },
            },
        }))
        .unwrap()
    }

    fn class(parameters: Value) -> StorageClass {
        from_value(json!({
            "metadata": { "name": "fast" },
            "provisioner": "p.example.com",
            "reclaimPolicy": "Retain",
            "parameters": parameters,
        }))
        .unwrap()
    }

    #[test]
    fn a_volume_has_what_the_claim_and_its_class_ask_for() {
        let class = class(json!({ "sized": "tmpfs", "topology": "zone=a" }));
        let (volume, make) = volume(&class, &claim(), None).unwrap();
        assert_eq!(make, Make::Tmpfs(20 << 20));
        assert_eq!(volume.name_any(), "pvc-u");
        assert!(volume.finalizers().is_empty(), "no data to remove under Retain");
        let spec = serde_json::to_value(volume.spec).unwrap();
        let expected = json!({
            "accessModes": ["ReadWriteMany"],
            "capacity": { "storage": "20Mi" },
            "claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "name": "data", "namespace": "ns", "uid": "u",
            },
            "csi": {
                "driver": "p.example.com", "fsType": "ext4", "volumeHandle": "pvc-u",
                "volumeAttributes": { "sized": "tmpfs", "topology": "zone=a" },
            },
            "nodeAffinity": { "required": { "nodeSelectorTerms": [
                { "matchExpressions": [{ "key": "zone", "operator": "In", "values": ["a"] }] },
            ] } },
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "fast",
            "volumeMode": "Filesystem",
        });
        assert_eq!(spec, expected);
    }

    #[test]
    fn a_fileset_is_written_as_its_driver_does() {
        let mut class = class(json!({ "bmcpfsId": "bmcpfs-1", "path": "/a/" }));
        let csi = |class: &StorageClass| {
            let (volume, _) = volume(class, &claim(), None).unwrap();
            let csi = volume.spec.unwrap().csi.unwrap();
            (csi.volume_handle, csi.volume_attributes.map(|it| it.into_iter().collect::<Vec<_>>()))
        };
        assert_eq!(csi(&class).0, "pvc-u", "of another driver");
        class.provisioner = FILESETS.to_owned();
        let attributes =
            [("filesetId", "fset-pvc-u"), ("path", "/a/pvc-u/"), ("volumeType", "bmcpfs")];
        let attributes = attributes.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(csi(&class), ("bmcpfs-1".to_owned(), Some(attributes.into())));
        class.parameters.as_mut().unwrap().insert("handle".to_owned(), "joined".to_owned());
        assert_eq!(csi(&class), ("bmcpfs-1+fset-pvc-u".to_owned(), None));
    }

    #[test]
    fn a_selected_node_binds_the_volume_to_its_topology() {
        let node: Node =
            from_value(json!({ "metadata": { "name": "n", "labels": { "zone": "b" } } })).unwrap();
        let zonal = class(json!({ "topologyKey": "zone" }));
        let (volume, _) = volume(&zonal, &claim(), Some(&node)).unwrap();
        let affinity = serde_json::to_string(&volume.spec.unwrap().node_affinity).unwrap();
        assert!(affinity.contains(r#""values":["b"]"#), "{affinity}");
    }

    #[test]
    fn what_cannot_be_made_says_why() {
        let node: Node = from_value(json!({ "metadata": { "name": "n" } })).unwrap();
        let error = volume(&class(json!({})), &claim(), Some(&node)).unwrap_err();
        assert_eq!(error, "node n has no label kubernetes.io/hostname");
        let error = volume(&class(json!({ "sized": "xfs" })), &claim(), None).unwrap_err();
        assert_eq!(error, "parameter sized: xfs is none of ext4, tmpfs");
        let mut block = claim();
        block.spec.as_mut().unwrap().volume_mode = Some("Block".to_owned());
        let error = volume(&class(json!({})), &block, None).unwrap_err();
        assert_eq!(error, "volumeMode Block is not supported");
    }
}
