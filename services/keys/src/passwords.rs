//! Hashing passwords without starving everything else.

use std::{sync::Arc, time::Duration};

use runtime::Host;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::{
    domain::password::{SALT_BYTES, Stored, is_possible},
    error::{Error, Result},
};

/// Passwords hashed at once: 19 MiB and a core each.
const AT_ONCE: usize = 2;
/// Whoever waits longer for a turn is sent away.
const TURN_MAX: Duration = Duration::from_secs(5);

/// Hashes and checks passwords, two at a time.
pub(crate) struct Passwords {
    host: Host,
    turns: Arc<Semaphore>,
    /// Checked for whoever has no password, so that the answer takes as long. Nothing hashes to it.
    nobody: Stored,
}

impl Passwords {
    pub(crate) fn new(host: Host) -> Self {
        let random: [u8; 48] = host.random();
        Self {
            nobody: Stored::from_slice(&random).expect("48 bytes are a stored password"),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
            host,
        }
    }

    /// Runs in turn. The turn goes with the work: giving up waiting does not make room for more.
    async fn in_turn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let turn = Arc::clone(&self.turns).acquire_owned();
        let turn = match tokio::time::timeout(TURN_MAX, turn).await {
            Ok(turn) => turn.map_err(|error| Error::Internal(error.into()))?,
            Err(_elapsed) => {
                let text = "too many people sign in at this moment, try again";
                return Err(Error::Exhausted(text.to_owned()));
            }
        };
        let work = self.host.blocking(move || {
            let outcome = work();
            drop(turn);
            outcome
        });
        work.await.map_err(Error::Internal)?
    }

    /// Hashes a new password.
    pub(crate) async fn hash(&self, password: Zeroizing<String>) -> Result<Stored> {
        let salt: [u8; SALT_BYTES] = self.host.random();
        self.in_turn(move || Stored::new(&password, salt)).await
    }

    /// Is this the password? Nobody's takes as long to refuse as a wrong one.
    pub(crate) async fn is(
        &self,
        stored: Option<&Stored>,
        password: Zeroizing<String>,
    ) -> Result<bool> {
        if !is_possible(&password) {
            return Ok(false);
        }
        let known = stored.is_some();
        let stored = stored.unwrap_or(&self.nobody).clone();
        let right = self.in_turn(move || stored.is(&password)).await?;
        Ok(right && known)
    }
}
