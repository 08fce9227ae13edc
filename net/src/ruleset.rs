//! The fixed rules: the dataplane's tables and the host's small ones, of IPv4 and of IPv6 alike. Only elements of their sets
//! ever change.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::balance::SLOTS;
use crate::family::{Family, octets};
use crate::overlay::mac_of;
use crate::plan::{SETS, SUBNETS, bytes, host_sets};
use crate::sys::nft::{Batch, Expression, Hook, NETDEV, R1, W0, W1, W2, W4};
use crate::wireguard;

/// Table of the dataplane's namespace.
pub(crate) const TABLE: &str = "rswarm";

const MARK: u32 = 3;
const IN_NAME: u32 = 6;
const OUT_NAME: u32 = 7;
const PROTOCOL: u32 = 16;
const EQUAL: u32 = 0;
const UNEQUAL: u32 = 1;

/// Why a packet is refused.
#[derive(Clone, Copy)]
enum Why {
    Prohibited,
    NoHost,
    NoPort,
}

/// Tells the sender so: by a code of ICMP (RFC 792, RFC 1812) or of ICMPv6 (RFC 4443).
fn refuse(family: Family, why: Why) -> Expression {
    let code = match (family, why) {
        (Family::V4, Why::Prohibited) => 13,
        (Family::V4, Why::NoHost) => 1,
        (Family::V4, Why::NoPort) => 3,
        (Family::V6, Why::Prohibited) => 1,
        (Family::V6, Why::NoHost) => 3,
        (Family::V6, Why::NoPort) => 4,
    };
    Expression::Reject { reset: false, code }
}

fn source(family: Family, to: u32) -> Expression {
    let offset = match family {
        Family::V4 => 12,
        Family::V6 => 8,
    };
    address_at(family, offset, to)
}
fn destination(family: Family, to: u32) -> Expression {
    let offset = match family {
        Family::V4 => 16,
        Family::V6 => 24,
    };
    address_at(family, offset, to)
}
fn address_at(family: Family, offset: u32, to: u32) -> Expression {
    Expression::Payload {
        base: 1,
        offset,
        len: family.bytes(),
        to,
    }
}
/// The word after an address that begins in one, as keys have no gaps.
fn after(family: Family, word: u32) -> u32 {
    word + family.bytes() / 4
}
fn port(to: u32) -> Expression {
    Expression::Payload {
        base: 2,
        offset: 2,
        len: 2,
        to,
    }
}
fn meta(key: u32, to: u32) -> Expression {
    Expression::Meta { key, to }
}
fn is(from: u32, value: &[u8]) -> Expression {
    Expression::Compare {
        from,
        op: EQUAL,
        value: value.to_vec(),
    }
}
fn is_not(from: u32, value: &[u8]) -> Expression {
    Expression::Compare {
        from,
        op: UNEQUAL,
        value: value.to_vec(),
    }
}
fn find(set: &str, from: u32, to: Option<u32>) -> Expression {
    Expression::Lookup {
        set: set.into(),
        from,
        to,
    }
}
fn nat(kind: &'static str, number: u32) -> Hook {
    let priority = if number == 4 { 100 } else { -100 };
    Hook {
        kind,
        number,
        priority,
    }
}

