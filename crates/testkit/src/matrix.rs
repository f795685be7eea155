//! Who reaches whom: as the oracle computes it from the objects, and as probes see it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use podway_model::k8s::{NetworkPolicy, Protocol};
use podway_policy::oracle::{self, Decision, End, Flow, Traffic};

use crate::cluster::Cluster;
use crate::lab::Outside;
use crate::probe::{Kind, Outcome, Probe, probe_all};
use crate::table::Table;

/// One connection of a matrix.
#[derive(Debug, Clone)]
pub struct Cell {
    /// Who opens it.
    pub from: String,
    /// Who is meant.
    pub to: String,
    /// To which address.
    pub address: IpAddr,
    /// What it speaks.
    pub kind: Kind,
    /// Whether the oracle lets it pass, and why.
    pub expected: bool,
    /// The oracle's words.
    pub why: String,
    /// The source address that the server must see, where one can be told beforehand.
    pub expected_source: Option<IpAddr>,
    /// What the probe saw.
    pub seen: Outcome,
}

impl Cell {
    /// What differs from what is expected, in words; none if nothing does.
    pub fn difference(&self) -> Option<String> {
        let head = format!("{} to {} ({}) by {}", self.from, self.to, self.address, self.kind);
        if self.seen.is_open() != self.expected {
            let word = if self.expected { "open" } else { "closed" };
            return Some(format!("{head}: {word} expected ({}), seen: {}", self.why, self.seen));
        }
        let Outcome::Open { answer: Some((name, source)) } = &self.seen else { return None };
        if *name != self.to {
            return Some(format!("{head}: answered by {name}"));
        }
        match self.expected_source {
            Some(expected) if expected != *source => {
                Some(format!("{head}: source address {expected} expected, {source} seen"))
            }
            _ => None,
        }
    }
}

/// Connections of every kind between many ends.
#[derive(Debug, Clone, Default)]
pub struct Matrix {
    /// All of them.
    pub cells: Vec<Cell>,
}

impl Matrix {
    /// Differences from what is expected, in words.
    pub fn differences(&self) -> Vec<String> {
        self.cells.iter().filter_map(Cell::difference).collect()
    }

    /// How many cells are expected open, and how many were seen open.
    pub fn open(&self) -> (usize, usize) {
        let expected = self.cells.iter().filter(|c| c.expected).count();
        (expected, self.cells.iter().filter(|c| c.seen.is_open()).count())
    }

    /// A table: a row for each source, a column for each destination, a letter for each kind that got through,
    /// `-` for one that did not, and `!` where that differs from what is expected.
    pub fn table(&self) -> Table {
        let mut columns: Vec<&str> = vec![];
        let mut rows: Vec<&str> = vec![];
        let mut texts: BTreeMap<(&str, &str), (String, bool)> = BTreeMap::new();
        for cell in &self.cells {
            for (list, name) in [(&mut rows, &cell.from), (&mut columns, &cell.to)] {
                if !list.contains(&name.as_str()) {
                    list.push(name);
                }
            }
            let (text, wrong) = texts.entry((&cell.from, &cell.to)).or_default();
            text.push_str(if cell.seen.is_open() { letter(cell.kind) } else { "-" });
            *wrong |= cell.difference().is_some();
        }
        let mut table = Table::new(std::iter::once("FROM \\ TO").chain(columns.iter().copied()));
        for row in rows {
            let cells = columns.iter().map(|column| match texts.get(&(row, *column)) {
                Some((text, true)) => format!("{text}!"),
                Some((text, false)) => text.clone(),
                None => String::new(),
            });
            table.row(std::iter::once(row.to_owned()).chain(cells));
        }
        table
    }

    /// What the letters of [`Matrix::table`] mean.
    pub fn legend(kinds: &[Kind]) -> String {
        let mut text = String::new();
        for kind in kinds {
            let _ = write!(text, "{} {kind}, ", letter(*kind));
        }
        text + "- no answer, ! differs from what is expected"
    }
}

fn letter(kind: Kind) -> &'static str {
    match kind {
        Kind::Icmp => "I",
        Kind::Tcp(80) => "T",
        Kind::Tcp(_) => "t",
        Kind::Udp(80) => "U",
        Kind::Udp(_) => "u",
    }
}

impl Cluster {
    /// Every pod to every other one.
    pub fn pods_to_pods(&self, kinds: &[Kind]) -> Result<Matrix> {
        let mut wanted = vec![];
        for (&v6, from) in self.families().iter().flat_map(|v6| self.pods.iter().map(move |p| (v6, p))) {
            for to in self.pods.iter().filter(|to| to.full_name() != from.full_name()) {
                let source = from.address(v6).with_context(|| no_address(&from.full_name(), v6))?;
                let address = to.address(v6).with_context(|| no_address(&to.full_name(), v6))?;
                wanted.push(Wanted {
                    net: from.net(),
                    from: (from.full_name(), pod_end(from, source)),
                    to: (to.full_name(), pod_end(to, address)),
                    source: Some(source),
                });
            }
        }
        self.look(&wanted, kinds)
    }

