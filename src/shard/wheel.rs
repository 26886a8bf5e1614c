//! The timer wheel: one deadline for each slot, chained through the slots themselves.
//!
//! A bucket is the head of a chain, so setting, moving and dropping a deadline costs a few stores and a parked
//! connection's timer costs the links in its slot. Deadlines further away than one turn of the wheel stay in
//! their bucket and are looked at once a turn.

use super::slots::{Chain, NONE, Slots, flag};

/// Buckets: one turn is 205 s, longer than the usual ping interval.
const BUCKETS: u32 = 1024;

pub(super) struct Wheel {
    buckets: Box<[u32]>,
    /// One bit for each bucket that is not empty.
    occupied: Box<[u64]>,
    /// The chain that was the last bucket's: deadlines of its tick, of earlier ones if the clock has leapt, and of later
    /// turns of the wheel, which go back when they come up. So every entry is looked at once.
    current: u32,
    /// The first tick whose bucket has not been taken.
    now: u32,
}

impl Wheel {
    pub fn new(now: u32) -> Wheel {
        Wheel {
            buckets: vec![NONE; BUCKETS as usize].into(),
            occupied: vec![0; BUCKETS as usize / 64].into(),
            current: NONE,
            now,
        }
    }

    /// Sets the slot's deadline, or moves it. One that has passed is due at the next tick.
    pub fn set<S>(&mut self, slots: &mut Slots<S>, index: u32, due: u32) {
        let due = due.max(self.now);
        if slots[index].flags & flag::TIMED != 0 {
            if slots[index].due == due {
                return;
            }
            self.unlink(slots, index);
        }
        slots.passing(index).due = due;
        self.link(slots, index);
    }

    /// Drops the slot's deadline, if it has one.
    pub fn clear<S>(&mut self, slots: &mut Slots<S>, index: u32) {
        if slots[index].flags & flag::TIMED != 0 {
            self.unlink(slots, index);
        }
    }

    /// Takes out one slot that is due at `now` or before. Call until it gives `None`, which also sets the
    /// wheel's clock.
    pub fn expired<S>(&mut self, slots: &mut Slots<S>, now: u32) -> Option<u32> {
        loop {
            while self.current != NONE {
                let index = self.current;
                self.unlink(slots, index);
                if slots[index].due <= now {
                    return Some(index);
                }
                self.link(slots, index);
            }
            if self.now > now {
                return None;
            }
            let bucket = self.now % BUCKETS;
            self.current = std::mem::replace(&mut self.buckets[bucket as usize], NONE);
            self.occupied[bucket as usize / 64] &= !(1 << (bucket % 64));
            // Empty stretches are jumped over, so a clock that leapt costs one turn of the wheel at most.
            self.now = match self.next_occupied(self.now + 1) {
                Some(next) => next.min(now + 1),
                None => now + 1,
            };
        }
    }

    /// The next tick at which a bucket has to be looked at; `None` when there is no deadline at all.
    pub fn next(&self) -> Option<u32> {
        if self.current != NONE {
            return Some(self.now.saturating_sub(1));
        }
        self.next_occupied(self.now)
    }

    fn next_occupied(&self, from: u32) -> Option<u32> {
        let start = from % BUCKETS;
        let words = self.occupied.len();
        for step in 0..=words {
            let word = (start as usize / 64 + step) % words;
            let mut bits = self.occupied[word];
            if step == 0 {
                bits &= !0 << (start % 64);
            } else if step == words {
                bits &= !(!0 << (start % 64));
            }
            if bits != 0 {
                let bucket = word as u32 * 64 + bits.trailing_zeros();
                return Some(from + (bucket + BUCKETS - start) % BUCKETS);
            }
        }
        None
    }

    fn link<S>(&mut self, slots: &mut Slots<S>, index: u32) {
        let bucket = slots[index].due % BUCKETS;
        let head = std::mem::replace(&mut self.buckets[bucket as usize], index);
        self.occupied[bucket as usize / 64] |= 1 << (bucket % 64);
        if head != NONE {
            slots.passing(head).timer.previous = index;
        }
        slots.passing(index).timer = Chain { previous: NONE, next: head };
        slots.passing(index).flags |= flag::TIMED;
    }

