//! Looks at all children again and again: one that hangs is named to be ended, and room for clients goes to where they land.
//!
//! `--max-conn` is a limit of the server. The kernel deals clients out by a hash, so children fill unevenly, and each has its
//! own part of the limit: what nobody uses yet is dealt out anew before one of them is full. The parts never add up to more.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::node::processes::{Question, Turning};

use super::{All, Event};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long a child may take to answer one.
const PATIENCE: Duration = Duration::from_secs(1);

/// A child that has not turned for so long holds clients that nobody serves: less than the watchdog of the unit, which would end
/// all of them.
const HANGS_AFTER: Duration = Duration::from_secs(15);

/// Room is dealt out anew when one child has less than this part of its own left.
const ROOM_LEFT_LEAST: f64 = 0.25;

/// Looks for as long as the runtime runs.
pub(super) async fn keep_watching(all: Arc<All>, events: mpsc::UnboundedSender<Event>) {
    let mut turned: Vec<(u32, Instant)> = Vec::new();
    loop {
        let said = all.ask(&Question::Turns { patience: PATIENCE.mul_f64(0.8) }, PATIENCE).await;
        let now = Instant::now();
        let turnings: Vec<Option<Turning>> = said.iter().map(|said| said.read_now()).collect();
        turned.resize(turnings.len(), (0, now));
        let mut sum = Turning::default();
        for ((child, turning), (known, last)) in (0u16..).zip(&turnings).zip(&mut turned) {
            let turns = turning.as_ref().is_some_and(|turning| turning.stuck.is_none());
            match all.pid(child) {
                // One that begins, or begins anew, has not hung before.
                Some(pid) if turns || pid != *known => (*known, *last) = (pid, now),
                Some(pid) if now - *last > HANGS_AFTER => {
                    *last = now;
                    // It fails when the parent ends.
                    let _ = events.send(Event::Hangs { child, pid });
                }
                _ => {}
            }
            if let Some(turning) = turning {
                sum.websockets += turning.websockets;
                sum.websockets_max += turning.websockets_max;
            }
        }
        *all.load() = sum;
        deal(&all, &turnings).await;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Deals room out, if there is a limit and somebody needs more.
async fn deal(all: &All, turnings: &[Option<Turning>]) {
    let max = all.max_conn.load(Relaxed);
    // While one says nothing, nobody knows what it has.
    let Some(turnings) = turnings.iter().cloned().collect::<Option<Vec<Turning>>>().filter(|_| max > 0) else { return };
    let rooms = rooms(max, &turnings);
    let needed = |turning: &Turning| {
        let left = turning.websockets_max.saturating_sub(turning.websockets) as f64;
        left < turning.websockets_max as f64 * ROOM_LEFT_LEAST
    };
    if !turnings.iter().any(needed) {
        return;
    }
    // First who gives, then who gets, and nobody gets if one has not given.
    let (give, get): (Vec<_>, Vec<_>) = (0u16..)
        .zip(rooms)
        .zip(turnings)
        .map(|((child, room), turning)| (child, room, turning.websockets_max))
        .partition(|(_, room, before)| room < before);
    for (child, room, before) in give.into_iter().chain(get) {
        if room != before && !all.deal_room(child, room).await {
            return;
        }
    }
}

/// Room for each: what it has, and an even part of what is left.
fn rooms(max: u64, turnings: &[Turning]) -> Vec<u64> {
    let open: u64 = turnings.iter().map(|turning| turning.websockets).sum();
    let mut left = max.saturating_sub(open);
    let mut rooms: Vec<u64> = turnings.iter().map(|turning| turning.websockets.min(turning.room_max)).collect();
    // Those that are limited by something else leave the rest to the others.
    loop {
        let more = |room: u64, turning: &Turning| turning.room_max - room;
        let takers = rooms.iter().zip(turnings).filter(|(room, turning)| more(**room, turning) > 0).count() as u64;
        if takers == 0 || left == 0 {
            return rooms;
        }
        let part = left.div_ceil(takers);
        for (room, turning) in rooms.iter_mut().zip(turnings) {
            let taken = part.min(more(*room, turning)).min(left);
            *room += taken;
            left -= taken;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turning(websockets: u64, room_max: u64) -> Turning {
        Turning { websockets, room_max, ..Turning::default() }
    }

    #[test]
    fn room_goes_to_where_clients_are_and_is_never_more_than_the_limit() {
        for (max, children, expected) in [
            (100, &[(0, 1000), (0, 1000)][..], &[50, 50][..]),
            (100, &[(60, 1000), (20, 1000)], &[70, 30]),
            (100, &[(60, 1000), (40, 1000)], &[60, 40]),
            // One can hold no more by itself.
            (100, &[(10, 20), (10, 1000)], &[20, 80]),
            (100, &[(10, 20), (10, 30)], &[20, 30]),
            // The limit was lowered: nobody gets more, and nobody is closed.
            (50, &[(60, 1000), (40, 1000)], &[60, 40]),
            (7, &[(0, 9), (0, 9), (0, 9)], &[3, 3, 1]),
        ] {
            let turnings: Vec<Turning> = children.iter().map(|(open, room)| turning(*open, *room)).collect();
            assert_eq!(rooms(max, &turnings), expected, "{max}: {children:?}");
        }
    }
}
