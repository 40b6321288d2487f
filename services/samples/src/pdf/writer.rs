//! A small PDF 1.4 writer: one standard font, wrapped lines, numbered A4 pages.

use std::fmt::Write;

/// A finished file.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) bytes: Vec<u8>,
    pub(crate) pages: usize,
}

// Lengths in points; A4 is 595 × 842.
const PAGE_WIDTH: u32 = 595;
const PAGE_HEIGHT: u32 = 842;
const MARGIN: u32 = 56;
const TEXT_SIZE: u32 = 11;
const TITLE_SIZE: u32 = 18;
const FOOTER_SIZE: u32 = 9;
const FOOTER_HEIGHT: u32 = 32;
const TAB: &[u8] = b"    ";

/// Object numbers before the first page: catalogue, page tree, font, information.
const FIXED_OBJECTS: usize = 4;

/// One set line, encoded as the font wants it.
struct Line {
    size: u32,
    bytes: Vec<u8>,
}

impl Line {
    /// Distance from this baseline to the one above.
    fn leading(&self) -> u32 {
        self.size + self.size / 3 + 1
    }
}

/// Sets `text` below `title` on as many pages as it needs. Characters that the font does not have
/// become `?`.
pub(crate) fn render(text: &str, title: Option<&str>) -> Document {
    let mut lines = Vec::new();
    if let Some(title) = title {
        set(title, TITLE_SIZE, &mut lines);
        lines.push(Line {
            size: TEXT_SIZE,
            bytes: Vec::new(),
        });
    }
    set(text, TEXT_SIZE, &mut lines);
    let pages = paginate(&lines);
    Document {
        bytes: write_file(&pages, title),
        pages: pages.len(),
    }
}

/// Encodes and wraps every line of `text`.
fn set(text: &str, size: u32, lines: &mut Vec<Line>) {
    let width_max = (PAGE_WIDTH - 2 * MARGIN) * 1000 / size;
    for paragraph in text.lines() {
        for bytes in wrap(&win_ansi(paragraph), width_max) {
            lines.push(Line {
                size,
                bytes: bytes.to_vec(),
            });
        }
    }
}

/// Breaks at the last space that fits, or inside a word that is longer than a line.
fn wrap(text: &[u8], width_max: u32) -> Vec<&[u8]> {
    let mut lines = Vec::new();
    let (mut start, mut space, mut width) = (0, None, 0);
    for (at, &byte) in text.iter().enumerate() {
        width += glyph_width(byte);
        if byte == b' ' {
            // A space may hang over the margin, where nobody sees it.
            space = Some(at);
        } else if width > width_max {
            let (end, next) = match space {
                Some(space) if space > start => (space, space + 1),
                _ => (at, at),
            };
            lines.push(&text[start..end]);
            (start, space) = (next, None);
            width = text[start..=at].iter().map(|&byte| glyph_width(byte)).sum();
        }
    }
    lines.push(&text[start..]);
    lines
}

/// Fills pages from the top; at least one page.
fn paginate(lines: &[Line]) -> Vec<&[Line]> {
    let room = PAGE_HEIGHT - 2 * MARGIN;
    let mut pages = Vec::new();
    let (mut start, mut used) = (0, 0);
    for (at, line) in lines.iter().enumerate() {
        if used + line.leading() > room {
            pages.push(&lines[start..at]);
            (start, used) = (at, 0);
        }
        used += line.leading();
    }
    pages.push(&lines[start..]);
    pages
}

/// Header, objects in order of their numbers, cross-reference table, trailer.
fn write_file(pages: &[&[Line]], title: Option<&str>) -> Vec<u8> {
    let kids: Vec<String> = (0..pages.len())
        .map(|page| format!("{} 0 R", FIXED_OBJECTS + 1 + 2 * page))
        .collect();
    let mut objects = vec![
        "<< /Type /Catalog /Pages 2 0 R >>".to_owned(),
        format!(
            "<< /Type /Pages /Count {} /Kids [{}] >>",
            pages.len(),
            kids.join(" ")
        ),
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>"
            .to_owned(),
        match title {
            Some(title) => format!("<< /Title {} >>", text_string(title)),
            None => "<< >>".to_owned(),
        },
    ];
    for (number, lines) in pages.iter().enumerate() {
        objects.push(format!(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {PAGE_WIDTH} {PAGE_HEIGHT}] \
             /Resources << /Font << /F1 3 0 R >> >> /Contents {} 0 R >>",
            FIXED_OBJECTS + 2 + 2 * number
        ));
        let content = page_content(lines, number + 1, pages.len());
        objects.push(format!(
            "<< /Length {} >>\nstream\n{content}\nendstream",
            content.len()
        ));
    }
    // The four high bytes tell transfer programs that the file is binary.
    let mut file = b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n".to_vec();
    let mut table = format!("xref\n0 {}\n0000000000 65535 f \n", objects.len() + 1);
    for (index, object) in objects.iter().enumerate() {
        table.push_str(&format!("{:010} 00000 n \n", file.len()));
        file.extend_from_slice(format!("{} 0 obj\n{object}\nendobj\n", index + 1).as_bytes());
    }
    let trailer = format!(
        "{table}trailer\n<< /Size {} /Root 1 0 R /Info 4 0 R >>\nstartxref\n{}\n%%EOF\n",
        objects.len() + 1,
        file.len()
    );
    file.extend_from_slice(trailer.as_bytes());
    file
}

