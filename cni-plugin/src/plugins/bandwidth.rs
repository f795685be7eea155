//! Rates: `runtimeConfig.bandwidth` (CNI CONVENTIONS, "Well-known Capabilities"), in bits and bits per second.
//!
//! ```text
//!   node ──▶ pw<hash>: tbf ──▶ pod          ingress: what the pod receives
//!   node ◀── pwi<hash>: tbf ◀── redirected from pw<hash> ◀── pod          egress: what the pod sends
//! ```
//!
//! A queue can hold back only what leaves a device. What a pod sends is received by the node, so it is sent on to a
//! device of its own (an ifb) whose queue holds it back and whose far end is the node's ordinary reception: guard and
//! policy see it come from the pod's interface. The ifb is the only thing that does not go with the veth; its name is
//! made of the attachment, so DEL finds it without being told that there were rates.

use std::time::Duration;

use podway_ipam::Attachment;
use podway_kern::MissingIsFine as _;
use podway_kern::rtnl::{Link, LinkChange, LinkRef, Request, Rtnl};
use podway_kern::tc::{Tbf, Tc, TcRequest};
use podway_model::ids::Mtu;
use podway_model::mistakes::Mistakes;
use podway_model::names::{ifb_alias, ifb_name};
use serde_json::Value;

use crate::conf::Network;
use crate::error::{CniError, Code};

const SOURCE: &str = "network configuration";
const FIELD: &str = "runtimeConfig.bandwidth";
/// How long a packet may wait besides a burst, as upstream's plugin has it.
pub const LATENCY: Duration = Duration::from_millis(25);
/// Ethernet header, which a bucket counts.
const HEADER: u64 = 14;
/// Largest burst: the kernel counts bytes in 32 bits.
const MAX_BURST: u64 = (1 << 32) * 8 - 8;

/// A rate, and what may pass at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Bits per second.
    pub rate: u64,
    /// Bits.
    pub burst: u64,
}

impl Rate {
    /// The bucket that makes it.
    pub fn bucket(self) -> Tbf {
        Tbf::new(self.rate / 8, u32::try_from(self.burst / 8).unwrap_or(u32::MAX), LATENCY)
    }
}

/// What a pod may receive and send.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// Receive; none: as much as there is.
    pub ingress: Option<Rate>,
    /// Send; none: as much as it can.
    pub egress: Option<Rate>,
}

/// Reads the rates.
pub fn parse(rates: Option<&Value>, mistakes: &mut Mistakes) -> Rates {
    let rates = match rates {
        None | Some(Value::Null) => return Rates::default(),
        Some(rates @ Value::Object(_)) => rates,
        Some(other) => {
            mistakes.add(SOURCE, FIELD, other, "an object");
            return Rates::default();
        }
    };
    let mut one = |direction: &str| {
        let field = |what: &str| format!("{FIELD}.{direction}{what}");
        let mut number = |what: &str| match rates.get(format!("{direction}{what}")) {
            None | Some(Value::Null) => Some(0),
            Some(value) => value.as_u64().or_else(|| {
                mistakes.add(SOURCE, field(what), value, "a number of bits");
                None
            }),
        };
        match (number("Rate")?, number("Burst")?) {
            (0, 0) => None,
            (0, burst) => {
                mistakes.add(SOURCE, field("Burst"), burst, format!("{direction}Rate beside it, or none"));
                None
            }
            (rate, 0) => {
                mistakes.add(SOURCE, field("Rate"), rate, format!("{direction}Burst beside it, or none"));
                None
            }
            (rate, _) if rate < 8 => {
                mistakes.add(SOURCE, field("Rate"), rate, "at least 8 bits per second");
                None
            }
            (_, burst) if burst > MAX_BURST => {
                mistakes.add(SOURCE, field("Burst"), burst, format!("at most {MAX_BURST} bits, 4 GiB,"));
                None
            }
            (rate, burst) => Some(Rate { rate, burst }),
        }
    };
    Rates { ingress: one("ingress"), egress: one("egress") }
}

