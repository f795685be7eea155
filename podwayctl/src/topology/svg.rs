//! The topology as a picture: reflectors on an inner circle, the other nodes on a circle round it, peers outside the
//! cluster on the outermost.

use std::f64::consts::TAU;
use std::fmt::Write as _;

use super::{End, Graph, SessionKind};

/// Least distance between two names on a circle.
const STEP: f64 = 26.0;
/// Least radius of the nodes' circle.
const LEAST: f64 = 150.0;
/// Width of a letter, about.
const LETTER: f64 = 7.5;
/// Between a name and what comes next.
const SPACE: f64 = 40.0;

/// A point, and the angle at which it stands.
#[derive(Debug, Clone, Copy)]
struct Place {
    x: f64,
    y: f64,
    angle: f64,
}

pub(super) fn draw(graph: &Graph) -> String {
    let reflectors = graph.nodes.iter().filter(|node| node.reflector).count();
    let others = graph.nodes.len() - reflectors;
    // A few reflectors stand in the middle; where all reflect, there is one circle.
    let outer = LEAST.max(STEP * count(others.max(1)) / TAU).max(if others == 0 {
        0.0
    } else {
        2.2 * inner(reflectors)
    });
    // Names stand outside of their circle.
    let outside = outer + SPACE + LETTER * longest(graph.nodes.iter().map(|node| node.name.as_str()));
    let middle = match longest(graph.peers.iter().map(|peer| peer.name.as_str())) {
        none if none <= 0.0 => outside,
        longest => outside + SPACE + LETTER * longest,
    };
    let (mut at_inner, mut at_outer) = (0, 0);
    let places: Vec<Place> = graph
        .nodes
        .iter()
        .map(|node| {
            if node.reflector {
                at_inner += 1;
                place(middle, inner(reflectors), count(at_inner) - 0.5, reflectors)
            } else {
                at_outer += 1;
                place(middle, outer, count(at_outer) - 1.0, others)
            }
        })
        .collect();
    let peers: Vec<Place> =
        (0..graph.peers.len()).map(|at| place(middle, outside, count(at) + 0.3, graph.peers.len())).collect();

    let size = 2.0 * middle;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {size:.0} {height:.0}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n<style>\n\
         .mesh{{stroke:#888}} .client{{stroke:#2a7d2a}} .external{{stroke:#36a}}\n\
         .dead{{stroke-dasharray:4 4;opacity:.6}} circle,.peer{{stroke:#333}}\n\
         .live{{fill:#bfe6bf}} .drained{{fill:#ffe08a}} .down{{fill:#eaa}} .peer{{fill:#bcd4ee}}\n</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
        height = size + 80.0
    );
    for session in &graph.sessions {
        let (from, to) = (
            places[session.from],
            match session.to {
                End::Node(at) => places[at],
                End::Peer(at) => peers[at],
            },
        );
        let kind = match session.kind {
            SessionKind::Mesh => "mesh",
            SessionKind::Client => "client",
            SessionKind::External => "external",
        };
        let dead = if session.live { "" } else { " dead" };
        let _ = writeln!(
            svg,
            "<line class=\"{kind}{dead}\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
            from.x, from.y, to.x, to.y
        );
    }
    for (node, place) in graph.nodes.iter().zip(&places) {
        let (state, words) = match (node.live, node.drained) {
            (true, false) => ("live", "live"),
            (true, true) => ("drained", "live, drained"),
            (false, _) => ("down", "down"),
        };
        let radius = if node.reflector { 11 } else { 7 };
        let role = if node.reflector { ", reflector" } else { "" };
        let addresses: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
        let title = format!("{}: {words}{role}, AS {}, {}", node.name, node.asn, addresses.join(", "));
        let _ = writeln!(
            svg,
            "<circle class=\"{state}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"{radius}\"><title>{}</title></circle>",
            place.x,
            place.y,
            escaped(&title)
        );
        svg += &label(place, node.name.as_str(), f64::from(radius));
    }
    for (peer, place) in graph.peers.iter().zip(&peers) {
        let title = format!("{}: {}, AS {}", peer.name, peer.address, peer.asn);
        let _ = writeln!(
            svg,
            "<rect class=\"peer\" x=\"{:.1}\" y=\"{:.1}\" width=\"16\" height=\"16\"><title>{}</title></rect>",
            place.x - 8.0,
            place.y - 8.0,
            escaped(&title)
        );
        svg += &label(place, peer.name.as_str(), 10.0);
    }
    svg += &legend(graph, size);
    svg + "</svg>\n"
}

fn inner(reflectors: usize) -> f64 {
    match reflectors {
        0 | 1 => 0.0,
        more => 60.0_f64.max(STEP * count(more) / TAU),
    }
}

fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

fn longest<'a>(names: impl Iterator<Item = &'a str>) -> f64 {
    count(names.map(|name| name.chars().count()).max().unwrap_or(0))
}

/// The place `at` of `of` on a circle. Place 0 is on top, and they go round with the clock.
fn place(middle: f64, radius: f64, at: f64, of: usize) -> Place {
    let angle = TAU * at / count(of.max(1)) - TAU / 4.0;
    Place { x: middle + radius * angle.cos(), y: middle + radius * angle.sin(), angle }
}

/// A name beside its point, along the ray from the middle, and never upside down.
fn label(place: &Place, name: &str, radius: f64) -> String {
    let away = radius + 4.0;
    let (x, y) = (place.x + away * place.angle.cos(), place.y + away * place.angle.sin());
    let degrees = place.angle.to_degrees();
    let is_left = place.angle.cos() < -1e-9;
    let (turn, anchor) = if is_left { (degrees + 180.0, "end") } else { (degrees, "start") };
    format!(
        "<text x=\"{x:.1}\" y=\"{y:.1}\" dy=\".35em\" text-anchor=\"{anchor}\" \
         transform=\"rotate({turn:.1} {x:.1} {y:.1})\">{}</text>\n",
        escaped(name)
    )
}

fn legend(graph: &Graph, size: f64) -> String {
    let words = match &graph.topology {
        Some(words) => format!("{} nodes, BGP {words}", graph.nodes.len()),
        None => format!("{} nodes, backend {} (no BGP sessions)", graph.nodes.len(), graph.backend),
    };
    let nodes = "green: live, yellow: drained, red: down; large: reflector";
    let rest = "square: peer outside; dashed: an end is down";
    format!(
        "<text x=\"16\" y=\"{:.0}\">{}</text>\n<text x=\"16\" y=\"{:.0}\" fill=\"#555\">{nodes}</text>\n\
         <text x=\"16\" y=\"{:.0}\" fill=\"#555\">{rest}</text>\n",
        size + 20.0,
        escaped(&words),
        size + 42.0,
        size + 62.0
    )
}

/// Text in XML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
