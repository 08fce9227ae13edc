//! What users do: services made, changed, scaled, rolled back and removed, nodes drained, stacks deployed.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use manager_core::admit::Steer;
use manager_core::{Action, Admitted, Refusal, RefusalKind, admit};
use model::NanoCpus;
use model::object::{Availability, Drain, Node, NodeState, Object, Service, Task, UpdateState};
use model::spec::{
    Concurrency, Dependency, DependencyCondition, FailureAction, FileTarget, Healthcheck, NetProbe,
    NetworkAttachment, NetworkSpec, OnDisconnect, Placement, PlacementStrategy, PortSpec, PublishMode,
    Rebalance, RestartCondition, STACK_LABEL, Schedule, SecretRef, SecretSpec, ServiceMode, ServiceSpec,
    StackSpec, UpdateOrder,
};
use model::task_state::DesiredState;
use model::{NetworkId, SecretId};

use super::Plant;
use super::cluster::Cluster;
use super::log::Source;

/// Most services at a time.
const SERVICES_MAX: usize = 4;
/// Most replicas of one: four services of them fit on one node.
const REPLICAS_MAX: u64 = 4;

impl Cluster {
    /// One request of a user.
    ///
    /// # Errors
    /// A broken invariant.
    pub(super) fn work(&mut self) -> Result<(), String> {
        if self.quiet {
            return Ok(());
        }
        if self.managers.lead.is_none() {
            self.note(
                "requests without a leader",
                "nobody leads: a request is refused".into(),
            );
            return Ok(());
        }
        let now = self.managers.log_now(self.now);
        let services: Vec<_> = self.state.services().cloned().collect();
        let some = self.rng.pick(&services);
        let choice = self.rng.below(25);
        match (choice, some) {
            (20, Some(s)) => {
                let run = admit::run_job(&self.state, &s.spec.name, now);
                self.ask("jobs run by hand", run)
            }
            (0..=3, _) if services.len() < SERVICES_MAX => self.create(),
            (4..=8, Some(s)) => self.update(&s),
            (9..=11, Some(s)) => {
                let replicas = u32::try_from(self.rng.below(REPLICAS_MAX + 1)).unwrap_or(1);
                self.disturbed_by(s.id);
                let scaled = admit::scale_services(&self.state, &[(s.spec.name.clone(), replicas)]);
                let scaled = scaled.map(|admitted| self.as_docker_scales(admitted, &s));
                self.ask("scales", scaled)
            }
            (12, Some(s)) => {
                self.disturbed_by(s.id);
                let known: Vec<u64> = s.history.iter().map(|r| r.number).collect();
                let to = self.rng.pick(&known).filter(|_| self.rng.percent(50));
                let back = admit::rollback_service(&self.state, &s.spec.name, None, to, now);
                self.ask("rollbacks asked", back)
            }
            (13, Some(s)) => {
                let gone = admit::remove_services(&self.state, std::slice::from_ref(&s.spec.name));
                self.ask("services removed", gone)
            }
            (14..=16, _) => self.change_node(),
            (17, _) => {
                let gone = admit::remove_stacks(&self.state, &["shop".into()]);
                self.ask("stacks removed", gone)
            }
            (18..=19, _) if services.len() < SERVICES_MAX => {
                let image = self.image();
                self.disturbed();
                let six = self.six();
                let wanted = stack(&image, six);
                let made = admit::deploy_stack(&self.state, wanted, true, now, &mut self.rng);
                let kind = match six {
                    Six::None => "stacks deployed",
                    Six::Chosen => "stacks with IPv6 deployed",
                    Six::Asked => "stacks with an IPv6 address deployed",
                };
                self.ask(kind, made)
            }
            (21..=24, Some(s)) if s.is_between_specs() => self.steer(&s),
            (21, Some(s)) => self.rebalance(&s),
            _ => Ok(()),
        }
    }

    /// What Docker's Swarm writes as well when a service is scaled, where that bug is planted.
    fn as_docker_scales(&self, mut admitted: Admitted, before: &Service) -> Admitted {
        for action in &mut admitted.txn.actions {
            if let Action::Put(Object::Service(service)) = action {
                let service = Arc::make_mut(service);
                match self.plant {
                    Some(Plant::ScaleResumes) => service.update = None,
                    Some(Plant::ScaleOverwrites) => service.previous_spec = Some(before.spec.clone()),
                    Some(_) | None => {}
                }
            }
        }
        admitted
    }

