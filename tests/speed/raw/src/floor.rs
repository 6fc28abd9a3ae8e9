//! Answers whatever comes over its one connection after the other with the same bytes: what a request over HTTP costs in the
//! kernel and in whoever asks, without a server. Prints its port.

use std::io::{Read, Write};
use std::net::TcpListener;

use anyhow::Context;

/// As long as the answer of the model that the servers are compared with.
const BODY: usize = 300;

fn main() -> anyhow::Result<()> {
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {BODY}\r\n\r\n{}", "0".repeat(BODY));
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("a port is needed")?;
    writeln!(std::io::stdout(), "{}", listener.local_addr()?.port())?;
    let mut request = vec![0; 1 << 16];
    for connection in listener.incoming() {
        let mut connection = connection?;
        connection.set_nodelay(true)?;
        // A request of this size comes in one piece.
        while connection.read(&mut request).is_ok_and(|bytes| bytes > 0) {
            connection.write_all(answer.as_bytes())?;
        }
    }
    Ok(())
}
