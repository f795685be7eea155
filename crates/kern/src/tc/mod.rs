//! Traffic control: a token bucket at the root of a device, and what comes in through a device sent on to another.
//!
//! That is what a pod's rates need and no more: `tbf`, `ingress`, a `u32` filter that matches everything (every
//! kernel with traffic control has it, which cannot be said of `matchall`), and the action `mirred`.
//!
//! ```text
//!   root ── tbf ──▶ out          in ──▶ ingress ── u32 ── mirred redirect ──▶ out of another device
//! ```

mod wire;

use std::fmt;

use crate::KernelError;
use crate::attributes::{Attributes, Writer};
use crate::netlink::{Connection, Message};
use wire::Head;

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;

/// `TC_H_ROOT`.
const ROOT: u32 = 0xffff_ffff;
/// `TC_H_INGRESS`.
const INGRESS: u32 = 0xffff_fff1;
/// `ffff:`, the handle that an ingress qdisc always has.
const INGRESS_HANDLE: u32 = 0xffff_0000;
/// `1:`, the handle of our root qdiscs.
const ROOT_HANDLE: u32 = 0x0001_0000;
/// `1:1`, the class that the filter names; nothing looks at it.
const CLASS: u32 = 0x0001_0001;
/// Priority of the filter: the first.
const PRIORITY: u32 = 1;
const ETH_P_ALL: u16 = 3;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_U32_CLASSID: u16 = 1;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
/// `TC_U32_TERMINAL`.
const TERMINAL: u8 = 1;
/// `TC_ACT_STOLEN`: the packet is the action's.
const STOLEN: u32 = 4;
/// `TCA_EGRESS_REDIR`.
const EGRESS_REDIRECT: u32 = 1;
/// Nanoseconds in a tick (`PSCHED_SHIFT` is 6 since Linux 2.6.31).
const TICK: u64 = 64;

/// A token bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tbf {
    /// Bytes in a second.
    pub rate: u64,
    /// Bytes that may wait.
    pub limit: u32,
    /// Size of the bucket: the time that it takes to fill it at the rate, in ticks of 64 ns.
    pub buffer: u32,
}

impl Tbf {
    /// A bucket of `burst` bytes that fills at `rate` bytes a second, where nothing waits for longer than `latency`
    /// besides a burst.
    pub fn new(rate: u64, burst: u32, latency: std::time::Duration) -> Self {
        // As `tc` reckons: whole microseconds. What does not fit is the longest that does, four and a half minutes.
        let micros = u128::from(burst) * 1_000_000 / u128::from(rate.max(1));
        let buffer = u32::try_from(micros * 1000 / u128::from(TICK)).unwrap_or(u32::MAX);
        let waiting = u128::from(rate) * latency.as_micros() / 1_000_000;
        let limit = u32::try_from(waiting + u128::from(burst)).unwrap_or(u32::MAX);
        Self { rate, limit, buffer }
    }
}

impl fmt::Display for Tbf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tbf rate {} limit {} buffer {}", self.rate, self.limit, self.buffer)
    }
}

/// A change. Devices are given by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcRequest {
    /// Puts a token bucket at a device's root, in the place of what is there.
    ReplaceRoot(u32, Tbf),
    /// Takes away what is at a device's root; the kernel puts its default there.
    DeleteRoot(u32),
    /// Makes the place at which filters for incoming packets are kept.
    AddIngress(u32),
    /// Takes it away, with all filters.
    DeleteIngress(u32),
    /// Sends whatever comes in through the first device out of the second one. Needs [`TcRequest::AddIngress`].
    AddRedirect(u32, u32),
}

