//! Every way for clients to die, in a network that can be cut: all dead are closed within the bound that the server
//! states, under the right cause, no healthy one is, and everything that they held is back.
//!
//! Needs root, `ip` and `nft`. What the server states is read from its metric `cableway_detection_bound_seconds`.

mod interrupt;
mod network;
mod party;
mod peers;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use network::{Network, within};
use party::{Cast, Outcome, Party};
use peers::Death;
pub use peers::{Options as PeerOptions, run as peers};

use crate::os;

/// What to run.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// The server to test.
    #[arg(long, value_name = "PATH")]
    pub server: PathBuf,
    /// Clients that die each death, and as many healthy ones beside them.
    #[arg(long, default_value_t = 1000)]
    pub peers: usize,
    /// Only the deaths whose names contain this.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub only: String,
    /// Clean up and end when whoever started this ends.
    #[arg(long, hide = true)]
    pub end_with_parent: bool,
}

/// What happens to clients, and who is there.
struct Scene {
    name: &'static str,
    happens: fn(&Network, &mut [Party]) -> anyhow::Result<()>,
    casts: &'static [Cast],
}

const PINGED: Cast = Cast::new("vanished_pinged");
const SILENT: Cast = Cast { no_pings: true, ..Cast::new("vanished_silent") };
const VANISHED: &[Cast] = &[PINGED, SILENT];

const SCENES: &[Scene] = &[
    Scene { name: "link down at the client", happens: |network, _| network.cut_at_victims(), casts: VANISHED },
    Scene { name: "link down at the server", happens: |network, _| network.cut_at_server(), casts: VANISHED },
    Scene { name: "packets lost to the server", happens: |network, _| network.drop_in(), casts: VANISHED },
    Scene { name: "packets lost to the client", happens: |network, _| network.drop_out(), casts: VANISHED },
    Scene {
        name: "packets lost both ways",
        happens: |network, _| network.drop_in().and_then(|()| network.drop_out()),
        casts: VANISHED,
    },
    Scene {
        name: "at most one probe in a row lost",
        happens: |network, _| lose_single_probes(network),
        casts: &[Cast { kind: None, ..PINGED }, Cast { kind: None, server: "--tcp-keepalive-interval 2s", ..SILENT }],
    },
    Scene {
        name: "process stopped",
        happens: |_, parties| parties.iter().try_for_each(|party| party.freeze()),
        casts: &[
            Cast { server: "--pong-timeout 2s --enable-native-pings", ..Cast::new("frozen") },
            Cast { server: "--pong-timeout 2s", extended: true, ..Cast::new("frozen_extended") },
        ],
    },
    Scene {
        name: "alive and silent",
        happens: |_, parties| parties.iter_mut().try_for_each(Party::die),
        casts: &[Cast {
            death: Death::FallSilent,
            server: "--idle-timeout 4s",
            extended: true,
            ..Cast::new("says_nothing")
        }],
    },
    Scene {
        name: "never reads",
        happens: |_, parties| parties.iter_mut().try_for_each(|party| party.publish(LONG_BYTES)),
        casts: &[Cast {
            death: Death::NeverRead,
            server: "--ping-interval 0 --tcp-user-timeout 30s",
            from_last_byte: true,
            ..Cast::new("not_reading")
        }],
    },
    Scene {
        name: "window shut",
        happens: |_, parties| parties.iter_mut().try_for_each(|party| party.publish(SHORT_BYTES)),
        casts: &[
            Cast { death: Death::ShutWindow, ..Cast::new("window_shut") },
            Cast { death: Death::ShutWindow, no_pings: true, ..Cast::new("window_shut") },
        ],
    },
    Scene {
        name: "says something wrong, or nothing",
        happens: |_, parties| parties.iter_mut().try_for_each(Party::die),
        casts: &[
            Cast { death: Death::Reset, ..Cast::new("reset") },
            Cast { death: Death::HalfClose, ..Cast::new("half_closed") },
            Cast { death: Death::SayGoodbye, ..Cast::new("close_unfinished") },
        ],
    },
    Scene {
        name: "begins and never ends",
        happens: |_, parties| parties.iter_mut().try_for_each(Party::die),
        casts: &[
            Cast { death: Death::SayNothing, ..Cast::new("handshake_stalled") },
            Cast { death: Death::StallRequest, ..Cast::new("handshake_stalled") },
            Cast { death: Death::StallMessage, ..Cast::new("message_stalled") },
        ],
    },
];

/// More than the kernels of both sides take for one connection, and less than may wait for one client.
const LONG_BYTES: usize = 512 << 10;

/// More than the window of a client with a small buffer, and less than the server's kernel takes.
const SHORT_BYTES: usize = 16 << 10;

