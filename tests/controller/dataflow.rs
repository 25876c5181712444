//! Volumes of CPFS for Lingjun, which CPFS fills by itself: a stand-in for its API is told so by the
//! real controller, and CPFS's clock runs fast.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use nas_server::{Fault, Flow, Times};
use ossvp::controller::crd::{DataflowStatus, OSSVolumePopulator, Phase};
use serde_json::{Value, json};

use crate::case::{Case, merge};
use crate::restart::killed_after_each_change;
use crate::world::{IMPORTED, REGION, World, alone, shared, until};

/// The spec of a resource whose volumes CPFS fills from `bucket`, with `more`.
pub fn spec(bucket: &str, more: Value) -> Value {
    let mut spec = json!({
        "bucket": bucket,
        "region": REGION,
        "endpoint": "oss-cn-wulanchabu-internal.aliyuncs.com",
        "path": "/Qwen3-32B/",
        "mode": "bmcpfs-dataflow",
    });
    merge(&mut spec, more);
    spec
}

fn flows(world: &World, file_system: &str) -> Vec<Flow> {
    let mut flows = world.nas.flows();
    flows.retain(|flow| flow.file_system == file_system);
    flows
}

/// What the resource shows of the claim's data flow, once it is as wanted.
async fn dataflow(
    case: &Case,
    uid: &str,
    what: &str,
    wanted: impl Fn(&DataflowStatus) -> bool,
) -> DataflowStatus {
    let api = case.api::<OSSVolumePopulator>();
    let found = |source: &OSSVolumePopulator| {
        let flow = source.status.as_ref()?.bmcpfs_dataflow.get(uid)?;
        wanted(flow).then(|| flow.clone())
    };
    case.object(&api, "models", what, found).await
}

/// The claim is bound to a volume that CPFS has filled from the resource's path.
pub async fn imported(case: &Case, claim: &str) {
    case.bound(claim).await;
    let volume = case.world.stand_in.volume_of(&case.namespace, claim).await.unwrap();
    let source = std::fs::read_to_string(volume.join(IMPORTED)).unwrap();
    assert_eq!(source, "/Qwen3-32B/");
}

async fn no_flow(world: &World, file_system: &str) {
    until(world, "no data flow", || async { flows(world, file_system).is_empty().then_some(()) })
        .await;
}

/// Deletes the claim, and waits until nothing is left of it.
async fn let_go(case: &Case, claim: &PersistentVolumeClaim) {
    let claims = case.api::<PersistentVolumeClaim>();
    case.delete(&claims, &claim.name_any()).await;
    case.gone(&claims, &claim.name_any()).await;
    case.no_scaffolding(&claim.uid().unwrap()).await;
}

#[test]
fn a_claim_is_filled_by_a_data_flow_that_goes_when_it_is_done() {
    shared(|world| async move {
        let case = Case::new(&world, "cpfs").await;
        let file_system = "bmcpfs-a";
        world.cpfs_class("cpfs-a", file_system, json!({})).await;
        let settings = json!({"throughput": 1200, "sourceSecurityType": "SSL"});
        case.source("models", spec("models", json!({"bmcpfsDataflow": settings}))).await;
        let claim = case.claim("data", "models", "cpfs-a", json!({})).await;
        let uid = claim.uid().unwrap();

        let shown = dataflow(&case, &uid, "under way", |flow| {
            flow.progress.as_deref().is_some_and(|it| it != "0%")
        })
        .await;
        println!("{}", world.kubectl(&["-n", &case.namespace, "describe", "ossvp", "models"]));
        let flow = flows(&world, file_system).pop().unwrap();
        let task = world.nas.tasks().into_iter().find(|task| task.flow == flow.id).unwrap();
        assert_eq!(shown.data_flow_id, Some(flow.id));
        assert_eq!(shown.data_flow_task_id, Some(task.id));
        assert_eq!(shown.file_system_id.as_deref(), Some(file_system));
        let fileset = shown.file_set_id.unwrap();
        assert!(fileset.starts_with("fset-pvc-"), "{fileset}");
        let percent: u8 = shown.progress.unwrap().trim_end_matches('%').parse().unwrap();
        assert!((1..=100).contains(&percent), "{percent}");
        for (parameter, value) in [
            ("SourceStorage", "oss://models"),
            ("SourceStoragePath", "/Qwen3-32B/"),
            ("Throughput", "1200"),
            ("SourceSecurityType", "SSL"),
        ] {
            assert_eq!(flow.parameters.get(parameter).map(String::as_str), Some(value));
        }
        let path = format!("/volumes/{}/", fileset.trim_start_matches("fset-"));
        assert_eq!(flow.parameters.get("FileSystemPath"), Some(&path));
        for (parameter, value) in [
            ("TaskAction", "Import"),
            ("DataType", "MetaAndData"),
            ("ConflictPolicy", "OVERWRITE_EXISTING"),
        ] {
            assert_eq!(task.parameters.get(parameter).map(String::as_str), Some(value));
        }

        imported(&case, "data").await;
        case.cleaned(&uid).await;
        no_flow(&world, file_system).await;
        let told = BTreeSet::from(["PopulatorCreated", "PopulatorFinished"].map(str::to_owned));
        assert_eq!(case.reasons("data").await, told);
        let finished = case.event("data", Some("models"), &["PopulatorFinished"]).await;
        assert!(finished.contains("Populated successfully: 10 files, 1.00 kB"), "{finished}");
        let source = case.api::<OSSVolumePopulator>().get("models").await.unwrap();
        let status = source.status.unwrap();
        assert_eq!(status.message.as_deref(), Some("Populated successfully"));
        assert!(status.bmcpfs_dataflow.is_empty());
        let entry = &status.populations[0];
        assert_eq!(
            (entry.phase, entry.objects, entry.bytes),
            (Phase::Finished, Some(10), Some(1000))
        );
        world.promise_holds();
        let_go(&case, &claim).await;
    });
}

