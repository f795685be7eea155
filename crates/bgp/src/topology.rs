//! Who has sessions with whom in a cluster: a mesh, or reflectors, which each node chooses by itself.
//!
//! Nothing is elected and nothing is written: every node ranks the nodes that it knows in the same way, by a hash of
//! their names, zones apart, and takes the first three as reflectors. One to which its own session has been down for a
//! minute is replaced by the next in rank, for this node alone, and comes back when its session does. Views may differ:
//! a node serves whoever connects to it, and sessions end only when neither side needs them
//! ([`crate::config::Standing`]).
//!
//! A pure core: who is there, which sessions are up, and the time come in; a [`View`] goes out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use podway_model::cluster::{BgpConfig, NodeRecord, Topology};
use podway_model::ids::NodeName;
use sha2::{Digest, Sha256};

use crate::config::{ConnectMode, Role, Standing};

/// The label that says in which zone a node stands.
pub const ZONE: &str = "topology.kubernetes.io/zone";
/// How many reflectors a node connects to.
pub const REFLECTORS: usize = 3;
/// How long a node's session to a reflector is down before it takes another one besides.
pub const DOWN: Duration = Duration::from_secs(60);
/// How long the number of nodes must stand on the other side of the threshold before a node follows.
pub const SETTLE: Duration = Duration::from_secs(30);
/// So many reflectors at most, those whose sessions are down among them.
const MOST: usize = 12;

/// What the operator wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// Everybody with everybody.
    Mesh,
    /// These reflect, whoever is up: those of them that are in an AS, to that AS.
    Reflectors(BTreeSet<NodeName>),
    /// A mesh of up to so many nodes, reflectors beyond that.
    Auto {
        /// How many.
        threshold: usize,
        /// Reflectors whom the operator has chosen; empty: every node chooses by itself.
        by_hand: BTreeSet<NodeName>,
    },
}

impl Rule {
    /// What the cluster's settings say; `by_hand`: the nodes that have been made reflectors.
    pub fn new(bgp: &BgpConfig, by_hand: BTreeSet<NodeName>) -> Self {
        match bgp.topology {
            Topology::Mesh => Self::Mesh,
            Topology::Reflectors => Self::Reflectors(by_hand),
            Topology::Auto => Self::Auto { threshold: bgp.mesh_up_to as usize, by_hand },
        }
    }
}

/// A node, as far as the topology goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Member {
    /// Where it stands; reflectors are spread over zones.
    pub zone: Option<String>,
    /// Whether its sign of life is in the store. A hint: a reflector without it and without a session is not waited for.
    pub live: bool,
    /// Whether it can reflect to this node: it has an address in common, and is not drained.
    pub can_reflect: bool,
}

impl Member {
    /// A node that says this of itself.
    pub fn new(record: &NodeRecord, live: bool, can_reflect: bool) -> Self {
        Self { zone: record.labels.get(ZONE).cloned(), live, can_reflect }
    }
}

/// Who has sessions with whom, as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum View {
    /// Everybody with everybody.
    Mesh,
    /// Everybody with these; they reflect.
    Reflectors(BTreeSet<NodeName>),
}

impl View {
    /// In words, with who has chosen.
    pub fn words(&self, rule: &Rule) -> String {
        let chosen = match rule {
            Rule::Auto { by_hand, .. } if by_hand.is_empty() => "auto: ",
            Rule::Auto { .. } => "auto, by hand: ",
            Rule::Mesh | Rule::Reflectors(_) => "",
        };
        match self {
            Self::Mesh => format!("{chosen}mesh"),
            Self::Reflectors(all) if all.is_empty() => format!("{chosen}reflectors, and there is none"),
            Self::Reflectors(all) => {
                let names: Vec<&str> = all.iter().map(NodeName::as_str).collect();
                format!("{chosen}reflectors {}", names.join(", "))
            }
        }
    }

    /// Whether a node reflects in this view.
    pub fn reflects(&self, node: &NodeName) -> bool {
        matches!(self, Self::Reflectors(all) if all.contains(node))
    }
}

/// What another node of the same AS is to this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// What it is to us.
    pub role: Role,
    /// Who connects. One side does, where views agree, so that sessions seldom collide. To whom is not looked for: only
    /// while routes of it are kept over its restart, or our own.
    pub connect: ConnectMode,
    /// Whether its session is wanted, and by us.
    pub standing: Standing,
    /// Whether it is looked for; else it may come ([`crate::config::Circle`]).
    pub listed: bool,
}