    fn steer(&mut self, service: &Service) -> Result<(), String> {
        let now = self.managers.log_now(self.now);
        self.disturbed_by(service.id);
        let all = [Steer::Pause, Steer::Resume, Steer::Promote, Steer::Abort];
        let steer = self.rng.pick(&all).unwrap_or(Steer::Resume);
        let kind = match steer {
            Steer::Pause => "rollouts paused",
            Steer::Resume => "rollouts resumed",
            Steer::Promote => "rollouts promoted",
            Steer::Abort => "rollouts aborted",
        };
        let made = admit::steer_rollout(&self.state, &service.spec.name, None, steer, now);
        self.ask(kind, made)
    }

    fn ask(&mut self, kind: &'static str, answer: Result<Admitted, Refusal>) -> Result<(), String> {
        match answer {
            Ok(admitted) => {
                self.note(kind, kind.into());
                self.commit(Source::Admit, admitted.txn)?;
            }
            Err(refusal) => {
                let named = refusal.kind() != RefusalKind::Conflict && !refusal.to_string().is_empty();
                if !named {
                    return Err(format!("a request was refused without reason: {refusal}"));
                }
                self.note("requests refused", format!("{kind} refused: {refusal}"));
            }
        }
        Ok(())
    }

    fn image(&mut self) -> String {
        let kinds = ["a", "b", "c", "d", "missing", "crash", "exit"];
        if self.rng.percent(4) {
            return "unready".into();
        }
        self.rng.pick(&kinds).unwrap_or("a").to_owned()
    }

    /// What the network of the stack has of IPv6: what it has already where it is there.
    fn six(&mut self) -> Six {
        let there = self.state.networks().find(|n| n.spec.name == "shop_net");
        let Some(there) = there else {
            let kinds = [Six::None, Six::Chosen, Six::Asked];
            return self.rng.pick(&kinds).unwrap_or(Six::None);
        };
        match (
            there.spec.ipv6,
            there.subnets.iter().any(|s| s.to_string() == SIX),
        ) {
            (false, _) => Six::None,
            (true, false) => Six::Chosen,
            (true, true) => Six::Asked,
        }
    }

    fn create(&mut self) -> Result<(), String> {
        let now = self.managers.log_now(self.now);
        let image = self.image();
        let number = self.rng.below(6);
        let mut spec = base(&format!("s{number}"), &image);
        spec.mode = ServiceMode::Replicated {
            replicas: u32::try_from(self.rng.below(REPLICAS_MAX + 1)).unwrap_or(1),
        };
        match self.rng.below(11) {
            8..=10 => self.job(&mut spec),
            0 => spec.mode = ServiceMode::Global,
            1 => {
                spec.mode = ServiceMode::Global;
                spec.endpoint.ports = vec![port(9000, PublishMode::Host)];
            }
            2 => spec.endpoint.ports = vec![port(8080, PublishMode::Ingress)],
            3 => spec.endpoint.ports = vec![port(0, PublishMode::Ingress)],
            _ => {}
        }
        let restart = &mut spec.task.restart;
        restart.delay = Duration::from_secs(self.rng.below(6));
        restart.max_attempts = self.rng.below(4);
        restart.window = Duration::from_secs(self.rng.below(3) * 10);
        if self.rng.percent(30) {
            restart.max_delay = restart.delay + Duration::from_secs(self.rng.below(10));
            restart.reset_after = Duration::from_secs(1 + self.rng.below(20));
        }
        let conditions = [
            RestartCondition::Any,
            RestartCondition::Any,
            RestartCondition::OnFailure,
            RestartCondition::None,
        ];
        restart.condition = self.rng.pick(&conditions).unwrap_or_default();
        if spec.mode.is_job() && restart.condition == RestartCondition::Any {
            restart.condition = RestartCondition::OnFailure;
        }
        spec.task.on_disconnect = self.on_disconnect();
        if self.rng.percent(25) {
            spec.task.container.readiness = Some(Healthcheck {
                net: Some(NetProbe::Tcp { port: 80 }),
                ..Healthcheck::default()
            });
        }
        if self.rng.percent(15) {
            spec.task.placement.max_replicas_per_node = u32::try_from(1 + self.rng.below(2)).unwrap_or(1);
        }
        self.place(&mut spec);
        self.rollout_knobs(&mut spec);
        self.depend(&mut spec);
        let waits = !spec.task.depends_on.is_empty();
        let kind = match (spec.mode.is_job(), spec.schedule.is_some()) {
            (false, _) if waits => "dependents created",
            (false, _) => "services created",
            (true, false) => "jobs created",
            (true, true) => "schedules created",
        };
        let made = admit::create_service(&self.state, spec, now, &mut self.rng);
        self.ask(kind, made)
    }

