//! What is kept of an answer, so that it can be given again. Who keeps it and who sends it there
//! must agree.

/// Longest body of an answer that is kept, bytes. A longer one is not given again.
pub const KEPT_BODY_BYTES_MAX: usize = 256 * 1024;
/// Names and values of the headers that are kept with it, bytes.
pub const KEPT_HEADERS_BYTES_MAX: usize = 8 * 1024;
/// Headers that are kept with it.
pub const KEPT_HEADERS_MAX: usize = 100;
