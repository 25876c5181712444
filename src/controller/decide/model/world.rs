//! The model cluster: the objects of one claim, and what everyone but the controller does to them.

mod cpfs;
mod crew;
mod moves;

use std::collections::BTreeMap;

use crate::controller::crd::Phase;
use crate::controller::decide::{Action, Decision};
use crate::controller::observed::dataflow::{Dataflow, Plan};
use crate::controller::observed::{
    Class, Ended, Observed, Prime, PrimePhase, Source, Stray, Target, Volume, Worker, WorkerPod,
    WorkerState,
};
use crate::controller::policy::{Access, KeyPair, Refusal};
use crate::controller::words;
use crate::handoff::{ExitCode, Verdict};

pub(super) use self::cpfs::{Cpfs, CpfsMove};
use self::crew::Crew;

use k8s_openapi::jiff::Timestamp;

/// An invariant that does not hold.
#[derive(Debug)]
pub(super) struct Broken(pub(super) String);

/// What happens in a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Move {
    // users
    DeleteClaim,
    /// The claim's volumeName is set: to the prime PVC's volume, or to one that there is not.
    NameVolume(bool),
    DropFinalizer,
    WriteSource(u8),
    /// In the bucket.
    ChangeObjects,
    DeleteSource,
    Refuse(bool),
    RotateSecret,
    // vandals
    DeletePod,
    /// The Pods go too, or stay.
    DeleteJob(bool),
    DeletePrime,
    DeleteVolume,
    LoseVolume,
    /// The volume becomes another claim's.
    TakeVolume,
    // a controller that does not know yet that it leads no more
    PrimeAgain,
    JobAgain,
    // Kubernetes
    MakeClass,
    SelectNode(u8),
    GiveUpNode,
    Provision,
    BindStatic,
    SyncClaim,
    SyncPrime,
    SyncVolumes,
    SyncJob,
    /// The worker's exit code.
    EndPod(i32),
    /// Foreground deletion, and protection of volumes in use.
    Protect,
    /// Garbage collection, which takes its time.
    Collect,
    /// A minute.
    Later,
    // CPFS, and those who have rights there
    Cpfs(CpfsMove),
}

/// What a volume holds, by the spec that it was filled by.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    Part(String),
    Whole(String),
}

/// What was read for a decision, and what its action holds for.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    pub(super) facts: Observed,
    target_version: u64,
    prime_version: u64,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct World {
    /// Seconds.
    clock: i64,
    /// Of resource versions and UIDs.
    last: u64,
    target: Option<(u64, Target)>,
    /// Whether it was a user who named the claim's volume.
    named: bool,
    spec: Option<u8>,
    secret: u32,
    refused: bool,
    class: Class,
    waits: bool,
    consumer: bool,
    bad_node: bool,
    last_node: u8,
    provisioner_broken: bool,
    /// How workers end once nobody interferes.
    code: i32,
    prime: Option<(u64, Prime)>,
    volumes: BTreeMap<String, Volume>,
    /// Of volumes made for a prime PVC.
    content: BTreeMap<String, Content>,
    job: Option<Worker>,
    /// A Pod whose Job someone deleted, and whether it runs.
    stray: Option<(Stray, bool)>,
    job_spec: String,
    /// Its Pods, where several fill the volume.
    crew: Crew,
    /// Whether resources ask for several workers, and then whether the claim is for many nodes.
    shared: Option<bool>,
    /// Which objects there are in the bucket.
    objects: u32,
    /// Of volumes that several workers fill, which objects each had listed that is done.
    shares: BTreeMap<String, Vec<Option<u32>>>,
    /// Where volumes are CPFS's.
    cpfs: Option<Cpfs>,
    /// What was asked for last: the prime PVC; the Job, and its spec.
    asked: (Option<Prime>, Option<(Worker, String)>),
}

/// Pods that may fail before the Job does.
const BACKOFF_LIMIT: i32 = 2;

fn broken(what: impl Into<String>) -> Result<(), Broken> {
    Err(Broken(what.into()))
}

