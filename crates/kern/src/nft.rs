//! nftables over raw netlink: the transport of `podway-nft`'s transactions, dumps, and word of foreign changes.
//!
//! [`NftSocket`] blocks, but never waits: the kernel works a batch off before `sendmsg` returns, so all answers
//! are there when we look for them. Only the last message asks for an acknowledgement; failures are always told.
//!
//! # Size
//! A transaction is sent in one piece, since only that is atomic. The kernel takes no piece larger than the
//! socket's send buffer, so the buffer is made to fit (`SO_SNDBUFFORCE`, needs CAP_NET_ADMIN in the initial user
//! namespace). Where that is refused, what exceeds `net.core.wmem_max` is an error ([`Errno::MSGSIZE`]) and never
//! split here: the caller knows an order in which parts are safe (fill new sets first, swap the rules last).
//!
//! # Owner
//! A table with [`TableFlags::owner`] belongs to the socket that made it and goes with it (unless `persist`), so
//! its user keeps one `NftSocket` for as long as it lives.

mod log;
mod monitor;

use std::io;
use std::os::fd::AsFd as _;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use podway_nft::encode::decode::{self, Replies, ReplyKind};
use podway_nft::encode::wire::{BATCH_BEGIN, BATCH_END, NLM_F_ACK, NLM_F_DUMP};
use podway_nft::encode::{self, number::msg};
use podway_nft::{
    ChainDump, CommitError, Errno, Name, Nftables, Op, Policy, RuleDump, TableDump, TableFlags, TableId,
    TableState, Transaction,
};

pub use log::{Logged, NftLog};
pub use monitor::{NftChange, NftMonitor};

/// Receive buffer in bytes: about 8,000 answers of failed messages. What does not fit is dropped by the kernel,
/// oldest kept, so the first failure is always seen.
const RECEIVE_BUFFER: usize = 8 << 20;
/// Largest datagram of a dump: one list of elements is at most 64 KiB.
const DATAGRAM: usize = 128 << 10;
/// What the kernel needs in the send buffer besides the bytes.
const SEND_OVERHEAD: usize = 4096;
/// Times that a dump is taken again because somebody changed the tables under it.
const DUMP_ATTEMPTS: usize = 16;
/// Name of the table in which shapes are tried out. It never becomes visible.
const PROBE_TABLE: Name = Name::literal("podway-probe");

/// A conversation with nf_tables in the network namespace in which it was opened.
#[derive(Debug)]
pub struct NftSocket {
    socket: Socket,
    port: u32,
    seq: u32,
    send_buffer: usize,
    buffer: Vec<u8>,
}

