//! Each fault of the table has a test that carries its number, or a reason why it is not here.

use std::{collections::BTreeSet, path::Path};

/// The faults of the table.
const FAULTS: std::ops::RangeInclusive<u32> = 1..=28;
/// Faults whose tests are no functions with their number.
const ELSEWHERE: [(u32, &str); 1] = [(26, "`sim::` and `model::`")];

/// Numbers in the names of test functions: `f09_f13_…` has two.
fn numbers(text: &str) -> BTreeSet<u32> {
    let names = text.split(" fn ").skip(1);
    let parts = names.flat_map(|rest| rest.split(['(', '<']).next().unwrap_or("").split('_'));
    parts
        .filter_map(|part| part.strip_prefix('f').filter(|digits| digits.len() == 2))
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

fn numbers_below(folder: &Path, found: &mut BTreeSet<u32>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            numbers_below(&path, found);
        } else if path.extension().is_some_and(|it| it == "rs") {
            found.extend(numbers(&std::fs::read_to_string(&path).unwrap()));
        }
    }
}

#[test]
fn every_fault_has_its_test_or_a_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = BTreeSet::new();
    for folder in ["tests/it", "../gateway/src"] {
        numbers_below(&root.join(folder), &mut found);
    }
    let reasons: BTreeSet<u32> = ELSEWHERE.iter().map(|(id, _)| *id).collect();
    let missing: Vec<u32> = FAULTS
        .filter(|id| !found.contains(id) && !reasons.contains(id))
        .collect();
    assert!(missing.is_empty(), "faults without a test: {missing:?}");
    let unknown: Vec<&u32> = found.iter().filter(|id| !FAULTS.contains(id)).collect();
    assert!(unknown.is_empty(), "tests of unknown faults: {unknown:?}");
}
