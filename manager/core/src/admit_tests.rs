//! Rows for what a request may and may not do; each was a defect once.

use std::time::Duration;

use model::object::{Availability, Endpoint, Key, Object, UpdateState};
use model::spec::{
    ConfigRef, ConfigSpec, FileTarget, Labels, Mount, MountKind, OnDisconnect, PortSpec, PublishMode,
    STACK_LABEL, ServiceSpec, StackSpec, UpdateOrder,
};
use model::{ConfigId, NodeId};

use crate::admit::{self, Admitted, ClusterRequest, Refusal, RefusalKind, StackVerdict};
use crate::orchestrate_tests::{Counter, START};
use crate::state::State;
use crate::txn::{Action, Entry};

struct Cluster {
    state: State,
    ids: Counter,
}

impl Cluster {
    fn new() -> Self {
        let mut cluster = Self {
            state: State::new(),
            ids: Counter::default(),
        };
        let request = ClusterRequest {
            availability: Availability::Active,
            ..ClusterRequest::default()
        };
        let made = admit::init_cluster(&cluster.state, &request, NodeId(1), START, &mut cluster.ids);
        cluster.commit(made);
        cluster
    }

    fn commit(&mut self, what: Result<Admitted, Refusal>) -> Admitted {
        let admitted = what.expect("admitted");
        let entry = Entry {
            index: self.state.index() + 1,
            now: START,
            txn: admitted.txn.clone(),
        };
        self.state.apply(&entry).expect("decided on this very state");
        self.state.check().expect("sound");
        admitted
    }

    fn config(&mut self, name: &str) -> Result<Admitted, Refusal> {
        let spec = ConfigSpec {
            name: name.into(),
            ..ConfigSpec::default()
        };
        admit::create_config(&self.state, spec, START, &mut self.ids)
    }

    fn create(&mut self, spec: ServiceSpec) -> Result<Admitted, Refusal> {
        admit::create_service(&self.state, spec, START, &mut self.ids)
    }

    fn endpoint(&self, service: &str) -> Endpoint {
        let found = self.state.services().find(|s| s.spec.name == service);
        found.expect("it is there").endpoint.clone()
    }
}

fn service(name: &str) -> ServiceSpec {
    let mut spec = ServiceSpec {
        name: name.into(),
        ..ServiceSpec::default()
    };
    spec.task.container.image = "a".into();
    spec
}

fn with_config(name: &str, config: &str) -> ServiceSpec {
    let mut spec = service(name);
    spec.task.container.configs = vec![ConfigRef {
        id: ConfigId::NIL,
        name: config.into(),
        target: FileTarget {
            name: config.into(),
            uid: 0,
            gid: 0,
            mode: 0o444,
        },
    }];
    spec
}

fn port(target: u16, published: u16, mode: PublishMode) -> PortSpec {
    PortSpec {
        name: String::new(),
        protocol: Default::default(),
        target,
        published,
        mode,
        host_ip: String::new(),
        proxy: false,
    }
}

#[test]
fn the_beginning_of_another_id_is_no_name() {
    let mut cluster = Cluster::new();
    let made = cluster.config("first");
    let Key::Config(id) = cluster.commit(made).keys[0] else {
        panic!("a config")
    };
    let start = id.to_string()[..1].to_owned();
    let refused = cluster
        .create(with_config("web", &start))
        .expect_err("no such config");
    assert_eq!(refused.kind(), RefusalKind::NotFound, "{refused}");
    let made = cluster.config(&start);
    cluster.commit(made);
    let stack = StackSpec {
        namespace: "shop".into(),
        external_configs: vec![id.to_string()[..2].to_owned()],
        ..StackSpec::default()
    };
    let refused = admit::deploy_stack(&cluster.state, stack, false, START, &mut cluster.ids);
    assert_eq!(refused.expect_err("no such config").kind(), RefusalKind::NotFound);
}

#[test]
fn the_proxy_protocol_is_for_tcp_and_for_clusters_that_know_it() {
    let mut cluster = Cluster::new();
    let web = |protocol| {
        let mut web = service("web");
        web.endpoint.ports = vec![PortSpec {
            proxy: true,
            protocol,
            ..port(80, 8080, PublishMode::Ingress)
        }];
        web
    };
    let refused = |result: Result<_, Refusal>| result.map(drop).expect_err("refused").to_string();
    let said = refused(cluster.create(web(model::spec::Protocol::Udp)));
    assert!(said.contains("PROXY protocol is for tcp"), "{said}");
    let said = refused(cluster.create(web(model::spec::Protocol::Tcp)));
    assert!(said.contains("swarm update --level newest"), "{said}");
    let mut settings = cluster.state.cluster().expect("a cluster").as_ref().clone();
    settings.level = model::Level::PROXY;
    let mut raised = cluster.config("any").expect("admitted");
    raised.txn.actions = vec![Action::Put(Object::Cluster(settings.into()))];
    cluster.commit(Ok(raised));
    let made = cluster.create(web(model::spec::Protocol::Tcp));
    cluster.commit(made);
    assert!(cluster.endpoint("web").ports[0].proxy);
}

