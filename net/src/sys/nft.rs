//! nf_tables messages (linux/netfilter/nf_tables.h): tables, chains, sets, rules, elements.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use super::netlink::{ACK, CREATE, Message, REQUEST, Socket};
use crate::family::Family;
use crate::plan::SUBNETS;

const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const NEW_SET: u16 = 9;
const NEW_ELEMENT: u16 = 12;
const DELETE_ELEMENT: u16 = 14;

/// The family of tables of one interface; the others have the numbers of [`Family`].
pub(crate) const NETDEV: u8 = 5;

/// Registers: a verdict, four of 16 bytes, and the same memory as words from 8 on.
pub(crate) const R1: u32 = 1;
pub(crate) const W0: u32 = 8;
pub(crate) const W1: u32 = 9;
pub(crate) const W2: u32 = 10;
/// Word in which numbers are kept until a rule ends.
pub(crate) const W4: u32 = 12;

/// Key and, in a map, value.
pub(crate) type Element = (Vec<u8>, Option<Vec<u8>>);

/// Messages of one transaction on one table.
pub(crate) struct Batch {
    family: u8,
    table: String,
    messages: Vec<Message>,
    sets: u32,
}

/// Where a base chain stands in the path of a packet.
pub(crate) struct Hook {
    pub(crate) kind: &'static str,
    pub(crate) number: u32,
    pub(crate) priority: i32,
}

impl Batch {
    pub(crate) fn new(family: Family, table: &str) -> Self {
        Self::of(family.number(), table)
    }

    /// The same of a family that is neither.
    pub(crate) fn of(family: u8, table: &str) -> Self {
        Self {
            family,
            table: table.into(),
            messages: Vec::new(),
            sets: 0,
        }
    }

    fn message(&self, kind: u16, flags: u16) -> Message {
        // struct nfgenmsg: family, version, resource.
        Message::new(10 << 8 | kind, REQUEST | ACK | flags, &[self.family, 0, 0, 0])
    }

    pub(crate) fn table(&mut self) {
        let mut m = self.message(NEW_TABLE, CREATE);
        m.text(1, &self.table);
        self.messages.push(m);
    }

    /// Takes the table away; it must exist.
    pub(crate) fn delete_table(&mut self) {
        let mut m = self.message(DELETE_TABLE, 0);
        m.text(1, &self.table);
        self.messages.push(m);
    }

    pub(crate) fn chain(&mut self, name: &str, hook: &Hook) {
        let mut m = self.message(NEW_CHAIN, CREATE);
        m.text(1, &self.table).text(3, name);
        m.nest(4, |m| {
            m.be32(1, hook.number).put(2, &hook.priority.to_be_bytes());
        });
        m.be32(5, 1).text(7, hook.kind);
        self.messages.push(m);
    }

    /// A chain for what leaves an interface, before its driver has it (family netdev).
    pub(crate) fn egress(&mut self, name: &str, device: &str) {
        let mut m = self.message(NEW_CHAIN, CREATE);
        m.text(1, &self.table).text(3, name);
        m.nest(4, |m| {
            m.be32(1, 1).put(2, &0i32.to_be_bytes()).text(3, device);
        });
        m.be32(5, 1).text(7, "filter");
        self.messages.push(m);
    }

    /// A set of keys, or a map where `data` is the size of its values. Sizes in bytes.
    pub(crate) fn set(&mut self, name: &str, key: u32, data: Option<u32>) {
        self.sets += 1;
        let id = self.sets;
        let mut m = self.message(NEW_SET, CREATE);
        m.text(1, &self.table).text(2, name);
        let interval = if name == SUBNETS { 4 } else { 0 };
        m.be32(3, if data.is_some() { 8 } else { interval });
        // The type is for people who list the set; 0 means bytes.
        m.be32(4, 0).be32(5, key);
        if let Some(data) = data {
            m.be32(6, 0).be32(7, data);
        }
        m.be32(10, id);
        self.messages.push(m);
    }

    pub(crate) fn rule(&mut self, chain: &str, expressions: &[Expression]) {
        let mut m = self.message(NEW_RULE, CREATE | 0x800);
        m.text(1, &self.table).text(2, chain);
        m.nest(4, |m| {
            for e in expressions {
                m.nest(1, |m| e.put(m));
            }
        });
        self.messages.push(m);
    }

    pub(crate) fn add(&mut self, set: &str, elements: &[Element]) {
        self.elements(NEW_ELEMENT, CREATE, set, elements);
    }

    pub(crate) fn remove(&mut self, set: &str, elements: &[Element]) {
        self.elements(DELETE_ELEMENT, 0, set, elements);
    }

