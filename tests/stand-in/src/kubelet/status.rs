//! From what is known of a Pod's containers to the status that a kubelet writes. Pure.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    Waiting { reason: String, message: Option<String> },
    Running { since: Timestamp },
    Ended(End),
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) code: i32,
    pub(crate) reason: String,
    pub(crate) message: Option<String>,
    /// `None` if it never began.
    pub(crate) began: Option<Timestamp>,
    pub(crate) ended: Timestamp,
}

impl End {
    /// One of which the node knows no more.
    pub(crate) fn unknown() -> Self {
        Self {
            code: 137,
            reason: "ContainerStatusUnknown".to_owned(),
            message: Some(
                "The container could not be located when the pod was terminated".to_owned(),
            ),
            began: None,
            ended: Timestamp::now(),
        }
    }
}

/// A container as its node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Container {
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) state: State,
    pub(crate) last: Option<End>,
    pub(crate) restarts: u32,
}

impl Container {
    pub(crate) fn end(&self) -> Option<&End> {
        match &self.state {
            State::Ended(end) => Some(end),
            State::Waiting { .. } | State::Running { .. } => None,
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    fn succeeded(&self) -> bool {
        self.end().is_some_and(|end| end.code == 0)
    }

    /// An id changes with each run, as a container runtime's.
    fn status(&self, pod: &str, initial: bool) -> Value {
        let id = format!("stand-in://{pod}/{}/{}", self.name, self.restarts);
        let state = match &self.state {
            State::Waiting { reason, message } => {
                json!({ "waiting": { "reason": reason, "message": message } })
            }
            State::Running { since } => json!({ "running": { "startedAt": Time(*since) } }),
            State::Ended(end) => ended(end, &id),
        };
        let ran = !matches!(self.state, State::Waiting { .. });
        json!({
            "name": self.name,
            "image": self.image,
            "imageID": if ran { self.image.as_str() } else { "" },
            "containerID": ran.then_some(&id),
            "ready": if initial { self.succeeded() } else { self.is_running() },
            "started": self.is_running(),
            "restartCount": self.restarts,
            "state": state,
            "lastState": self.last.as_ref().map_or(json!({}), |end| ended(end, &id)),
        })
    }
}

fn ended(end: &End, id: &str) -> Value {
    let End { code, reason, message, began, ended } = end;
    json!({ "terminated": {
        "exitCode": code,
        "reason": reason,
        "message": message,
        "startedAt": began.map(Time),
        "finishedAt": Time(*ended),
        "containerID": began.map(|_| id),
    } })
}

/// A Pod as its node sees it.
#[derive(Debug, Clone)]
pub(crate) struct View<'a> {
    pub(crate) uid: &'a str,
    pub(crate) restart_policy: &'a str,
    pub(crate) started: Timestamp,
    pub(crate) address: &'a str,
    /// Its volumes are ready, or were.
    pub(crate) mounted: bool,
    pub(crate) initial: Vec<&'a Container>,
    pub(crate) main: Vec<&'a Container>,
    /// The kubelet's message, if it evicts the Pod.
    pub(crate) evicted: Option<&'a str>,
    /// Nothing of it will run again.
    pub(crate) over: bool,
}

impl View<'_> {
    fn initialized(&self) -> bool {
        self.initial.iter().all(|container| container.succeeded())
    }

    /// As the kubelet derives it.
    pub(crate) fn phase(&self) -> &'static str {
        let all = || self.main.iter().chain(&self.initial);
        if (self.evicted.is_some() || self.over) && !all().any(|container| container.is_running()) {
            let failed = self.evicted.is_some() || !self.main.iter().all(|one| one.succeeded());
            return if failed { "Failed" } else { "Succeeded" };
        }
        let never = self.restart_policy == "Never";
        if !self.initialized() {
            let failed = |one: &&Container| one.end().is_some_and(|end| end.code != 0);
            let broken = self.initial.iter().any(failed);
            return if broken && never { "Failed" } else { "Pending" };
        }
        let waits =
            |one: &Container| matches!(one.state, State::Waiting { .. }) && one.last.is_none();
        if self.main.iter().any(|one| waits(one)) {
            return "Pending";
        }
        if self.restart_policy == "Always" || self.main.iter().any(|one| one.end().is_none()) {
            return "Running";
        }
        match (self.main.iter().all(|one| one.succeeded()), never) {
            (true, _) => "Succeeded",
            (false, true) => "Failed",
            (false, false) => "Running",
        }
    }

    /// The status as a strategic merge patch; `since` remembers when conditions last changed.
    pub(crate) fn status(&self, since: &mut Since) -> Value {
        let phase = self.phase();
        let ready = phase == "Running" && self.main.iter().all(|one| one.is_running());
        let why = match phase {
            "Succeeded" => Some(("PodCompleted", None)),
            "Failed" => Some(("PodFailed", None)),
            _ if ready => None,
            _ => {
                let unready = self.main.iter().filter(|one| !one.is_running());
                let names: Vec<_> = unready.map(|one| one.name.as_str()).collect();
                let message = format!("containers with unready status: [{}]", names.join(" "));
                Some(("ContainersNotReady", Some(message)))
            }
        };
        let over = matches!(phase, "Succeeded" | "Failed");
        let mut conditions = vec![
            since.condition("PodReadyToStartContainers", self.mounted && !over, None),
            since.condition("Initialized", self.initialized(), None),
            since.condition("Ready", ready, why.clone()),
            since.condition("ContainersReady", ready, why),
        ];
        if let Some(message) = self.evicted {
            let why = Some(("TerminationByKubelet", Some(message.to_owned())));
            conditions.push(since.condition("DisruptionTarget", true, why));
        }
        let list = |containers: &[&Container], initial| -> Vec<Value> {
            containers.iter().map(|one| one.status(self.uid, initial)).collect()
        };
        json!({ "status": {
            "phase": phase,
            "reason": self.evicted.map(|_| "Evicted"),
            "message": self.evicted,
            "startTime": Time(self.started),
            "hostIP": self.address,
            "hostIPs": [{ "ip": self.address }],
            "podIP": self.address,
            "podIPs": [{ "ip": self.address }],
            "conditions": conditions,
            "initContainerStatuses": list(&self.initial, true),
            "containerStatuses": list(&self.main, false),
        } })
    }
}

