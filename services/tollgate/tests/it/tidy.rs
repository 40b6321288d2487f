//! House rules, kept by a machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use serde_json::Value;

/// What a crate may import of ours; `services` stands for every service.
const MAY_IMPORT: [(&str, &[&str]); 8] = [
    ("types", &[]),
    ("proto", &["types"]),
    ("runtime", &["types", "proto"]),
    ("testkit", &["types", "proto", "runtime"]),
    ("samples", &[]),
    ("benches", &["types", "proto", "runtime", "testkit"]),
    ("fuzz", &["types", "proto", "runtime", "gateway", "wallet"]),
    ("services", &["types", "proto", "runtime"]),
];

/// What a library must not depend on.
const MUST_NOT: [(&str, &[&str]); 3] = [
    ("types", &["tokio", "sqlx", "tonic", "serde_json"]),
    ("proto", &["sqlx", "axum"]),
    ("samples", &["types", "proto", "runtime", "testkit"]),
];

const LIBRARIES: [&str; 4] = ["types", "proto", "runtime", "testkit"];
const LINE_CHARS_MAX: usize = 100;
const FILE_LINES_MAX: usize = 500;
/// Files above the limit, per cent of all: the ratchet.
const LONG_FILES_PERCENT_MAX: usize = 5;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap()
}

/// Every source file of ours that a person has written, by its path from the root.
fn sources() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for folder in ["libs", "services", "benches", "fuzz"] {
        collect(&root(), &root().join(folder), &mut found);
    }
    assert!(found.len() > 50, "the sources were found");
    found
}

fn collect(root: &Path, folder: &Path, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = path
            .strip_prefix(root)
            .unwrap()
            .to_string_lossy()
            .into_owned();
        if path.is_dir() && !name.ends_with("src/gen") {
            collect(root, &path, found);
        } else if path.extension().is_some_and(|it| it == "rs") {
            found.insert(name, fs::read_to_string(&path).unwrap());
        }
    }
}

/// Fails with all of them, one a line.
fn assert_none(rule: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

/// Code without comments and without what stands behind `#[cfg(test)]`.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text
        .lines()
        .take_while(|line| line.trim() != "#[cfg(test)]");
    let numbered = lines.enumerate().map(|(index, line)| (index + 1, line));
    numbered.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

#[test]
fn crates_import_what_the_table_allows() {
    let output = Command::new(env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()))
        .args([
            "metadata",
            "--no-deps",
            "--format-version",
            "1",
            "--offline",
        ])
        .current_dir(root())
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let ours: Vec<&str> = packages
        .iter()
        .map(|it| it["name"].as_str().unwrap())
        .collect();
    let mut broken = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let row = if LIBRARIES.contains(&name) || ["samples", "benches", "fuzz"].contains(&name) {
            name
        } else {
            "services"
        };
        let may = MAY_IMPORT.iter().find(|(of, _)| *of == row).unwrap().1;
        let must_not = MUST_NOT
            .iter()
            .find(|(of, _)| *of == name)
            .map_or(&[][..], |it| it.1);
        for dependency in package["dependencies"].as_array().unwrap() {
            let other = dependency["name"].as_str().unwrap();
            let is_dev = dependency["kind"] == "dev";
            let is_forbidden = !is_dev && must_not.contains(&other);
            let is_stranger = ours.contains(&other)
                && !may.contains(&other)
                && name != "tollgate"
                && !(is_dev && other == "testkit");
            if is_forbidden || is_stranger {
                broken.push(format!("{name} depends on {other}"));
            }
        }
    }
    assert_none(
        "dependencies between crates, see the table of the style guide",
        &broken,
    );
}

#[test]
fn decisions_are_pure() {
    let mut broken = Vec::new();
    for (name, text) in sources() {
        if !name.contains("/src/domain.rs") && !name.contains("/src/domain/") {
            continue;
        }
        for (number, line) in code(&text) {
            let banned = [
                "async ",
                ".await",
                "sqlx",
                "proto::",
                "tokio",
                "Instant",
                "SystemTime",
            ];
            if let Some(word) = banned.iter().find(|word| line.contains(**word)) {
                broken.push(format!("{name}:{number} has `{word}`"));
            }
        }
    }
    assert_none("domain: values and now in, a decision out", &broken);
}

