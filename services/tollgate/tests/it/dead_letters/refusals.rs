//! What an operator is refused about a letter, in words that say why, and that nothing has changed
//! by it.

use futures_util::StreamExt as _;
use proto::events::v1::Applied;

use super::*;

/// Records 0 and 1 of a journal, of a kind that nobody knows.
async fn put_aside(stack: &Stack, journal: Uuid) -> String {
    let record = |seq| Record {
        seq,
        kind: 7,
        at_unix_micros: 1,
        ..Record::default()
    };
    let batch = UsageBatch {
        journal_id: journal.as_bytes().to_vec(),
        records: vec![record(0), record(1)],
        gaps: Vec::new(),
    };
    let context = stack.jetstream().await;
    let subject = format!("usage.v1.jrn_{}", journal.simple());
    let taken = context
        .publish(subject, batch.encode_to_vec().into())
        .await
        .unwrap();
    taken.await.unwrap();
    let name = format!("jrn_{}", journal.simple());
    let is_it = |it: &&Value| it["consumer"] == "usage-ingest" && it["journal_id"] == *name;
    let found = letters_until(stack, "it is put aside", |it| {
        it.iter().any(|it| is_it(&it))
    })
    .await;
    id_of(found.iter().find(is_it).unwrap())
}

/// All that a decision about a letter of this journal may change.
async fn state(stack: &Stack, journal: Uuid) -> String {
    let sql = format!(
        "select concat_ws(' ',
                (select string_agg(id::text, ',') from usage_ingest.dead_letters
                  where journal_id = '{journal}'),
                'discards', (select count(*) from usage_ingest.discards),
                'gaps', (select count(*) from usage_ingest.gaps),
                'applied', (select applied from usage_ingest.inbox
                             where journal_id = '{journal}'))"
    );
    let found = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(stack.pool());
    found.await.unwrap()
}

const WHY: [&str; 4] = ["--reason", "nobody knows it", "--by", "ada"];

/// Both decisions are refused with these words.
async fn refused(stack: &Stack, (journal, id): (Uuid, &str), words: &str) {
    let before = state(stack, journal).await;
    let base = |decision| ["letters", decision, "usage-ingest", id];
    for arguments in [
        base("retry").to_vec(),
        [&base("discard")[..], &WHY].concat(),
    ] {
        let (code, said, errors) = stack.try_cli(&arguments);
        assert_eq!(code, Some(1), "{said} {errors}");
        let said = format!("{said} {errors}");
        assert!(said.contains(words), "`{words}` is not in: {said}");
    }
    assert_eq!(state(stack, journal).await, before);
}

/// F11, F15: a letter that somebody holds, its journal's inbox, and a database that lacks what it
/// had committed last: the operator is told, and asks again.
#[tokio::test]
async fn a_decision_is_refused_while_others_hold_the_letter_or_the_stream_is_read_again() {
    let stack = Stack::start(&["--ephemeral"]).await;
    let journal = Uuid::now_v7();
    let id = put_aside(&stack, journal).await;
    let it = (journal, id.as_str());
    for sql in [
        "select from usage_ingest.dead_letters where journal_id = $1 for update",
        "insert into usage_ingest.inbox (journal_id, applied, updated_at)
         values ($1, '{}', now())",
    ] {
        let mut holder = stack.pool().begin().await.unwrap();
        let held = sqlx::query(sql).bind(journal).execute(&mut *holder).await;
        assert_eq!(held.unwrap().rows_affected(), 1, "{sql}");
        refused(&stack, it, "busy").await;
        holder.rollback().await.unwrap();
    }
    // Another server's history; then this one's, of which not all is read again.
    execute(
        &stack,
        "update usage_ingest.origin set timeline = 'FFFFFFFF'".to_owned(),
    )
    .await;
    refused(&stack, it, "failed over").await;
    let read_again = "update usage_ingest.origin
                         set timeline = left(pg_walfile_name(pg_current_wal_lsn()), 8),
                             moved_at = now(), caught_up_at = null";
    execute(&stack, read_again.to_owned()).await;
    refused(&stack, it, "failed over").await;
    execute(
        &stack,
        "update usage_ingest.origin set caught_up_at = now()".to_owned(),
    )
    .await;
    let discard = ["letters", "discard", "usage-ingest", &id];
    let done = stack.cli(&[&discard[..], &WHY].concat());
    assert_eq!(done["letters"][0]["discarded"], 2, "{done}");
    let after = state(&stack, journal).await;
    assert_eq!(after, "discards 1 gaps 1 applied {[0,2)}");
}

/// F11: the journal's watermark is past a letter by now, because its owner has declared its records
/// lost before they came. Nothing is left to decide, and no older watermark is told.
#[tokio::test]
async fn a_letter_behind_its_journals_watermark_moves_it_nowhere() {
    let stack = Stack::start(&["--ephemeral"]).await;
    let journal = Uuid::now_v7();
    let url = stack.info()["nats_url"].as_str().unwrap().to_owned();
    let nats = async_nats::connect(url).await.unwrap();
    let subject = format!("usage.v1.applied.usage-ingest.jrn_{}", journal.simple());
    let mut told = nats.subscribe(subject).await.unwrap();
    nats.flush().await.unwrap();
    let passed = format!(
        "insert into usage_ingest.inbox (journal_id, applied, updated_at)
         values ('{journal}', '{{[0,9)}}', now());
         insert into usage_ingest.gaps (journal_id, from_seq, below_seq, cause, at)
         values ('{journal}', 0, 9, 'damaged', now())"
    );
    for statement in passed.split(';') {
        execute(&stack, statement.to_owned()).await;
    }
    let id = put_aside(&stack, journal).await;
    let base = |decision| ["letters", decision, "usage-ingest", &id];
    let before = state(&stack, journal).await;
    let (code, said, errors) = stack.try_cli(&[&base("discard")[..], &WHY].concat());
    assert_eq!(code, Some(1), "{said} {errors}");
    assert!(
        errors.contains("nothing in it breaks a rule any more"),
        "{errors}"
    );
    assert_eq!(state(&stack, journal).await, before);

    let done = stack.cli(&base("retry"));
    assert_eq!(done["letters"][0]["records"], 0, "{done}");
    assert_eq!(
        state(&stack, journal).await,
        "discards 0 gaps 1 applied {[0,9)}"
    );
    let message = tokio::time::timeout(SETTLE_LIMIT, told.next());
    let message = message.await.expect("it is told").expect("a message");
    let applied = Applied::decode(message.payload).unwrap();
    assert_eq!(applied.watermark, 9, "not the one of the letter");
}
