//! Which shards follow which stream: one table for the node, so that a publication costs what its receivers cost and not
//! what there are shards.
//!
//! A shard is listed for a key exactly while its hub holds a stream with that key. It is listed before the subscription
//! is confirmed, and whoever publishes looks into the table after that, so a confirmed subscription sees everything that
//! is published later.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::hub::StreamKey;

use super::sorted_runs::SortedRuns;

/// Bits of a key that choose a bucket. 64 buckets: two threads rarely want the same lock.
const BUCKET_BITS: u32 = 6;

/// The table.
pub struct Followers {
    buckets: Box<[Mutex<Bucket>]>,
}

#[derive(Default)]
struct Bucket {
    /// A stream and the shards that follow it, in 8 bytes: most streams are followed by one client.
    entries: SortedRuns<u32, Shards>,
    /// The shards of each stream that several follow.
    sets: Vec<ShardSet>,
    /// Numbers of sets that are not in use.
    free: Vec<u32>,
}

/// The number of a shard; with the bit [`SET`], the number of a set of shards.
#[derive(Clone, Copy, PartialEq)]
struct Shards(u32);

const SET: u32 = 1 << 31;

const _: () = assert!(size_of::<(u32, Shards)>() == 8);

/// One bit for each shard.
#[derive(Default)]
struct ShardSet(Vec<u64>);

impl ShardSet {
    fn insert(&mut self, shard: u16) {
        let (word, bit) = (usize::from(shard) / 64, shard % 64);
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << bit;
    }

    fn remove(&mut self, shard: u16) {
        if let Some(word) = self.0.get_mut(usize::from(shard) / 64) {
            *word &= !(1 << (shard % 64));
        }
    }

    fn iter(&self) -> impl Iterator<Item = u16> {
        let bits = |(at, word): (usize, &u64)| {
            let word = *word;
            (0..64).filter(move |bit| word & (1 << bit) != 0).map(move |bit| (at * 64 + bit) as u16)
        };
        self.0.iter().enumerate().flat_map(bits)
    }
}

impl Default for Followers {
    fn default() -> Followers {
        Followers { buckets: (0..1 << BUCKET_BITS).map(|_| Mutex::default()).collect() }
    }
}

impl Followers {
    /// Adds a shard to those that follow a stream. Publications that look into the table after this returns find it. `first` is
    /// called if it is the first, before any other call for this stream.
    pub fn follow(&self, stream: StreamKey, shard: u16, first: impl FnOnce()) {
        let (mut bucket, key) = self.bucket(stream);
        let Bucket { entries, sets, free } = &mut *bucket;
        let Some(shards) = entries.find_or_add(key, Shards(shard.into())) else { return first() };
        match *shards {
            Shards(only) if only & SET == 0 => {
                let number = free.pop().unwrap_or_else(|| {
                    sets.push(ShardSet::default());
                    sets.len() as u32 - 1
                });
                sets[number as usize].insert(only as u16);
                sets[number as usize].insert(shard);
                *shards = Shards(SET | number);
            }
            Shards(number) => sets[(number & !SET) as usize].insert(shard),
        }
    }

    /// Removes a shard from those that follow a stream. `last` is called if it was the last, before any other call for this
    /// stream.
    pub fn unfollow(&self, stream: StreamKey, shard: u16, last: impl FnOnce()) {
        let (mut bucket, key) = self.bucket(stream);
        bucket.remove(key, shard, last);
    }

    /// Removes a shard from all streams.
    pub fn forget(&self, shard: u16) {
        for bucket in &self.buckets {
            let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
            let keys: Vec<u32> = bucket.entries.keys().collect();
            keys.into_iter().for_each(|key| bucket.remove(key, shard, || {}));
        }
    }

    /// Has one shard follow what another one follows, which then follows nothing.
    pub fn rename(&self, from: u16, to: u16) {
        for bucket in &self.buckets {
            let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
            let keys: Vec<u32> = bucket.entries.keys().collect();
            keys.into_iter().for_each(|key| bucket.rename(key, from, to));
        }
    }

    /// Visits the shards that follow a stream. Until it returns, none can be added or removed, and no other call for this
    /// stream runs: all shards get what is handed to them here in the same order.
    pub fn for_each(&self, stream: StreamKey, mut visit: impl FnMut(u16)) {
        let (bucket, key) = self.bucket(stream);
        match bucket.entries.find(key) {
            None => {}
            Some(Shards(packed)) if packed & SET == 0 => visit(packed as u16),
            Some(Shards(packed)) => bucket.sets[(packed & !SET) as usize].iter().for_each(visit),
        }
    }

    /// Visits each stream with each shard that follows it. Whoever changes something meanwhile may be seen or not.
    pub fn for_all(&self, mut visit: impl FnMut(StreamKey, u16)) {
        for (at, bucket) in self.buckets.iter().enumerate() {
            let bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
            for key in bucket.entries.keys() {
                let stream = StreamKey::joined(BUCKET_BITS, at, key);
                match bucket.entries.find(key) {
                    None => {}
                    Some(Shards(packed)) if packed & SET == 0 => visit(stream, packed as u16),
                    Some(Shards(packed)) => {
                        bucket.sets[(packed & !SET) as usize].iter().for_each(|shard| visit(stream, shard));
                    }
                }
            }
        }
    }

