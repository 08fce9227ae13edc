//! One question → one answer, from the zone alone.

use std::net::Ipv4Addr;

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::{A, PTR};
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
    let mut found: Vec<Ipv4Addr> = Vec::new();
    let mut known = false;
    for network in networks {
        if let Some(list) = zone.names.get(&(*network, text.to_owned())) {
            known = true;
            found.extend(list);
        }
    }
    if known {
        // Other types of a known name are empty, never asked elsewhere.
        if question.query_type() == RecordType::A && !found.is_empty() {
            let at = turn % found.len();
            found.rotate_left(at);
            let ttl = if found.len() > 1 { TTL_LIST } else { TTL };
            for ip in found {
                reply.add_answer(Record::from_rdata(question.name().clone(), ttl, RData::A(A(ip))));
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

fn reverse(text: &str) -> Option<Ipv4Addr> {
    let mut parts: Vec<&str> = text.strip_suffix(".in-addr.arpa")?.split('.').collect();
    parts.reverse();
    parts.join(".").parse().ok()
}
