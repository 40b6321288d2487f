//! HTTP/1.1 as bytes: for calls of which only the status counts, and which should cost this side
//! little.

use anyhow::Context as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Bytes read at once.
const CHUNK_BYTES: usize = 64 << 10;

/// One kept connection. Several requests may be under way; answers come in their order.
pub(crate) struct Wire {
    host: String,
    stream: TcpStream,
    requests: Vec<u8>,
    answers: Vec<u8>,
    /// Bytes of `answers` that were taken.
    taken: usize,
}

/// What counts of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Brief {
    pub(crate) status: u16,
    /// Of head and body.
    pub(crate) bytes: usize,
}

impl Wire {
    /// To `http://host:port`.
    pub(crate) async fn to(base: &str) -> anyhow::Result<Self> {
        let host = base.trim_start_matches("http://").trim_end_matches('/');
        let stream = TcpStream::connect(host).await;
        let stream = stream.with_context(|| format!("nobody listens at {host}"))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            host: host.to_owned(),
            stream,
            requests: Vec::new(),
            answers: Vec::new(),
            taken: 0,
        })
    }

    /// Adds a call to what `flush` sends.
    pub(crate) fn push(&mut self, path: &str, key: &str, address: &str) {
        let host = &self.host;
        let head = format!(
            "GET {path} HTTP/1.1\r\nhost: {host}\r\nx-api-key: {key}\r\n\
             x-forwarded-for: {address}\r\n\r\n"
        );
        self.requests.extend_from_slice(head.as_bytes());
    }

    /// Sends what was added.
    pub(crate) async fn flush(&mut self) -> anyhow::Result<()> {
        self.stream.write_all(&self.requests).await?;
        self.requests.clear();
        Ok(())
    }

    /// The next answer.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Brief> {
        loop {
            if let Some(brief) = brief(&self.answers[self.taken..])? {
                self.taken += brief.bytes;
                return Ok(brief);
            }
            self.answers.drain(..self.taken);
            self.taken = 0;
            self.answers.reserve(CHUNK_BYTES);
            let read = self.stream.read_buf(&mut self.answers).await?;
            anyhow::ensure!(read > 0, "the connection ended in mid-answer");
        }
    }
}

/// The first answer in these bytes, when all of it is there. It says how long its body is.
fn brief(bytes: &[u8]) -> anyhow::Result<Option<Brief>> {
    let Some(head) = bytes.windows(4).position(|end| end == b"\r\n\r\n") else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&bytes[..head])?;
    let status = text.split(' ').nth(1).context("no status")?.parse()?;
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let ours = name.eq_ignore_ascii_case("content-length");
        ours.then(|| value.trim())
    });
    let length: usize = length.context("no length")?.parse()?;
    let whole = head + 4 + length;
    Ok((bytes.len() >= whole).then_some(Brief {
        status,
        bytes: whole,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_when_it_is_whole_and_no_further() {
        let first = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 3\r\nx: y\r\n\r\nabc";
        let both = [&first[..], b"HTTP/1.1 200 OK\r\n"].concat();
        for end in 0..first.len() {
            assert!(matches!(brief(&both[..end]), Ok(None)), "{end}");
        }
        let found = brief(&both).expect("well formed").expect("whole");
        assert_eq!((found.status, found.bytes), (401, first.len()));
        assert!(brief(b"HTTP/1.1 200 OK\r\nx: y\r\n\r\n").is_err());
    }
}
