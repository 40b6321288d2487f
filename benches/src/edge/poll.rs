//! Waiting for many sockets on one thread, with no runtime between: what both ends of a measured
//! proxy are made of, so that they cost far less than what is between them.

use std::{io, net::TcpStream, os::fd::AsFd, time::Duration};

use rustix::{
    buffer::spare_capacity,
    event::{
        Timespec,
        epoll::{self, CreateFlags, Event, EventData, EventFlags},
    },
    fd::OwnedFd,
};

/// Sockets looked at after one wait.
const EVENTS_MAX: usize = 512;

/// A set of sockets, each with a number.
pub(crate) struct Poll {
    set: OwnedFd,
    events: Vec<Event>,
}

impl Poll {
    /// An empty one.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            set: epoll::create(CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(EVENTS_MAX),
        })
    }

    /// Adds a socket that shall be read.
    pub(crate) fn add(&self, socket: impl AsFd, number: usize) -> io::Result<()> {
        let number = EventData::new_u64(to_u64(number));
        Ok(epoll::add(&self.set, socket, number, EventFlags::IN)?)
    }

    /// Whether this socket is also waited for until more can be written.
    pub(crate) fn also_write(
        &self,
        socket: impl AsFd,
        number: usize,
        writes: bool,
    ) -> io::Result<()> {
        let flags = match writes {
            true => EventFlags::IN | EventFlags::OUT,
            false => EventFlags::IN,
        };
        let number = EventData::new_u64(to_u64(number));
        Ok(epoll::modify(&self.set, socket, number, flags)?)
    }

    /// Waits for so long at most; puts the numbers of ready sockets into `ready`.
    pub(crate) fn wait(
        &mut self,
        timeout: Option<Duration>,
        ready: &mut Vec<usize>,
    ) -> io::Result<()> {
        let timeout = timeout.map(|it| Timespec {
            tv_sec: i64::try_from(it.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: it.subsec_nanos().into(),
        });
        self.events.clear();
        ready.clear();
        match epoll::wait(
            &self.set,
            spare_capacity(&mut self.events),
            timeout.as_ref(),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let numbers = self.events.iter().map(|event| event.data.u64());
        ready.extend(numbers.filter_map(|number| usize::try_from(number).ok()));
        Ok(())
    }
}

/// What a head says of the body behind it, and where it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// Bytes with the empty line.
    pub(crate) bytes: usize,
    /// Of the body.
    pub(crate) content_length: usize,
}

/// The head at the beginning of these bytes, once it is complete. A head without a length has no
/// body: nobody here sends any other.
pub(crate) fn head(bytes: &[u8]) -> Option<Head> {
    let end = memchr::memmem::find(bytes, b"\r\n\r\n")?;
    let mut content_length = 0;
    let mut at = 0;
    while let Some(line) = memchr::memchr(b'\n', &bytes[at..end]) {
        at += line + 1;
        if let Some(length) = length(&bytes[at..end]) {
            content_length = length;
            break;
        }
    }
    Some(Head {
        bytes: end + 4,
        content_length,
    })
}

/// What a line says that begins with `content-length:`.
fn length(line: &[u8]) -> Option<usize> {
    const NAME: &[u8] = b"content-length:";
    let name = line.get(..NAME.len())?;
    if !name.eq_ignore_ascii_case(NAME) {
        return None;
    }
    let value = line[NAME.len()..].trim_ascii_start();
    let mut length = 0_usize;
    for digit in value.iter().take_while(|byte| byte.is_ascii_digit()) {
        length = length * 10 + usize::from(digit - b'0');
    }
    Some(length)
}

/// Reads what is there now; nothing yet is `None`, the end is 0.
pub(crate) fn read(mut stream: &TcpStream, into: &mut [u8]) -> io::Result<Option<usize>> {
    match io::Read::read(&mut stream, into) {
        Ok(read) => Ok(Some(read)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes what there is room for now.
pub(crate) fn write(mut stream: &TcpStream, from: &[u8]) -> io::Result<usize> {
    match io::Write::write(&mut stream, from) {
        Ok(written) => Ok(written),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        Err(error) => Err(error),
    }
}

fn to_u64(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_found_when_it_is_whole_with_the_length_behind_it() {
        let text = b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 316\r\nVia: y\r\n\r\nbody";
        for end in 0..text.len() - 4 {
            assert_eq!(head(&text[..end]), None, "{end}");
        }
        let found = head(text).expect("whole");
        assert_eq!((found.bytes, found.content_length), (text.len() - 4, 316));
        let bare = head(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").expect("whole");
        assert_eq!(bare.content_length, 0);
    }
}
