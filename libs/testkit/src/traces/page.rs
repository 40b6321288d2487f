//! The pages: plain HTML and SVG, readable without scripts.

use std::collections::{BTreeSet, HashMap};
use std::fmt::{self, Display, Write};

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::store::{Span, Summary, Trace, plain};

/// Colours in the style sheet; more services than that share them.
const COLOURS: usize = 10;

/// Deepest indentation in the style sheet; deeper spans stay there.
const INDENT_MAX: usize = 12;

/// Narrowest bar, in hundredths of a percent of the whole width, so that it can be seen.
const BAR_WIDTH_MIN: u64 = 25;

/// Text that cannot become markup, in an element or in a quoted attribute.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => formatter.write_str("&amp;")?,
                '<' => formatter.write_str("&lt;")?,
                '>' => formatter.write_str("&gt;")?,
                '"' => formatter.write_str("&quot;")?,
                '\'' => formatter.write_str("&#39;")?,
                _ => formatter.write_char(character)?,
            }
        }
        Ok(())
    }
}

/// A length of time with three digits and its unit.
pub(super) struct Nanos(pub(super) u64);

impl Display for Nanos {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, name) = match self.0 {
            0..1_000 => return write!(formatter, "{} ns", self.0),
            1_000..1_000_000 => (1_000, "µs"),
            1_000_000..1_000_000_000 => (1_000_000, "ms"),
            _ => (1_000_000_000, "s"),
        };
        let (whole, rest) = (self.0 / unit, self.0 % unit);
        match whole {
            0..10 => write!(formatter, "{whole}.{:02} {name}", rest * 100 / unit),
            10..100 => write!(formatter, "{whole}.{} {name}", rest * 10 / unit),
            _ => write!(formatter, "{whole} {name}"),
        }
    }
}

/// A part of the whole width in hundredths of a percent, as SVG wants it.
struct Percent(u64);

impl Display for Percent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{:02}%", self.0 / 100, self.0 % 100)
    }
}

fn clock(unix_nanos: u64) -> String {
    let time = Timestamp::from_nanosecond(i128::from(unix_nanos));
    time.map(|time| time.strftime("%Y-%m-%d %H:%M:%S%.3f").to_string())
        .unwrap_or_default()
}

fn document(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"dark\">\n<title>{} · Traces</title>\n\
         <link rel=\"stylesheet\" href=\"/style.css\">\n</head>\n<body>\n{body}</body>\n</html>\n",
        Escaped(title)
    )
}

/// The list, the newest trace first.
pub(super) fn list(traces: &[Summary], services: &[String], search: &str, dropped: u64) -> String {
    let rows: String = traces.iter().map(|trace| row(trace, services)).collect();
    let table = match (traces.is_empty(), search.is_empty()) {
        (false, _) => format!(
            "<div class=\"scroll\"><table>\n<thead><tr><th scope=\"col\">Started (UTC)</th>\
             <th scope=\"col\">Root span</th><th scope=\"col\">Services</th>\
             <th scope=\"col\" class=\"number\">Duration</th>\
             <th scope=\"col\" class=\"number\">Spans</th>\
             <th scope=\"col\" class=\"number\">Errors</th></tr></thead>\n\
             <tbody>\n{rows}</tbody>\n</table></div>\n"
        ),
        (true, true) => "<p class=\"empty\">No trace has come in yet. Make a call through the \
                         gateway, then reload.</p>\n"
            .to_owned(),
        (true, false) => "<p class=\"empty\">No trace mentions this. <a href=\"/\">Show all</a>\
                          </p>\n"
            .to_owned(),
    };
    let gone = match dropped {
        0 => String::new(),
        _ => format!(", {dropped} older ones made room"),
    };
    let body = format!(
        "<header><h1>Traces</h1>\n<form action=\"/\" role=\"search\">\
         <label for=\"q\">Find</label> <input id=\"q\" name=\"q\" type=\"search\" value=\"{}\" \
         placeholder=\"request id, span, service, attribute value\"> \
         <button>Search</button></form></header>\n\
         <main><p class=\"muted\">{} shown{gone}. <a href=\"\">Reload</a></p>\n{table}</main>\n",
        Escaped(search),
        traces.len()
    );
    document("All", &body)
}

