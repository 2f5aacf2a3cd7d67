//! See `pd_fuzz::codec`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pd_fuzz::codec(bytes));
