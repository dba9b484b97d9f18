//! The host-side Job of a `BlockCopy`: two containers, so that the driver's death leaves the relay, and with it the mirror, alone.
//!
//! The Job names no owner. The garbage collector ends what an object owns as soon as that is deleted in the foreground, though the object's
//! own finalizer is pending: a copy would be broken off, and a cutover undone, by whoever deletes a `BlockCopy` that works on.

use std::collections::BTreeMap;

use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{
    Capabilities, Container, EnvVar, HostPathVolumeSource, PodSpec, PodTemplateSpec, ResourceRequirements,
    SecurityContext, Toleration, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt;
use kube::api::ObjectMeta;

use crate::api::{BlockCopy, LibvirtHostSpec, MIGRATION_LABEL};

/// What the operator's installation decides about its Jobs.
#[derive(Clone, Debug)]
pub struct JobSettings {
    /// Image with the `drover` program built with its host side.
    pub image: String,
    /// Service account of the host side: it may read and report `BlockCopy` objects, nothing else.
    pub service_account: String,
}

/// Containers may die as often as they like: a driver continues, a relay begins again. Only a machine's release ends the Job.
const BACKOFF_LIMIT: i32 = 1_000_000;

/// The Job that carries out a `BlockCopy`.
pub fn job(copy: &BlockCopy, host: &LibvirtHostSpec, settings: &JobSettings) -> Job {
    let labels: BTreeMap<String, String> = BTreeMap::from([
        ("app.kubernetes.io/name".into(), "drover".into()),
        ("app.kubernetes.io/component".into(), "host-job".into()),
        (MIGRATION_LABEL.into(), copy.spec.claim.uid.clone()),
    ]);
    Job {
        metadata: ObjectMeta {
            name: Some(copy.name_any()),
            namespace: copy.namespace(),
            labels: Some(labels.clone()),
            ..ObjectMeta::default()
        },
        spec: Some(JobSpec {
            backoff_limit: Some(BACKOFF_LIMIT),
            pod_replacement_policy: Some("Failed".into()),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: Some(labels), ..ObjectMeta::default() }),
                spec: Some(pod(copy, host, settings)),
            },
            ..JobSpec::default()
        }),
        ..Job::default()
    }
}

fn pod(copy: &BlockCopy, host: &LibvirtHostSpec, settings: &JobSettings) -> PodSpec {
    PodSpec {
        node_selector: Some(BTreeMap::from([("kubernetes.io/hostname".into(), host.node_name.clone())])),
        service_account_name: Some(settings.service_account.clone()),
        restart_policy: Some("OnFailure".into()),
        // The second proof of "off" reads the host's own processes.
        host_pid: Some(true),
        // The storage must see the hypervisor's address, and the host's socket table shows whether a writer is gone.
        host_network: Some(true),
        tolerations: Some(vec![Toleration { operator: Some("Exists".into()), ..Toleration::default() }]),
        // Long enough for the driver to write its last report; a mirror is never ended by a deadline.
        termination_grace_period_seconds: Some(10),
        volumes: Some(directories(host).into_iter().map(|directory| directory.volume()).collect()),
        containers: vec![relay(copy, host, settings), driver(copy, host, settings)],
        ..PodSpec::default()
    }
}

fn relay(copy: &BlockCopy, host: &LibvirtHostSpec, settings: &JobSettings) -> Container {
    let arguments = [
        "--run-directory".to_owned(),
        relay_directory(copy),
        "--memory-mib".to_owned(),
        copy.spec.limits.relay_memory_mib.to_string(),
        "--max-guest-stall-millis".to_owned(),
        copy.spec.limits.max_guest_stall_millis.to_string(),
    ];
    let memory = format!("{}Mi", copy.spec.limits.relay_memory_mib.saturating_mul(2).saturating_add(128));
    Container {
        resources: Some(ResourceRequirements {
            limits: Some(BTreeMap::from([("memory".into(), Quantity(memory))])),
            ..ResourceRequirements::default()
        }),
        ..container("relay", host, settings, &arguments)
    }
}

fn driver(copy: &BlockCopy, host: &LibvirtHostSpec, settings: &JobSettings) -> Container {
    let arguments = [
        "--namespace".to_owned(),
        copy.namespace().unwrap_or_default(),
        "--block-copy".to_owned(),
        copy.name_any(),
        "--relay-directory".to_owned(),
        relay_directory(copy),
    ];
    container("driver", host, settings, &arguments)
}

/// Name of the `BlockCopy` and the Job of a migration: never the same for two objects, even after re-creation.
pub fn copy_name(migration: &str, uid: &str) -> String {
    let name: String = migration.chars().take(50).collect();
    format!("{}-{}", name.replace('.', "-"), uid.chars().take(8).collect::<String>())
}

/// Directory of a `BlockCopy`'s relay on the host: its sockets and its state.
pub fn relay_directory(copy: &BlockCopy) -> String {
    format!("{}/{}", copy.spec.run_directory, copy.spec.claim.uid)
}

fn container(name: &str, host: &LibvirtHostSpec, settings: &JobSettings, arguments: &[String]) -> Container {
    let mut command: Vec<String> = vec!["drover".into(), "host".into(), name.into()];
    command.extend_from_slice(arguments);
    Container {
        name: name.into(),
        image: Some(settings.image.clone()),
        command: Some(command),
        env: Some(vec![EnvVar { name: "RUST_LOG".into(), value: Some("info".into()), value_from: None }]),
        volume_mounts: Some(directories(host).into_iter().map(|directory| directory.mount()).collect()),
        security_context: Some(SecurityContext {
            run_as_user: Some(0),
            allow_privilege_escalation: Some(false),
            // Reading source disks and /proc/PID/fd of QEMU, and binding a privileged port towards the storage, need these and no more.
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".into()]),
                add: Some(
                    ["DAC_READ_SEARCH", "DAC_OVERRIDE", "SYS_PTRACE", "KILL", "NET_BIND_SERVICE"]
                        .map(String::from)
                        .to_vec(),
                ),
            }),
            ..SecurityContext::default()
        }),
        ..Container::default()
    }
}

/// A directory of the host that the containers see, under the same path: QEMU and the relay must mean the same socket by the same name.
struct HostDirectory {
    name: String,
    path: String,
    kind: &'static str,
    read_only: bool,
}

fn directories(host: &LibvirtHostSpec) -> Vec<HostDirectory> {
    let new = |name: String, path: &str, kind, read_only| HostDirectory { name, path: path.into(), kind, read_only };
    let disks = host.disk_directories.iter().enumerate();
    let disks = disks.map(|(index, path)| new(format!("disks-{index}"), path, "Directory", true));
    [
        new("run".into(), &host.run_directory, "DirectoryOrCreate", false),
        new("libvirt".into(), &host.libvirt_directory, "Directory", false),
    ]
    .into_iter()
    .chain(disks)
    .collect()
}

impl HostDirectory {
    fn volume(self) -> Volume {
        let source = HostPathVolumeSource { path: self.path, type_: Some(self.kind.into()) };
        Volume { name: self.name, host_path: Some(source), ..Volume::default() }
    }

    fn mount(self) -> VolumeMount {
        let read_only = self.read_only.then_some(true);
        VolumeMount { name: self.name, mount_path: self.path, read_only, ..VolumeMount::default() }
    }
}
