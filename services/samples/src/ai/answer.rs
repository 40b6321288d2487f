//! Extraction: the answer is made of the conversation's own sentences, chosen by arithmetic.

use std::collections::{BTreeSet, HashMap};

/// Most sentences of an answer.
const SENTENCES_MAX: usize = 3;

/// How much more a word of the question counts than one occurrence in the conversation.
const QUESTION_WEIGHT: u64 = 20;

/// Added to a sentence's length when its score is averaged, so that two lucky words do not beat a
/// sentence that says something.
const LENGTH_OFFSET: u64 = 8;

/// Shortest word that means something on its own; numbers always do.
const WORD_CHARACTERS_MIN: usize = 3;

/// Words that join others, in the two languages of the demo.
const STOP_WORDS: [&str; 62] = [
    "about", "and", "are", "aux", "avec", "been", "but", "can", "ces", "cette", "comment", "could",
    "dans", "des", "did", "does", "elle", "est", "for", "from", "had", "has", "have", "how", "ils",
    "into", "its", "les", "leur", "mais", "not", "nous", "par", "pas", "plus", "pour", "quand",
    "que", "quel", "quelle", "qui", "should", "son", "sont", "sur", "tell", "that", "the", "their",
    "there", "this", "une", "vous", "was", "were", "what", "when", "where", "which", "who", "why",
    "with",
];

/// One message as plain text.
#[derive(Debug)]
pub(crate) struct Turn {
    pub(crate) is_user: bool,
    pub(crate) text: String,
}

/// Answers the last user message with the sentences that share most words with it, or, if none
/// does, with the conversation's most typical ones. Sentences keep their order.
pub(crate) fn extract(turns: &[Turn]) -> String {
    let asked = turns
        .iter()
        .rposition(|turn| turn.is_user)
        .unwrap_or(turns.len() - 1);
    let (questions, mut candidates) = split(turns, asked);
    if candidates.is_empty() {
        candidates = questions.clone();
    }
    let question_words: BTreeSet<String> = questions
        .iter()
        .flat_map(|sentence| words(sentence))
        .collect();
    let mut frequency: HashMap<String, u64> = HashMap::new();
    for word in candidates.iter().flat_map(|sentence| words(sentence)) {
        *frequency.entry(word).or_default() += 1;
    }
    let asked_for = |sentence: &&str| words(sentence).any(|word| question_words.contains(&word));
    if candidates.iter().any(asked_for) {
        candidates.retain(asked_for);
    }
    let mut ranked: Vec<(u64, usize)> = candidates
        .iter()
        .enumerate()
        .map(|(index, sentence)| (score(sentence, &question_words, &frequency), index))
        .collect();
    // Best first; of equals the earlier, so that the same conversation has the same answer.
    ranked.sort_by_key(|&(score, index)| (std::cmp::Reverse(score), index));
    let mut chosen: Vec<usize> = ranked
        .into_iter()
        .take(SENTENCES_MAX)
        .map(|(_, index)| index)
        .collect();
    chosen.sort_unstable();
    let sentences: Vec<&str> = chosen.into_iter().map(|index| candidates[index]).collect();
    sentences.join(" ")
}

/// The sentences that ask, and those that may answer. The last user message asks: with its
/// sentences that end in a question mark, and if none does, with all of them.
fn split(turns: &[Turn], asked: usize) -> (Vec<&str>, Vec<&str>) {
    let (mut questions, mut statements) = (Vec::new(), Vec::new());
    for sentence in sentences(&turns[asked].text) {
        match sentence.ends_with('?') {
            true => questions.push(sentence),
            false => statements.push(sentence),
        }
    }
    if questions.is_empty() {
        std::mem::swap(&mut questions, &mut statements);
    }
    let before = turns[..asked].iter().flat_map(|turn| sentences(&turn.text));
    let after = turns[asked + 1..]
        .iter()
        .flat_map(|turn| sentences(&turn.text));
    let candidates = before.chain(statements).chain(after).collect();
    (questions, candidates)
}

/// How well a sentence answers: its words' frequency, and far above it the question's words.
fn score(sentence: &str, question: &BTreeSet<String>, frequency: &HashMap<String, u64>) -> u64 {
    let distinct: BTreeSet<String> = words(sentence).collect();
    let mut total = 0;
    for word in &distinct {
        total += frequency.get(word).copied().unwrap_or(0);
        if question.contains(word) {
            total += QUESTION_WEIGHT;
        }
    }
    let length = u64::try_from(distinct.len()).unwrap_or(u64::MAX - LENGTH_OFFSET);
    total * 1000 / (length + LENGTH_OFFSET)
}

/// The sentences of a text, trimmed, none empty.
pub(crate) fn sentences(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut start = 0;
    let mut characters = text.char_indices().peekable();
    while let Some((at, character)) = characters.next() {
        let at_end = characters
            .peek()
            .is_none_or(|(_, next)| next.is_whitespace());
        // "3.5" is no end of a sentence, "… 3. 5 …" is.
        let ends = matches!(character, '.' | '!' | '?' | '…') && at_end;
        if ends || character == '\n' {
            let end = at + character.len_utf8();
            found.push(text[start..end].trim());
            start = end;
        }
    }
    found.push(text[start..].trim());
    found.retain(|sentence| !sentence.is_empty());
    found
}

/// The words that carry meaning, in lower case, a plural counted as its singular.
fn words(sentence: &str) -> impl Iterator<Item = String> + '_ {
    let runs = sentence.split(|character: char| !character.is_alphanumeric());
    runs.filter_map(|run| {
        let word = run.to_lowercase();
        let is_number = word.starts_with(|first: char| first.is_numeric());
        if !is_number && word.chars().count() < WORD_CHARACTERS_MIN {
            return None;
        }
        if STOP_WORDS.binary_search(&word.as_str()).is_ok() {
            return None;
        }
        let singular = word
            .strip_suffix('s')
            .filter(|stem| stem.len() >= WORD_CHARACTERS_MIN);
        Some(singular.map_or_else(|| word.clone(), str::to_owned))
    })
}
