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
    "meta", "payload", "bitwise", "byteorder", "ct", "fib", "immediate", "counter", "log", "reject", "target",
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
    let of_family =
        |(of, value): &&(Field, Value)| *of == Field::NfProto && *value == Value::from(family);
    let known = rule.networks.len() + rule.asked.iter().filter(of_family).count();
    let asking = rule.exprs.iter().filter(|expr| !HARMLESS.contains(&expr.as_str())).count();
    // The comment of iptables is a match that always matches.
    let comments = rule.extensions.iter().filter(|extension| *extension == "comment").count();
    asking == known + comments
}
