//! One container of a Pod: its runs, and what is left of each.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{self, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::env::{self, Sources};
use super::identity;
use super::launch::{Bind, Launch};
use super::log::{Log, Part};
use super::processes::Running;
use super::status::{Container, End, State};
use super::volumes::{self, Volumes};
use crate::events::{Kind, Voice};
use crate::options::Image;
use crate::record::Deed;
use crate::world::World;

/// As the kubelet reads of a termination message, from its end.
const MESSAGE: usize = 4096;
/// As the kubelet takes from a log instead of a message.
const FROM_LOG: (usize, usize) = (80, 2048);
/// The kubelet's is 10 s, doubled up to 5 min; a test is not to wait for that.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// How often what was missing is looked for.
const RETRY: Duration = Duration::from_millis(500);

/// That a run ended: of which container, which run, and how.
#[derive(Debug)]
pub(crate) struct Exit {
    pub(crate) container: String,
    run: u32,
    code: i32,
}

/// A container and its present run.
#[derive(Debug)]
pub(crate) struct Unit {
    pub(crate) spec: v1::Container,
    pub(crate) seen: Container,
    /// When it may be started (again).
    pub(crate) due: Instant,
    /// Its number of runs so far.
    runs: u32,
    process: Option<Running>,
    log: Option<Arc<Log>>,
    message: PathBuf,
    out_of_memory: bool,
}

/// What of its Pod a container needs to start.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    pub(crate) world: &'a Arc<World>,
    pub(crate) pod: &'a Pod,
    pub(crate) voice: &'a Voice,
    pub(crate) volumes: &'a Volumes,
    pub(crate) exits: &'a mpsc::UnboundedSender<Exit>,
}

/// Why a container was not started.
enum Refusal {
    /// It is tried again.
    Waiting { reason: &'static str, message: String },
    /// It counts as a run.
    Failed(String),
}

impl Unit {
    pub(crate) fn new(spec: &v1::Container, after: &str) -> Self {
        let state = State::Waiting { reason: after.to_owned(), message: None };
        let seen = Container {
            name: spec.name.clone(),
            image: spec.image.clone().unwrap_or_default(),
            state,
            last: None,
            restarts: 0,
        };
        Self {
            spec: spec.clone(),
            seen,
            due: Instant::now(),
            runs: 0,
            process: None,
            log: None,
            message: PathBuf::new(),
            out_of_memory: false,
        }
    }

    /// When it is to be started: none while it runs or when it has ended for good.
    pub(crate) fn next(&self) -> Option<Instant> {
        matches!(self.seen.state, State::Waiting { .. }).then_some(self.due)
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        if let Some(process) = &self.process {
            process.signal(signal);
        }
    }

    pub(crate) fn run_out_of_memory(&mut self) {
        self.out_of_memory = true;
        self.signal(rustix::process::Signal::KILL);
    }

    /// Its node lost it, if it ran.
    pub(crate) fn lose(&mut self) {
        if !self.seen.is_running() {
            return;
        }
        self.signal(rustix::process::Signal::KILL);
        self.process = None;
        // its exit is none that counts
        self.runs += 1;
        self.seen.state = State::Ended(End::unknown());
    }

    /// Starts it, or says why not.
    pub(crate) async fn start(&mut self, place: &Place<'_>) {
        let Place { world, pod, voice, .. } = place;
        match self.try_start(place).await {
            Ok(()) => {
                world.record.add(Deed::Started {
                    namespace: pod.namespace().unwrap_or_default(),
                    pod: pod.name_any(),
                    container: self.seen.name.clone(),
                });
                let created = format!("Created container: {}", self.seen.name);
                world.say(voice, *pod, Kind::Normal, "Created", &created).await;
                let started = format!("Started container {}", self.seen.name);
                world.say(voice, *pod, Kind::Normal, "Started", &started).await;
            }
            Err(Refusal::Waiting { reason, message }) => self.wait(place, reason, message).await,
            Err(Refusal::Failed(message)) => {
                let error = format!("Error: {message}");
                world.say(voice, *pod, Kind::Warning, "Failed", &error).await;
                self.seen.state = State::Ended(End {
                    code: 128,
                    reason: "StartError".to_owned(),
                    message: Some(message),
                    began: Some(Timestamp::UNIX_EPOCH),
                    ended: Timestamp::now(),
                });
            }
        }
    }

