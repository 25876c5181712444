//! Events as Kubernetes' own parts emit them: one object for all repetitions, with a count.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Resource};
use serde_json::json;
use tokio::sync::Mutex;

/// Who says so.
#[derive(Debug, Clone)]
pub(crate) struct Voice {
    pub(crate) component: String,
    pub(crate) host: Option<String>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Normal,
    Warning,
}

/// What was said so far.
pub(crate) struct Events {
    client: Client,
    serial: AtomicU64,
    // held across the request, so that repetitions are counted in order
    said: Mutex<HashMap<[String; 4], (String, i32)>>,
}

impl Events {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, serial: AtomicU64::new(0), said: Mutex::default() }
    }

    /// Says something about an object.
    pub(crate) async fn say<K: Resource<DynamicType = ()>>(
        &self,
        voice: &Voice,
        about: &K,
        kind: Kind,
        reason: &str,
        message: &str,
    ) -> kube::Result<()> {
        let about = about.object_ref(&());
        let namespace = about.namespace.as_deref().unwrap_or("default");
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let key = [
            about.uid.clone().unwrap_or_default(),
            reason.to_owned(),
            message.to_owned(),
            voice.component.clone(),
        ];
        let mut said = self.said.lock().await;
        if let Some((name, count)) = said.get_mut(&key) {
            *count += 1;
            let again = json!({ "count": *count, "lastTimestamp": Time(Timestamp::now()) });
            api.patch(name, &PatchParams::default(), &Patch::Merge(&again)).await?;
            return Ok(());
        }
        let event = self.event(namespace, voice, about.clone(), kind, reason, message);
        let name = event.metadata.name.clone().unwrap_or_default();
        api.create(&PostParams::default(), &event).await?;
        said.insert(key, (name, 1));
        Ok(())
    }

    /// Says it unless it was said before.
    pub(crate) async fn say_once<K: Resource<DynamicType = ()>>(
        &self,
        voice: &Voice,
        about: &K,
        reason: &str,
        message: &str,
    ) -> kube::Result<bool> {
        let uid = about.meta().uid.clone().unwrap_or_default();
        let key = [uid, reason.to_owned(), message.to_owned(), voice.component.clone()];
        if self.said.lock().await.contains_key(&key) {
            return Ok(false);
        }
        self.say(voice, about, Kind::Normal, reason, message).await?;
        Ok(true)
    }

    fn event(
        &self,
        namespace: &str,
        voice: &Voice,
        about: ObjectReference,
        kind: Kind,
        reason: &str,
        message: &str,
    ) -> Event {
        let now = Timestamp::now();
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let name = format!(
            "{}.{:x}{serial:04x}",
            about.name.as_deref().unwrap_or_default(),
            now.as_microsecond(),
        );
        Event {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: about,
            type_: Some(format!("{kind:?}")),
            reason: Some(reason.to_owned()),
            // the API server's limit for a message
            message: Some(message.chars().take(1000).collect()),
            count: Some(1),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            source: Some(EventSource {
                component: Some(voice.component.clone()),
                host: voice.host.clone(),
            }),
            reporting_component: Some(voice.component.clone()),
            reporting_instance: voice.host.clone(),
            ..Event::default()
        }
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}
