//! The operator and its command line: parses arguments and dispatches.

mod cli;

use clap::Parser;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    cli::Cli::parse().execute().await
}
