//! The tokenizer: simple enough to do by hand, so that a bill can be checked.
//!
//! A token is a run of letters and digits, cut into pieces of at most six characters, or any other
//! single character that is not white space. A conversation costs three more for each message and
//! three for the answer it asks for. `"Tollgates bill, exactly."` is `Tollga` `tes` `bill` `,`
//! `exactl` `y` `.`: seven tokens.

use std::ops::Range;

const PIECE_CHARACTERS_MAX: usize = 6;
const TOKENS_PER_MESSAGE: usize = 3;
const TOKENS_PER_ANSWER: usize = 3;

/// The byte ranges of the tokens of `text`, in order.
pub(crate) fn tokens(text: &str) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut characters = text.char_indices().peekable();
    std::iter::from_fn(move || {
        let (start, first) = characters.find(|(_, character)| !character.is_whitespace())?;
        let mut end = start + first.len_utf8();
        if !first.is_alphanumeric() {
            return Some(start..end);
        }
        for _ in 1..PIECE_CHARACTERS_MAX {
            let Some((at, next)) = characters.next_if(|(_, next)| next.is_alphanumeric()) else {
                break;
            };
            end = at + next.len_utf8();
        }
        Some(start..end)
    })
}

/// Tokens of the messages of a conversation, with what their frame costs.
pub(crate) fn of_conversation<'a>(messages: impl Iterator<Item = &'a str>) -> usize {
    let messages = messages.map(|text| TOKENS_PER_MESSAGE + tokens(text).count());
    messages.sum::<usize>() + TOKENS_PER_ANSWER
}
