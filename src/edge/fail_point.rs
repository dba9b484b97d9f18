//! Points at which a test has this process die, as if by SIGKILL, exactly there. A release build has none.
//!
//! A point is armed by a file of its name in the directory that `DROVER_FAIL_POINTS` names. Whoever reaches it takes the file away and
//! dies: so each point kills once, and whoever is started next gets past it.

/// Right before `what` is done.
pub fn before(what: &str) {
    reach(what, "before");
}

/// Right after `what` was done.
pub fn after(what: &str) {
    reach(what, "after");
}

#[cfg(not(debug_assertions))]
fn reach(_what: &str, _side: &str) {}

#[cfg(debug_assertions)]
fn reach(what: &str, side: &str) {
    static DIRECTORY: std::sync::LazyLock<Option<std::path::PathBuf>> =
        std::sync::LazyLock::new(|| std::env::var_os("DROVER_FAIL_POINTS").map(Into::into));
    let Some(directory) = &*DIRECTORY else { return };
    let point = format!("{what}.{side}");
    if std::fs::remove_file(directory.join(&point)).is_err() {
        return;
    }
    tracing::warn!(point, "dies here: a test wants it");
    let _ = std::process::Command::new("/bin/sh").args(["-c", "kill -s KILL $PPID"]).status();
    loop {
        std::thread::park();
    }
}
