//! What is read again after a failover, and when that is done: some may not be asked before.

use async_nats::jetstream::stream::Stream;

use crate::{
    host::Host,
    origin::{self, Server},
};

/// Reads up to a number of the stream.
pub(super) struct Arrears {
    schema: &'static str,
    server: Server,
    /// The last message that there was when the subscription began; none: nothing is in arrears.
    last: Option<u64>,
}

impl Arrears {
    /// What an inbox on this server has to read again of the stream. An instance that comes later
    /// reads a little more before it is done.
    pub(super) async fn of(
        host: &Host,
        stream: &Stream,
        schema: &'static str,
        server: &Server,
    ) -> anyhow::Result<Self> {
        let mut connection = host.postgres().acquire().await?;
        let last = match origin::is_behind(&mut connection, schema).await? {
            true => Some(stream.get_info().await?.state.last_sequence),
            false => None,
        };
        Ok(Self {
            schema,
            server: server.clone(),
            last,
        })
    }

    /// Looks whether all of it is answered for, and notes that.
    pub(super) async fn look(&mut self, host: &Host, stream: &Stream) -> anyhow::Result<()> {
        let Some(last) = self.last else {
            return Ok(());
        };
        let consumer = stream.consumer_info(host.name()).await?;
        let is_idle = consumer.num_pending == 0 && consumer.num_ack_pending == 0;
        if consumer.ack_floor.stream_sequence < last && !is_idle {
            return Ok(());
        }
        let mut connection = host.postgres().acquire().await?;
        origin::caught_up(&mut connection, self.schema, &self.server).await?;
        self.last = None;
        tracing::info!(
            consumer = host.name(),
            "what the database may have lost was read again"
        );
        Ok(())
    }
}
