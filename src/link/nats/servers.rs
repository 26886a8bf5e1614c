//! Which server a connection is made to, and how it begins: INFO, TLS, CONNECT, and a PING whose answer says that we are in.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use rand::seq::SliceRandom;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::login::Login;
use super::wire::{Info, Op, Parser};
use super::{NatsError, Stream};
use crate::model::ServerUrl;

/// From the connection to the server's word that we are in.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// Servers that are learned of from others.
const DISCOVERED_MAX: usize = 256;

/// Where NATS is, and how to talk to it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// One at least. The first says who we are to servers that are learned of from others.
    pub servers: Vec<ServerUrl>,
    /// Try them in the order in which they are given.
    pub in_order: bool,
    /// For servers that want TLS. None: no certificate is trusted.
    pub tls: Option<Arc<ClientConfig>>,
}

/// The servers that are known.
pub struct Servers {
    settings: Settings,
    /// What the server that we were connected to last has said of others, `host:port`. Held to copy it.
    discovered: Mutex<Vec<String>>,
}

/// A server to be tried.
struct Place {
    host: String,
    port: u16,
    /// The name that its certificate must be for.
    name: String,
    tls: bool,
    /// Whose login is used for it.
    login: usize,
}

/// A connection on which we are in.
pub(super) struct Opened {
    pub stream: Box<dyn Stream>,
    pub parser: Parser,
    pub info: Info,
}

impl Servers {
    /// Those that are given.
    pub fn new(settings: Settings) -> Servers {
        Servers { settings, discovered: Mutex::default() }
    }

    /// All of them, for the log, without secrets.
    pub fn addresses(&self) -> String {
        let servers: Vec<String> = self.settings.servers.iter().map(ToString::to_string).collect();
        servers.join(",")
    }

    /// A server says which others there are.
    pub(super) fn discovered(&self, addresses: &[String]) {
        let addresses = addresses.iter().take(DISCOVERED_MAX).cloned().collect();
        *self.discovered.lock().unwrap_or_else(PoisonError::into_inner) = addresses;
    }

    /// Those that are given, then those that were learned of.
    fn places(&self) -> Vec<Place> {
        let given = self.settings.servers.iter().enumerate().map(|(login, url)| Place {
            host: url.host.clone(),
            port: url.port,
            name: url.host.clone(),
            tls: url.tls,
            login,
        });
        let mut places: Vec<Place> = given.collect();
        if !self.settings.in_order {
            places.shuffle(&mut rand::rng());
        }
        let Some(first) = self.settings.servers.first() else { return places };
        let discovered = self.discovered.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for address in discovered {
            let Some((host, port)) = address.rsplit_once(':') else { continue };
            let Ok(port) = port.parse() else { continue };
            let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
            if places.iter().any(|place| place.host == host && place.port == port) {
                continue;
            }
            // Servers tell addresses, and certificates are for names.
            let is_address = host.parse::<std::net::IpAddr>().is_ok();
            let name = if is_address { first.host.clone() } else { host.clone() };
            places.push(Place { host, port, name, tls: first.tls, login: 0 });
        }
        places
    }

    pub(super) async fn open(&self) -> Result<Opened, NatsError> {
        let mut last = None;
        for place in self.places() {
            let opened = timeout(OPEN_TIMEOUT, self.open_one(&place)).await;
            match opened.unwrap_or(Err(NatsError::Silent)) {
                Ok(opened) => {
                    self.discovered(&opened.info.connect_urls);
                    return Ok(opened);
                }
                Err(why) => {
                    let address = format!("{}:{}", place.host, place.port);
                    last = Some(NatsError::Connect { address, why: Box::new(why) });
                }
            }
        }
        Err(last.unwrap_or(NatsError::Silent))
    }

    async fn open_one(&self, place: &Place) -> Result<Opened, NatsError> {
        let socket = TcpStream::connect((place.host.as_str(), place.port)).await?;
        socket.set_nodelay(true)?;
        let mut parser = Parser::default();
        let mut stream: Box<dyn Stream> = Box::new(socket);
        let info = loop {
            match next(&mut stream, &mut parser).await? {
                Op::Info(info) => break *info,
                Op::Error(error) => return Err(NatsError::Closed(Some(error))),
                _ => {}
            }
        };
        let tls = place.tls || info.tls_required;
        if tls {
            // What came in the clear behind INFO is nothing that a server says.
            parser = Parser::default();
            let name = ServerName::try_from(place.name.clone()).map_err(std::io::Error::other)?;
            let config = self.settings.tls.clone().ok_or(NatsError::NoTls)?;
            let connector = TlsConnector::from(config);
            stream = Box::new(connector.connect(name, stream).await?);
        }
        let url = self.settings.servers.get(place.login);
        let login = Login {
            user: url.and_then(|url| url.user.as_deref()),
            password: url.and_then(|url| url.password.as_deref()),
        };
        let mut line = login.connect_line(info.nonce.as_deref(), tls)?;
        line.push_str("PING\r\n");
        stream.write_all(line.as_bytes()).await?;
        stream.flush().await?;
        loop {
            match next(&mut stream, &mut parser).await? {
                Op::Pong => return Ok(Opened { stream, parser, info }),
                Op::Error(error) => return Err(NatsError::Closed(Some(error))),
                _ => {}
            }
        }
    }
}

/// The next that the server says.
async fn next(stream: &mut Box<dyn Stream>, parser: &mut Parser) -> Result<Op, NatsError> {
    loop {
        if let Some(op) = parser.next()? {
            return Ok(op);
        }
        let mut buffer = BytesMut::with_capacity(4096);
        if stream.read_buf(&mut buffer).await? == 0 {
            return Err(NatsError::Closed(None));
        }
        parser.buffer.unsplit(buffer);
    }
}
