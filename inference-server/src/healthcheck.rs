//! `ortolan-server healthcheck`: for container engines, which learn a container's health by running a program in it. The
//! image has no shell and no curl, so the server asks itself. Kubernetes has its own probes and does not use this.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::arguments::HealthcheckArguments;

/// Connecting, and each wait for bytes, may take this long.
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks the server of this container whether its model answers. The error is a sentence for `docker inspect`.
pub fn run(arguments: &HealthcheckArguments) -> Result<(), String> {
    // A server that listens everywhere listens here.
    let host = match arguments.address {
        address if address.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        address => address,
    };
    let address = SocketAddr::new(host, arguments.ops_port);
    let status = ask(address).map_err(|error| {
        format!(
            "no answer on port {} ({error}); a server that listens elsewhere must be told so by ORTOLAN_OPS_PORT and \
             ORTOLAN_ADDRESS, which this check reads, too",
            arguments.ops_port
        )
    })?;
    if status.contains(" 200 ") { Ok(()) } else { Err(format!("the model is not ready: {status}")) }
}

/// The first line of the answer to `GET /readyz`.
fn ask(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A port that answers one request with this status line.
    fn answering(line: &'static str) -> HealthcheckArguments {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let ops_port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = String::new();
            BufReader::new(&stream).read_line(&mut request).unwrap();
            assert_eq!(request, "GET /readyz HTTP/1.1\r\n");
            write!(stream, "{line}\r\n\r\n").unwrap();
        });
        HealthcheckArguments { address: Ipv4Addr::UNSPECIFIED.into(), ops_port }
    }

    #[test]
    fn a_ready_server_is_healthy_and_a_loading_one_is_not() {
        assert_eq!(run(&answering("HTTP/1.1 200 OK")), Ok(()));
        let words = run(&answering("HTTP/1.1 503 Service Unavailable")).unwrap_err();
        assert!(words.contains("not ready") && words.contains("503"), "{words}");
    }

    #[test]
    fn a_server_that_is_not_there_is_unhealthy_and_the_settings_are_named() {
        let ops_port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let words = run(&HealthcheckArguments { address: Ipv4Addr::LOCALHOST.into(), ops_port }).unwrap_err();
        assert!(words.contains("ORTOLAN_OPS_PORT"), "{words}");
    }
}
