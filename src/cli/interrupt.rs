//! Ctrl-C, where more is to be said than that the command ended.

use tokio::signal::unix::Signal;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;

/// The command was told to stop. The text says what became of its work, and how to go on.
#[derive(Debug, thiserror::Error)]
#[error("interrupted: {0}")]
pub struct Interrupted(pub String);

impl Interrupted {
    /// What shells expect of a command that Ctrl-C ended, so that a loop around it ends too.
    pub const EXIT_CODE: u8 = 130;
}

/// Waits for SIGINT or SIGTERM. From the making of it on, they no longer end the process by themselves.
pub struct Interrupt(Option<(Signal, Signal)>);

impl Interrupt {
    pub fn listen() -> Self {
        let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
        match signals {
            (Ok(interrupt), Ok(terminate)) => Self(Some((interrupt, terminate))),
            // The process then ends as any other.
            _ => Self(None),
        }
    }

    pub async fn happened(&mut self) {
        match &mut self.0 {
            Some((interrupt, terminate)) => {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            }
            None => std::future::pending().await,
        }
    }
}
