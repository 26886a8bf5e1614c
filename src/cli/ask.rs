//! Asks a running server over HTTP, for commands that look at one.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use http::Uri;

/// The longest answer that is read. A server with a thousand shards says less than a megabyte.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// Where something can be asked.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Place {
    pub host: String,
    pub port: u16,
    pub path: String,
}

impl Place {
    /// As a person would write it.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Reads an `http://` URL; the scheme may be left out, and the path, which is this one then.
    pub fn parse(url: &str, path: &str) -> Result<Place, String> {
        let whole = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let uri: Uri = whole.parse().map_err(|error| format!("--url {url}: {error}"))?;
        if uri.scheme_str() != Some("http") {
            return Err(format!("--url {url}: only http:// is spoken; reach a server elsewhere through ssh -L"));
        }
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| format!("--url {url} names no host"))?;
        let given = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Place {
            host: host.trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16().unwrap_or(80),
            path: if given == "/" { path.to_owned() } else { given.to_owned() },
        })
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Trouble {
    Unreachable(io::Error),
    Silent(io::Error),
    NotHttp,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Unreachable(error) => write!(f, "cannot be reached: {error}"),
            Trouble::Silent(error) => write!(f, "does not answer: {error}"),
            Trouble::NotHttp => write!(f, "answers something else than HTTP"),
        }
    }
}

/// What was answered.
pub(super) struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

/// One GET, each step of which may take this long. By HTTP/1.0, whose answers end with their connection: nothing is kept open
/// between two looks, so a server that goes away and comes back is found by the next one.
pub(super) fn get(place: &Place, patience: Duration) -> Result<Answer, Trouble> {
    let mut socket = connect(place, patience).map_err(Trouble::Unreachable)?;
    let answer = ask(&mut socket, place, patience).map_err(Trouble::Silent)?;
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let Ok(httparse::Status::Complete(head)) = response.parse(&answer) else { return Err(Trouble::NotHttp) };
    Ok(Answer { status: response.code.unwrap_or(0), body: answer[head..].to_vec() })
}

fn connect(place: &Place, patience: Duration) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    // A name may have several addresses, of which the server listens on one.
    for address in (place.host.as_str(), place.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, patience) {
            Ok(socket) => return Ok(socket),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

fn ask(socket: &mut TcpStream, place: &Place, patience: Duration) -> io::Result<Vec<u8>> {
    socket.set_read_timeout(Some(patience))?;
    socket.set_write_timeout(Some(patience))?;
    let request = format!("GET {} HTTP/1.0\r\nHost: {}\r\nUser-Agent: cableway\r\n\r\n", place.path, place.authority());
    socket.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    socket.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_with_and_without_scheme_port_and_path() {
        for (url, authority, path) in [
            ("http://127.0.0.1:7000", "127.0.0.1:7000", "/metrics"),
            ("10.0.0.1:7000/", "10.0.0.1:7000", "/metrics"),
            ("http://[::1]:7000/other?x=1", "[::1]:7000", "/other?x=1"),
            ("http://host", "host:80", "/metrics"),
        ] {
            let place = Place::parse(url, "/metrics").expect(url);
            assert_eq!((place.authority().as_str(), place.path.as_str()), (authority, path), "{url}");
        }
    }
}
