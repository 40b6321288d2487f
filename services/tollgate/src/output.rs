//! The only place that prints.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::failure::Failure;

/// What a step looks like whose end is known.
const BAR: &str = "{spinner} {msg} [{bar:30}] {pos} of {len} ({elapsed})";
const SPINNER_INTERVAL: Duration = Duration::from_millis(120);

/// Prints for a person or for a script.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
}

/// A column: the field of a row, and its title.
pub(crate) type Column = (&'static str, &'static str);

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Is a script reading?
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// Prints one object: its fields, one a line.
    pub(crate) fn record(self, object: &Value) {
        if self.json {
            return self.json(object);
        }
        let mut table = new_table();
        for (name, value) in object.as_object().into_iter().flatten() {
            table.add_row([name.replace('_', " "), plain(value)]);
        }
        self.table(&table);
    }

    /// Prints many objects: a table with a line each. A script gets all fields, as `{name: […]}`.
    pub(crate) fn list(self, name: &str, columns: &[Column], rows: Vec<Value>) {
        if self.json {
            return self.json(&json!({ name: rows }));
        }
        if rows.is_empty() {
            return self.note(&format!("no {}", name.replace('_', " ")));
        }
        let mut table = new_table();
        table.set_header(columns.iter().map(|(_, title)| *title));
        for row in &rows {
            table.add_row(columns.iter().map(|(field, _)| plain(&row[field])));
        }
        self.table(&table);
    }

    fn table(self, table: &Table) {
        let text = table.trim_fmt();
        // Every cell has a space before it.
        let lines = text
            .lines()
            .map(|line| line.strip_prefix(' ').unwrap_or(line));
        self.text(&lines.collect::<Vec<_>>().join("\n"));
    }

    /// Prints one JSON document.
    pub(crate) fn json(self, value: &Value) {
        self.text(&value.to_string());
    }

    /// Prints a text to standard output.
    pub(crate) fn text(self, text: &str) {
        // Whoever has stopped reading does not want the rest.
        drop(writeln!(
            std::io::stdout().lock(),
            "{}",
            text.trim_end_matches('\n')
        ));
    }

    /// Says something to a person.
    pub(crate) fn note(self, text: &str) {
        drop(writeln!(std::io::stderr().lock(), "{text}"));
    }

    /// Says what is going on while it takes time; on a terminal it moves.
    pub(crate) fn progress(self, text: &str) -> Progress {
        if !std::io::stderr().is_terminal() {
            self.note(text);
            return Progress {
                bar: None,
                output: self,
            };
        }
        let bar = ProgressBar::new_spinner().with_message(text.to_owned());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(SPINNER_INTERVAL);
        Progress {
            bar: Some(bar),
            output: self,
        }
    }

    /// Says why a command failed.
    pub(crate) fn failure(self, failure: &Failure) -> ExitCode {
        if !matches!(failure, Failure::Found) {
            self.note(&format!("error: {failure}"));
        }
        ExitCode::from(failure.exit_code())
    }
}

/// Something that takes time.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    output: Output,
}

impl Progress {
    /// So much of so much is done; on a terminal a bar shows it.
    pub(crate) fn reach(&self, done: u64, of: u64) {
        let Some(bar) = &self.bar else {
            return;
        };
        if bar.length() != Some(of) {
            bar.set_length(of);
            if let Ok(style) = ProgressStyle::with_template(BAR) {
                bar.set_style(style);
            }
        }
        bar.set_position(done);
    }

    /// The next step has begun.
    pub(crate) fn step(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None => self.output.note(text),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn new_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}

/// A value as a reader wants it: a text without quotes, nothing as a dash.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}
