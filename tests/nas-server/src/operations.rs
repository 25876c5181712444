//! The operations, as far as the controller uses them.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::page::cut;
use crate::parameters::Parameters;
use crate::world::{FileSystem, Flow, Task, World, bucket_of};

/// At most so many data flows in one file system.
const MAX_FLOWS: usize = 10;

/// An answer, and whether anything is different since.
pub(crate) type Answer = Result<(Value, bool), ApiError>;

/// Does what is asked. What changes something does so once for each token.
pub(crate) fn run(world: &mut World, region: &str, action: &str, asked: &Parameters) -> Answer {
    let operation: fn(&mut World, &str, &Parameters) -> Result<Value, ApiError> = match action {
        "DescribeDataFlows" => return describe_flows(world, region, asked).map(unchanged),
        "DescribeDataFlowTasks" => return describe_tasks(world, region, asked).map(unchanged),
        "DescribeFilesets" => return describe_filesets(world, region, asked).map(unchanged),
        "CreateDataFlow" => create_flow,
        "DeleteDataFlow" => delete_flow,
        "CreateDataFlowTask" => create_task,
        "CancelDataFlowTask" => cancel_task,
        _ => {
            let message = "Specified api is not found, please check your url and method.";
            return Err(ApiError::new(404, "InvalidAction.NotFound", message));
        }
    };
    let token = asked.token()?.map(|token| (action.to_owned(), token.to_owned()));
    if let Some((with, answer)) = token.as_ref().and_then(|token| world.answered.get(token)) {
        let same = *with == asked.0;
        return if same { Ok((answer.clone(), false)) } else { Err(ApiError::token_reused()) };
    }
    let answer = operation(world, region, asked)?;
    if let Some(token) = token {
        world.answered.insert(token, (asked.0.clone(), answer.clone()));
    }
    Ok((answer, true))
}

fn unchanged(answer: Value) -> (Value, bool) {
    (answer, false)
}

fn file_system<'w>(
    world: &'w World,
    region: &str,
    asked: &Parameters,
) -> Result<(&'w str, &'w FileSystem), ApiError> {
    let id = asked.require("FileSystemId")?;
    let region = asked.get("RegionId").unwrap_or(region);
    let found = world.file_systems.get_key_value(id).filter(|(_, found)| found.region == region);
    found.map(|(id, found)| (id.as_str(), found)).ok_or_else(ApiError::no_file_system)
}

/// The data flow asked for, by its place.
fn flow(world: &World, region: &str, asked: &Parameters) -> Result<usize, ApiError> {
    let (file_system, _) = file_system(world, region, asked)?;
    let id = asked.require("DataFlowId")?;
    let wanted = |flow: &Flow| flow.id == id && flow.file_system == file_system;
    world.flows.iter().position(wanted).ok_or_else(ApiError::no_flow)
}

fn create_flow(world: &mut World, region: &str, asked: &Parameters) -> Result<Value, ApiError> {
    asked.only(&[
        "FileSystemId",
        "FileSystemPath",
        "SourceStorage",
        "SourceStoragePath",
        "SourceSecurityType",
        "Throughput",
        "Description",
        "ClientToken",
    ])?;
    let (id, within) = file_system(world, region, asked)?;
    let storage = asked.require("SourceStorage")?;
    asked.require("FileSystemPath")?;
    asked.require("SourceStoragePath")?;
    asked.path("SourceStoragePath")?;
    let path = asked.path("FileSystemPath")?.unwrap_or_default();
    asked.description()?;
    if asked.one_of("Throughput", &["600", "1200", "1500"]).is_err() {
        let message = "Throughput is out of bounds.";
        return Err(ApiError::new(404, "InvalidThroughput.OutOfBounds", message));
    }
    if asked.one_of("SourceSecurityType", &["None", "SSL"]).is_err() {
        let message = "The source security type is not supported.";
        return Err(ApiError::new(404, "InvalidSourceSecurityType.NotSupport", message));
    }
    if !within.running {
        return Err(ApiError::state());
    }
    if !within.directories.contains(path) {
        return Err(ApiError::no_directory("FileSystemPath"));
    }
    bucket(world, within, storage)?;
    if world.flows.iter().filter(|flow| flow.file_system == id).count() >= MAX_FLOWS {
        return Err(ApiError::too_many_flows());
    }
    let file_system = id.to_owned();
    let id = world.id("df");
    let due = world.due(world.times.create_flow);
    world.flows.push(Flow {
        id: id.clone(),
        file_system,
        status: "Starting".to_owned(),
        error: None,
        parameters: asked.0.clone(),
        due,
    });
    Ok(json!({ "DataFlowId": id }))
}

