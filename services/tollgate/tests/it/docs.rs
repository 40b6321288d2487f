//! What is written down is what the program says.

use std::{path::Path, process::Command};

use serde_json::Value;

const HEAD: &str = "\
# Every variable of Tollgate with its default. `tollgate config --target=…` prints the effective
# values. A secret can also come from a file: NAME_FILE=/path instead of NAME=value.
#
# Generated from the program: UPDATE=1 cargo nextest run -p tollgate docs::
";

fn example() -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .args(["config", "--target=all", "--json"])
        .env_clear()
        .output()
        .expect("the program runs");
    let settings: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let mut text = HEAD.to_owned();
    for setting in settings["settings"].as_array().expect("a list") {
        let field = |name: &str| setting[name].as_str().expect("a text").to_owned();
        text.push_str(&format!(
            "\n# {}\n#{}={}\n",
            field("meaning"),
            field("name"),
            field("default")
        ));
    }
    text
}

#[test]
fn the_example_environment_lists_every_variable() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.env.example");
    let expected = example();
    assert!(expected.contains("#API_KEY_PEPPER="), "the list is whole");
    if std::env::vars().any(|(name, value)| name == "UPDATE" && value == "1") {
        std::fs::write(&path, &expected).expect("written");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == expected,
        ".env.example is old: run UPDATE=1 cargo nextest run -p tollgate docs::"
    );
}
