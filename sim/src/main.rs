//! `barid-sim [SEEDS [FIRST]]`: runs seeds and prints what became of them; exit code 1 with the first that breaks a promise.

use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let mut numbers = std::env::args().skip(1).map_while(|text| text.parse::<u64>().ok());
    let (seeds, first) = (numbers.next().unwrap_or(1_000), numbers.next().unwrap_or(0));
    let started = Instant::now();
    let (mut released, mut delivered) = (0, 0);
    for seed in first..first.saturating_add(seeds) {
        let outcome = barid_sim::run(seed, None);
        if !outcome.violations.is_empty() {
            println!("seed {seed}:\n{}", outcome.violations.join("\n"));
            return ExitCode::FAILURE;
        }
        released += outcome.released;
        delivered += outcome.delivered;
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("{seeds} seeds in {seconds:.1} s: {released} released, {delivered} delivered, every promise held");
    ExitCode::SUCCESS
}