impl Rates {
    /// Whether nothing is limited.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Refuses a burst that is smaller than a packet: nothing of that size would ever pass.
    pub fn fit(&self, mtu: Mtu) -> Result<(), CniError> {
        let least = (u64::from(mtu.bytes()) + HEADER) * 8;
        let mut mistakes = Mistakes::default();
        for (rate, direction) in [(self.ingress, "ingress"), (self.egress, "egress")] {
            if let Some(rate) = rate.filter(|rate| rate.burst < least) {
                let expected = format!("at least {least} bits, a packet of the MTU {mtu},");
                mistakes.add(SOURCE, format!("{FIELD}.{direction}Burst"), rate.burst, expected);
            }
        }
        if mistakes.is_empty() { Ok(()) } else { Err(CniError::config(&mistakes)) }
    }
}

/// Limits an attachment, before its link goes up. Returns the device that holds back what it sends, if there is one.
pub fn limit(
    rtnl: &mut Rtnl,
    rates: &Rates,
    attachment: &Attachment,
    host: &Link,
    mtu: Mtu,
) -> Result<Option<Link>, CniError> {
    let mut requests = Vec::new();
    requests.extend(rates.ingress.map(|rate| TcRequest::ReplaceRoot(host.index, rate.bucket())));
    let mut ifb = None;
    if let Some(rate) = rates.egress {
        let link = make_ifb(rtnl, attachment, mtu)?;
        requests.extend([
            TcRequest::ReplaceRoot(link.index, rate.bucket()),
            TcRequest::AddIngress(host.index),
            TcRequest::AddRedirect(host.index, link.index),
        ]);
        ifb = Some(link);
    }
    if !requests.is_empty() {
        Tc::open()?.run_all(&requests)?;
    }
    Ok(ifb)
}

fn make_ifb(rtnl: &mut Rtnl, attachment: &Attachment, mtu: Mtu) -> Result<Link, CniError> {
    // What an ADD left that was killed, and whose record somebody removed.
    remove(rtnl, attachment)?;
    let (name, alias) = names(attachment);
    let mark =
        LinkChange { alias: Some(alias), no_link_local: Some(true), up: Some(true), ..LinkChange::default() };
    rtnl.run_all(&[
        Request::AddIfb { name: name.clone(), mtu: mtu.bytes() },
        Request::SetLink(LinkRef::Name(name.clone()), mark),
    ])?;
    rtnl.link(name.as_str())?.ok_or_else(|| CniError::new(Code::Kernel, format!("{name}: it vanished")))
}

/// Takes away what does not go with the veth. None is fine; a device of that name that is not ours stays.
pub fn remove(rtnl: &mut Rtnl, attachment: &Attachment) -> Result<(), CniError> {
    let (name, alias) = names(attachment);
    let Some(link) = rtnl.link(name.as_str())? else { return Ok(()) };
    let ours = link.kind.as_deref() == Some("ifb") && link.alias.as_ref().is_none_or(|found| *found == alias);
    if ours {
        rtnl.run(Request::DeleteLink(LinkRef::Index(link.index))).missing_is_fine()?;
    }
    Ok(())
}