impl World {
    pub(super) fn new(
        waits: bool,
        class: bool,
        consumer: bool,
        spec: Option<u8>,
        bad_node: bool,
        provisioner_broken: bool,
        (code, cpfs): (i32, Option<Cpfs>),
    ) -> Self {
        let mut world = Self {
            clock: 0,
            last: 1,
            target: Some((1, Target { uid: "claim".to_owned(), ..Target::default() })),
            named: false,
            spec,
            secret: 1,
            refused: false,
            class: Class::Missing("disk".to_owned()),
            waits,
            consumer,
            bad_node,
            last_node: 2,
            provisioner_broken,
            code,
            prime: None,
            volumes: BTreeMap::new(),
            content: BTreeMap::new(),
            job: None,
            stray: None,
            job_spec: String::new(),
            crew: Crew::default(),
            shared: None,
            objects: 0,
            shares: BTreeMap::new(),
            cpfs,
            asked: (None, None),
        };
        if class {
            world.happen(Move::MakeClass);
        }
        world
    }

    /// With resources that ask for several workers, if CPFS fills no volumes; `many`: the claim is for
    /// many nodes.
    pub(super) fn shared(mut self, many: Option<bool>) -> Self {
        self.shared = many.filter(|_| self.cpfs.is_none());
        self.change_target(|target| target.shared = many.unwrap_or_default());
        self
    }

    pub(super) fn now(&self) -> Timestamp {
        Timestamp::from_second(self.clock).expect("an hour or so after 1970")
    }

    /// Lets an hour pass, in which nothing happens.
    pub(super) fn wait(&mut self) {
        self.clock += 3600;
    }

    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn change_target(&mut self, change: impl FnOnce(&mut Target)) {
        let version = self.next();
        if let Some((at, target)) = &mut self.target {
            (*at, _) = (version, change(target));
            if target.deleting.is_some() && !target.finalizer {
                self.target = None;
            }
        }
    }

    fn change_prime(&mut self, change: impl FnOnce(&mut Prime)) {
        let version = self.next();
        if let Some((at, prime)) = &mut self.prime {
            (*at, _) = (version, change(prime));
        }
    }

    fn change_volume(&mut self, name: &str, change: impl FnOnce(&mut Volume)) {
        let version = self.next().to_string();
        if let Some(volume) = self.volumes.get_mut(name) {
            (volume.resource_version, _) = (version, change(volume));
        }
    }

    fn target(&self) -> Option<&Target> {
        self.target.as_ref().map(|(_, target)| target)
    }

    fn prime(&self) -> Option<&Prime> {
        self.prime.as_ref().map(|(_, prime)| prime)
    }

    fn primes_volume(&self) -> Option<&Volume> {
        self.volumes.get(self.prime()?.volume.as_ref()?)
    }

    fn source(&self) -> Source {
        let refusal = Refusal { reason: "PopulatorRefused", message: "no".to_owned() };
        match self.spec {
            None => Source::Missing,
            Some(_) if self.refused => Source::Refused(refusal),
            Some(spec) => Source::Usable {
                digest: format!("spec {spec}"),
                access: match self.cpfs {
                    Some(_) => Access::Cpfs,
                    None => Access::Secret {
                        name: "secret".to_owned(),
                        keys: KeyPair { id: String::new(), secret: String::new(), token: None },
                        version: self.secret.to_string(),
                    },
                },
                workers: match self.shared {
                    // another number with another spec
                    Some(_) => [2, 1, 3][usize::from(spec) % 3],
                    None => 1,
                },
            },
        }
    }

