//! A gateway that `tollgate dev` knows nothing of.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
};

use serde_json::Value;
use testkit::{
    eventually,
    load::{Connection, Shot},
};

use crate::{stack::Stack, world::SOON};

/// A gateway of its own with peppers of its own, beside those of the stack.
pub(crate) struct Apart {
    child: Child,
    pub(crate) base: String,
    dir: tempfile::TempDir,
}

impl Apart {
    /// One that reaches `keys` here.
    pub(crate) async fn start(stack: &Stack, keys: &str) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let info = stack.info();
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let secrets = std::fs::read(stack.data().join("ephemeral/secrets.json")).expect("secrets");
        let secrets: Value = serde_json::from_slice(&secrets).expect("JSON");
        let current = text(&info["peppers"]["current"]);
        std::fs::copy(current, dir.path().join("pepper")).expect("copied");
        let path = |name: &str| dir.path().join(name).display().to_string();
        let port = testkit::ports::free();
        let log = std::fs::File::create(dir.path().join("log")).expect("a log");
        let variables = [
            ("NATS_URL", text(&info["nats_url"])),
            ("REDIS_URL", text(&info["redis_url"])),
            ("TOLLGATE_SERVICE_TOKEN", text(&secrets["service_token"])),
            ("TOLLGATE_OPERATOR_TOKEN", text(&secrets["operator_token"])),
            (
                "TOLLGATE_GATEWAY_PRINCIPAL_SECRET",
                text(&secrets["principal_secret"]),
            ),
            ("API_KEY_PEPPER_FILE", path("pepper")),
            ("API_KEY_PEPPER_PREVIOUS_FILE", path("pepper-previous")),
            ("TOLLGATE_GATEWAY_JOURNAL_DIR", path("journal")),
            ("TOLLGATE_GATEWAY_NAME", "apart".to_owned()),
            ("TOLLGATE_GATEWAY_LISTEN", format!("127.0.0.1:{port}")),
            (
                "TOLLGATE_GATEWAY_UPSTREAM_NETWORKS",
                "127.0.0.0/8".to_owned(),
            ),
            ("TOLLGATE_GRPC_LISTEN", "127.0.0.1:0".to_owned()),
            ("TOLLGATE_OPS_LISTEN", "127.0.0.1:0".to_owned()),
            ("TOLLGATE_KEYS_GRPC_URL", keys.to_owned()),
            ("TOLLGATE_WALLET_GRPC_URL", text(&info["grpc"]["wallet"])),
            (
                "TOLLGATE_USAGE_INGEST_GRPC_URL",
                text(&info["grpc"]["usage-ingest"]),
            ),
            ("OTEL_SDK_DISABLED", "true".to_owned()),
        ];
        let child = Command::new(env!("CARGO_BIN_EXE_tollgate"))
            .args(["serve", "--target=gateway"])
            .envs(variables)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("it starts");
        let base = format!("http://127.0.0.1:{port}");
        let apart = Self { child, base, dir };
        let up = eventually(SOON, "the gateway answers", || async {
            let holders = stack.cli(&["pepper", "status"])["holders"].to_string();
            let seen = holders.contains("apart");
            let answer = Connection::to(&apart.base).call("", &Shot::get("/")).await;
            match (answer, seen) {
                (Ok(_), true) => Ok(()),
                (answer, _) => Err(format!("{:?} {}", answer.err(), apart.log())),
            }
        });
        up.await.unwrap();
        apart
    }

    /// Its own folder, with the files of its peppers.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the gateway apart\n{}", self.log());
        }
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait().map(drop)) {
            eprintln!("the gateway apart was gone: {error}");
        }
    }
}
