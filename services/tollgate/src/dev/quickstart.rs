//! What is printed when everything runs: lines to copy.

use super::ready::Ready;

/// The first minute, for a person.
pub(super) fn text(ready: &Ready, program: &str, folder: &str) -> String {
    let gateway = ready.gateway.first().map_or("", String::as_str);
    let key = &ready.demo.live_key;
    let org = &ready.demo.org_id;
    let ops = ready.ops.get("gateway").map_or("", String::as_str);
    let api = ready.api.as_deref().unwrap_or_default();
    let traces = ready.traces.as_ref().map_or_else(
        || "  Traces    go to OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(),
        |url| format!("  Traces    {url}"),
    );
    let others = match ready.gateway.get(1..) {
        Some(others) if !others.is_empty() => {
            format!("\n  Gateways  {gateway}, {}", others.join(", "))
        }
        _ => String::new(),
    };
    // A folder that the commands find by themselves need not be named.
    let data = if folder == super::layout::FOLDER {
        String::new()
    } else {
        format!(" --data {folder}")
    };
    format!(
        r#"
Tollgate runs. Calls that work (1, 3 and 1 credits of {balance}):

  curl -s {gateway}/api/v1/pdf/render -H 'Authorization: Bearer {key}' \
    -H 'Content-Type: application/json' -d '{{"text": "Hello"}}' -o hello.pdf

  curl -s {gateway}/api/v1/ai/chat/completions -H 'Authorization: Bearer {key}' \
    -H 'Content-Type: application/json' \
    -d '{{"model": "extract", "messages": [{{"role": "user", "content": "Tollgate bills calls. What does it bill?"}}]}}'

  curl -si '{gateway}/api/v1/mileage/distance?from=48.85,2.35&to=43.29,5.37' \
    -H 'Authorization: Bearer {key}'

{traces}{others}
  API       {api}/openapi.json
  Metrics   {ops}/metrics
  Wallet    {program} wallet show --org {org}{data}
  A call    {program} why REQUEST_ID{data}    (x-request-id of an answer)
  Check     {program} audit{data}
  Stop      Ctrl-C
"#,
        balance = ready.demo.live_balance,
    )
}
