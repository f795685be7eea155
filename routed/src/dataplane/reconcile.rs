//! Brings a kernel to what is desired: read, plan, apply, until nothing is left to do.
//!
//! Generic over the kernel, so the same code runs against `FakeKernel` under random disturbance.

use std::task::Poll;

use podway_kern::fib::Kernel;
use podway_kern::rtnl::{LinkRef, Request};
use podway_kern::wireguard::WireguardChange;
use podway_kern::{Errno, KernelError, MissingIsFine as _};
use podway_model::socket::{DeviceStatus, RouteCounts};

use super::actual::Actual;
use super::desired::Desired;
use super::plan::{additions, removals, wireguard_additions, wireguard_removals};

/// Rounds of one pass. A device needs two (its index is known after the first), a silent deletion one more.
const ROUNDS: usize = 8;
/// Requests handed to the kernel before other tasks get a turn: a few milliseconds.
const SLICE: usize = 1024;
/// Failures that are told in words; the rest is counted.
const FAILURES_TOLD: usize = 5;

/// What one pass came to.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Outcome {
    /// Requests that the kernel took.
    pub(crate) changed: usize,
    /// Requests that it refused in the last round.
    pub(crate) failed: usize,
    /// The first of them, in words.
    pub(crate) failures: Vec<String>,
    /// Routes in numbers.
    pub(crate) routes: RouteCounts,
    /// Our devices.
    pub(crate) devices: Vec<DeviceStatus>,
}

/// A kernel and what is known of it.
#[derive(Debug)]
pub(crate) struct Reconciler<K> {
    kernel: K,
    actual: Option<Actual>,
    /// Times that the kernel's tables were read back.
    pub(crate) reads: u64,
}

/// How one batch ended.
#[derive(Debug, Default)]
struct Applied {
    changed: usize,
    failed: usize,
    failures: Vec<String>,
}

impl<K: Kernel> Reconciler<K> {
    pub(crate) fn new(kernel: K) -> Self {
        Self { kernel, actual: None, reads: 0 }
    }

    /// The kernel.
    pub(crate) fn kernel(&mut self) -> &mut K {
        &mut self.kernel
    }

    /// Somebody else has changed something: what is known is not trusted any more.
    pub(crate) fn invalidate(&mut self) {
        self.actual = None;
    }

    /// Indices of our devices, as far as known.
    pub(crate) fn device_indices(&self) -> Vec<u32> {
        self.actual
            .iter()
            .flat_map(|actual| actual.devices.values())
            .map(|device| device.link.index)
            .collect()
    }

    /// One pass. Failures do not stop it: what can be done is done, the rest is for the next pass.
    ///
    /// Dropping the future half-way leaves a kernel that is partly programmed, never a torn copy of it.
    pub(crate) async fn reconcile(&mut self, desired: &Desired) -> Outcome {
        let mut outcome = Outcome::default();
        for _ in 0..ROUNDS {
            match self.round(desired).await {
                Ok(applied) => {
                    outcome.changed += applied.changed;
                    outcome.failed = applied.failed;
                    outcome.failures = applied.failures;
                    if applied.changed == 0 {
                        break;
                    }
                }
                Err(e) => {
                    self.invalidate();
                    outcome.failed += 1;
                    outcome.failures.push(e.to_string());
                    break;
                }
            }
        }
        if let Some(actual) = &self.actual {
            outcome.devices = devices(actual);
            outcome.routes.actual = actual.routes.len();
            outcome.routes.failed =
                desired.routes.keys().filter(|key| !actual.routes.contains_key(key)).count();
        }
        outcome.routes.desired = desired.routes.len();
        outcome
    }

    async fn round(&mut self, desired: &Desired) -> Result<Applied, KernelError> {
        let mut sum = Applied::default();
        let changes = wireguard_additions(desired, self.actual()?);
        self.set_wireguard(changes, &mut sum);
        for plan in [additions, removals] {
            let requests = plan(desired, self.actual()?);
            self.apply(&requests, &mut sum).await?;
        }
        let changes = wireguard_removals(desired, self.actual()?);
        self.set_wireguard(changes, &mut sum);
        Ok(sum)
    }

    /// What is known of the kernel, or what it says now.
    fn actual(&mut self) -> Result<&Actual, KernelError> {
        if self.actual.is_none() {
            self.reads += 1;
            self.actual = Some(Actual::read(&mut self.kernel)?);
        }
        Ok(self.actual.as_ref().expect("it was just read"))
    }

