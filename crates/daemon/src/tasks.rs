//! Named tasks of which none may end: a daemon with a part missing looks alive and is not.
//!
//! Each task gets one end: it ends when the process does. A task that returns, fails or panics before that ends
//! the process, which a supervisor (systemd, kubelet) starts again; restart reconciles.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::time::Duration;

use tokio::task::{Id, JoinSet};

/// How a task ended.
#[derive(Debug)]
pub struct Outcome(Result<(), String>);

impl From<()> for Outcome {
    fn from((): ()) -> Self {
        Self(Ok(()))
    }
}

impl<E: fmt::Display> From<Result<(), E>> for Outcome {
    fn from(result: Result<(), E>) -> Self {
        // The alternate form of an `anyhow::Error` has its causes.
        Self(result.map_err(|error| format!("{error:#}")))
    }
}

/// The end of a task before the end of the process.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("task {name} {what}")]
pub struct TaskEnded {
    /// The task.
    pub name: &'static str,
    /// What happened to it, to be read after its name.
    pub what: String,
}

/// Tasks of one process. Dropping it cancels them all.
#[derive(Debug, Default)]
pub struct Tasks {
    set: JoinSet<Outcome>,
    names: BTreeMap<Id, &'static str>,
}

impl Tasks {
    /// Starts a task on the current runtime.
    pub fn spawn<F>(&mut self, name: &'static str, future: F)
    where
        F: Future<Output: Into<Outcome>> + Send + 'static,
    {
        let handle = self.set.spawn(async move { future.await.into() });
        self.names.insert(handle.id(), name);
    }

    /// Waits until a task ends; for ever if there is none. Cancel-safe: an end that was not returned is kept.
    pub async fn first_end(&mut self) -> TaskEnded {
        match self.set.join_next_with_id().await {
            None => std::future::pending().await,
            Some(Ok((id, Outcome(Ok(()))))) => self.ended(id, "ended".to_owned()),
            Some(Ok((id, Outcome(Err(error))))) => self.ended(id, format!("failed: {error}")),
            Some(Err(error)) if error.is_panic() => self.ended(error.id(), "panicked".to_owned()),
            Some(Err(error)) => self.ended(error.id(), "was cancelled".to_owned()),
        }
    }

    /// Lets the tasks end by themselves, for at most `grace`, then cancels what is left. Returns the failures.
    pub async fn finish(mut self, grace: Duration) -> Vec<TaskEnded> {
        let mut failures = Vec::new();
        let all_ended = async {
            while !self.set.is_empty() {
                let end = self.first_end().await;
                if end.what != "ended" {
                    failures.push(end);
                }
            }
        };
        let in_time = tokio::time::timeout(grace, all_ended).await.is_ok();
        if !in_time {
            let what = format!("did not end within {} s", grace.as_secs());
            failures.extend(self.names.values().map(|name| TaskEnded { name, what: what.clone() }));
        }
        failures
    }

    fn ended(&mut self, id: Id, what: String) -> TaskEnded {
        TaskEnded { name: self.names.remove(&id).unwrap_or("(unknown)"), what }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_end_is_named_with_its_reason() {
        let mut tasks = Tasks::default();
        tasks.spawn("lasting", std::future::pending::<()>());
        tasks.spawn("failing", async { Err::<(), _>("no such device") });
        assert_eq!(tasks.first_end().await.to_string(), "task failing failed: no such device");
        tasks.spawn("ending", async {});
        assert_eq!(tasks.first_end().await.to_string(), "task ending ended");
        let nothing: Option<()> = std::hint::black_box(None);
        tasks.spawn("panicking", async move { nothing.expect("a test's own panic") });
        assert_eq!(tasks.first_end().await.to_string(), "task panicking panicked");
    }

    #[tokio::test(start_paused = true)]
    async fn tasks_that_outstay_their_grace_are_named_and_cancelled() {
        let mut tasks = Tasks::default();
        let (alive, cancelled) = tokio::sync::oneshot::channel::<()>();
        tasks.spawn("stubborn", async move {
            let _alive = alive;
            std::future::pending::<()>().await;
        });
        tasks.spawn("polite", async {});
        let failures = tasks.finish(Duration::from_secs(5)).await;
        assert_eq!(failures, [TaskEnded { name: "stubborn", what: "did not end within 5 s".into() }]);
        assert!(cancelled.await.is_err(), "dropped with its task");
    }
}
