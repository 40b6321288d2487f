//! Usage in, recalls and announcements out.

mod lows;
mod recall;
mod settler;

pub(crate) use lows::Lows;
pub(crate) use recall::Recall;
pub(crate) use settler::Settler;
#[cfg(any(test, feature = "cores"))]
pub(crate) use settler::batch;
