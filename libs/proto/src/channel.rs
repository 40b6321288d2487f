//! One channel type for a service in this process and for one elsewhere.

use tower::util::BoxCloneSyncService;

/// What went wrong below gRPC.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What a channel answers when it fails below gRPC. A type of its own, because futures that hold
/// a client around a bare boxed error are not `Send` in the compiler's eyes.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ChannelError(pub BoxError);

/// Carries gRPC calls to a service, wherever it runs.
pub type Channel = BoxCloneSyncService<
    http::Request<tonic::body::Body>,
    http::Response<tonic::body::Body>,
    ChannelError,
>;
