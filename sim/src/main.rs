//! `barid-sim [OPTIONS] [SEEDS [FIRST]]`: runs seeds and prints the coverage counters. The exit
//! code is 1 if a seed violates an invariant; the first such seed is shrunk and printed. Options:
//! `--mutation NAME` injects a defect, `--story` prints the event log of the shrunk run, `--whole`
//! does not shrink, `--survey` runs all seeds and prints how often each invariant was violated.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use barid_sim::{Coverage, Mutation, kind, run, shrink, whole};

#[derive(Default)]
struct Options {
    mutation: Option<Mutation>,
    event_log: bool,
    whole: bool,
    survey: bool,
    numbers: Vec<u64>,
}

#[derive(Default)]
struct Reached {
    coverage: Coverage,
    events: u64,
    /// By kind of violation: how often, the first seed, and its message.
    broken: BTreeMap<String, (u64, u64, String)>,
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(what) => {
            eprintln!("{what}");
            return ExitCode::FAILURE;
        }
    };
    let seeds = options.numbers.first().copied().unwrap_or(1_000);
    let first = options.numbers.get(1).copied().unwrap_or(0);
    let started = Instant::now();
    let (next, end) = (AtomicU64::new(first), first.saturating_add(seeds));
    let reached = Mutex::new(Reached::default());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                return;
            }
            let outcome = run(seed, options.mutation);
            let mut reached = reached.lock().expect("no thread panics while it holds the lock");
            reached.coverage.merge(&outcome.coverage);
            reached.events += outcome.events;
            for violation in outcome.violations.iter().take(1) {
                let known = reached.broken.entry(kind(violation)).or_insert_with(|| (0, seed, violation.clone()));
                known.0 += 1;
                if seed < known.1 {
                    (known.1, known.2) = (seed, violation.clone());
                }
                if !options.survey {
                    // Lower seeds are running already; higher ones need not start.
                    next.store(end, Ordering::Relaxed);
                }
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let Reached { coverage, events, broken } = reached.into_inner().expect("no thread panics while it holds the lock");
    if options.survey || broken.is_empty() {
        let seconds = started.elapsed().as_secs_f64();
        println!("{coverage}");
        let missing = coverage.missing();
        if !missing.is_empty() {
            println!("not reached: {}", missing.join(", "));
        }
        let per_second = seeds as f64 / seconds;
        println!("{seeds} seeds from {first} in {seconds:.1} s, {per_second:.1} a second: {events} events");
    }
    for (times, seed, what) in broken.values() {
        println!("broken {times} times, first by seed {seed}: {what}");
    }
    match broken.values().map(|(_, seed, _)| *seed).min() {
        None => {
            println!("all invariants held");
            return ExitCode::SUCCESS;
        }
        Some(_) if options.survey => {}
        Some(seed) => match if options.whole { whole } else { shrink }(seed, options.mutation) {
            Some(shrunk) => {
                if options.event_log {
                    println!("{}", shrunk.event_log().join("\n"));
                }
                println!("{shrunk}");
            }
            None => println!("seed {seed} failed, but the failure does not reproduce"),
        },
    }
    ExitCode::FAILURE
}

fn options() -> Result<Options, String> {
    let mut options = Options::default();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--story" => options.event_log = true,
            "--whole" => options.whole = true,
            "--survey" => options.survey = true,
            "--mutation" => {
                let name = arguments.next().unwrap_or_default();
                let found = Mutation::ALL.iter().copied().find(|mutation| mutation.name() == name);
                options.mutation = Some(found.ok_or_else(|| format!("there is no mutation `{name}`"))?);
            }
            number => options.numbers.push(number.parse().map_err(|_| format!("`{number}` is not a number"))?),
        }
    }
    Ok(options)
}
