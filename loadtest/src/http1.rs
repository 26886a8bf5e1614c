//! HTTP/1.1 as a client: one connection kept open, one request at a time, the answer read whole.
//!
//! Not `ureq` (3.5): it writes head and body apart, so a server reads twice for a publication and pays for it in our figures.
//!
//! For publishing and for reading metrics pages, of any server: bodies with a length, in chunks, or up to the end of
//! the stream. A connection that the server has closed, or said it will close, is replaced before the next request
//! goes out, never after, so that nothing is ever sent twice.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

/// How long a server may take to accept, and to answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Longest head of an answer, and longest line of one, in bytes.
const HEAD_BYTES_MAX: u64 = 64 * 1024;

/// Longest body of an answer, in bytes: metrics pages of busy servers have some hundred KB.
const BODY_BYTES_MAX: u64 = 8 << 20;

/// What a server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body, decoded.
    pub body: Vec<u8>,
}

/// A connection to `http://HOST:PORT`.
pub struct Client {
    authority: String,
    connection: Option<BufReader<TcpStream>>,
}

/// Takes an `http://` URL apart: `HOST:PORT`, then path and query.
pub fn parse_url(url: &str) -> anyhow::Result<(String, String)> {
    let uri: http::Uri = url.parse().with_context(|| format!("{url:?} is not a URL"))?;
    ensure!(uri.scheme_str() == Some("http"), "{url}: only http:// is spoken here");
    let authority = uri.authority().context("the URL names no host")?;
    let authority = match authority.port() {
        Some(_) => authority.to_string(),
        None => format!("{authority}:80"),
    };
    Ok((authority, uri.path_and_query().map_or("/", |path| path.as_str()).to_owned()))
}

impl Client {
    /// Connects.
    pub fn connect(authority: &str) -> anyhow::Result<Self> {
        let mut client = Self { authority: authority.to_owned(), connection: None };
        client.connection = Some(client.dial()?);
        Ok(client)
    }

    fn dial(&self) -> anyhow::Result<BufReader<TcpStream>> {
        let mut last = None;
        for address in self.authority.to_socket_addrs().with_context(|| format!("{} has no address", self.authority))? {
            match TcpStream::connect_timeout(&address, TIMEOUT) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    stream.set_read_timeout(Some(TIMEOUT))?;
                    stream.set_write_timeout(Some(TIMEOUT))?;
                    return Ok(BufReader::new(stream));
                }
                Err(error) => last = Some(error),
            }
        }
        let error = last.map_or_else(|| anyhow::anyhow!("no address"), anyhow::Error::from);
        Err(error.context(format!("cannot connect to http://{}", self.authority)))
    }

    /// Sends a request and reads its answer. `headers` are whole lines, each with its end.
    pub fn request(&mut self, method: &str, path: &str, headers: &str, body: &[u8]) -> anyhow::Result<Answer> {
        let mut connection = match self.connection.take().filter(still_open) {
            Some(connection) => connection,
            None => self.dial()?,
        };
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n{headers}", self.authority).into_bytes();
        if method != "GET" {
            write!(request, "Content-Length: {}\r\n", body.len())?;
        }
        request.extend_from_slice(b"\r\n");
        request.extend_from_slice(body);
        connection.get_mut().write_all(&request).context("the server closed the connection")?;
        let (answer, keep) = read_answer(&mut connection)?;
        if keep {
            self.connection = Some(connection);
        }
        Ok(answer)
    }
}

/// Whether an idle connection is still good: nothing has come, not even its end.
fn still_open(connection: &BufReader<TcpStream>) -> bool {
    let stream = connection.get_ref();
    if !connection.buffer().is_empty() || stream.set_nonblocking(true).is_err() {
        return false;
    }
    let idle = matches!(stream.peek(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock);
    idle && stream.set_nonblocking(false).is_ok()
}

/// How a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length(u64),
    Chunks,
    /// With the connection.
    End,
}

/// Reads one answer, and tells whether the connection can be used again.
fn read_answer(from: &mut impl BufRead) -> anyhow::Result<(Answer, bool)> {
    // Of all heads together: interim answers (1xx) come before the one that counts.
    let mut head_bytes = 0;
    loop {
        let first = read_line(from)?;
        let mut words = first.split_ascii_whitespace();
        let version = words.next().unwrap_or_default();
        ensure!(version.starts_with("HTTP/1."), "the answer is not HTTP: {first:?}");
        let status: u16 = words.next().and_then(|status| status.parse().ok()).context("an answer without a status")?;
        let mut framing = Framing::End;
        let mut keep = version != "HTTP/1.0";
        head_bytes += first.len() as u64;
        loop {
            let line = read_line(from)?;
            head_bytes += line.len() as u64;
            ensure!(head_bytes <= HEAD_BYTES_MAX, "the head of the answer is too long");
            let Some((name, value)) = line.split_once(':') else { break };
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") && framing != Framing::Chunks {
                framing = Framing::Length(value.parse().context("bad Content-Length in an answer")?);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                // RFC 9112 section 6.3: chunked overrides a length.
                framing = if value.to_ascii_lowercase().ends_with("chunked") { Framing::Chunks } else { Framing::End };
            } else if name.eq_ignore_ascii_case("connection") {
                let value = value.to_ascii_lowercase();
                keep = (keep || value.contains("keep-alive")) && !value.contains("close");
            }
        }
        if status / 100 == 1 {
            continue;
        }
        if matches!(status, 204 | 304) {
            framing = Framing::Length(0);
        }
        let body = match framing {
            Framing::Length(length) => read_exactly(from, length)?,
            Framing::Chunks => read_chunks(from)?,
            Framing::End => {
                let mut body = Vec::new();
                from.take(BODY_BYTES_MAX + 1).read_to_end(&mut body)?;
                ensure!(body.len() as u64 <= BODY_BYTES_MAX, "an answer of more than {BODY_BYTES_MAX} bytes");
                body
            }
        };
        return Ok((Answer { status, body }, keep && framing != Framing::End));
    }
}

