//! Units that upstreams report: in the header `tollgate-usage: pages=5, tokens=1500`, in JSON at
//! the pointers of a route's prices, in the events of a stream, in trailers. What comes later
//! replaces what came before.
//!
//! Reports are untrusted: whatever is malformed, negative or too much is left out, and counts as
//! not reported.

use http::HeaderMap;
use proto::events::v1::Unit;
use serde_json::Value;
use types::{Price, is_unit_name};

/// Header and trailer by which an upstream reports units.
pub(crate) const USAGE: &str = "tollgate-usage";
/// Most units kept of one call.
pub(crate) const UNITS_MAX: usize = 16;
/// Longest event of a stream that is looked into, bytes.
pub(crate) const EVENT_BYTES_MAX: usize = 64 * 1024;
/// Longest JSON answer that is looked into, bytes. Such an answer leaves the gateway when it is
/// complete, so that its head can say what it costs.
pub(crate) const JSON_BYTES_MAX: usize = 1024 * 1024;

/// What a call has reported so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Units(Vec<Unit>);

impl Units {
    /// What was reported of one unit.
    pub(crate) fn count(&self, name: &str) -> Option<u64> {
        self.0
            .iter()
            .find(|unit| unit.name == name)
            .map(|unit| unit.count)
    }

    /// All of them.
    pub(crate) fn all(&self) -> &[Unit] {
        &self.0
    }

    /// Reads the header, or the trailer. Several reports of one unit in it count together.
    pub(crate) fn read_fields(&mut self, fields: &HeaderMap) {
        if fields.is_empty() {
            return; // a name is looked for in nothing at a price
        }
        let values = fields.get_all(USAGE).iter();
        let texts = values.filter_map(|value| value.to_str().ok());
        let mut reported = Self::default();
        for (name, count) in texts.flat_map(|text| text.split(',')).filter_map(pair) {
            let sum = reported.count(name).unwrap_or(0).saturating_add(count);
            reported.set(name, sum.min(i64::MAX.unsigned_abs()));
        }
        for unit in reported.0 {
            self.set(&unit.name, unit.count);
        }
    }

    /// Reads what the pointers of a price find in a document.
    fn read_document(&mut self, price: &Price, document: &Value) {
        for unit in price.units().iter().filter(|unit| !unit.pointer.is_empty()) {
            if let Some(count) = document.pointer(&unit.pointer).and_then(whole) {
                self.set(&unit.unit, count);
            }
        }
    }

    /// Reads a whole JSON answer.
    pub(crate) fn read_json(&mut self, price: &Price, text: &[u8]) {
        if let Ok(document) = serde_json::from_slice(text) {
            self.read_document(price, &document);
        }
    }

    fn set(&mut self, name: &str, count: u64) {
        if let Some(unit) = self.0.iter_mut().find(|unit| unit.name == name) {
            unit.count = count;
        } else if self.0.len() < UNITS_MAX {
            let name = name.to_owned();
            self.0.push(Unit { name, count });
        }
    }
}

/// Reads `pages=5`.
fn pair(text: &str) -> Option<(&str, u64)> {
    let (name, count) = text.split_once('=')?;
    let name = name.trim();
    let count: u64 = count.trim().parse().ok()?;
    (is_unit_name(name) && i64::try_from(count).is_ok()).then_some((name, count))
}

/// A number without a fraction and not below zero.
fn whole(value: &Value) -> Option<u64> {
    value.as_u64().filter(|count| i64::try_from(*count).is_ok())
}

/// A stream of server-sent events (WHATWG HTML, 9.2.6) on its way, looked into for units.
#[derive(Debug, Default)]
pub(crate) struct Events {
    /// The `data` of the event at hand, its lines ended.
    data: Vec<u8>,
    line: Vec<u8>,
    /// Bytes of the line at hand, kept or not.
    line_bytes: usize,
    after_return: bool,
    /// The event at hand is too long to be looked into.
    is_too_long: bool,
}

impl Events {
    /// Reads more of the stream.
    pub(crate) fn read(&mut self, mut bytes: &[u8], price: &Price, units: &mut Units) {
        if self.after_return && bytes.first() == Some(&b'\n') {
            bytes = bytes.get(1..).unwrap_or_default();
        }
        while !bytes.is_empty() {
            self.after_return = false;
            let end = memchr::memchr2(b'\n', b'\r', bytes);
            let (line, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            self.keep(line);
            if end.is_none() {
                return;
            }
            self.end_line(price, units);
            self.after_return = rest == b"\r";
            let ending = if rest.starts_with(b"\r\n") { 2 } else { 1 };
            bytes = rest.get(ending..).unwrap_or_default();
        }
    }

    /// The stream is over: an event that nothing ended still counts.
    pub(crate) fn end(&mut self, price: &Price, units: &mut Units) {
        if self.line_bytes > 0 {
            self.end_line(price, units);
        }
        self.end_event(price, units);
    }

    fn keep(&mut self, part: &[u8]) {
        self.line_bytes = self.line_bytes.saturating_add(part.len());
        let kept = self.data.len().saturating_add(self.line.len());
        if kept.saturating_add(part.len()) > EVENT_BYTES_MAX {
            self.is_too_long = true;
        }
        if !self.is_too_long {
            self.line.extend_from_slice(part);
        }
    }

    fn end_line(&mut self, price: &Price, units: &mut Units) {
        if std::mem::take(&mut self.line_bytes) == 0 {
            return self.end_event(price, units);
        }
        if let Some(data) = self.line.strip_prefix(b"data:") {
            self.data.extend_from_slice(data);
            self.data.push(b'\n');
        }
        self.line.clear();
    }

    fn end_event(&mut self, price: &Price, units: &mut Units) {
        let data = self.data.trim_ascii();
        if !self.is_too_long && data.first() == Some(&b'{') && mentions(data, price) {
            units.read_json(price, data);
        }
        self.data.clear();
        self.is_too_long = false;
    }
}

/// Whether one of the pointers could find something: most events are not worth parsing.
fn mentions(data: &[u8], price: &Price) -> bool {
    price.units().iter().any(|unit| {
        let last = unit.pointer.rsplit('/').next().unwrap_or_default();
        // `~0` and `~1` stand for other characters; JSON may escape others.
        let is_plain = last
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        !unit.pointer.is_empty()
            && (!is_plain || memchr::memmem::find(data, last.as_bytes()).is_some())
    })
}

#[cfg(test)]
mod tests;