impl TcRequest {
    fn encode(&self) -> Message {
        let message = |kind, flags, head, body: &dyn Fn(&mut Writer)| {
            let mut w = Writer::new(Head::to_bytes(head));
            body(&mut w);
            Message { kind, flags, payload: w.into_bytes() }
        };
        match *self {
            Self::ReplaceRoot(index, tbf) => {
                let head = Head { index, handle: ROOT_HANDLE, parent: ROOT, info: 0 };
                message(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE, head, &|w| {
                    w.text(TCA_KIND, "tbf");
                    w.nest(TCA_OPTIONS, |w| write_tbf(w, tbf));
                })
            }
            Self::DeleteRoot(index) => {
                let head = Head { index, handle: 0, parent: ROOT, info: 0 };
                message(RTM_DELQDISC, 0, head, &|_| {})
            }
            Self::AddIngress(index) => {
                let head = Head { index, handle: INGRESS_HANDLE, parent: INGRESS, info: 0 };
                message(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, head, &|w| w.text(TCA_KIND, "ingress"))
            }
            Self::DeleteIngress(index) => {
                let head = Head { index, handle: INGRESS_HANDLE, parent: INGRESS, info: 0 };
                message(RTM_DELQDISC, 0, head, &|_| {})
            }
            Self::AddRedirect(index, to) => {
                let info = PRIORITY << 16 | u32::from(ETH_P_ALL.to_be());
                let head = Head { index, handle: 0, parent: INGRESS_HANDLE, info };
                message(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, head, &|w| {
                    w.text(TCA_KIND, "u32");
                    w.nest(TCA_OPTIONS, |w| write_redirect(w, to));
                })
            }
        }
    }
}

impl fmt::Display for TcRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReplaceRoot(index, tbf) => write!(f, "set root qdisc of link {index} to {tbf}"),
            Self::DeleteRoot(index) => write!(f, "delete root qdisc of link {index}"),
            Self::AddIngress(index) => write!(f, "add ingress qdisc to link {index}"),
            Self::DeleteIngress(index) => write!(f, "delete ingress qdisc of link {index}"),
            Self::AddRedirect(from, to) => {
                write!(f, "redirect what comes in through link {from} to link {to}")
            }
        }
    }
}

/// A NETLINK_ROUTE socket for traffic control. It belongs to the network namespace in which it was opened.
#[derive(Debug)]
pub struct Tc {
    connection: Connection,
}

impl Tc {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, KernelError> {
        Connection::open(netlink_sys::protocols::NETLINK_ROUTE).map(|connection| Self { connection })
    }

    /// Makes changes that belong together: the first refusal is returned. Later ones were tried all the same.
    pub fn run_all(&mut self, requests: &[TcRequest]) -> Result<(), KernelError> {
        let messages: Vec<Message> = requests.iter().map(TcRequest::encode).collect();
        for (result, request) in self.connection.batch(&messages)?.into_iter().zip(requests) {
            result.map_err(|refusal| refusal.into_error(request.to_string()))?;
        }
        Ok(())
    }

    /// The token bucket at a device's root, if it is one.
    pub fn root(&mut self, index: u32) -> Result<Option<Tbf>, KernelError> {
        let query = Head { index, handle: 0, parent: 0, info: 0 }.to_bytes();
        let found = self.connection.dump(RTM_GETQDISC, &query, "list qdiscs", |_, payload| {
            Ok(Head::read(payload)
                .filter(|(head, _)| head.index == index && head.parent == ROOT)
                .map(|(_, attributes)| read_tbf(attributes)))
        })?;
        Ok(found.into_iter().flatten().next())
    }

