use std::collections::BTreeSet;

use proptest::prelude::*;
use prost::Message as _;
use proto::events::v1::{Gap, GapCause, Record, RecordKind, UsageBatch};
use secrecy::ExposeSecret;
use types::JournalId;

use crate::{
    Ids,
    batch::{self, Ranges},
    config::Variables,
    follow,
    node::{Node, Settings},
    secrets::Succession,
    trace::{format_traceparent, parse_traceparent},
};

fn variables(pairs: &[(&str, &str)]) -> Variables {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    Variables::from_pairs(pairs.iter().map(owned))
}

#[test]
fn all_problems_are_reported_at_once() {
    let mut v = variables(&[("TOLLGATE_X_SECONDS", "soon"), ("TOLLGATE_TYPO", "1")]);
    let _seconds = v.seconds("TOLLGATE_X_SECONDS", 5, 1..=10, "");
    let _secret = v.secret("API_KEY_PEPPER", "");
    let known = BTreeSet::from(["TOLLGATE_X_SECONDS".to_owned()]);
    let error = v.finish(&known).expect_err("three problems");
    assert_eq!(error.0.len(), 3, "{error}");
    assert!(
        error
            .0
            .contains(&"API_KEY_PEPPER environment variable is not set".to_owned())
    );
    assert!(error.to_string().contains("TOLLGATE_TYPO"));
}

#[test]
fn a_secret_comes_from_a_file_without_its_line_end() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "s3cret\n").expect("written");
    let mut v = variables(&[("TOKEN_FILE", file.path().to_str().expect("utf-8"))]);
    assert_eq!(v.secret("TOKEN", "").expose_secret(), "s3cret");
    assert!(
        v.settings()
            .iter()
            .all(|setting| !setting.value.contains("s3cret"))
    );
    assert!(v.finish(&BTreeSet::new()).is_ok());
}

/// A batch whose records have these numbers.
fn batch(seqs: &[u64]) -> Result<(JournalId, UsageBatch), String> {
    let journal = JournalId::new(uuid::Uuid::from_u128(7));
    let batch = UsageBatch {
        journal_id: journal.bytes().to_vec(),
        records: seqs.iter().map(|seq| grant(*seq)).collect(),
        gaps: Vec::new(),
    };
    batch::open(&format!("usage.v1.{journal}"), &batch.encode_to_vec())
}

fn grant(seq: u64) -> Record {
    Record {
        seq,
        kind: RecordKind::Grant.into(),
        ..Record::default()
    }
}

#[test]
fn a_batch_that_no_inbox_could_keep_is_refused() {
    const LAST: u64 = i64::MAX as u64 - 1;
    assert!(batch(&[LAST - 1, LAST]).is_ok());
    for seqs in [
        &[LAST, LAST + 1][..],
        &[LAST + 1],
        &[u64::MAX],
        &[u64::MAX, 0],
    ] {
        assert!(batch(seqs).is_err(), "{seqs:?}");
    }
    for seqs in [&[][..], &[3, 5], &[5, 4], &[5, 5]] {
        assert!(batch(seqs).is_err(), "{seqs:?}");
    }
    let many: Vec<u64> = (0..257).collect();
    assert!(batch(&many[1..]).is_ok());
    assert!(batch(&many).is_err());
}

proptest! {
    /// Whatever is cut, repeated and mixed up: each record is new once, and the ranges are the set
    /// of all numbers seen.
    #[test]
    fn each_record_is_new_once(cuts in prop::collection::vec((0_u64..60, 1_u64..9), 0..40)) {
        let mut ranges = Ranges::default();
        let mut model = BTreeSet::new();
        for (first, count) in cuts {
            let seqs: Vec<u64> = (first..first + count).collect();
            let (_, batch) = batch(&seqs).expect("well-formed");
            let unseen = batch::unseen(&mut ranges, &batch);
            let expected: Vec<u64> = seqs.into_iter().filter(|seq| model.insert(*seq)).collect();
            prop_assert_eq!(unseen.iter().map(|it| it.seq).collect::<Vec<_>>(), expected);
            let gap = (0..).find(|seq| !model.contains(seq)).expect("finite");
            prop_assert_eq!(ranges.watermark(), gap);
        }
    }

    #[test]
    fn ranges_are_a_set(seqs in prop::collection::vec(0_u64..40, 0..120)) {
        let mut ranges = Ranges::default();
        let mut model = BTreeSet::new();
        for seq in seqs {
            prop_assert_eq!(ranges.insert(seq), model.insert(seq));
            let gap = (0..).find(|n| !model.contains(n)).expect("finite");
            prop_assert_eq!(ranges.watermark(), gap);
            for probe in 0..41 {
                prop_assert_eq!(ranges.contains(probe), model.contains(&probe));
            }
        }
    }

    #[test]
    fn a_gap_covers_what_is_missing_and_nothing_twice(
        seqs in prop::collection::vec(0_u64..40, 0..30),
        gaps in prop::collection::vec((0_u64..40, 1_u64..12), 0..12),
    ) {
        let mut ranges = Ranges::default();
        let mut model = BTreeSet::new();
        for seq in seqs {
            prop_assert_eq!(ranges.insert(seq), model.insert(seq));
        }
        for (from, length) in gaps {
            let new: Vec<u64> = ranges.cover(from, from + length).into_iter()
                .flat_map(|(low, high)| low..high).collect();
            let wanted: Vec<u64> = (from..from + length).filter(|n| model.insert(*n)).collect();
            prop_assert_eq!(new, wanted);
            for probe in 0..60 {
                prop_assert_eq!(ranges.contains(probe), model.contains(&probe));
            }
            // Sorted, disjoint and not even adjacent: the next insertion relies on it.
            let mut copy = ranges.clone();
            prop_assert!(copy.cover(0, 60).len() == copy_gaps(&model));
        }
    }

    #[test]
    fn a_traceparent_never_panics(text in ".{0,70}") {
        if let Some(context) = parse_traceparent(&text) {
            prop_assert!(context.is_valid());
        }
    }
}