#[test]
fn asked_for_ports_come_before_chosen_ones() {
    let mut cluster = Cluster::new();
    let mut web = service("web");
    web.endpoint.ports = vec![
        port(80, 0, PublishMode::Ingress),
        port(81, 30_000, PublishMode::Ingress),
        port(82, 0, PublishMode::Ingress),
    ];
    let made = cluster.create(web);
    cluster.commit(made);
    let published: Vec<u16> = cluster
        .endpoint("web")
        .ports
        .iter()
        .map(|p| p.published)
        .collect();
    assert_eq!(published, [30_001, 30_000, 30_002]);
}

#[test]
fn the_port_between_hosts_is_not_published() {
    use model::spec::Protocol::{Tcp, Udp};
    let mut cluster = Cluster::new();
    let rows = [
        (Udp, 80, 4789, PublishMode::Ingress, true),
        (Udp, 80, 4789, PublishMode::Host, true),
        (Udp, 4789, 0, PublishMode::Host, true),
        (Udp, 4789, 0, PublishMode::Ingress, false),
        (Tcp, 80, 4789, PublishMode::Ingress, false),
    ];
    for (at, (protocol, target, published, mode, is_refused)) in rows.into_iter().enumerate() {
        let mut web = service(&format!("web{at}"));
        let mut port = port(target, published, mode);
        port.protocol = protocol;
        web.endpoint.ports = vec![port];
        let refused = cluster.create(web).err().map(|r| r.to_string());
        let said = refused
            .as_ref()
            .is_some_and(|r| r.contains("carries the networks between hosts"));
        assert_eq!(said, is_refused, "row {at}: {refused:?}");
    }
}

#[test]
fn a_changed_host_port_is_a_rollout_and_a_cluster_port_is_none() {
    let mut cluster = Cluster::new();
    for (mode, rolls) in [(PublishMode::Host, true), (PublishMode::Ingress, false)] {
        let name = format!("s{rolls}");
        let mut spec = service(&name);
        spec.endpoint.ports = vec![port(80, 8080, mode)];
        let made = cluster.create(spec.clone());
        cluster.commit(made);
        spec.endpoint.ports = vec![port(80, 9090 + u16::from(rolls), mode)];
        let made = admit::update_service(&cluster.state, &name, None, spec, START);
        cluster.commit(made);
        let found = cluster
            .state
            .services()
            .find(|s| s.spec.name == name)
            .expect("there");
        assert_eq!(found.update.is_some(), rolls, "{mode:?}");
    }
}

#[test]
fn a_rollback_takes_its_ports_along_and_is_refused_when_they_are_gone() {
    let mut cluster = Cluster::new();
    let mut web = service("web");
    web.endpoint.ports = vec![port(80, 8080, PublishMode::Ingress)];
    let made = cluster.create(web.clone());
    cluster.commit(made);
    web.endpoint.ports = vec![port(80, 8081, PublishMode::Ingress)];
    web.task.container.image = "b".into();
    let made = admit::update_service(&cluster.state, "web", None, web, START);
    cluster.commit(made);
    let mut back = cluster.state.clone();
    let admitted = admit::rollback_service(&back, "web", None, None, START).expect("it can go back");
    let entry = Entry {
        index: back.index() + 1,
        now: START,
        txn: admitted.txn,
    };
    back.apply(&entry).expect("decided on this state");
    let web = back.services().next().expect("web");
    assert_eq!(web.endpoint.ports[0].published, 8080);
    assert_eq!(
        web.update.as_ref().map(|u| u.state),
        Some(UpdateState::RollbackStarted)
    );

    let mut thief = service("thief");
    thief.endpoint.ports = vec![port(80, 8080, PublishMode::Ingress)];
    let made = cluster.create(thief);
    cluster.commit(made);
    let refused =
        admit::rollback_service(&cluster.state, "web", None, None, START).expect_err("8080 is taken");
    assert!(refused.to_string().contains("thief"), "{refused}");
}

