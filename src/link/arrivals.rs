//! What has come by a link and waits for the shards.
//!
//! A link is read as fast as it gives, because a server beside us cuts off who reads too slowly. What the shards cannot take
//! waits here, with a bound.
//!
//! While another process is about to go on from this one, both get everything, and the [`Seam`] tells what each of them hands
//! on. It is under the same lock as the queue: what is noted as come and does not wait any more was handed on.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use tokio::sync::Notify;

use super::Turns;
use super::seam::{Came, CameThere, Seam};

/// Bytes that wait for the shards.
pub const BYTES_MAX: usize = 8 << 20;

/// The same for a process that does not run yet, and gets everything for as long as an upgrade takes.
const BYTES_MAX_BEFORE: usize = 64 << 20;

/// The queue. `T` is what a payload was read as.
pub struct Arrivals<T> {
    /// Held to put one in or to take one out.
    queue: Mutex<Queue<T>>,
    came: Notify,
    /// One for each item that is handed on.
    pub turns: Turns,
}

/// What waits, and what is noted of it.
pub struct Queue<T> {
    items: VecDeque<Waiting<T>>,
    bytes: usize,
    /// Bytes that an item costs beside its text.
    item_bytes: usize,
    /// What has come, while somebody wants to know.
    pub seam: Seam,
}

struct Waiting<T> {
    item: T,
    bytes: usize,
    /// Its number in the seam and its text, if somebody wanted to know when it came.
    noted: Option<(u64, Box<[u8]>)>,
}

/// What has come to a process, and what of that it has not handed on, for another one that goes on.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct GivenArrivals {
    #[serde(default, rename = "taken")]
    came: CameThere,
    /// What waits still, in its order.
    #[serde(default)]
    left: Vec<ByteBuf>,
    /// So many of those, the first ones, came before anybody wanted to know, and so before the other process listened.
    #[serde(default)]
    unnoted: usize,
}

/// Why an item does not wait here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotPut {
    /// There is no room.
    Full,
    /// The process before this one has handed it on.
    HandedOn,
    /// Whoever read it does not want it.
    Unwanted,
}

/// An item whose turn it is. Its room is given back when this is dropped: until then it waits for the shards.
pub struct Next<'a, T> {
    /// What came.
    pub item: T,
    _room: Room<'a, T>,
    // Behind the room: whoever holds the turns finds the bytes right.
    _turn: tokio::sync::MutexGuard<'a, ()>,
}

struct Room<'a, T> {
    arrivals: &'a Arrivals<T>,
    bytes: usize,
}

impl<T> Drop for Room<'_, T> {
    fn drop(&mut self) {
        self.arrivals.queue().bytes -= self.bytes;
    }
}

impl<T> Arrivals<T> {
    /// An empty queue of items that cost so many bytes beside their texts.
    pub fn new(item_bytes: usize) -> Arrivals<T> {
        let queue = Queue { items: VecDeque::new(), bytes: 0, item_bytes, seam: Seam::default() };
        Arrivals { queue: Mutex::new(queue), came: Notify::new(), turns: Turns::default() }
    }

    /// Does something with the queue, which must not wait. Meanwhile nothing is put in or taken out.
    pub fn with<R>(&self, work: impl FnOnce(&mut Queue<T>) -> R) -> R {
        let done = work(&mut self.queue());
        self.came.notify_one();
        done
    }

