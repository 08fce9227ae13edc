//! One question → one answer, from the zone alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::Zone;

/// How long answers may be kept, in seconds: names that stand for one address, and for several tasks.
const TTL: u32 = 5;
const TTL_LIST: u32 = 1;

/// What to do with a question.
pub(crate) enum Verdict {
    /// Send this.
    Answer(Message),
    /// Ask an upstream server.
    Forward,
}

/// Decides on one message; `turn` chooses where lists begin, so that askers spread over them.
pub(crate) fn decide(query: &Message, asker: &str, zone: &Zone, turn: usize) -> Verdict {
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.metadata.message_type = MessageType::Response;
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    let [question] = query.queries.as_slice() else {
        reply.metadata.response_code = ResponseCode::FormErr;
        return Verdict::Answer(reply);
    };
    reply.add_query(question.clone());
    let Some((networks, internal)) = zone.askers.get(asker) else {
        reply.metadata.response_code = ResponseCode::ServFail;
        return Verdict::Answer(reply);
    };
    let text = question.name().to_string().to_ascii_lowercase();
    let text = text.trim_end_matches('.');
    if question.query_type() == RecordType::PTR
        && let Some(name) = reverse(text).and_then(|ip| zone.reverse.get(&ip))
    {
        if let Ok(name) = Name::from_ascii(format!("{name}.")) {
            reply.add_answer(Record::from_rdata(
                question.name().clone(),
                TTL,
                RData::PTR(PTR(name)),
            ));
        }
        return Verdict::Answer(reply);
    }
    let located: Vec<_> = (networks.iter())
        .filter_map(|network| zone.located.get(&(*network, text.to_owned())))
        .collect();
    if !located.is_empty() {
        if question.query_type() == RecordType::SRV {
            locate(&mut reply, question.name(), located.into_iter().flatten());
        }
        return Verdict::Answer(reply);
    }
    let mut found: Vec<RData> = Vec::new();
    let mut known = false;
    for network in networks {
        if let Some(list) = zone.names.get(&(*network, text.to_owned())) {
            known = true;
            found.extend(list.iter().map(|address| data(*address)));
        }
    }
    if known {
        // Other types of a known name are empty, never asked elsewhere.
        found.retain(|data| data.record_type() == question.query_type());
        if !found.is_empty() {
            let at = turn % found.len();
            found.rotate_left(at);
            let ttl = if found.len() > 1 { TTL_LIST } else { TTL };
            for data in found {
                reply.add_answer(Record::from_rdata(question.name().clone(), ttl, data));
            }
        }
        return Verdict::Answer(reply);
    }
    if *internal {
        reply.metadata.response_code = ResponseCode::NXDomain;
        return Verdict::Answer(reply);
    }
    Verdict::Forward
}

/// Says where ports are; all are as good as each other.
fn locate<'a>(reply: &mut Message, asked: &Name, located: impl Iterator<Item = &'a (String, u16)>) {
    let located: Vec<_> = located.collect();
    let ttl = if located.len() > 1 { TTL_LIST } else { TTL };
    for (target, port) in located {
        if let Ok(target) = Name::from_ascii(format!("{target}.")) {
            let place = RData::SRV(SRV::new(0, 0, *port, target));
            reply.add_answer(Record::from_rdata(asked.clone(), ttl, place));
        }
    }
}

/// What an answer says of an address.
fn data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    }
}

