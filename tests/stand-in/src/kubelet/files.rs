//! Volumes made of files: Secrets, ConfigMaps, the downward API, tokens.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret, ServiceAccount,
    ServiceAccountTokenProjection, VolumeProjection,
};
use kube::ResourceExt;
use kube::api::PostParams;

use super::env;
use crate::world::World;

/// What the API uses where a volume says nothing.
const MODE: i32 = 0o644;

/// One file of such a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) data: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) owner: Option<u32>,
}

/// Path to file.
pub(crate) type Files = BTreeMap<String, File>;

/// Which keys go where; all of them, under their own names, where nothing is said.
fn chosen(
    kind: &str,
    name: &str,
    data: &BTreeMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    mode: Option<i32>,
    optional: bool,
) -> Result<Files, String> {
    let mode = mode.unwrap_or(MODE);
    let file = |data: &[u8], mode: i32| File {
        data: data.to_owned(),
        mode: u32::try_from(mode).unwrap_or(0o644),
        owner: None,
    };
    let Some(items) = items else {
        return Ok(data.iter().map(|(key, data)| (key.clone(), file(data, mode))).collect());
    };
    let mut files = Files::new();
    for item in items {
        match data.get(&item.key) {
            Some(data) => {
                files.insert(item.path.clone(), file(data, item.mode.unwrap_or(mode)));
            }
            None if optional => {}
            None => {
                return Err(format!("references non-existent {kind} key: {} in {name}", item.key));
            }
        }
    }
    Ok(files)
}

pub(crate) async fn secret(
    world: &World,
    namespace: &str,
    name: &str,
    items: Option<&[KeyToPath]>,
    mode: Option<i32>,
    optional: Option<bool>,
) -> Result<Files, String> {
    let found: Option<Secret> = read(world, namespace, name).await?;
    let optional = optional == Some(true);
    let data = match found {
        None if !optional => return Err(format!("secret \"{name}\" not found")),
        found => found.and_then(|secret| secret.data).unwrap_or_default(),
    };
    let data = data.into_iter().map(|(key, value)| (key, value.0)).collect();
    chosen("secret", name, &data, items, mode, optional)
}

pub(crate) async fn config_map(
    world: &World,
    namespace: &str,
    name: &str,
    items: Option<&[KeyToPath]>,
    mode: Option<i32>,
    optional: Option<bool>,
) -> Result<Files, String> {
    let found: Option<ConfigMap> = read(world, namespace, name).await?;
    let optional = optional == Some(true);
    let Some(map) = found else {
        return match optional {
            true => Ok(Files::new()),
            false => Err(format!("configmap \"{name}\" not found")),
        };
    };
    let text = map.data.unwrap_or_default().into_iter();
    let mut data: BTreeMap<_, _> = text.map(|(key, value)| (key, value.into_bytes())).collect();
    let binary = map.binary_data.unwrap_or_default().into_iter();
    data.extend(binary.map(|(key, value)| (key, value.0)));
    chosen("config", name, &data, items, mode, optional)
}

pub(crate) fn downward(
    pod: &Pod,
    items: Option<&[DownwardAPIVolumeFile]>,
    mode: Option<i32>,
) -> Result<Files, String> {
    let mut files = Files::new();
    for item in items.unwrap_or_default() {
        let field = item.field_ref.as_ref();
        let field = field.ok_or("the stand-in knows no resourceFieldRef")?;
        let data = env::field(pod, &field.field_path)?.into_bytes();
        let mode = item.mode.or(mode).unwrap_or(MODE);
        let mode = u32::try_from(mode).unwrap_or(0o644);
        files.insert(item.path.clone(), File { data, mode, owner: None });
    }
    Ok(files)
}

/// All sources of a projected volume together.
pub(crate) async fn projected(
    world: &World,
    pod: &Pod,
    sources: &[VolumeProjection],
    mode: Option<i32>,
) -> Result<Files, String> {
    let namespace = pod.namespace().unwrap_or_default();
    let mut files = Files::new();
    for source in sources {
        let VolumeProjection {
            cluster_trust_bundle,
            config_map: map,
            downward_api,
            pod_certificate,
            secret: hidden,
            service_account_token,
        } = source;
        if cluster_trust_bundle.is_some() || pod_certificate.is_some() {
            return Err("the stand-in projects no certificates".to_owned());
        }
        if let Some(source) = map {
            let items = source.items.as_deref();
            let (name, optional) = (&source.name, source.optional);
            files.extend(config_map(world, &namespace, name, items, mode, optional).await?);
        }
        if let Some(source) = hidden {
            let items = source.items.as_deref();
            let (name, optional) = (&source.name, source.optional);
            files.extend(secret(world, &namespace, name, items, mode, optional).await?);
        }
        if let Some(source) = downward_api {
            files.extend(downward(pod, source.items.as_deref(), mode)?);
        }
        if let Some(source) = service_account_token {
            files.insert(source.path.clone(), token(world, pod, source, mode).await?);
        }
    }
    Ok(files)
}