#[test]
fn files_without_their_data_keep_their_data_flow_for_as_long_as_the_claim() {
    shared(|world| async move {
        let case = Case::new(&world, "cpfs-lazy").await;
        let file_system = "bmcpfs-b";
        // also where only the fileset's id is known of a volume
        world.cpfs_class("cpfs-b", file_system, json!({"handle": "joined"})).await;
        let settings = json!({"bmcpfsDataflow": {"dataType": "metadata"}});
        case.source("models", spec("models", settings)).await;
        let claim = case.claim("data", "models", "cpfs-b", json!({})).await;
        imported(&case, "data").await;
        case.entry("data", "finished", |it| it.message == "Populated successfully").await;
        let flow = flows(&world, file_system).pop().unwrap();
        let task = world.nas.tasks().into_iter().find(|task| task.flow == flow.id).unwrap();
        assert_eq!(task.parameters.get("DataType").map(String::as_str), Some("Metadata"));
        assert_eq!(flow.status, "Running");
        let volume = case.bound("data").await.spec.unwrap().volume_name.unwrap();

        // a Pod reads on while the claim is being deleted
        let pod = serde_json::from_value(json!({
            "metadata": {"name": "reader"},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "reader",
                    "image": "busybox",
                    "command": ["/bin/sh", "-c", "sleep 600"],
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                }],
                "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
            },
        }));
        let pods = case.api::<Pod>();
        pods.create(&PostParams::default(), &pod.unwrap()).await.unwrap();
        let running = |pod: &Pod| {
            let phase = pod.status.as_ref()?.phase.as_deref()?;
            (phase == "Running").then_some(())
        };
        case.object(&pods, "reader", "running", running).await;
        case.delete(&case.api::<PersistentVolumeClaim>(), "data").await;
        case.entry("data", "waiting", |it| it.message.contains("waiting for the Pods")).await;
        assert_eq!(flows(&world, file_system)[0].status, "Running");
        case.delete(&pods, "reader").await;

        case.gone(&case.api::<PersistentVolumeClaim>(), "data").await;
        case.no_scaffolding(&claim.uid().unwrap()).await;
        no_flow(&world, file_system).await;
        case.gone(&Api::<PersistentVolume>::all(world.client.clone()), &volume).await;
    });
}

