//! What users, vandals and Kubernetes do.

use super::*;

impl World {
    /// Lets `happens` happen, if it can.
    pub(in super::super) fn happen(&mut self, happens: Move) {
        match happens {
            Move::DeleteClaim if self.target().is_some_and(|it| it.deleting.is_none()) => {
                let now = self.now();
                self.change_target(|target| target.deleting = Some(now));
            }
            Move::NameVolume(ours) => {
                let ours = ours.then(|| self.primes_volume().map(|it| it.name.clone())).flatten();
                let free = |target: &Target| target.volume.is_none() && target.deleting.is_none();
                if self.target().is_some_and(free) {
                    self.named = true;
                    self.change_target(|target| {
                        target.volume = Some(ours.unwrap_or_else(|| "none".to_owned()));
                    });
                }
            }
            Move::DropFinalizer => self.change_target(|target| target.finalizer = false),
            Move::WriteSource(spec) => self.spec = Some(spec),
            Move::DeleteSource => self.spec = None,
            Move::Refuse(refused) => self.refused = refused,
            Move::RotateSecret => self.secret += 1,
            Move::ChangeObjects => self.objects += 1,
            Move::Later if self.cpfs.is_none() => self.clock += 60,
            Move::DeletePod if self.is_shared() => self.crew.lose_pod(self.last),
            Move::DeletePod => {
                if let Some(job) = self.job.as_mut().filter(|job| job.state == WorkerState::Active)
                    && job.pod.take().is_some_and(|pod| pod.running)
                {
                    job.failed_pods += 1;
                }
            }
            Move::DeleteJob(pods_go) if self.stray.is_none() => {
                let uid = self.next().to_string();
                let crew = std::mem::take(&mut self.crew).all();
                if let Some(pod) = self.job.take().and_then(|job| job.pod.or(crew)) {
                    let stray = Stray { name: pod.name, uid, deleting: pods_go };
                    self.stray = Some((stray, pod.running));
                }
            }
            Move::DeletePrime if self.prime().is_some_and(|prime| !prime.deleting) => {
                self.change_prime(|prime| prime.deleting = true);
            }
            Move::DeleteVolume => {
                if let Some(name) = self.primes_volume().map(|volume| volume.name.clone()) {
                    self.change_volume(&name, |volume| volume.deleting = true);
                }
            }
            Move::LoseVolume => {
                let of_prime = self.primes_volume().map(|volume| volume.name.clone());
                let name = of_prime.or_else(|| self.target()?.volume.clone());
                name.and_then(|name| self.volumes.remove(&name));
            }
            Move::TakeVolume => {
                if let Some(name) = self.primes_volume().map(|volume| volume.name.clone()) {
                    self.change_volume(&name, |volume| volume.claim = Some("third".to_owned()));
                }
            }
            Move::PrimeAgain if self.prime.is_none() => {
                self.asked.0.clone().into_iter().for_each(|prime| self.create_prime(prime));
            }
            Move::JobAgain if self.job.is_none() => {
                let asked = self.asked.1.clone();
                asked.into_iter().for_each(|(job, spec)| self.create_job(job, spec));
            }
            Move::MakeClass => {
                let cpfs = self.cpfs.is_some();
                self.class = Class::Dynamic { waits_for_consumer: self.waits, cpfs };
            }
            Move::SelectNode(node) => {
                let free = |target: &Target| !target.bound && target.deleting.is_none();
                if self.waits && self.target().is_some_and(free) {
                    self.last_node = node;
                    self.change_target(|target| target.selected_node = Some(node.to_string()));
                }
            }
            Move::GiveUpNode => {
                let gives_up = |prime: &Prime| {
                    prime.phase == PrimePhase::Pending
                        && prime.volume.is_none()
                        && prime.selected_node.is_some()
                };
                if self.prime().is_some_and(gives_up) {
                    self.change_prime(|prime| prime.selected_node = None);
                }
            }
            Move::Provision => self.provision(),
            Move::BindStatic => {
                let free = |target: &&Target| target.volume.is_none();
                if let Some(uid) = self.target().filter(free).map(|target| target.uid.clone()) {
                    self.volume("static", &uid);
                }
            }
            Move::SyncClaim => self.sync_claim(),
            Move::SyncPrime => self.sync_prime(),
            Move::SyncVolumes => self.sync_volumes(),
            Move::SyncJob if self.is_shared() => self.sync_crew(),
            Move::EndPod(code) if self.is_shared() => self.end_one(code),
            Move::SyncJob => self.sync_job(),
            Move::EndPod(code) => self.end_pod(code),
            Move::Protect => self.protect(),
            Move::Collect => {
                let owner = self.prime().map(|prime| prime.uid.clone());
                if let Some(job) =
                    self.job.as_mut().filter(|job| Some(&job.prime) != owner.as_ref())
                {
                    job.deleting = true;
                }
            }
            Move::Cpfs(happens) => {
                if let Some(cpfs) = &mut self.cpfs {
                    cpfs.happen(happens);
                }
                self.import();
            }
            Move::DeleteJob(_)
            | Move::DeleteClaim
            | Move::DeletePrime
            | Move::PrimeAgain
            | Move::Later
            | Move::JobAgain => {}
        }
    }

