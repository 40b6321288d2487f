//! A client that need not wait for its answer.

use testkit::eventually;
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use super::World;
use crate::stack::SETTLE_LIMIT;

/// Attempts at a call that is refused while everything is slow.
const ATTEMPTS: usize = 20;

/// Sends a request; returns when the upstream has it. The answer ends with the connection.
pub(crate) async fn send(world: &World, gateway: usize, path: &str, key: &str) -> TcpStream {
    for _ in 0..ATTEMPTS {
        let stream = attempt(world, gateway, path, key).await;
        let arrived = eventually(SETTLE_LIMIT, "the upstream is asked", async || match world
            .upstream
            .asked(key)
        {
            0 => Err("not yet"),
            _ => Ok(()),
        });
        let mut first = [0];
        tokio::select! {
            biased;
            arrived = arrived => {
                arrived.expect("asked");
                return stream;
            }
            // An answer, which the upstream cannot have given yet.
            refused = stream.peek(&mut first) => assert!(refused.is_ok(), "{refused:?}"),
        }
    }
    panic!("the upstream was not asked for {key}");
}

async fn attempt(world: &World, gateway: usize, path: &str, key: &str) -> TcpStream {
    let base = world.stack.gateways()[gateway].clone();
    let address = base.trim_start_matches("http://").to_owned();
    let mut stream = TcpStream::connect(&address).await.expect("connected");
    let body = r#"{"what": "this"}"#;
    let head = format!(
        "POST /api/v1/once{path} HTTP/1.1\r\nhost: {address}\r\nx-api-key: {}\r\n\
         content-type: application/json\r\nidempotency-key: {key}\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        world.key,
        body.len(),
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    stream
}

/// Sends a request and goes away without its answer, when the upstream has it.
pub(super) async fn leave(world: &World, path: &str, key: &str) {
    drop(send(world, 0, path, key).await);
}
