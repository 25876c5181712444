//! A handle on a running server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;

use crate::builder::Builder;
use crate::faults::Fault;
use crate::log::Call;
use crate::server::{Server, lock};
use crate::time::Times;
use crate::world::{Flow, Outcome, Task};

/// A running server; it stops when this is dropped.
#[derive(Debug)]
pub struct NasServer {
    server: Arc<Server>,
    address: SocketAddr,
    /// Taken by `drop`, which may run inside another runtime.
    runtime: Option<Runtime>,
}

impl Drop for NasServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl NasServer {
    pub(crate) fn new(server: Arc<Server>, address: SocketAddr, runtime: Runtime) -> Self {
        Self { server, address, runtime: Some(runtime) }
    }

    /// What a server starts with: nothing.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// `http://127.0.0.1:PORT`
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The address it listens at.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// An access key that may ask from now on, in place of any other of this id.
    pub fn allow(&self, id: &str, secret: &str, token: Option<&str>) {
        let key = (secret.to_owned(), token.map(str::to_owned));
        lock(&self.server.keys).keys.insert(id.to_owned(), key);
    }

    /// An access key that may ask no more.
    pub fn forbid(&self, id: &str) {
        lock(&self.server.keys).keys.remove(id);
    }

    /// A directory that a file system has from now on.
    pub fn directory(&self, file_system: &str, path: &str) {
        if let Some(within) = self.server.world().file_systems.get_mut(file_system) {
            within.directories.insert(path.to_owned());
        }
    }

    /// A fileset that a file system has from now on, and its directory.
    pub fn fileset(&self, file_system: &str, id: &str, path: &str) {
        if let Some(within) = self.server.world().file_systems.get_mut(file_system) {
            within.directories.insert(path.to_owned());
            within.filesets.insert(id.to_owned(), (path.to_owned(), "CREATED".to_owned()));
        }
    }

    /// Whether a file system is in the state `Running`.
    pub fn set_running(&self, file_system: &str, running: bool) {
        if let Some(within) = self.server.world().file_systems.get_mut(file_system) {
            within.running = running;
        }
    }

    /// Whether a bucket has the tag `cpfs-dataflow`.
    pub fn set_tagged(&self, bucket: &str, tagged: bool) {
        if let Some(bucket) = self.server.world().buckets.get_mut(bucket) {
            bucket.tagged = tagged;
        }
    }

    /// How long everything takes that begins from now on.
    pub fn set_times(&self, times: Times) {
        self.server.world().times = times;
    }

    /// Lets time pass.
    pub fn advance(&self, time: Duration) {
        self.server.world().clock.advance(time);
        self.server.settle();
    }

    /// What comes of the next task that is made without a word so far; again for the one after it.
    pub fn outcome(&self, outcome: Outcome) {
        self.server.world().outcomes.push_back(outcome);
    }

    /// All data flows.
    pub fn flows(&self) -> Vec<Flow> {
        self.server.settle();
        self.server.world().flows.clone()
    }

    /// All tasks, also of data flows that are gone.
    pub fn tasks(&self) -> Vec<Task> {
        self.server.settle();
        self.server.world().tasks.clone()
    }

    /// Puts a data flow into a state, known or not, in which it stays.
    pub fn set_flow(&self, id: &str, status: &str, error: Option<&str>) {
        let mut world = self.server.world();
        if let Some(flow) = world.flows.iter_mut().find(|flow| flow.id == id) {
            flow.status = status.to_owned();
            flow.error = error.map(str::to_owned);
            flow.due = None;
        }
    }

    /// Takes a data flow away, as somebody else may.
    pub fn remove_flow(&self, id: &str) {
        self.server.world().flows.retain(|flow| flow.id != id);
    }

    /// Puts a task into a state, known or not, in which it stays.
    pub fn set_task(&self, id: &str, status: &str) {
        let mut world = self.server.world();
        if let Some(task) = world.tasks.iter_mut().find(|task| task.id == id) {
            task.status = status.to_owned();
            task.due = None;
        }
    }

    /// Ends a task that executes or is about to, as this says.
    pub fn finish_task(&self, id: &str, outcome: Outcome) {
        let mut world = self.server.world();
        let now = world.clock.now();
        if let Some(task) = world.tasks.iter_mut().find(|task| task.id == id) {
            if task.status == "Pending" {
                task.status = "Executing".to_owned();
                task.since = Some(now);
            }
            task.due = None;
        }
        world.complete(id, outcome);
    }

    /// Something goes wrong with the next call of `action` that has nothing else in store.
    pub fn fault(&self, action: &str, fault: Fault) {
        lock(&self.server.faults).push(action, fault);
    }

    /// Something goes wrong with each call of `action`.
    pub fn fault_always(&self, action: &str, fault: Fault) {
        lock(&self.server.faults).set(action, fault);
    }

    /// Nothing goes wrong any more.
    pub fn clear_faults(&self) {
        lock(&self.server.faults).clear();
    }

    /// All calls so far.
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.server.calls).clone()
    }

    /// All calls of `action` so far.
    pub fn calls_of(&self, action: &str) -> Vec<Call> {
        let calls = lock(&self.server.calls);
        calls.iter().filter(|call| call.action == action).cloned().collect()
    }

    /// Forgets the calls so far.
    pub fn clear_calls(&self) {
        lock(&self.server.calls).clear();
    }
}
