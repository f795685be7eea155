//! `bandwidth`: limits an interface that the plugin before in the chain made.
//!
//! Rates stand at the top of the configuration, or in `runtimeConfig.bandwidth` where the runtime gives them. The
//! device that holds back what the container sends has upstream's name, made of network and container id; an alias
//! says whose it is, so that GC knows it.

use podway_ipam::Attachment;
use podway_kern::MissingIsFine as _;
use podway_kern::rtnl::{Link, LinkChange, LinkRef, Request, Rtnl};
use podway_kern::tc::{Tc, TcRequest};
use podway_model::ids::NetworkName;
use podway_model::mistakes::Mistakes;
use podway_model::names::bandwidth_ifb_name;
use serde_json::{Map, Value, json};

use super::{passed_on, visit};
use crate::conf::Network;
use crate::env::Target;
use crate::error::{CniError, Code};
use crate::plugins::bandwidth::{Rate, Rates, parse};

const KEYS: [&str; 4] = ["ingressRate", "ingressBurst", "egressRate", "egressBurst"];
/// Beginning of the alias of a device of ours: network, then container id.
const ALIAS: &str = "podway-bandwidth/";

fn rates(network: &Network) -> Result<Rates, CniError> {
    let own: Map<String, Value> =
        KEYS.into_iter().filter_map(|key| Some((key.to_owned(), network.key(key)?.clone()))).collect();
    let mut mistakes = Mistakes::default();
    let own = (!own.is_empty()).then_some(Value::Object(own));
    let rates = parse(own.as_ref().or_else(|| network.runtime("bandwidth")), &mut mistakes);
    if mistakes.is_empty() { Ok(rates) } else { Err(CniError::config(&mistakes)) }
}

fn alias(network: &NetworkName, container: &str) -> String {
    format!("{ALIAS}{network}/{container}")
}

/// The node's end of the target's interface, which the previous result must name.
fn host_end(rtnl: &mut Rtnl, previous: &Map<String, Value>, target: &Target) -> Result<Link, CniError> {
    let ifname = target.attachment.ifname.as_str();
    let refuse = |reason: String| Err(CniError::new(Code::Config, format!("prevResult: {reason}")));
    let Some(inside) = visit(target, || Ok(Rtnl::open()?.link(ifname)?))? else {
        return refuse(format!("interface {ifname} is missing in {}", target.netns.display()));
    };
    let peer = inside.link.map(|index| rtnl.link(index)).transpose()?.flatten();
    let Some(peer) = peer.filter(|peer| peer.kind.as_deref() == Some("veth")) else {
        return refuse(format!("interface {ifname} has no peer on the node"));
    };
    let interfaces = previous.get("interfaces").and_then(Value::as_array);
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
    let named = interfaces
        .into_iter()
        .flatten()
        .any(|interface| text(interface, "name") == peer.name && text(interface, "sandbox").is_empty());
    if named { Ok(peer) } else { refuse(format!("does not name {}, the peer of {ifname}", peer.name)) }
}

pub(super) fn add(network: &Network, target: &Target) -> Result<Value, CniError> {
    let rates = rates(network)?;
    let Some(previous) = network.previous_if_any()? else {
        let message = "prevResult: nothing found, the result of the plugin before in the chain expected";
        return Err(CniError::new(Code::Config, message));
    };
    let mut result = passed_on(network, previous);
    if rates.is_none() {
        return Ok(result.into());
    }
    let mut rtnl = Rtnl::open()?;
    let host = host_end(&mut rtnl, &result, target)?;
    let made = limit(&mut rtnl, &rates, network, target, &host);
    if made.is_err() {
        // What was begun must not limit the interface for ever; the error is that of the limiting.
        let _ = undo(&mut rtnl, network, &target.attachment);
    }
    if let Some(ifb) = made? {
        let interface =
            json!({"name": ifb.name, "mac": ifb.mac.map(|mac| mac.to_string()).unwrap_or_default()});
        match result.entry("interfaces").or_insert_with(|| json!([])) {
            Value::Array(list) => list.push(interface),
            other => *other = json!([interface]),
        }
    }
    Ok(result.into())
}

fn limit(
    rtnl: &mut Rtnl,
    rates: &Rates,
    network: &Network,
    target: &Target,
    host: &Link,
) -> Result<Option<Link>, CniError> {
    let container = target.attachment.container_id.as_str();
    let mut requests = Vec::new();
    requests.extend(rates.ingress.map(|rate| TcRequest::ReplaceRoot(host.index, rate.bucket())));
    let mut ifb = None;
    if let Some(rate) = rates.egress {
        let name = bandwidth_ifb_name(network.name.as_str(), container);
        let mark = LinkChange {
            alias: Some(alias(&network.name, container)),
            no_link_local: Some(true),
            up: Some(true),
            ..LinkChange::default()
        };
        rtnl.run_all(&[
            Request::AddIfb { name: name.clone(), mtu: host.mtu },
            Request::SetLink(LinkRef::Name(name.clone()), mark),
        ])?;
        let Some(link) = rtnl.link(name.as_str())? else {
            return Err(CniError::new(Code::Kernel, format!("{name}: it vanished")));
        };
        requests.extend([
            TcRequest::ReplaceRoot(link.index, rate.bucket()),
            TcRequest::AddIngress(host.index),
            TcRequest::AddRedirect(host.index, link.index),
        ]);
        ifb = Some(link);
    }
    Tc::open()?.run_all(&requests)?;
    Ok(ifb)
}

