#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| barid::exchange::conversation::check(data));
