//! ICMPv6 echo over a raw socket (icmp6(7), RFC 3542).

use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::tun::{readable, set};

/// Bytes of the headers of IPv6 and of an echo.
pub(crate) const HEADERS: u32 = 48;
const REQUEST: u8 = 128;
const REPLY: u8 = 129;
/// Bytes of the largest answer that is read: the rest of one is of no interest.
const ANSWER: usize = 64;

/// An answer: from whom, over which device, and the numbers it was asked with.
pub(crate) type Answer = (Ipv6Addr, u32, (u16, u16));

/// A socket of the thread's namespace.
pub(crate) struct Echo {
    fd: OwnedFd,
    bytes: Vec<u8>,
}

impl Echo {
    pub(crate) fn open() -> io::Result<Self> {
        const FILTER: i32 = 1;
        const BUFFER: i32 = 4 << 20;
        const HOPS: i32 = 255;
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: takes integers; the result is a new descriptor that nobody else owns.
        let raw = unsafe { libc::socket(libc::AF_INET6, kind, libc::IPPROTO_ICMPV6) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: as above.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        // Replies pass, and nothing else: a set bit blocks a type.
        let mut filter = [u32::MAX; 8];
        filter[usize::from(REPLY >> 5)] &= !(1 << (REPLY & 31));
        let size = libc::socklen_t::try_from(size_of_val(&filter)).unwrap_or(32);
        // SAFETY: the filter lives through the call and its size is given.
        let done = unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::IPPROTO_ICMPV6,
                FILTER,
                filter.as_ptr().cast(),
                size,
            )
        };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        // What does not fit is not to be cut in pieces; answers to many at once are to fit.
        set(raw, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 1)?;
        set(raw, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, HOPS)?;
        set(raw, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER)?;
        Ok(Self {
            fd,
            bytes: Vec::new(),
        })
    }

    /// Asks an address of a device, with two numbers and so many bytes.
    pub(crate) fn ask(
        &mut self,
        to: Ipv6Addr,
        device: u32,
        (identifier, sequence): (u16, u16),
        size: u32,
    ) -> io::Result<()> {
        self.bytes.clear();
        // The kernel works out the checksum.
        self.bytes.extend_from_slice(&[REQUEST, 0, 0, 0]);
        self.bytes.extend_from_slice(&identifier.to_be_bytes());
        self.bytes.extend_from_slice(&sequence.to_be_bytes());
        self.bytes.resize(8 + usize::try_from(size).unwrap_or(0), 0);
        let address = libc::sockaddr_in6 {
            sin6_family: libc::sa_family_t::try_from(libc::AF_INET6).unwrap_or(10),
            sin6_port: 0,
            sin6_flowinfo: 0,
            sin6_addr: libc::in6_addr { s6_addr: to.octets() },
            sin6_scope_id: device,
        };
        let size = libc::socklen_t::try_from(size_of_val(&address)).unwrap_or(28);
        // SAFETY: buffer and address live through the call and their sizes are given.
        let sent = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                self.bytes.as_ptr().cast(),
                self.bytes.len(),
                0,
                (&raw const address).cast(),
                size,
            )
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// The next answer within a time.
    pub(crate) fn answer(&mut self, limit: Duration) -> io::Result<Option<Answer>> {
        if !readable(&self.fd, limit)? {
            return Ok(None);
        }
        let mut buffer = [0u8; ANSWER];
        // SAFETY: an address of zeros is one.
        let mut address: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
        let mut size = libc::socklen_t::try_from(size_of_val(&address)).unwrap_or(28);
        // SAFETY: buffer and address live through the call and their sizes are given.
        let got = unsafe {
            libc::recvfrom(
                self.fd.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
                (&raw mut address).cast(),
                &raw mut size,
            )
        };
        if got < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::WouldBlock {
                Ok(None)
            } else {
                Err(error)
            };
        }
        let number = |at: usize| u16::from_be_bytes([buffer[at], buffer[at + 1]]);
        Ok(Some((
            Ipv6Addr::from(address.sin6_addr.s6_addr),
            address.sin6_scope_id,
            (number(4), number(6)),
        )))
    }
}
