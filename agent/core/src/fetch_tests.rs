//! Rows and properties of the plan by which an image is fetched.

use super::*;

const NOW: Timestamp = Timestamp(100_000);
const LATER: Timestamp = Timestamp(200_000);

/// Nodes 1 to `n`, all of which have described the layers.
fn fetch(n: u128, layers: &[(&str, u64)]) -> Fetch {
    let mut fetch = Fetch::new((1..=n).map(NodeId), NOW);
    for node in 1..=n {
        fetch.describing(NodeId(node));
        fetch.described(NodeId(node), offer(layers));
    }
    fetch.want(layers.iter().map(|(l, _)| (*l).to_owned()));
    fetch
}

fn offer(layers: &[(&str, u64)]) -> BTreeMap<String, u64> {
    layers
        .iter()
        .map(|(l, bytes)| ((*l).to_owned(), *bytes))
        .collect()
}

/// What is begun, as `(layer, node, offset)`, and begins it.
fn begin(fetch: &mut Fetch, now: Timestamp) -> Vec<(String, u128, u64)> {
    let Next::Go {
        describe, transfers, ..
    } = fetch.next(now)
    else {
        return Vec::new();
    };
    describe.into_iter().for_each(|n| fetch.describing(n));
    transfers.iter().for_each(|t| fetch.begin(t));
    let again = fetch.next(now);
    assert!(
        matches!(&again, Next::Go { describe, transfers, .. } if describe.is_empty() && transfers.is_empty()),
        "what was begun is not begun again: {again:?}"
    );
    (transfers.into_iter())
        .map(|t| (t.diff_id, t.source.0, t.offset))
        .collect()
}

fn one(layer: &str, node: u128, offset: u64) -> Vec<(String, u128, u64)> {
    vec![(layer.to_owned(), node, offset)]
}

#[test]
fn first_a_few_nodes_are_asked_what_they_have() {
    let mut f = Fetch::new((1..=6).map(NodeId), NOW);
    let Next::Go { describe, .. } = f.next(NOW) else {
        panic!("nothing to do")
    };
    assert_eq!(describe, [1, 2, 3, 4].map(NodeId), "in the manager's order");
    begin(&mut f, NOW);
    f.not_described(NodeId(2), Fault::Lost, NOW);
    f.not_described(NodeId(3), Fault::Wrong, NOW);
    let Next::Go { describe, wake, .. } = f.next(NOW) else {
        panic!("nothing to do")
    };
    assert_eq!(describe, [5, 6].map(NodeId), "others stand in");
    assert_eq!(wake, Some(NOW + STRIKE_PAUSE));
    begin(&mut f, NOW);
    for node in [1, 4, 5, 6] {
        f.not_described(NodeId(node), Fault::Lacks, NOW);
    }
    assert_eq!(
        f.next(NOW),
        Next::Ask(NOW + STRIKE_PAUSE),
        "only the lost one is left"
    );
    f.asked([NodeId(9)]);
    let Next::Go { describe, .. } = f.next(NOW) else {
        panic!("nothing to do")
    };
    assert_eq!(describe, [NodeId(9)]);
}

#[test]
fn layers_come_from_different_nodes_three_at_a_time() {
    let layers = [("a", 10), ("b", 20), ("c", 30), ("d", 40)];
    type Row<'a> = (&'a str, u128, &'a [(&'a str, u128)]);
    let rows: &[Row<'_>] = &[
        ("one node sends all", 1, &[("a", 1), ("b", 1), ("c", 1)]),
        ("two share", 2, &[("a", 1), ("b", 2), ("c", 1)]),
        ("three each one", 3, &[("a", 1), ("b", 2), ("c", 3)]),
        ("a fourth has nothing to do", 4, &[("a", 1), ("b", 2), ("c", 3)]),
    ];
    for (name, nodes, want) in rows {
        let mut f = fetch(*nodes, &layers);
        assert_eq!(f.progress(), (0, 100), "{name}");
        let want: Vec<_> = want.iter().map(|(l, n)| ((*l).to_owned(), *n, 0)).collect();
        assert_eq!(begin(&mut f, NOW), want, "{name}");
        f.arrived("a", 4);
        assert_eq!(f.progress(), (4, 100), "{name}");
        f.verified("a");
        assert_eq!(begin(&mut f, NOW).len(), 1, "{name}: the next when there is room");
        for layer in ["b", "c", "d"] {
            f.verified(layer);
        }
        assert_eq!((f.next(NOW), f.progress()), (Next::Done, (100, 100)), "{name}");
    }
    let mut nothing = fetch(1, &[]);
    assert_eq!(nothing.next(NOW), Next::Done);
    nothing.want(["a".to_owned()]);
    assert_eq!(nothing.next(NOW), Next::Ask(NOW), "the node does not have it");
}

