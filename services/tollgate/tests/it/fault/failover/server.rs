//! PostgreSQL of a stack from outside: copied while it stands still, followed by a standby, killed,
//! and put back in another state.

use std::{
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::Signal;
use sqlx::{Connection as _, PgConnection, postgres::PgConnectOptions};
use testkit::{eventually, proxy::Proxy};

use crate::stack::{SETTLE_LIMIT, Stack, signal};

/// A running server.
pub(super) struct Server {
    pid: i32,
    program: PathBuf,
    arguments: Vec<String>,
    data: PathBuf,
    owner: (u32, u32),
    login: PgConnectOptions,
}

/// A data directory that no server runs on.
pub(super) struct Backup(PathBuf);

/// A server that follows another one.
pub(super) struct Standby {
    child: Child,
    data: PathBuf,
    login: PgConnectOptions,
}

impl Server {
    pub(super) fn of(stack: &Stack) -> Self {
        let pid = stack.pids("postgres")[0];
        let place = PathBuf::from(format!("/proc/{pid}"));
        let line = std::fs::read(place.join("cmdline")).expect("readable");
        let parts = line
            .split(|byte| *byte == 0)
            .filter(|part| !part.is_empty());
        let line: Vec<String> = parts
            .map(|it| String::from_utf8_lossy(it).into_owned())
            .collect();
        let at = line.iter().position(|it| it == "-D").expect("its folder");
        let data = PathBuf::from(&line[at + 1]);
        let url = stack.info()["postgres_url"]
            .as_str()
            .expect("a URL")
            .to_owned();
        Self {
            pid,
            program: std::fs::read_link(place.join("exe")).expect("a program"),
            owner: owner(&data),
            arguments: line[1..].to_vec(),
            data,
            login: url.parse().expect("a URL"),
        }
    }

    pub(super) fn port(&self) -> u16 {
        self.login.get_port()
    }

    /// The files of one moment: all processes stand still meanwhile.
    pub(super) fn backup(&self) -> Backup {
        let all = family(self.pid);
        all.iter().for_each(|pid| signal(*pid, Signal::STOP));
        let copy = self.data.with_extension("copy");
        let done = Command::new("cp")
            .arg("-a")
            .arg(&self.data)
            .arg(&copy)
            .status();
        all.iter().for_each(|pid| signal(*pid, Signal::CONT));
        assert!(done.expect("cp runs").success());
        std::fs::remove_file(copy.join("postmaster.pid")).expect("removed");
        Backup(copy)
    }

    /// Another server that begins with a backup and follows this one through a proxy.
    pub(super) fn standby(&self, proxy: &Proxy) -> Standby {
        let Backup(data) = self.backup();
        let password = std::fs::read_to_string(self.data.with_file_name("password"));
        let follow = format!(
            "primary_conninfo = 'host=127.0.0.1 port={} user=postgres password={}'\n",
            proxy.port(),
            password.expect("a password").trim(),
        );
        append(&data.join("postgresql.auto.conf"), &follow);
        self.mark(&data, "standby.signal");
        let port = free_port();
        let changed = |argument: &String| match argument {
            it if *it == self.data.to_string_lossy() => data.to_string_lossy().into_owned(),
            it if it.starts_with("port=") => format!("port={port}"),
            it => it.clone(),
        };
        let log = std::fs::File::create(self.data.with_extension("standby.log")).expect("a log");
        let mut command = Command::new(&self.program);
        command
            .args(self.arguments.iter().map(changed))
            .current_dir("/")
            .uid(self.owner.0)
            .gid(self.owner.1)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        Standby {
            child: command.spawn().expect("a standby starts"),
            data,
            login: self.login.clone().port(port),
        }
    }

    fn mark(&self, data: &Path, name: &str) {
        let path = data.join(name);
        std::fs::write(&path, "").expect("written");
        std::os::unix::fs::chown(&path, Some(self.owner.0), Some(self.owner.1)).expect("given");
    }

    /// No last checkpoint, no goodbye.
    pub(super) fn kill(&self) {
        let all = family(self.pid);
        all.iter().for_each(|pid| signal(*pid, Signal::KILL));
        while all.iter().any(|pid| lives(*pid)) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What the next start of this server will find.
    pub(super) fn put_in_place(&self, Backup(backup): &Backup, mark: Option<&str>) {
        if let Some(mark) = mark {
            append(
                &backup.join("postgresql.auto.conf"),
                "restore_command = 'false'\n",
            );
            self.mark(backup, mark);
        }
        std::fs::rename(&self.data, self.data.with_extension("lost")).expect("moved away");
        std::fs::rename(backup, &self.data).expect("moved here");
    }
}

impl Standby {
    pub(super) async fn promote(&self) {
        let promoted = eventually(SETTLE_LIMIT, "the standby is promoted", async || {
            let mut connection = PgConnection::connect_with(&self.login)
                .await
                .map_err(|error| error.to_string())?;
            let done: Result<bool, _> = sqlx::query_scalar("select pg_promote(true)")
                .fetch_one(&mut connection)
                .await;
            match done {
                Ok(true) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        promoted.await.expect("promoted");
    }

    /// The first column of the only row.
    pub(super) async fn count(&self, sql: &'static str) -> i64 {
        let connection = PgConnection::connect_with(&self.login).await;
        let counted = sqlx::query_scalar(sql)
            .fetch_one(&mut connection.expect("connected"))
            .await;
        counted.expect("counted")
    }

    /// Stops it in order; its data as it is then.
    pub(super) fn stop(mut self) -> Backup {
        signal(i32::try_from(self.child.id()).expect("a pid"), Signal::INT);
        self.child.wait().expect("it ends");
        Backup(self.data.clone())
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        signal(i32::try_from(self.child.id()).expect("a pid"), Signal::QUIT);
        if let Err(error) = self.child.wait() {
            eprintln!("a standby could not be waited for: {error}");
        }
    }
}

fn append(path: &Path, text: &str) {
    let before = std::fs::read_to_string(path).unwrap_or_default();
    std::fs::write(path, before + text).expect("written");
}

fn owner(path: &Path) -> (u32, u32) {
    use std::os::unix::fs::MetadataExt as _;
    let data = std::fs::metadata(path).expect("it is there");
    (data.uid(), data.gid())
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

/// A server and its children, as `stat` of each process names its parent.
fn family(pid: i32) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").expect("listed").flatten();
    let all = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let children = all.filter(|it| stat(*it).is_some_and(|(_, parent)| parent == pid));
    std::iter::once(pid).chain(children).collect()
}

fn lives(pid: i32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != "Z")
}

/// State and parent of a process.
fn stat(pid: i32) -> Option<(String, i32)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}
