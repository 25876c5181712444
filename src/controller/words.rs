//! What users read: messages of events and status. Pure.

use super::cpfs::NasError;
use super::observed::dataflow::{DRIVER, Plan, TaskSeen};
use super::observed::{Ended, Worker};
use super::policy::Access;

/// The seed's message of a resource whose volumes are filled.
pub(crate) const POPULATED: &str = "Populated successfully";
/// Of a claim that is none of ours any more, or never was.
pub(crate) const BOUND: &str = "the claim is bound";

/// The most characters of a worker's message that an event repeats: an event's note has 1,024.
const LONGEST: usize = 900;

/// Worker flags, and the resource's fields that stand for them: in a Pod, nobody gives flags.
const FIELDS: [(&str, &str); 17] = [
    // none, since OSS lists in the order of bytes
    ("--plan-first", "a run by hand that plans first"),
    ("--allow-empty", "generic.allowEmpty"),
    ("--unmappable", "generic.unmappable"),
    ("--concurrency", "generic.concurrency"),
    ("--throughput", "generic.throughput"),
    ("--addressing", "generic.addressing"),
    ("--part-size", "generic.partSize"),
    ("--ca-bundle", "the controller's --worker-ca-configmap"),
    ("--anonymous", "a run by hand that asks anonymously"),
    ("--endpoint", "endpoint"),
    ("--include", "generic.include"),
    ("--exclude", "generic.exclude"),
    ("--verify", "generic.verify"),
    ("--region", "region"),
    ("--sha256", "generic.sha256"),
    ("--force", "a fresh PVC"),
    ("--shard", "generic.parallelism"),
];

/// A worker's message, in the resource's terms.
///
/// ```
/// use ossvp::controller::in_resource_terms;
/// let said = "key \"a//b\" is no safe path; leave it out (--exclude), or --unmappable escape";
/// assert_eq!(
///     in_resource_terms(said),
///     "key \"a//b\" is no safe path; leave it out (generic.exclude), or generic.unmappable escape"
/// );
/// ```
pub fn in_resource_terms(message: &str) -> String {
    let told =
        FIELDS.iter().fold(message.to_owned(), |text, (flag, field)| text.replace(flag, field));
    match told.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &told[..end]),
        None => told,
    }
}

/// How much of the volume is there, in percent, once the source is listed.
pub(crate) fn percent(worker: &Worker) -> Option<u64> {
    let progress = worker.progress.as_ref().filter(|progress| progress.listing_done)?;
    Some(match progress.bytes_total {
        0 => 100,
        total => (u128::from(progress.bytes.min(total)) * 100 / u128::from(total)) as u64,
    })
}

/// Which worker, of one or several.
pub(crate) fn one_of(worker: &Worker) -> String {
    match worker.shards {
        None => "the worker".to_owned(),
        Some(shards) => format!("one of {} workers", shards.count),
    }
}

/// Who fills the volume.
pub(crate) fn created(volume: &str, job: &str, worker: &Worker) -> String {
    match worker.shards {
        None => format!("volume {volume} is being filled by Job {job}"),
        Some(shards) => {
            format!("volume {volume} is being filled by the {} workers of Job {job}", shards.count)
        }
    }
}

/// Why a claim cannot be filled by that many workers.
pub(crate) fn not_shared(workers: u32) -> String {
    format!(
        "generic.parallelism: {workers} workers fill only a volume that many nodes can mount; use a claim with accessModes ReadWriteMany, or a resource without parallelism"
    )
}

/// Why all workers look again.
pub(crate) fn again(worker: &Worker) -> String {
    match worker.ended.as_ref().filter(|_| worker.disagrees()) {
        Some(ended) => {
            let said = in_resource_terms(&ended.message);
            format!("all workers look again: {said}").trim_end_matches(": ").to_owned()
        }
        None if worker.unexplained => {
            "all workers look again: the one whose end ended all is not there to say why".to_owned()
        }
        None => "all workers look again: none is left to say that the volume is whole".to_owned(),
    }
}

/// Why they do not look again any more.
pub(crate) fn never_agreed(worker: &Worker, rounds: u32) -> String {
    let told = match worker.ended.as_ref().filter(|_| worker.disagrees()) {
        Some(ended) => ended_as(ended),
        None if worker.unexplained => "the worker whose end ended all was lost".to_owned(),
        None => "no worker was left to say that the volume is whole".to_owned(),
    };
    format!(
        "{told} (the workers did not come to the same end {rounds} times; fill the volume while nothing changes the objects)"
    )
}

