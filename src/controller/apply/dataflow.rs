//! What CPFS is asked to do. Every request holds for one prime PVC and is the same however often it is
//! made, so that CPFS makes one data flow and one task, whenever the controller dies.

use k8s_openapi::jiff::Timestamp;

use super::super::cpfs::{Nas, NewDataFlow, NewTask};
use super::super::crd::DataType;
use super::super::decide::Action;
use super::super::error::Error;
use super::super::names;
use super::super::observe::Seen;
use super::super::observed::dataflow::{Noted, Plan};

/// Asks CPFS for what `action` makes, or notes what is there; the plan as it is then.
pub(super) async fn ask(nas: &Nas, seen: &Seen, action: &Action) -> Result<Plan, Error> {
    let prime = seen.facts.prime.as_ref().ok_or_else(|| gone(action, "prime PVC"))?;
    if *action == Action::PlanDataflow {
        return plan(nas, seen).await;
    }
    let plan = prime.plan.clone().ok_or_else(|| gone(action, "plan"))?;
    let noted = |id: String| Some(Noted { id, time: Timestamp::now() });
    Ok(match action {
        Action::CreateFlow => {
            let new = NewDataFlow {
                file_system: plan.file_system.clone(),
                file_system_path: plan.path.clone(),
                source_storage: plan.source.clone(),
                source_storage_path: plan.source_path.clone(),
                source_security_type: plan.security.map(|_| "SSL".to_owned()),
                throughput: plan.throughput,
                description: Some(names::data_flow(&prime.uid)),
                token: format!("flow-{}", prime.uid),
            };
            let id = nas.create_data_flow(&plan.region, &new).await?;
            Plan { flow: noted(id), made: true, ..plan }
        }
        Action::NoteFlow(id) => Plan { flow: noted(id.clone()), ..plan },
        Action::NoteTask(id) => Plan { task: noted(id.clone()), ..plan },
        Action::CreateTask => {
            let flow = plan.flow.as_ref().ok_or_else(|| gone(action, "data flow"))?;
            let new = NewTask {
                file_system: plan.file_system.clone(),
                flow: flow.id.clone(),
                directory: Some("/".to_owned()),
                dst_directory: Some("/".to_owned()),
                create_dir_if_not_exist: None,
                data_type: match plan.data_type {
                    DataType::Metadata => "Metadata",
                    DataType::MetadataAndData => "MetaAndData",
                }
                .to_owned(),
                // what is there is of an earlier try, and may be less than it seems
                conflict_policy: "OVERWRITE_EXISTING".to_owned(),
                token: format!("task-{}", prime.uid),
            };
            let id = nas.create_data_flow_task(&plan.region, &new).await?;
            Plan { task: noted(id), ..plan }
        }
        _ => plan,
    })
}

/// Has CPFS undo what `action` names.
pub(super) async fn undo(nas: &Nas, seen: &Seen, action: &Action) -> Result<(), Error> {
    let plan = seen.facts.prime.as_ref().and_then(|prime| prime.plan.as_ref());
    let Plan { region, file_system, .. } = plan.ok_or_else(|| gone(action, "plan"))?;
    match action {
        Action::CancelTask(id) => {
            let flow = seen.facts.dataflow.flow().ok_or_else(|| gone(action, "data flow"))?;
            nas.cancel_data_flow_task(region, file_system, flow, id, &once("cancel", id)).await?;
        }
        Action::DeleteFlow(id) => {
            nas.delete_data_flow(region, file_system, id, &once("delete", id)).await?;
        }
        _ => {}
    }
    Ok(())
}

fn gone(action: &Action, what: &'static str) -> Error {
    Error::Vanished { action: format!("{action:?}"), what }
}

/// A token of one request: what was refused once may be granted later.
fn once(what: &str, id: &str) -> String {
    let mut token = format!("{what}-{}-{id}", Timestamp::now().as_millisecond());
    token.truncate(64);
    token
}

/// What CPFS is to be asked for.
async fn plan(nas: &Nas, seen: &Seen) -> Result<Plan, Error> {
    let gone = |what| gone(&Action::PlanDataflow, what);
    let source = seen.source.as_ref().ok_or_else(|| gone("resource"))?;
    let place = seen.facts.volume.as_ref().and_then(|volume| volume.cpfs.as_ref());
    let place = place.ok_or_else(|| gone("volume"))?;
    let path = match (&place.path, &place.fileset) {
        (Some(path), _) => path.clone(),
        (None, None) => {
            return Err(Error::Refused("it names neither a path nor a fileset".to_owned()));
        }
        (None, Some(fileset)) => {
            let region = &source.spec.region;
            let filesets = nas.describe_filesets(region, &place.file_system, Some(fileset)).await?;
            let found = filesets.into_iter().find(|it| it.id == *fileset);
            found.map(|it| it.file_system_path).ok_or_else(|| {
                let file_system = &place.file_system;
                Error::Refused(format!(
                    "file system {file_system} has no fileset {fileset} in region {region}"
                ))
            })?
        }
    };
    Ok(Plan::new(&source.spec, place, &path, Timestamp::now()))
}
