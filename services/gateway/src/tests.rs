//! What needs several modules at once: decisions as tables, and calls from end to end.

mod costs;
mod flow;
mod lent;
mod places;
mod power;
mod priced;
pub(crate) mod rig;
pub(crate) mod secure;
mod strangers;
mod tables;
mod throttle;
mod traced;
mod tunnels;
mod upstreams;
mod wire;
