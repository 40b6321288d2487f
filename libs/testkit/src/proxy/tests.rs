use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::{Around, Faults, Proxy};

const SOON: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_millis(300);

/// An upper-casing server, so that an answer proves a round trip.
async fn shouter() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let serve = async move {
        let mut open = tokio::task::JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            open.spawn(async move {
                let mut buffer = [0; 1024];
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    buffer[..count].make_ascii_uppercase();
                    stream.write_all(&buffer[..count]).await.unwrap();
                }
            });
        }
    };
    std::thread::Builder::new().spawn(move || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(serve);
    })?;
    Ok(address)
}

async fn shout(stream: &mut TcpStream, word: &str) -> Result<String> {
    stream.write_all(word.as_bytes()).await?;
    let mut answer = vec![0; word.len()];
    stream.read_exact(&mut answer).await?;
    Ok(String::from_utf8(answer)?)
}

#[tokio::test]
async fn the_proxy_does_what_networks_do() -> Result<()> {
    let proxy = Proxy::start(shouter().await?).await?;
    let connect = || TcpStream::connect(("127.0.0.1", proxy.port()));
    let mut stream = connect().await?;
    assert_eq!(shout(&mut stream, "plain").await?, "PLAIN");

    proxy.latency(SILENCE);
    let begin = tokio::time::Instant::now();
    assert_eq!(shout(&mut stream, "slow").await?, "SLOW");
    assert!(begin.elapsed() >= 2 * SILENCE, "both ways");

    proxy.black_hole();
    assert!(timeout(SILENCE, shout(&mut stream, "held")).await.is_err());
    proxy.resume();
    let mut held = [0; 4];
    timeout(SOON, stream.read_exact(&mut held)).await??;
    assert_eq!(&held, b"HELD");

    proxy.set(Faults {
        drop_replies: true,
        ..Faults::default()
    });
    assert!(timeout(SILENCE, shout(&mut stream, "lost")).await.is_err());
    proxy.resume();
    assert_eq!(shout(&mut stream, "back").await?, "BACK");

    proxy.cut();
    assert!(timeout(SOON, shout(&mut stream, "cut")).await?.is_err());
    let mut stream = connect().await?;
    assert_eq!(shout(&mut stream, "again").await?, "AGAIN");

    proxy.set(Faults {
        cut_after_request_bytes: Some(7),
        ..Faults::default()
    });
    assert!(
        timeout(SOON, shout(&mut stream, "too much"))
            .await?
            .is_err()
    );

    proxy.set(Faults {
        cut_around: Some(Around {
            text: b"end",
            every: 2,
        }),
        ..Faults::default()
    });
    let mut heard = Vec::new();
    for word in ["end", "other", "end", "end", "end"] {
        let mut stream = connect().await?;
        heard.push(timeout(SOON, shout(&mut stream, word)).await?.is_ok());
    }
    assert_eq!(heard, [true, true, false, true, false]);
    assert_eq!((proxy.lost_replies(), proxy.lost_requests()), (1, 1));

    proxy.disconnect();
    let mut stream = connect().await?;
    assert!(timeout(SOON, shout(&mut stream, "nobody")).await?.is_err());
    Ok(())
}
