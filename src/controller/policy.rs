//! What a resource may ask for. Pure: the administrator's settings and grants against one spec.

use std::net::Ipv6Addr;

use k8s_openapi::api::core::v1::Toleration;

use super::crd::{Generic, Mode, OSSVolumePopulatorSpec};
use super::settings::{Security, Settings};
use super::{build, names};

/// Why a resource cannot be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The event's reason.
    pub(crate) reason: &'static str,
    /// What is wrong and what helps.
    pub(crate) message: String,
}

impl Refusal {
    fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// What the populator namespace holds of the credentials that a resource names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    /// `secretRef`.
    Secret {
        /// Its name.
        name: String,
        /// What there is by this name.
        found: Option<SecretSeen>,
    },
    /// `rrsaConfigs`.
    Role {
        /// The role.
        arn: String,
        /// The service accounts that carry it, and the namespaces that each allows.
        grants: Vec<(String, Vec<String>)>,
    },
    /// None of the resource's own: CPFS reads the bucket, and the controller asks it to.
    Bucket {
        /// The service accounts that carry the bucket, and the namespaces that each allows.
        grants: Vec<(String, Vec<String>)>,
    },
}

/// A Secret, without its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SecretSeen {
    /// UID and resource version: another one means that it was changed.
    pub(crate) version: String,
    /// The names of its entries.
    pub(crate) keys: Vec<String>,
    /// The namespaces that its annotation allows.
    pub(crate) allowed: Vec<String>,
}

/// The names that an entry of a Secret goes by, best first: the seed's, those of Alibaba's CSI
/// drivers, and those of the tools. Case does not matter.
const ID: [&str; 4] = ["accessKeyId", "akId", "OSS_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_ID"];
const SECRET: [&str; 4] =
    ["accessKeySecret", "akSecret", "OSS_ACCESS_KEY_SECRET", "ALIBABA_CLOUD_ACCESS_KEY_SECRET"];
const TOKEN: [&str; 4] =
    ["securityToken", "stsToken", "OSS_SESSION_TOKEN", "ALIBABA_CLOUD_SECURITY_TOKEN"];

/// The entries of a Secret that make a key pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyPair {
    /// The entry with the key's id.
    pub(crate) id: String,
    /// The entry with the key's secret.
    pub(crate) secret: String,
    /// The entry with a session token, if there is one.
    pub(crate) token: Option<String>,
}

/// By whose rights the bucket is read, once it is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Access {
    /// CPFS's own, for the controller that asks it.
    Cpfs,
    /// A key pair of a Secret.
    Secret {
        /// Its name.
        name: String,
        /// Its entries.
        keys: KeyPair,
        /// [`SecretSeen::version`].
        version: String,
    },
    /// A RAM role.
    Role {
        /// The service account that the Pod runs as.
        account: String,
    },
}

impl Access {
    /// The service account that a worker runs as.
    pub(crate) fn account(&self) -> &str {
        match self {
            Self::Secret { .. } | Self::Cpfs => names::WORKER_ACCOUNT,
            Self::Role { account } => account,
        }
    }
}

/// Whether `spec`, of a resource in `namespace`, may be served, and with what.
///
/// # Errors
/// The first reason against it.
pub(crate) fn admit(
    spec: &OSSVolumePopulatorSpec,
    namespace: &str,
    credentials: Option<&Credentials>,
    settings: &Settings,
) -> Result<Access, Refusal> {
    let generic = match (spec.mode, &spec.generic) {
        (Mode::Generic, Some(generic)) => generic,
        (Mode::Generic, None) => {
            return Err(Refusal::new(
                "PopulatorInvalid",
                "generic: mode generic needs generic.secretRef or generic.rrsaConfigs",
            ));
        }
        (Mode::BmcpfsDataflow, _) => {
            prefix(&spec.path)?;
            return bucket(spec, namespace, credentials, settings);
        }
    };
    if !settings.gates.pod_handler {
        return Err(Refusal::new(
            "PopulatorModeUnsupported",
            "mode generic is switched off: the administrator must set the feature gate VolumePopulatorPodHandler",
        ));
    }
    endpoint(&spec.endpoint, &settings.endpoints)?;
    prefix(&spec.path)?;
    pod(generic, settings)?;
    build::arguments(spec, settings.worker.ca_configmap.is_some())?;
    access(namespace, credentials, settings)
}

