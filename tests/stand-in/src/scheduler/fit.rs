//! Whether a Pod may run on a node. Pure.

use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume, Pod, Taint,
    Toleration,
};
use kube::ResourceExt;

/// Why not, in the scheduler's words after the number of nodes. A lost node has the taint already
/// that the node lifecycle controller gives it some seconds later.
pub(crate) fn refusal(
    pod: &Pod,
    volumes: &[&PersistentVolume],
    node: &Node,
    lost: bool,
) -> Option<String> {
    let spec = node.spec.as_ref();
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref());
    let tolerations = tolerations.unwrap_or_default();
    if spec.and_then(|spec| spec.unschedulable) == Some(true) {
        let cordon = taint("node.kubernetes.io/unschedulable");
        if !tolerations.iter().any(|toleration| tolerates(toleration, &cordon)) {
            return Some("node(s) were unschedulable".to_owned());
        }
    }
    let taints = spec.and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let unreachable = lost.then(|| taint("node.kubernetes.io/unreachable"));
    for taint in
        taints.iter().chain(&unreachable).filter(|taint| taint.effect != "PreferNoSchedule")
    {
        if !tolerations.iter().any(|toleration| tolerates(toleration, taint)) {
            let value = taint.value.as_deref().unwrap_or_default();
            return Some(format!("node(s) had untolerated taint {{{}: {value}}}", taint.key));
        }
    }
    if !wants(pod, node) {
        return Some("node(s) didn't match Pod's node affinity/selector".to_owned());
    }
    if !volumes.iter().all(|volume| reaches(volume, node)) {
        return Some("node(s) didn't match PersistentVolume's node affinity".to_owned());
    }
    None
}

fn taint(key: &str) -> Taint {
    Taint { key: key.to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() }
}

/// Whether a volume can be mounted on a node.
pub(crate) fn reaches(volume: &PersistentVolume, node: &Node) -> bool {
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
    affinity
        .and_then(|affinity| affinity.required.as_ref())
        .is_none_or(|selector| selects(selector, node))
}

/// The Pod's nodeSelector and required node affinity.
fn wants(pod: &Pod, node: &Node) -> bool {
    let Some(spec) = pod.spec.as_ref() else { return true };
    let labels = node.labels();
    let selector = spec.node_selector.iter().flatten();
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    selector.into_iter().all(|(key, value)| labels.get(key) == Some(value))
        && affinity
            .and_then(|affinity| {
                affinity.required_during_scheduling_ignored_during_execution.as_ref()
            })
            .is_none_or(|selector| selects(selector, node))
}

/// Terms are alternatives; an empty one selects nothing.
fn selects(selector: &NodeSelector, node: &Node) -> bool {
    selector.node_selector_terms.iter().any(|term| {
        let NodeSelectorTerm { match_expressions, match_fields } = term;
        let expressions = match_expressions.as_deref().unwrap_or_default();
        let fields = match_fields.as_deref().unwrap_or_default();
        let name = node.name_any();
        (!expressions.is_empty() || !fields.is_empty())
            && expressions.iter().all(|requirement| {
                let value = node.labels().get(&requirement.key).map(String::as_str);
                meets(requirement, value)
            })
            && fields.iter().all(|requirement| {
                requirement.key == "metadata.name" && meets(requirement, Some(&name))
            })
    })
}

