//! Frames between the kernel, which has them large, and the wire, which has them small; pure.
//!
//! The kernel hands over TCP in pieces of up to 64 KiB with a note of how to cut them (virtio_net_hdr of linux/virtio_net.h),
//! and takes them so. Working on large pieces is what makes a tunnel in userspace several times as fast.

use std::net::Ipv4Addr;

/// Bytes of the kernel's note before each frame.
pub(crate) const NOTE: usize = 10;
/// Bytes around a frame within the tunnel: IPv4, UDP, VXLAN (RFC 7348), as a device of the kernel's puts them.
pub(crate) const WRAP: usize = 36;
/// Bytes of the largest frame: an IP packet of 64 KiB, and Ethernet.
pub(crate) const FRAME_MAX: usize = ETHERNET + 65_535;

const ETHERNET: usize = 14;
const NEEDS_CHECKSUM: u8 = 1;
const TCP_V4: u8 = 1;
const TCP_V6: u8 = 4;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const FIN: u8 = 0x01;
const CWR: u8 = 0x80;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
/// Where a packet of a version has its length; the header before TCP.
const LENGTH_V4: usize = ETHERNET + 2;
const LENGTH_V6: usize = ETHERNET + 4;
const TCP_AT_V4: usize = ETHERNET + 20;
const TCP_AT_V6: usize = ETHERNET + 40;
/// The flows whose pieces are put together at a time.
const FLOWS: usize = 8;

/// Both ends of a wrapped frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wrap {
    pub(crate) from: Ipv4Addr,
    pub(crate) to: Ipv4Addr,
    /// Of VXLAN.
    pub(crate) port: u16,
    /// Of VXLAN (VNI).
    pub(crate) number: u32,
}

impl Wrap {
    /// Writes what is around a frame of so many bytes.
    fn put(&self, out: &mut Vec<u8>, frame: usize) {
        let length = |extra: usize| u16::try_from(frame + extra).unwrap_or(u16::MAX).to_be_bytes();
        let start = out.len();
        out.extend_from_slice(&[0x45, 0]);
        out.extend_from_slice(&length(WRAP));
        // Number 0, never to be cut in pieces, 64 hops.
        out.extend_from_slice(&[0, 0, 0x40, 0, 64, PROTOCOL_UDP, 0, 0]);
        out.extend_from_slice(&self.from.octets());
        out.extend_from_slice(&self.to.octets());
        let checksum = !fold(sum(&out[start..]));
        out[start + 10..start + 12].copy_from_slice(&checksum.to_ne_bytes());
        out.extend_from_slice(&self.port.to_be_bytes());
        out.extend_from_slice(&self.port.to_be_bytes());
        out.extend_from_slice(&length(WRAP - 20));
        out.extend_from_slice(&[0, 0, 8, 0, 0, 0]);
        out.extend_from_slice(&(self.number << 8).to_be_bytes());
    }

    /// The frame within a packet that these ends wrapped.
    pub(crate) fn open<'a>(&self, packet: &'a [u8]) -> Option<&'a [u8]> {
        let (head, frame) = packet.split_at_checked(WRAP)?;
        let number = u32::from_be_bytes(head.get(32..36)?.try_into().ok()?) >> 8;
        let good = head[0] == 0x45
            // Not a part of a packet that was cut.
            && head[6] & 0x3f == 0
            && head[7] == 0
            && head[9] == PROTOCOL_UDP
            && head[12..16] == self.from.octets()
            && head[16..20] == self.to.octets()
            && head[22..24] == self.port.to_be_bytes()
            && head[28] & 8 != 0
            && number == self.number
            && frame.len() >= ETHERNET;
        good.then_some(frame)
    }
}

/// The kernel's note.
struct Note {
    checksum: bool,
    kind: u8,
    size: usize,
    start: usize,
    offset: usize,
}

fn note(bytes: &[u8]) -> Option<Note> {
    let word = |at: usize| {
        Some(usize::from(u16::from_ne_bytes(
            bytes.get(at..at + 2)?.try_into().ok()?,
        )))
    };
    Some(Note {
        checksum: bytes.first()? & NEEDS_CHECKSUM != 0,
        // Without the note on congestion (ECN).
        kind: bytes.get(1)? & 0x7f,
        size: word(4)?,
        start: word(6)?,
        offset: word(8)?,
    })
}

