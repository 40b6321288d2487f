//! What everybody has at hand calls as it comes: curl, and a page in a browser.

use std::process::Command;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use crate::{
    clients,
    stack::{Customer, DISTANCE, LIVE, SETTLE_LIMIT, Stack},
};

fn used(stack: &Stack, customer: &Customer) -> Value {
    stack.audit();
    stack.cli(&["wallet", "show", "--org", &customer.org])["total_used"].clone()
}

/// Status, version of HTTP and body.
fn curl(arguments: &[&str]) -> (String, String, String) {
    let told = "\n%{http_code} %{http_version}";
    let output = Command::new("curl")
        .args([
            "--silent",
            "--show-error",
            "--max-time",
            "20",
            "--write-out",
            told,
        ])
        .args(arguments)
        .output()
        .expect("curl runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    let (body, told) = text.rsplit_once('\n').expect("told");
    let (status, version) = told.split_once(' ').expect("two things");
    (status.to_owned(), version.to_owned(), body.to_owned())
}

#[tokio::test]
async fn curl_calls_by_both_versions_and_with_a_body_that_waits_for_leave() {
    let stack = Stack::start(&["--ephemeral"]).await;
    let customer = stack.customer("Curl", 1_000);
    let (_, key) = stack.key(&customer, &LIVE);
    let url = format!("{}{DISTANCE}", stack.gateways()[0]);
    let own = format!("x-api-key: {key}");
    let bearer = format!("authorization: Bearer {key}");
    for (version, option) in [("1.1", "--http1.1"), ("2", "--http2-prior-knowledge")] {
        for header in [&own, &bearer] {
            let (status, spoken, body) = curl(&[option, "--header", header, &url]);
            assert_eq!((&*status, &*spoken), ("200", version), "{body}");
            let answer: Value = serde_json::from_str(&body).expect("JSON");
            assert!(answer.is_object(), "{answer}");
        }
        let (status, _, body) = curl(&[option, "--header", "x-api-key: sk_live_no", &url]);
        assert_eq!(status, "401", "{body}");
    }
    let (status, _, head) = curl(&["--head", "--header", &own, &url]);
    assert!(status == "200" || status == "404", "{head}");
    // HTTP/1.0 has the end of the connection for the end of an answer.
    let (status, _, body) = curl(&["--http1.0", "--header", &own, &url]);
    assert_eq!(status, "200", "{body}");
    let before = used(&stack, &customer);
    assert!(before.as_i64().is_some_and(|used| used >= 5), "{before}");

    // Larger than what curl sends without asking first.
    let large = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(large.path(), vec![b'x'; 2 << 20]).expect("written");
    let data = format!("@{}", large.path().display());
    let upload = ["--header", "expect: 100-continue", "--data-binary", &data];
    let (status, _, body) = curl(&[&upload[..], &["--header", &own, &url]].concat());
    assert_ne!(status, "000", "{body}");
    let strange = [&upload[..], &["--header", "x-api-key: sk_live_no", &url]].concat();
    let (status, _, body) = curl(&strange);
    assert_eq!(status, "401", "{body}");
}

/// A page that calls with each key and shows what it could read.
fn page(url: &str, keys: &[(&str, &str)]) -> String {
    let keys: serde_json::Map<String, Value> = keys
        .iter()
        .map(|(name, key)| ((*name).to_owned(), json!(key)))
        .collect();
    format!(
        "<!doctype html><body>working<script>
        const call = async key => {{
          try {{
            const answer = await fetch({url:?}, {{headers: {{'x-api-key': key}}}});
            const body = await answer.json();
            return [answer.status, answer.headers.get('tollgate-cost'), body.code ?? 'read'];
          }} catch (error) {{ return ['blocked']; }}
        }};
        (async () => {{
          const told = {{}};
          for (const [name, key] of Object.entries({keys}))
            told[name] = await call(key);
          document.body.textContent = 'told ' + JSON.stringify(told) + ' end';
        }})();
        </script></body>",
        keys = Value::Object(keys)
    )
}

/// Serves one page to whoever asks, until it is dropped.
async fn serve(listener: &TcpListener, page: &str) -> ! {
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{page}",
        page.len()
    );
    loop {
        let (mut stream, _) = listener.accept().await.expect("accepted");
        let mut head = [0; 4096];
        if stream.read(&mut head).await.is_ok() {
            drop(stream.write_all(answer.as_bytes()).await);
        }
    }
}

#[tokio::test]
async fn a_page_in_a_browser_calls_where_its_origin_is_listed_and_reads_nothing_elsewhere() {
    let stack = Stack::start(&["--ephemeral"]).await;
    let (listed, other) = (stack.customer("Listed", 100), stack.customer("Other", 100));
    let [(_, listed_key), (_, other_key)] = [&listed, &other].map(|it| stack.key(it, &LIVE));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let origin = format!("http://{}", listener.local_addr().expect("bound"));
    stack.cli(&["org", "policy", &listed.org, "--allowed-origin", &origin]);
    let url = format!("{}{DISTANCE}", stack.gateways()[0]);
    let keys = [
        ("listed", &*listed_key),
        ("other", &other_key),
        ("nobody", "sk_live_nothing"),
    ];
    let page = page(&url, &keys);
    let told = testkit::eventually(SETTLE_LIMIT, "gateways know the list", async || {
        let seen = tokio::select! {
            seen = clients::browse(&origin) => seen,
            never = serve(&listener, &page) => never,
        };
        let Some(seen) = seen else {
            return Ok(None);
        };
        let told = seen
            .split_once("told ")
            .and_then(|(_, rest)| rest.split_once(" end"));
        let told: Option<Value> = told.and_then(|(told, _)| serde_json::from_str(told).ok());
        match told {
            Some(told) if told["listed"][0] == 200 => Ok(Some(told)),
            _ => Err(seen),
        }
    });
    let Some(told) = told.await.expect("told") else {
        println!("no browser is installed: the page was not looked at");
        return;
    };
    assert_eq!(told["listed"], json!([200, "1", "read"]));
    assert_eq!(
        told["other"],
        json!(["blocked"]),
        "its organisation lists none"
    );
    assert_eq!(told["nobody"], json!([401, null, "invalid_key"]));
    let paid = used(&stack, &listed);
    assert!(paid.as_i64().is_some_and(|paid| paid >= 1), "{paid}");
}