fn read_exactly(from: &mut impl Read, length: u64) -> anyhow::Result<Vec<u8>> {
    ensure!(length <= BODY_BYTES_MAX, "an answer of {length} bytes");
    let mut body = Vec::new();
    from.take(length).read_to_end(&mut body)?;
    ensure!(body.len() as u64 == length, "the answer broke off");
    Ok(body)
}

fn read_chunks(from: &mut impl BufRead) -> anyhow::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = read_line(from)?;
        let length = line.split(';').next().unwrap_or_default().trim();
        let length = u64::from_str_radix(length, 16).with_context(|| format!("a chunk of length {line:?}"))?;
        if length == 0 {
            // Trailers, up to the empty line.
            let mut trailer_bytes = 0;
            loop {
                let line = read_line(from)?;
                if line.is_empty() {
                    return Ok(body);
                }
                trailer_bytes += line.len() as u64;
                ensure!(trailer_bytes <= HEAD_BYTES_MAX, "the trailers of the answer are too long");
            }
        }
        ensure!(
            (body.len() as u64).saturating_add(length) <= BODY_BYTES_MAX,
            "an answer of more than {BODY_BYTES_MAX} bytes"
        );
        body.append(&mut read_exactly(from, length)?);
        ensure!(read_line(from)?.is_empty(), "a chunk is longer than it says");
    }
}

/// A line without its end; the end of the stream is an error.
fn read_line(from: &mut impl BufRead) -> anyhow::Result<String> {
    let mut line = Vec::new();
    from.take(HEAD_BYTES_MAX).read_until(b'\n', &mut line).context("no answer")?;
    if line.pop() != Some(b'\n') {
        bail!("the answer broke off");
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn answer(bytes: &str) -> anyhow::Result<(u16, String, bool)> {
        let (answer, keep) = read_answer(&mut bytes.as_bytes())?;
        Ok((answer.status, String::from_utf8(answer.body)?, keep))
    }

    #[test]
    fn bodies_of_every_framing_are_read_whole() {
        for (bytes, status, body, keep) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", 200, "abc", true),
            ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\nConnection: Close\r\n\r\nabc", 200, "abc", false),
            (
                "HTTP/1.1 202 A\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nT: 1\r\n\r\n",
                202,
                "abc0123456789",
                true,
            ),
            ("HTTP/1.1 200 OK\r\n\r\nto the end", 200, "to the end", false),
            ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", 200, "", false),
            ("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n", 200, "", true),
            ("HTTP/1.1 204 No Content\r\n\r\n", 204, "", true),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n", 201, "", true),
        ] {
            assert_eq!(answer(bytes).unwrap(), (status, body.to_owned(), keep), "{bytes}");
        }
    }

    #[test]
    fn answers_that_break_off_or_lie_are_errors() {
        for bytes in [
            "",
            "HTTP/1.1 200",
            "SSH-2.0-x\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab",
            "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        ] {
            assert!(answer(bytes).is_err(), "{bytes}");
        }
    }

    #[test]
    fn an_answer_without_end_is_an_error() {
        let interim = "HTTP/1.1 100 Continue\r\n\r\n".repeat(10_000);
        let trailers =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n".to_owned() + &"T: 1\r\n".repeat(20_000);
        let chunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\nffffffffffffffff\r\n".to_owned();
        let body = "HTTP/1.1 200 OK\r\n\r\n".to_owned() + &"x".repeat(BODY_BYTES_MAX as usize + 1);
        for (bytes, error) in [
            (interim, "head of the answer is too long"),
            (trailers, "trailers of the answer are too long"),
            (chunks, "an answer of more than"),
            (body, "an answer of more than"),
        ] {
            assert!(answer(&bytes).unwrap_err().to_string().contains(error), "{error}");
        }
    }

    /// Answers one request on each connection with `head`, then closes it; counts the connections.
    fn one_answer_each(head: &'static str) -> (String, std::thread::JoinHandle<usize>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        let served = std::thread::spawn(move || {
            for served in 1..=3 {
                let mut stream = BufReader::new(listener.accept().unwrap().0);
                while read_line(&mut stream).is_ok_and(|line| !line.is_empty()) {}
                stream.get_mut().write_all(head.as_bytes()).unwrap();
                if served == 3 {
                    return served;
                }
            }
            0
        });
        (authority, served)
    }

    #[test]
    fn a_connection_that_the_server_closes_is_replaced_before_the_next_request() {
        for head in [
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
            // Closed without a word, as servers do with idle connections.
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        ] {
            let (authority, served) = one_answer_each(head);
            let mut client = Client::connect(&authority).unwrap();
            for _ in 0..3 {
                assert_eq!(client.request("GET", "/", "", b"").unwrap().status, 200);
                if let Some(connection) = &client.connection {
                    // Wait for its end, so that it is there when the next request looks.
                    assert_eq!(connection.get_ref().peek(&mut [0]).unwrap(), 0);
                }
            }
            assert_eq!(served.join().unwrap(), 3);
        }
    }

    #[test]
    fn urls_are_taken_apart_and_tls_is_refused() {
        assert_eq!(parse_url("http://h:1/a?b").unwrap(), ("h:1".to_owned(), "/a?b".to_owned()));
        assert_eq!(parse_url("http://[::1]").unwrap(), ("[::1]:80".to_owned(), "/".to_owned()));
        assert!(parse_url("https://h/").is_err() && parse_url("h:1").is_err());
    }
}
