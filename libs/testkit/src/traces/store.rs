//! What has been received: the last traces, in memory.

use std::collections::{BTreeSet, HashMap, VecDeque};

use opentelemetry_proto::tonic::common::v1::any_value::Value as OtlpValue;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1 as otlp;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Map, Value};

/// Traces kept; then the one that came first goes.
pub(super) const TRACES_MAX: usize = 1_000;

/// Spans kept of one trace; later ones are counted only.
pub(super) const SPANS_PER_TRACE_MAX: usize = 2_000;

/// Attributes, events and links kept of one span.
const PARTS_PER_SPAN_MAX: usize = 512;

/// Bytes kept of a text.
const TEXT_BYTES_MAX: usize = 4_096;

/// Service names remembered for their colours.
const SERVICES_MAX: usize = 100;

/// Deepest nesting of an attribute's value that is kept.
const VALUE_DEPTH_MAX: usize = 8;

/// One operation in one service.
#[derive(Clone, Debug, Serialize)]
pub struct Span {
    /// Sixteen hex digits.
    pub span_id: String,
    /// The span this one is part of; it may not have been received.
    pub parent_span_id: Option<String>,
    /// What was done.
    pub name: String,
    /// `server`, `client`, `producer`, `consumer`, `internal` or `unspecified`.
    pub kind: &'static str,
    /// `service.name` of the resource.
    pub service: String,
    /// `service.instance.id` of the resource.
    pub instance: Option<String>,
    /// The instrumentation scope.
    pub scope: String,
    /// Start, nanoseconds since 1970.
    pub start_unix_nanos: u64,
    /// End, nanoseconds since 1970.
    pub end_unix_nanos: u64,
    /// Attributes with their types.
    pub attributes: Map<String, Value>,
    /// What happened meanwhile.
    pub events: Vec<Event>,
    /// Spans of this or other traces that this one follows from.
    pub links: Vec<Link>,
    /// The error's text, maybe empty, if the span failed.
    pub error: Option<String>,
}

impl Span {
    /// How long it took.
    pub fn duration_nanos(&self) -> u64 {
        self.end_unix_nanos.saturating_sub(self.start_unix_nanos)
    }
}

/// A moment in a span.
#[derive(Clone, Debug, Serialize)]
pub struct Event {
    /// What happened.
    pub name: String,
    /// When, nanoseconds since 1970.
    pub unix_nanos: u64,
    /// Attributes with their types.
    pub attributes: Map<String, Value>,
}

/// A reference to another span.
#[derive(Clone, Debug, Serialize)]
pub struct Link {
    /// Thirty-two hex digits.
    pub trace_id: String,
    /// Sixteen hex digits.
    pub span_id: String,
    /// Attributes with their types.
    pub attributes: Map<String, Value>,
}

/// What has come in of one trace.
#[derive(Clone, Debug, Serialize)]
pub struct Trace {
    /// Thirty-two hex digits.
    pub trace_id: String,
    /// In order of their start.
    pub spans: Vec<Span>,
    /// Spans that came after the trace was full.
    pub spans_dropped: u64,
    /// Other traces with a link to this one.
    pub linked_from: Vec<String>,
}

/// A line of the list.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Thirty-two hex digits.
    pub trace_id: String,
    /// Name of the root span, or of the first whose parent has not come in.
    pub root: String,
    /// Its service.
    pub root_service: String,
    /// All services in order of their names.
    pub services: Vec<String>,
    /// Start of the first span, nanoseconds since 1970.
    pub start_unix_nanos: u64,
    /// From the first start to the last end.
    pub duration_nanos: u64,
    /// Number of spans.
    pub spans: usize,
    /// Number of spans that failed.
    pub errors: usize,
}

impl Trace {
    /// The span that has no parent, else the first whose parent has not come in.
    pub fn root(&self) -> Option<&Span> {
        let orphan = |span: &&Span| self.parent(span).is_none();
        let roots = self
            .spans
            .iter()
            .filter(|span| span.parent_span_id.is_none());
        roots
            .chain(self.spans.iter().filter(orphan))
            .chain(&self.spans)
            .next()
    }

    /// The received span that `span` is part of.
    pub fn parent(&self, span: &Span) -> Option<&Span> {
        let parent = span.parent_span_id.as_ref()?;
        self.spans.iter().find(|other| other.span_id == *parent)
    }

    /// Names of the services that took part.
    pub fn services(&self) -> BTreeSet<&str> {
        self.spans
            .iter()
            .map(|span| span.service.as_str())
            .collect()
    }

