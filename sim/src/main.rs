//! `barid-sim [SEEDS [FIRST]]`: runs seeds and prints what became of them, and how often what was reached; exit code 1 with the first seed that
//! breaks a promise, shrunk. `barid-sim --mutation NAME SEEDS` does so with a defect put in.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use barid_sim::{Coverage, Mutation, run, shrink};

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut mutation = None;
    if arguments.first().is_some_and(|argument| argument == "--mutation") {
        let name = arguments.get(1).cloned().unwrap_or_default();
        mutation = Mutation::ALL.iter().copied().find(|mutation| mutation.name() == name);
        if mutation.is_none() {
            eprintln!("there is no defect {name:?}");
            return ExitCode::FAILURE;
        }
        arguments.drain(..2);
    }
    let mut numbers = arguments.iter().map_while(|text| text.parse::<u64>().ok());
    let (seeds, first) = (numbers.next().unwrap_or(1_000), numbers.next().unwrap_or(0));
    let started = Instant::now();
    let (next, failed) = (AtomicU64::new(first), Mutex::new(None::<u64>));
    let reached = Mutex::new((Coverage::default(), 0_u64));
    let end = first.saturating_add(seeds);
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                return;
            }
            let outcome = run(seed, mutation);
            let mut reached = reached.lock().expect("nobody panics with it");
            reached.0.merge(&outcome.coverage);
            reached.1 += outcome.events;
            if !outcome.violations.is_empty() {
                let mut failed = failed.lock().expect("nobody panics with it");
                *failed = Some(failed.map_or(seed, |other: u64| other.min(seed)));
                // Lower seeds are under way already; higher ones need not be begun.
                next.store(end, Ordering::Relaxed);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    if let Some(seed) = failed.into_inner().expect("nobody panics with it") {
        match shrink(seed, mutation) {
            Some(shrunk) => println!("{shrunk}"),
            None => println!("seed {seed} failed, and does not again"),
        }
        return ExitCode::FAILURE;
    }
    let seconds = started.elapsed().as_secs_f64();
    let (coverage, events) = reached.into_inner().expect("nobody panics with it");
    println!("{coverage}");
    let missing = coverage.missing();
    if !missing.is_empty() {
        println!("not reached: {}", missing.join(", "));
    }
    #[allow(clippy::cast_precision_loss, reason = "for people")]
    let per_second = seeds as f64 / seconds;
    println!("{seeds} seeds from {first} on in {seconds:.1} s, {per_second:.1} a second: {events} events, every promise held");
    ExitCode::SUCCESS
}
