//! What there is: file systems, buckets, data flows and their tasks; and how their states change.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::time::{Clock, Times};

/// A data flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// `df-…`
    pub id: String,
    /// Its file system.
    pub file_system: String,
    /// `Starting`, `Running`, `Deleting`, or what a test says.
    pub status: String,
    /// `ErrorMessage`, where a test says so.
    pub error: Option<String>,
    /// What it was made with.
    pub parameters: BTreeMap<String, String>,
    /// When its state changes.
    pub(crate) due: Option<Duration>,
}

/// A task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// `task-…`
    pub id: String,
    /// Its file system.
    pub file_system: String,
    /// Its data flow.
    pub flow: String,
    /// `Pending`, `Executing`, `Completed`, `Failed`, `Canceling`, `Canceled`, or what a test says.
    pub status: String,
    /// What it was made with.
    pub parameters: BTreeMap<String, String>,
    /// What comes of it, or came.
    pub outcome: Outcome,
    /// When it began to execute.
    pub(crate) since: Option<Duration>,
    /// When its state changes.
    pub(crate) due: Option<Duration>,
}

/// What comes of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// `FilesTotal`.
    pub files_total: i64,
    /// `FilesDone` at the end.
    pub files_done: i64,
    /// `BytesTotal`.
    pub bytes_total: i64,
    /// `BytesDone` at the end.
    pub bytes_done: i64,
    /// It fails, with this `ErrorMsg`.
    pub error: Option<String>,
    /// Names and paths of its reports.
    pub reports: Vec<(String, String)>,
}

impl Default for Outcome {
    fn default() -> Self {
        let (files, bytes) = (100, 100 << 20);
        Self {
            files_total: files,
            files_done: files,
            bytes_total: bytes,
            bytes_done: bytes,
            error: None,
            reports: Vec::new(),
        }
    }
}

/// An import that is about to be complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// The task.
    pub task: Task,
    /// The bucket.
    pub bucket: String,
    /// From where in it; begins and ends in `/`.
    pub source: String,
    /// To where in the file system; begins and ends in `/`.
    pub destination: String,
}

pub(crate) type Hook = Arc<dyn Fn(&Import) -> Outcome + Send + Sync>;

#[derive(Debug)]
pub(crate) struct FileSystem {
    pub(crate) region: String,
    pub(crate) running: bool,
    pub(crate) directories: BTreeSet<String>,
    /// By id: path and status.
    pub(crate) filesets: BTreeMap<String, (String, String)>,
}

#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    pub(crate) region: String,
    pub(crate) tagged: bool,
    pub(crate) denied: bool,
}

/// Everything, behind one lock.
pub(crate) struct World {
    pub(crate) clock: Clock,
    pub(crate) times: Times,
    pub(crate) file_systems: BTreeMap<String, FileSystem>,
    pub(crate) buckets: BTreeMap<String, Bucket>,
    pub(crate) flows: Vec<Flow>,
    pub(crate) tasks: Vec<Task>,
    /// What comes of the tasks to be made.
    pub(crate) outcomes: VecDeque<Outcome>,
    /// Answers, by action and token, with what they were asked with.
    pub(crate) answered: BTreeMap<(String, String), (BTreeMap<String, String>, serde_json::Value)>,
    pub(crate) ids: u64,
    pub(crate) hook: Option<Hook>,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World")
            .field("flows", &self.flows)
            .field("tasks", &self.tasks)
            .finish_non_exhaustive()
    }
}

impl World {
    pub(crate) fn id(&mut self, kind: &str) -> String {
        self.ids += 1;
        format!("{kind}-{:016x}", self.ids.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// When what begins now and takes `time` is done; never, if the time is [`Duration::MAX`].
    pub(crate) fn due(&self, time: Duration) -> Option<Duration> {
        (time < Duration::MAX).then(|| self.clock.now().saturating_add(time))
    }

    /// Lets everything happen that is due; what is complete but for the hook's word is left out, and
    /// given back.
    pub(crate) fn settle(&mut self) -> Vec<Import> {
        let now = self.clock.now();
        let is_due = |due: Option<Duration>| due.is_some_and(|due| due <= now);
        self.flows.retain(|flow| flow.status != "Deleting" || !is_due(flow.due));
        for flow in self.flows.iter_mut().filter(|flow| is_due(flow.due)) {
            flow.due = None;
            flow.status = "Running".to_owned();
        }
        let mut imports = Vec::new();
        for at in 0..self.tasks.len() {
            // one step may make the next one due
            while is_due(self.tasks[at].due) {
                let Some(import) = self.step(at) else { continue };
                imports.push(import);
                break;
            }
        }
        imports
    }

    /// The next state of a task that is due.
    fn step(&mut self, at: usize) -> Option<Import> {
        let run = self.times.run_task;
        let task = &mut self.tasks[at];
        match task.status.as_str() {
            "Pending" => {
                task.since = task.due;
                task.status = "Executing".to_owned();
                let since = task.due.filter(|_| run < Duration::MAX);
                task.due = since.map(|since| since.saturating_add(run));
                None
            }
            "Executing" => {
                task.due = None;
                let import = self.import(at).filter(|_| self.hook.is_some());
                if import.is_none() {
                    let outcome = self.tasks[at].outcome.clone();
                    self.complete(&self.tasks[at].id.clone(), outcome);
                }
                import
            }
            _ => {
                task.due = None;
                task.status = "Canceled".to_owned();
                None
            }
        }
    }

    /// What a task moves; `None` for what is no import.
    fn import(&self, at: usize) -> Option<Import> {
        let task = &self.tasks[at];
        let flow = self.flows.iter().find(|flow| flow.id == task.flow)?;
        let of = |map: &BTreeMap<String, String>, name| map.get(name).cloned().unwrap_or_default();
        if of(&task.parameters, "TaskAction") != "Import" {
            return None;
        }
        let below = |base: &str, name| {
            let below = of(&task.parameters, name);
            format!("{base}{}", below.trim_start_matches('/'))
        };
        Some(Import {
            bucket: bucket_of(&of(&flow.parameters, "SourceStorage")).to_owned(),
            source: below(&of(&flow.parameters, "SourceStoragePath"), "Directory"),
            destination: below(&of(&flow.parameters, "FileSystemPath"), "DstDirectory"),
            task: task.clone(),
        })
    }

    /// Ends a task, unless it has been canceled meanwhile.
    pub(crate) fn complete(&mut self, id: &str, outcome: Outcome) {
        let executing = |task: &&mut Task| task.id == id && task.status == "Executing";
        if let Some(task) = self.tasks.iter_mut().find(executing) {
            let failed = outcome.error.is_some();
            task.status = if failed { "Failed" } else { "Completed" }.to_owned();
            task.outcome = outcome;
        }
    }

    /// How much of a task is done, from 0 to 100.
    pub(crate) fn percent(&self, task: &Task) -> i64 {
        match (task.status.as_str(), task.since) {
            ("Completed", _) => 100,
            ("Executing" | "Canceling", Some(since)) if !self.times.run_task.is_zero() => {
                let elapsed = self.clock.now().saturating_sub(since).as_secs_f64();
                (elapsed / self.times.run_task.as_secs_f64() * 100.0).min(99.0) as i64
            }
            _ => 0,
        }
    }
}

/// `bucket` of `oss://[account:]bucket`.
pub(crate) fn bucket_of(storage: &str) -> &str {
    let path = storage.strip_prefix("oss://").unwrap_or(storage);
    path.rsplit(':').next().unwrap_or(path)
}
