//! Rollouts with random knobs, in which every slot has its own fate, against a small model of what they promise.

use std::fmt::Write as _;

use super::*;
use crate::orchestrate::restart::tests::Rng;
use crate::orchestrate_tests::{Sim, image, spec};

/// Longest rollout there may be here, in quarters of a second.
const TICKS_MAX: usize = 4 * 400;
/// Before what is tried in vain is given up.
const DEADLINE: Duration = Duration::from_secs(20);

/// What the new task of a slot has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum New {
    /// It is made, and has nothing that could serve.
    Comes,
    /// It is prepared.
    Ready,
    /// It runs, since then.
    Runs(Timestamp),
    /// All that were made so far are over.
    Over,
}

/// One slot, as anybody can see it.
#[derive(Debug, Clone, Copy)]
struct Slot {
    new: Option<New>,
    /// Whether the old task is wanted.
    old: bool,
}

type View = BTreeMap<SlotKey, Slot>;

/// What a rollout promises, in its own words (features.md §1.6 with rows 10 to 13): it is told what is seen of the tasks, and
/// knows nothing of how the updater decides.
struct Model {
    config: UpdateConfig,
    version: u64,
    slots: usize,
    /// When each slot had its first new task.
    first: BTreeMap<SlotKey, Timestamp>,
    /// Slots that failed.
    failed: BTreeSet<SlotKey>,
    /// Slots in which a new task ran at any time.
    ran: BTreeSet<SlotKey>,
    /// Those in which one was good, and ended nevertheless.
    fell: BTreeSet<SlotKey>,
}

impl Model {
    fn view(&self, sim: &Sim) -> View {
        let mut view = View::new();
        for task in sim.tasks("web") {
            let slot = view.entry(task.slot).or_insert(Slot {
                new: None,
                old: false,
            });
            if task.spec_version != self.version {
                slot.old |= is_live(task);
                continue;
            }
            let come = match (is_live(task), task.status.state) {
                (false, _) => New::Over,
                (true, TaskState::Running) => New::Runs(task.running_at.unwrap_or(task.status.at)),
                (true, TaskState::Ready) if task.run_at <= sim.now => New::Ready,
                (true, _) => New::Comes,
            };
            if slot.new.is_none_or(|known| known == New::Over) {
                slot.new = Some(come);
            }
        }
        view
    }

    /// A task that ends before it runs, or within `monitor` of that, is a failure of its slot; so is a slot in which none ran
    /// in time, or that is down then and had two that ended.
    fn hear(&mut self, sim: &Sim) {
        let mut ends: BTreeMap<SlotKey, usize> = BTreeMap::new();
        for task in sim
            .tasks("web")
            .into_iter()
            .filter(|t| t.spec_version == self.version)
        {
            let first = self.first.entry(task.slot).or_insert(task.meta.created_at);
            *first = (*first).min(task.meta.created_at);
            if task.running_at.is_some() {
                self.ran.insert(task.slot);
            }
            let by_itself = matches!(task.status.state, TaskState::Failed | TaskState::Rejected);
            let soon = |ran| task.status.at.since(ran) <= self.config.monitor;
            if by_itself {
                *ends.entry(task.slot).or_default() += 1;
                let of = if task.running_at.is_none_or(soon) {
                    &mut self.failed
                } else {
                    &mut self.fell
                };
                of.insert(task.slot);
            }
        }
        let view = self.view(sim);
        let late: Vec<SlotKey> = (self.first.keys().copied())
            .filter(|slot| self.is_late(*slot, sim.now))
            .filter(|slot| match view.get(slot).and_then(|seen| seen.new) {
                Some(New::Ready | New::Runs(_)) => false,
                Some(New::Comes | New::Over) | None => {
                    !self.ran.contains(slot) || ends.get(slot).is_some_and(|n| *n >= 2)
                }
            })
            .collect();
        self.failed.extend(late);
    }

    fn is_late(&self, slot: SlotKey, now: Timestamp) -> bool {
        (self.first.get(&slot)).is_some_and(|first| now >= *first + DEADLINE)
    }

    fn exceeded(&self) -> bool {
        !self.failed.is_empty()
            && self.failed.len() as f64 / self.slots as f64 > self.config.max_failure_ratio
    }

    /// Slots that are being changed: their new task is not good yet. What failed, or does not stay, and had its time holds up
    /// nobody, unless the old task is about to go for the new one.
    fn busy(&self, view: &View, now: Timestamp) -> usize {
        let is_busy = |seen: &Slot| match seen.new {
            Some(New::Comes | New::Ready) => true,
            Some(New::Runs(since)) => seen.old || since + self.config.monitor > now,
            Some(New::Over) | None => false,
        };
        (view.iter())
            .filter(|(slot, seen)| is_busy(seen) && !self.is_given_up(**slot, **seen, now))
            .count()
    }

    fn is_given_up(&self, slot: SlotKey, seen: Slot, now: Timestamp) -> bool {
        let hands_over = seen.old && matches!(seen.new, Some(New::Ready | New::Runs(_)));
        let vain = self.failed.contains(&slot) || self.fell.contains(&slot);
        vain && self.is_late(slot, now) && !hands_over
    }

    /// When the delay after the last slot that became good is over.
    fn next_at(&self, view: &View, now: Timestamp) -> Timestamp {
        let counts = view
            .iter()
            .filter(|(slot, seen)| !self.is_given_up(**slot, **seen, now));
        let good = counts.filter_map(|(_, seen)| match seen.new {
            Some(New::Runs(since)) if !seen.old => Some(since + self.config.monitor),
            _ => None,
        });
        (good.filter(|at| *at <= now).max()).map_or(Timestamp(0), |at| at + self.config.delay)
    }

