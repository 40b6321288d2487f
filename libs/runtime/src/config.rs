//! Reads the environment, once, and reports everything that is wrong with it together.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    net::SocketAddr,
    ops::RangeInclusive,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

use crate::secrets::{Source, Succession};

/// Where an effective value comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// The variable itself.
    Environment,
    /// The file named by `NAME_FILE`.
    File,
}

/// One documented variable with its effective value.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Name of the variable.
    pub name: &'static str,
    /// Effective value; secrets are shown as `(set)` or `(not set)`.
    pub value: String,
    /// Default as documented; empty when there is none.
    pub default: String,
    /// Where the value comes from.
    pub origin: Origin,
    /// What it is for, with its unit.
    pub meaning: &'static str,
}

/// Everything wrong with the configuration.
#[derive(Debug, thiserror::Error)]
#[error("the configuration has {} problem(s):\n  - {}", .0.len(), .0.join("\n  - "))]
pub struct ConfigError(pub Vec<String>);

/// The environment, and what was asked of it.
#[derive(Debug, Default)]
pub struct Variables {
    given: BTreeMap<String, String>,
    settings: Vec<Setting>,
    problems: Vec<String>,
}

impl Variables {
    /// Takes the environment of this process. The only place that reads it.
    #[must_use]
    pub fn from_process() -> Self {
        Self::from_pairs(std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        }))
    }

    /// Takes given pairs, for tests and for documentation.
    pub fn from_pairs(pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        Self {
            given: pairs.into_iter().collect(),
            ..Self::default()
        }
    }

    fn note(&mut self, name: &'static str, value: String, default: String, origin: Origin) {
        // One variable may be read by several services; it is documented once.
        if self.settings.iter().all(|setting| setting.name != name) {
            self.settings.push(Setting {
                name,
                value,
                default,
                origin,
                meaning: "",
            });
        }
    }

    fn explain(&mut self, name: &'static str, meaning: &'static str) {
        if let Some(setting) = self
            .settings
            .iter_mut()
            .find(|setting| setting.name == name)
        {
            setting.meaning = meaning;
        }
    }

    /// The raw value: the variable, or the content of the file `NAME_FILE` names.
    fn raw(&mut self, name: &'static str) -> Option<(String, Origin)> {
        let file_variable = format!("{name}_FILE");
        let direct = self
            .given
            .get(name)
            .filter(|value| !value.is_empty())
            .cloned();
        let file = self
            .given
            .get(&file_variable)
            .filter(|value| !value.is_empty())
            .cloned();
        match (direct, file) {
            (Some(_), Some(_)) => {
                self.problems
                    .push(format!("{name} and {file_variable} are both set: set one"));
                None
            }
            (Some(value), None) => Some((value, Origin::Environment)),
            (None, Some(path)) => match std::fs::read_to_string(&path) {
                Ok(text) => Some((text.trim_end_matches(['\r', '\n']).to_owned(), Origin::File)),
                Err(error) => {
                    self.problems
                        .push(format!("{file_variable}: cannot read {path}: {error}"));
                    None
                }
            },
            (None, None) => None,
        }
    }

    /// A text with a default.
    pub fn text(&mut self, name: &'static str, default: &str, meaning: &'static str) -> String {
        let (value, origin) = self
            .raw(name)
            .unwrap_or_else(|| (default.to_owned(), Origin::Default));
        self.note(name, value.clone(), default.to_owned(), origin);
        self.explain(name, meaning);
        value
    }

    /// A value with a parser of its own; `None` after a problem, which is noted.
    pub fn parsed<T>(
        &mut self,
        name: &'static str,
        default: &str,
        meaning: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = self.text(name, default, meaning);
        match parse(&text) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.problems.push(format!("{name}: `{text}` {problem}"));
                None
            }
        }
    }

    /// A number within its bounds.
    pub fn number<T>(
        &mut self,
        name: &'static str,
        default: T,
        range: RangeInclusive<T>,
        meaning: &'static str,
    ) -> T
    where
        T: FromStr + PartialOrd + Display + Copy,
    {
        let parsed = self.parsed(name, &default.to_string(), meaning, |text| {
            let number: Option<T> = text.parse().ok();
            number
                .filter(|number| range.contains(number))
                .ok_or_else(|| {
                    format!(
                        "must be a whole number from {} to {}",
                        range.start(),
                        range.end()
                    )
                })
        });
        parsed.unwrap_or(default)
    }

    /// A duration in seconds; the name ends in `_SECONDS`.
    pub fn seconds(
        &mut self,
        name: &'static str,
        default: u64,
        range: RangeInclusive<u64>,
        meaning: &'static str,
    ) -> Duration {
        Duration::from_secs(self.number(name, default, range, meaning))
    }

    /// A duration in milliseconds; the name ends in `_MILLIS`.
    pub fn millis(
        &mut self,
        name: &'static str,
        default: u64,
        range: RangeInclusive<u64>,
        meaning: &'static str,
    ) -> Duration {
        Duration::from_millis(self.number(name, default, range, meaning))
    }

    /// `true` or `false`.
    pub fn flag(&mut self, name: &'static str, default: bool, meaning: &'static str) -> bool {
        let parsed = self.parsed(name, &default.to_string(), meaning, |text| match text {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err("must be `true` or `false`".to_owned()),
        });
        parsed.unwrap_or(default)
    }

    /// A secret the process cannot do without.
    pub fn secret(&mut self, name: &'static str, meaning: &'static str) -> SecretString {
        if let Some(secret) = self.secret_optional(name, meaning) {
            return secret;
        }
        let file_variable = format!("{name}_FILE");
        if !self
            .problems
            .iter()
            .any(|problem| problem.starts_with(&file_variable))
        {
            self.problems
                .push(format!("{name} environment variable is not set"));
        }
        SecretString::from(String::new())
    }

    /// A secret that may be absent.
    pub fn secret_optional(
        &mut self,
        name: &'static str,
        meaning: &'static str,
    ) -> Option<SecretString> {
        let found = self.raw(name);
        let origin = found
            .as_ref()
            .map_or(Origin::Default, |(_, origin)| *origin);
        let shown = if found.is_some() {
            "(set)"
        } else {
            "(not set)"
        };
        self.note(name, shown.to_owned(), String::new(), origin);
        self.explain(name, meaning);
        found.map(|(text, _)| SecretString::from(text))
    }

    /// A secret the process cannot do without, and the one before it, which may be absent. When
    /// both come from files, they can be replaced while the process runs: `Host::watch`. The file
    /// of the one before need not be there.
    pub fn succession(
        &mut self,
        (name, meaning): (&'static str, &'static str),
        (previous, previous_meaning): (&'static str, &'static str),
        check: impl Fn(&str) -> Result<(), String>,
    ) -> Succession {
        let current = self.secret(name, meaning);
        let missing = self.file_of(previous).filter(|path| !path.exists());
        let before = match missing {
            Some(_) => {
                let not_set = "(not set)".to_owned();
                self.note(previous, not_set, String::new(), Origin::File);
                self.explain(previous, previous_meaning);
                None
            }
            None => self.secret_optional(previous, previous_meaning),
        };
        if current.expose_secret().is_empty() && self.file_of(name).is_some_and(|it| it.exists()) {
            self.problems
                .push(format!("{name}_FILE names an empty file"));
        }
        for (name, secret) in [(name, Some(&current)), (previous, before.as_ref())] {
            let text = secret.map(ExposeSecret::expose_secret).unwrap_or_default();
            // An absent one was noted.
            let checked = if text.is_empty() { Ok(()) } else { check(text) };
            if let Err(problem) = checked {
                self.problems.push(format!("{name} {problem}"));
            }
        }
        Succession::new(self.source(name), self.source(previous))
    }

    /// A chain of certificates and its key, both or neither. They are handed over together, the
    /// key as what comes before: `Host::watch` replaces them when their files have changed.
    pub fn certificate(
        &mut self,
        (name, meaning): (&'static str, &'static str),
        (key, key_meaning): (&'static str, &'static str),
    ) -> Option<Succession> {
        let chain = self.secret_optional(name, meaning);
        let secret = self.secret_optional(key, key_meaning);
        if chain.is_some() != secret.is_some() {
            self.problems
                .push(format!("{name} and {key} go together: set both"));
        }
        chain?;
        secret?;
        Some(Succession::new(self.source(name), self.source(key)))
    }

    fn source(&self, name: &str) -> Source {
        match self.file_of(name) {
            Some(path) => Source::File(path),
            None => Source::Given(self.given(name)),
        }
    }

    fn given(&self, name: &str) -> Option<SecretString> {
        let text = self.given.get(name).filter(|text| !text.is_empty())?;
        Some(SecretString::from(text.clone()))
    }

    /// The file a variable comes from, when it comes from one.
    fn file_of(&self, name: &str) -> Option<PathBuf> {
        let path = self.given.get(&format!("{name}_FILE"))?;
        (!path.is_empty()).then(|| PathBuf::from(path))
    }

    /// A text that may be absent.
    pub fn optional(&mut self, name: &'static str, meaning: &'static str) -> Option<String> {
        let value = self.text(name, "", meaning);
        (!value.is_empty()).then_some(value)
    }

    /// A text the process cannot do without.
    pub fn required(&mut self, name: &'static str, meaning: &'static str) -> String {
        let value = self.text(name, "", meaning);
        if value.is_empty() {
            self.problems
                .push(format!("{name} environment variable is not set"));
        }
        value
    }

    /// An address to listen on.
    pub fn address(
        &mut self,
        name: &'static str,
        default: &str,
        meaning: &'static str,
    ) -> SocketAddr {
        let parsed = self.parsed(name, default, meaning, |text| {
            text.parse().map_err(|_malformed| {
                "must be an address and port such as 127.0.0.1:8080".to_owned()
            })
        });
        parsed.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// Notes a problem found by the caller.
    pub fn problem(&mut self, text: String) {
        self.problems.push(text);
    }

    /// Every variable read so far.
    #[must_use]
    pub fn settings(&self) -> &[Setting] {
        &self.settings
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// Everything that was wrong, and every `TOLLGATE_…` variable that nobody in `known` knows.
    pub fn finish(&mut self, known: &BTreeSet<String>) -> Result<(), ConfigError> {
        for name in self
            .given
            .keys()
            .filter(|name| name.starts_with("TOLLGATE_"))
        {
            let bare = name.strip_suffix("_FILE").unwrap_or(name);
            if !known.contains(name) && !known.contains(bare) {
                self.problems.push(format!(
                    "{name} is not a variable of Tollgate: check its name"
                ));
            }
        }
        if self.problems.is_empty() {
            return Ok(());
        }
        // A variable that several services read is one problem.
        let mut seen = BTreeSet::new();
        self.problems.retain(|problem| seen.insert(problem.clone()));
        Err(ConfigError(std::mem::take(&mut self.problems)))
    }
}

/// Compares a presented token in constant time.
#[must_use]
pub(crate) fn same_secret(given: &str, expected: &SecretString) -> bool {
    given
        .as_bytes()
        .ct_eq(expected.expose_secret().as_bytes())
        .into()
}
