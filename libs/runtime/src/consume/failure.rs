//! Why usage is not applied, and what is done about it.

/// Why records could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A delivery breaks a rule: it goes to the dead letters, the rest is tried without it.
    #[error("delivery {delivery}: {reason}")]
    Poison {
        /// Its position in the slice.
        delivery: usize,
        /// What rule, in words for an operator.
        reason: String,
    },
    /// What a delivery needs is not there yet: it is delivered again, the rest goes on.
    #[error("delivery {delivery} waits: {reason}")]
    Later {
        /// Its position in the slice.
        delivery: usize,
        /// For what.
        reason: String,
    },
    /// PostgreSQL refuses something that a delivery says, not which: they are tried apart, and the
    /// one that is refused alone goes to the dead letters.
    #[error("refused: {0}")]
    Refused(String),
    /// Anything else: everything is tried again.
    #[error("not applied")]
    Failed(#[source] anyhow::Error),
}

impl From<sqlx::Error> for ApplyError {
    fn from(error: sqlx::Error) -> Self {
        match error.as_database_error() {
            Some(refusal) if refusal.code().is_some_and(|code| is_of_data(&code)) => {
                Self::Refused(refusal.to_string())
            }
            _ => Self::Failed(error.into()),
        }
    }
}

/// Whether the same statement fails again, whoever repeats it: what it says is wrong (22), breaks a
/// constraint (23), or is too large (54).
fn is_of_data(sqlstate: &str) -> bool {
    ["22", "23", "54"]
        .iter()
        .any(|class| sqlstate.starts_with(class))
}

#[cfg(test)]
mod tests {
    use super::is_of_data;

    #[test]
    fn only_what_a_delivery_says_is_held_against_it() {
        // Out of range, not a character, not unique, a row too large for an index.
        for refused in ["22003", "22021", "23505", "54000"] {
            assert!(is_of_data(refused), "{refused}");
        }
        // A serialisation failure, a deadlock, a full disk, no such table, shutting down.
        for again in ["40001", "40P01", "53100", "42P01", "57P01"] {
            assert!(!is_of_data(again), "{again}");
        }
    }
}
