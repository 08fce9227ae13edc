//! Which backend each slot of a balanced address leads to.

/// Slots of one address: connections choose among them at random. A power of two, so that choosing costs nothing, and
/// large enough that shares differ by little with a hundred backends.
pub(crate) const SLOTS: usize = 256;

/// Gives slots to backends, evenly, moving as few as possible from what `now` has.
///
/// Backends beyond [`SLOTS`] get none. Applied to its own result it changes nothing.
pub(crate) fn assign<T: Clone + Ord>(now: &[Option<T>], backends: &[T]) -> Vec<Option<T>> {
    let mut wanted: Vec<T> = backends.to_vec();
    wanted.sort();
    wanted.dedup();
    wanted.truncate(SLOTS);
    if wanted.is_empty() {
        return vec![None; SLOTS];
    }
    let (share, extra) = (SLOTS / wanted.len(), SLOTS % wanted.len());
    let mut slots: Vec<Option<T>> = now.to_vec();
    slots.resize(SLOTS, None);
    let mut counts = vec![0usize; wanted.len()];
    let mut above = 0;
    for slot in &mut slots {
        let keep = slot
            .as_ref()
            .and_then(|b| wanted.binary_search(b).ok())
            .filter(|i| {
                let room = counts[*i] < share || (counts[*i] == share && above < extra);
                if room && counts[*i] == share {
                    above += 1;
                }
                room
            });
        match keep {
            Some(i) => counts[i] += 1,
            None => *slot = None,
        }
    }
    let mut next = 0;
    for slot in slots.iter_mut().filter(|s| s.is_none()) {
        while counts[next] >= share && !(counts[next] == share && above < extra && all_full(&counts, share)) {
            next = (next + 1) % wanted.len();
        }
        if counts[next] == share {
            above += 1;
        }
        counts[next] += 1;
        *slot = Some(wanted[next].clone());
    }
    slots
}

fn all_full(counts: &[usize], share: usize) -> bool {
    counts.iter().all(|c| *c >= share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_even_and_few_slots_move() {
        let mut slots: Vec<Option<u32>> = vec![None; SLOTS];
        for backends in [
            vec![1],
            vec![1, 2],
            vec![1, 2, 3],
            vec![2, 3],
            vec![2, 3, 4, 5, 6, 7, 8],
            (0..300).collect(),
            vec![],
            vec![9],
        ] {
            let next = assign(&slots, &backends);
            assert_eq!(assign(&next, &backends), next, "{backends:?}: again");
            let count = |b: u32| next.iter().filter(|s| **s == Some(b)).count();
            let used: Vec<usize> = backends.iter().map(|b| count(*b)).filter(|c| *c > 0).collect();
            if let (Some(min), Some(max)) = (used.iter().min(), used.iter().max()) {
                assert!(max - min <= 1, "{backends:?}: {min}..{max}");
                assert_eq!(used.iter().sum::<usize>(), SLOTS);
            }
            slots = next;
        }
        let two = assign::<u32>(&[], &[1, 2]);
        let three = assign(&two, &[1, 2, 3]);
        let moved = two.iter().zip(&three).filter(|(a, b)| a != b).count();
        assert!(moved <= SLOTS / 3 + 1, "{moved} slots moved");
    }
}
