//! What CPFS is asked to do. What makes something is asked for in the same words however often, so that
//! CPFS makes one data flow and one task, whenever the controller dies.

use k8s_openapi::jiff::Timestamp;

use super::super::cpfs::{Nas, NewDataFlow, NewTask};
use super::super::crd::{DataType, OSSVolumePopulatorSpec};
use super::super::error::Error;
use super::super::names;
use super::super::observed::dataflow::{Place, Plan};

/// What CPFS is to be asked for, to fill the volume at `place` by `spec`.
pub(super) async fn plan(
    nas: &Nas,
    spec: &OSSVolumePopulatorSpec,
    place: &Place,
) -> Result<Plan, Error> {
    let path = match (&place.path, &place.fileset) {
        (Some(path), _) => path.clone(),
        (None, None) => {
            return Err(Error::Refused("it names neither a path nor a fileset".to_owned()));
        }
        (None, Some(fileset)) => {
            let region = &spec.region;
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
    Ok(Plan::new(spec, place, &path, Timestamp::now()))
}

/// Makes the data flow for a prime PVC; the plan with it.
pub(super) async fn create_flow(nas: &Nas, plan: Plan, prime: &str) -> Result<Plan, Error> {
    let new = NewDataFlow {
        file_system: plan.file_system.clone(),
        file_system_path: plan.path.clone(),
        source_storage: plan.source.clone(),
        source_storage_path: plan.source_path.clone(),
        source_security_type: plan.security.map(|_| "SSL".to_owned()),
        throughput: plan.throughput,
        description: Some(names::data_flow(prime)),
        token: format!("flow-{prime}"),
    };
    let id = nas.create_data_flow(&plan.region, &new).await?;
    Ok(Plan { made: true, ..plan }.with_flow(id, Timestamp::now()))
}

/// Begins the import by a data flow; the plan with its task.
pub(super) async fn create_task(
    nas: &Nas,
    plan: Plan,
    flow: String,
    prime: &str,
) -> Result<Plan, Error> {
    let new = NewTask {
        file_system: plan.file_system.clone(),
        flow,
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
        token: format!("task-{prime}"),
    };
    let id = nas.create_data_flow_task(&plan.region, &new).await?;
    Ok(plan.with_task(id, Timestamp::now()))
}

pub(super) async fn cancel_task(
    nas: &Nas,
    plan: &Plan,
    flow: &str,
    task: &str,
) -> Result<(), Error> {
    let Plan { region, file_system, .. } = plan;
    let token = once("cancel", task);
    Ok(nas.cancel_data_flow_task(region, file_system, flow, task, &token).await?)
}

pub(super) async fn delete_flow(nas: &Nas, plan: &Plan, flow: &str) -> Result<(), Error> {
    let Plan { region, file_system, .. } = plan;
    Ok(nas.delete_data_flow(region, file_system, flow, &once("delete", flow)).await?)
}

/// A token of one request: what was refused once may be granted later.
fn once(what: &str, id: &str) -> String {
    let mut token = format!("{what}-{}-{id}", Timestamp::now().as_millisecond());
    token.truncate(token.floor_char_boundary(64));
    token
}
