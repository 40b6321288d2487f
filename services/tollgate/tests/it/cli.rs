//! What the CLI promises without a system: help, configuration, exit codes.

use std::process::{Command, Output};

use serde_json::Value;

/// Everything with a page of help.
const VERBS: [&str; 80] = [
    "",
    "dev",
    "serve",
    "migrate",
    "config",
    "seed",
    "seed services",
    "seed demo",
    "pepper",
    "pepper generate",
    "pepper status",
    "pepper rotate",
    "pepper retire",
    "org",
    "org create",
    "org list",
    "org show",
    "org update",
    "org transfer",
    "org policy",
    "member",
    "member add",
    "member list",
    "member remove",
    "member role",
    "invitation",
    "invitation create",
    "invitation list",
    "invitation resend",
    "invitation revoke",
    "invitation show",
    "invitation accept",
    "user",
    "user sign-up",
    "user show",
    "user orgs",
    "user update",
    "user change-password",
    "user verify",
    "user reset-password",
    "user second-factor",
    "user second-factor start",
    "user second-factor confirm",
    "user second-factor renew",
    "user second-factor disable",
    "user second-factor reset",
    "key",
    "key create",
    "key list",
    "key show",
    "key update",
    "key suspend",
    "key restore",
    "key revoke",
    "key rotate",
    "key delete",
    "key reviews",
    "key keep",
    "key check",
    "key report",
    "wallet",
    "wallet grant",
    "wallet show",
    "wallet ledger",
    "service set",
    "service list",
    "route set",
    "usage calls",
    "usage daily",
    "anomaly list",
    "anomaly resolve",
    "audit-log list",
    "audit-log verify",
    "audit",
    "why",
    "journal inspect",
    "letters",
    "letters show",
    "letters retry",
    "letters discard",
];

/// Runs the binary with these variables only.
fn tollgate(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .current_dir(folder.path())
        .output()
        .unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_verb_explains_itself() {
    let mut pages = String::new();
    for verb in VERBS {
        let mut arguments: Vec<&str> = verb.split_whitespace().collect();
        arguments.push("--help");
        let output = tollgate(&arguments, &[]);
        assert_eq!(
            output.status.code(),
            Some(0),
            "tollgate {verb} --help: {}",
            err(&output)
        );
        pages.push_str(&format!("===== tollgate {verb}\n{}\n", out(&output)));
    }
    insta::assert_snapshot!("help", pages);
}

#[test]
fn the_version_names_the_build() {
    let output = tollgate(&["--version"], &[]);
    assert!(out(&output).starts_with("tollgate "), "{}", out(&output));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn configuration_is_listed_with_defaults_and_meaning() {
    let output = tollgate(&["config", "--target=all", "--json"], &[]);
    assert_eq!(
        output.status.code(),
        Some(64),
        "what is required is not set"
    );
    let settings: Value = serde_json::from_slice(&output.stdout).unwrap();
    let lines = settings["settings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|setting| {
            let text = |field: &str| setting[field].as_str().unwrap().to_owned();
            format!(
                "{} = {}\n    {}\n",
                text("name"),
                text("default"),
                text("meaning")
            )
        });
    insta::assert_snapshot!("configuration", lines.collect::<String>());
}

#[test]
fn a_secret_is_never_shown() {
    let secret = "0123456789abcdef0123456789abcdef";
    let output = tollgate(
        &["config"],
        &[("API_KEY_PEPPER", secret), ("DATABASE_URL", secret)],
    );
    assert!(!out(&output).contains(secret) && !err(&output).contains(secret));
    assert!(out(&output).contains("(set)"));
}

#[test]
fn a_broken_configuration_is_listed_as_a_whole_and_nothing_starts() {
    let variables = [
        ("TOLLGATE_GATEWAY_PORT", "1"),
        ("TOLLGATE_STOP_SECONDS", "soon"),
        ("TOLLGATE_OPERATOR_TOKEN", "short"),
    ];
    let output = tollgate(&["serve", "--target=all"], &variables);
    assert_eq!(output.status.code(), Some(64));
    let text = err(&output);
    for problem in [
        "API_KEY_PEPPER environment variable is not set",
        "DATABASE_URL environment variable is not set",
        "NATS_URL environment variable is not set",
        "TOLLGATE_GATEWAY_PORT is not a variable of Tollgate",
        "TOLLGATE_STOP_SECONDS: `soon` must be a whole number",
        "TOLLGATE_OPERATOR_TOKEN has 5 characters",
    ] {
        assert!(text.contains(problem), "`{problem}` is missing in: {text}");
    }
}

#[test]
fn a_service_alone_is_told_where_the_others_are() {
    let output = tollgate(&["serve", "--target=gateway"], &[]);
    let text = err(&output);
    assert!(
        text.contains("TOLLGATE_KEYS_GRPC_URL environment variable is not set"),
        "{text}"
    );
    assert!(
        !text.contains("DATABASE_URL"),
        "a gateway needs no database: {text}"
    );
}

#[test]
fn a_wrong_request_ends_with_64_and_one_line() {
    let requests: [&[&str]; 6] = [
        &["fly"],
        &["serve", "--target=nonsense"],
        &["org", "create"],
        &["wallet", "show", "--org", "org_x"],
        &["audit", "--data", "nowhere"],
        &["journal", "inspect", "nowhere"],
    ];
    for request in requests {
        let output = tollgate(request, &[]);
        assert_eq!(
            output.status.code(),
            Some(64),
            "{request:?}: {}",
            err(&output)
        );
        assert!(
            err(&output).starts_with("error: "),
            "{request:?}: {}",
            err(&output)
        );
        assert!(out(&output).is_empty());
    }
}

#[test]
fn a_pepper_is_new_each_time_and_long_enough() {
    let first = out(&tollgate(&["pepper", "generate"], &[]));
    let second = out(&tollgate(&["pepper", "generate"], &[]));
    assert_ne!(first, second);
    assert_eq!(first.trim().len(), 64);
    let variables = [("API_KEY_PEPPER", first.trim())];
    let told = err(&tollgate(&["serve", "--target=keys"], &variables));
    assert!(!told.contains("API_KEY_PEPPER"), "{told}");
}

#[test]
fn an_empty_folder_holds_no_journal() {
    let output = tollgate(&["journal", "inspect", ".", "--json"], &[]);
    assert_eq!(
        (out(&output).trim(), output.status.code()),
        (r#"{"journals":[]}"#, Some(0))
    );
}

#[test]
fn shells_get_completions() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(out(&tollgate(&["completions", shell], &[])).contains("tollgate"));
    }
}