impl Link {
    /// What `other` is to `node`. `is_lower`: of the two addresses of a session, this node's is the lower one.
    pub fn new(view: &View, node: &NodeName, other: &NodeName, is_lower: bool) -> Self {
        let by_address = if is_lower { ConnectMode::Both } else { ConnectMode::Passive };
        let link = |role, connect, standing, listed| Self { role, connect, standing, listed };
        match (view, view.reflects(node), view.reflects(other)) {
            (View::Mesh, ..) | (_, true, true) => link(Role::Mesh, by_address, Standing::Wanted, true),
            (_, false, true) => link(Role::Reflector, ConnectMode::Both, Standing::Wanted, true),
            (_, true, false) => link(Role::Client, by_address, Standing::Wanted, false),
            // Whoever takes us for a reflector gets one.
            (_, false, false) => link(Role::Client, by_address, Standing::Leaving, false),
        }
    }
}

/// Chooses for one node.
#[derive(Debug)]
pub struct Chooser {
    node: NodeName,
    rule: Rule,
    members: BTreeMap<NodeName, Member>,
    /// Who can reflect, best first.
    order: Vec<NodeName>,
    /// Since when sessions with reflectors are down.
    down: BTreeMap<NodeName, Duration>,
    /// Whether a mesh is in force by [`Rule::Auto`]; none: nothing is yet.
    is_mesh: Option<bool>,
    /// Since when the number of nodes says something else than what is in force.
    since: Option<Duration>,
    deadline: Option<Duration>,
}

impl Chooser {
    /// One for this node, that knows of nobody.
    pub fn new(node: NodeName) -> Self {
        Self {
            node,
            rule: Rule::Mesh,
            members: BTreeMap::new(),
            order: vec![],
            down: BTreeMap::new(),
            is_mesh: None,
            since: None,
            deadline: None,
        }
    }

    /// What the operator wants, and who is there: this node among them.
    pub fn follow(&mut self, rule: Rule, members: BTreeMap<NodeName, Member>) {
        if !matches!(rule, Rule::Auto { .. }) {
            (self.is_mesh, self.since) = (None, None);
        }
        self.rule = rule;
        if members != self.members {
            self.order = ranked(&members);
            self.members = members;
        }
    }

    /// The node for which it chooses.
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// When [`Chooser::view`] may say something else without anything having happened.
    pub fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    /// The topology at `now`; `is_up` says whether this node has a session with another one.
    pub fn view(&mut self, now: Duration, is_up: impl Fn(&NodeName) -> bool) -> View {
        self.deadline = None;
        match &self.rule {
            Rule::Mesh => View::Mesh,
            // An AS without a reflector of its own is a mesh.
            Rule::Reflectors(all) => match self.of_ours(all) {
                ours if ours.is_empty() && !all.is_empty() => View::Mesh,
                ours => View::Reflectors(ours),
            },
            Rule::Auto { threshold, by_hand } => {
                let by_hand = self.of_ours(by_hand);
                let few = self.members.len() <= *threshold;
                // Where nobody can reflect, everybody has to know everybody.
                if self.is_mesh(now, few) || (by_hand.is_empty() && self.order.is_empty()) {
                    View::Mesh
                } else if by_hand.is_empty() {
                    View::Reflectors(self.choose(now, is_up))
                } else {
                    View::Reflectors(by_hand)
                }
            }
        }
    }

    /// Those that are nodes of this AS.
    fn of_ours(&self, all: &BTreeSet<NodeName>) -> BTreeSet<NodeName> {
        all.iter().filter(|node| self.members.contains_key(*node)).cloned().collect()
    }

    /// A number of nodes that changes back and forth moves nobody.
    fn is_mesh(&mut self, now: Duration, few: bool) -> bool {
        match self.is_mesh {
            Some(is_mesh) if is_mesh != few => {
                let since = *self.since.get_or_insert(now);
                if now < since + SETTLE {
                    self.wake(since + SETTLE);
                    return is_mesh;
                }
            }
            Some(_) | None => {}
        }
        (self.is_mesh, self.since) = (Some(few), None);
        few
    }

    /// The first three that can, and one more for each whose session has been down for long.
    fn choose(&mut self, now: Duration, is_up: impl Fn(&NodeName) -> bool) -> BTreeSet<NodeName> {
        let mut chosen = BTreeSet::new();
        let (mut good, mut wake) = (0, vec![]);
        for node in &self.order {
            if good == REFLECTORS || chosen.len() == MOST {
                break;
            }
            chosen.insert(node.clone());
            if *node == self.node || is_up(node) {
                self.down.remove(node);
                good += 1;
                continue;
            }
            let since = *self.down.entry(node.clone()).or_insert(now);
            let lives = self.members.get(node).is_some_and(|member| member.live);
            if lives && now < since + DOWN {
                wake.push(since + DOWN);
                good += 1;
            }
        }
        wake.into_iter().for_each(|at| self.wake(at));
        self.down.retain(|node, _| chosen.contains(node));
        chosen
    }

