//! The auditor finds what was changed behind the services' backs, and says where.

use sqlx::AssertSqlSafe;
use testkit::load::Shot;

use crate::stack::Stack;

const DISTANCE: &str = "/api/v1/mileage/distance?from=48.85,2.35&to=43.29,5.37";

/// What is done, how it is undone, what the auditor says about it.
const CHANGES: [(&str, &str, &str); 8] = [
    (
        "update wallet.wallets set balance = balance + 1, total_granted = total_granted + 1",
        "update wallet.wallets set balance = balance - 1, total_granted = total_granted - 1",
        "balance, by the ledger,",
    ),
    (
        "update wallet.wallets set reserved = reserved + 1",
        "update wallet.wallets set reserved = reserved - 1",
        "reserved credits of the wallet",
    ),
    (
        "update wallet.leases set settled_cum = settled_cum + 1, granted = granted + 1",
        "update wallet.leases set settled_cum = settled_cum - 1, granted = granted - 1",
        "its 3 calls cost 3",
    ),
    (
        "update usage_ingest.api_usage_logs set credits_used = credits_used + 1",
        "update usage_ingest.api_usage_logs set credits_used = credits_used - 1",
        "the row says something else",
    ),
    (
        "update usage_ingest.inbox set applied = applied - int8multirange(int8range(1, 2))",
        "update usage_ingest.inbox set applied = applied + int8multirange(int8range(1, 2))",
        "usage_ingest has applied all below 1 only",
    ),
    (
        "update stats_aggregator.daily_stats set total_credits = total_credits + 1",
        "update stats_aggregator.daily_stats set total_credits = total_credits - 1",
        "day of org_",
    ),
    (
        "update stats_aggregator.hourly_stats set total_requests = total_requests + 1",
        "update stats_aggregator.hourly_stats set total_requests = total_requests - 1",
        "hour of org_",
    ),
    (
        "insert into anomaly_detector.dead_letters (subject, stream_seq, reason, payload, at)
         values ('usage.v1.x', 1, 'test', 'x', now())",
        "delete from anomaly_detector.dead_letters",
        "anomaly_detector has put 1 batches aside",
    ),
];

#[tokio::test]
async fn every_change_behind_the_services_backs_is_found_and_named() {
    let stack = Stack::start(&["--ephemeral"]).await;
    let key = stack.demo("live_key");
    let mut last = String::new();
    for _ in 0..3 {
        let answer = stack.call(&key, &Shot::get(DISTANCE)).await;
        answer.header("x-request-id").clone_into(&mut last);
    }
    assert_eq!(stack.audit()["calls"], 3);
    for (change, undo, said) in CHANGES {
        execute(&stack, change).await;
        finds(&stack, &["audit", "--wait", "0"], said);
        execute(&stack, undo).await;
        assert_eq!(stack.audit()["differences"], 0, "undone: {undo}");
    }
    a_transcript_is_believed(&stack, &last);
    execute(
        &stack,
        "delete from usage_ingest.api_usage_logs where seq = 2",
    )
    .await;
    finds(&stack, &["audit", "--wait", "0"], "applied, but no row");
}

/// Calls that a client saw answered and that left no row are lost.
fn a_transcript_is_believed(stack: &Stack, known: &str) {
    let path = stack.data().join("transcript.jsonl");
    let unknown = "req_01920000000070008000000000000001";
    let lines = [(known, 1), (unknown, 1)].map(|(id, cost)| {
        format!(r#"{{"request_id":"{id}","status":200,"complete":true,"cost":{cost}}}"#)
    });
    std::fs::write(&path, lines.join("\n") + "\n").unwrap();
    let path = path.to_string_lossy().into_owned();
    let arguments = ["audit", "--wait", "0", "--transcript", &path];
    let report = finds(
        stack,
        &arguments,
        &format!("{unknown}: answered in full, but no row"),
    );
    assert_eq!(
        (&report["lost"], &report["differences"]),
        (&1.into(), &1.into())
    );
}

/// What upstreams say is held against the rows; what nobody saw complete may be missing.
#[tokio::test]
async fn upstreams_are_heard_and_days_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let seen = dir.path().join("upstream.jsonl");
    let said = seen.to_str().unwrap();
    let stack = Stack::start(&["--ephemeral", "--transcript", said]).await;
    let key = stack.demo("live_key");
    for _ in 0..3 {
        stack.call(&key, &Shot::get(DISTANCE)).await;
    }
    stack.audit();
    let arguments = ["audit", "--wait", "0", "--upstream-transcript", said];
    let reports = dir.path().join("reports");
    let report = ["--report", reports.to_str().unwrap()];
    let found = stack.cli(&[&arguments[..], &report].concat());
    // It has answered questions for its health, too.
    assert!(found["upstream"].as_u64() >= Some(3), "{found:#}");
    assert_eq!(found["answered_unrecorded"], 0, "{found:#}");
    days_are_reported(&stack, &reports);

    // A gateway that died before it wrote a record, as far as the upstream can tell.
    let lines = std::fs::read_to_string(&seen).unwrap();
    let stranger =
        r#"{"service":"mileage","request_id":"req_01920000000070008000000000000001","status":200}"#;
    std::fs::write(&seen, format!("{lines}{stranger}\n")).unwrap();
    let found = stack.cli(&arguments);
    assert_eq!(found["answered_unrecorded"], 1, "{found:#}");

    // Credits for a call that was never answered.
    let first = lines.lines().find(|line| line.contains("req_")).unwrap();
    std::fs::write(&seen, lines.replace(&format!("{first}\n"), "")).unwrap();
    finds(&stack, &arguments, "paid for, but mileage never answered");
}

fn days_are_reported(stack: &Stack, folder: &std::path::Path) {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    names.sort();
    let [json, text] = names.as_slice() else {
        panic!("{names:?}")
    };
    let json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();
    let day = &json["days"][0];
    assert_eq!(day["org_id"], stack.demo("org_id").as_str(), "{json:#}");
    assert_eq!(day["rows"], serde_json::json!({ "calls": 3, "credits": 3 }));
    assert_eq!(day["statistics"], day["rows"]);
    assert_eq!(
        (&day["booked"], &day["booked_later"]),
        (&3.into(), &0.into())
    );
    let text = std::fs::read_to_string(text).unwrap();
    assert!(text.contains("everything adds up"), "{text}");
    assert!(text.contains(&stack.demo("org_id")), "{text}");
}

async fn execute(stack: &Stack, sql: &str) {
    let done = sqlx::query(AssertSqlSafe(sql.to_owned()))
        .execute(stack.pool())
        .await
        .unwrap();
    assert!(done.rows_affected() > 0, "{sql} changes something");
}

fn finds(stack: &Stack, arguments: &[&str], said: &str) -> serde_json::Value {
    let (code, report, errors) = stack.try_cli(arguments);
    assert_eq!(code, Some(1), "`{said}` is not found: {report:#} {errors}");
    let texts = report["first_differences"].as_array().unwrap();
    let is_said = texts
        .iter()
        .any(|text| text.as_str().unwrap().contains(said));
    assert!(is_said, "`{said}` is not said: {report:#}");
    report
}
