//! Runs the checks of the fuzz targets on their seeds and on a thousand mutations of each target's
//! seeds.

#[allow(dead_code, unreachable_pub)]
#[path = "../../../fuzz/src/mutate.rs"]
mod mutate;
#[allow(unreachable_pub)]
#[path = "../../../fuzz/src/targets/mod.rs"]
mod targets;

use mutate::Mutator;

/// Mutations per target. All targets together take seconds without optimisation. `FUZZ_MUTATIONS`
/// overrides it.
const MUTATIONS: u64 = 1_000;

#[test]
fn mutated_inputs_never_panic_a_decoder() {
    let mutations = std::env::var("FUZZ_MUTATIONS").map_or(MUTATIONS, |text| text.parse().unwrap());
    for target in targets::ALL {
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty(), "{}", target.name);
        seeds.iter().for_each(|seed| (target.check)(seed));
        (target.check)(&[]);
        for number in 0..mutations {
            let mut mutator = Mutator::new(number);
            let pick = |number: u64| &seeds[usize::try_from(number).unwrap() % seeds.len()];
            let bytes = mutator.mutate(pick(number), pick(number / 7 + 3));
            let outcome = std::panic::catch_unwind(|| (target.check)(&bytes));
            assert!(outcome.is_ok(), "{}: mutation {number} of the seeds", target.name);
        }
    }
}
