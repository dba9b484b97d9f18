//! A whole lab: a team's namespace, one hypervisor, one cluster to move to, a repository with its pipeline, and Drover itself.
//!
//! Drover runs from `manifests/operator` as it is, with the RBAC in there, its Deployment and its Jobs carried out by the [`Runner`].

mod leftovers;
mod platform;
mod report;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use drover::api::{BlockCopy, NutanixCluster, VmMigration};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::cluster::{Cluster, ClusterBinaries};
use crate::git::{GitConfig, GitServer};
use crate::gitlab::{GitLab, GitLabConfig, Jobs, Role, Scope, User};
use crate::guest::{GuestImage, QemuHypervisor};
use crate::libvirt::Libvirt;
use crate::nfs::NfsExport;
use crate::pipeline::{self, Pipeline, PipelineConfig};
use crate::prism::{Prism, PrismConfig};
use crate::process::guard_directory;
use crate::runner::{LONGEST_BACKOFF, Runner, RunnerConfig};
use crate::terraform::TerraformConfig;
use crate::throttle::Throttle;
use crate::tools::Tools;

pub use report::Outcome;

/// Namespace of the lab's client team.
pub const TEAM: &str = "team-a";
/// Namespace of the operator.
pub const SYSTEM: &str = "drover-system";
/// The node that is the hypervisor.
pub const NODE: &str = "kvm1";
/// Storage container.
pub const CONTAINER: &str = "container-1";
/// The guests are untagged: QEMU's unprivileged network backends know no VLANs.
pub const VLAN: u16 = 0;

/// Who applies what is committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AppliedBy {
    /// A pipeline that nobody can follow, and that applies every commit by itself.
    #[default]
    Pipeline,
    /// GitLab, which plans every commit and waits for somebody.
    GitLab,
    /// Jobs in the team's namespace.
    Jobs,
}

/// Password of the lab's git user.
pub const GIT_PASSWORD: &str = "git-password-9d1f";
/// Password of the lab's Prism user.
pub const PRISM_PASSWORD: &str = "prism-password-77c2";
/// Access token of Drover's user in GitLab.
pub const GITLAB_TOKEN: &str = "glpat-drover-51ab";
/// GitLab's users: Drover, and the engineer who starts deployments.
pub const BOT: &str = "drover";
pub const ENGINEER: &str = "engineer";

/// How a lab differs from the usual one.
#[derive(Clone, Debug)]
pub struct LabOptions {
    pub applied_by: AppliedBy,
    /// Bytes per second that the storage takes; `None` = as fast as it can.
    pub storage_bytes_per_s: Option<u64>,
    /// Memory of a relay in MiB.
    pub relay_memory_mib: u32,
    /// The stated bound of [`drover::api::libvirt_host::CopyLimits::max_guest_stall_millis`].
    pub max_guest_stall_millis: u32,
    /// Pace at which disks in sync are verified; 0 = everything is compared in the outage.
    pub verify_mib_per_second: u32,
    /// libvirt refuses to start a source that is being moved or was moved away: `drover host install-hook`.
    pub start_hook: bool,
    /// Where tests say at which points Drover's processes are to die (`drover::edge::fail_point`). Below no volume of a pod: not in /tmp.
    pub fail_points: Option<PathBuf>,
    /// Told what is being started.
    pub progress: fn(&str),
}

impl Default for LabOptions {
    fn default() -> Self {
        Self {
            applied_by: AppliedBy::default(),
            storage_bytes_per_s: None,
            relay_memory_mib: 64,
            max_guest_stall_millis: 3000,
            verify_mib_per_second: 64,
            start_hook: false,
            fail_points: None,
            progress: |_| {},
        }
    }
}

/// A running lab. Dropping it stops everything; so does the end of the process, however it ends.
pub struct Lab {
    // In the order in which they are to be stopped: what uses something before what it uses.
    pub runner: Runner,
    pub pipeline: Option<Pipeline>,
    pub gitlab: Option<GitLab>,
    pub prism: Prism,
    pub hypervisor: Arc<QemuHypervisor>,
    pub libvirt: Libvirt,
    pub git: GitServer,
    pub throttle: Option<Throttle>,
    pub nfs: NfsExport,
    pub cluster: Cluster,
    pub client: Client,
    terraform: TerraformConfig,
    dir: PathBuf,
}

