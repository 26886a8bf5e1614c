//! For tests of what one process writes and another one reads: numbers that are the same in every run, and the way there.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Numbers below what is asked for, out of a seed.
pub fn numbers(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    move |below| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    }
}

/// A value as it comes out of the text that another process gets.
pub fn sent<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: T) -> T {
    let text = rmp_serde::to_vec_named(&value).expect("plain data can be written");
    let read: T = rmp_serde::from_slice(&text).expect("what was written can be read");
    assert_eq!(read, value);
    read
}