/// Whether the bucket may be used.
fn bucket(world: &World, within: &FileSystem, storage: &str) -> Result<(), ApiError> {
    let refuse = |code: &str, message: &str| {
        Err(ApiError::new(404, &format!("InvalidSourceStorage.{code}"), message))
    };
    if !storage.starts_with("oss://") {
        return refuse("NotSupport", "Source storage type is not supported.");
    }
    let Some(bucket) = world.buckets.get(bucket_of(storage)) else {
        return refuse("NotFound", "Source storage is not found.");
    };
    if bucket.region != within.region {
        return refuse("InvalidRegion", "Source storage region is invalid.");
    }
    if bucket.denied {
        return refuse("PermissionDenied", "The source storage access permission is denied.");
    }
    if !bucket.tagged {
        let message = "The operation is denied. The OSS Bucket tag cpfs-dataflow is missing.";
        return Err(ApiError::new(403, "OperationDenied.DependBucketTag", message));
    }
    Ok(())
}

fn delete_flow(world: &mut World, region: &str, asked: &Parameters) -> Result<Value, ApiError> {
    asked.only(&["FileSystemId", "DataFlowId", "ClientToken"])?;
    let at = flow(world, region, asked)?;
    if !matches!(world.flows[at].status.as_str(), "Running" | "Stopped") {
        return Err(ApiError::state());
    }
    let id = world.flows[at].id.clone();
    let active = |task: &Task| {
        task.flow == id && matches!(task.status.as_str(), "Pending" | "Executing" | "Canceling")
    };
    // the documentation does not say; a client that can do with it can do without
    if world.tasks.iter().any(active) {
        return Err(ApiError::dependency());
    }
    let due = world.due(world.times.delete_flow);
    let flow = &mut world.flows[at];
    flow.status = "Deleting".to_owned();
    flow.due = due;
    Ok(json!({}))
}

fn create_task(world: &mut World, region: &str, asked: &Parameters) -> Result<Value, ApiError> {
    asked.only(&[
        "FileSystemId",
        "DataFlowId",
        "TaskAction",
        "Directory",
        "DstDirectory",
        "CreateDirIfNotExist",
        "DataType",
        "ConflictPolicy",
        "EntryList",
        "TransferFileListPath",
        "Includes",
        "ClientToken",
    ])?;
    let at = flow(world, region, asked)?;
    asked.require("TaskAction")?;
    let actions = ["Import", "Export", "StreamImport", "StreamExport"];
    if asked.one_of("TaskAction", &actions).is_err() {
        let message = "The task action is not supported.";
        return Err(ApiError::new(404, "InvalidTaskAction.NotSupported", message));
    }
    if asked.one_of("DataType", &["Metadata", "Data", "MetaAndData"]).is_err() {
        let message = "The data type is not supported.";
        return Err(ApiError::new(404, "InvalidDataType.NotSupported", message));
    }
    asked.require("ConflictPolicy")?;
    asked.one_of("ConflictPolicy", &["SKIP_THE_FILE", "KEEP_LATEST", "OVERWRITE_EXISTING"])?;
    asked.one_of("CreateDirIfNotExist", &["true", "True", "false", "False"])?;
    let what = ["Directory", "EntryList", "TransferFileListPath"];
    if what.iter().filter(|name| asked.get(name).is_some()).count() > 1 {
        return Err(ApiError::invalid("Directory"));
    }
    asked.path("Directory")?;
    let below = asked.path("DstDirectory")?;
    let flow = &world.flows[at];
    if flow.status != "Running" {
        return Err(ApiError::state());
    }
    let (flow_id, file_system) = (flow.id.clone(), flow.file_system.clone());
    if let Some(below) = below {
        let base = flow.parameters.get("FileSystemPath").cloned().unwrap_or_default();
        let path = format!("{base}{}", below.trim_start_matches('/'));
        let made =
            asked.get("CreateDirIfNotExist").is_some_and(|made| made.starts_with(['t', 'T']));
        let within = world.file_systems.get_mut(&file_system).ok_or_else(ApiError::no_flow)?;
        if made {
            within.directories.insert(path);
        } else if !within.directories.contains(&path) {
            return Err(ApiError::no_directory("DstDirectory"));
        }
    }
    let id = world.id("task");
    let due = world.due(world.times.start_task);
    let outcome = world.outcomes.pop_front().unwrap_or_default();
    world.tasks.push(Task {
        id: id.clone(),
        file_system,
        flow: flow_id,
        status: "Pending".to_owned(),
        parameters: asked.0.clone(),
        outcome,
        since: None,
        due,
    });
    Ok(json!({ "TaskId": id }))
}

