//! Streams of HTTP/2 that ask to become tunnels (RFC 8441).

use std::sync::Arc;

use http::{Method, Request};
use hyper::ext::Protocol;

use super::life::Life;

/// A stream that may become a tunnel, and what it asks for. As long as there is one, its connection
/// is in use.
#[derive(Clone)]
pub(crate) struct Opened {
    protocol: Protocol,
    _held: Arc<Held>,
}

struct Held(Arc<Life>);

impl Drop for Held {
    fn drop(&mut self) {
        let tunnels = &self.0.tunnels;
        tunnels.set(tunnels.get().saturating_sub(1));
    }
}

impl Opened {
    /// Makes a GET of a request that opens one, and leaves this with it.
    pub(super) fn read<B>(request: &mut Request<B>, life: &Arc<Life>) {
        if request.method() != Method::CONNECT {
            return;
        }
        // Without a protocol it is the proxy's CONNECT, which is refused as any that is unknown.
        let Some(protocol) = request.extensions_mut().remove::<Protocol>() else {
            return;
        };
        life.tunnels.add(1);
        *request.method_mut() = Method::GET;
        request.extensions_mut().insert(Self {
            protocol,
            _held: Arc::new(Held(Arc::clone(life))),
        });
    }

    pub(crate) fn protocol(&self) -> &str {
        self.protocol.as_str()
    }
}
