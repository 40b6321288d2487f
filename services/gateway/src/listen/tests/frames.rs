//! HTTP/2 by hand: frames that no library would send.

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use super::Client;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;
pub(super) const END_STREAM: u8 = 1;
pub(super) const ACK: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame as it came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) content: Vec<u8>,
}

impl Frame {
    /// The status of an answer's head, if it is one that the table of RFC 7541 has.
    pub(super) fn status(&self) -> u16 {
        assert_eq!(self.kind, HEADERS);
        match self.content.first() {
            Some(0x88) => 200,
            Some(0x8c) => 400,
            Some(0x8d) => 404,
            Some(0x8e) => 500,
            other => panic!("a status of its own, or no head: {other:?}"),
        }
    }
}

pub(super) fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).expect("short").to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(content);
    bytes
}

/// What a client says first; `settings` are pairs of an id and a value.
pub(super) fn hello(settings: &[(u16, u32)]) -> Vec<u8> {
    let mut content = Vec::new();
    for (id, value) in settings {
        content.extend(id.to_be_bytes());
        content.extend(value.to_be_bytes());
    }
    [PREFACE, &frame(SETTINGS, 0, 0, &content)].concat()
}

/// A list of fields, none of them compressed or remembered.
pub(super) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0x10);
        for text in [name, value] {
            let length = text.len();
            if length < 127 {
                bytes.push(u8::try_from(length).expect("short"));
            } else {
                bytes.push(127);
                let mut left = length - 127;
                while left >= 128 {
                    bytes.push(u8::try_from(left % 128 + 128).expect("a byte"));
                    left /= 128;
                }
                bytes.push(u8::try_from(left).expect("a byte"));
            }
            bytes.extend_from_slice(text.as_bytes());
        }
    }
    bytes
}

/// The fields of a request with this key.
pub(super) fn request<'a>(
    method: &'a str,
    path: &'a str,
    key: &'a str,
    more: &[(&'a str, &'a str)],
) -> Vec<u8> {
    let mut fields = vec![
        (":method", method),
        (":scheme", "http"),
        (":authority", "edge"),
        (":path", path),
        ("x-api-key", key),
    ];
    fields.extend_from_slice(more);
    block(&fields)
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// The next frame, or `None` at the end.
    pub(super) async fn frame(&mut self) -> Option<Frame> {
        let frame = self.any_frame().await?;
        if frame.kind == PING && frame.flags & ACK == 0 {
            // It may be the last thing the gateway wants to know.
            let answer = self::frame(PING, ACK, 0, &frame.content);
            drop(self.stream.write_all(&answer).await);
        }
        Some(frame)
    }

    async fn any_frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(header) = self.got().first_chunk::<9>() {
                let [a, b, c, kind, flags, stream @ ..] = *header;
                let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).expect("short");
                if let Some(content) = self.got().get(9..9 + length) {
                    let frame = Frame {
                        kind,
                        flags,
                        stream: u32::from_be_bytes(stream),
                        content: content.to_vec(),
                    };
                    self.drop_front(9 + length);
                    return Some(frame);
                }
            }
            if !self.more().await {
                return None;
            }
        }
    }

    /// The first frame that is wanted; `None` if the connection ends before.
    pub(super) async fn frame_that(&mut self, wanted: impl Fn(&Frame) -> bool) -> Option<Frame> {
        loop {
            let frame = self.frame().await?;
            if wanted(&frame) {
                return Some(frame);
            }
        }
    }
}
