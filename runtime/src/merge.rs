//! Several streams, each in order of time, as one: a merge with a bounded look-ahead that waits for nobody long.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// How long a stream that says nothing may hold the others up, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Before its first word: it may have to be fetched from far away.
    pub first_ms: u64,
    /// After that.
    pub later_ms: u64,
}

/// What a merge has to give.
#[derive(Debug, PartialEq, Eq)]
pub enum Next<T> {
    /// The next item.
    Item(T),
    /// Nothing yet: ask again when something was pushed, or at this time at the latest.
    Wait {
        /// In the milliseconds the merge was told; absent: only what is pushed helps.
        until_ms: Option<u64>,
    },
    /// Nothing any more: every stream ended.
    End,
}

struct Stream<T> {
    queue: VecDeque<(u64, T)>,
    ended: bool,
    /// Since when others wait for it; absent while it has items, has ended, or was waited for long enough.
    awaited: Option<u64>,
}

/// Merges streams. It reads no clock: times at which things happen are given, in milliseconds of any beginning.
///
/// How far ahead a stream is read its caller bounds: by what it pushes before items were taken.
pub struct Merge<T> {
    patience: Patience,
    streams: BTreeMap<u64, Stream<T>>,
    /// Time of each stream's next item.
    heads: BTreeSet<(u64, u64)>,
    /// When waiting for a stream ends.
    awaited: BTreeSet<(u64, u64)>,
}

impl<T> Merge<T> {
    /// A merge of no streams.
    pub fn new(patience: Patience) -> Self {
        Self {
            patience,
            streams: BTreeMap::new(),
            heads: BTreeSet::new(),
            awaited: BTreeSet::new(),
        }
    }

    /// Adds a stream under a number that was not used before.
    pub fn add(&mut self, stream: u64, now_ms: u64) {
        let until = now_ms.saturating_add(self.patience.first_ms);
        self.awaited.insert((until, stream));
        let new = Stream {
            queue: VecDeque::new(),
            ended: false,
            awaited: Some(until),
        };
        self.streams.insert(stream, new);
    }

    /// Takes the next item of a stream, with its time. Of a stream that ended or is unknown nothing is taken.
    pub fn push(&mut self, stream: u64, time: u64, item: T) {
        let Some(known) = self.streams.get_mut(&stream).filter(|s| !s.ended) else {
            return;
        };
        if let Some(until) = known.awaited.take() {
            self.awaited.remove(&(until, stream));
        }
        if known.queue.is_empty() {
            self.heads.insert((time, stream));
        }
        known.queue.push_back((time, item));
    }

    /// Ends a stream; what it has still comes.
    pub fn end(&mut self, stream: u64) {
        let Some(known) = self.streams.get_mut(&stream) else {
            return;
        };
        known.ended = true;
        if let Some(until) = known.awaited.take() {
            self.awaited.remove(&(until, stream));
        }
        if known.queue.is_empty() {
            self.streams.remove(&stream);
        }
    }

    /// The next item in order of time, as far as that is known by now.
    pub fn next(&mut self, now_ms: u64) -> Next<T> {
        while let Some((until, stream)) = self
            .awaited
            .first()
            .copied()
            .filter(|(until, _)| *until <= now_ms)
        {
            self.awaited.remove(&(until, stream));
            if let Some(known) = self.streams.get_mut(&stream) {
                known.awaited = None;
            }
        }
        if let Some((until, _)) = self.awaited.first() {
            return Next::Wait {
                until_ms: Some(*until),
            };
        }
        let Some((_, stream)) = self.heads.pop_first() else {
            return if self.streams.is_empty() {
                Next::End
            } else {
                Next::Wait { until_ms: None }
            };
        };
        let known = self.streams.get_mut(&stream).expect("a head belongs to a stream");
        let (_, item) = known.queue.pop_front().expect("a head is the first of its queue");
        if let Some((time, _)) = known.queue.front() {
            self.heads.insert((*time, stream));
        } else if known.ended {
            self.streams.remove(&stream);
        } else {
            let until = now_ms.saturating_add(self.patience.later_ms);
            known.awaited = Some(until);
            self.awaited.insert((until, stream));
        }
        Next::Item(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience {
        first_ms: 1000,
        later_ms: 100,
    };

    fn all(merge: &mut Merge<&'static str>, now: u64) -> (Vec<&'static str>, Option<Next<&'static str>>) {
        let mut items = Vec::new();
        loop {
            match merge.next(now) {
                Next::Item(item) => items.push(item),
                other => return (items, Some(other)),
            }
        }
    }

    #[test]
    fn items_come_in_order_of_time() {
        let mut merge = Merge::new(PATIENCE);
        for (stream, items) in [(1, [(10, "a"), (40, "d")]), (2, [(20, "b"), (30, "c")])] {
            merge.add(stream, 0);
            items
                .iter()
                .for_each(|(time, item)| merge.push(stream, *time, *item));
            merge.end(stream);
        }
        assert_eq!(all(&mut merge, 0), (vec!["a", "b", "c", "d"], Some(Next::End)));
    }

    #[test]
    fn what_may_still_come_is_waited_for() {
        let mut merge = Merge::new(PATIENCE);
        merge.add(1, 0);
        merge.add(2, 0);
        merge.push(1, 20, "late");
        assert_eq!(merge.next(5), Next::Wait { until_ms: Some(1000) });
        merge.push(2, 10, "early");
        assert_eq!(merge.next(6), Next::Item("early"));
        // The second may have more that is earlier than what the first has.
        assert_eq!(merge.next(6), Next::Wait { until_ms: Some(106) });
        merge.end(2);
        assert_eq!(merge.next(7), Next::Item("late"));
    }

    #[test]
    fn a_quiet_stream_holds_the_others_up_once_and_not_for_long() {
        let mut merge = Merge::new(PATIENCE);
        merge.add(1, 0);
        merge.add(2, 0);
        for (time, item) in [(1, "a"), (2, "b"), (3, "c")] {
            merge.push(1, time, item);
        }
        assert_eq!(merge.next(999), Next::Wait { until_ms: Some(1000) });
        assert_eq!(all(&mut merge, 1000).0, ["a", "b", "c"]);
        // The first has nothing more: now it is waited for, shortly.
        assert_eq!(merge.next(1000), Next::Wait { until_ms: Some(1100) });
        assert_eq!(merge.next(1100), Next::Wait { until_ms: None });
        merge.push(2, 4, "at last");
        assert_eq!(merge.next(5000), Next::Item("at last"));
    }

    #[test]
    fn a_stream_that_was_given_up_is_waited_for_again_once_it_speaks() {
        let mut merge = Merge::new(PATIENCE);
        merge.add(1, 0);
        merge.add(2, 0);
        assert_eq!(merge.next(2000), Next::Wait { until_ms: None });
        merge.push(1, 1, "a");
        assert_eq!(merge.next(2001), Next::Item("a"));
        merge.push(2, 9, "b");
        assert_eq!(merge.next(2002), Next::Wait { until_ms: Some(2101) });
    }

    #[test]
    fn nothing_is_taken_of_a_stream_that_ended() {
        let mut merge = Merge::new(PATIENCE);
        merge.add(1, 0);
        merge.push(1, 1, "a");
        merge.end(1);
        merge.push(1, 2, "b");
        assert_eq!(all(&mut merge, 0), (vec!["a"], Some(Next::End)));
        merge.end(7);
        assert_eq!(merge.next(0), Next::End);
    }
}
