//! Tasks of a data flow: what is asked and what is answered.

use serde::Deserialize;

use super::page::{Listing, Page, or_default, parameters, said};

/// What an import is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewTask {
    pub(crate) file_system: String,
    pub(crate) flow: String,
    /// Below the data flow's `source_storage_path`; begins and ends in `/`.
    pub(crate) directory: Option<String>,
    /// Below the data flow's `file_system_path`; begins and ends in `/`.
    pub(crate) dst_directory: Option<String>,
    /// Whether `dst_directory` is made where it is missing; CPFS for Lingjun 2.6.0 and later.
    pub(crate) create_dir_if_not_exist: Option<bool>,
    /// `Metadata`, `Data` or `MetaAndData`.
    pub(crate) data_type: String,
    /// `SKIP_THE_FILE`, `KEEP_LATEST` or `OVERWRITE_EXISTING`.
    pub(crate) conflict_policy: String,
    /// The same for the same task; up to 64 ASCII characters.
    pub(crate) token: String,
}

/// A task of a data flow. A number that the API does not state is 0.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(from = "Wire")]
pub(crate) struct Task {
    pub(crate) id: String,
    pub(crate) flow: String,
    /// `Pending`, `Executing`, `Completed`, `Failed`, `Canceling`, `Canceled`, …
    pub(crate) status: String,
    /// `Import`, …
    pub(crate) action: String,
    pub(crate) directory: Option<String>,
    pub(crate) dst_directory: Option<String>,
    /// Percent, as far as is known: the documentation says operations.
    pub(crate) progress: i64,
    pub(crate) files_total: i64,
    /// Those that were there already are among them.
    pub(crate) files_done: i64,
    pub(crate) bytes_total: i64,
    pub(crate) bytes_done: i64,
    pub(crate) bytes_per_s: i64,
    /// Seconds.
    pub(crate) remaining_s: i64,
    pub(crate) error: Option<String>,
    pub(crate) reports: Vec<Report>,
    /// As the API writes it.
    pub(crate) create_time: Option<String>,
}

/// Where a task tells what became of files.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Report {
    /// Such as `FailedFiles`.
    #[serde(deserialize_with = "or_default")]
    pub(crate) name: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) path: String,
}

impl NewTask {
    pub(super) fn query(&self) -> Vec<(String, String)> {
        let Self {
            file_system,
            flow,
            directory,
            dst_directory,
            create_dir_if_not_exist,
            data_type,
            conflict_policy,
            token,
        } = self;
        let create = create_dir_if_not_exist.map(|create| if create { "true" } else { "false" });
        parameters([
            ("FileSystemId", Some(file_system)),
            ("DataFlowId", Some(flow)),
            ("TaskAction", Some("Import")),
            ("Directory", directory.as_deref()),
            ("DstDirectory", dst_directory.as_deref()),
            ("CreateDirIfNotExist", create),
            ("DataType", Some(data_type)),
            ("ConflictPolicy", Some(conflict_policy)),
            ("ClientToken", Some(token)),
        ])
    }
}

/// The answer to CreateDataFlowTask.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Created {
    pub(super) task_id: String,
}

/// The answer to DescribeDataFlowTasks.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Described {
    #[serde(default, deserialize_with = "or_default")]
    task_info: Info,
    #[serde(default, deserialize_with = "said")]
    next_token: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Info {
    #[serde(default, deserialize_with = "or_default")]
    task: Vec<Task>,
}

