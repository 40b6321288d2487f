//! The targets of `make fuzz` over the corpus that it has left, so that neither rots.

#[path = "../../../../fuzz/targets/mod.rs"]
mod targets;

use std::{fs, path::Path};

#[test]
fn the_corpus_breaks_no_target() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    for (name, target) in targets::TARGETS {
        let mut inputs = 0;
        for entry in fs::read_dir(corpus.join(name)).expect("each target has a corpus") {
            let path = entry.expect("readable").path();
            println!("{}", path.display());
            target(&fs::read(&path).expect("readable"));
            inputs += 1;
        }
        assert!(inputs > 0, "{name} has a corpus");
    }
}
