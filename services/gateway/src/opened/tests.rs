use proto::events::v1::Call;
use uuid::Uuid;

use super::*;
use crate::recovery::{finals, has_spent};

/// What all calls before are charged to.
const BEFORE: i64 = 50;

fn lease() -> LeaseId {
    LeaseId::new(Uuid::from_u128(1))
}

/// Two calls are open, which cost 5 and 3 if their gateway dies. What was spent
/// before is known from the notes alone: its records are applied and gone.
fn journal() -> (BTreeMap<LeaseId, Total>, Opened) {
    let mut opened = Opened::default();
    for (n, due) in [(1, 5), (2, 3)] {
        let note = Record {
            kind: RecordKind::Open.into(),
            lease_id: lease().bytes().to_vec(),
            held: 9,
            due,
            call: Some(Call {
                request_id: Uuid::from_u128(n).as_bytes().to_vec(),
                ..Call::default()
            }),
            ..Record::default()
        };
        opened.read(&note).expect("a note");
    }
    (BTreeMap::from([(lease(), has_spent(BEFORE))]), opened)
}

/// Recovers a copy of the journal when so much is settled: the records, and the final count.
fn recovered(settled_cum: i64) -> (Vec<Record>, i64) {
    let (mut totals, opened) = journal();
    let open = [Lease {
        lease_id: lease().bytes().to_vec(),
        settled_cum,
        known_cum: settled_cum,
        ..Lease::default()
    }];
    let records = opened.end(&mut totals, &open, 7).expect("ended");
    let finals = finals(&totals, &open, false, true).expect("leases");
    let (_, last) = *finals.first().expect("it is open");
    (records, last)
}

#[test]
fn what_one_copy_has_charged_the_next_does_not_charge_again() {
    let (first, last) = recovered(BEFORE);
    assert_eq!(last, BEFORE + 5 + 3);
    // Of what the first recovery has shipped, nothing, one end or both may be settled; or calls
    // from before are not even.
    for settled in [0, BEFORE - 1, BEFORE + 5, BEFORE + 5 + 3] {
        assert_eq!(recovered(settled), (first.clone(), last), "{settled}");
    }
}

#[test]
fn a_copy_that_lacks_records_charges_no_call_that_they_may_have_ended() {
    for settled in [BEFORE + 1, BEFORE + 6, BEFORE + 9] {
        let (records, last) = recovered(settled);
        assert_eq!(last, settled, "nothing comes on top");
        let costs: Vec<_> = records.iter().map(|it| (it.cost, it.cum)).collect();
        assert_eq!(costs, [(0, 0), (0, 0)], "rows are what was paid");
        assert!(records.iter().all(|record| record.lease_id.is_empty()));
    }
}
