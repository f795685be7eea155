//! NetworkPolicy on real packets, as the oracle has it.

use std::time::Duration;

use anyhow::{Result, ensure};
use podway_model::cluster::Backend;
use podway_model::k8s::NetworkPolicy;
use podway_testkit::cluster::{Cluster, PodPlan};
use podway_testkit::probe::Kind;
use podway_testkit::wait::wait_until_ok;

use crate::{cluster_with_pods, run, two_nodes};

const KINDS: [Kind; 5] = [Kind::Icmp, Kind::Tcp(80), Kind::Tcp(81), Kind::Udp(80), Kind::Udp(81)];

fn policies(json: &str) -> Result<Vec<NetworkPolicy>> {
    Ok(serde_json::from_str(json)?)
}

fn wait_enforced(cluster: &Cluster) -> Result<()> {
    wait_until_ok("packets follow the oracle", Duration::from_secs(15), || {
        for matrix in
            [cluster.pods_to_pods(&KINDS)?, cluster.pods_to_outside(&KINDS)?, cluster.nodes_to_pods(&KINDS)?]
        {
            ensure!(!matrix.cells.is_empty(), "nothing was tried");
            let differences = matrix.differences();
            ensure!(differences.is_empty(), "{}", differences.join("\n"));
        }
        Ok(())
    })
}

#[test]
fn policies_are_enforced_as_the_oracle_says() {
    run("policies_are_enforced_as_the_oracle_says", || {
        let mut options = two_nodes("enforced", Backend::Vxlan);
        options.ipv6 = true;
        let mut cluster = cluster_with_pods(options)?;
        wait_enforced(&cluster)?;
        let rounds = [
            // Deny everything into one namespace.
            r#"[{"metadata": {"namespace": "demo", "name": "deny"}, "spec": {"podSelector": {}}}]"#,
            // Pods, namespaces, ports and port ranges, into and out of pods.
            r#"[{"metadata": {"namespace": "demo", "name": "in"},
                 "spec": {"podSelector": {"matchLabels": {"app": "a"}}, "ingress": [
                   {"from": [{"podSelector": {"matchLabels": {"app": "a"}}}], "ports": [{"protocol": "UDP", "port": 80, "endPort": 81}]},
                   {"from": [{"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "In", "values": ["ops"]}]}}]}]}},
                {"metadata": {"namespace": "ops", "name": "out"},
                 "spec": {"podSelector": {}, "policyTypes": ["Egress", "Ingress"], "egress": [
                   {"to": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "a"}}}], "ports": [{"port": 80}]},
                   {"to": [{"ipBlock": {"cidr": "198.51.0.0/16"}}]}]}}]"#,
            // Blocks with exceptions, both families.
            r#"[{"metadata": {"namespace": "ops", "name": "blocks"},
                 "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": [
                   {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.244.0.0/16"]}}], "ports": [{"port": 81}]},
                   {"to": [{"ipBlock": {"cidr": "2001:db8:64::/64"}}, {"ipBlock": {"cidr": "fd00:10:244::/56"}}]}]}}]"#,
        ];
        for round in rounds {
            cluster.apply_policies(policies(round)?)?;
            wait_enforced(&cluster)?;
            cluster.delete_policies()?;
            wait_enforced(&cluster)?;
        }
        Ok(())
    });
}

#[test]
fn a_pod_without_an_object_is_closed_where_policies_exist() {
    run("a_pod_without_an_object_is_closed_where_policies_exist", || {
        let mut cluster = cluster_with_pods(two_nodes("unknown-pod", Backend::HostGw))?;
        cluster.apply_policies(policies(
            r#"[{"metadata": {"namespace": "demo", "name": "some"},
                 "spec": {"podSelector": {"matchLabels": {"app": "nobody"}}}}]"#,
        )?)?;
        wait_enforced(&cluster)?;
        cluster.add_pods(&[PodPlan {
            namespace: "demo".to_owned(),
            name: "late".to_owned(),
            node: 0,
            labels: vec![],
        }])?;
        wait_enforced(&cluster)?;
        // The pod lives on, its object goes: the oracle calls it unknown, and closes it.
        let object = cluster.objects.pods.pop().expect("the pod's object");
        let document = podway_testkit::objects::pod_document(&object);
        cluster.node_at(0)?.delete(&podway_testkit::objects::documents([document]))?;
        wait_enforced(&cluster)?;
        ensure!(
            cluster.pods_to_pods(&KINDS)?.cells.iter().any(|c| c.to == "demo/late" && !c.expected),
            "the oracle closes the pod"
        );
        Ok(())
    });
}