    fn elements(&mut self, kind: u16, flags: u16, set: &str, elements: &[Element]) {
        // One attribute holds at most 64 KiB; an element of ours takes less than 64 bytes.
        for part in elements.chunks(512) {
            let mut m = self.message(kind, flags);
            m.text(1, &self.table).text(2, set);
            m.nest(3, |m| {
                for (key, data) in part {
                    m.nest(1, |m| {
                        m.nest(1, |m| {
                            m.put(1, key);
                        });
                        if data.as_ref().is_some_and(Vec::is_empty) {
                            // The end of an interval.
                            m.be32(3, 1);
                        } else if let Some(data) = data {
                            m.nest(2, |m| {
                                m.put(1, data);
                            });
                        }
                    });
                }
            });
            self.messages.push(m);
        }
    }

    /// A number that changes with what the batch says (FNV-1a).
    pub(crate) fn fingerprint(&self) -> u64 {
        let bytes = self.messages.iter().flat_map(|m| &m.bytes);
        bytes.fold(14_695_981_039_346_656_037, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(1_099_511_628_211)
        })
    }

    /// The same in the place of the table that is there.
    pub(crate) fn instead(mut self) -> Self {
        let mut m = self.message(DELETE_TABLE, 0);
        m.text(1, &self.table);
        self.messages.insert(0, m);
        self
    }

    pub(crate) fn commit(self, socket: &mut Socket) -> io::Result<()> {
        socket.batch(self.messages)
    }
}

/// One step of a rule.
#[derive(Clone)]
pub(crate) enum Expression {
    /// Loads header bytes: base 0 link, 1 network, 2 transport.
    Payload {
        base: u32,
        offset: u32,
        len: u32,
        to: u32,
    },
    /// Loads packet facts: 3 mark, 6 iifname, 7 oifname, 16 layer-4 protocol.
    Meta { key: u32, to: u32 },
    /// Stores header bytes of the link.
    SetLink { from: u32, offset: u32, len: u32 },
    /// Stores the mark.
    SetMark { from: u32 },
    /// Stores the mark of the connection.
    SetConnectionMark { from: u32 },
    /// Loads the address type of the destination (local: 2).
    DestinationType { to: u32 },
    /// Loads the number of the interface the packet came by, where the way to its source is by it; zero where it is not.
    WayBack { to: u32 },
    /// Loads connection facts: 0 state, 1 direction, 3 mark.
    Connection { key: u32, to: u32 },
    /// Keeps some bits.
    Mask {
        register: u32,
        mask: [u8; 4],
        xor: [u8; 4],
    },
    /// Goes on only when equal (0) or unequal (1).
    Compare { from: u32, op: u32, value: Vec<u8> },
    /// Goes on only when the key is in the set; loads its value.
    Lookup { set: String, from: u32, to: Option<u32> },
    /// Goes on only when the key is not in the set.
    Absent { set: String, from: u32 },
    /// A random number below.
    Random { below: u32, to: u32 },
    /// Loads a value.
    Immediate { to: u32, value: Vec<u8> },
    /// Rewrites the destination to registers of address and port.
    DestinationNat {
        family: Family,
        address: u32,
        port: Option<u32>,
    },
    /// Rewrites the source to a register.
    SourceNat { family: Family, address: u32 },
    /// Rewrites the source to the address of the way out.
    Masquerade,
    /// Answers an ICMP code, or resets a TCP connection.
    Reject { reset: bool, code: u8 },
    /// Ends: accept.
    Accept,
    /// Ends: the packet is gone, and nobody is told.
    Drop,
    /// The packet belongs to no connection that is remembered.
    NotTracked,
    /// Counts it, for people who list the rules.
    Counter,
}

impl Expression {
    fn put(&self, m: &mut Message) {
        let name = match self {
            Self::Payload { .. } | Self::SetLink { .. } => "payload",
            Self::Meta { .. } | Self::SetMark { .. } => "meta",
            Self::DestinationType { .. } | Self::WayBack { .. } => "fib",
            Self::Connection { .. } | Self::SetConnectionMark { .. } => "ct",
            Self::Mask { .. } => "bitwise",
            Self::Compare { .. } => "cmp",
            Self::Lookup { .. } | Self::Absent { .. } => "lookup",
            Self::Random { .. } => "numgen",
            Self::Immediate { .. } | Self::Accept | Self::Drop => "immediate",
            Self::DestinationNat { .. } | Self::SourceNat { .. } => "nat",
            Self::Masquerade => "masq",
            Self::Reject { .. } => "reject",
            Self::NotTracked => "notrack",
            Self::Counter => "counter",
        };
        m.text(1, name);
        m.nest(2, |m| self.data(m));
    }