/// The address that a name such as `9.0.0.10.in-addr.arpa` (RFC 1035) or one of 32 digits under `ip6.arpa` (RFC 3596) is
/// about.
fn reverse(text: &str) -> Option<IpAddr> {
    if let Some(digits) = text.strip_suffix(".ip6.arpa") {
        let mut number = 0;
        let mut count = 0;
        for digit in digits.rsplit('.') {
            count += 1;
            if digit.len() != 1 || count > 32 {
                return None;
            }
            number = number << 4 | u128::from(u8::from_str_radix(digit, 16).ok()?);
        }
        return (count == 32).then(|| Ipv6Addr::from(number).into());
    }
    let mut parts: Vec<&str> = text.strip_suffix(".in-addr.arpa")?.split('.').collect();
    parts.reverse();
    parts.join(".").parse::<Ipv4Addr>().ok().map(IpAddr::V4)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use hickory_proto::op::{OpCode, Query};

    use super::*;

    fn ask(zone: &Zone, asker: &str, name: &str, kind: RecordType) -> Option<(ResponseCode, Vec<String>)> {
        let mut query = Message::new(7, MessageType::Query, OpCode::Query);
        query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        match decide(&query, asker, zone, 0) {
            Verdict::Forward => None,
            Verdict::Answer(reply) => Some((
                reply.metadata.response_code,
                reply.answers.iter().map(|r| r.data.to_string()).collect(),
            )),
        }
    }

    #[test]
    fn who_asks_learns_what_is_in_its_networks() {
        let ip = |last: u8| IpAddr::from([10, 0, 0, last]);
        let six = |last: u16| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0xab, last]);
        let one = |name: &str, port: u16| (name.to_owned(), port);
        let zone = Zone {
            askers: BTreeMap::from([("a".into(), (vec![1, 2], false)), ("b".into(), (vec![3], true))]),
            names: BTreeMap::from([
                ((1, "web".into()), vec![ip(9)]),
                ((1, "tasks.web".into()), vec![ip(2), ip(3)]),
                ((3, "db".into()), vec![]),
                ((2, "dual".into()), vec![ip(4), six(4)]),
                ((2, "tasks.dual".into()), vec![ip(5), six(5), ip(6), six(6)]),
                ((3, "new".into()), vec![six(7)]),
            ]),
            reverse: BTreeMap::from([(ip(9), "web".into()), (six(0x4c), "dual".into())]),
            located: BTreeMap::from([
                ((1, "_http._tcp.web".into()), vec![one("web", 8080)]),
                (
                    (1, "_http._tcp.tasks.web".into()),
                    vec![one("web.1", 8080), one("web.2", 8080)],
                ),
            ]),
        };
        use RecordType::{A, AAAA, PTR, SRV};
        use ResponseCode::{NXDomain, NoError, ServFail};
        type Want<'a> = Option<(ResponseCode, &'a [&'a str])>;
        let nibbles = format!("c.4.0.0.b.a.0.0.{}0.0.d.f.ip6.arpa.", "0.".repeat(20));
        let all: &[(&str, &str, RecordType, Want<'_>)] = &[
            ("a", "web.", A, Some((NoError, &["10.0.0.9"]))),
            ("a", "WEB.", A, Some((NoError, &["10.0.0.9"]))),
            ("a", "tasks.web.", A, Some((NoError, &["10.0.0.2", "10.0.0.3"]))),
            ("a", "web.", AAAA, Some((NoError, &[]))),
            ("a", "9.0.0.10.in-addr.arpa.", PTR, Some((NoError, &["web."]))),
            ("a", "_http._tcp.web.", SRV, Some((NoError, &["0 0 8080 web."]))),
            (
                "a",
                "_http._tcp.tasks.web.",
                SRV,
                Some((NoError, &["0 0 8080 web.1.", "0 0 8080 web.2."])),
            ),
            ("a", "_http._tcp.web.", A, Some((NoError, &[]))),
            ("a", "db.", A, None),
            ("b", "db.", A, Some((NoError, &[]))),
            ("b", "_http._tcp.web.", SRV, Some((NXDomain, &[]))),
            ("nobody", "web.", A, Some((ServFail, &[]))),
            ("a", "dual.", A, Some((NoError, &["10.0.0.4"]))),
            ("a", "dual.", AAAA, Some((NoError, &["fd00::ab:4"]))),
            ("a", "dual.", PTR, Some((NoError, &[]))),
            ("a", "tasks.dual.", A, Some((NoError, &["10.0.0.5", "10.0.0.6"]))),
            (
                "a",
                "tasks.dual.",
                AAAA,
                Some((NoError, &["fd00::ab:5", "fd00::ab:6"])),
            ),
            ("b", "new.", A, Some((NoError, &[]))),
            ("b", "new.", AAAA, Some((NoError, &["fd00::ab:7"]))),
            ("b", "dual.", AAAA, Some((NXDomain, &[]))),
            ("a", &nibbles, PTR, Some((NoError, &["dual."]))),
            ("a", &nibbles.to_uppercase(), PTR, Some((NoError, &["dual."]))),
            // One digit too few, one too many, and one that is none.
            ("a", &nibbles[2..], PTR, None),
            ("a", &format!("0.{nibbles}"), PTR, None),
            ("a", &nibbles.replace("c.4", "g.4"), PTR, None),
        ];
        for &(asker, name, kind, want) in all {
            let got = ask(&zone, asker, name, kind);
            let want = want.map(|(code, answers)| (code, answers.iter().map(|a| (*a).to_owned()).collect()));
            assert_eq!(got, want, "{asker} asks {kind} {name}");
        }
        // Those that ask one after the other begin with different addresses, each family by itself.
        for (turn, first) in [(0, "fd00::ab:5"), (1, "fd00::ab:6"), (2, "fd00::ab:5")] {
            let mut query = Message::new(7, MessageType::Query, OpCode::Query);
            query.add_query(Query::query(Name::from_ascii("tasks.dual.").unwrap(), AAAA));
            let Verdict::Answer(reply) = decide(&query, "a", &zone, turn) else {
                panic!("a known name is answered");
            };
            assert_eq!(reply.answers[0].data.to_string(), first, "turn {turn}");
        }
    }
}
