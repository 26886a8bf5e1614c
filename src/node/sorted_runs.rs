//! A table of small entries: sorted, in short runs.
//!
//! A hash table of the same entries would be between half and seven eighths full, and one byte larger each. In runs,
//! nearly all memory is entries, and what an insertion has to move is bounded by the length of a run.

/// Entries of a run, on average, at most: then every run is cut in two.
const RUN: usize = 64;

/// Room that a full run gets.
const MORE: usize = 4;

/// What entries are found by: a hash, so that runs are of about the same length.
pub(super) trait Key: Copy + Ord {
    /// Its first 32 bits. They decide first when keys are compared.
    fn start(self) -> u32;
}

impl Key for u32 {
    fn start(self) -> u32 {
        self
    }
}

/// 48 bits, in an entry with 16 bits of something else as small as one of 32 and 32.
impl Key for [u16; 3] {
    fn start(self) -> u32 {
        u32::from(self[0]) << 16 | u32::from(self[1])
    }
}

/// Entries with distinct keys.
pub(super) struct SortedRuns<K, V> {
    /// `2^bits` runs: the highest bits of a key say which is its own.
    runs: Vec<Vec<(K, V)>>,
    bits: u32,
    len: usize,
}

impl<K, V> Default for SortedRuns<K, V> {
    fn default() -> Self {
        SortedRuns { runs: vec![Vec::new()], bits: 0, len: 0 }
    }
}

impl<K: Key, V: Copy> SortedRuns<K, V> {
    pub fn len(&self) -> usize {
        self.len
    }

    /// All keys, in their order.
    pub fn keys(&self) -> impl Iterator<Item = K> {
        self.runs.iter().flatten().map(|(key, _)| *key)
    }

    pub fn find(&self, key: K) -> Option<V> {
        let run = &self.runs[self.run(key)];
        Some(run[place(run, key).ok()?].1)
    }

    /// The value of a key. `None` when there was none: then it is this one now.
    pub fn find_or_add(&mut self, key: K, value: V) -> Option<&mut V> {
        let at = self.run(key);
        match place(&self.runs[at], key) {
            Ok(place) => Some(&mut self.runs[at][place].1),
            Err(place) => {
                let run = &mut self.runs[at];
                if run.len() == run.capacity() {
                    run.reserve_exact(MORE);
                }
                run.insert(place, (key, value));
                self.len += 1;
                if self.len > RUN * self.runs.len() {
                    self.cut_in_two();
                }
                None
            }
        }
    }

    pub fn find_mut(&mut self, key: K) -> Option<&mut V> {
        let at = self.run(key);
        let place = place(&self.runs[at], key).ok()?;
        Some(&mut self.runs[at][place].1)
    }

    pub fn remove(&mut self, key: K) {
        let at = self.run(key);
        let run = &mut self.runs[at];
        let Ok(place) = place(run, key) else { return };
        run.remove(place);
        if run.capacity() > run.len() + 2 * MORE {
            run.shrink_to(run.len() + MORE);
        }
        self.len -= 1;
        if self.runs.len() > 1 && self.len < RUN / 4 * self.runs.len() {
            self.join_pairs();
        }
    }

    fn run(&self, key: K) -> usize {
        // A shift by all 32 bits is none in Rust.
        if self.bits == 0 { 0 } else { (key.start() >> (u32::BITS - self.bits)) as usize }
    }

    fn cut_in_two(&mut self) {
        self.bits += 1;
        let bit = 1 << (u32::BITS - self.bits);
        let halves = |mut run: Vec<(K, V)>| {
            let upper = run.split_off(run.partition_point(|(key, _)| key.start() & bit == 0));
            run.shrink_to_fit();
            [run, upper]
        };
        self.runs = std::mem::take(&mut self.runs).into_iter().flat_map(halves).collect();
    }

    fn join_pairs(&mut self) {
        self.bits -= 1;
        self.runs = self.runs.chunks(2).map(|pair| pair.concat()).collect();
    }
}

fn place<K: Ord + Copy, V>(run: &[(K, V)], key: K) -> Result<usize, usize> {
    run.binary_search_by_key(&key, |(key, _)| *key)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that look random, each once.
    fn keys(count: u32) -> impl Iterator<Item = u32> {
        (0..count).map(|n| n.wrapping_mul(0x9E37_79B9))
    }

    #[test]
    fn everything_that_was_added_and_not_removed_is_found() {
        let mut entries = SortedRuns::default();
        for (n, key) in keys(20_000).enumerate() {
            assert!(entries.find_or_add(key, n as u32).is_none());
            assert!(entries.find_or_add(key, 0u32).is_some(), "a second time");
        }
        assert!(entries.runs.len() >= 20_000 / RUN);
        for (n, key) in keys(20_000).enumerate() {
            assert_eq!(entries.find(key), Some(n as u32));
        }
        for key in keys(20_000).filter(|key| key % 50 != 0) {
            entries.remove(key);
            entries.remove(key);
        }
        for (n, key) in keys(20_000).enumerate() {
            let wanted = (key % 50 == 0).then_some(n as u32);
            assert_eq!(entries.find(key), wanted);
        }
        keys(20_000).for_each(|key| entries.remove(key));
        assert_eq!((entries.len(), entries.runs.len()), (0, 1));
    }

    #[test]
    fn memory_is_nearly_all_entries() {
        let mut entries = SortedRuns::default();
        keys(20_000).for_each(|key| assert!(entries.find_or_add(key, 0u32).is_none()));
        let room: usize = entries.runs.iter().map(Vec::capacity).sum();
        let bytes = room * size_of::<(u32, u32)>() + entries.runs.capacity() * size_of::<Vec<(u32, u32)>>();
        assert!(bytes < 20_000 * 10, "{bytes} bytes");
    }
}
