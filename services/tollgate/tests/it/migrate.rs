//! Migrations: applied once, by whoever comes first, and missed with a clear word.

use std::process::{Command, Output};

use serde_json::Value;
use testkit::servers::{Options, Postgres};

fn tollgate(url: &str, arguments: &[&str]) -> Command {
    let token = "0123456789abcdef0123456789abcdef";
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    command
        .args(arguments)
        .env_clear()
        .env("DATABASE_URL", url)
        .env("NATS_URL", "nats://127.0.0.1:1")
        .env("TOLLGATE_SERVICE_TOKEN", token)
        .env("TOLLGATE_OPERATOR_TOKEN", token)
        .env("API_KEY_PEPPER", token)
        .current_dir(std::env::temp_dir());
    command
}

fn applied(output: &Output) -> usize {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    printed["applied"].as_array().unwrap().len()
}

#[tokio::test]
async fn migrations_are_applied_once_and_missed_with_a_clear_word() {
    let postgres = Postgres::start(&Options::ephemeral()).await.unwrap();
    postgres.create_database("tollgate").await.unwrap();
    let url = postgres.url("tollgate");

    let refused = tollgate(&url, &["serve", "--target=keys"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("schema keys lacks migration 0001 (initial): run `tollgate migrate`"));

    let mut both: Vec<_> = (0..2)
        .map(|_| {
            let mut command = tollgate(&url, &["migrate", "--json"]);
            command
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    let done = both
        .drain(..)
        .map(|one| applied(&one.wait_with_output().unwrap()));
    assert_eq!(done.sum::<usize>(), 12, "each is applied by one of the two");
    let again = tollgate(&url, &["migrate", "--json"]).output().unwrap();
    assert_eq!(
        applied(&again),
        0,
        "everything was applied by the first two"
    );
    postgres.stop().await;
}
