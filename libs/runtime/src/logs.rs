//! One JSON object a line on standard error.

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// Starts logging. `directives` as in `RUST_LOG`; `pretty` writes for a person instead of JSON.
///
/// # Errors
/// The directives do not parse, or logging was started before.
pub(crate) fn start(directives: &str, pretty: bool) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(directives)?;
    let registry = tracing_subscriber::registry().with(filter);
    if pretty {
        registry
            .with(fmt::layer().with_writer(std::io::stderr))
            .try_init()?;
    } else {
        registry
            .with(
                fmt::layer()
                    .json()
                    .flatten_event(true)
                    .with_writer(std::io::stderr),
            )
            .try_init()?;
    }
    Ok(())
}