fn cancel_task(world: &mut World, region: &str, asked: &Parameters) -> Result<Value, ApiError> {
    asked.only(&["FileSystemId", "DataFlowId", "TaskId", "ClientToken"])?;
    let flow = world.flows[flow(world, region, asked)?].id.clone();
    let id = asked.require("TaskId")?;
    let wanted = |task: &&mut Task| task.id == id && task.flow == flow;
    let due = world.due(world.times.cancel_task);
    let task = world.tasks.iter_mut().find(wanted).ok_or_else(ApiError::no_task)?;
    if !matches!(task.status.as_str(), "Pending" | "Executing") {
        return Err(ApiError::conflict());
    }
    task.status = "Canceling".to_owned();
    task.due = due;
    Ok(json!({}))
}

fn describe_flows(world: &mut World, region: &str, asked: &Parameters) -> Result<Value, ApiError> {
    asked.only(&["FileSystemId", "Filters", "MaxResults", "NextToken"])?;
    let id = file_system(world, region, asked)?.0.to_owned();
    let filters = asked.filters(&[
        "DataFlowIds",
        "FsetIds",
        "FileSystemPath",
        "SourceStorage",
        "ThroughputList",
        "Description",
        "Status",
        "SourceStoragePath",
    ])?;
    let fits = |flow: &&Flow| {
        let of = |name: &str| flow.parameters.get(name).cloned().unwrap_or_default();
        filters.iter().all(|(key, value)| match *key {
            "DataFlowIds" => among(value, &flow.id),
            "Status" => among(value, &flow.status),
            "SourceStorage" => *value == of(key),
            "ThroughputList" => among(value, &of("Throughput")),
            key => of(key).contains(value),
        })
    };
    let found = world.flows.iter().filter(|flow| flow.file_system == id).filter(fits);
    let (page, next) = cut(found.map(flow_json).collect(), asked)?;
    world.clock.described();
    Ok(listed("DataFlowInfo", "DataFlow", page, next))
}

fn flow_json(flow: &Flow) -> Value {
    let mut value = fields(
        &flow.parameters,
        &["FileSystemPath", "SourceStorage", "SourceStoragePath", "Description"],
    );
    let of = |name: &str| flow.parameters.get(name);
    value.insert("DataFlowId".to_owned(), flow.id.clone().into());
    value.insert("FileSystemId".to_owned(), flow.file_system.clone().into());
    value.insert("Status".to_owned(), flow.status.clone().into());
    let error = flow.error.clone().unwrap_or_else(|| "None".to_owned());
    value.insert("ErrorMessage".to_owned(), error.into());
    let security = of("SourceSecurityType").cloned().unwrap_or_else(|| "None".to_owned());
    value.insert("SourceSecurityType".to_owned(), security.into());
    if let Some(throughput) = of("Throughput").and_then(|text| text.parse::<i64>().ok()) {
        value.insert("Throughput".to_owned(), throughput.into());
    }
    value.insert("CreateTime".to_owned(), "2026-01-02T03:04:05Z".into());
    value.insert("UpdateTime".to_owned(), "2026-01-02T03:04:05Z".into());
    value.into()
}

fn describe_tasks(world: &mut World, region: &str, asked: &Parameters) -> Result<Value, ApiError> {
    asked.only(&["FileSystemId", "Filters", "MaxResults", "NextToken", "WithReports"])?;
    asked.one_of("WithReports", &["true", "True", "false", "False"])?;
    let id = file_system(world, region, asked)?.0.to_owned();
    let filters = asked.filters(&[
        "DataFlowIds",
        "TaskIds",
        "Originator",
        "TaskActions",
        "DataTypes",
        "Status",
    ])?;
    let fits = |task: &&Task| {
        let of = |name: &str| task.parameters.get(name).cloned().unwrap_or_default();
        filters.iter().all(|(key, value)| match *key {
            // part of an id is enough
            "DataFlowIds" => value.split(',').any(|part| task.flow.contains(part)),
            "TaskIds" => value.split(',').any(|part| task.id.contains(part)),
            "TaskActions" => among(value, &of("TaskAction")),
            "DataTypes" => among(value, &of("DataType")),
            "Status" => among(value, &task.status),
            _ => *value == "User",
        })
    };
    let reports = asked.get("WithReports").is_none_or(|with| with.starts_with(['t', 'T']));
    let found = world.tasks.iter().filter(|task| task.file_system == id).filter(fits);
    let found = found.map(|task| task_json(world, task, reports)).collect();
    let (page, next) = cut(found, asked)?;
    world.clock.described();
    Ok(listed("TaskInfo", "Task", page, next))
}

