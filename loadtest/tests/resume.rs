//! Clients that go on with their sessions, against a server that somebody else's library carries (tungstenite) and that
//! keeps the contract, or breaks it in one way: each way must be counted as what it is.

use std::collections::HashSet;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cableway_loadtest::clock;
use cableway_loadtest::engine::{BadNetwork, Collected, Counts, Engine, Goodbye, Pace, Settings, Sources};
use cableway_loadtest::protocol::{self, Protocol, Script, Target};
use serde_json::{Value, json};
use tungstenite::handshake::server::{Request, Response};
use tungstenite::{Error, Message, WebSocket, accept_hdr};

const LIMIT: Duration = Duration::from_secs(20);
const CLIENTS: u32 = 20;
const IDENTIFIER: &str = r#"{"channel":"Test"}"#;
const SUBPROTOCOL: &str = "actioncable-v1-ext-json";

/// What a server does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// The first missed message does not come.
    Loses,
    /// The last message before the absence comes again.
    Doubles,
    /// Missed messages come newest first.
    Reverses,
    /// What was missed is gone.
    Gone,
    /// Sessions are not kept, history is.
    Forgets,
}

/// One stream, its history, and the sessions that wait.
struct Server {
    fault: Fault,
    log: Mutex<Vec<String>>,
    sessions: Mutex<HashSet<String>>,
}

impl Server {
    fn start(fault: Fault) -> (Arc<Self>, SocketAddr) {
        let server = Arc::new(Self { fault, log: Mutex::default(), sessions: Mutex::default() });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::clone(&server);
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().flatten().enumerate() {
                let server = Arc::clone(&shared);
                // Ends with an error when its client goes.
                std::thread::spawn(move || server.serve(stream, &format!("session-{number}")));
            }
        });
        (server, address)
    }

    fn publish(&self) {
        let mut log = self.log.lock().unwrap();
        let mark = protocol::mark(log.len() as u32, clock::now_ns());
        let offset = log.len() + 1;
        log.push(
            json!({ "identifier": IDENTIFIER, "message": mark, "stream_id": "s", "epoch": "e", "offset": offset })
                .to_string(),
        );
    }

    #[allow(clippy::result_large_err, reason = "the type is tungstenite's")]
    fn serve(&self, stream: TcpStream, sid: &str) -> Result<(), Error> {
        let mut asked = None;
        let mut socket = accept_hdr(stream, |request: &Request, mut response: Response| {
            assert_eq!(request.headers()["sec-websocket-protocol"], SUBPROTOCOL);
            asked = request.uri().query().and_then(|query| query.strip_prefix("sid=")).map(str::to_owned);
            response.headers_mut().insert("sec-websocket-protocol", SUBPROTOCOL.parse().unwrap());
            Ok(response)
        })
        .map_err(|_| Error::ConnectionClosed)?;
        let restored = {
            let mut sessions = self.sessions.lock().unwrap();
            sessions.insert(sid.to_owned());
            asked.is_some_and(|asked| sessions.remove(&asked)) && self.fault != Fault::Forgets
        };
        let welcome = match restored {
            true => json!({ "type": "welcome", "sid": sid, "restored": true, "restored_ids": [IDENTIFIER] }),
            false => json!({ "type": "welcome", "sid": sid }),
        };
        socket.send(Message::text(welcome.to_string()))?;
        // Read for a moment, then see what there is to send.
        socket.get_ref().set_read_timeout(Some(Duration::from_millis(2)))?;
        let mut sent = None;
        loop {
            match socket.read() {
                Ok(Message::Text(text)) => {
                    sent = self.answer(&mut socket, &serde_json::from_str(&text).unwrap(), sent)?
                }
                Ok(_) => {}
                Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if let Some(sent) = &mut sent {
                let fresh = self.log.lock().unwrap()[*sent..].to_vec();
                *sent += fresh.len();
                fresh.into_iter().try_for_each(|message| socket.send(Message::text(message)))?;
            }
        }
    }

    /// Answers a command; gives up to where the log has been sent.
    #[allow(clippy::result_large_err, reason = "the type is tungstenite's")]
    fn answer(
        &self,
        socket: &mut WebSocket<TcpStream>,
        command: &Value,
        sent: Option<usize>,
    ) -> Result<Option<usize>, Error> {
        let mut say = |message: Value| socket.send(Message::text(message.to_string()));
        assert_eq!(command["identifier"], IDENTIFIER);
        // Before the confirmation: whoever has that gets all that is published from then on.
        let log = self.log.lock().unwrap().clone();
        if command["command"] == "subscribe" {
            say(json!({ "type": "confirm_subscription", "identifier": IDENTIFIER }))?;
        }
        let Some(history) = command.get("history") else { return Ok(sent.or(Some(log.len()))) };
        if self.fault == Fault::Gone {
            say(json!({ "type": "reject_history", "identifier": IDENTIFIER }))?;
            return Ok(Some(log.len()));
        }
        let position = &history["streams"]["s"];
        assert!(history["since"].as_u64().unwrap() > 1_700_000_000);
        let from = position["offset"].as_u64().map_or(0, |offset| offset as usize);
        assert!(from == 0 || position["epoch"] == "e");
        let mut missed = match self.fault {
            Fault::Loses => log[(from + 1).min(log.len())..].to_vec(),
            Fault::Doubles => log[from.saturating_sub(1)..].to_vec(),
            _ => log[from..].to_vec(),
        };
        if self.fault == Fault::Reverses {
            missed.reverse();
        }
        missed.into_iter().try_for_each(|message| socket.send(Message::text(message)))?;
        socket.send(Message::text(json!({ "type": "confirm_history", "identifier": IDENTIFIER }).to_string()))?;
        Ok(Some(log.len()))
    }
}