/// A token of the Pod's service account, good for as long as the Pod lives and for one audience.
async fn token(
    world: &World,
    pod: &Pod,
    source: &ServiceAccountTokenProjection,
    mode: Option<i32>,
) -> Result<File, String> {
    let namespace = pod.namespace().unwrap_or_default();
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
    let account = account.unwrap_or_else(|| "default".to_owned());
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: source.audience.clone().map(|audience| vec![audience]),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(pod.name_any()),
                uid: pod.uid(),
            }),
            expiration_seconds: source.expiration_seconds.or(Some(3600)),
        }),
        ..TokenRequest::default()
    };
    let accounts = world.namespaced::<ServiceAccount>(&namespace);
    let granted = accounts.create_token_request(&account, &PostParams::default(), &request).await;
    let granted = granted.map_err(|error| format!("failed to fetch token: {error}"))?;
    let token = granted.status.and_then(|status| status.token).ok_or("no token was granted")?;
    // as the kubelet: only for its user, if all containers have one, or else for its group
    let owner = common_user(pod);
    let group = pod_group(pod);
    let restricted = owner.is_some() || group.is_some();
    let mode =
        if restricted { 0o600 } else { u32::try_from(mode.unwrap_or(MODE)).unwrap_or(0o644) };
    Ok(File { data: token.into_bytes(), mode, owner })
}

/// The user whom all containers share.
fn common_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let whole = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let mut users = containers.map(|container| {
        container.security_context.as_ref().and_then(|context| context.run_as_user).or(whole)
    });
    let first = users.next()??;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok())?
}

/// The Pod's fsGroup.
pub(crate) fn pod_group(pod: &Pod) -> Option<u32> {
    let group = pod.spec.as_ref()?.security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

/// Writes them as the kubelet does: below `..data`, a link to a directory that is replaced as a
/// whole, with a link for every name at the top. Blocks.
pub(crate) fn write(at: &Path, files: &Files, group: Option<u32>) -> io::Result<()> {
    let now = k8s_openapi::jiff::Timestamp::now().strftime("..%Y_%m_%d_%H_%M_%S.%f").to_string();
    let place = at.join(&now);
    std::fs::create_dir_all(&place)?;
    for directory in [at, &place] {
        std::fs::set_permissions(directory, PermissionsExt::from_mode(0o777))?;
        chown(directory, None, group)?;
    }
    for (path, File { data, mode, owner }) in files {
        let file = place.join(path);
        if let Some(parent) = file.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&file, data)?;
        chown(&file, *owner, group)?;
        let mode = if group.is_some() { mode | 0o440 } else { *mode };
        std::fs::set_permissions(&file, PermissionsExt::from_mode(mode))?;
    }
    symlink(&now, at.join("..data"))?;
    for path in files.keys() {
        let top = path.split('/').next().unwrap_or(path);
        match symlink(Path::new("..data").join(top), at.join(top)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
    }
    Ok(())
}

async fn read<K>(world: &World, namespace: &str, name: &str) -> Result<Option<K>, String>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    world.namespaced::<K>(namespace).get_opt(name).await.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn files_are_links_to_what_is_replaced_as_a_whole() {
        let place = tempfile::tempdir().unwrap();
        let file = |mode| File { data: b"x".to_vec(), mode, owner: Some(12) };
        let files =
            Files::from([("token".to_owned(), file(0o600)), ("a/b".to_owned(), file(0o644))]);
        write(place.path(), &files, Some(34)).unwrap();
        let link = std::fs::read_link(place.path().join("token")).unwrap();
        assert_eq!(link, Path::new("..data/token"));
        let token = std::fs::metadata(place.path().join("token")).unwrap();
        assert_eq!((token.mode() & 0o777, token.uid(), token.gid()), (0o640, 12, 34));
        assert_eq!(std::fs::read(place.path().join("a/b")).unwrap(), b"x");
    }

    #[test]
    fn chosen_keys_must_be_there_unless_they_are_optional() {
        let data = BTreeMap::from([("k".to_owned(), b"v".to_vec())]);
        let item = |key: &str| KeyToPath {
            key: key.to_owned(),
            path: format!("at/{key}"),
            mode: Some(0o400),
        };
        let pick = |items: Option<&[KeyToPath]>, optional| {
            chosen("secret", "s", &data, items, None, optional)
        };
        assert_eq!(pick(None, false).unwrap()["k"].mode, 0o644);
        assert_eq!(pick(Some(&[item("k")]), false).unwrap()["at/k"].mode, 0o400);
        assert!(pick(Some(&[item("none")]), true).unwrap().is_empty());
        let error = pick(Some(&[item("none")]), false).unwrap_err();
        assert_eq!(error, "references non-existent secret key: none in s");
    }
}
