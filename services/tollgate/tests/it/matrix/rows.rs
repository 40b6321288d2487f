//! The permission matrix, with every route and every RPC in the row it belongs to.
//!
//! A line has the marks of owner, admin, developer and billing, a case, and the places where it
//! holds: `METHOD …/path` of the API (`…` is `/v1/organisations/{org}`), `Service/Method` of gRPC.
//! A `#word` behind a place chooses one of several requests for it.
//!
//! Words of a case: `test` or `live`, `own` or `other's` say whose key or account it is; `open` and
//! `lax` set the policy (developers have live keys, no second factor); `unproved` and `stale` are
//! about the second factor of who asks, which is fresh otherwise; `of:` and `to:` are roles before
//! and after; `self` is whoever asks, `succeeded` an owner beside the owner; a key is `suspended`,
//! or its creator has `left`; a member is `proved` who has a second factor; a service is `new`; an
//! invitation is `misdirected` to somebody else.

use super::table::{
    Done, Forbidden, NotFound, OF_EVERYBODY, OF_GATEWAYS, OF_MEMBERS, OF_NOBODY_ELSE, OF_ONESELF,
    OF_OPERATORS, OF_PEOPLE, OF_ROUTES, Outsiders, Right, line,
};

#[rustfmt::skip]
pub(super) const MATRIX: &[Right] = &[
    Right {
        says: "view keys, calls, logs",
        outsiders: OF_MEMBERS,
        lines: &[
            line("✓ ✓ ✓ –", "", &["GET …/keys", "KeysService/ListKeys"]),
            line("✓ ✓ ✓ –", "own test", &["GET …/keys/{key}", "KeysService/GetKey"]),
            line("✓ ✓ ✓ –", "other's live", &["GET …/keys/{key}", "KeysService/GetKey"]),
            line("✓ ✓ ✓ –", "own test", &["GET …/usage/calls?key={key}"]),
            line("✓ ✓ ✓ –", "", &[
                "GET …/usage/calls",
                "GET …/usage/calls/{request}",
                "GET …/anomalies",
            ]),
        ],
    },
    Right {
        says: "view usage totals, wallet",
        outsiders: OF_MEMBERS,
        lines: &[line("✓ ✓ ✓ ✓", "", &[
            "GET …/usage/daily",
            "GET …/wallet",
            "GET …/wallet/ledger",
        ])],
    },
    Right {
        says: "create, rotate test key (it spends its creator's test credits)",
        outsiders: OF_MEMBERS,
        lines: &[
            line("✓ ✓ ✓ –", "own test unproved", CREATE),
            line("– – – –", "other's test", CREATE),
            line("✓ ✓ ✓ –", "own test unproved", ROTATE),
            line("– – – –", "other's test", ROTATE),
        ],
    },
    Right {
        says: "revoke test key",
        outsiders: OF_MEMBERS,
        lines: &[
            line("✓ ✓ ✓ –", "own test unproved", REVOKE),
            line("✓ ✓ – –", "other's test unproved", REVOKE),
        ],
    },
    Right {
        says: "create, rotate, revoke live key (second factor)",
        outsiders: OF_MEMBERS,
        lines: &[
            line("✓ ✓ – –", "own live", CREATE),
            line("✓ ✓ ✓ –", "own live open", CREATE),
            line("✓ ✓ – –", "other's live open", CREATE),
            line("2 2 2 –", "own live open unproved", CREATE),
            line("2 2 2 –", "own live open stale", CREATE),
            line("✓ ✓ ✓ –", "own live open lax unproved", CREATE),
            line("✓ ✓ – –", "own live", ROTATE),
            line("✓ ✓ ✓ –", "own live open", ROTATE),
            line("✓ ✓ – –", "other's live open", ROTATE),
            line("2 2 2 –", "own live open unproved", ROTATE),
            line("2 2 2 –", "own live open stale", ROTATE),
            line("✓ ✓ ✓ –", "own live open lax unproved", ROTATE),
            line("✓ ✓ – –", "own live", REVOKE),
            // A leaked key ends at once: this alone asks for no second factor.
            line("✓ ✓ ✓ –", "own live open unproved", REVOKE),
            line("✓ ✓ – –", "other's live open", REVOKE),
        ],
    },
    Right {
        says: "delete key; change scopes, quotas of others' keys",
        outsiders: OF_MEMBERS,
        lines: &[
            line("✓ ✓ – –", "own test", DELETE),
            line("✓ ✓ – –", "other's live open", DELETE),
            line("✓ ✓ ✓ –", "own test", CHANGE),
            line("✓ ✓ – –", "other's test", CHANGE),
            line("✓ ✓ – –", "own live", CHANGE),
            line("✓ ✓ ✓ –", "own live open", CHANGE),
            line("✓ ✓ – –", "other's live open", CHANGE),
        ],
    },
    Right {
        says: "invite, remove, change roles: admins up to admin",
        outsiders: OF_MEMBERS,
        lines: &[
            line("✓ ✓ – –", "to:developer", INVITE),
            line("✓ ✓ – –", "to:admin", INVITE),
            line("✓ – – –", "to:owner", INVITE),
            line("✓ ✓ – –", "to:developer", INVITED),
            line("✓ – – –", "to:owner", INVITED),
            line("✓ ✓ – –", "of:developer to:billing", CHANGE_ROLE),
            line("✓ – – –", "of:developer to:owner", CHANGE_ROLE),
            line("✓ – – –", "of:owner to:developer", CHANGE_ROLE),
            line("! ✓ – –", "self to:admin", CHANGE_ROLE),
            line("✓ ✓ – –", "of:developer", REMOVE),
            line("✓ – – –", "of:owner", REMOVE),
            line("! ✓ ✓ ✓", "self", REMOVE),
            line("✓ ✓ ✓ ✓", "self succeeded", REMOVE),
            line("✓ ✓ ✓ ✓", "", &["GET …/members", "KeysService/ListMembers"]),
            line("✓ ✓ ✓ ✓", "of:billing", &["GET …/members/{user}"]),
            line("✓ ✓ ✓ ✓", "", &["GET …/invitations", "PeopleService/ListInvitations"]),
        ],
    },
    Right {
        says: "leave, which operators cannot",
        outsiders: Outsiders { operator: Forbidden, ..OF_MEMBERS },
        lines: &[
            line("! ✓ ✓ ✓", "self", &["POST …/leave"]),
            line("✓ ✓ ✓ ✓", "self succeeded", &["POST …/leave"]),
        ],
    },
    Right {
        says: "add without an invitation: operators",
        outsiders: OF_MEMBERS,
        lines: &[line("– – – –", "to:developer", &["POST …/members"])],
    },
    Right {
        says: "policies, settings of the organisation",
        outsiders: OF_MEMBERS,
        lines: &[
            line("✓ ✓ ✓ ✓", "", &["GET …", "KeysService/GetOrganisation"]),
            line("✓ ✓ ✓ ✓", "", &["GET …/policy", "KeysService/GetPolicy"]),
            line("✓ ✓ – –", "", &["PATCH …/policy", "KeysService/SetPolicy"]),
            line("✓ ✓ – –", "", &["PATCH …", "KeysService/UpdateOrganisation"]),
        ],
    },
    Right {
        says: "audit log: developers see own actions, billing sees billing events",
        outsiders: OF_MEMBERS,
        lines: &[line("✓ ✓ ✓ ✓", "", &["GET …/audit-log", "KeysService/ListAuditLog"])],
    },
    Right {
        says: "resolve anomaly, restore suspended key",
        outsiders: OF_MEMBERS,
        lines: &[
            line("✓ ✓ – –", "", &[
                "POST …/anomalies/{anomaly}/resolve",
                "KeysService/LiftAnomaly",
            ]),
            line("✓ ✓ – –", "own test suspended", RESTORE),
            line("✓ ✓ – –", "other's live open suspended", RESTORE),
            line("✓ ✓ ✓ –", "own test", SUSPEND),
            line("✓ ✓ – –", "other's test", SUSPEND),
            line("✓ ✓ ✓ –", "own live open", SUSPEND),
            line("✓ ✓ – –", "own live", SUSPEND),
        ],
    },
    Right {
        says: "review the live keys of who has left",
        outsiders: OF_MEMBERS,
        lines: &[
            line("✓ ✓ – –", "", &["GET …/key-reviews", "KeysService/ListKeyReviews"]),
            line("✓ ✓ – –", "left live", &["POST …/key-reviews/{key}/keep", "KeysService/KeepKey"]),
        ],
    },
    Right {
        says: "transfer ownership (second factor)",
        outsiders: OF_MEMBERS,
        lines: &[
            line("✓ – – –", "of:admin", TRANSFER),
            line("2 – – –", "of:admin unproved", TRANSFER),
            line("2 – – –", "of:admin stale", TRANSFER),
        ],
    },
    Right {
        says: "found and list organisations of one's own",
        outsiders: OF_ROUTES,
        lines: &[
            line("✓ ✓ ✓ ✓", "", &["GET /v1/organisations", "KeysService/ListOrganisations"]),
            line("✓ ✓ ✓ ✓", "own", &["POST /v1/organisations"]),
        ],
    },
    Right {
        says: "found organisations; only operators for others",
        outsiders: OF_OPERATORS,
        lines: &[line("– – – –", "other's", FOUND)],
    },
    Right {
        says: "found organisations as a user who is not there",
        outsiders: Outsiders {
            stranger: Done,
            ..OF_OPERATORS
        },
        lines: &[line("✓ ✓ ✓ ✓", "own", &["KeysService/CreateOrganisation"])],
    },
    Right {
        says: "the account of whoever asks",
        outsiders: OF_PEOPLE,
        lines: &[
            line("✓ ✓ ✓ ✓", "", &["GET /v1/account", "POST /v1/account/totp", "POST /v1/logout"]),
            line("✓ ✓ ✓ ✓", "", &[
                "GET /v1/account/sessions",
                "DELETE /v1/account/sessions",
                "DELETE /v1/account/sessions/{session}",
                "PATCH /v1/account",
                "POST /v1/account/totp/confirm",
                "POST /v1/account/verification",
                "POST /v1/second-factor",
                "PUT /v1/account/password",
            ]),
            line("✓ ✓ ✓ ✓", "", &[
                "POST /v1/account/recovery-codes",
                "POST /v1/account/totp/disable",
                "POST /v1/invitations/accept",
            ]),
        ],
    },
    Right {
        says: "accept what others are invited to",
        outsiders: Outsiders {
            operator: Forbidden,
            ..OF_OPERATORS
        },
        lines: &[line("– – – –", "misdirected", &["POST /v1/invitations/accept#other"])],
    },
    Right {
        says: "one's own user, in `keys`",
        outsiders: OF_ONESELF,
        lines: &[line("✓ ✓ ✓ ✓", "", OWN_USER)],
    },
    Right {
        says: "another's user, in `keys`",
        outsiders: OF_NOBODY_ELSE,
        lines: &[line("0 0 0 0", "other's", OWN_USER)],
    },
    Right {
        says: "operators",
        outsiders: OF_OPERATORS,
        lines: &[
            line("– – – –", "new", &["PUT /v1/operator/services/{service}"]),
            line("– – – –", "", &[
                "GET /v1/operator/anomalies",
                "GET /v1/operator/organisations",
                "GET /v1/operator/services",
                "GET /v1/operator/services/{service}",
                "POST /v1/operator/anomalies/{anomaly}/resolve",
                "POST /v1/operator/organisations/{org}/credits",
                "PUT /v1/operator/services/{service}/routes",
                "WalletService/GrantCredits",
            ]),
            line("– – – –", "of:developer proved", &[
                "POST /v1/operator/users/{user}/second-factor/reset",
                "PeopleService/ResetSecondFactor",
            ]),
            line("– – – –", "new", &["KeysService/SetService"]),
            line("– – – –", "to:developer", &["KeysService/AddMember"]),
            line("– – – –", "own live", &["KeysService/ReportLeakedKey"]),
            line("– – – –", "", &[
                "AnomalyDetectorService/ListAnomalies#whole",
                "AnomalyDetectorService/ResolveAnomaly#whole",
                "KeysService/GetPeppers",
                "KeysService/LiftAnomaly#whole",
                "LettersService/ListLetters",
            ]),
            line("– – – –", "", &[
                "KeysService/ListAuditLog#whole",
                "KeysService/SetRoute",
                "KeysService/VerifyAuditLog",
            ]),
        ],
    },
    Right {
        says: "operators, who hear that a letter is not there",
        outsiders: Outsiders { operator: NotFound, ..OF_OPERATORS },
        lines: &[line("– – – –", "", &[
            "LettersService/DiscardLetter",
            "LettersService/GetLetter",
            "LettersService/RetryLetter",
        ])],
    },
    Right {
        says: "people who are not signed in: the portal acts for them, as operator",
        outsiders: OF_OPERATORS,
        lines: &[line("– – – –", "", &[
            "PeopleService/Authenticate",
            "PeopleService/RequestPasswordReset",
            "PeopleService/ResetPassword",
            "PeopleService/SignUp",
            "PeopleService/VerifyEmail",
            "PeopleService/VerifySecondFactor",
        ])],
    },
    Right {
        says: "everybody",
        outsiders: OF_EVERYBODY,
        lines: &[line("✓ ✓ ✓ ✓", "", &[
            "GET /v1/key-format",
            "GET /v1/services",
            "POST /v1/key-format/check",
            "POST /v1/leaked-keys",
            "POST /v1/invitations/show",
            "POST /v1/login",
            "POST /v1/password-reset",
            "POST /v1/password-reset/confirm",
            "POST /v1/signup",
            "POST /v1/verify-email",
        ])],
    },
    Right {
        says: "whoever the portal or the CLI speaks for",
        outsiders: OF_ROUTES,
        lines: &[
            line("✓ ✓ ✓ ✓", "misdirected", &["PeopleService/GetInvitation"]),
            line("✓ ✓ ✓ ✓", "", &[
            "KeysService/ListServices",
            "AnomalyDetectorService/ListAnomalies",
            "AnomalyDetectorService/ResolveAnomaly",
            "StatsAggregatorService/GetApplied",
            "StatsAggregatorService/ListDaily",
            "StatsAggregatorService/ListHourly",
            "UsageIngestService/GetCall",
            "UsageIngestService/ListCalls",
            "UsageIngestService/ListCalls#key",
            "WalletService/GetQuotaUse",
            "WalletService/GetSettlement",
            "WalletService/GetTestWallet",
            "WalletService/GetWallet",
            "WalletService/ListLedger",
        ]),
        ],
    },
    // Last: who reports as a gateway is waited for by revocations for a few seconds.
    Right {
        says: "gateways",
        outsiders: OF_GATEWAYS,
        lines: &[line("✓ ✓ ✓ ✓", "", &[
            "AnomalyDetectorService/GetOpenAnomalies",
            "KeysService/Sync",
            "KeysService/TouchKeys",
            "KeysService/VerifyKey",
            "UsageIngestService/BeginKeyedCall",
            "UsageIngestService/EndJournal",
            "UsageIngestService/EndKeyedCall",
            "UsageIngestService/KeepAnswer",
            "WalletService/Acquire",
            "WalletService/Acquire#quota",
            "WalletService/Acquire#test",
            "WalletService/Heartbeat",
            "WalletService/RetireJournal",
        ])],
    },
];

