//! Assignments as frames of bounded size.

use model::assignment::AssignmentDiff;
use prost::Message;
use proto::dispatch::AssignmentsMessage;

/// Bytes of a frame, below the 4 MiB a receiver takes; one object alone may be more. The transport keeps a buffer as
/// large as the largest frame for every node: with frames of 1 MiB those of 500 nodes had 420 MB.
const FRAME_BYTES: usize = 128 * 1024;

/// A difference as one or more frames; all but the last say that more follow, and the last one what is to be acknowledged.
pub(super) fn split(
    diff: &AssignmentDiff,
    full: bool,
    index: u64,
    acknowledge: u64,
) -> Vec<AssignmentsMessage> {
    let whole = AssignmentsMessage::from(diff);
    let mut frames = Frames {
        done: Vec::new(),
        open: empty(full, index),
        bytes: 0,
    };
    // What tasks need comes before them.
    whole
        .networks
        .into_iter()
        .for_each(|x| frames.room(&x).networks.push(x));
    whole
        .secrets
        .into_iter()
        .for_each(|x| frames.room(&x).secrets.push(x));
    whole
        .configs
        .into_iter()
        .for_each(|x| frames.room(&x).configs.push(x));
    whole
        .peers
        .into_iter()
        .for_each(|x| frames.room(&x).peers.push(x));
    whole
        .services
        .into_iter()
        .for_each(|x| frames.room(&x).services.push(x));
    whole
        .tasks
        .into_iter()
        .for_each(|x| frames.room(&x).tasks.push(x));
    whole
        .removed
        .into_iter()
        .for_each(|x| frames.room(&x).removed.push(x));
    for node in whole.removed_peers {
        frames.room(&node).removed_peers.push(node);
    }
    for task in whole.held {
        frames.room(&task).held.push(task);
    }
    for task in whole.released {
        frames.room(&task).released.push(task);
    }
    let mut last = frames.open;
    last.more = false;
    last.acknowledge = acknowledge;
    frames.done.push(last);
    frames.done
}

fn empty(full: bool, index: u64) -> AssignmentsMessage {
    AssignmentsMessage {
        index,
        full,
        more: true,
        ..AssignmentsMessage::default()
    }
}

struct Frames {
    done: Vec<AssignmentsMessage>,
    open: AssignmentsMessage,
    bytes: usize,
}

impl Frames {
    /// The frame that `item` goes into.
    fn room(&mut self, item: &impl Message) -> &mut AssignmentsMessage {
        let bytes = item.encoded_len() + 8;
        if self.bytes > 0 && self.bytes + bytes > FRAME_BYTES {
            let next = empty(self.open.full, self.open.index);
            self.done.push(std::mem::replace(&mut self.open, next));
            self.bytes = 0;
        }
        self.bytes += bytes;
        &mut self.open
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::object::{Config, Meta};
    use model::{ConfigId, TaskId};
    use std::sync::Arc;

    #[test]
    fn nothing_is_one_empty_frame_and_much_is_many_small_ones() {
        let frames = split(&AssignmentDiff::default(), true, 7, 5);
        assert_eq!(
            frames,
            [AssignmentsMessage {
                index: 7,
                full: true,
                acknowledge: 5,
                ..AssignmentsMessage::default()
            }]
        );

        let mut diff = AssignmentDiff::default();
        for id in 1..=9 {
            let spec = model::spec::ConfigSpec {
                data: vec![1; 50_000],
                ..Default::default()
            };
            let config = Config {
                id: ConfigId(id),
                meta: Meta::default(),
                spec: Arc::new(spec),
            };
            diff.update.configs.insert(ConfigId(id), Arc::new(config));
        }
        diff.remove_tasks.push(TaskId(5));
        let frames = split(&diff, false, 7, 8);
        let asked: Vec<u64> = frames.iter().map(|f| f.acknowledge).filter(|n| *n != 0).collect();
        assert_eq!(asked, [8], "once");
        assert_eq!(frames.iter().map(|f| f.configs.len()).sum::<usize>(), 9);
        assert_eq!(frames.iter().map(|f| f.removed.len()).sum::<usize>(), 1);
        let (last, before) = frames.split_last().unwrap();
        assert!(!last.more && before.iter().all(|f| f.more));
        assert!(
            frames
                .iter()
                .all(|f| f.encoded_len() <= FRAME_BYTES && f.index == 7 && !f.full)
        );
    }
}
