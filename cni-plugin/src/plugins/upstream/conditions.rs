//! `conditionsV4` and `conditionsV6` of `portmap`: words for `iptables` or `nft`, of which those are served that have the
//! same meaning in a rule of ours. They hold for the container's own rules, as in upstream's iptables backend.
//!
//! | words | meaning |
//! |---|---|
//! | `[!] -s NET`, `ip saddr [!=] NET` | where packets come from |
//! | `[!] -d NET`, `ip daddr [!=] NET` | where they go to; one address is `hostIP`'s to say |
//! | `[!] -i NAME`, `iifname [!=] NAME` | the interface by which they come in |

use ipnet::IpNet;
use podway_model::ids::IfName;
use podway_nft::{Field, Rule};

/// A condition that is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Condition {
    negated: bool,
    what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    From(IpNet),
    To(IpNet),
    By(IfName),
}

/// Reads the words of one family.
///
/// # Errors
/// What is not served, in words.
pub(super) fn parse(words: &[&str], v6: bool) -> Result<Vec<Condition>, String> {
    let mut all = Vec::new();
    let mut words = words.iter().copied().peekable();
    while let Some(first) = words.next() {
        let mut negated = first == "!";
        let key = if negated { words.next().unwrap_or_default() } else { first };
        let kind = match key {
            "-s" | "--source" | "--src" => "s",
            "-d" | "--destination" | "--dst" => "d",
            "-i" | "--in-interface" | "iifname" => "i",
            "ip" | "ip6" if (key == "ip6") == v6 => match words.next() {
                Some("saddr") => "s",
                Some("daddr") => "d",
                other => return Err(format!("{key} {}", other.unwrap_or("(nothing)"))),
            },
            other => return Err(other.to_owned()),
        };
        // iptables took the negation behind the option, too; nft writes it so.
        if let Some(sign) = words.next_if(|word| matches!(*word, "!" | "!=" | "==")) {
            negated |= sign != "==";
        }
        let value = words.next().ok_or_else(|| format!("{key} without a value"))?;
        let value = value.trim_matches('"');
        let net = || {
            let net = value.parse::<IpNet>().or_else(|_| value.parse::<std::net::IpAddr>().map(IpNet::from));
            match net {
                Ok(net) if net.addr().is_ipv6() == v6 => Ok(net.trunc()),
                _ => Err(format!("{key} {value}")),
            }
        };
        let what = match kind {
            "s" => What::From(net()?),
            "d" => What::To(net()?),
            // `+` and `*` stand for a beginning, which is another kind of comparison.
            _ => What::By(
                value
                    .parse()
                    .ok()
                    .filter(|_| !value.ends_with(['+', '*']))
                    .ok_or_else(|| format!("{key} {value}"))?,
            ),
        };
        // One address is what `hostIP` says, by which ports are told apart.
        if matches!(&what, What::To(net) if !negated && net.prefix_len() == net.max_prefix_len()) {
            return Err(format!("{key} {value}"));
        }
        all.push(Condition { negated, what });
    }
    Ok(all)
}

impl Condition {
    /// A rule that asks this besides.
    pub(super) fn ask(&self, rule: Rule) -> Rule {
        let (field, net) = match &self.what {
            What::From(net) => (Field::saddr(net.addr()), net),
            What::To(net) => (Field::daddr(net.addr()), net),
            What::By(name) => {
                let name = podway_nft::Value::ifname(name.as_str());
                let field = Field::IifName;
                return if self.negated { rule.is_not(field, name) } else { rule.is(field, name) };
            }
        };
        if self.negated { rule.not_in_net(field, *net) } else { rule.in_net(field, *net) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &str, v6: bool) -> Result<usize, String> {
        let words: Vec<&str> = words.split_whitespace().collect();
        parse(&words, v6).map(|all| all.len())
    }

    #[test]
    fn words_of_both_programs_are_read() {
        for (words, v6, number) in [
            ("", false, 0),
            ("-s 10.0.0.0/8", false, 1),
            ("! -s 10.0.0.0/8 -d 192.0.2.0/24", false, 2),
            ("-d ! 192.0.2.0/24 -i eth0", false, 2),
            ("ip saddr 10.0.0.0/8 ip daddr != 192.0.2.1 iifname \"eth0\"", false, 3),
            ("ip6 saddr == fd00::/8", true, 1),
        ] {
            assert_eq!(read(words, v6), Ok(number), "{words}");
        }
        let not = parse(&["!", "-s", "10.0.0.0/8"], false).unwrap();
        assert_eq!(not, parse(&["ip", "saddr", "!=", "10.0.0.0/8"], false).unwrap());
    }

    #[test]
    fn what_is_not_served_is_named() {
        for (words, v6, part) in [
            ("-m set --match-set x src", false, "-m"),
            ("meta mark 7", false, "meta"),
            ("-s fd00::/8", false, "-s fd00::/8"),
            ("ip saddr 10.0.0.0/8", true, "ip"),
            ("ip ttl 3", false, "ip ttl"),
            ("-i pw+", false, "-i pw+"),
            ("-d 192.0.2.1", false, "-d 192.0.2.1"),
            ("-s", false, "-s without a value"),
            ("!", false, ""),
        ] {
            assert_eq!(read(words, v6).unwrap_err(), part, "{words}");
        }
    }
}