#[test]
fn the_first_to_answer_is_not_given_everything() {
    let layers = [("a", 10), ("b", 20)];
    let mut f = Fetch::new([NodeId(1), NodeId(2)], NOW);
    begin(&mut f, NOW);
    f.described(NodeId(1), offer(&layers));
    f.want(["a".to_owned(), "b".to_owned()]);
    assert_eq!(begin(&mut f, NOW), one("a", 1, 0));
    let Next::Go { wake, .. } = f.next(NOW) else {
        panic!("nothing to do")
    };
    assert_eq!(wake, Some(NOW + PATIENCE), "the second waits for the other node");
    let mut silent = f.clone();
    assert_eq!(begin(&mut silent, NOW + PATIENCE), one("b", 1, 0), "but not long");
    f.described(NodeId(2), offer(&layers));
    assert_eq!(begin(&mut f, NOW), one("b", 2, 0));
}

#[test]
fn a_broken_transfer_goes_on_elsewhere_where_it_was() {
    let mut f = fetch(2, &[("a", 100)]);
    begin(&mut f, NOW);
    f.arrived("a", 60);
    assert_eq!(f.broken("a", Fault::Lost, NOW), None);
    assert_eq!(begin(&mut f, NOW), one("a", 2, 60));
    // Packed differently there: it begins anew, unless somebody has the same.
    let mut f = fetch(1, &[("a", 100)]);
    f.asked([NodeId(2), NodeId(3)]);
    begin(&mut f, NOW);
    f.described(NodeId(2), offer(&[("a", 90)]));
    f.arrived("a", 60);
    f.broken("a", Fault::Lost, NOW);
    let mut other = f.clone();
    assert_eq!(begin(&mut other, NOW), one("a", 2, 0));
    f.described(NodeId(3), offer(&[("a", 100)]));
    assert_eq!(begin(&mut f, NOW), one("a", 3, 60));
    // With nobody else it goes on with the same node, after a moment, and not for ever.
    let mut f = fetch(1, &[("a", 100)]);
    let mut now = NOW;
    for strike in 1..=STRIKES_MAX {
        assert_eq!(begin(&mut f, now), one("a", 1, u64::from(strike) * 10 - 10));
        f.arrived("a", u64::from(strike) * 10);
        f.broken("a", Fault::Lost, now);
        now = now + STRIKE_PAUSE;
        if strike < STRIKES_MAX {
            assert_eq!(f.next(Timestamp(now.0 - 1)), Next::Ask(now));
        }
    }
    assert_eq!(f.next(now), Next::Ask(now), "is there really nobody else?");
    f.asked([NodeId(1)]);
    assert_eq!(f.next(now), Next::Failed(Failed::NoSource));
}

