//! Hashes names that peers choose: streams, identifiers, connection identifiers.
//!
//! Whoever can choose the keys of a hash table and knows its hash can make all of them fall into one place. SipHash was made
//! so that nobody who does not know the key can find such names, however long they try and measure; the fast hashes
//! (foldhash, fxhash) were not. It costs some 20 ns more for a name, paid once for a subscription or publication.

use std::fmt;
use std::hash::BuildHasher;

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;

/// Makes hashers with one key.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct NameHasher {
    key: [u64; 2],
}

impl NameHasher {
    /// The seed is half of the key and the other half follows from it; it should be random outside of tests.
    pub fn new(seed: u64) -> NameHasher {
        NameHasher { key: [seed, seed.wrapping_mul(0x9E37_79B9_7F4A_7C15)] }
    }
}

/// Not its key.
impl fmt::Debug for NameHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NameHasher").finish_non_exhaustive()
    }
}

impl Default for NameHasher {
    /// One with a key that nobody knows.
    fn default() -> NameHasher {
        NameHasher { key: rand::random() }
    }
}

impl BuildHasher for NameHasher {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.key[0], self.key[1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_depends_on_the_key() {
        let of = |hasher: NameHasher| hasher.hash_one("room:7");
        assert_eq!(of(NameHasher::new(1)), of(NameHasher::new(1)));
        assert_ne!(of(NameHasher::new(1)), of(NameHasher::new(2)));
        assert_ne!(of(NameHasher::default()), of(NameHasher::default()));
    }
}
