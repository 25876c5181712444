//! What is made of volumes and of CPFS's answers.

use serde_json::json;

use super::*;

fn place(handle: &str, attributes: serde_json::Value) -> Option<Place> {
    let volume = json!({"spec": {"csi": {
        "driver": DRIVER, "volumeHandle": handle, "volumeAttributes": attributes,
    }}});
    Place::of(&serde_json::from_value(volume).unwrap())
}

#[test]
fn a_volumes_place_is_in_its_handle_or_in_its_attributes() {
    let at = |fileset: Option<&str>, path: Option<&str>| {
        Some(Place {
            file_system: "bmcpfs-1".to_owned(),
            fileset: fileset.map(str::to_owned),
            path: path.map(str::to_owned),
        })
    };
    let attributes = json!({"filesetId": "fset-1", "path": "/a/pvc-1/", "volumeType": "bmcpfs"});
    assert_eq!(place("bmcpfs-1", attributes), at(Some("fset-1"), Some("/a/pvc-1/")));
    assert_eq!(place("bmcpfs-1+fset-2", json!({})), at(Some("fset-2"), None));
    assert_eq!(place("bmcpfs-1+fset-2", json!({"path": "a"})), at(Some("fset-2"), Some("/a/")));
    assert_eq!(place("bmcpfs-1", json!({"path": ""})), at(None, None));
    let other = json!({"spec": {"csi": {"driver": "diskplugin", "volumeHandle": "d-1"}}});
    assert_eq!(Place::of(&serde_json::from_value(other).unwrap()), None);
    assert_eq!(Place::of(&PersistentVolume::default()), None);
}

#[test]
fn directories_have_a_slash_at_both_ends() {
    for (given, expected) in
        [("", "/"), ("/", "/"), ("a", "/a/"), ("/a/b", "/a/b/"), ("a/b/", "/a/b/"), ("//", "/")]
    {
        assert_eq!(directory(given), expected);
    }
}

fn plan() -> Plan {
    Plan {
        region: "cn-hangzhou".to_owned(),
        file_system: "bmcpfs-1".to_owned(),
        fileset: None,
        path: "/pv/".to_owned(),
        source: "oss://bucket".to_owned(),
        source_path: "/models/".to_owned(),
        throughput: Some(1200),
        security: Some(SourceSecurityType::SSL),
        data_type: DataType::Metadata,
        time: Timestamp::UNIX_EPOCH,
        asked: None,
        flow: None,
        made: false,
        shown: false,
        task: Some(Noted { id: "task-2".to_owned(), time: Timestamp::UNIX_EPOCH }),
    }
}

fn flow(id: &str, path: &str, description: Option<&str>) -> DataFlow {
    DataFlow {
        id: id.to_owned(),
        status: "Running".to_owned(),
        file_system_path: path.to_owned(),
        source_storage: "oss://bucket".to_owned(),
        source_storage_path: "/models/".to_owned(),
        source_security_type: Some("SSL".to_owned()),
        description: description.map(str::to_owned),
        ..DataFlow::default()
    }
}

#[test]
fn a_plan_survives_its_annotation() {
    let text = serde_json::to_string(&plan()).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan());
}

#[test]
fn a_data_flow_is_found_by_what_was_noted_or_by_what_it_does() {
    let flows = [flow("df-1", "/other/", None), flow("df-2", "/pv", Some("ossvp-p"))];
    let id = |plan: &Plan| Known::flow_of(plan, &flows).map(|flow| flow.id.as_str());
    assert_eq!(id(&plan()), Some("df-2"));
    let noted = |id: &str| Some(Noted { id: id.to_owned(), time: Timestamp::UNIX_EPOCH });
    assert_eq!(id(&Plan { flow: noted("df-1"), ..plan() }), Some("df-1"));
    assert_eq!(id(&Plan { flow: noted("df-9"), ..plan() }), None);
    assert_eq!(id(&Plan { source_path: "/models/2/".to_owned(), ..plan() }), None);
    let open = [DataFlow { source_security_type: None, ..flows[1].clone() }];
    assert!(Known::flow_of(&plan(), &open).is_none(), "not encrypted as was asked");
    let going = [DataFlow { status: "Deleting".to_owned(), ..flows[1].clone() }];
    assert!(Known::flow_of(&plan(), &going).is_none());
    assert_eq!(id(&Plan { source: "oss://bucket-2".to_owned(), ..plan() }), None);
}

#[test]
fn tasks_of_our_data_flow_are_ours_to_end_and_of_others_only_our_own() {
    let task = |id: &str, status: &str| Task {
        id: id.to_owned(),
        flow: "df-2".to_owned(),
        status: status.to_owned(),
        files_total: -1,
        bytes_total: 10,
        bytes_done: 4,
        ..Task::default()
    };
    let another = Task { flow: "df-1".to_owned(), ..task("task-4", "Executing") };
    let tasks = [
        task("task-1", "Pending"),
        task("task-2", "Canceling"),
        task("task-3", "Completed"),
        another,
    ];
    let unfinished = |description: &str| {
        let flows = [flow("df-2", "/pv/", Some(description))];
        let known = Known::of(&plan(), "p", &flows, &tasks);
        assert_eq!(known.task.as_ref().and_then(TaskSeen::percent), Some(40));
        assert_eq!(known.task.unwrap().files, Share::default());
        let unfinished = known.unfinished.into_iter().map(|task| (task.id, task.canceling));
        (known.flow.unwrap().ours, unfinished.collect::<Vec<_>>())
    };
    let (one, two) = (("task-1".to_owned(), false), ("task-2".to_owned(), true));
    assert_eq!(unfinished("ossvp-p"), (true, vec![one, two.clone()]));
    assert_eq!(unfinished("ossvp-another"), (false, vec![two]));
}