    /// Every pod to the outside world, which must see its node's address.
    pub fn pods_to_outside(&self, kinds: &[Kind]) -> Result<Matrix> {
        let mut wanted = vec![];
        for (&v6, from) in self.families().iter().flat_map(|v6| self.pods.iter().map(move |p| (v6, p))) {
            let source = from.address(v6).with_context(|| no_address(&from.full_name(), v6))?;
            let address = self.lab.outside.address_like(source);
            wanted.push(Wanted {
                net: from.net(),
                from: (from.full_name(), pod_end(from, source)),
                to: (Outside::NAME.to_owned(), End::Outside { address }),
                source: Some(self.lab.node(&from.node)?.addresses.like(source)),
            });
        }
        self.look(&wanted, kinds)
    }

    /// Every node to every pod.
    pub fn nodes_to_pods(&self, kinds: &[Kind]) -> Result<Matrix> {
        let mut wanted = vec![];
        for (&v6, node) in self.families().iter().flat_map(|v6| self.lab.nodes.iter().map(move |n| (v6, n))) {
            for to in &self.pods {
                let address = to.address(v6).with_context(|| no_address(&to.full_name(), v6))?;
                let source = node.addresses.like(address);
                wanted.push(Wanted {
                    net: node.place.net(),
                    from: (
                        node.name().to_owned(),
                        End::Node { name: node.name().to_owned(), address: source },
                    ),
                    to: (to.full_name(), pod_end(to, address)),
                    // Which of its addresses a node uses depends on the backend.
                    source: None,
                });
            }
        }
        self.look(&wanted, kinds)
    }

    /// What the oracle says of a connection between two pods, were these the policies.
    pub fn judge_with(
        &self,
        policies: &[NetworkPolicy],
        from: &crate::pod::Pod,
        to: &crate::pod::Pod,
        kind: Kind,
        address: IpAddr,
    ) -> Decision {
        let source = from.address(address.is_ipv6()).unwrap_or(address);
        self.oracle(policies).judge(&Flow {
            source: pod_end(from, source),
            destination: pod_end(to, address),
            traffic: traffic(kind, address),
        })
    }

    fn oracle<'a>(&'a self, policies: &'a [NetworkPolicy]) -> oracle::Cluster<'a> {
        oracle::Cluster { namespaces: &self.objects.namespaces, pods: &self.objects.pods, policies }
    }

    /// Computes what the oracle says and probes all of it.
    fn look(&self, wanted: &[Wanted<'_>], kinds: &[Kind]) -> Result<Matrix> {
        let known = self.oracle(&self.objects.policies);
        let (mut cells, mut probes) = (vec![], vec![]);
        for one in wanted {
            for &kind in kinds {
                let address = one.to.1.address();
                let flow = Flow {
                    source: one.from.1.clone(),
                    destination: one.to.1.clone(),
                    traffic: traffic(kind, address),
                };
                let decision = known.judge(&flow);
                let expected = decision.allowed();
                probes.push(Probe { from: one.net, to: address, kind, expect_open: expected });
                cells.push(Cell {
                    from: one.from.0.clone(),
                    to: one.to.0.clone(),
                    address,
                    kind,
                    expected,
                    why: decision.to_string(),
                    expected_source: one.source,
                    seen: Outcome::Silent,
                });
            }
        }
        for (cell, outcome) in cells.iter_mut().zip(probe_all(&probes)?) {
            cell.seen = outcome;
        }
        Ok(Matrix { cells })
    }
}

/// A connection to judge and to try.
struct Wanted<'a> {
    net: &'a podway_kern::ns::NetNs,
    from: (String, End),
    to: (String, End),
    source: Option<IpAddr>,
}

fn pod_end(pod: &crate::pod::Pod, address: IpAddr) -> End {
    End::Pod {
        namespace: pod.namespace().to_owned(),
        name: pod.name().to_owned(),
        node: pod.node.clone(),
        address,
    }
}

fn no_address(pod: &str, v6: bool) -> String {
    format!("pod {pod} has no IPv{} address", if v6 { 6 } else { 4 })
}

fn traffic(kind: Kind, to: IpAddr) -> Traffic {
    match kind {
        Kind::Icmp => Traffic::Other(if to.is_ipv4() { 1 } else { 58 }),
        Kind::Tcp(port) => Traffic::Port(Protocol::Tcp, port),
        Kind::Udp(port) => Traffic::Port(Protocol::Udp, port),
    }
}
