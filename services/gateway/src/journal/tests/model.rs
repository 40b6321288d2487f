//! Random lives of a journal against a vector.

use proptest::prelude::*;

use super::{NOW_MS, Rig, append, payload, read};
use crate::journal::{Journal, RECORD_BYTES_MAX, Recovered};

#[derive(Clone, Debug)]
enum Step {
    Append {
        bytes: usize,
        times: usize,
    },
    Maintain,
    Trim {
        percent: u64,
    },
    /// Dies and comes back, `times` records are added to the old journals.
    Restart {
        times: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..=RECORD_BYTES_MAX, 1..30_usize)
            .prop_map(|(bytes, times)| Step::Append { bytes, times }),
        2 => Just(Step::Maintain),
        2 => (0..=100_u64).prop_map(|percent| Step::Trim { percent }),
        1 => (0..3_usize).prop_map(|times| Step::Restart { times }),
    ]
}

/// What a journal must hold: the lengths of its records, and how far it was applied.
#[derive(Default)]
struct Model {
    sizes: Vec<usize>,
    watermark: u64,
}

impl Model {
    fn check(&self, journal: &Journal, watermark: u64) {
        assert_eq!(journal.next_seq(), self.sizes.len() as u64);
        let expected: Vec<_> = (watermark..)
            .zip(&self.sizes[usize::try_from(watermark).expect("small")..])
            .map(|(seq, bytes)| (seq, payload(seq, *bytes)))
            .collect();
        assert!(
            read(journal, watermark) == expected,
            "records differ from the model"
        );
    }

    fn trim(&mut self, journal: &Journal, percent: u64) {
        self.watermark = self.watermark.max(self.sizes.len() as u64 * percent / 100);
        journal.trim(self.watermark).expect("trimmed");
    }

    fn append(&mut self, journal: &Journal, bytes: usize) {
        assert_eq!(append(journal, bytes), self.sizes.len() as u64);
        self.sizes.push(bytes);
    }
}

fn check_recovered(old: &Recovered, model: &Model) {
    assert!(old.damage.is_empty(), "{:?}", old.damage);
    assert_eq!(old.torn_seq, None);
    // The saved watermark may trail, as it is saved only before something is unlinked.
    assert!(old.journal.watermark() <= model.watermark);
    model.check(&old.journal, old.journal.watermark());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_record_is_read_back_across_restarts(
        steps in prop::collection::vec(step(), 1..40)
    ) {
        let rig = Rig::new();
        let mut number = 1;
        let (mut journal, mut old) = rig.open(number);
        // The last model is the current journal's, the others the recovered ones', in order.
        let mut models = vec![Model::default()];
        for step in steps {
            match step {
                Step::Append { bytes, times } => {
                    let model = models.last_mut().expect("there is always one");
                    for i in 0..times {
                        model.append(&journal, (bytes + i * 37) % RECORD_BYTES_MAX + 1);
                    }
                }
                Step::Maintain => drop(journal.maintain(NOW_MS).expect("maintained")),
                Step::Trim { percent } => {
                    for (old, model) in old.iter().zip(&mut models) {
                        model.trim(&old.journal, percent);
                    }
                    models.last_mut().expect("one").trim(&journal, percent);
                }
                Step::Restart { times } => {
                    drop((journal, old));
                    models.retain(|model| !model.sizes.is_empty());
                    number += 1;
                    (journal, old) = rig.open(number);
                    assert_eq!(old.len(), models.len());
                    for (old, model) in old.iter().zip(&mut models) {
                        check_recovered(old, model);
                        for _ in 0..times {
                            let write = |slot: crate::journal::Slot<'_>| {
                                slot.buf[..9].copy_from_slice(&payload(slot.seq, 9));
                                (9, ())
                            };
                            old.journal.append_synced(NOW_MS, write).expect("room");
                            model.sizes.push(9);
                        }
                    }
                    models.push(Model::default());
                }
            }
            let model = models.last().expect("there is always one");
            model.check(&journal, model.watermark);
        }
    }
}