fn meets(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let among = |value: &str| values.iter().any(|one| one == value);
    let than =
        || -> Option<(i64, i64)> { Some((value?.parse().ok()?, values.first()?.parse().ok()?)) };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(among),
        "NotIn" => !value.is_some_and(among),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => than().is_some_and(|(value, limit)| value > limit),
        "Lt" => than().is_some_and(|(value, limit)| value < limit),
        _ => false,
    }
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let key = toleration.key.as_deref().unwrap_or_default();
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let exists = toleration.operator.as_deref() == Some("Exists");
    let value = |of: &Option<String>| of.clone().unwrap_or_default();
    (effect.is_empty() || effect == taint.effect)
        && (key == taint.key || (key.is_empty() && exists))
        && (exists || value(&toleration.value) == value(&taint.value))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    fn node() -> Node {
        from_value(json!({
            "metadata": { "name": "n", "labels": { "zone": "a", "cores": "8" } },
            "spec": { "taints": [
                { "key": "gpu", "value": "yes", "effect": "NoSchedule" },
                { "key": "soft", "effect": "PreferNoSchedule" },
            ] },
        }))
        .unwrap()
    }

    fn why(pod: &Value, volumes: &[&PersistentVolume]) -> Option<String> {
        let pod: Pod = from_value(json!({ "metadata": { "name": "p" }, "spec": pod })).unwrap();
        refusal(&pod, volumes, &node(), false)
    }

    fn all() -> Value {
        json!([{ "operator": "Exists" }])
    }

    #[test]
    fn a_taint_needs_a_toleration_of_its_key_value_and_effect() {
        let refused = Some("node(s) had untolerated taint {gpu: yes}".to_owned());
        let cases = [
            (json!([]), false),
            (all(), true),
            (json!([{ "key": "gpu", "operator": "Exists" }]), true),
            (json!([{ "key": "gpu", "value": "yes" }]), true),
            (json!([{ "key": "gpu", "value": "no" }]), false),
            (json!([{ "key": "gpu", "value": "yes", "effect": "NoExecute" }]), false),
            (json!([{ "key": "other", "operator": "Exists" }]), false),
        ];
        for (tolerations, fits) in cases {
            let got = why(&json!({ "tolerations": tolerations, "containers": [] }), &[]);
            assert_eq!(got, if fits { None } else { refused.clone() }, "{tolerations}");
        }
    }

    #[test]
    fn selectors_and_required_affinity_are_all_to_be_met() {
        let term = |key: &str, operator: &str, values: Value| json!({ "matchExpressions": [{ "key": key, "operator": operator, "values": values }] });
        let named = json!({ "matchFields": [
            { "key": "metadata.name", "operator": "In", "values": ["n"] },
        ] });
        let cases = [
            (vec![term("zone", "In", json!(["a", "b"]))], true),
            (vec![term("zone", "In", json!(["b"]))], false),
            (vec![term("zone", "In", json!(["b"])), term("zone", "Exists", json!([]))], true),
            (vec![term("zone", "NotIn", json!(["b"]))], true),
            (vec![term("rack", "NotIn", json!(["b"]))], true),
            (vec![term("rack", "DoesNotExist", json!([]))], true),
            (vec![term("cores", "Gt", json!(["4"]))], true),
            (vec![term("cores", "Lt", json!(["8"]))], false),
            (vec![named], true),
            (vec![json!({})], false),
        ];
        for (terms, fits) in cases {
            let affinity = json!({ "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": terms },
            } });
            let pod = json!({ "affinity": affinity, "tolerations": all(), "containers": [] });
            assert_eq!(why(&pod, &[]).is_none(), fits, "{terms:?}");
        }
        let pod =
            json!({ "nodeSelector": { "zone": "b" }, "tolerations": all(), "containers": [] });
        assert!(why(&pod, &[]).unwrap().contains("node affinity/selector"));
    }

    #[test]
    fn a_volume_is_used_where_it_can_be_reached() {
        let volume = |zone: &str| -> PersistentVolume {
            from_value(json!({ "metadata": {}, "spec": { "nodeAffinity": { "required": {
                "nodeSelectorTerms": [{ "matchExpressions": [
                    { "key": "zone", "operator": "In", "values": [zone] },
                ] }],
            } } } }))
            .unwrap()
        };
        let pod = json!({ "tolerations": all(), "containers": [] });
        assert_eq!(why(&pod, &[&volume("a"), &PersistentVolume::default()]), None);
        let refused = why(&pod, &[&volume("a"), &volume("b")]).unwrap();
        assert_eq!(refused, "node(s) didn't match PersistentVolume's node affinity");
    }
}
