//! What a BGP socket needs and the standard library has no word for: signatures (RFC 2385), a least TTL (RFC 5082), TTL
//! and the class of its packets.
//!
//! ```text
//!  struct tcp_md5sig { sockaddr_storage addr · flags u8 · prefixlen u8 · keylen u16 · ifindex i32 · key [u8; 80] }
//! ```
//!
//! A listener holds the keys of everybody who may connect; a connection that it accepts keeps the one that it began
//! with. Options of a listener (TTL, class) are those of the connections that it accepts.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd as _};

use ipnet::IpNet;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockaddrLike as _, SockaddrStorage, getsockname};

use crate::{KernelError, sockaddr};

/// The longest key (`TCP_MD5SIG_MAXKEYLEN` of `linux/tcp.h`).
pub const LONGEST_KEY: usize = 80;

/// `TCP_MD5SIG_EXT` of `linux/tcp.h`: with a prefix length.
const TCP_MD5SIG_EXT: libc::c_int = 32;
const TCP_MD5SIG_FLAG_PREFIX: u8 = 1;
/// `IPV6_MINHOPCOUNT` of `linux/in6.h`.
const IPV6_MINHOPCOUNT: libc::c_int = 73;

#[repr(C, align(8))]
struct Md5 {
    address: [u8; 128],
    flags: u8,
    prefix_len: u8,
    key_len: u16,
    ifindex: i32,
    key: [u8; LONGEST_KEY],
}

/// Sets the key that segments from and to `peers` are signed with; an empty one takes it away. Segments without a
/// signature, or with a wrong one, are dropped by the kernel. The most specific prefix counts.
///
/// # Errors
/// The key is too long, the kernel has no TCP MD5, or the socket holds as many keys as it may (`net.core.optmem_max`).
pub fn set_md5_key(socket: impl AsFd, peers: IpNet, key: &[u8]) -> Result<(), KernelError> {
    let attempted = || format!("set the TCP MD5 key for {peers}");
    if key.len() > LONGEST_KEY {
        return Err(KernelError::refused(attempted(), Errno::EINVAL));
    }
    let fd = socket.as_fd();
    let own = getsockname::<SockaddrStorage>(fd.as_raw_fd())
        .map_err(|errno| KernelError::refused(attempted(), errno))?;
    // A socket of IPv6 that serves IPv4 too knows such peers by their mapped address; the length is that of IPv4.
    let address = match peers.trunc().network() {
        IpAddr::V4(v4) if own.family() == Some(AddressFamily::Inet6) => IpAddr::V6(v4.to_ipv6_mapped()),
        address => address,
    };
    let mut padded = [0; LONGEST_KEY];
    padded[..key.len()].copy_from_slice(key);
    let value = Md5 {
        address: socket_address(address),
        flags: TCP_MD5SIG_FLAG_PREFIX,
        prefix_len: peers.prefix_len(),
        key_len: u16::try_from(key.len()).unwrap_or(u16::MAX),
        ifindex: 0,
        key: padded,
    };
    match set(fd, libc::IPPROTO_TCP, TCP_MD5SIG_EXT, &value) {
        // What is not there need not be taken away.
        Err(Errno::ENOENT) if key.is_empty() => Ok(()),
        result => result.map_err(|errno| KernelError::refused(attempted(), errno)),
    }
}

/// `struct sockaddr_storage`, port 0.
fn socket_address(address: IpAddr) -> [u8; 128] {
    let bytes = sockaddr::to_bytes(SocketAddr::new(address, 0));
    let mut out = [0; 128];
    out[..bytes.len()].copy_from_slice(&bytes);
    out
}

/// TTL, or hop limit, of packets that the socket sends.
///
/// # Errors
/// The kernel refuses.
pub fn set_ttl(socket: impl AsFd, v4: bool, ttl: u8) -> Result<(), KernelError> {
    let (level, name) =
        if v4 { (libc::IPPROTO_IP, libc::IP_TTL) } else { (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS) };
    number(socket, level, name, ttl).map_err(|errno| KernelError::refused("set the TTL of a socket", errno))
}

/// The least TTL, or hop limit, that a received packet may have; others are dropped (RFC 5082).
///
/// # Errors
/// The kernel refuses.
pub fn set_least_ttl(socket: impl AsFd, v4: bool, ttl: u8) -> Result<(), KernelError> {
    let (level, name) =
        if v4 { (libc::IPPROTO_IP, libc::IP_MINTTL) } else { (libc::IPPROTO_IPV6, IPV6_MINHOPCOUNT) };
    number(socket, level, name, ttl)
        .map_err(|errno| KernelError::refused("set the least TTL of a socket", errno))
}

