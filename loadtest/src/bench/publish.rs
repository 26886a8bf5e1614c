//! What a publication costs beside its deliveries: CPU of the server for one that nobody follows, with few and with many
//! shards, and what ten subscribers on ten shards add.

use std::collections::BTreeMap;

use anyhow::bail;

use super::subscribers::Subscribers;
use super::{Figure, Limit, Options, QUIET, Running, Side, Want};
use crate::observe;
use crate::protocol::Protocol;
use crate::publish::{Credentials, Publisher};

/// Shards of the server. The first is what the others are compared with.
const ACCEPTORS: [u32; 3] = [1, 8, 64];

/// Publications in one request, so that the request is a small part of the cost of each.
const BATCH: u32 = 500;

/// How much more a publication without subscribers may cost with many shards than with one.
const MORE_MAX: f64 = 2.0;

/// Clients of the one stream that is followed, each on a shard of its own.
const SUBSCRIBERS: u32 = 10;

/// Hand-overs to shards for one publication to them; a shard also wakes now and then for its timers.
const HANDOVERS_MAX: f64 = SUBSCRIBERS as f64 * 1.05;

/// How often the subscribers may connect anew until the kernel has put each on a shard of its own. With 64 shards about
/// every second try does.
const TRIES: u32 = 100;

/// Publications by which is seen which shards they wake: others wake less often, for their timers.
const PROBES: u64 = 20;

pub(super) fn run(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    if options.server.is_some() {
        figures.append(&mut unfollowed(options)?);
    }
    figures.append(&mut followed(options)?);
    Ok(figures)
}

/// The yardstick has nothing to compare: it knows no streams. So each number of shards is compared with one shard.
fn unfollowed(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let mut rounds = ACCEPTORS.map(|_| Vec::new());
    for round in 0..options.rounds_or(3) {
        let mut each = [0.0; ACCEPTORS.len()];
        for index in 0..ACCEPTORS.len() {
            // No number of shards always comes first.
            let index = (index + round as usize) % ACCEPTORS.len();
            each[index] = to_nobody(options, ACCEPTORS[index], false)?;
        }
        for (index, rounds) in rounds.iter_mut().enumerate() {
            rounds.push((each[index], (index > 0).then_some(each[0])));
        }
    }
    let figures = ACCEPTORS.into_iter().zip(rounds).map(|(acceptors, rounds)| {
        let (beside, limit) = match acceptors == ACCEPTORS[0] {
            true => (String::new(), Limit::None),
            false => (format!(" / {}", ACCEPTORS[0]), Limit::Ratio(MORE_MAX)),
        };
        Figure::new(
            format!("publish: CPU each without subscribers, acceptors: {acceptors}{beside}"),
            "us",
            limit,
            rounds,
        )
    });
    Ok(figures.collect())
}

/// CPU of a publication that nobody follows.
pub(super) fn to_nobody(options: &Options, acceptors: u32, broker: bool) -> anyhow::Result<f64> {
    let want = Want { acceptors: Some(acceptors), broker, ..Want::quiet(Protocol::ActionCable) };
    let server = Running::start(Side::Server, options, &want)?;
    let mut publisher = Publisher::connect(&server.publish_url, &Credentials::None)?;
    let publications: Vec<String> =
        (0..BATCH).map(|number| format!(r#"{{"stream":"nobody:{number}","data":"\"hello\""}}"#)).collect();
    let batch = format!("[{}]", publications.join(","));
    let batches = options.repeat.unwrap_or(200);
    (0..batches.div_ceil(10)).try_for_each(|_| publisher.post(&batch))?;
    let before = server.cpu_us()?;
    (0..batches).try_for_each(|_| publisher.post(&batch))?;
    Ok((server.cpu_us()? - before) / f64::from(batches * BATCH))
}

fn followed(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let acceptors = ACCEPTORS[ACCEPTORS.len() - 1];
    let (mut cpu, mut handovers) = (Vec::new(), Vec::new());
    for round in 0..options.rounds_or(3) {
        let mut results = [(0.0, 0.0); 2];
        for side in Side::both(round) {
            results[side as usize] = publish_to_ten(side, options, acceptors)?;
        }
        let [server, bare] = results;
        cpu.push((server.0, Some(bare.0)));
        handovers.push((server.1, Some(bare.1)));
    }
    let on = format!("{SUBSCRIBERS} subscribers on {SUBSCRIBERS} of {acceptors} shards");
    Ok(vec![
        Figure::new(format!("publish: CPU each, {on}"), "us", Limit::None, cpu),
        Figure::new(format!("publish: hand-overs each, {on}"), "shards", Limit::Value(HANDOVERS_MAX), handovers),
    ])
}

/// CPU and hand-overs of a publication that ten clients follow, each on a shard of its own.
fn publish_to_ten(side: Side, options: &Options, acceptors: u32) -> anyhow::Result<(f64, f64)> {
    let want = Want { acceptors: Some(acceptors), rooms: true, ..Want::quiet(Protocol::ActionCable) };
    let server = Running::start(side, options, &want)?;
    let mut subscribers = Subscribers::new(&server, side.is_bare(options), SUBSCRIBERS, 1)?;
    spread_over_shards(&server, &mut subscribers)?;
    let repeat = options.repeat.map_or(1000, |batches| batches * 5);
    let (cpu_before, sleeps_before) = (server.cpu_us()?, shard_sleeps(&server)?.values().sum::<u64>());
    (0..repeat).try_for_each(|_| subscribers.publish())?;
    subscribers.collect()?;
    let cpu = server.cpu_us()? - cpu_before;
    let sleeps = shard_sleeps(&server)?.values().sum::<u64>() - sleeps_before;
    Ok((cpu / f64::from(repeat), sleeps as f64 / f64::from(repeat)))
}

/// Connects the subscribers, anew as often as it takes, until publications wake as many shards as there are of them.
fn spread_over_shards(server: &Running, subscribers: &mut Subscribers) -> anyhow::Result<()> {
    for _ in 0..TRIES {
        subscribers.open()?;
        super::pause(QUIET);
        let before = shard_sleeps(server)?;
        (0..PROBES).try_for_each(|_| subscribers.publish())?;
        super::pause(QUIET);
        let after = shard_sleeps(server)?;
        let woken = |(thread, sleeps): &(&u32, &u64)| **sleeps - before.get(*thread).unwrap_or(&0) >= PROBES / 2;
        if after.iter().filter(woken).count() == SUBSCRIBERS as usize {
            return Ok(());
        }
        subscribers.drop_all()?;
    }
    bail!("in {TRIES} tries the kernel never put {SUBSCRIBERS} connections on as many shards")
}

/// How often each shard has gone to sleep: once for each time that it was woken.
fn shard_sleeps(server: &Running) -> anyhow::Result<BTreeMap<u32, u64>> {
    Ok(observe::sleeps(server.pid(), "shard-")?)
}
