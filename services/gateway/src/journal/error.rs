//! What can go wrong with a journal.

use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::segment::VERSION;

/// Why the journal refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process uses the root directory.
    #[error("journal directory {} is in use by {}", dir.display(), holder_name(*.holder))]
    Locked {
        /// The root directory.
        dir: PathBuf,
        /// Its holder's process id, if it could be read.
        holder: Option<u32>,
    },
    /// The options contradict themselves.
    #[error("journal options: {0}")]
    Options(&'static str),
    /// A process life needs an id of its own.
    #[error("journal {0} exists already")]
    Exists(Uuid),
    /// The directory was written by a newer program.
    #[error("{} has journal format {found}, this program knows {VERSION}", path.display())]
    Version {
        /// The segment.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The file system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// An `fsync` failed, now or earlier. Final.
    #[error("an fsync of the journal failed: nothing may be promised any more")]
    Failed,
    /// The disk or the journal's share of it is full.
    #[error("the journal has no room")]
    Full,
    /// The journal was removed.
    #[error("the journal was removed")]
    Removed,
    /// A record that was committed cannot be read back.
    #[error("journal record {seq} is damaged")]
    Damaged {
        /// Its number.
        seq: u64,
    },
    /// A watermark cannot pass the end of the journal.
    #[error("watermark {watermark} is beyond the journal's end {next_seq}")]
    Watermark {
        /// What was asked for.
        watermark: u64,
        /// The journal's end.
        next_seq: u64,
    },
    /// Records are not applied yet, or reservations not used yet: the journal cannot be removed.
    #[error(
        "the journal is still in use: watermark {watermark} of {next_seq}, {reserved} reserved"
    )]
    InUse {
        /// Applied so far.
        watermark: u64,
        /// The journal's end.
        next_seq: u64,
        /// Records that may still come.
        reserved: u64,
    },
}

impl Error {
    /// Builds the context of a failed file operation.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    /// Whether trying again in this life is in vain: the next one looks at the disk anew.
    pub fn is_final(&self) -> bool {
        !matches!(
            self,
            Self::Io { .. } | Self::Full | Self::InUse { .. } | Self::Locked { .. }
        )
    }

    /// Whether the disk or a quota on it is full: this may pass.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => {
                matches!(
                    source.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                )
            }
            Self::Full => true,
            _ => false,
        }
    }
}

fn holder_name(holder: Option<u32>) -> String {
    match holder {
        Some(pid) => format!("process {pid}"),
        None => "another process".to_owned(),
    }
}