    fn unlink<S>(&mut self, slots: &mut Slots<S>, index: u32) {
        let Chain { previous, next } = std::mem::replace(&mut slots.passing(index).timer, Chain::LOOSE);
        slots.passing(index).flags &= !flag::TIMED;
        if next != NONE {
            slots.passing(next).timer.previous = previous;
        }
        if previous != NONE {
            slots.passing(previous).timer.next = next;
            return;
        }
        if self.current == index {
            self.current = next;
            return;
        }
        let bucket = slots[index].due % BUCKETS;
        self.buckets[bucket as usize] = next;
        if next == NONE {
            self.occupied[bucket as usize / 64] &= !(1 << (bucket % 64));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::slots::Stage;
    use super::*;

    fn fire(wheel: &mut Wheel, slots: &mut Slots<u32>, now: u32) -> Vec<u32> {
        let mut fired: Vec<_> = std::iter::from_fn(|| wheel.expired(slots, now)).collect();
        fired.sort_unstable();
        fired
    }

    #[test]
    fn deadlines_fire_once_and_not_early_even_turns_ahead() {
        let mut slots = Slots::new(0);
        let mut wheel = Wheel::new(0);
        let dues = [1, 5, 5, BUCKETS + 5, 3 * BUCKETS + 1, 70];
        for due in dues {
            let index = slots.insert(due, 0, Stage::Echo(0));
            wheel.set(&mut slots, index, due);
        }
        let mut fired = Vec::new();
        for now in 0..4 * BUCKETS {
            for index in fire(&mut wheel, &mut slots, now) {
                assert_eq!(slots[index].due, now);
                fired.push(index);
            }
        }
        fired.sort_unstable();
        assert_eq!(fired, [0, 1, 2, 3, 4, 5]);
        assert_eq!(wheel.next(), None);
    }

    #[test]
    fn a_clock_that_leaps_fires_everything_that_passed() {
        let mut slots = Slots::new(0);
        let mut wheel = Wheel::new(10);
        for due in [11, 500, 9_000, 100_000] {
            let index = slots.insert(due, 0, Stage::Echo(0));
            wheel.set(&mut slots, index, due);
        }
        assert_eq!(fire(&mut wheel, &mut slots, 50_000), [0, 1, 2]);
        assert!(fire(&mut wheel, &mut slots, 99_999).is_empty());
        assert_eq!(fire(&mut wheel, &mut slots, 100_000), [3]);
    }

    #[test]
    fn deadlines_of_later_turns_are_looked_at_once_a_turn() {
        // Aim: many deadlines several turns ahead in the bucket of one that passes do not make that one expensive.
        let mut slots = Slots::new(0);
        let mut wheel = Wheel::new(0);
        for n in 0..1000 {
            let index = slots.insert(0, 0, Stage::Echo(0));
            wheel.set(&mut slots, index, if n % 2 == 0 { 7 } else { 7 + 3 * BUCKETS });
        }
        assert_eq!(wheel.next(), Some(7));
        // Half of those that are due, and the rest is still due at once.
        for _ in 0..250 {
            assert!(wheel.expired(&mut slots, 7).is_some());
        }
        assert!(wheel.next().is_some_and(|next| next <= 7));
        // What is moved or cleared in the middle of it is where it belongs.
        let waiting: Vec<u32> = (0..slots.end()).filter(|&i| slots[i].flags & flag::TIMED != 0).collect();
        let (early, late): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|&index| slots[index].due == 7);
        wheel.set(&mut slots, early[0], 9);
        wheel.clear(&mut slots, early[1]);
        wheel.clear(&mut slots, late[0]);
        assert_eq!(fire(&mut wheel, &mut slots, 7).len(), early.len() - 2);
        assert_eq!(fire(&mut wheel, &mut slots, 9), [early[0]]);
        assert!(fire(&mut wheel, &mut slots, 6 + 3 * BUCKETS).is_empty());
        assert_eq!(fire(&mut wheel, &mut slots, 7 + 3 * BUCKETS).len(), late.len() - 1);
        assert_eq!(wheel.next(), None);
    }

    #[test]
    fn moved_and_cleared_deadlines_do_not_fire() {
        let mut slots = Slots::new(0);
        let mut wheel = Wheel::new(0);
        let (a, b) = (slots.insert(0, 0, Stage::Echo(0)), slots.insert(0, 0, Stage::Echo(0)));
        wheel.set(&mut slots, a, 5);
        wheel.set(&mut slots, b, 5);
        wheel.set(&mut slots, a, 9);
        wheel.clear(&mut slots, b);
        assert_eq!(wheel.next(), Some(9));
        assert!(fire(&mut wheel, &mut slots, 8).is_empty());
        assert_eq!(fire(&mut wheel, &mut slots, 9), [a]);
    }

    #[test]
    fn the_next_tick_is_found_wherever_the_wheel_stands() {
        for now in [0, 1, 63, 64, 65, BUCKETS - 1, BUCKETS, 8191, 10_000] {
            for ahead in [0, 1, 63, 64, 200, BUCKETS - 1] {
                let mut slots = Slots::new(0);
                let mut wheel = Wheel::new(now);
                let index = slots.insert(0, 0, Stage::Echo(0));
                wheel.set(&mut slots, index, now + ahead);
                assert_eq!(wheel.next(), Some(now + ahead), "now {now}, ahead {ahead}");
            }
        }
    }
}
