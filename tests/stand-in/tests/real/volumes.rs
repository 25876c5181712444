//! What a controller goes by that makes and hands over volumes.

use std::os::unix::fs::MetadataExt;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;
use stand_in::{Deed, ProvisionFailure};

use crate::support::{Corner, ZONE, condition, corner, on_claim};

const SELECTED: &str = "volume.kubernetes.io/selected-node";

async fn bound(corner: &Corner, claim: &str) -> PersistentVolumeClaim {
    let bound = |claim: &PersistentVolumeClaim| {
        claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound")
    };
    corner.until(claim, "is bound", bound).await
}

fn volume_of(claim: &PersistentVolumeClaim) -> String {
    claim.spec.as_ref().unwrap().volume_name.clone().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_goes_with_its_claim() {
    let corner = corner().await;
    let class = corner.class("Immediate", json!({})).await;
    corner.claim("data", &class, "5Gi").await;
    let claim = bound(&corner, "data").await;
    let name = volume_of(&claim);
    assert_eq!(name, format!("pvc-{}", claim.uid().unwrap()));
    let place = corner.stand_in.volume(&name);
    std::fs::write(place.join("file"), "x").unwrap();

    corner.api::<PersistentVolumeClaim>().delete("data", &DeleteParams::default()).await.unwrap();
    corner.until_gone(corner.all::<PersistentVolume>(), &name).await;
    assert!(!place.exists());
    assert!(!corner.stand_in.leftovers().await.unwrap().contains(&name));
    corner.until_told("data", "ProvisioningSucceeded", &name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_waits_for_its_consumer_and_is_made_where_that_will_run() {
    let corner = corner().await;
    let class = corner.class("WaitForFirstConsumer", json!({ "topologyKey": ZONE })).await;
    corner.claim("data", &class, "5Gi").await;
    corner.until_told("data", "WaitForFirstConsumer", "first consumer").await;
    let (mut pod, container) = on_claim("data");
    pod["nodeSelector"] = json!({ ZONE: "b" });
    pod["tolerations"] = json!([{ "key": "only", "operator": "Exists" }]);
    corner.pod("consumer", "touch /volume/file", pod, container).await;
    assert_eq!(corner.end("consumer").await.exit_code, 0);

    let claim = bound(&corner, "data").await;
    assert_eq!(claim.annotations()[SELECTED], "node-b");
    let volume = corner.all::<PersistentVolume>().get(&volume_of(&claim)).await.unwrap();
    let affinity = serde_json::to_string(&volume.spec.unwrap().node_affinity).unwrap();
    assert!(affinity.contains(r#""values":["b"]"#), "{affinity}");

    // whoever comes later must run there too
    let (pod, container) = on_claim("data");
    corner.pod("elsewhere", "true", pod, container).await;
    let refused = |pod: &Pod| condition(pod, "PodScheduled") == Some(("False", "Unschedulable"));
    let pod = corner.until::<Pod>("elsewhere", "is refused", refused).await;
    let conditions = pod.status.unwrap().conditions.unwrap();
    let message = conditions[0].message.as_deref().unwrap();
    let expected = "0/3 nodes are available: 1 node(s) didn't match PersistentVolume's node \
                    affinity, 1 node(s) had untolerated taint {only: b}, 1 node(s) had untolerated \
                    taint {only: c}.";
    assert_eq!(message, expected);
    corner.until_told("elsewhere", "FailedScheduling", "node affinity").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_cannot_do_it_on_a_node_lets_the_scheduler_choose_again() {
    let corner = corner().await;
    let class = corner.class("WaitForFirstConsumer", json!({})).await;
    let namespace = corner.namespace.clone();
    let failing = corner.stand_in.fail_provisioning(
        move |claim| claim.namespace().as_ref() == Some(&namespace),
        ProvisionFailure::new("no capacity left").reschedule(),
    );
    corner.claim("data", &class, "5Gi").await;
    let (pod, container) = on_claim("data");
    corner.pod("consumer", "true", pod, container).await;
    corner.until_told("data", "ProvisioningFailed", "no capacity left").await;
    let namespace = corner.namespace.clone();
    let twice = move |deeds: &[Deed]| {
        let selected = |deed: &&Deed| matches!(deed, Deed::NodeSelected { namespace: of, .. } if *of == namespace);
        deeds.iter().filter(selected).count() >= 2
    };
    corner.stand_in.until("a second choice", twice).await;
    failing.lift();
    assert_eq!(corner.end("consumer").await.exit_code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_claim_stays_pending() {
    let corner = corner().await;
    let class = corner.class("Immediate", json!({})).await;
    let namespace = corner.namespace.clone();
    let hold = corner.stand_in.hold_provisioning(move |claim| {
        claim.namespace().as_ref() == Some(&namespace) && claim.name_any() == "held"
    });
    corner.claim("held", &class, "1Gi").await;
    corner.claim("free", &class, "1Gi").await;
    bound(&corner, "free").await;
    let held = corner.api::<PersistentVolumeClaim>().get("held").await.unwrap();
    assert_eq!(held.spec.unwrap().volume_name, None);
    let (pod, container) = on_claim("held");
    corner.pod("consumer", "true", pod, container).await;
    let unbound = "pod has unbound immediate PersistentVolumeClaims";
    corner.until_told("consumer", "FailedScheduling", unbound).await;
    hold.lift();
    bound(&corner, "held").await;
    assert_eq!(corner.end("consumer").await.exit_code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_with_a_foreign_source_is_left_to_its_populator_and_taken_over_by_it() {
    let corner = corner().await;
    let class = corner.class("Immediate", json!({})).await;
    corner
        .make::<PersistentVolumeClaim>(json!({
            "metadata": { "name": "target" },
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": class,
                "resources": { "requests": { "storage": "1Gi" } },
                "dataSourceRef": { "apiGroup": "example.com", "kind": "Source", "name": "s" },
            },
        }))
        .await;
    let message = "Assuming an external populator will provision the volume";
    corner.until_told("target", "Provisioning", message).await;

    // what a populator does: fills a claim of its own, and gives its volume to the target
    corner.claim("prime", &class, "1Gi").await;
    let prime = bound(&corner, "prime").await;
    let name = volume_of(&prime);
    std::fs::write(corner.stand_in.volume(&name).join("file"), "filled").unwrap();
    let target = corner.api::<PersistentVolumeClaim>().get("target").await.unwrap();
    let rebind = json!({ "spec": { "claimRef": {
        "namespace": corner.namespace, "name": "target",
        "uid": target.uid(), "resourceVersion": target.resource_version(),
    } } });
    let volumes = corner.all::<PersistentVolume>();
    volumes.patch(&name, &PatchParams::default(), &Patch::Strategic(rebind)).await.unwrap();
    assert_eq!(volume_of(&bound(&corner, "target").await), name);
    let lost = |claim: &PersistentVolumeClaim| {
        claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Lost")
    };
    corner.until("prime", "is lost", lost).await;
    let claims = corner.api::<PersistentVolumeClaim>();
    claims.delete("prime", &DeleteParams::default()).await.unwrap();
    corner.until_gone(claims, "prime").await;

    let (pod, container) = on_claim("target");
    corner.pod("consumer", "cat /volume/file", pod, container).await;
    assert_eq!(corner.end("consumer").await.exit_code, 0);
    assert_eq!(corner.log("consumer").await, "filled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sized_volume_is_full_when_it_is_full() {
    let corner = corner().await;
    let class = corner.class("Immediate", json!({ "sized": "ext4" })).await;
    corner.claim("data", &class, "16Mi").await;
    let (pod, container) = on_claim("data");
    let script = "ls /volume; head -c 20000000 /dev/zero > /volume/file";
    corner.pod("writer", script, pod, container).await;
    let end = corner.end("writer").await;
    assert_eq!((end.exit_code, end.reason.as_deref()), (1, Some("Error")));
    let log = corner.log("writer").await;
    assert!(log.contains("lost+found") && log.contains("No space left on device"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_may_write_to_a_disk_but_not_to_what_has_no_file_system_type() {
    let corner = corner().await;
    let disk = corner.class("Immediate", json!({ "sized": "tmpfs" })).await;
    let share = json!({ "csi.storage.k8s.io/fstype": "nfs" });
    let share = corner.class("WaitForFirstConsumer", share).await;
    for (claim, class, code) in [("disk", disk, 0), ("share", share, 1)] {
        corner.claim(claim, &class, "8Mi").await;
        let (mut pod, container) = on_claim(claim);
        pod["securityContext"] = json!({ "runAsUser": 1234, "fsGroup": 5678 });
        corner.pod(claim, "touch /volume/file", pod, container).await;
        assert_eq!(corner.end(claim).await.exit_code, code, "{claim}");
        let place = corner.stand_in.volume_of(&corner.namespace, claim).await.unwrap();
        let root = std::fs::metadata(&place).unwrap();
        let expected = if code == 0 { (5678, 0o2775) } else { (0, 0o755) };
        assert_eq!((root.gid(), root.mode() & 0o7777), expected, "{claim}");
        if code == 0 {
            let file = std::fs::metadata(place.join("file")).unwrap();
            assert_eq!((file.uid(), file.gid()), (1234, 5678));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ephemeral_volume_is_a_claim_of_its_pod() {
    let corner = corner().await;
    let class = corner.class("WaitForFirstConsumer", json!({})).await;
    let pod = json!({ "volumes": [{ "name": "v", "ephemeral": { "volumeClaimTemplate": { "spec": {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": class,
        "resources": { "requests": { "storage": "1Gi" } },
    } } } }] });
    let container = json!({ "volumeMounts": [{ "name": "v", "mountPath": "/volume" }] });
    corner.pod("consumer", "touch /volume/file", pod, container).await;
    assert_eq!(corner.end("consumer").await.exit_code, 0);
    let place = corner.stand_in.volume_of(&corner.namespace, "consumer-v").await.unwrap();
    assert!(place.join("file").exists());
}