    /// Makes a job of a service, one half of them with a schedule. Runs that go on at the same time would have several
    /// processes a slot, which no property here tells from mistakes.
    fn job(&mut self, spec: &mut ServiceSpec) {
        let number = |n| u32::try_from(n).unwrap_or(1);
        spec.mode = match self.rng.below(3) {
            0 => ServiceMode::GlobalJob,
            _ => ServiceMode::ReplicatedJob {
                completions: number(self.rng.below(REPLICAS_MAX + 1)),
                max_concurrent: number(self.rng.below(4)),
            },
        };
        if self.rng.percent(60) {
            spec.task.container.image = "exit".into();
        }
        if self.rng.percent(50) {
            let rules = [Concurrency::Forbid, Concurrency::Replace];
            spec.schedule = Some(Schedule {
                cron: "*/9 * * * * *".into(),
                concurrency: self.rng.pick(&rules).unwrap_or_default(),
                history: number(1 + self.rng.below(4)),
                starting_deadline: Duration::from_secs(self.rng.below(2) * 5),
                ..Schedule::default()
            });
        }
    }

    /// Where it runs, beside whom, with what, and before whom.
    fn place(&mut self, spec: &mut ServiceSpec) {
        let exclusive = spec.is_exclusive(&spec.task);
        let task = &mut spec.task;
        if self.rng.percent(30) {
            task.placement.strategy = PlacementStrategy::Binpack;
        } else if self.rng.percent(40) && spec.mode.as_str() == "replicated" && !exclusive {
            spec.rebalance = Rebalance::OnJoin;
        }
        if self.rng.percent(30) {
            task.resources
                .reservations
                .generic
                .insert("gpu".into(), 1 + self.rng.below(2));
        }
        if self.rng.percent(15) {
            let other = self.rng.below(6);
            let operator = if self.rng.percent(50) { "==" } else { "!=" };
            if !spec.name.ends_with(&other.to_string()) {
                task.placement.affinity = vec![format!("service{operator}s{other}")];
            }
        }
        if self.rng.percent(30) {
            task.priority = u32::try_from((1 + self.rng.below(3)) * 30).unwrap_or(0);
            // Whoever it finds in its way serves no more.
            self.disturbed();
        }
    }

    /// What has to hold of others before it runs: also of those that wait for it, which is refused.
    fn depend(&mut self, spec: &mut ServiceSpec) {
        let others: Vec<Arc<Service>> = self.state.services().cloned().collect();
        for _ in 0..self.rng.below(3) {
            let Some(other) = self.rng.pick(&others).filter(|_| self.rng.percent(40)) else {
                continue;
            };
            let condition = match self.rng.below(3) {
                0 => DependencyCondition::Started,
                _ if other.spec.mode.is_job() => DependencyCondition::Completed,
                _ => DependencyCondition::Healthy,
            };
            let service = other.spec.name.clone();
            if spec.task.depends_on.iter().all(|d| d.service != service) {
                spec.task.depends_on.push(Dependency {
                    service,
                    condition,
                    optional: self.rng.percent(30),
                });
            }
        }
    }

    fn on_disconnect(&mut self) -> OnDisconnect {
        let after = |s| OnDisconnect::StopAfter(Duration::from_secs(s));
        let rules = [
            OnDisconnect::Keep,
            OnDisconnect::Keep,
            after(10),
            after(14),
            after(25),
        ];
        self.rng.pick(&rules).unwrap_or_default()
    }

    /// Services that run well, before the faults of a quiet run.
    ///
    /// # Errors
    /// A broken invariant, or a service that does not run.
    pub(super) fn begin_quietly(&mut self) -> Result<(), String> {
        for number in 0..1 + self.rng.below(3) {
            let mut spec = base(&format!("s{number}"), "a");
            if self.rng.percent(30) {
                spec.mode = ServiceMode::Global;
            } else {
                spec.mode = ServiceMode::Replicated {
                    replicas: u32::try_from(1 + self.rng.below(REPLICAS_MAX)).unwrap_or(1),
                };
            }
            // Longer than any time without a leader here.
            let rules = [
                OnDisconnect::Keep,
                OnDisconnect::StopAfter(Duration::from_secs(600)),
            ];
            spec.task.on_disconnect = self.rng.pick(&rules).unwrap_or_default();
            let now = self.managers.log_now(self.now);
            let made = admit::create_service(&self.state, spec, now, &mut self.rng);
            self.ask("services created", made)?;
        }
        self.advance(Duration::from_secs(20))?;
        self.untouched = self.state.tasks().map(|t| t.id).collect();
        match self.wrong() {
            Some(what) => Err(format!("a quiet run begins badly: {what}")),
            None => Ok(()),
        }
    }

