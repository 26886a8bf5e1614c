//! A node ends, by a crash or because it is told to, and starts again where it was, while messages are published without a
//! pause. Its clients come back to it. What each client gets is held against what was taken.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tungstenite::Message;

use crate::client::{Client, http, http_on, identifier, json_string, try_connect};
use crate::engine::{Engine, Use, for_both};
use crate::extended::{Stop, behind, json, try_extended};
use crate::server::{SOON, Server, Start};
use crate::servers::{free_port, until};

for_both! {
    with_a_broker_a_crash_costs_nothing,
    with_a_broker_an_orderly_restart_costs_nothing_and_sessions_go_on,
    without_a_broker_a_crash_costs_what_came_while_clients_were_away,
    without_a_broker_an_orderly_restart_costs_what_came_while_clients_were_away,
}

/// Streams that every client follows. Each has a publisher of its own.
const STREAMS: [&str; 2] = ["one", "other"];

/// Clients of the node that stays, and of the one that is started again.
const CLIENTS: [usize; 2] = [2, 6];

/// The sleep between two publications to a stream.
const PAUSE: Duration = Duration::from_millis(4);

/// How a node ends.
#[derive(Clone, Copy, PartialEq)]
enum End {
    /// It is killed.
    Crash,
    /// It is told to end.
    Told,
}

/// Publishes numbers to a stream until it is told to stop, at the first of these nodes, or at the second while the first
/// takes none, and then [`END`]. Gives what became of each number.
fn publish(stream: &str, nodes: [SocketAddr; 2], stop: &AtomicBool) -> Vec<Fate> {
    let mut fates = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let body = publication(stream, &fates.len().to_string());
        let answer = match try_connect(nodes[0]) {
            Ok(socket) => http_on(socket, "POST", "/_broadcast", &body).map(|response| response.status),
            Err(_) => Ok(0),
        };
        fates.push(match answer {
            Ok(201) => Fate::Taken,
            Ok(_) => {
                is_taken(nodes[1], &body);
                Fate::TakenInstead
            }
            Err(_) => Fate::Unknown,
        });
        thread::sleep(PAUSE);
    }
    // Behind the last one at the same node: what another one takes may overtake it.
    is_taken(nodes[0], &publication(stream, END));
    fates
}

/// What became of a publication.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    /// It was taken where it was first sent.
    Taken,
    /// It was taken by the other node.
    TakenInstead,
    /// The node ended before it answered, and nobody knows.
    Unknown,
}

fn publication(stream: &str, data: &str) -> String {
    format!("{{\"stream\":\"{stream}\",\"data\":{}}}", json_string(data))
}

fn is_taken(node: SocketAddr, body: &str) {
    let response = http(node, "POST", "/_broadcast", body).expect("an answer");
    assert_eq!(response.status, 201, "{response:?}");
}

/// The last message of a stream, in JSON.
const END: &str = "\"end\"";

/// A client that comes back whenever its connection is over, and what it has got.
#[derive(Default)]
struct Follower {
    /// By stream: the numbers, in the order in which they came.
    got: BTreeMap<String, Vec<u64>>,
    /// By stream: the last position, and its epoch.
    positions: BTreeMap<String, (u64, String)>,
    /// Streams that have ended.
    ended: usize,
    /// How often it was let in, and how often with its session.
    welcomes: usize,
    restored: usize,
}

impl Follower {
    /// Follows all streams at a node to their ends. Counts subscriptions that are confirmed.
    fn run(node: SocketAddr, confirmed: &AtomicUsize) -> Follower {
        let mut follower = Follower::default();
        let mut sid = None;
        while follower.ended < STREAMS.len() {
            let (client, welcome) = let_in(node, sid.as_deref());
            sid = welcome["sid"].as_str().map(str::to_owned);
            let is_restored = welcome["restored"] == true;
            follower.welcomes += 1;
            follower.restored += usize::from(is_restored);
            follower.stay(client, is_restored, confirmed);
        }
        follower
    }

    /// Reads until the connection or every stream is over.
    fn stay(&mut self, mut client: Client, is_restored: bool, confirmed: &AtomicUsize) {
        for stream in STREAMS {
            let identifier = json_string(&identifier(stream));
            let history = self.positions.get(stream).map(|(offset, epoch)| behind(stream, epoch, *offset));
            let command = if is_restored { "history" } else { "subscribe" };
            let history = history.map(|history| format!(",\"history\":{history}")).unwrap_or_default();
            let command = format!("{{\"command\":\"{command}\",\"identifier\":{identifier}{history}}}");
            // It may have ended by now.
            let _ = client.0.send(Message::text(command));
        }
        while self.ended < STREAMS.len()
            && let Ok(Message::Text(text)) = client.0.read()
        {
            let message = json(&text);
            match message["type"].as_str() {
                Some("confirm_subscription") => _ = confirmed.fetch_add(1, Ordering::Relaxed),
                Some("confirm_history" | "ping") => {}
                Some("disconnect") => return,
                Some(_) => panic!("{text}"),
                None => self.take(&message),
            }
        }
    }