    /// Reads one kind after the other, as the controller does.
    pub(super) fn read(&mut self, between: [Option<Move>; 5]) -> Snapshot {
        let mut between = between.into_iter();
        let mut pause = |world: &mut Self| {
            if let Some(happens) = between.next().flatten() {
                world.happen(happens);
            }
        };
        let target = self.target.clone();
        pause(self);
        let prime = self.prime.clone();
        pause(self);
        let worker = self.job.clone().map(|job| self.crew.seen(job));
        pause(self);
        let source = if target.is_some() { self.source() } else { Source::Missing };
        pause(self);
        let (target_version, target) = target.unzip();
        let (prime_version, prime) = prime.unzip();
        let begun = prime.is_some() || worker.is_some();
        let volume = prime.as_ref().and_then(|prime| prime.volume.clone()).or_else(|| {
            let target = target.as_ref()?;
            target.volume.clone().filter(|_| target.finalizer || begun)
        });
        let dataflow = match (&self.cpfs, &prime) {
            (Some(cpfs), Some(prime)) => cpfs.asked(prime),
            _ => Dataflow::Unasked,
        };
        let pending = prime.as_ref().is_some_and(|prime| prime.phase == PrimePhase::Pending);
        let facts = Observed {
            source,
            class: if target.is_some() { self.class.clone() } else { Class::default() },
            target,
            prime,
            volume: volume.and_then(|name| self.volumes.get(&name).cloned()),
            worker,
            strays: self.stray.iter().map(|(stray, _)| stray.clone()).collect(),
            dataflow,
            warning: (pending && self.provisioner_broken).then(|| "ProvisioningFailed".to_owned()),
        };
        pause(self);
        Snapshot {
            facts,
            target_version: target_version.unwrap_or_default(),
            prime_version: prime_version.unwrap_or_default(),
        }
    }

    /// Does `action`, if what it holds for is still so; as `apply` does.
    pub(super) fn act(&mut self, seen: &Snapshot, action: &Action) -> Result<(), Broken> {
        let target_same =
            self.target.as_ref().is_some_and(|(version, _)| *version == seen.target_version);
        let prime_same =
            self.prime.as_ref().is_some_and(|(version, _)| *version == seen.prime_version);
        match action {
            Action::AddFinalizer if target_same => {
                self.change_target(|target| target.finalizer = true);
            }
            Action::RemoveFinalizer if target_same => {
                let flows = self.cpfs.as_ref().is_some_and(Cpfs::has_flows);
                if self.job.is_some() || self.prime.is_some() || self.stray.is_some() || flows {
                    return broken("the finalizer is removed before what it stands for");
                }
                self.change_target(|target| target.finalizer = false);
            }
            Action::UnselectNode if target_same => {
                self.change_target(|target| target.selected_node = None);
            }
            Action::CreatePrime if self.prime.is_none() => {
                if !seen.facts.target.as_ref().is_some_and(|target| target.finalizer) {
                    return broken("a prime PVC for a claim that may go without it");
                }
                let Source::Usable { digest, .. } = &seen.facts.source else {
                    return broken("a prime PVC without a spec");
                };
                let prime = Prime {
                    digest: digest.clone(),
                    made_for_node: seen
                        .facts
                        .target
                        .as_ref()
                        .and_then(|it| it.selected_node.clone()),
                    selected_node: seen
                        .facts
                        .target
                        .as_ref()
                        .and_then(|it| it.selected_node.clone()),
                    ..Prime::default()
                };
                self.create_prime(prime);
            }
            Action::CreateJob if self.job.is_none() => {
                let (Source::Usable { digest, access, workers }, Some(prime)) =
                    (&seen.facts.source, &seen.facts.prime)
                else {
                    return broken("a Job without a spec or a volume");
                };
                let job = Worker {
                    prime: prime.uid.clone(),
                    access: words::access(access),
                    shards: Crew::shards(*workers),
                    ..Worker::default()
                };
                self.create_job(job, digest.clone());
            }
            Action::RecordFailure(failure) if prime_same => {
                self.change_prime(|prime| prime.failure = Some(failure.clone()));
            }
            Action::NoteRound(rounds) if prime_same => {
                self.change_prime(|prime| prime.rounds = Some(rounds.clone()));
            }
            Action::Rebind => return self.rebind(seen),
            Action::DeleteJob => {
                let seen = seen.facts.worker.as_ref().map(|worker| &worker.uid);
                if let Some(job) = self.job.as_mut().filter(|job| Some(&job.uid) == seen) {
                    job.deleting = true;
                }
            }
            Action::DeletePods(strays) => {
                if let Some((stray, _)) = &mut self.stray
                    && strays.iter().any(|seen| seen.uid == stray.uid)
                {
                    stray.deleting = true;
                }
            }
            Action::DeletePrime if prime_same => {
                self.may_give_up(seen)?;
                self.change_prime(|prime| prime.deleting = true);
            }
            Action::ProtectPrime if prime_same => {
                self.change_prime(|prime| prime.protected = true);
            }
            Action::ReleasePrime if prime_same => {
                if self.cpfs.as_ref().is_some_and(Cpfs::has_flows) {
                    return broken("the prime PVC is released before its data flow is gone");
                }
                self.change_prime(|prime| prime.protected = false);
            }
            Action::PlanDataflow
            | Action::CreateFlow
            | Action::NoteFlow(_)
            | Action::NoteTask(_)
            | Action::CreateTask
            | Action::CancelTask(_)
            | Action::DeleteFlow(_) => {
                let now = self.now();
                let (Some(_), Some(prime)) = (&self.cpfs, &seen.facts.prime) else {
                    return broken("CPFS is asked for what it has nothing to do with");
                };
                if matches!(action, Action::CreateFlow) && !prime_same {
                    return Ok(());
                }
                if let (Action::DeleteFlow(_), Some(plan)) = (action, &prime.plan) {
                    if !prime_same {
                        return Ok(());
                    }
                    let plan = Plan { shown: true, ..plan.clone() };
                    self.change_prime(|prime| prime.plan = Some(plan));
                }
                let Some(cpfs) = &mut self.cpfs else { return Ok(()) };
                // what CPFS did is done, whether it can be noted or not
                let plan = cpfs.act(prime, action, now)?;
                if let Some(plan) = plan.filter(|_| prime_same) {
                    self.change_prime(|prime| prime.plan = Some(plan));
                }
            }
            // someone was faster
            _ => {}
        }
        Ok(())
    }

