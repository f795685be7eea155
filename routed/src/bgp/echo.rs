//! Echoes to the kernels of other nodes: the sockets beside the core that asks ([`podway_bgp::fate`]).

use std::net::IpAddr;

use podway_kern::icmp::AsyncEcho;

/// An answer: whose, and to which question.
pub(super) type Answer = (IpAddr, u16);

/// One socket per family.
#[derive(Debug)]
pub(super) struct Echoes {
    v4: Option<AsyncEcho>,
    v6: Option<AsyncEcho>,
}

impl Echoes {
    /// Opens both. Without one, nobody of its family is known to answer, and graceful restart is a plain one.
    pub(super) fn open(cookie: u64) -> Self {
        let open = |v4: bool| {
            AsyncEcho::open(v4, cookie)
                .map_err(|error| {
                    let family = if v4 { "IPv4" } else { "IPv6" };
                    tracing::warn!(family, %error, "other nodes' kernels cannot be asked for a sign of life");
                })
                .ok()
        };
        Self { v4: open(true), v6: open(false) }
    }

    /// Asks. A question that cannot be sent is one without an answer.
    pub(super) fn ask(&self, to: IpAddr, number: u16) {
        let socket = if to.is_ipv4() { &self.v4 } else { &self.v6 };
        if let Some(socket) = socket {
            let _ = socket.echo().ask(to, number);
        }
    }

    /// Answers that wait.
    pub(super) fn take(&self) -> Vec<Answer> {
        let sockets = self.v4.iter().chain(&self.v6);
        sockets.flat_map(|socket| std::iter::from_fn(|| socket.echo().answer())).collect()
    }

    /// Waits for answers. Cancel-safe: nothing is read before it returns.
    pub(super) async fn next(&self) -> Vec<Answer> {
        tokio::select! {
            () = ready(self.v4.as_ref()) => {}
            () = ready(self.v6.as_ref()) => {}
        }
        self.take()
    }
}

/// Something waits at the socket.
async fn ready(socket: Option<&AsyncEcho>) {
    match socket {
        Some(socket) => socket.ready().await,
        None => std::future::pending().await,
    }
}
