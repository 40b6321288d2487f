//! The upstream of every measured proxy, and the authoriser of those that ask one: prepared answers
//! and nothing else, on one thread.

use std::{
    io,
    net::{Ipv4Addr, TcpListener, TcpStream},
};

use clap::Args;

use super::poll::{self, Poll};

/// A small answer's body.
const SMALL_BYTES: usize = 300;
/// A large answer's body.
const LARGE_BYTES: usize = 64 << 10;
/// Bytes read at once.
const READ_BYTES: usize = 256 << 10;
/// A proxy that sends a longer head is not measured any further.
const HEAD_BYTES_MAX: usize = 64 << 10;
const LISTENER: usize = usize::MAX;

/// Where it listens.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Port on loopback.
    #[arg(long)]
    port: u16,
}

/// Answers until killed.
pub(crate) fn serve(arguments: &Arguments) -> anyhow::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, arguments.port))?;
    listener.set_nonblocking(true)?;
    let mut poll = Poll::new()?;
    poll.add(&listener, LISTENER)?;
    let answers = Answers::new();
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut scratch = vec![0; READ_BYTES];
    let mut ready = Vec::new();
    loop {
        poll.wait(None, &mut ready)?;
        for number in ready.drain(..) {
            if number == LISTENER {
                accept(&listener, &poll, &mut connections)?;
                continue;
            }
            let Some(slot) = connections.get_mut(number) else {
                continue;
            };
            let alive = slot
                .as_mut()
                .is_some_and(|it| it.step(&answers, &mut scratch, &poll, number).is_ok());
            if !alive {
                *slot = None; // closed, which also takes it out of the set
            }
        }
    }
}

fn accept(
    listener: &TcpListener,
    poll: &Poll,
    connections: &mut Vec<Option<Connection>>,
) -> io::Result<()> {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let number = connections.iter().position(Option::is_none);
        let number = number.unwrap_or_else(|| {
            connections.push(None);
            connections.len() - 1
        });
        poll.add(&stream, number)?;
        connections[number] = Some(Connection::new(stream));
    }
}

/// Whole answers, heads included.
struct Answers {
    small: Vec<u8>,
    large: Vec<u8>,
    authorised: Vec<u8>,
}

impl Answers {
    fn new() -> Self {
        let answer = |body: &[u8]| {
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            [head.as_bytes(), body].concat()
        };
        Self {
            small: answer(&json(SMALL_BYTES)),
            large: answer(&json(LARGE_BYTES)),
            authorised: answer(b""),
        }
    }

    /// What a request with this head is answered.
    fn to(&self, head: &[u8]) -> &[u8] {
        let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let has = |word: &[u8]| memchr::memmem::find(line, word).is_some();
        if has(b"/authorise") {
            &self.authorised
        } else if has(b"/large") {
            &self.large
        } else {
            &self.small
        }
    }
}

/// A JSON text of exactly so many bytes.
fn json(bytes: usize) -> Vec<u8> {
    let (begin, end) = (b"{\"text\":\"", b"\"}");
    let mut text = begin.to_vec();
    text.resize(bytes - end.len(), b'x');
    text.extend_from_slice(end);
    text
}

struct Connection {
    stream: TcpStream,
    /// A head that is not complete yet.
    begun: Vec<u8>,
    /// Bytes of the request's body still to come.
    body_left: usize,
    /// Answer under way, and how much of it has left.
    sending: Option<(Vec<u8>, usize)>,
    answer_after_body: bool,
    writes: bool,
}

impl Connection {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            begun: Vec::new(),
            body_left: 0,
            sending: None,
            answer_after_body: false,
            writes: false,
        }
    }

    /// Takes what has come, sends what can be sent. An error ends the connection.
    fn step(
        &mut self,
        answers: &Answers,
        scratch: &mut [u8],
        poll: &Poll,
        number: usize,
    ) -> io::Result<()> {
        if let Some((answer, sent)) = &mut self.sending {
            *sent += poll::write(&self.stream, &answer[*sent..])?;
            if *sent == answer.len() {
                self.sending = None;
            }
        }
        if let Some(read) = poll::read(&self.stream, scratch)? {
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.take(&scratch[..read], answers)?;
        }
        let writes = self.sending.is_some();
        if writes != self.writes {
            self.writes = writes;
            poll.also_write(&self.stream, number, writes)?;
        }
        Ok(())
    }

    fn take(&mut self, mut bytes: &[u8], answers: &Answers) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.body_left > 0 {
                let part = self.body_left.min(bytes.len());
                self.body_left -= part;
                bytes = &bytes[part..];
                if self.body_left == 0 && std::mem::take(&mut self.answer_after_body) {
                    self.send(&answers.small)?;
                }
                continue;
            }
            if self.begun.is_empty()
                && let Some(head) = poll::head(bytes)
            {
                self.answer(&bytes[..head.bytes], head.content_length, answers)?;
                bytes = &bytes[head.bytes..];
                continue;
            }
            let before = self.begun.len();
            self.begun.extend_from_slice(bytes);
            let begun = std::mem::take(&mut self.begun);
            let Some(head) = poll::head(&begun) else {
                if begun.len() > HEAD_BYTES_MAX {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                self.begun = begun;
                return Ok(());
            };
            self.answer(&begun[..head.bytes], head.content_length, answers)?;
            bytes = &bytes[head.bytes - before..];
        }
        Ok(())
    }

    fn answer(&mut self, head: &[u8], body: usize, answers: &Answers) -> io::Result<()> {
        if body > 0 {
            self.body_left = body;
            self.answer_after_body = true;
            return Ok(());
        }
        self.send(answers.to(head))
    }

    fn send(&mut self, answer: &[u8]) -> io::Result<()> {
        let sent = match self.sending {
            None => poll::write(&self.stream, answer)?,
            // Nobody asks again before he was answered.
            Some(_) => return Err(io::ErrorKind::InvalidData.into()),
        };
        if sent < answer.len() {
            self.sending = Some((answer.to_vec(), sent));
        }
        Ok(())
    }
}
