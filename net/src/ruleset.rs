//! The fixed rules: the dataplane's table and the host's small one. Only elements of their sets ever change.

use std::net::Ipv4Addr;

use crate::balance::SLOTS;
use crate::overlay::mac_of;
use crate::plan::{HOST_SETS, SETS, SUBNETS};
use crate::sys::nft::{Batch, Expression, Hook, NETDEV, R1, W0, W1, W2, W4};
use crate::wireguard;

/// Gateway of every container: link-local, the same everywhere.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// Table of the dataplane's namespace.
pub(crate) const TABLE: &str = "rswarm";

const MARK: u32 = 3;
const IN_NAME: u32 = 6;
const OUT_NAME: u32 = 7;
const PROTOCOL: u32 = 16;
const EQUAL: u32 = 0;
const UNEQUAL: u32 = 1;
/// ICMP: administratively prohibited, host and port unreachable (RFC 792, RFC 1812).
const PROHIBITED: u8 = 13;
const NO_HOST: u8 = 1;
const NO_PORT: u8 = 3;

fn source(to: u32) -> Expression {
    Expression::Payload {
        base: 1,
        offset: 12,
        len: 4,
        to,
    }
}
fn destination(to: u32) -> Expression {
    Expression::Payload {
        base: 1,
        offset: 16,
        len: 4,
        to,
    }
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
/// Its set of numbers below a hundred at which such a packet is lost.
pub(crate) const LOST: &str = "lost";

/// The table of cuts: what comes from an address in its sets is gone, or some of it, before anything else sees it.
pub(crate) fn cuts() -> Batch {
    let mut b = Batch::new(CUTS);
    b.table();
    for set in [CUT_FROM, NOISY_FROM, LOST] {
        b.set(set, 4, None);
    }
    // Before connections are tracked (-200) and addresses rewritten (-100).
    let first = Hook {
        kind: "filter",
        number: 0,
        priority: -300,
    };
    b.chain("in", &first);
    b.rule("in", &[source(W0), find(CUT_FROM, W0, None), Expression::Drop]);
    let random = Expression::Random { below: 100, to: W0 };
    b.rule(
        "in",
        &[
            source(W0),
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
const REPLY: u8 = 1;

/// Marks of answers that go back through the host that was asked: by the plain way, and by the encrypted one. Above the
/// slots of balancing.
pub(crate) const ANSWER: u32 = 0x100;
pub(crate) const ENCRYPTED_ANSWER: u32 = 0x200;

/// Goes on only for what comes from another host and from no container: a client of a published port sent it.
fn from_a_client(overlay: &str) -> [Expression; 4] {
    [
        meta(IN_NAME, R1),
        is(R1, &name(overlay)),
        source(W0),
        Expression::Absent {
            set: "nets".into(),
            from: W0,
        },
    ]
}

/// Nothing that is for a container of an encrypted network comes by the plain way, whoever sent it; it is counted.
fn only_encrypted(b: &mut Batch, overlay: &str) {
    b.rule(
        "mesh",
        &[
            meta(IN_NAME, R1),
            is(R1, &name(overlay)),
            destination(W0),
            find("secret", W0, None),
            Expression::Counter,
            Expression::Drop,
        ],
    );
}

/// Answers go back through the host that a client had asked: its address is the mark of the connection. A mark of the packet
/// leads it to the device of its way; as it leaves, the mark is the address ([`send_to_the_asked`]), which [`back`] makes the
/// destination.
fn remember_the_way(b: &mut Batch, overlay: &str, encrypted: &str) {
    b.chain(
        "mesh",
        &Hook {
            kind: "filter",
            number: 0,
            // After connections are known (-200), before addresses are rewritten (-100).
            priority: -150,
        },
    );
    only_encrypted(b, overlay);
    for device in [overlay, encrypted] {
        b.rule(
            "mesh",
            &[
                &from_a_client(device)[..],
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
        source(W0),
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
fn answer_for_nobody(b: &mut Batch) {
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
            destination(W0),
            find("vips", W0, None),
            meta(PROTOCOL, W0),
            is(W0, &[6]),
            Expression::Reject { reset: true, code: 0 },
        ],
    );
    b.rule(
        "nobody",
        &[
            destination(W0),
            find("vips", W0, None),
            Expression::Reject {
                reset: false,
                code: NO_PORT,
            },
        ],
    );
}

/// The dataplane's table: balancing, isolation, the way out.
pub(crate) fn dataplane(uplink: &str, [overlay, encrypted]: [&str; 2], own: Ipv4Addr) -> Batch {
    let mut b = Batch::new(TABLE);
    b.table();
    for (set, key, data) in SETS {
        b.set(set, *key, *data);
    }
    remember_the_way(&mut b, overlay, encrypted);
    send_to_the_asked(&mut b, overlay, encrypted);
    b.chain("pre", &nat("nat", 0));
    b.chain("post", &nat("nat", 4));
    answer_for_nobody(&mut b);
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
        destination(W0),
        meta(MARK, W1),
        find("eps", W0, Some(R1)),
        Expression::DestinationNat {
            address: R1,
            port: None,
        },
    ];
    b.rule("pre", &vip);
    let [random, mark] = choose();
    let published = [
        destination(W0),
        is(W0, &own.octets()),
        random,
        mark,
        meta(PROTOCOL, W0),
        port(W1),
        meta(MARK, W2),
        find("ports", W0, Some(R1)),
        Expression::DestinationNat {
            address: W0,
            port: Some(W1),
        },
    ];
    b.rule("pre", &published);
    // A task that reaches itself through its own virtual address must see another source than itself.
    b.rule(
        "post",
        &[
            source(W0),
            destination(W1),
            find("selves", W0, None),
            Expression::Immediate {
                to: R1,
                value: GATEWAY.octets().to_vec(),
            },
            Expression::SourceNat { address: R1 },
        ],
    );
    b.rule(
        "post",
        &[meta(OUT_NAME, R1), is(R1, &name(uplink)), Expression::Masquerade],
    );
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
            Expression::Reject {
                reset: false,
                code: NO_HOST,
            },
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
            source(W0),
            find("internal", W0, None),
            Expression::Reject {
                reset: false,
                code: PROHIBITED,
            },
        ],
    );
    // What is for a network stays in it, although the world may have the same addresses; answers have passed above.
    b.rule(
        "fwd",
        &[
            meta(OUT_NAME, R1),
            is(R1, &name(uplink)),
            destination(W0),
            find(SUBNETS, W0, None),
            Expression::Reject {
                reset: false,
                code: NO_HOST,
            },
        ],
    );
    // No container speaks to a host as if it were one, and what came from another host does not go out here: answers have
    // passed above.
    b.rule(
        "fwd",
        &[
            meta(OUT_NAME, R1),
            is(R1, &name(uplink)),
            meta(PROTOCOL, W0),
            is(W0, &[17]),
            port(W0),
            is(W0, &PORT.to_be_bytes()),
            Expression::Drop,
        ],
    );
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
                &from_a_client(device)[..],
                &[
                    destination(W0),
                    meta(PROTOCOL, W1),
                    port(W2),
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
            source(W0),
            find("nets", W0, Some(W0)),
            destination(W1),
            find("members", W0, None),
            Expression::Accept,
        ],
    );
    b.rule(
        "fwd",
        &[Expression::Reject {
            reset: false,
            code: PROHIBITED,
        }],
    );
    b
}

/// What is let in. VXLAN: only hosts of the cluster are heard, and none of it is tracked, as what is in it is. `number` is that of the
/// device (VNI): what others on this machine do with the same port is theirs.
fn hear_hosts_only(b: &mut Batch, uplink: &str, dataplane: Ipv4Addr, number: u32) {
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
        source(W0),
        Expression::Absent {
            set: "hosts".into(),
            from: W0,
        },
        Expression::Drop,
    ];
    b.rule("first", &[&to(PORT)[..], &strangers].concat());
    // Nobody speaks to the dataplane but through a published port, as whose address says where it is open.
    b.rule(
        "first",
        &[
            meta(IN_NAME, R1),
            is_not(R1, &name(uplink)),
            destination(W0),
            is(W0, &dataplane.octets()),
            Expression::Drop,
        ],
    );
    for chain in ["first", "sent"] {
        for number in [PORT, wireguard::PORT] {
            b.rule(chain, &[&to(number)[..], &[Expression::NotTracked]].concat());
        }
    }
}

/// The host's table: published ports lead to the dataplane, what leaves it gets the host's address, and what comes from
/// other hosts' dataplanes is theirs.
pub(crate) fn host(table: &str, uplink: &str, dataplane: Ipv4Addr, number: u32) -> Batch {
    let mut b = Batch::new(table);
    b.table();
    for (set, key) in HOST_SETS {
        b.set(set, *key, None);
    }
    hear_hosts_only(&mut b, uplink, dataplane, number);
    b.chain("pre", &nat("nat", 0));
    b.chain("out", &nat("nat", 3));
    b.chain("post", &nat("nat", 4));
    let to_dataplane = [
        Expression::Immediate {
            to: R1,
            value: dataplane.octets().to_vec(),
        },
        Expression::DestinationNat {
            address: R1,
            port: None,
        },
    ];
    for chain in ["pre", "out"] {
        let local = [
            Expression::DestinationType { to: W0 },
            is(W0, &2u32.to_ne_bytes()),
        ];
        let published = [meta(PROTOCOL, W0), port(W1), find("ports", W0, None)];
        let bound = [
            destination(W0),
            meta(PROTOCOL, W1),
            port(W2),
            find("bound", W0, None),
        ];
        b.rule(chain, &[&local[..], &published, &to_dataplane].concat());
        b.rule(chain, &[&local[..], &bound, &to_dataplane].concat());
    }
    // From 127/8 no answer would find its way back.
    b.rule(
        "post",
        &[
            meta(OUT_NAME, R1),
            is(R1, &name(uplink)),
            source(W0),
            Expression::Mask {
                register: W0,
                mask: [255, 0, 0, 0],
                xor: [0; 4],
            },
            is(W0, &[127, 0, 0, 0]),
            Expression::Masquerade,
        ],
    );
    b.rule(
        "post",
        &[
            source(W0),
            is(W0, &dataplane.octets()),
            meta(OUT_NAME, R1),
            is_not(R1, &name(uplink)),
            Expression::Masquerade,
        ],
    );
    b
}
