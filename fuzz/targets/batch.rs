//! A message from the stream, as a consumer opens it and the wallet settles it, twice.

use jiff::Timestamp;
use prost::Message as _;
use proto::events::v1::UsageBatch;
use runtime::{Delivery, batch};
use types::{JournalId, LeaseId, OrgId};
use uuid::Uuid;
use wallet::cores::{Account, Ask, Bank};

const LEASES: u128 = 3;
const GIVEN: i64 = 1_000;

fn account() -> Account {
    Account::Credits(OrgId::new(Uuid::from_u128(1)))
}

/// A wallet that has lent to the journals 1 to 3, a lease each of the same number.
fn bank() -> Bank {
    let mut bank = Bank::new([(account(), GIVEN)]);
    for number in 1..=LEASES {
        let ask = Ask {
            account: account(),
            nonce: number.to_be_bytes(),
            want: 100,
            minimum: 100,
        };
        let id = Uuid::from_u128(number);
        let (journal, lease) = (JournalId::new(id), || LeaseId::new(id));
        bank.acquire(journal, &[ask], lease, Timestamp::UNIX_EPOCH);
    }
    bank
}

pub(super) fn settle(data: &[u8]) {
    // The subject is another's word; a message on the wrong one is refused.
    assert!(batch::open("usage.v1.jrn_", data).is_err());
    let Ok(decoded) = UsageBatch::decode(data) else {
        return;
    };
    let Ok(journal) = JournalId::from_slice(&decoded.journal_id) else {
        return;
    };
    let Ok((journal, opened)) = batch::open(&format!("usage.v1.{journal}"), data) else {
        return;
    };
    let mut ranges = batch::Ranges::default();
    let records = batch::unseen(&mut ranges, &opened);
    assert_eq!(records.len(), opened.records.len(), "all of it is new");
    assert!(
        batch::unseen(&mut ranges, &opened).is_empty(),
        "and then not"
    );
    let mut bank = bank();
    let before = bank.sums(account());
    let delivery = [Delivery { journal, records }];
    if bank.settle(&delivery).is_err() {
        assert_eq!(bank.sums(account()), before, "a dead letter moves nothing");
        return;
    }
    bank.check().expect("I1 to I4");
    let after = bank.sums(account());
    assert!(after.used <= 100 && after.used >= before.used);
    bank.settle(&delivery)
        .expect("what was right is right again");
    assert_eq!(bank.sums(account()), after, "and changes nothing");
}