    fn data(&self, m: &mut Message) {
        let value = |m: &mut Message, kind: u16, bytes: &[u8]| {
            m.nest(kind, |m| {
                m.put(1, bytes);
            });
        };
        match self {
            Self::Payload {
                base,
                offset,
                len,
                to,
            } => {
                m.be32(1, *to).be32(2, *base).be32(3, *offset).be32(4, *len);
            }
            Self::SetLink { from, offset, len } => {
                m.be32(2, 0).be32(3, *offset).be32(4, *len).be32(5, *from);
            }
            Self::SetConnectionMark { from } => {
                m.be32(2, 3).be32(4, *from);
            }
            Self::Absent { set, from } => {
                m.text(1, set).be32(2, *from).be32(5, 1);
            }
            Self::Meta { key, to } => {
                m.be32(1, *to).be32(2, *key);
            }
            Self::SetMark { from } => {
                m.be32(2, 3).be32(3, *from);
            }
            Self::DestinationType { to } => {
                m.be32(1, *to).be32(2, 3).be32(3, 2);
            }
            Self::WayBack { to } => {
                // Of the source and the interface it came by: an interface.
                m.be32(1, *to).be32(2, 1).be32(3, 1 | 8);
            }
            Self::Connection { key, to } => {
                m.be32(1, *to).be32(2, *key);
            }
            Self::Mask { register, mask, xor } => {
                m.be32(1, *register).be32(2, *register).be32(3, 4);
                value(m, 4, mask);
                value(m, 5, xor);
            }
            Self::Compare { from, op, value: v } => {
                m.be32(1, *from).be32(2, *op);
                value(m, 3, v);
            }
            Self::Lookup { set, from, to } => {
                m.text(1, set).be32(2, *from);
                if let Some(to) = to {
                    m.be32(3, *to);
                }
            }
            Self::Random { below, to } => {
                m.be32(1, *to).be32(2, *below).be32(3, 1).be32(4, 0);
            }
            Self::Immediate { to, value: v } => {
                m.be32(1, *to);
                value(m, 2, v);
            }
            Self::DestinationNat {
                family,
                address,
                port,
            } => {
                m.be32(1, 1).be32(2, u32::from(family.number())).be32(3, *address);
                if let Some(port) = port {
                    m.be32(5, *port);
                }
            }
            Self::SourceNat { family, address } => {
                m.be32(1, 0).be32(2, u32::from(family.number())).be32(3, *address);
            }
            Self::Masquerade | Self::NotTracked | Self::Counter => {}
            Self::Reject { reset, code } => {
                m.be32(1, u32::from(*reset)).put(2, &[*code]);
            }
            Self::Accept | Self::Drop => {
                m.be32(1, 0);
                m.nest(2, |m| {
                    m.nest(2, |m| {
                        m.be32(1, u32::from(matches!(self, Self::Accept)));
                    });
                });
            }
        }
    }
}

/// Whether a table of that name exists.
pub(crate) fn table_exists(socket: &mut Socket, family: Family, name: &str) -> io::Result<bool> {
    table_exists_in(socket, family.number(), name)
}

/// The same in a family that is neither.
pub(crate) fn table_exists_in(socket: &mut Socket, family: u8, name: &str) -> io::Result<bool> {
    let bodies = socket.dump(Message::new(
        10 << 8 | 1,
        REQUEST | super::netlink::DUMP,
        &[family, 0, 0, 0],
    ))?;
    Ok(bodies.iter().any(|b| {
        let attributes = super::netlink::attributes(b.get(4..).unwrap_or_default());
        attributes
            .into_iter()
            .any(|(k, v)| k == 1 && v.strip_suffix(&[0]) == Some(name.as_bytes()))
    }))
}

/// Every element of a set: key, and value where it is a map.
pub(crate) fn elements(
    socket: &mut Socket,
    family: Family,
    table: &str,
    set: &str,
) -> io::Result<Vec<Element>> {
    let of = [family.number(), 0, 0, 0];
    let mut m = Message::new(10 << 8 | 13, REQUEST | super::netlink::DUMP, &of);
    m.text(1, table).text(2, set);
    let mut found = Vec::new();
    let part = |bytes: &[u8]| {
        super::netlink::attributes(bytes)
            .into_iter()
            .find(|(k, _)| *k == 1)
            .map(|(_, v)| v.to_vec())
    };
    for body in socket.dump(m)? {
        for (_, list) in super::netlink::attributes(body.get(4..).unwrap_or_default())
            .into_iter()
            .filter(|(k, _)| *k == 3)
        {
            for (_, element) in super::netlink::attributes(list) {
                let fields = super::netlink::attributes(element);
                let get = |kind: u16| fields.iter().find(|(k, _)| *k == kind).and_then(|(_, v)| part(v));
                let flags = fields.iter().find(|(k, _)| *k == 3).map(|(_, v)| *v);
                let value = if flags == Some(&[0, 0, 0, 1]) {
                    Some(Vec::new())
                } else {
                    get(2)
                };
                if let Some(key) = get(1) {
                    found.push((key, value));
                }
            }
        }
    }
    Ok(found)
}

