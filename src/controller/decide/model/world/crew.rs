//! Several workers that fill one volume, as an Indexed Job has them.

use super::moves::verdict;
use super::*;
use crate::controller::observed::shards::{Shards, weight};

/// The Pods of an Indexed Job.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Crew(Vec<Index>);

/// One of its indexes.
#[derive(Debug, Clone, Default, PartialEq)]
struct Index {
    pod: Option<Member>,
    failed: i32,
    done: bool,
}

/// Its newest Pod.
#[derive(Debug, Clone, PartialEq)]
struct Member {
    name: String,
    /// What it listed, once it runs.
    listed: Option<u32>,
    end: Option<Ended>,
}

impl Member {
    fn runs(&self) -> bool {
        self.listed.is_some() && self.end.is_none()
    }
}

impl Crew {
    /// How a Job of that many workers divides the volume.
    pub(super) fn shards(workers: u32) -> Option<Shards> {
        (workers > 1).then_some(Shards { count: workers, rounds: BACKOFF_LIMIT as u32 })
    }

    /// Of a Job that has just been made.
    pub(super) fn of(job: &Worker) -> Self {
        Self(vec![Index::default(); job.shards.map_or(0, |shards| shards.count as usize)])
    }

    fn pods(&self) -> impl Iterator<Item = &Member> {
        self.0.iter().filter_map(|index| index.pod.as_ref())
    }

    pub(super) fn has_pods(&self) -> bool {
        self.pods().next().is_some()
    }

    pub(super) fn runs(&self) -> bool {
        self.pods().any(Member::runs)
    }

    /// All of them as if they were one.
    pub(super) fn all(self) -> Option<WorkerPod> {
        let name = "all".to_owned();
        self.has_pods().then(|| WorkerPod { name, running: self.runs(), ..WorkerPod::default() })
    }

    pub(super) fn disband(&mut self) {
        self.0.iter_mut().for_each(|index| index.pod = None);
    }

    /// Someone deletes a Pod, and with it what it said at its end.
    pub(super) fn lose_pod(&mut self, which: u64) {
        let count = self.0.len().max(1) as u64;
        if let Some(index) = self.0.get_mut((which % count) as usize) {
            let lost = index.pod.take();
            index.failed += i32::from(lost.is_some_and(|pod| pod.runs()));
        }
    }

    /// What is seen of the Job with them.
    pub(super) fn seen(&self, job: Worker) -> Worker {
        if job.shards.is_none() {
            return job;
        }
        let pod = self.pods().max_by_key(|pod| (pod.end.is_none(), pod.listed.is_none()));
        let ends = self.pods().filter_map(|pod| pod.end.clone());
        Worker {
            failed_pods: self.0.iter().map(|index| index.failed).sum(),
            unfinished: self.pods().filter(|pod| pod.end.is_none()).count(),
            pod: pod.map(|pod| WorkerPod {
                name: pod.name.clone(),
                running: pod.runs(),
                ended: pod.end.is_some(),
                ..WorkerPod::default()
            }),
            ended: ends.max_by_key(|end| weight(end, job.state)),
            ..job
        }
    }
}

impl World {
    /// One of the workers ends.
    pub(super) fn end_one(&mut self, code: i32) {
        let running: Vec<usize> = (0..self.crew.0.len())
            .filter(|at| self.crew.0[*at].pod.as_ref().is_some_and(Member::runs))
            .collect();
        let Some(&at) = running.get(self.last as usize % running.len().max(1)) else { return };
        let volume = self.prime().and_then(|prime| prime.volume.clone());
        let listed = self.crew.0[at].pod.as_ref().and_then(|pod| pod.listed).unwrap_or_default();
        let (code, whole) = match (code, volume.filter(|name| self.content.contains_key(name))) {
            (0, Some(volume)) => self.complete_share(&volume, at, listed),
            // its volume went away under it
            (0, None) => (1, false),
            (code, _) => (code, false),
        };
        if let Some(pod) = &mut self.crew.0[at].pod {
            pod.end = Some(Ended {
                pod: pod.name.clone(),
                code: Some(code),
                whole,
                message: format!("ended with {code}"),
                ..Ended::default()
            });
        }
        self.next();
    }

    /// What a worker does that has its share: the exit code, and whether it saw the whole.
    fn complete_share(&mut self, volume: &str, at: usize, listed: u32) -> (i32, bool) {
        let spec = self.job_spec.clone();
        match self.content.get(volume) {
            Some(Content::Whole(of)) if *of == spec => return (0, true),
            Some(Content::Part(of)) if *of == spec => {}
            _ => return (8, false),
        }
        let count = self.crew.0.len();
        let shares = self.shares.entry(volume.to_owned()).or_insert_with(|| vec![None; count]);
        // one that is done already does not list again
        shares[at].get_or_insert(listed);
        if shares.contains(&None) {
            return (0, false);
        }
        if shares.iter().any(|share| *share != shares[0]) {
            shares.fill(None);
            return (5, false);
        }
        self.content.insert(volume.to_owned(), Content::Whole(spec));
        (0, true)
    }

    /// The Job controller.
    pub(super) fn sync_crew(&mut self) {
        let (volume, objects) = (self.primes_volume().cloned(), self.objects);
        let mut last = self.last;
        let mountable =
            self.prime().is_some_and(|prime| prime.phase == PrimePhase::Bound && !prime.deleting);
        let Some(job) = self.job.as_mut().filter(|job| !job.deleting) else { return };
        if job.state != WorkerState::Active {
            // it ends those that are left
            for index in &mut self.crew.0 {
                index.pod = index.pod.take().filter(|pod| pod.end.is_some());
            }
            return;
        }
        for (at, index) in self.crew.0.iter_mut().enumerate().filter(|(_, index)| !index.done) {
            let code = index.pod.as_ref().map(|pod| pod.end.as_ref().and_then(|end| end.code));
            match code {
                Some(Some(code)) => match verdict(code) {
                    _ if code == 5 => job.state = WorkerState::Failed,
                    Verdict::Stop => job.state = WorkerState::Failed,
                    Verdict::Done => index.done = true,
                    Verdict::RetryAtOnce => index.pod = None,
                    Verdict::Retry => {
                        index.failed += 1;
                        index.pod = None;
                    }
                },
                None if index.failed > BACKOFF_LIMIT => job.state = WorkerState::Failed,
                None => {
                    last += 1;
                    let name = format!("pod {last} of {at}");
                    index.pod = Some(Member { name, listed: None, end: None });
                }
                Some(None) => {
                    let starts = index.pod.as_mut().filter(|pod| pod.listed.is_none() && mountable);
                    if let Some(pod) = starts {
                        pod.listed = Some(objects);
                        // from now on it writes
                        if let Some(volume) = &volume {
                            let part = Content::Part(self.job_spec.clone());
                            self.content.entry(volume.name.clone()).or_insert(part);
                        }
                    }
                }
            }
        }
        if self.crew.0.iter().all(|index| index.done) {
            job.state = WorkerState::Complete;
        }
        self.last = last;
    }
}
