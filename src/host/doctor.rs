//! `drover host doctor`: shows what a migration has left on this hypervisor. It only looks.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::driver::chain;
use super::driver::claim::{Claims, Entry};
use super::relay::LOCK_FILE;
use crate::edge::host_processes;
use crate::edge::libvirt::Libvirt;
use crate::flow::doctor::{ClaimFile, FileOf, HostSeen, Report, StrayFile, host, read_living};

/// Command line of `drover host doctor`.
#[derive(Clone, Debug, clap::Args)]
pub struct DoctorArgs {
    /// libvirt's connection URI (`LibvirtHost.spec.uri`).
    #[arg(long, default_value = "qemu:///system")]
    pub uri: String,
    /// The host side's directory on this hypervisor (`LibvirtHost.spec.runDirectory`).
    #[arg(long, default_value = "/run/drover")]
    pub run_directory: PathBuf,
    /// What `drover doctor --living` has printed; - = standard input. Without it a migration lives if one of its processes runs here.
    #[arg(long)]
    pub living: Option<PathBuf>,
    /// Print JSON.
    #[arg(long, short, value_parser = ["json"])]
    pub output: Option<String>,
}

/// Looks, and prints what was left behind.
pub async fn run(args: DoctorArgs) -> ExitCode {
    let report = report(&args).await;
    print!("{}", report.text(args.output.is_some()));
    ExitCode::from(report.exit_code())
}

async fn report(args: &DoctorArgs) -> Report {
    let run_directory = args.run_directory.display().to_string();
    let mut seen = HostSeen { uri: args.uri.clone(), run_directory, ..HostSeen::default() };
    let mut unknown = Vec::new();
    if let Some(file) = &args.living {
        match read(file).map_err(|err| err.to_string()).and_then(|text| read_living(&text)) {
            Ok(living) => seen.living = Some(living),
            // Without it everything would look like a leftover, or nothing.
            Err(why) => {
                return Report { leftovers: Vec::new(), unknown: vec![format!("which migrations live: {why}")] };
            }
        }
    }
    match host_processes::parts(&seen.run_directory) {
        Ok(processes) => seen.processes = processes,
        Err(err) => unknown.push(chain(&err)),
    }
    match Libvirt::new(&args.uri).traces().await {
        Ok(domains) => seen.domains = domains,
        Err(err) => unknown.push(chain(&err)),
    }
    claims(&args.run_directory, &mut seen, &mut unknown);
    if let Err(err) = relay_files(&args.run_directory, &mut seen) {
        unknown.push(format!("reading the run directory {}: {err}", args.run_directory.display()));
    }
    Report { leftovers: host(&seen), unknown }
}

fn read(file: &Path) -> io::Result<String> {
    if file.as_os_str() != "-" {
        return fs::read_to_string(file);
    }
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    Ok(text)
}

fn claims(run_directory: &Path, seen: &mut HostSeen, unknown: &mut Vec<String>) {
    let claims = Claims::new(run_directory);
    let entries = claims.entries().unwrap_or_else(|err| {
        unknown.push(chain(&err));
        Vec::new()
    });
    for (path, entry) in entries {
        let path = path.display().to_string();
        match entry {
            Entry::Claim(domain_uuid) => match claims.read(&domain_uuid) {
                Ok(Some(memory)) => seen.claims.push(ClaimFile { path, domain_uuid, memory }),
                // Given up since the list was made.
                Ok(None) => {}
                Err(err) => unknown.push(chain(&err)),
            },
            Entry::Beside(domain_uuid) => seen.files.push(StrayFile { path, of: FileOf::Claim(domain_uuid) }),
            Entry::Lock => {}
            Entry::Unknown => seen.files.push(StrayFile { path, of: FileOf::Nothing }),
        }
    }
}

/// What lies in the directories of relays, which bear the uids of their migrations.
fn relay_files(run_directory: &Path, seen: &mut HostSeen) -> io::Result<()> {
    for entry in fs::read_dir(run_directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !entry.file_type()?.is_dir() {
            seen.files.push(StrayFile { path: entry.path().display().to_string(), of: FileOf::Nothing });
        } else if name != "claims" {
            for file in fs::read_dir(entry.path())? {
                let file = file?;
                if file.file_name() != LOCK_FILE {
                    let of = FileOf::Migration(name.clone());
                    seen.files.push(StrayFile { path: file.path().display().to_string(), of });
                }
            }
        }
    }
    Ok(())
}