    fn rollout_knobs(&mut self, spec: &mut ServiceSpec) {
        if spec.mode.is_job() {
            return;
        }
        let actions = [
            FailureAction::Pause,
            FailureAction::Rollback,
            FailureAction::Continue,
        ];
        let orders = [
            UpdateOrder::StopFirst,
            UpdateOrder::StopFirst,
            UpdateOrder::StartFirst,
        ];
        for config in [&mut spec.update, &mut spec.rollback] {
            config.parallelism = u32::try_from(self.rng.below(3)).unwrap_or(1);
            config.delay = Duration::from_secs(self.rng.below(3));
            config.monitor = Duration::from_secs(self.rng.below(6));
            config.order = self.rng.pick(&orders).unwrap_or_default();
            let deadlines = [
                Duration::ZERO,
                Duration::from_secs(600),
                Duration::from_secs(1 + self.rng.below(30)),
            ];
            config.progress_deadline = self.rng.pick(&deadlines).unwrap_or_default();
        }
        spec.update.canary = if self.rng.percent(25) {
            1 + u32::try_from(self.rng.below(2)).unwrap_or(0)
        } else {
            0
        };
        spec.update.failure_action = self.rng.pick(&actions).unwrap_or_default();
        spec.update.max_failure_ratio = if self.rng.percent(30) { 0.5 } else { 0.0 };
    }

    fn update(&mut self, service: &Service) -> Result<(), String> {
        let now = self.managers.log_now(self.now);
        let mut spec = (*service.spec).clone();
        match self.rng.below(9) {
            8 => spec.task.on_disconnect = self.on_disconnect(),
            0 => spec.task.force_update += 1,
            1 => spec.task.resources.reservations.cpu = NanoCpus((1 + self.rng.below(2)) * 100_000_000),
            2 => self.rollout_knobs(&mut spec),
            3 => spec.task.placement.constraints = vec!["node.labels.disk==ssd".into()],
            _ => spec.task.container.image = self.image(),
        }
        let higher = |s: &Arc<Service>| s.spec.task.priority > spec.task.priority;
        // What leaves a node until a deadline stops then, whatever is under way.
        let deadline = |n: &Arc<Node>| n.spec.drain.is_some_and(|d| d.deadline.is_some());
        let safe = !self.state.services().any(higher) && !self.state.nodes().any(deadline);
        let well = safe && self.is_well(service) && spec.task != service.spec.task;
        let (id, name) = (service.id, spec.name.clone());
        self.disturbed_by(id);
        let moved = spec.task.placement != service.spec.task.placement;
        let made = admit::update_service(&self.state, &name, None, spec, now);
        if well && !moved && made.is_ok() {
            self.note(
                "updates of healthy services",
                format!("update of {name}, which is well"),
            );
            self.healthy_updates.insert(id);
        }
        self.ask("services updated", made)
    }

    /// Whether every slot of a replicated service runs what it should, and no rollout is under way.
    pub(super) fn is_well(&self, service: &Service) -> bool {
        let ServiceMode::Replicated { replicas } = service.spec.mode else {
            return false;
        };
        let idle = !service.update.as_ref().is_some_and(|u| u.state.is_active());
        let running = self
            .state
            .tasks_of_service(service.id)
            .filter(|t| t.is_ready() && t.desired == DesiredState::Running)
            .count();
        idle && running == replicas as usize && self.dirty.is_empty()
    }

