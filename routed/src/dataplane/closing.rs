//! Where packets of pods end in a forward chain of others, as far as its rules tell for sure. Pure.
//!
//! A chain is closed to a pool by its policy, or by a rule that drops or refuses all that comes so far: the last one of
//! firewalld's, ufw's or an operator's. Rules are walked in order, with the chains that they jump to. A rule counts if every
//! packet of the pool meets it: it asks for nothing, or only for a prefix around the pool. One that asks for anything else
//! (a port, an interface, a state) may let some through or refuse some; it is taken for one that does neither, so a chain is
//! called closed only if what no rule singles out is dropped.

use ipnet::IpNet;
use podway_nft::{Field, Name, Policy, RuleDump, Value, Verdict};

/// Jumps that are followed: as many as the kernel allows (NFT_JUMP_STACK_SIZE).
const DEPTH: usize = 16;
/// Extensions of iptables that refuse.
const REFUSING: &str = "REJECT";
/// Expressions that ask for nothing.
const HARMLESS: [&str; 12] = [
    "meta",
    "payload",
    "bitwise",
    "byteorder",
    "ct",
    "fib",
    "immediate",
    "counter",
    "log",
    "reject",
    "target",
    "notrack",
];

/// Where what no rule singles out ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It passes.
    Passes,
    /// The policy drops it.
    Policy,
    /// A rule drops or refuses it.
    Rule,
}

/// Where packets end that have an address of the pool in this field. `rules` reads the rules of a chain.
pub(super) fn end<E>(
    chain: &Name,
    policy: Policy,
    (field, pool): &(Field, IpNet),
    rules: &mut impl FnMut(&Name) -> Result<Vec<RuleDump>, E>,
) -> Result<End, E> {
    Ok(match walk(chain, *field, pool, rules, DEPTH)? {
        Some(Verdict::Accept) => End::Passes,
        Some(_) => End::Rule,
        None if policy == Policy::Drop => End::Policy,
        None => End::Passes,
    })
}

/// Accept or drop, where a rule says so for all packets; none: they come out at the end.
fn walk<E>(
    chain: &Name,
    field: Field,
    pool: &IpNet,
    rules: &mut impl FnMut(&Name) -> Result<Vec<RuleDump>, E>,
    depth: usize,
) -> Result<Option<Verdict>, E> {
    if depth == 0 {
        return Ok(None);
    }
    for rule in rules(chain)? {
        if !meets_all(&rule, field, pool) {
            continue;
        }
        let refuses = rule.exprs.iter().any(|expr| expr == "reject")
            || rule.extensions.iter().any(|extension| extension == REFUSING);
        match rule.verdict {
            _ if refuses => return Ok(Some(Verdict::Drop)),
            Some(Verdict::Accept) => return Ok(Some(Verdict::Accept)),
            Some(Verdict::Drop) => return Ok(Some(Verdict::Drop)),
            Some(Verdict::Return) => return Ok(None),
            Some(Verdict::Jump(next)) => {
                if let Some(verdict) = walk(&next, field, pool, rules, depth - 1)? {
                    return Ok(Some(verdict));
                }
            }
            Some(Verdict::Goto(next)) => return walk(&next, field, pool, rules, depth - 1),
            Some(Verdict::Continue) | None => {}
        }
    }
    Ok(None)
}

