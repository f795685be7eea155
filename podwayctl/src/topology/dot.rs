//! The topology in Graphviz' language: `podwayctl topology --draw dot | dot -Tsvg`.

use std::fmt::Write as _;

use super::{End, Graph, SessionKind};

pub(super) fn draw(graph: &Graph) -> String {
    let mut text = String::from("graph podway {\n  layout=neato; overlap=false; splines=true;\n");
    text += "  node [fontname=\"sans-serif\", style=filled, fillcolor=white];\n";
    for (at, node) in graph.nodes.iter().enumerate() {
        let shape = if node.reflector { "doublecircle" } else { "ellipse" };
        let colour = match (node.live, node.drained) {
            (true, false) => "#d9f2d9",
            (true, true) => "#fff2cc",
            (false, _) => "#f2d9d9",
        };
        let _ = writeln!(
            text,
            "  n{at} [label={}, shape={shape}, fillcolor=\"{colour}\"];",
            quoted(&format!("{}\nAS {}", node.name, node.asn))
        );
    }
    for (at, peer) in graph.peers.iter().enumerate() {
        let label = format!("{}\n{}\nAS {}", peer.name, peer.address, peer.asn);
        let _ = writeln!(text, "  p{at} [label={}, shape=box, fillcolor=\"#d9e6f2\"];", quoted(&label));
    }
    for session in &graph.sessions {
        let to = match session.to {
            End::Node(at) => format!("n{at}"),
            End::Peer(at) => format!("p{at}"),
        };
        let kind = match session.kind {
            SessionKind::Mesh => "",
            // From the reflector to its client.
            SessionKind::Client => "dir=forward",
            SessionKind::External => "color=\"#3366aa\"",
        };
        let style = if session.live { "" } else { "style=dashed" };
        let options: Vec<&str> = [kind, style].into_iter().filter(|option| !option.is_empty()).collect();
        let options = if options.is_empty() { String::new() } else { format!(" [{}]", options.join(", ")) };
        let _ = writeln!(text, "  n{} -- {to}{options};", session.from);
    }
    text + "}\n"
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}
