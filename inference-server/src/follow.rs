//! Files of mounted Secrets, which change while the server runs.

use std::time::Duration;

use tracing::warn;

/// The longest that a change of the files goes unnoticed.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Looks at files again and again, for as long as it is polled. While they are no good, which is told once, what was read of
/// them before counts. `what`: what they hold, for the log.
pub async fn follow(what: &str, look_again: impl Fn() -> Result<(), String>) {
    let mut was_good = true;
    loop {
        tokio::time::sleep(LOOK_AGAIN).await;
        let outcome = look_again();
        let is_good = outcome.is_ok();
        if let Err(message) = outcome
            && was_good
        {
            warn!("{what} stay as they are: {message}");
        }
        was_good = is_good;
    }
}
