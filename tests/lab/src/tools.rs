//! The programs the lab is made of, built once from their pinned Go modules (`tests/tools/`) into `target/tools`.
//!
//! A binary is built when its stamp does not match its inputs: the wrapper's `go.mod`, `go.sum` and sources, the package and the flags.
//! Otherwise [`Tools::ready`] only reads files. What the developer already has is honoured: `TEST_ASSET_ETCD`,
//! `TEST_ASSET_KUBE_APISERVER`, `TEST_ASSET_KUBECTL`, the directory `KUBEBUILDER_ASSETS`, a `terraform` or `tofu` on `PATH`, and
//! `DROVER_NUTANIX_PROVIDER`, a binary of the vendor's Terraform provider. `DROVER_TOOLS_DIR` moves the place.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

/// Version under which the Nutanix provider stands in the mirror.
pub const PROVIDER_VERSION: &str = "2.4.2";

const PROVIDER_BINARY: &str = "terraform-provider-nutanix_v2.4.2";

/// Where `nutanix/nutanix` is looked for: by OpenTofu in the first registry, by Terraform in the second.
const REGISTRIES: [&str; 2] = ["registry.opentofu.org", "registry.terraform.io"];

/// Without these, Kubernetes calls itself v0.0.0 and version checks of its clients fail.
const KUBERNETES_VERSION: &str = "-s -w -X k8s.io/component-base/version.gitVersion=v1.37.0 \
    -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37 \
    -X k8s.io/client-go/pkg/version.gitVersion=v1.37.0";

/// Paths of ready programs.
#[derive(Clone, Debug)]
pub struct Tools {
    pub etcd: PathBuf,
    pub kube_apiserver: PathBuf,
    pub kube_controller_manager: PathBuf,
    pub kubectl: PathBuf,
    /// Terraform's engine: OpenTofu, unless a `terraform` is on `PATH`.
    pub terraform: PathBuf,
    /// For `TF_CLI_CONFIG_FILE`: providers come from the local mirror only, so `init` needs no network.
    pub terraform_cli_config: PathBuf,
}

/// One program built from a package of a wrapper module.
struct Recipe {
    name: &'static str,
    /// Directory under `tests/tools`.
    module: &'static str,
    package: &'static str,
    ldflags: &'static str,
}

const ETCD: Recipe =
    Recipe { name: "etcd", module: "kubernetes", package: "go.etcd.io/etcd/server/v3", ldflags: KUBERNETES_VERSION };
const KUBE_APISERVER: Recipe = kubernetes("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver");
const KUBE_CONTROLLER_MANAGER: Recipe =
    kubernetes("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager");
const KUBECTL: Recipe = kubernetes("kubectl", "k8s.io/kubernetes/cmd/kubectl");
const TOFU: Recipe = Recipe {
    name: "tofu",
    module: "opentofu",
    package: "github.com/opentofu/opentofu/cmd/tofu",
    ldflags: "-s -w -X github.com/opentofu/opentofu/version.dev=no",
};
const PROVIDER: Recipe = Recipe { name: PROVIDER_BINARY, module: "nutanix-provider", package: ".", ldflags: "-s -w" };

const fn kubernetes(name: &'static str, package: &'static str) -> Recipe {
    Recipe { name, module: "kubernetes", package, ldflags: KUBERNETES_VERSION }
}

impl Tools {
    /// All programs, built if need be: minutes the first time, milliseconds after that.
    ///
    /// # Errors
    /// A build failed (with the compiler's output), Go is missing, or a variable names a file that is not there.
    pub fn ready() -> Result<Self> {
        let workshop = Workshop::open()?;
        Ok(Self {
            etcd: workshop.asset("TEST_ASSET_ETCD", &ETCD)?,
            kube_apiserver: workshop.asset("TEST_ASSET_KUBE_APISERVER", &KUBE_APISERVER)?,
            kube_controller_manager: workshop.asset("TEST_ASSET_KUBE_CONTROLLER_MANAGER", &KUBE_CONTROLLER_MANAGER)?,
            kubectl: workshop.asset("TEST_ASSET_KUBECTL", &KUBECTL)?,
            terraform: match on_path("terraform").or_else(|| on_path("tofu")) {
                Some(path) => path,
                None => workshop.built(&TOFU)?,
            },
            terraform_cli_config: workshop.terraform_cli_config()?,
        })
    }
}