    fn create_prime(&mut self, prime: Prime) {
        self.asked.0 = Some(prime.clone());
        let version = self.next();
        self.prime = Some((version, Prime { uid: format!("prime {version}"), ..prime }));
    }

    fn create_job(&mut self, job: Worker, spec: String) {
        self.asked.1 = Some((job.clone(), spec.clone()));
        self.job_spec = spec;
        self.crew = Crew::of(&job);
        self.job = Some(Worker { uid: format!("job {}", self.next()), ..job });
    }

    fn rebind(&mut self, seen: &Snapshot) -> Result<(), Broken> {
        let (Some(volume), Some(target)) = (&seen.facts.volume, &seen.facts.target) else {
            return broken("a rebind without a volume or a claim");
        };
        let now = self.volumes.get(&volume.name);
        if now.is_none_or(|now| now.resource_version != volume.resource_version) {
            return Ok(());
        }
        let prime = seen.facts.prime.as_ref().map(|prime| &prime.uid);
        if now.and_then(|now| now.claim.as_ref()) != prime {
            return broken("the volume is taken from another claim");
        }
        let wanted = match (&seen.facts.source, &seen.facts.prime) {
            (Source::Usable { digest, .. }, _) => digest,
            (Source::Missing, Some(prime)) => &prime.digest,
            _ => return broken("a rebind that is not allowed"),
        };
        if self.content.get(&volume.name) != Some(&Content::Whole(wanted.clone())) {
            return broken(format!(
                "handed over: {:?} instead of all of {wanted}",
                self.content.get(&volume.name)
            ));
        }
        let uid = target.uid.clone();
        self.change_volume(&volume.name, |volume| {
            volume.claim = Some(uid);
            volume.populated = true;
        });
        Ok(())
    }

