//! Asks a node's kernel for a sign of life: ICMP and ICMPv6 echo (RFC 792, RFC 4443 section 4).
//!
//! ```text
//!  type u8 · code u8 · checksum u16 · identifier u16 · sequence u16 · cookie [u8; 8]
//! ```
//!
//! A raw socket hears all replies of its namespace, so the kernel is told to pass on replies only, and a reply counts if
//! it carries our identifier and cookie. The answer is the kernel's: it says nothing of any daemon.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recvfrom, sendto, socket,
};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::{Errno, KernelError, tcp};

/// `ICMP_FILTER` of `linux/icmp.h`, at level `SOL_RAW`: a set bit keeps messages of that type away.
const ICMP_FILTER: libc::c_int = 1;
const SOL_RAW: libc::c_int = 255;
/// `ICMPV6_FILTER` of `linux/icmpv6.h`.
const ICMPV6_FILTER: libc::c_int = 1;

const V4: (u8, u8) = (8, 0);
const V6: (u8, u8) = (128, 129);
const LEN: usize = 16;

/// A socket for echoes of one family, in the network namespace in which it was opened. It never blocks.
#[derive(Debug)]
pub struct Echo {
    socket: OwnedFd,
    v4: bool,
    identifier: u16,
    cookie: [u8; 8],
}

impl Echo {
    /// Opens one. `cookie` tells our echoes from those of others: any number that they do not guess.
    ///
    /// # Errors
    /// The process may not (`CAP_NET_RAW`), or the kernel has no such family.
    pub fn open(v4: bool, cookie: u64) -> Result<Self, KernelError> {
        let attempted = "open a raw socket for echoes";
        let refused = |errno| KernelError::refused(attempted, errno);
        let (family, protocol) = match v4 {
            true => (AddressFamily::Inet, SockProtocol::Icmp),
            false => (AddressFamily::Inet6, SockProtocol::IcmpV6),
        };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(family, SockType::Raw, flags, protocol).map_err(refused)?;
        match v4 {
            true => tcp::set(&socket, SOL_RAW, ICMP_FILTER, &!(1u32 << V4.1)),
            false => {
                let mut blocked = [u32::MAX; 8];
                blocked[usize::from(V6.1 >> 5)] &= !(1 << (V6.1 & 31));
                tcp::set(&socket, libc::IPPROTO_ICMPV6, ICMPV6_FILTER, &blocked)
            }
        }
        .map_err(refused)?;
        let cookie = cookie.to_be_bytes();
        let identifier = u16::from_be_bytes([cookie[0], cookie[1]]);
        Ok(Self { socket, v4, identifier, cookie })
    }

    /// Asks once.
    ///
    /// # Errors
    /// There is no way there, or the socket is full: that question is lost.
    pub fn ask(&self, to: IpAddr, number: u16) -> io::Result<()> {
        let mut message = [0; LEN];
        message[0] = if self.v4 { V4.0 } else { V6.0 };
        message[4..6].copy_from_slice(&self.identifier.to_be_bytes());
        message[6..8].copy_from_slice(&number.to_be_bytes());
        message[8..].copy_from_slice(&self.cookie);
        if self.v4 {
            // ICMPv6's checksum is the kernel's work (RFC 3542 section 3.1).
            let sum = checksum(&message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        let to = SockaddrStorage::from(SocketAddr::new(to, 0));
        sendto(self.socket.as_raw_fd(), &message, &to, MsgFlags::MSG_DONTWAIT)?;
        Ok(())
    }

    /// The next answer that waits: who gave it, and to which question; none: no more now.
    pub fn answer(&self) -> Option<(IpAddr, u16)> {
        loop {
            let mut buffer = [0; 256];
            let (length, from) = match recvfrom::<SockaddrStorage>(self.socket.as_raw_fd(), &mut buffer) {
                Ok((length, Some(from))) => (length, from),
                Err(Errno::EINTR) | Ok((_, None)) => continue,
                // An error that waited at the socket is taken with it; whoever has nothing more says so.
                Err(Errno::EAGAIN) => return None,
                Err(_) => continue,
            };
            let v4 = from.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            let from = v4.or_else(|| from.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())));
            let number = self.read(buffer.get(..length).unwrap_or_default());
            if let (Some(from), Some(number)) = (from, number) {
                return Some((from, number));
            }
        }
    }

