//! The fence: a pod starts when the policy agent has classified it, or not at all (DESIGN: "Fence with a memory").
//!
//! Without the table `inet podway-policy` nothing would hold the pod back, so ADD does not begin. With it, ADD
//! announces the endpoint and waits for the agent's word; a pod whose ADD is cut off here is closed by the table.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use podway_model::endpoint::EndpointRecord;
use podway_model::socket::{MessageError, PolicyReply, PolicyRequest, read_message, write_message};

use crate::error::{CniError, Code};

/// How long ADD waits for the agent.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// Between attempts to reach an agent that is being restarted.
const RETRY: Duration = Duration::from_millis(20);

/// What the agent said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acknowledgement {
    /// The kernel has the endpoint's policy.
    Programmed,
    /// No answer in time, or one that is no success: why.
    Missing(String),
}

/// Announces an endpoint and waits for the acknowledgement, at most `patience` in all.
pub fn announce(socket: &Path, endpoint: &EndpointRecord, patience: Duration) -> Acknowledgement {
    let deadline = Instant::now() + patience;
    let request = PolicyRequest::Announce { endpoint: Box::new(endpoint.clone()) };
    loop {
        let reason = match ask(socket, &request, deadline) {
            Ok(PolicyReply::Programmed { .. }) => return Acknowledgement::Programmed,
            Ok(PolicyReply::Failed { reason }) => return Acknowledgement::Missing(reason),
            Ok(other) => return Acknowledgement::Missing(format!("unexpected answer {other:?}")),
            Err(MessageError::Io(e)) => e.to_string(),
            Err(e) => return Acknowledgement::Missing(e.to_string()),
        };
        if Instant::now() + RETRY >= deadline {
            return Acknowledgement::Missing(format!("{}: {reason}", socket.display()));
        }
        std::thread::sleep(RETRY);
    }
}

/// The error of an ADD that must not go on without the agent.
pub fn refused(reason: &str) -> CniError {
    CniError::new(
        Code::TryAgain,
        format!("policy is required on this node and policy-agent has not confirmed the pod: {reason}"),
    )
}

fn ask(socket: &Path, request: &PolicyRequest, deadline: Instant) -> Result<PolicyReply, MessageError> {
    let mut stream = UnixStream::connect(socket)?;
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::Error::from(io::ErrorKind::TimedOut).into());
    }
    stream.set_read_timeout(Some(left))?;
    stream.set_write_timeout(Some(left))?;
    write_message(&mut stream, request)?;
    read_message(&mut stream)?.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn endpoint() -> EndpointRecord {
        serde_json::from_value(serde_json::json!({
            "schema": 1, "id": "x", "bootId": "00000000-0000-0000-0000-000000000001", "network": "podway",
            "containerId": "c1", "ifname": "eth0", "hostIfname": "pw1", "mac": "02:00:00:00:00:01",
            "mtu": 1500, "pod": null, "addresses": ["10.0.0.1"], "netns": "/run/netns/x"
        }))
        .unwrap()
    }

    fn answer(listener: &UnixListener, reply: &PolicyReply) {
        let (mut stream, _) = listener.accept().unwrap();
        let request: PolicyRequest = read_message(&mut stream).unwrap().unwrap();
        assert_eq!(request, PolicyRequest::Announce { endpoint: Box::new(endpoint()) });
        write_message(&mut stream, reply).unwrap();
    }

    #[test]
    fn the_agents_word_counts() {
        for (reply, expected) in [
            (PolicyReply::Programmed { pod_known: false }, Acknowledgement::Programmed),
            (PolicyReply::Failed { reason: "no".into() }, Acknowledgement::Missing("no".into())),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("policy.sock");
            let listener = UnixListener::bind(&path).unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| answer(&listener, &reply));
                assert_eq!(announce(&path, &endpoint(), PATIENCE), expected);
            });
        }
    }

    #[test]
    fn an_agent_that_comes_back_within_the_time_is_enough() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.sock");
        let first = UnixListener::bind(&path).unwrap();
        std::thread::scope(|scope| {
            let announced = scope.spawn(|| announce(&path, &endpoint(), Duration::from_secs(30)));
            drop(first.accept().unwrap());
            drop(first);
            std::fs::remove_file(&path).unwrap();
            answer(&UnixListener::bind(&path).unwrap(), &PolicyReply::Programmed { pod_known: true });
            assert_eq!(announced.join().unwrap(), Acknowledgement::Programmed);
        });
    }

    #[test]
    fn silence_and_absence_end_with_the_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.sock");
        let short = Duration::from_millis(60);
        let absent = announce(&path, &endpoint(), short);
        assert!(
            matches!(&absent, Acknowledgement::Missing(why) if why.contains("policy.sock")),
            "{absent:?}"
        );
        let _silent = UnixListener::bind(&path).unwrap();
        assert!(matches!(announce(&path, &endpoint(), short), Acknowledgement::Missing(_)));
    }
}
