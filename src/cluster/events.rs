//! Publishing Events. One that cannot be published is logged: Events are a courtesy, not state.

use std::sync::{Arc, Mutex, PoisonError};

use kube::{
    Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter},
};

use super::ending::is_ending;
use crate::{
    api::{ModelDeployment, names},
    status::events::Note,
};

/// Events after which a recorder is replaced.
const REMEMBERED: usize = 256;

/// Publishes Events; clones share what was published lately.
#[derive(Clone)]
pub struct Publisher {
    client: Client,
    reporter: Reporter,
    /// And how many Events it has published. A recorder remembers every Event for six minutes, to count what comes again
    /// as one, and walks through all of them for each: ten thousand new models would take it tens of megabytes.
    recorder: Arc<Mutex<(Recorder, usize)>>,
}

impl Publisher {
    /// A publisher whose Events come from `instance`.
    pub fn new(client: Client, instance: Option<String>) -> Self {
        let reporter = Reporter { controller: names::MANAGER.to_owned(), instance };
        let recorder = Recorder::new(client.clone(), reporter.clone());
        Self { client, reporter, recorder: Arc::new(Mutex::new((recorder, 0))) }
    }

    /// Publishes an Event about a model.
    pub async fn publish(&self, object: &ModelDeployment, note: &Note) {
        let event = Event {
            type_: if note.warning { EventType::Warning } else { EventType::Normal },
            reason: note.reason.clone(),
            note: Some(note.text.chars().take(1000).collect()),
            action: note.action.clone(),
            secondary: None,
        };
        match self.recorder().publish(&event, &object.object_ref(&())).await {
            Err(kube::Error::Api(status)) if is_ending(&status) => {
                tracing::debug!(reason = note.reason, "an Event was left out: its namespace is being deleted");
            }
            Err(error) => tracing::warn!(reason = note.reason, %error, "an Event could not be published"),
            Ok(()) => {}
        }
    }

    fn recorder(&self) -> Recorder {
        // A count that a panic left behind is as good as another.
        let mut kept = self.recorder.lock().unwrap_or_else(PoisonError::into_inner);
        let (recorder, published) = &mut *kept;
        if *published >= REMEMBERED {
            *recorder = Recorder::new(self.client.clone(), self.reporter.clone());
            *published = 0;
        }
        *published += 1;
        recorder.clone()
    }
}
