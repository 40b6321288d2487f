//! Ports that stay ours.
//!
//! A port got by binding to 0 and letting go can be taken by anybody in between, above all by an
//! outgoing connection, because the kernel hands out the same range to both: a client that keeps
//! dialling a restarting server can even connect to itself. So these ports lie below that range,
//! and a lock file per port, held until the process ends, keeps tests that run at the same time
//! from choosing alike.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

struct Reserved {
    /// Where the search goes on.
    next: u16,
    /// Held, not read: the locks are the reservation.
    locks: Vec<File>,
}

static RESERVED: Mutex<Option<Reserved>> = Mutex::new(None);

/// A loopback port that nobody listens on, and that no other process using this function gets
/// while this one lives.
#[must_use]
pub fn free() -> u16 {
    let folder = folder();
    let mut reserved = RESERVED.lock();
    let reserved = reserved.get_or_insert_with(|| Reserved {
        next: start(),
        locks: Vec::new(),
    });
    for _ in 0..COUNT {
        let port = FIRST + reserved.next;
        reserved.next = (reserved.next + 1) % COUNT;
        let Some(lock) = reserve(&folder, port) else {
            continue;
        };
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            reserved.locks.push(lock);
            return port;
        }
    }
    unreachable!("all {COUNT} ports from {FIRST} are taken")
}

/// Is nobody listening on this loopback port?
pub(crate) fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// Processes begin their search apart, so that they seldom meet.
fn start() -> u16 {
    let spread = std::process::id().wrapping_mul(97) % u32::from(COUNT);
    u16::try_from(spread).expect("less than COUNT")
}

fn folder() -> PathBuf {
    let user = rustix::process::geteuid().as_raw();
    std::env::temp_dir().join(format!("tollgate-ports-{user}"))
}

fn reserve(folder: &Path, port: u16) -> Option<File> {
    fs::create_dir_all(folder).ok()?;
    let file = File::create(folder.join(port.to_string())).ok()?;
    file.try_lock().ok()?;
    Some(file)
}
