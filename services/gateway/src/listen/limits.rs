//! Every limit of a connection that no operator needs to change, and what happens beyond it.

use std::time::Duration;

/// Connections waiting to be accepted, per thread.
pub(super) const BACKLOG: i32 = 1024;
/// Longest head of a request, or of its trailers: 431.
pub(super) const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Most fields of a request: 431.
pub(super) const FIELDS_MAX: usize = 100;
/// Longest target of a request: 414.
pub(super) const TARGET_BYTES_MAX: usize = 8 * 1024;
/// What hyper may hold of a connection in either direction. A head fits in with room to spare: it
/// is refused by us, with a problem document.
pub(super) const BUFFER_BYTES_MAX: usize = 32 * 1024;
/// Read at once from a client or an upstream where hyper is not needed: a head and a small body.
pub(super) const READ_BYTES: usize = 16 * 1024;
/// Buffers of that size that a thread keeps.
pub(super) const SPARES_MAX: usize = 64;
/// Read at once from an upstream when more than that is to come: fewer calls of the system for a
/// long body. A call whose client reads slowly holds one such buffer.
pub(super) const BODY_READ_BYTES: usize = 64 * 1024;
/// Buffers of that size that a thread keeps.
pub(super) const BODY_SPARES_MAX: usize = 16;
/// Bytes that the kernel holds unsent for a client. A slow reader has no more of our memory.
pub(super) const UNSENT_BYTES_MAX: u32 = 64 * 1024;

/// Streams a client may have open on one HTTP/2 connection: refused, and asked to come again.
pub(super) const STREAMS_MAX: u32 = 100;
/// Resets of streams not yet answered before an HTTP/2 connection is cut.
pub(super) const RESETS_WAITING_MAX: usize = 50;
/// Streams that a client takes back within a second before its connection is cut (rapid reset).
pub(super) const RESETS_PER_SECOND_MAX: u32 = 100;
/// Streams that a client makes us reset, by frames that have no place in them, before its HTTP/2
/// connection is cut (MadeYouReset, CVE-2025-8671).
pub(super) const RESETS_PROVOKED_MAX: usize = 100;
/// Frames without a use within a second before their connection is cut: settings, pings,
/// priorities, continuations, empty data.
pub(super) const IDLE_FRAMES_PER_SECOND_MAX: u32 = 500;
/// Bytes of bodies that a client may send ahead on one connection, and on one stream.
pub(super) const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
pub(super) const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// Bytes of an answer that wait for a slow client, per stream.
pub(super) const STREAM_SEND_BYTES_MAX: usize = 32 * 1024;
/// Largest frame.
pub(super) const FRAME_BYTES_MAX: u32 = 16 * 1024;
/// A list of fields above this is refused by the protocol itself, with a bare 431; below, by us.
pub(super) const FIELD_LIST_BYTES_MAX: u32 = 32 * 1024;
/// What HTTP/2 adds to a field when it counts (RFC 9113, 6.5.2).
pub(super) const FIELD_OVERHEAD_BYTES: usize = 32;
/// An HTTP/2 client is asked so often whether it is still there, and has so long to say so.
pub(super) const PING_PERIOD: Duration = Duration::from_secs(30);
pub(super) const PING_TIMEOUT: Duration = Duration::from_secs(15);

/// Calls that hyper carries on a connection whose requests had another shape, before the next one
/// is tried without it.
pub(super) const HYPER_CALLS: u32 = 64;

/// Interim answers to one call; more are no hints.
pub(super) const INTERIM_MAX: usize = 16;

/// After the last answer, what a client still sends is thrown away for so long and up to so many
/// bytes: closed at once, it might never read that answer.
pub(super) const FAREWELL: Duration = Duration::from_secs(1);
pub(super) const FAREWELL_BYTES_MAX: usize = 256 * 1024;

/// One descriptor of so many is not for clients' connections, but for those to upstreams, files,
/// stores and the bus.
pub(super) const DESCRIPTORS_PER_RESERVED: u64 = 8;
