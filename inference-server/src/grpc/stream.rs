//! `ModelStreamInfer`: requests and answers over one call.

use std::sync::Arc;
use std::time::Instant;

use axum::http::HeaderMap;
use futures_util::{Stream, StreamExt, stream};
use ortolan_protocol::grpc::{ModelInferRequest, ModelInferResponse, ModelStreamInferResponse};
use tonic::{Code, Status, Streaming};

use crate::client_limit::Client;
use crate::serving::Server;
use crate::telemetry::Route;

/// How many requests of one stream are worked on at once. The queue bounds what all streams together hold.
const AT_ONCE: usize = 64;

/// What holds for all messages of a stream.
pub(super) struct Call {
    /// Who sends them, where there is a limit for clients.
    pub client: Option<Client>,
    /// Until when they must be answered.
    pub deadline: Option<Instant>,
    /// What it was opened with.
    pub headers: HeaderMap,
}

/// The answers, in the order of the requests. A request that fails gets a message and the stream goes on; it ends when
/// its client has sent all, breaks the protocol, or has nothing to say while the server drains.
pub(super) fn answers(
    server: Arc<Server>,
    requests: Streaming<ModelInferRequest>,
    call: Call,
) -> impl Stream<Item = Result<ModelStreamInferResponse, Status>> {
    let call = Arc::new(call);
    messages(Arc::clone(&server), requests)
        .map(move |message| {
            let (server, call) = (Arc::clone(&server), Arc::clone(&call));
            async move { Ok(answer(&server, message?, &call).await) }
        })
        .buffered(AT_ONCE)
}

fn messages(
    server: Arc<Server>,
    requests: Streaming<ModelInferRequest>,
) -> impl Stream<Item = Result<ModelInferRequest, Status>> {
    stream::unfold(Some(requests), move |requests| {
        let server = Arc::clone(&server);
        async move {
            let mut requests = requests?;
            tokio::select! {
                biased;
                message = requests.message() => match message {
                    Ok(message) => Some((Ok(message?), Some(requests))),
                    // The code that a message over the limit gets everywhere.
                    Err(status) if status.code() == Code::OutOfRange => {
                        Some((Err(Status::resource_exhausted(status.message())), None))
                    }
                    Err(status) => Some((Err(status), None)),
                },
                () = server.drained() => {
                    Some((Err(Status::unavailable("the server is about to stop; open the stream anew")), None))
                }
            }
        }
    })
}

async fn answer(server: &Server, message: ModelInferRequest, call: &Call) -> ModelStreamInferResponse {
    let arrival = server.arrive(Route::GrpcStream, &call.headers);
    arrival.note(|watch| watch.received(arrival.since()));
    let (id, model_name) = (message.id.clone(), message.model_name.clone());
    let outcome = match server.check_limit(call.client) {
        Ok(()) => super::infer(server, message, call.deadline, &arrival).await,
        Err(error) => Err(error),
    };
    arrival.finish(&outcome);
    match outcome {
        Ok(answer) => ModelStreamInferResponse { error_message: String::new(), infer_response: Some(answer) },
        Err(error) => ModelStreamInferResponse {
            error_message: error.message().to_owned(),
            infer_response: Some(ModelInferResponse { model_name, id, ..ModelInferResponse::default() }),
        },
    }
}