fn row(trace: &Summary, services: &[String]) -> String {
    let chips: String = trace
        .services
        .iter()
        .map(|name| chip(name, services))
        .collect();
    let errors = match trace.errors {
        0 => "<td class=\"number muted\">0</td>".to_owned(),
        errors => format!("<td class=\"number error\">✕ {errors}</td>"),
    };
    format!(
        "<tr><td class=\"muted\">{}</td><td><a href=\"/trace/{}\">{}</a> \
         <span class=\"muted\">{}</span></td><td>{chips}</td><td class=\"number\">{}</td>\
         <td class=\"number\">{}</td>{errors}</tr>\n",
        clock(trace.start_unix_nanos),
        trace.trace_id,
        Escaped(if trace.root.is_empty() {
            "(unnamed)"
        } else {
            &trace.root
        }),
        Escaped(&trace.root_service),
        Nanos(trace.duration_nanos),
        trace.spans,
    )
}

/// The style class of a service's colour: its place in the order of appearance.
fn colour(services: &[String], name: &str) -> String {
    let place = services
        .iter()
        .position(|service| service == name)
        .unwrap_or(0);
    format!("c{}", place % COLOURS)
}

fn chip(service: &str, services: &[String]) -> String {
    format!(
        "<span class=\"chip\"><svg class=\"dot\" aria-hidden=\"true\"><circle class=\"{}\" \
         cx=\"5\" cy=\"5\" r=\"5\"/></svg>{}</span> ",
        colour(services, service),
        Escaped(service)
    )
}

/// What there is to say about a trace nobody has sent.
pub(super) fn unknown(trace_id: &str) -> String {
    let body = format!(
        "<header><h1>Unknown trace</h1></header>\n<main><p>Nothing has come in for \
         <code>{}</code>, or it was long ago. <a href=\"/\">All traces</a></p></main>\n",
        Escaped(trace_id)
    );
    document("Unknown trace", &body)
}

/// One trace as a waterfall: children below their parent, in order of their start.
pub(super) fn trace(trace: &Trace, services: &[String]) -> String {
    let title = trace.root().map_or("(unnamed)", |span| span.name.as_str());
    let rows: String = in_order(trace)
        .into_iter()
        .map(|(depth, span)| span_row(trace, span, depth, services))
        .collect();
    let chips: String = trace
        .services()
        .into_iter()
        .map(|name| chip(name, services))
        .collect();
    let whole = trace.duration_nanos();
    let ticks: String = (0..4u64)
        .map(|quarter| format!("<span>{}</span>", Nanos(whole * quarter / 4)))
        .collect();
    let mut notes = String::new();
    if trace.spans_dropped > 0 {
        let dropped = trace.spans_dropped;
        notes.push_str(&format!(
            "<p class=\"error\">{dropped} spans more were dropped.</p>\n"
        ));
    }
    if !trace.linked_from.is_empty() {
        let links: String = trace
            .linked_from
            .iter()
            .map(|id| trace_link(id, None))
            .collect();
        notes.push_str(&format!("<p>Linked from: {links}</p>\n"));
    }
    let body = format!(
        "<header><p><a href=\"/\">All traces</a></p><h1>{}</h1>\n\
         <p class=\"muted\"><code>{}</code> · {} UTC · {} · {} spans</p>\n<p>{chips}</p>\n{notes}\
         </header>\n<main>\n<div class=\"axis\" aria-hidden=\"true\"><span>Span</span>\
         <span class=\"ticks\">{ticks}</span><span class=\"number\">{}</span></div>\n\
         <ol class=\"waterfall\">\n{rows}</ol>\n</main>\n",
        Escaped(title),
        trace.trace_id,
        clock(trace.start_unix_nanos()),
        Nanos(whole),
        trace.spans.len(),
        Nanos(whole),
    );
    document(title, &body)
}

fn trace_link(trace_id: &str, span_id: Option<&str>) -> String {
    let anchor = span_id
        .map(|id| format!("#span-{}", Escaped(id)))
        .unwrap_or_default();
    let id = Escaped(trace_id);
    format!("<a href=\"/trace/{id}{anchor}\"><code>{id}</code></a> ")
}

