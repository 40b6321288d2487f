//! The coverage-guided runner of one target, which `FUZZ_TARGET` names: `make fuzz`.
#![no_main]

mod targets;

use std::sync::LazyLock;

#[expect(
    clippy::disallowed_methods,
    reason = "the runner's own arguments belong to libFuzzer"
)]
static TARGET: LazyLock<targets::Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let all = targets::TARGETS.iter();
    let found = all.copied().find(|(target, _)| *target == name);
    found.expect("FUZZ_TARGET names a target").1
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| TARGET(data));