    fn is_shared(&self) -> bool {
        self.job.as_ref().is_some_and(|job| job.shards.is_some())
    }

    /// One round of everyone who is not a user.
    pub(in super::super) fn go_on(&mut self) {
        let chooses = |target: &Target| {
            target.selected_node.is_none() && target.volume.is_none() && target.deleting.is_none()
        };
        if self.waits && self.consumer && self.target().is_some_and(chooses) {
            self.happen(Move::SelectNode((self.last_node + 1) % 3));
        }
        let on_bad = |prime: &Prime| prime.selected_node.as_deref() == Some("0");
        if self.bad_node && self.prime().is_some_and(on_bad) {
            self.happen(Move::GiveUpNode);
        }
        let before = self.clone();
        for happens in [
            Move::Provision,
            Move::SyncPrime,
            Move::SyncClaim,
            Move::SyncVolumes,
            // of each of several
            Move::EndPod(self.code),
            Move::EndPod(self.code),
            Move::EndPod(self.code),
            Move::SyncJob,
            Move::Cpfs(CpfsMove::Reach(true)),
            Move::Cpfs(CpfsMove::Deafen(false)),
            Move::Cpfs(CpfsMove::GoOn),
            Move::Protect,
        ] {
            self.happen(happens);
        }
        if *self == before {
            self.happen(Move::Collect);
        }
    }

    fn volume(&mut self, kind: &str, claim: &str) {
        let version = self.next();
        let name = format!("{kind}-{version}");
        let volume = Volume {
            name: name.clone(),
            claim: Some(claim.to_owned()),
            cpfs: self.cpfs.as_ref().map(|_| Cpfs::place()),
            resource_version: version.to_string(),
            ..Volume::default()
        };
        self.volumes.insert(name, volume);
    }

    fn has_volume(&self, claim: &str) -> bool {
        self.volumes.values().any(|volume| volume.claim.as_deref() == Some(claim))
    }

    fn provision(&mut self) {
        let wants = |prime: &&Prime| {
            prime.phase == PrimePhase::Pending
                && !prime.deleting
                && prime.volume.is_none()
                && (!self.waits || prime.selected_node.is_some())
                && !self.has_volume(&prime.uid)
                && !self.provisioner_broken
        };
        if let Some(uid) = self.prime().filter(wants).map(|prime| prime.uid.clone()) {
            self.volume("pv", &uid);
        }
    }

    fn is_claimed(&self, name: Option<&String>, uid: &str) -> bool {
        let volume = name.and_then(|name| self.volumes.get(name));
        volume.is_some_and(|volume| volume.claim.as_deref() == Some(uid))
    }

    /// The PV controller's way to a volume for claim `uid`: first the volume's phase is written, and
    /// then the volume that this gives.
    fn bind(&mut self, uid: &str, named: Option<&String>) -> Option<String> {
        let claimed = |volume: &&Volume| volume.claim.as_deref() == Some(uid);
        let volume = match named {
            Some(name) => self.volumes.get(name).filter(claimed),
            None => self.volumes.values().find(claimed),
        }?;
        let (name, bound) = (volume.name.clone(), volume.bound);
        self.change_volume(&name, |volume| volume.bound = true);
        bound.then_some(name)
    }

    fn sync_claim(&mut self) {
        let Some(target) = self.target().cloned().filter(|target| !target.lost) else { return };
        let claimed = self.is_claimed(target.volume.as_ref(), &target.uid);
        // what the PV controller wrote there itself is bound for good
        let chosen = target.volume.is_none() || self.named && !target.bound;
        if !chosen && !claimed {
            self.change_target(|target| (target.bound, target.lost) = (false, true));
        } else if !chosen && !target.bound {
            self.change_target(|target| target.bound = true);
        } else if chosen && let Some(name) = self.bind(&target.uid, target.volume.as_ref()) {
            self.named = false;
            self.change_target(|target| target.volume = Some(name));
        }
    }

    fn sync_prime(&mut self) {
        let Some(prime) = self.prime().cloned() else { return };
        let claimed = self.is_claimed(prime.volume.as_ref(), &prime.uid);
        match (prime.phase, &prime.volume) {
            (PrimePhase::Lost, _) => {}
            (PrimePhase::Pending, None) => {
                if let Some(name) = self.bind(&prime.uid, None) {
                    self.change_prime(|prime| prime.volume = Some(name));
                }
            }
            (_, Some(_)) if !claimed => self.change_prime(|it| it.phase = PrimePhase::Lost),
            (PrimePhase::Pending, _) => self.change_prime(|it| it.phase = PrimePhase::Bound),
            (PrimePhase::Bound, _) => {}
        }
    }

