//! Clients: plain sockets that speak just enough HTTP, and tungstenite behind a handshake of our own.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tungstenite::{Message, WebSocket};

use crate::server::SOON;

/// An HTTP response.
#[derive(Debug, Default)]
pub struct Response {
    pub status: u16,
    head: String,
    pub body: String,
    /// Bytes behind the head; the first frames of a WebSocket.
    pub rest: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        headers.find(|(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

/// A connection on which every wait has an end.
pub fn connect(address: SocketAddr) -> TcpStream {
    try_connect(address).expect("connected")
}

/// The same to a server that may not run.
pub fn try_connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpStream::connect_timeout(&address, SOON)?;
    socket.set_read_timeout(Some(SOON)).expect("set");
    socket.set_write_timeout(Some(SOON)).expect("set");
    socket.set_nodelay(true).expect("set");
    Ok(socket)
}

/// One request on a connection of its own.
pub fn http(address: SocketAddr, method: &str, path: &str, body: &str) -> io::Result<Response> {
    http_on(connect(address), method, path, body)
}

/// One request, which is the last on its connection.
pub fn http_on(mut socket: TcpStream, method: &str, path: &str, body: &str) -> io::Result<Response> {
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    socket.write_all(head.as_bytes())?;
    whole_response(&mut socket)
}

/// Reads a response up to the end of the stream.
pub fn whole_response(socket: &mut TcpStream) -> io::Result<Response> {
    let mut bytes = Vec::new();
    socket.read_to_end(&mut bytes)?;
    response(bytes).ok_or_else(|| io::Error::new(ErrorKind::UnexpectedEof, "closed before the end of a response"))
}

/// Reads the head of a response and what came with it.
pub fn response_head(socket: &mut TcpStream) -> io::Result<Response> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    while !bytes.windows(4).any(|end| end == b"\r\n\r\n") {
        match socket.read(&mut piece)? {
            0 => return Err(io::Error::new(ErrorKind::UnexpectedEof, format!("closed after {} bytes", bytes.len()))),
            n => bytes.extend_from_slice(&piece[..n]),
        }
    }
    Ok(response(bytes).expect("a whole head"))
}

fn response(bytes: Vec<u8>) -> Option<Response> {
    let end = bytes.windows(4).position(|end| end == b"\r\n\r\n")? + 4;
    let head = String::from_utf8(bytes[..end].to_vec()).expect("a head is text");
    let status = head.split(' ').nth(1)?.parse().expect("a status");
    let rest = bytes[end..].to_vec();
    Some(Response { status, head, body: String::from_utf8_lossy(&rest).into_owned(), rest })
}

/// The head of an upgrade request.
pub fn upgrade_request(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: actioncable-v1-json\r\n\r\n"
    )
}

/// Asks for an upgrade; `Err` is what was answered instead of 101.
pub fn try_upgrade(address: SocketAddr, path: &str) -> Result<Client, Response> {
    upgrade_on(connect(address), path)
}

/// The same on a connection that is open already.
pub fn upgrade_on(mut socket: TcpStream, path: &str) -> Result<Client, Response> {
    socket.write_all(upgrade_request(path).as_bytes()).expect("sent");
    let response = response_head(&mut socket).expect("an answer");
    if response.status != 101 {
        return Err(response);
    }
    Ok(Client::on(socket, response.rest))
}

pub fn upgrade(address: SocketAddr, path: &str) -> Client {
    try_upgrade(address, path).unwrap_or_else(|response| panic!("no upgrade: {response:?}"))
}

/// A JSON string.
pub fn json_string(text: &str) -> String {
    serde_json::to_string(text).expect("text is JSON")
}

/// The identifier under which a public stream is followed.
pub fn identifier(stream: &str) -> String {
    format!("{{\"channel\":\"$pubsub\",\"stream_name\":\"{stream}\"}}")
}

/// An open WebSocket.
pub struct Client(pub WebSocket<TcpStream>);

impl Client {
    pub fn on(socket: TcpStream, already_read: Vec<u8>) -> Client {
        let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        Client(WebSocket::from_partially_read(socket, already_read, Role::Client, Some(config)))
    }

    /// Connects to Action Cable and takes the welcome.
    pub fn welcomed(address: SocketAddr) -> Client {
        let mut client = upgrade(address, "/cable");
        let welcome = client.text();
        assert!(welcome.starts_with("{\"type\":\"welcome\""), "{welcome}");
        client
    }

    /// Connects and follows a stream.
    pub fn following(address: SocketAddr, stream: &str) -> Client {
        let mut client = Client::welcomed(address);
        client.follow(stream);
        client
    }

    pub fn follow(&mut self, stream: &str) {
        let identifier = json_string(&identifier(stream));
        self.send(&format!("{{\"command\":\"subscribe\",\"identifier\":{identifier}}}"));
        let confirmed = self.text();
        assert!(confirmed.contains("confirm_subscription"), "{confirmed}");
    }

    pub fn send(&mut self, text: &str) {
        self.0.send(Message::text(text)).expect("sent");
    }

    /// Bytes as they are, past tungstenite.
    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).expect("sent");
    }

    /// The next text that is no ping.
    pub fn text(&mut self) -> String {
        loop {
            match self.0.read().expect("a message") {
                Message::Text(text) if text.starts_with("{\"type\":\"ping\"") => {}
                Message::Text(text) => return text.to_string(),
                other => panic!("no text but {other:?}"),
            }
        }
    }

    /// The next message, which has to be the server's close frame.
    pub fn close_frame(&mut self) -> (u16, String) {
        match self.0.read().expect("a close frame") {
            Message::Close(Some(CloseFrame { code, reason })) => (code.into(), reason.to_string()),
            other => panic!("no close frame but {other:?}"),
        }
    }

    /// Reads the end of the stream: nothing more may come.
    pub fn ends(&mut self) {
        self.0.flush().ok();
        match self.0.get_mut().read(&mut [0; 64]) {
            Ok(0) => {}
            other => panic!("not the end of the stream but {other:?}"),
        }
    }

    /// Leaves without a word.
    pub fn leave(self) {
        let _ = self.0.get_ref().shutdown(Shutdown::Both);
    }
}
