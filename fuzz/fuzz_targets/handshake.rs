//! Fuzzes `proto::handshake`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    cableway_fuzz::handshake::check(data);
});
