//! A hook for libvirt that refuses to start a domain which Drover moves or has moved away.
//!
//! It is a second lock beside the disabled autostart and the mark, against a person or a cluster manager that starts the source. Its
//! limits: libvirt looks for hooks when its daemon starts, so the daemon has to be restarted once after the installation; whoever starts
//! QEMU without libvirt is not stopped; a domain that is defined anew from an old file has lost its mark, and starts.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Command line of `drover host install-hook`.
#[derive(Clone, Debug, clap::Args)]
pub struct HookArgs {
    /// libvirt's directory of hooks.
    #[arg(long, default_value = "/etc/libvirt/hooks")]
    pub directory: PathBuf,
    /// Remove the hook instead.
    #[arg(long)]
    pub remove: bool,
}

/// Why the hook could not be installed or removed.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {path}: {source}")]
pub struct Error {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// In `qemu.d` hooks of several owners live side by side (libvirt 6.5 and newer).
const PLACE: &str = "qemu.d/drover";

const SCRIPT: &str = r#"#!/bin/sh
# Written by `drover host install-hook`: refuses to start a domain that Drover moves or has moved to another platform.
# libvirt calls it with NAME OPERATION SUB-OPERATION EXTRA and the domain's XML on standard input (https://libvirt.org/hooks.html).
case "$2" in
  prepare | restore | migrate) ;;
  *) exit 0 ;;
esac
mark=$(tr '\n' ' ' | sed -n 's|.*<drover:migration \([^>]*\)>.*|\1|p')
case "$mark" in *https://drover.dev/migration*) ;; *) exit 0 ;; esac
case " $mark" in
  *" state='migrated'"* | *' state="migrated"'*) what='was moved away' ;;
  *" state='cutover'"* | *' state="cutover"'*) what='is being moved away' ;;
  *) exit 0 ;;
esac
echo "domain $1 $what by Drover; two machines would run on the same data: start refused. spec.rollback of its VmMigration gives it back." >&2
exit 1
"#;

/// Installs or removes the hook; what is to be done next, for people.
pub fn install(args: &HookArgs) -> Result<String, Error> {
    let path = args.directory.join(PLACE);
    if args.remove {
        return match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error { doing: "removing", path, source }),
            Ok(()) | Err(_) => Ok(format!("{} is gone", path.display())),
        };
    }
    write(&path).map_err(|source| Error { doing: "writing", path: path.clone(), source })?;
    Ok(format!(
        "{} is written. libvirt looks for hooks when it starts: restart its daemon (guests run on)",
        path.display()
    ))
}

fn write(path: &Path) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    // In one step: a start of a domain meanwhile finds the old hook or the new one, and never half of it.
    let draft = path.with_extension("draft");
    fs::write(&draft, SCRIPT)?;
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o755))?;
    fs::rename(draft, path)
}
