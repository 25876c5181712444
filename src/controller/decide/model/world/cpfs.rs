//! CPFS in the model cluster: data flows and tasks, each made once for a token.

use k8s_openapi::jiff::Timestamp;

use super::Broken;
use crate::controller::crd::DataType;
use crate::controller::decide::Action;
use crate::controller::observed::Prime;
use crate::controller::observed::dataflow::{
    Dataflow, FlowSeen, Known, Noted, Place, Plan, Share, TaskSeen, Unfinished,
};

/// What happens in CPFS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum CpfsMove {
    /// Whether it can be asked.
    Reach(bool),
    /// Whether its answers are lost to what it makes.
    Deafen(bool),
    /// Data flows and tasks take a step to where they are going.
    GoOn,
    // someone at the console
    DeleteFlow,
    CancelTask,
    Stop(bool),
}

#[derive(Debug, Clone, PartialEq)]
struct Flow {
    id: String,
    /// The UID of the prime PVC it was made for.
    prime: String,
    status: &'static str,
    /// Whether it is described yet.
    listed: bool,
    tasks: Vec<Task>,
}

#[derive(Debug, Clone, PartialEq)]
struct Task {
    id: String,
    status: &'static str,
    /// Whether it is described yet.
    listed: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(in super::super) struct Cpfs {
    lazy: bool,
    /// How imports end: 0 well, 1 with a failure, else without some files.
    code: i32,
    reachable: bool,
    deaf: bool,
    flows: Vec<Flow>,
    /// The prime PVCs that data flows, and tasks, were made for.
    made: (Vec<String>, Vec<String>),
}

impl Cpfs {
    pub(in super::super) fn new(lazy: bool, code: i32) -> Self {
        Self { lazy, code, reachable: true, deaf: false, flows: vec![], made: (vec![], vec![]) }
    }

    pub(super) fn place() -> Place {
        Place { file_system: "bmcpfs-1".to_owned(), fileset: None, path: Some("/v/".to_owned()) }
    }

    pub(super) fn has_flows(&self) -> bool {
        !self.flows.is_empty()
    }

    pub(super) fn is_lazy(&self) -> bool {
        self.lazy
    }

    pub(super) fn happen(&mut self, happens: CpfsMove) {
        match happens {
            CpfsMove::Reach(reachable) => self.reachable = reachable,
            CpfsMove::Deafen(deaf) => self.deaf = deaf,
            CpfsMove::GoOn => {
                self.flows.retain(|flow| flow.status != "Deleting");
                let ends = match self.code {
                    1 => "Failed",
                    _ => "Completed",
                };
                for flow in &mut self.flows {
                    if flow.status == "Starting" && flow.listed {
                        flow.status = "Running";
                    }
                    flow.listed = true;
                    for task in &mut flow.tasks {
                        task.listed = true;
                        task.status = match task.status {
                            "Pending" => "Executing",
                            "Executing" => ends,
                            "Canceling" => "Canceled",
                            other => other,
                        };
                    }
                }
            }
            CpfsMove::DeleteFlow => {
                self.flows.pop();
            }
            CpfsMove::CancelTask => {
                for task in self.flows.iter_mut().flat_map(|flow| &mut flow.tasks) {
                    if matches!(task.status, "Pending" | "Executing") {
                        task.status = "Canceling";
                    }
                }
            }
            CpfsMove::Stop(stop) => {
                for flow in &mut self.flows {
                    flow.status = match (flow.status, stop) {
                        ("Running", true) => "Stopped",
                        ("Stopped", false) => "Running",
                        (other, _) => other,
                    };
                }
            }
        }
    }

    /// Whether a task wrote all, or something, for a prime PVC.
    pub(super) fn wrote(&self, prime: &str) -> Option<bool> {
        let flow = self.flows.iter().find(|flow| flow.prime == prime)?;
        let status = flow.tasks.first()?.status;
        (status != "Pending").then(|| status == "Completed" && self.code == 0)
    }

