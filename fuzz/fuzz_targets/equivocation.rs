#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| barid_fuzz::targets::equivocation::check(data));