    async fn wait(&mut self, place: &Place<'_>, reason: &'static str, message: String) {
        let Place { world, pod, voice, .. } = place;
        self.due = Instant::now() + RETRY;
        let State::Waiting { reason: before, .. } = &self.seen.state else { return };
        let pulled_before = matches!(before.as_str(), "ErrImagePull" | "ImagePullBackOff");
        let image = &self.seen.image;
        let (reason, event, message) = match reason {
            "ErrImagePull" if pulled_before => {
                let message = format!("Back-off pulling image \"{image}\"");
                ("ImagePullBackOff", ("BackOff", message.clone()), message)
            }
            "ErrImagePull" => {
                let said = format!("Failed to pull image \"{image}\": {message}");
                (reason, ("Failed", said), message)
            }
            _ => (reason, ("Failed", format!("Error: {message}")), message),
        };
        if before == reason {
            return;
        }
        world.say(voice, *pod, Kind::Warning, event.0, &event.1).await;
        if event.0 == "Failed" && reason == "ErrImagePull" {
            world.say(voice, *pod, Kind::Warning, "Failed", "Error: ErrImagePull").await;
        }
        self.seen.state = State::Waiting { reason: reason.to_owned(), message: Some(message) };
    }

    async fn try_start(&mut self, place: &Place<'_>) -> Result<(), Refusal> {
        let Place { world, pod, exits, .. } = place;
        let name = &self.seen.image;
        let image = world.options.image_named(name).ok_or_else(|| Refusal::Waiting {
            reason: "ErrImagePull",
            message: format!("failed to pull and unpack image \"{name}\": {name}: not found"),
        })?;
        let launch = self.launch(place, image).await?;
        let key = [pod.namespace().unwrap_or_default(), pod.name_any(), self.seen.name.clone()];
        let log = world.logs.begin(key, self.runs > 0);
        self.runs += 1;
        self.out_of_memory = false;
        let (run, container, exits) = (self.runs, self.seen.name.clone(), (*exits).clone());
        let exited = move |code| {
            // nobody listens once the Pod is gone
            let _gone = exits.send(Exit { container, run, code });
        };
        let started = world.processes.start(launch.command(), Arc::clone(&log), exited).await;
        self.log = Some(log);
        match started {
            Ok(Ok(process)) => {
                self.process = Some(process);
                self.seen.state = State::Running { since: Timestamp::now() };
                Ok(())
            }
            Ok(Err(why)) => Err(Refusal::Failed(why)),
            Err(_closed) => Err(Refusal::Failed("the stand-in has been stopped".to_owned())),
        }
    }