    /// Start of the first span.
    pub fn start_unix_nanos(&self) -> u64 {
        self.spans
            .iter()
            .map(|span| span.start_unix_nanos)
            .min()
            .unwrap_or(0)
    }

    /// From the first start to the last end.
    pub fn duration_nanos(&self) -> u64 {
        let end = self
            .spans
            .iter()
            .map(|span| span.end_unix_nanos)
            .max()
            .unwrap_or(0);
        end.saturating_sub(self.start_unix_nanos())
    }

    fn errors(&self) -> usize {
        self.spans
            .iter()
            .filter(|span| span.error.is_some())
            .count()
    }

    /// Whether `text` occurs in an id, a name, a service or an attribute's value.
    fn mentions(&self, text: &str) -> bool {
        self.trace_id.contains(text)
            || self.spans.iter().any(|span| {
                let mut values = span.attributes.values();
                span.name.contains(text)
                    || span.service.contains(text)
                    || span.span_id.contains(text)
                    || values.any(|value| plain(value).contains(text))
            })
    }

    fn summary(&self) -> Summary {
        let root = self.root();
        Summary {
            trace_id: self.trace_id.clone(),
            root: root.map(|span| span.name.clone()).unwrap_or_default(),
            root_service: root.map(|span| span.service.clone()).unwrap_or_default(),
            services: self.services().into_iter().map(str::to_owned).collect(),
            start_unix_nanos: self.start_unix_nanos(),
            duration_nanos: self.duration_nanos(),
            spans: self.spans.len(),
            errors: self.errors(),
        }
    }
}

/// A value as a reader wants it: a text without quotes.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// All traces kept.
#[derive(Debug, Default)]
pub(super) struct Store {
    shelf: Mutex<Shelf>,
}

#[derive(Debug, Default)]
struct Shelf {
    traces: HashMap<String, Trace>,
    /// Trace ids, the first come first.
    order: VecDeque<String>,
    services: Vec<String>,
    dropped: u64,
}

impl Store {
    /// Takes one export in; answers how many spans had no usable id.
    pub(super) fn take(&self, batch: Vec<otlp::ResourceSpans>) -> i64 {
        let mut rejected = 0;
        let mut shelf = self.shelf.lock();
        for resource_spans in batch {
            let resource = resource_spans.resource.map(|it| attributes(it.attributes));
            let resource = resource.unwrap_or_default();
            let service = resource
                .get("service.name")
                .map_or("unknown".to_owned(), plain);
            let instance = resource.get("service.instance.id").map(plain);
            shelf.remember(&service);
            for scope_spans in resource_spans.scope_spans {
                let scope = scope_spans
                    .scope
                    .map(|scope| cut(scope.name))
                    .unwrap_or_default();
                for span in scope_spans.spans {
                    if span.trace_id.len() != 16 || span.span_id.len() != 8 {
                        rejected += 1;
                        continue;
                    }
                    let trace_id = hex::encode(&span.trace_id);
                    shelf.put(trace_id, convert(span, &service, instance.as_ref(), &scope));
                }
            }
        }
        rejected
    }

    pub(super) fn trace(&self, trace_id: &str) -> Option<Trace> {
        let shelf = self.shelf.lock();
        let mut trace = shelf.traces.get(trace_id)?.clone();
        trace
            .spans
            .sort_by_key(|span| (span.start_unix_nanos, span.end_unix_nanos));
        let links_here = |other: &Trace| {
            let mut links = other.spans.iter().flat_map(|span| &span.links);
            other.trace_id != trace_id && links.any(|link| link.trace_id == trace_id)
        };
        let others = shelf.order.iter().filter_map(|id| shelf.traces.get(id));
        trace.linked_from = others
            .filter(|other| links_here(other))
            .map(|other| other.trace_id.clone())
            .collect();
        Some(trace)
    }

    /// The traces that mention `text`, the last come first.
    pub(super) fn summaries(&self, text: &str) -> Vec<Summary> {
        let text = text.trim();
        let shelf = self.shelf.lock();
        let traces = shelf
            .order
            .iter()
            .rev()
            .filter_map(|id| shelf.traces.get(id));
        let traces = traces.filter(|trace| text.is_empty() || trace.mentions(text));
        traces.map(Trace::summary).collect()
    }

    /// Services in the order of their appearance.
    pub(super) fn services(&self) -> Vec<String> {
        self.shelf.lock().services.clone()
    }

    /// Traces that made room for others.
    pub(super) fn dropped(&self) -> u64 {
        self.shelf.lock().dropped
    }
}

