//! What the span of a call says.

use std::{
    net::{IpAddr, Ipv4Addr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use http::Method;
use opentelemetry::Context;
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{Span, SpanData, SpanProcessor},
};
use parking_lot::Mutex;
use runtime::trace::Tracer;

use super::rig::{self, Rig};
use crate::{
    edge::{self, CallId, Told},
    listen::Peer,
};

/// Keeps what has ended.
#[derive(Clone, Debug, Default)]
struct Ended(Arc<Mutex<Vec<SpanData>>>);

impl SpanProcessor for Ended {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        self.0.lock().push(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

#[tokio::test]
async fn a_span_says_by_which_scheme_its_call_came() {
    let (host, config) = rig::host(&[]).await;
    let mut rig = Rig::new(&host, &config).await;
    let ended = Ended::default();
    let worker = Rc::get_mut(&mut rig.worker).expect("nobody serves yet");
    let edge = Arc::get_mut(&mut worker.edge).expect("nobody else has it");
    edge.tracer = Tracer::observed(ended.clone());
    let edge = &worker.edge;
    let client = IpAddr::V4(Ipv4Addr::LOCALHOST);
    for (is_secure, scheme) in [(false, "http"), (true, "https")] {
        let told = Told {
            method: &Method::GET,
            path: "/api/v1/echo/a",
            user_agent: None,
            traceparent: None,
            request_id: None,
            client,
        };
        let peer = Peer {
            address: client,
            is_secure,
        };
        let id = CallId::new(&edge.ids);
        drop(edge::facts(
            edge,
            peer,
            &told,
            id,
            (0, edge.clock.now()),
            ("echo", "/a"),
        ));
        let span = ended.0.lock().pop().expect("it has ended");
        let said = |name: &str| {
            let mut all = span.attributes.iter();
            let found = all.find(|it| it.key.as_str() == name);
            found.map(|it| it.value.to_string())
        };
        assert_eq!(said("url.scheme").as_deref(), Some(scheme));
        assert_eq!(said("url.path").as_deref(), Some("/api/v1/echo/a"));
    }
}