    fn set_wireguard(&mut self, changes: Vec<(u32, WireguardChange)>, sum: &mut Applied) {
        for (index, change) in changes {
            match self.kernel.set_wireguard(index, &change) {
                Ok(()) => {
                    sum.changed += 1;
                    if let Some(actual) = &mut self.actual {
                        actual.note_wireguard(index, &change);
                    }
                }
                Err(e) => {
                    sum.failed += 1;
                    let hint = if e.errno() == Some(Errno::EADDRINUSE) {
                        ": another program has the port; end it, or change wireguard.port"
                    } else {
                        ""
                    };
                    sum.failures.push(format!("{e}{hint}"));
                    self.actual = None;
                }
            }
        }
    }

    async fn apply(&mut self, requests: &[Request<'static>], sum: &mut Applied) -> Result<(), KernelError> {
        for slice in requests.chunks(SLICE) {
            let results = self.kernel.apply(slice)?;
            for (request, result) in slice.iter().zip(results) {
                // What is gone already needs no deletion; but the copy was wrong then.
                let missing = matches!(&result, Err(e) if e.is_missing()) && is_deletion(request);
                let result = if missing { result.missing_is_fine() } else { result };
                match result {
                    Ok(()) => {
                        sum.changed += 1;
                        let whole = self.actual.as_mut().is_some_and(|actual| actual.note(request));
                        if missing || !whole {
                            self.actual = None;
                        }
                    }
                    Err(e) => {
                        sum.failed += 1;
                        // A device that could not be made cannot be changed either: told once.
                        let echo = e.is_missing() && matches!(request, Request::SetLink(LinkRef::Name(_), _));
                        if !echo && sum.failures.len() < FAILURES_TOLD {
                            sum.failures.push(explain(request, &e));
                        }
                        // EEXIST, ENOENT and their like: the kernel is not as we thought.
                        self.actual = None;
                    }
                }
            }
            give_way().await;
        }
        Ok(())
    }
}

/// Lets other tasks of the runtime run. Unlike tokio's own it needs no runtime, so `cleanup` can do without.
async fn give_way() {
    let mut given = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut given, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn is_deletion(request: &Request<'_>) -> bool {
    matches!(
        request,
        Request::DeleteRoute(_)
            | Request::DeleteNextHop(_)
            | Request::DeleteNeighbour(_)
            | Request::DeleteFdb(_)
            | Request::DeleteAddress(_)
            | Request::DeleteLink(_)
    )
}

/// The kernel's refusal, with the likely cause where it is known.
fn explain(request: &Request<'_>, error: &KernelError) -> String {
    let hint = match request {
        Request::AddRoute(_) if error.is_exists() => {
            ": a route that is not ours is in the way, and is left alone (see `ip route`; flannel's: `podwayctl node \
             install --replace-flannel`)"
        }
        Request::AddIpip { .. } if error.is_exists() => {
            ": another IPIP device has this local address and no remote one; remove it"
        }
        Request::AddIpip { .. } | Request::AddWireguard { .. }
            if error.errno() == Some(Errno::EOPNOTSUPP) =>
        {
            ": this kernel has no such devices; load or install the module (ipip, wireguard)"
        }
        Request::AddVxlan(_) if error.is_exists() => {
            ": another device has this VNI and port, such as flannel.1; remove it (flannel's: `podwayctl node install \
             --replace-flannel`), or change vxlan.vni or vxlan.port"
        }
        _ => "",
    };
    format!("{error}{hint}")
}

fn devices(actual: &Actual) -> Vec<DeviceStatus> {
    let hops = |index| {
        let all = actual.next_hops.values().filter_map(|info| info.next_hop);
        all.filter(|hop| hop.interface == index).count()
    };
    actual
        .devices
        .values()
        .map(|device| DeviceStatus {
            name: device.link.name.clone(),
            mac: device.link.mac,
            mtu: device.link.mtu,
            peers: match (&device.wireguard, device.link.vxlan) {
                (Some(wireguard), _) => wireguard.peers.len(),
                (None, Some(_)) => device.fdb.len(),
                // IPIP has no entries: each peer is the gateway of a next hop.
                (None, None) => hops(device.link.index),
            },
        })
        .collect()
}
