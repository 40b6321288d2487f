use std::io;

use uuid::Uuid;

use super::*;
use crate::tests::rig;

fn journal_fails(number: i32) -> anyhow::Error {
    let error = journal::Error::Io {
        action: "write",
        path: "watermark".into(),
        source: io::Error::from_raw_os_error(number),
    };
    error.into()
}

#[tokio::test]
async fn what_may_pass_is_tried_again_and_what_cannot_ends_the_process() {
    const EIO: i32 = 5;
    const EMFILE: i32 = 24;
    let (host, _) = rig::host(&[]).await;
    let mut insistence = Insistence::new(&host, JournalId::new(Uuid::from_u128(1)), false);
    let stop = Stop::default();
    for error in [
        journal_fails(EMFILE),
        journal_fails(EIO).context("watermarks"),
        anyhow::anyhow!("NATS was away"),
    ] {
        assert!(insistence.may_pass(&error, &stop).await, "{error:#}");
    }
    for error in [journal::Error::Failed, journal::Error::Damaged { seq: 7 }] {
        let error = anyhow::Error::from(error).context("shipping");
        assert!(!insistence.may_pass(&error, &stop).await, "{error:#}");
    }
    stop.request();
    assert!(!insistence.may_pass(&journal_fails(EIO), &stop).await);
}

#[test]
fn a_failure_that_lasts_is_complained_of_now_and_then() {
    let mut complaint = Complaint::default();
    let due = (0..130).filter(|now| complaint.is_due(Duration::from_secs(*now)));
    assert_eq!(due.collect::<Vec<_>>(), [0, 60, 120]);
}