/// Removes the device, and before it the redirection of whoever is sent on to it: a packet that is sent on to nobody
/// is lost.
fn undo(rtnl: &mut Rtnl, network: &Network, attachment: &Attachment) -> Result<(), CniError> {
    let name = bandwidth_ifb_name(network.name.as_str(), attachment.container_id.as_str());
    match rtnl.link(name.as_str())? {
        Some(ifb) if ifb.kind.as_deref() == Some("ifb") => remove(rtnl, &ifb),
        _ => Ok(()),
    }
}

fn remove(rtnl: &mut Rtnl, ifb: &Link) -> Result<(), CniError> {
    let mut tc = Tc::open()?;
    for link in rtnl.links()?.into_iter().filter(|link| link.kind.as_deref() == Some("veth")) {
        if tc.redirect(link.index)? == Some(ifb.index) {
            tc.run_all(&[TcRequest::DeleteIngress(link.index)]).missing_is_fine()?;
        }
    }
    Ok(rtnl.run(Request::DeleteLink(LinkRef::Index(ifb.index))).missing_is_fine()?)
}

pub(super) fn del(network: &Network, attachment: &Attachment) -> Result<(), CniError> {
    undo(&mut Rtnl::open()?, network, attachment)
}

/// Removes the devices of this network's containers that are not valid any more. One that upstream made does not say
/// whose it is: it goes where nothing is sent on to it any more, since then it limits nobody.
pub(super) fn gc(network: &Network) -> Result<(), CniError> {
    let valid = network.valid_attachments()?;
    let valid: Vec<String> =
        valid.iter().map(|attachment| alias(&network.name, attachment.container_id.as_str())).collect();
    let mut rtnl = Rtnl::open()?;
    let of_network = format!("{ALIAS}{}/", network.name);
    let links = rtnl.links()?;
    let mut tc = Tc::open()?;
    let mut used = Vec::new();
    for link in links.iter().filter(|link| link.kind.as_deref() == Some("veth")) {
        used.extend(tc.redirect(link.index)?);
    }
    let mut errors = Vec::new();
    for link in links.iter().filter(|link| link.kind.as_deref() == Some("ifb")) {
        let is_over = match &link.alias {
            Some(alias) => alias.starts_with(&of_network) && !valid.contains(alias),
            None => is_upstreams(&link.name) && !used.contains(&link.index),
        };
        if is_over {
            errors.extend(remove(&mut rtnl, link).err());
        }
    }
    errors.into_iter().next().map_or(Ok(()), Err)
}

/// Whether a device has a name of the form that [`bandwidth_ifb_name`] makes.
fn is_upstreams(name: &str) -> bool {
    name.strip_prefix("bwp")
        .is_some_and(|hash| hash.len() == 12 && hash.bytes().all(|b| b.is_ascii_hexdigit()))
}

pub(super) fn check(network: &Network, target: &Target) -> Result<(), CniError> {
    let rates = rates(network)?;
    let previous = network.previous()?;
    if rates.is_none() {
        return Ok(());
    }
    let mut rtnl = Rtnl::open()?;
    let host = host_end(&mut rtnl, previous, target)?;
    let mut tc = Tc::open()?;
    let mut wrong = Vec::new();
    let mut compare = |tc: &mut Tc, link: &Link, rate: Rate| {
        let (found, wanted) = (tc.root(link.index)?, rate.bucket());
        if found != Some(wanted) {
            let found = found.map_or("no rate".to_owned(), |tbf| tbf.to_string());
            wrong.push(format!("{}: {found} found, {wanted} expected", link.name));
        }
        Ok::<_, CniError>(())
    };
    if let Some(rate) = rates.ingress {
        compare(&mut tc, &host, rate)?;
    }
    if let Some(rate) = rates.egress {
        let name = bandwidth_ifb_name(network.name.as_str(), target.attachment.container_id.as_str());
        match rtnl.link(name.as_str())? {
            Some(ifb) => {
                compare(&mut tc, &ifb, rate)?;
                if tc.redirect(host.index)? != Some(ifb.index) {
                    wrong.push(format!("{}: what comes in is not sent on to {name}", host.name));
                }
                if !ifb.up {
                    wrong.push(format!("{name}: is down"));
                }
            }
            None => wrong.push(format!("{name}: is missing")),
        }
    }
    match wrong.first() {
        None => Ok(()),
        Some(first) => Err(CniError::new(Code::Damaged, first.clone()).with(wrong.join("\n"))),
    }
}
