#![allow(clippy::unwrap_used)]
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::*;

/// The default takes a minute without optimisation; `SIM_SEEDS` sets another number.
const SEEDS: u64 = 300;
/// Every defect must be detected within this many seeds.
const NOTICED_WITHIN: u64 = 1_000;
/// Most defects are detected within this many seeds.
const MOSTLY_WITHIN: u64 = 24;
/// The first seeds that detect the other defects. They are tried before the seeds in between, which
/// takes seconds and not minutes. After a change that moves them, the test prints the new ones.
const TRIED_EARLY: [u64; 2] = [291, 742];

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[test]
fn every_seed_satisfies_all_invariants_and_coverage_is_complete() {
    let seeds = std::env::var("SIM_SEEDS").map_or(SEEDS, |text| text.parse().unwrap());
    let started = Instant::now();
    let (next, reached) = (AtomicU64::new(0), Mutex::new(Coverage::default()));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return;
            }
            let outcome = run(seed, None);
            assert!(outcome.violations.is_empty(), "{}", shrink(seed, None).unwrap());
            reached.lock().unwrap().merge(&outcome.coverage);
        }
    };
    std::thread::scope(|scope| (0..threads()).for_each(|_| drop(scope.spawn(work))));
    let reached = reached.into_inner().unwrap();
    println!("{reached}{seeds} seeds in {:.1} s", started.elapsed().as_secs_f64());
    assert_eq!(reached.missing(), Vec::<&str>::new(), "not reached by {seeds} seeds");
}

#[test]
fn same_seed_produces_identical_trace() {
    for seed in [1, 7, 4_711] {
        assert_eq!(run(seed, None), run(seed, None));
    }
    assert_ne!(run(1, None).trace, run(2, None).trace);
}

#[test]
fn every_mutation_is_detected() {
    let (next, noticed) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let place = usize::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap();
            let Some(mutation) = Mutation::ALL.get(place).copied() else { return };
            let broken = |seed| {
                let violation = run(seed, Some(mutation)).violations.into_iter().next()?;
                // Seeds below `SEEDS` are known to be clean without a mutation.
                (seed < SEEDS || run(seed, None).violations.is_empty()).then_some((seed, violation))
            };
            let mut seeds = (0..MOSTLY_WITHIN).chain(TRIED_EARLY).chain(MOSTLY_WITHIN..NOTICED_WITHIN);
            let found = seeds.find_map(broken);
            noticed.lock().unwrap().push((place, mutation, found));
        }
    };
    std::thread::scope(|scope| (0..threads()).for_each(|_| drop(scope.spawn(work))));
    let mut noticed = noticed.into_inner().unwrap();
    noticed.sort_by_key(|(place, ..)| *place);
    for (_, mutation, found) in &noticed {
        match found {
            Some((seed, violation)) => println!("{:24} seed {seed:>4}: {violation}", mutation.name()),
            None => println!("{:24} not detected within {NOTICED_WITHIN} seeds", mutation.name()),
        }
    }
    let missed: Vec<&str> =
        noticed.iter().filter(|(.., found)| found.is_none()).map(|(_, mutation, _)| mutation.name()).collect();
    assert_eq!(missed, Vec::<&str>::new(), "not detected");
}
