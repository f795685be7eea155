//! Address ranges that overlap, cut into segments that do not.
//!
//! The kernel's interval maps refuse overlaps, so the ipBlocks in use are cut at each other's ends: all addresses
//! of a segment lie in the same blocks. At most two segments per end of a block or hole.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::intern::Id;
use crate::rules::Block;

/// A range of addresses that lie in the same blocks, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    /// First address.
    pub(crate) first: IpAddr,
    /// Last address, of the same family.
    pub(crate) last: IpAddr,
    /// The blocks.
    pub(crate) blocks: BTreeSet<Id>,
}

/// Disjoint segments of both families, ascending.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Segments(Vec<Segment>);

impl Segments {
    /// Cuts blocks into segments.
    pub(crate) fn cut<'a>(blocks: impl IntoIterator<Item = (Id, &'a Block)>) -> Self {
        let mut families: [Cuts; 2] = Default::default();
        for (id, block) in blocks {
            let cuts = &mut families[usize::from(block.cidr.addr().is_ipv6())];
            for (first, last) in ranges(block) {
                cuts.at(first).1.insert(id);
                if let Some(after) = last.checked_add(1) {
                    cuts.at(after).0.insert(id);
                }
            }
        }
        let [v4, v6] = families;
        let mut segments = v4.segments(u128::from(u32::MAX), |n| IpAddr::V4(Ipv4Addr::from(low32(n))));
        segments.extend(v6.segments(u128::MAX, |n| IpAddr::V6(Ipv6Addr::from(n))));
        Self(segments)
    }

    /// The segments, ascending, IPv4 first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Segment> {
        self.0.iter()
    }

    /// The blocks that an address lies in.
    pub(crate) fn blocks_of(&self, address: IpAddr) -> Option<&BTreeSet<Id>> {
        let after = self.0.partition_point(|s| s.first <= address);
        let segment = self.0.get(after.checked_sub(1)?)?;
        (address <= segment.last).then_some(&segment.blocks)
    }
}

/// Where blocks begin and end: at an address, which end just before it and which begin with it.
#[derive(Default)]
struct Cuts(BTreeMap<u128, (BTreeSet<Id>, BTreeSet<Id>)>);

impl Cuts {
    fn at(&mut self, address: u128) -> &mut (BTreeSet<Id>, BTreeSet<Id>) {
        self.0.entry(address).or_default()
    }

    fn segments(self, end: u128, address: impl Fn(u128) -> IpAddr) -> Vec<Segment> {
        let mut segments: Vec<Segment> = Vec::new();
        let mut inside = BTreeSet::new();
        let mut cuts = self.0.into_iter().peekable();
        while let Some((first, (ends, begins))) = cuts.next() {
            // A block may end and begin at one cut: its hole is over where the next one begins.
            inside.retain(|id| !ends.contains(id));
            inside.extend(begins);
            if first > end || inside.is_empty() {
                continue;
            }
            let last = cuts.peek().map_or(end, |(next, _)| next - 1);
            segments.push(Segment { first: address(first), last: address(last), blocks: inside.clone() });
        }
        segments
    }
}

/// What is left of a block without its holes: disjoint ranges, ascending.
fn ranges(block: &Block) -> Vec<(u128, u128)> {
    let (first, last) = bounds(&block.cidr);
    let mut left = Vec::new();
    let mut next = Some(first);
    // Holes come sorted by their first address; one may lie inside another.
    let holes: BTreeSet<(u128, u128)> = block.except.iter().map(bounds).collect();
    for (hole_first, hole_last) in holes {
        let Some(at) = next else { break };
        if at < hole_first {
            left.push((at, hole_first - 1));
        }
        if hole_last >= at {
            next = hole_last.checked_add(1);
        }
    }
    if let Some(at) = next.filter(|at| *at <= last) {
        left.push((at, last));
    }
    left
}

fn bounds(net: &IpNet) -> (u128, u128) {
    let number = |address: IpAddr| match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    };
    (number(net.network()), number(net.broadcast()))
}

#[expect(clippy::cast_possible_truncation, reason = "the sum of IPv4 addresses stays below 2^32")]
fn low32(number: u128) -> u32 {
    number as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block(cidr: &str, except: &[&str]) -> Block {
        Block { cidr: cidr.parse().unwrap(), except: except.iter().map(|e| e.parse().unwrap()).collect() }
    }

    fn show(segments: &Segments) -> Vec<String> {
        segments.iter().map(|s| format!("{}-{} {:?}", s.first, s.last, s.blocks)).collect()
    }

    #[test]
    fn nested_blocks_and_holes_are_cut_at_each_others_ends() {
        let blocks = [block("10.0.0.0/8", &["10.1.0.0/16", "10.1.2.0/24"]), block("10.1.2.0/24", &[])];
        let segments = Segments::cut((1..).zip(&blocks));
        assert_eq!(
            show(&segments),
            ["10.0.0.0-10.0.255.255 {1}", "10.1.2.0-10.1.2.255 {2}", "10.2.0.0-10.255.255.255 {1}"]
        );
    }

    #[test]
    fn whole_families_reach_their_last_address() {
        let blocks = [block("0.0.0.0/0", &[]), block("::/0", &["ffff::/16"]), block("::/0", &[])];
        let segments = Segments::cut((1..).zip(&blocks));
        assert_eq!(
            show(&segments),
            [
                "0.0.0.0-255.255.255.255 {1}",
                "::-fffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff {2, 3}",
                "ffff::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff {3}"
            ]
        );
    }

    prop_compose! {
        fn any_block()(base in 0u32..64, length in 24u8..=32, holes in prop::collection::vec((0u32..64, 0u8..4), 0..4))
            -> Block {
            let net = |base: u32, length: u8| IpNet::new(Ipv4Addr::from(0x0a00_0000 + base * 4).into(), length)
                .unwrap().trunc();
            let cidr = net(base, length);
            let except = holes.into_iter().map(|(at, more)| net(at, (length + more).min(32)))
                .filter(|hole| cidr.contains(hole)).collect();
            Block { cidr, except }
        }
    }

    proptest! {
        #[test]
        fn segments_say_of_every_address_what_the_blocks_say(blocks in prop::collection::vec(any_block(), 0..8)) {
            let segments = Segments::cut((1..).zip(&blocks));
            for (a, b) in segments.iter().zip(segments.iter().skip(1)) {
                prop_assert!(a.last < b.first, "{:?} overlaps {:?}", a, b);
            }
            for number in 0x09ff_fff0u32..0x0a00_0210 {
                let address = IpAddr::V4(Ipv4Addr::from(number));
                let expected: BTreeSet<Id> = (1..).zip(&blocks)
                    .filter(|(_, b)| b.cidr.contains(&address) && !b.except.iter().any(|e| e.contains(&address)))
                    .map(|(id, _)| id).collect();
                prop_assert_eq!(segments.blocks_of(address).cloned().unwrap_or_default(), expected, "{}", address);
            }
        }
    }
}
