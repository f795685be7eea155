//! Classes: peers that the policies in use cannot tell apart.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::in_use::InUse;
use crate::intern::Id;
use crate::objects::{Objects, PodFacts};
use crate::rules::{Peer, PortName};
use crate::segments::Segments;

/// Number of the class that no policy in use says anything about.
pub(crate) const NOTHING: Id = 0;

/// What makes a class: everything that policies in use can see of a peer.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Signature {
    /// Kinds of peers that it is.
    pub(crate) peers: BTreeSet<Id>,
    /// Its numbers for the port names in use.
    pub(crate) ports: BTreeMap<PortName, BTreeSet<u16>>,
}

impl Signature {
    /// The class of addresses in these blocks that belong to no pod.
    pub(crate) fn of_blocks(blocks: BTreeSet<Id>) -> Self {
        Self { peers: blocks, ports: BTreeMap::new() }
    }

    /// Whether policies in use say nothing about it.
    pub(crate) fn is_nothing(&self) -> bool {
        self.peers.is_empty() && self.ports.is_empty()
    }
}

/// Works out signatures; remembers which selectors concern a namespace.
pub(crate) struct Classifier<'a> {
    objects: &'a Objects,
    in_use: &'a InUse,
    segments: &'a Segments,
    candidates: BTreeMap<String, Vec<Id>>,
}

impl<'a> Classifier<'a> {
    /// For these objects and what is in use now.
    pub(crate) fn new(objects: &'a Objects, in_use: &'a InUse, segments: &'a Segments) -> Self {
        Self { objects, in_use, segments, candidates: BTreeMap::new() }
    }

    /// The signature of a pod's address. An address that several pods claim has what all of them have: until it
    /// is clear whose it is, nobody gains by the other's labels.
    pub(crate) fn signature(&mut self, address: IpAddr) -> Signature {
        let mut all: Option<Signature> = None;
        for (namespace, pod) in self.objects.owners(address) {
            let one = pod.map(|pod| self.of_pod(namespace, pod)).unwrap_or_default();
            all = Some(match all {
                None => one,
                Some(before) => common(before, &one),
            });
        }
        let mut signature = all.unwrap_or_default();
        signature.peers.extend(self.segments.blocks_of(address).into_iter().flatten());
        signature
    }

    fn of_pod(&mut self, namespace: &str, pod: &PodFacts) -> Signature {
        let (objects, peers) = (self.objects, self.in_use.peers());
        if !self.candidates.contains_key(namespace) {
            let concerned = |peer: &Peer| match peer {
                Peer::Pods { namespaces, .. } => objects.is_in(namespace, namespaces),
                Peer::Block(_) => false,
            };
            let found = peers.iter().filter(|(_, peer)| concerned(peer)).map(|(id, _)| id).collect();
            self.candidates.insert(namespace.to_owned(), found);
        }
        let selects = |id: &Id| match peers.get(*id) {
            Some(Peer::Pods { pods, .. }) => pods.matches(&pod.labels),
            _ => false,
        };
        Signature {
            peers: self.candidates.get(namespace).into_iter().flatten().copied().filter(selects).collect(),
            ports: pod
                .ports
                .iter()
                .filter(|(name, _)| self.in_use.is_name_used(name))
                .map(|(name, numbers)| (name.clone(), numbers.clone()))
                .collect(),
        }
    }
}

/// What two signatures have in common.
fn common(mut a: Signature, b: &Signature) -> Signature {
    a.peers.retain(|peer| b.peers.contains(peer));
    a.ports.retain(|name, numbers| {
        let others = b.ports.get(name);
        numbers.retain(|number| others.is_some_and(|o| o.contains(number)));
        !numbers.is_empty()
    });
    a
}
