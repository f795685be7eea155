//! This node's record and sign of life, and other installations under its name.

use std::net::IpAddr;
use std::time::Duration;

use podway_model::cluster::{Claim, Liveness, NodeRecord, decode, encode};
use podway_model::keys::Key;
use podway_model::names;
use podway_store::{Expect, StoreError, Written};

use super::core::Core;
use super::event::{Action, Operation, Severity};
use super::own::Phase;

/// How often the sign of life is taken back from another process of the same installation: one that was just
/// replaced by this one, or a copied machine.
const TAKE_BACK: Duration = Duration::from_secs(10);

/// State of the sign of life.
#[derive(Debug, Default)]
pub(crate) struct LiveState {
    /// Revision of our last write of it, once answered.
    written: Option<i64>,
    /// Whether it was ours in this run of the daemon.
    held: bool,
    /// Another installation lives under our name; it came while we were running.
    pub(super) in_conflict: bool,
    /// Earliest time of the next write.
    pub(super) not_before: Duration,
}

impl Core {
    /// Looks for a live lease of another installation under this node's name. Answers why this node must not
    /// start; a node that runs already stays, stops writing, and says so.
    pub(super) fn find_conflict(&mut self) -> Option<String> {
        self.live.in_conflict = false;
        // Before it knows its own address this node writes nothing, and could not name both.
        self.facts.as_ref()?;
        let stored = self.table.live.get(&self.me.node)?;
        if stored.value.instance_id == self.me.instance_id {
            self.live.held = true;
            return None;
        }
        let list = |addresses: &[IpAddr]| {
            let texts: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
            if texts.is_empty() { "no address".to_owned() } else { texts.join(", ") }
        };
        let text = format!(
            "node name {} is taken: installation {} at {} is alive under it, this is installation {} at {}; \
             give one of them another name (`node.name`)",
            self.me.node,
            stored.value.instance_id,
            list(&stored.value.addresses),
            self.me.instance_id,
            list(&self.addresses()),
        );
        if !self.live.held {
            return Some(text);
        }
        self.live.in_conflict = true;
        self.problems.insert(text);
        None
    }

    fn addresses(&self) -> Vec<IpAddr> {
        let facts = self.facts.as_ref();
        let v4 = facts.and_then(|facts| facts.address_v4).map(IpAddr::V4);
        let v6 = facts.and_then(|facts| facts.address_v6).map(IpAddr::V6);
        v4.into_iter().chain(v6).collect()
    }

    /// Whether the sign of life that stands in the store is of this installation: others start no claims.
    pub(super) fn is_registered(&self) -> bool {
        let live = self.table.live.get(&self.me.node);
        live.is_some_and(|stored| stored.value.instance_id == self.me.instance_id)
    }

    /// Publishes record and sign of life where they are not what they should be.
    pub(super) fn register(&mut self, now: Duration, out: &mut Vec<Action>) {
        if !self.can_write() || self.facts.is_none() {
            return;
        }
        self.show_life(now, out);
        if !self.is_registered() {
            return;
        }
        let record = self.record();
        let is = self.table.nodes.get(&self.me.node).map(|stored| &stored.value);
        let key = Key::Node(self.me.node.clone());
        if is != Some(&record) || self.table.bad.contains_key(&key.to_string()) {
            let expect = self.table.modified(&key).map_or(Expect::Absent, Expect::Revision);
            self.writes.propose(key.to_string(), Operation::Put(encode(&record), expect), out);
        }
    }

    fn show_life(&mut self, now: Duration, out: &mut Vec<Action>) {
        let life = Liveness { instance_id: self.me.instance_id.clone(), addresses: self.addresses() };
        let key = Key::Live(self.me.node.clone());
        let modified = self.table.modified(&key);
        let stands = self.table.live.get(&self.me.node);
        let is_ours = modified.is_some() && modified == self.live.written;
        if is_ours && stands.is_some_and(|stored| stored.value == life) {
            return;
        }
        // A key that is gone is written at once; one that somebody else wrote, not in a tight loop.
        if modified.is_some() && !is_ours && now < self.live.not_before {
            return;
        }
        let expect = modified.map_or(Expect::Absent, Expect::Revision);
        if self.writes.propose(key.to_string(), Operation::PutLeased(encode(&life), expect), out) && !is_ours
        {
            self.live.not_before = now + TAKE_BACK;
        }
    }

    /// What this node says of itself. A tunnel address is published once the node file reserves it.
    fn record(&self) -> NodeRecord {
        let facts = self.facts.as_ref();
        let (mut tunnel_v4, mut tunnel_v6) = (None, None);
        for address in self.file.tunnel_addresses() {
            match address {
                IpAddr::V4(v4) => tunnel_v4 = Some(v4),
                IpAddr::V6(v6) => tunnel_v6 = Some(v6),
            }
        }
        NodeRecord {
            instance_id: self.me.instance_id.clone(),
            address_v4: facts.and_then(|facts| facts.address_v4),
            address_v6: facts.and_then(|facts| facts.address_v6),
            tunnel_v4: tunnel_v4.copied(),
            tunnel_v6: tunnel_v6.copied(),
            labels: self.me.labels.clone(),
            asn: self.me.asn,
            vtep_mac: Some(names::vtep_mac(self.me.node.as_str(), names::VXLAN_DEVICE)),
            wireguard_key: self.me.wireguard_key,
            version: self.me.version.clone(),
            // Until the data plane has looked, what an earlier run said holds: the kernel is as that left it.
            ways: self.ways.clone().or_else(|| {
                let stored = self.table.nodes.get(&self.me.node)?;
                (stored.value.instance_id == self.me.instance_id).then(|| stored.value.ways.clone())?
            }),
        }
    }

    /// Whether a claim stands in the store as this node's, by this write or by an earlier one that was thought lost.
    fn is_made(&self, result: &Result<Written, StoreError>) -> bool {
        match result {
            Ok(Written::Done { .. }) => true,
            Ok(Written::Refused { found }) => {
                let claim = found.as_ref().and_then(|entry| decode::<Claim>(&entry.value).ok());
                claim.is_some_and(|claim| claim.instance_id == self.me.instance_id)
            }
            Err(_) => false,
        }
    }

    /// A write was answered.
    pub(super) fn on_written(
        &mut self,
        now: Duration,
        key: &str,
        result: &Result<Written, StoreError>,
        out: &mut Vec<Action>,
    ) {
        match result {
            // One cause for every key: said once, until it is over.
            Err(StoreError::Full { .. }) if std::mem::replace(&mut self.told_full, true) => {}
            Err(error) => out.push(Action::Report(Severity::Warn, format!("{key} not written: {error}"))),
            Ok(_) => {}
        }
        if key.starts_with('/') {
            return self.on_flannel_written(now, key, result);
        }
        match (key.parse(), result) {
            (Ok(Key::Live(_)), Ok(Written::Done { revision })) => self.live.written = Some(*revision),
            (Ok(Key::Claim(_, block)), result) => {
                let is_claiming = self.own.get(&block).is_some_and(|own| own.phase == Phase::Claiming);
                if is_claiming && !self.is_made(result) {
                    // If it did happen, the watch shows it and it is taken over then.
                    self.own.remove(&block);
                    self.attempt += 1;
                }
                if result.is_err() {
                    self.claim_not_before = now + Duration::from_secs(1);
                }
            }
            _ => {}
        }
    }
}