/// Runs of missing numbers below 60.
fn copy_gaps(model: &BTreeSet<u64>) -> usize {
    let begins = |n: &u64| !model.contains(n) && (*n == 0 || model.contains(&(n - 1)));
    (0..60).filter(begins).count()
}

/// A gap is told from what its batch has, and leaves out what is kept.
#[test]
fn a_gap_leaves_out_what_is_kept() {
    let gap = |from, below| Gap {
        from,
        below,
        cause: GapCause::Damaged.into(),
    };
    let mut batch = UsageBatch {
        gaps: vec![gap(0, 10), gap(12, 14), gap(20, 22)],
        ..UsageBatch::default()
    };
    assert_eq!(batch::extent(&batch), Some((0, 22)));
    let mut kept = Ranges::default();
    kept.cover(3, 5);
    kept.cover(12, 15);
    batch::spare(&mut batch, &kept);
    assert_eq!(batch.gaps, [gap(0, 3), gap(5, 10), gap(20, 22)]);
    batch.records = vec![grant(30), grant(31)];
    assert_eq!(batch::extent(&batch), Some((30, 32)));
}

/// What cannot be read is shown as far as it can, and no further than asked.
#[test]
fn a_glance_reads_the_first_records() {
    let batch = UsageBatch {
        journal_id: vec![1; 3],
        records: (0..5).map(grant).collect(),
        gaps: Vec::new(),
    };
    let mut payload = batch.encode_to_vec();
    assert_eq!(batch::glance(&payload, 3), batch.records[..3]);
    payload.pop();
    assert_eq!(batch::glance(&payload, 9), batch.records[..4]);
    assert!(batch::glance(b"no batch", 9).is_empty());
}

