//! A blocking netlink socket: many messages in one system call, and dumps.
//!
//! The kernel works a whole datagram off before `sendmsg` returns, and answers each message that fails, whether
//! or not it asks for an answer. So only the last message of a batch asks for an acknowledgement: whatever has
//! not failed until that one comes has succeeded. The answers of a batch must fit into the receive buffer, or
//! some are lost; [`BATCH_MESSAGES`] and [`RECEIVE_BUFFER`] see to it.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE,
    NLMSG_ERROR, NLMSG_OVERRUN, NlaBuffer, NlasIterator,
};
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};

use crate::KernelError;

/// Most messages in one datagram: their failures, about 1 KiB of kernel memory each, fit the receive buffer.
const BATCH_MESSAGES: usize = 512;
/// Most bytes in one datagram; below the default send buffer (net.core.wmem_default, 208 KiB).
const BATCH_BYTES: usize = 96 << 10;
/// Receive buffer in bytes.
const RECEIVE_BUFFER: usize = 2 << 20;
/// Largest datagram that the kernel builds for a dump is 32 KiB; a single answer is smaller.
const DATAGRAM: usize = 64 << 10;
/// The kernel answers before `sendmsg` returns; more than this means that an answer was lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Times that a dump is taken again because the table changed under it.
const DUMP_ATTEMPTS: usize = 8;
const HEADER: usize = 16;

/// A message to send.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) payload: Vec<u8>,
}

/// The kernel's refusal of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) errno: Errno,
    pub(crate) message: Option<String>,
}

impl Refusal {
    pub(crate) fn into_error(self, attempted: impl Into<String>) -> KernelError {
        KernelError::Refused { attempted: attempted.into(), errno: self.errno, message: self.message }
    }
}

