//! `make demo`: a running VM moves from libvirt to (simulated) AHV on this machine, while its guest writes records that prove what was kept.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use drover::api::VmMigration;
use drover::api::vm_migration::DiskStatus;
use drover_lab::gitlab::DEPLOY;
use drover_lab::guest::Load;
use drover_lab::hypervisor::Hypervisor;
use drover_lab::lab::{AppliedBy, ENGINEER, GIT_PASSWORD, Lab, LabOptions, Outcome, PRISM_PASSWORD, SYSTEM, TEAM};
use drover_lab::libvirt::{Domain, GuestSpec};
use drover_lab::process;
use tokio::signal::unix::{SignalKind, signal};

const HOSTNAME: &str = "web01";
const MIB: u64 = 1 << 20;
/// So slow that the copy can be watched.
const STORAGE_BYTES_PER_S: u64 = 12 * MIB;
const LIMIT: Duration = Duration::from_secs(300);
/// How long the mirror is shown in sync before the demo says yes.
const IN_SYNC: Duration = Duration::from_secs(4);
/// How often progress is printed where a line cannot be redrawn.
const PRINT_EVERY: Duration = Duration::from_secs(2);

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Moves one running VM in a lab on this machine and shows that nothing is lost.
#[derive(Parser)]
struct Args {
    /// Leave everything running at the end, until Ctrl-C.
    #[arg(long)]
    keep: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let demo = tokio::spawn(async move { demo(args.keep).await });
    let stopped = async {
        let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return std::future::pending().await;
        };
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
    };
    let code = tokio::select! {
        done = demo => match done {
            Ok(Ok(())) => 0,
            Ok(Err(error)) => {
                eprintln!("\ndemo: {error:#}");
                1
            }
            Err(panic) => {
                eprintln!("\ndemo: {panic}");
                1
            }
        },
        () = stopped => {
            eprintln!("\nstopping: every process of the lab is ended and its directory removed");
            130
        }
    };
    // The demo may be anywhere in its work: it is not waited for.
    process::end_all();
    std::process::exit(code)
}

