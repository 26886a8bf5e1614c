//! Fuzzes `proto::frame`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    cableway_fuzz::frame::check(data);
});
