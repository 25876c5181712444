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
