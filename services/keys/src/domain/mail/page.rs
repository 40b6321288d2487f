//! The two forms of a letter: text and HTML.

use super::{Language, Part, Words};

/// As text: a blank line between parts, an address on a line of its own.
pub(super) fn text(parts: &[Part]) -> String {
    let blocks = parts.iter().map(|part| match part {
        Part::Paragraph(text) => text.clone(),
        Part::List(items) => {
            let items: Vec<String> = items.iter().map(|item| format!("- {item}")).collect();
            items.join("\n")
        }
        Part::Link { url, .. } => url.clone(),
    });
    let blocks: Vec<String> = blocks.collect();
    format!("{}\n", blocks.join("\n\n"))
}

/// As HTML that needs nothing from elsewhere: no style sheet, no picture, no script.
pub(super) fn html(language: Language, words: &Words) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"{}\">\n<head><meta charset=\"utf-8\"><title>{}</title>\
         </head>\n<body style=\"font-family:sans-serif;line-height:1.5;max-width:40em;\
         margin:2em auto;padding:0 1em\">\n",
        language.as_str(),
        escaped(&words.subject),
    );
    for part in &words.parts {
        match part {
            Part::Paragraph(text) => page.push_str(&format!("<p>{}</p>\n", escaped(text))),
            Part::List(items) => {
                page.push_str("<ul>\n");
                for item in items {
                    page.push_str(&format!("<li>{}</li>\n", escaped(item)));
                }
                page.push_str("</ul>\n");
            }
            Part::Link { label, url } => page.push_str(&format!(
                "<p><a href=\"{url}\">{}</a><br><small>{url}</small></p>\n",
                escaped(label),
                url = escaped(url),
            )),
        }
    }
    page.push_str("</body>\n</html>\n");
    page
}

/// Text as it may stand in an element or an attribute in quotes.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}
