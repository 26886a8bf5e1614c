//! tokio-tungstenite as a server: echoes every message, and sends what is posted to `/publish` to everybody. A task per
//! client, as its examples have it; `tuned` as the first argument for small buffers.

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::broadcast::{self, Receiver, Sender};
use tokio_tungstenite::accept_async_with_config;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

/// Publications that a client may be behind. One that is further back has lost some, so it is closed.
const BEHIND_MAX: usize = 1024;
/// Longest head and body of a publication.
const REQUEST_BYTES_MAX: usize = 1 << 20;
/// Accept queue when nobody says otherwise.
const BACKLOG: u32 = 4096;
/// Pause after a connection could not be accepted.
const ACCEPT_AGAIN: Duration = Duration::from_millis(10);

/// Read and write buffers of the tuned server. What is to be written goes to the socket at once.
const TUNED_READ_BYTES: usize = 1024;
const TUNED_WRITE_BYTES: usize = 0;

#[tokio::main]
async fn main() -> ExitCode {
    match serve().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> io::Result<()> {
    let tuned = std::env::args().nth(1).is_some_and(|argument| argument == "tuned");
    let (config, settings) = if tuned {
        let config = WebSocketConfig::default().read_buffer_size(TUNED_READ_BYTES).write_buffer_size(TUNED_WRITE_BYTES);
        (config, "read buffer of 1 KiB, no write buffer; TCP_NODELAY; a task each")
    } else {
        (WebSocketConfig::default(), "its defaults: read buffer of 128 KiB; TCP_NODELAY; a task each")
    };
    let backlog = std::env::var("VERSUS_BACKLOG").ok().and_then(|text| text.parse().ok()).unwrap_or(BACKLOG);
    let (clients, publishers) = (listen(backlog)?, listen(backlog)?);
    let (publications, _) = broadcast::channel(BEHIND_MAX);
    announce(clients.local_addr()?, publishers.local_addr()?, settings);
    let sender = publications.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = publishers.accept().await {
            // A publisher that breaks off harms only itself.
            tokio::spawn(take_publications(stream, sender.clone()));
        }
    });
    loop {
        let stream = match clients.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // No descriptor is free, most likely; one will be.
                eprintln!("accept: {error}");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let receiver = publications.subscribe();
        tokio::spawn(async move {
            // A client that breaks off harms only itself.
            let _ = attend(stream, config, receiver).await;
        });
    }
}

fn listen(backlog: u32) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    socket.listen(backlog)
}

fn announce(clients: SocketAddr, publishers: SocketAddr, settings: &str) {
    println!(
        concat!(
            r#"{{"version":"tokio-tungstenite {} on tokio {}","settings":"{}","protocol":"raw","target":"ws://{}/","#,
            r#""publish":{{"url":"http://{}/publish","body":"{{mark}}"}},"#,
            r#""say":{{"texts":["{{pad}}"],"reply":"any","bytes":60000}},"pids":[{}]}}"#
        ),
        locked("tokio-tungstenite"),
        locked("tokio"),
        settings,
        clients,
        publishers,
        std::process::id()
    );
}

/// The version of a package in the lock file that this was built with.
fn locked(package: &str) -> &'static str {
    const LOCK: &str = include_str!("../Cargo.lock");
    LOCK.split_once(&format!("name = \"{package}\"\nversion = \""))
        .and_then(|(_, rest)| rest.split_once('"'))
        .map_or("of unknown version", |(version, _)| version)
}

async fn attend(
    stream: TcpStream,
    config: WebSocketConfig,
    mut publications: Receiver<Utf8Bytes>,
) -> Result<(), Error> {
    stream.set_nodelay(true)?;
    let mut socket = accept_async_with_config(stream, Some(config)).await?;
    loop {
        tokio::select! {
            message = socket.next() => match message {
                Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) => socket.send(message).await?,
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            },
            publication = publications.recv() => match publication {
                Ok(text) => socket.send(Message::Text(text)).await?,
                Err(_) => return socket.close(None).await,
            },
        }
    }
}

/// Answers one publisher: just enough HTTP for `POST /publish` with a length.
async fn take_publications(mut stream: TcpStream, publications: Sender<Utf8Bytes>) -> io::Result<()> {
    let mut bytes = Vec::new();
    loop {
        let Some((head, body)) = request(&bytes) else {
            if bytes.len() > REQUEST_BYTES_MAX || stream.read_buf(&mut bytes).await? == 0 {
                return Ok(());
            }
            continue;
        };
        if bytes.len() < head + body {
            bytes.reserve(head + body - bytes.len());
            if head + body > REQUEST_BYTES_MAX || stream.read_buf(&mut bytes).await? == 0 {
                return Ok(());
            }
            continue;
        }
        let answer: &[u8] = match Utf8Bytes::try_from(bytes[head..head + body].to_vec()) {
            Ok(text) => {
                // Without receivers there is nobody to tell.
                let _ = publications.send(text);
                b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"
            }
            Err(_) => b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
        };
        stream.write_all(answer).await?;
        bytes.drain(..head + body);
    }
}

/// The lengths of a request's head and body, once its head is whole. A head that makes no sense has an endless body.
fn request(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(head)) => {
            let length = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
            let body = length.and_then(|header| str::from_utf8(header.value).ok()?.trim().parse().ok());
            Some((head, body.unwrap_or(0).min(REQUEST_BYTES_MAX)))
        }
        Ok(httparse::Status::Partial) => None,
        Err(_) => Some((bytes.len(), REQUEST_BYTES_MAX)),
    }
}