/// The differentiated services code point of packets that the socket sends (RFC 2474): six bits.
///
/// # Errors
/// The kernel refuses.
pub fn set_dscp(socket: impl AsFd, v4: bool, dscp: u8) -> Result<(), KernelError> {
    let (level, name) =
        if v4 { (libc::IPPROTO_IP, libc::IP_TOS) } else { (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) };
    number(socket, level, name, dscp << 2)
        .map_err(|errno| KernelError::refused("set the DSCP of a socket", errno))
}

fn number(socket: impl AsFd, level: libc::c_int, name: libc::c_int, value: u8) -> nix::Result<()> {
    set(socket, level, name, &libc::c_int::from(value))
}

#[allow(unsafe_code, reason = "setsockopt with values that nix has no type for")]
pub(crate) fn set<T>(socket: impl AsFd, level: libc::c_int, name: libc::c_int, value: &T) -> nix::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).unwrap_or(libc::socklen_t::MAX);
    // SAFETY: the kernel reads `length` octets, the size of what `value` points to; the descriptor is open.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast::<libc::c_void>(),
            length,
        )
    };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// A connection to a listener, both with a key (none: without); whether something gets through.
    fn talks(listen: &str, connect: &str, theirs: Option<&[u8]>, ours: Option<&[u8]>) -> bool {
        let listener = TcpListener::bind(listen).unwrap();
        let connect: SocketAddr = connect.parse().unwrap();
        let peers = IpNet::from(connect.ip());
        let peers = IpNet::new(peers.addr(), peers.prefix_len() - 8).unwrap();
        if let Some(key) = theirs {
            set_md5_key(&listener, peers, key).unwrap();
        }
        listener.set_nonblocking(true).unwrap();
        let domain = if connect.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = nix::sys::socket::SockFlag::SOCK_NONBLOCK;
        let socket =
            nix::sys::socket::socket(domain, nix::sys::socket::SockType::Stream, flags, None).unwrap();
        if let Some(key) = ours {
            set_md5_key(&socket, IpNet::from(connect.ip()), key).unwrap();
        }
        let target =
            SockaddrStorage::from(SocketAddr::new(connect.ip(), listener.local_addr().unwrap().port()));
        let _ = nix::sys::socket::connect(socket.as_raw_fd(), &target);
        let mut stream = TcpStream::from(socket);
        // On loopback a SYN that is accepted is accepted before connect returns.
        let Ok((mut accepted, _)) = listener.accept() else { return false };
        stream.set_nonblocking(false).unwrap();
        accepted.set_nonblocking(false).unwrap();
        stream.write_all(b"x").unwrap();
        accepted.read_exact(&mut [0]).unwrap();
        true
    }

    #[test]
    fn only_who_signs_with_the_key_gets_through() {
        for (listen, connect) in
            [("127.0.0.1:0", "127.0.0.1:0"), ("[::1]:0", "[::1]:0"), ("[::]:0", "127.0.0.1:0")]
        {
            assert!(talks(listen, connect, Some(b"secret"), Some(b"secret")), "{listen}");
            assert!(!talks(listen, connect, Some(b"secret"), Some(b"Secret")), "{listen}");
            assert!(!talks(listen, connect, Some(b"secret"), None), "{listen}");
            assert!(talks(listen, connect, None, None), "{listen}");
        }
    }

    #[test]
    fn a_key_is_taken_away_and_one_that_is_too_long_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let net: IpNet = "127.0.0.0/8".parse().unwrap();
        set_md5_key(&listener, net, b"secret").unwrap();
        set_md5_key(&listener, net, b"").unwrap();
        set_md5_key(&listener, net, b"").unwrap();
        TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let error = set_md5_key(&listener, net, &[1; 81]).unwrap_err();
        assert!(error.to_string().contains("127.0.0.0/8"), "{error}");
    }

    #[test]
    fn packets_from_too_far_are_dropped() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            listener.set_nonblocking(true).unwrap();
            let v4 = listener.local_addr().unwrap().is_ipv4();
            set_least_ttl(&listener, v4, 255).unwrap();
            set_dscp(&listener, v4, 48).unwrap();
            let connect = |ttl| {
                let domain = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
                let flags = nix::sys::socket::SockFlag::SOCK_NONBLOCK;
                let socket =
                    nix::sys::socket::socket(domain, nix::sys::socket::SockType::Stream, flags, None)
                        .unwrap();
                set_ttl(&socket, v4, ttl).unwrap();
                let target = SockaddrStorage::from(listener.local_addr().unwrap());
                let _ = nix::sys::socket::connect(socket.as_raw_fd(), &target);
                let accepted = listener.accept().is_ok();
                drop(socket);
                accepted
            };
            assert!(!connect(254), "{address}");
            assert!(connect(255), "{address}");
        }
    }
}
