//! The operator and its command line: parses arguments and dispatches.

mod cli;

use clap::Parser;
use mimalloc::MiMalloc;

/// Gives back what was needed once: the lists that a new operator reads come to many times what it keeps of them.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    cli::Cli::parse().execute().await
}
