//! The process that holds the idle clients: a client with as little in it as an idle client needs.
//!
//! Each connection upgrades, waits for the welcome, subscribes to the channel that only listens, and then reads and
//! throws away what comes. It is written without the server's frame codec: a client that shares our code would agree
//! with our mistakes.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore};
use tokio::task::LocalSet;
use tokio::time::timeout;

use super::{CONNECTIONS_MAX, Report};

/// Connections that are being opened at once: every one is a call to the app, and the page's own should get through.
const OPENING_MAX: usize = 64;

/// Time from connecting to the confirmation of the subscription.
const OPENING_TIMEOUT: Duration = Duration::from_secs(15);

/// What may come before the confirmation, head included. The server's answers are a tenth of it.
const OPENING_BYTES_MAX: usize = 4096;

/// Pause between two reports, so that a page that asks once a second sees fresh ones.
const REPORT_INTERVAL: Duration = Duration::from_millis(250);

/// Runs the hidden command: holds idle clients until standard input ends. `arguments` are ADDRESS, PATH, CONNECTIONS.
pub fn hold(arguments: impl IntoIterator<Item = String>) -> ExitCode {
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let error = Report { error: Some(error.to_string()), ..Report::default() };
            let _ = write_report(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: impl IntoIterator<Item = String>) -> io::Result<()> {
    let mut arguments = arguments.into_iter();
    let usage = || io::Error::new(io::ErrorKind::InvalidInput, "expected ADDRESS PATH CONNECTIONS");
    let address = arguments.next().and_then(|text| text.parse().ok()).ok_or_else(usage)?;
    let path = arguments.next().ok_or_else(usage)?;
    let connections = arguments.next().and_then(|text| text.parse().ok()).ok_or_else(usage)?;
    // Without room for all of them, the reports say so.
    let _ = crate::os::limits::raise_open_files();
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        // Nothing is ever written there: this returns when the server closes its end, or is no more.
        let _ = io::stdin().read(&mut [0]);
        let _ = ended.send(());
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        tokio::select! {
            reported = open_and_hold(address, &path, connections, write_report) => reported,
            _ = end => Ok(()),
        }
    })
}

fn write_report(report: &Report) -> io::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    io::stdout().lock().write_all(&line)
}

/// Opens the connections and holds them, reporting what changes, until reporting fails.
async fn open_and_hold(
    address: SocketAddr,
    path: &str,
    connections: usize,
    mut tell: impl FnMut(&Report) -> io::Result<()>,
) -> io::Result<()> {
    let report = Rc::new(RefCell::new(Report::default()));
    let changed = Rc::new(Notify::new());
    let opening = Rc::new(Semaphore::new(OPENING_MAX));
    for _ in 0..connections.min(CONNECTIONS_MAX) {
        let (report, changed, opening) = (report.clone(), changed.clone(), opening.clone());
        let path = path.to_owned();
        tokio::task::spawn_local(async move {
            let ended = one(address, &path, &report, &changed, &opening).await;
            let mut report = report.borrow_mut();
            report.failed += 1;
            report.error = Some(ended.to_string());
            changed.notify_one();
        });
    }
    loop {
        changed.notified().await;
        tokio::time::sleep(REPORT_INTERVAL).await;
        let report = report.borrow().clone();
        tell(&report)?;
    }
}

