//! What wraps every gRPC call: credentials, deadline and trace context, on both ends.

use std::{
    convert::Infallible,
    fmt,
    net::IpAddr,
    sync::Arc,
    task::{Context as TaskContext, Poll},
    time::Duration,
};

use http::{Request, Response};
use opentelemetry::{
    Context,
    trace::{FutureExt as _, TraceContextExt},
};
use proto::{
    channel::{BoxError, Channel, ChannelError},
    convert::status,
};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::watch;
use tonic::{
    Status,
    body::Body,
    service::Routes,
    transport::{Endpoint, server::TcpConnectInfo},
};
use tower::{Service, util::BoxCloneSyncService};
use types::{Code, UserId};

use crate::{
    config::same_secret,
    trace::{self, Kind, Span, TRACEPARENT, Tracer},
};

/// A call without a deadline of its own gets this one.
const DEADLINE_DEFAULT: Duration = Duration::from_secs(15);
/// No deadline is longer.
const DEADLINE_MAX: Duration = Duration::from_secs(300);
/// Who acts, in a management call.
const ACTOR: &str = "tollgate-actor";
/// Where who acts is, in a management call.
const CLIENT_ADDRESS: &str = "tollgate-client-address";
/// Services that people's requests come in by: they hold the operator token for them.
pub(crate) const ACTS_FOR_OTHERS: [&str; 1] = ["portal"];

/// On whose behalf a management call is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Actor {
    /// The platform's own people and programs.
    Operator,
    /// A user.
    User(UserId),
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator => f.write_str("operator"),
            Self::User(user) => fmt::Display::fmt(user, f),
        }
    }
}

/// Who acts, as the host's layer found it.
#[must_use]
pub fn actor<T>(request: &tonic::Request<T>) -> Actor {
    request
        .extensions()
        .get::<Actor>()
        .copied()
        .unwrap_or(Actor::Operator)
}

#[derive(Clone, Copy)]
struct Patience(Duration);

/// How long the caller of a request waits for its answer, as it said.
#[must_use]
pub fn patience<T>(request: &tonic::Request<T>) -> Duration {
    let told = request.extensions().get::<Patience>();
    told.map_or(DEADLINE_DEFAULT, |told| told.0)
}

tokio::task_local! {
    /// Where the call comes from that this task answers.
    static CALLED_FROM: Option<IpAddr>;
}

/// Where the call comes from that is being answered: the address that whoever acts for others has
/// seen, else the peer's. `None` for what this process does by itself.
///
/// Bound to the call and not handed from function to function, so that no entry of an audit log
/// can forget it. Nothing may be decided by it.
#[must_use]
pub fn client_address() -> Option<IpAddr> {
    CALLED_FROM.try_with(|address| *address).unwrap_or_default()
}

/// The two credentials of calls between processes.
#[derive(Clone)]
pub(crate) struct Tokens {
    pub(crate) service: SecretString,
    pub(crate) operator: SecretString,
}

/// Methods that the service token may call, as `/package.Service/Method`.
pub(crate) type ServiceMethods = Arc<std::collections::BTreeSet<String>>;

/// Checks and wraps every call a process answers, local or remote.
#[derive(Clone)]
pub(crate) struct Guard {
    routes: Routes,
    tokens: Tokens,
    service_methods: ServiceMethods,
    tracers: Arc<std::collections::BTreeMap<String, Tracer>>,
}

impl Guard {
    pub(crate) fn new(
        routes: Routes,
        tokens: Tokens,
        service_methods: ServiceMethods,
        tracers: Arc<std::collections::BTreeMap<String, Tracer>>,
    ) -> Self {
        Self {
            routes,
            tokens,
            service_methods,
            tracers,
        }
    }

