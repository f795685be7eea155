//! The wish to end, as a value that every task can watch.

use tokio::sync::watch;

/// Tells whether the process is to end. Clones watch the same wish.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<bool>);

/// The other end: whoever holds it may ask for the end. Dropping it asks for it too.
#[derive(Debug)]
pub struct ShutdownTrigger(watch::Sender<bool>);

/// A pair of both ends.
pub fn shutdown() -> (ShutdownTrigger, Shutdown) {
    let (sender, receiver) = watch::channel(false);
    (ShutdownTrigger(sender), Shutdown(receiver))
}

impl ShutdownTrigger {
    /// Asks every task to end.
    pub fn request(&self) {
        self.0.send_replace(true);
    }
}

impl Shutdown {
    /// Returns when the process is to end. Cancel-safe: it only looks.
    pub async fn requested(&mut self) {
        // An error means that the trigger is gone, which is the same wish.
        let _ = self.0.wait_for(|wish| *wish).await;
    }

    /// Whether the process is to end.
    pub fn is_requested(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_clone_sees_the_wish_and_a_lost_trigger_is_one() {
        let (trigger, mut first) = shutdown();
        let mut second = first.clone();
        assert!(!first.is_requested());
        trigger.request();
        first.requested().await;
        second.requested().await;
        assert!(second.is_requested());

        let (trigger, mut orphan) = shutdown();
        drop(trigger);
        orphan.requested().await;
        assert!(orphan.is_requested());
    }
}