async fn demo(keep: bool) -> Result<()> {
    LazyLock::force(&START);
    let dir = tempfile::Builder::new().prefix("drover-demo").tempdir()?;
    heading("A lab on this machine");
    let drover = std::env::current_exe()?.with_file_name("drover");
    let options = LabOptions {
        applied_by: AppliedBy::GitLab,
        storage_bytes_per_s: Some(STORAGE_BYTES_PER_S),
        progress: part,
        ..LabOptions::default()
    };
    let lab = Lab::start(dir.path(), &drover, options).await?;
    let source = guest(&lab)?;

    heading("What the team commits to git: a hostname");
    let file = dir.path().join("web01.yaml");
    let yaml = format!(
        "apiVersion: drover.dev/v1alpha1\nkind: VmMigration\nmetadata:\n  name: {HOSTNAME}\n  namespace: {TEAM}\nspec:\n  hostname: {HOSTNAME}\n"
    );
    std::fs::write(&file, &yaml)?;
    print!("{}", indented(&yaml));
    kubectl(&lab, &["apply", "-f", &file.display().to_string()], "apply -f web01.yaml")?;

    heading("Drover finds it, and writes the target VM as Terraform; GitLab plans it");
    let mut timeline = Timeline::default();
    let planned = timeline.follow(&lab, |migration| waits_for(migration, "PlanApproval")).await?;
    heading("An engineer looks at Terraform's plan, which Drover has judged, and starts GitLab's job");
    deploy(&lab, &planned)?;

    heading("Drover copies it while it runs");
    let planned = timeline.follow(&lab, |migration| waits_for(migration, "Approval")).await?;
    let in_sync = Instant::now();
    while in_sync.elapsed() < IN_SYNC {
        let migration = lab.migrations().get(HOSTNAME).await?;
        timeline.show(&migration);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    timeline.end_progress();

    heading("A person looks at the plan and says yes");
    let digest = planned.status.and_then(|status| status.plan).context("there is no plan")?.digest;
    let patch = format!(r#"{{"spec":{{"approved":true,"approvedDigest":"{digest}"}}}}"#);
    let arguments = ["-n", TEAM, "patch", "vmm", HOSTNAME, "--type", "merge", "-p", &patch];
    kubectl(&lab, &arguments, &format!("-n {TEAM} patch vmm {HOSTNAME} --type merge -p '{patch}'"))?;

    heading("The cutover");
    timeline.follow(&lab, |migration| phase(migration) == "Migrated").await?;
    let outcome = lab.outcome(HOSTNAME, &source).await?;
    report(&lab, &source, &outcome)?;
    kubectl(&lab, &["-n", TEAM, "get", "vmm", "-o", "wide"], &format!("-n {TEAM} get vmm -o wide"))?;
    if keep {
        kept(&lab, dir.path()).await
    } else {
        look_next()
    }
    Ok(())
}

/// What a person does in GitLab.
fn deploy(lab: &Lab, planned: &VmMigration) -> Result<()> {
    let terraform =
        planned.status.as_ref().and_then(|status| status.terraform.clone()).context("nothing was planned")?;
    println!("  pipeline   {}", terraform.pipeline_url.unwrap_or_default());
    println!("  plan       {}", terraform.summary.unwrap_or_default());
    println!("  digest     {}", terraform.plan_digest.unwrap_or_default());
    let gitlab = lab.gitlab.as_ref().context("the lab has no GitLab")?;
    let pipeline = gitlab.pipeline_of(&terraform.commit).context("the commit has no pipeline")?;
    let job = pipeline.job(DEPLOY).context("the pipeline has no job that deploys")?;
    gitlab.play_by_hand(job.id, ENGINEER)?;
    println!("  {ENGINEER} starts job {DEPLOY}");
    Ok(())
}

fn heading(text: &str) {
    println!("\n== {text}");
}

fn line(step: &str, text: &str) {
    println!("{:7.1} s  {step:<10} {text}", START.elapsed().as_secs_f64());
}

fn part(name: &str) {
    line("lab", name);
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}

fn guest(lab: &Lab) -> Result<Domain> {
    let spec = GuestSpec {
        name: HOSTNAME.into(),
        disks: vec![256 * MIB],
        ballast_bytes: 150 * MIB,
        load: Load { rate: 25, ..Load::default() },
        ..GuestSpec::default()
    };
    lab.hypervisor.set_load(HOSTNAME, spec.load);
    let source = lab.libvirt.define(&spec)?;
    line("guest", &format!("libvirt starts {HOSTNAME} (QEMU, one disk of 256 MiB)"));
    source.start_and_write(25)?;
    line("guest", "it runs, and writes 25 numbered records a second, each with fsync");
    Ok(source)
}

/// Runs the real kubectl and shows the command as a person would type it.
fn kubectl(lab: &Lab, arguments: &[&str], shown: &str) -> Result<()> {
    println!("  $ kubectl {shown}");
    let output = lab.cluster.kubectl().args(arguments).output().context("run kubectl")?;
    print!("{}", indented(&String::from_utf8_lossy(&output.stdout)));
    ensure!(output.status.success(), "kubectl {shown}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn phase(migration: &VmMigration) -> &str {
    migration.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

fn waits_for(migration: &VmMigration, reason: &str) -> bool {
    let waiting = migration.status.as_ref().and_then(|status| status.waiting_for.as_ref());
    waiting.is_some_and(|waiting| waiting.reason == reason)
}

/// Prints what changes in a migration's status, and how far the copy is.
#[derive(Default)]
struct Timeline {
    step: String,
    text: String,
    committed: bool,
    /// When progress was last shown, and whether its line is still to be redrawn.
    progress_at: Option<Instant>,
    open_line: bool,
}

impl Timeline {
    /// Shows the migration until `done` holds; a migration that needs a person is an error.
    async fn follow(&mut self, lab: &Lab, done: impl Fn(&VmMigration) -> bool) -> Result<VmMigration> {
        let start = Instant::now();
        loop {
            let migration = lab.migrations().get(HOSTNAME).await?;
            self.show(&migration);
            if done(&migration) {
                self.end_progress();
                return Ok(migration);
            }
            if phase(&migration) == "Stalled" || start.elapsed() > LIMIT {
                bail!("the migration does not go on\n{}", lab.describe(HOSTNAME).await);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    fn show(&mut self, migration: &VmMigration) {
        let Some(status) = &migration.status else { return };
        if let (Some(terraform), false) = (&status.terraform, self.committed) {
            self.committed = true;
            let path = status.plan.as_ref().map_or("", |plan| &plan.path);
            self.event("Publish", &format!("commit {}: {path}, with the new VM as Terraform", &terraform.commit[..8]));
        }
        let waiting = status.waiting_for.as_ref();
        // The command in the message is shown further down, as it is typed.
        let text = waiting.map_or("done", |waiting| {
            waiting.message.split(": kubectl").next().unwrap_or_default().trim_end_matches(", or")
        });
        if self.step != phase(migration) || self.text != text {
            (self.step, self.text) = (phase(migration).into(), text.into());
            self.event(&self.step.clone(), &text.replace(". ", ".\n                      "));
        }
        if matches!(self.step.as_str(), "Mirror" | "Approve") {
            self.progress(&status.disks);
        }
    }

    fn event(&mut self, step: &str, text: &str) {
        self.end_progress();
        line(step, text);
    }

    fn progress(&mut self, disks: &[DiskStatus]) {
        let redraws = std::io::stdout().is_terminal();
        if disks.is_empty() || self.progress_at.is_some_and(|at| !redraws && at.elapsed() < PRINT_EVERY) {
            return;
        }
        let sum = |of: fn(&DiskStatus) -> u64| disks.iter().map(of).sum::<u64>();
        let (copied, total) = (sum(|disk| disk.copied_bytes), sum(|disk| disk.total_bytes).max(1));
        let text = format!(
            "{:<10} {:>4} of {} MiB, {:>3} MiB/s, backlog {} MiB, verified {} MiB",
            disks.first().map_or("", |disk| &disk.state),
            copied / MIB,
            total / MIB,
            sum(|disk| disk.rate_mib_s.into()),
            sum(|disk| disk.backlog_bytes) / MIB,
            sum(|disk| disk.verified_bytes) / MIB,
        );
        self.progress_at = Some(Instant::now());
        if redraws {
            print!("\r{:7.1} s  {:<10} {text}\x1b[K", START.elapsed().as_secs_f64(), "");
            let _ = std::io::stdout().flush();
            self.open_line = true;
        } else {
            line("", &text);
        }
    }

    fn end_progress(&mut self) {
        if std::mem::take(&mut self.open_line) {
            println!();
        }
    }
}

fn report(lab: &Lab, source: &Domain, outcome: &Outcome) -> Result<()> {
    heading("What came of it");
    print!("{outcome}");
    let target = lab.prism.vm_by_name(HOSTNAME).context("Prism has no such VM")?;
    let state = source.state()?;
    println!("  source in libvirt                   {state}");
    println!("  target in Prism                     {}", if lab.hypervisor.is_on(&target.uuid) { "on" } else { "off" });
    println!();
    ensure!(outcome.lost() == 0, "{} records were lost", outcome.lost());
    ensure!(state == "shut off" && lab.hypervisor.is_on(&target.uuid), "not exactly one of the two machines runs");
    Ok(())
}

fn look_next() {
    heading("Where to look next");
    println!("  make demo KEEP=1              the same, left running, with a kubeconfig to look around");
    println!("  manifests/examples/           what a platform team and a client team write");
    println!("  ARCHITECTURE.md               how it works, and why it is safe");
    println!("  make test                     what was broken on purpose, and what must hold");
}

/// Says where everything is and waits for Ctrl-C.
async fn kept(lab: &Lab, dir: &Path) {
    heading("Left running until Ctrl-C");
    println!("  export KUBECONFIG={}", lab.cluster.kubeconfig().display());
    println!("  alias kubectl={}", lab.cluster.kubectl().get_program().display());
    println!("  kubectl -n {TEAM} get vmm {HOSTNAME} -o yaml      the migration, with its plan, steps and proofs");
    println!("  kubectl -n {SYSTEM} get bc,jobs,pods            the host side");
    let (ca, url) = (lab.git.ca_path(), lab.git.url());
    println!("  git -c http.sslCAInfo={} clone {url}    the team's repository (drover / {GIT_PASSWORD})", ca.display());
    println!("  {}    Prism Central (drover / {PRISM_PASSWORD})", lab.prism.central_url());
    println!("  {}    consoles, logs, disks", dir.display());
    std::future::pending::<()>().await;
}
