//! `podwayctl get`.

use podway_model::bgp::FilterVerdict;
use podway_model::cluster::{Assignment, PeerExport, PeerImport, PolicyMode, Topology};
use podway_model::document::{Document, Kind};
use podway_model::ids::ObjectName;
use podway_model::k8s::{LabelSelector, Labels, PolicyType, SelectorOperator};
use serde_json::{Value, json};

use crate::args::{Format, GetArgs, StoreArgs};
use crate::objects;
use crate::outcome::Failure;
use crate::output::{self, Output};
use crate::table::{Cell, Table, Tone};

pub(crate) async fn run(store: &StoreArgs, args: &GetArgs, output: &Output) -> Result<(), Failure> {
    if let Some(name) = &args.name {
        let namespace = args.namespace.as_deref().unwrap_or("default");
        let key = objects::key(args.kind, namespace, name)?;
        let Some(entry) = objects::open(store)?.get(&key.to_string()).await? else {
            return Err(Failure::NotFound(not_found(args.kind, namespace, name)));
        };
        let document = objects::read(&entry).map_err(Failure::Failed)?;
        let shown = match output.format {
            Format::Table => table(args.kind, &[document]).render(output.colour, 0),
            Format::Json => output::json(&document.to_value())?,
            Format::Yaml => document.to_yaml(),
        };
        return output.print(&shown);
    }
    let (found, problems) = objects::list(objects::open(store)?.as_ref(), args.kind).await?;
    let wanted = |document: &Document| match (&args.namespace, document.namespace()) {
        (Some(wanted), Some(namespace)) => wanted == namespace,
        _ => true,
    };
    let documents: Vec<Document> = found.into_iter().map(|(document, _)| document).filter(wanted).collect();
    let shown = match output.format {
        Format::Table if documents.is_empty() => {
            output.warn(&format!("no {} found", args.kind.name()));
            String::new()
        }
        Format::Table => table(args.kind, &documents).render(output.colour, 0),
        Format::Json => output::json(&list(&documents))?,
        Format::Yaml => documents.iter().map(Document::to_yaml).collect::<Vec<_>>().join("---\n"),
    };
    output.print(&shown)?;
    if problems.is_empty() { Ok(()) } else { Err(Failure::Failed(problems.join("\n"))) }
}

/// What is said of an object that is not there.
pub(crate) fn not_found(kind: Kind, namespace: &str, name: &str) -> String {
    if kind.is_namespaced() {
        format!("{} {name:?} not found in namespace {namespace:?}", kind.name())
    } else {
        format!("{} {name:?} not found", kind.name())
    }
}

/// As `kubectl` does, and `apply` reads.
fn list(documents: &[Document]) -> Value {
    let items: Vec<Value> = documents.iter().map(Document::to_value).collect();
    json!({ "apiVersion": "v1", "kind": "List", "items": items })
}

fn table(kind: Kind, documents: &[Document]) -> Table {
    let mut table = Table::new(match kind {
        Kind::ClusterConfig => &["NAME", "BACKEND", "TOPOLOGY", "ASN", "MASQUERADE", "POLICY"],
        Kind::Pool => &["NAME", "CIDR", "BLOCKS", "ASSIGNMENT", "NAT", "NODES", "STATE"],
        Kind::BgpPeer => &["NAME", "ADDRESS", "PORT", "ASN", "IMPORT", "EXPORT", "NODES"],
        Kind::BgpFilter => &["NAME", "RULES", "OTHERWISE"],
        Kind::Reflector => &["NODE", "CLUSTER ID"],
        Kind::Namespace => &["NAME", "LABELS"],
        Kind::Pod => &["NAMESPACE", "NAME", "PHASE", "ADDRESSES", "NODE", "LABELS"],
        Kind::NetworkPolicy => &["NAMESPACE", "NAME", "PODS", "ISOLATES"],
    });
    for document in documents {
        table.row(row(document));
    }
    table
}

