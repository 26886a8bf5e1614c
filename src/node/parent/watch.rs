//! Looks at all children again and again: one that hangs is named to be ended, and room for clients goes to where they land.
//!
//! `--max-conn` is a limit of the server. The kernel deals clients out by a hash, so children fill unevenly, and each has its
//! own part of the limit: what nobody uses yet is dealt out anew before one of them is full. The parts never add up to more.

use std::sync::Arc;
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

/// Room is dealt out anew when one child has no more than this part of its own left.
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
        // Late or early, it is looked again.
        let _ = tokio::time::timeout(LOOK_EVERY, all.max_conn_changed()).await;
    }
}

/// Deals room out, if there is a limit and somebody needs more, or if the limit has changed.
async fn deal(all: &All, turnings: &[Option<Turning>]) {
    // While one says nothing, nobody knows what it has; and one that hands over forgets what it is given.
    let said = turnings.iter().cloned().collect::<Option<Vec<Turning>>>();
    let Some(turnings) = said.filter(|_| !all.is_changing()) else { return };
    let has_changed = all.begins_dealing();
    let max = all.max_conn();
    let needed = |turning: &Turning| {
        let left = turning.websockets_max.saturating_sub(turning.websockets) as f64;
        // One that has no room at all needs some, too.
        left <= turning.websockets_max as f64 * ROOM_LEFT_LEAST
    };
    if !has_changed && (max == 0 || !turnings.iter().any(needed)) {
        return;
    }
    let is_dealt = deal_out(all, max, &turnings).await;
    if has_changed && !is_dealt {
        all.deal_anew();
    }
}

/// First who gives, then who gets: as much as those who give have really left, to whom clients come meanwhile. Tells whether each
/// has what it is to have.
async fn deal_out(all: &All, max: u64, turnings: &[Turning]) -> bool {
    let rooms = match max {
        0 => turnings.iter().map(|turning| turning.room_max).collect(),
        _ => rooms(max, turnings),
    };
    let mut left = if max == 0 { u64::MAX } else { max };
    let of_each = (0u16..).zip(rooms).zip(turnings);
    let (give, get): (Vec<_>, Vec<_>) = of_each.partition(|((_, room), turning)| *room < turning.websockets_max);
    for ((child, room), _) in give {
        let Some(open) = all.deal_room(child, room).await else { return false };
        left = left.saturating_sub(room.max(open));
    }
    for (_, turning) in &get {
        left = left.saturating_sub(turning.websockets_max.max(turning.websockets));
    }
    let mut is_dealt = true;
    for ((child, room), turning) in get {
        let wanted = room - turning.websockets_max;
        let more = wanted.min(left);
        if more > 0 && all.deal_room(child, turning.websockets_max + more).await.is_none() {
            return false;
        }
        left -= more;
        is_dealt &= more == wanted;
    }
    is_dealt
}

/// Room for each: what it has, and an even part of what is left. Where there are more than there may be, each has so much less:
/// nobody is closed, and nobody comes before as many have left, wherever they are.
fn rooms(max: u64, turnings: &[Turning]) -> Vec<u64> {
    let open: u64 = turnings.iter().map(|turning| turning.websockets).sum();
    let mut left = max.saturating_sub(open);
    let mut rooms: Vec<u64> = turnings.iter().map(|turning| turning.websockets.min(turning.room_max)).collect();
    let too_many = open.saturating_sub(max);
    rooms.iter_mut().for_each(|room| *room = room.saturating_sub(too_many));
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
            // The limit was lowered.
            (50, &[(60, 1000), (40, 1000)], &[10, 0]),
            (3, &[(4, 1000), (0, 1000), (1, 1000)], &[2, 0, 0]),
            (7, &[(0, 9), (0, 9), (0, 9)], &[3, 3, 1]),
        ] {
            let turnings: Vec<Turning> = children.iter().map(|(open, room)| turning(*open, *room)).collect();
            assert_eq!(rooms(max, &turnings), expected, "{max}: {children:?}");
        }
    }
}
