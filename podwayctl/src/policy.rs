//! `podwayctl policy`: what this node's `policy-agent` says of connections, policies and itself.

use std::fmt::Write as _;
use std::path::Path;

use podway_daemon::client::{Client, ClientError};
use podway_model::socket::{
    PolicyCheck, PolicyJudgement, PolicyList, PolicyReply, PolicyRequest, PolicyTrace,
};

use crate::args::{SocketArgs, TraceArgs};
use crate::bgp::LIMIT;
use crate::outcome::Failure;
use crate::output::Output;
use crate::table::{Cell, Table, Tone, paint};

pub(crate) fn trace(args: &TraceArgs, output: &Output) -> Result<(), Failure> {
    let TraceArgs { from, to, traffic, sockets } = args;
    let question = PolicyRequest::Trace { from: from.clone(), to: to.clone(), traffic: traffic.clone() };
    let flows = match ask(&sockets.policy_socket, &question)? {
        PolicyReply::Traced { flows } => flows,
        PolicyReply::Refused { field, value, expected } => {
            let argument = if field == "traffic" { "PORT".to_owned() } else { field.to_uppercase() };
            return Err(Failure::bad_argument(&argument, value, &expected));
        }
        other => return Err(unexpected(&other)),
    };
    output.show(|colour| flows.iter().map(|flow| flow_text(flow, colour)).collect(), &flows)?;
    if flows.iter().all(|flow| flow.allowed) { Ok(()) } else { Err(Failure::Denied) }
}

pub(crate) fn list(args: &SocketArgs, output: &Output) -> Result<(), Failure> {
    match ask(&args.policy_socket, &PolicyRequest::List)? {
        PolicyReply::Listed(list) => output.show(|colour| list_text(&list, colour), &list),
        other => Err(unexpected(&other)),
    }
}

pub(crate) fn check(args: &SocketArgs, output: &Output) -> Result<(), Failure> {
    let check = match ask(&args.policy_socket, &PolicyRequest::Check)? {
        PolicyReply::Checked(check) => check,
        other => return Err(unexpected(&other)),
    };
    output.show(|colour| check_text(&check, colour), &check)?;
    match check.is_clean() {
        true => Ok(()),
        false => Err(Failure::Failed("policies are not enforced as written".to_owned())),
    }
}

fn ask(socket: &Path, question: &PolicyRequest) -> Result<PolicyReply, ClientError> {
    Client::connect(socket, LIMIT)?.ask(question)
}

fn unexpected(reply: &PolicyReply) -> Failure {
    Failure::Failed(match reply {
        PolicyReply::Failed { reason } => format!("policy-agent: {reason}"),
        _ => "policy-agent answered something else than was asked: binaries of different versions".to_owned(),
    })
}

fn flow_text(flow: &PolicyTrace, colour: bool) -> String {
    let (word, tone) = if flow.allowed { ("allowed", Tone::Good) } else { ("denied", Tone::Bad) };
    let mut text = format!("{} {} -> {}: {}\n", flow.traffic, flow.from, flow.to, paint(word, tone, colour));
    for (direction, PolicyJudgement { allowed, reason, .. }) in
        [("egress", &flow.egress), ("ingress", &flow.ingress)]
    {
        let tone = if *allowed { Tone::Plain } else { Tone::Bad };
        let _ = writeln!(text, "  {direction:<8} {}", paint(reason, tone, colour));
    }
    text
}

