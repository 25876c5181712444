//! Events, each told once: its name is a digest of what it tells, so that the API server refuses to
//! take it twice, also from another replica or after a restart.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::{Client, Resource, ResourceExt};
use sha2::{Digest, Sha256};

use super::decide::Notice;
use crate::handoff::shortened;
use crate::keys::hex;
use crate::lock::lock;

/// The name that events come from.
const COMPONENT: &str = "ossvp";
/// API servers keep events for an hour. What lasts longer is told again then, so that `kubectl
/// describe` shows it.
const TELL_AGAIN: Duration = Duration::from_secs(61 * 60);
/// What happened once is not told when its event may be gone already.
const LATELY: Duration = Duration::from_secs(50 * 60);
/// The most bytes of a message, before the `…` of one that is cut: the API server refuses 1,025.
const LONGEST: usize = 1021;
/// Names remembered before the old ones are looked through.
const REMEMBERED: usize = 10_000;

pub(super) struct Recorder {
    client: Client,
    instance: String,
    told: Mutex<HashMap<String, Instant>>,
}

impl Recorder {
    pub(super) fn new(client: Client, instance: String) -> Self {
        Self { client, instance, told: Mutex::default() }
    }

    /// Tells `notice` about `object`, unless that was done. An event that cannot be written is no
    /// reason to hold anything up.
    pub(super) async fn tell<K>(&self, notice: &Notice, object: &K)
    where
        K: Resource<DynamicType = ()>,
    {
        let now = Timestamp::now();
        if notice.happened.is_some_and(|then| now.duration_since(then).unsigned_abs() > LATELY) {
            return;
        }
        let about = object.object_ref(&());
        let name = name(&about, notice);
        let lasts = notice.happened.is_none();
        {
            let told = lock(&self.told);
            if told.get(&name).is_some_and(|then| !lasts || then.elapsed() < TELL_AGAIN) {
                return;
            }
        }
        let namespace = object.namespace().unwrap_or_default();
        let event = event(name.clone(), about, notice, now, &self.instance);
        let api = Api::<Event>::namespaced(self.client.clone(), &namespace);
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => {
                tracing::info!(
                    namespace,
                    name = object.name_any(),
                    reason = notice.reason,
                    message = notice.message,
                    "event"
                );
            }
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            Err(error) => {
                tracing::warn!(%error, namespace, reason = notice.reason, "an event cannot be written");
                return;
            }
        }
        let mut told = lock(&self.told);
        if told.len() > REMEMBERED {
            told.retain(|_, then| then.elapsed() < TELL_AGAIN);
        }
        told.insert(name, Instant::now());
    }
}

/// The same for the same notice about the same object, and no other.
fn name(about: &ObjectReference, notice: &Notice) -> String {
    let uid = about.uid.as_deref().unwrap_or_default();
    let digest = Sha256::digest([uid, notice.reason, &notice.key].join("\n"));
    let digest = hex(&digest[..8]);
    // an object's name has up to 253 characters, as an event's has
    let mut name = about.name.clone().unwrap_or_default();
    name.truncate(name.floor_char_boundary(200));
    format!("{}.{digest}", name.trim_end_matches(['.', '-']))
}

fn event(
    name: String,
    about: ObjectReference,
    notice: &Notice,
    now: Timestamp,
    instance: &str,
) -> Event {
    Event {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: about.namespace.clone(),
            ..ObjectMeta::default()
        },
        involved_object: about,
        type_: Some(if notice.warning { "Warning" } else { "Normal" }.to_owned()),
        reason: Some(notice.reason.to_owned()),
        message: Some(shortened(&notice.message, LONGEST)),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        source: Some(EventSource { component: Some(COMPONENT.to_owned()), host: None }),
        reporting_component: Some(COMPONENT.to_owned()),
        reporting_instance: Some(instance.to_owned()),
        ..Event::default()
    }
}