impl Shelf {
    fn remember(&mut self, service: &str) {
        if self.services.len() < SERVICES_MAX && !self.services.iter().any(|it| it == service) {
            self.services.push(service.to_owned());
        }
    }

    fn put(&mut self, trace_id: String, span: Span) {
        if !self.traces.contains_key(&trace_id) {
            self.make_room();
            self.order.push_back(trace_id.clone());
        }
        let trace = self
            .traces
            .entry(trace_id.clone())
            .or_insert_with(|| Trace {
                trace_id,
                spans: Vec::new(),
                spans_dropped: 0,
                linked_from: Vec::new(),
            });
        // An exporter that saw no answer sends its batch again.
        if let Some(known) = trace
            .spans
            .iter_mut()
            .find(|known| known.span_id == span.span_id)
        {
            *known = span;
        } else if trace.spans.len() < SPANS_PER_TRACE_MAX {
            trace.spans.push(span);
        } else {
            trace.spans_dropped += 1;
        }
    }

    fn make_room(&mut self) {
        while self.order.len() >= TRACES_MAX {
            let Some(oldest) = self.order.pop_front() else {
                return;
            };
            self.traces.remove(&oldest);
            self.dropped += 1;
        }
    }
}

fn convert(span: otlp::Span, service: &str, instance: Option<&String>, scope: &str) -> Span {
    let kind = match span.kind() {
        otlp::span::SpanKind::Unspecified => "unspecified",
        otlp::span::SpanKind::Internal => "internal",
        otlp::span::SpanKind::Server => "server",
        otlp::span::SpanKind::Client => "client",
        otlp::span::SpanKind::Producer => "producer",
        otlp::span::SpanKind::Consumer => "consumer",
    };
    let failed = span
        .status
        .filter(|status| status.code() == StatusCode::Error);
    let events = span
        .events
        .into_iter()
        .take(PARTS_PER_SPAN_MAX)
        .map(|event| Event {
            name: cut(event.name),
            unix_nanos: event.time_unix_nano,
            attributes: attributes(event.attributes),
        });
    let links = span
        .links
        .into_iter()
        .take(PARTS_PER_SPAN_MAX)
        .map(|link| Link {
            trace_id: hex::encode(link.trace_id),
            span_id: hex::encode(link.span_id),
            attributes: attributes(link.attributes),
        });
    Span {
        span_id: hex::encode(&span.span_id),
        parent_span_id: (!span.parent_span_id.is_empty())
            .then(|| hex::encode(&span.parent_span_id)),
        name: cut(span.name),
        kind,
        service: service.to_owned(),
        instance: instance.cloned(),
        scope: scope.to_owned(),
        start_unix_nanos: span.start_time_unix_nano,
        end_unix_nanos: span.end_time_unix_nano,
        attributes: attributes(span.attributes),
        events: events.collect(),
        links: links.collect(),
        error: failed.map(|status| cut(status.message)),
    }
}

fn attributes(pairs: Vec<KeyValue>) -> Map<String, Value> {
    let pairs = pairs.into_iter().take(PARTS_PER_SPAN_MAX);
    pairs
        .map(|pair| (cut(pair.key), value(pair.value, VALUE_DEPTH_MAX)))
        .collect()
}

/// Keeps the type where JSON has it; bytes become hex digits.
fn value(any: Option<AnyValue>, depth: usize) -> Value {
    let Some(any) = any.and_then(|any| any.value) else {
        return Value::Null;
    };
    match any {
        OtlpValue::StringValue(text) => Value::String(cut(text)),
        OtlpValue::BoolValue(flag) => Value::Bool(flag),
        OtlpValue::IntValue(number) => Value::from(number),
        OtlpValue::DoubleValue(number) => Value::from(number),
        OtlpValue::BytesValue(bytes) => Value::String(cut(hex::encode(bytes))),
        OtlpValue::ArrayValue(_) | OtlpValue::KvlistValue(_) if depth == 0 => Value::Null,
        OtlpValue::ArrayValue(array) => {
            let items = array.values.into_iter().take(PARTS_PER_SPAN_MAX);
            items.map(|item| value(Some(item), depth - 1)).collect()
        }
        OtlpValue::KvlistValue(list) => {
            let pairs = list.values.into_iter().take(PARTS_PER_SPAN_MAX);
            let pairs = pairs.map(|pair| (cut(pair.key), value(pair.value, depth - 1)));
            Value::Object(pairs.collect())
        }
        // Only profiles refer to a table of strings.
        OtlpValue::StringValueStrindex(_) => Value::Null,
    }
}

/// Shortens a text that is longer than a viewer needs.
fn cut(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        text.push('…');
    }
    text
}
