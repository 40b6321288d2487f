//! A request for each place that is right in everything but, perhaps, who makes it.

/// By place, `#word` included: the body, or the message. Routes without a body have none.
pub(super) const REQUESTS: &[(&str, &str)] = &[
    ("PATCH /v1/account", r#"{"name": "renamed"}"#),
    ("PATCH …", r#"{"name": "renamed"}"#),
    (
        "PATCH …/keys/{key}",
        r#"{"scopes": ["pdf:read"], "daily_quota": 7}"#,
    ),
    ("PATCH …/members/{user}", r#"{"role": "{role}"}"#),
    ("PATCH …/policy", r#"{"leak_action": "notify"}"#),
    ("POST /v1/account/recovery-codes", r#"{"code": "{code}"}"#),
    (
        "POST /v1/account/totp/confirm",
        r#"{"code": "{first-code}"}"#,
    ),
    ("POST /v1/account/totp/disable", r#"{"code": "{code}"}"#),
    ("POST /v1/invitations/accept", r#"{"token": "{invited}"}"#),
    (
        "POST /v1/invitations/accept#other",
        r#"{"token": "{invited}"}"#,
    ),
    ("POST /v1/invitations/show", r#"{"token": "{invited}"}"#),
    ("POST /v1/key-format/check", r#"{"key": "{key-text}"}"#),
    (
        "POST /v1/leaked-keys",
        r#"{"key": "{key-text}", "source": "matrix"}"#,
    ),
    (
        "POST /v1/login",
        r#"{"email": "{address}", "password": "{password}"}"#,
    ),
    (
        "POST /v1/operator/organisations/{org}/credits",
        r#"{"credits": 1, "reason": "matrix"}"#,
    ),
    (
        "POST /v1/organisations",
        r#"{"name": "n", "slug": "found-{serial}", "owner_email": "{email}"}"#,
    ),
    ("POST /v1/password-reset", r#"{"email": "{address}"}"#),
    (
        "POST /v1/password-reset/confirm",
        r#"{"token": "{reset}", "new_password": "correct horse battery"}"#,
    ),
    ("POST /v1/second-factor", r#"{"code": "{code}"}"#),
    (
        "POST /v1/signup",
        r#"{"email": "{new-email}", "password": "correct horse battery", "name": "n",
            "organisation_name": "n"}"#,
    ),
    ("POST /v1/verify-email", r#"{"token": "{verify}"}"#),
    (
        "POST …/invitations",
        r#"{"email": "{new-email}", "role": "{role}"}"#,
    ),
    (
        "POST …/keys",
        r#"{"name": "n", "environment": "{environment}", "scopes": ["pdf:read"],
            "user_id": "{caller}"}"#,
    ),
    ("POST …/keys/{key}/revoke", r#"{"reason": "matrix"}"#),
    ("POST …/keys/{key}/rotate", r#"{"overlap_seconds": 60}"#),
    (
        "POST …/members",
        r#"{"email": "{new-email}", "role": "{role}"}"#,
    ),
    ("POST …/transfer", r#"{"user_id": "{user}"}"#),
    (
        "PUT /v1/account/password",
        r#"{"old_password": "{password}", "new_password": "correct horse battery"}"#,
    ),
    (
        "PUT /v1/operator/services/{service}",
        r#"{"upstream_url": "http://127.0.0.1:9"}"#,
    ),
    (
        "PUT /v1/operator/services/{service}/routes",
        r#"{"scope": "mileage:calculate", "path_prefix": "/matrix-{serial}"}"#,
    ),
    (
        "AnomalyDetectorService/GetOpenAnomalies",
        r#"{"org_id": "{org}"}"#,
    ),
    (
        "AnomalyDetectorService/ListAnomalies",
        r#"{"org_id": "{org}"}"#,
    ),
    ("AnomalyDetectorService/ListAnomalies#whole", r#"{}"#),
    (
        "AnomalyDetectorService/ResolveAnomaly",
        r#"{"anomaly_id": "{anomaly}", "org_id": "{org}"}"#,
    ),
    (
        "AnomalyDetectorService/ResolveAnomaly#whole",
        r#"{"anomaly_id": "{anomaly}"}"#,
    ),
    (
        "KeysService/AddMember",
        r#"{"org_id": "{org}", "email": "{new-email}", "role": "{role}"}"#,
    ),
    (
        "KeysService/CreateKey",
        r#"{"org_id": "{org}", "user_id": "{caller}", "name": "n", "scopes": ["pdf:read"],
            "environment": "{environment}"}"#,
    ),
    (
        "KeysService/CreateOrganisation",
        r#"{"name": "n", "slug": "found-{serial}", "owner_email": "{email}"}"#,
    ),
    ("KeysService/DeleteKey", r#"{"key_id": "{key}"}"#),
    ("KeysService/GetKey", r#"{"key_id": "{key}"}"#),
    ("KeysService/GetOrganisation", r#"{"org_id": "{org}"}"#),
    ("KeysService/GetPeppers", r#"{}"#),
    ("KeysService/GetPolicy", r#"{"org_id": "{org}"}"#),
    (
        "KeysService/KeepKey",
        r#"{"key_id": "{key}", "org_id": "{org}"}"#,
    ),
    (
        "KeysService/LiftAnomaly",
        r#"{"anomaly_id": "{anomaly}", "org_id": "{org}"}"#,
    ),
    (
        "KeysService/LiftAnomaly#whole",
        r#"{"anomaly_id": "{anomaly}"}"#,
    ),
    ("KeysService/ListAuditLog", r#"{"org_id": "{org}"}"#),
    ("KeysService/ListAuditLog#whole", "{}"),
    ("KeysService/ListKeyReviews", r#"{"org_id": "{org}"}"#),
    ("KeysService/ListKeys", r#"{"org_id": "{org}"}"#),
    ("KeysService/ListMembers", r#"{"org_id": "{org}"}"#),
    ("KeysService/ListOrganisations", "{}"),
    ("KeysService/ListServices", "{}"),
    (
        "KeysService/RemoveMember",
        r#"{"org_id": "{org}", "user_id": "{user}"}"#,
    ),
    (
        "KeysService/ReportLeakedKey",
        r#"{"key": "{key-text}", "source": "matrix"}"#,
    ),
    (
        "KeysService/RevokeKey",
        r#"{"key_id": "{key}", "reason": "matrix"}"#,
    ),
    (
        "KeysService/RotateKey",
        r#"{"key_id": "{key}", "overlap_seconds": 60}"#,
    ),
    (
        "KeysService/SetPolicy",
        r#"{"org_id": "{org}", "leak_action": "notify"}"#,
    ),
    (
        "KeysService/SetRoute",
        r#"{"service": "{service}",
            "route": {"scope": "mileage:calculate", "path_prefix": "/matrix-{serial}"}}"#,
    ),
    (
        "KeysService/SetService",
        r#"{"name": "{service}", "upstream_url": "http://127.0.0.1:9"}"#,
    ),
    (
        "KeysService/Sync",
        r#"{"journal_id": "{journal}", "gateway": "matrix", "pepper_id": "00000000"}"#,
    ),
    (
        "KeysService/TouchKeys",
        r#"{"uses": [{"key_id": "{key}", "at": {"seconds": 1}, "ip": "192.0.2.1"}]}"#,
    ),
    (
        "KeysService/UpdateKey",
        r#"{"key_id": "{key}", "scopes": ["pdf:read"], "daily_quota": 7}"#,
    ),
    (
        "KeysService/UpdateKey#restore",
        r#"{"key_id": "{key}", "active": true}"#,
    ),
    (
        "KeysService/UpdateKey#suspend",
        r#"{"key_id": "{key}", "active": false}"#,
    ),
    (
        "KeysService/UpdateOrganisation",
        r#"{"org_id": "{org}", "name": "renamed"}"#,
    ),
    ("KeysService/VerifyAuditLog", "{}"),
    ("KeysService/VerifyKey", r#"{"key_hash": "{hash}"}"#),
    (
        "LettersService/DiscardLetter",
        r#"{"consumer": "wallet", "id": 7, "why": "a test", "by": "nobody"}"#,
    ),
    (
        "LettersService/GetLetter",
        r#"{"consumer": "wallet", "id": 7}"#,
    ),
    (
        "LettersService/ListLetters",
        r#"{"consumer": "usage-ingest"}"#,
    ),
    (
        "LettersService/RetryLetter",
        r#"{"consumer": "stats-aggregator", "id": 7}"#,
    ),
    (
        "PeopleService/AcceptInvitation",
        r#"{"token": "{invited}", "user_id": "{caller}"}"#,
    ),
    (
        "PeopleService/Authenticate",
        r#"{"email": "{address}", "password": "{password}", "address": "192.0.2.2"}"#,
    ),
    (
        "PeopleService/ChangePassword",
        r#"{"user_id": "{caller}", "old_password": "{password}",
            "new_password": "correct horse battery"}"#,
    ),
    (
        "PeopleService/ConfirmTotp",
        r#"{"user_id": "{caller}", "code": "{first-code}"}"#,
    ),
    (
        "PeopleService/CreateInvitation",
        r#"{"org_id": "{org}", "email": "{new-email}", "role": "{role}"}"#,
    ),
    (
        "PeopleService/DisableTotp",
        r#"{"user_id": "{caller}", "code": "{code}"}"#,
    ),
    ("PeopleService/GetInvitation", r#"{"token": "{invited}"}"#),
    ("PeopleService/GetUser", r#"{"user_id": "{caller}"}"#),
    ("PeopleService/ListInvitations", r#"{"org_id": "{org}"}"#),
    (
        "PeopleService/ListOrganisationsOf",
        r#"{"user_id": "{caller}"}"#,
    ),
    (
        "PeopleService/RenewRecoveryCodes",
        r#"{"user_id": "{caller}", "code": "{code}"}"#,
    ),
    (
        "PeopleService/RequestPasswordReset",
        r#"{"email": "{address}", "address": "192.0.2.2"}"#,
    ),
    (
        "PeopleService/ResendInvitation",
        r#"{"invitation_id": "{invitation}", "org_id": "{org}"}"#,
    ),
    (
        "PeopleService/ResendVerification",
        r#"{"user_id": "{caller}"}"#,
    ),
    (
        "PeopleService/ResetPassword",
        r#"{"token": "{reset}", "new_password": "correct horse battery"}"#,
    ),
    (
        "PeopleService/ResetSecondFactor",
        r#"{"user_id": "{user}"}"#,
    ),
    (
        "PeopleService/RevokeInvitation",
        r#"{"invitation_id": "{invitation}", "org_id": "{org}"}"#,
    ),
    (
        "PeopleService/SignUp",
        r#"{"email": "{new-email}", "password": "correct horse battery", "name": "n",
            "organisation_name": "n", "address": "192.0.2.3"}"#,
    ),
    ("PeopleService/StartTotp", r#"{"user_id": "{caller}"}"#),
    (
        "PeopleService/TransferOwnership",
        r#"{"org_id": "{org}", "user_id": "{user}"}"#,
    ),
    (
        "PeopleService/UpdateMemberRole",
        r#"{"org_id": "{org}", "user_id": "{user}", "role": "{role}"}"#,
    ),
    (
        "PeopleService/UpdateUser",
        r#"{"user_id": "{caller}", "name": "renamed"}"#,
    ),
    ("PeopleService/VerifyEmail", r#"{"token": "{verify}"}"#),
    (
        "PeopleService/VerifySecondFactor",
        r#"{"user_id": "{caller}", "code": "{code}"}"#,
    ),
    (
        "StatsAggregatorService/GetApplied",
        r#"{"journal_id": "{journal}", "seq": 1}"#,
    ),
    ("StatsAggregatorService/ListDaily", r#"{"org_id": "{org}"}"#),
    (
        "StatsAggregatorService/ListHourly",
        r#"{"org_id": "{org}"}"#,
    ),
    (
        "UsageIngestService/BeginKeyedCall",
        r#"{"key": {"org_id": "{org}", "sha256": "{nonce}{nonce}"}, "request_id": "{request}",
            "journal_id": "{journal}", "head_sha256": "{nonce}{nonce}"}"#,
    ),
    (
        "UsageIngestService/EndJournal",
        r#"{"journal_id": "{journal}"}"#,
    ),
    (
        "UsageIngestService/EndKeyedCall",
        r#"{"key": {"org_id": "{org}", "sha256": "{nonce}{nonce}"}, "request_id": "{request}"}"#,
    ),
    (
        "UsageIngestService/KeepAnswer",
        r#"{"key": {"org_id": "{org}", "sha256": "{nonce}{nonce}"}, "request_id": "{request}",
            "answer": {"status": 200, "request_body_sha256": "{nonce}{nonce}"}}"#,
    ),
    (
        "UsageIngestService/GetCall",
        r#"{"request_id": "{request}", "org_id": "{org}"}"#,
    ),
    ("UsageIngestService/ListCalls", r#"{"org_id": "{org}"}"#),
    (
        "UsageIngestService/ListCalls#key",
        r#"{"org_id": "{org}", "api_key_id": "{key}"}"#,
    ),
    (
        "WalletService/Acquire",
        r#"{"journal_id": "{journal}", "gateway": "matrix",
            "asks": [{"account": {"org_id": "{org}"}, "nonce": "{nonce}",
                      "want": 1, "minimum": 1}]}"#,
    ),
    (
        "WalletService/Acquire#quota",
        r#"{"journal_id": "{journal}", "gateway": "matrix",
            "asks": [{"account": {"quota": {"key_id": "{key}", "org_id": "{org}", "kind": 1,
                                            "quota": 1, "stated_by": "{key}", "key_version": 1}},
                      "nonce": "{nonce}", "want": 1, "minimum": 1}]}"#,
    ),
    (
        "WalletService/Acquire#test",
        r#"{"journal_id": "{journal}", "gateway": "matrix",
            "asks": [{"account": {"user_id": "{caller}"}, "nonce": "{nonce}",
                      "want": 1, "minimum": 1}]}"#,
    ),
    (
        "WalletService/GetQuotaUse",
        r#"{"org_id": "{org}", "key_ids": ["{key}"]}"#,
    ),
    ("WalletService/GetSettlement", r#"{"lease_id": "{lease}"}"#),
    ("WalletService/GetTestWallet", r#"{"user_id": "{caller}"}"#),
    ("WalletService/GetWallet", r#"{"org_id": "{org}"}"#),
    (
        "WalletService/GrantCredits",
        r#"{"org_id": "{org}", "credits": 1, "reason": "matrix", "idempotency_key": "{nonce}"}"#,
    ),
    (
        "WalletService/Heartbeat",
        r#"{"journal_id": "{journal}", "gateway": "matrix",
            "leases": [{"lease_id": "{lease}", "cum": 0, "returned_cum": 0,
                        "account": {"org_id": "{org}"}},
                       {"lease_id": "{lease}", "cum": 0, "returned_cum": 0,
                        "account": {"user_id": "{caller}"}},
                       {"lease_id": "{lease}", "cum": 0, "returned_cum": 0,
                        "account": {"quota": {"key_id": "{key}", "org_id": "{org}", "kind": 1,
                                              "quota": 1, "stated_by": "{key}",
                                              "key_version": 1}}}]}"#,
    ),
    ("WalletService/ListLedger", r#"{"org_id": "{org}"}"#),
    (
        "WalletService/RetireJournal",
        r#"{"journal_id": "{journal}"}"#,
    ),
];

pub(super) fn request(place: &str) -> Option<&'static str> {
    let found = REQUESTS.iter().find(|(of, _)| *of == place);
    found.map(|(_, request)| *request)
}
