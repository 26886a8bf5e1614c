//! The entries of one bucket: sorted, in short runs.
//!
//! A hash table of the same entries would be between half and seven eighths full, and one byte larger each. In runs,
//! nearly all memory is entries, and what an insertion has to move is bounded by the length of a run.

use super::Shards;

/// Entries of a run, on average, at most: then every run is cut in two.
const RUN: usize = 64;

/// Room that a full run gets.
const MORE: usize = 4;

/// A stream and the shards that follow it, in 8 bytes: most streams are followed by one client.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub key: u32,
    pub shards: Shards,
}

const _: () = assert!(size_of::<Entry>() == 8);

/// Entries with distinct keys. Keys are hashes, so runs are of about the same length.
pub(super) struct Entries {
    /// `2^bits` runs: the highest bits of a key say which is its own.
    runs: Vec<Vec<Entry>>,
    bits: u32,
    len: usize,
}

impl Default for Entries {
    fn default() -> Entries {
        Entries { runs: vec![Vec::new()], bits: 0, len: 0 }
    }
}

impl Entries {
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn find(&self, key: u32) -> Option<Shards> {
        let run = &self.runs[self.run(key)];
        Some(run[place(run, key).ok()?].shards)
    }

    /// The entry of a key. `None` when there was none: then this one has been made.
    pub fn find_or_add(&mut self, key: u32, shards: Shards) -> Option<&mut Entry> {
        let at = self.run(key);
        match place(&self.runs[at], key) {
            Ok(place) => Some(&mut self.runs[at][place]),
            Err(place) => {
                let run = &mut self.runs[at];
                if run.len() == run.capacity() {
                    run.reserve_exact(MORE);
                }
                run.insert(place, Entry { key, shards });
                self.len += 1;
                if self.len > RUN * self.runs.len() {
                    self.cut_in_two();
                }
                None
            }
        }
    }

    pub fn find_mut(&mut self, key: u32) -> Option<&mut Entry> {
        let at = self.run(key);
        let place = place(&self.runs[at], key).ok()?;
        Some(&mut self.runs[at][place])
    }

    pub fn remove(&mut self, key: u32) {
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

    fn run(&self, key: u32) -> usize {
        // A shift by all 32 bits is none in Rust.
        if self.bits == 0 { 0 } else { (key >> (u32::BITS - self.bits)) as usize }
    }

    fn cut_in_two(&mut self) {
        self.bits += 1;
        let bit = 1 << (u32::BITS - self.bits);
        let halves = |mut run: Vec<Entry>| {
            let upper = run.split_off(run.partition_point(|entry| entry.key & bit == 0));
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

fn place(run: &[Entry], key: u32) -> Result<usize, usize> {
    run.binary_search_by_key(&key, |entry| entry.key)
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
        let mut entries = Entries::default();
        for (n, key) in keys(20_000).enumerate() {
            assert!(entries.find_or_add(key, Shards(n as u32)).is_none());
            assert!(entries.find_or_add(key, Shards(0)).is_some(), "a second time");
        }
        assert!(entries.runs.len() >= 20_000 / RUN);
        for (n, key) in keys(20_000).enumerate() {
            assert_eq!(entries.find(key).map(|Shards(shard)| shard), Some(n as u32));
        }
        for key in keys(20_000).filter(|key| key % 50 != 0) {
            entries.remove(key);
            entries.remove(key);
        }
        for (n, key) in keys(20_000).enumerate() {
            let wanted = (key % 50 == 0).then_some(n as u32);
            assert_eq!(entries.find(key).map(|Shards(shard)| shard), wanted);
        }
        keys(20_000).for_each(|key| entries.remove(key));
        assert!(entries.is_empty() && entries.runs.len() == 1);
    }

    #[test]
    fn memory_is_nearly_all_entries() {
        let mut entries = Entries::default();
        keys(20_000).for_each(|key| assert!(entries.find_or_add(key, Shards(0)).is_none()));
        let room: usize = entries.runs.iter().map(Vec::capacity).sum();
        let bytes = room * size_of::<Entry>() + entries.runs.capacity() * size_of::<Vec<Entry>>();
        assert!(bytes < 20_000 * 10, "{bytes} bytes");
    }
}