/// Whether every packet with an address of the pool in `field` meets the rule.
fn meets_all(rule: &RuleDump, field: Field, pool: &IpNet) -> bool {
    let around = |(of, net): &(Field, IpNet)| *of == field && net.contains(pool);
    if !rule.networks.iter().all(around) {
        return false;
    }
    // A rule of family inet asks for the protocol before it looks at addresses.
    let family: u8 = if pool.addr().is_ipv4() { podway_nft::NFPROTO_IPV4 } else { podway_nft::NFPROTO_IPV6 };
    let of_family = |(of, value): &&(Field, Value)| *of == Field::NfProto && *value == Value::from(family);
    let known = rule.networks.len() + rule.asked.iter().filter(of_family).count();
    let asking = rule.exprs.iter().filter(|expr| !HARMLESS.contains(&expr.as_str())).count();
    // The comment of iptables is a match that always matches.
    let comments = rule.extensions.iter().filter(|extension| *extension == "comment").count();
    asking == known + comments
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::convert::Infallible;

    use super::*;

    fn rule(exprs: &[&str], networks: &[(Field, &str)], verdict: Option<Verdict>) -> RuleDump {
        let networks: Vec<(Field, IpNet)> =
            networks.iter().map(|(field, net)| (*field, net.parse().unwrap())).collect();
        let own = networks.iter().flat_map(|_| ["payload", "bitwise", "cmp"]);
        RuleDump {
            handle: 1,
            comment: String::new(),
            exprs: exprs.iter().copied().chain(own).map(str::to_owned).collect(),
            asked: vec![],
            networks,
            extensions: vec![],
            verdict,
        }
    }

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    /// From and to the pool.
    fn ends(policy: Policy, chains: &[(&str, Vec<RuleDump>)]) -> [End; 2] {
        let chains: BTreeMap<Name, Vec<RuleDump>> =
            chains.iter().map(|(chain, rules)| (name(chain), rules.clone())).collect();
        [Field::IpSaddr, Field::IpDaddr].map(|field| {
            let way = (field, "10.244.0.0/16".parse().unwrap());
            let mut read = |chain: &Name| Ok::<_, Infallible>(chains.get(chain).cloned().unwrap_or_default());
            end(&name("FORWARD"), policy, &way, &mut read).unwrap()
        })
    }

    #[test]
    fn a_chain_is_open_where_rules_of_anybody_accept_all_of_a_pool_in_time() {
        let accept = |field, net| rule(&["counter", "immediate"], &[(field, net)], Some(Verdict::Accept));
        let (from, to) = (accept(Field::IpSaddr, "10.0.0.0/8"), accept(Field::IpDaddr, "10.244.0.0/16"));
        let reject = rule(&["counter", "reject"], &[], None);
        let chain = |rules: &[&RuleDump]| [("FORWARD", rules.iter().copied().cloned().collect())];
        assert_eq!(ends(Policy::Accept, &[]), [End::Passes; 2]);
        assert_eq!(ends(Policy::Drop, &[]), [End::Policy; 2]);
        assert_eq!(ends(Policy::Drop, &chain(&[&from])), [End::Passes, End::Policy]);
        assert_eq!(ends(Policy::Accept, &chain(&[&from, &reject])), [End::Passes, End::Rule]);
        assert_eq!(ends(Policy::Accept, &chain(&[&from, &to, &reject])), [End::Passes; 2]);
        assert_eq!(ends(Policy::Drop, &chain(&[&reject, &from, &to])), [End::Rule; 2]);
        let half = accept(Field::IpSaddr, "10.244.0.0/17");
        assert_eq!(ends(Policy::Drop, &chain(&[&half, &to])), [End::Policy, End::Passes]);
    }

    #[test]
    fn rules_that_ask_for_more_neither_open_nor_close() {
        // A port, an interface, a state, a rate: and a rule of iptables with a comment, which asks for nothing.
        let asking = [["meta", "cmp"], ["payload", "cmp"], ["ct", "lookup"], ["limit", "counter"]];
        for exprs in asking {
            let drop = vec![rule(&exprs, &[], Some(Verdict::Drop))];
            assert_eq!(ends(Policy::Accept, &[("FORWARD", drop)]), [End::Passes; 2], "{exprs:?}");
            let accept = vec![rule(&exprs, &[(Field::IpSaddr, "10.0.0.0/8")], Some(Verdict::Accept))];
            assert_eq!(ends(Policy::Drop, &[("FORWARD", accept)]), [End::Policy; 2], "{exprs:?}");
        }
        let mut refuse = rule(&["match", "counter", "target"], &[], None);
        refuse.extensions = ["comment", "REJECT"].map(str::to_owned).into();
        assert_eq!(ends(Policy::Accept, &[("FORWARD", vec![refuse.clone()])]), [End::Rule; 2]);
        refuse.extensions = ["comment", "LOG"].map(str::to_owned).into();
        assert_eq!(ends(Policy::Accept, &[("FORWARD", vec![refuse])]), [End::Passes; 2]);
        let mut of_family = rule(&["meta", "cmp"], &[], Some(Verdict::Drop));
        of_family.asked = vec![(Field::NfProto, Value::from(podway_nft::NFPROTO_IPV4))];
        assert_eq!(ends(Policy::Accept, &[("FORWARD", vec![of_family.clone()])]), [End::Rule; 2]);
        of_family.asked = vec![(Field::NfProto, Value::from(podway_nft::NFPROTO_IPV6))];
        assert_eq!(ends(Policy::Accept, &[("FORWARD", vec![of_family])]), [End::Passes; 2]);
    }

    #[test]
    fn jumps_come_back_and_goes_do_not() {
        let to =
            |verdict: fn(Name) -> Verdict, chain: &str| rule(&["immediate"], &[], Some(verdict(name(chain))));
        let refuse = || vec![rule(&["reject"], &[], None)];
        let quiet = || vec![rule(&["counter"], &[], None)];
        let end = |first: RuleDump, other: Vec<RuleDump>| {
            ends(Policy::Accept, &[("FORWARD", vec![first, refuse().remove(0)]), ("zones", other)])[0]
        };
        assert_eq!(end(to(Verdict::Jump, "zones"), quiet()), End::Rule);
        assert_eq!(end(to(Verdict::Goto, "zones"), quiet()), End::Passes);
        assert_eq!(end(to(Verdict::Goto, "zones"), refuse()), End::Rule);
        let back = vec![rule(&["immediate"], &[], Some(Verdict::Return)), refuse().remove(0)];
        assert_eq!(ends(Policy::Accept, &[("FORWARD", back)]), [End::Passes; 2]);
        // A zone's sources.
        let source =
            rule(&["immediate"], &[(Field::IpSaddr, "10.244.0.0/16")], Some(Verdict::Goto(name("trusted"))));
        let chains = [
            ("FORWARD", vec![to(Verdict::Jump, "zones"), refuse().remove(0)]),
            ("zones", vec![source]),
            ("trusted", vec![rule(&["immediate"], &[], Some(Verdict::Accept))]),
        ];
        assert_eq!(ends(Policy::Accept, &chains), [End::Passes, End::Rule]);
    }
}