/// A connection as the kernel tracks it.
pub(crate) struct Flow {
    /// Attributes of the packet that began it, as they name it.
    original: Vec<u8>,
    /// Who answers.
    server: IpAddr,
    protocol: u8,
    /// State of TCP (linux/netfilter/nf_conntrack_tcp.h).
    tcp: Option<u8>,
}

impl Flow {
    /// Who answers.
    pub(crate) fn server(&self) -> IpAddr {
        self.server
    }

    pub(crate) fn is_udp(&self) -> bool {
        self.protocol == 17
    }

    /// Whether it is a connection over TCP that is being opened, is open, or half closed.
    pub(crate) fn is_open(&self) -> bool {
        const SYN_SENT: u8 = 1;
        const CLOSE_WAIT: u8 = 5;
        self.tcp
            .is_some_and(|state| (SYN_SENT..=CLOSE_WAIT).contains(&state))
    }
}

/// Attributes of a tuple's addresses: the source, in each family.
const fn source_of(family: Family) -> u16 {
    match family {
        Family::V4 => 1,
        Family::V6 => 3,
    }
}

/// Every connection of a family that is tracked (conntrack, IPCTNL_MSG_CT_GET).
pub(crate) fn flows(socket: &mut Socket, family: Family) -> io::Result<Vec<Flow>> {
    listed(socket, family, request(family))
}

/// Those alone that `server` answers. There is none for IPv6, of which the kernel compares addresses the wrong way round: it
/// lists all but those that are asked for (`ctnetlink_filter_match_tuple`, up to Linux 6.18 at least).
pub(crate) fn flows_of(socket: &mut Socket, server: Ipv4Addr) -> io::Result<Vec<Flow>> {
    const REPLY: u16 = 2;
    const ADDRESSES: u16 = 1;
    const FILTER: u16 = 25;
    const OF_ORIGINAL: u16 = 1;
    const OF_REPLY: u16 = 2;
    let family = Family::V4;
    let mut request = request(family);
    request.nest(REPLY, |m| {
        m.nest(ADDRESSES, |m| {
            m.put(source_of(family), &server.octets());
        });
    });
    // Of the reply the source is compared, of the original nothing (since Linux 5.8).
    request.nest(FILTER, |m| {
        m.ne32(OF_ORIGINAL, 0).ne32(OF_REPLY, 1);
    });
    listed(socket, family, request)
}

fn request(family: Family) -> Message {
    let of = [family.number(), 0, 0, 0];
    Message::new(1 << 8 | 1, REQUEST | super::netlink::DUMP, &of)
}

fn listed(socket: &mut Socket, family: Family, request: Message) -> io::Result<Vec<Flow>> {
    let find = super::netlink::find;
    let read = |body: &Vec<u8>| {
        let all = body.get(4..)?;
        let reply = find(all, 2)?;
        let server = find(&find(&reply, 1)?, source_of(family))?;
        Some(Flow {
            original: find(all, 1)?,
            server: match family {
                Family::V4 => IpAddr::from(<[u8; 4]>::try_from(server).ok()?),
                Family::V6 => IpAddr::from(<[u8; 16]>::try_from(server).ok()?),
            },
            protocol: *find(&find(&reply, 2)?, 1)?.first()?,
            tcp: find(all, 4)
                .and_then(|info| find(&info, 1))
                .and_then(|tcp| find(&tcp, 1)?.first().copied()),
        })
    };
    Ok(socket.dump(request)?.iter().filter_map(read).collect())
}

/// Forgets a connection (conntrack, IPCTNL_MSG_CT_DELETE); one that is gone is no error.
pub(crate) fn forget(socket: &mut Socket, flow: &Flow) -> io::Result<()> {
    let of = [Family::of(flow.server).number(), 0, 0, 0];
    let mut m = Message::new(1 << 8 | 2, REQUEST | ACK, &of);
    m.put(1 | 0x8000, &flow.original);
    match socket.request(m) {
        Err(e) if e.raw_os_error() != Some(libc::ENOENT) => Err(e),
        Ok(()) | Err(_) => Ok(()),
    }
}
