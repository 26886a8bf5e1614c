//! Publishes what the sample app has to say, the way every app does: a POST to the broadcast endpoint of the server.
//!
//! The app only puts messages into a bounded queue; one task posts them in order over one kept connection. A message
//! that cannot be posted is logged and lost, as with an app server that has no retry.

use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// Messages that wait to be posted; while the queue is full, the app turns people away.
pub const WAITING_MAX: usize = 256;

/// Time for one message to be posted, connecting included. Everything happens on this machine.
const POST_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a message was lost.
#[derive(Debug, thiserror::Error)]
enum PostError {
    #[error("the broadcast URL is not http://HOST:PORT/PATH")]
    Url,
    #[error("the broadcast URL or key cannot be put into a request")]
    Request,
    #[error("the connection failed")]
    Io(#[from] std::io::Error),
    #[error("the request failed")]
    Http(#[from] hyper::Error),
    #[error("the server answered {0}")]
    Status(StatusCode),
    #[error("no answer in time")]
    Timeout,
}

/// Posts what comes through `queue` to `url`, as publications for `stream`, until the queue is closed. `key` is shown
/// to the endpoint, if it wants one.
pub async fn run(stream: &'static str, mut queue: mpsc::Receiver<String>, url: String, key: Option<String>) {
    let mut connection = None;
    while let Some(message) = queue.recv().await {
        let body = serde_json::json!({ "stream": stream, "data": message }).to_string();
        let posted = tokio::time::timeout(POST_TIMEOUT, post(&mut connection, &url, key.as_deref(), body)).await;
        match posted.unwrap_or(Err(PostError::Timeout)) {
            Ok(()) => {}
            // The server has closed its door: it is shutting down, and tells the app who leaves.
            Err(PostError::Io(error)) => tracing::debug!(%error, url, "the demo has nowhere to broadcast to"),
            Err(error) => {
                let cause = std::error::Error::source(&error).map(tracing::field::display);
                tracing::warn!(%error, cause, url, "the demo could not broadcast");
            }
        }
    }
}

type Connection = SendRequest<Full<Bytes>>;

async fn post(kept: &mut Option<Connection>, url: &str, key: Option<&str>, body: String) -> Result<(), PostError> {
    let url: Uri = url.parse().map_err(|_| PostError::Url)?;
    let authority = url.authority().filter(|_| url.scheme_str() == Some("http")).ok_or(PostError::Url)?;
    let mut connection = match kept.take() {
        Some(connection) => connection,
        None => connect(authority).await?,
    };
    if connection.ready().await.is_err() {
        // The server closed it while it was idle.
        connection = connect(authority).await?;
    }
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(url.path())
        .header(HOST, authority.as_str())
        .header(CONTENT_TYPE, "application/json");
    if let Some(key) = key {
        request = request.header(AUTHORIZATION, format!("Bearer {key}"));
    }
    let request = request.body(Full::new(Bytes::from(body))).map_err(|_| PostError::Request)?;
    let response = connection.send_request(request).await?;
    let status = response.status();
    // Read to the end, or the connection cannot be used again.
    response.into_body().collect().await?;
    *kept = Some(connection);
    if status.is_success() { Ok(()) } else { Err(PostError::Status(status)) }
}

async fn connect(authority: &http::uri::Authority) -> Result<Connection, PostError> {
    let host = authority.host().trim_matches(['[', ']']);
    let socket = TcpStream::connect((host, authority.port_u16().unwrap_or(80))).await?;
    socket.set_nodelay(true)?;
    let (sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
    // Ends with the sender or the server, and either shows when the next message is posted.
    tokio::spawn(connection);
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Reads one request and returns its text.
    async fn request(socket: &mut TcpStream) -> String {
        let mut text = String::new();
        while !text.ends_with('}') {
            let mut bytes = [0; 4096];
            let read = socket.read(&mut bytes).await.unwrap();
            assert_ne!(read, 0, "ended in the middle of {text:?}");
            text.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
        }
        text
    }

    #[tokio::test]
    async fn messages_are_posted_in_order_and_again_after_the_server_closed() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/_broadcast", server.local_addr().unwrap());
        let (queue, receiver) = mpsc::channel(WAITING_MAX);
        let run = tokio::spawn(run("chat:lobby", receiver, url, Some("k3y".to_owned())));
        queue.send(r#"{"n":1}"#.to_owned()).await.unwrap();
        queue.send(r#"{"n":2}"#.to_owned()).await.unwrap();
        let (mut socket, _) = server.accept().await.unwrap();
        for n in 1..=2 {
            let text = request(&mut socket).await;
            assert!(text.starts_with("POST /_broadcast HTTP/1.1\r\n"), "{text}");
            assert!(text.contains("\r\nauthorization: Bearer k3y\r\n"), "{text}");
            assert!(text.ends_with(&format!(r#"{{"data":"{{\"n\":{n}}}","stream":"chat:lobby"}}"#)), "{text}");
            socket.write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        }
        socket.shutdown().await.unwrap();
        // Its end has been seen by the client once the client has closed, too.
        assert_eq!(socket.read(&mut [0; 1]).await.unwrap(), 0);
        queue.send(r#"{"n":3}"#.to_owned()).await.unwrap();
        let (mut socket, _) = server.accept().await.unwrap();
        assert!(request(&mut socket).await.contains(r#"\"n\":3"#));
        // An answer that says no costs this message, not the next one.
        socket.write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        queue.send(r#"{"n":4}"#.to_owned()).await.unwrap();
        assert!(request(&mut socket).await.contains(r#"\"n\":4"#));
        drop(queue);
        socket.write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        run.await.unwrap();
    }
}