#[test]
fn a_claim_deleted_in_mid_import_is_freed_once_cpfs_has_nothing_of_it() {
    shared(|world| async move {
        let case = Case::new(&world, "cpfs-deleted").await;
        let file_system = "bmcpfs-c";
        world.cpfs_class("cpfs-c", file_system, json!({})).await;
        case.source("models", spec("models", json!({}))).await;
        for what in ["being made", "importing"] {
            let claim = case.claim("data", "models", "cpfs-c", json!({})).await;
            let uid = claim.uid().unwrap();
            let begun = dataflow(&case, &uid, what, |flow| match what {
                "being made" => flow.data_flow_id.is_some(),
                _ => flow.progress.is_some(),
            })
            .await;
            // also without what it was made by
            case.delete(&case.api::<OSSVolumePopulator>(), "models").await;
            let_go(&case, &claim).await;
            assert!(flows(&world, file_system).is_empty(), "{what}");
            let tasks = world.nas.tasks().into_iter();
            let left: Vec<_> =
                tasks.filter(|task| Some(&task.flow) == begun.data_flow_id.as_ref()).collect();
            assert!(left.iter().all(|task| task.status == "Canceled"), "{what}: {left:?}");
            case.source("models", spec("models", json!({}))).await;
        }
    });
}

#[test]
fn an_import_that_fails_or_leaves_files_out_binds_nothing_and_says_why() {
    shared(|world| async move {
        world.cpfs_class("cpfs-d", "bmcpfs-d", json!({})).await;
        for (bucket, says) in [
            ("partial", &["9 of 10 files", "/.dataflow_report/failed.csv"][..]),
            ("broken", &["failed: ReadFailed"]),
        ] {
            let case = Case::new(&world, &format!("cpfs-{bucket}")).await;
            case.source("models", spec(bucket, json!({}))).await;
            let claim = case.claim("data", "models", "cpfs-d", json!({})).await;
            let says: Vec<&str> = ["PopulatorFailed"].iter().chain(says).copied().collect();
            case.event("data", Some("models"), &says).await;
            case.entry("data", "failed", |it| it.phase == Phase::Failed).await;
            no_flow(&world, "bmcpfs-d").await;
            let bound = case.api::<PersistentVolumeClaim>().get("data").await.unwrap();
            assert_eq!(bound.spec.unwrap().volume_name, None);
            let_go(&case, &claim).await;
        }
        world.promise_holds();
    });
}

#[test]
fn what_cpfs_refuses_is_told_with_what_helps_and_tried_again() {
    shared(|world| async move {
        let case = Case::new(&world, "cpfs-refused").await;
        world.cpfs_class("cpfs-e", "bmcpfs-e", json!({})).await;
        case.source("models", spec("untagged", json!({}))).await;
        let claim = case.claim("data", "models", "cpfs-e", json!({})).await;
        let tag = ["PopulatorDataflowError", "cpfs-dataflow=true"];
        println!("{}", case.event("data", Some("models"), &tag).await);
        world.nas.set_tagged("untagged", true);
        imported(&case, "data").await;
        let_go(&case, &claim).await;

        case.source("elsewhere", spec("models", json!({"region": "cn-hangzhou"}))).await;
        let claim = case.claim("lost", "elsewhere", "cpfs-e", json!({})).await;
        let region = ["PopulatorDataflowError", "check the resource's region"];
        println!("{}", case.event("lost", Some("elsewhere"), &region).await);
        let_go(&case, &claim).await;
    });
}

#[test]
fn a_mode_and_a_class_that_do_not_go_together_are_told() {
    shared(|world| async move {
        let case = Case::new(&world, "cpfs-mode").await;
        world.cpfs_class("cpfs-mode", "bmcpfs-e", json!({})).await;
        case.source("by-cpfs", spec("models", json!({}))).await;
        case.source("by-worker", case.spec(json!({}))).await;
        case.claim("disk", "by-cpfs", "immediate", json!({})).await;
        case.claim("fileset", "by-worker", "cpfs-mode", json!({})).await;
        let mode = ["PopulatorUnsupportedClaim", "mode generic"];
        case.event("disk", Some("by-cpfs"), &mode).await;
        let mode = ["PopulatorUnsupportedClaim", "mode bmcpfs-dataflow"];
        case.event("fileset", Some("by-worker"), &mode).await;
        for claim in ["disk", "fileset"] {
            let claims = case.api::<PersistentVolumeClaim>();
            assert!(
                claims
                    .get(claim)
                    .await
                    .unwrap()
                    .finalizers()
                    .iter()
                    .all(|it| { !it.starts_with("storage.alibabacloud.com") })
            );
            assert_eq!(case.reasons(claim).await.len(), 1);
        }
    });
}

