//! One channel type for a service in this process and for one elsewhere.

use tower::util::BoxCloneSyncService;

/// What a channel answers when it fails below gRPC.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Carries gRPC calls to a service, wherever it runs.
pub type Channel = BoxCloneSyncService<
    http::Request<tonic::body::Body>,
    http::Response<tonic::body::Body>,
    BoxError,
>;
