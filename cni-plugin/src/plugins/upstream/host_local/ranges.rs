//! Ranges and range sets: read, checked, and walked round and round.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use podway_model::mistakes::Mistakes;
use serde_json::Value;

pub(super) const SOURCE: &str = "network configuration";

/// Addresses of one subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// The subnet.
    pub subnet: IpNet,
    /// First address, included.
    pub first: IpAddr,
    /// Last address, included.
    pub last: IpAddr,
    /// Gateway; never leased.
    pub gateway: IpAddr,
}

/// Ranges of one family, of which an attachment gets one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeSet(pub Vec<Range>);

impl Range {
    /// The address as a result has it.
    pub fn address(&self, ip: IpAddr) -> IpNet {
        IpNet::new(ip, self.subnet.prefix_len()).expect("the length is that of a prefix of this family")
    }

    /// Whether an address lies in it.
    pub fn holds(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.first.is_ipv4() && self.first <= ip && ip <= self.last
    }

    /// Whether it may be leased: not the gateway, and not the subnet's first address where the gateway lies outside,
    /// since that address is what a gateway is expected to have.
    fn leasable(&self, ip: IpAddr) -> bool {
        ip != self.gateway && (self.subnet.contains(&self.gateway) || ip != plus_one(self.subnet.network()))
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.holds(other.first) || self.holds(other.last) || other.holds(self.first)
    }
}

impl RangeSet {
    /// Whether an address lies in one of its ranges.
    pub fn holds(&self, ip: IpAddr) -> bool {
        self.of(ip).is_some()
    }

    /// The range in which an address lies.
    pub fn of(&self, ip: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.holds(ip))
    }

    /// The next address that is not held, beginning behind `last`, or with the first one.
    pub fn next_free(&self, last: Option<IpAddr>, held: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        let begin = last.and_then(|last| Some((self.0.iter().position(|range| range.holds(last))?, last)));
        let (index, after) = begin.map_or((0, None), |(index, last)| (index, Some(last)));
        let split = after.map_or(u128::MAX, number);
        let start = &self.0[index];
        let behind = walk(start, if after.is_some() { split.saturating_add(1) } else { 0 }, u128::MAX);
        let others = (1..self.0.len()).flat_map(|step| {
            let range = &self.0[(index + step) % self.0.len()];
            walk(range, 0, u128::MAX)
        });
        let before = after.map(|_| walk(start, 0, split)).into_iter().flatten();
        behind.chain(others).chain(before).find(|ip| !held(*ip))
    }
}

/// Addresses of a range that may be leased, from one number to another.
fn walk(range: &Range, from: u128, to: u128) -> impl Iterator<Item = IpAddr> + '_ {
    let (from, to) = (from.max(number(range.first)), to.min(number(range.last)));
    let mut next = Some(from).filter(|from| *from <= to);
    std::iter::from_fn(move || {
        let now = next?;
        next = now.checked_add(1).filter(|next| *next <= to);
        Some(address(now, range.first.is_ipv4()))
    })
    .filter(|ip| range.leasable(*ip))
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

fn address(number: u128, v4: bool) -> IpAddr {
    // A number of IPv4 comes from an address of IPv4, or lies between two.
    let low = u32::try_from(number & u128::from(u32::MAX)).unwrap_or(u32::MAX);
    if v4 { Ipv4Addr::from(low).into() } else { Ipv6Addr::from(number).into() }
}

fn plus_one(ip: IpAddr) -> IpAddr {
    address(number(ip).saturating_add(1), ip.is_ipv4())
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> =
            self.0.iter().map(|range| format!("{}-{}", range.first, range.last)).collect();
        f.write_str(&texts.join(","))
    }
}

/// An address, with or without a prefix length.
pub(super) fn parse_address(value: &Value) -> Option<IpAddr> {
    let text = value.as_str()?;
    let ip = text.parse::<IpAddr>().or_else(|_| text.parse::<IpNet>().map(|net| net.addr())).ok()?;
    Some(ip.to_canonical())
}

/// Reads a list of range sets.
pub(super) fn parse_sets(list: &Value, field: &str, mistakes: &mut Mistakes) -> Vec<RangeSet> {
    let Value::Array(list) = list else {
        mistakes.add(SOURCE, field, list, "a list of range sets");
        return Vec::new();
    };
    let sets = list.iter().enumerate();
    sets.filter_map(|(i, set)| parse_set(set, &format!("{field}[{i}]"), mistakes)).collect()
}