/// An interface name as the kernel compares it.
fn name(interface: &str) -> Vec<u8> {
    let mut bytes = interface.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

/// A random slot, in the mark.
fn choose() -> [Expression; 2] {
    let below = u32::try_from(SLOTS).unwrap_or(1);
    [
        Expression::Random { below, to: W4 },
        Expression::SetMark { from: W4 },
    ]
}

/// Table of a host of a [`crate::Wire`] with the addresses it hears nothing from.
pub(crate) const CUTS: &str = "rswarm-cuts";
/// Its set of addresses it hears nothing from.
pub(crate) const CUT_FROM: &str = "from";
/// Its set of addresses of which it loses some packets.
pub(crate) const NOISY_FROM: &str = "noisy";
/// Its set of UDP ports at which nothing is heard.
pub(crate) const LOST_UDP: &str = "udp";
/// Its set of numbers below a hundred at which such a packet is lost.
pub(crate) const LOST: &str = "lost";

/// The table of cuts, of IPv4: what comes from an address in its sets is gone, or some of it, before anything else sees it.
pub(crate) fn cuts() -> Batch {
    let mut b = Batch::new(Family::V4, CUTS);
    b.table();
    for set in [CUT_FROM, NOISY_FROM, LOST, LOST_UDP] {
        b.set(set, 4, None);
    }
    // Before connections are tracked (-200) and addresses rewritten (-100).
    let first = Hook {
        kind: "filter",
        number: 0,
        priority: -300,
    };
    b.chain("in", &first);
    b.rule(
        "in",
        &[source(Family::V4, W0), find(CUT_FROM, W0, None), Expression::Drop],
    );
    b.rule(
        "in",
        &[
            meta(PROTOCOL, W0),
            is(W0, &[17]),
            port(W0),
            find(LOST_UDP, W0, None),
            Expression::Drop,
        ],
    );
    let random = Expression::Random { below: 100, to: W0 };
    b.rule(
        "in",
        &[
            source(Family::V4, W0),
            find(NOISY_FROM, W0, None),
            random,
            find(LOST, W0, None),
            Expression::Drop,
        ],
    );
    b
}

/// Port of VXLAN (IANA).
pub(crate) const PORT: u16 = 4789;
/// Offset in Ethernet's header of where the address of a host stands in what its device is called ([`mac_of`]).
const HOST_IN_SOURCE: u32 = 8;
const HOST_IN_DESTINATION: u32 = 2;
const HOST_BYTES: u32 = 4;
/// Keys of connections.
const DIRECTION: u32 = 1;
const CONNECTION_MARK: u32 = 3;
const ORIGINAL: u8 = 0;
const REPLY: u8 = 1;

/// Marks of answers that go back through the host that was asked: by the plain way, and by the encrypted one. Above the
/// slots of balancing.
pub(crate) const ANSWER: u32 = 0x100;
pub(crate) const ENCRYPTED_ANSWER: u32 = 0x200;

/// Goes on only for what comes from another host and from no container: a client of a published port sent it.
fn from_a_client(family: Family, overlay: &str) -> [Expression; 4] {
    [
        meta(IN_NAME, R1),
        is(R1, &name(overlay)),
        source(family, W0),
        Expression::Absent {
            set: "nets".into(),
            from: W0,
        },
    ]
}

/// Nothing that is for a container of an encrypted network comes by the plain way, whoever sent it; it is counted.
fn only_encrypted(b: &mut Batch, family: Family, overlay: &str) {
    b.rule(
        "mesh",
        &[
            meta(IN_NAME, R1),
            is(R1, &name(overlay)),
            destination(family, W0),
            find("secret", W0, None),
            Expression::Counter,
            Expression::Drop,
        ],
    );
}

/// Answers go back through the host that a client had asked: its address is the mark of the connection. A mark of the packet
/// leads it to the device of its way; as it leaves, the mark is the address ([`send_to_the_asked`]), which [`back`] makes the
/// destination.
fn remember_the_way(b: &mut Batch, family: Family, overlay: &str, encrypted: &str) {
    b.chain(
        "mesh",
        &Hook {
            kind: "filter",
            number: 0,
            // After connections are known (-200), before addresses are rewritten (-100).
            priority: -150,
        },
    );
    only_encrypted(b, family, overlay);
    for device in [overlay, encrypted] {
        b.rule(
            "mesh",
            &[
                &from_a_client(family, device)[..],
                &[
                    Expression::Payload {
                        base: 0,
                        offset: HOST_IN_SOURCE,
                        len: HOST_BYTES,
                        to: W0,
                    },
                    Expression::SetConnectionMark { from: W0 },
                ],
            ]
            .concat(),
        );
    }
    let answer = [
        meta(IN_NAME, R1),
        is_not(R1, &name(overlay)),
        is_not(R1, &name(encrypted)),
        Expression::Connection {
            key: DIRECTION,
            to: W0,
        },
        is(W0, &[REPLY]),
        Expression::Connection {
            key: CONNECTION_MARK,
            to: W0,
        },
        is_not(W0, &[0; 4]),
        source(family, W0),
    ];
    let secret = find("secret", W0, None);
    let plain = Expression::Absent {
        set: "secret".into(),
        from: W0,
    };
    for (which, mark) in [(plain, ANSWER), (secret, ENCRYPTED_ANSWER)] {
        let set = [
            which,
            Expression::Immediate {
                to: W0,
                value: mark.to_ne_bytes().to_vec(),
            },
            Expression::SetMark { from: W0 },
        ];
        b.rule("mesh", &[&answer[..], &set].concat());
    }
}

/// An answer that leaves for the host that was asked has that one's address as its mark.
fn send_to_the_asked(b: &mut Batch, overlay: &str, encrypted: &str) {
    b.chain(
        "leave",
        &Hook {
            kind: "filter",
            number: 4,
            priority: 0,
        },
    );
    for (device, mark) in [(overlay, ANSWER), (encrypted, ENCRYPTED_ANSWER)] {
        b.rule(
            "leave",
            &[
                meta(OUT_NAME, R1),
                is(R1, &name(device)),
                meta(MARK, W0),
                is(W0, &mark.to_ne_bytes()),
                Expression::Connection {
                    key: CONNECTION_MARK,
                    to: W0,
                },
                Expression::SetMark { from: W0 },
            ],
        );
    }
}

/// What leaves a device: what is for nobody in particular ([`Ipv4Addr::UNSPECIFIED`]) goes to the host in its mark. Then the
/// mark is taken away: by it the packet around this one would be led there again.
pub(crate) fn back(table: &str, device: &str) -> Batch {
    let mut b = Batch::of(NETDEV, table);
    b.table();
    b.egress("out", device);
    b.rule(
        "out",
        &[
            Expression::Payload {
                base: 0,
                offset: 0,
                len: 6,
                to: R1,
            },
            is(R1, &mac_of(Ipv4Addr::UNSPECIFIED)),
            meta(MARK, W0),
            Expression::SetLink {
                from: W0,
                offset: HOST_IN_DESTINATION,
                len: HOST_BYTES,
            },
            Expression::Immediate {
                to: R1,
                value: vec![0; 4],
            },
            Expression::SetMark { from: R1 },
        ],
    );
    b
}

/// A virtual address that nothing stands behind answers at once, and as a closed port does: before it is looked where it
/// leads, as it leads nowhere.
fn answer_for_nobody(b: &mut Batch, family: Family) {
    b.chain(
        "nobody",
        &Hook {
            kind: "filter",
            number: 0,
            // After addresses are rewritten (-100).
            priority: -90,
        },
    );
    b.rule(
        "nobody",
        &[
            destination(family, W0),
            find("vips", W0, None),
            meta(PROTOCOL, W0),
            is(W0, &[6]),
            Expression::Reject { reset: true, code: 0 },
        ],
    );
    b.rule(
        "nobody",
        &[
            destination(family, W0),
            find("vips", W0, None),
            refuse(family, Why::NoPort),
        ],
    );
}

/// A container sends from its own addresses only. For IPv4 the interfaces see to that (`rp_filter`); IPv6 knows no such thing.
fn only_from_its_own(b: &mut Batch, family: Family, others: [&str; 3]) {
    if family == Family::V4 {
        return;
    }
    let of_containers = others
        .into_iter()
        .flat_map(|other| [meta(IN_NAME, R1), is_not(R1, &name(other))]);
    let foreign = [Expression::WayBack { to: W0 }, is(W0, &[0; 4]), Expression::Drop];
    b.rule("mesh", &of_containers.chain(foreign).collect::<Vec<_>>());
}

/// What of an encrypted network has no way any more does not go out instead, be it of a connection that was there before; nor does
/// an answer that should go back through another host.
fn never_in_the_open(b: &mut Batch, family: Family, uplink: &str) {
    b.rule(
        "fwd",
        &[
            meta(OUT_NAME, R1),
            is(R1, &name(uplink)),
            source(family, W0),
            find("secret", W0, None),
            destination(family, W0),
            find(SUBNETS, W0, None),
            Expression::Counter,
            refuse(family, Why::NoHost),
        ],
    );
    for mark in [ANSWER, ENCRYPTED_ANSWER] {
        b.rule(
            "fwd",
            &[
                meta(OUT_NAME, R1),
                is(R1, &name(uplink)),
                meta(MARK, W0),
                is(W0, &mark.to_ne_bytes()),
                Expression::Drop,
            ],
        );
    }
}

/// Connections to the dataplane itself, which are those of proxied ports, come by way of the host alone: a container would get
/// by them to where its networks do not lead.
fn only_from_the_host(b: &mut Batch, uplink: &str) {
    let begun = [
        meta(PROTOCOL, W0),
        is(W0, &[6]),
        Expression::Connection {
            key: DIRECTION,
            to: W0,
        },
        is(W0, &[ORIGINAL]),
        Expression::Reject { reset: true, code: 0 },
    ];
    b.chain(
        "in",
        &Hook {
            kind: "filter",
            number: 1,
            priority: 0,
        },
    );
    b.rule(
        "in",
        &[
            &[
                meta(IN_NAME, R1),
                is_not(R1, &name(uplink)),
                is_not(R1, &name("lo")),
            ],
            &begun[..],
        ]
        .concat(),
    );
    // And those that it makes lead to containers: one that has no way is not looked for in the world.
    b.chain(
        "own",
        &Hook {
            kind: "filter",
            number: 3,
            priority: 0,
        },
    );
    b.rule(
        "own",
        &[&[meta(OUT_NAME, R1), is(R1, &name(uplink))], &begun[..]].concat(),
    );
}

/// Addresses of the dataplane itself.
#[derive(Clone, Copy)]
pub(crate) struct Own {
    /// At the end of its link to the host, to which published ports lead.
    pub(crate) address: IpAddr,
    /// By which a container is seen by itself.
    pub(crate) gateway: IpAddr,
}

/// The dataplane's table of a family, that of `own`: balancing, isolation, the way out.
pub(crate) fn dataplane(uplink: &str, [overlay, encrypted]: [&str; 2], own: Own) -> Batch {
    let family = Family::of(own.address);
    let mut b = Batch::new(family, TABLE);
    b.table();
    for (set, key, data) in SETS {
        b.set(set, bytes(*key, family), data.map(|data| bytes(data, family)));
    }
    let second = after(family, W0);
    remember_the_way(&mut b, family, overlay, encrypted);
    only_from_its_own(&mut b, family, [uplink, overlay, encrypted]);
    send_to_the_asked(&mut b, overlay, encrypted);
    b.chain("pre", &nat("nat", 0));
    b.chain("post", &nat("nat", 4));
    answer_for_nobody(&mut b, family);
    only_from_the_host(&mut b, uplink);
    b.chain(
        "fwd",
        &Hook {
            kind: "filter",
            number: 2,
            priority: 0,
        },
    );
    let [random, mark] = choose();
    let vip = [
        random,
        mark,
        destination(family, W0),
        meta(MARK, second),
        find("eps", W0, Some(R1)),
        Expression::DestinationNat {
            family,
            address: R1,
            port: None,
        },
    ];
    b.rule("pre", &vip);
    let [random, mark] = choose();
    let published = [
        destination(family, W0),
        is(W0, &octets(own.address)),
        random,
        mark,
        meta(PROTOCOL, W0),
        port(W1),
        meta(MARK, W2),
        find("ports", W0, Some(R1)),
        Expression::DestinationNat {
            family,
            address: W0,
            port: Some(second),
        },
    ];
    b.rule("pre", &published);
    // A connection made here on behalf of a client has the host's address elsewhere: that of its link is the same everywhere.
    for device in [overlay, encrypted] {
        b.rule(
            "post",
            &[
                meta(OUT_NAME, R1),
                is(R1, &name(device)),
                source(family, W0),
                is(W0, &octets(own.address)),
                Expression::Immediate {
                    to: W0,
                    value: octets(family.unspecified()),
                },
                find("face", W0, Some(R1)),
                Expression::SourceNat { family, address: R1 },
            ],
        );
    }
    // A task that reaches itself through its own virtual address must see another source than itself.
    b.rule(
        "post",
        &[
            source(family, W0),
            destination(family, second),
            find("selves", W0, None),
            Expression::Immediate {
                to: R1,
                value: octets(own.gateway),
            },
            Expression::SourceNat { family, address: R1 },
        ],
    );
    b.rule(
        "post",
        &[meta(OUT_NAME, R1), is(R1, &name(uplink)), Expression::Masquerade],
    );
    never_in_the_open(&mut b, family, uplink);
    // ct state established, related
    let wanted = 6u32.to_ne_bytes();
    b.rule(
        "fwd",
        &[
            Expression::Connection { key: 0, to: W0 },
            Expression::Mask {
                register: W0,
                mask: wanted,
                xor: [0; 4],
            },
            is_not(W0, &[0; 4]),
            Expression::Accept,
        ],
    );
    // What came in for a published port and has no way to its container does not go out again as it came.
    b.rule(
        "fwd",
        &[
            meta(IN_NAME, R1),
            is(R1, &name(uplink)),
            meta(OUT_NAME, R1),
            is(R1, &name(uplink)),
            refuse(family, Why::NoHost),
        ],
    );
    b.rule(
        "fwd",
        &[meta(IN_NAME, R1), is(R1, &name(uplink)), Expression::Accept],
    );
    b.rule(
        "fwd",
        &[
            meta(OUT_NAME, R1),
            is(R1, &name(uplink)),
            source(family, W0),
            find("internal", W0, None),
            refuse(family, Why::Prohibited),
        ],
    );
    // What is for a network stays in it, although the world may have the same addresses; answers have passed above.
    b.rule(
        "fwd",
        &[
            meta(OUT_NAME, R1),
            is(R1, &name(uplink)),
            destination(family, W0),
            find(SUBNETS, W0, None),
            refuse(family, Why::NoHost),
        ],
    );
    // No container speaks to a host as if it were one, and what came from another host does not go out here: answers have
    // passed above.
    for number in [PORT, wireguard::PORT] {
        b.rule(
            "fwd",
            &[
                meta(OUT_NAME, R1),
                is(R1, &name(uplink)),
                meta(PROTOCOL, W0),
                is(W0, &[17]),
                port(W0),
                is(W0, &number.to_be_bytes()),
                Expression::Drop,
            ],
        );
    }
    for device in [overlay, encrypted] {
        b.rule(
            "fwd",
            &[
                meta(OUT_NAME, R1),
                is(R1, &name(uplink)),
                meta(IN_NAME, R1),
                is(R1, &name(device)),
                Expression::Drop,
            ],
        );
    }
    b.rule(
        "fwd",
        &[meta(OUT_NAME, R1), is(R1, &name(uplink)), Expression::Accept],
    );
    // From another host, where it was asked for by a published port.
    for device in [overlay, encrypted] {
        b.rule(
            "fwd",
            &[
                &from_a_client(family, device)[..],
                &[
                    destination(family, W0),
                    meta(PROTOCOL, second),
                    port(second + 1),
                    find("published", W0, None),
                    Expression::Accept,
                ],
            ]
            .concat(),
        );
    }
    b.rule(
        "fwd",
        &[
            source(family, W0),
            find("nets", W0, Some(W0)),
            destination(family, W1),
            find("members", W0, None),
            Expression::Accept,
        ],
    );
    b.rule("fwd", &[refuse(family, Why::Prohibited)]);
    b
}

/// What is let in. VXLAN: only hosts of the cluster are heard, and none of it is tracked, as what is in it is. `number` is that of the
/// device (VNI): what others on this machine do with the same port is theirs.
fn hear_hosts_only(b: &mut Batch, uplink: &str, dataplane: IpAddr, number: u32) {
    let family = Family::of(dataplane);
    let to = |number: u16| {
        [
            meta(PROTOCOL, W0),
            is(W0, &[17]),
            port(W0),
            is(W0, &number.to_be_bytes()),
        ]
    };
    // Before connections are tracked (-200).
    for (chain, hook) in [("first", 0), ("sent", 3)] {
        let first = Hook {
            kind: "filter",
            number: hook,
            priority: -300,
        };
        b.chain(chain, &first);
    }
    let [_, high, middle, low] = number.to_be_bytes();
    let strangers = [
        // The number follows UDP's header and four bytes.
        Expression::Payload {
            base: 2,
            offset: 12,
            len: 3,
            to: W0,
        },
        is(W0, &[high, middle, low]),
        source(family, W0),
        Expression::Absent {
            set: "hosts".into(),
            from: W0,
        },
        Expression::Drop,
    ];
    // Hosts speak to each other over IPv4.
    if family == Family::V4 {
        b.rule("first", &[&to(PORT)[..], &strangers].concat());
    }
    // Nobody speaks to the dataplane but through a published port, as whose address says where it is open.
    b.rule(
        "first",
        &[
            meta(IN_NAME, R1),
            is_not(R1, &name(uplink)),
            destination(family, W0),
            is(W0, &octets(dataplane)),
            Expression::Drop,
        ],
    );
    if family == Family::V6 {
        return;
    }
    for chain in ["first", "sent"] {
        for number in [PORT, wireguard::PORT] {
            b.rule(chain, &[&to(number)[..], &[Expression::NotTracked]].concat());
        }
    }
}

/// What is for the host itself, at an address from which a connection can be led on: never at `::1`, as no answer comes back to
/// that over an interface. There it is refused at once, and who asked for `localhost` goes on to 127.0.0.1.
fn for_the_host(family: Family) -> Vec<Expression> {
    let local = vec![
        Expression::DestinationType { to: W0 },
        is(W0, &2u32.to_ne_bytes()),
    ];
    match family {
        Family::V4 => local,
        Family::V6 => {
            let elsewhere = [destination(family, W0), is_not(W0, &Ipv6Addr::LOCALHOST.octets())];
            [&local[..], &elsewhere].concat()
        }
    }
}

/// The host's table of a family, that of `dataplane`: published ports lead to the dataplane, what leaves it gets the host's
/// address, and what comes from other hosts' dataplanes is theirs.
pub(crate) fn host(table: &str, uplink: &str, dataplane: IpAddr, number: u32) -> Batch {
    let family = Family::of(dataplane);
    let mut b = Batch::new(family, table);
    b.table();
    for (set, key) in host_sets(family) {
        b.set(set, bytes(*key, family), None);
    }
    let second = after(family, W0);
    hear_hosts_only(&mut b, uplink, dataplane, number);
    b.chain("pre", &nat("nat", 0));
    b.chain("out", &nat("nat", 3));
    b.chain("post", &nat("nat", 4));
    let to_dataplane = [
        Expression::Immediate {
            to: R1,
            value: octets(dataplane),
        },
        Expression::DestinationNat {
            family,
            address: R1,
            port: None,
        },
    ];
    for chain in ["pre", "out"] {
        let local = for_the_host(family);
        let published = [meta(PROTOCOL, W0), port(W1), find("ports", W0, None)];
        let bound = [
            destination(family, W0),
            meta(PROTOCOL, second),
            port(second + 1),
            find("bound", W0, None),
        ];
        b.rule(chain, &[&local[..], &published, &to_dataplane].concat());
        b.rule(chain, &[&local[..], &bound, &to_dataplane].concat());
    }
    if family == Family::V4 {
        // From 127/8 no answer would find its way back.
        b.rule(
            "post",
            &[
                meta(OUT_NAME, R1),
                is(R1, &name(uplink)),
                source(family, W0),
                Expression::Mask {
                    register: W0,
                    mask: [255, 0, 0, 0],
                    xor: [0; 4],
                },
                is(W0, &[127, 0, 0, 0]),
                Expression::Masquerade,
            ],
        );
    }
    b.rule(
        "post",
        &[
            source(family, W0),
            is(W0, &octets(dataplane)),
            meta(OUT_NAME, R1),
            is_not(R1, &name(uplink)),
            Expression::Masquerade,
        ],
    );
    b
}