/// A blocking socket of one netlink family, bound to the namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: Socket,
    port: u32,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Connection {
    pub(crate) fn open(protocol: isize) -> Result<Self, KernelError> {
        let fail = |e: io::Error| KernelError::io("open a netlink socket", e);
        let mut socket = Socket::new(protocol).map_err(fail)?;
        let port = socket.bind_auto().map_err(fail)?.port_number();
        socket.connect(&SocketAddr::new(0, 0)).map_err(fail)?;
        socket.set_ext_ack(true).map_err(fail)?;
        socket.set_cap_ack(true).map_err(fail)?;
        // Without it the kernel ignores most of what a dump asks to be filtered by.
        socket.set_netlink_get_strict_chk(true).map_err(fail)?;
        // Needs CAP_NET_ADMIN; without that no change succeeds anyway, and dumps need no large buffer.
        let _ = setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &RECEIVE_BUFFER);
        let timeout = nix::sys::time::TimeVal::new(ANSWER_TIMEOUT.as_secs().cast_signed(), 0);
        setsockopt(&socket.as_fd(), sockopt::ReceiveTimeout, &timeout).map_err(|e| fail(e.into()))?;
        Ok(Self { socket, port, sequence: 0, buffer: Vec::with_capacity(DATAGRAM) })
    }

    /// Port id: marks, in notifications, what this socket caused.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// Sends all messages, in as few datagrams as they fit, and says how each one ended. A failure does not keep
    /// the kernel from working the rest off.
    pub(crate) fn batch(&mut self, messages: &[Message]) -> Result<Vec<Result<(), Refusal>>, KernelError> {
        let mut results = Vec::with_capacity(messages.len());
        let mut rest = messages;
        while !rest.is_empty() {
            let mut bytes = 0;
            let count = rest
                .iter()
                .take(BATCH_MESSAGES)
                .take_while(|message| {
                    bytes += HEADER + message.payload.len().next_multiple_of(4);
                    bytes <= BATCH_BYTES
                })
                .count()
                .max(1);
            let (now, later) = rest.split_at(count);
            self.send_batch(now, &mut results)?;
            rest = later;
        }
        Ok(results)
    }

    fn send_batch(
        &mut self,
        messages: &[Message],
        results: &mut Vec<Result<(), Refusal>>,
    ) -> Result<(), KernelError> {
        let first = self.sequence.wrapping_add(1);
        let mut datagram = Vec::with_capacity(BATCH_BYTES.min(messages.len() * 128));
        for (i, message) in messages.iter().enumerate() {
            let ack = if i + 1 == messages.len() { NLM_F_ACK } else { 0 };
            self.sequence = self.sequence.wrapping_add(1);
            append(&mut datagram, message, NLM_F_REQUEST | ack, self.sequence);
        }
        let base = results.len();
        results.extend(messages.iter().map(|_| Ok(())));
        self.send(&datagram)?;
        let mut done = false;
        while !done {
            self.receive(|header, payload| {
                let index = header.sequence.wrapping_sub(first) as usize;
                if header.kind != NLMSG_ERROR || index >= messages.len() {
                    return Ok(()); // an answer of an earlier exchange that failed half-way
                }
                if let Some(refusal) = parse_error(header, payload)? {
                    results[base + index] = Err(refusal);
                }
                done |= index + 1 == messages.len();
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Asks for one object. `parse` sees each message of the answer.
    pub(crate) fn query<T>(
        &mut self,
        message: Message,
        attempted: &str,
        parse: impl FnMut(u16, &[u8]) -> Result<Option<T>, KernelError>,
    ) -> Result<Vec<T>, KernelError> {
        self.exchange(message, NLM_F_ACK, attempted, parse).map(|(all, _)| all)
    }

    /// Asks for all objects. `parse` sees each one. Taken again where the table changed under the dump.
    pub(crate) fn dump<T>(
        &mut self,
        kind: u16,
        payload: &[u8],
        attempted: &str,
        mut parse: impl FnMut(u16, &[u8]) -> Result<Option<T>, KernelError>,
    ) -> Result<Vec<T>, KernelError> {
        for _ in 0..DUMP_ATTEMPTS {
            let message = Message { kind, flags: 0, payload: payload.to_vec() };
            match self.exchange(message, NLM_F_DUMP, attempted, &mut parse)? {
                (all, Consistency::Whole) => return Ok(all),
                (_, Consistency::Interrupted) => {}
            }
        }
        Err(KernelError::refused(attempted, Errno::EAGAIN))
    }

    fn exchange<T>(
        &mut self,
        message: Message,
        flags: u16,
        attempted: &str,
        mut parse: impl FnMut(u16, &[u8]) -> Result<Option<T>, KernelError>,
    ) -> Result<(Vec<T>, Consistency), KernelError> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        let mut datagram = Vec::with_capacity(256);
        append(&mut datagram, &message, NLM_F_REQUEST | flags, sequence);
        self.send(&datagram)?;
        let mut all = Vec::new();
        let mut consistency = Consistency::Whole;
        let mut done = false;
        while !done {
            self.receive(|header, payload| {
                if header.sequence != sequence {
                    return Ok(());
                }
                if header.flags & NLM_F_DUMP_INTR != 0 {
                    consistency = Consistency::Interrupted;
                }
                match header.kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        done = true;
                        if let Some(refusal) = parse_error(header, payload)? {
                            return Err(refusal.into_error(attempted));
                        }
                    }
                    kind => all.extend(parse(kind, payload)?),
                }
                Ok(())
            })?;
        }
        Ok((all, consistency))
    }

    /// Lets a child process send one message, which asks for no acknowledgement, and end. The caller is not told
    /// how it ended. A refusal's answer comes to this socket, where it is overlooked.
    #[allow(unsafe_code, reason = "fork")]
    pub(crate) fn send_from_child(&mut self, message: Message) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut datagram = Vec::with_capacity(64);
        append(&mut datagram, &message, NLM_F_REQUEST, self.sequence);
        let fd = self.socket.as_raw_fd();
        // SAFETY: the child makes system calls only, on memory and a descriptor that were there before: it takes
        // no lock, allocates nothing and leaves without running anybody's code, so other threads of the parent
        // may have been anywhere.
        unsafe {
            match libc::fork() {
                -1 => Err(io::Error::last_os_error()),
                0 => {
                    // Whoever reads our output must not wait for the child.
                    for standard in 0..=2 {
                        libc::close(standard);
                    }
                    libc::send(fd, datagram.as_ptr().cast(), datagram.len(), 0);
                    libc::_exit(0)
                }
                _ => Ok(()),
            }
        }
    }

    fn send(&self, datagram: &[u8]) -> Result<(), KernelError> {
        let fail = |e| KernelError::io("send to the kernel over netlink", e);
        match self.socket.send(datagram, 0).map_err(fail)? {
            sent if sent == datagram.len() => Ok(()),
            sent => Err(KernelError::malformed(
                "send to the kernel over netlink",
                format!("{sent} of {} bytes were taken", datagram.len()),
            )),
        }
    }

    fn receive(
        &mut self,
        each: impl FnMut(&Header, &[u8]) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        self.buffer.clear();
        let fd = self.socket.as_raw_fd();
        loop {
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(KernelError::io(format!("receive from netlink socket {fd}"), e)),
            }
        }
        split(&self.buffer, each)
    }
}

