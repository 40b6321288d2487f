#![expect(
    clippy::disallowed_methods,
    reason = "UPDATE=1 writes the generated code"
)]

use std::path::{Path, PathBuf};

/// Generates into `out` and returns the written files, sorted.
fn generate(out: &Path) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    let mut protos = Vec::new();
    for name in [
        "events/v1/events",
        "keys/v1/keys",
        "keys/v1/people",
        "wallet/v1/wallet",
        "usage_ingest/v1/usage_ingest",
        "stats_aggregator/v1/stats_aggregator",
        "anomaly_detector/v1/anomaly_detector",
        "letters/v1/letters",
    ] {
        protos.push(root.join(format!("tollgate/{name}.proto")));
    }
    let descriptors = protox::compile(&protos, [&root]).expect("the .proto files compile");
    let mut bare = descriptors.clone();
    for file in &mut bare.file {
        file.source_code_info = None; // comments are documentation, not reflection
    }
    std::fs::write(
        out.join("descriptors.bin"),
        prost::Message::encode_to_vec(&bare),
    )
    .expect("descriptors are written");
    tonic_prost_build::configure()
        .out_dir(out)
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)
        .expect("code is generated");
    let mut files: Vec<PathBuf> = std::fs::read_dir(out)
        .expect("the folder is readable")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    files
}

#[test]
fn the_committed_code_equals_what_the_protos_say() {
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gen");
    let fresh = std::env::temp_dir().join(format!("tollgate-gen-{}", std::process::id()));
    std::fs::create_dir_all(&fresh).expect("a folder");
    let files = generate(&fresh);
    assert!(files.len() > 6, "only {} files were generated", files.len());
    let update = std::env::vars().any(|(name, value)| name == "UPDATE" && value == "1");
    for file in &files {
        let name = file.file_name().expect("a file has a name");
        let new = std::fs::read(file).expect("a generated file");
        if update {
            std::fs::create_dir_all(&committed).expect("a folder");
            std::fs::write(committed.join(name), &new).expect("written");
        }
        let old = std::fs::read(committed.join(name)).unwrap_or_default();
        assert!(
            old == new,
            "{name:?} differs: run UPDATE=1 cargo nextest run -p proto"
        );
    }
    std::fs::remove_dir_all(&fresh).expect("removed");
}
