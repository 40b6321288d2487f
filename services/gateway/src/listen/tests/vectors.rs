//! Bytes that two readers could take for different requests. `{POST}` and `{GET}` are a request
//! line, a host and a key; `{EVIL}` is a whole request that must never arrive.

mod heads;
mod lengths;

/// Every vector there is.
pub(super) fn all() -> impl Iterator<Item = &'static Vector> {
    lengths::VECTORS.iter().chain(heads::VECTORS)
}

/// What the gateway does with one vector.
pub(super) struct Vector {
    pub(super) name: &'static str,
    pub(super) sent: &'static str,
    /// What arrives: path and body.
    pub(super) arrives: &'static [(&'static str, &'static str)],
    /// What is answered.
    pub(super) answers: &'static [u16],
    /// Whether the connection ends then, without a word from the client.
    pub(super) closes: bool,
    /// The request is sound up to its body, of which so much is: that may be on its way.
    pub(super) begins: Option<&'static str>,
}

const fn refused(name: &'static str, sent: &'static str) -> Vector {
    Vector {
        name,
        sent,
        arrives: &[],
        answers: &[400],
        closes: true,
        begins: None,
    }
}

/// Refused within its body, behind this part of it.
const fn broken_off(name: &'static str, sent: &'static str, begins: &'static str) -> Vector {
    Vector {
        begins: Some(begins),
        ..refused(name, sent)
    }
}

/// The first request is in order.
const fn second_refused(name: &'static str, sent: &'static str) -> Vector {
    Vector {
        arrives: &[("a", "")],
        answers: &[200, 400],
        ..refused(name, sent)
    }
}

const fn forwarded(
    name: &'static str,
    sent: &'static str,
    arrives: &'static [(&'static str, &'static str)],
) -> Vector {
    Vector {
        name,
        sent,
        arrives,
        answers: &[200],
        closes: false,
        begins: None,
    }
}
