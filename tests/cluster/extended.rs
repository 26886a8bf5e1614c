//! Clients of the extended protocol, which know positions and ask for what they missed, and what is held of what they get.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::client::{Client, http, identifier, json_string, response_head, try_connect};
use crate::server::Server;

/// A client of the extended protocol, and the `sid` of its welcome.
pub fn extended(address: SocketAddr, sid: Option<&str>) -> (Client, Value) {
    try_extended(address, sid).expect("a server that lets it in")
}

/// The same where the server may not run, or may be about to end.
pub fn try_extended(address: SocketAddr, sid: Option<&str>) -> io::Result<(Client, Value)> {
    let mut socket = try_connect(address)?;
    let query = sid.map_or_else(String::new, |sid| format!("?sid={sid}"));
    let request = format!(
        "GET /cable{query} HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: actioncable-v1-ext-json\r\n\r\n"
    );
    socket.write_all(request.as_bytes())?;
    let response = response_head(&mut socket)?;
    if response.status != 101 {
        return Err(io::Error::other(format!("{response:?}")));
    }
    let mut client = Client::on(socket, response.rest);
    loop {
        let said = client.0.read().map_err(io::Error::other)?;
        let said = json(said.to_text().map_err(io::Error::other)?);
        match said["type"].as_str() {
            Some("welcome") => return Ok((client, said)),
            // While the server looks for the session.
            Some("ping") => {}
            _ => return Err(io::Error::other(said.to_string())),
        }
    }
}

pub fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

/// The next message of a stream: its offset, its epoch, and what it says.
pub fn message(client: &mut Client) -> (u64, String, Value) {
    let text = client.text();
    let mut message = json(&text);
    let offset = message["offset"].as_u64().unwrap_or_else(|| panic!("no position: {text}"));
    let epoch = message["epoch"].as_str().expect("an epoch").to_owned();
    (offset, epoch, message["message"].take())
}

pub fn ask_history(client: &mut Client, stream: &str, history: &str) {
    let identifier = json_string(&identifier(stream));
    client.send(&format!("{{\"command\":\"history\",\"identifier\":{identifier},\"history\":{history}}}"));
}

/// What history gives: the messages' numbers; or none if it was rejected.
pub fn history(client: &mut Client, stream: &str, history: &str) -> Option<Vec<u64>> {
    ask_history(client, stream, history);
    let mut messages = Vec::new();
    loop {
        let answer = json(&client.text());
        match answer["type"].as_str() {
            Some("confirm_history") => return Some(messages),
            Some("reject_history") => return None,
            _ => messages.push(answer["message"].as_u64().expect("a number")),
        }
    }
}

pub fn behind(stream: &str, epoch: &str, offset: u64) -> String {
    format!("{{\"streams\":{{{}:{{\"epoch\":{},\"offset\":{offset}}}}}}}", json_string(stream), json_string(epoch))
}

/// Publishes numbers one after the other, every 40 ms, to one node, until it is told to stop; gives how many.
pub fn publish_until(address: SocketAddr, stream: &str, first: u64, step: u64, stop: &AtomicBool) -> u64 {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let n = first + count * step;
        let body = format!("{{\"stream\":{},\"data\":\"{n}\"}}", json_string(stream));
        let response = http(address, "POST", "/_broadcast", &body).expect("an answer");
        assert_eq!(response.status, 201, "{response:?}");
        count += 1;
        thread::sleep(Duration::from_millis(40));
    }
    count
}

/// Reads until so many have come, and holds that each comes once, without a gap, and those of each publisher in order.
pub fn all_come(client: &mut Client, per_publisher: [u64; 2]) {
    let mut next = [0, 1];
    let mut last = None;
    for _ in 0..per_publisher[0] + per_publisher[1] {
        let (offset, _, said) = message(client);
        assert!(last.is_none_or(|last| offset == last + 1), "{last:?} then {offset}");
        last = Some(offset);
        let n = said.as_u64().expect("a number");
        let publisher = n as usize % 2;
        assert_eq!(n, next[publisher], "in the order of its publisher");
        next[publisher] += 2;
    }
    assert_eq!(next, [2 * per_publisher[0], 2 * per_publisher[1] + 1]);
}

/// What is said of who is present: the kind and the id.
pub fn presence(client: &mut Client) -> (String, String) {
    let text = client.text();
    let event = json(&text);
    assert_eq!(event["type"], "presence", "{text}");
    let said = |name: &str| event["message"][name].as_str().unwrap_or_default().to_owned();
    (said("type"), said("id"))
}

pub fn join(client: &mut Client, stream: &str, id: &str) {
    let identifier = json_string(&identifier(stream));
    client.send(&format!(
        "{{\"command\":\"join\",\"identifier\":{identifier},\"presence\":{{\"id\":\"{id}\",\"info\":{{\"n\":1}}}}}}"
    ));
}

/// Ends publishers also when a test fails.
pub struct Stop<'a>(pub &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Holds that nothing of this was counted.
pub fn are_zero(node: &Server, names: &[&str]) {
    let metrics = node.metrics();
    names.iter().for_each(|name| assert_eq!(metrics.get(name), 0, "{name}"));
}
