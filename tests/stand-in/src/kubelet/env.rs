//! A container's environment and command, as its Pod words them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, EnvVarSource, Pod, Secret};
use kube::ResourceExt;

use crate::options::Image;
use crate::world::World;

/// The Secrets and ConfigMaps that a Pod may refer to, as far as they exist.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    pub(crate) secrets: BTreeMap<String, Secret>,
    pub(crate) config_maps: BTreeMap<String, ConfigMap>,
}

impl Sources {
    /// Reads what a container's environment refers to.
    pub(crate) async fn read(
        world: &World,
        namespace: &str,
        container: &Container,
    ) -> kube::Result<Self> {
        let (mut secrets, mut config_maps) = (BTreeSet::new(), BTreeSet::new());
        for from in container.env_from.iter().flatten() {
            secrets.extend(from.secret_ref.iter().map(|source| &source.name));
            config_maps.extend(from.config_map_ref.iter().map(|source| &source.name));
        }
        for from in container.env.iter().flatten().filter_map(|var| var.value_from.as_ref()) {
            secrets.extend(from.secret_key_ref.iter().map(|source| &source.name));
            config_maps.extend(from.config_map_key_ref.iter().map(|source| &source.name));
        }
        let mut sources = Self::default();
        for name in secrets {
            if let Some(secret) = world.namespaced(namespace).get_opt(name).await? {
                sources.secrets.insert(name.clone(), secret);
            }
        }
        for name in config_maps {
            if let Some(map) = world.namespaced(namespace).get_opt(name).await? {
                sources.config_maps.insert(name.clone(), map);
            }
        }
        Ok(sources)
    }

    fn secret(&self, name: &str, optional: Option<bool>) -> Result<Option<&Secret>, String> {
        match self.secrets.get(name) {
            None if optional != Some(true) => Err(format!("secret \"{name}\" not found")),
            found => Ok(found),
        }
    }

    fn config_map(&self, name: &str, optional: Option<bool>) -> Result<Option<&ConfigMap>, String> {
        match self.config_maps.get(name) {
            None if optional != Some(true) => Err(format!("configmap \"{name}\" not found")),
            found => Ok(found),
        }
    }
}

/// The variables in the order in which they came to be, image first; a later one replaces an
/// earlier one. An error is what the kubelet shows as `CreateContainerConfigError`.
pub(crate) fn environment(
    pod: &Pod,
    container: &Container,
    image: &Image,
    sources: &Sources,
) -> Result<Variables, String> {
    let mut variables = Variables::default();
    for (name, value) in &image.env {
        variables.image.push((name.clone(), value.clone()));
    }
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(source) = &from.secret_ref {
            let secret = sources.secret(&source.name, source.optional)?;
            for (key, value) in secret.and_then(|secret| secret.data.as_ref()).into_iter().flatten()
            {
                let value = String::from_utf8_lossy(&value.0).into_owned();
                variables.set(format!("{prefix}{key}"), value);
            }
        }
        if let Some(source) = &from.config_map_ref {
            let map = sources.config_map(&source.name, source.optional)?;
            for (key, value) in map.and_then(|map| map.data.as_ref()).into_iter().flatten() {
                variables.set(format!("{prefix}{key}"), value.clone());
            }
        }
    }
    for EnvVar { name, value, value_from } in container.env.iter().flatten() {
        let value = match value_from {
            Some(from) => referred(pod, from, sources)?,
            None => Some(variables.expand(value.as_deref().unwrap_or_default())),
        };
        if let Some(value) = value {
            variables.set(name.clone(), value);
        }
    }
    Ok(variables)
}

/// `None` for an optional one that is not there.
fn referred(pod: &Pod, from: &EnvVarSource, sources: &Sources) -> Result<Option<String>, String> {
    let namespace = pod.namespace().unwrap_or_default();
    if let Some(source) = &from.secret_key_ref {
        let secret = sources.secret(&source.name, source.optional)?;
        let value = secret.and_then(|secret| secret.data.as_ref()?.get(&source.key));
        return match value {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None if source.optional == Some(true) => Ok(None),
            None => Err(format!(
                "couldn't find key {} in Secret {namespace}/{}",
                source.key, source.name
            )),
        };
    }
    if let Some(source) = &from.config_map_key_ref {
        let map = sources.config_map(&source.name, source.optional)?;
        let value = map.and_then(|map| map.data.as_ref()?.get(&source.key));
        return match value {
            Some(value) => Ok(Some(value.clone())),
            None if source.optional == Some(true) => Ok(None),
            None => Err(format!(
                "couldn't find key {} in ConfigMap {namespace}/{}",
                source.key, source.name
            )),
        };
    }
    match &from.field_ref {
        Some(source) => field(pod, &source.field_path).map(Some),
        None => Err("the stand-in reads no such source of a variable".to_owned()),
    }
}

