//! The prime PVC, and the volume that is handed over.

use super::*;

#[test]
fn the_prime_pvc_has_the_claims_shape_and_nothing_else() {
    let shapes: [fn(&mut Value); 3] = [
        |_| (),
        |claim| claim["spec"]["accessModes"] = json!(["ReadWriteOncePod"]),
        |claim| {
            claim["spec"]["accessModes"] = json!(["ReadWriteMany", "ReadOnlyMany"]);
            claim["spec"]["volumeAttributesClassName"] = "fast".into();
            claim["spec"]["resources"]["limits"] = json!({"storage": "30Gi"});
            claim["metadata"]["annotations"]["volume.kubernetes.io/selected-node"] =
                "node-1".into();
        },
    ];
    for shape in shapes {
        let claim = claim(shape);
        let made = serde_json::to_value(prime(&claim, "d1", "ack-volume-populator")).unwrap();
        let claim = serde_json::to_value(claim).unwrap();
        let mut spec = claim["spec"].clone();
        for field in ["dataSource", "dataSourceRef", "selector"] {
            spec.as_object_mut().unwrap().remove(field);
        }
        assert_eq!(made["spec"], spec);
        let mut annotations = json!({
            "storage.alibabacloud.com/pvc": "argo/disk-0",
            "storage.alibabacloud.com/spec-digest": "d1",
        });
        if let Some(node) =
            claim["metadata"]["annotations"].get("volume.kubernetes.io/selected-node")
        {
            annotations["volume.kubernetes.io/selected-node"] = node.clone();
            annotations["storage.alibabacloud.com/made-for-node"] = node.clone();
        }
        assert_eq!(
            made["metadata"],
            json!({
                "name": "prime-62a4e7ec-fae1-4f11-848f-b57c00000000",
                "namespace": "ack-volume-populator",
                "labels": {
                    "app.kubernetes.io/managed-by": "ossvp",
                    "storage.alibabacloud.com/pvc-uid": "62a4e7ec-fae1-4f11-848f-b57c00000000",
                    "velero.io/exclude-from-backup": "true",
                },
                "annotations": annotations,
            })
        );
    }
}

#[test]
fn a_rebind_holds_for_the_volume_as_it_was_seen() {
    let volume = |annotations: Option<Value>| -> PersistentVolume {
        let mut volume = json!({
            "metadata": {"name": "pv-1", "resourceVersion": "99"},
            "spec": {"capacity": {"storage": "20Gi"}, "claimRef": {
                "kind": "PersistentVolumeClaim", "apiVersion": "v1", "name": "prime", "namespace": "p", "uid": "prime-uid", "resourceVersion": "3",
            }},
        });
        volume["metadata"]["annotations"] = annotations.unwrap_or_default();
        serde_json::from_value(volume).unwrap()
    };
    for annotations in
        [None, Some(json!({})), Some(json!({"pv.kubernetes.io/provisioned-by": "disk"}))]
    {
        let before = volume(annotations);
        let patch = rebind(&before, &claim(|_| ()), "generic-demo");
        let patch: json_patch::Patch = serde_json::from_value(patch).unwrap();
        let mut after = serde_json::to_value(&before).unwrap();
        json_patch::patch(&mut after, &patch).unwrap();
        let mut expected = serde_json::to_value(&before).unwrap();
        expected["metadata"]["annotations"]["storage.alibabacloud.com/populated-from"] =
            "argo/generic-demo".into();
        expected["spec"]["claimRef"] = json!({
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "namespace": "argo",
            "name": "disk-0",
            "uid": "62a4e7ec-fae1-4f11-848f-b57c00000000",
            "resourceVersion": "41",
        });
        assert_eq!(after, expected);
        let mut touched = serde_json::to_value(&before).unwrap();
        touched["metadata"]["resourceVersion"] = "100".into();
        assert!(json_patch::patch(&mut touched, &patch).is_err());
    }
}
