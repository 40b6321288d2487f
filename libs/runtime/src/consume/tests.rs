use super::*;

#[test]
fn a_transaction_has_few_records_or_a_single_message() {
    let fits = RECORDS_MAX / 2;
    for (records, together) in [
        (vec![], 1),
        (vec![1], 1),
        (vec![fits, fits, 1], 2),
        (vec![fits, fits + 1, 1], 1),
        (vec![RECORDS_MAX + 1, 1], 1),
        (vec![1; MESSAGES_MAX], MESSAGES_MAX),
    ] {
        assert_eq!(share(records.iter().copied()), together, "{records:?}");
    }
}
