//! Moves what was acknowledged to the target, and reads from it.
//!
//! Each writer owns one connection and repeats a run until the target has it: the server may be away for as long as no request waits.
//! A writer whose export ended finishes the call it is in, without repeating it. Until then the export's successor on the same target
//! must wait, or the old call could be carried out after a newer one: see `Exports::open`.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Semaphore};

use super::block_set::{BLOCK_BYTES, is_zero};
use super::export::{Export, Life, RequestError};
use super::memory::Buffer;
use super::queue::{Content, Run, RunContent, gaps};
use super::target::{TargetConnection, TargetError};

/// Connections per export for writing, and for reading.
pub const WRITERS: usize = 4;
const READERS: usize = 4;
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(2);

/// One writer's life. It ends with the export.
pub async fn write_runs(export: Arc<Export>) {
    let mut connection = None;
    while let Some(run) = export.next_run().await {
        let Some(outcome) = write_run(&export, &mut connection, &run).await else { return };
        export.complete(&run, outcome == Outcome::Skipped);
    }
}

/// How the target came to hold a run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Written,
    /// It held it already: an earlier copy put it there.
    Skipped,
}

/// Writes `run`, repeating it after passing faults; `None` when the export ended before it was written.
async fn write_run(export: &Export, connection: &mut Option<Box<dyn TargetConnection>>, run: &Run) -> Option<Outcome> {
    let mut pause = RETRY_FIRST;
    loop {
        match try_run(export, connection, run).await {
            Ok(outcome) => return Some(outcome),
            Err(error) if error.is_transient() => {
                tracing::warn!(export = export.name, error = report(&error), "target is away");
            }
            Err(error) => {
                export.break_off(&report(&error));
                return None;
            }
        }
        *connection = None;
        if !pause_while_running(export, pause).await {
            return None;
        }
        pause = (pause * 2).min(RETRY_LAST);
    }
}

/// The run is in flight all the while, so nothing that overlaps it is written between the look and the write.
async fn try_run(
    export: &Export,
    connection: &mut Option<Box<dyn TargetConnection>>,
    run: &Run,
) -> Result<Outcome, TargetError> {
    if connection.is_none() {
        *connection = Some(export.target.connect().await?);
    }
    let connection = connection.as_mut().expect("connected above");
    if export.may_be_there(run) {
        let mut there = vec![0; run.len as usize];
        connection.read(run.offset, &mut there).await?;
        if holds(&there, &run.content) {
            return Ok(Outcome::Skipped);
        }
    }
    match &run.content {
        RunContent::Data(pieces) => connection.write(run.offset, pieces).await?,
        RunContent::Zero => connection.zero(run.offset, run.len).await?,
    }
    Ok(Outcome::Written)
}

/// Whether `there` is what a run of that length would write.
fn holds(there: &[u8], content: &RunContent) -> bool {
    match content {
        RunContent::Data(pieces) => {
            let mut rest = there;
            pieces.iter().all(|piece| {
                let (part, after) = rest.split_at(piece.len());
                rest = after;
                part == piece
            })
        }
        RunContent::Zero => there.chunks(BLOCK_BYTES as usize).all(is_zero),
    }
}

/// Waits; false when the export ended.
async fn pause_while_running(export: &Export, pause: Duration) -> bool {
    let mut life = export.watch_life();
    let ended = life.wait_for(|life| *life != Life::Running);
    tokio::time::timeout(pause, ended).await.is_err()
}

/// The error and what lies behind it, in one line.
pub fn report(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Connections for reading from one target, so that a read does not stand behind writes.
pub struct Readers {
    idle: Mutex<Vec<Box<dyn TargetConnection>>>,
    limit: Semaphore,
}

impl Default for Readers {
    fn default() -> Self {
        Self { idle: Mutex::default(), limit: Semaphore::new(READERS) }
    }
}

impl Readers {
    /// Fills `buffer` with what the disk holds from `offset` on: the target's bytes, and over them what was acknowledged since.
    pub async fn read(&self, export: &Export, offset: u64, buffer: &mut Buffer) -> Result<(), RequestError> {
        let pieces = export.overlay(offset, buffer.data.len() as u64).ok_or(RequestError::Io)?;
        for (from, len) in gaps(offset, buffer.data.len() as u64, &pieces) {
            let part = &mut buffer.data[(from - offset) as usize..(from - offset + len) as usize];
            self.read_target(export, from, part).await?;
        }
        for piece in pieces {
            let from = (piece.offset - offset) as usize;
            let part = &mut buffer.data[from..from + piece.len as usize];
            match piece.content {
                Content::Data(bytes) => part.copy_from_slice(&bytes),
                Content::Zero => part.fill(0),
            }
        }
        Ok(())
    }

    async fn read_target(&self, export: &Export, offset: u64, part: &mut [u8]) -> Result<(), RequestError> {
        let _permit = self.limit.acquire().await.expect("the semaphore is never closed");
        let mut pause = RETRY_FIRST;
        loop {
            match self.try_read(export, offset, part).await {
                Ok(()) => return Ok(()),
                Err(error) if error.is_transient() => {}
                Err(error) => {
                    export.break_off(&report(&error));
                    return Err(RequestError::Io);
                }
            }
            if !pause_while_running(export, pause).await {
                return Err(RequestError::Io);
            }
            pause = (pause * 2).min(RETRY_LAST);
        }
    }

    async fn try_read(&self, export: &Export, offset: u64, part: &mut [u8]) -> Result<(), TargetError> {
        let idle = self.idle.lock().await.pop();
        let mut connection = match idle {
            Some(connection) => connection,
            None => export.target.connect().await?,
        };
        connection.read(offset, part).await?;
        self.idle.lock().await.push(connection); // only a connection in step goes back
        Ok(())
    }
}
