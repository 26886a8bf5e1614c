//! What a run is like: the server's settings, how many clients, how eventful. All drawn from the seed.

use std::sync::Arc;
use std::time::Duration;

use cableway::hub::StreamHasher;
use cableway::identity::{ResumeTokens, Secret, StreamRouter, StreamSettings, sign_stream};
use cableway::model::{DisconnectMode, PingPrecision};
use cableway::proto::frame::Limits;
use cableway::proto::handshake::{Origins, PathPattern, Rules};
use cableway::session;
use cableway::shard::{ProxyRules, Settings, Tokens, UserTimeouts};

use crate::model::quoted;
use crate::rng::Rng;

/// Who answers for a channel.
#[derive(Clone, Debug, PartialEq)]
pub enum Route {
    App,
    Stream { name: String, whisper: bool },
    Rejected,
}

/// A channel identifier that clients use.
#[derive(Clone, Debug, PartialEq)]
pub struct Ident {
    pub text: String,
    pub route: Route,
}

/// One run's conditions.
pub struct Scenario {
    pub shards: usize,
    /// Connections that wait at a listener that closes go to another one, instead of being reset.
    pub migrates: bool,
    pub settings: Arc<Settings>,
    pub idents: Vec<Ident>,
    pub streams: Vec<String>,
    /// Open WebSockets that are allowed.
    pub open_max: usize,
    pub clients: usize,
    pub steps: usize,
    /// Clients out of a thousand that read slowly or not at all.
    pub slow: usize,
    /// Clients out of a thousand that break rules.
    pub bad: usize,
    /// Injected failures out of a thousand chances.
    pub faults: usize,
    /// Answers out of a thousand that are not a success.
    pub app_trouble: usize,
    /// Chances out of a thousand that connections are taken apart and put together before a turn.
    pub moves: usize,
    /// The same that the whole node is handed over to a new one.
    pub upgrades: usize,
    pub long_publications: bool,
    pub buffer_max: usize,
    /// Answers of the broker out of a thousand that are that it cannot be reached.
    pub broker_trouble: usize,
    /// Chances out of a thousand, when one may be, that a client is dropped; and that a new one is an earlier one that comes
    /// back.
    pub drops: usize,
    pub comebacks: usize,
}