/// How far the worker is.
pub(crate) fn progress(worker: &Worker) -> String {
    let Some(progress) = &worker.progress else {
        return match worker.pod.as_ref().is_some_and(|pod| pod.running) {
            true => "the worker has started".to_owned(),
            false => "waiting for the worker to start".to_owned(),
        };
    };
    let (bytes, rate) = (size(progress.bytes), size(progress.bytes_per_s));
    match percent(worker) {
        Some(percent) => {
            let total = size(progress.bytes_total);
            format!("{percent}%: {bytes} of {total}, {} objects, {rate}/s", progress.objects)
        }
        None => {
            let total = size(progress.bytes_total);
            format!(
                "{bytes} of at least {total}, {} objects, {rate}/s, still listing",
                progress.objects
            )
        }
    }
}

fn size(bytes: u64) -> String {
    indicatif::DecimalBytes(bytes).to_string()
}

/// What a finished worker did.
pub(crate) fn finished(worker: &Worker) -> String {
    match worker.ended.as_ref().and_then(|ended| ended.figures) {
        Some((objects, bytes, rate)) => {
            format!("{POPULATED}: {objects} objects, {}, {}/s", size(bytes), size(rate))
        }
        None => POPULATED.to_owned(),
    }
}

/// Why the Job failed: what the newest Pod said.
pub(crate) fn why(worker: &Worker) -> String {
    let Some(ended) = &worker.ended else {
        return "the Job failed before any of its Pods ended; see its events".to_owned();
    };
    let told = ended_as(ended);
    match worker.failed_pods {
        0 | 1 => told,
        tries => format!("{told} (after {tries} tries)"),
    }
}

fn ended_as(ended: &Ended) -> String {
    let message = in_resource_terms(&ended.message);
    if ended.out_of_memory {
        return "the worker ran out of memory; give it more by generic.resources.limits.memory, or lower generic.concurrency".to_owned();
    }
    if ended.disrupted {
        return format!("Pod {} was evicted or lost its node: {message}", ended.pod)
            .trim_end_matches(": ")
            .to_owned();
    }
    match (ended.code, message.is_empty()) {
        (_, false) => message,
        (Some(code), true) => {
            format!("the worker ended with code {code}; see the log of Pod {}", ended.pod)
        }
        (None, true) => format!("Pod {} failed; see its events", ended.pod),
    }
}

/// Why another worker Pod is started.
pub(crate) fn retrying(worker: &Worker, ended: &Ended) -> String {
    let tries = match worker.failed_pods {
        0 => String::new(),
        tries => format!(" ({tries} failed so far)"),
    };
    format!("trying again{tries}: {}", ended_as(ended))
}

/// The newest worker Pod has ended, and what follows is not known yet.
pub(crate) fn between(ended: &Ended) -> String {
    match ended.code {
        Some(0) => "the worker has filled the volume".to_owned(),
        _ => format!("a worker has failed: {}", ended_as(ended)),
    }
}

/// Why a storage class does not go with the resource's mode; `cpfs`: it is one of CPFS for Lingjun.
pub(crate) fn other_mode(cpfs: bool) -> String {
    match cpfs {
        true => format!(
            "the claim's StorageClass is one of {DRIVER}, whose volumes are filled by mode bmcpfs-dataflow; set the resource's mode, or use another class"
        ),
        false => format!(
            "mode bmcpfs-dataflow fills only volumes of {DRIVER}; name a StorageClass of it in the claim, or use mode generic"
        ),
    }
}

/// Why CPFS does not do what it is asked for, and what helps.
pub(crate) fn cpfs(error: &NasError) -> String {
    let said = crate::telemetry::chain(error);
    match helps(error.code()) {
        None => said,
        Some(helps) => format!("{said}; {helps}"),
    }
}

