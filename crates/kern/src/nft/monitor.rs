//! What others do to the tables, as an async stream.
//!
//! Notifications are hints to look again ([`podway_nft::Nftables::dump`]), not a log to replay.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd as _;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};
use nix::sys::socket::{setsockopt, sockopt};
use podway_nft::TableId;
use podway_nft::encode::decode::{self, Replies};

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;
/// Receive buffer in bytes. When it is full the kernel drops notifications, and we say so.
const RECEIVE_BUFFER: usize = 8 << 20;

/// Word of a change that somebody else made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NftChange {
    /// Something in (or of) this table was added, changed or deleted.
    Table(TableId),
    /// The kernel dropped notifications: look at everything again.
    Overrun,
}

/// Listens to changes in the network namespace in which it was opened.
pub struct NftMonitor {
    socket: TokioSocket,
    own: u32,
    waiting: VecDeque<NftChange>,
}

impl NftMonitor {
    /// Opens it in the calling thread's network namespace, inside a tokio runtime. Changes that the socket with
    /// port id `own` ([`super::NftSocket::port`]) makes are left out.
    pub fn open(own: u32) -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        socket.socket_mut().add_membership(GROUP)?;
        // Refused in a user namespace, where the default has to do.
        let _ = setsockopt(&socket.socket_ref().as_fd(), sockopt::RcvBufForce, &RECEIVE_BUFFER);
        Ok(Self { socket, own, waiting: VecDeque::new() })
    }

    /// The next change. Many changes of one table that come together are told once. Cancel safe.
    pub async fn next(&mut self) -> io::Result<NftChange> {
        loop {
            if let Some(change) = self.waiting.pop_front() {
                return Ok(change);
            }
            match self.socket.recv_from_full().await {
                Ok((datagram, _)) => self.read(&datagram),
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => return Ok(NftChange::Overrun),
                Err(e) => return Err(e),
            }
        }
    }

    fn read(&mut self, datagram: &[u8]) {
        for reply in Replies(datagram).filter(|reply| reply.port != self.own) {
            if let Some(table) = decode::changed_table(&reply) {
                let change = NftChange::Table(table);
                if !self.waiting.contains(&change) {
                    self.waiting.push_back(change);
                }
            }
        }
    }
}
