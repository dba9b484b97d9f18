//! Starting a container's process: in a mount namespace of its own, with the pod's volumes where the container expects them.
//!
//! The machine keeps no trace. `/run` is covered by a private tmpfs in which every entry of the machine's `/run` is bound again, so mount
//! points can be made there (`/var/run/secrets/kubernetes.io/serviceaccount` above all) without making directories on the machine.
//! Elsewhere a mount point must exist already, or lie inside another volume of the pod.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Container, PodSpec};

use super::environment::{Environment, expand};
use super::volumes::{self, Volumes};
use crate::process::Process;

/// Arguments: an empty directory, then source, target and `ro` or `rw` of each mount, `--`, the working directory, the program and its arguments.
const SCRIPT: &str = r#"
set -e
trap '[ $? = 0 ] || { echo "runner: cannot set up the mounts of this container" >&2; exit 128; }' EXIT
path=$PATH PATH=/usr/sbin:/usr/bin:/sbin:/bin
outer=$1
shift
mount -n --rbind /run "$outer"
mount -n -t tmpfs -o mode=755 tmpfs /run
for entry in "$outer"/* "$outer"/.[!.]*; do
  inner=/run/${entry##*/}
  if [ "$inner" = /run/secrets ]; then continue
  elif [ -L "$entry" ]; then ln -s "$(readlink "$entry")" "$inner"
  elif [ -d "$entry" ]; then mkdir "$inner"; mount -n --rbind "$entry" "$inner"
  elif [ -e "$entry" ]; then : > "$inner"; mount -n --bind "$entry" "$inner"
  fi
done
umount -n -l "$outer"
rmdir "$outer"
# Every source is held first: a volume mounted at /tmp may hide where the others lie.
staged=/run/.volumes
mkdir "$staged"
number=0
for argument do
  case $((number % 3)) in 0)
    if [ "$argument" = -- ]; then break; fi
    if [ -d "$argument" ]; then mkdir "$staged/$number"; else : > "$staged/$number"; fi
    mount -n --rbind "$argument" "$staged/$number"
  esac
  number=$((number + 1))
done
number=0
while [ "$1" != -- ]; do
  if [ -d "$staged/$number" ]; then mkdir -p "$2"; else mkdir -p "${2%/*}"; [ -e "$2" ] || : > "$2"; fi
  mount -n --rbind "$staged/$number" "$2"
  if [ "$3" = ro ]; then mount -n -o remount,bind,ro "$2"; fi
  umount -n -l "$staged/$number"
  number=$((number + 3))
  shift 3
done
rm -rf "$staged"
cd "$2"
shift 2
trap - EXIT
PATH=$path
exec "$@"
"#;

/// Where a container sees its program.
const PROGRAMS: &str = "/run/program";

/// What a process is started with.
pub(super) struct Launch<'a> {
    pub(super) container: &'a Container,
    pub(super) program: &'a Path,
    pub(super) environment: Environment,
    pub(super) mounts: Vec<Mount>,
    /// A directory for the script, which removes it when the mounts are made and the program takes over.
    pub(super) scratch: &'a Path,
    pub(super) log: &'a Path,
}

impl Launch<'_> {
    /// Starts the process. It leads a process group of its own.
    pub(super) fn start(self) -> Result<Process> {
        for dir in [Some(self.scratch), self.log.parent()].into_iter().flatten() {
            std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        }
        let mut command = Command::new("/usr/bin/unshare");
        command.args(["--mount", "--propagation", "private", "/bin/sh", "-c", SCRIPT, "sh"]).arg(self.scratch);
        for mount in &self.mounts {
            command.arg(&mount.source).arg(&mount.target).arg(if mount.read_only { "ro" } else { "rw" });
        }
        // A volume may hide where the program lies, too: a checkout below /tmp.
        let program = Path::new(PROGRAMS).join(self.program.file_name().unwrap_or_default());
        command.arg(self.program).arg(&program).arg("ro");
        command.arg("--").arg(self.container.working_dir.as_deref().unwrap_or("/")).arg(program);
        let rest = self.container.command.iter().flatten().skip(1).chain(self.container.args.iter().flatten());
        command.args(rest.map(|argument| expand(argument, &self.environment)));
        command.env_clear().envs(&self.environment);
        Process::spawn(&self.container.name, command, self.log)
    }
}

