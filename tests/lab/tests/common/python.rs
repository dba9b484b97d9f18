//! A Python with the clients that nobody here wrote, for the tests that hold the simulators to them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Runs a command; the test ends if it does not succeed.
pub fn run(command: &mut Command, what: &str) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{what}: {error}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{what} ended with {}\n{out}\n{err}", output.status);
    output
}

/// A script of `sdk/`.
pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk").join(name)
}

/// A Python with the SDKs, made once under `target/lab-cache` and made anew when the pinned versions change.
pub fn python() -> PathBuf {
    let requirements = script("requirements.txt");
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/lab-cache");
    let venv = cache.join("sdk");
    let stamp = venv.join("requirements.txt");
    let wanted = std::fs::read(&requirements).expect("the pinned versions");
    let python = venv.join("bin/python");
    if std::fs::read(&stamp).is_ok_and(|found| found == wanted) {
        return python;
    }
    std::fs::create_dir_all(&cache).expect("make the cache");
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv), "make a Python environment (python3-venv)");
    run(
        Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes", "-r"])
            .arg(&requirements),
        "install the pinned clients",
    );
    std::fs::write(&stamp, wanted).expect("note what is installed");
    python
}