/// Cuts what the kernel handed over (note and frame) into frames for the wire; `each` gets one after the other, wrapped. What
/// makes no sense is dropped.
pub(crate) fn cut(bytes: &mut [u8], wrap: &Wrap, scratch: &mut Vec<u8>, mut each: impl FnMut(&[u8])) {
    let Some((head, frame)) = bytes.split_at_mut_checked(NOTE) else {
        return;
    };
    let Some(note) = note(head).filter(|_| frame.len() >= ETHERNET) else {
        return;
    };
    if note.kind == 0 {
        if note.checksum && !complete(frame, &note) {
            return;
        }
        scratch.clear();
        wrap.put(scratch, frame.len());
        scratch.extend_from_slice(frame);
        return each(scratch);
    }
    let length = match note.kind {
        TCP_V4 => LENGTH_V4,
        TCP_V6 => LENGTH_V6,
        _ => return,
    };
    let tcp = note.start;
    let Some(words) = frame.get(tcp + 12).map(|b| b >> 4) else {
        return;
    };
    let headers = tcp + usize::from(words) * 4;
    // What is before TCP has to be all of IPv4's header.
    let options = frame.get(ETHERNET).map_or(0, |b| usize::from(b & 15) * 4);
    let whole = note.kind == TCP_V6 || tcp >= ETHERNET + options;
    let sensible =
        whole && note.size > 0 && tcp >= length + 4 && headers >= tcp + 20 && headers < frame.len();
    if !sensible {
        return;
    }
    let (head, payload) = frame.split_at(headers);
    let sequence = be32(head, tcp + 4);
    let (mut done, mut count) = (0, 0u16);
    for part in payload.chunks(note.size) {
        scratch.clear();
        wrap.put(scratch, headers + part.len());
        scratch.extend_from_slice(head);
        scratch.extend_from_slice(part);
        let last = done + part.len() == payload.len();
        let segment = &mut scratch[WRAP..];
        segment[tcp + 4..tcp + 8].copy_from_slice(
            &sequence
                .wrapping_add(u32::try_from(done).unwrap_or(0))
                .to_be_bytes(),
        );
        if !last {
            segment[tcp + 13] &= !(FIN | PSH);
        }
        if done > 0 {
            segment[tcp + 13] &= !CWR;
        }
        set_length(segment, note.kind, count);
        let sum = pseudo(segment, note.kind, tcp);
        segment[tcp + 16..tcp + 18].fill(0);
        let checksum = !fold(sum + self::sum(&segment[tcp..]));
        segment[tcp + 16..tcp + 18].copy_from_slice(&checksum.to_ne_bytes());
        each(scratch);
        done += part.len();
        count = count.wrapping_add(1);
    }
}

/// Works out the checksum that the kernel left to whoever sends.
fn complete(frame: &mut [u8], note: &Note) -> bool {
    let at = note.start + note.offset;
    if at + 2 > frame.len() {
        return false;
    }
    // The field has the sum of what is not covered otherwise.
    let mut checksum = !fold(sum(&frame[note.start..]));
    if checksum == 0 {
        // Which would mean that there is none (RFC 768).
        checksum = 0xffff;
    }
    frame[at..at + 2].copy_from_slice(&checksum.to_ne_bytes());
    true
}

/// Writes a packet's length, and what follows from it; `count` is added to its number.
fn set_length(frame: &mut [u8], kind: u8, count: u16) {
    let (at, counted) = if kind == TCP_V4 {
        (LENGTH_V4, ETHERNET)
    } else {
        (LENGTH_V6, TCP_AT_V6)
    };
    let length = u16::try_from(frame.len() - counted).unwrap_or(u16::MAX);
    frame[at..at + 2].copy_from_slice(&length.to_be_bytes());
    if kind == TCP_V4 {
        let number = be16(frame, ETHERNET + 4).wrapping_add(count);
        frame[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&number.to_be_bytes());
        frame[ETHERNET + 10..ETHERNET + 12].fill(0);
        let end = ETHERNET + usize::from(frame[ETHERNET] & 15) * 4;
        let checksum = !fold(sum(&frame[ETHERNET..end]));
        frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&checksum.to_ne_bytes());
    }
}