    /// Waits until something is there and it has its turn.
    pub async fn next(&self) -> Next<'_, T> {
        loop {
            if self.queue().items.is_empty() {
                self.came.notified().await;
                continue;
            }
            let turn = self.turns.next().await;
            let Some(Waiting { item, bytes, .. }) = self.queue().items.pop_front() else { continue };
            return Next { item, _room: Room { arrivals: self, bytes }, _turn: turn };
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue<T>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Queue<T> {
    /// Puts in what `read` makes of a payload.
    ///
    /// # Errors
    /// It does not wait here, and why.
    pub fn put(&mut self, payload: &[u8], read: impl FnOnce() -> Option<T>) -> Result<(), NotPut> {
        let number = match self.seam.note(payload) {
            Came::HandedOn => return Err(NotPut::HandedOn),
            Came::New(number) => number,
        };
        let item = read().ok_or(NotPut::Unwanted)?;
        let bytes = payload.len() + self.item_bytes;
        let bytes_max = if number.is_some() { BYTES_MAX_BEFORE } else { BYTES_MAX };
        // One that is larger than all of it passes alone.
        if self.bytes + bytes > bytes_max && self.bytes > 0 {
            return Err(NotPut::Full);
        }
        self.bytes += bytes;
        self.items.push_back(Waiting { item, bytes, noted: number.map(|number| (number, payload.into())) });
        Ok(())
    }

    /// What waits, in its order.
    pub fn items(&self) -> impl Iterator<Item = &T> {
        self.items.iter().map(|waiting| &waiting.item)
    }

    /// What was handed on and what was not, while nothing is. `write` gives the text of an item.
    pub fn given(&self, write: impl Fn(&T) -> Vec<u8>) -> GivenArrivals {
        let text = |waiting: &Waiting<T>| match &waiting.noted {
            Some((_, text)) => ByteBuf::from(&**text),
            None => ByteBuf::from(write(&waiting.item)),
        };
        let numbers: Vec<u64> = self.items.iter().filter_map(|waiting| Some(waiting.noted.as_ref()?.0)).collect();
        GivenArrivals {
            came: self.seam.came(&numbers),
            left: self.items.iter().map(text).collect(),
            unnoted: self.items.len() - numbers.len(),
        }
    }

    /// Goes on behind what another process has handed on, while nothing is handed on here. What comes is not noted any more.
    /// `read` reads what that process has read before.
    pub fn take_over(&mut self, given: GivenArrivals, read: impl Fn(&[u8]) -> Option<T>) {
        let GivenArrivals { came, left, unnoted } = given;
        let known = self.seam.join(came, &left[unnoted.min(left.len())..]);
        self.items.retain(|Waiting { noted, .. }| noted.as_ref().is_none_or(|(number, _)| !known.contains(number)));
        // In front of all that came here only: the other process has got it before that.
        for payload in left.into_iter().rev() {
            let Some(item) = read(&payload) else { continue };
            self.items.push_front(Waiting { item, bytes: payload.len() + self.item_bytes, noted: None });
        }
        self.bytes = self.items.iter().map(|waiting| waiting.bytes).sum();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::link::{Mark, SeamKey};

    /// Payloads of one round.
    const PAYLOADS: u32 = 300;

    fn read(payload: &[u8]) -> Option<u32> {
        Some(u32::from_le_bytes(payload.try_into().unwrap()))
    }

    #[test]
    fn what_comes_in_the_moment_of_the_change_is_handed_on_once_and_in_order() {
        for round in 0..400 {
            let [ours, theirs] = [Arrivals::new(1), Arrivals::new(1)];
            let key = SeamKey::default();
            for arrivals in [&ours, &theirs] {
                arrivals.with(|queue| {
                    queue.seam.begin(key.clone());
                    queue.seam.mark(&key.text(Mark::Last));
                });
            }
            let mut handed_on = Vec::new();
            thread::scope(|scope| {
                scope.spawn(|| {
                    for n in 0..PAYLOADS {
                        let payload = n.to_le_bytes();
                        let both = if n / 8 % 2 == 0 { [&ours, &theirs] } else { [&theirs, &ours] };
                        for arrivals in both {
                            let _ = arrivals.with(|queue| queue.put(&payload, || read(&payload)));
                        }
                    }
                });
                let begins_at = round % PAYLOADS as usize;
                while ours.with(|queue| queue.items.len()) < begins_at {
                    thread::yield_now();
                }
                ours.with(|queue| handed_on.extend(queue.items.drain(..begins_at / 2).map(|waiting| waiting.item)));
                let given = ours.with(|queue| queue.given(|item| item.to_le_bytes().into()));
                theirs.with(|queue| queue.take_over(given, read));
            });
            handed_on.extend(theirs.with(|queue| queue.items().copied().collect::<Vec<_>>()));
            assert!(handed_on.iter().copied().eq(0..PAYLOADS), "round {round}: {handed_on:?}");
        }
    }

    #[tokio::test]
    async fn room_is_given_back_when_an_item_is_handed_on_or_given_up() {
        let arrivals = Arrivals::new(1);
        let put = |bytes: usize| arrivals.with(|queue| queue.put(&vec![0; bytes], || Some(bytes)));
        assert_eq!(put(2 * BYTES_MAX), Ok(()), "one that is larger than all of it passes alone");
        assert_eq!(put(1), Err(NotPut::Full));
        let next = arrivals.next().await;
        assert_eq!((next.item, put(1)), (2 * BYTES_MAX, Err(NotPut::Full)));
        drop(next);
        assert_eq!((put(BYTES_MAX - 1), put(0)), (Ok(()), Err(NotPut::Full)));
        assert_eq!(arrivals.with(|queue| queue.put(b"x", || None)), Err(NotPut::Unwanted));
        assert_eq!(arrivals.with(|queue| (queue.items.len(), queue.bytes)), (1, BYTES_MAX));
    }
}
