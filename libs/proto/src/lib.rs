//! The wire: generated messages and services, conversions wire ↔ types, the boxed channel.
//!
//! - The generated code is committed and equals what the `.proto` files say (a test looks).
//! - A conversion from the wire checks everything once; whatever holds the result may trust it.
//! - A local service and a remote one are reached through the same client type.

pub mod channel;
pub mod convert;

#[cfg(test)]
mod tests;

macro_rules! package {
    ($name:ident, $file:literal) => {
        /// Generated from the `.proto` of the same name.
        pub mod $name {
            /// Version 1, the only one.
            pub mod v1 {
                #![allow(
                    clippy::allow_attributes,
                    clippy::allow_attributes_without_reason,
                    clippy::too_many_lines,
                    reason = "generated, and not every package has every one of these"
                )]
                include!(concat!("gen/", $file, ".v1.rs"));
            }
        }
    };
}

package!(events, "tollgate.events");
package!(keys, "tollgate.keys");
package!(wallet, "tollgate.wallet");
package!(usage_ingest, "tollgate.usage_ingest");
package!(stats_aggregator, "tollgate.stats_aggregator");
package!(anomaly_detector, "tollgate.anomaly_detector");
package!(letters, "tollgate.letters");

/// Descriptors of every service, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("gen/descriptors.bin");
