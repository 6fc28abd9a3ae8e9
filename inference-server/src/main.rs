//! `ortolan-server`: reads the command line, starts the log and the runtime, and turns the end into an exit
//! code.

use std::io::{IsTerminal, Write};
use std::time::Instant;

use clap::Parser;
use mimalloc::MiMalloc;
use ortolan_protocol::failure::{Failure, FailureReason};
use ortolan_server::arguments::{Arguments, Command, HealthcheckArguments, ServeArguments};
use ortolan_server::config::Config;
use ortolan_server::last_words::Testament;
use ortolan_server::lifecycle::{self, End};
use ortolan_server::{confine, cpu, healthcheck};
use tracing::error;
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// The certificate check reports its failures to us; it need not log them, too.
const DEFAULT_LOG: &str = "info,rustls_platform_verifier=off";
/// What a shell reports for a program that was interrupted.
const INTERRUPTED: i32 = 130;

fn main() {
    let started = Instant::now();
    prepare();
    let arguments = match Arguments::parse().command {
        Command::Serve(arguments) => arguments,
        Command::Healthcheck(arguments) => return check(&arguments),
    };
    let filter = EnvFilter::try_from_env("ORTOLAN_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT_LOG));
    let writer = std::io::stderr;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(writer().is_terminal())
        .with_writer(writer)
        .init();
    let last_words = Testament::new(&arguments.termination_message);
    match serve(*arguments, &last_words, started) {
        Ok(End::Drained) => leave(0),
        Ok(End::Forced) => leave(INTERRUPTED),
        Err(failure) => {
            error!(reason = failure.reason.as_str(), "{}", failure.message);
            last_words.gave_up(&failure);
            leave(1)
        }
    }
}

/// What must be set before any memory of note is taken and any library loaded.
#[allow(unsafe_code)] // there is no safe function for it
fn prepare() {
    keep_large_allocations_apart();
    // Microsoft's build of ONNX Runtime opens a database of telemetry in the home directory, and has what it takes to upload it. Its
    // programming interface switches that off too late.
    // SAFETY: this is the only thread.
    unsafe { std::env::set_var("ORT_DISABLE_TELEMETRY", "1") };
}

/// ONNX Runtime takes its memory from glibc, which gives large pieces back to the system only until the first was given back: pieces of
/// that size then come from its heap, where what takes the place of a weight lies beside the hole that the weight left. A number that
/// was set does not grow.
#[allow(unsafe_code)] // there is no safe function for it
fn keep_large_allocations_apart() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes two numbers. What it does not know changes nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
    }
}

/// What this prints, `docker inspect` shows.
fn check(arguments: &HealthcheckArguments) {
    if let Err(words) = healthcheck::run(arguments) {
        let _ = writeln!(std::io::stdout(), "{words}");
        leave(1);
    }
}

fn serve(arguments: ServeArguments, last_words: &Testament, started: Instant) -> Result<End, Failure> {
    let config = Config::try_from(arguments)?;
    confine::process(&config.cache_dir);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cpu::threads(config.cpus))
        .enable_all()
        .build()
        .map_err(|error| Failure {
            reason: FailureReason::Internal,
            message: format!("no threads can be started: {error}"),
        })?;
    let end = runtime.block_on(lifecycle::run(config, last_words, started));
    // A model that is still being loaded is not waited for.
    runtime.shutdown_background();
    end
}

/// Ends the process without the exit handlers of its libraries: a thread may still be inside ONNX Runtime (loading its
/// library, a model, or running a batch that was not waited for), and would crash when the library's globals go away.
#[allow(unsafe_code)] // there is no safe function for it
fn leave(code: i32) -> ! {
    // SAFETY: `_exit` takes any number and touches no memory of ours. Nothing is left to be flushed: the log is not buffered.
    unsafe { libc::_exit(code) }
}
