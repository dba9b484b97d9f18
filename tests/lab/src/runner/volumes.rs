//! A pod's volumes as files and directories on the machine.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, HostPathVolumeSource, KeyToPath, Pod, Volume, VolumeProjection,
};

use super::fields;
use super::objects::{Content, Objects, Source};

/// Where each volume's content lies, by the volume's name.
pub(super) type Volumes = BTreeMap<String, PathBuf>;

/// Whether the runner keeps this volume in the pod's own directory (everything but a `hostPath`).
pub(super) fn is_own(volume: &Volume) -> bool {
    volume.host_path.is_none()
}

/// Makes all volumes of the pod below `dir`. Contents are read once: later changes of a Secret or ConfigMap do not reach a running pod.
pub(super) async fn prepare(pod: &Pod, dir: &Path, objects: &mut Objects) -> Result<Volumes> {
    let mut volumes = Volumes::new();
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let path = match &volume.host_path {
            Some(host) => host_path(host).with_context(|| format!("MountVolume failed for volume {}", volume.name))?,
            None => {
                let path = dir.join(&volume.name);
                std::fs::create_dir_all(&path)?;
                fill(pod, volume, &path, objects)
                    .await
                    .with_context(|| format!("MountVolume failed for volume {}", volume.name))?;
                path
            }
        };
        volumes.insert(volume.name.clone(), path);
    }
    Ok(volumes)
}

async fn fill(pod: &Pod, volume: &Volume, dir: &Path, objects: &mut Objects) -> Result<()> {
    if volume.empty_dir.is_some() {
        Ok(std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o777))?)
    } else if let Some(secret) = &volume.secret {
        let name = secret.secret_name.as_deref().unwrap_or_default();
        write_object(Source::Secret, name, secret.items.as_deref(), secret.optional, dir, objects).await
    } else if let Some(map) = &volume.config_map {
        write_object(Source::ConfigMap, &map.name, map.items.as_deref(), map.optional, dir, objects).await
    } else if let Some(projected) = &volume.projected {
        for source in projected.sources.iter().flatten() {
            project(pod, source, dir, objects).await?;
        }
        Ok(())
    } else if let Some(downward) = &volume.downward_api {
        write_fields(pod, downward.items.as_deref(), dir)
    } else {
        bail!("the runner knows emptyDir, secret, configMap, projected, downwardAPI and hostPath volumes only")
    }
}

async fn project(pod: &Pod, source: &VolumeProjection, dir: &Path, objects: &mut Objects) -> Result<()> {
    if let Some(token) = &source.service_account_token {
        let content = objects.token(pod, token.audience.as_deref(), token.expiration_seconds).await?;
        write_file(dir, &token.path, content.as_bytes())
    } else if let Some(map) = &source.config_map {
        write_object(Source::ConfigMap, &map.name, map.items.as_deref(), map.optional, dir, objects).await
    } else if let Some(secret) = &source.secret {
        write_object(Source::Secret, &secret.name, secret.items.as_deref(), secret.optional, dir, objects).await
    } else if let Some(downward) = &source.downward_api {
        write_fields(pod, downward.items.as_deref(), dir)
    } else {
        bail!("the runner knows serviceAccountToken, configMap, secret and downwardAPI projections only")
    }
}

async fn write_object(
    source: Source,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    dir: &Path,
    objects: &mut Objects,
) -> Result<()> {
    let optional = optional.unwrap_or(false);
    let content: Content = match objects.content(source, name).await? {
        Some(content) => content,
        None if optional => return Ok(()),
        None => bail!("{source:?} {name} not found"),
    };
    let Some(items) = items else {
        return content.iter().try_for_each(|(key, bytes)| write_file(dir, key, bytes));
    };
    for item in items {
        match content.get(&item.key) {
            Some(bytes) => write_file(dir, &item.path, bytes)?,
            None => ensure!(optional, "{source:?} {name} has no key {}", item.key),
        }
    }
    Ok(())
}

fn write_fields(pod: &Pod, items: Option<&[DownwardAPIVolumeFile]>, dir: &Path) -> Result<()> {
    for item in items.unwrap_or_default() {
        let field = item.field_ref.as_ref().with_context(|| format!("{}: only fieldRef is known here", item.path))?;
        write_file(dir, &item.path, fields::field(pod, &field.field_path)?.as_bytes())?;
    }
    Ok(())
}

/// Writes a file below the volume's directory; the API server has seen to it that `path` stays inside.
fn write_file(dir: &Path, path: &str, bytes: &[u8]) -> Result<()> {
    let file = dir.join(path);
    if let Some(parent) = file.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(&file, bytes).with_context(|| format!("write {}", file.display()))
}

/// Checks a `hostPath` as its type demands, and makes what `…OrCreate` allows.
fn host_path(host: &HostPathVolumeSource) -> Result<PathBuf> {
    let path = PathBuf::from(&host.path);
    let kind = std::fs::metadata(&path).ok().map(|metadata| metadata.file_type());
    let fits = match host.type_.as_deref().unwrap_or_default() {
        "" => true,
        "DirectoryOrCreate" => {
            std::fs::create_dir_all(&path)?;
            true
        }
        "FileOrCreate" => {
            std::fs::OpenOptions::new().create(true).append(true).open(&path)?;
            true
        }
        "Directory" => kind.is_some_and(|kind| kind.is_dir()),
        "File" => kind.is_some_and(|kind| kind.is_file()),
        "Socket" => kind.is_some_and(|kind| kind.is_socket()),
        "CharDevice" => kind.is_some_and(|kind| kind.is_char_device()),
        "BlockDevice" => kind.is_some_and(|kind| kind.is_block_device()),
        other => bail!("unknown hostPath type {other}"),
    };
    ensure!(fits, "hostPath type check failed: {} is not a {}", host.path, host.type_.as_deref().unwrap_or_default());
    Ok(path)
}