/// What helps against a code of the NAS API.
fn helps(code: &str) -> Option<&'static str> {
    Some(match code {
        "OperationDenied.DependBucketTag" => {
            "have the bucket's owner tag it cpfs-dataflow=true, by which CPFS may read it"
        }
        "InvalidSourceStorage.NotFound" => "check the resource's bucket",
        "InvalidSourceStorage.InvalidRegion" => {
            "CPFS reads only buckets of the file system's own region"
        }
        "InvalidSourceStorage.PermissionDenied" => {
            "check that the bucket is of the file system's account and tagged cpfs-dataflow=true"
        }
        "InvalidFileSystem.NotFound" => {
            "check the resource's region, which must be the file system's and the bucket's"
        }
        "InvalidFilesystemVersion.NotSupport" | "OperationDenied.NotSupportedFileSystemVersion" => {
            "data flows need CPFS for Lingjun 2.4.0 or later"
        }
        "InvalidThroughput.OutOfBounds" => "set bmcpfsDataflow.throughput to 600, 1200 or 1500",
        _ if code.starts_with("Forbidden") || code.starts_with("NoPermission") => {
            "grant the controller's RAM identity the NAS actions that docs/controller.md lists"
        }
        _ if code.contains("Limit") || code.contains("Quota") => {
            "a file system has at most ten data flows; delete one that is not needed"
        }
        _ => return None,
    })
}

/// A data flow that CPFS finds fault with.
pub(crate) fn flow_error(id: &str, error: &str) -> String {
    let helps = match error {
        "SourceStorageUnreachable" => {
            "; check that the bucket is there, in the file system's region, and still tagged cpfs-dataflow=true"
        }
        _ => "",
    };
    format!("data flow {id} does not work: {error}{helps}")
}

/// A data flow that serves no import as it is.
pub(crate) fn flow_waits(id: &str, status: &str) -> String {
    match status {
        "Stopped" | "Stopping" => {
            format!("data flow {id} is {status}; waiting for it to be started")
        }
        "Deleting" => format!("data flow {id} is being deleted by someone; waiting for that"),
        _ => format!("data flow {id} is {status}; waiting for it to be Running"),
    }
}

/// A task in a state that says neither that it goes on nor how it ended.
pub(crate) fn task_waits(id: &str, status: &str) -> String {
    format!("task {id} is {status}; waiting for it to end")
}

/// How far CPFS is.
pub(crate) fn task_progress(task: &TaskSeen) -> String {
    let Some(percent) = task.percent() else {
        return format!("task {} is {}", task.id, task.status);
    };
    format!(
        "{percent}%: {} of {}, {} of {} files, {}/s",
        size(task.bytes.done),
        size(task.bytes.total),
        task.files.done,
        task.files.total,
        size(task.rate)
    )
}

/// Why a task that is done did not do everything, if it did not.
pub(crate) fn incomplete(plan: &Plan, task: &TaskSeen) -> Option<String> {
    let (files, bytes) = (task.files, task.bytes);
    if files.total == 0 {
        let Plan { source, source_path, .. } = plan;
        return Some(format!(
            "CPFS found no files in {source}{source_path}; check bucket and path, delete the claim and make it anew"
        ));
    }
    let what = format!("CPFS imported {} of {} files", files.done, files.total);
    let short = !plan.is_lazy() && bytes.done < bytes.total;
    let what = match short {
        true => format!("{what}, {} of {} bytes", bytes.done, bytes.total),
        false => what,
    };
    (short || files.done < files.total || task.error.is_some()).then(|| with_report(what, task))
}

/// Of a prime PVC with a finalizer for what CPFS has, and no note of what that is.
pub(crate) const UNREADABLE: &str = "what CPFS was asked for cannot be read from the prime PVC's annotation storage.alibabacloud.com/data-flow; mend it, or delete data flow and finalizer by hand";

/// How a task ended that did not complete.
pub(crate) fn task_ended(task: &TaskSeen) -> String {
    let what = match task.status.as_str() {
        "Canceled" => format!("task {} was canceled by someone", task.id),
        _ => format!("task {} failed", task.id),
    };
    with_report(what, task)
}

fn with_report(mut what: String, task: &TaskSeen) -> String {
    if let Some(error) = &task.error {
        what = format!("{what}: {error}");
    }
    if let Some(report) = &task.report {
        what = format!("{what}; CPFS's report is {report}");
    }
    format!("{what}; mend the cause, delete the claim and make it anew")
}

/// What a completed task did.
pub(crate) fn imported(task: &TaskSeen) -> String {
    format!("{POPULATED}: {} files, {}", task.files.done, size(task.bytes.done))
}

/// What tells one set of credentials from another.
pub(crate) fn access(access: &Access) -> String {
    match access {
        Access::Secret { name, version, .. } => format!("secret/{name}/{version}"),
        Access::Role { account } => format!("account/{account}"),
        Access::Cpfs => "cpfs".to_owned(),
    }
}

#[cfg(test)]
mod tests;