/// Depth-first, with each span's depth. Every span is there once, even if parents form a ring.
fn in_order(trace: &Trace) -> Vec<(usize, &Span)> {
    let received: BTreeSet<&str> = trace
        .spans
        .iter()
        .map(|span| span.span_id.as_str())
        .collect();
    let mut children: HashMap<&str, Vec<&Span>> = HashMap::new();
    let mut roots = Vec::new();
    for span in &trace.spans {
        let parent = span
            .parent_span_id
            .as_deref()
            .filter(|parent| received.contains(parent));
        match parent {
            Some(parent) => children.entry(parent).or_default().push(span),
            None => roots.push(span),
        }
    }
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    let mut ordered = Vec::new();
    // What no root reaches (a ring) starts at its first span.
    for start in roots.into_iter().chain(&trace.spans) {
        let mut open = vec![(0, start)];
        while let Some((depth, span)) = open.pop() {
            if !seen.insert(&span.span_id) {
                continue;
            }
            ordered.push((depth, span));
            let below = children
                .get(span.span_id.as_str())
                .into_iter()
                .flatten()
                .rev();
            open.extend(below.map(|child| (depth + 1, *child)));
        }
    }
    ordered
}

fn span_row(trace: &Trace, span: &Span, depth: usize, services: &[String]) -> String {
    let whole = trace.duration_nanos().max(1);
    let part = |nanos: u64| {
        let part = u128::from(nanos) * 10_000 / u128::from(whole);
        u64::try_from(part).unwrap_or(10_000).min(10_000)
    };
    let offset = span
        .start_unix_nanos
        .saturating_sub(trace.start_unix_nanos());
    let width = part(span.duration_nanos()).max(BAR_WIDTH_MIN);
    let left = part(offset).min(10_000 - width);
    let failed = match &span.error {
        Some(_) => "<strong class=\"error\">✕ error</strong> ",
        None => "",
    };
    format!(
        "<li id=\"span-{}\" class=\"d{}\"><details><summary><span class=\"name\">\
         {failed}{} <span class=\"muted\">{}</span></span>\
         <svg class=\"bar\" role=\"img\" aria-label=\"starts after {}\">\
         <rect class=\"{}\" x=\"{}\" width=\"{}\" height=\"100%\" rx=\"2\"/></svg>\
         <span class=\"number\">{}</span></summary>\n{}</details></li>\n",
        span.span_id,
        depth.min(INDENT_MAX),
        Escaped(if span.name.is_empty() {
            "(unnamed)"
        } else {
            &span.name
        }),
        Escaped(&span.service),
        Nanos(offset),
        colour(services, &span.service),
        Percent(left),
        Percent(width),
        Nanos(span.duration_nanos()),
        details(trace, span, offset),
    )
}

/// Everything else a span carries, unfolded on demand.
fn details(trace: &Trace, span: &Span, offset: u64) -> String {
    let mut html = String::from("<div class=\"details\">\n");
    if let Some(message) = span.error.as_deref().filter(|message| !message.is_empty()) {
        html.push_str(&format!("<p class=\"error\">✕ {}</p>\n", Escaped(message)));
    }
    let parent = match (&span.parent_span_id, trace.parent(span)) {
        (None, _) => "none".to_owned(),
        (Some(id), Some(_)) => id.clone(),
        (Some(id), None) => format!("{id} (not received)"),
    };
    let instance = span.instance.as_deref().unwrap_or("not told");
    let facts = [
        ("service", span.service.as_str()),
        ("instance", instance),
        ("kind", span.kind),
        ("scope", span.scope.as_str()),
        ("span id", span.span_id.as_str()),
        ("parent", parent.as_str()),
        ("starts after", &Nanos(offset).to_string()),
    ];
    html.push_str("<dl>");
    for (name, value) in facts {
        html.push_str(&format!("<dt>{name}</dt><dd>{}</dd>", Escaped(value)));
    }
    html.push_str("</dl>\n");
    html.push_str(&attributes(&span.attributes));
    for event in &span.events {
        let after = event.unix_nanos.saturating_sub(trace.start_unix_nanos());
        html.push_str(&format!(
            "<p class=\"event\"><span class=\"muted\">{}</span> {}</p>\n{}",
            Nanos(after),
            Escaped(&event.name),
            attributes(&event.attributes)
        ));
    }
    for link in &span.links {
        html.push_str(&format!(
            "<p>Linked to {}</p>\n{}",
            trace_link(&link.trace_id, Some(&link.span_id)),
            attributes(&link.attributes)
        ));
    }
    html.push_str("</div>\n");
    html
}

fn attributes(attributes: &Map<String, Value>) -> String {
    if attributes.is_empty() {
        return String::new();
    }
    let row = |(name, value): (&String, &Value)| {
        let value = plain(value);
        format!("<dt>{}</dt><dd>{}</dd>", Escaped(name), Escaped(&value))
    };
    let rows: String = attributes.iter().map(row).collect();
    format!("<dl class=\"attributes\">{rows}</dl>\n")
}
