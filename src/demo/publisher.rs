//! Publishes what the sample app has to say, the way every app does: a POST to the broadcast endpoint of the server.
//!
//! The app only puts messages into a bounded queue; one task posts them in order over one kept connection. A message
//! that cannot be posted is logged and lost, as with an app server that has no retry.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::TokioExecutor;
use tokio::sync::mpsc;

/// Messages that wait to be posted; while the queue is full, the app turns people away.
pub const WAITING_MAX: usize = 256;

/// Time for one message to be posted, connecting included. Everything happens on this machine.
const POST_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a message was lost.
#[derive(Debug, thiserror::Error)]
enum PostError {
    #[error("the broadcast URL or key cannot be put into a request")]
    Request(#[from] http::Error),
    #[error("the request failed")]
    Send(#[from] legacy::Error),
    #[error("the answer broke off")]
    Answer(#[from] hyper::Error),
    #[error("the server answered {0}")]
    Status(StatusCode),
    #[error("no answer in time")]
    Timeout,
}

/// Posts what comes through `queue` to `url`, as publications for `stream`, until the queue is closed. `key` is shown
/// to the endpoint, if it wants one.
pub async fn run(stream: &'static str, mut queue: mpsc::Receiver<String>, url: String, key: Option<String>) {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new()).build(connector);
    while let Some(message) = queue.recv().await {
        let body = serde_json::json!({ "stream": stream, "data": message }).to_string();
        let posted = tokio::time::timeout(POST_TIMEOUT, post(&client, &url, key.as_deref(), body)).await;
        match posted.unwrap_or(Err(PostError::Timeout)) {
            Ok(()) => {}
            // The server no longer listens: it is shutting down, and tells the app who leaves.
            Err(PostError::Send(error)) if error.is_connect() => {
                tracing::debug!(%error, url, "the demo has nowhere to broadcast to");
            }
            Err(error) => {
                let cause = error.source().map(tracing::field::display);
                tracing::warn!(%error, cause, url, "the demo could not broadcast");
            }
        }
    }
}

async fn post(
    client: &Client<HttpConnector, Full<Bytes>>,
    url: &str,
    key: Option<&str>,
    body: String,
) -> Result<(), PostError> {
    let mut request = Request::post(url).header(CONTENT_TYPE, "application/json");
    if let Some(key) = key {
        request = request.header(AUTHORIZATION, format!("Bearer {key}"));
    }
    let response = client.request(request.body(Full::from(body))?).await?;
    let status = response.status();
    // Read to the end, or the connection cannot be used again.
    response.into_body().collect().await?;
    if status.is_success() { Ok(()) } else { Err(PostError::Status(status)) }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

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