/// Reads a range set. `field` names it; a single range beside the list has the name `ipam`.
pub(super) fn parse_set(set: &Value, field: &str, mistakes: &mut Mistakes) -> Option<RangeSet> {
    let list = set.as_array().filter(|list| !list.is_empty());
    let Some(list) = list else {
        mistakes.add(SOURCE, field, set, "a list of ranges, at least one");
        return None;
    };
    let mut ranges: Vec<Range> = Vec::with_capacity(list.len());
    for (i, entry) in list.iter().enumerate() {
        let field = if field == "ipam" { field.to_owned() } else { format!("{field}[{i}]") };
        let range = parse_range(entry, &field, mistakes)?;
        if ranges.iter().any(|other| other.first.is_ipv4() != range.first.is_ipv4()) {
            mistakes.add(SOURCE, field, range.subnet, "ranges of one family");
            return None;
        }
        if let Some(other) = ranges.iter().find(|other| other.overlaps(&range)) {
            let expected = format!("a range that does not overlap with {}-{}", other.first, other.last);
            mistakes.add(SOURCE, field, format!("{}-{}", range.first, range.last), expected);
            return None;
        }
        ranges.push(range);
    }
    Some(RangeSet(ranges))
}

fn parse_range(entry: &Value, field: &str, mistakes: &mut Mistakes) -> Option<Range> {
    let name = |key: &str| format!("{field}.{key}");
    let subnet = entry.get("subnet").unwrap_or(&Value::Null);
    let parsed = subnet.as_str().and_then(|text| text.parse::<IpNet>().ok());
    let Some(net) = parsed else {
        mistakes.add(SOURCE, name("subnet"), subnet, "a prefix, 10.0.0.0/24");
        return None;
    };
    if net.trunc() != net {
        mistakes.add(SOURCE, name("subnet"), net, format!("the network's address, {},", net.trunc()));
        return None;
    }
    if net.prefix_len() > net.max_prefix_len() - 2 {
        mistakes.add(SOURCE, name("subnet"), net, "a subnet with at least two addresses to lease");
        return None;
    }
    let v4 = net.addr().is_ipv4();
    let mut ip = |key: &str| match entry.get(key) {
        None | Some(Value::Null) => Some(None),
        Some(Value::String(text)) if text.is_empty() => Some(None),
        Some(value) => match parse_address(value).filter(|ip| ip.is_ipv4() == v4) {
            Some(ip) => Some(Some(ip)),
            None => {
                mistakes.add(SOURCE, name(key), value, "an address of the subnet's family");
                None
            }
        },
    };
    let (first, last, gateway) = (ip("rangeStart")?, ip("rangeEnd")?, ip("gateway")?);
    let first_of_net = plus_one(net.network());
    let last_of_net = match net {
        IpNet::V4(net) => IpAddr::from(Ipv4Addr::from(u32::from(net.broadcast()) - 1)),
        IpNet::V6(net) => net.broadcast().into(),
    };
    let range = Range {
        subnet: net,
        first: first.unwrap_or(first_of_net),
        last: last.unwrap_or(last_of_net),
        gateway: gateway.unwrap_or(first_of_net),
    };
    if !net.contains(&range.first) {
        mistakes.add(SOURCE, name("rangeStart"), range.first, format!("an address of {net}"));
        return None;
    }
    if !net.contains(&range.last) || range.last < range.first {
        let expected = format!("an address of {net} that is not before {}", range.first);
        mistakes.add(SOURCE, name("rangeEnd"), range.last, expected);
        return None;
    }
    Some(range)
}

