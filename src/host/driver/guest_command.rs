//! A command that the guest's agent runs before the shutdown: started, followed to its end, within its time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::FutureExt;
use serde_json::{Value, json};

use super::chain;
use crate::api::shutdown::{CommandOutcome, GuestCommand};
use crate::edge::libvirt::Libvirt;
use crate::flow::copy::CommandSeen;

/// How often the agent is asked whether the command has ended.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// What is kept of the command's words: their end.
const KEPT_CHARACTERS: usize = 1000;

/// The command that runs, if any.
#[derive(Default)]
pub(super) struct Running(Option<Followed>);

struct Followed {
    task: tokio::task::JoinHandle<CommandOutcome>,
    ended: Option<CommandOutcome>,
}

impl Running {
    /// Starts the command, unless it runs or has ended.
    pub(super) fn start(&mut self, libvirt: &Arc<Libvirt>, uuid: &str, command: GuestCommand) {
        let (libvirt, uuid) = (Arc::clone(libvirt), uuid.to_owned());
        self.0.get_or_insert_with(|| Followed {
            task: tokio::spawn(async move { run(&libvirt, &uuid, &command).await }),
            ended: None,
        });
    }

    /// How far it is.
    pub(super) fn seen(&mut self) -> Option<CommandSeen> {
        let followed = self.0.as_mut()?;
        if followed.ended.is_none()
            && let Some(ended) = (&mut followed.task).now_or_never()
        {
            followed.ended = Some(ended.unwrap_or_else(|err| without_end(err.to_string())));
        }
        Some(followed.ended.clone().map_or(CommandSeen::Running, CommandSeen::Ended))
    }

    /// Forgets it; in the guest it may run on.
    pub(super) fn clear(&mut self) {
        if let Some(followed) = self.0.take() {
            followed.task.abort();
        }
    }
}

fn without_end(why: String) -> CommandOutcome {
    CommandOutcome { exit_code: None, output: tail(&why) }
}

async fn run(libvirt: &Arc<Libvirt>, uuid: &str, command: &GuestCommand) -> CommandOutcome {
    let began = Instant::now();
    let limit = Duration::from_secs(command.timeout_seconds.into());
    let (program, arguments) =
        command.command.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
    let start =
        json!({"execute": "guest-exec", "arguments": {"path": program, "arg": arguments, "capture-output": true}});
    let pid = match ask(libvirt, uuid, &start).await {
        Ok(answer) => answer["pid"].clone(),
        Err(why) => return without_end(why),
    };
    let status = json!({"execute": "guest-exec-status", "arguments": {"pid": pid}});
    let mut trouble = String::new();
    while began.elapsed() < limit {
        match ask(libvirt, uuid, &status).await {
            Ok(answer) if answer["exited"] == true => return outcome(&answer),
            Ok(_) => trouble.clear(),
            // The agent may be slow to answer; what it was told to run runs.
            Err(why) => trouble = why,
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
    without_end(format!("it had not ended after {} s {trouble}", command.timeout_seconds))
}

async fn ask(libvirt: &Arc<Libvirt>, uuid: &str, command: &Value) -> Result<Value, String> {
    let answer = libvirt.ask_agent(uuid, command.to_string()).await.map_err(|err| chain(&err))?;
    let answer: Value = serde_json::from_str(&answer).map_err(|err| format!("the agent's answer is no JSON: {err}"))?;
    Ok(answer["return"].clone())
}

/// What the agent tells of a command that has ended (QEMU guest agent protocol, `GuestExecStatus`).
fn outcome(answer: &Value) -> CommandOutcome {
    let text = |key: &str| {
        let bytes = answer[key].as_str().and_then(|text| STANDARD.decode(text).ok()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let signal = answer["signal"].as_i64().map(|signal| format!("ended by signal {signal} "));
    let output = format!("{}{}{}", signal.unwrap_or_default(), text("out-data"), text("err-data"));
    let exit_code = answer["exitcode"].as_i64().and_then(|code| i32::try_from(code).ok());
    CommandOutcome { exit_code, output: tail(output.trim()) }
}

fn tail(text: &str) -> String {
    let skipped = text.chars().count().saturating_sub(KEPT_CHARACTERS);
    text.chars().skip(skipped).collect()
}
