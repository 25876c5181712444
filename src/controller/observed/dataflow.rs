//! What CPFS for Lingjun has been asked for, and what it has made of it.

use k8s_openapi::api::core::v1::PersistentVolume;
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::super::cpfs::{DataFlow, Task};
use super::super::crd::{DataType, OSSVolumePopulatorSpec, SourceSecurityType};
use super::super::names;

/// The CSI driver of CPFS for Lingjun.
pub(crate) const DRIVER: &str = "bmcpfsplugin.csi.alibabacloud.com";
/// What separates file system and fileset in a volume handle.
const DELIMITER: char = '+';

/// Where a volume lies in CPFS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) file_system: String,
    pub(crate) fileset: Option<String>,
    /// In the file system; with a `/` at both ends.
    pub(crate) path: Option<String>,
}

impl Place {
    /// Of a volume of CPFS's driver. Its handle is the file system's id, with or without a `+` and the
    /// fileset's behind it; the rest is in its attributes.
    pub(crate) fn of(volume: &PersistentVolume) -> Option<Self> {
        let csi = volume.spec.as_ref()?.csi.as_ref().filter(|csi| csi.driver == DRIVER)?;
        let attribute = |name: &str| {
            let value = csi.volume_attributes.as_ref()?.get(name)?;
            (!value.is_empty()).then(|| value.clone())
        };
        let (file_system, fileset) = match csi.volume_handle.split_once(DELIMITER) {
            Some((file_system, fileset)) => (file_system, Some(fileset.to_owned())),
            None => (csi.volume_handle.as_str(), attribute("filesetId")),
        };
        Some(Self {
            file_system: file_system.to_owned(),
            fileset,
            path: attribute("path").map(|path| directory(&path)),
        })
    }
}

/// `path` as CPFS names directories: with a `/` at both ends.
pub(crate) fn directory(path: &str) -> String {
    match path.trim_matches('/') {
        "" => "/".to_owned(),
        path => format!("/{path}/"),
    }
}

/// What CPFS is asked for, noted on the prime PVC before it is asked for anything: whatever becomes of
/// the resource, it is known what to look for and what to undo.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Plan {
    pub(crate) region: String,
    pub(crate) file_system: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) fileset: Option<String>,
    /// The volume's directory in the file system.
    pub(crate) path: String,
    /// `oss://` and the bucket.
    pub(crate) source: String,
    /// The directory in the bucket.
    pub(crate) source_path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) throughput: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) security: Option<SourceSecurityType>,
    pub(crate) data_type: DataType,
    /// When it was made.
    pub(crate) time: Timestamp,
    /// When CPFS was last asked for a data flow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) asked: Option<Timestamp>,
    /// The data flow that is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) flow: Option<Noted>,
    /// Whether it was made by us.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) made: bool,
    /// The task that moves the data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) task: Option<Noted>,
    /// Whether CPFS has listed the data flow once: if it does not any more, it is gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) shown: bool,
}

/// Something that CPFS has made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Noted {
    pub(crate) id: String,
    /// When it was noted.
    pub(crate) time: Timestamp,
}

impl Plan {
    /// To fill a volume at `place`, in the directory `path`, by `spec`.
    pub(crate) fn new(
        spec: &OSSVolumePopulatorSpec,
        place: &Place,
        path: &str,
        now: Timestamp,
    ) -> Self {
        let flow = spec.bmcpfs_dataflow.clone().unwrap_or_default();
        Self {
            region: spec.region.clone(),
            file_system: place.file_system.clone(),
            fileset: place.fileset.clone(),
            path: directory(path),
            source: format!("oss://{}", spec.bucket),
            source_path: directory(&spec.path),
            throughput: flow.throughput,
            security: flow.source_security_type,
            data_type: flow.data_type,
            time: now,
            asked: None,
            flow: None,
            made: false,
            task: None,
            shown: false,
        }
    }

    /// By this data flow.
    pub(crate) fn with_flow(self, id: String, now: Timestamp) -> Self {
        Self { flow: Some(Noted { id, time: now }), ..self }
    }

    /// By this task.
    pub(crate) fn with_task(self, id: String, now: Timestamp) -> Self {
        Self { task: Some(Noted { id, time: now }), ..self }
    }

    /// Whether the data comes only when files are read, by way of the data flow.
    pub(crate) fn is_lazy(&self) -> bool {
        self.data_type == DataType::Metadata
    }
}

/// What CPFS has of a plan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Dataflow {
    /// It was not asked: there is no plan.
    #[default]
    Unasked,
    /// It did not answer; why, and what helps.
    Unknown(String),
    /// It has no such file system, or shows none to the controller; why, and what helps.
    NoFileSystem(String),
    /// It answered.
    Known(Box<Known>),
}

impl Dataflow {
    /// The plan's data flow, by its id.
    pub(crate) fn flow(&self) -> Option<&str> {
        match self {
            Self::Known(known) => known.flow.as_ref().map(|flow| flow.id.as_str()),
            Self::Unasked | Self::Unknown(_) | Self::NoFileSystem(_) => None,
        }
    }

