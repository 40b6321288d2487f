//! The oracles of these tests object when a protection is missing.

use sqlx::AssertSqlSafe;
use testkit::load::{Outcome, Shot};

use super::{DISTANCE, Load};
use crate::stack::Stack;

#[tokio::test]
async fn without_their_protections_the_oracles_object() {
    let stack = Stack::start(&["--ephemeral"]).await;
    let load = Load::start(&stack, &stack.demo("live_key"), 2);
    for _ in 0..20 {
        stack
            .call(&stack.demo("live_key"), &Shot::get(DISTANCE))
            .await;
    }
    let outcome = load.finish().await;
    stack.audit_with(&[&outcome]);
    a_row_that_was_never_written(&stack, &outcome).await;
    a_consumer_that_remembers_nothing(&stack).await;
    a_grant_that_was_forgotten(&stack).await;
}

async fn execute(stack: &Stack, sql: &str) {
    let done = sqlx::query(AssertSqlSafe(sql.to_owned()))
        .execute(stack.pool())
        .await
        .expect("executed");
    assert!(done.rows_affected() > 0, "{sql} changes something");
}

fn objects(stack: &Stack, figure: &str) {
    let path = stack.transcript().to_string_lossy().into_owned();
    let (code, report, errors) = stack.try_cli(&["audit", "--wait", "0", "--transcript", &path]);
    assert_eq!(code, Some(1), "nobody objects: {report:#} {errors}");
    assert_ne!(report[figure], 0, "{figure}: {report:#}");
}

/// A consumer that acknowledges before it commits loses what the client saw.
async fn a_row_that_was_never_written(stack: &Stack, outcome: &Outcome) {
    let last = outcome
        .done
        .iter()
        .rfind(|done| done.status == 200)
        .expect("a call");
    let id: uuid::Uuid = last
        .request_id
        .trim_start_matches("req_")
        .parse()
        .expect("an id");
    let with = |verb: &str| format!("{verb} usage_ingest.api_usage_logs where request_id = '{id}'");
    execute(stack, &with("create table kept as select * from")).await;
    execute(stack, &with("delete from")).await;
    objects(stack, "lost");
    execute(
        stack,
        "insert into usage_ingest.api_usage_logs select * from kept",
    )
    .await;
    stack.audit();
}

/// Without its inbox a consumer applies a repeated message once more.
async fn a_consumer_that_remembers_nothing(stack: &Stack) {
    let before = stack.digests().await;
    execute(stack, "update stats_aggregator.inbox set applied = '{}'").await;
    stack.replay_usage().await;
    let after = stack.digests().await;
    for name in ["days", "hours"] {
        assert_ne!(before[name], after[name], "{name} are counted twice");
    }
    for name in ["wallets", "rows", "anomalies"] {
        assert_eq!(before[name], after[name], "{name} have an inbox");
    }
    objects(stack, "differences");
}

/// A reservation without an owner does not come back by itself.
async fn a_grant_that_was_forgotten(stack: &Stack) {
    execute(
        stack,
        "update wallet.wallets set reserved = reserved + 5 where reserved > 0",
    )
    .await;
    objects(stack, "differences");
}
