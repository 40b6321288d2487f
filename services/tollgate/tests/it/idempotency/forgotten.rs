//! Keys after a failover: nobody gets one while it is not known who has them.

use super::is_refused;
use crate::{fault::chat, stack::Stack};

/// Gateways tell who has a key once the stream has been read again, however late that is: the time
/// that they are given begins then.
#[tokio::test]
async fn the_time_for_which_keys_are_refused_begins_when_the_stream_was_read_again() {
    let stack = Stack::start(&["--ephemeral"]).await;
    let live = stack.demo("live_key");
    let present = async |key: &str| {
        let shot = chat().with("idempotency-key", key);
        stack.call(&live, &shot).await
    };
    let happens = async |change: &'static str| {
        let done = sqlx::raw_sql(change).execute(stack.pool()).await;
        done.expect("it happens");
    };
    let before = present("before").await;
    assert_eq!(before.status, 200, "{before:?}");

    happens("update usage_ingest.origin set moved_at = now() - interval '1 day'").await;
    let reading = present("reading").await;
    is_refused(&reading, 503, "metering_unavailable");

    happens("update usage_ingest.origin set caught_up_at = now()").await;
    let read = present("read").await;
    is_refused(&read, 503, "metering_unavailable");

    let later = "update usage_ingest.origin set caught_up_at = caught_up_at - interval '70 s'";
    happens(later).await;
    let told = present("told").await;
    assert_eq!(told.status, 200, "{told:?}");
}