impl Lab {
    /// Starts a lab in `dir` with the `drover` program at `drover`.
    pub async fn start(dir: &Path, drover: &Path, options: LabOptions) -> Result<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let say = options.progress;
        guard_directory(dir);
        ensure!(drover.is_file(), "there is no drover program at {}: build it with `cargo build`", drover.display());
        say("pinned tools");
        let tools = tokio::task::spawn_blocking(Tools::ready).await??;
        say("Kubernetes: etcd, kube-apiserver, kube-controller-manager");
        let cluster = Cluster::start(&part(dir, "cluster")?, &binaries(&tools))?;
        let client = cluster.client().await?;
        say("storage container: NFS-Ganesha");
        let nfs = NfsExport::start(&part(dir, "nfs")?, CONTAINER)?;
        let throttle = options.storage_bytes_per_s.map(|rate| Throttle::start(nfs.port(), rate)).transpose()?;
        say("libvirt");
        let libvirt_dir = part(dir, "libvirt")?;
        if options.start_hook {
            install_hook(drover, &libvirt_dir)?;
        }
        let libvirt = Libvirt::start(&libvirt_dir)?;
        say("Prism (simulated)");
        let image = GuestImage::ready()?;
        let hypervisor = Arc::new(QemuHypervisor::new(&part(dir, "ahv")?, &image)?);
        let prism = Prism::start(PrismConfig {
            dir: part(dir, "prism")?,
            export_root: nfs.root(),
            container: CONTAINER.into(),
            cluster_name: "ahv1".into(),
            subnets: vec![("lan".into(), VLAN)],
            username: "drover".into(),
            password: PRISM_PASSWORD.into(),
            hypervisor: hypervisor.clone(),
            log_path: dir.join("prism.log"),
        })?;
        prism.set_whitelist(Some(&["127.0.0.0/8"]));
        say(match options.applied_by {
            AppliedBy::Pipeline => "git server, and a pipeline that runs terraform on push",
            AppliedBy::GitLab => "git server, and GitLab (simulated), which runs terraform",
            AppliedBy::Jobs => "git server",
        });
        let seed = pipeline::seed_files().into_iter().map(|(path, text)| (path.to_owned(), text.to_owned())).collect();
        let git = GitServer::start_tls(
            &part(dir, "git")?,
            GitConfig { seed_files: seed, username: "drover".into(), password: GIT_PASSWORD.into() },
        )?;
        let terraform = TerraformConfig {
            state: part(dir, "pipeline")?.join("terraform.tfstate"),
            tools,
            prism_url: prism.central_url().into(),
            username: "drover".into(),
            password: PRISM_PASSWORD.into(),
        };
        let pipeline = match options.applied_by {
            AppliedBy::Pipeline => Some(auto_pipeline(dir, &git, &terraform)?),
            AppliedBy::GitLab | AppliedBy::Jobs => None,
        };
        let gitlab = match options.applied_by {
            AppliedBy::GitLab => Some(gitlab(dir, &git, &terraform)?),
            AppliedBy::Pipeline | AppliedBy::Jobs => None,
        };
        say("node, and Drover's controller as manifests/operator has it");
        let fail_points =
            options.fail_points.as_ref().map(|at| ("DROVER_FAIL_POINTS".to_owned(), at.display().to_string()));
        let runner = Runner::start(
            &cluster,
            RunnerConfig {
                node_name: NODE.into(),
                dir: part(dir, "node")?,
                programs: BTreeMap::from([("drover".into(), drover.to_owned())]),
                host_aliases: BTreeMap::new(),
                longest_backoff: if options.fail_points.is_some() { Duration::from_secs(1) } else { LONGEST_BACKOFF },
                environment: fail_points.into_iter().collect(),
            },
        )?;
        let lab = Self {
            runner,
            pipeline,
            gitlab,
            terraform,
            prism,
            hypervisor,
            libvirt,
            git,
            throttle,
            nfs,
            cluster,
            client,
            dir: dir.to_owned(),
        };
        lab.install(&options).await?;
        Ok(lab)
    }

    /// The lab's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    async fn install(&self, options: &LabOptions) -> Result<()> {
        self.cluster.install_crds().await?;
        self.cluster.apply_yaml(&platform::operator()?).await.context("apply manifests/operator")?;
        self.cluster.apply_yaml(&platform::platform(self, options)?).await.context("apply the platform's resources")?;
        if options.applied_by == AppliedBy::Jobs {
            let rights = platform::manifest("terraform-job/rbac.yaml")?;
            self.cluster.apply_yaml(&rights).await.context("apply manifests/terraform-job")?;
        }
        Ok(())
    }

    /// `VmMigration` objects of the team.
    pub fn migrations(&self) -> Api<VmMigration> {
        Api::namespaced(self.client.clone(), TEAM)
    }

    /// `BlockCopy` objects of the operator.
    pub fn copies(&self) -> Api<BlockCopy> {
        Api::namespaced(self.client.clone(), SYSTEM)
    }

    /// Creates a `VmMigration` named after its hostname.
    pub async fn migrate(&self, hostname: &str) -> Result<()> {
        self.create(hostname, serde_json::json!({ "hostname": hostname })).await
    }

    /// Creates a `VmMigration`.
    pub async fn create(&self, name: &str, spec: Value) -> Result<()> {
        let object = serde_json::json!({
            "apiVersion": "drover.dev/v1alpha1",
            "kind": "VmMigration",
            "metadata": {"name": name, "namespace": TEAM},
            "spec": spec,
        });
        self.cluster.apply_yaml(&object.to_string()).await?;
        Ok(())
    }

    /// Changes the spec of the `NutanixCluster`.
    pub async fn patch_cluster(&self, spec: Value) -> Result<()> {
        let clusters = Api::<NutanixCluster>::all(self.client.clone());
        clusters.patch("ahv1", &PatchParams::default(), &Patch::Merge(serde_json::json!({ "spec": spec }))).await?;
        Ok(())
    }

    /// Changes the spec of a migration as `kubectl patch --type merge` does.
    pub async fn patch(&self, name: &str, spec: Value) -> Result<()> {
        let patch = Patch::Merge(serde_json::json!({ "spec": spec }));
        self.migrations().patch(name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Approves the plan that the status shows.
    pub async fn approve(&self, name: &str) -> Result<()> {
        let plan = self.migrations().get(name).await?.status.and_then(|status| status.plan);
        let digest = plan.context("there is no plan to approve")?.digest;
        self.patch(name, serde_json::json!({"approved": true, "approvedDigest": digest})).await
    }

    /// Approves the Terraform plan that the status shows.
    pub async fn approve_terraform(&self, name: &str) -> Result<()> {
        let terraform = self.migrations().get(name).await?.status.and_then(|status| status.terraform);
        let digest = terraform.and_then(|terraform| terraform.plan_digest).context("there is no plan to approve")?;
        self.patch(name, serde_json::json!({"terraform": {"approvedDigest": digest}})).await
    }

    /// Changes the password in a Secret.
    pub async fn set_password(&self, namespace: &str, secret: &str, password: &str) -> Result<()> {
        let patch = Patch::Merge(serde_json::json!({"stringData": {"password": password}}));
        let secrets = Api::<Secret>::namespaced(self.client.clone(), namespace);
        secrets.patch(secret, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Where the host side of every migration keeps its sockets and claims.
    pub fn run_directory(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// Deletes a migration and waits until it is gone.
    pub async fn delete(&self, name: &str) -> Result<()> {
        let start = Instant::now();
        // The API server may be down for a moment in some tests.
        while let Err(error) = self.migrations().delete(name, &DeleteParams::default()).await {
            if matches!(&error, kube::Error::Api(status) if status.is_not_found()) {
                break;
            }
            ensure!(start.elapsed() < Duration::from_secs(60), "{name} could not be deleted: {error}");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        while !matches!(self.migrations().get_opt(name).await, Ok(None)) {
            ensure!(
                start.elapsed() < Duration::from_secs(120),
                "{name} is still there 120 s after it was deleted\n{}",
                self.describe(name).await
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    /// Waits until `holds`; an error says what the migration was doing.
    pub async fn wait(
        &self,
        name: &str,
        what: &str,
        limit: Duration,
        holds: impl Fn(&VmMigration) -> bool,
    ) -> Result<VmMigration> {
        let start = Instant::now();
        loop {
            // The API server may be down for a moment in some tests.
            if let Ok(Some(migration)) = self.migrations().get_opt(name).await
                && holds(&migration)
            {
                return Ok(migration);
            }
            if start.elapsed() > limit {
                bail!("{name}: not {what} after {limit:?}\n{}", self.describe(name).await);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Waits until the status waits for `reason`.
    pub async fn wait_reason(&self, name: &str, reason: &str, limit: Duration) -> Result<VmMigration> {
        self.wait(name, &format!("waiting for {reason}"), limit, |migration| {
            migration
                .status
                .as_ref()
                .and_then(|status| status.waiting_for.as_ref())
                .is_some_and(|wait| wait.reason == reason)
        })
        .await
    }

    /// Waits until the status shows `phase`.
    pub async fn wait_phase(&self, name: &str, phase: &str, limit: Duration) -> Result<VmMigration> {
        self.wait(name, &format!("in phase {phase}"), limit, |migration| {
            migration.status.as_ref().and_then(|status| status.phase.as_deref()) == Some(phase)
        })
        .await
    }

    /// The `BlockCopy` of a migration.
    pub async fn copy_of(&self, name: &str) -> Result<BlockCopy> {
        let all = self.copies().list(&ListParams::default()).await?;
        let found =
            all.items.into_iter().find(|copy| copy.spec.claim.name == name && copy.spec.claim.namespace == TEAM);
        found.with_context(|| format!("there is no BlockCopy of {name}"))
    }

    /// Kills a container of a migration's host-side pod; the runner starts it again like a kubelet.
    pub async fn kill_host_container(&self, name: &str, container: &str) -> Result<()> {
        let pod = self.copy_of(name).await?.name_any();
        self.runner.kill_container(SYSTEM, &pod, container, Signal::SIGKILL)
    }

    /// Kills the whole host-side pod of a migration.
    pub async fn kill_host_pod(&self, name: &str) -> Result<()> {
        let pod = self.copy_of(name).await?.name_any();
        self.runner.kill_pod(SYSTEM, &pod)
    }

    /// Kills the controller; its Deployment's pod starts it again.
    pub fn kill_controller(&self) -> Result<()> {
        self.runner.kill_container(SYSTEM, "drover-operator", "operator", Signal::SIGKILL)
    }

    /// Everything that helps to see why a migration is where it is.
    pub async fn describe(&self, name: &str) -> String {
        let migration = self.migrations().get_opt(name).await.ok().flatten();
        let status = migration.map(|migration| serde_json::to_string_pretty(&migration.status).unwrap_or_default());
        let copy = self.copy_of(name).await.ok();
        let copy_text = copy.as_ref().map(|copy| serde_json::to_string_pretty(&copy).unwrap_or_default());
        let pods = Api::<Pod>::namespaced(self.client.clone(), SYSTEM)
            .list(&ListParams::default())
            .await
            .map(|list| list.items);
        let mut text =
            format!("status: {}\nBlockCopy: {}\n", status.unwrap_or_default(), copy_text.unwrap_or_default());
        for pod in pods.unwrap_or_default() {
            for container in pod.spec.iter().flat_map(|spec| &spec.containers) {
                let log = self
                    .runner
                    .logs(SYSTEM, &pod.name_any(), &container.name)
                    .unwrap_or_else(|error| error.to_string());
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(25)..].join("\n");
                text.push_str(&format!("--- {} {}\n{tail}\n", pod.name_any(), container.name));
            }
        }
        text
    }
}

fn auto_pipeline(dir: &Path, git: &GitServer, terraform: &TerraformConfig) -> Result<Pipeline> {
    Pipeline::start(PipelineConfig {
        dir: part(dir, "pipeline")?,
        repository: git.repository().to_owned(),
        branch: "main".into(),
        tools: terraform.tools.clone(),
        prism_url: terraform.prism_url.clone(),
        username: terraform.username.clone(),
        password: terraform.password.clone(),
        log_path: dir.join("pipeline.log"),
    })
}

fn gitlab(dir: &Path, git: &GitServer, terraform: &TerraformConfig) -> Result<GitLab> {
    let user = |username: &str, token: &str| User {
        username: username.into(),
        token: token.into(),
        scope: Scope::Api,
        role: Role::Maintainer,
    };
    GitLab::start(GitLabConfig {
        dir: part(dir, "gitlab")?,
        repository: git.repository().to_owned(),
        project: "team-a/machines".into(),
        default_branch: "main".into(),
        protected_for: Role::Maintainer,
        deploy_may_fail: false,
        users: vec![user(BOT, GITLAB_TOKEN), user(ENGINEER, "glpat-engineer-e07d")],
        jobs: Jobs::Terraform(terraform.clone()),
        log_path: dir.join("gitlab.log"),
    })
}

fn part(dir: &Path, name: &str) -> Result<PathBuf> {
    let part = dir.join(name);
    std::fs::create_dir_all(&part).with_context(|| format!("make {}", part.display()))?;
    Ok(part)
}

/// Before the daemon starts: it looks for hooks only then.
fn install_hook(drover: &Path, libvirt_dir: &Path) -> Result<()> {
    let hooks = libvirt_dir.join("etc/hooks");
    let output =
        std::process::Command::new(drover).args(["host", "install-hook", "--directory"]).arg(hooks).output()?;
    ensure!(output.status.success(), "install the hook: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn binaries(tools: &Tools) -> ClusterBinaries {
    ClusterBinaries {
        etcd: tools.etcd.clone(),
        kube_apiserver: tools.kube_apiserver.clone(),
        kube_controller_manager: tools.kube_controller_manager.clone(),
        kubectl: tools.kubectl.clone(),
    }
}