/// The places: sources of the wrapper modules, and what is built from them.
struct Workshop {
    sources: PathBuf,
    target: PathBuf,
}

impl Workshop {
    fn open() -> Result<Self> {
        let lab = Path::new(env!("CARGO_MANIFEST_DIR"));
        let workspace = lab.ancestors().nth(2).context("the lab lies in tests/lab of its workspace")?;
        let target = env::var_os("DROVER_TOOLS_DIR").map_or_else(|| workspace.join("target/tools"), PathBuf::from);
        for part in ["bin", "stamps"] {
            let path = target.join(part);
            fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        }
        let target = target.canonicalize()?;
        Ok(Self { sources: workspace.join("tests/tools"), target })
    }

    /// A program that the environment may give: by its own variable, or in the directory `KUBEBUILDER_ASSETS`.
    fn asset(&self, variable: &str, recipe: &Recipe) -> Result<PathBuf> {
        if let Some(path) = env::var_os(variable) {
            return existing(variable, &path);
        }
        let given = env::var_os("KUBEBUILDER_ASSETS").map(|dir| Path::new(&dir).join(recipe.name));
        match given.filter(|path| path.is_file()) {
            Some(path) => Ok(path),
            None => self.built(recipe),
        }
    }

    /// The program, built if it is missing or its inputs changed.
    fn built(&self, recipe: &Recipe) -> Result<PathBuf> {
        let binary = self.target.join("bin").join(recipe.name);
        let stamp = self.target.join("stamps").join(recipe.name);
        let wanted = self.stamp_of(recipe)?;
        let fresh = || binary.is_file() && fs::read_to_string(&stamp).is_ok_and(|found| found == wanted);
        if fresh() {
            return Ok(binary);
        }
        // Tests run beside each other: one builds, the others wait here and then find it built.
        let _lock = self.lock()?;
        if !fresh() {
            self.build(recipe, &binary)?;
            fs::write(&stamp, &wanted).with_context(|| format!("write {}", stamp.display()))?;
        }
        Ok(binary)
    }

    fn lock(&self) -> Result<File> {
        let path = self.target.join("lock");
        let file = File::create(&path).with_context(|| format!("open {}", path.display()))?;
        file.lock().with_context(|| format!("lock {}", path.display()))?;
        Ok(file)
    }

    fn stamp_of(&self, recipe: &Recipe) -> Result<String> {
        let module = self.sources.join(recipe.module);
        let listing = fs::read_dir(&module).with_context(|| format!("list {}", module.display()))?;
        let mut inputs: Vec<PathBuf> = listing.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        inputs.retain(|path| path.extension().is_some_and(|kind| kind == "go" || kind == "mod" || kind == "sum"));
        inputs.sort();

        let mut hash = Sha256::new();
        hash.update(format!("{}\n{}\n", recipe.package, recipe.ldflags));
        for path in inputs {
            let content = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            hash.update(format!("{name} {}\n", content.len()));
            hash.update(content);
        }
        Ok(format!("{:x}\n", hash.finalize()))
    }

    fn build(&self, recipe: &Recipe, binary: &Path) -> Result<()> {
        let module = self.sources.join(recipe.module);
        eprintln!("building {} from {} (the first time this takes minutes)", recipe.name, module.display());
        let start = Instant::now();
        // A running copy keeps its file; a build that is cut short leaves no half-written program behind.
        let unfinished = binary.with_file_name(format!("{}.new", recipe.name));
        let output = Command::new("go")
            .args(["build", "-trimpath", "-buildvcs=false", "-ldflags", recipe.ldflags, "-o"])
            .arg(&unfinished)
            .arg(recipe.package)
            .current_dir(&module)
            .env("CGO_ENABLED", "0")
            .output()
            .with_context(|| {
                format!("build {}: start `go`; install Go as {}/go.mod asks", recipe.name, module.display())
            })?;
        if !output.status.success() {
            let log = String::from_utf8_lossy(&output.stderr);
            bail!("build {} in {}: {}\n{log}", recipe.name, module.display(), output.status);
        }
        fs::rename(&unfinished, binary).with_context(|| format!("put {} in place", binary.display()))?;
        eprintln!("built {} in {:.0} s", recipe.name, start.elapsed().as_secs_f64());
        Ok(())
    }