/// The drawing operators of one page, with its number at the foot.
fn page_content(lines: &[Line], number: usize, count: usize) -> String {
    let mut content = String::new();
    let mut y = PAGE_HEIGHT - MARGIN;
    for line in lines {
        y -= line.leading();
        show(&mut content, line, MARGIN, y);
    }
    let bytes = format!("{number} / {count}").into_bytes();
    let width = bytes.iter().map(|&byte| glyph_width(byte)).sum::<u32>() * FOOTER_SIZE / 1000;
    let footer = Line {
        size: FOOTER_SIZE,
        bytes,
    };
    show(
        &mut content,
        &footer,
        (PAGE_WIDTH - width) / 2,
        FOOTER_HEIGHT,
    );
    content
}

fn show(content: &mut String, line: &Line, x: u32, y: u32) {
    if line.bytes.is_empty() {
        return;
    }
    let text = literal(&line.bytes);
    writeln!(
        content,
        "BT /F1 {} Tf 1 0 0 1 {x} {y} Tm {text} Tj ET",
        line.size
    )
    .expect("a String takes every write");
}

/// A literal string: delimiters escaped, everything outside ASCII as octal.
fn literal(bytes: &[u8]) -> String {
    let mut text = String::from("(");
    for &byte in bytes {
        match byte {
            b'(' | b')' | b'\\' => text.extend(['\\', char::from(byte)]),
            0x20..=0x7e => text.push(char::from(byte)),
            _ => text.push_str(&format!("\\{byte:03o}")),
        }
    }
    text.push(')');
    text
}

/// A text string of the information dictionary: UTF-16 with its mark, so any title is kept whole.
fn text_string(text: &str) -> String {
    let units: String = text
        .encode_utf16()
        .map(|unit| format!("{unit:04X}"))
        .collect();
    format!("<FEFF{units}>")
}

/// Encodes as Windows-1252, PDF's `WinAnsiEncoding`.
pub(crate) fn win_ansi(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\t' => bytes.extend_from_slice(TAB),
            '\u{2011}' | '\u{2212}' => bytes.push(b'-'),
            '\u{2009}' | '\u{202f}' => bytes.push(0xa0),
            ' '..='~' | '\u{a0}'..='\u{ff}' => {
                bytes.push(u8::try_from(character).unwrap_or(b'?'));
            }
            _ if character.is_control() => {}
            _ => {
                let place = HIGH_CONTROLS
                    .iter()
                    .position(|&high| high == Some(character));
                let byte = place.and_then(|place| u8::try_from(0x80 + place).ok());
                bytes.push(byte.unwrap_or(b'?'));
            }
        }
    }
    bytes
}

/// Windows-1252 from 0x80 to 0x9f, where Latin-1 has control characters.
#[rustfmt::skip]
const HIGH_CONTROLS: [Option<char>; 32] = [
    Some('€'), None, Some('‚'), Some('ƒ'), Some('„'), Some('…'), Some('†'), Some('‡'),
    Some('ˆ'), Some('‰'), Some('Š'), Some('‹'), Some('Œ'), None, Some('Ž'), None,
    None, Some('‘'), Some('’'), Some('“'), Some('”'), Some('•'), Some('–'), Some('—'),
    Some('˜'), Some('™'), Some('š'), Some('›'), Some('œ'), None, Some('ž'), Some('Ÿ'),
];

/// Advance of a glyph in thousandths of the size.
fn glyph_width(byte: u8) -> u32 {
    let index = usize::from(byte.saturating_sub(0x20));
    WIDTHS.get(index).copied().map_or(0, u32::from)
}

/// Helvetica's advances from 0x20 to 0xff in `WinAnsiEncoding` (Adobe's font metrics).
#[rustfmt::skip]
const WIDTHS: [u16; 224] = [
    278, 278, 355, 556, 556, 889, 667, 191, 333, 333, 389, 584, 278, 333, 278, 278,
    556, 556, 556, 556, 556, 556, 556, 556, 556, 556, 278, 278, 584, 584, 584, 556,
    1015, 667, 667, 722, 722, 667, 611, 778, 722, 278, 500, 667, 556, 833, 722, 778,
    667, 778, 722, 667, 611, 722, 667, 944, 667, 667, 611, 278, 278, 278, 469, 556,
    333, 556, 556, 500, 556, 556, 278, 556, 556, 222, 222, 500, 222, 833, 556, 556,
    556, 556, 333, 500, 278, 556, 500, 722, 500, 500, 500, 334, 260, 334, 584, 350,
    556, 350, 222, 556, 333, 1000, 556, 556, 333, 1000, 667, 333, 1000, 350, 611, 350,
    350, 222, 222, 333, 333, 350, 556, 1000, 333, 1000, 500, 333, 944, 350, 500, 667,
    278, 333, 556, 556, 556, 556, 260, 556, 333, 737, 370, 556, 584, 333, 737, 333,
    400, 584, 333, 333, 333, 556, 537, 278, 333, 333, 365, 556, 834, 834, 834, 611,
    667, 667, 667, 667, 667, 667, 1000, 722, 667, 667, 667, 667, 278, 278, 278, 278,
    722, 722, 778, 778, 778, 778, 778, 584, 778, 722, 722, 722, 722, 667, 667, 611,
    556, 556, 556, 556, 556, 556, 889, 500, 556, 556, 556, 556, 278, 278, 278, 278,
    556, 556, 556, 556, 556, 556, 556, 584, 611, 556, 556, 556, 556, 500, 556, 500,
];
