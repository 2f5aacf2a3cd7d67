//! See `pd_fuzz::bootstrap`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pd_fuzz::bootstrap(bytes));