    /// Compares what was decided on what was seen with what may be; answers what is wrong.
    fn judge(&self, before: &View, after: &View, sim: &Sim) -> Result<(), String> {
        let now = sim.now;
        let untouched = |view: &View| -> BTreeSet<SlotKey> {
            (view.iter().filter(|(_, seen)| seen.new.is_none()))
                .map(|(slot, _)| *slot)
                .collect()
        };
        let goes_on = sim.rollout() == Some(UpdateState::Updating);
        let stops = self.exceeded() && self.config.failure_action != FailureAction::Continue;
        let over = sim.rollout() == Some(UpdateState::Completed);
        if stops == (goes_on || over) {
            return Err(format!(
                "{} of {} failed, and it is {:?}",
                self.failed.len(),
                self.slots,
                sim.rollout()
            ));
        }
        if !goes_on {
            return Ok(());
        }
        let (rest, most) = (
            untouched(after),
            match self.config.parallelism {
                0 => usize::MAX,
                some => some as usize,
            },
        );
        let begun = untouched(before).len() - rest.len();
        // What is handed over now is changed no more.
        let handed: View = (before.iter())
            .map(|(slot, seen)| {
                (
                    *slot,
                    Slot {
                        old: after[slot].old,
                        ..*seen
                    },
                )
            })
            .collect();
        let next_at = self.next_at(&handed, now);
        if begun > 0 && self.busy(&handed, now) + begun > most {
            return Err(format!("{begun} slots more are changed at once than may be"));
        }
        if begun > 0 && next_at > now {
            return Err(format!(
                "a slot is changed {} before the delay is over",
                next_at.0 - now.0
            ));
        }
        // Who may go on does.
        if !rest.is_empty() && next_at <= now && self.busy(after, now) < most {
            return Err(format!("{} slots wait for nothing", rest.len()));
        }
        for (slot, seen) in before.iter().filter(|(_, seen)| seen.old) {
            let enough = match self.config.order {
                UpdateOrder::StopFirst => matches!(seen.new, Some(New::Ready | New::Runs(_))),
                UpdateOrder::StartFirst => matches!(seen.new, Some(New::Runs(_))),
            };
            if !after[slot].old && !enough {
                return Err(format!(
                    "{slot:?} loses its old task for one that is {:?}",
                    seen.new
                ));
            }
        }
        Ok(())
    }
}

/// One rollout; answers how it ended, and what it was like.
fn rollout(seed: u64) -> (UpdateState, String) {
    let mut rng = Rng(seed);
    let replicas = 1 + rng.number(6);
    let mut sim = Sim::new(3);
    let mut web = spec("a", replicas);
    web.task.restart.delay = Duration::from_secs(rng.below(4));
    web.update = UpdateConfig {
        parallelism: rng.number(4),
        delay: Duration::from_secs(rng.below(4)),
        monitor: Duration::from_secs(rng.below(6)),
        failure_action: rng.pick(&[
            FailureAction::Pause,
            FailureAction::Continue,
            FailureAction::Rollback,
        ]),
        max_failure_ratio: rng.pick(&[0.0, 0.25, 0.5, 0.75]),
        order: rng.pick(&[UpdateOrder::StopFirst, UpdateOrder::StartFirst]),
        progress_deadline: DEADLINE,
        ..UpdateConfig::default()
    };
    let config = web.update.clone();
    sim.create(web);
    let mut fates = String::new();
    for _ in 0..replicas {
        fates.push(rng.pick(&['g', 'g', 'g', 'g', 'm', 'c', 'l', 'u', 's']));
    }
    let mut what = format!("seed {seed}: {replicas} slots {fates}, {config:?}");
    sim.update(image(&format!("fates:{fates}")));
    let mut model = Model {
        config,
        version: sim.web().spec_version,
        slots: replicas as usize,
        first: BTreeMap::new(),
        failed: BTreeSet::new(),
        ran: BTreeSet::new(),
        fell: BTreeSet::new(),
    };
    for _ in 0..TICKS_MAX {
        model.hear(&sim);
        let before = model.view(&sim);
        sim.settle();
        let after = model.view(&sim);
        let judged = model.judge(&before, &after, &sim);
        let at = sim.now;
        assert_eq!(judged, Ok(()), "{what}, at {at:?}: {before:?} → {after:?}");
        match sim.rollout() {
            Some(UpdateState::Updating) => sim.step_agents(),
            Some(end) => {
                let _ = write!(what, ", {end:?}");
                sim.run(120);
                let images = sim.images();
                let good = fates.chars().filter(|f| *f == 'g').count();
                let new = images.iter().filter(|i| i.starts_with("fates:")).count();
                match end {
                    UpdateState::Completed => assert!(new >= good, "{what}: {images:?}"),
                    UpdateState::Paused => {}
                    UpdateState::Updating
                    | UpdateState::Canary
                    | UpdateState::RollbackPaused
                    | UpdateState::RollbackStarted
                    | UpdateState::RollbackCompleted => {
                        assert_eq!(sim.rollout(), Some(UpdateState::RollbackCompleted), "{what}");
                        assert_eq!((images.len(), new), (replicas as usize, 0), "{what}: {images:?}");
                    }
                }
                return (end, what);
            }
            None => panic!("{what}: the rollout is gone"),
        }
    }
    panic!("{what}: it does not end");
}

#[test]
fn rollouts_do_what_the_model_says_whatever_becomes_of_their_slots() {
    let mut ends: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in 0..200 {
        *ends.entry(rollout(seed).0.as_str()).or_default() += 1;
    }
    let all = [
        UpdateState::Completed,
        UpdateState::Paused,
        UpdateState::RollbackStarted,
    ];
    for end in all.map(UpdateState::as_str) {
        assert!(ends.get(end).is_some_and(|n| *n > 15), "{end}: {ends:?}");
    }
}