#[test]
fn a_batch_whose_gaps_make_no_sense_is_refused() {
    let gap = |from, below| Gap {
        from,
        below,
        ..Gap::default()
    };
    let batch = |seqs: std::ops::Range<u64>, gaps: Vec<Gap>| UsageBatch {
        journal_id: vec![7; 16],
        records: seqs.map(grant).collect(),
        gaps,
    };
    for good in [
        batch(3..5, vec![]),
        batch(0..0, vec![gap(0, 9)]),
        batch(3..5, vec![gap(0, 3), gap(5, 6), gap(6, 7)]),
    ] {
        assert!(batch::check(&good).is_ok(), "{good:?}");
    }
    for bad in [
        batch(0..0, vec![]),
        batch(0..0, vec![gap(4, 4)]),
        batch(0..0, vec![gap(5, 4)]),
        batch(0..0, vec![gap(0, u64::MAX)]),
        batch(0..0, vec![gap(u64::MAX - 4, u64::MAX)]),
        batch(3..5, vec![gap(0, 4)]),
        batch(3..5, vec![gap(4, 9)]),
        batch(3..5, vec![gap(0, 9)]),
        batch(0..0, vec![gap(5, 7), gap(0, 2)]),
        batch(0..0, vec![gap(0, 7), gap(5, 9)]),
        batch(0..0, (0..65).map(|n| gap(2 * n, 2 * n + 1)).collect()),
    ] {
        assert!(batch::check(&bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_traceparent_survives_its_text() {
    let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let context = parse_traceparent(text).expect("the example of the standard");
    assert_eq!(format_traceparent(&context), text);
    for bad in [
        "",
        "00-0-0-01",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    ] {
        assert!(parse_traceparent(bad).is_none(), "{bad}");
    }
}

fn pair_of(folder: &std::path::Path) -> (Variables, [std::path::PathBuf; 2]) {
    let files = ["current", "previous"].map(|name| folder.join(name));
    let names = ["API_KEY_PEPPER_FILE", "API_KEY_PEPPER_PREVIOUS_FILE"];
    let pairs = names.iter().zip(&files);
    let given = pairs.map(|(name, file)| ((*name).to_owned(), file.display().to_string()));
    (Variables::from_pairs(given), files)
}

fn succession(variables: &mut Variables) -> Succession {
    variables.succession(
        ("API_KEY_PEPPER", ""),
        ("API_KEY_PEPPER_PREVIOUS", ""),
        |text| match text.len() {
            0..4 => Err("is short".to_owned()),
            _ => Ok(()),
        },
    )
}

#[test]
fn a_succession_is_read_again_from_its_files_and_the_one_before_may_be_absent() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut variables, [current, previous]) = pair_of(folder.path());
    std::fs::write(&current, "first\n").expect("written");
    let files = succession(&mut variables);
    variables
        .finish(&BTreeSet::new())
        .expect("nothing is wrong");
    assert!(files.can_change());
    let read = |files: &Succession| {
        let both = files.read().expect("read");
        let previous = both.previous.map(|it| it.expose_secret().to_owned());
        (both.current.expose_secret().to_owned(), previous)
    };
    assert_eq!(read(&files), ("first".to_owned(), None));
    std::fs::write(&previous, "first").expect("written");
    std::fs::write(&current, "second").expect("written");
    assert_eq!(
        read(&files),
        ("second".to_owned(), Some("first".to_owned()))
    );
    std::fs::write(&previous, "").expect("written");
    assert_eq!(read(&files), ("second".to_owned(), None));
    std::fs::remove_file(&current).expect("removed");
    assert!(files.read().is_err());
}

#[test]
fn a_succession_from_variables_does_not_change_and_its_problems_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut variables, [current, previous]) = pair_of(folder.path());
    std::fs::write(&current, "").expect("written");
    std::fs::write(&previous, "abc").expect("written");
    succession(&mut variables);
    let problems = variables
        .finish(&BTreeSet::new())
        .expect_err("both are wrong")
        .0;
    let wanted = [
        "API_KEY_PEPPER_FILE names an empty file",
        "API_KEY_PEPPER_PREVIOUS is short",
    ];
    assert_eq!(problems, wanted);

    let given = [("API_KEY_PEPPER".to_owned(), "a secret".to_owned())];
    let mut variables = Variables::from_pairs(given);
    assert!(!succession(&mut variables).can_change());
    variables
        .finish(&BTreeSet::new())
        .expect("nothing is wrong");
}

#[test]
fn an_event_that_failed_rests_longer_each_time_up_to_a_bound() {
    let millis = |attempt| follow::pause(attempt).as_millis();
    assert_eq!([1, 2, 3].map(millis), [100, 200, 400]);
    assert_eq!([0, -1].map(millis), [100, 100], "what a server may say");
    assert_eq!([8, 100, i64::MAX].map(millis), [10_000, 10_000, 10_000]);
}

#[tokio::test]
async fn a_process_ends_when_a_task_dies_that_it_is_worth_nothing_without() {
    let token = "0123456789abcdef0123456789abcdef";
    let mut variables = variables(&[
        ("NATS_URL", "nats://127.0.0.1:1"),
        ("TOLLGATE_SERVICE_TOKEN", token),
        ("TOLLGATE_OPERATOR_TOKEN", token),
        ("TOLLGATE_GRPC_LISTEN", "127.0.0.1:0"),
        ("TOLLGATE_OPS_LISTEN", "127.0.0.1:0"),
        ("OTEL_SDK_DISABLED", "true"),
        ("RUST_LOG", "off"),
    ]);
    let settings = Settings::read(&mut variables, &["gateway"], &[]);
    let mut node = Node::connect(settings, &["gateway"]).await.expect("a node");
    let host = node.host("gateway").expect("a host");
    host.spawn_vital("dies", |_| async { panic!("as a bug would") });
    let served = node.serve(std::future::pending()).await;
    let why = served
        .expect_err("it does not live on half dead")
        .to_string();
    assert!(why.contains("a service has given up"), "{why}");
}

#[test]
fn an_id_is_of_the_moment_it_is_made_for() {
    let at: jiff::Timestamp = "2031-02-27T23:59:58.123456789Z".parse().expect("a time");
    let ids = Ids::default();
    let [first, second]: [JournalId; 2] = [(); 2].map(|()| ids.new_id_at(at));
    assert!(first < second, "in their order");
    let told = first.uuid().get_timestamp().expect("version 7 has one");
    let (seconds, nanos) = told.to_unix();
    assert_eq!(i64::try_from(seconds), Ok(at.as_second()));
    assert_eq!(nanos / 1_000_000, 123);
}
