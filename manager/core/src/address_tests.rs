//! Networks with IPv4 and IPv6: which subnets they get, and that whoever joins has an address of each.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use model::object::{Key, Network, Object, Task};
use model::spec::{EndpointMode, NetworkAttachment, NetworkSpec, STACK_LABEL, ServiceSpec, StackSpec};
use model::task_state::TaskState;
use model::{Level, NetworkId};

use crate::admit::{self, Refusal};
use crate::orchestrate_tests::{Sim, joined, node, spec};
use crate::txn::{Action, Txn};

fn subnet(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn dual(name: &str, subnets: &[&str]) -> NetworkSpec {
    NetworkSpec {
        name: name.into(),
        driver: "overlay".into(),
        ipv6: true,
        subnets: subnets.iter().map(|s| subnet(s)).collect(),
        ..NetworkSpec::default()
    }
}

/// A cluster that writes at the level of networks with IPv6, with nodes.
fn dual_sim(nodes: u128) -> Sim {
    let mut sim = Sim::new(nodes);
    let mut cluster = sim.state.cluster().expect("a cluster").clone();
    Arc::make_mut(&mut cluster).level = Level::IPV6;
    sim.commit(Txn {
        expect: Vec::new(),
        actions: vec![Action::Put(Object::Cluster(cluster))],
    });
    sim
}

/// Makes a network; answers it, or why it was refused.
fn make(sim: &mut Sim, spec: NetworkSpec) -> Result<Network, Refusal> {
    let made = admit::create_network(&sim.state, spec, sim.now, &mut sim.ids)?;
    let key = made.keys[0];
    sim.admit(Ok(made));
    Ok(known(sim, key))
}

fn known(sim: &Sim, key: Key) -> Network {
    let Key::Network(id) = key else {
        panic!("{key:?} is no network");
    };
    (**sim.state.network(id).expect("it is there")).clone()
}

fn texts(addresses: &[(NetworkId, IpAddr)]) -> Vec<String> {
    addresses.iter().map(|(_, a)| a.to_string()).collect()
}

fn vips(sim: &Sim, name: &str) -> Vec<String> {
    let service = sim.state.services().find(|s| s.spec.name == name).unwrap();
    texts(&service.endpoint.vips)
}

fn in_network(name: &str, network: &str, replicas: u32) -> ServiceSpec {
    ServiceSpec {
        name: name.into(),
        task: model::spec::TaskSpec {
            networks: vec![joined(network)],
            ..spec("a", replicas).task
        },
        ..spec("a", replicas)
    }
}

#[test]
fn no_network_has_ipv6_while_a_host_may_not_know_of_it() {
    let mut sim = Sim::new(1);
    sim.write_at(Level::FIRST);
    let refused = make(&mut sim, dual("early", &[])).unwrap_err().to_string();
    assert!(
        refused.contains("E_LEVEL") && refused.contains("--level newest"),
        "{refused}"
    );
    let mut plain = dual("plain", &[]);
    plain.ipv6 = false;
    assert!(make(&mut sim, plain).is_ok());
}

#[test]
fn a_network_gets_the_subnets_that_were_not_asked_for() {
    let mut sim = dual_sim(1);
    let chosen = make(&mut sim, dual("chosen", &[])).unwrap();
    let [IpNet::V4(four), IpNet::V6(six)] = chosen.subnets[..] else {
        panic!("one of each, IPv4 first: {:?}", chosen.subnets);
    };
    assert_eq!((four.prefix_len(), six.prefix_len()), (20, 64));
    assert_eq!(six.network().octets()[0], 0xfd, "locally chosen (RFC 4193)");
    let next = make(&mut sim, dual("next", &[])).unwrap().subnets[1];
    let site = ipnet::Ipv6Net::new(six.network(), 48).unwrap().trunc();
    assert!(site.contains(&match next {
        IpNet::V6(net) => net,
        IpNet::V4(_) => panic!("{next} is of IPv4"),
    }));
    assert_ne!(next, chosen.subnets[1]);

    let four_given = make(&mut sim, dual("a", &["10.70.0.0/24"])).unwrap().subnets;
    assert_eq!(four_given[0], subnet("10.70.0.0/24"));
    assert!(matches!(four_given[1..], [IpNet::V6(_)]), "{four_given:?}");
    let six_given = make(&mut sim, dual("b", &["fd12:3456:789a::/48"]))
        .unwrap()
        .subnets;
    assert_eq!(six_given[0], subnet("fd12:3456:789a::/48"));
    assert!(matches!(six_given[1..], [IpNet::V4(_)]), "{six_given:?}");
    let both = ["2001:db8:0:9::/120", "10.71.0.0/24", "fd12:3456:789b::/64"];
    assert_eq!(
        make(&mut sim, dual("c", &both)).unwrap().subnets,
        both.map(subnet),
        "as they were given"
    );

    // What was asked for by name is not also chosen.
    let taken = IpNet::V6(site.subnets(64).unwrap().nth(3).unwrap());
    let own = make(&mut sim, dual("d", &[&taken.to_string()])).unwrap();
    let other = make(&mut sim, dual("e", &[])).unwrap();
    assert!(own.subnets[0] == taken && other.subnets[1] != taken);
}

#[test]
fn a_subnet_that_is_of_no_use_is_refused_with_what_to_do() {
    let mut sim = dual_sim(1);
    make(&mut sim, dual("known", &["fd00:1::/64"])).unwrap();
    let mut host = node(9, "h9");
    host.description.address = "[fd00:2::5]:2377".into();
    sim.commit(Txn {
        expect: Vec::new(),
        actions: vec![Action::Put(Object::Node(host.into()))],
    });
    let rows: &[(&str, bool, &[&str], &str)] = &[
        ("without IPv6", false, &["fd00:9::/64"], "--ipv6"),
        ("in a stack", false, &["fd00:9::/64"], "enable_ipv6: true"),
        ("too large", true, &["fd00::/47"], "/48 to /120"),
        ("too small", true, &["fd00:9::/121"], "/48 to /120"),
        (
            "not its first address",
            true,
            &["fd00:9::1/64"],
            "such as fd00:9::/64",
        ),
        (
            "too small for its end",
            true,
            &["fd00:9::80/121"],
            "such as fd00:9::/64",
        ),
        ("one link", true, &["fe80::/64"], "one link"),
        ("multicast", true, &["ff05::/64"], "multicast"),
        ("loopback", true, &["::/120"], "loopback"),
        ("IPv4 in IPv6", true, &["::ffff:10.0.0.0/104"], "IPv4"),
        (
            "of another",
            true,
            &["fd00:1::/120"],
            "overlaps with network known",
        ),
        (
            "twice",
            true,
            &["fd00:9::/64", "fd00:9::/120"],
            "its subnet fd00:9::/64",
        ),
        ("where a host is", true, &["fd00:2::/64"], "is the one of node h9"),
        ("IPv4 too small", true, &["10.9.0.0/30"], "IPv4 network"),
    ];
    for (name, ipv6, subnets, why) in rows {
        let spec = NetworkSpec {
            ipv6: *ipv6,
            ..dual("other", subnets)
        };
        let refused = make(&mut sim, spec).expect_err(name).to_string();
        assert!(refused.contains(why), "{name}: {refused}");
    }
}

#[test]
fn the_pools_of_a_cluster_are_of_ipv4() {
    for (pools, refused) in [
        (&["10.40.0.0/16"][..], None),
        (
            &["10.40.0.0/16", "fd00::/48"],
            Some("address pool fd00::/48 is of IPv6"),
        ),
    ] {
        let request = admit::ClusterRequest {
            address_pools: pools.iter().map(|p| subnet(p)).collect(),
            ..admit::ClusterRequest::default()
        };
        let mut ids = crate::orchestrate_tests::Counter::default();
        let state = crate::state::State::new();
        let made = admit::init_cluster(&state, &request, model::NodeId(1), model::Timestamp(0), &mut ids);
        let said = made.err().map(|e| e.to_string()).unwrap_or_default();
        match refused {
            Some(why) => assert!(said.contains(why), "{pools:?}: {said}"),
            None => assert_eq!(said, "", "{pools:?}"),
        }
    }
}

#[test]
fn whoever_joins_has_an_address_of_each_family_and_keeps_it() {
    let mut sim = dual_sim(2);
    let back = make(&mut sim, dual("back", &["10.66.0.0/24", "fd00:66::/64"])).unwrap();
    sim.create(in_network("web", "back", 3));
    let fits = |list: &[(NetworkId, IpAddr)]| {
        let [(a, four), (b, six)] = list else {
            return false;
        };
        let here = *a == back.id && *b == back.id;
        here && back.subnets[0].contains(four) && back.subnets[1].contains(six)
    };
    let web = |sim: &Sim| sim.state.services().find(|s| s.spec.name == "web").cloned();
    let before = web(&sim).unwrap().endpoint.clone();
    assert!(fits(&before.vips), "{:?}", before.vips);
    assert_eq!(sim.running().len(), 3);
    for task in sim.running() {
        assert!(fits(&task.addresses), "{:?}", task.addresses);
    }
    let told = crate::assignments::endpoints(&sim.state, &web(&sim).unwrap());
    assert_eq!(
        told.networks[0].vips,
        before.vips.iter().map(|(_, a)| *a).collect::<Vec<_>>()
    );
    assert!(told.backends.iter().all(|b| fits(&b.addresses)));

    sim.update(|s| s.task.force_update += 1);
    sim.run(60);
    assert_eq!(web(&sim).unwrap().endpoint, before, "through a rollout");
    sim.update(|s| s.endpoint.mode = EndpointMode::DnsRr);
    assert_eq!(vips(&sim, "web"), [""; 0]);
    sim.run(60);
    let gone = admit::remove_services(&sim.state, &["web".into()]);
    sim.admit(gone);
    sim.run(30);
    for subnet in &back.subnets {
        let mut held = subnet.hosts().take(1 << 8);
        assert!(!held.any(|a| sim.state.address_in_use(back.id, a)));
    }
    let (_, six) = before.vips[1];
    assert!(!sim.state.address_in_use(back.id, six), "all addresses came back");
}

#[test]
fn a_network_that_is_out_of_ipv6_says_so_and_heals() {
    let mut sim = dual_sim(1);
    // 254 addresses: one for the service, the others for tasks.
    let full = make(&mut sim, dual("full", &["fd00:7::/120"])).unwrap();
    let made = admit::create_service(&sim.state, in_network("web", "full", 255), sim.now, &mut sim.ids);
    sim.admit(made);
    sim.settle();
    let waiting = |sim: &Sim| -> Vec<Task> {
        let all = sim.tasks("web").into_iter();
        all.filter(|t| t.status.state == TaskState::New)
            .cloned()
            .collect()
    };
    let stuck = waiting(&sim);
    assert_eq!(stuck.len(), 2);
    for task in &stuck {
        let said = &task.status.error;
        assert!(
            said.contains("network full has no free IPv6 address left"),
            "{said}"
        );
        assert_eq!(task.addresses, [], "nor one of IPv4");
    }
    let late = admit::create_service(&sim.state, in_network("late", "full", 1), sim.now, &mut sim.ids);
    let refused = late.expect_err("full").to_string();
    assert!(refused.contains("has no free IPv6 address for it"), "{refused}");

    let more = NetworkSpec {
        subnets: [full.subnets.clone(), vec![subnet("fd00:8::/64")]].concat(),
        ..full.spec.clone()
    };
    let done = admit::update_network(&sim.state, "full", None, &more, sim.now);
    sim.admit(done);
    sim.settle();
    assert_eq!(waiting(&sim).len(), 0);
}

#[test]
fn addresses_of_both_families_can_be_asked_for() {
    let mut sim = dual_sim(2);
    make(&mut sim, dual("back", &["10.66.0.0/24", "fd00:66::/64"])).unwrap();
    let asking = |name: &str, four: Option<&str>, six: Option<&str>| ServiceSpec {
        task: model::spec::TaskSpec {
            networks: vec![NetworkAttachment {
                address: four.map(|a| a.parse().unwrap()),
                address6: six.map(|a| a.parse().unwrap()),
                ..joined("back")
            }],
            ..spec("a", 1).task
        },
        name: name.into(),
        ..spec("a", 1)
    };
    sim.create(asking("web", Some("10.66.0.77"), Some("fd00:66::77")));
    assert_eq!(vips(&sim, "web"), ["10.66.0.77", "fd00:66::77"]);
    sim.create(asking("six", None, Some("fd00:66::ffff:ffff:ffff:ffff")));
    assert_eq!(
        vips(&sim, "six")[1],
        "fd00:66::ffff:ffff:ffff:ffff",
        "the last one is like any other"
    );
    let task = sim.running()[0].addresses[1].1.to_string();
    for (address, why) in [
        ("fd00:66::77", "held by service web"),
        (task.as_str(), "held by task web."),
        ("fd00:66::", "no address fd00:66:: to give"),
        ("fd00:66::1", "no address"),
        ("fd00:67::5", "no address"),
    ] {
        let asked = asking("other", None, Some(address));
        let refused = admit::create_service(&sim.state, asked, sim.now, &mut sim.ids);
        let text = refused.expect_err(address).to_string();
        assert!(text.contains(why), "{address}: {text}");
    }
    let without = ServiceSpec {
        endpoint: model::spec::EndpointSpec {
            mode: EndpointMode::DnsRr,
            ..Default::default()
        },
        ..asking("other", None, Some("fd00:66::78"))
    };
    let refused = admit::create_service(&sim.state, without, sim.now, &mut sim.ids);
    let text = refused.expect_err("nothing leads to it").to_string();
    assert!(text.contains("endpoint mode vip"), "{text}");
    sim.update(|s| s.task.networks[0].address6 = Some("fd00:66::200".parse().unwrap()));
    assert_eq!(
        vips(&sim, "web"),
        ["10.66.0.77", "fd00:66::200"],
        "the other stays"
    );
    // The old one is free now.
    sim.create(asking("other", None, Some("fd00:66::77")));
    assert_eq!(vips(&sim, "other")[1], "fd00:66::77");
}

#[test]
fn a_subnet_of_ipv6_is_kept_from_others_until_the_last_task_in_it_has_ended() {
    let mut sim = dual_sim(1);
    make(&mut sim, dual("back", &["fd00:66::/64"])).unwrap();
    sim.create(in_network("web", "back", 1));
    let gone = admit::remove_services(&sim.state, &["web".into()]);
    sim.admit(gone);
    let gone = admit::remove_networks(&sim.state, &["back".into()]);
    sim.admit(gone);
    let again = |sim: &Sim| {
        let mut ids = crate::orchestrate_tests::Counter::default();
        let spec = dual("again", &["fd00:66::/64"]);
        admit::create_network(&sim.state, spec, sim.now, &mut ids).map_err(|e| e.to_string())
    };
    let refused = again(&sim).expect_err("refused");
    assert!(
        refused.contains("which is being stopped, still holds"),
        "{refused}"
    );
    sim.run(30);
    assert!(again(&sim).is_ok(), "once it has ended");
}

#[test]
fn a_stack_comes_back_to_a_network_of_both_families() {
    let mut sim = dual_sim(1);
    let stack = |ipv6: bool, subnets: &[&str]| StackSpec {
        namespace: "shop".into(),
        networks: vec![NetworkSpec {
            labels: [(STACK_LABEL.to_owned(), "shop".to_owned())].into(),
            ipv6,
            driver: String::new(),
            ..dual("shop_net", subnets)
        }],
        ..StackSpec::default()
    };
    let mut deploy = |ipv6: bool, subnets: &[&str]| {
        let made = admit::deploy_stack(&sim.state, stack(ipv6, subnets), false, sim.now, &mut sim.ids);
        made.map(|made| sim.admit(Ok(made))).map_err(|e| e.to_string())
    };
    deploy(true, &["fd00:5::/64"]).unwrap();
    for (name, ipv6, subnets, works) in [
        ("the same", true, &["fd00:5::/64"][..], true),
        ("whatever it has", true, &[], true),
        ("another", true, &["fd00:6::/64"], false),
        ("another of IPv4", true, &["10.88.0.0/24"], false),
        ("no IPv6", false, &[], false),
    ] {
        let done = deploy(ipv6, subnets);
        assert_eq!(done.is_ok(), works, "{name}: {:?}", done.err());
    }
}