/// What the downward API gives for a path.
pub(crate) fn field(pod: &Pod, path: &str) -> Result<String, String> {
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    let address = || crate::kubelet::ADDRESS.to_owned();
    if let Some((map, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) {
        let map = match map {
            "metadata.labels" => pod.labels(),
            "metadata.annotations" => pod.annotations(),
            _ => return Err(format!("unsupported fieldPath: {path}")),
        };
        return Ok(map.get(key).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => pod.name_any(),
        "metadata.namespace" => pod.namespace().unwrap_or_default(),
        "metadata.uid" => pod.uid().unwrap_or_default(),
        "metadata.labels" => listed(pod.labels()),
        "metadata.annotations" => listed(pod.annotations()),
        "spec.nodeName" => spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => {
            spec.and_then(|spec| spec.service_account_name.clone()).unwrap_or_default()
        }
        "status.hostIP" | "status.hostIPs" => {
            status.and_then(|status| status.host_ip.clone()).unwrap_or_else(address)
        }
        "status.podIP" | "status.podIPs" => {
            status.and_then(|status| status.pod_ip.clone()).unwrap_or_else(address)
        }
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

fn listed(map: &BTreeMap<String, String>) -> String {
    let mut text = String::new();
    for (key, value) in map {
        // writing to a String cannot fail
        let _infallible = writeln!(text, "{key}={value:?}");
    }
    text
}

/// A container's variables, each once.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Variables {
    /// Not seen by `$(NAME)`.
    image: Vec<(String, String)>,
    set: Vec<(String, String)>,
}

impl Variables {
    fn set(&mut self, name: String, value: String) {
        self.set.retain(|(other, _)| *other != name);
        self.set.push((name, value));
    }

    /// Replaces each `$(NAME)` that is known; `$$` stands for one dollar.
    pub(crate) fn expand(&self, text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            rest = &rest[at..];
            if let Some(after) = rest.strip_prefix("$$") {
                out.push('$');
                rest = after;
                continue;
            }
            let name = rest.strip_prefix("$(").and_then(|inner| inner.split_once(')'));
            if let Some((name, after)) = name {
                match self.set.iter().find(|(other, _)| other == name) {
                    Some((_, value)) => out.push_str(value),
                    None => out.push_str(&rest[..rest.len() - after.len()]),
                }
                rest = after;
            } else {
                out.push('$');
                rest = &rest[1..];
            }
        }
        out + rest
    }

    /// All of them, with what a container has anyway.
    pub(crate) fn all(&self, hostname: &str, user: u32) -> Vec<(String, String)> {
        let home = if user == 0 { "/root" } else { "/" };
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let given = [("PATH", path), ("HOSTNAME", hostname), ("HOME", home)];
        let given = given.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut all: BTreeMap<_, _> = given.into_iter().collect();
        all.extend(self.image.iter().cloned());
        all.extend(self.set.iter().cloned());
        all.into_iter().collect()
    }
}

/// The program and its arguments: the Pod's command instead of the image's entry point, the Pod's
/// arguments instead of the image's.
pub(crate) fn argv(container: &Container, image: &Image, variables: &Variables) -> Vec<String> {
    let given = |words: &Option<Vec<String>>| words.clone().filter(|words| !words.is_empty());
    let expand = |words: Vec<String>| words.iter().map(|word| variables.expand(word)).collect();
    let (command, args) = (given(&container.command), given(&container.args));
    let defaults = if command.is_none() && args.is_none() { image.command.as_slice() } else { &[] };
    let mut argv: Vec<String> = command.map_or_else(|| image.entrypoint.clone(), expand);
    argv.extend(args.map_or_else(|| defaults.to_vec(), expand));
    argv
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    fn sources() -> Sources {
        let secret = json!({ "metadata": {}, "data": { "id": "aWQ=", "key": "a2V5" } });
        let map = json!({ "metadata": {}, "data": { "mode": "fast" } });
        Sources {
            secrets: BTreeMap::from([("creds".to_owned(), from_value(secret).unwrap())]),
            config_maps: BTreeMap::from([("conf".to_owned(), from_value(map).unwrap())]),
        }
    }

    fn pod() -> Pod {
        from_value(json!({
            "metadata": {
                "name": "p", "namespace": "ns",
                "annotations": { "batch.kubernetes.io/job-completion-index": "3" },
            },
            "spec": { "nodeName": "n", "containers": [] },
        }))
        .unwrap()
    }

    fn env(container: Value) -> Result<Vec<(String, String)>, String> {
        let mut container: Container = from_value(container).unwrap();
        container.name = "c".to_owned();
        environment(&pod(), &container, &Image::shell(), &sources()).map(|variables| variables.set)
    }

    #[test]
    fn variables_come_from_where_the_container_says() {
        let index = "metadata.annotations['batch.kubernetes.io/job-completion-index']";
        let got = env(json!({ "name": "c",
            "envFrom": [
                { "prefix": "S_", "secretRef": { "name": "creds" } },
                { "configMapRef": { "name": "conf" } },
                { "configMapRef": { "name": "none", "optional": true } },
            ],
            "env": [
                { "name": "INDEX", "valueFrom": { "fieldRef": { "fieldPath": index } } },
                { "name": "ID", "valueFrom": { "secretKeyRef": { "name": "creds", "key": "id" } } },
                { "name": "NO", "valueFrom": {
                    "secretKeyRef": { "name": "creds", "key": "none", "optional": true },
                } },
                { "name": "mode", "value": "$(mode)/$(ID)/$(unknown)/$$(ID)/$x" },
            ],
        }))
        .unwrap();
        let got: Vec<_> = got.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let expected = [
            ("S_id", "id"),
            ("S_key", "key"),
            ("INDEX", "3"),
            ("ID", "id"),
            ("mode", "fast/id/$(unknown)/$(ID)/$x"),
        ];
        assert_eq!(got, expected);
    }

    #[test]
    fn what_is_missing_is_named_as_the_kubelet_names_it() {
        let secret = |name: &str, key: &str| {
            json!({ "name": "c", "env": [
                { "name": "V", "valueFrom": { "secretKeyRef": { "name": name, "key": key } } },
            ] })
        };
        let map = json!({ "name": "c", "envFrom": [{ "configMapRef": { "name": "none" } }] });
        let cases = [
            (secret("none", "id"), "secret \"none\" not found"),
            (secret("creds", "none"), "couldn't find key none in Secret ns/creds"),
            (map, "configmap \"none\" not found"),
        ];
        for (container, expected) in cases {
            assert_eq!(env(container).unwrap_err(), expected);
        }
    }

    #[test]
    fn the_pods_words_replace_the_images() {
        let image = Image::program("/host/ossvp");
        let shell = Image::shell();
        let mut variables = Variables::default();
        variables.set("A".to_owned(), "1 2".to_owned());
        let run = |container: Value, image: &Image| {
            argv(&from_value(container).unwrap(), image, &variables)
        };
        let cases = [
            (json!({ "name": "c" }), &image, vec!["/ossvp"]),
            (json!({ "name": "c" }), &shell, vec!["/bin/sh"]),
            (json!({ "name": "c", "args": ["-v", "$(A)"] }), &image, vec!["/ossvp", "-v", "1 2"]),
            (json!({ "name": "c", "command": ["x", "$(B)"] }), &image, vec!["x", "$(B)"]),
            (json!({ "name": "c", "command": ["x"], "args": ["y"] }), &shell, vec!["x", "y"]),
        ];
        for (container, image, expected) in cases {
            assert_eq!(run(container.clone(), image), expected, "{container}");
        }
    }

    #[test]
    fn maps_are_listed_one_a_line() {
        let text = field(&pod(), "metadata.annotations").unwrap();
        assert_eq!(text, "batch.kubernetes.io/job-completion-index=\"3\"\n");
        assert!(field(&pod(), "spec.containers").is_err());
    }
}