    /// Health and reflection are open; the rest needs a token that may call the method. Who acts,
    /// and from where.
    fn admit<B>(&self, request: &Request<B>) -> Result<(Actor, Option<IpAddr>), Box<Status>> {
        let path = request.uri().path();
        let peer = peer(request);
        if path.starts_with("/grpc.health.") || path.starts_with("/grpc.reflection.") {
            return Ok((Actor::Operator, peer));
        }
        let refuse = |text: &str| Err(Box::new(status(Code::Unauthenticated, text)));
        let given = request
            .headers()
            .get(http::header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "));
        let Some(given) = given else {
            return refuse("the call has no `authorization: Bearer …` metadata");
        };
        let operator = same_secret(given, &self.tokens.operator);
        if !operator && !same_secret(given, &self.tokens.service) {
            return refuse("the token is neither the operator's nor the services'");
        }
        if !operator && !self.service_methods.contains(path) {
            let text = format!("{path} needs the operator token");
            return Err(Box::new(status(Code::Forbidden, text)));
        }
        let text = |name| match request.headers().get(name) {
            None => Some(""),
            Some(value) => value.to_str().ok(),
        };
        let actor = match text(ACTOR) {
            Some("" | "operator") => Some(Actor::Operator),
            Some(user) => user.parse().ok().map(Actor::User),
            None => None,
        };
        let Some(actor) = actor else {
            return refuse("`tollgate-actor` must be `operator` or `usr_…`");
        };
        match text(CLIENT_ADDRESS) {
            Some("") => Ok((actor, peer)),
            // The services' token acts for nobody else.
            Some(_) if !operator => Ok((actor, peer)),
            Some(address) => match address.parse::<IpAddr>() {
                Ok(address) => Ok((actor, Some(address.to_canonical()))),
                Err(_) => refuse("`tollgate-client-address` must be an IP address"),
            },
            None => refuse("`tollgate-client-address` must be an IP address"),
        }
    }

    fn span(&self, path: &str, parent: &Context) -> Span {
        let (service, method) = split(path);
        let name = service
            .split('.')
            .nth(1)
            .unwrap_or_default()
            .replace('_', "-");
        let Some(tracer) = self.tracers.get(&name) else {
            return Span::none();
        };
        let span = tracer.child(path.trim_start_matches('/'), Kind::Server, parent);
        describe(&span, service, method);
        span
    }
}

/// The far end of the connection; a call from this process has none.
fn peer<B>(request: &Request<B>) -> Option<IpAddr> {
    let connection = request.extensions().get::<TcpConnectInfo>()?;
    Some(connection.remote_addr()?.ip().to_canonical())
}

fn split(path: &str) -> (&str, &str) {
    path.trim_start_matches('/')
        .split_once('/')
        .unwrap_or((path, ""))
}

fn describe(span: &Span, service: &str, method: &str) {
    span.set("rpc.system", "grpc");
    span.set("rpc.service", service.to_owned());
    span.set("rpc.method", method.to_owned());
}

/// Notes the outcome: trailers-only answers carry it in the headers, the others in trailers.
fn outcome<B>(span: &Span, response: &Response<B>) {
    let code = response
        .headers()
        .get("grpc-status")
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse::<i64>().ok())
        .unwrap_or(0);
    span.set("rpc.grpc.status_code", code);
    if code != 0 {
        span.fail(format!("grpc status {code}"));
    }
}

/// Reads `grpc-timeout`: up to eight digits and a unit.
fn deadline(headers: &http::HeaderMap) -> Duration {
    let parse = || {
        let text = headers.get("grpc-timeout")?.to_str().ok()?;
        let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let amount: u64 = digits.parse().ok()?;
        Some(match unit {
            "H" => Duration::from_secs(amount.saturating_mul(3600)),
            "M" => Duration::from_secs(amount.saturating_mul(60)),
            "S" => Duration::from_secs(amount),
            "m" => Duration::from_millis(amount),
            "u" => Duration::from_micros(amount),
            "n" => Duration::from_nanos(amount),
            _ => return None,
        })
    };
    parse().unwrap_or(DEADLINE_DEFAULT).min(DEADLINE_MAX)
}

impl<B> Service<Request<B>> for Guard
where
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future =
        std::pin::Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(())) // an axum router is always ready
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let mut request = request.map(Body::new);
        let (actor, address) = match self.admit(&request) {
            Ok(admitted) => admitted,
            Err(refusal) => return Box::pin(async move { Ok(refusal.into_http()) }),
        };
        request.extensions_mut().insert(actor);
        let limit = deadline(request.headers());
        request.extensions_mut().insert(Patience(limit));
        let parent = request
            .headers()
            .get(TRACEPARENT)
            .and_then(|value| value.to_str().ok())
            .map_or_else(Context::new, trace::context_of);
        let span = self.span(request.uri().path(), &parent);
        let call = self.routes.call(request).with_context(span.context());
        let call = CALLED_FROM.scope(address, call);
        Box::pin(async move {
            let response = match tokio::time::timeout(limit, call).await {
                Ok(Ok(response)) => response,
                Ok(Err(never)) => match never {},
                Err(_) => Status::deadline_exceeded("the deadline has passed").into_http(),
            };
            outcome(&span, &response);
            Ok(response)
        })
    }
}

