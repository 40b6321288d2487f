//! How large a record of a journal may be, and a message of them. Who writes them and who reads
//! them must agree.

/// Longest record, bytes.
pub const RECORD_BYTES_MAX: usize = 4096;
/// Records of one message.
pub const RECORDS_MAX: usize = 256;
