//! Everything here runs against real servers and real processes.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use parking_lot::Mutex;
use sqlx::{Connection, Executor, PgConnection, Row};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::processes::{Event, OnEvent, Process, ProcessSpec, Signal, Supervisor};
use crate::servers::{Nats, Options, Postgres, Redis, Servers};
use crate::{eventually, ports};

const SOON: Duration = Duration::from_secs(10);
/// Long enough for an answer on a busy machine, short enough to wait for one that does not come.
const SILENCE: Duration = Duration::from_millis(300);

fn sleeper(folder: &Path, name: &str) -> ProcessSpec {
    ProcessSpec::new(name, "/bin/sleep", folder.join(format!("{name}.log"))).args(["600"])
}

fn runs(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

async fn gone(pid: u32) -> Result<()> {
    eventually(SOON, "the process is gone", || async move {
        if runs(pid) {
            Err(format!("{pid} runs"))
        } else {
            Ok(())
        }
    })
    .await
}

async fn insert(postgres: &Postgres, value: i32) -> Result<()> {
    let mut connection = PgConnection::connect(&postgres.url("kept")).await?;
    connection
        .execute("create table if not exists kept (value int)")
        .await?;
    connection
        .execute(sqlx::AssertSqlSafe(format!(
            "insert into kept values ({value})"
        )))
        .await?;
    Ok(())
}

async fn sum(postgres: &Postgres, database: &str) -> Result<i64> {
    let mut connection = PgConnection::connect(&postgres.url(database)).await?;
    let row = connection.fetch_one("select sum(value) from kept").await?;
    Ok(row.try_get(0)?)
}

#[tokio::test]
async fn all_three_start_and_stop_and_leave_nothing() -> Result<()> {
    let servers = Servers::start(&Options::ephemeral()).await?;
    let pids = [
        servers.postgres.pid(),
        servers.redis.pid(),
        servers.nats.pid(),
    ];
    let folders = [
        servers.postgres.folder(),
        servers.redis.folder(),
        servers.nats.folder(),
    ]
    .map(Path::to_owned);
    assert!(pids.iter().all(|pid| runs(*pid)));
    servers.stop().await;
    assert!(!pids.iter().any(|pid| runs(*pid)));
    drop(servers);
    assert!(
        !folders.iter().any(|folder| folder.exists()),
        "temporary folders go with the servers"
    );
    Ok(())
}

#[tokio::test]
async fn postgres_keeps_what_it_committed_through_kill_and_restart() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut options = Options::persistent(folder.path());
    options.fsync = false;
    let first = Postgres::start(&options).await?;
    first.create_database("kept").await?;
    insert(&first, 1).await?;
    first.restart().await?;
    insert(&first, 2).await?;

    // An open connection has a child of the server behind it, which must go too.
    let open = PgConnection::connect(&first.url("kept")).await?;
    first.kill();
    first.wait_exit().await;
    first.restart().await?;
    insert(&first, 4).await?;
    drop(open);
    assert_eq!(sum(&first, "kept").await?, 7);

    first.create_database_from("kept", "copy").await?;
    assert_eq!(sum(&first, "copy").await?, 7);
    assert!(first.has_database("copy").await?);
    first.drop_database("copy").await?;
    assert!(!first.has_database("copy").await?);

    first.kill();
    drop(first);
    let second = Postgres::start(&options).await?;
    assert_eq!(sum(&second, "kept").await?, 7);
    Ok(())
}

#[tokio::test]
async fn postgres_moves_where_its_user_can_go_and_is_found_there_again() -> Result<()> {
    let closed = std::fs::Permissions::from_mode(0o700);
    let folder = tempfile::Builder::new().permissions(closed).tempdir()?;
    let mut options = Options::persistent(folder.path().join("data"));
    options.fsync = false;
    let first = Postgres::start(&options).await?;
    first.create_database("kept").await?;
    let place = first.folder().to_owned();
    drop(first);
    let second = Postgres::start(&options).await?;
    assert!(second.has_database("kept").await?);
    drop(second);
    if !place.starts_with(folder.path()) {
        std::fs::remove_dir_all(place.parent().context("it lies in a folder of ours")?)?;
    }
    Ok(())
}

#[tokio::test]
async fn a_second_supervisor_is_kept_out_of_a_folder_in_use() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let options = Options::persistent(folder.path());
    let first = Redis::start(&options).await?;
    let refused = Redis::start(&options)
        .await
        .err()
        .context("the folder is in use")?;
    assert!(
        refused.to_string().contains("in use by another"),
        "{refused:#}"
    );
    assert!(runs(first.pid()), "the first one was left alone");
    Ok(())
}

