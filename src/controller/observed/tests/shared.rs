//! Of several workers.

use super::*;
use crate::controller::observed::shards::{done, summed};

fn indexed(condition: &str) -> Job {
    of(json!({
        "metadata": {"uid": "j"},
        "spec": {"completionMode": "Indexed", "completions": 3, "backoffLimit": 18, "template": {}},
        "status": {"conditions": [{"type": condition, "status": "True"}]},
    }))
}

/// A Pod of share `index`, whose name begins with it.
fn of_share(index: u32, name: &str, second: u8, status: Value) -> Arc<Pod> {
    let mut pod = (*pod(&format!("{index}-{name}"), second, status)).clone();
    let said = ("batch.kubernetes.io/job-completion-index".to_owned(), index.to_string());
    pod.metadata.annotations = Some([said].into());
    Arc::new(pod)
}

fn running() -> Value {
    container(json!({"running": {}}))
}

/// A share's end, or the whole volume's.
fn filled(whole: bool, bytes: u64) -> Value {
    let outcome = Outcome {
        whole,
        objects: 1,
        bytes,
        bytes_per_s: 10,
        ..Outcome::new(ExitCode::Complete, "complete", "oss://b/")
    };
    ended(0, "Completed", &outcome.to_json())
}

#[test]
fn a_job_says_how_a_volume_is_divided() {
    let shards = Worker::of(&indexed("x"), &[] as &[Arc<Pod>]).shards;
    assert_eq!(shards, Some(Shards { count: 3, rounds: 6 }));
    for spec in [
        json!({"template": {}}),
        json!({"completions": 3, "template": {}}),
        json!({"completionMode": "Indexed", "completions": 1, "template": {}}),
    ] {
        let job: Job = of(json!({"spec": spec}));
        assert_eq!(Worker::of(&job, &[] as &[Arc<Pod>]).shards, None);
    }
}

#[test]
fn the_pod_that_is_shown_is_one_that_does_not_run_yet_else_one_that_does() {
    let shown = |pods: &[Arc<Pod>]| Worker::of(&indexed("x"), pods).pod.unwrap().name;
    let pending = || json!({"phase": "Pending"});
    let all = [
        of_share(0, "a", 1, filled(false, 5)),
        of_share(1, "a", 1, running()),
        of_share(2, "a", 1, pending()),
    ];
    assert_eq!(shown(&all), "2-a");
    assert_eq!(shown(&all[..2]), "1-a");
    assert_eq!(shown(&all[..1]), "0-a");
    // only the newest of a share counts
    let again = [of_share(1, "b", 2, pending()), of_share(1, "c", 3, running())];
    assert_eq!(shown(&again), "1-c");
}

#[test]
fn of_several_ends_the_one_counts_that_ended_all() {
    let end = |condition: &str, codes: &[i32]| {
        let pod = |(n, code): (usize, &i32)| of_share(n as u32, "a", 9, ended(*code, "", "said"));
        let pods: Vec<_> = codes.iter().enumerate().map(pod).collect();
        Worker::of(&indexed(condition), &pods).ended.unwrap().code.unwrap()
    };
    assert_eq!(end("Failed", &[143, 3, 5, 1]), 3);
    assert_eq!(end("Failed", &[143, 1, 5, 143]), 5);
    assert_eq!(end("Failed", &[0, 1, 143]), 1);
    assert_eq!(end("Failed", &[0, 101, 143]), 101);
    assert_eq!(end("FailureTarget", &[0, 143, 0]), 143);
    // of one worker, the newest
    let pods = [pod("a", 1, ended(5, "", "")), pod("b", 2, ended(1, "", ""))];
    assert_eq!(Worker::of(&job(), &pods).ended.unwrap().code, Some(1));
}

#[test]
fn a_volume_is_whole_when_one_worker_says_so() {
    let share = |index| of_share(index, "a", 9, filled(false, 5));
    let last = || of_share(1, "a", 3, filled(true, 15));
    let worker = |pods: &[Arc<Pod>]| Worker::of(&indexed("Complete"), pods);
    let whole = worker(&[share(0), last(), share(2)]);
    assert!(whole.is_whole() && !whole.disagrees());
    assert_eq!(whole.ended.unwrap().figures, Some((1, 15, 10)));
    assert!(!worker(&[share(0), share(1), share(2)]).is_whole());
    // it, or its outcome, is lost
    assert!(!worker(&[share(0), share(2)]).is_whole());
    assert!(!worker(&[]).is_whole());
    assert!(!worker(&[share(0), of_share(1, "a", 3, ended(0, "", "no outcome"))]).is_whole());
    // an end that is none does not count, whatever it says
    let mut lies = filled(true, 15);
    lies["containerStatuses"][1]["state"]["terminated"]["exitCode"] = 1.into();
    lies["phase"] = "Failed".into();
    assert!(!worker(&[share(0), of_share(1, "a", 3, lies)]).is_whole());
    // one worker says it by its Job
    assert!(Worker::of(&job(), &[] as &[Arc<Pod>]).is_whole());
}

