//! See `pd_fuzz::scenario`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pd_fuzz::scenario(bytes));
