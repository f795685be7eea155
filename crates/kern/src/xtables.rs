//! The rules of `iptables-legacy`, as octets: for finding names in them. Nothing is written, and no module of the kernel is
//! loaded by looking.
//!
//! ```text
//!  struct ipt_getinfo     { name [u8; 32] · valid_hooks u32 · hook_entry [u32; 5] · underflow [u32; 5] · num_entries u32
//!                           · size u32 }
//!  struct ipt_get_entries { name [u8; 32] · size u32 · padding [u8; 4] · entries [u8; size] }
//! ```
//!
//! Those of IPv6 have the same form.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::KernelError;

/// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO`.
const GET_INFO: libc::c_int = 64;
/// `IPT_SO_GET_ENTRIES` and `IP6T_SO_GET_ENTRIES`.
const GET_ENTRIES: libc::c_int = 65;
/// `sizeof(struct ipt_getinfo)`; its last member is the size of the entries.
const INFO: usize = 84;
/// `offsetof(struct ipt_get_entries, entrytable)`.
const ENTRIES: usize = 40;
/// Where that has the size.
const SIZE: usize = 32;
/// Times that a table is read again because somebody changed it under us.
const ATTEMPTS: usize = 16;

/// The rules of table `nat` in the calling thread's network namespace; none where nobody uses it.
///
/// # Errors
/// The kernel refuses: no privilege.
pub fn legacy_nat(v6: bool) -> Result<Option<Vec<u8>>, KernelError> {
    let (path, family, level) = if v6 {
        ("/proc/thread-self/net/ip6_tables_names", AddressFamily::Inet6, libc::IPPROTO_IPV6)
    } else {
        ("/proc/thread-self/net/ip_tables_names", AddressFamily::Inet, libc::IPPROTO_IP)
    };
    // A table is there once somebody has asked for it, and asking makes it.
    match fs::read_to_string(path) {
        Ok(names) if names.lines().any(|name| name == "nat") => {}
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(KernelError::io(format!("read {path}"), e));
        }
        _ => return Ok(None),
    }
    let refused = |errno| KernelError::refused("read table nat of iptables-legacy", errno);
    let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).map_err(refused)?;
    for _ in 0..ATTEMPTS {
        let mut info = named(INFO);
        ask(&socket, level, GET_INFO, &mut info).map_err(refused)?;
        let size: [u8; 4] = info[INFO - 4..].try_into().expect("four octets");
        let mut entries = named(ENTRIES + usize::try_from(u32::from_ne_bytes(size)).unwrap_or(0));
        entries[SIZE..SIZE + 4].copy_from_slice(&size);
        match ask(&socket, level, GET_ENTRIES, &mut entries) {
            // It has another size by now.
            Err(Errno::EAGAIN) => {}
            Err(errno) => return Err(refused(errno)),
            Ok(()) => return Ok(Some(entries.split_off(ENTRIES))),
        }
    }
    Err(refused(Errno::EAGAIN))
}

/// Octets that begin with the table's name.
fn named(length: usize) -> Vec<u8> {
    let mut all = vec![0; length];
    all[..3].copy_from_slice(b"nat");
    all
}

#[allow(unsafe_code, reason = "getsockopt of options that nix does not know")]
fn ask(socket: impl AsFd, level: libc::c_int, name: libc::c_int, buffer: &mut [u8]) -> nix::Result<()> {
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(|_| Errno::EMSGSIZE)?;
    // SAFETY: the kernel writes at most `length` octets, the size of the buffer; the descriptor is open.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            buffer.as_mut_ptr().cast::<libc::c_void>(),
            &raw mut length,
        )
    };
    Errno::result(result).map(drop)
}
