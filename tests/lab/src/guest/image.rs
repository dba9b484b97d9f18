//! Kernel and initrd of the test guest, from Debian packages and two small files of our own.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Modules of the guest: both disk buses, the network card, the power button, and the agent's channel.
const MODULES: [&str; 9] =
    ["virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "ext4", "virtio_net", "evdev", "button", "virtio_console"];

/// Debian's guest agent.
const AGENT: &str = "/usr/sbin/qemu-ga";

/// A kernel and an initrd.
#[derive(Clone, Debug)]
pub struct GuestImage {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
}

impl GuestImage {
    /// Builds the initrd, or takes the one that was built from the same inputs before.
    pub fn ready() -> Result<Self> {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest");
        let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/lab-cache/guest");
        fs::create_dir_all(&cache)?;
        let lock = File::create(cache.join("lock"))?;
        lock.lock().context("wait for another lab that builds the guest")?;
        let (release, kernel) = newest_kernel()?;
        let initrd = cache.join(format!("initrd-{release}-{:016x}.gz", fingerprint(&sources)?));
        if !initrd.exists() {
            build(&sources, &cache, &release, &initrd)?;
        }
        Ok(Self { kernel, initrd })
    }
}

fn newest_kernel() -> Result<(String, PathBuf)> {
    let names = fs::read_dir("/boot")?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut releases: Vec<String> = names
        .filter_map(|name| name.strip_prefix("vmlinuz-").map(str::to_owned))
        .filter(|name| name.contains("cloud"))
        .collect();
    releases.sort();
    let release = releases
        .pop()
        .context("there is no cloud kernel in /boot: run `make setup` (package linux-image-cloud-amd64)")?;
    let kernel = PathBuf::from(format!("/boot/vmlinuz-{release}"));
    Ok((release, kernel))
}

fn fingerprint(sources: &Path) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    for name in ["init", "power-button", "record.rs", "writer.rs"] {
        fs::read(sources.join(name))?.hash(&mut hasher);
    }
    Ok(hasher.finish())
}

fn build(sources: &Path, cache: &Path, release: &str, initrd: &Path) -> Result<()> {
    let dir = tempfile::tempdir_in(cache)?;
    let root = dir.path();
    for folder in ["bin", "sbin", "dev", "proc", "sys", "mnt", "modules", "etc/acpi/PWRF"] {
        fs::create_dir_all(root.join(folder))?;
    }
    install(Path::new("/bin/busybox"), &root.join("bin/busybox"))?;
    install(&sources.join("init"), &root.join("init"))?;
    install(&sources.join("power-button"), &root.join("etc/acpi/PWRF/00000080"))?;
    // What the agent runs to shut the guest down.
    install(&sources.join("power-button"), &root.join("sbin/shutdown"))?;
    agent(root)?;
    compile(&sources.join("writer.rs"), &root.join("bin/writer"))?;
    modules(release, &root.join("modules"))?;
    let part = root.join("initrd.part");
    let script = r#"cd "$1" && find . ! -name initrd.part | cpio --quiet -o -H newc | gzip -1 > initrd.part"#;
    let status = Command::new("sh").args(["-c", script, "sh"]).arg(root).status()?;
    ensure!(status.success(), "packing the initrd failed");
    fs::rename(part, initrd)?;
    Ok(())
}

fn install(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("copy {}", from.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// The guest agent and the libraries it needs, where its loader looks for them.
fn agent(root: &Path) -> Result<()> {
    install(Path::new(AGENT), &root.join("bin/qemu-ga"))?;
    let output = Command::new("ldd").arg(AGENT).output().context("run ldd")?;
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    for library in listed.split_whitespace().filter(|word| word.starts_with('/')) {
        let to = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(to.parent().context("a library lies in a directory")?)?;
        install(Path::new(library), &to)?;
    }
    Ok(())
}

/// Statically linked, since the guest has no libraries but the agent's.
fn compile(source: &Path, to: &Path) -> Result<()> {
    let output = Command::new("rustc")
        .args([
            "--edition",
            "2021",
            "-O",
            "-C",
            "target-feature=+crt-static",
            "-C",
            "panic=abort",
            "-C",
            "strip=symbols",
            "-o",
        ])
        .args([to, source])
        .output()
        .context("run rustc")?;
    ensure!(output.status.success(), "compile {}: {}", source.display(), String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Copies the modules and all they depend on, and writes down the order in which they load.
fn modules(release: &str, to: &Path) -> Result<()> {
    let mut order: Vec<String> = Vec::new();
    for module in MODULES {
        let output =
            Command::new("modprobe").args(["-S", release, "--show-depends", module]).stderr(Stdio::null()).output()?;
        // Built-in ones are listed too, as `builtin NAME`.
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let Some(path) = line.strip_prefix("insmod ").map(str::trim) else { continue };
            let name =
                Path::new(path).file_name().and_then(|name| name.to_str()).context("a module has a name")?.to_owned();
            if !order.contains(&name) {
                fs::copy(path, to.join(&name)).with_context(|| format!("copy {path}"))?;
                order.push(name);
            }
        }
    }
    fs::write(to.join("order"), order.join("\n") + "\n")?;
    Ok(())
}