    /// A prime PVC goes only with a volume that nobody needs.
    fn may_give_up(&self, seen: &Snapshot) -> Result<(), Broken> {
        if self.cpfs.as_ref().is_some_and(Cpfs::has_flows) {
            return broken("the prime PVC is deleted before its data flow is gone");
        }
        if self.job.is_some() {
            // it could write to the next prime PVC, which has the same name
            return broken("the prime PVC is deleted before its Job is gone");
        }
        let claims = |target: &&Target| {
            let volume = seen.facts.volume.as_ref();
            volume.is_some_and(|volume| volume.claim.as_ref() == Some(&target.uid))
        };
        let on_its_way =
            |target: &Target| target.deleting.is_none() && !target.bound && !target.lost;
        if seen.facts.target.as_ref().filter(claims).is_some_and(on_its_way) {
            return broken("the prime PVC is deleted before the claim is bound");
        }
        let Some(prime) = self.prime() else { return Ok(()) };
        if !self.volumes.values().any(|volume| volume.claim.as_deref() == Some(&prime.uid)) {
            return Ok(());
        }
        let leaving = self.target().is_none_or(|target| target.deleting.is_some());
        let bound_elsewhere = self.target().is_some_and(|target| {
            target.bound && target.volume.is_some() && target.volume != prime.volume
        });
        let outdated = match &seen.facts.source {
            Source::Usable { digest, access, .. } => {
                let failed_with = prime.failure.as_ref().map(|failure| failure.access.as_str());
                *digest != prime.digest
                    || failed_with.is_some_and(|failed| failed != words::access(access))
            }
            Source::Missing | Source::Refused(_) => false,
        };
        let going = self.primes_volume().is_some_and(|volume| volume.deleting);
        let unbound = matches!(prime.phase, PrimePhase::Pending | PrimePhase::Lost);
        let forsaken = match (&prime.plan, &seen.facts.dataflow) {
            (Some(plan), Dataflow::Known(known)) => {
                plan.flow.is_some() && known.flow.is_none()
                    || plan.task.is_some() && known.task.is_none()
            }
            _ => false,
        };
        match leaving || bound_elsewhere || outdated || going || unbound || forsaken {
            true => Ok(()),
            false => broken("the prime PVC is deleted while its volume is wanted"),
        }
    }

    /// What must hold at any moment.
    pub(super) fn check(&self) -> Result<(), Broken> {
        let Some(target) = self.target() else { return Ok(()) };
        let Some(name) = target.volume.as_ref().filter(|_| target.bound) else { return Ok(()) };
        let made = name.starts_with("pv-");
        if made && !matches!(self.content.get(name), Some(Content::Whole(_))) {
            return broken(format!("bound to {name}, which is not filled"));
        }
        let writes = self.job.as_ref().is_some_and(|job| {
            (job.pod.as_ref().is_some_and(|pod| pod.running) || self.crew.runs())
                && self.prime().is_some_and(|prime| prime.volume.as_ref() == Some(name))
        });
        let stray = self.stray.as_ref().is_some_and(|(_, runs)| *runs);
        let unseen = stray && self.prime().is_some_and(|it| it.volume.as_ref() == Some(name));
        if writes || unseen {
            return broken("a worker writes to a volume that is the claim's already");
        }
        Ok(())
    }

    /// What must hold when nothing goes on any more.
    pub(super) fn ended(&self, decision: &Decision) -> Result<(), Broken> {
        let flows = self.cpfs.as_ref().is_some_and(Cpfs::has_flows);
        let left = self.prime.is_some() || self.job.is_some() || self.stray.is_some() || flows;
        let Some(target) = self.target() else {
            return if left { broken("left behind by a claim that is gone") } else { Ok(()) };
        };
        if target.deleting.is_some() {
            return broken("the claim cannot be deleted");
        }
        if target.bound && self.cpfs.as_ref().is_some_and(Cpfs::is_lazy) && left {
            return match target.finalizer && decision.phase == Phase::Finished {
                true => Ok(()),
                false => broken("what the claim's files come by is not protected"),
            };
        }
        if target.bound {
            return match left || target.finalizer || decision.phase != Phase::Finished {
                true => broken("left behind at a claim that is bound"),
                false => Ok(()),
            };
        }
        let for_consumer =
            self.waits && !self.consumer && target.selected_node.is_none() && self.prime.is_none();
        let never_ours = target.volume.is_some() && !target.finalizer && !left;
        match decision.notices.is_empty() && !for_consumer && !never_ours {
            true => broken(format!("stuck without a word: {decision:?}")),
            false => Ok(()),
        }
    }
}