/// The far end of a channel.
#[derive(Clone)]
enum Far {
    /// In this process; set once all services have started.
    Local(watch::Receiver<Option<Guard>>),
    /// Over the network.
    Remote(tonic::transport::Channel),
}

/// Adds credentials, deadline and trace context to what a service calls.
#[derive(Clone)]
struct Caller {
    far: Far,
    bearer: http::HeaderValue,
    tracer: Tracer,
}

impl Service<Request<Body>> for Caller {
    type Response = Response<Body>;
    type Error = ChannelError;
    type Future =
        std::pin::Pin<Box<dyn Future<Output = Result<Response<Body>, ChannelError>> + Send>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), ChannelError>> {
        Poll::Ready(Ok(())) // waited for within the call, so that its deadline covers it
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let parent = Context::current();
        let path = request.uri().path().to_owned();
        let span = self
            .tracer
            .child(path.trim_start_matches('/'), Kind::Client, &parent);
        let (service, method) = split(&path);
        describe(&span, service, method);
        let headers = request.headers_mut();
        headers.insert(http::header::AUTHORIZATION, self.bearer.clone());
        let carried = if span.is_some() {
            span.traceparent()
        } else {
            parent_of(&parent)
        };
        if self.tracer.propagates()
            && let Ok(value) = http::HeaderValue::from_str(&carried)
            && !value.is_empty()
        {
            headers.insert(TRACEPARENT, value);
        }
        let limit = deadline(headers);
        let far = self.far.clone();
        Box::pin(async move {
            let call = async move {
                match far {
                    Far::Local(mut ready) => {
                        let found = ready.wait_for(Option::is_some).await?.clone();
                        let Some(mut guard) = found else {
                            return Err("no services".into());
                        };
                        Ok(guard
                            .call(request)
                            .await
                            .unwrap_or_else(|never| match never {}))
                    }
                    Far::Remote(mut channel) => {
                        std::future::poll_fn(|task| channel.poll_ready(task)).await?;
                        Ok::<_, BoxError>(channel.call(request).await?)
                    }
                }
            };
            match tokio::time::timeout(limit, call).await {
                Ok(Ok(response)) => {
                    outcome(&span, &response);
                    Ok(response)
                }
                Ok(Err(error)) => {
                    span.fail(error.to_string());
                    Err(ChannelError(error))
                }
                Err(_) => Ok(Status::deadline_exceeded("the deadline has passed").into_http()),
            }
        })
    }
}

fn parent_of(context: &Context) -> String {
    trace::format_traceparent(context.span().span_context())
}

fn bearer(token: &SecretString) -> anyhow::Result<http::HeaderValue> {
    let mut value = http::HeaderValue::from_str(&format!("Bearer {}", token.expose_secret()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// A channel to a service in this process.
pub(crate) fn local(
    guard: watch::Receiver<Option<Guard>>,
    token: &SecretString,
    tracer: Tracer,
) -> anyhow::Result<Channel> {
    let caller = Caller {
        far: Far::Local(guard),
        bearer: bearer(token)?,
        tracer,
    };
    Ok(BoxCloneSyncService::new(caller))
}

/// A channel to a service elsewhere; connects when first used, and again after a loss.
pub(crate) fn remote(url: &str, token: &SecretString, tracer: Tracer) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(url.to_owned())?
        .connect_timeout(Duration::from_secs(2))
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true)
        .tcp_nodelay(true);
    let far = Far::Remote(endpoint.connect_lazy());
    let caller = Caller {
        far,
        bearer: bearer(token)?,
        tracer,
    };
    Ok(BoxCloneSyncService::new(caller))
}

/// A channel for a program that is no service, such as the CLI.
///
/// # Errors
/// The URL or the token is malformed.
pub fn client(url: &str, token: &SecretString) -> anyhow::Result<Channel> {
    remote(url, token, Tracer::none())
}
