//! Verdicts: what each policy set allows to everybody and to each class, as elements, within limits.

use std::collections::BTreeMap;

use crate::classes::Signature;
use crate::contents::{Atom, Contents, Key};
use crate::intern::Id;
use crate::ports::{Grant, PortSet};
use crate::sets::{self, Accepts};

/// Ranges up to this many ports become one element per port: hash sets are cheap to change, interval sets are not.
pub const EXPANDED_PORTS: u16 = 64;

/// How much one policy set may put into the kernel. A set above a limit is closed as a whole and reported: never
/// open, never in parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Elements of a set.
    pub elements: usize,
    /// Port ranges among them: the kernel copies interval sets on every change (2.5 ms at 1,000).
    pub ranges: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { elements: 65_536, ranges: 2_048 }
    }
}

/// Verdicts of all sets, and which of them are still to be written.
#[derive(Debug, Clone, Default)]
pub(crate) struct Verdicts {
    limits: Limits,
    sets: BTreeMap<Id, SetVerdicts>,
    /// What was written for every verdict touched since.
    touched: BTreeMap<Id, BTreeMap<Option<Id>, PortSet>>,
}

#[derive(Debug, Clone, Default)]
struct SetVerdicts {
    /// By class; none: everybody.
    ports: BTreeMap<Option<Id>, PortSet>,
    size: Size,
    /// Over a limit when last written: none of it stands in the contents.
    closed: bool,
}

/// Elements, and ranges among them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Size {
    elements: usize,
    ranges: usize,
}

impl Verdicts {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Works a set's verdicts out again, for all classes.
    pub(crate) fn replace_set<'a>(
        &mut self,
        set: Id,
        accepts: &Accepts,
        classes: impl Iterator<Item = (Id, &'a Signature)>,
    ) {
        let old: Vec<Option<Id>> =
            self.sets.get(&set).map(|v| v.ports.keys().copied().collect()).unwrap_or_default();
        let mut new: BTreeMap<Option<Id>, PortSet> =
            classes.map(|(class, signature)| (Some(class), verdict(accepts, signature))).collect();
        new.insert(None, accepts.everybody.clone());
        for class in old.into_iter().filter(|class| !new.contains_key(class)).collect::<Vec<_>>() {
            self.change(set, class, PortSet::default());
        }
        for (class, ports) in new {
            self.change(set, class, ports);
        }
    }

    /// Works out a set's verdict on a new class.
    pub(crate) fn put(&mut self, set: Id, accepts: &Accepts, class: Id, signature: &Signature) {
        self.change(set, Some(class), verdict(accepts, signature));
    }

    /// Forgets a class.
    pub(crate) fn remove_class(&mut self, class: Id) {
        let sets: Vec<Id> = self
            .sets
            .iter()
            .filter(|(_, verdicts)| verdicts.ports.contains_key(&Some(class)))
            .map(|(set, _)| *set)
            .collect();
        for set in sets {
            self.change(set, Some(class), PortSet::default());
        }
    }

    /// Forgets a set.
    pub(crate) fn remove_set(&mut self, set: Id) {
        let classes: Vec<Option<Id>> =
            self.sets.get(&set).map(|v| v.ports.keys().copied().collect()).unwrap_or_default();
        for class in classes {
            self.change(set, class, PortSet::default());
        }
    }

    /// Sets that are closed for being over a limit.
    pub(crate) fn closed(&self) -> impl Iterator<Item = Id> {
        self.sets.iter().filter(|(_, verdicts)| verdicts.closed).map(|(set, _)| *set)
    }

    fn change(&mut self, set: Id, class: Option<Id>, ports: PortSet) {
        let verdicts = self.sets.entry(set).or_default();
        verdicts.size.add(&ports);
        let old = if ports.is_empty() {
            verdicts.ports.remove(&class)
        } else {
            verdicts.ports.insert(class, ports)
        };
        let old = old.unwrap_or_default();
        verdicts.size.subtract(&old);
        self.touched.entry(set).or_default().entry(class).or_insert(old);
    }

    /// Writes what was touched.
    pub(crate) fn write(&mut self, contents: &mut Contents) {
        for (set, touched) in std::mem::take(&mut self.touched) {
            let Some(verdicts) = self.sets.get_mut(&set) else { continue };
            let was_closed = verdicts.closed;
            verdicts.closed =
                verdicts.size.elements > self.limits.elements || verdicts.size.ranges > self.limits.ranges;
            if !was_closed {
                for (class, old) in &touched {
                    atoms(old).for_each(|atom| contents.set(Key::Verdict(set, *class, atom), None));
                }
            }
            match (was_closed, verdicts.closed) {
                (false, true) => {
                    for (class, ports) in
                        verdicts.ports.iter().filter(|(class, _)| !touched.contains_key(class))
                    {
                        atoms(ports).for_each(|atom| contents.set(Key::Verdict(set, *class, atom), None));
                    }
                }
                (_, false) => {
                    let all = was_closed;
                    for (class, ports) in &verdicts.ports {
                        if all || touched.contains_key(class) {
                            atoms(ports)
                                .for_each(|atom| contents.set(Key::Verdict(set, *class, atom), Some(0)));
                        }
                    }
                }
                (true, true) => {}
            }
            if verdicts.ports.is_empty() {
                self.sets.remove(&set);
            }
        }
    }
}

/// What a set accepts towards a class, beyond what it accepts towards everybody.
fn verdict(accepts: &Accepts, signature: &Signature) -> PortSet {
    let mut ports = PortSet::default();
    sets::resolve(&accepts.everybody_names, &signature.ports, &mut ports);
    for towards in signature.peers.iter().filter_map(|peer| accepts.peers.get(peer)) {
        ports.union(&towards.ports);
        sets::resolve(&towards.names, &signature.ports, &mut ports);
    }
    if accepts.everybody.covers(&ports) { PortSet::default() } else { ports }
}

/// The elements of a port set.
fn atoms(ports: &PortSet) -> impl Iterator<Item = Atom> + '_ {
    ports.grants().flat_map(|grant| {
        let (singles, atom) = match grant {
            Grant::All => (None, Some(Atom::All)),
            Grant::Whole(protocol) => (None, Some(Atom::Whole(protocol))),
            Grant::Range(protocol, first, last) if last - first < EXPANDED_PORTS => {
                (Some((first..=last).map(move |port| Atom::Port(protocol, port))), None)
            }
            Grant::Range(protocol, first, last) => (None, Some(Atom::Range(protocol, first, last))),
        };
        singles.into_iter().flatten().chain(atom)
    })
}

impl Size {
    fn of(ports: &PortSet) -> Self {
        let mut size = Self::default();
        for atom in atoms(ports) {
            size.elements += 1;
            size.ranges += usize::from(matches!(atom, Atom::Range(..)));
        }
        size
    }

    fn add(&mut self, ports: &PortSet) {
        let more = Self::of(ports);
        self.elements += more.elements;
        self.ranges += more.ranges;
    }

    fn subtract(&mut self, ports: &PortSet) {
        let less = Self::of(ports);
        self.elements -= less.elements;
        self.ranges -= less.ranges;
    }
}
