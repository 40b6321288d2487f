//! `tollgate pepper`: the secret that is hashed with every key, replaced while everything runs.

mod files;
mod state;

use std::cell::RefCell;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use rand::TryRng;
use serde_json::json;
use testkit::eventually;
use zeroize::Zeroizing;

pub(crate) use self::files::PepperFiles;

use self::state::State;
use crate::connect::System;
use crate::failure::{Failure, Result};
use crate::output::Output;

/// Makes and replaces peppers.
#[derive(Subcommand)]
pub(crate) enum Pepper {
    /// Print a new pepper for API_KEY_PEPPER: 256 random bits as 64 hex digits
    Generate,
    /// Who has which pepper, and how many keys wait for their first use under the current one
    Status,
    /// Replace the pepper in running services; no call is refused meanwhile
    #[command(after_help = "Examples:
  tollgate pepper rotate                                      of a running `tollgate dev`
  tollgate pepper rotate --file /run/secrets/pepper --previous-file /run/secrets/pepper-previous

Keys move to the new pepper at their first use. Until then they need the one before: rotating again
is refused as long as any wait, and --force gives those up: they stop working for good.
Services must read both peppers from files. Elsewhere (a Kubernetes secret, a vault) write the
present pepper to API_KEY_PEPPER_PREVIOUS first and a new one (`tollgate pepper generate`) to
API_KEY_PEPPER, and watch `tollgate pepper status`.")]
    Rotate(Change),
    /// Remove the pepper before, once no key waits for its first use
    Retire(Change),
}

/// Which files, and how far to go.
#[derive(Args)]
pub(crate) struct Change {
    /// The file of API_KEY_PEPPER_FILE; of `tollgate dev` if absent
    #[arg(long, value_name = "FILE", requires = "previous_file")]
    file: Option<PathBuf>,
    /// The file of API_KEY_PEPPER_PREVIOUS_FILE
    #[arg(long, value_name = "FILE", requires = "file")]
    previous_file: Option<PathBuf>,
    /// Give up the keys that still wait for their first use: they never work again
    #[arg(long)]
    force: bool,
    /// Wait so long for services to follow
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
}

pub(crate) async fn run(
    command: Pepper,
    find: impl FnOnce() -> Result<System>,
    output: &Output,
) -> Result {
    match command {
        Pepper::Generate => {
            generate(output);
            Ok(())
        }
        Pepper::Status => status(&find()?, output).await,
        Pepper::Rotate(change) => rotate(&change, &find()?, output).await,
        Pepper::Retire(change) => retire(&change, &find()?, output).await,
    }
}

fn generate(output: &Output) {
    let pepper = random_hex();
    if output.is_json() {
        output.json(&json!({ "pepper": pepper }));
    } else {
        output.text(&pepper);
    }
}

async fn status(system: &System, output: &Output) -> Result {
    let state = State::read(system).await?;
    if output.is_json() {
        output.json(&state.show());
        return Ok(());
    }
    output.record(&state.summary());
    let columns = [
        ("service", "SERVICE"),
        ("name", "NAME"),
        ("pepper_id", "PEPPER"),
        ("previous_pepper_id", "BEFORE"),
    ];
    output.list("holders", &columns, state.show_holders());
    Ok(())
}

impl Change {
    fn files(&self, system: &System) -> Result<PepperFiles> {
        if let (Some(current), Some(previous)) = (&self.file, &self.previous_file) {
            return Ok(PepperFiles {
                current: current.clone(),
                previous: previous.clone(),
            });
        }
        let dev = system.dev.as_ref().ok_or_else(|| {
            let text = "no `tollgate dev` runs here: name the files of the peppers with --file and \
                        --previous-file";
            Failure::usage(text)
        })?;
        Ok(dev.peppers.clone())
    }

    /// Waits until all that live satisfy a condition; prints for whom it waits.
    async fn wait(
        &self,
        system: &System,
        output: &Output,
        is_there: impl Fn(&state::Holder) -> bool,
    ) -> Result<State> {
        let progress = output.progress("waiting for the services to follow");
        let said = RefCell::new(Vec::new());
        let within = Duration::from_secs(self.timeout);
        let all = eventually(within, "all services follow", || async {
            let state = State::read(system)
                .await
                .map_err(|error| error.to_string())?;
            let late = state.names(|holder| !is_there(holder));
            if late.is_empty() {
                return Ok(state);
            }
            let names = late.join(", ");
            if *said.borrow() != late {
                progress.step(&format!("waiting for {names}"));
                said.replace(late);
            }
            Err(format!("{names} not yet"))
        });
        let state = all.await?;
        drop(progress);
        Ok(state)
    }
}

async fn rotate(change: &Change, system: &System, output: &Output) -> Result {
    let files = change.files(system)?;
    let _held = files.hold()?;
    let (pepper, text) = files.read_current()?;
    let state = State::read(system).await?;
    state.check_holders(&pepper.id())?;
    let waiting = state.waiting();
    if waiting > 0 && !change.force {
        return Err(Failure::usage(format!(
            "{waiting} keys wait for their first use since the last rotation and would be lost: \
             wait, revoke them, or give them up with --force"
        )));
    }
    let new = Zeroizing::new(random_hex());
    let id = types::Pepper::new(&new)?.id();
    files.advance(&text, &new)?;
    output.note(&format!(
        "{} holds pepper {id} now",
        files.current.display()
    ));
    let state = change
        .wait(system, output, |holder| holder.pepper == id)
        .await?;
    output.record(&json!({
        "pepper_id": id,
        "previous_pepper_id": pepper.id(),
        "holders": state.holders.len(),
        "waiting_keys": state.waiting(),
        "given_up_keys": waiting,
    }));
    Ok(())
}

async fn retire(change: &Change, system: &System, output: &Output) -> Result {
    let files = change.files(system)?;
    let _held = files.hold()?;
    let (pepper, _) = files.read_current()?;
    let state = State::read(system).await?;
    state.check_holders(&pepper.id())?;
    let waiting = state.waiting();
    if waiting > 0 && !change.force {
        return Err(Failure::usage(format!(
            "{waiting} keys wait for their first use and need the pepper before: wait, revoke \
             them, or give them up with --force"
        )));
    }
    if files.has_previous()? {
        files.retire()?;
    }
    change
        .wait(system, output, |holder| holder.previous.is_none())
        .await?;
    output.record(&json!({ "pepper_id": pepper.id(), "given_up_keys": waiting }));
    Ok(())
}

/// 256 bits, 64 digits.
pub(crate) fn random_hex() -> String {
    let mut bytes = [0_u8; 32];
    rand::rngs::SysRng
        .try_fill_bytes(&mut bytes)
        .expect("the operating system has randomness to give");
    let mut text = String::with_capacity(64);
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a text takes everything");
    }
    text
}
