//! Usage in, recalls out.

mod recall;
mod settler;

pub(crate) use recall::Recall;
pub(crate) use settler::Settler;