    fn take(&mut self, message: &Value) {
        let identifier = json(message["identifier"].as_str().expect("an identifier"));
        let stream = identifier["stream_name"].as_str().expect("a stream").to_owned();
        if let Some(offset) = message["offset"].as_u64() {
            let epoch = message["epoch"].as_str().expect("an epoch").to_owned();
            let before = self.positions.insert(stream.clone(), (offset, epoch.clone()));
            let is_next = before.as_ref().is_none_or(|(before, of)| before + 1 == offset && *of == epoch);
            assert!(is_next, "each offset is the one before and 1: {before:?}, then {message}");
        }
        match message["message"].as_u64() {
            Some(number) => self.got.entry(stream).or_default().push(number),
            None => self.ended += 1,
        }
    }
}

/// Tries until a node lets it in.
fn let_in(node: SocketAddr, sid: Option<&str>) -> (Client, Value) {
    let end = Instant::now() + 2 * SOON;
    loop {
        match try_extended(node, sid) {
            Ok(let_in) => return let_in,
            Err(error) => assert!(Instant::now() < end, "never let in: {error}"),
        }
        thread::sleep(PAUSE);
    }
}

/// What came of a run.
struct Outcome {
    /// By stream: of each number what became of it.
    fates: BTreeMap<&'static str, Vec<Fate>>,
    /// Clients of the node that stayed.
    stayed: Vec<Follower>,
    /// Clients of the one that was started again.
    came_back: Vec<Follower>,
    /// The nodes.
    nodes: [Server; 2],
}

/// Ends a node under load and starts it again.
fn restart<E: Engine>(what: Use, end: End) -> Outcome {
    let engine = E::begin();
    let options = what.options(&engine);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let start = |port: u16| {
        // With pings, because what is published to a session that goes on waits only then for its client to ask.
        let usual = ["--shutdown-timeout", "5s", "--history-limit", "100000", "--ping-interval", "2s"];
        let port = port.to_string();
        let more = [&["--port", port.as_str()], &usual[..]].concat();
        let node = Start::with(&options).and(&more).start();
        what.links_are::<E>(&node, true);
        node
    };
    let mut nodes = [start(0), start(free_port())];
    let [stays, ends] = [nodes[0].address(), nodes[1].address()];
    let has_taken = |node: &Server, count: u64| {
        node.metrics_until("publications", |metrics| metrics.get("broadcast_msg_total") >= count);
    };
    let confirmed = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let (fates, followers) = thread::scope(|scope| {
        let confirmed = &confirmed;
        let follow = |node, count: usize| {
            (0..count).map(|_| scope.spawn(move || Follower::run(node, confirmed))).collect::<Vec<_>>()
        };
        let followers = [follow(stays, CLIENTS[0]), follow(ends, CLIENTS[1])];
        let all = STREAMS.len() * CLIENTS.iter().sum::<usize>();
        until("all follow", || confirmed.load(Ordering::Relaxed) == all);
        let stop = Stop(&stop);
        let publishers = STREAMS.map(|stream| {
            // One publishes at the node that stays, the other at the one that ends.
            let first = if stream == STREAMS[0] { stays } else { ends };
            scope.spawn(move || publish(stream, [first, stays], stop.0))
        });
        nodes.iter().for_each(|node| has_taken(node, 100));
        match end {
            End::Crash => nodes[1].signal("KILL"),
            End::Told => nodes[1].signal("TERM"),
        }
        nodes[1].wait(SOON);
        // It stays away for a moment, in which the other one takes everything.
        let taken = nodes[0].metrics().get("broadcast_msg_total");
        has_taken(&nodes[0], taken + 100);
        nodes[1] = start(ends.port());
        nodes[1].metrics_until("its clients are back", |metrics| metrics.get("clients_num") == CLIENTS[1] as u64);
        has_taken(&nodes[1], 100);
        drop(stop);
        let fates = publishers.map(|publisher| publisher.join().expect("published"));
        let followed = |all: Vec<thread::ScopedJoinHandle<'_, _>>| {
            all.into_iter().map(|one| one.join().expect("followed")).collect::<Vec<_>>()
        };
        (fates, followers.map(followed))
    });
    let [stayed, came_back] = followers;
    assert!(stayed.iter().all(|follower| follower.welcomes == 1));
    assert!(came_back.iter().all(|follower| follower.welcomes == 2));
    Outcome { fates: STREAMS.into_iter().zip(fates).collect(), stayed, came_back, nodes }
}

