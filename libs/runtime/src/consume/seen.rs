//! What people see of a consumer: spans, lag, and lost records.

use opentelemetry::trace::TraceContextExt;
use proto::events::v1::RecordKind;

use super::{Apply, Delivery};
use crate::{
    host::Host,
    inbox::{self, Lost},
    trace::{self, Kind},
};

/// Says loudly that records are gone.
pub(super) fn lament(host: &Host, lost: &[Lost]) {
    for gap in lost {
        let records = gap.below.saturating_sub(gap.from);
        tracing::error!(
            consumer = host.name(),
            journal.id = %gap.journal,
            from = gap.from,
            below = gap.below,
            records,
            cause = inbox::cause(gap.cause),
            "records of a journal are lost for good and were noted as a gap"
        );
        host.shared.usage.gap_records(host.name(), records);
    }
}

/// One span under each sampled call: the processing of its message, and in it the database's part.
pub(super) fn trace_batch<A: Apply>(
    host: &Host,
    fresh: &[Delivery],
    started: std::time::SystemTime,
) {
    let tracer = host.tracer();
    for delivery in fresh {
        for record in &delivery.records {
            let Some(call) = record
                .call
                .as_ref()
                .filter(|call| !call.traceparent.is_empty())
            else {
                continue;
            };
            let parent = trace::context_of(&call.traceparent);
            if !parent.span().span_context().is_sampled() {
                continue;
            }
            let name = "process usage.v1";
            let span = tracer.child_from(name, Kind::Consumer, &parent, Some(started));
            span.set("messaging.system", "nats");
            span.set("messaging.operation.type", "process");
            span.set(
                "messaging.destination.name",
                format!("usage.v1.{}", delivery.journal),
            );
            span.set("messaging.consumer.group.name", host.name());
            let context = span.context();
            let store = tracer.child_from(A::OPERATION, Kind::Client, &context, Some(started));
            store.set("db.system.name", "postgresql");
            store.set("db.namespace", A::SCHEMA);
            store.set(
                "db.operation.batch.size",
                i64::try_from(fresh.len()).unwrap_or(i64::MAX),
            );
        }
    }
}

/// Notes how old the newest call of the batch was when its effect became durable.
pub(super) fn lag(host: &Host, fresh: &[Delivery]) {
    let now = host.clock().now().as_microsecond();
    for delivery in fresh {
        let call = i32::from(RecordKind::Call);
        if let Some(last) = delivery.records.iter().rfind(|record| record.kind == call) {
            let micros = u32::try_from(now.saturating_sub(last.at_unix_micros)).unwrap_or(u32::MAX);
            host.shared.usage.lag(host.name(), f64::from(micros) / 1e6);
        }
    }
}
