//! Transactions that nobody waits for any more, as when a caller hangs up.

use std::{pin::pin, time::Duration};

use futures_util::poll;
use sqlx::postgres::PgPoolOptions;
use testkit::servers::{Options, Postgres};

/// More steps than a begin has.
const STEPS: usize = 6;
const ATTEMPTS: usize = 60;
/// What was asked is answered within.
const STEP: Duration = Duration::from_millis(5);

#[tokio::test]
async fn what_is_written_after_a_begin_that_was_given_up_is_there_for_everybody() {
    let postgres = Postgres::start(&Options::ephemeral()).await.unwrap();
    let pool = || PgPoolOptions::new().max_connections(1);
    let url = postgres.url("postgres");
    let (ours, others) = (
        pool().connect(&url).await.unwrap(),
        pool().connect(&url).await.unwrap(),
    );
    sqlx::query("create table written (step bigint)")
        .execute(&others)
        .await
        .unwrap();
    for attempt in 0..ATTEMPTS {
        let step = attempt % STEPS;
        {
            let mut begun = pin!(runtime::begin(&ours));
            for _ in 0..step {
                if poll!(&mut begun).is_ready() {
                    break;
                }
                tokio::time::sleep(STEP).await;
            }
        }
        // The one connection there is, as soon as it is back.
        let write =
            sqlx::query("insert into written values ($1)").bind(i64::try_from(attempt).unwrap());
        write.execute(&ours).await.unwrap();
        let seen: i64 = sqlx::query_scalar("select count(*) from written")
            .fetch_one(&others)
            .await
            .unwrap();
        assert_eq!(
            usize::try_from(seen).unwrap(),
            attempt + 1,
            "given up at step {step}"
        );
    }
    postgres.stop().await;
}
