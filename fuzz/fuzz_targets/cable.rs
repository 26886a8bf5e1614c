//! Fuzzes `proto::cable` and `proto::publication`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    cableway_fuzz::cable::check(data);
});