    /// A node takes tasks again, takes no more, gives its tasks away, or has another label.
    fn change_node(&mut self) -> Result<(), String> {
        let nodes: Vec<_> = self
            .state
            .nodes()
            .filter(|n| self.hosts.contains_key(&n.id))
            .cloned()
            .collect();
        let Some(node) = self.rng.pick(&nodes) else {
            return Ok(());
        };
        let now = self.managers.log_now(self.now);
        let mut spec = node.spec.clone();
        if self.rng.percent(15) {
            let had = spec.labels.remove("disk").is_some();
            if !had {
                spec.labels.insert("disk".into(), "ssd".into());
            }
            self.healthy_updates.clear();
            self.begin_moves();
            let made = admit::update_node(
                &self.state,
                &node.id.to_string(),
                None,
                spec,
                &Default::default(),
                now,
            );
            return self.ask("nodes relabelled", made);
        }
        let choices = [
            Availability::Active,
            Availability::Active,
            Availability::Pause,
            Availability::Drain,
        ];
        spec.availability = self.rng.pick(&choices).unwrap_or_default();
        spec.drain = None;
        let kind = match spec.availability {
            Availability::Active => "nodes activated",
            Availability::Pause => "nodes paused",
            Availability::Drain => {
                let (kind, drain) = self.how_to_drain();
                spec.drain = drain;
                kind
            }
        };
        self.healthy_updates.clear();
        if spec.drain.is_some() {
            self.disturbed();
        } else {
            self.begin_moves();
        }
        let made = admit::update_node(
            &self.state,
            &node.id.to_string(),
            None,
            spec,
            &Default::default(),
            now,
        );
        self.ask(kind, made)
    }

    /// As it is by itself, which is start-first, or asked otherwise.
    fn how_to_drain(&mut self) -> (&'static str, Option<Drain>) {
        let until = Drain {
            order: UpdateOrder::StartFirst,
            deadline: Some(Duration::from_secs(1 + self.rng.below(20))),
            deadline_at: None,
        };
        let all = [
            ("nodes drained", None),
            ("nodes drained", None),
            ("nodes drained at once", Some(Drain::default())),
            ("nodes drained in time", Some(until)),
        ];
        self.rng.pick(&all).unwrap_or_default()
    }

