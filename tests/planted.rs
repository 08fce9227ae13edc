//! Bugs put in on purpose: a property that finds none of them tests less than it says.

use tests::sim::{Plant, run_with};

/// Seeds within which every bug has to be found.
const SEEDS: u64 = 2_000;

#[test]
fn every_planted_bug_is_found() {
    let mut missed = Vec::new();
    for plant in Plant::ALL {
        let found = (0..SEEDS).find_map(|seed| run_with(seed, Some(plant)).problem.map(|p| (seed, p)));
        match found {
            Some((seed, problem)) => {
                let line = problem.lines().next().unwrap_or_default();
                println!("{plant:?}: seed {seed}: {line}");
                // By the property that is about it, and not by chance.
                let named = plant.found_by().iter().any(|name| problem.contains(name));
                assert!(named, "{plant:?} was found by another property: {line}");
            }
            None => missed.push(plant),
        }
    }
    assert!(missed.is_empty(), "not found within {SEEDS} seeds: {missed:?}");
}