#[test]
fn workers_disagree_by_the_exit_code_that_says_so() {
    let pods = |code| [of_share(0, "a", 1, ended(code, "Error", ""))];
    assert!(Worker::of(&indexed("Failed"), &pods(5)).disagrees());
    assert!(!Worker::of(&indexed("Failed"), &pods(4)).disagrees());
    // what says so, or why all were ended, may be lost
    let mut by_policy = indexed("Failed");
    let said = by_policy.status.as_mut().unwrap().conditions.as_mut().unwrap();
    said[0].reason = Some("PodFailurePolicy".to_owned());
    for (code, unexplained) in [(5, false), (3, false), (143, true), (0, true)] {
        assert_eq!(Worker::of(&by_policy, &pods(code)).unexplained, unexplained, "{code}");
    }
    assert!(Worker::of(&by_policy, &[] as &[Arc<Pod>]).unexplained);
    assert!(!Worker::of(&indexed("Failed"), &pods(143)).unexplained);
    let one = [pod("a", 1, ended(5, "Error", ""))];
    assert!(!Worker::of(&job(), &one).disagrees());
}

#[test]
fn each_share_has_its_place_for_progress() {
    let shares = |pods: &[Arc<Pod>]| Worker::of(&indexed("x"), pods).shares;
    assert_eq!(shares(&[]), [Share::Unknown, Share::Unknown, Share::Unknown]);
    let some = [
        of_share(0, "a", 1, filled(false, 5)),
        of_share(1, "a", 1, ended(1, "Error", "")),
        of_share(2, "a", 1, running()),
    ];
    let (first, log) = (Share::Done(1, 5, 10), Share::Log("2-a".to_owned()));
    assert_eq!(shares(&some), [first.clone(), Share::Unknown, log.clone()]);
    let replaced = of_share(1, "b", 2, running());
    let all = [some[0].clone(), some[1].clone(), some[2].clone(), replaced];
    assert_eq!(shares(&all), [first, Share::Log("1-b".to_owned()), log]);
    // what the last one says is of all
    let whole = [of_share(0, "a", 1, filled(false, 5)), of_share(1, "a", 1, filled(true, 15))];
    assert_eq!(shares(&whole), [Share::Done(1, 15, 10)]);
    assert_eq!(Worker::of(&job(), &[pod("a", 1, running())]).shares, [Share::Log("a".to_owned())]);
}

#[test]
fn progress_is_summed_and_whole_only_when_each_share_is_listed() {
    let at = |bytes, listing_done| Progress {
        bytes_total: 10,
        listing_done,
        bytes_per_s: 2,
        ..done(1, bytes, 0)
    };
    assert_eq!(summed(&[None, None]), None);
    let all = summed(&[Some(at(3, true)), Some(done(4, 8, 5))]).unwrap();
    let figures = (all.objects, all.bytes, all.bytes_total, all.bytes_per_s, all.listing_done);
    assert_eq!(figures, (5, 11, 18, 7, true));
    for unknown in [None, Some(at(3, false))] {
        assert!(!summed(&[Some(at(3, true)), unknown]).unwrap().listing_done);
    }
    let most = summed(&[Some(done(u64::MAX, u64::MAX, u64::MAX)), Some(done(1, 1, 1))]).unwrap();
    assert_eq!((most.objects, most.bytes, most.bytes_total), (u64::MAX, u64::MAX, u64::MAX));
}

#[test]
fn rounds_are_kept_on_the_prime_pvc() {
    let rounds = Rounds { count: 2, job: "j".to_owned(), time: Timestamp::UNIX_EPOCH };
    let text = serde_json::to_string(&rounds).unwrap();
    assert_eq!(text, r#"{"count":2,"job":"j","time":"1970-01-01T00:00:00Z"}"#);
    let prime = |text: &str| {
        let rounds = json!({"storage.alibabacloud.com/rounds": text});
        Prime::of(&of(json!({"metadata": {"annotations": rounds}}))).rounds
    };
    assert_eq!(prime(&text), Some(rounds));
    assert_eq!(prime("not ours"), None);
}