    /// The plan's task, as CPFS shows it.
    pub(crate) fn task(&self) -> Option<&TaskSeen> {
        match self {
            Self::Known(known) => known.task.as_ref(),
            Self::Unasked | Self::Unknown(_) | Self::NoFileSystem(_) => None,
        }
    }
}

/// What CPFS answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// The data flow of the plan.
    pub(crate) flow: Option<FlowSeen>,
    /// The task of the plan.
    pub(crate) task: Option<TaskSeen>,
    /// The newest import of a data flow of ours.
    pub(crate) import: Option<String>,
    /// Tasks that are to end before the data flow can go: with a data flow of ours all of its tasks,
    /// else the plan's.
    pub(crate) unfinished: Vec<Unfinished>,
    /// Data flows of the file system.
    pub(crate) flows: usize,
}

/// A data flow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FlowSeen {
    pub(crate) id: String,
    /// Whether it was made for this prime PVC.
    pub(crate) ours: bool,
    pub(crate) status: String,
    /// What CPFS says is wrong.
    pub(crate) error: Option<String>,
}

/// A task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TaskSeen {
    pub(crate) id: String,
    pub(crate) status: String,
    pub(crate) files: Share,
    pub(crate) bytes: Share,
    /// Bytes a second.
    pub(crate) rate: u64,
    pub(crate) error: Option<String>,
    /// Where CPFS has written what became of each file.
    pub(crate) report: Option<String>,
}

/// How much is done of how much.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) done: u64,
    pub(crate) total: u64,
}

/// A task that has not ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Unfinished {
    pub(crate) id: String,
    /// Whether it is being canceled already.
    pub(crate) canceling: bool,
}

impl Share {
    /// The whole percent that are done; `None`: nothing is known to do.
    pub(crate) fn percent(self) -> Option<u64> {
        let Self { done, total } = self;
        let percent = (u128::from(done.min(total)) * 100).checked_div(u128::from(total))?;
        u64::try_from(percent).ok()
    }
}

impl TaskSeen {
    /// The whole percent that are done: of the bytes, where there are any, else of the files.
    pub(crate) fn percent(&self) -> Option<u64> {
        self.bytes.percent().or_else(|| self.files.percent())
    }
}

impl Known {
    /// The data flow that `plan` uses, or may use, of all of its file system: the one that was noted,
    /// else one of the same directory and source.
    pub(crate) fn flow_of<'a>(plan: &Plan, flows: &'a [DataFlow]) -> Option<&'a DataFlow> {
        let same = |flow: &&DataFlow| {
            directory(&flow.file_system_path) == plan.path
                && flow.source_storage == plan.source
                && directory(&flow.source_storage_path) == plan.source_path
                && flow.status != "Deleting"
                && (plan.security.is_none() || flow.source_security_type.as_deref() == Some("SSL"))
        };
        match &plan.flow {
            Some(noted) => flows.iter().find(|flow| flow.id == noted.id),
            None => flows.iter().find(same),
        }
    }

    /// Of the data flows and tasks of the plan's file system.
    pub(crate) fn of(plan: &Plan, prime: &str, flows: &[DataFlow], tasks: &[Task]) -> Self {
        let flow = Self::flow_of(plan, flows).map(|flow| FlowSeen {
            id: flow.id.clone(),
            ours: plan.flow.is_some() && plan.made
                || flow.description.as_deref() == Some(&names::data_flow(prime)),
            status: flow.status.clone(),
            error: flow.error.clone(),
        });
        let of_flow =
            |task: &&Task| flow.as_ref().is_some_and(|flow: &FlowSeen| flow.id == task.flow);
        let noted = |task: &&Task| plan.task.as_ref().is_some_and(|noted| noted.id == task.id);
        let task = tasks.iter().filter(of_flow).find(noted).map(TaskSeen::of);
        let ours = flow.as_ref().is_some_and(|flow| flow.ours);
        let unfinished = tasks
            .iter()
            .filter(of_flow)
            .filter(|task| ours || noted(task))
            .filter(|task| !matches!(task.status.as_str(), "Completed" | "Failed" | "Canceled"))
            .map(|task| Unfinished { id: task.id.clone(), canceling: task.status == "Canceling" })
            .collect();
        let imports = tasks.iter().filter(of_flow).filter(|task| ours && task.action == "Import");
        // times are written so that they sort
        let import = imports.max_by_key(|task| task.create_time.clone());
        let import = import.map(|task| task.id.clone());
        Self { import, flow, task, unfinished, flows: flows.len() }
    }
}

impl TaskSeen {
    fn of(task: &Task) -> Self {
        let count = |count: i64| u64::try_from(count).unwrap_or_default();
        let share = |done, total| Share { done: count(done), total: count(total) };
        Self {
            id: task.id.clone(),
            status: task.status.clone(),
            files: share(task.files_done, task.files_total),
            bytes: share(task.bytes_done, task.bytes_total),
            rate: count(task.bytes_per_s),
            error: task.error.clone(),
            report: task.reports.first().map(|report| report.path.clone()),
        }
    }
}

#[cfg(test)]
mod tests;
