//! Endpoint records: which files of the folder count.

use podway_model::accepts_schema;
use podway_model::endpoint::EndpointRecord;
use podway_model::ids::BootId;
use podway_model::names;

/// The id that a file name stands for: `<id>.json`. Other files (half-written ones among them) are none of ours.
pub(crate) fn id_of(file_name: &str) -> Option<&str> {
    let id = file_name.strip_suffix(".json")?;
    (!id.is_empty() && !id.starts_with('.')).then_some(id)
}

/// Reads the record of an attachment. `None`: it is of another boot, and its pod with it.
///
/// # Errors
/// What is wrong with it, in words.
pub(crate) fn read(id: &str, content: &[u8], boot: &BootId) -> Result<Option<EndpointRecord>, String> {
    let record: EndpointRecord =
        serde_json::from_slice(content).map_err(|e| format!("endpoint record {id}: cannot be read: {e}"))?;
    check(id, record, boot)
}

/// Checks a record, wherever it came from. Ids and interface names are hashes of the attachment, so that a record
/// can speak for its own interface only.
///
/// # Errors
/// What is wrong with it, in words.
pub(crate) fn check(
    id: &str,
    record: EndpointRecord,
    boot: &BootId,
) -> Result<Option<EndpointRecord>, String> {
    let wrong = |field: &str, found: &str, expected: &str| {
        Err(format!("endpoint record {id}: {field}: {found} found, {expected} expected"))
    };
    if !accepts_schema(record.schema) {
        return wrong("schema", &record.schema.to_string(), "this version's");
    }
    if record.boot_id != *boot {
        return Ok(None);
    }
    let (container, ifname) = (record.container_id.as_str(), record.ifname.as_str());
    let attachment = names::attachment_id(container, ifname);
    if record.id != id || attachment != id {
        return wrong("id", &record.id, &attachment);
    }
    let host = names::host_ifname(container, ifname);
    if record.host_ifname.as_str() != host {
        return wrong("hostIfname", record.host_ifname.as_str(), &host);
    }
    if record.addresses.is_empty() {
        return wrong("addresses", "none", "one per family");
    }
    Ok(Some(record))
}

#[cfg(test)]
pub(crate) mod tests {
    use podway_model::endpoint::PodRef;
    use podway_model::ids::{MacAddr, Mtu};

    use super::*;

    pub(crate) const BOOT: &str = "00000000-0000-0000-0000-000000000001";

    pub(crate) fn record(namespace: &str, pod: &str, address: &str) -> EndpointRecord {
        let container = format!("{namespace}.{pod}");
        EndpointRecord {
            schema: 1,
            id: names::attachment_id(&container, "eth0"),
            boot_id: BOOT.parse().unwrap(),
            network: "podway".parse().unwrap(),
            container_id: container.parse().unwrap(),
            ifname: "eth0".parse().unwrap(),
            host_ifname: names::host_ifname(&container, "eth0").parse().unwrap(),
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            mtu: Mtu::ETHERNET,
            pod: Some(PodRef { namespace: namespace.to_owned(), name: pod.to_owned(), uid: None }),
            addresses: vec![address.parse().unwrap()],
            host_ports: vec![],
            ipam: None,
            netns: String::new(),
        }
    }

    #[test]
    fn a_record_speaks_for_its_own_interface_only() {
        let boot = BOOT.parse().unwrap();
        let good = record("x", "a", "10.244.1.2");
        let id = good.id.clone();
        let json = |record: &EndpointRecord| serde_json::to_vec(record).unwrap();
        assert_eq!(read(&id, &json(&good), &boot), Ok(Some(good.clone())));
        let mut old = good.clone();
        old.boot_id = "00000000-0000-0000-0000-000000000002".parse().unwrap();
        assert_eq!(read(&id, &json(&old), &boot), Ok(None));
        let mut stranger = good.clone();
        stranger.host_ifname = "eth0".parse().unwrap();
        let mut newer = good.clone();
        newer.schema = 99;
        let mut bare = good.clone();
        bare.addresses.clear();
        for (bad, field) in [(stranger, "hostIfname"), (newer, "schema"), (bare, "addresses")] {
            let why = read(&id, &json(&bad), &boot).unwrap_err();
            assert!(why.contains(field), "{why}");
        }
        assert!(read("0123456789abcdef", &json(&good), &boot).unwrap_err().contains("id"));
        assert!(read(&id, b"{\"schema\":1", &boot).unwrap_err().contains("cannot be read"));
    }

    #[test]
    fn half_written_files_are_not_looked_at() {
        assert_eq!(id_of("0123.json"), Some("0123"));
        for other in [".0123.json", "0123.json.tmp", ".json", "x"] {
            assert_eq!(id_of(other), None, "{other}");
        }
    }
}