    fn wake(&mut self, at: Duration) {
        self.deadline = Some(self.deadline.map_or(at, |deadline| deadline.min(at)));
    }
}

/// Who can reflect, best first: by a hash of the name, the best of each zone before the second of any. A node that comes
/// or goes changes no other node's place within its zone.
pub fn ranked(members: &BTreeMap<NodeName, Member>) -> Vec<NodeName> {
    let mut all: Vec<([u8; 32], &NodeName, &Member)> = members
        .iter()
        .filter(|(_, member)| member.can_reflect)
        .map(|(name, member)| (Sha256::digest(name.as_str()).into(), name, member))
        .collect();
    all.sort_unstable_by_key(|(hash, name, _)| (*hash, *name));
    let mut in_zone: BTreeMap<Option<&str>, usize> = BTreeMap::new();
    let mut placed: Vec<(usize, &NodeName)> = vec![];
    for (_, name, member) in all {
        let place = in_zone.entry(member.zone.as_deref()).or_default();
        placed.push((*place, name));
        *place += 1;
    }
    // Stable: within one round the order of the hashes.
    placed.sort_by_key(|(round, _)| *round);
    placed.into_iter().map(|(_, name)| name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn name(i: usize) -> NodeName {
        format!("n{i}").parse().unwrap()
    }

    fn members(nodes: usize, zones: usize) -> BTreeMap<NodeName, Member> {
        let zone = |i: usize| (zones > 0).then(|| format!("zone-{}", i % zones));
        (0..nodes).map(|i| (name(i), Member { zone: zone(i), live: true, can_reflect: true })).collect()
    }

    fn chooser(node: usize, nodes: usize) -> Chooser {
        let mut chooser = Chooser::new(name(node));
        chooser.follow(auto(), members(nodes, 0));
        chooser
    }

    fn auto() -> Rule {
        Rule::Auto { threshold: 50, by_hand: BTreeSet::new() }
    }

    fn reflectors(view: View) -> Vec<NodeName> {
        match view {
            View::Mesh => vec![],
            View::Reflectors(all) => all.into_iter().collect(),
        }
    }

    #[test]
    fn up_to_the_threshold_it_is_a_mesh_and_all_choose_the_same_three_beyond() {
        assert_eq!(chooser(0, 50).view(SECOND, |_| true), View::Mesh);
        let first = reflectors(chooser(0, 51).view(SECOND, |_| true));
        assert_eq!(first.len(), 3);
        for node in 1..51 {
            assert_eq!(reflectors(chooser(node, 51).view(SECOND, |_| true)), first);
        }
    }

    #[test]
    fn reflectors_stand_in_different_zones_where_there_are_any() {
        for zones in [2, 3, 7] {
            let members = members(60, zones);
            let order = ranked(&members);
            let of = |name: &NodeName| members[name].zone.clone().unwrap();
            let first: BTreeSet<String> = order.iter().take(zones).map(of).collect();
            assert_eq!(first.len(), zones);
        }
        // A zone that has one node only gives it a place in the first round, and no more.
        let mut few = members(60, 1);
        few.get_mut(&name(7)).unwrap().zone = Some("alone".to_owned());
        assert!(ranked(&few)[..2].contains(&name(7)));
    }

    #[test]
    fn a_node_that_comes_or_goes_leaves_the_others_in_their_order() {
        let all = members(60, 0);
        let order = ranked(&all);
        for gone in [0, 13, 59] {
            let mut fewer = all.clone();
            fewer.remove(&name(gone));
            let rest: Vec<NodeName> = order.iter().filter(|node| **node != name(gone)).cloned().collect();
            assert_eq!(ranked(&fewer), rest);
        }
    }

    #[test]
    fn who_cannot_reflect_is_none() {
        let mut all = members(60, 0);
        let best = ranked(&all)[0].clone();
        all.get_mut(&best).unwrap().can_reflect = false;
        assert!(!ranked(&all).contains(&best));
    }

    #[test]
    fn one_whose_session_is_down_for_a_minute_gets_company_until_it_is_back() {
        let mut chooser = chooser(0, 60);
        let order = ranked(&members(60, 0));
        let lost = order[1].clone();
        let up = |node: &NodeName| *node != lost;
        assert_eq!(reflectors(chooser.view(SECOND, up)).len(), 3);
        assert_eq!(chooser.deadline(), Some(61 * SECOND));
        assert_eq!(reflectors(chooser.view(60 * SECOND, up)).len(), 3);
        let four = reflectors(chooser.view(61 * SECOND, up));
        assert_eq!(four.iter().collect::<BTreeSet<_>>(), order[..4].iter().collect());
        assert_eq!(reflectors(chooser.view(62 * SECOND, |_| true)).len(), 3);
        // The minute begins anew.
        assert_eq!(reflectors(chooser.view(63 * SECOND, up)).len(), 3);
        assert_eq!(chooser.deadline(), Some(123 * SECOND));
    }

    #[test]
    fn one_without_a_sign_of_life_is_not_waited_for_but_its_session_counts() {
        let mut all = members(60, 0);
        let order = ranked(&all);
        all.get_mut(&order[0]).unwrap().live = false;
        let mut chooser = Chooser::new(name(0));
        chooser.follow(auto(), all);
        assert_eq!(reflectors(chooser.view(SECOND, |_| true)).len(), 3);
        let four = reflectors(chooser.view(SECOND, |node| *node != order[0]));
        assert_eq!(four.iter().collect::<BTreeSet<_>>(), order[..4].iter().collect());
    }

    #[test]
    fn the_next_in_rank_reflects_when_it_sees_that_it_must() {
        let order = ranked(&members(60, 0));
        let next = (0..60).find(|i| name(*i) == order[3]).unwrap();
        let mut chooser = chooser(next, 60);
        let up = |node: &NodeName| *node != order[0];
        assert!(!chooser.view(SECOND, up).reflects(&order[3]));
        assert!(chooser.view(61 * SECOND, up).reflects(&order[3]));
    }

    #[test]
    fn a_number_that_goes_back_and_forth_moves_nobody() {
        let mut chooser = chooser(0, 50);
        assert_eq!(chooser.view(SECOND, |_| true), View::Mesh);
        chooser.follow(auto(), members(51, 0));
        assert_eq!(chooser.view(10 * SECOND, |_| true), View::Mesh);
        assert_eq!(chooser.deadline(), Some(40 * SECOND));
        chooser.follow(auto(), members(50, 0));
        assert_eq!(chooser.view(20 * SECOND, |_| true), View::Mesh);
        chooser.follow(auto(), members(51, 0));
        assert_eq!(chooser.view(30 * SECOND, |_| true), View::Mesh);
        assert_eq!(chooser.view(59 * SECOND, |_| true), View::Mesh);
        assert_ne!(chooser.view(60 * SECOND, |_| true), View::Mesh);
    }

    #[test]
    fn what_the_operator_says_holds_at_once() {
        let mut chooser = chooser(0, 60);
        chooser.follow(Rule::Mesh, members(60, 0));
        assert_eq!(chooser.view(SECOND, |_| false), View::Mesh);
        chooser.follow(Rule::Reflectors(BTreeSet::from([name(70)])), members(60, 0));
        assert_eq!(chooser.view(SECOND, |_| true), View::Mesh, "nobody here reflects");
        let by_hand = BTreeSet::from([name(5)]);
        chooser.follow(
            Rule::Reflectors(by_hand.union(&BTreeSet::from([name(70)])).cloned().collect()),
            members(60, 0),
        );
        assert_eq!(chooser.view(600 * SECOND, |_| false), View::Reflectors(by_hand.clone()));
        chooser.follow(Rule::Auto { threshold: 50, by_hand: by_hand.clone() }, members(60, 0));
        assert_eq!(chooser.view(601 * SECOND, |_| false), View::Reflectors(by_hand.clone()));
        let mut few = Chooser::new(name(0));
        few.follow(Rule::Auto { threshold: 50, by_hand }, members(20, 0));
        assert_eq!(few.view(SECOND, |_| true), View::Mesh);
    }

    #[test]
    fn where_nobody_can_reflect_it_is_a_mesh() {
        let mut all = members(60, 0);
        all.values_mut().for_each(|member| member.can_reflect = false);
        let mut chooser = Chooser::new(name(0));
        chooser.follow(auto(), all);
        assert_eq!(chooser.view(SECOND, |_| true), View::Mesh);
    }

    #[test]
    fn where_nearly_nobody_answers_the_number_of_reflectors_is_bounded() {
        let mut chooser = chooser(0, 500);
        for minute in 0..40 {
            let _ = chooser.view(minute * DOWN, |_| false);
        }
        assert_eq!(reflectors(chooser.view(41 * DOWN, |_| false)).len(), MOST);
    }
}