    /// What is seen of a prime PVC's plan.
    pub(super) fn asked(&self, prime: &Prime) -> Dataflow {
        let Some(plan) = &prime.plan else { return Dataflow::Unasked };
        if !self.reachable {
            return Dataflow::Unknown("no connection".to_owned());
        }
        let mut flows = self.flows.iter().filter(|flow| flow.listed);
        let flow = match &plan.flow {
            Some(noted) => flows.find(|flow| flow.id == noted.id),
            None => flows.find(|flow| flow.prime == prime.uid && flow.status != "Deleting"),
        };
        let tasks = flow.map(|flow| flow.tasks.as_slice()).unwrap_or_default();
        let tasks = || tasks.iter().filter(|task| task.listed);
        let noted = |task: &&Task| plan.task.as_ref().is_some_and(|noted| noted.id == task.id);
        let done = if self.code == 0 { 5 } else { 4 };
        let task = tasks().find(noted).map(|task| TaskSeen {
            id: task.id.clone(),
            status: task.status.to_owned(),
            files: Share { done: if task.status == "Completed" { done } else { 0 }, total: 5 },
            ..TaskSeen::default()
        });
        let ended = |task: &&Task| matches!(task.status, "Completed" | "Failed" | "Canceled");
        let unfinished = tasks()
            .filter(|task| !ended(task))
            .map(|task| Unfinished { id: task.id.clone(), canceling: task.status == "Canceling" });
        Dataflow::Known(Box::new(Known {
            flow: flow.map(|flow| FlowSeen {
                id: flow.id.clone(),
                ours: true,
                status: flow.status.to_owned(),
                error: None,
            }),
            task,
            import: tasks().next().map(|task| task.id.clone()),
            unfinished: unfinished.collect(),
            flows: self.flows.len(),
        }))
    }

    /// Does `action`; the plan that comes of it.
    pub(super) fn act(
        &mut self,
        prime: &Prime,
        action: &Action,
        now: Timestamp,
    ) -> Result<Option<Plan>, Broken> {
        let broken = |what: &str| Err(Broken(what.to_owned()));
        let noted = |id: String| Some(Noted { id, time: now });
        if *action == Action::PlanDataflow {
            return Ok(Some(Plan {
                region: "cn-test".to_owned(),
                file_system: "bmcpfs-1".to_owned(),
                fileset: None,
                path: "/v/".to_owned(),
                source: "oss://bucket".to_owned(),
                source_path: "/".to_owned(),
                throughput: None,
                security: None,
                data_type: match self.lazy {
                    true => DataType::Metadata,
                    false => DataType::MetadataAndData,
                },
                time: Timestamp::UNIX_EPOCH,
                asked: None,
                flow: None,
                made: false,
                task: None,
                shown: false,
            }));
        }
        let Some(plan) = prime.plan.clone() else { return broken("CPFS is asked without a plan") };
        if !self.reachable {
            return Ok(None);
        }
        match action {
            Action::CreateFlow => {
                if !prime.protected {
                    return broken("a data flow for a prime PVC that may go without it");
                }
                let id = format!("df {}", prime.uid);
                if !self.made.0.contains(&prime.uid) {
                    self.made.0.push(prime.uid.clone());
                    let flow = Flow {
                        id: id.clone(),
                        prime: prime.uid.clone(),
                        status: "Starting",
                        listed: false,
                        tasks: vec![],
                    };
                    self.flows.push(flow);
                }
                if self.flows.len() > 1 {
                    return broken("two data flows at once");
                }
                let asked = Plan { asked: Some(now), ..plan };
                Ok(Some(match self.deaf {
                    true => asked,
                    false => Plan { flow: noted(id), made: true, ..asked },
                }))
            }
            Action::NoteTask(id) => Ok(Some(Plan { task: noted(id.clone()), ..plan })),
            Action::NoteFlow(id) => Ok(Some(Plan { flow: noted(id.clone()), ..plan })),
            Action::CreateTask => {
                let flow = self.flows.iter_mut().find(|flow| flow.prime == prime.uid);
                let Some(flow) = flow.filter(|flow| flow.status == "Running") else {
                    return Ok(None);
                };
                let id = format!("task {}", prime.uid);
                if !self.made.1.contains(&prime.uid) {
                    self.made.1.push(prime.uid.clone());
                    flow.tasks.push(Task { id: id.clone(), status: "Pending", listed: false });
                }
                Ok((!self.deaf).then(|| Plan { task: noted(id), ..plan }))
            }
            Action::CancelTask(id) => {
                let mut tasks = self.flows.iter_mut().flat_map(|flow| &mut flow.tasks);
                if let Some(task) = tasks.find(|task| task.id == *id)
                    && matches!(task.status, "Pending" | "Executing")
                {
                    task.status = "Canceling";
                }
                Ok(None)
            }
            Action::DeleteFlow(id) => {
                for flow in self.flows.iter_mut().filter(|flow| flow.id == *id) {
                    let busy = flow
                        .tasks
                        .iter()
                        .find(|task| matches!(task.status, "Pending" | "Executing" | "Canceling"));
                    match busy {
                        Some(task) if task.listed => {
                            return broken("a data flow is deleted while its task runs");
                        }
                        // refused
                        Some(_) => continue,
                        None => {}
                    }
                    if matches!(flow.status, "Running" | "Stopped") {
                        flow.status = "Deleting";
                    }
                }
                Ok(None)
            }
            _ => broken("not CPFS's"),
        }
    }
}