impl NftSocket {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        let port = socket.bind_auto()?.port_number();
        socket.connect(&SocketAddr::new(0, 0))?;
        // Failures come without the message that failed: they are found by number.
        socket.set_cap_ack(true)?;
        // Refused in a user namespace, where the default has to do.
        let _ = setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &RECEIVE_BUFFER);
        let send_buffer = getsockopt(&socket.as_fd(), sockopt::SndBuf)?;
        Ok(Self { socket, port, seq: 0, send_buffer, buffer: Vec::with_capacity(DATAGRAM) })
    }

    /// Port id: [`NftMonitor`] leaves out the changes of the port that it is told.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Which table flags this kernel has: tried with a table that the same transaction deletes again.
    pub fn probe_table_flags(&mut self) -> Result<TableFlags, CommitError> {
        let mut found = TableFlags::default();
        for flags in [TableFlags { owner: true, persist: false }, TableFlags { owner: true, persist: true }] {
            match self.probe(&TableState { flags, ..TableState::new(TableId::inet(PROBE_TABLE)) }) {
                Ok(()) => found = flags,
                Err(e) if matches!(e.errno(), Some(Errno::INVAL | Errno::OPNOTSUPP)) => break,
                Err(e) => return Err(e),
            }
        }
        Ok(found)
    }

    /// Whether the kernel takes objects of these shapes: makes the table under another name and deletes it in the
    /// same transaction. Base chains are tried with policy accept, because a chain is hooked in before its
    /// transaction is committed.
    pub fn probe(&mut self, shape: &TableState) -> Result<(), CommitError> {
        let mut table = shape.clone();
        table.id.name = PROBE_TABLE;
        for base in table.chains.iter_mut().filter_map(|chain| chain.base.as_mut()) {
            base.policy = Policy::Accept;
        }
        let mut transaction = Transaction::create(&table);
        transaction.push(Op::DeleteTable(table.id));
        self.commit(&transaction)
    }

    /// Names, families and flags of all tables in this namespace.
    pub fn tables(&mut self) -> Result<Vec<(TableId, TableFlags)>, CommitError> {
        let mut tables = Vec::new();
        self.consistently(|socket| {
            tables.clear();
            socket.dump(msg::GETTABLE, None, |family, attributes| {
                if let Some(id) = id_of(family, attributes) {
                    tables.push((id, decode::table_flags(attributes)));
                }
            })
        })?;
        Ok(tables)
    }

    /// Whether a table has this chain.
    pub fn has_chain(&mut self, table: &TableId, chain: &Name) -> Result<bool, CommitError> {
        self.query(msg::GETCHAIN, Some((table, Some(chain.as_str()))), |_| ())
    }

    /// All base chains in this namespace, without their rules, and the tables that they are in.
    pub fn base_chains(&mut self) -> Result<Vec<(TableId, ChainDump)>, CommitError> {
        let mut chains = Vec::new();
        self.consistently(|socket| {
            chains.clear();
            socket.dump(msg::GETCHAIN, None, |family, attributes| {
                let chain = decode::chain(attributes).filter(|chain| chain.base.is_some());
                chains.extend(id_of(family, attributes).zip(chain));
            })
        })?;
        Ok(chains)
    }

    /// The rules of one chain, in order; none without the chain.
    pub fn rules(&mut self, table: &TableId, chain: &Name) -> Result<Vec<RuleDump>, CommitError> {
        let mut rules = Vec::new();
        self.consistently(|socket| {
            rules.clear();
            // Table and chain of a rule have the numbers of table and set of a list of elements. Old kernels do not filter.
            let of = Some((table, Some(chain.as_str())));
            socket.dump(msg::GETRULE, of, |family, attributes| {
                let rule = decode::rule(attributes).filter(|(name, _)| *name == chain.as_str());
                if id_of(family, attributes).as_ref() == Some(table) {
                    rules.extend(rule.map(|(_, rule)| rule));
                }
            })
        })?;
        Ok(rules)
    }

    fn next_seq(&mut self) -> u32 {
        self.seq = self.seq.wrapping_add(1);
        self.seq
    }

    /// Makes the send buffer large enough for a datagram of `len` bytes, or says that it cannot be.
    fn reserve(&mut self, len: usize) -> Result<(), Errno> {
        let needed = len + SEND_OVERHEAD;
        if needed > self.send_buffer {
            let fd = self.socket.as_fd();
            // The kernel doubles what it is asked for; the result counts, not the answer.
            if setsockopt(&fd, sockopt::SndBufForce, &needed).is_err() {
                let _ = setsockopt(&fd, sockopt::SndBuf, &needed);
            }
            self.send_buffer = getsockopt(&fd, sockopt::SndBuf).unwrap_or(self.send_buffer);
        }
        if needed > self.send_buffer { Err(Errno::MSGSIZE) } else { Ok(()) }
    }

    fn send(&self, datagram: &[u8]) -> io::Result<()> {
        match self.socket.send(datagram, 0)? {
            sent if sent == datagram.len() => Ok(()),
            sent => Err(io::Error::other(format!("{sent} of {} bytes were taken", datagram.len()))),
        }
    }

    /// The next datagram, if there is one.
    fn receive(&mut self) -> io::Result<Option<&[u8]>> {
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, libc::MSG_DONTWAIT) {
                Ok(_) => return Ok(Some(&self.buffer)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                // Answers were dropped, but the first ones wait to be read.
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn no_answer() -> CommitError {
        CommitError::Io(io::Error::new(io::ErrorKind::UnexpectedEof, "the kernel did not answer"))
    }

    /// Asks for one object. `Ok(false)`: there is none.
    fn query(
        &mut self,
        kind: u8,
        of: Option<(&TableId, Option<&str>)>,
        mut each: impl FnMut(&[u8]),
    ) -> Result<bool, CommitError> {
        let seq = self.next_seq();
        self.send(&encode::request(kind, NLM_F_ACK, seq, of))?;
        let mut found = false;
        while let Some(datagram) = self.receive()? {
            for reply in Replies(datagram).filter(|reply| reply.seq == seq) {
                match reply.kind {
                    ReplyKind::Object { attributes, .. } => {
                        found = true;
                        each(attributes);
                    }
                    ReplyKind::Error(0) => return Ok(found),
                    ReplyKind::Error(errno) if Errno(errno) == Errno::NOENT => return Ok(false),
                    ReplyKind::Error(errno) => {
                        return Err(CommitError::Batch { ops: 0, errno: Errno(errno) });
                    }
                    ReplyKind::Done(_) | ReplyKind::Other => {}
                }
            }
        }
        Err(Self::no_answer())
    }

    /// Asks for all objects of a kind. [`Consistency::Torn`]: the tables changed under it.
    fn dump(
        &mut self,
        kind: u8,
        of: Option<(&TableId, Option<&str>)>,
        mut each: impl FnMut(u8, &[u8]),
    ) -> Result<Consistency, CommitError> {
        let seq = self.next_seq();
        self.send(&encode::request(kind, NLM_F_DUMP, seq, of))?;
        let mut consistency = Consistency::Whole;
        while let Some(datagram) = self.receive()? {
            for reply in Replies(datagram).filter(|reply| reply.seq == seq) {
                match reply.kind {
                    ReplyKind::Object { family, attributes, interrupted, .. } => {
                        if interrupted {
                            consistency = Consistency::Torn;
                        }
                        each(family, attributes);
                    }
                    // A table or set that went away between two requests.
                    ReplyKind::Error(errno) | ReplyKind::Done(errno)
                        if matches!(Errno(errno), Errno::NOENT | Errno::INTR) =>
                    {
                        return Ok(Consistency::Torn);
                    }
                    ReplyKind::Error(0) | ReplyKind::Done(0) => return Ok(consistency),
                    ReplyKind::Error(errno) | ReplyKind::Done(errno) => {
                        return Err(CommitError::Batch { ops: 0, errno: Errno(errno) });
                    }
                    ReplyKind::Other => {}
                }
            }
        }
        Err(Self::no_answer())
    }

    /// Repeats `look` until nothing changed while it looked.
    fn consistently(
        &mut self,
        mut look: impl FnMut(&mut Self) -> Result<Consistency, CommitError>,
    ) -> Result<(), CommitError> {
        for _ in 0..DUMP_ATTEMPTS {
            let before = self.generation()?;
            if look(self)? == Consistency::Whole && self.generation()? == before {
                return Ok(());
            }
        }
        Err(CommitError::Batch { ops: 0, errno: Errno::INTR })
    }

    fn look_at(&mut self, id: &TableId) -> Result<(Option<TableDump>, Consistency), CommitError> {
        let mut flags = TableFlags::default();
        if !self.query(msg::GETTABLE, Some((id, None)), |table| flags = decode::table_flags(table))? {
            return Ok((None, Consistency::Whole));
        }
        let mut dump = TableDump { id: id.clone(), flags, chains: Vec::new(), sets: Vec::new() };
        let of = Some((id, None));
        // Old kernels do not filter by table.
        let ours = |family, attributes: &[u8]| id_of(family, attributes).as_ref() == Some(id);
        let mut whole = self.dump(msg::GETCHAIN, of, |family, chain| {
            dump.chains.extend(decode::chain(chain).filter(|_| ours(family, chain)));
        })?;
        whole = whole.and(self.dump(msg::GETRULE, of, |family, rule| {
            let Some((chain, rule)) = decode::rule(rule).filter(|_| ours(family, rule)) else { return };
            if let Some(chain) = dump.chains.iter_mut().find(|c| c.name.as_str() == chain) {
                chain.rules.push(rule);
            }
        })?);
        whole = whole.and(self.dump(msg::GETSET, of, |family, set| {
            dump.sets.extend(decode::set(set).filter(|_| ours(family, set)));
        })?);
        for set in &mut dump.sets {
            let mut raw = Vec::new();
            let of = Some((id, Some(set.name.as_str())));
            whole = whole.and(self.dump(msg::GETSETELEM, of, |_, list| raw.extend(decode::elements(list)))?);
            decode::fill(set, raw);
        }
        Ok((Some(dump), whole))
    }
}

impl Nftables for NftSocket {
    fn commit(&mut self, transaction: &Transaction) -> Result<(), CommitError> {
        if transaction.is_empty() {
            return Ok(());
        }
        let ops = transaction.ops.len();
        let first = self.next_seq();
        let mut encoded = encode::encode(transaction, first.wrapping_add(1));
        let Some(last_seq) = encoded.ask_for_acknowledgement() else { return Ok(()) };
        let mut datagram = encode::batch_mark(BATCH_BEGIN, 0, first);
        datagram.extend_from_slice(&encoded.bytes);
        self.seq = last_seq.wrapping_add(1);
        datagram.extend_from_slice(&encode::batch_mark(BATCH_END, 0, self.seq));
        self.reserve(datagram.len()).map_err(|errno| CommitError::Batch { ops, errno })?;
        self.send(&datagram)?;

        let mut failed = None;
        let mut acknowledged = false;
        while let Some(bytes) = self.receive()? {
            for reply in Replies(bytes) {
                let ReplyKind::Error(errno) = reply.kind else { continue };
                let index = usize::try_from(reply.seq.wrapping_sub(first)).unwrap_or(usize::MAX);
                match (errno, index) {
                    (0, _) => acknowledged |= reply.seq == last_seq,
                    // The batch as a whole: no privilege, or the commit itself.
                    (_, 0) => failed = failed.or(Some(CommitError::Batch { ops, errno: Errno(errno) })),
                    (_, index) => {
                        let Some(message) = encoded.messages.get(index - 1) else { continue };
                        let Some(op) = transaction.ops.get(message.op) else { continue };
                        let (object, errno) = (op.to_string(), Errno(errno));
                        failed = failed.or(Some(CommitError::Refused { op: message.op, object, errno }));
                    }
                }
            }
        }
        match failed {
            Some(failure) => Err(failure),
            None if acknowledged => Ok(()),
            None => Err(Self::no_answer()),
        }
    }

    fn dump(&mut self, table: &TableId) -> Result<Option<TableDump>, CommitError> {
        let mut found = None;
        self.consistently(|socket| {
            let (dump, consistency) = socket.look_at(table)?;
            found = dump;
            Ok(consistency)
        })?;
        Ok(found)
    }

    fn generation(&mut self) -> Result<u32, CommitError> {
        let mut generation = None;
        self.query(msg::GETGEN, None, |attributes| generation = decode::generation(attributes))?;
        generation.ok_or_else(Self::no_answer)
    }
}

/// Whether the tables stood still during a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Consistency {
    Whole,
    Torn,
}

impl Consistency {
    fn and(self, other: Self) -> Self {
        if self == Self::Whole { other } else { self }
    }
}

fn id_of(family: u8, attributes: &[u8]) -> Option<TableId> {
    let (family, name) = decode::table_of(family, attributes)?;
    Some(TableId { family, name: Name::new(name).ok()? })
}
