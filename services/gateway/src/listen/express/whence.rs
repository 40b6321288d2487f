//! The fields that tell an upstream where requests come from.

use std::net::IpAddr;

use http::HeaderValue;

use super::super::answer::field;
use crate::proxy::Ours;

/// Room for them as they mostly are.
const BYTES: usize = 256;

/// These fields as they were written last. A connection's requests are mostly of one client, for
/// one upstream by one name: then they are the same.
#[derive(Default)]
pub(super) struct Whence {
    written: Option<Written>,
}

struct Written {
    client: IpAddr,
    authority: HeaderValue,
    host: Box<[u8]>,
    fields: Vec<u8>,
}

impl Whence {
    /// The fields of a request for `host`.
    pub(super) fn fields(&mut self, ours: &Ours<'_>, host: &[u8]) -> &[u8] {
        let (client, authority) = (ours.ticket.facts().client, &ours.service.authority);
        let is_same =
            |it: &Written| it.client == client && it.authority == authority && *it.host == *host;
        let before = self.written.take().filter(is_same);
        let written = before.unwrap_or_else(|| {
            let mut fields = Vec::with_capacity(BYTES);
            ours.say_whence(|name, value| field(&mut fields, name.as_str().as_bytes(), value));
            Written {
                client,
                authority: authority.clone(),
                host: host.into(),
                fields,
            }
        });
        &self.written.insert(written).fields
    }
}