/// Sum of TCP's pseudo header (RFC 9293 §3.1).
fn pseudo(frame: &[u8], kind: u8, tcp: usize) -> u64 {
    let addresses = if kind == TCP_V4 {
        &frame[ETHERNET + 12..ETHERNET + 20]
    } else {
        &frame[ETHERNET + 8..ETHERNET + 40]
    };
    let length = u16::try_from(frame.len() - tcp).unwrap_or(u16::MAX);
    sum(addresses) + u64::from(length.to_be()) + u64::from(u16::from(PROTOCOL_TCP).to_be())
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Sum of 16-bit words as they lie in memory (RFC 1071), not folded.
fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(4);
    let rest = words.remainder();
    let mut total: u64 = words
        .map(|w| u64::from(u32::from_ne_bytes([w[0], w[1], w[2], w[3]])))
        .sum();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    total += u64::from(u32::from_ne_bytes(last));
    total
}

fn fold(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    u16::try_from(total).unwrap_or(0)
}

/// Pieces of TCP put together again, for the kernel.
#[derive(Debug, Default)]
pub(crate) struct Merger {
    open: Vec<Open>,
    spare: Vec<Vec<u8>>,
}

/// A piece that may grow.
#[derive(Debug)]
struct Open {
    /// Note and frame.
    bytes: Vec<u8>,
    kind: u8,
    headers: usize,
    /// Bytes of the payload of each but the last.
    size: usize,
    next: u32,
    count: usize,
}

/// A frame that can be put together with others.
struct Piece {
    kind: u8,
    tcp: usize,
    headers: usize,
}

fn piece(frame: &[u8]) -> Option<Piece> {
    let (kind, tcp) = match be16(frame, 12) {
        0x0800 if frame.len() > TCP_AT_V4 && frame[ETHERNET] == 0x45 => {
            let whole = be16(frame, ETHERNET + 6) & 0x3fff == 0;
            let fits = usize::from(be16(frame, LENGTH_V4)) == frame.len() - ETHERNET;
            (whole && fits && frame[ETHERNET + 9] == PROTOCOL_TCP).then_some((TCP_V4, TCP_AT_V4))?
        }
        0x86dd if frame.len() > TCP_AT_V6 => {
            let fits = usize::from(be16(frame, LENGTH_V6)) == frame.len() - TCP_AT_V6;
            (fits && frame[ETHERNET + 6] == PROTOCOL_TCP).then_some((TCP_V6, TCP_AT_V6))?
        }
        _ => return None,
    };
    let headers = tcp + usize::from(frame.get(tcp + 12)? >> 4) * 4;
    let plain = matches!(frame.get(tcp + 13)? & !PSH, ACK);
    let piece = Piece { kind, tcp, headers };
    let sound = headers >= tcp + 20 && headers < frame.len() && plain;
    // One that came broken must be seen to be.
    (sound && fold(pseudo(frame, kind, tcp) + sum(&frame[tcp..])) == 0xffff).then_some(piece)
}

/// Whether the headers of two pieces differ only in what says where each is in its flow.
fn alike(one: &[u8], other: &[u8], of: &Piece) -> bool {
    let tcp = of.tcp;
    let same =
        |from: usize, to: usize| one.get(from..to).is_some() && one.get(from..to) == other.get(from..to);
    let addresses = if of.kind == TCP_V4 {
        // All but length, number and checksum.
        same(0, LENGTH_V4) && same(ETHERNET + 6, ETHERNET + 10) && same(ETHERNET + 12, tcp)
    } else {
        same(0, LENGTH_V6) && same(LENGTH_V6 + 2, tcp)
    };
    addresses
        && same(tcp, tcp + 4)
        && same(tcp + 8, tcp + 13)
        && same(tcp + 14, tcp + 16)
        && same(tcp + 18, of.headers)
}

/// Whether two frames are of one flow: addresses and ports.
fn one_flow(one: &[u8], other: &[u8], of: &Piece) -> bool {
    let from = if of.kind == TCP_V4 {
        ETHERNET + 12
    } else {
        ETHERNET + 8
    };
    one.get(12..14) == other.get(12..14) && one.get(from..of.tcp + 4) == other.get(from..of.tcp + 4)
}

