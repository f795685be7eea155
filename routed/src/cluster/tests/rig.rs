//! One core with everything round it: the store in memory, a disk, pods. Everything happens at once unless a test
//! holds it back.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use podway_model::cluster::{Claim, Liveness, NodeRecord, Pool, Released, decode, encode};
use podway_model::flannel::Prefix;
use podway_model::keys::Key;
use podway_model::node_file::{BlockState, NodeFile};
use podway_store::fake::mem::{LeaseId, Mem};
use podway_store::{Change, Event as StoreEvent, StoreError, Written};

use crate::cluster::Identity;
use crate::cluster::core::Core;
use crate::cluster::event::{Action, Event, Operation, Severity, Usage, Write};
use crate::cluster::table::PREFIXES;
use crate::view::{ClusterView, LocalFacts, OwnBlockState};

/// Time of a node's lease in the store.
pub(super) const LEASE: Duration = Duration::from_secs(10);
/// Seconds since 1970 when a test begins.
pub(super) const EPOCH: u64 = 1_800_000_000;

pub(super) fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub(super) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// The watched prefixes, as the store wants them.
pub(super) fn prefixes() -> Vec<String> {
    PREFIXES.iter().map(|prefix| (*prefix).to_owned()).collect()
}

/// Node `n<i>`, installation and boot `i`.
pub(super) fn identity(i: usize) -> Identity {
    Identity {
        node: format!("n{i}").parse().unwrap(),
        instance_id: instance(i).parse().unwrap(),
        boot_id: boot(i).parse().unwrap(),
        labels: BTreeMap::from([("zone".to_owned(), format!("z{}", i % 3))]),
        asn: None,
        wireguard_key: None,
        version: "0.0.0".into(),
        node_file: "/nonexistent/node.json".into(),
        ipam_dir: "/nonexistent/ipam".into(),
    }
}

pub(super) fn instance(i: usize) -> String {
    format!("00000000-0000-4000-8000-{i:012}")
}

pub(super) fn boot(i: usize) -> String {
    format!("b0000000-0000-4000-8000-{i:012}")
}

pub(super) fn facts(i: usize) -> LocalFacts {
    let (high, low) = (u8::try_from(i / 256).unwrap(), u8::try_from(i % 256).unwrap());
    LocalFacts {
        address_v4: Some([192, 0, high, low].into()),
        address_v6: None,
        on_link: vec![],
        interface: "eth0".parse().unwrap(),
        ifindex: 2,
        mtu: 1500.try_into().unwrap(),
    }
}

pub(super) fn pool(cidr: &str) -> Pool {
    serde_json::from_value(serde_json::json!({ "cidr": cidr })).unwrap()
}

/// What stands at a key, decoded.
pub(super) fn claim_in(mem: &Mem, node: &str, block: IpNet) -> Option<Claim> {
    let key = Key::Claim(node.parse().unwrap(), block).to_string();
    mem.entry(&key).map(|entry| decode(&entry.value).unwrap())
}

/// Changes from `since` on, once per key, or a snapshot.
pub(super) fn next_event(mem: &Mem, since: Option<i64>) -> Option<(StoreEvent, i64)> {
    next_below(mem, &prefixes(), since)
}

pub(super) fn next_below(mem: &Mem, prefixes: &[String], since: Option<i64>) -> Option<(StoreEvent, i64)> {
    let changed = since.filter(|since| *since <= mem.revision()).map(|since| mem.since(prefixes, since));
    let Some(Ok((changes, revision))) = changed else {
        let listing = mem.list(prefixes);
        let revision = listing.revision;
        return Some((StoreEvent::Snapshot { entries: listing.entries, revision }, revision));
    };
    let last: BTreeMap<String, Change> =
        changes.into_iter().map(|change| (change.key().to_owned(), change)).collect();
    (!last.is_empty())
        .then(|| (StoreEvent::Changes { changes: last.into_values().collect(), revision }, revision))
}

/// Carries out a write, as [`podway_store::Store`] does.
pub(super) fn carry_out(mem: &mut Mem, lease: &mut Option<LeaseId>, write: &Write) -> Written {
    match &write.operation {
        Operation::Put(value, expect) => mem.put_if(&write.key, value, *expect, None).unwrap(),
        Operation::PutGuarded(value, expect, guard) => {
            mem.put_guarded(&write.key, value, *expect, guard).unwrap()
        }
        Operation::PutLeased(value, expect) => {
            let id = match lease {
                Some(id) if mem.keep_alive(*id).is_ok() => *id,
                _ => *lease.insert(mem.grant(LEASE)),
            };
            mem.put_if(&write.key, value, *expect, Some(id)).unwrap()
        }
        Operation::PutFor(value, expect, time) => {
            let lease = mem.grant(seconds(u64::from(*time)));
            mem.put_if(&write.key, value, *expect, Some(lease)).unwrap()
        }
        Operation::Delete(revision) => mem.delete_if(&write.key, *revision),
    }
}

