//! What happens to the processes while they are kept alive.

use std::sync::Arc;

use testkit::processes::{Event, OnEvent};
use tokio::sync::{Notify, watch};

use crate::output::Output;

/// Exit code of a process whose configuration is wrong: starting it again cannot help.
const EXIT_CONFIGURATION: i32 = 64;

/// Says what happens, and tells who needs to know.
pub(super) struct Events {
    output: Output,
    /// A process has another pid.
    pub(super) changed: Notify,
    /// Why it makes no sense to go on.
    broken: watch::Sender<Option<String>>,
}

impl Events {
    pub(super) fn new(output: Output) -> Arc<Self> {
        Arc::new(Self {
            output,
            changed: Notify::new(),
            broken: watch::Sender::new(None),
        })
    }

    pub(super) fn sink(self: &Arc<Self>) -> OnEvent {
        let events = Arc::clone(self);
        Arc::new(move |event| events.take(event))
    }

    fn take(&self, event: Event) {
        match event {
            Event::Started { .. } => self.changed.notify_one(),
            Event::Died {
                name,
                status,
                log_tail,
            } => {
                self.output.note(&format!("{name} has died: {status}"));
                if status.code() == Some(EXIT_CONFIGURATION) {
                    self.broken
                        .send_replace(Some(format!("{name} does not start: {log_tail}")));
                }
            }
            Event::Restarting { name, after } => {
                self.output
                    .note(&format!("{name} starts again in {} ms", after.as_millis()));
            }
            Event::Failed { name, error } => {
                self.output
                    .note(&format!("{name} could not be started again: {error}"));
            }
        }
    }

    /// Resolves when a process cannot ever start.
    pub(super) async fn broken(&self) -> String {
        let mut broken = self.broken.subscribe();
        match broken.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            // The sender is ours.
            Err(_gone) => std::future::pending().await,
        }
    }
}