/// A task as the API writes it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Wire {
    #[serde(deserialize_with = "or_default")]
    task_id: String,
    #[serde(deserialize_with = "or_default")]
    data_flow_id: String,
    #[serde(deserialize_with = "or_default")]
    status: String,
    #[serde(deserialize_with = "or_default")]
    task_action: String,
    #[serde(deserialize_with = "said")]
    directory: Option<String>,
    #[serde(deserialize_with = "said")]
    dst_directory: Option<String>,
    #[serde(deserialize_with = "or_default")]
    progress: i64,
    #[serde(deserialize_with = "or_default")]
    progress_stats: Stats,
    #[serde(deserialize_with = "said")]
    error_msg: Option<String>,
    #[serde(deserialize_with = "or_default")]
    reports: Reports,
    #[serde(deserialize_with = "said")]
    create_time: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Stats {
    #[serde(deserialize_with = "or_default")]
    files_total: i64,
    #[serde(deserialize_with = "or_default")]
    files_done: i64,
    #[serde(deserialize_with = "or_default")]
    bytes_total: i64,
    #[serde(deserialize_with = "or_default")]
    bytes_done: i64,
    #[serde(deserialize_with = "or_default")]
    average_speed: i64,
    #[serde(deserialize_with = "or_default")]
    remain_time: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Reports {
    #[serde(deserialize_with = "or_default")]
    report: Vec<Report>,
}

impl From<Wire> for Task {
    fn from(wire: Wire) -> Self {
        let Wire {
            task_id,
            data_flow_id,
            status,
            task_action,
            directory,
            dst_directory,
            progress,
            progress_stats,
            error_msg,
            reports,
            create_time,
        } = wire;
        let Stats { files_total, files_done, bytes_total, bytes_done, average_speed, remain_time } =
            progress_stats;
        Self {
            id: task_id,
            flow: data_flow_id,
            status,
            action: task_action,
            directory,
            dst_directory,
            progress,
            files_total,
            files_done,
            bytes_total,
            bytes_done,
            bytes_per_s: average_speed,
            remaining_s: remain_time,
            error: error_msg,
            reports: reports.report,
            create_time,
        }
    }
}

impl Listing for Described {
    type Item = Task;
    fn page(self) -> Page<Task> {
        Page { items: self.task_info.task, next: self.next_token }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(json: &str) -> Vec<Task> {
        serde_json::from_str::<Described>(json).unwrap().page().items
    }

    #[test]
    fn a_task_is_read_with_its_progress_and_reports() {
        let tasks = page(
            r#"{"TaskInfo": {"Task": [{
                "FilesystemId": "bmcpfs-1", "DataFlowId": "df-1", "TaskId": "task-1",
                "Status": "Completed", "Progress": 100, "TaskAction": "Import",
                "Directory": "/a/", "DstDirectory": "/b/", "ErrorMsg": "", "Reports": {"Report": [
                    {"Name": "TotalFilesReport", "Path": "/.dataflow_report/task-1"}]},
                "ProgressStats": {"FilesTotal": 3, "FilesDone": 2, "ActualFiles": 1,
                    "BytesTotal": 30, "BytesDone": 20, "ActualBytes": 10,
                    "AverageSpeed": 5, "RemainTime": 2},
                "CreateTime": "2021-08-04 18:27:35"}]}}"#,
        );
        let expected = Task {
            id: "task-1".to_owned(),
            flow: "df-1".to_owned(),
            status: "Completed".to_owned(),
            action: "Import".to_owned(),
            directory: Some("/a/".to_owned()),
            dst_directory: Some("/b/".to_owned()),
            progress: 100,
            files_total: 3,
            files_done: 2,
            bytes_total: 30,
            bytes_done: 20,
            bytes_per_s: 5,
            remaining_s: 2,
            error: None,
            reports: vec![Report {
                name: "TotalFilesReport".to_owned(),
                path: "/.dataflow_report/task-1".to_owned(),
            }],
            create_time: Some("2021-08-04 18:27:35".to_owned()),
        };
        assert_eq!(tasks, [expected]);
    }

    #[test]
    fn a_task_that_has_not_begun_states_nothing_yet() {
        let tasks = page(
            r#"{"TaskInfo": {"Task": [{"TaskId": "task-1", "Status": "Pending", "Progress": null,
                "ProgressStats": null, "Reports": null, "ErrorMsg": null}]}}"#,
        );
        let pending = "Pending".to_owned();
        let expected = Task { id: "task-1".to_owned(), status: pending, ..Task::default() };
        assert_eq!(tasks, [expected]);
        assert_eq!(page("{}"), []);
    }
}