/// How writes to the store end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writing {
    /// Done and answered.
    Works,
    /// Done; the answer is that nobody knows.
    Unsure,
    /// Not done.
    Fails,
    /// Kept in [`Rig::held`].
    Held,
}

/// How writes of the node file end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filing {
    Works,
    Fails,
    /// Kept in [`Rig::held_file`].
    Held,
}

pub(super) struct Rig {
    pub(super) me: Identity,
    number: usize,
    pub(super) core: Core,
    pub(super) mem: Mem,
    pub(super) now: Duration,
    started: Duration,
    /// Up to where the watch has delivered; none: a snapshot comes next.
    pub(super) seen: Option<i64>,
    /// The same for flannel's keys.
    pub(super) seen_flannel: Option<i64>,
    /// Whether the watch of flannel's keys delivers.
    pub(super) flannel: bool,
    pub(super) connected: bool,
    pub(super) lease: Option<LeaseId>,
    pub(super) writing: Writing,
    pub(super) held: Vec<Write>,
    /// Every write that was asked for.
    pub(super) asked: Vec<Write>,
    pub(super) filing: Filing,
    pub(super) held_file: Option<NodeFile>,
    pub(super) disk: Option<NodeFile>,
    /// Files written, or tried to.
    pub(super) files: usize,
    /// Pods per block, and addresses in quarantine.
    pub(super) pods: BTreeMap<IpNet, (u64, u64)>,
    /// Whether looks at the leases are answered.
    pub(super) looks: bool,
    looked: (BTreeMap<IpNet, Usage>, u64, Vec<IpAddr>),
    pub(super) reports: Vec<(Severity, String)>,
    pub(super) forgotten: Vec<IpNet>,
    pub(super) refused: Option<String>,
    todo: VecDeque<Action>,
}

impl Rig {
    /// Node `n1` before its first event, with a store that holds one IPv4 pool of 1024 blocks, and another node with
    /// the last of them.
    pub(super) fn new() -> Self {
        let mut rig = Self::alone();
        rig.put_node(99);
        rig.put_claim(99, net("10.0.255.192/26"), true);
        rig
    }

    /// The same without the other node.
    pub(super) fn alone() -> Self {
        let mut rig = Self::bare(Mem::new());
        rig.put_pool("p4", &pool("10.0.0.0/16"));
        rig
    }

    /// The same with both families.
    pub(super) fn dual() -> Self {
        let mut rig = Self::new();
        rig.put_pool("p6", &pool("fd00::/112"));
        rig
    }

    /// Node `n1` at a store with nothing in it.
    pub(super) fn bare(mem: Mem) -> Self {
        let me = identity(1);
        Self {
            core: Core::new(me.clone(), None),
            me,
            number: 1,
            mem,
            now: Duration::ZERO,
            started: Duration::ZERO,
            seen: None,
            seen_flannel: None,
            flannel: true,
            connected: true,
            lease: None,
            writing: Writing::Works,
            held: vec![],
            asked: vec![],
            filing: Filing::Works,
            held_file: None,
            disk: None,
            files: 0,
            pods: BTreeMap::new(),
            looks: true,
            looked: (BTreeMap::new(), 0, vec![]),
            reports: vec![],
            forgotten: vec![],
            refused: None,
            todo: VecDeque::new(),
        }
    }

    /// Starts the daemon and lets everything settle.
    pub(super) fn started(mut self) -> Self {
        self.start();
        self
    }

    /// Facts, clock and whatever follows.
    pub(super) fn start(&mut self) {
        self.step(Event::Clock(EPOCH + self.now.as_secs()));
        self.step(Event::Facts(facts(self.number)));
        self.settle();
    }

    /// `kill -9` and a new process, which is not started yet.
    pub(super) fn restart(&mut self) {
        self.core = Core::new(self.me.clone(), self.disk.clone());
        self.started = self.now;
        (self.seen, self.seen_flannel) = (None, None);
        self.looked = (BTreeMap::new(), 0, vec![]);
        self.todo.clear();
        self.held.clear();
        self.held_file = None;
        self.lease = None;
    }

    /// The machine starts anew: pods and their leases are gone.
    pub(super) fn reboot(&mut self) {
        self.me.boot_id = boot(100 + self.files).parse().unwrap();
        self.pods.clear();
        self.restart();
    }

    pub(super) fn step(&mut self, event: Event) {
        let mut out = Vec::new();
        let now = self.now - self.started;
        self.core.step(now, event, &mut out);
        assert!(self.core.deadline().is_none_or(|at| at > now), "the deadline is in the past: a busy loop");
        self.todo.extend(out);
    }

