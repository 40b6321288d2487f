//! `tollgate dev` leaves nothing running, however it ends, and goes on where it was.

use std::{
    fs::File,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::Signal;
use serde_json::Value;
use testkit::eventually;

use crate::stack::signal;

const START_LIMIT: Duration = Duration::from_secs(120);
const STOP_LIMIT: Duration = Duration::from_secs(60);

fn dev(folder: &Path) -> Child {
    let log = File::options()
        .create(true)
        .append(true)
        .open(folder.join("dev.log"))
        .unwrap();
    Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .args(["dev", "--ports", "auto", "--processes", "--data"])
        .arg(folder.join("data"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// What the supervisor `child` says once it is ready.
async fn info(folder: &Path, child: &Child) -> Value {
    let ready = eventually(START_LIMIT, "tollgate dev is ready", async || {
        let text = std::fs::read_to_string(folder.join("data/dev.json"))?;
        let info: Value = serde_json::from_str(&text)?;
        anyhow::ensure!(info["pids"]["tollgate"][0] == child.id(), "an older one");
        anyhow::Ok(info)
    });
    let log = || std::fs::read_to_string(folder.join("dev.log")).unwrap_or_default();
    ready
        .await
        .unwrap_or_else(|error| panic!("{error:#}\n{}", log()))
}

/// Every process there was.
fn pids(info: &Value) -> Vec<i64> {
    let all = info["pids"].as_object().unwrap().values();
    let flat = all.flat_map(|value| value.as_array().cloned().unwrap_or(vec![value.clone()]));
    flat.map(|pid| pid.as_i64().unwrap()).collect()
}

async fn ended(child: &mut Child, pids: &[i64]) -> ExitStatus {
    let status = child.wait().unwrap();
    let gone = eventually(STOP_LIMIT, "everything is gone", async || {
        let lives = |pid: &&i64| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.contains(") ") && !stat.contains(") Z ")
        };
        match pids.iter().find(lives) {
            Some(pid) => Err(format!("{pid} lives")),
            None => Ok(()),
        }
    });
    gone.await.unwrap();
    status
}

fn pid(child: &Child) -> i32 {
    i32::try_from(child.id()).unwrap()
}

#[tokio::test]
async fn nothing_outlives_dev_and_the_next_one_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = dev(folder.path());
    let before = info(folder.path(), &first).await;

    let mut second = dev(folder.path());
    assert_eq!(second.wait().unwrap().code(), Some(1));
    let log = std::fs::read_to_string(folder.path().join("dev.log")).unwrap();
    let refusal = format!("error: another `tollgate dev` (pid {}) uses", first.id());
    assert!(log.contains(&refusal), "{log}");

    // Killed, it cannot stop anybody; they die with it all the same.
    signal(pid(&first), Signal::KILL);
    ended(&mut first, &pids(&before)).await;

    let mut third = dev(folder.path());
    let after = info(folder.path(), &third).await;
    assert_eq!(after["demo"]["org_id"], before["demo"]["org_id"]);
    assert_eq!(after["demo"]["live_key"], before["demo"]["live_key"]);
    signal(pid(&third), Signal::TERM);
    assert_eq!(ended(&mut third, &pids(&after)).await.code(), Some(0));
    assert!(
        !folder.path().join("data/dev.json").exists(),
        "nobody is told of what is gone"
    );
}
