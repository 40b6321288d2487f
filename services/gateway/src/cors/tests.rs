use proto::keys::v1::OrganisationOrigins;
use uuid::Uuid;

use super::*;

const APP: &str = "https://app.example.com";

fn org(n: u128) -> OrgId {
    OrgId::new(Uuid::from_u128(n))
}

fn news(change: i64, lists: &[(u128, &[&str])]) -> SyncResponse {
    let list = |(n, origins): &(u128, &[&str])| OrganisationOrigins {
        org_id: org(*n).to_string(),
        allowed_origins: origins.iter().map(|it| (*it).to_owned()).collect(),
    };
    SyncResponse {
        origins: lists.iter().map(list).collect(),
        origins_change: change,
        ..SyncResponse::default()
    }
}

fn origins(lists: &[(u128, &[&str])]) -> Origins {
    let first = Origins::default()
        .with(&news(5, lists))
        .expect("makes sense");
    first.expect("news")
}

fn request(method: &str, fields: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::builder().method(method).uri("/api/v1/ai/chat");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).expect("a request")
}

fn page(origin: &str) -> Page {
    let request = request("GET", &[("host", "api.example.com"), ("origin", origin)]);
    Page::of(&request).expect("from elsewhere")
}

#[test]
fn a_page_of_the_gateways_own_origin_is_none() {
    for (host, origin, is_elsewhere) in [
        ("api.example.com", APP, true),
        ("api.example.com", "https://api.example.com", false),
        (
            "API.example.com:8443",
            "https://api.example.com:8443",
            false,
        ),
        ("api.example.com", "https://api.example.com:8443", true),
        ("api.example.com", "null", true),
        ("api.example.com", "", true),
    ] {
        let request = request("POST", &[("host", host), ("origin", origin)]);
        assert_eq!(
            Page::of(&request).is_some(),
            is_elsewhere,
            "{host}: {origin}"
        );
    }
    assert_eq!(
        Page::of(&request("POST", &[("host", "api.example.com")])),
        None
    );
}

#[test]
fn an_organisation_judges_by_its_own_list_alone() {
    let known = origins(&[(1, &[APP, "http://localhost:3000"]), (2, &["*"])]);
    let judge = |n, origin| known.judge(&org(n), &page(origin));
    let allowed = |text: &'static str| Judgement::Allowed(HeaderValue::from_static(text));
    assert_eq!(judge(1, APP), allowed(APP));
    assert_eq!(
        judge(1, "http://localhost:3000"),
        allowed("http://localhost:3000")
    );
    assert_eq!(judge(1, "https://evil.example"), Judgement::Refused);
    assert_eq!(
        judge(1, "https://app.example.com.evil.example"),
        Judgement::Refused
    );
    assert_eq!(judge(1, "null"), Judgement::Refused);
    assert_eq!(judge(2, "https://evil.example"), allowed("*"));
    assert_eq!(judge(2, "null"), allowed("*"));
    assert_eq!(judge(3, APP), Judgement::Unlisted);
}

#[test]
fn lists_change_one_by_one_and_begin_anew_when_told() {
    let known = origins(&[(1, &[APP]), (2, &["*"])]);
    assert!(known.with(&news(5, &[])).expect("makes sense").is_none());
    let next = known.with(&news(9, &[(2, &[])])).expect("makes sense");
    let next = next.expect("news");
    assert_eq!(next.change, 9);
    assert_eq!(next.judge(&org(2), &page(APP)), Judgement::Unlisted);
    assert_eq!(next.of_some(&page("https://evil.example")), None);
    assert!(next.of_some(&page(APP)).is_some());
    let anew = SyncResponse {
        origins_reset: true,
        ..news(3, &[])
    };
    let anew = next.with(&anew).expect("makes sense").expect("news");
    assert_eq!((anew.change, anew.lists.len()), (3, 0));
    assert!(known.with(&news(6, &[(1, &["x\n"])])).is_err());
}

#[test]
fn a_preflight_is_answered_by_what_some_organisation_allows() {
    let known = origins(&[(1, &[APP])]);
    let asks = [
        ("host", "api.example.com"),
        ("origin", APP),
        ("access-control-request-method", "POST"),
        (
            "access-control-request-headers",
            "authorization,content-type,x-stainless-os",
        ),
    ];
    let answer = page(APP).preflight(&request("OPTIONS", &asks), &known);
    let answer = answer.expect("a preflight").expect("allowed");
    assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    let field = |name: &str| answer.headers()[name].to_str().expect("text").to_owned();
    assert_eq!(field("access-control-allow-origin"), APP);
    assert_eq!(field("access-control-allow-methods"), "POST");
    assert_eq!(
        field("access-control-allow-headers"),
        "authorization,content-type,x-stainless-os"
    );
    assert!(
        !answer
            .headers()
            .contains_key("access-control-allow-credentials")
    );

    let refused = page("https://evil.example").preflight(&request("OPTIONS", &asks), &known);
    let refused = refused.expect("a preflight").err().expect("refused");
    assert_eq!(refused.refusal, Refusal::OriginNotAllowed);
    // A call with this method, and an OPTIONS that asks for nothing, are calls.
    let call = request("POST", &asks);
    assert!(page(APP).preflight(&call, &known).is_none());
    let call = request("OPTIONS", &[("origin", APP)]);
    assert!(page(APP).preflight(&call, &known).is_none());
}