#[test]
fn who_sends_wrong_bytes_is_dropped_when_it_is_clear_who() {
    let mut f = fetch(2, &[("a", 100), ("b", 10)]);
    begin(&mut f, NOW);
    f.arrived("a", 100);
    assert_eq!(f.broken("a", Fault::Wrong, NOW), Some(NodeId(1)));
    assert_eq!(begin(&mut f, NOW), one("a", 2, 0), "anew, from another");
    assert_eq!(f.broken("a", Fault::Wrong, NOW), Some(NodeId(2)));
    f.broken("b", Fault::Lost, NOW);
    assert_eq!(f.next(LATER), Next::Ask(LATER), "nobody is left, for no layer");
    // Two sent it: nobody is blamed, and from then on one sends it alone.
    let mut f = fetch(3, &[("a", 100)]);
    begin(&mut f, NOW);
    f.arrived("a", 50);
    f.broken("a", Fault::Lost, NOW);
    assert_eq!(begin(&mut f, NOW), one("a", 2, 50));
    f.arrived("a", 100);
    assert_eq!(f.broken("a", Fault::Wrong, NOW), None);
    assert_eq!(
        begin(&mut f, LATER),
        one("a", 3, 0),
        "from one that had no part in it"
    );
    f.arrived("a", 70);
    f.broken("a", Fault::Lost, LATER);
    let next = begin(&mut f, LATER);
    assert_eq!(next, one("a", 2, 0), "not on top of what another sent");
    f.arrived("a", 30);
    f.broken("a", Fault::Lost, LATER);
    let later = LATER + STRIKE_PAUSE;
    let next = begin(&mut f, later);
    assert_eq!(next, one("a", 3, 0), "rather anew than from a suspect");
    f.arrived("a", 40);
    f.broken("a", Fault::Lost, later);
    let next = begin(&mut f, later + STRIKE_PAUSE);
    assert_eq!(next, one("a", 3, 40), "on top of what it sent itself");
    assert_eq!(f.broken("a", Fault::Wrong, LATER), Some(NodeId(3)));
}

#[test]
fn busy_nodes_are_waited_for_with_patience() {
    let mut f = fetch(2, &[("a", 100)]);
    let mut now = NOW;
    begin(&mut f, now);
    f.broken("a", Fault::Busy, now);
    assert_eq!(begin(&mut f, now), one("a", 2, 0), "the other one first");
    f.broken("a", Fault::Busy, now);
    for _ in 0..ASKS_MAX {
        assert_eq!(f.next(now), Next::Ask(now + BUSY_PAUSE));
        now = now + BUSY_PAUSE;
        f.asked([NodeId(1), NodeId(2)]);
        for node in [1, 2] {
            assert_eq!(begin(&mut f, now), one("a", node, 0));
            f.broken("a", Fault::Busy, now);
        }
    }
    assert_eq!(f.next(now), Next::Failed(Failed::Busy));
}

#[test]
fn a_fetch_ends_whatever_fails() {
    // A small generator: every sequence of faults comes to an end within the bounds.
    let mut state = 0x9e37_79b9_u64;
    let mut chance = move |n: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % n
    };
    for run in 0..200 {
        let mut f = fetch(1 + run % 16, &[("a", 100), ("b", 100), ("c", 100), ("d", 100)]);
        let (mut now, mut steps) = (NOW, 0);
        let end = loop {
            steps += 1;
            assert!(steps < 20_000, "it goes on and on");
            match f.next(now) {
                Next::Go {
                    describe,
                    transfers,
                    wake,
                } => {
                    for node in &describe {
                        f.describing(*node);
                        f.described(*node, offer(&[("a", 100), ("b", 100), ("c", 100), ("d", 100)]));
                    }
                    for t in &transfers {
                        f.begin(t);
                        f.arrived(&t.diff_id, t.offset + chance(100 - t.offset + 1));
                        let fault = match chance(4) {
                            0 => Fault::Lost,
                            1 => Fault::Busy,
                            2 => Fault::Lacks,
                            _ => Fault::Wrong,
                        };
                        if chance(4) == 0 {
                            f.verified(&t.diff_id);
                        } else {
                            f.broken(&t.diff_id, fault, now);
                        }
                    }
                    if describe.is_empty() && transfers.is_empty() {
                        now = wake.expect("nothing is under way, so there is a time");
                    }
                }
                Next::Ask(at) => {
                    now = now.max(at);
                    f.asked((1..=chance(17)).map(|n| NodeId(u128::from(n))));
                }
                end @ (Next::Done | Next::Failed(_)) => break end,
            }
        };
        assert_eq!(f.next(now), end, "and stays ended");
    }
}
