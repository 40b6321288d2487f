//! How the matrix is written: rights, lines, marks and what they mean for everybody who asks.

use super::who::Who;

/// What an answer says.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Verdict {
    Done,
    Forbidden,
    /// Forbidden for want of a second factor.
    Unproved,
    /// The last owner stays.
    Conflict,
    NotFound,
    Unauthenticated,
    /// Anything else: never right.
    Other,
}

/// What everybody hears who is no member.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outsiders {
    pub(super) stranger: Verdict,
    pub(super) unknown: Verdict,
    pub(super) operator: Verdict,
    pub(super) nobody: Verdict,
    pub(super) services: Verdict,
}

pub(super) use Verdict::{Conflict, Done, Forbidden, NotFound, Unauthenticated, Unproved};

/// The organisation is not there for outsiders.
pub(super) const OF_MEMBERS: Outsiders = Outsiders {
    stranger: NotFound,
    unknown: NotFound,
    operator: Done,
    nobody: Unauthenticated,
    services: Forbidden,
};
/// A service that knows organisations, but not their members: whoever holds the operator token
/// speaks for whom it says, and the route has judged before.
pub(super) const OF_ROUTES: Outsiders = Outsiders {
    stranger: Done,
    unknown: Done,
    ..OF_MEMBERS
};
/// Everybody for himself, and nobody else's account is there.
pub(super) const OF_ONESELF: Outsiders = Outsiders {
    stranger: Done,
    ..OF_MEMBERS
};
/// As that, where operators have no account to do it with.
pub(super) const OF_PEOPLE: Outsiders = Outsiders {
    operator: Forbidden,
    ..OF_ONESELF
};
/// For operators, whatever one is a member of.
pub(super) const OF_OPERATORS: Outsiders = Outsiders {
    stranger: Forbidden,
    unknown: Forbidden,
    ..OF_MEMBERS
};
/// Somebody else's account is not there.
pub(super) const OF_NOBODY_ELSE: Outsiders = Outsiders {
    stranger: NotFound,
    ..OF_MEMBERS
};
/// Needs no session.
pub(super) const OF_EVERYBODY: Outsiders = Outsiders {
    nobody: Done,
    ..OF_ROUTES
};
/// What gateways call with the token of services.
pub(super) const OF_GATEWAYS: Outsiders = Outsiders {
    services: Done,
    ..OF_ROUTES
};

/// The circumstances of a line, as words.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case(pub(super) &'static str);

impl Case {
    pub(super) fn has(self, word: &str) -> bool {
        self.0.split(' ').any(|it| it == word)
    }

    /// What follows `of:` or `to:`.
    pub(super) fn after(self, prefix: &str) -> Option<&'static str> {
        self.0.split(' ').find_map(|it| it.strip_prefix(prefix))
    }
}

/// One line of the matrix.
#[derive(Debug)]
pub(super) struct Line {
    marks: &'static str,
    pub(super) case: Case,
    pub(super) at: &'static [&'static str],
}

pub(super) const fn line(
    marks: &'static str,
    case: &'static str,
    at: &'static [&'static str],
) -> Line {
    Line {
        marks,
        case: Case(case),
        at,
    }
}

/// One row of the matrix, in the words of its page.
#[derive(Debug)]
pub(super) struct Right {
    pub(super) says: &'static str,
    pub(super) outsiders: Outsiders,
    pub(super) lines: &'static [Line],
}

impl Right {
    /// The RPC takes its caller's word for the organisation.
    pub(super) fn trusts(&self, place: &str) -> bool {
        !place.contains(' ') && self.outsiders.unknown == Verdict::Done
    }

    /// Gateways speak for all whose keys are used.
    pub(super) fn is_of_gateways(&self) -> bool {
        self.outsiders.services == Verdict::Done
    }

    /// It is about somebody's account, of which operators may have any.
    pub(super) fn is_of_accounts(&self) -> bool {
        self.says.contains("user, in")
    }

    /// What somebody is to hear.
    pub(super) fn verdict(&self, line: &Line, who: Who) -> Verdict {
        let of = &self.outsiders;
        let member = |at: usize| mark(line.marks.split_whitespace().nth(at));
        match who {
            Who::Owner => member(0),
            Who::Admin => member(1),
            Who::Developer => member(2),
            Who::Billing => member(3),
            Who::Stranger => of.stranger,
            Who::Unknown => of.unknown,
            Who::Operator | Who::Unnamed => of.operator,
            Who::Services => of.services,
            Who::Nobody | Who::Garbage => of.nobody,
            Who::Malformed | Who::Expired | Who::Idle | Who::Outdated => of.nobody,
        }
    }
}

fn mark(text: Option<&str>) -> Verdict {
    match text {
        Some("✓") => Done,
        Some("–") => Forbidden,
        Some("2") => Unproved,
        Some("!") => Conflict,
        Some("0") => NotFound,
        other => panic!("{other:?} is no mark"),
    }
}