    /// Volumes whose claim is gone are reclaimed; those that are deleted go once no claim is bound
    /// to them.
    fn sync_volumes(&mut self) {
        let (target, prime) = (self.target().cloned(), self.prime().cloned());
        self.volumes.retain(|name, volume| {
            let of_target = target.as_ref().filter(|it| volume.claim.as_ref() == Some(&it.uid));
            let of_prime = prime.as_ref().filter(|it| volume.claim.as_ref() == Some(&it.uid));
            let in_use = of_target.is_some_and(|it| it.volume.as_ref() == Some(name))
                || of_prime.is_some_and(|it| it.volume.as_ref() == Some(name));
            let third = volume.claim.as_deref() == Some("third");
            (of_target.is_some() || of_prime.is_some() || third) && (!volume.deleting || in_use)
        });
    }

    fn sync_job(&mut self) {
        let (prime, volume) = (self.prime().cloned(), self.primes_volume().cloned());
        let name = format!("pod {}", self.last + 1);
        let Some(job) = self.job.as_mut().filter(|job| !job.deleting) else { return };
        if job.state != WorkerState::Active {
            return;
        }
        let ended = job
            .ended
            .clone()
            .filter(|ended| job.pod.as_ref().is_some_and(|pod| pod.name == ended.pod));
        // a Pod names the PVC that it mounts, and not the PVC's UID
        let mountable =
            prime.as_ref().is_some_and(|prime| prime.phase == PrimePhase::Bound && !prime.deleting);
        match (&mut job.pod, ended) {
            (_, Some(ended)) => {
                let code = ended.code.unwrap_or_default();
                match verdict(code) {
                    Verdict::Done => job.state = WorkerState::Complete,
                    Verdict::Stop => job.state = WorkerState::Failed,
                    Verdict::RetryAtOnce => job.pod = None,
                    Verdict::Retry => {
                        job.failed_pods += 1;
                        job.pod = None;
                    }
                }
            }
            (None, None) if job.failed_pods > BACKOFF_LIMIT => job.state = WorkerState::Failed,
            (None, None) => {
                job.pod = Some(WorkerPod { name, ..WorkerPod::default() });
                self.next();
            }
            (Some(pod), None) if !pod.running && mountable => {
                pod.running = true;
                // from now on it writes
                if let Some(volume) = volume {
                    let part = Content::Part(self.job_spec.clone());
                    self.content.entry(volume.name).or_insert(part);
                }
            }
            (Some(_), None) => {}
        }
    }

    /// What CPFS's task writes into the volume.
    fn import(&mut self) {
        let Some(prime) = self.prime.as_ref().map(|(_, prime)| prime) else { return };
        let state = self.cpfs.as_ref().and_then(|cpfs| cpfs.wrote(&prime.uid));
        let Some((whole, name)) = state.zip(prime.volume.clone()) else { return };
        let spec = prime.digest.clone();
        let content = if whole { Content::Whole(spec) } else { Content::Part(spec) };
        self.content.insert(name, content);
    }

    fn end_pod(&mut self, code: i32) {
        let spec = self.job_spec.clone();
        let volume = self.prime().and_then(|prime| prime.volume.clone());
        let Some(job) = &mut self.job else { return };
        let Some(pod) = job.pod.as_mut().filter(|pod| pod.running) else { return };
        pod.running = false;
        let content = volume.and_then(|name| self.content.get_mut(&name));
        let code = match (code, content) {
            (0, Some(content)) => match content {
                Content::Part(of) | Content::Whole(of) if *of != spec => 8,
                content => {
                    *content = Content::Whole(spec);
                    0
                }
            },
            // its volume went away under it
            (0, None) => 1,
            (code, _) => code,
        };
        job.ended = Some(Ended {
            pod: pod.name.clone(),
            code: Some(code),
            message: format!("ended with {code}"),
            ..Ended::default()
        });
    }

    fn protect(&mut self) {
        match &mut self.job {
            Some(job) if job.deleting && (job.pod.is_some() || self.crew.has_pods()) => {
                job.pod = None;
                self.crew.disband();
            }
            Some(job) if job.deleting => self.job = None,
            _ => {}
        }
        if self.stray.as_ref().is_some_and(|(stray, _)| stray.deleting) {
            self.stray = None;
        }
        let runs = |job: &Worker| job.pod.as_ref().is_some_and(|pod| pod.running);
        let in_use =
            self.stray.is_some() || self.job.as_ref().is_some_and(runs) || self.crew.runs();
        if !in_use && self.prime().is_some_and(|prime| prime.deleting && !prime.protected) {
            self.prime = None;
        }
    }
}

pub(super) fn verdict(code: i32) -> Verdict {
    ExitCode::of(code).map_or(Verdict::Retry, ExitCode::verdict)
}