/// One connection, for as long as the server keeps it; returns why it ended.
async fn one(
    address: SocketAddr,
    path: &str,
    report: &RefCell<Report>,
    changed: &Notify,
    opening: &Semaphore,
) -> io::Error {
    // The semaphore is never closed.
    let turn = opening.acquire().await;
    let mut socket = match timeout(OPENING_TIMEOUT, open(address, path)).await {
        Ok(Ok(socket)) => socket,
        Ok(Err(error)) => return error,
        Err(_) => return io::Error::new(io::ErrorKind::TimedOut, "no confirmation in time"),
    };
    drop(turn);
    report.borrow_mut().open += 1;
    changed.notify_one();
    let mut ignored = [0; 512];
    let ended = loop {
        match socket.read(&mut ignored).await {
            Ok(0) => break io::ErrorKind::UnexpectedEof.into(),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    report.borrow_mut().open -= 1;
    ended
}

async fn open(address: SocketAddr, path: &str) -> io::Result<TcpStream> {
    let mut socket = TcpStream::connect(address).await?;
    // The key is the one of RFC 6455 section 1.3: nothing here depends on its being secret.
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nOrigin: http://{address}\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: actioncable-v1-json\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).await?;
    let mut seen = Vec::new();
    expect(&mut socket, &mut seen, "\r\n\r\n").await?;
    if !seen.starts_with(b"HTTP/1.1 101 ") {
        let line = seen.split(|&byte| byte == b'\r').next().unwrap_or_default();
        return Err(io::Error::other(format!("the server answered {:?}", String::from_utf8_lossy(line))));
    }
    expect(&mut socket, &mut seen, r#""type":"welcome""#).await?;
    socket.write_all(&masked(br#"{"command":"subscribe","identifier":"{\"channel\":\"IdleChannel\"}"}"#)).await?;
    expect(&mut socket, &mut seen, r#""type":"confirm_subscription""#).await?;
    Ok(socket)
}

/// Reads until `text` came. It is looked for in the raw bytes: the texts waited for are never split by a frame's
/// header, since the server sends them whole.
async fn expect(socket: &mut TcpStream, seen: &mut Vec<u8>, text: &str) -> io::Result<()> {
    while !seen.windows(text.len()).any(|window| window == text.as_bytes()) {
        if seen.len() >= OPENING_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the server said too much"));
        }
        let mut bytes = [0; 512];
        let read = socket.read(&mut bytes).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        seen.extend_from_slice(&bytes[..read]);
    }
    Ok(())
}

/// A short text message in one frame. The masking key is zero: masking protects proxies between a browser and a
/// server (RFC 6455 section 10.3), and here are neither.
fn masked<const N: usize>(text: &[u8; N]) -> Vec<u8> {
    const { assert!(N < 126, "longer messages have a longer header") };
    let mut frame = vec![0x81, 0x80 | N as u8, 0, 0, 0, 0];
    frame.extend_from_slice(text);
    frame
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    const UPGRADED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n";

    fn text(message: &str) -> Vec<u8> {
        [&[0x81, message.len() as u8], message.as_bytes()].concat()
    }

    /// Reads up to and with `end`.
    async fn read_to(socket: &mut TcpStream, end: &str) -> Vec<u8> {
        let mut seen = Vec::new();
        expect(socket, &mut seen, end).await.unwrap();
        seen
    }

    #[tokio::test]
    async fn connections_are_upgraded_welcomed_subscribed_and_held() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let (told, mut reports) = tokio::sync::mpsc::unbounded_channel();
        let tasks = LocalSet::new();
        let hold = tasks.run_until(open_and_hold(address, "/cable", 3, move |report: &Report| {
            told.send(report.clone()).map_err(io::Error::other)
        }));
        let serve = async {
            let mut sockets = Vec::new();
            for _ in 0..2 {
                let (mut socket, _) = server.accept().await.unwrap();
                let head = read_to(&mut socket, "\r\n\r\n").await;
                assert!(head.starts_with(b"GET /cable HTTP/1.1\r\n"));
                socket.write_all(UPGRADED).await.unwrap();
                socket.write_all(&text(r#"{"type":"ping","message":1}"#)).await.unwrap();
                socket.write_all(&text(r#"{"type":"welcome"}"#)).await.unwrap();
                let command = read_to(&mut socket, "\"}").await;
                assert_eq!(&command[..2], [0x81, 0x80 | (command.len() - 6) as u8]);
                socket.write_all(&text(r#"{"type":"confirm_subscription"}"#)).await.unwrap();
                sockets.push(socket);
            }
            let (mut refused, _) = server.accept().await.unwrap();
            read_to(&mut refused, "\r\n\r\n").await;
            refused.write_all(b"HTTP/1.1 503 Service Unavailable\r\n\r\n").await.unwrap();
            let report = loop {
                let report = reports.recv().await.unwrap();
                if report.open + report.failed == 3 {
                    break report;
                }
            };
            let error = Some(r#"the server answered "HTTP/1.1 503 Service Unavailable""#.to_owned());
            assert_eq!(report, Report { open: 2, failed: 1, error });
            drop(sockets.pop());
            let report = reports.recv().await.unwrap();
            assert_eq!((report.open, report.failed), (1, 2));
        };
        tokio::select! {
            ended = hold => panic!("ended: {ended:?}"),
            () = serve => {}
        }
    }

    #[test]
    fn arguments_that_name_no_clients_are_an_error() {
        let run = |arguments: &[&str]| run(arguments.iter().map(|argument| (*argument).to_owned()));
        for arguments in [&[][..], &["127.0.0.1:1"], &["localhost", "/", "1"], &["127.0.0.1:1", "/", "many"]] {
            assert_eq!(run(arguments).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{arguments:?}");
        }
    }
}