impl Merger {
    /// Takes a frame from the wire; `out` gets what cannot grow any more, with its note. What is of one flow keeps its order.
    pub(crate) fn push(&mut self, frame: &[u8], out: &mut impl FnMut(&[u8])) {
        let Some(piece) = piece(frame) else {
            // It may end a flow of which pieces wait.
            self.flush(out);
            let mut bytes = self.spare.pop().unwrap_or_default();
            bytes.clear();
            bytes.resize(NOTE, 0);
            bytes.extend_from_slice(frame);
            out(&bytes);
            self.spare.push(bytes);
            return;
        };
        let of_flow = |open: &Open| one_flow(&open.bytes[NOTE..], frame, &piece);
        if let Some(at) = self.open.iter().position(of_flow) {
            if self.open[at].grow(frame, &piece) {
                if self.open[at].is_full(frame, &piece) {
                    self.close(at, out);
                }
                return;
            }
            self.close(at, out);
        } else if self.open.len() >= FLOWS {
            self.close(0, out);
        }
        let mut bytes = self.spare.pop().unwrap_or_default();
        bytes.clear();
        bytes.resize(NOTE, 0);
        bytes.extend_from_slice(frame);
        let payload = frame.len() - piece.headers;
        let open = Open {
            bytes,
            kind: piece.kind,
            headers: piece.headers,
            size: payload,
            next: be32(frame, piece.tcp + 4).wrapping_add(u32::try_from(payload).unwrap_or(0)),
            count: 1,
        };
        let pushed = frame[piece.tcp + 13] & PSH != 0;
        self.open.push(open);
        if pushed {
            self.close(self.open.len() - 1, out);
        }
    }

    /// Hands over what waits.
    pub(crate) fn flush(&mut self, out: &mut impl FnMut(&[u8])) {
        while !self.open.is_empty() {
            self.close(0, out);
        }
    }

    fn close(&mut self, at: usize, out: &mut impl FnMut(&[u8])) {
        let mut open = self.open.remove(at);
        open.finish();
        out(&open.bytes);
        self.spare.push(open.bytes);
    }
}

impl Open {
    /// Takes the next piece, if it is that.
    fn grow(&mut self, frame: &[u8], piece: &Piece) -> bool {
        let payload = frame.len() - piece.headers;
        let known = &self.bytes[NOTE..];
        let fits = piece.kind == self.kind
            && piece.headers == self.headers
            && payload <= self.size
            && known.len() + payload <= FRAME_MAX
            && be32(frame, piece.tcp + 4) == self.next
            && alike(known, frame, piece);
        if !fits {
            return false;
        }
        self.bytes.extend_from_slice(&frame[piece.headers..]);
        self.next = self.next.wrapping_add(u32::try_from(payload).unwrap_or(0));
        self.count += 1;
        self.bytes[NOTE + piece.tcp + 13] |= frame[piece.tcp + 13] & PSH;
        true
    }

    /// Whether nothing may follow the piece that was taken last.
    fn is_full(&self, last: &[u8], piece: &Piece) -> bool {
        last.len() - piece.headers < self.size || last[piece.tcp + 13] & PSH != 0
    }

