//! The part of `benches/RESULTS.md` that a command writes.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::Context as _;

const BEGIN: &str = "<!-- edge: written by `make bench ARGS=\"edge\"`, not by hand -->";
const END: &str = "<!-- edge: end -->";

/// Text with tables, as Markdown.
#[derive(Default)]
pub(crate) struct Section(String);

impl Section {
    /// A paragraph.
    pub(crate) fn say(&mut self, text: &str) {
        self.0.push_str(text);
        self.0.push_str("\n\n");
    }

    /// A table with its heading line.
    pub(crate) fn table(&mut self, columns: &[&str], rows: &[Vec<String>]) {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let columns: Vec<String> = columns.iter().map(|it| (*it).to_owned()).collect();
        self.0.push_str(&line(&columns));
        self.0
            .push_str(&format!("|{}\n", "---|".repeat(columns.len())));
        for row in rows {
            self.0.push_str(&line(row));
        }
        self.0.push('\n');
    }

    /// All of it.
    pub(crate) fn text(&self) -> &str {
        &self.0
    }

    /// Replaces what an earlier run has written, else goes to the end of the file.
    pub(crate) fn write_into(&self, file: &Path) -> anyhow::Result<()> {
        let text =
            fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        fs::write(file, self.replace_in(&text)?)?;
        Ok(())
    }

    fn replace_in(&self, text: &str) -> anyhow::Result<String> {
        let own = format!("{BEGIN}\n{}{END}\n", self.0);
        let Some((before, rest)) = text.split_once(BEGIN) else {
            let mut whole = text.to_owned();
            write!(whole, "\n{own}")?;
            return Ok(whole);
        };
        let (_, after) = rest.split_once(END).context("the section has no end")?;
        Ok(format!(
            "{before}{own}{}",
            after.strip_prefix('\n').unwrap_or(after)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_run_replaces_its_own_section_and_nothing_else() {
        let mut first = Section::default();
        first.table(&["a", "b"], &[vec!["1".to_owned(), "2".to_owned()]]);
        let text = format!("{}after\n", first.replace_in("before\n").expect("written"));
        assert!(text.contains("| a | b |\n|---|---|\n| 1 | 2 |\n"), "{text}");
        let mut second = Section::default();
        second.say("other");
        let text = second.replace_in(&text).expect("replaced");
        assert_eq!(text, format!("before\n\n{BEGIN}\nother\n\n{END}\nafter\n"));
    }
}
