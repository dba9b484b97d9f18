//! How a guest is shut down: part of the plan that a person approves, and of the order to the host side.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the source's guest is shut down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ShutdownPolicy {
    /// Who is asked to power the guest off.
    #[serde(default)]
    pub method: ShutdownMethod,
    /// How long the guest may take, in seconds.
    #[serde(default = "default_timeout")]
    #[schemars(range(min = 10, max = 3600))]
    pub timeout_seconds: u32,
    /// What happens when it takes longer.
    #[serde(default)]
    pub on_timeout: OnShutdownTimeout,
    /// A command that the guest's agent runs first, e.g. to stop a database in an orderly way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<GuestCommand>,
}

impl Default for ShutdownPolicy {
    fn default() -> Self {
        Self {
            method: ShutdownMethod::default(),
            timeout_seconds: default_timeout(),
            on_timeout: OnShutdownTimeout::default(),
            before: None,
        }
    }
}

fn default_timeout() -> u32 {
    300
}

/// Who is asked to power the guest off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ShutdownMethod {
    /// The guest's operating system, by the power button.
    #[default]
    Acpi,
    /// The QEMU guest agent in it.
    Agent,
}

/// What happens to a guest that does not power off in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnShutdownTimeout {
    /// It is left running; the cutover is given up.
    #[default]
    GiveUp,
    /// It is powered off, as if by pulling the plug: what it had not written is lost to it, and the cutover goes on.
    ForceOff,
}

/// A command for the guest agent. It may run more than once: a cutover that is tried again runs it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct GuestCommand {
    /// Program and arguments; no shell is involved.
    #[schemars(length(min = 1, max = 64), inner(length(max = 1024)))]
    pub command: Vec<String>,
    /// How long it may take, in seconds.
    #[serde(default = "default_command_timeout")]
    #[schemars(range(min = 1, max = 3600))]
    pub timeout_seconds: u32,
    /// What happens if it fails, or takes longer.
    #[serde(default)]
    pub on_failure: OnCommandFailure,
}

fn default_command_timeout() -> u32 {
    60
}

/// What happens when the command before the shutdown fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnCommandFailure {
    /// The guest is left running; the cutover is given up.
    #[default]
    GiveUp,
    /// The guest is shut down all the same.
    GoOn,
}

/// What became of the command before the shutdown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CommandOutcome {
    /// Its exit code; absent = it did not end by itself, or could not be run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -256, max = 256))]
    pub exit_code: Option<i32>,
    /// The end of what it printed, or why it could not be run.
    #[schemars(length(max = 1024))]
    pub output: String,
}
