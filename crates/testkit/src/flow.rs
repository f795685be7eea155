//! A steady one-way UDP flow with sequence numbers: how many packets were lost, and for how long none came.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use podway_kern::ns::NetNs;

use crate::wait::wait_until;

/// How long the last packets may take to arrive.
const LAST_PACKETS: Duration = Duration::from_millis(500);

/// A running flow.
#[derive(Debug)]
pub struct Flow {
    stop: StopOnDrop,
    sent: Arc<AtomicU64>,
    received: Arc<AtomicU64>,
    sender: JoinHandle<Result<()>>,
    receiver: JoinHandle<Result<Received>>,
}

/// Ends the flow's threads also where an error drops it.
#[derive(Debug)]
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a flow experienced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowReport {
    /// Packets sent.
    pub sent: u64,
    /// Different packets that arrived.
    pub received: u64,
    /// Longest time between two arrivals.
    pub longest_gap: Duration,
}

impl FlowReport {
    /// Packets that never arrived.
    pub fn lost(&self) -> u64 {
        self.sent - self.received
    }
}

#[derive(Debug)]
struct Received {
    distinct: u64,
    longest_gap: Duration,
}

impl Flow {
    /// Starts sending a packet every `interval` from inside `from` to `to`, received inside `into`. Returns when
    /// packets arrive.
    pub fn start(from: &NetNs, into: &NetNs, to: IpAddr, interval: Duration) -> Result<Self> {
        let receive = into
            .run(|| UdpSocket::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))))?
            .context("open the flow's receiver")?;
        let port = receive.local_addr()?.port();
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let send = from.run(|| UdpSocket::bind(any))?.context("open the flow's sender")?;
        send.connect((to, port))?;
        receive.set_read_timeout(Some(Duration::from_millis(50)))?;

        let (stop, sent, received) =
            (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let sender = {
            let (stop, sent) = (stop.clone(), sent.clone());
            std::thread::Builder::new()
                .name("flow-send".to_owned())
                .spawn(move || send_steadily(&send, interval, &stop, &sent))?
        };
        let receiver = {
            let (stop, sent, received) = (stop.clone(), sent.clone(), received.clone());
            std::thread::Builder::new()
                .name("flow-recv".to_owned())
                .spawn(move || receive_all(&receive, &stop, &sent, &received))?
        };
        let flow = Self { stop: StopOnDrop(stop), sent, received, sender, receiver };
        wait_until("the flow's packets arrive", Duration::from_secs(3), || {
            Ok((flow.received.load(Ordering::Relaxed) > 0).then_some(()))
        })?;
        Ok(flow)
    }

    /// Packets sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Waits until `count` more packets were sent.
    pub fn wait_for(&self, count: u64) -> Result<()> {
        let goal = self.sent() + count;
        wait_until("the flow goes on", Duration::from_secs(60), || {
            if self.sender.is_finished() {
                bail!("the flow's sender ended early");
            }
            Ok((self.sent() >= goal).then_some(()))
        })
    }

    /// Stops and counts.
    pub fn stop(self) -> Result<FlowReport> {
        self.stop.0.store(true, Ordering::Relaxed);
        let join = "a flow thread does not panic";
        self.sender.join().ok().context(join)??;
        let received = self.receiver.join().ok().context(join)??;
        Ok(FlowReport {
            sent: self.sent.load(Ordering::Relaxed),
            received: received.distinct,
            longest_gap: received.longest_gap,
        })
    }
}

fn send_steadily(socket: &UdpSocket, interval: Duration, stop: &AtomicBool, sent: &AtomicU64) -> Result<()> {
    let mut due = Instant::now();
    let mut sequence: u64 = 0;
    while !stop.load(Ordering::Relaxed) {
        // A refused or unreachable destination shows here; the packet counts as sent, and so as lost.
        let _ = socket.send(&sequence.to_be_bytes());
        sequence += 1;
        sent.store(sequence, Ordering::Relaxed);
        due += interval;
        let now = Instant::now();
        if due > now {
            std::thread::sleep(due - now);
        } else {
            // The machine was busy: no burst to catch up.
            due = now;
        }
    }
    Ok(())
}

/// Receives until the sender has stopped and everything is here, or nothing more comes.
fn receive_all(
    socket: &UdpSocket,
    stop: &AtomicBool,
    sent: &AtomicU64,
    received: &AtomicU64,
) -> Result<Received> {
    let mut seen: Vec<bool> = vec![];
    let mut distinct = 0;
    let mut longest_gap = Duration::ZERO;
    let mut last_arrival: Option<Instant> = None;
    let mut stopped_at: Option<Instant> = None;
    let mut buffer = [0; 8];
    loop {
        match socket.recv(&mut buffer) {
            Ok(8) => {
                let sequence = usize::try_from(u64::from_be_bytes(buffer)).context("sequence number")?;
                if seen.len() <= sequence {
                    seen.resize(sequence + 1, false);
                }
                if !std::mem::replace(&mut seen[sequence], true) {
                    distinct += 1;
                    received.store(distinct, Ordering::Relaxed);
                }
                let now = Instant::now();
                if let Some(last) = last_arrival.replace(now) {
                    longest_gap = longest_gap.max(now - last);
                }
            }
            Ok(length) => bail!("a packet of {length} bytes came to the flow's port"),
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(e) => return Err(e).context("receive the flow"),
        }
        if stop.load(Ordering::Relaxed) {
            let since = *stopped_at.get_or_insert_with(Instant::now);
            if distinct == sent.load(Ordering::Relaxed) && since.elapsed() > Duration::from_millis(5)
                || since.elapsed() > LAST_PACKETS
            {
                return Ok(Received { distinct, longest_gap });
            }
        }
    }
}
