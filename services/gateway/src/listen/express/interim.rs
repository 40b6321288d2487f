//! Interim answers (RFC 9110, 15.2): hints that come before an answer are passed on at once.

use httparse::{EMPTY_HEADER, Status};

use super::super::limits::INTERIM_MAX;
use super::{
    ask::{NoAnswer, receive},
    front::Front,
    write,
};
use crate::pool::{Direct, patience::Pauses};

/// Fields of one of them.
const FIELDS_MAX: usize = 64;
/// Room for one as it mostly is.
const HEAD_BYTES: usize = 512;

/// Passes on the interim answers at the beginning of `read`, and waits for more of the answer
/// where nothing is behind them.
///
/// # Errors
/// The upstream breaks off or takes too long, or the client has gone.
pub(super) async fn pass_on(
    front: &mut Front<'_>,
    direct: &mut Direct,
    pauses: &mut Pauses,
    read: &mut Vec<u8>,
) -> Result<(), NoAnswer> {
    for _ in 0..INTERIM_MAX {
        // Most answers are told by their first digit.
        let is_interim = read.get(9) == Some(&b'1');
        let Some((mut head, bytes)) = is_interim.then(|| parse(read)).flatten() else {
            return Ok(());
        };
        let written = front.write(&mut head, &[]).await;
        written.map_err(|_gone| NoAnswer::Lost)?;
        read.drain(..bytes);
        if read.is_empty() {
            let more = receive(front, direct, pauses, 0).await;
            *read = more.map_err(|why| why.or_broken(NoAnswer::BrokenOff))?;
        }
    }
    Err(NoAnswer::BrokenOff)
}

/// The first interim answer, which is no change of protocols, as the client gets it, and how long
/// it was. Who did not ask whether to go on is not told to: of a 100 nothing is left.
fn parse(read: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut fields = [EMPTY_HEADER; FIELDS_MAX];
    let mut answer = httparse::Response::new(&mut fields);
    let Ok(Status::Complete(bytes)) = answer.parse(read) else {
        return None;
    };
    let code = answer.code.filter(|code| matches!(code, 100 | 102..=199))?;
    if code == 100 {
        return Some((Vec::new(), bytes));
    }
    let mut head = Vec::with_capacity(HEAD_BYTES);
    let line = (code, answer.reason.unwrap_or_default());
    let fields = answer.headers.iter();
    write_interim(
        &mut head,
        line,
        fields.map(|field| (field.name.as_bytes(), field.value)),
    );
    Some((head, bytes))
}

/// Appends an interim answer as the client gets it.
pub(in crate::listen) fn write_interim<'a>(
    head: &mut Vec<u8>,
    line: (u16, &str),
    fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
) {
    write::pass_on(head, line, fields);
    head.extend_from_slice(b"\r\n");
}
