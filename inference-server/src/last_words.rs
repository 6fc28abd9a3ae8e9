//! What is left behind where Kubernetes reads a container's last words: why the server gave up, and, written beforehand, how
//! far it was in case it is killed.
//!
//! Written only into a file that is there: outside Kubernetes there is none.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use ortolan_protocol::failure::{Failure, LastWords, Loading};
use tracing::error;

use crate::memory;

/// Kubernetes keeps 4096 bytes; a message that is cut off would be no JSON.
const LONGEST_MESSAGE: usize = 3000;
/// How often the memory in use is looked at while a model is loaded.
const INTERVAL: Duration = Duration::from_millis(10);
/// A step in the use of memory that is worth writing down.
const STEP: u64 = 1 << 20;

/// The place for last words. Clones are the same place.
#[derive(Clone, Debug)]
pub struct Testament(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    file: Option<File>,
    words: Mutex<LastWords>,
}

impl Testament {
    /// Words go into this file, if it exists.
    pub fn new(path: &Path) -> Self {
        let file = OpenOptions::new().write(true).open(path).ok();
        Self(Arc::new(Inner { file, words: Mutex::default() }))
    }

    /// The model's bytes are there.
    pub fn fetched(&self, digest: &str) {
        self.change(|words| words.digest = Some(digest.to_owned()));
    }

    /// The model is being loaded until the answer is dropped.
    pub fn loading(&self, model_bytes: u64) -> Watch {
        let place = self.clone();
        place.note(model_bytes);
        let (stop, stopped) = mpsc::channel::<()>();
        let looks = move || {
            let mut noted = memory::used();
            while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                if memory::used() > noted + STEP {
                    noted = place.note(model_bytes);
                }
            }
        };
        // Without the thread the words are those of the beginning.
        let thread = std::thread::Builder::new().name("memory".to_owned()).spawn(looks).ok();
        Watch { place: self.clone(), stop: Some(stop), thread }
    }

    /// The server gives up.
    pub fn gave_up(&self, failure: &Failure) {
        let message = failure.message.chars().take(LONGEST_MESSAGE / 3).collect();
        self.change(|words| words.failure = Some(Failure { reason: failure.reason, message }));
    }

    fn note(&self, model_bytes: u64) -> u64 {
        let used_bytes = memory::used();
        self.change(|words| words.loading = Some(Loading { model_bytes, used_bytes }));
        used_bytes
    }

    fn change(&self, change: impl FnOnce(&mut LastWords)) {
        let mut words = self.0.words.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut words);
        let is_empty = words.failure.is_none() && words.loading.is_none();
        let text = if is_empty { Some(String::new()) } else { serde_json::to_string(&*words).ok() };
        if let (Some(file), Some(text)) = (&self.0.file, text)
            && let Err(error) = write(file, &text)
        {
            error!(%error, "the last words could not be left behind as the container's termination message");
        }
    }
}

/// In one call, so that who is killed meanwhile leaves the words before or these.
fn write(file: &File, text: &str) -> io::Result<()> {
    file.write_all_at(text.as_bytes(), 0)?;
    file.set_len(text.len() as u64)
}

/// Keeps the words about loading up to date.
#[derive(Debug)]
pub struct Watch {
    place: Testament,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A thread that panicked notes nothing any more.
            let _ = thread.join();
        }
        self.place.change(|words| words.loading = None);
    }
}

#[cfg(test)]
mod tests {
    use ortolan_protocol::failure::FailureReason;

    use super::*;

    fn words(file: &Path) -> Option<LastWords> {
        serde_json::from_str(&std::fs::read_to_string(file).unwrap()).ok()
    }

    #[test]
    fn words_are_there_while_the_model_is_loaded_and_gone_when_it_serves() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let place = Testament::new(file.path());
        place.fetched("00ff");
        assert_eq!(words(file.path()), None);
        let watch = place.loading(7 << 20);
        let found = words(file.path()).unwrap();
        assert_eq!(
            (found.digest.as_deref(), found.loading.map(|loading| loading.model_bytes)),
            (Some("00ff"), Some(7 << 20))
        );
        assert!(found.loading.is_some_and(|loading| loading.used_bytes > 0));
        drop(watch);
        assert_eq!(words(file.path()), None);
    }

    #[test]
    fn the_failure_is_the_last_word_and_has_the_digest_with_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let place = Testament::new(file.path());
        place.fetched("00ff");
        place.gave_up(&Failure { reason: FailureReason::ModelInvalid, message: "ä".repeat(9000) });
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert!(text.len() < 4096, "{}", text.len());
        let found = words(file.path()).unwrap();
        assert_eq!(
            (found.failure.unwrap().reason, found.digest.as_deref()),
            (FailureReason::ModelInvalid, Some("00ff"))
        );
    }

    #[test]
    fn no_file_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        drop(Testament::new(&path).loading(1));
        assert!(!path.exists());
    }
}