    fn rebalance(&mut self, service: &Service) -> Result<(), String> {
        let parallelism = u32::try_from(1 + self.rng.below(2)).unwrap_or(1);
        self.begin_moves();
        let made = admit::rebalance_service(&self.state, &service.spec.name, parallelism, false);
        let moves = made.as_ref().is_ok_and(|m| !m.txn.is_empty());
        let kind = if moves { "rebalances" } else { "rebalances of none" };
        self.ask(kind, made)?;
        let marked = |t: &Arc<Task>| t.moving > 0;
        if moves && !self.state.tasks_of_service(service.id).any(marked) {
            // Nobody took it.
            return Ok(());
        }
        let again = admit::rebalance_service(&self.state, &service.spec.name, parallelism, false);
        match again {
            Ok(again) if !again.txn.is_empty() => Err(format!(
                "{} is rebalanced a second time before anything happened",
                service.spec.name
            )),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Tasks are to move: services that are well serve as before meanwhile, unless a deadline or somebody of a higher priority comes.
    fn begin_moves(&mut self) {
        let services: Vec<_> = self.state.services().cloned().collect();
        let priorities: BTreeSet<u32> = services.iter().map(|s| s.spec.task.priority).collect();
        let deadline = |n: &Arc<Node>| n.spec.drain.is_some_and(|d| d.deadline.is_some());
        if priorities.len() > 1 || self.state.nodes().any(deadline) {
            return;
        }
        // What is on a node that is not heard of serves nobody, whatever was seen of it last.
        let heard = |t: &Arc<Task>| {
            let node = t.node.and_then(|id| self.state.node(id));
            node.is_some_and(|n| n.status.state == NodeState::Ready)
        };
        // What must never run twice is stopped first.
        let single = |s: &Service| (self.state.tasks_of_service(s.id)).any(|t| s.spec.is_exclusive(&t.spec));
        let well = (services.iter())
            .filter(|s| !single(s) && self.is_well(s) && self.state.tasks_of_service(s.id).all(heard));
        let well: Vec<_> = well.map(|s| s.id).collect();
        self.healthy_moves.extend(well);
    }

    /// Users put right what they broke: every node takes tasks, every service runs an image that works.
    pub(super) fn repair(&mut self) -> Result<(), String> {
        self.disturbed();
        let now = self.managers.log_now(self.now);
        let nodes: Vec<_> = self
            .state
            .nodes()
            .filter(|n| self.hosts.contains_key(&n.id))
            .cloned()
            .collect();
        for node in nodes {
            let mut spec = node.spec.clone();
            spec.availability = Availability::Active;
            let made = admit::update_node(
                &self.state,
                &node.id.to_string(),
                None,
                spec,
                &Default::default(),
                now,
            );
            self.ask("nodes activated", made)?;
        }
        let services: Vec<_> = self.state.services().cloned().collect();
        for service in services {
            let mut spec = (*service.spec).clone();
            spec.task.container.image = "healed".into();
            spec.task.placement = Placement::default();
            spec.task.resources.reservations.generic.clear();
            spec.task.restart.condition = RestartCondition::Any;
            spec.task.restart.max_attempts = 0;
            if spec.mode.is_job() {
                spec.task.container.image = "exit".into();
                spec.task.restart.condition = RestartCondition::OnFailure;
                spec.schedule = None;
            } else {
                spec.update.canary = 0;
                spec.update.progress_deadline = Duration::ZERO;
            }
            // What stays away would be waited for.
            let comes = |d: &Dependency| {
                let other = self.state.services().find(|s| s.spec.name == d.service);
                other.map_or(d.optional, |s| match (d.condition, &s.spec.mode) {
                    (DependencyCondition::Completed, mode) => mode.is_job(),
                    (_, ServiceMode::Replicated { replicas }) => *replicas > 0,
                    (_, mode) => !mode.is_job(),
                })
            };
            spec.task.depends_on.retain(comes);
            if service
                .spec
                .task
                .placement
                .affinity
                .iter()
                .any(|a| a.contains("!="))
            {
                // Who waits for a service, keeps away from it and comes before it may wait for ever: that is what was asked for.
                spec.task.depends_on.clear();
            }
            let name = service.id.to_string();
            let made = admit::update_service(&self.state, &name, None, spec, now);
            self.ask("services repaired", made)?;
            let stands = (self.state.service(service.id)).and_then(|s| s.update.as_ref().map(|u| u.state));
            let steer = match stands {
                Some(UpdateState::Canary) => Steer::Promote,
                Some(UpdateState::Paused | UpdateState::RollbackPaused) => Steer::Resume,
                Some(_) | None => continue,
            };
            let made = admit::steer_rollout(&self.state, &name, None, steer, now);
            self.ask("rollouts repaired", made)?;
        }
        Ok(())
    }
}

fn base(name: &str, image: &str) -> ServiceSpec {
    let mut spec = ServiceSpec {
        name: name.into(),
        ..ServiceSpec::default()
    };
    spec.task.container.image = image.into();
    spec.task.resources.reservations.cpu = NanoCpus(100_000_000);
    spec
}

fn port(published: u16, mode: PublishMode) -> PortSpec {
    PortSpec {
        name: String::new(),
        protocol: Default::default(),
        target: 80,
        published,
        mode,
        host_ip: String::new(),
        proxy: false,
    }
}

/// The IPv6 subnet of the stack's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Six {
    None,
    Chosen,
    /// [`SIX`], in which one service asks for an address.
    Asked,
}

/// Small, so that addresses are given again.
const SIX: &str = "fd00:77::/120";

fn stack(image: &str, six: Six) -> StackSpec {
    let labels = || model::spec::Labels::from([(STACK_LABEL.to_owned(), "shop".to_owned())]);
    let services = ["web", "db"].map(|name| {
        let mut s = ServiceSpec {
            labels: labels(),
            ..base(&format!("shop_{name}"), image)
        };
        s.mode = ServiceMode::Replicated { replicas: 2 };
        if name == "web" {
            s.task.depends_on = vec![Dependency {
                service: "shop_db".into(),
                condition: DependencyCondition::Healthy,
                optional: false,
            }];
        }
        s.task.networks = vec![NetworkAttachment {
            encrypted: false,
            network: NetworkId::NIL,
            name: "shop_net".into(),
            aliases: Vec::new(),
            address: None,
            address6: (name == "db" && six == Six::Asked)
                .then(|| Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 0x77)),
        }];
        s.task.container.secrets = vec![SecretRef {
            id: SecretId::NIL,
            name: "shop_key".into(),
            target: FileTarget {
                name: "key".into(),
                uid: 0,
                gid: 0,
                mode: 0o400,
            },
        }];
        s
    });
    StackSpec {
        namespace: "shop".into(),
        networks: vec![NetworkSpec {
            name: "shop_net".into(),
            labels: labels(),
            ipv6: six != Six::None,
            // Small, so that addresses run out now and then.
            subnets: (Some("10.77.0.0/28").into_iter())
                .chain((six == Six::Asked).then_some(SIX))
                .filter_map(|subnet| subnet.parse().ok())
                .collect(),
            ..NetworkSpec::default()
        }],
        secrets: vec![SecretSpec {
            name: "shop_key".into(),
            labels: labels(),
            data: b"k".to_vec(),
        }],
        services: services.into(),
        ..StackSpec::default()
    }
}
