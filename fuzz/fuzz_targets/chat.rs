//! See `pd_fuzz::chat`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pd_fuzz::chat(bytes));