/// Since when each condition has been what it is.
#[derive(Debug, Default)]
pub(crate) struct Since(BTreeMap<&'static str, (bool, Timestamp)>);

impl Since {
    fn condition(
        &mut self,
        kind: &'static str,
        holds: bool,
        why: Option<(&str, Option<String>)>,
    ) -> Value {
        let entry = self.0.entry(kind).or_insert_with(|| (holds, Timestamp::now()));
        if entry.0 != holds {
            *entry = (holds, Timestamp::now());
        }
        let (reason, message) = why.unzip();
        json!({
            "type": kind,
            "status": if holds { "True" } else { "False" },
            "reason": reason,
            "message": message.flatten(),
            "lastTransitionTime": Time(entry.1),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(state: State, last: Option<i32>) -> Container {
        let last = last.map(|code| End { code, ..End::unknown() });
        Container { name: "c".to_owned(), image: "i".to_owned(), state, last, restarts: 0 }
    }

    fn waiting() -> State {
        State::Waiting { reason: "ContainerCreating".to_owned(), message: None }
    }

    fn running() -> State {
        State::Running { since: Timestamp::UNIX_EPOCH }
    }

    fn ended(code: i32) -> State {
        State::Ended(End { code, ..End::unknown() })
    }

    fn view<'a>(restart_policy: &'a str, main: &'a [Container]) -> View<'a> {
        View {
            uid: "u",
            restart_policy,
            started: Timestamp::UNIX_EPOCH,
            address: "127.0.0.1",
            mounted: true,
            initial: Vec::new(),
            main: main.iter().collect(),
            evicted: None,
            over: false,
        }
    }

    #[test]
    fn the_phase_follows_from_the_containers_and_the_policy() {
        let cases = [
            ("Never", vec![waiting()], "Pending"),
            ("Never", vec![running()], "Running"),
            ("Never", vec![ended(0)], "Succeeded"),
            ("Never", vec![ended(3)], "Failed"),
            ("Never", vec![ended(3), running()], "Running"),
            ("Never", vec![ended(0), ended(3)], "Failed"),
            ("OnFailure", vec![ended(0)], "Succeeded"),
            ("OnFailure", vec![ended(3)], "Running"),
            ("Always", vec![ended(0)], "Running"),
        ];
        for (policy, states, expected) in cases {
            let all: Vec<_> = states.iter().map(|state| container(state.clone(), None)).collect();
            assert_eq!(view(policy, &all).phase(), expected, "{policy} {states:?}");
        }
        let again = [container(waiting(), Some(1))];
        assert_eq!(view("OnFailure", &again).phase(), "Running", "it waits for its next run");
        let killed = [container(waiting(), None)];
        assert_eq!(View { over: true, ..view("Never", &killed) }.phase(), "Failed");
    }

    #[test]
    fn an_initial_container_comes_first() {
        let main = [container(waiting(), None)];
        for (state, policy, expected) in [
            (running(), "Never", "Pending"),
            (ended(1), "Never", "Failed"),
            (ended(1), "OnFailure", "Pending"),
        ] {
            let initial = container(state, None);
            let view = View { initial: vec![&initial], ..view(policy, &main) };
            assert_eq!(view.phase(), expected, "{initial:?}");
        }
    }

    #[test]
    fn an_evicted_pod_says_that_it_was_the_kubelet() {
        let main = [container(ended(143), None)];
        let view = View { evicted: Some("low on disk"), ..view("Never", &main) };
        let status = view.status(&mut Since::default());
        let status = &status["status"];
        assert_eq!(status["phase"], "Failed");
        assert_eq!(status["reason"], "Evicted");
        let target = &status["conditions"][4];
        assert_eq!(target["type"], "DisruptionTarget");
        assert_eq!(target["reason"], "TerminationByKubelet");
    }

    #[test]
    fn a_condition_keeps_its_time_as_long_as_it_holds() {
        let mut since = Since::default();
        let first = since.condition("Ready", false, None);
        assert_eq!(since.condition("Ready", false, None), first);
        let changed = since.condition("Ready", true, None);
        assert_eq!(changed["status"], "True");
    }
}
