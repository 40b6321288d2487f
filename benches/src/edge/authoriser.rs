//! Says yes to Envoy's `ext_authz` over gRPC: an empty `CheckResponse` means that a call may pass.

use std::{convert::Infallible, net::Ipv4Addr};

use bytes::Bytes;
use clap::Args;
use http::{HeaderMap, HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body_util::{BodyExt as _, Full, combinators::WithTrailers};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

/// Where it listens.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Port on loopback.
    #[arg(long)]
    port: u16,
}

type Trailers = std::future::Ready<Option<Result<HeaderMap, Infallible>>>;

/// Answers until killed.
pub(crate) fn serve(arguments: &Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let port = arguments.port;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let served = http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service_fn(allow));
            tokio::task::spawn_local(async move { drop(served.await) });
        }
    })
}

async fn allow(
    request: Request<Incoming>,
) -> Result<Response<WithTrailers<Full<Bytes>, Trailers>>, Infallible> {
    // What was asked does not matter, but it must have been heard.
    drop(request.into_body().collect().await);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    // Not compressed, of no bytes.
    let message = Full::new(Bytes::from_static(&[0; 5]));
    let body = message.with_trailers(std::future::ready(Some(Ok(trailers))));
    let mut response = Response::new(body);
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, grpc);
    Ok(response)
}