    /// Writes note and headers for what was put together.
    fn finish(&mut self) {
        if self.count < 2 {
            return;
        }
        let (note, frame) = self.bytes.split_at_mut(NOTE);
        let tcp = if self.kind == TCP_V4 { TCP_AT_V4 } else { TCP_AT_V6 };
        set_length(frame, self.kind, 0);
        // The kernel adds what it covers.
        let checksum = fold(pseudo(frame, self.kind, tcp));
        frame[tcp + 16..tcp + 18].copy_from_slice(&checksum.to_ne_bytes());
        note[0] = NEEDS_CHECKSUM;
        note[1] = self.kind;
        for (at, value) in [(2, self.headers), (4, self.size), (6, tcp), (8, 16)] {
            note[at..at + 2].copy_from_slice(&u16::try_from(value).unwrap_or(0).to_ne_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRAPPED: Wrap = Wrap {
        from: Ipv4Addr::new(10, 99, 0, 1),
        to: Ipv4Addr::new(10, 99, 0, 2),
        port: 4789,
        number: 4094,
    };

    /// A frame of TCP with its checksums, from a port.
    fn tcp(v6: bool, port: u16, sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let (at, kind) = if v6 {
            (TCP_AT_V6, TCP_V6)
        } else {
            (TCP_AT_V4, TCP_V4)
        };
        let mut frame = vec![0u8; at + 32];
        frame[..12].copy_from_slice(&[2, 0x52, 10, 99, 0, 2, 2, 0x52, 10, 99, 0, 1]);
        if v6 {
            frame[12..14].copy_from_slice(&[0x86, 0xdd]);
            frame[ETHERNET] = 0x60;
            frame[ETHERNET + 6] = PROTOCOL_TCP;
            frame[ETHERNET + 7] = 64;
            frame[ETHERNET + 8] = 0xfd;
            frame[ETHERNET + 24] = 0xfd;
            frame[ETHERNET + 39] = 9;
        } else {
            frame[12..14].copy_from_slice(&[8, 0]);
            frame[ETHERNET] = 0x45;
            frame[ETHERNET + 6] = 0x40;
            frame[ETHERNET + 8] = 64;
            frame[ETHERNET + 9] = PROTOCOL_TCP;
            frame[ETHERNET + 12..ETHERNET + 20].copy_from_slice(&[10, 0, 0, 2, 10, 0, 0, 3]);
        }
        frame[at..at + 2].copy_from_slice(&port.to_be_bytes());
        frame[at + 2..at + 4].copy_from_slice(&[0, 80]);
        frame[at + 4..at + 8].copy_from_slice(&sequence.to_be_bytes());
        frame[at + 12] = 0x80;
        frame[at + 13] = flags;
        frame[at + 14] = 9;
        frame.extend_from_slice(payload);
        set_length(&mut frame, kind, 0);
        let checksum = !fold(pseudo(&frame, kind, at) + sum(&frame[at..]));
        frame[at + 16..at + 18].copy_from_slice(&checksum.to_ne_bytes());
        frame
    }

    /// What a list of frames becomes for the kernel.
    fn merged(frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let (mut merger, mut all) = (Merger::default(), Vec::new());
        let mut out = |bytes: &[u8]| all.push(bytes.to_vec());
        for frame in frames {
            merger.push(frame, &mut out);
        }
        merger.flush(&mut out);
        all
    }

    /// What the kernel's frame becomes on the wire.
    fn pieces(bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        cut(&mut bytes.to_vec(), &WRAPPED, &mut Vec::new(), |packet| {
            assert_eq!(
                usize::from(be16(packet, 2)),
                packet.len(),
                "the length of the outer packet"
            );
            assert_eq!(fold(sum(&packet[..20])), 0xffff, "its checksum");
            all.push(WRAPPED.open(packet).unwrap().to_vec());
        });
        all
    }

    #[test]
    fn what_is_put_together_is_cut_as_it_was() {
        for v6 in [false, true] {
            let payload: Vec<u8> = (0..4_000u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
            let mut frames = Vec::new();
            for (at, part) in payload.chunks(1_300).enumerate() {
                let sequence = 0xffff_ff00u32.wrapping_add(u32::try_from(at).unwrap() * 1_300);
                let flags = if part.len() < 1_300 { ACK | PSH } else { ACK };
                let mut frame = tcp(v6, 1000, sequence, flags, part);
                // Numbered one after the other, as a sender does.
                set_length(
                    &mut frame,
                    if v6 { TCP_V6 } else { TCP_V4 },
                    u16::try_from(at).unwrap(),
                );
                frames.push(frame);
            }
            let one = merged(&frames);
            assert_eq!(one.len(), 1, "v6 {v6}");
            assert_eq!(one[0][NOTE..].len(), frames[0].len() - 1_300 + 4_000);
            assert_eq!(pieces(&one[0]), frames, "v6 {v6}");
        }
    }

    #[test]
    fn what_does_not_follow_stays_apart_and_in_order() {
        let payload = [7u8; 100];
        let next = |sequence, flags, len: usize| tcp(false, 1000, sequence, flags, &payload[..len]);
        let mut broken = next(200, ACK, 100);
        broken[TCP_AT_V4 + 40] ^= 1;
        let mut other_window = next(200, ACK, 100);
        other_window = {
            let mut f = other_window;
            f[TCP_AT_V4 + 14] = 8;
            f[TCP_AT_V4 + 16..TCP_AT_V4 + 18].fill(0);
            let c = !fold(pseudo(&f, TCP_V4, TCP_AT_V4) + sum(&f[TCP_AT_V4..]));
            f[TCP_AT_V4 + 16..TCP_AT_V4 + 18].copy_from_slice(&c.to_ne_bytes());
            f
        };
        // Frames that follow a first one of bytes 100 to 200, and how many the kernel gets.
        let rows: Vec<(&str, Vec<Vec<u8>>, usize)> = vec![
            ("nothing", vec![], 1),
            ("the next", vec![next(200, ACK, 100)], 1),
            (
                "a shorter one, and nothing after it",
                vec![next(200, ACK, 50), next(250, ACK, 50)],
                2,
            ),
            ("a longer one", vec![tcp(false, 1000, 200, ACK, &[7; 101])], 2),
            ("a gap", vec![next(300, ACK, 100)], 2),
            ("the same again", vec![next(100, ACK, 100)], 2),
            ("an end", vec![next(200, ACK | FIN, 100)], 2),
            ("no payload", vec![next(200, ACK, 0)], 2),
            (
                "pushed, and the next",
                vec![next(200, ACK | PSH, 100), next(300, ACK, 100)],
                2,
            ),
            ("broken", vec![broken], 2),
            ("another window", vec![other_window], 2),
            (
                "another flow between",
                vec![tcp(false, 1001, 200, ACK, &payload), next(200, ACK, 100)],
                2,
            ),
            ("what is not IP", vec![vec![0; 60], next(200, ACK, 100)], 3),
        ];
        for (name, more, count) in rows {
            let frames: Vec<Vec<u8>> = [vec![next(100, ACK, 100)], more].concat();
            let all = merged(&frames);
            assert_eq!(all.len(), count, "{name}");
            let bytes = |list: &[Vec<u8>]| -> usize { list.iter().map(Vec::len).sum() };
            let heads = frames.len() - count;
            assert_eq!(
                bytes(&all) - count * NOTE,
                bytes(&frames) - heads * (TCP_AT_V4 + 32),
                "{name}"
            );
        }
        // As large as a packet can be, and no larger.
        let mut many = Vec::new();
        for at in 0..60u32 {
            many.push(tcp(false, 1000, at * 1_300, ACK, &[1; 1_300]));
        }
        let all = merged(&many);
        assert_eq!(all.len(), 2);
        assert!(all[0].len() <= NOTE + FRAME_MAX && all[0].len() > 60_000);
        // More flows than are kept: each is handed over in the end.
        let flows: Vec<_> = (0..20).map(|n| tcp(false, n, 0, ACK, &payload)).collect();
        assert_eq!(merged(&flows).len(), 20);
    }

    #[test]
    fn checksums_left_to_the_sender_are_worked_out() {
        let whole = tcp(false, 1000, 1, ACK | PSH, &[9; 333]);
        let mut left = vec![0u8; NOTE];
        left[0] = NEEDS_CHECKSUM;
        left[6..8].copy_from_slice(&u16::try_from(TCP_AT_V4).unwrap().to_ne_bytes());
        left[8..10].copy_from_slice(&16u16.to_ne_bytes());
        left.extend_from_slice(&whole);
        let partial = fold(pseudo(&whole, TCP_V4, TCP_AT_V4));
        let at = NOTE + TCP_AT_V4 + 16;
        left[at..at + 2].copy_from_slice(&partial.to_ne_bytes());
        assert_eq!(pieces(&left), [whole]);
    }

    #[test]
    fn nonsense_of_the_kernel_or_the_wire_is_dropped() {
        let good = merged(&[
            tcp(false, 1, 0, ACK, &[1; 100]),
            tcp(false, 1, 100, ACK, &[1; 100]),
        ])
        .remove(0);
        assert_eq!(pieces(&good).len(), 2);
        // Every prefix, and every byte of the note changed: whatever comes of it, nothing panics.
        for end in 0..good.len() {
            let _ = pieces(&good[..end]);
        }
        for at in 0..NOTE + TCP_AT_V4 + 20 {
            for value in [0, 1, 5, 0x7f, 0xff] {
                let mut bytes = good.clone();
                bytes[at] = value;
                cut(&mut bytes, &WRAPPED, &mut Vec::new(), |_| ());
                // With a header of IPv4 that says it is longer than the packet.
                (bytes[NOTE + ETHERNET], bytes[4], bytes[5]) = (0x4f, 1, 0);
                cut(&mut bytes, &WRAPPED, &mut Vec::new(), |_| ());
                let _ = merged(&[bytes[NOTE..].to_vec()]);
            }
        }
        let mut packet = Vec::new();
        WRAPPED.put(&mut packet, 20);
        packet.extend_from_slice(&[0; 20]);
        assert!(WRAPPED.open(&packet).is_some());
        // Both ends, port, number, protocol, flags.
        for at in [0, 6, 9, 12, 15, 19, 23, 28, 34] {
            let mut bytes = packet.clone();
            bytes[at] ^= 0x29;
            assert!(WRAPPED.open(&bytes).is_none(), "byte {at}");
        }
        assert!(WRAPPED.open(&packet[..WRAP + 13]).is_none(), "no whole frame");
    }
}