    async fn launch(&mut self, place: &Place<'_>, image: &Image) -> Result<Launch, Refusal> {
        let Place { world, pod, volumes, .. } = place;
        let config =
            |message: String| Refusal::Waiting { reason: "CreateContainerConfigError", message };
        let namespace = pod.namespace().unwrap_or_default();
        let sources = Sources::read(world, &namespace, &self.spec).await;
        let sources = sources.map_err(|error| config(error.to_string()))?;
        let variables = env::environment(pod, &self.spec, image, &sources).map_err(config)?;
        let who = identity::who(pod, &self.spec, image).map_err(config)?;
        let argv = env::argv(&self.spec, image, &variables);
        if argv.is_empty() {
            return Err(Refusal::Failed("no command specified".to_owned()));
        }
        let mut binds = volumes::binds(&self.spec, volumes, &variables).map_err(config)?;
        for (at, host) in &image.files {
            binds.push(Bind { host: host.clone(), at: at.clone(), read_only: true });
        }
        let own = world.disk.pod(&pod.uid().unwrap_or_default()).join("containers");
        let own = own.join(&self.seen.name).join(self.runs.to_string());
        let scratch = own.join("root");
        self.message = own.join("termination-log");
        std::fs::create_dir_all(&scratch)
            .and_then(|()| std::fs::write(&self.message, ""))
            .and_then(|()| {
                std::fs::set_permissions(&self.message, PermissionsExt::from_mode(0o666))
            })
            .map_err(|error| Refusal::Failed(error.to_string()))?;
        let at = self.spec.termination_message_path.clone();
        binds.push(Bind {
            host: self.message.clone(),
            at: at.unwrap_or_else(|| "/dev/termination-log".to_owned()),
            read_only: false,
        });
        let context = self.spec.security_context.as_ref();
        Ok(Launch {
            scratch,
            binds,
            read_only_root: context.and_then(|context| context.read_only_root_filesystem)
                == Some(true),
            directory: self.spec.working_dir.clone().unwrap_or_else(|| "/".to_owned()),
            env: variables.all(&pod.name_any(), who.user),
            who,
            argv,
        })
    }

    /// Its process has ended. Whether this is news.
    pub(crate) fn exited(&mut self, exit: &Exit, world: &World, pod: &Pod) -> bool {
        if exit.run != self.runs {
            return false;
        }
        let began = match self.seen.state {
            State::Running { since } => since,
            State::Waiting { .. } | State::Ended(_) => return false,
        };
        self.process = None;
        let reason = match exit.code {
            _ if self.out_of_memory => "OOMKilled",
            0 => "Completed",
            _ => "Error",
        };
        self.seen.state = State::Ended(End {
            code: exit.code,
            reason: reason.to_owned(),
            message: self.message(exit.code),
            began: Some(began),
            ended: Timestamp::now(),
        });
        world.record.add(Deed::Exited {
            namespace: pod.namespace().unwrap_or_default(),
            pod: pod.name_any(),
            container: self.seen.name.clone(),
            code: exit.code,
        });
        true
    }

    /// What it wrote to its termination message, or else, if it asks for that, the log's end.
    fn message(&self, code: i32) -> Option<String> {
        let bytes = std::fs::read(&self.message).unwrap_or_default();
        let from = bytes.len().saturating_sub(MESSAGE);
        let message = String::from_utf8_lossy(&bytes[from..]).into_owned();
        if !message.is_empty() {
            return Some(message);
        }
        let policy = self.spec.termination_message_policy.as_deref();
        if policy != Some("FallbackToLogsOnError") || code == 0 {
            return None;
        }
        let (lines, most) = FROM_LOG;
        let (text, _) = self.log.as_ref()?.read(&Part { tail: Some(lines), ..Part::default() });
        let from = text.len().saturating_sub(most);
        Some(String::from_utf8_lossy(&text[from..]).into_owned())
    }

    /// Lets it run again if its Pod's policy says so.
    pub(crate) fn restart(&mut self, policy: &str) {
        let Some(end) = self.seen.end() else { return };
        if policy == "Never" || (policy == "OnFailure" && end.code == 0) {
            return;
        }
        let (first, most) = BACKOFF;
        let doubled = first.saturating_mul(1 << self.seen.restarts.min(8));
        // the first time at once, as the kubelet
        let pause = if self.seen.restarts == 0 { Duration::ZERO } else { doubled.min(most) };
        self.due = Instant::now() + pause;
        self.seen.last = Some(end.clone());
        self.seen.restarts += 1;
        let message = format!("back-off {}s restarting failed container", pause.as_secs());
        self.seen.state =
            State::Waiting { reason: "CrashLoopBackOff".to_owned(), message: Some(message) };
    }
}