/// Refuses sets that share an address.
pub(super) fn refuse_overlaps(sets: &[RangeSet], mistakes: &mut Mistakes) {
    for (i, set) in sets.iter().enumerate() {
        for (j, other) in sets.iter().enumerate().skip(i + 1) {
            if set.0.iter().any(|range| other.0.iter().any(|o| range.overlaps(o))) {
                let field = format!("range set {j}");
                mistakes.add(
                    SOURCE,
                    field,
                    other,
                    format!("a range set that does not overlap with {i}, {set},"),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    fn set(list: Value) -> Result<RangeSet, String> {
        let mut mistakes = Mistakes::default();
        parse_set(&list, "r", &mut mistakes).ok_or_else(|| mistakes.to_string())
    }

    fn all(set: &RangeSet, last: Option<&str>) -> Vec<String> {
        let mut held = BTreeSet::new();
        while let Some(ip) = set.next_free(last.map(|ip| ip.parse().unwrap()), |ip| held.contains(&ip)) {
            held.insert(ip);
            if held.len() == 1 && last.is_some() {
                return vec![ip.to_string()];
            }
        }
        held.iter().map(IpAddr::to_string).collect()
    }

    #[test]
    fn defaults_are_those_of_the_subnet() {
        let v4 = set(json!([{"subnet": "10.0.0.0/29"}])).unwrap();
        assert_eq!(all(&v4, None), ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
        let v6 = set(json!([{"subnet": "fd00::/126", "gateway": "fd00::2"}])).unwrap();
        assert_eq!(all(&v6, None), ["fd00::1", "fd00::3"]);
        // A gateway outside leaves the address free that everybody takes for one.
        let outside = set(json!([{"subnet": "10.0.0.0/29", "gateway": "10.9.0.1"}])).unwrap();
        assert_eq!(all(&outside, None)[0], "10.0.0.2");
    }

    #[test]
    fn addresses_come_round_and_round() {
        let two = json!([
            {"subnet": "10.0.0.0/29", "rangeStart": "10.0.0.2", "rangeEnd": "10.0.0.3"},
            {"subnet": "10.1.0.0/29", "rangeStart": "10.1.0.5"}
        ]);
        let two = set(two).unwrap();
        for (last, next) in [
            ("10.0.0.2", "10.0.0.3"),
            ("10.0.0.3", "10.1.0.5"),
            ("10.1.0.6", "10.0.0.2"),
            ("10.9.9.9", "10.0.0.2"),
        ] {
            assert_eq!(all(&two, Some(last)), [next], "after {last}");
        }
        let only_last = |ip: IpAddr| ip != "10.0.0.3".parse::<IpAddr>().unwrap();
        let found = two.next_free(Some("10.0.0.3".parse().unwrap()), only_last);
        assert_eq!(found, Some("10.0.0.3".parse().unwrap()), "the last one itself comes last");
        assert_eq!(two.next_free(None, |_| true), None);
    }

    #[test]
    fn ranges_that_cannot_be_are_named() {
        for (list, part) in [
            (json!([]), "r: [] found, a list of ranges"),
            (json!([{}]), "r[0].subnet: null found"),
            (
                json!([{"subnet": "10.0.0.1/24"}]),
                "r[0].subnet: 10.0.0.1/24 found, the network's address, 10.0.0.0/24",
            ),
            (
                json!([{"subnet": "10.0.0.0/31"}]),
                "r[0].subnet: 10.0.0.0/31 found, a subnet with at least two",
            ),
            (json!([{"subnet": "10.0.0.0/24", "rangeStart": "10.1.0.0"}]), "r[0].rangeStart: 10.1.0.0 found"),
            (json!([{"subnet": "10.0.0.0/24", "rangeEnd": "x"}]), "r[0].rangeEnd: \"x\" found"),
            (json!([{"subnet": "10.0.0.0/24", "gateway": "fd00::1"}]), "r[0].gateway: \"fd00::1\" found"),
            (
                json!([{"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.8"}]),
                "r[0].rangeEnd: 10.0.0.8 found",
            ),
            (
                json!([{"subnet": "10.0.0.0/24"}, {"subnet": "fd00::/64"}]),
                "r[1]: fd00::/64 found, ranges of one family",
            ),
            (
                json!([{"subnet": "10.0.0.0/24"}, {"subnet": "10.0.0.0/16"}]),
                "r[1]: 10.0.0.1-10.0.255.254 found",
            ),
        ] {
            let error = set(list).unwrap_err();
            assert!(error.contains(part), "{part} is not in {error}");
        }
    }

    #[test]
    fn the_last_address_of_all_is_an_address() {
        let end = set(json!([{"subnet": "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffc/126"}])).unwrap();
        assert_eq!(all(&end, None).len(), 2);
        assert_eq!(all(&end, Some("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")).len(), 1);
    }
}
