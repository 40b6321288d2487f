use std::collections::BTreeSet;

use proptest::prelude::*;

use crate::{
    config::Variables,
    inbox::Ranges,
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
    use secrecy::ExposeSecret;
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

proptest! {
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
    fn a_traceparent_never_panics(text in ".{0,70}") {
        if let Some(context) = parse_traceparent(&text) {
            prop_assert!(context.is_valid());
        }
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