/// A volume, or a part of one, and where the container sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) source: PathBuf,
    pub(super) target: PathBuf,
    pub(super) read_only: bool,
}

/// The mounts of a container, outer ones first. A `hostPath` seen under its own path needs none. A mount point that cannot be made is an error.
pub(super) fn mounts(spec: &PodSpec, container: &Container, volumes: &Volumes) -> Result<Vec<Mount>> {
    let mut wanted = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        if mount.sub_path_expr.is_some() {
            bail!("subPathExpr of volume {} is not supported", mount.name);
        }
        let volume = spec.volumes.iter().flatten().find(|volume| volume.name == mount.name);
        let (Some(volume), Some(path)) = (volume, volumes.get(&mount.name)) else {
            bail!("volume {} of container {} is not there", mount.name, container.name);
        };
        let source = mount.sub_path.as_ref().map_or_else(|| path.clone(), |sub_path| path.join(sub_path));
        let target = resolved(Path::new(&mount.mount_path));
        let read_only = mount.read_only.unwrap_or(false);
        wanted.push((volumes::is_own(volume), Mount { source, target, read_only }));
    }
    wanted.sort_by_key(|(_, mount)| mount.target.components().count());

    let mut planned: Vec<(bool, Mount)> = Vec::new();
    for (own, mount) in wanted {
        let outer = planned.iter().rev().find(|(_, outer)| mount.target.starts_with(&outer.target));
        let in_own_volume = outer.is_some_and(|(own, outer)| *own && !outer.read_only);
        if outer.is_none() && !own && !mount.read_only && resolved(&mount.source) == mount.target {
            continue;
        }
        if !in_own_volume && !mount.target.exists() && !in_private_run(&mount.target) {
            bail!(
                "mountPath {} cannot be made: it does not exist on this machine, and the runner makes mount points only below /run \
                 (in a directory that the machine does not have) or inside another volume of the pod",
                mount.target.display()
            );
        }
        planned.push((own, mount));
    }
    Ok(planned.into_iter().map(|(_, mount)| mount).collect())
}

/// Whether making `path` inside the private `/run` leaves the machine's `/run` alone.
fn in_private_run(path: &Path) -> bool {
    let top = path.strip_prefix("/run").ok().and_then(|below| below.components().next());
    top.is_some_and(|top| top.as_os_str() == "secrets" || !Path::new("/run").join(top).exists())
}

/// `path` without symbolic links as far as it exists: `/var/run` is `/run` on most machines.
fn resolved(path: &Path) -> PathBuf {
    for ancestor in path.ancestors() {
        if let Ok(real) = ancestor.canonicalize() {
            let below = path.strip_prefix(ancestor).unwrap_or(Path::new(""));
            return if below.as_os_str().is_empty() { real } else { real.join(below) };
        }
    }
    path.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn planned(volume: serde_json::Value, mount_path: &str, source: &str) -> Result<Vec<Mount>> {
        let mount = json!({"name": "v", "mountPath": mount_path});
        let spec: PodSpec = serde_json::from_value(json!({
            "containers": [{"name": "c", "volumeMounts": [mount]}],
            "volumes": [volume],
        }))?;
        mounts(&spec, &spec.containers[0], &Volumes::from([("v".into(), source.into())]))
    }

    #[test]
    fn a_host_path_under_its_own_name_needs_no_mount() -> Result<()> {
        let volume = json!({"name": "v", "hostPath": {"path": "/etc"}});
        assert_eq!(planned(volume.clone(), "/etc", "/etc")?, []);
        assert_eq!(planned(volume, "/opt", "/etc")?.len(), 1);
        Ok(())
    }

    #[test]
    fn a_mount_point_is_made_below_run_or_refused() -> Result<()> {
        let volume = json!({"name": "v", "emptyDir": {}});
        let made = planned(volume.clone(), "/var/run/secrets/a", "/x")?;
        assert_eq!(made[0].target, Path::new("/var/run").canonicalize()?.join("secrets/a"));
        let refusal = planned(volume, "/no/such/place", "/x").expect_err("nothing is made outside of /run").to_string();
        assert!(refusal.contains("mountPath /no/such/place"), "{refusal}");
        Ok(())
    }
}
