//! No call waits for its answer for ever: a layer around the client, the one place that limits them all.
//!
//! A write that is given up may be carried out all the same; whoever made it finds out by reading. A watch is answered
//! at once and then goes on as long as it can, so its body has no limit here, nor has any other body: reconciles and the
//! election have limits of their own for the whole of what they do.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{Method, Request};
use tower::{BoxError, Layer, Service};

/// An answer that did not come.
#[derive(Debug, thiserror::Error)]
#[error("the API server did not answer within {} s", .0.as_secs())]
pub struct Unanswered(pub Duration);

impl Unanswered {
    /// Whether that is what became of a call: how long it was waited for.
    pub fn of(error: &kube::Error) -> Option<Duration> {
        match error {
            kube::Error::Service(error) => error.downcast_ref::<Self>().map(|unanswered| unanswered.0),
            _ => None,
        }
    }
}

/// Limits how long answers are waited for.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    write: Duration,
    read: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        // What is read may be long. The API server itself gives up after a minute.
        Self { write: Duration::from_secs(10), read: Duration::from_secs(30) }
    }
}

impl<S> Layer<S> for Patience {
    type Service = Patient<S>;

    fn layer(&self, inner: S) -> Patient<S> {
        Patient { patience: *self, inner }
    }
}

/// Gives calls up that are not answered.
#[derive(Clone, Debug)]
pub struct Patient<S> {
    patience: Patience,
    inner: S,
}

impl<S, B> Service<Request<B>> for Patient<S>
where
    S: Service<Request<B>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let longest = if request.method() == Method::GET { self.patience.read } else { self.patience.write };
        let sending = self.inner.call(request);
        Box::pin(async move {
            let answer = tokio::time::timeout(longest, sending).await;
            answer.map_err(|_| Unanswered(longest))?.map_err(Into::into)
        })
    }
}

#[cfg(test)]
mod tests {
    use tower::service_fn;

    use super::*;

    #[tokio::test]
    async fn a_call_that_is_not_answered_is_given_up_and_known_by_its_error() {
        let (write, read) = (Duration::from_millis(10), Duration::from_millis(20));
        for (method, longest) in [(Method::PATCH, write), (Method::POST, write), (Method::GET, read)] {
            let silent = service_fn(|_: Request<()>| std::future::pending::<Result<(), BoxError>>());
            let mut service = Patience { write, read }.layer(silent);
            let error = service.call(Request::builder().method(method).body(()).unwrap()).await.unwrap_err();
            assert_eq!(Unanswered::of(&kube::Error::Service(error)), Some(longest));
        }
    }

    #[tokio::test]
    async fn an_answer_in_time_and_an_error_are_passed_on() {
        let mut service = Patience::default().layer(service_fn(|request: Request<u8>| async move {
            if *request.body() == 0 { Ok(0) } else { Err(BoxError::from("refused")) }
        }));
        assert_eq!(service.call(Request::new(0)).await.unwrap(), 0);
        assert_eq!(service.call(Request::new(1)).await.unwrap_err().to_string(), "refused");
    }
}
