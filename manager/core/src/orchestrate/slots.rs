//! Which replica numbers a service keeps and opens.

/// The numbers a service with `replicas` should have, given those it has: the lowest are kept, the lowest free ones
/// are opened. Applied to its own result it changes nothing.
pub(crate) fn keep(replicas: u32, open: &[u32]) -> Vec<u32> {
    let want = replicas as usize;
    let mut kept: Vec<u32> = open.to_vec();
    kept.sort_unstable();
    kept.dedup();
    kept.truncate(want);
    let missing = want - kept.len();
    let free: Vec<u32> = (1..).filter(|n| !kept.contains(n)).take(missing).collect();
    kept.extend(free);
    kept.sort_unstable();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_kept_low_and_reused() {
        let rows: &[(&str, u32, &[u32], &[u32])] = &[
            ("a new service", 2, &[], &[1, 2]),
            ("a free number is reused", 3, &[1, 3], &[1, 2, 3]),
            ("scale-down closes the highest", 1, &[2, 1], &[1]),
            ("scale to zero", 0, &[4], &[]),
            ("nothing to do", 2, &[1, 2], &[1, 2]),
            ("high numbers stay where they fill the count", 2, &[5, 7], &[5, 7]),
        ];
        for (name, replicas, open, want) in rows {
            let got = keep(*replicas, open);
            assert_eq!(got, *want, "{name}");
            assert_eq!(keep(*replicas, &got), got, "{name}: again");
        }
    }
}