fn row(document: &Document) -> Vec<Cell> {
    let yes_no = |yes: bool| if yes { "yes" } else { "no" };
    match document {
        Document::ClusterConfig(config) => vec![
            document.name().into(),
            config.backend.to_string().into(),
            match config.bgp.topology {
                Topology::Mesh => "mesh",
                Topology::Reflectors => "reflectors",
                Topology::Auto => "auto",
            }
            .into(),
            config.bgp.asn.to_string().into(),
            yes_no(config.masquerade.enabled).into(),
            match config.policy.mode {
                PolicyMode::Required => "required",
                PolicyMode::None => "none",
            }
            .into(),
        ],
        Document::Pool { name, spec } => vec![
            name.as_str().into(),
            spec.cidr.to_string().into(),
            format!("/{}", spec.block_len()).into(),
            match spec.assignment {
                Assignment::Automatic => "automatic",
                Assignment::Manual => "manual",
            }
            .into(),
            yes_no(spec.nat).into(),
            selector(&spec.node_selector).into(),
            if spec.disabled { Cell::toned("disabled", Tone::Warning) } else { "active".into() },
        ],
        Document::BgpPeer { name, spec } => vec![
            name.as_str().into(),
            spec.address.to_string().into(),
            spec.port.to_string().into(),
            spec.asn.to_string().into(),
            direction(spec.import != PeerImport::None, "all", spec.options.import_filter.as_ref()).into(),
            match spec.export {
                PeerExport::Own => direction(true, "own", spec.options.export_filter.as_ref()),
                other => direction(other == PeerExport::All, "all", spec.options.export_filter.as_ref()),
            }
            .into(),
            selector(&spec.node_selector).into(),
        ],
        Document::BgpFilter { name, spec } => vec![
            name.as_str().into(),
            spec.rules.len().to_string().into(),
            match spec.otherwise {
                FilterVerdict::Accept => "accept",
                FilterVerdict::Reject => "reject",
            }
            .into(),
        ],
        Document::Reflector { node, spec } => vec![
            node.as_str().into(),
            spec.cluster_id.map_or("(router id)".to_owned(), |id| id.to_string()).into(),
        ],
        Document::Namespace(namespace) => {
            vec![document.name().into(), labels(&namespace.metadata.labels).into()]
        }
        Document::Pod(pod) => vec![
            pod.metadata.namespace.clone().into(),
            document.name().into(),
            pod.status.phase.clone().into(),
            pod.addresses().iter().map(ToString::to_string).collect::<Vec<_>>().join(",").into(),
            pod.spec.node_name.clone().into(),
            labels(&pod.metadata.labels).into(),
        ],
        Document::NetworkPolicy(policy) => {
            let directions = [(PolicyType::Ingress, "ingress"), (PolicyType::Egress, "egress")];
            let isolates: Vec<&str> = directions
                .iter()
                .filter(|(direction, _)| policy.spec.isolates(*direction))
                .map(|(_, word)| *word)
                .collect();
            vec![
                policy.metadata.namespace.clone().into(),
                document.name().into(),
                selector(&policy.spec.pod_selector).into(),
                isolates.join(",").into(),
            ]
        }
    }
}

/// `none`, `all`, `own`, with the filter that everything goes through.
fn direction(open: bool, what: &str, filter: Option<&ObjectName>) -> String {
    match (open, filter) {
        (false, _) => "none".to_owned(),
        (true, None) => what.to_owned(),
        (true, Some(filter)) => format!("{what} by {filter}"),
    }
}

fn labels(labels: &Labels) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// A selector as `kubectl` writes one.
fn selector(selector: &LabelSelector) -> String {
    let equal = selector.match_labels.iter().map(|(key, value)| format!("{key}={value}"));
    let other = selector.match_expressions.iter().map(|requirement| {
        let (key, values) = (&requirement.key, requirement.values.join(","));
        match requirement.operator {
            SelectorOperator::In => format!("{key} in ({values})"),
            SelectorOperator::NotIn => format!("{key} notin ({values})"),
            SelectorOperator::Exists => key.clone(),
            SelectorOperator::DoesNotExist => format!("!{key}"),
        }
    });
    let all: Vec<String> = equal.chain(other).collect();
    if all.is_empty() { "all".to_owned() } else { all.join(",") }
}

#[cfg(test)]
mod tests {
    use podway_model::document::parse_documents;

    use super::*;

    #[test]
    fn selectors_are_written_as_kubectl_does() {
        let text = "{apiVersion: podway.io/v1, kind: Pool, metadata: {name: p}, spec: {cidr: 10.0.0.0/16,
            nodeSelector: {matchLabels: {a: b}, matchExpressions: [{key: c, operator: In, values: [d, e]},
            {key: f, operator: NotIn, values: [g]}, {key: h, operator: Exists}, {key: i, operator: DoesNotExist}]}}}";
        let documents = parse_documents("f", text).unwrap();
        let Document::Pool { spec, .. } = &documents[0] else { panic!() };
        assert_eq!(selector(&spec.node_selector), "a=b,c in (d,e),f notin (g),h,!i");
        assert_eq!(selector(&LabelSelector::default()), "all");
    }

    #[test]
    fn every_kind_has_its_table() {
        let text = include_str!("../tests/data/every-kind.yaml");
        let documents = parse_documents("every-kind.yaml", text).unwrap();
        let mut tables = String::new();
        for kind in Kind::ALL {
            let of_kind: Vec<Document> =
                documents.iter().filter(|document| document.kind() == kind).cloned().collect();
            assert!(!of_kind.is_empty(), "{kind:?}");
            tables += &table(kind, &of_kind).render(false, 0);
            tables.push('\n');
        }
        insta::assert_snapshot!(tables);
    }
}
