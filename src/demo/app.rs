//! The sample app: what a developer would write in Rails or Laravel, here as a gRPC server in the same process.
//!
//! Cableway calls it over loopback like any other app server. It keeps nothing: who is there, who is writing and what was
//! said before is known to Cableway, which it tells the stream for that. What it says to everybody leaves through the
//! [`publisher`](super::publisher).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::mpsc;
use tonic::{Request, Status};

use super::chat::{self, Asked, Line, Refused, Told};
use crate::backend::grpc::messages::{
    CommandMessage, CommandResponse, ConnectionRequest, ConnectionResponse, DisconnectRequest, DisconnectResponse, Env,
    EnvResponse, Status as Verdict,
};
use crate::backend::grpc::server::Rpc;
use crate::os::clock::Clock;

/// The stream that everybody in the room follows.
pub const STREAM: &str = "chat:lobby";

/// Longest name that a tab may give itself, so that it keeps its colour when it reconnects.
const WHO_CHARS_MAX: usize = 32;

/// Lines that the clock says, a second apart, while a page has cut its network: for somebody who is alone in the room.
const TICKS: u32 = 5;

/// The app.
pub struct App {
    queue: mpsc::Sender<String>,
    clock: Clock,
    /// The clock is talking.
    ticks: AtomicBool,
}

/// Who a connection is; Cableway hands it back with every call. The session id makes it unique.
#[derive(Serialize, Deserialize)]
struct Identifiers {
    sid: String,
    who: String,
}

/// Channels of the app, as clients name them.
#[derive(Deserialize)]
#[serde(tag = "channel")]
enum Channel {
    #[serde(rename = "ChatChannel")]
    Chat { room: String },
    /// For connections that only hold: they hear the room and are nobody in it.
    #[serde(rename = "IdleChannel")]
    Idle,
}

impl App {
    /// An app that nobody uses yet. `queue` leads to the publisher.
    pub fn new(queue: mpsc::Sender<String>, clock: Clock) -> App {
        App { queue, clock, ticks: AtomicBool::new(false) }
    }

    /// Lets the clock talk for some seconds, unless it does already.
    pub async fn tick(&self) {
        if self.ticks.swap(true, Ordering::Relaxed) {
            return;
        }
        // By then the page has closed its connection.
        tokio::time::sleep(Duration::from_millis(500)).await;
        for tick in 1..=TICKS {
            let text = format!("tick {tick} of {TICKS}");
            let line = Line { who: "clock", name: "Clock", text: &text, at: self.at() };
            // With a full queue this tick is lost; others have much to say then.
            let _ = self.queue.try_send(Told::Line(line).json());
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        self.ticks.store(false, Ordering::Relaxed);
    }

    fn at(&self) -> u64 {
        u64::try_from(self.clock.now().unix.as_millis()).unwrap_or(u64::MAX)
    }

    /// Carries out what a client asks and queues what everybody is told about it.
    fn ask(&self, identifiers: &str, asked: Asked) -> Result<(), Refused> {
        let Asked::Say { text, name } = asked;
        // Cableway hands back what `connect` made.
        let who = serde_json::from_str(identifiers).map_or_else(|_| String::new(), |Identifiers { who, .. }| who);
        let told = chat::say(&who, &name, &text, self.at())?;
        self.queue.try_send(told).map_err(|_| Refused::Busy)
    }

    fn answer(&self, call: &CommandMessage) -> CommandResponse {
        let CommandMessage { command, identifier, connection_identifiers: who, data, .. } = call;
        let channel = serde_json::from_str(identifier).ok();
        match (command.as_str(), channel) {
            ("subscribe", Some(Channel::Chat { room })) if room == "lobby" => {
                // Subscribers may whisper on the stream, and see there who comes and goes.
                let istate = ["$w", "$p"].map(|key| (key.to_owned(), STREAM.to_owned()));
                let env = EnvResponse { istate: BTreeMap::from(istate), ..EnvResponse::default() };
                CommandResponse { env: Some(env), ..subscribed(identifier) }
            }
            ("subscribe", Some(Channel::Idle)) => subscribed(identifier),
            ("subscribe", _) => {
                let rejection = json!({ "type": "reject_subscription", "identifier": identifier }).to_string();
                CommandResponse {
                    status: Verdict::Failure.into(),
                    transmissions: vec![rejection],
                    ..CommandResponse::default()
                }
            }
            ("unsubscribe", _) => {
                CommandResponse { status: Verdict::Success.into(), stop_streams: true, ..CommandResponse::default() }
            }
            ("message", Some(Channel::Chat { .. })) => match serde_json::from_str(data) {
                Ok(asked) => {
                    let refused = self.ask(who, asked).err().map(|refused| {
                        let text = refused.to_string();
                        transmission(identifier, &Told::Refused { text: &text }.json())
                    });
                    CommandResponse {
                        status: Verdict::Success.into(),
                        transmissions: refused.into_iter().collect(),
                        ..CommandResponse::default()
                    }
                }
                Err(error) => failed(&format!("no such action: {error}")),
            },
            _ => failed("no such command or channel"),
        }
    }
}

impl Rpc for App {
    async fn connect(&self, request: Request<ConnectionRequest>) -> Result<ConnectionResponse, Status> {
        let sid = request.metadata().get("sid").and_then(|sid| sid.to_str().ok()).unwrap_or_default().to_owned();
        let who = request.get_ref().env.as_ref().and_then(asked_name).unwrap_or_else(|| sid.clone());
        let welcome = json!({ "type": "welcome", "sid": sid }).to_string();
        // Two strings always make JSON.
        let identifiers = serde_json::to_string(&Identifiers { sid, who }).unwrap_or_default();
        Ok(ConnectionResponse {
            status: Verdict::Success.into(),
            identifiers,
            transmissions: vec![welcome],
            ..ConnectionResponse::default()
        })
    }

    async fn command(&self, request: Request<CommandMessage>) -> Result<CommandResponse, Status> {
        Ok(self.answer(request.get_ref()))
    }

    async fn disconnect(&self, _: Request<DisconnectRequest>) -> Result<DisconnectResponse, Status> {
        Ok(DisconnectResponse { status: Verdict::Success.into(), error_msg: String::new() })
    }
}

/// The `who` that a page adds to its URL. `None` for anything that no page of ours adds.
fn asked_name(env: &Env) -> Option<String> {
    let (_, query) = env.url.split_once('?')?;
    let (_, who) = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "who")?;
    let fits = (1..=WHO_CHARS_MAX).contains(&who.len()) && who.bytes().all(|byte| byte.is_ascii_alphanumeric());
    fits.then(|| who.into_owned())
}

fn confirmation(identifier: &str) -> String {
    json!({ "type": "confirm_subscription", "identifier": identifier }).to_string()
}

/// Wraps a message, which is JSON text, for one client.
fn transmission(identifier: &str, message: &str) -> String {
    format!(r#"{{"identifier":{},"message":{message}}}"#, serde_json::Value::from(identifier))
}

fn subscribed(identifier: &str) -> CommandResponse {
    CommandResponse {
        status: Verdict::Success.into(),
        streams: vec![STREAM.to_owned()],
        transmissions: vec![confirmation(identifier)],
        ..CommandResponse::default()
    }
}

fn failed(why: &str) -> CommandResponse {
    CommandResponse { status: Verdict::Error.into(), error_msg: why.to_owned(), ..CommandResponse::default() }
}

#[cfg(test)]
mod tests;
