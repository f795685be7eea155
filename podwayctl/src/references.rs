//! What documents of BGP name: filters, communities, reflectors. A document that names what is not there is refused, and
//! so is taking away what another one names.

use std::collections::{BTreeMap, BTreeSet};

use podway_model::bgp::BgpFilter;
use podway_model::cluster::{Backend, BgpPeer, ClusterConfig, Topology};
use podway_model::document::{Document, Kind, Reference, references};
use podway_model::ids::{NodeName, ObjectName};
use podway_model::keys::Key;
use podway_model::mistakes::Mistakes;
use podway_store::Store;

use crate::objects::{self, Given};
use crate::outcome::Failure;

/// Documents of BGP, as the store has them or will have them.
#[derive(Debug, Clone, Default)]
struct Documents {
    config: ClusterConfig,
    filters: BTreeMap<ObjectName, BgpFilter>,
    peers: BTreeMap<ObjectName, BgpPeer>,
    reflectors: BTreeSet<NodeName>,
}

impl Documents {
    /// Values that cannot be read are not there; others have said so.
    async fn read(store: &dyn Store) -> Result<Self, Failure> {
        let mut documents = Self::default();
        for kind in [Kind::ClusterConfig, Kind::BgpFilter, Kind::BgpPeer, Kind::Reflector] {
            for (document, _) in objects::list(store, kind).await?.0 {
                documents.put(&document);
            }
        }
        Ok(documents)
    }

    fn put(&mut self, document: &Document) {
        match document {
            Document::ClusterConfig(config) => self.config = config.clone(),
            Document::BgpFilter { name, spec } => drop(self.filters.insert(name.clone(), spec.clone())),
            Document::BgpPeer { name, spec } => drop(self.peers.insert(name.clone(), spec.clone())),
            Document::Reflector { node, .. } => drop(self.reflectors.insert(node.clone())),
            _ => {}
        }
    }

    fn remove(&mut self, key: &Key) {
        match key {
            Key::Config => self.config = ClusterConfig::default(),
            Key::Filter(name) => drop(self.filters.remove(name)),
            Key::Peer(name) => drop(self.peers.remove(name)),
            Key::Reflector(node) => drop(self.reflectors.remove(node)),
            _ => {}
        }
    }

    fn wrong(&self) -> Vec<Reference> {
        references(&self.config.bgp.communities, &self.filters, &self.peers)
    }

    /// Nodes look for reflectors, and there is none.
    fn lacks_reflectors(&self) -> bool {
        let wants = self.config.backend == Backend::Bgp && self.config.bgp.topology == Topology::Reflectors;
        wants && self.reflectors.is_empty()
    }
}

fn is_of_bgp(key: &Key) -> bool {
    matches!(key, Key::Config | Key::Filter(_) | Key::Peer(_) | Key::Reflector(_))
}

/// Checks documents that are to be written.
pub(crate) async fn check_apply(store: &dyn Store, given: &[Given]) -> Result<(), Failure> {
    if !given.iter().any(|given| is_of_bgp(&given.document.key())) {
        return Ok(());
    }
    let before = Documents::read(store).await?;
    let mut after = before.clone();
    given.iter().for_each(|given| after.put(&given.document));
    let source =
        |key: &Key| given.iter().find(|given| given.document.key() == *key).map(|given| &given.source);
    let known = before.wrong();
    let mut mistakes = Mistakes::default();
    for wrong in after.wrong() {
        if let Some(source) = source(&wrong.key) {
            mistakes.add(source, format!("{}: {}", wrong.key, wrong.field), wrong.found, wrong.expected);
        } else if let Some(source) = source(&Key::Config).filter(|_| !known.contains(&wrong)) {
            let expected = format!("{:?} among them, which {} names", wrong.found, wrong.key);
            mistakes.add(source, "config: spec.bgp.communities", "others", expected);
        }
    }
    if after.lacks_reflectors()
        && let Some(source) = source(&Key::Config)
    {
        let expected = "mesh, or a Reflector document for at least one node";
        mistakes.add(source, "config: spec.bgp.topology", "reflectors", expected);
    }
    mistakes.into_result(()).map_err(Failure::from)
}

/// Checks what is to be removed.
pub(crate) async fn check_delete(
    store: &dyn Store,
    targets: impl Iterator<Item = &Key>,
) -> Result<(), Failure> {
    let targets: Vec<&Key> = targets.filter(|key| is_of_bgp(key)).collect();
    if targets.is_empty() {
        return Ok(());
    }
    let before = Documents::read(store).await?;
    let mut after = before.clone();
    targets.iter().for_each(|key| after.remove(key));
    let known = before.wrong();
    let mut refused: Vec<String> = after
        .wrong()
        .iter()
        .filter(|wrong| !known.contains(wrong))
        .map(|wrong| format!("{:?} is in use: {}: {} names it", wrong.found, wrong.key, wrong.field))
        .collect();
    if after.lacks_reflectors() && !before.lacks_reflectors() {
        refused.push(
            "the last reflector is in use: the topology is reflectors, and the nodes would have no routes; \
             set `bgp.topology: mesh` first, or add another one (podwayctl bgp reflector add NODE)"
                .to_owned(),
        );
    }
    if refused.is_empty() { Ok(()) } else { Err(Failure::Failed(refused.join("\n"))) }
}
