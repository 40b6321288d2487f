//! Traces: W3C context in, spans out by OTLP.
//!
//! Whether a call is sampled is decided at the edge before any span exists; everywhere else a
//! span is made only under a sampled parent. Messaging attributes follow the semantic conventions
//! of OpenTelemetry 1.3x (still "development" for messaging), their names stand here only.

use std::{fmt::Write as _, sync::Arc, time::SystemTime};

use opentelemetry::{
    Context, KeyValue,
    trace::{
        FutureExt as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt,
        TraceFlags, TraceId, TraceState, Tracer as _, TracerProvider as _,
    },
};
use opentelemetry_sdk::{
    Resource,
    trace::{
        Sampler, SdkTracer, SdkTracerProvider, SpanProcessor,
        span_processor_with_async_runtime::BatchSpanProcessor,
    },
};

use crate::config::Variables;

pub use opentelemetry::trace::SpanKind as Kind;

/// Name of the header and of the metadata entry.
pub const TRACEPARENT: &str = "traceparent";

/// What the environment says about traces.
#[derive(Clone, Debug)]
pub struct Settings {
    enabled: bool,
    propagate: bool,
    ratio: f64,
    trust_parent: bool,
    http: bool,
}

impl Settings {
    /// Reads the standard variables that the SDK itself does not honour, and those that decide
    /// here. `OTEL_EXPORTER_OTLP_*`, `OTEL_RESOURCE_ATTRIBUTES` and `OTEL_BSP_*` are read by the
    /// SDK.
    pub(crate) fn read(variables: &mut Variables) -> Self {
        let disabled = variables.flag("OTEL_SDK_DISABLED", false, "true: no traces at all");
        let endpoint = variables.optional(
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "where spans go, e.g. http://localhost:4317",
        );
        let traces = variables.optional(
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "where spans go, instead of OTEL_EXPORTER_OTLP_ENDPOINT",
        );
        let protocol = variables.parsed(
            "OTEL_EXPORTER_OTLP_PROTOCOL",
            "grpc",
            "grpc or http/protobuf",
            |text| match text {
                "grpc" => Ok(false),
                "http/protobuf" => Ok(true),
                _ => Err("must be `grpc` or `http/protobuf`".to_owned()),
            },
        );
        let propagators = variables.text(
            "OTEL_PROPAGATORS",
            "tracecontext",
            "list; only tracecontext is understood, none switches propagation off",
        );
        let sampler = variables.text(
            "OTEL_TRACES_SAMPLER",
            "parentbased_traceidratio",
            "always_on, always_off, traceidratio, or these behind parentbased_",
        );
        let argument = variables.parsed(
            "OTEL_TRACES_SAMPLER_ARG",
            "0.01",
            "share of calls that are sampled, 0–1",
            |text| match text.parse::<f64>() {
                Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
                _ => Err("must be a number from 0 to 1".to_owned()),
            },
        );
        let base = sampler.strip_prefix("parentbased_");
        let ratio = match base.unwrap_or(&sampler) {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => argument.unwrap_or(0.0),
            _ => {
                variables.problem(format!("OTEL_TRACES_SAMPLER: `{sampler}` is not a sampler"));
                0.0
            }
        };
        Self {
            enabled: !disabled && (endpoint.is_some() || traces.is_some()),
            propagate: propagators
                .split(',')
                .any(|name| name.trim() == "tracecontext"),
            ratio,
            trust_parent: base.is_some(),
            http: protocol.unwrap_or(false),
        }
    }
}

/// Makes the spans of one service.
#[derive(Clone, Debug)]
pub struct Tracer {
    inner: Option<Arc<Inner>>,
    settings: Settings,
}

#[derive(Debug)]
struct Inner {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Tracer {
    /// Makes no span, and carries no context.
    #[must_use]
    pub fn none() -> Self {
        let settings = Settings {
            enabled: false,
            propagate: false,
            ratio: 0.0,
            trust_parent: false,
            http: false,
        };
        Self {
            inner: None,
            settings,
        }
    }

    /// Makes a span of every call, for who looks at them without an exporter.
    #[must_use]
    pub fn observed(processor: impl SpanProcessor + 'static) -> Self {
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .build();
        let tracer = provider.tracer("tollgate");
        Self {
            inner: Some(Arc::new(Inner { provider, tracer })),
            settings: Settings {
                enabled: true,
                propagate: true,
                ratio: 1.0,
                trust_parent: false,
                http: false,
            },
        }
    }