/// What differs from the rates that CHECK is told, in words. `host`: the node's end, if it is there.
pub fn differences(
    rtnl: &mut Rtnl,
    network: &Network,
    attachment: &Attachment,
    host: Option<&Link>,
) -> Result<Vec<String>, CniError> {
    let (Some(asked), Some(host)) = (network.runtime("bandwidth"), host) else { return Ok(Vec::new()) };
    let mut mistakes = Mistakes::default();
    let rates = parse(Some(asked), &mut mistakes);
    if !mistakes.is_empty() {
        return Err(CniError::config(&mistakes));
    }
    let mut tc = Tc::open()?;
    let mut wrong = Vec::new();
    let mut compare = |tc: &mut Tc, link: &Link, rate: Option<Rate>| {
        let (found, wanted) = (tc.root(link.index)?, rate.map(Rate::bucket));
        if found != wanted {
            let text = |tbf: Option<Tbf>| tbf.map_or("no rate".to_owned(), |tbf| tbf.to_string());
            wrong.push(format!("{}: {} found, {} expected", link.name, text(found), text(wanted)));
        }
        Ok::<_, CniError>(())
    };
    compare(&mut tc, host, rates.ingress)?;
    let (name, _) = names(attachment);
    let ifb = rtnl.link(name.as_str())?;
    if let Some(link) = &ifb {
        compare(&mut tc, link, rates.egress)?;
        if !link.up {
            wrong.push(format!("{name}: is down"));
        }
    } else if rates.egress.is_some() {
        wrong.push(format!("{name}: is missing"));
    }
    let wanted = rates.egress.and(ifb.map(|link| link.index));
    if tc.redirect(host.index)? != wanted {
        wrong.push(match wanted {
            Some(_) => format!("{}: what comes in is not sent on to {name}", host.name),
            None => format!("{}: what comes in is sent on to another device", host.name),
        });
    }
    Ok(wrong)
}

fn names(attachment: &Attachment) -> (String, String) {
    let (id, ifname) = (attachment.container_id.as_str(), attachment.ifname.as_str());
    (ifb_name(id, ifname), ifb_alias(id, ifname))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(rates: Value) -> Result<Rates, String> {
        let mut mistakes = Mistakes::default();
        let rates = parse(Some(&rates), &mut mistakes);
        if mistakes.is_empty() { Ok(rates) } else { Err(mistakes.to_string()) }
    }

    #[test]
    fn rates_are_read() {
        let both =
            json!({"ingressRate": 8000, "ingressBurst": 80000, "egressRate": 16, "egressBurst": 160000});
        let rate = |rate, burst| Some(Rate { rate, burst });
        assert_eq!(read(both).unwrap(), Rates { ingress: rate(8000, 80000), egress: rate(16, 160000) });
        assert!(read(json!({"ingressRate": 0, "ingressBurst": 0})).unwrap().is_none());
        assert!(parse(None, &mut Mistakes::default()).is_none());
        let tbf = Rate { rate: 1_000_000, burst: 81_920 }.bucket();
        assert_eq!((tbf.rate, tbf.limit), (125_000, 13_365));
    }

    #[test]
    fn rates_that_cannot_be_are_named() {
        for (rates, part) in [
            (json!([]), "runtimeConfig.bandwidth: [] found, an object expected"),
            (
                json!({"ingressRate": -1, "ingressBurst": 1}),
                "bandwidth.ingressRate: -1 found, a number of bits",
            ),
            (json!({"egressRate": "1M"}), "bandwidth.egressRate: \"1M\" found"),
            (json!({"egressRate": 100}), "egressRate: 100 found, egressBurst beside it, or none expected"),
            (
                json!({"ingressBurst": 100}),
                "ingressBurst: 100 found, ingressRate beside it, or none expected",
            ),
            (json!({"ingressRate": 1, "ingressBurst": 100}), "ingressRate: 1 found, at least 8 bits"),
            (
                json!({"ingressRate": 8, "ingressBurst": 1_u64 << 36}),
                "ingressBurst: 68719476736 found, at most",
            ),
        ] {
            let error = read(rates).unwrap_err();
            assert!(error.contains(part), "{part} is not in {error}");
        }
        let small = read(json!({"ingressRate": 8000, "ingressBurst": 8000})).unwrap();
        let error = small.fit(1500.try_into().unwrap()).unwrap_err();
        assert!(error.message.contains("ingressBurst: 8000 found, at least 12112 bits"), "{error}");
    }
}