#[tokio::test]
async fn a_paused_postgres_is_silent_until_it_is_resumed() -> Result<()> {
    let postgres = Postgres::start(&Options::ephemeral()).await?;
    let mut connection = PgConnection::connect(&postgres.url("postgres")).await?;
    postgres.pause();
    assert!(
        timeout(SILENCE, connection.execute("select 1"))
            .await
            .is_err()
    );
    postgres.resume();
    let mut connection = PgConnection::connect(&postgres.url("postgres")).await?;
    timeout(SOON, connection.execute("select 1")).await??;
    Ok(())
}

#[tokio::test]
async fn nats_keeps_its_streams_through_kill_and_restart() -> Result<()> {
    let mut options = Options::ephemeral();
    options.nats_sync_interval = Some("always".to_owned());
    let nats = Nats::start(&options).await?;
    let connect = || async {
        let client = async_nats::ConnectOptions::new()
            .connect(nats.url())
            .await?;
        anyhow::Ok(async_nats::jetstream::new(client))
    };
    let jetstream = connect().await?;
    jetstream
        .create_stream(async_nats::jetstream::stream::Config {
            name: "KEPT".to_owned(),
            subjects: vec!["kept.>".to_owned()],
            ..Default::default()
        })
        .await?;
    jetstream.publish("kept.one", "1".into()).await?.await?;

    nats.kill();
    nats.wait_exit().await;
    nats.restart().await?;
    let stream = connect().await?.get_stream("KEPT").await?;
    assert_eq!(stream.cached_info().state.messages, 1);
    Ok(())
}

async fn ask(redis: &Redis, line: &str) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", redis.port())).await?;
    stream
        .write_all(format!("{line}\r\nQUIT\r\n").as_bytes())
        .await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn redis_saves_on_an_orderly_restart_and_is_silent_while_paused() -> Result<()> {
    let redis = Redis::start(&Options::ephemeral()).await?;
    ask(&redis, "SET kept 1").await?;
    redis.restart().await?;
    assert_eq!(ask(&redis, "GET kept").await?, "$1\r\n1\r\n+OK\r\n");
    redis.pause();
    assert!(timeout(SILENCE, ask(&redis, "PING")).await.is_err());
    redis.resume();
    timeout(SOON, ask(&redis, "PING")).await??;
    Ok(())
}

#[tokio::test]
async fn a_server_that_dies_is_started_again_and_said_so() -> Result<()> {
    let redis = Redis::start(&Options::ephemeral()).await?;
    let (on_event, seen) = recorder();
    let died = redis.pid();
    let check = async {
        redis.kill();
        eventually(SOON, "it runs again", || async {
            let started = seen.lock().iter().any(|event| event.starts_with("started"));
            if started {
                Ok(())
            } else {
                Err(format!("{:?}", seen.lock()))
            }
        })
        .await?;
        assert_ne!(redis.pid(), died);
        assert!(runs(redis.pid()));
        redis.stop().await;
        Ok(())
    };
    let ((), checked) = tokio::join!(redis.keep_alive(&on_event), check);
    assert_eq!(*seen.lock(), ["died", "restarting 100ms", "started"]);
    checked
}

fn recorder() -> (OnEvent, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&seen);
    let on_event: OnEvent = Arc::new(move |event| {
        record.lock().push(match event {
            Event::Started { .. } => "started".to_owned(),
            Event::Died { .. } => "died".to_owned(),
            Event::Restarting { after, .. } => format!("restarting {after:?}"),
            Event::Failed { error, .. } => error,
        });
    });
    (on_event, seen)
}

#[tokio::test]
async fn the_roster_starts_again_who_dies_and_stops_in_reverse() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (on_event, seen) = recorder();
    let supervisor = Supervisor::new();
    let first = supervisor
        .spawn(sleeper(folder.path(), "first"), on_event.clone())
        .await?
        .pid();
    let second = supervisor
        .spawn(sleeper(folder.path(), "second"), on_event)
        .await?
        .pid();
    let process = supervisor.process("first").context("it is on the roster")?;
    process.kill();
    process.wait_exit().await;
    let again = eventually(SOON, "first runs again", || async {
        let pid = supervisor
            .process("first")
            .map_or(first, |process| process.pid());
        if pid == first {
            Err("it is dead")
        } else {
            Ok(pid)
        }
    })
    .await?;
    assert_eq!(
        *seen.lock(),
        ["started", "started", "died", "restarting 100ms", "started"]
    );
    supervisor.stop().await;
    assert!(!runs(again) && !runs(second));
    assert_eq!(seen.lock().len(), 5, "stopping is no death");
    Ok(())
}

#[tokio::test]
async fn who_does_not_stop_in_time_is_killed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut spec = ProcessSpec::new("deaf", "/bin/sh", folder.path().join("log"))
        .args(["-c", "trap '' TERM; echo deaf; while :; do sleep 1; done"]);
    spec.stop_within = SILENCE;
    let process = Process::start(&spec)?;
    eventually(SOON, "the trap is set", || async {
        if process.log_tail() == "deaf" {
            Ok(())
        } else {
            Err(process.log_tail())
        }
    })
    .await?;
    let status = process.stop().await;
    assert!(!status.success());
    Ok(())
}

