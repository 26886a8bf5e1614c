//! Makes the connections for hyper's pool: TCP, and TLS when the URL says so.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tower_service::Service;

use super::super::HostPort;
use super::super::settings::CONNECT_TIMEOUT;

/// Connects to the one host that it was made for.
#[derive(Clone)]
pub(super) struct Connector {
    pub host: HostPort,
    pub tls: Option<TlsConnector>,
}

/// TLS failed: not the network's fault, so trying again does not help.
#[derive(Debug, thiserror::Error)]
#[error("TLS: {0}")]
pub(super) struct TlsFailed(io::Error);

impl Connector {
    pub async fn tcp(&self) -> io::Result<TcpStream> {
        let connecting = TcpStream::connect((self.host.host.as_str(), self.host.port));
        let tcp = timeout(CONNECT_TIMEOUT, connecting).await??;
        tcp.set_nodelay(true)?;
        Ok(tcp)
    }

    async fn connect(self) -> Result<TokioIo<Stream>, Box<dyn std::error::Error + Send + Sync>> {
        let tcp = self.tcp().await?;
        let Some(tls) = &self.tls else { return Ok(TokioIo::new(Stream::Plain(tcp))) };
        let name = ServerName::try_from(self.host.host)?;
        match timeout(CONNECT_TIMEOUT, tls.connect(name, tcp)).await {
            Ok(Ok(stream)) => Ok(TokioIo::new(Stream::Tls(Box::new(stream)))),
            // A connection that is cut off is the network's fault; anything else is about certificates or versions.
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => Err(Box::new(TlsFailed(error))),
            Ok(Err(error)) => Err(Box::new(error)),
            Err(_) => Err(Box::new(io::Error::from(io::ErrorKind::TimedOut))),
        }
    }
}

impl Service<http::Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        Box::pin(self.clone().connect())
    }
}

/// A connection to the app.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        match self {
            Stream::Tls(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                Connected::new().negotiated_h2()
            }
            _ => Connected::new(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