impl Scenario {
    /// The conditions of a seed.
    pub fn draw(rng: &mut Rng) -> Scenario {
        let has_backend = rng.chance(850);
        let public = rng.chance(700);
        let whisper = rng.chance(500);
        let secret = Secret::new("a secret of the simulation").expect("it is not empty");
        let knows_secret = rng.chance(700);
        let streams: Vec<String> = (0..rng.between(1, 6)).map(|n| format!("stream {n}")).collect();
        let mut idents = Vec::new();
        for n in 0..rng.between(1, 5) {
            let text = match n {
                2 => "no JSON: \"quoted\" \\ \u{1f6a0}\n".to_owned(),
                _ => format!("{{\"channel\":\"Room\",\"id\":{n}}}"),
            };
            idents.push(Ident { text, route: Route::App });
        }
        for stream in streams.iter().take(3) {
            let route = |yes, whisper| {
                if yes { Route::Stream { name: stream.clone(), whisper } } else { Route::Rejected }
            };
            let text = format!("{{\"channel\":\"$pubsub\",\"stream_name\":{}}}", quoted(stream));
            idents.push(Ident { text, route: route(public, true) });
            let token = sign_stream(&secret, stream);
            let text = format!("{{\"channel\":\"$pubsub\",\"signed_stream_name\":\"{token}\"}}");
            idents.push(Ident { text, route: route(knows_secret, whisper) });
        }
        let text = "{\"channel\":\"$pubsub\",\"signed_stream_name\":\"bad--00\"}".to_owned();
        idents.push(Ident { text, route: Route::Rejected });

        let has_broker = rng.chance(500);
        let secret_of_tokens = Secret::new("another secret of the simulation").expect("it is not empty");
        let resume_tokens = has_broker.then_some(ResumeTokens { secret: secret_of_tokens, by_sid: true });

        let fragments_max = rng.pick(&[3, 16, u32::MAX]);
        let message_bytes_max = rng.pick(&[300, 5_000, 65_536]);
        let router = StreamSettings { secret: knows_secret.then_some(secret), public, whisper, ..Default::default() };
        let path = |text: &str| PathPattern::parse(text).expect("a sound path");
        let settings = Settings {
            listeners: Vec::new(),
            stream_hasher: StreamHasher::new(rng.next()),
            handshake: Rules {
                cable_paths: vec![path("/cable")],
                echo_path: Some(path("/echo")),
                allowed_origins: Origins::parse(if rng.chance(500) { "ours.example" } else { "" }),
                version_header: "sim".into(),
                // Less than a client sends that wants to be told 431.
                head_bytes_max: 16 << 10,
                http_paths: Vec::new(),
            },
            handshake_timeout: Duration::from_millis(rng.pick(&[300, 2_000, 10_000])),
            handshakes_max: rng.pick(&[2, 5, 100]),
            message_timeout: Duration::from_secs(rng.pick(&[2, 60, 3_600])),
            limits: Limits { message_bytes_max, fragments_max },
            echo_limits: Limits { message_bytes_max: 200_000, fragments_max: u32::MAX },
            outbox_bytes_max: rng.pick(&[0, 200, 1_000, 10_000, 100_000, 1 << 20]),
            buffers_bytes_max: rng.pick(&[usize::MAX, usize::MAX, 5_000, 50_000]),
            write_timeout: Duration::from_millis(rng.pick(&[500, 2_000, 10_000])),
            user_timeouts: UserTimeouts::default(),
            session: session::Rules {
                ping_interval_ms: rng.pick(&[0, 300, 3_000, 60_000, 300_000]),
                ping_precision: rng.pick(&[
                    PingPrecision::Seconds,
                    PingPrecision::Milliseconds,
                    PingPrecision::Nanoseconds,
                ]),
                pong_timeout_ms: rng.pick(&[0, 0, 1_000, 6_000]),
                idle_timeout_ms: rng.pick(&[0, 0, 1_000, 20_000]),
                native_pings: rng.chance(400),
                // The model has what a client missed come at once.
                replay_bytes: usize::MAX,
                identifier_bytes_max: 4096,
                session_bytes_max: 256 << 10,
                has_backend,
                no_auth: rng.chance(if has_backend { 150 } else { 850 }),
                disconnect_mode: rng.pick(&[
                    DisconnectMode::Auto,
                    DisconnectMode::Auto,
                    DisconnectMode::Always,
                    DisconnectMode::Never,
                ]),
                broker: has_broker,
                cluster: rng.chance(500),
                sessions: has_broker,
            },
            tokens: Tokens::default(),
            resume_tokens,
            router: StreamRouter::new(router),
            proxy: ProxyRules { headers: vec!["cookie".into()], ..Default::default() },
            closes_max: 10,
            debug_identifiers: true,
        };
        let clients = if has_broker { rng.pick(&[6, 12, 25, 40, 60]) } else { rng.pick(&[2, 6, 12, 25, 40]) };
        let broker_trouble = if has_broker { rng.pick(&[0, 0, 150]) } else { 0 };
        let drops = if has_broker { rng.pick(&[100, 400, 800]) } else { 0 };
        let comebacks = if has_broker { rng.pick(&[500, 900]) } else { 0 };
        Scenario {
            shards: rng.between(1, 3),
            migrates: rng.chance(500),
            settings: Arc::new(settings),
            idents,
            streams,
            open_max: rng.pick(&[1, 5, 1_000, 1_000, 1_000]),
            clients,
            steps: rng.between(if has_broker { 300 } else { 100 }, 1_000),
            slow: rng.pick(&[0, 150, 600]),
            bad: rng.pick(&[0, 100, 400]),
            faults: rng.pick(&[0, 0, 5]),
            app_trouble: rng.pick(&[0, 100, 400]),
            moves: rng.pick(&[0, 0, 30, 300]),
            upgrades: rng.pick(&[0, 0, 10, 50]),
            long_publications: rng.chance(250),
            buffer_max: rng.pick(&[64, 600, 5_000, 300_000]),
            broker_trouble,
            drops,
            comebacks,
        }
    }
}