fn endpoint(endpoint: &str, allowed: &[String]) -> Result<(), Refusal> {
    let Some((host, port)) = host_and_port(endpoint) else {
        return Err(Refusal::new(
            "PopulatorInvalid",
            "endpoint: expected a host, behind http:// or https:// or neither, and at most a port behind it",
        ));
    };
    let bare = |host: &str| host.trim_matches(['[', ']']).to_ascii_lowercase();
    let host = bare(&host);
    let matches = |pattern: &str| match pattern.strip_prefix('*') {
        Some("") => true,
        Some(domain) => domain.starts_with('.') && host.ends_with(&domain.to_ascii_lowercase()),
        None if bare(pattern) == host => true,
        None => host_and_port(pattern)
            .is_some_and(|(name, at)| bare(&name) == host && (at.is_none() || at == port)),
    };
    if matches("*.aliyuncs.com") || allowed.iter().any(|pattern| matches(pattern)) {
        return Ok(());
    }
    Err(Refusal::new(
        "PopulatorRefused",
        format!(
            "endpoint: {endpoint} is not allowed, since the worker's credentials would go there; use one of *.aliyuncs.com, or have the administrator add --allow-endpoint={host}"
        ),
    ))
}

/// An endpoint as the worker takes it, and nothing that anyone could read as another host.
fn host_and_port(endpoint: &str) -> Option<(String, Option<u16>)> {
    let rest = match endpoint.split_once("://") {
        Some(("http" | "https", rest)) => rest,
        Some(_) => return None,
        None => endpoint,
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.parse::<Ipv6Addr>().is_ok() {
        return Some((rest.to_owned(), None));
    }
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port.parse().ok()?)),
        _ => (rest, None),
    };
    let name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    let fits = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty() && !host.starts_with('.') && host.bytes().all(name),
    };
    fits.then(|| (host.to_owned(), port))
}

/// As the resource's own rule, for clusters that do not check it.
fn prefix(path: &str) -> Result<(), Refusal> {
    match path.split('/').any(|segment| segment == "..") || path.contains('\0') {
        true => Err(Refusal::new("PopulatorInvalid", "path: no segment may be '..'")),
        false => Ok(()),
    }
}

/// Keys without a domain by which a Pod gets an identity: of Azure's old Pod identity.
const WITHOUT_DOMAIN: [&str; 1] = ["aadpodidbinding"];

fn pod(generic: &Generic, settings: &Settings) -> Result<(), Refusal> {
    let refused = |message: String| Err(Refusal::new("PopulatorRefused", message));
    for (field, keys) in [("labels", &generic.labels), ("annotations", &generic.annotations)] {
        let free = |key: &str| !key.contains('/') && !WITHOUT_DOMAIN.contains(&key);
        let barred = keys.keys().find(|key| !free(key) && !settings.keys.is_match(key));
        if let Some(key) = barred {
            return refused(format!(
                "generic.{field}: {key} is not allowed, since such keys may give a Pod other rights; have the administrator add --allow-key={key}"
            ));
        }
    }
    let affinity = generic.affinity.as_ref();
    let repels = affinity.and_then(|it| it.pod_anti_affinity.as_ref());
    let attracts = affinity.and_then(|it| it.pod_affinity.as_ref());
    let required = [
        repels.and_then(|it| it.required_during_scheduling_ignored_during_execution.as_ref()),
        attracts.and_then(|it| it.required_during_scheduling_ignored_during_execution.as_ref()),
    ];
    if required.into_iter().flatten().any(|terms| !terms.is_empty()) {
        // the populator namespace is everybody's, and so are the Pods that this speaks of
        return refused(
            "generic.affinity: podAffinity and podAntiAffinity may only be preferred, since other namespaces' workers run beside this one; use nodeAffinity".to_owned(),
        );
    }
    if !settings.control_plane && generic.tolerations.iter().any(reaches_control_plane) {
        return refused(
            "generic.tolerations: one of them reaches the control plane's nodes; name the taint's key, or have the administrator add --allow-control-plane".to_owned(),
        );
    }
    if let Some(class) = &generic.priority_class_name
        && !settings.priority_classes.contains(class)
    {
        return refused(format!(
            "generic.priorityClassName: {class} is not allowed; have the administrator add --allow-priority-class={class}"
        ));
    }
    if generic.run_as_user == Some(0) && settings.worker.security == Security::Restricted {
        return refused(
            "generic.runAsUser: 0 is not allowed; have the administrator set --worker-security=root-no-caps".to_owned(),
        );
    }
    if let Some(claims) = generic.resources.as_ref().and_then(|it| it.claims.as_ref())
        && !claims.is_empty()
    {
        return refused("generic.resources.claims: devices are not for workers".to_owned());
    }
    Ok(())
}

