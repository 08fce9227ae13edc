//! Ethernet in userspace (tun(4)), and UDP in large pieces (udp(7): UDP_SEGMENT, UDP_GRO).

use std::fs::{File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};

/// Opens a device of Ethernet frames that is made in the thread's namespace, and goes when it is closed. Each frame has the
/// kernel's note before it; TCP comes in large pieces.
pub(crate) fn tap(name: &str) -> io::Result<File> {
    const SET_DEVICE: libc::c_ulong = 0x4004_54ca;
    const SET_OFFLOAD: libc::c_ulong = 0x4004_54d0;
    // Frames, without a header of the kernel's own, with the note.
    const FLAGS: i16 = 0x0002 | 0x1000 | 0x4000;
    // Checksums, TCP over IPv4 and IPv6.
    const OFFLOAD: libc::c_ulong = 1 | 2 | 4;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    // struct ifreq: name, then the flags in a union.
    let mut request = [0u8; 40];
    request[..name.len().min(15)].copy_from_slice(&name.as_bytes()[..name.len().min(15)]);
    request[16..18].copy_from_slice(&FLAGS.to_ne_bytes());
    // SAFETY: the request lives through the call and is as large as struct ifreq.
    if unsafe { libc::ioctl(file.as_raw_fd(), SET_DEVICE as _, request.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: takes an integer.
    if unsafe { libc::ioctl(file.as_raw_fd(), SET_OFFLOAD as _, OFFLOAD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

/// Waits until something can be read, for a bounded time.
pub(crate) fn readable(file: &impl AsRawFd, limit: Duration) -> io::Result<bool> {
    // SAFETY: the descriptor is open as long as its owner, which is borrowed through the call.
    let fd = unsafe { rustix::fd::BorrowedFd::borrow_raw(file.as_raw_fd()) };
    let limit = Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    };
    match rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn set(fd: RawFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of::<i32>()).unwrap_or(4);
    // SAFETY: the number lives through the call and its size is given.
    if unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), size) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

const SEGMENT: i32 = 103;
const GRO: i32 = 104;

/// A socket at a port of the thread's namespace that hands over in one piece what came so.
pub(crate) fn socket(port: u16) -> io::Result<UdpSocket> {
    const BUFFER: i32 = 8 << 20;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    socket.set_nonblocking(true)?;
    let fd = socket.as_raw_fd();
    set(fd, libc::SOL_UDP, GRO, 1)?;
    // A router may cut what is too large for it.
    set(
        fd,
        libc::IPPROTO_IP,
        libc::IP_MTU_DISCOVER,
        libc::IP_PMTUDISC_DONT,
    )?;
    set(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER)?;
    set(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, BUFFER)?;
    Ok(socket)
}

/// Room for one note of the kernel with a number.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// Sends datagrams of `size` bytes each, the last may be shorter, in one call. 64 KiB at most.
pub(crate) fn send(socket: &UdpSocket, bytes: &[u8], size: usize, to: SocketAddrV4) -> io::Result<()> {
    let address = libc::sockaddr_in {
        sin_family: libc::sa_family_t::try_from(libc::AF_INET).unwrap_or(2),
        sin_port: to.port().to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes(to.ip().octets()),
        },
        sin_zero: [0; 8],
    };
    let mut part = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let mut control = Control([0; 64]);
    // SAFETY: a message of zeros is an empty one.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = (&raw const address).cast_mut().cast();
    message.msg_namelen = u32::try_from(size_of_val(&address)).unwrap_or(16);
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if bytes.len() > size {
        message.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: works out sizes alone.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(2) } as _;
        // SAFETY: the control buffer is aligned and has room for one header and two bytes.
        unsafe {
            let head = libc::CMSG_FIRSTHDR(&raw const message);
            (*head).cmsg_level = libc::SOL_UDP;
            (*head).cmsg_type = SEGMENT;
            (*head).cmsg_len = libc::CMSG_LEN(2) as _;
            let size = u16::try_from(size).unwrap_or(u16::MAX);
            libc::CMSG_DATA(head).cast::<u16>().write_unaligned(size);
        }
    }
    // SAFETY: the message's parts live through the call.
    if unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Receives what is there: bytes, who sent them, and the size of each datagram in them.
pub(crate) fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, SocketAddrV4, usize)> {
    // SAFETY: an address of zeros is one.
    let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let mut control = Control([0; 64]);
    // SAFETY: a message of zeros is an empty one.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = (&raw mut address).cast();
    message.msg_namelen = u32::try_from(size_of_val(&address)).unwrap_or(16);
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len() as _;
    // SAFETY: the message's parts live through the call.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    let mut size = got;
    // SAFETY: the kernel filled the control buffer as far as it says.
    unsafe {
        let mut head = libc::CMSG_FIRSTHDR(&raw const message);
        while !head.is_null() {
            if (*head).cmsg_level == libc::SOL_UDP && (*head).cmsg_type == GRO {
                let each = libc::CMSG_DATA(head).cast::<i32>().read_unaligned();
                size = usize::try_from(each).unwrap_or(got);
            }
            head = libc::CMSG_NXTHDR(&raw const message, head);
        }
    }
    let ip = Ipv4Addr::from(address.sin_addr.s_addr.to_ne_bytes());
    Ok((
        got,
        SocketAddrV4::new(ip, u16::from_be(address.sin_port)),
        size.max(1),
    ))
}
