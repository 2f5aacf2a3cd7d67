//! See `pd_fuzz::wire`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pd_fuzz::wire(bytes));
