//! Starting children that die with us.
//!
//! The kernel's parent-death signal follows the *thread* that forked, so one thread that lives as
//! long as the process starts them all. `setpriv` of util-linux sets the signal; where it is
//! missing a small shell loop watches the two pids instead.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{OnceLock, mpsc};
use std::thread;

use super::ProcessSpec;

struct Request {
    command: Command,
    reply: mpsc::Sender<io::Result<Child>>,
}

/// Starts the program in a process group of its own, so that Ctrl-C in a terminal reaches us only
/// and the order of stopping stays ours.
pub(super) fn spawn(spec: &ProcessSpec, log: File) -> io::Result<Child> {
    let setpriv = setpriv();
    let mut command = match setpriv {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command
                .args(["--pdeathsig", "KILL", "--"])
                .arg(&spec.program);
            command
        }
        None => Command::new(&spec.program),
    };
    command
        .args(&spec.args)
        .envs(spec.env.iter().map(|(name, value)| (name, value)));
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0);
    if let Some(directory) = &spec.directory {
        command.current_dir(directory);
    }
    if let Some(user) = &spec.user {
        command.uid(user.uid).gid(user.gid);
    }
    let child = request(command)?;
    if setpriv.is_none() {
        watch(std::process::id(), child.id())?;
    }
    Ok(child)
}

/// Kills `child` within a second of the death of `parent`, for machines without `setpriv`.
pub(crate) fn watch(parent: u32, child: u32) -> io::Result<()> {
    const SCRIPT: &str = r#"
        while kill -0 "$1" 2>/dev/null; do kill -0 "$2" 2>/dev/null || exit 0; sleep 0.5; done
        kill -9 "$2""#;
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", SCRIPT, "watch"])
        .args([parent.to_string(), child.to_string()]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    let mut watcher = request(command)?;
    thread::Builder::new()
        .name("reap-watcher".to_owned())
        .spawn(move || watcher.wait())?;
    Ok(())
}

fn request(command: Command) -> io::Result<Child> {
    let (reply, answer) = mpsc::channel();
    if spawner().send(Request { command, reply }).is_err() {
        return Err(io::Error::other("the spawning thread is gone"));
    }
    answer.recv().map_err(io::Error::other)?
}

fn spawner() -> &'static mpsc::Sender<Request> {
    static SPAWNER: OnceLock<mpsc::Sender<Request>> = OnceLock::new();
    SPAWNER.get_or_init(|| {
        let (send, requests) = mpsc::channel::<Request>();
        let serve = move || {
            for Request { mut command, reply } in requests {
                if let Err(unwanted) = reply.send(command.spawn())
                    && let Ok(mut child) = unwanted.0
                    && let Err(error) = child.kill()
                {
                    tracing::warn!(pid = child.id(), %error, "nobody waits for it, it stays");
                }
            }
        };
        let thread = thread::Builder::new().name("spawner".to_owned());
        thread
            .spawn(serve)
            .expect("a machine that cannot start a thread cannot start a server");
        send
    })
}

/// The `setpriv` that knows the signal (that of busybox does not).
fn setpriv() -> Option<&'static Path> {
    static FOUND: OnceLock<Option<&'static Path>> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let candidates = ["/usr/bin/setpriv", "/bin/setpriv", "/usr/sbin/setpriv"];
        candidates.into_iter().map(Path::new).find(|path| {
            let mut trial = Command::new(path);
            trial.args(["--pdeathsig", "KILL", "--", "true"]);
            trial
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            trial.status().is_ok_and(|status| status.success())
        })
    })
}