fn opened(server: SocketAddr) -> Engine {
    let target = Target { authority: server.to_string(), path: "/".into() };
    let engine = Engine::start(&Settings {
        servers: vec![server],
        script: Script::new(Protocol::ActionCableExt, &target, 0, Some(IDENTIFIER)),
        connections: CLIENTS,
        first_number: 0,
        lanes: 2,
        sources: Sources::for_servers(&[server], CLIENTS),
        ready_timeout: Duration::from_secs(10),
        retry_after: None,
        ping_late_after: None,
    })
    .unwrap();
    engine.open(Pace::Window(16));
    all_ready(&engine);
    engine
}

fn all_ready(engine: &Engine) {
    assert!(engine.wait(LIMIT, |counts| counts.ready_now() == u64::from(CLIENTS)), "{:?}", engine.counts());
}

/// Three messages while all are there, five while all are away, and two after they have come back.
fn storm(fault: Fault) -> (Counts, Collected) {
    let (server, address) = Server::start(fault);
    let engine = opened(address);
    (0..3).for_each(|_| server.publish());
    let clients = u64::from(CLIENTS);
    assert!(engine.wait(LIMIT, |counts| counts.marked == 3 * clients));
    engine.drop_share(1.0, Goodbye::Reset);
    assert!(engine.wait(LIMIT, |counts| counts.ready_now() == 0));
    (0..5).for_each(|_| server.publish());
    engine.open(Pace::Storm);
    all_ready(&engine);
    let before = engine.counts().marked;
    (0..2).for_each(|_| server.publish());
    assert!(engine.wait(LIMIT, |counts| counts.marked == before + 2 * clients), "{:?}", engine.counts());
    (engine.counts(), engine.collect(10))
}

/// Counted for each client: lost, doubled, out of order, by replay.
fn counted((counts, collected): &(Counts, Collected)) -> [u64; 4] {
    let lost = counts.lost_between() + collected.missing_at_end;
    [lost, counts.duplicated, counts.reordered, counts.replayed].map(|count| count / u64::from(CLIENTS))
}

#[test]
fn what_was_missed_comes_by_replay_and_each_fault_of_a_server_is_counted_as_what_it_is() {
    for (fault, wanted) in [
        (Fault::None, [0, 0, 0, 5]),
        (Fault::Loses, [1, 0, 0, 4]),
        (Fault::Doubles, [0, 1, 0, 6]),
        (Fault::Reverses, [0, 0, 4, 5]),
        (Fault::Gone, [5, 0, 0, 0]),
        (Fault::Forgets, [0, 0, 0, 5]),
    ] {
        let storm = storm(fault);
        assert_eq!(counted(&storm), wanted, "{fault:?}");
        let (counts, collected) = storm;
        let clients = u64::from(CLIENTS);
        let (restored, anew) = if fault == Fault::Forgets { (0, clients) } else { (clients, 0) };
        assert_eq!((counts.restored, counts.anew), (restored, anew), "{fault:?}");
        assert_eq!(counts.unrecoverable, if fault == Fault::Gone { clients } else { 0 }, "{fault:?}");
        assert_eq!(collected.replay_us.len(), counts.replayed);
        assert_eq!(counts.failed(), 0, "{}", counts.failure_words());
    }
}

#[test]
fn on_a_bad_network_everybody_is_dropped_in_turn_and_nobody_misses_anything() {
    let (server, address) = Server::start(Fault::None);
    let engine = opened(address);
    let (drop_every, drop_for) = (Duration::from_millis(600), Duration::from_millis(200));
    engine.bad_network(Some(BadNetwork { drop_every, drop_for }));
    let mut published = 0;
    // Everybody has been away twice.
    while engine.counts().dropped < 2 * u64::from(CLIENTS) {
        server.publish();
        published += 1;
        std::thread::sleep(Duration::from_millis(10));
    }
    engine.bad_network(None);
    // Its answer says that the lanes have taken the order before.
    engine.collect(0);
    all_ready(&engine);
    assert!(engine.wait(LIMIT, |counts| counts.marked == u64::from(published * CLIENTS)), "{:?}", engine.counts());
    let counts = engine.counts();
    assert_eq!((counts.skipped, counts.duplicated, counts.reordered, counts.lost), (0, 0, 0, 0));
    assert_eq!(engine.collect(published).missing_at_end, 0);
    assert_eq!((counts.restored, counts.anew), (counts.dropped, 0));
    assert!(counts.replayed > 0);
}