    /// True when no shard follows anything.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.buckets.iter().all(|bucket| bucket.lock().unwrap_or_else(PoisonError::into_inner).entries.len() == 0)
    }

    fn bucket(&self, stream: StreamKey) -> (MutexGuard<'_, Bucket>, u32) {
        let (bucket, key) = stream.split(BUCKET_BITS);
        // A panic cannot leave a bucket half changed, so a poisoned lock is used as it is.
        (self.buckets[bucket].lock().unwrap_or_else(PoisonError::into_inner), key)
    }
}

impl Bucket {
    fn rename(&mut self, key: u32, from: u16, to: u16) {
        let Some(shards) = self.entries.find_mut(key) else { return };
        let Shards(packed) = *shards;
        if packed == u32::from(from) {
            *shards = Shards(to.into());
        } else if packed & SET != 0 {
            let set = &mut self.sets[(packed & !SET) as usize];
            if set.iter().any(|shard| shard == from) {
                set.insert(to);
                // It stays a set of two at least, unless both were in it.
                self.remove(key, from, || {});
            }
        }
    }

    fn remove(&mut self, key: u32, shard: u16, last: impl FnOnce()) {
        let Bucket { entries, sets, free } = self;
        let Some(shards) = entries.find_mut(key) else { return };
        let Shards(packed) = *shards;
        if packed & SET == 0 {
            if packed == u32::from(shard) {
                entries.remove(key);
                last();
            }
            return;
        }
        let number = packed & !SET;
        let set = &mut sets[number as usize];
        set.remove(shard);
        let mut left = set.iter();
        if let (Some(only), None) = (left.next(), left.next()) {
            drop(left);
            *set = ShardSet::default();
            free.push(number);
            *shards = Shards(only.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::StreamHasher;

    fn shards(followers: &Followers, stream: StreamKey) -> Vec<u16> {
        let mut shards = Vec::new();
        followers.for_each(stream, |shard| shards.push(shard));
        shards
    }

    #[test]
    fn exactly_the_shards_that_follow_are_visited() {
        let followers = Followers::default();
        let key = |stream| StreamHasher::new(1).key(stream);
        let (a, b) = (key("a"), key("b"));
        assert!(shards(&followers, a).is_empty());
        for shard in [3, 200, 64, 3] {
            followers.follow(a, shard, || {});
        }
        followers.follow(b, 7, || {});
        assert_eq!((shards(&followers, a), shards(&followers, b)), (vec![3, 64, 200], vec![7]));
        followers.unfollow(a, 64, || {});
        followers.unfollow(b, 8, || {});
        assert_eq!((shards(&followers, a), shards(&followers, b)), (vec![3, 200], vec![7]));
        followers.unfollow(a, 3, || {});
        assert_eq!(shards(&followers, a), [200]);
        followers.follow(a, 9, || {});
        assert_eq!(shards(&followers, a), [9, 200]);
        for (stream, shard) in [(a, 9), (a, 200), (b, 7)] {
            followers.unfollow(stream, shard, || {});
        }
        assert!(followers.is_empty());
    }

    #[test]
    fn one_shard_takes_the_place_of_another() {
        let followers = Followers::default();
        let key = |stream| StreamHasher::new(1).key(stream);
        let of = [("only", vec![3]), ("several", vec![3, 9, 70]), ("both", vec![3, 64]), ("others", vec![8, 9])];
        for (stream, shards) in &of {
            shards.iter().for_each(|shard| followers.follow(key(stream), *shard, || {}));
        }
        followers.rename(3, 64);
        let now = of.map(|(stream, _)| shards(&followers, key(stream)));
        assert_eq!(now, [vec![64], vec![9, 64, 70], vec![64], vec![8, 9]]);
        followers.forget(64);
        assert_eq!(shards(&followers, key("several")), [9, 70]);
        assert!(shards(&followers, key("only")).is_empty() && shards(&followers, key("both")).is_empty());
    }

    #[test]
    fn all_are_visited_under_their_keys() {
        let followers = Followers::default();
        let key = |n: u16| StreamHasher::new(1).key(&n.to_string());
        let mut expected = Vec::new();
        for n in 0..500 {
            for shard in (0..n % 4).map(|shard| shard * 70) {
                followers.follow(key(n), shard, || {});
                expected.push((key(n).to_bits(), shard));
            }
        }
        let mut visited = Vec::new();
        followers.for_all(|stream, shard| visited.push((stream.to_bits(), shard)));
        visited.sort_unstable();
        expected.sort_unstable();
        assert_eq!(visited, expected);
    }

    #[test]
    fn sets_are_used_again() {
        let followers = Followers::default();
        let key = StreamHasher::new(1).key("a");
        for _ in 0..10 {
            followers.follow(key, 1, || {});
            followers.follow(key, 2, || {});
            followers.unfollow(key, 1, || {});
            followers.unfollow(key, 2, || {});
        }
        let (bucket, _) = followers.bucket(key);
        assert_eq!((bucket.sets.len(), bucket.free.len()), (1, 1));
    }
}