    /// The number of a reply to us.
    fn read(&self, packet: &[u8]) -> Option<u16> {
        // A raw socket of IPv4 delivers the IP header too: its length in words is in the low half of its first octet.
        let header = if self.v4 { usize::from(packet.first()? & 0x0f) * 4 } else { 0 };
        let message = packet.get(header..)?.first_chunk::<LEN>()?;
        let reply = if self.v4 { V4.1 } else { V6.1 };
        let ours = message[0] == reply
            && message[1] == 0
            && message[4..6] == self.identifier.to_be_bytes()
            && message[8..] == self.cookie;
        ours.then(|| u16::from_be_bytes([message[6], message[7]]))
    }
}

/// The same within a tokio runtime: answers are waited for.
#[derive(Debug)]
pub struct AsyncEcho(AsyncFd<Echo>);

impl AsyncEcho {
    /// Opens one; see [`Echo::open`]. Only inside of a runtime with I/O.
    ///
    /// # Errors
    /// The process may not, or the runtime cannot watch one more socket.
    #[allow(unsafe_code, reason = "tokio wants the promise that the descriptor stays open")]
    pub fn open(v4: bool, cookie: u64) -> Result<Self, KernelError> {
        let echo = Echo::open(v4, cookie)?;
        // SAFETY: the descriptor belongs to `Echo`, which neither closes nor replaces it before it is dropped, and
        // `AsyncFd` owns the `Echo`.
        let registered = unsafe { AsyncFd::register_with_interest(echo, Interest::READABLE) };
        registered.map(Self).map_err(|error| {
            let errno = io::Error::from(error).raw_os_error().map_or(Errno::EIO, Errno::from_raw);
            KernelError::refused("watch a socket for echoes", errno)
        })
    }

    /// To ask, and to take answers.
    pub fn echo(&self) -> &Echo {
        self.0.get_ref()
    }

    /// Waits until something is at the socket; whoever is told takes until there is no more. Cancel-safe.
    pub async fn ready(&self) {
        match self.0.readable().await {
            Ok(mut readiness) => readiness.clear_ready(),
            // The runtime ends.
            Err(_) => std::future::pending().await,
        }
    }
}

impl AsFd for Echo {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Echo {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8; LEN]) -> u16 {
    let words = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;
    use crate::ns::in_new_netns;

    /// The next answer; none: there is none within a second.
    fn wait(echo: &Echo, patience: Duration) -> Option<(IpAddr, u16)> {
        let begin = Instant::now();
        while begin.elapsed() < patience {
            if let Some(answer) = echo.answer() {
                return Some(answer);
            }
            let mut fds = [PollFd::new(echo.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::from(50u8)).unwrap();
        }
        None
    }

    #[test]
    fn a_kernel_answers_its_asker_only_and_a_filter_silences_it() {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIP a_kernel_answers_its_asker_only_and_a_filter_silences_it: needs root");
            return;
        }
        in_new_netns(|| {
            let sh =
                |script: &str| assert!(Command::new("sh").args(["-c", script]).status().unwrap().success());
            sh("ip link set lo up");
            for (v4, to) in [(true, "127.0.0.1"), (false, "::1")] {
                let to: IpAddr = to.parse().unwrap();
                let (one, other) =
                    (Echo::open(v4, 0x0102_0304_0506_0708).unwrap(), Echo::open(v4, 9).unwrap());
                for number in [0, 7, u16::MAX] {
                    one.ask(to, number).unwrap();
                    assert_eq!(wait(&one, Duration::from_secs(30)), Some((to, number)));
                }
                assert_eq!(other.answer(), None, "the replies went by it, and were not its own");
            }
            sh("sysctl -qw net.ipv4.icmp_echo_ignore_all=1 net.ipv6.icmp.echo_ignore_all=1");
            for (v4, to) in [(true, "127.0.0.1"), (false, "::1")] {
                let echo = Echo::open(v4, 5).unwrap();
                echo.ask(to.parse().unwrap(), 1).unwrap();
                assert_eq!(wait(&echo, Duration::from_millis(300)), None);
                // Without a way there the question is lost, and the asker is told.
                assert!(echo.ask(if v4 { "192.0.2.1" } else { "2001:db8::1" }.parse().unwrap(), 2).is_err());
            }
        })
        .unwrap();
    }

    #[test]
    fn what_is_no_reply_of_ours_is_not_read() {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIP what_is_no_reply_of_ours_is_not_read: needs root");
            return;
        }
        let echo = Echo::open(true, 0x0102_0304_0506_0708).unwrap();
        let mut good = vec![0x45; 20];
        good.extend([0, 0, 0, 0, 1, 2, 0x10, 0x20, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(echo.read(&good), Some(0x1020));
        for length in 0..good.len() {
            assert_eq!(echo.read(&good[..length]), None, "{length} octets");
        }
        for at in [20, 21, 24, 25, 28, 35] {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            assert_eq!(echo.read(&bad), None, "octet {at}");
        }
    }
}
