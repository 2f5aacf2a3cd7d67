//! See `pd_fuzz::generate`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pd_fuzz::generate(bytes));