impl Outcome {
    /// The numbers that were taken, and that a client did not get. Holds that it got each other one once, those that one
    /// node took in order, and that what it did not get is one piece.
    fn missed(&self, stream: &str, follower: &Follower) -> Vec<u64> {
        let (fates, got) = (&self.fates[stream], &follower.got[stream]);
        for instead in [false, true] {
            let of_node = got.iter().filter(|n| (fates[**n as usize] == Fate::TakenInstead) == instead);
            assert!(of_node.is_sorted_by(|a, b| a < b), "once and in order: {got:?}");
        }
        let is_taken = |number: &u64| fates[*number as usize] != Fate::Unknown;
        let missed: Vec<u64> = (0..fates.len() as u64).filter(|n| is_taken(n) && !got.contains(n)).collect();
        let piece = missed.first().copied().unwrap_or(0)..=missed.last().copied().unwrap_or(0);
        assert!(missed.is_empty() || !got.iter().any(|number| piece.contains(number)), "one piece: {missed:?}");
        missed
    }

    /// How many numbers clients of a node did not get.
    fn count(&self, stream: &str, followers: &[Follower]) -> Vec<usize> {
        followers.iter().map(|follower| self.missed(stream, follower).len()).collect()
    }

    /// Nobody has missed anything, and all have got the same.
    fn nothing_is_lost(&self) {
        for stream in STREAMS {
            let all = || self.stayed.iter().chain(&self.came_back);
            assert!(all().all(|follower| self.missed(stream, follower).is_empty()), "{}", self.tell());
            assert!(all().all(|follower| follower.got[stream] == self.stayed[0].got[stream]));
            assert!(self.stayed[0].got[stream].is_sorted(), "also across nodes");
        }
        for node in &self.nodes {
            let metrics = node.metrics();
            let counted = ["cluster_lost_total", "broker_unstored_total", "broker_epochs_total"];
            assert_eq!(counted.map(|name| metrics.get(name)), [0; 3]);
        }
    }

    /// The counts, for people.
    fn tell(&self) -> String {
        let of = |stream: &&str| {
            let fates = &self.fates[stream];
            let unknown = fates.iter().filter(|fate| **fate == Fate::Unknown).count();
            let [stayed, came_back] = [&self.stayed, &self.came_back].map(|followers| self.count(stream, followers));
            format!(
                "{stream}: {} published, {unknown} of them unanswered; missed {stayed:?} {came_back:?}",
                fates.len()
            )
        };
        STREAMS.iter().map(of).collect::<Vec<_>>().join("; ")
    }
}

fn with_a_broker_a_crash_costs_nothing<E: Engine>() {
    let outcome = restart::<E>(Use::Broker, End::Crash);
    outcome.nothing_is_lost();
    eprintln!("{}", outcome.tell());
}

fn with_a_broker_an_orderly_restart_costs_nothing_and_sessions_go_on<E: Engine>() {
    let outcome = restart::<E>(Use::Broker, End::Told);
    outcome.nothing_is_lost();
    assert!(outcome.came_back.iter().all(|follower| follower.restored == 1));
    eprintln!("{}", outcome.tell());
}

fn without_a_broker_a_crash_costs_what_came_while_clients_were_away<E: Engine>() {
    let outcome = restart::<E>(Use::PubSub, End::Crash);
    eprintln!("{}", outcome.tell());
    assert!(outcome.count(STREAMS[0], &outcome.stayed).iter().all(|missed| *missed == 0));
    assert!(outcome.count(STREAMS[0], &outcome.came_back).iter().all(|missed| *missed > 0));
    // What the node had taken and not told the others yet when it was killed.
    let untold = outcome.count(STREAMS[1], &outcome.stayed);
    assert!(untold.iter().all(|missed| *missed < 100), "{untold:?}");
}

fn without_a_broker_an_orderly_restart_costs_what_came_while_clients_were_away<E: Engine>() {
    let outcome = restart::<E>(Use::PubSub, End::Told);
    eprintln!("{}", outcome.tell());
    for stream in STREAMS {
        assert!(outcome.count(stream, &outcome.stayed).iter().all(|missed| *missed == 0), "it tells the others first");
        assert!(outcome.count(stream, &outcome.came_back).iter().all(|missed| *missed > 0));
    }
}
