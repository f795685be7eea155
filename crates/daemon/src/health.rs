//! `/healthz`, `/readyz` and `/metrics` over plain HTTP, on the address that the configuration names.
//!
//! `/healthz` answers 200 as long as the event loop turns. `/readyz` answers 503 with one reason per line until
//! nothing is missing any more; then lines that begin with `remark:` say what an operator should see to though the daemon
//! does its part. Nothing else can be asked and nothing can be changed here: that is what the unix
//! socket is for.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Router, serve};
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::Shutdown;

/// Media type of the OpenMetrics text form, which Prometheus asks for.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A bound health server.
#[derive(Debug)]
pub struct HealthServer {
    listener: TcpListener,
    state: Shown,
}

#[derive(Debug, Clone)]
struct Shown {
    waiting_for: watch::Receiver<Vec<String>>,
    remarks: watch::Receiver<Vec<String>>,
    metrics: Arc<Registry>,
}

impl HealthServer {
    /// Binds `listen`. `waiting_for` says in words what is missing until the daemon is ready; `remarks`, what does not
    /// make it unready.
    ///
    /// # Errors
    /// The address is in use, or not ours.
    pub async fn bind(
        listen: SocketAddr,
        waiting_for: watch::Receiver<Vec<String>>,
        remarks: watch::Receiver<Vec<String>>,
        metrics: Arc<Registry>,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        Ok(Self { listener, state: Shown { waiting_for, remarks, metrics } })
    }

    /// The address in use: the port, where 0 was asked for.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until the process ends.
    ///
    /// # Errors
    /// The listening socket fails.
    pub async fn serve(self, mut shutdown: Shutdown) -> io::Result<()> {
        let router = Router::new()
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .with_state(self.state);
        serve(self.listener, router).with_graceful_shutdown(async move { shutdown.requested().await }).await
    }
}

async fn ready(State(shown): State<Shown>) -> impl IntoResponse {
    let missing = shown.waiting_for.borrow().clone();
    let remarks: String = shown.remarks.borrow().iter().map(|remark| format!("remark: {remark}\n")).collect();
    if missing.is_empty() {
        (StatusCode::OK, format!("ready\n{remarks}"))
    } else {
        let lines: String = missing.iter().map(|reason| format!("{reason}\n")).collect();
        (StatusCode::SERVICE_UNAVAILABLE, lines + &remarks)
    }
}

async fn metrics(State(shown): State<Shown>) -> impl IntoResponse {
    let mut body = String::new();
    match text::encode(&mut body, &shown.metrics) {
        Ok(()) => (StatusCode::OK, [(header::CONTENT_TYPE, OPEN_METRICS)], body),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            [(header::CONTENT_TYPE, "text/plain")],
            format!("metrics cannot be written: {error}\n"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn readiness_has_reasons_and_metrics_are_served() {
        let mut registry = Registry::with_prefix("podway_test");
        let repairs = Counter::<u64>::default();
        registry.register("repairs", "Foreign changes repaired", repairs.clone());
        repairs.inc();
        let (missing, waiting_for) = watch::channel(vec!["store: not synced".to_owned()]);
        let (remarks, remarked) = watch::channel(vec![]);
        let (trigger, shutdown) = crate::shutdown::shutdown();
        let server =
            HealthServer::bind(([127, 0, 0, 1], 0).into(), waiting_for, remarked, Arc::new(registry))
                .await
                .unwrap();
        let address = server.local_addr().unwrap();
        let serving = tokio::spawn(server.serve(shutdown));

        assert!(ask(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        let answer = ask(address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("store: not synced\n"), "{answer}");
        missing.send_replace(vec![]);
        assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        remarks.send_replace(vec!["chain x drops".to_owned()]);
        let answer = ask(address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.ends_with("ready\nremark: chain x drops\n"), "{answer}");
        let answer = ask(address, "/metrics").await;
        assert!(answer.contains("openmetrics-text"), "{answer}");
        assert!(answer.contains("podway_test_repairs_total 1\n") && answer.ends_with("# EOF\n"), "{answer}");
        assert!(ask(address, "/other").await.starts_with("HTTP/1.1 404"));

        trigger.request();
        serving.await.unwrap().unwrap();
    }
}
