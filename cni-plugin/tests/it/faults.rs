//! The lease file under fire: full disk, read-only disk, damage, loss, another boot. Nothing is handed out twice.

use std::collections::BTreeSet;
use std::net::IpAddr;

use nix::mount::{MsFlags, mount};
use podway_model::names::BOOT_ID_FILE;
use podway_testkit::mounts::cover_file;
use podway_testkit::pod::Sandbox;
use serde_json::{Value, json};

use crate::host::{Families, Host, ips};

const LEASES: &str = "/run/podway/ipam/leases";

fn pods(host: &Host, count: usize) -> Vec<(Sandbox, Value)> {
    let all = (0..count).map(|i| host.sandbox(&format!("p{i}")));
    all.map(|pod| {
        let result = host.add(&pod);
        (pod, result)
    })
    .collect()
}

fn addresses(pods: &[(Sandbox, Value)]) -> BTreeSet<IpAddr> {
    let all: Vec<IpAddr> = pods.iter().flat_map(|(_, result)| ips(result)).collect();
    let distinct: BTreeSet<IpAddr> = all.iter().copied().collect();
    assert_eq!(all.len(), distinct.len(), "an address is double");
    distinct
}

/// ADDs more pods after the fault; all addresses stay distinct, all pods stay whole, and DEL leaves nothing.
fn go_on(host: &Host, mut all: Vec<(Sandbox, Value)>) {
    let more = host.sandbox("more");
    let answer = host.call("ADD", &more).run_with_stderr();
    assert!(answer.1.contains("rebuilt with"), "it is reported: {}", answer.1);
    all.push((more, answer.0.result()));
    for name in ["q", "r"] {
        let pod = host.sandbox(name);
        let result = host.add(&pod);
        all.push((pod, result));
    }
    addresses(&all);
    for (pod, result) in &all {
        host.check(pod, result).done();
    }
    for (pod, _) in &all {
        host.del(pod);
    }
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn a_damaged_lease_file_is_rebuilt_before_anything_is_handed_out() {
    let Some(host) = Host::new("a_damaged_lease_file_is_rebuilt", Families::Dual) else { return };
    let all = pods(&host, 4);
    host.del(&all[3].0);
    let all: Vec<_> = all.into_iter().take(3).collect();
    let good = host.read(LEASES);
    host.write(LEASES, &good.replacen("10.244.1.2=", "10.244.1.3=", 1));
    // CHECK only looks, and says what is the matter and what helps.
    let said = host.check(&all[0].0, &all[0].1).error(5);
    assert!(said.contains("leases: line") && said.contains("rebuilt"), "{said}");
    go_on(&host, all);
    let kept = host.read("/run/podway/ipam/leases.damaged");
    assert!(kept.contains("10.244.1.3="), "the damaged file is kept");
}

#[test]
fn an_empty_and_a_lost_lease_file_are_rebuilt() {
    for lose in [|host: &Host| host.write(LEASES, ""), |host: &Host| host.remove(LEASES)] {
        let Some(host) = Host::new("an_empty_and_a_lost_lease_file_are_rebuilt", Families::Dual) else {
            return;
        };
        let all = pods(&host, 3);
        lose(&host);
        go_on(&host, all);
    }
}

#[test]
fn a_lease_file_is_rebuilt_without_records_too() {
    let Some(host) = Host::new("a_lease_file_is_rebuilt_without_records_too", Families::Dual) else { return };
    let all = pods(&host, 3);
    host.write(LEASES, "garbage\n");
    let records = host.list("/run/podway/endpoints");
    records.iter().for_each(|name| host.remove(&format!("/run/podway/endpoints/{name}")));
    let more = host.sandbox("more");
    let taken = addresses(&all);
    let result = host.call("ADD", &more).run_with_stderr().0.result();
    assert!(ips(&result).iter().all(|ip| !taken.contains(ip)), "{result}");
    assert_eq!(host.leases().len(), 4);
    for (pod, _) in &all {
        host.del(pod);
    }
    host.del(&more);
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn a_torn_last_line_counts_as_not_written() {
    let Some(host) = Host::new("a_torn_last_line_counts_as_not_written", Families::Dual) else { return };
    let all = pods(&host, 2);
    let good = host.read(LEASES);
    host.write(LEASES, &format!("{good}0badc0de lease 17 c9 eth0 pod"));
    let pod = host.sandbox("q");
    let result = host.add(&pod);
    let mut all = all;
    all.push((pod, result));
    addresses(&all);
    assert_eq!(host.leases().len(), 3);
    assert!(!host.read(LEASES).contains("0badc0de"));
}

#[test]
fn a_full_disk_is_named_and_costs_nothing() {
    let Some(host) = Host::new("a_full_disk_is_named_and_costs_nothing", Families::Dual) else { return };
    // Room for a few files, then none.
    let run = |line: &str| host.place.run("sh", &["-c", line]).unwrap();
    run("mount -t tmpfs -o size=64k,mode=0700 tmpfs /run/podway");
    let first = host.sandbox("first");
    let result = host.add(&first);
    run("cat /dev/zero > /run/podway/filler 2>/dev/null || true");
    let pod = host.sandbox("p");
    // Each step that writes is refused with the file's name; nothing is left of the pod.
    let mut refused = 0;
    for _ in 0..200 {
        let answer = host.call("ADD", &pod).run();
        if answer.code == Some(0) {
            host.del(&pod);
            continue;
        }
        let said = answer.error(5);
        assert!(said.contains("/run/podway/") && said.contains("No space left"), "{said}");
        refused += 1;
        assert_eq!((host.leases().len(), host.pod_links().len(), host.records().len()), (1, 1, 1));
        if refused == 3 {
            break;
        }
    }
    assert_eq!(refused, 3, "the disk is full");
    host.check(&first, &result).done();
    // Room again: the next write goes on, and DEL of everything leaves nothing.
    host.remove("/run/podway/filler");
    let again = host.add(&pod);
    host.check(&pod, &again).done();
    host.del(&pod);
    host.del(&first);
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn a_read_only_disk_is_named() {
    let Some(host) = Host::new("a_read_only_disk_is_named", Families::Dual) else { return };
    let remount = |flags: MsFlags| {
        let tmpfs = Some("tmpfs");
        host.place.enter(|| mount(tmpfs, "/run/podway", tmpfs, flags, None::<&str>)).unwrap().unwrap();
    };
    remount(MsFlags::empty());
    let (first, pod) = (host.sandbox("first"), host.sandbox("p"));
    host.add(&first);
    remount(MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY);
    for (verb, sandbox) in [("ADD", &pod), ("DEL", &first)] {
        let said = host.call(verb, sandbox).run().error(5);
        assert!(said.contains("/run/podway/") && said.contains("Read-only"), "{verb}: {said}");
    }
    remount(MsFlags::MS_REMOUNT);
    host.add(&pod);
    host.del(&pod);
    host.del(&first);
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn after_a_reboot_nothing_of_the_old_boot_counts() {
    let Some(host) = Host::new("after_a_reboot_nothing_of_the_old_boot_counts", Families::Dual) else {
        return;
    };
    let all = pods(&host, 3);
    // The kernel forgets links with a reboot; here they are taken away.
    for link in host.pod_links() {
        host.ip(&format!("link del {}", link.name));
    }
    cover_file(&host.place, BOOT_ID_FILE, "00000000-0000-0000-0000-00000000000b\n").unwrap();
    // The node file is of the old boot until `routed` has written it anew.
    let pod = host.sandbox("new");
    assert!(host.call("ADD", &pod).run().error(11).contains("bootId"));
    host.edit_node_file(|file| file["bootId"] = json!("00000000-0000-0000-0000-00000000000b"));
    let result = host.add(&pod);
    assert_eq!(ips(&result)[0].to_string(), "10.244.1.1", "the first address is free again");
    assert_eq!(host.leases().len(), 1);
    // DEL of a pod of the old boot is fine, and takes its record along.
    for (old, _) in &all {
        host.del(old);
    }
    assert_eq!(host.records().len(), 1);
    host.check(&pod, &result).done();
    host.del(&pod);
    assert_eq!(host.leftovers(), Vec::<String>::new());
}