const CREATE: &[&str] = &["POST …/keys", "KeysService/CreateKey"];
const ROTATE: &[&str] = &["POST …/keys/{key}/rotate", "KeysService/RotateKey"];
const REVOKE: &[&str] = &["POST …/keys/{key}/revoke", "KeysService/RevokeKey"];
const DELETE: &[&str] = &["DELETE …/keys/{key}", "KeysService/DeleteKey"];
const CHANGE: &[&str] = &["PATCH …/keys/{key}", "KeysService/UpdateKey"];
const SUSPEND: &[&str] = &["POST …/keys/{key}/suspend", "KeysService/UpdateKey#suspend"];
const RESTORE: &[&str] = &["POST …/keys/{key}/restore", "KeysService/UpdateKey#restore"];
const INVITE: &[&str] = &["POST …/invitations", "PeopleService/CreateInvitation"];
const INVITED: &[&str] = &[
    "POST …/invitations/{invitation}/resend",
    "POST …/invitations/{invitation}/revoke",
    "PeopleService/ResendInvitation",
    "PeopleService/RevokeInvitation",
];
const TRANSFER: &[&str] = &["POST …/transfer", "PeopleService/TransferOwnership"];
const CHANGE_ROLE: &[&str] = &["PATCH …/members/{user}", "PeopleService/UpdateMemberRole"];
const REMOVE: &[&str] = &["DELETE …/members/{user}", "KeysService/RemoveMember"];
const FOUND: &[&str] = &["POST /v1/organisations", "KeysService/CreateOrganisation"];
const OWN_USER: &[&str] = &[
    "PeopleService/AcceptInvitation",
    "PeopleService/ChangePassword",
    "PeopleService/ConfirmTotp",
    "PeopleService/DisableTotp",
    "PeopleService/GetUser",
    "PeopleService/ListOrganisationsOf",
    "PeopleService/RenewRecoveryCodes",
    "PeopleService/ResendVerification",
    "PeopleService/StartTotp",
    "PeopleService/UpdateUser",
];