fn list_text(list: &PolicyList, colour: bool) -> String {
    if list.policies.is_empty() && list.pods.is_empty() {
        return "no policy, and no pod on this node\n".to_owned();
    }
    let mut policies = Table::new(&["POLICY", "ISOLATES", "PODS HERE"]);
    for policy in &list.policies {
        policies.row(vec![
            policy.name.clone().into(),
            policy.directions.join(",").into(),
            policy.pods.join(" ").into(),
        ]);
    }
    let mut pods = Table::new(&["POD", "INTERFACE", "ADDRESSES", "INGRESS", "EGRESS"]);
    let isolation = |known: bool, set: u32, policies: &[String]| match (known, set) {
        (_, 0) => Cell::toned("open", Tone::Good),
        (true, _) => policies.join(" ").into(),
        (false, _) => Cell::toned("closed: pod object unknown", Tone::Warning),
    };
    for pod in &list.pods {
        let addresses: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
        pods.row(vec![
            if pod.pod.is_empty() { "(unnamed)".to_owned() } else { pod.pod.clone() }.into(),
            pod.interface.clone().into(),
            addresses.join(" ").into(),
            isolation(pod.known, pod.ingress_set, &pod.ingress),
            isolation(pod.known, pod.egress_set, &pod.egress),
        ]);
    }
    format!("{}\n{}", policies.render(colour, 0), pods.render(colour, 0))
}

fn check_text(check: &PolicyCheck, colour: bool) -> String {
    let mut text = match &check.difference {
        None => paint("the kernel holds what it should\n", Tone::Good, colour),
        Some(difference) => paint(&format!("the kernel's table differs: {difference}\n"), Tone::Bad, colour),
    };
    for problem in &check.problems {
        let _ = writeln!(text, "{}", paint(problem, Tone::Bad, colour));
    }
    for pod in &check.unknown_pods {
        let line = format!("{pod}: its object is not known: closed where its namespace has policies");
        let _ = writeln!(text, "{}", paint(&line, Tone::Warning, colour));
    }
    text
}

#[cfg(test)]
mod tests {
    use podway_model::socket::{PolicyEntry, PolicyPod};

    use super::*;

    #[test]
    fn a_trace_names_what_decides() {
        let flow = PolicyTrace {
            from: "x/a (10.244.1.2)".into(),
            to: "x/b (10.244.1.3)".into(),
            traffic: "tcp/80".into(),
            allowed: false,
            egress: PolicyJudgement { allowed: true, reason: "not isolated".into(), ..Default::default() },
            ingress: PolicyJudgement {
                reason: "isolated by x/deny, no rule matched".into(),
                policies: vec!["x/deny".into()],
                ..Default::default()
            },
        };
        assert_eq!(
            flow_text(&flow, false),
            "tcp/80 x/a (10.244.1.2) -> x/b (10.244.1.3): denied\n  egress   not isolated\n  \
             ingress  isolated by x/deny, no rule matched\n"
        );
    }

    #[test]
    fn policies_and_pods_as_tables() {
        let pod = |name: &str, known: bool, set: u32, policies: &[&str]| PolicyPod {
            pod: name.into(),
            interface: "pw0123456789a".into(),
            addresses: vec!["10.244.1.2".parse().unwrap()],
            known,
            ingress: policies.iter().map(|name| (*name).to_owned()).collect(),
            ingress_set: set,
            ..PolicyPod::default()
        };
        let list = PolicyList {
            policies: vec![PolicyEntry {
                name: "x/deny".into(),
                directions: vec!["ingress".into()],
                pods: vec!["x/a".into()],
            }],
            pods: vec![pod("x/a", true, 1, &["x/deny"]), pod("x/b", false, 2, &[]), pod("", false, 0, &[])],
        };
        insta::assert_snapshot!(list_text(&list, false));
    }

    #[test]
    fn a_check_says_everything_that_is_wrong() {
        let clean = PolicyCheck::default();
        assert_eq!(check_text(&clean, false), "the kernel holds what it should\n");
        let check = PolicyCheck {
            difference: Some("set pods has other elements (1 found, 2 expected)".into()),
            problems: vec!["x/p: spec.ingress[0].ports[0]: ignoring it".into()],
            unknown_pods: vec!["x/a".into()],
        };
        assert!(clean.is_clean() && !check.is_clean());
        assert_eq!(check_text(&check, false).lines().count(), 3);
    }
}