    /// Puts the Nutanix provider into a mirror and returns the configuration that knows this mirror only.
    fn terraform_cli_config(&self) -> Result<PathBuf> {
        let (provider, mirror) = match env::var_os("DROVER_NUTANIX_PROVIDER") {
            Some(path) => {
                let provider = existing("DROVER_NUTANIX_PROVIDER", &path)?;
                // Labs with different providers may run beside each other.
                let key = format!("{:x}", Sha256::digest(provider.as_os_str().as_encoded_bytes()));
                (provider, self.target.join(format!("providers-{}", &key[..12])))
            }
            None => (self.built(&PROVIDER)?, self.target.join("providers")),
        };
        let config = mirror.join("terraform.rc");
        if config.is_file() {
            return Ok(config);
        }
        let _lock = self.lock()?;
        for registry in REGISTRIES {
            let package = mirror.join(registry).join("nutanix/nutanix").join(PROVIDER_VERSION).join(platform());
            fs::create_dir_all(&package).with_context(|| format!("make {}", package.display()))?;
            let link = package.join(PROVIDER_BINARY);
            if !link.exists() {
                symlink(&provider, &link).with_context(|| format!("link {}", link.display()))?;
            }
        }
        let text = format!("provider_installation {{\n  filesystem_mirror {{\n    path = {mirror:?}\n  }}\n}}\n");
        let unfinished = mirror.join("terraform.rc.new");
        fs::write(&unfinished, text).with_context(|| format!("write {}", unfinished.display()))?;
        fs::rename(&unfinished, &config).with_context(|| format!("write {}", config.display()))?;
        Ok(config)
    }
}

/// Terraform's name of this platform.
fn platform() -> String {
    let arch = match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("{}_{arch}", env::consts::OS)
}

fn existing(variable: &str, path: &OsStr) -> Result<PathBuf> {
    let path = PathBuf::from(path);
    ensure!(path.is_file(), "{variable} names {}, which is no file: correct or unset it", path.display());
    Ok(path.canonicalize()?)
}

fn on_path(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|dir| dir.join(name)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: Recipe = Recipe { name: "hello", module: "hello", package: ".", ldflags: "" };

    /// A workshop with one module, whose program prints `text`.
    fn workshop(dir: &Path) -> Workshop {
        let workshop = Workshop { sources: dir.join("sources"), target: dir.join("target") };
        for path in [workshop.sources.join("hello"), workshop.target.join("bin"), workshop.target.join("stamps")] {
            fs::create_dir_all(path).unwrap();
        }
        fs::write(workshop.sources.join("hello/go.mod"), "module hello\n\ngo 1.21\n").unwrap();
        workshop
    }

    fn write_main(workshop: &Workshop, text: &str) {
        let source = format!("package main\n\nfunc main() {{ print({text}) }}\n");
        fs::write(workshop.sources.join("hello/main.go"), source).unwrap();
    }

    fn output_of(program: &Path) -> String {
        String::from_utf8(Command::new(program).output().unwrap().stderr).unwrap()
    }

    #[test]
    fn a_program_is_built_again_only_when_its_source_changed() {
        let dir = tempfile::tempdir().unwrap();
        let workshop = workshop(dir.path());
        write_main(&workshop, "\"one\"");
        let program = workshop.built(&HELLO).unwrap();
        assert_eq!(output_of(&program), "one");

        let built_at = fs::metadata(&program).unwrap().modified().unwrap();
        workshop.built(&HELLO).unwrap();
        assert_eq!(fs::metadata(&program).unwrap().modified().unwrap(), built_at, "nothing changed, nothing built");

        write_main(&workshop, "\"two\"");
        assert_eq!(output_of(&workshop.built(&HELLO).unwrap()), "two");
    }

    #[test]
    fn a_failed_build_shows_the_compiler_and_leaves_the_old_stamp() {
        let dir = tempfile::tempdir().unwrap();
        let workshop = workshop(dir.path());
        write_main(&workshop, "nonsense");
        let error = format!("{:#}", workshop.built(&HELLO).unwrap_err());
        assert!(error.contains("undefined: nonsense"), "{error}");
        assert!(!workshop.target.join("stamps/hello").exists());
    }

    #[test]
    fn a_variable_that_names_no_file_is_refused_by_name() {
        let error = existing("TEST_ASSET_ETCD", OsStr::new("/nowhere/etcd")).unwrap_err().to_string();
        assert!(error.contains("TEST_ASSET_ETCD") && error.contains("/nowhere/etcd"), "{error}");
    }
}