#[test]
fn what_a_rollout_may_go_back_to_cannot_be_removed() {
    let mut cluster = Cluster::new();
    for name in ["old", "new"] {
        let made = cluster.config(name);
        cluster.commit(made);
    }
    let made = cluster.create(with_config("web", "old"));
    cluster.commit(made);
    let made = admit::update_service(&cluster.state, "web", None, with_config("web", "new"), START);
    cluster.commit(made);
    let refused = admit::remove_configs(&cluster.state, &["old".into()]).expect_err("still in use");
    assert_eq!(refused.kind(), RefusalKind::InUse);
    assert!(refused.to_string().contains("service web"), "{refused}");
}

#[test]
fn what_another_stack_uses_stays() {
    let mut cluster = Cluster::new();
    let shop = StackSpec {
        namespace: "shop".into(),
        configs: vec![ConfigSpec {
            name: "shop_c".into(),
            labels: Labels::from([(STACK_LABEL.to_owned(), "shop".to_owned())]),
            data: Vec::new(),
        }],
        ..StackSpec::default()
    };
    let made = admit::deploy_stack(&cluster.state, shop.clone(), false, START, &mut cluster.ids);
    cluster.commit(made);
    let made = cluster.create(with_config("neighbour", "shop_c"));
    cluster.commit(made);
    let refused = admit::remove_stacks(&cluster.state, &["shop".into()]).expect_err("in use");
    assert!(refused.to_string().contains("neighbour"), "{refused}");
    // Labels of what exists may change, and that is told.
    let mut labelled = shop;
    labelled.configs[0].labels.insert("team".into(), "a".into());
    let made = admit::deploy_stack(&cluster.state, labelled, false, START, &mut cluster.ids);
    assert_eq!(cluster.commit(made).changes[0].verdict, StackVerdict::Updated);
}

#[test]
fn the_time_without_a_manager_has_bounds() {
    let mut cluster = Cluster::new();
    for (seconds, fits) in [(9, false), (10, true), (604_800, true), (604_801, false)] {
        let mut spec = service(&format!("s{seconds}"));
        spec.task.on_disconnect = OnDisconnect::StopAfter(Duration::from_secs(seconds));
        match (cluster.create(spec), fits) {
            (Ok(made), true) => assert_eq!(made.warnings, Vec::<String>::new(), "{seconds} s"),
            (Err(refused), false) => {
                let text = refused.to_string();
                assert!(text.contains("10s") && text.contains("168h"), "{text}");
            }
            (answer, _) => panic!("{seconds} s: {:?}", answer.map(|_| ())),
        }
    }
}

#[test]
fn a_time_without_a_manager_that_is_short_for_this_cluster_is_said() {
    let mut cluster = Cluster::new();
    let mut slow = (**cluster.state.cluster().expect("made")).clone();
    slow.heartbeat = Duration::from_secs(5);
    cluster.state = State::from_objects(1, [Object::Cluster(slow.into())]);
    for (seconds, order, parts) in [
        (29, UpdateOrder::StopFirst, &["six heartbeats (30s)"][..]),
        (30, UpdateOrder::StopFirst, &[]),
        (30, UpdateOrder::StartFirst, &["starts first"]),
    ] {
        let mut spec = service("web");
        spec.task.on_disconnect = OnDisconnect::StopAfter(Duration::from_secs(seconds));
        spec.update.order = order;
        let warnings = cluster.create(spec).expect("allowed").warnings;
        assert_eq!(warnings.len(), parts.len(), "{seconds} s: {warnings:?}");
        let all = warnings.join(" ");
        assert!(parts.iter().all(|p| all.contains(p)), "{all}");
    }
}

#[test]
fn two_ways_to_write_a_mount_target_are_one_target() {
    let mut cluster = Cluster::new();
    let tmpfs = |target: &str| Mount {
        kind: MountKind::Tmpfs {
            size: None,
            mode: None,
        },
        target: target.into(),
        read_only: false,
    };
    for targets in [
        &["//proc/1"][..],
        &["/./proc"],
        &["/.", "/x"],
        &["/a/b", "/a//b"],
        &["/a/./b/", "/a/b"],
    ] {
        let mut spec = service("web");
        spec.task.container.mounts = targets.iter().map(|t| tmpfs(t)).collect();
        let refused = cluster.create(spec).expect_err(&targets.join(" "));
        assert_eq!(refused.kind(), RefusalKind::Invalid);
    }
    assert!(cluster.state.objects().all(|o| !matches!(o, Object::Service(_))));
}
