//! Which leases nobody will ever end: their pods are gone and no DEL came. Pure.
//!
//! A runtime that is killed, loses its state or forgets a sandbox leaves the addresses of its pods leased. A lease is
//! stale if the node's end of its veth is missing in two looks [`APART`] and it is older than [`YOUNG`]. Never is the
//! pod's namespace a criterion: a daemon in a container does not see it. A lease for an interface that somebody else
//! makes has no veth of ours, and is never stale; leases of another boot are gone with their file.
//!
//! Looks are made by `routed` now and then, and by an ADD that finds the node's blocks nearly full. They share what
//! they saw ([`Suspects`]), so it does not matter who looks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::lease::{Attachment, LeaseKind};
use crate::ledger::Ledger;

/// Time between the looks in which a veth must be missing.
pub const APART: Duration = Duration::from_secs(60);
/// A lease that is younger may be one whose veth is still being made.
pub const YOUNG: Duration = Duration::from_secs(5 * 60);

/// Attachments whose veth was missing in every look since then (time since boot).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Suspects {
    since: BTreeMap<Attachment, Duration>,
}

impl Suspects {
    /// Takes a look: `present` are the attachments whose veth is there. Returns those whose leases are stale.
    pub fn look(
        &mut self,
        ledger: &Ledger,
        present: &BTreeSet<Attachment>,
        now: Duration,
    ) -> Vec<Attachment> {
        let missing = |lease: &&crate::lease::Lease| {
            lease.kind == LeaseKind::Wired && !present.contains(&lease.attachment)
        };
        let before = std::mem::take(&mut self.since);
        let mut stale = Vec::new();
        for lease in ledger.leases().filter(missing) {
            // A lease that is younger than the suspicion is another one of the same attachment.
            let since = before.get(&lease.attachment).copied().filter(|since| *since >= lease.since);
            let since = since.unwrap_or(now);
            let is_old = now.saturating_sub(lease.since) > YOUNG;
            if is_old && now.saturating_sub(since) >= APART {
                stale.push(lease.attachment.clone());
            } else {
                self.since.insert(lease.attachment.clone(), since);
            }
        }
        stale
    }

    /// One line for each: milliseconds since boot, container id, interface.
    pub fn to_text(&self) -> String {
        let line = |(attachment, since): (&Attachment, &Duration)| {
            format!("{} {} {}\n", since.as_millis(), attachment.container_id, attachment.ifname)
        };
        self.since.iter().map(line).collect()
    }

    /// Reads what [`Self::to_text`] wrote. Lines that cannot be read are left out: a suspicion that is lost costs a
    /// minute.
    pub fn from_text(text: &str) -> Self {
        let parse = |line: &str| {
            let mut words = line.split(' ');
            let since = Duration::from_millis(words.next()?.parse().ok()?);
            let (id, ifname) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
            words.next().is_none().then_some((Attachment::new(id, ifname), since))
        };
        Self { since: text.lines().filter_map(parse).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Entry;
    use crate::lease::{Lease, LeasedAddress};

    fn attachment(name: &str) -> Attachment {
        Attachment::new(name.parse().unwrap(), "eth0".parse().unwrap())
    }

    fn ledger(leases: &[(&str, u64, LeaseKind)]) -> Ledger {
        let mut ledger = Ledger::default();
        for (i, (name, since, kind)) in leases.iter().enumerate() {
            let address = std::net::Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(i).unwrap()).into();
            let lease = Lease {
                attachment: attachment(name),
                network: "podway".parse().unwrap(),
                addresses: vec![LeasedAddress { address, pool: "p".parse().unwrap() }],
                since: seconds(*since),
                kind: *kind,
            };
            ledger.apply(&Entry::Lease(lease)).unwrap();
        }
        ledger
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_lease_is_stale_after_two_looks_without_its_veth_and_never_while_it_lives() {
        let all = ledger(&[
            ("gone", 0, LeaseKind::Wired),
            ("here", 0, LeaseKind::Wired),
            ("lan", 0, LeaseKind::AddressOnly),
            ("young", 900, LeaseKind::Wired),
        ]);
        let present = BTreeSet::from([attachment("here")]);
        let mut suspects = Suspects::default();
        let mut look = |now| suspects.look(&all, &present, seconds(now));
        assert_eq!(look(1000), [], "one look is none");
        assert_eq!(look(1059), [], "two looks that are too near");
        assert_eq!(look(1060), [attachment("gone")]);
        // Not released by the caller: suspected anew.
        assert_eq!(look(1061), []);
        assert_eq!(look(1121), [attachment("gone")]);
        assert_eq!(look(1200), [], "young");
        assert_eq!(look(1201), [attachment("young")], "older than five minutes");
    }

    #[test]
    fn a_veth_that_is_seen_in_between_ends_the_suspicion() {
        let all = ledger(&[("c", 0, LeaseKind::Wired)]);
        let mut suspects = Suspects::default();
        let nobody = BTreeSet::new();
        assert_eq!(suspects.look(&all, &nobody, seconds(1000)), []);
        assert_eq!(suspects.look(&all, &BTreeSet::from([attachment("c")]), seconds(1050)), []);
        assert_eq!(suspects.look(&all, &nobody, seconds(1070)), []);
        assert_eq!(suspects.look(&all, &nobody, seconds(1130)), [attachment("c")]);
        // A new lease of a suspected attachment begins anew.
        let mut suspects = Suspects::default();
        suspects.look(&all, &nobody, seconds(1000));
        let anew = ledger(&[("c", 1010, LeaseKind::Wired)]);
        assert_eq!(suspects.look(&anew, &nobody, seconds(1400)), []);
    }

    #[test]
    fn what_is_suspected_outlives_a_process() {
        let all = ledger(&[("a", 0, LeaseKind::Wired), ("b", 0, LeaseKind::Wired)]);
        let mut suspects = Suspects::default();
        suspects.look(&all, &BTreeSet::new(), seconds(1000));
        assert_eq!(Suspects::from_text(&suspects.to_text()), suspects);
        let text = format!("{}x y\n17\n1 / eth0\n1 a eth0 more\n", suspects.to_text());
        assert_eq!(Suspects::from_text(&text), suspects);
    }
}