#[test]
fn the_eleventh_data_flow_of_a_file_system_waits_for_its_turn() {
    shared(|world| async move {
        let case = Case::new(&world, "cpfs-full").await;
        let file_system = "bmcpfs-full";
        world.cpfs_class("cpfs-full", file_system, json!({})).await;
        case.source("models", spec("models", json!({}))).await;
        let names: Vec<String> = (0..11).map(|n| format!("data-{n}")).collect();
        for name in &names {
            case.claim(name, "models", "cpfs-full", json!({})).await;
        }
        let queued = until(&world, "one is queued", || async {
            for name in &names {
                let events = case.events("PersistentVolumeClaim", name).await;
                let queued = events.into_iter().find(|it| it.starts_with("PopulatorQueued"));
                if let Some(event) = queued {
                    return Some(event);
                }
            }
            None
        })
        .await;
        assert!(queued.contains("file system bmcpfs-full has 10 data flows"), "{queued}");
        for name in &names {
            imported(&case, name).await;
        }
        no_flow(&world, file_system).await;
        let refused = world.nas.calls_of("CreateDataFlow").into_iter();
        let refused = refused.filter(|call| {
            call.parameters.get("FileSystemId").map(String::as_str) == Some(file_system)
                && call.status != 200
        });
        println!("{} data flows were asked for in vain", refused.count());
    });
}

/// CPFS without any waiting.
pub fn at_once() -> Times {
    let now = Duration::ZERO;
    Times { create_flow: now, delete_flow: now, start_task: now, run_task: now, cancel_task: now }
}

/// Each claim was filled by one data flow and one task, and nothing is left.
fn made_once(world: &World, file_system: &str, claims: usize) {
    assert!(flows(world, file_system).is_empty());
    let tasks = world.nas.tasks();
    let flows: BTreeSet<&str> = tasks.iter().map(|task| task.flow.as_str()).collect();
    assert_eq!((flows.len(), tasks.len()), (claims, claims), "{tasks:?}");
    let calls = world.nas.calls_of("CreateDataFlow");
    assert_eq!(calls.iter().filter(|call| call.changed).count(), claims);
}

#[test]
fn a_controller_killed_after_any_change_makes_one_data_flow_and_one_task() {
    alone(&[], |world| async move {
        let world = &world;
        world.nas.set_times(at_once());
        world.cpfs_class("cpfs", "bmcpfs-a", json!({})).await;
        let lived = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        killed_after_each_change(world, |n| {
            let lived = lived.clone();
            async move {
                let case = Case::new(world, &format!("cpfs-{n}")).await;
                case.source("models", spec("models", json!({}))).await;
                let claim = case.claim("data", "models", "cpfs", json!({})).await;
                imported(&case, "data").await;
                case.cleaned(&claim.uid().unwrap()).await;
                lived.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            }
        })
        .await;
        made_once(world, "bmcpfs-a", lived.load(std::sync::atomic::Ordering::SeqCst));
        world.promise_holds();

        // an answer that is lost, and the controller with it
        world.start_controller();
        let case = Case::new(world, "cpfs-lost").await;
        case.source("models", spec("models", json!({}))).await;
        let before = world.nas.tasks().len();
        world.nas.fault_always("CreateDataFlow", Fault::garbage());
        world.nas.fault_always("CreateDataFlowTask", Fault::garbage());
        let claim = case.claim("data", "models", "cpfs", json!({})).await;
        case.event("data", Some("models"), &["PopulatorDataflowError", "CreateDataFlowTask"]).await;
        world.nas.clear_faults();
        imported(&case, "data").await;
        case.cleaned(&claim.uid().unwrap()).await;
        assert_eq!(world.nas.tasks().len(), before + 1);

        // no right, and no answer, while the claim comes and while it goes
        for (name, fault) in
            [("denied", Fault::refuse(403, "Forbidden.RAM")), ("silent", Fault::drop_before())]
        {
            let claim = case.claim(name, "models", "cpfs", json!({})).await;
            world.nas.fault_always("CreateDataFlow", fault.clone());
            let told = case.event(name, Some("models"), &["PopulatorDataflowError"]).await;
            println!("{told}");
            world.nas.fault_always("DescribeDataFlows", fault);
            let claims = case.api::<PersistentVolumeClaim>();
            case.delete(&claims, name).await;
            case.entry(name, "held", |it| {
                it.phase == Phase::Deleting && it.message.contains("CPFS cannot be asked")
            })
            .await;
            world.nas.clear_faults();
            case.gone(&claims, name).await;
            case.no_scaffolding(&claim.uid().unwrap()).await;
        }
    });
}