#[test]
fn statements_live_in_the_store() {
    let mut broken = Vec::new();
    for (name, text) in sources() {
        let is_service = name.starts_with("services/") && !name.starts_with("services/tollgate/");
        let is_store = ["/store.rs", "/store/", "/tests.rs", "/tests/"];
        if !is_service || is_store.iter().any(|part| name.contains(part)) {
            continue;
        }
        for (number, line) in code(&text) {
            if line.contains("sqlx::query") || line.contains("query!(") {
                broken.push(format!("{name}:{number} has a statement"));
            }
        }
    }
    assert_none("SQL lives in store.rs", &broken);
}

#[test]
fn the_oracle_shares_no_code_with_what_it_judges() {
    let mut broken = Vec::new();
    for (name, text) in sources() {
        if !name.starts_with("libs/testkit/src/auditor/") {
            continue;
        }
        for (number, line) in code(&text) {
            let ours = ["types::", "proto::", "runtime::", "gateway::", "wallet::"];
            if let Some(word) = ours
                .iter()
                .find(|word| line.contains(&format!("use {word}")))
            {
                broken.push(format!("{name}:{number} uses `{word}`"));
            }
        }
    }
    assert_none("the auditor stands alone", &broken);
}

#[test]
fn nothing_is_left_for_later() {
    let mut broken = Vec::new();
    for (name, text) in sources() {
        for (index, line) in text.lines().enumerate() {
            let marks = [
                concat!("TO", "DO"),
                concat!("FIX", "ME"),
                concat!("XX", "X"),
            ];
            if marks.iter().any(|mark| line.contains(mark)) {
                broken.push(format!("{name}:{} has a mark", index + 1));
            }
        }
    }
    assert_none("what is to be done is an issue, not a comment", &broken);
}

#[test]
fn lines_fit() {
    let mut broken = Vec::new();
    for (name, text) in sources() {
        for (index, line) in text.lines().enumerate() {
            let chars = line.chars().count();
            // A text is not broken for its length.
            if chars > LINE_CHARS_MAX && !line.contains('"') {
                broken.push(format!("{name}:{} has {chars} characters", index + 1));
            }
        }
    }
    assert_none("a line has at most 100 columns", &broken);
}

/// Prints the figures to watch; with `--no-capture` they can be read.
#[test]
fn files_stay_readable() {
    let sources = sources();
    let mut sizes: Vec<(usize, &str)> = sources
        .iter()
        .map(|(name, text)| (text.lines().count(), name.as_str()))
        .collect();
    sizes.sort_unstable();
    let total: usize = sizes.iter().map(|(lines, _)| lines).sum();
    let comments = sources.values().flat_map(|text| text.lines());
    let comments = comments
        .filter(|line| line.trim_start().starts_with("//"))
        .count();
    let long: Vec<_> = sizes
        .iter()
        .filter(|(lines, _)| *lines > FILE_LINES_MAX)
        .collect();
    println!("files     {}, lines {total}", sizes.len());
    println!("median    {} lines", sizes[sizes.len() / 2].0);
    println!("comments  {} %", comments * 100 / total);
    for (lines, name) in &long {
        println!("long      {lines} {name}");
    }
    let percent = long.len() * 100 / sizes.len();
    assert!(
        percent <= LONG_FILES_PERCENT_MAX,
        "{percent} % of files are too long: {long:?}"
    );
}

/// The group a `use` belongs to. Our libs stand among the crates, in the order of the alphabet.
fn group(line: &str) -> Option<u8> {
    let path = line.strip_prefix("use ")?;
    let first = path.split([':', ';', ' ', '{']).next()?;
    Some(match first {
        "std" | "core" | "alloc" => 0,
        "crate" | "super" | "self" => 2,
        _ => 1,
    })
}

#[test]
fn imports_are_in_groups() {
    let mut broken = Vec::new();
    for (name, text) in sources() {
        let mut last: Option<u8> = None;
        for (number, line) in code(&text) {
            let Some(this) = group(line) else { continue };
            if last.is_some_and(|last| this < last) {
                broken.push(format!("{name}:{number} {line}"));
            }
            last = Some(this);
        }
    }
    assert_none("imports: std, crates, this crate", &broken);
}
