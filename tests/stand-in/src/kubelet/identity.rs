//! As whom a container's process runs. Pure.

use k8s_openapi::api::core::v1::{Container, Pod, SecurityContext};
use kube::ResourceExt;

use super::launch::Who;
use crate::options::Image;

/// What containerd leaves to a container that asks for nothing.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// An error is what the kubelet shows as `CreateContainerConfigError`.
pub(crate) fn who(pod: &Pod, container: &Container, image: &Image) -> Result<Who, String> {
    let own = container.security_context.clone().unwrap_or_default();
    let whole = pod.spec.as_ref().and_then(|spec| spec.security_context.clone());
    let whole = whole.unwrap_or_default();
    let asked = own.run_as_user.or(whole.run_as_user);
    let user = match asked {
        Some(user) => id(user)?,
        None => image.user.unwrap_or(0),
    };
    let group = match own.run_as_group.or(whole.run_as_group) {
        Some(group) => id(group)?,
        // a user that the image does not know has root's group
        None if image.user == Some(user) => user,
        None => 0,
    };
    if own.run_as_non_root.or(whole.run_as_non_root) == Some(true) && user == 0 {
        let why = match asked {
            Some(_) => "container's runAsUser breaks non-root policy",
            None => "container has runAsNonRoot and image will run as root",
        };
        return Err(format!(
            "{why} (pod: \"{}_{}({})\", container: {})",
            pod.name_any(),
            pod.namespace().unwrap_or_default(),
            pod.uid().unwrap_or_default(),
            container.name
        ));
    }
    let mut groups = Vec::new();
    for group in whole.supplemental_groups.iter().flatten().chain(&whole.fs_group) {
        groups.push(id(*group)?);
    }
    Ok(Who {
        user,
        group,
        groups,
        capabilities: capabilities(&own),
        no_new_privileges: own.allow_privilege_escalation == Some(false),
    })
}

fn capabilities(context: &SecurityContext) -> Option<Vec<String>> {
    if context.privileged == Some(true) {
        return None;
    }
    let changes = context.capabilities.clone().unwrap_or_default();
    let (drop, add) = (changes.drop.unwrap_or_default(), changes.add.unwrap_or_default());
    let all = |names: &[String]| names.iter().any(|name| name.eq_ignore_ascii_case("ALL"));
    if all(&add) {
        return None;
    }
    let bare = |name: &str| name.to_ascii_uppercase().trim_start_matches("CAP_").to_owned();
    let dropped: Vec<_> = drop.iter().map(|name| bare(name)).collect();
    let mut kept: Vec<String> = match all(&drop) {
        true => Vec::new(),
        false => DEFAULT_CAPABILITIES.map(str::to_owned).to_vec(),
    };
    kept.retain(|name| !dropped.contains(name));
    kept.extend(add.iter().map(|name| bare(name)));
    Some(kept.iter().map(|name| name.to_ascii_lowercase()).collect())
}

fn id(number: i64) -> Result<u32, String> {
    u32::try_from(number).map_err(|_| format!("{number} is no user or group"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    fn of(pod: Value, container: Value, image: &Image) -> Result<Who, String> {
        let spec = json!({ "securityContext": pod, "containers": [] });
        let pod =
            json!({ "metadata": { "name": "p", "namespace": "n", "uid": "u" }, "spec": spec });
        let container = json!({ "name": "c", "securityContext": container });
        who(&from_value(pod).unwrap(), &from_value(container).unwrap(), image)
    }

    #[test]
    fn the_container_says_more_than_the_pod_and_the_pod_more_than_the_image() {
        let image = Image::shell().user(65532);
        let ids = |pod, container| {
            let who = of(pod, container, &image).unwrap();
            (who.user, who.group)
        };
        assert_eq!(ids(json!({}), json!({})), (65532, 65532));
        assert_eq!(ids(json!({ "runAsUser": 7 }), json!({})), (7, 0));
        assert_eq!(ids(json!({ "runAsUser": 7, "runAsGroup": 8 }), json!({})), (7, 8));
        assert_eq!(ids(json!({ "runAsUser": 7 }), json!({ "runAsUser": 9 })), (9, 0));
        let who = of(json!({ "fsGroup": 5, "supplementalGroups": [6] }), json!({}), &image);
        assert_eq!(who.unwrap().groups, [6, 5]);
    }

    #[test]
    fn root_is_refused_where_it_must_not_be() {
        let pod = json!({ "runAsNonRoot": true });
        let error = of(pod.clone(), json!({}), &Image::shell()).unwrap_err();
        assert!(
            error.starts_with(
                "container has runAsNonRoot and image will run as root (pod: \"p_n(u)\""
            )
        );
        let error = of(pod.clone(), json!({ "runAsUser": 0 }), &Image::shell()).unwrap_err();
        assert!(error.starts_with("container's runAsUser breaks non-root policy"));
        assert!(of(pod, json!({}), &Image::shell().user(1)).is_ok());
    }

    #[test]
    fn capabilities_are_containerds_less_what_is_dropped() {
        let kept = |container| of(json!({}), container, &Image::shell()).unwrap().capabilities;
        assert_eq!(kept(json!({})).unwrap().len(), 14);
        assert_eq!(kept(json!({ "capabilities": { "drop": ["ALL"] } })), Some(Vec::new()));
        let some = kept(json!({ "capabilities": { "drop": ["ALL"], "add": ["CAP_CHOWN"] } }));
        assert_eq!(some, Some(vec!["chown".to_owned()]));
        assert_eq!(kept(json!({ "capabilities": { "drop": ["KILL"] } })).unwrap().len(), 13);
        assert_eq!(kept(json!({ "privileged": true })), None);
    }
}