    /// Index of the device to which everything that comes in through a device is sent on, if that is so.
    pub fn redirect(&mut self, index: u32) -> Result<Option<u32>, KernelError> {
        let query = Head { index, handle: 0, parent: INGRESS_HANDLE, info: 0 }.to_bytes();
        let found = self.connection.dump(RTM_GETTFILTER, &query, "list filters", |_, payload| {
            Ok(Head::read(payload)
                .filter(|(head, _)| head.index == index)
                .and_then(|(_, attributes)| read_redirect(attributes)))
        });
        match found {
            Ok(found) => Ok(found.first().copied()),
            // Without an ingress qdisc there is no place for a filter.
            Err(e) if e.is_missing() || e.errno() == Some(crate::Errno::EINVAL) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// `struct tc_tbf_qopt`: rate and peak rate (`struct tc_ratespec`, 12 bytes each), limit, buffer, MTU.
fn write_tbf(w: &mut Writer, tbf: Tbf) {
    let mut options = vec![0; 8];
    options.extend(u32::try_from(tbf.rate).unwrap_or(u32::MAX).to_ne_bytes());
    options.extend([0; 12]);
    options.extend(tbf.limit.to_ne_bytes());
    options.extend(tbf.buffer.to_ne_bytes());
    options.extend([0; 4]);
    w.bytes(TCA_TBF_PARMS, &options);
    if tbf.rate > u64::from(u32::MAX) {
        w.bytes(TCA_TBF_RATE64, &tbf.rate.to_ne_bytes());
    }
}

fn read_tbf(attributes: Attributes<'_>) -> Option<Tbf> {
    if attributes.text(TCA_KIND)? != "tbf" {
        return None;
    }
    let options = Attributes(attributes.get(TCA_OPTIONS)?);
    let parms = options.get(TCA_TBF_PARMS)?;
    let word = |at: usize| Some(u32::from_ne_bytes(*parms.get(at..)?.first_chunk::<4>()?));
    let large = options.get(TCA_TBF_RATE64).and_then(|bytes| bytes.first_chunk::<8>());
    let rate = large.map_or(u64::from(word(8)?), |bytes| u64::from_ne_bytes(*bytes));
    Some(Tbf { rate, limit: word(24)?, buffer: word(28)? })
}

/// `struct tc_u32_sel` with one key that matches everything, and the action.
fn write_redirect(w: &mut Writer, to: u32) {
    w.bytes(TCA_U32_CLASSID, &CLASS.to_ne_bytes());
    let mut selector = vec![TERMINAL, 0, 1, 0];
    selector.extend([0; 12]);
    selector.extend([0; 16]);
    w.bytes(TCA_U32_SEL, &selector);
    w.nest(TCA_U32_ACT, |w| {
        // The first action.
        w.nest(1, |w| {
            w.text(TCA_ACT_KIND, "mirred");
            w.nest(TCA_ACT_OPTIONS, |w| {
                // `struct tc_mirred`: index, capabilities, what becomes of the packet, two counts, what to do, to whom.
                let words = [0, 0, STOLEN, 0, 0, EGRESS_REDIRECT, to];
                w.bytes(TCA_MIRRED_PARMS, &words.map(u32::to_ne_bytes).concat());
            });
        });
    });
}

fn read_redirect(attributes: Attributes<'_>) -> Option<u32> {
    if attributes.text(TCA_KIND)? != "u32" {
        return None;
    }
    let options = Attributes(attributes.get(TCA_OPTIONS)?);
    let action = Attributes(Attributes(options.get(TCA_U32_ACT)?).get(1)?);
    if action.text(TCA_ACT_KIND)? != "mirred" {
        return None;
    }
    let parms = Attributes(action.get(TCA_ACT_OPTIONS)?).get(TCA_MIRRED_PARMS)?;
    let word = |at: usize| Some(u32::from_ne_bytes(*parms.get(at..)?.first_chunk::<4>()?));
    (word(20)? == EGRESS_REDIRECT).then_some(())?;
    word(24)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_bucket_is_reckoned_as_tc_does() {
        // tc qdisc add ... tbf rate 1mbit burst 10kb latency 25ms
        let tbf = Tbf::new(125_000, 10_240, Duration::from_millis(25));
        assert_eq!(tbf, Tbf { rate: 125_000, limit: 3_125 + 10_240, buffer: 81_920 * 1000 / 64 });
        // Bursts that runtimes send for "no limit" do not wrap round.
        let tbf = Tbf::new(1_000, u32::MAX / 8, Duration::from_millis(25));
        assert_eq!(tbf.buffer, u32::MAX);
        assert_eq!(Tbf::new(0, 1, Duration::ZERO).buffer, 15_625_000);
    }

    #[test]
    fn what_is_written_is_read() {
        for tbf in [Tbf { rate: 5, limit: 6, buffer: 7 }, Tbf { rate: 1 << 40, limit: 6, buffer: 7 }] {
            let payload = TcRequest::ReplaceRoot(3, tbf).encode().payload;
            let (head, attributes) = Head::read(&payload).unwrap();
            assert_eq!((head.index, read_tbf(attributes)), (3, Some(tbf)));
        }
        let payload = TcRequest::AddRedirect(3, 9).encode().payload;
        let (head, attributes) = Head::read(&payload).unwrap();
        assert_eq!((head.parent, read_redirect(attributes)), (0xffff_0000, Some(9)));
    }

    #[test]
    fn no_bytes_make_the_readers_panic() {
        let payload = TcRequest::AddRedirect(3, 9).encode().payload;
        for cut in 0..payload.len() {
            if let Some((_, attributes)) = Head::read(&payload[..cut]) {
                assert_eq!(read_tbf(attributes), None);
                let _ = read_redirect(attributes);
            }
        }
    }
}
