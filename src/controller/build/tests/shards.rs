//! Several workers for one volume.

use super::*;

fn shared(parallelism: u32, change: impl FnOnce(&mut Value)) -> OSSVolumePopulatorSpec {
    spec(|spec| {
        spec["generic"]["parallelism"] = parallelism.into();
        change(&mut spec["generic"]);
    })
}

#[test]
fn several_workers_are_an_indexed_job_of_the_same_pods() {
    let one = made(&spec(|_| ()), &role(), &[]);
    let four = made(&shared(4, |_| ()), &role(), &[]);
    let of_job = |job: &Value| {
        let mut spec = job["spec"].clone();
        let spec = spec.as_object_mut().unwrap();
        spec.remove("template");
        spec.remove("podFailurePolicy");
        json!(spec)
    };
    assert_eq!(of_job(&one), json!({"backoffLimit": 6}));
    assert_eq!(
        of_job(&four),
        json!({
            "completionMode": "Indexed",
            "completions": 4,
            "parallelism": 4,
            "backoffLimit": 24,
            "backoffLimitPerIndex": 6,
            "maxFailedIndexes": 0,
        })
    );
    assert_eq!(one["metadata"], four["metadata"]);
    // but for what says which share is whose, and where they go
    let mut plain = four["spec"]["template"].clone();
    let pod = plain["spec"].as_object_mut().unwrap();
    assert_eq!(
        pod.remove("topologySpreadConstraints").unwrap(),
        json!([{
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": {
                "storage.alibabacloud.com/pvc-uid": "62a4e7ec-fae1-4f11-848f-b57c00000000",
            }},
        }])
    );
    let args = pod["containers"][0]["args"].as_array_mut().unwrap();
    let at = args.iter().position(|arg| arg == "--shard=$(JOB_COMPLETION_INDEX)/4").unwrap();
    args[at] = "--shard=0/1".into();
    let at = args.iter().position(|arg| arg == "--throughput=250MB/s").unwrap();
    args[at] = "--throughput=1GB/s".into();
    assert_eq!(plain, one["spec"]["template"]);
}

#[test]
fn one_worker_is_no_indexed_job() {
    let asked = shared(1, |_| ());
    assert_eq!(made(&asked, &role(), &[]), made(&spec(|_| ()), &role(), &[]));
}

#[test]
fn shares_that_do_not_agree_end_the_job() {
    let rules = &made(&shared(2, |_| ()), &role(), &[])["spec"]["podFailurePolicy"]["rules"];
    let changed = json!({"containerName": "populate", "operator": "In", "values": [5]});
    assert_eq!(rules[0], json!({"action": "FailJob", "onExitCodes": changed}));
    let one = &made(&spec(|_| ()), &role(), &[])["spec"]["podFailurePolicy"]["rules"];
    assert_eq!(json!(rules.as_array().unwrap()[1..]), *one);
}

#[test]
fn workers_go_beside_which_pods_the_resource_says() {
    let term = json!({"weight": 1, "podAffinityTerm": {"topologyKey": "zone"}});
    for kind in ["podAffinity", "podAntiAffinity"] {
        let told = shared(4, |generic| {
            generic["affinity"] =
                json!({kind: {"preferredDuringSchedulingIgnoredDuringExecution": [term]}});
        });
        assert_eq!(pod_of(&made(&told, &role(), &[])).get("topologySpreadConstraints"), None);
    }
}

#[test]
fn throughput_and_concurrency_are_all_workers_together() {
    for (workers, throughput, concurrency, each) in [
        (1, 1, 1, Ok((1_000_000, 1))),
        (3, 1000, 10, Ok((333_333_333, 3))),
        (256, 1000, 4096, Ok((3_906_250, 16))),
        (61, 1, 61, Ok((16_393, 1))),
        (62, 1, 62, Err("generic.throughput: too little for 62 workers")),
        (4, 1, 3, Err("generic.concurrency: too little for 4 workers")),
    ] {
        let spec = shared(workers, |generic| {
            generic["throughput"] = throughput.into();
            generic["concurrency"] = concurrency.into();
        });
        let args = arguments(&spec, false).map_err(|refusal| refusal.message);
        match each {
            Ok((rate, requests)) => {
                let args = args.unwrap();
                assert_eq!(args.throughput.map(Rate::bytes_per_second), Some(rate));
                assert_eq!(args.concurrency, Some(requests));
                assert_eq!(args.shard, ShardOf { index: 0, count: workers });
            }
            Err(told) => {
                let refused = args.unwrap_err();
                assert!(refused.starts_with(told), "{refused}");
            }
        }
    }
}
