//! A server that limits what one client may ask for, over REST and gRPC.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use futures_util::{StreamExt, stream};
use ortolan_protocol::grpc::ServerLiveRequest;
use ortolan_protocol::grpc::grpc_inference_service_client::GrpcInferenceServiceClient;
use ortolan_server::client_limit::Client;
use ortolan_server::http;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

use crate::common::{Answer, get, infer, send, server};
use crate::grpc;
use crate::program::Program;

/// Two requests at once, then one a second.
const TWO: [&str; 4] = ["--client-requests-per-second", "1", "--client-burst", "2"];

/// What is more than two requests and takes less than seconds.
const MANY: usize = 50;

async fn from(app: &Router, address: [u8; 4], path: &str) -> Answer {
    let client = Client::at(IpAddr::V4(Ipv4Addr::from(address)));
    // Whoever writes this header is not believed.
    let request = Request::get(path).header("x-forwarded-for", "192.0.2.9").extension(client);
    send(app, request.body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn each_address_has_a_limit_of_its_own_and_health_has_none() {
    let server = server("add", &TWO).await;
    let app = http::app(server.clone());
    for address in [[10, 0, 0, 1], [10, 0, 0, 2]] {
        for _ in 0..2 {
            assert_eq!(from(&app, address, "/v2").await.status, StatusCode::OK);
        }
        let mut refused = from(&app, address, "/v2").await;
        for _ in 0..MANY {
            if refused.status != StatusCode::OK {
                break;
            }
            refused = from(&app, address, "/v2").await;
        }
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(refused.headers["retry-after"], "1");
        assert!(refused.error().contains("more than the 1 requests a second"), "{}", refused.error());
        for _ in 0..5 {
            assert_eq!(from(&app, address, "/v2/health/live").await.status, StatusCode::OK);
        }
    }
    let (requests, in_flight) = server.counters().requests();
    assert_eq!((requests.refused, in_flight), (2, 0), "one of each");
}

#[tokio::test]
async fn where_keys_are_wanted_a_key_is_a_client_wherever_it_comes_from() {
    let folder = tempfile::tempdir().unwrap();
    // printf one | sha256sum; printf two | sha256sum
    let hashes = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed\n\
                  3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3\n";
    fs::write(folder.path().join("clients"), hashes).unwrap();
    let flags = [&TWO[..], &["--api-keys-dir", folder.path().to_str().unwrap()]].concat();
    let app = http::app(server("add", &flags).await);
    let with = async |key: &str| infer(&app, "add", &[("x-api-key", key)], "{}").await.status;
    for key in ["one", "two"] {
        for _ in 0..2 {
            assert_eq!(with(key).await, StatusCode::BAD_REQUEST);
        }
        let mut statuses = Vec::new();
        for _ in 0..MANY {
            statuses.push(with(key).await);
        }
        assert!(statuses.contains(&StatusCode::TOO_MANY_REQUESTS), "{statuses:?}");
    }
    assert_eq!(with("three").await, StatusCode::UNAUTHORIZED, "a stranger is told nothing of limits");
}

#[tokio::test]
async fn grpc_says_when_to_come_again() {
    let server = server("add", &TWO).await;
    let known = grpc::app(server.clone()).layer(axum::Extension(Client::at(Ipv4Addr::LOCALHOST.into())));
    let mut client = GrpcInferenceServiceClient::new(known.clone());
    for _ in 0..2 {
        client.server_live(ServerLiveRequest {}).await.unwrap();
    }
    let mut outcome = client.model_infer(grpc::add()).await;
    for _ in 0..MANY {
        if outcome.is_err() {
            break;
        }
        outcome = client.model_infer(grpc::add()).await;
    }
    let status = outcome.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    let after = status.get_details_retry_info().unwrap().retry_delay.unwrap();
    assert!(after > Duration::ZERO && after <= Duration::from_secs(1), "{after:?}");
    let health = HealthClient::new(known).check(HealthCheckRequest { service: String::new() }).await;
    assert!(health.is_ok());
}

#[tokio::test]
async fn the_messages_of_a_stream_count_like_requests() {
    let server = server("add", &TWO).await;
    let known = grpc::app(server.clone()).layer(axum::Extension(Client::at(Ipv4Addr::LOCALHOST.into())));
    let mut client = GrpcInferenceServiceClient::new(known);
    let requests = stream::iter((0..MANY).map(|_| grpc::add()));
    let answers: Vec<_> = client.model_stream_infer(requests).await.unwrap().into_inner().collect().await;
    let told: Vec<_> = answers.into_iter().map(|answer| answer.unwrap().error_message).collect();
    assert!(told[..2].iter().all(String::is_empty), "{told:?}");
    let refused = told.iter().filter(|error| error.contains("requests a second")).count();
    assert!(refused > 0, "{told:?}");
    let (requests, _) = server.counters().requests();
    assert_eq!((requests.completed, requests.refused), ((MANY - refused) as u64, refused as u64));
}

#[tokio::test]
async fn without_a_limit_nobody_is_counted() {
    let app = http::app(server("add", &[]).await);
    for _ in 0..20 {
        assert_eq!(from(&app, [10, 0, 0, 1], "/v2").await.status, StatusCode::OK);
    }
    assert_eq!(get(&app, "/v2").await.status, StatusCode::OK);
}

/// Asks over a connection of its own, and leaves it open.
async fn ask(port: u16) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut answer = vec![0; 512];
    // A connection that is not wanted is closed, before or after this is written.
    let _ = stream.write_all(b"GET /v2 HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let length = stream.read(&mut answer).await.unwrap_or(0);
    (stream, String::from_utf8_lossy(&answer[..length]).into_owned())
}

#[tokio::test]
async fn a_real_connection_tells_whose_it_is() {
    let program = Program::serving(&TWO).await;
    let mut answers = Vec::new();
    for _ in 0..MANY {
        answers.push(ask(program.http).await.1);
    }
    assert!(answers[0].contains("200 OK") && answers[1].contains("200 OK"), "{answers:?}");
    let refused = answers.iter().find(|answer| answer.contains("429 Too Many Requests")).unwrap();
    assert!(refused.contains("retry-after: 1"), "{refused}");
}

/// Many clients send the body a moment after the head, and go on with the connection.
#[tokio::test]
async fn a_connection_goes_on_after_a_refusal_that_came_before_the_body() {
    let program = Program::serving(&["--client-requests-per-second", "1", "--client-burst", "1"]).await;
    let mut stream = TcpStream::connect(("127.0.0.1", program.http)).await.unwrap();
    let mut refusals = 0;
    for _ in 0..MANY {
        stream.write_all(b"POST /v2/models/add/infer HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n").await.unwrap();
        let mut answer = vec![0; 1024];
        let early = tokio::time::timeout(Duration::from_millis(20), stream.read(&mut answer)).await;
        stream.write_all(b"{}").await.unwrap();
        let length = match early {
            Ok(length) => length.unwrap(),
            Err(_) => stream.read(&mut answer).await.unwrap(),
        };
        let answer = String::from_utf8_lossy(&answer[..length]);
        assert!(answer.contains("400 Bad Request") || answer.contains("429 Too Many"), "{answer:?}");
        refusals += usize::from(answer.contains("429"));
        if refusals > 3 {
            return;
        }
    }
    panic!("only {refusals} refusals");
}

#[tokio::test]
async fn an_address_has_only_so_many_connections() {
    let program = Program::serving(&["--client-connections", "2"]).await;
    let (first, told) = ask(program.http).await;
    let (_second, also) = ask(program.http).await;
    assert!(told.contains("200 OK") && also.contains("200 OK"));
    assert_eq!(ask(program.http).await.1, "", "the third is closed without a word");
    assert_eq!(ask(program.grpc).await.1, "", "over the ports together");
    assert!(program.stats().await.requests.refused == 0, "the operator's port has no such limit");
    drop(first);
    let again = async {
        while ask(program.http).await.1.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), again).await.unwrap();
}