/// How long clients live before they die: some pings.
const LIFE: Duration = Duration::from_secs(2);

/// How long what nobody may die of is watched.
const SURVIVED: Duration = Duration::from_secs(8);

/// How much longer than its bound a death is waited for, so that one that is late is told from one that never comes.
const LATE_MAX: Duration = Duration::from_secs(10);

const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Shorter than the two seconds between two probes, three times: whoever loses one does not lose the next.
fn lose_single_probes(network: &Network) -> anyhow::Result<()> {
    for _ in 0..3 {
        network.drop_in()?;
        network.drop_out()?;
        interrupt::sleep(Duration::from_millis(1_800))?;
        let lost = network.mend()?;
        anyhow::ensure!(lost > 0, "no packet was lost");
        interrupt::sleep(Duration::from_millis(3_200))?;
    }
    Ok(())
}

/// Lets clients die each death and prints a table; true when everything was as stated. Ctrl-C and SIGTERM end it with an
/// error, and nothing of it stays.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    interrupt::watch()?;
    if options.end_with_parent {
        os::end_with_parent()?;
    }
    let name = std::process::id().to_string();
    // Says that it cannot be done before anything else happens.
    drop(Network::new(&name)?);
    let Options { peers, server, only, .. } = options;
    println!("| death | kind | closed | under | last after | recorded | bound | memory | |");
    println!("| --- | --- | ---: | --- | ---: | ---: | ---: | ---: | --- |");
    let (mut clean, mut ran) = (true, false);
    for scene in SCENES.iter().filter(|scene| scene.name.contains(only.as_str())) {
        ran = true;
        let network = Network::new(&name)?;
        let outcomes = within(&network.server, || play(scene, &network, server, *peers))?;
        for (cast, outcome) in scene.casts.iter().zip(outcomes.with_context(|| scene.name.to_owned())?) {
            println!("{}", line(scene, cast, &outcome));
            clean &= outcome.faults.is_empty();
        }
    }
    anyhow::ensure!(ran, "no death is called like {only:?}");
    Ok(clean)
}

fn play(scene: &Scene, network: &Network, server: &std::path::Path, peers: usize) -> anyhow::Result<Vec<Outcome>> {
    let mut parties = Vec::new();
    for (port, cast) in (8080..).zip(scene.casts) {
        parties.push(Party::start(network, server, port, peers, *cast)?);
    }
    interrupt::sleep(LIFE)?;
    let begun = Instant::now();
    (scene.happens)(network, &mut parties)?;
    let longest = parties.iter().filter_map(|party| party.bound).max();
    let until = Instant::now() + longest.map_or(SURVIVED, |bound| bound + LATE_MAX);
    while Instant::now() < until {
        let mut all = longest.is_some();
        for party in &mut parties {
            all &= party.look(begun)?;
        }
        if all {
            break;
        }
        interrupt::sleep(LOOK_EVERY)?;
    }
    parties.into_iter().map(Party::end).collect()
}

fn line(scene: &Scene, cast: &Cast, outcome: &Outcome) -> String {
    let kind = match cast.kind {
        Some(kind) if cast.no_pings && kind != "vanished_silent" => format!("`{kind}`, no pings"),
        Some(kind) => format!("`{kind}`"),
        None if cast.no_pings => "none, no pings".to_owned(),
        None => "none".to_owned(),
    };
    let name = match cast.death {
        Death::SayNothing => "before the first byte of the request",
        Death::StallRequest => "within the request",
        Death::StallMessage => "within a message",
        Death::Reset => "reset",
        Death::HalfClose => "half-close",
        Death::SayGoodbye => "close frame, and the socket stays",
        _ => scene.name,
    };
    let seconds = |time: Option<Duration>| match time {
        Some(time) => format!("{:.1} s", time.as_secs_f64()),
        None if cast.kind.is_some() => "never".to_owned(),
        None => String::new(),
    };
    let causes: Vec<_> = outcome.closed.keys().map(|cause| format!("`{cause}`")).collect();
    let verdict =
        if outcome.faults.is_empty() { "ok".to_owned() } else { format!("FAILED: {}", outcome.faults.join("; ")) };
    format!(
        "| {name} | {kind} | {} | {} | {} | {} | {} | {} | {verdict} |",
        outcome.closed.values().sum::<u64>(),
        causes.join(" "),
        seconds(outcome.last),
        outcome.recorded.map_or(String::new(), |mean| seconds(Some(mean))),
        seconds(outcome.bound),
        outcome.memory_kept.map_or(String::new(), |bytes| format!("{} KiB", bytes / 1024)),
    )
}