    /// Until nothing happens any more.
    pub(super) fn settle(&mut self) {
        for _ in 0..1000 {
            while let Some(action) = self.todo.pop_front() {
                self.act(action);
            }
            if self.connected
                && let Some((event, revision)) = next_event(&self.mem, self.seen)
            {
                self.seen = Some(revision);
                self.step(Event::Store(event));
            } else if self.connected
                && let Some((prefix, event, revision)) = self.next_of_flannel()
            {
                self.seen_flannel = Some(revision);
                self.step(Event::Flannel(prefix, Ok(event)));
            } else if self.looks && self.look() {
                let (blocks, generation, elsewhere) = self.looked.clone();
                self.step(Event::Usage { blocks, generation, elsewhere });
            } else if self.todo.is_empty() {
                return;
            }
        }
        panic!("does not settle: {:?}", self.reports);
    }

    fn next_of_flannel(&self) -> Option<(Prefix, StoreEvent, i64)> {
        let prefix = self.core.flannel_prefix().filter(|_| self.flannel)?;
        let (event, revision) =
            next_below(&self.mem, &[prefix.config(), prefix.subnets()], self.seen_flannel)?;
        Some((prefix, event, revision))
    }

    /// Looks at the leases; whether something is new.
    fn look(&mut self) -> bool {
        let usage = |block: &IpNet| {
            let (leased, quarantined) = self.pods.get(block).copied().unwrap_or_default();
            let reserved = self.disk.iter().flat_map(|file| &file.tunnel_addresses);
            let reserved = reserved.filter(|address| block.contains(*address)).count() as u64;
            let size = 1u64 << (block.max_prefix_len() - block.prefix_len());
            let available = size - reserved - leased - quarantined;
            Usage { available, leased, quarantined, first_leased: false }
        };
        let own = self.core.view().own_blocks.clone();
        let blocks = own.iter().map(|own| (own.cidr, usage(&own.cidr))).collect();
        let this_boot = self.disk.as_ref().filter(|file| file.boot_id == self.me.boot_id);
        let lost = self
            .pods
            .iter()
            .filter(|(block, (leased, _))| *leased > 0 && !own.iter().any(|own| own.cidr == **block));
        let elsewhere = lost.map(|(block, _)| block.broadcast()).collect();
        let looked = (blocks, this_boot.map_or(0, |file| file.generation), elsewhere);
        let is_new = looked != self.looked;
        self.looked = looked;
        is_new
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Write(write) => {
                self.asked.push(write.clone());
                match self.writing {
                    Writing::Works => self.answer(&write),
                    Writing::Unsure => {
                        carry_out(&mut self.mem, &mut self.lease, &write);
                        self.fail(&write);
                    }
                    Writing::Fails => self.fail(&write),
                    Writing::Held => self.held.push(write),
                }
            }
            Action::WriteNodeFile(file) => {
                self.files += 1;
                match self.filing {
                    Filing::Works => self.file(*file),
                    Filing::Fails => self.step(Event::NodeFileWritten {
                        generation: file.generation,
                        error: Some("no space left".into()),
                    }),
                    Filing::Held => assert!(self.held_file.replace(*file).is_none(), "one at a time"),
                }
            }
            Action::ForgetLeases(block) => self.forgotten.push(block),
            Action::Publish => {}
            Action::Refuse(refusal) => self.refused = Some(refusal.0),
            Action::Report(severity, text) => self.reports.push((severity, text)),
        }
    }

    /// Carries out a write and answers it.
    pub(super) fn answer(&mut self, write: &Write) {
        let written = carry_out(&mut self.mem, &mut self.lease, write);
        self.step(Event::Written { id: write.id, result: Ok(written) });
    }

    /// Answers that nobody knows.
    pub(super) fn fail(&mut self, write: &Write) {
        let error = StoreError::Timeout { endpoint: "mem".into(), after: seconds(5) };
        self.step(Event::Written { id: write.id, result: Err(error) });
    }

    /// Puts a node file on the disk.
    pub(super) fn file(&mut self, file: NodeFile) {
        let generation = file.generation;
        self.disk = Some(file);
        self.step(Event::NodeFileWritten { generation, error: None });
    }

    /// Lets time pass, with every deadline of the core.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let keep_alive = self.now + LEASE / 3;
            let deadline = self.core.deadline().map_or(end, |at| at + self.started);
            self.now = deadline.min(keep_alive).min(end).max(self.now);
            if self.connected {
                if let Some(lease) = self.lease {
                    let _ = self.mem.keep_alive(lease);
                }
                self.mem.advance(self.now);
                if let Some(lease) = self.lease {
                    let _ = self.mem.keep_alive(lease);
                }
            } else {
                self.mem.advance(self.now);
            }
            self.step(Event::Tick);
            self.settle();
            if self.now >= end {
                return;
            }
        }
    }

    pub(super) fn disconnect(&mut self) {
        self.connected = false;
        self.step(Event::Store(StoreEvent::Unavailable { reason: "mem: away".into() }));
        self.settle();
    }

    pub(super) fn reconnect(&mut self) {
        self.connected = true;
        self.step(Event::Store(StoreEvent::Available));
        self.settle();
    }

    // What others do.

    pub(super) fn put(&mut self, key: &Key, value: &[u8]) -> i64 {
        self.mem.put(&key.to_string(), value, None).unwrap()
    }

    pub(super) fn put_pool(&mut self, name: &str, pool: &Pool) {
        self.put(&Key::Pool(name.parse().unwrap()), &encode(pool));
    }

    /// Another node's claim.
    pub(super) fn put_claim(&mut self, i: usize, block: IpNet, confirmed: bool) {
        let name = match block.prefix_len() {
            26 => "p4",
            122 => "p6",
            _ => "of-another-size",
        };
        let claim =
            Claim { instance_id: instance(i).parse().unwrap(), pool: name.parse().unwrap(), confirmed };
        self.put(&Key::Claim(format!("n{i}").parse().unwrap(), block), &encode(&claim));
    }

    /// Another node's record.
    pub(super) fn put_node(&mut self, i: usize) {
        let node = identity(i);
        let record = NodeRecord {
            instance_id: node.instance_id,
            address_v4: facts(i).address_v4,
            address_v6: None,
            tunnel_v4: None,
            tunnel_v6: None,
            labels: BTreeMap::new(),
            asn: None,
            vtep_mac: None,
            wireguard_key: None,
            version: String::new(),
            ways: None,
        };
        self.put(&Key::Node(node.node), &encode(&record));
    }

    /// A sign of life of installation `i` under the name of node `n<of>`.
    pub(super) fn put_live(&mut self, of: usize, i: usize) -> LeaseId {
        let lease = self.mem.grant(LEASE);
        let life = Liveness {
            instance_id: instance(i).parse().unwrap(),
            addresses: facts(i).address_v4.map(Into::into).into_iter().collect(),
        };
        let key = Key::Live(format!("n{of}").parse().unwrap()).to_string();
        self.mem.put(&key, &encode(&life), Some(lease)).unwrap();
        lease
    }

    /// `podwayctl node release`, in its order; `hold`: not `--now`.
    pub(super) fn release(&mut self, i: usize, hold: bool) {
        let node: podway_model::ids::NodeName = format!("n{i}").parse().unwrap();
        for entry in self.mem.list(&[format!("claims/{node}/")]).entries {
            let Ok(Key::Claim(_, block)) = entry.key.parse() else { continue };
            if hold {
                let at_unix_seconds = EPOCH + self.now.as_secs();
                self.put(
                    &Key::Released(block),
                    &encode(&Released { at_unix_seconds, former_owner: node.clone() }),
                );
            }
            self.mem.delete(&entry.key);
        }
        self.mem.delete(&format!("nodes/{node}"));
        self.mem.delete(&format!("live/{node}"));
    }

    // What can be seen.

    pub(super) fn view(&self) -> ClusterView {
        (*self.core.view()).clone()
    }

    /// Own blocks of the view.
    pub(super) fn own(&self) -> Vec<(IpNet, OwnBlockState)> {
        self.view().own_blocks.iter().map(|block| (block.cidr, block.state)).collect()
    }

    /// The one own block.
    pub(super) fn block(&self) -> IpNet {
        let own = self.own();
        assert_eq!(own.len(), 1, "{own:?}");
        own[0].0
    }

    /// Blocks of the node file.
    pub(super) fn listed(&self) -> Vec<(IpNet, BlockState)> {
        self.disk.iter().flat_map(|file| &file.blocks).map(|block| (block.cidr, block.state)).collect()
    }

    pub(super) fn claim(&self, block: IpNet) -> Option<Claim> {
        claim_in(&self.mem, "n1", block)
    }

    /// Keys of this node's claims.
    pub(super) fn claims(&self) -> Vec<String> {
        let prefix = format!("claims/{}/", self.me.node);
        self.mem.list(&[prefix]).entries.into_iter().map(|entry| entry.key).collect()
    }

    pub(super) fn has_problem(&self, part: &str) -> bool {
        self.view().problems.iter().any(|problem| problem.contains(part))
    }

    pub(super) fn has_warned(&self, part: &str) -> bool {
        self.reports.iter().any(|(severity, text)| *severity == Severity::Warn && text.contains(part))
    }
}
