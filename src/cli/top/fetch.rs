//! Asks a server for its metrics.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use super::arguments::Place;
use super::scrape::Scrape;

/// How long each step of asking may take: a server that is stopped takes connections and says nothing.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest answer that is read. A server with a thousand shards says less than a megabyte.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// Why there are no figures.
#[derive(Debug)]
pub(super) enum Trouble {
    Unreachable(io::Error),
    Silent(io::Error),
    Status(u16),
    NotMetrics,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Unreachable(error) => write!(f, "cannot be reached: {error}"),
            Trouble::Silent(error) => write!(f, "does not answer: {error}"),
            Trouble::Status(404) => {
                write!(f, "answers 404: the metrics are elsewhere (--metrics-http, --metrics-port)")
            }
            Trouble::Status(status) => write!(f, "answers {status}"),
            Trouble::NotMetrics => write!(f, "answers something else than the metrics of a Cableway"),
        }
    }
}

/// One scrape. By HTTP/1.0, whose answers end with their connection: nothing is kept open between two looks, so a server
/// that goes away and comes back is found by the next one.
pub(super) fn scrape(place: &Place) -> Result<Scrape, Trouble> {
    let mut socket = connect(place).map_err(Trouble::Unreachable)?;
    let answer = ask(&mut socket, place).map_err(Trouble::Silent)?;
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let Ok(httparse::Status::Complete(head)) = response.parse(&answer) else { return Err(Trouble::NotMetrics) };
    match response.code {
        Some(200) => Scrape::parse(&String::from_utf8_lossy(&answer[head..])).ok_or(Trouble::NotMetrics),
        status => Err(Trouble::Status(status.unwrap_or(0))),
    }
}

fn connect(place: &Place) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    // A name may have several addresses, of which the server listens on one.
    for address in (place.host.as_str(), place.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(socket) => return Ok(socket),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

fn ask(socket: &mut TcpStream, place: &Place) -> io::Result<Vec<u8>> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let request =
        format!("GET {} HTTP/1.0\r\nHost: {}\r\nUser-Agent: cableway-top\r\n\r\n", place.path, place.authority());
    socket.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    socket.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    Ok(answer)
}
