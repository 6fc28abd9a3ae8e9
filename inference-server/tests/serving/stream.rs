//! Requests and answers over one gRPC call.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use ortolan_protocol::grpc::infer_parameter::ParameterChoice;
use ortolan_protocol::grpc::{InferParameter, ModelInferRequest, ModelStreamInferResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status};

use crate::common::server;
use crate::grpc::{add, app, client};
use ortolan_protocol::grpc::grpc_inference_service_client::GrpcInferenceServiceClient as Client;

fn named(id: usize) -> ModelInferRequest {
    ModelInferRequest { id: id.to_string(), ..add() }
}

fn id(answer: &ModelStreamInferResponse) -> &str {
    &answer.infer_response.as_ref().unwrap().id
}

#[tokio::test]
async fn answers_come_in_the_order_of_the_requests_and_the_stream_ends_with_them() {
    let mut client = client("add").await;
    let answers = client.model_stream_infer(stream::iter((0..300).map(named))).await.unwrap().into_inner();
    let answers: Vec<_> = answers.collect().await;
    assert_eq!(answers.len(), 300);
    for (number, answer) in answers.iter().enumerate() {
        let answer = answer.as_ref().unwrap();
        assert_eq!((id(answer), answer.error_message.as_str()), (number.to_string().as_str(), ""));
        assert_eq!(answer.infer_response.as_ref().unwrap().raw_output_contents.len(), 1);
    }
}

#[tokio::test]
async fn a_request_that_fails_is_told_by_its_id_and_the_others_are_answered() {
    let server = server("add", &[]).await;
    let mut client = Client::new(app(server.clone()));
    let unknown = ModelInferRequest { model_name: "other".to_owned(), ..named(1) };
    let late = InferParameter { parameter_choice: Some(ParameterChoice::Int64Param(1)) };
    let mut none = named(2);
    none.inputs.clear();
    let requests = [named(0), unknown, none, named(3)];
    let answers = client.model_stream_infer(stream::iter(requests)).await.unwrap().into_inner();
    let answers: Vec<_> = answers.map(Result::unwrap).collect().await;
    assert_eq!(answers.iter().map(id).collect::<Vec<_>>(), ["0", "1", "2", "3"]);
    assert!(answers[1].error_message.contains("no model 'other'"));
    assert!(answers[2].error_message.contains("lacks 'a' and 'b'"));
    assert!(answers[0].error_message.is_empty() && answers[3].error_message.is_empty());
    let (requests, in_flight) = server.counters().requests();
    assert_eq!((requests.arrived, requests.completed, requests.refused, in_flight), (4, 2, 2, 0));
    // A timeout of one microsecond passes while the request is read.
    let request = ModelInferRequest { parameters: [("timeout".to_owned(), late)].into(), ..named(4) };
    let mut answers = client.model_stream_infer(stream::iter([request])).await.unwrap().into_inner();
    assert!(answers.next().await.unwrap().unwrap().error_message.contains("deadline"));
}

#[tokio::test]
async fn the_deadline_of_the_call_is_that_of_its_requests() {
    let mut client = client("add").await;
    let mut request = Request::new(stream::iter([named(0)]));
    request.metadata_mut().insert("grpc-timeout", "0n".parse().unwrap());
    let mut answers = client.model_stream_infer(request).await.unwrap().into_inner();
    assert!(answers.next().await.unwrap().unwrap().error_message.contains("deadline"));
}

#[tokio::test]
async fn a_stream_may_be_longer_than_a_body_but_no_message_may() {
    let server = server("add", &["--max-request-bytes", "200", "--request-body-timeout", "50ms"]).await;
    let mut client = Client::new(app(server));
    let (send, requests) = mpsc::channel(1);
    let mut answers = client.model_stream_infer(ReceiverStream::new(requests)).await.unwrap().into_inner();
    for number in 0..20 {
        send.send(named(number)).await.unwrap();
        assert_eq!(id(&answers.next().await.unwrap().unwrap()), number.to_string());
        if number == 10 {
            // Longer than a body may take, at rest.
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
    }
    send.send(ModelInferRequest { id: "x".repeat(300), ..add() }).await.unwrap();
    assert_eq!(ended(answers.next().await).code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn a_stream_ends_when_the_server_drains_after_what_was_asked_is_answered() {
    let server = server("add", &[]).await;
    let mut client = Client::new(app(server.clone()));
    let (send, requests) = mpsc::channel(8);
    let mut answers = client.model_stream_infer(ReceiverStream::new(requests)).await.unwrap().into_inner();
    send.send(named(0)).await.unwrap();
    assert_eq!(id(&answers.next().await.unwrap().unwrap()), "0");
    send.send(named(1)).await.unwrap();
    server.drain();
    assert_eq!(id(&answers.next().await.unwrap().unwrap()), "1");
    let status = ended(answers.next().await);
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("open the stream anew"));
}

fn ended(answer: Option<Result<ModelStreamInferResponse, Status>>) -> Status {
    answer.unwrap().unwrap_err()
}