fn task_json(world: &World, task: &Task, reports: bool) -> Value {
    let names =
        ["TaskAction", "Directory", "DstDirectory", "DataType", "ConflictPolicy", "Includes"];
    let mut value = fields(&task.parameters, &names);
    let percent = world.percent(task);
    let outcome = &task.outcome;
    let ended = matches!(task.status.as_str(), "Completed" | "Failed");
    let part = |total: i64, done: i64| if ended { done } else { total * percent / 100 };
    let files = part(outcome.files_total, outcome.files_done);
    let bytes = part(outcome.bytes_total, outcome.bytes_done);
    let mut set = |name: &str, what: Value| {
        value.insert(name.to_owned(), what);
    };
    set("TaskId", task.id.clone().into());
    set("DataFlowId", task.flow.clone().into());
    // spelled so by the API, here only
    set("FilesystemId", task.file_system.clone().into());
    set("Status", task.status.clone().into());
    set("Originator", "User".into());
    set("Progress", percent.into());
    set("CreateTime", "2026-01-02T03:04:05Z".into());
    if task.since.is_some() {
        set("StartTime", "2026-01-02T03:04:05Z".into());
        let stats = json!({
            "FilesTotal": outcome.files_total, "FilesDone": files, "ActualFiles": files,
            "BytesTotal": outcome.bytes_total, "BytesDone": bytes, "ActualBytes": bytes,
            "AverageSpeed": if ended { 0 } else { outcome.bytes_total / 100 },
            "RemainTime": 100 - percent,
        });
        set("ProgressStats", stats);
    }
    if let Some(error) = outcome.error.as_ref().filter(|_| ended) {
        set("ErrorMsg", error.clone().into());
    }
    if ended && reports {
        let reports =
            outcome.reports.iter().map(|(name, path)| json!({"Name": name, "Path": path}));
        set("Reports", json!({ "Report": reports.collect::<Vec<_>>() }));
    }
    value.into()
}

fn describe_filesets(
    world: &mut World,
    region: &str,
    asked: &Parameters,
) -> Result<Value, ApiError> {
    let known = ["FileSystemId", "Filters", "MaxResults", "NextToken", "OrderByField", "SortOrder"];
    asked.only(&known)?;
    let (id, within) = file_system(world, region, asked)?;
    let id = id.to_owned();
    let filters = asked.filters(&["FsetIds", "FileSystemPath", "Description", "QuotaExists"])?;
    let mut found = Vec::new();
    for (fileset, (path, status)) in &within.filesets {
        let fits = filters.iter().all(|(key, value)| match *key {
            "FsetIds" => among(value, fileset),
            "FileSystemPath" => path.contains(value),
            "QuotaExists" => *value == "false",
            _ => false,
        });
        if fits {
            found.push(json!({
                "FsetId": fileset, "FileSystemPath": path, "Status": status,
                "FileSystemId": id, "CreateTime": "2026-01-02T03:04:05Z",
                "DeletionProtection": false,
            }));
        }
    }
    let (page, next) = cut(found, asked)?;
    world.clock.described();
    let mut answer = listed("Entries", "Entrie", page, next);
    answer["FileSystemId"] = id.into();
    Ok(answer)
}

fn among(list: &str, value: &str) -> bool {
    list.split(',').any(|one| one == value)
}

fn fields(from: &BTreeMap<String, String>, names: &[&str]) -> Map<String, Value> {
    let there =
        |name: &&str| from.get(*name).map(|value| ((*name).to_owned(), value.clone().into()));
    names.iter().filter_map(there).collect()
}

fn listed(outer: &str, inner: &str, page: Vec<Value>, next: Option<String>) -> Value {
    let mut answer = json!({ outer: { inner: page } });
    if let Some(next) = next {
        answer["NextToken"] = next.into();
    }
    answer
}