    /// Builds the exporter of a service. Needs a tokio runtime.
    ///
    /// # Errors
    /// The exporter's variables are malformed.
    pub(crate) fn start(settings: &Settings, service: &'static str) -> anyhow::Result<Self> {
        if !settings.enabled {
            return Ok(Self {
                inner: None,
                settings: settings.clone(),
            });
        }
        let builder = opentelemetry_otlp::SpanExporter::builder();
        let exporter = if settings.http {
            builder.with_http().build()?
        } else {
            builder.with_tonic().build()?
        };
        let processor =
            BatchSpanProcessor::builder(exporter, opentelemetry_sdk::runtime::Tokio).build();
        let resource = Resource::builder()
            .with_attributes([
                KeyValue::new("service.namespace", "tollgate"),
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            ])
            .with_service_name(service)
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOn)))
            .with_resource(resource)
            .build();
        let tracer = provider.tracer("tollgate");
        let inner = Some(Arc::new(Inner { provider, tracer }));
        Ok(Self {
            inner,
            settings: settings.clone(),
        })
    }

    /// Decides whether a call without a sampled parent begins a trace; `dice` is uniform.
    #[must_use]
    pub fn samples(&self, parent: Option<&SpanContext>, dice: u32) -> bool {
        if self.inner.is_none() {
            return false;
        }
        if let Some(parent) = parent.filter(|_| self.settings.trust_parent) {
            return parent.is_sampled();
        }
        f64::from(dice) < self.settings.ratio * (f64::from(u32::MAX) + 1.0)
    }

    /// A span of a call that is sampled, under `parent` when there is one.
    #[must_use]
    pub fn root(&self, name: String, kind: SpanKind, parent: Option<SpanContext>) -> Span {
        let Some(inner) = &self.inner else {
            return Span::none();
        };
        let context = match parent {
            // The caller's own flag may say no; ours has said yes.
            Some(parent) => Context::new().with_remote_span_context(SpanContext::new(
                parent.trace_id(),
                parent.span_id(),
                TraceFlags::SAMPLED,
                true,
                TraceState::default(),
            )),
            None => Context::new(),
        };
        let builder = SpanBuilder::from_name(name).with_kind(kind);
        let span = inner.tracer.build_with_context(builder, &context);
        Span(Some(Context::new().with_span(span)))
    }

    /// A span under a sampled parent; nothing under any other.
    #[must_use]
    pub fn child(&self, name: impl Into<String>, kind: SpanKind, parent: &Context) -> Span {
        self.child_from(name, kind, parent, None)
    }

    /// As [`Tracer::child`], begun at a moment in the past.
    #[must_use]
    pub fn child_from(
        &self,
        name: impl Into<String>,
        kind: SpanKind,
        parent: &Context,
        start: Option<SystemTime>,
    ) -> Span {
        let Some(inner) = &self.inner else {
            return Span::none();
        };
        if !parent.span().span_context().is_sampled() {
            return Span::none();
        }
        let mut builder = SpanBuilder::from_name(name.into()).with_kind(kind);
        if let Some(start) = start {
            builder = builder.with_start_time(start);
        }
        let span = inner.tracer.build_with_context(builder, parent);
        Span(Some(parent.with_span(span)))
    }

    /// Whether context is written into outgoing headers.
    #[must_use]
    pub fn propagates(&self) -> bool {
        self.settings.propagate
    }

    /// Sends what is buffered. Blocks up to the exporter's time-out.
    pub(crate) fn stop(&self) {
        if let Some(inner) = &self.inner
            && let Err(error) = inner.provider.shutdown()
        {
            tracing::warn!(%error, "the last spans were not exported");
        }
    }
}

/// A span, or nothing when the call is not sampled. Ends when dropped.
#[derive(Debug)]
pub struct Span(Option<Context>);

impl Span {
    /// Nothing.
    #[must_use]
    pub const fn none() -> Self {
        Self(None)
    }

    /// True when there is a span.
    #[must_use]
    pub const fn is_some(&self) -> bool {
        self.0.is_some()
    }

    /// The context to make children under; an empty one when there is no span.
    #[must_use]
    pub fn context(&self) -> Context {
        self.0.clone().unwrap_or_default()
    }

    /// Runs a future inside the span, so that the calls it makes are its children.
    pub fn around<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        future.with_context(self.context())
    }

    /// Adds an attribute.
    pub fn set(&self, name: &'static str, value: impl Into<opentelemetry::Value>) {
        if let Some(context) = &self.0 {
            context.span().set_attribute(KeyValue::new(name, value));
        }
    }

    /// Marks the span as failed.
    pub fn fail(&self, description: impl Into<String>) {
        if let Some(context) = &self.0 {
            context.span().set_status(Status::error(description.into()));
        }
    }

    /// The header value that carries this span to others; empty when there is none.
    #[must_use]
    pub fn traceparent(&self) -> String {
        self.0.as_ref().map_or_else(String::new, |context| {
            format_traceparent(context.span().span_context())
        })
    }

    /// 32 hex digits; empty when there is no span.
    #[must_use]
    pub fn trace_id(&self) -> String {
        self.0.as_ref().map_or_else(String::new, |context| {
            context.span().span_context().trace_id().to_string()
        })
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(context) = &self.0 {
            context.span().end();
        }
    }
}

/// Writes a context as W3C `traceparent`; empty for an invalid one.
#[must_use]
pub fn format_traceparent(context: &SpanContext) -> String {
    let mut text = String::new();
    if context.is_valid() {
        let flags = context.trace_flags().to_u8() & 1;
        // Writing into a String cannot fail.
        let written = write!(
            text,
            "00-{}-{}-{flags:02x}",
            context.trace_id(),
            context.span_id()
        );
        debug_assert!(written.is_ok(), "a String takes everything");
    }
    text
}

/// Reads a W3C `traceparent` (<https://www.w3.org/TR/trace-context/>); `None` when malformed.
#[must_use]
pub fn parse_traceparent(text: &str) -> Option<SpanContext> {
    let mut parts = text.trim().split('-');
    let (version, trace, span, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let lower_hex = |part: &str, digits: usize| {
        part.len() == digits
            && part
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let right = lower_hex(version, 2)
        && version != "ff"
        && (version != "00" || parts.next().is_none())
        && lower_hex(trace, 32)
        && lower_hex(span, 16)
        && lower_hex(flags, 2);
    if !right {
        return None;
    }
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()? & 1),
        true,
        TraceState::default(),
    );
    context.is_valid().then_some(context)
}

/// The context a traceparent stands for; an empty one when it is malformed or empty.
#[must_use]
pub fn context_of(traceparent: &str) -> Context {
    match parse_traceparent(traceparent) {
        Some(parent) => Context::new().with_remote_span_context(parent),
        None => Context::new(),
    }
}
