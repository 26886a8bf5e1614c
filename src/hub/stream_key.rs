//! A stream's name in one number, for tables that many threads share.

use std::hash::BuildHasher;

use crate::model::NameHasher;

/// Bits of a [`StreamKey`]: 6 choose a bucket of a shared table, 32 are kept in its entry.
const BITS: u32 = 38;

/// Stands for a stream's name between the shards and whoever publishes. Two streams may have the same: then a
/// publication to one also goes to shards that follow the other, and is dropped there after one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamKey(u64);

impl StreamKey {
    /// The bucket, out of `2^bits`, and what tells keys of one bucket apart.
    pub fn split(self, bits: u32) -> (usize, u32) {
        ((self.0 >> (BITS - bits)) as usize, self.0 as u32)
    }

    /// The key that [`split`](Self::split) took apart.
    pub fn joined(bits: u32, bucket: usize, rest: u32) -> StreamKey {
        StreamKey((bucket as u64) << (BITS - bits) | u64::from(rest))
    }

    /// The key as a number, for another process with the same [`StreamHasher`].
    pub fn to_bits(self) -> u64 {
        self.0
    }

    /// The key of such a number.
    pub fn from_bits(bits: u64) -> StreamKey {
        StreamKey(bits & ((1 << BITS) - 1))
    }

    /// A hash in which every bit depends on the key, for tables that use the highest and the lowest.
    pub(super) fn spread(self) -> u64 {
        self.0.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_right(20)
    }
}

/// Makes keys. All shards of a node and its publishers must use the same.
#[derive(Clone, Debug)]
pub struct StreamHasher(NameHasher);

impl StreamHasher {
    /// `seed` keys the hash of names, which clients may choose, and should be random outside of tests.
    pub fn new(seed: u64) -> StreamHasher {
        StreamHasher(NameHasher::new(seed))
    }

    /// The key of a stream.
    pub fn key(&self, stream: &str) -> StreamKey {
        StreamKey(self.0.hash_one(stream) >> (u64::BITS - BITS))
    }

    /// For the hub's own table, so that all streams of one key have one hash there.
    pub(super) fn table_hash(&self, stream: &str) -> u64 {
        self.key(stream).spread()
    }
}
