//! The sample app: what a developer would write in Rails or Laravel, here as a gRPC server in the same process.
//!
//! Cableway calls it over loopback like any other app server. It keeps nothing per connection but an entry in the
//! [`Room`], and everything it says to everybody leaves through the [`publisher`](super::publisher).

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::mpsc;
use tonic::{Request, Status};

use super::room::{Asked, Refused, Room, Told};
use crate::backend::grpc::messages::{
    CommandMessage, CommandResponse, ConnectionRequest, ConnectionResponse, DisconnectRequest, DisconnectResponse, Env,
    Status as Verdict,
};
use crate::backend::grpc::server::Rpc;
use crate::os::clock::Clock;

/// The stream that everybody in the room follows.
pub const STREAM: &str = "chat:lobby";

/// Longest name that a tab may give itself, so that it keeps its colour when it reconnects.
const WHO_CHARS_MAX: usize = 32;

/// Messages to everybody that one command makes at most: a new name and a line.
const TOLD_MAX: usize = 2;

/// The app.
pub struct App {
    /// Taken for one decision at a time, never while waiting; what is told leaves in the order of decisions.
    room: Mutex<Room>,
    queue: mpsc::Sender<String>,
    clock: Clock,
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
    /// An app that nobody uses yet. `queue` leads to the publisher; `epoch` is different every time.
    pub fn new(epoch: String, queue: mpsc::Sender<String>, clock: Clock) -> App {
        App { room: Mutex::new(Room::new(epoch)), queue, clock }
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        // A panic leaves the room consistent: decisions are made before anything is changed.
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn at(&self) -> u64 {
        u64::try_from(self.clock.now().unix.as_millis()).unwrap_or(u64::MAX)
    }

    /// Carries out what a client asks and queues what everybody is told about it: all of it or, when there is no
    /// room in the queue, nothing.
    fn ask(&self, identifiers: &str, asked: Asked) -> Result<(), Refused> {
        let mut room = self.room();
        let places = self.queue.try_reserve_many(TOLD_MAX).map_err(|_| Refused::Busy)?;
        let told = match asked {
            Asked::Join { name } => {
                let Identifiers { who, .. } = serde_json::from_str(identifiers).map_err(|_| Refused::NotHere)?;
                room.join(identifiers, &who, &name, self.at())?.into_iter().collect()
            }
            Asked::Say { text, name } => room.say(identifiers, &name, &text, self.at())?,
            Asked::Typing => vec![room.typing(identifiers)?],
        };
        for (place, told) in places.zip(told) {
            place.send(told);
        }
        Ok(())
    }

    fn leave(&self, identifiers: &str) {
        let mut room = self.room();
        if let Some(told) = room.leave(identifiers, self.at()) {
            // With a full queue this note is lost; the next one tells the right number.
            let _ = self.queue.try_send(told);
        }
    }

    fn answer(&self, call: &CommandMessage) -> CommandResponse {
        let CommandMessage { command, identifier, connection_identifiers: who, data, .. } = call;
        let channel = serde_json::from_str(identifier).ok();
        match (command.as_str(), channel) {
            ("subscribe", Some(Channel::Chat { room })) if room == "lobby" => {
                let Ok(Identifiers { who, .. }) = serde_json::from_str(who) else {
                    return failed("not identifiers of this app");
                };
                let hello = transmission(identifier, &self.room().hello(&who));
                subscribed(vec![confirmation(identifier), hello])
            }
            ("subscribe", Some(Channel::Idle)) => subscribed(vec![confirmation(identifier)]),
            ("subscribe", _) => {
                let rejection = json!({ "type": "reject_subscription", "identifier": identifier }).to_string();
                CommandResponse {
                    status: Verdict::Failure.into(),
                    transmissions: vec![rejection],
                    ..CommandResponse::default()
                }
            }
            ("unsubscribe", channel) => {
                if let Some(Channel::Chat { .. }) = channel {
                    self.leave(who);
                }
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

    async fn disconnect(&self, request: Request<DisconnectRequest>) -> Result<DisconnectResponse, Status> {
        self.leave(&request.get_ref().identifiers);
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

fn subscribed(transmissions: Vec<String>) -> CommandResponse {
    CommandResponse {
        status: Verdict::Success.into(),
        streams: vec![STREAM.to_owned()],
        transmissions,
        ..CommandResponse::default()
    }
}

fn failed(why: &str) -> CommandResponse {
    CommandResponse { status: Verdict::Error.into(), error_msg: why.to_owned(), ..CommandResponse::default() }
}

#[cfg(test)]
mod tests;