/// The refusals in a datagram, each with the sequence number of the request that was refused.
///
/// # Errors
/// It is not a row of netlink messages, or an answer without an error number is among them.
pub fn refusals(datagram: &[u8]) -> Result<Vec<(u32, KernelError)>, KernelError> {
    let mut all = Vec::new();
    split(datagram, |header, payload| {
        if matches!(header.kind, NLMSG_ERROR | NLMSG_DONE)
            && let Some(refusal) = parse_error(header, payload)?
        {
            all.push((header.sequence, refusal.into_error("carry out a request")));
        }
        Ok(())
    })?;
    Ok(all)
}

/// Whether the table stood still during a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Consistency {
    Whole,
    Interrupted,
}

/// Head of a received message (`struct nlmsghdr`).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// Port id of the socket that caused it; 0: the kernel itself.
    pub(crate) port: u32,
}

/// Calls `each` with every message of a datagram.
pub(crate) fn split(
    mut datagram: &[u8],
    mut each: impl FnMut(&Header, &[u8]) -> Result<(), KernelError>,
) -> Result<(), KernelError> {
    let word = |bytes: &[u8], at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|i| bytes[at + i]));
    let half = |bytes: &[u8], at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
    while datagram.len() >= HEADER {
        let length = word(datagram, 0) as usize;
        if length < HEADER || length > datagram.len() {
            return Err(KernelError::malformed(
                "read a netlink datagram",
                format!("message length {length}"),
            ));
        }
        let header = Header {
            kind: half(datagram, 4),
            flags: half(datagram, 6),
            sequence: word(datagram, 8),
            port: word(datagram, 12),
        };
        if header.kind == NLMSG_OVERRUN {
            return Err(KernelError::refused("read a netlink datagram", Errno::ENOBUFS));
        }
        each(&header, &datagram[HEADER..length])?;
        datagram = &datagram[length.next_multiple_of(4).min(datagram.len())..];
    }
    Ok(())
}

fn append(datagram: &mut Vec<u8>, message: &Message, flags: u16, sequence: u32) {
    let length = u32::try_from(HEADER + message.payload.len()).expect("a netlink message is below 4 GiB");
    datagram.extend_from_slice(&length.to_ne_bytes());
    datagram.extend_from_slice(&message.kind.to_ne_bytes());
    datagram.extend_from_slice(&(message.flags | flags).to_ne_bytes());
    datagram.extend_from_slice(&sequence.to_ne_bytes());
    datagram.extend_from_slice(&[0; 4]);
    datagram.extend_from_slice(&message.payload);
    datagram.resize(datagram.len().next_multiple_of(4), 0);
}

/// `struct nlmsgerr`: error, header of the request, the request itself unless capped, then attributes.
fn parse_error(header: &Header, payload: &[u8]) -> Result<Option<Refusal>, KernelError> {
    const NLMSGERR_ATTR_MSG: u16 = 1;
    let Some(code) = payload.first_chunk::<4>() else {
        return Err(KernelError::malformed("read a netlink answer", "shorter than an error number"));
    };
    let code = i32::from_ne_bytes(*code);
    if code == 0 {
        return Ok(None);
    }
    let mut attributes: &[u8] = &[];
    if header.kind == NLMSG_ERROR && header.flags & NLM_F_ACK_TLVS != 0 {
        let mut start = 4 + HEADER;
        if header.flags & NLM_F_CAPPED == 0
            && let Some(length) = payload.get(4..8).and_then(|l| l.first_chunk::<4>())
        {
            start = 4 + (u32::from_ne_bytes(*length) as usize).next_multiple_of(4);
        }
        attributes = payload.get(start..).unwrap_or_default();
    }
    let message = NlasIterator::new(attributes)
        .map_while(|attribute: Result<NlaBuffer<&[u8]>, _>| attribute.ok())
        .find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG)
        .map(|attribute| String::from_utf8_lossy(attribute.value()).trim_end_matches('\0').to_owned());
    Ok(Some(Refusal { errno: Errno::from_raw(code.wrapping_neg()), message }))
}