#[tokio::test]
async fn a_leftover_is_stopped_but_never_a_stranger_with_its_pid() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut spec = sleeper(folder.path(), "left");
    let pid_file = folder.path().join("pid");
    spec.pid_file = Some(pid_file.clone());
    let left = Process::start(&spec)?;
    let written = std::fs::read_to_string(&pid_file)?;

    let stranger = sleeper(folder.path(), "stranger");
    let stranger = Process::start(&stranger)?;
    let forged = written.replacen(&left.pid().to_string(), &stranger.pid().to_string(), 1);
    std::fs::write(&pid_file, forged.replace(" ", " 1"))?;
    crate::processes::clean_leftover(&pid_file).await?;
    assert!(runs(stranger.pid()), "its start time differs");

    std::fs::write(&pid_file, written)?;
    crate::processes::clean_leftover(&pid_file).await?;
    gone(left.pid()).await
}

#[tokio::test]
async fn the_watcher_kills_the_child_of_a_dead_parent() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let parent = Process::start(&sleeper(folder.path(), "parent"))?;
    let child = Process::start(&sleeper(folder.path(), "child"))?;
    crate::processes::watch(parent.pid(), child.pid())?;
    parent.kill();
    timeout(SOON, child.wait_exit()).await?;
    Ok(())
}

/// Not a test: the supervisor that the next test kills. It runs in a folder named by nobody else.
#[tokio::test]
#[ignore = "started by children_die_with_a_supervisor_that_is_killed"]
async fn supervisor_to_be_killed() -> Result<()> {
    let folder = std::env::current_dir()?;
    if !folder.join("kill-me").exists() {
        return Ok(());
    }
    let mut options = Options::persistent(folder.join("data"));
    options.fsync = false;
    let servers = Servers::start(&options).await?;
    let pids = [
        servers.postgres.pid(),
        servers.redis.pid(),
        servers.nats.pid(),
    ];
    let pids = pids.map(|pid| pid.to_string()).join(" ");
    std::fs::write(folder.join("pids.new"), pids)?;
    std::fs::rename(folder.join("pids.new"), folder.join("pids"))?;
    servers.postgres.wait_exit().await;
    Ok(())
}

#[tokio::test]
async fn children_die_with_a_supervisor_that_is_killed() -> Result<()> {
    // The server's user must be able to enter it.
    let enterable = std::fs::Permissions::from_mode(0o711);
    let folder = tempfile::Builder::new().permissions(enterable).tempdir()?;
    std::fs::write(folder.path().join("kill-me"), "")?;
    let mut spec = ProcessSpec::new(
        "supervisor",
        std::env::current_exe()?,
        folder.path().join("log"),
    )
    .args(["--exact", "tests::supervisor_to_be_killed", "--ignored"]);
    spec.directory = Some(folder.path().to_owned());
    let supervisor = Process::start(&spec)?;
    let pids = folder.path().join("pids");
    let pids = eventually(Duration::from_secs(60), "the servers run", || async {
        std::fs::read_to_string(&pids)
    });
    let pids = tokio::select! {
        pids = pids => pids?,
        status = supervisor.wait_exit() => bail!("{status}: {}", supervisor.log_tail()),
    };
    supervisor.signal(Signal::KILL);
    supervisor.wait_exit().await;
    for pid in pids.split(' ') {
        gone(pid.parse()?).await?;
    }
    // And the next one recovers.
    let mut options = Options::persistent(folder.path().join("data"));
    options.fsync = false;
    let servers = Servers::start(&options).await?;
    servers.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_missing_server_is_one_line_that_says_what_to_do() -> Result<()> {
    let mut options = Options::ephemeral();
    options.locations.nats = Some("/nowhere/nats-server".into());
    options.locations.redis = Some("/nowhere/redis-server".into());
    let error = Servers::start(&options)
        .await
        .err()
        .context("both are missing")?
        .to_string();
    ensure!(error.contains("TOLLGATE_DEV_NATS_BIN") && error.contains("TOLLGATE_DEV_REDIS_BIN"));
    ensure!(error.lines().count() == 1, "{error}");
    Ok(())
}

#[test]
fn free_ports_are_never_given_twice() {
    let mut seen: Vec<u16> = (0..50).map(|_| ports::free()).collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 50);
}

#[tokio::test]
async fn waiting_in_vain_tells_what_was_seen_last() {
    let attempt = || async { Err::<(), _>("only 3 rows") };
    let error = eventually(SILENCE, "all rows are there", attempt)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("all rows are there") && error.contains("only 3 rows"),
        "{error}"
    );
}