/// Whether a toleration matches the taint `node-role.kubernetes.io/control-plane`, by this name or
/// its old one.
fn reaches_control_plane(toleration: &Toleration) -> bool {
    match toleration.key.as_deref() {
        None | Some("") => true,
        Some(key) => matches!(
            key,
            "node-role.kubernetes.io/control-plane" | "node-role.kubernetes.io/master"
        ),
    }
}

fn access(
    namespace: &str,
    credentials: Option<&Credentials>,
    settings: &Settings,
) -> Result<Access, Refusal> {
    let (populators, require_grant) = (&settings.namespace, settings.require_grant);
    match credentials {
        None | Some(Credentials::Bucket { .. }) => Err(Refusal::new(
            "PopulatorInvalid",
            "generic: exactly one of secretRef and rrsaConfigs",
        )),
        Some(Credentials::Secret { name, found: None }) => Err(Refusal::new(
            "PopulatorSecretNotFound",
            format!(
                "generic.secretRef: there is no Secret {name} in namespace {populators}; make it there, with accessKeyId and accessKeySecret"
            ),
        )),
        Some(Credentials::Secret { name, found: Some(secret) }) => {
            if require_grant && !allows(&secret.allowed, namespace) {
                return Err(Refusal::new(
                    "PopulatorNotGranted",
                    format!(
                        "generic.secretRef: Secret {name} is not granted to namespace {namespace}; have the administrator annotate it with {}={namespace}",
                        names::ALLOWED_NAMESPACES
                    ),
                ));
            }
            let keys = key_pair(&secret.keys).ok_or_else(|| {
                Refusal::new(
                    "PopulatorSecretInvalid",
                    format!(
                        "generic.secretRef: Secret {name} of namespace {populators} has no accessKeyId and accessKeySecret; give it both"
                    ),
                )
            })?;
            Ok(Access::Secret { name: name.clone(), keys, version: secret.version.clone() })
        }
        Some(Credentials::Role { .. }) if !require_grant => {
            Ok(Access::Role { account: names::WORKER_ACCOUNT.to_owned() })
        }
        Some(Credentials::Role { arn, grants }) => {
            let granted = grants.iter().find(|(_, namespaces)| allows(namespaces, namespace));
            let Some((account, _)) = granted else {
                return Err(Refusal::new(
                    "PopulatorNotGranted",
                    format!(
                        "generic.rrsaConfigs: role {arn} is not granted to namespace {namespace}; have the administrator annotate a service account of namespace {populators} with {}={arn} and {}={namespace}",
                        names::ROLE_ARN,
                        names::ALLOWED_NAMESPACES
                    ),
                ));
            };
            Ok(Access::Role { account: account.clone() })
        }
    }
}

/// Whether CPFS may be asked for `spec`'s bucket. That the bucket's owner tagged it for CPFS is CPFS's
/// to check.
fn bucket(
    spec: &OSSVolumePopulatorSpec,
    namespace: &str,
    credentials: Option<&Credentials>,
    settings: &Settings,
) -> Result<Access, Refusal> {
    let (populators, require_grant) = (&settings.namespace, settings.require_grant);
    let granted = match credentials {
        Some(Credentials::Bucket { grants }) => {
            grants.iter().any(|(_, namespaces)| allows(namespaces, namespace))
        }
        _ => false,
    };
    if require_grant && !granted {
        let bucket = &spec.bucket;
        return Err(Refusal::new(
            "PopulatorNotGranted",
            format!(
                "bucket: {bucket} is not granted to namespace {namespace}; have the administrator annotate a service account of namespace {populators} with {}={bucket} and {}={namespace}",
                names::BUCKET,
                names::ALLOWED_NAMESPACES
            ),
        ));
    }
    Ok(Access::Cpfs)
}

fn allows(namespaces: &[String], namespace: &str) -> bool {
    namespaces.iter().any(|allowed| allowed == "*" || allowed == namespace)
}

fn key_pair(keys: &[String]) -> Option<KeyPair> {
    let named = |names: &[&str]| {
        names
            .iter()
            .find_map(|name| keys.iter().find(|key| key.eq_ignore_ascii_case(name)))
            .cloned()
    };
    Some(KeyPair { id: named(&ID)?, secret: named(&SECRET)?, token: named(&TOKEN) })
}

/// The namespaces that an annotation names.
pub(crate) fn allowed_namespaces(annotation: Option<&str>) -> Vec<String> {
    let names = annotation.unwrap_or_default().split([',', ' ']).map(str::trim);
    names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
pub(crate) mod tests;
