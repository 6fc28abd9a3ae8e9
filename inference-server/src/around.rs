//! Something that is done before and after every request of a port. Unlike axum's middleware functions it takes no
//! allocation, which would be a good part of what a small request costs.

use std::convert::Infallible;
use std::future::Future;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use pin_project_lite::pin_project;
use tower::{Layer, Service};

/// What is done around each request.
pub trait Attendant: Clone {
    /// What it keeps of a request for its answer.
    type Kept;

    /// Looks at a request, and may change it; or answers in the place of the service.
    fn before(&self, request: Request) -> ControlFlow<Response, (Request, Self::Kept)>;

    /// Looks at what the service answered, and may change it.
    fn after(&self, kept: Self::Kept, response: &mut Response);
}

/// The layer of an attendant.
#[derive(Clone, Debug)]
pub struct Around<T>(pub T);

impl<S, T: Attendant> Layer<S> for Around<T> {
    type Service = Attended<S, T>;

    fn layer(&self, inner: S) -> Self::Service {
        Attended { inner, attendant: self.0.clone() }
    }
}

/// A service with an attendant.
#[derive(Clone, Debug)]
pub struct Attended<S, T> {
    inner: S,
    attendant: T,
}

impl<S, T> Service<Request> for Attended<S, T>
where
    S: Service<Request, Error = Infallible>,
    S::Response: IntoResponse,
    T: Attendant,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Answer<S::Future, T, T::Kept>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        match self.attendant.before(request) {
            ControlFlow::Continue((request, kept)) => {
                Answer::Coming { answer: self.inner.call(request), attendant: self.attendant.clone(), kept: Some(kept) }
            }
            ControlFlow::Break(response) => Answer::Refused { response: Some(response) },
        }
    }
}

pin_project! {
    /// The answer of a service with an attendant.
    #[project = Projected]
    #[derive(Debug)]
    pub enum Answer<F, T, K> {
        /// From the service.
        Coming { #[pin] answer: F, attendant: T, kept: Option<K> },
        /// From the attendant.
        Refused { response: Option<Response> },
    }
}

impl<F, R, T> Future for Answer<F, T, T::Kept>
where
    F: Future<Output = Result<R, Infallible>>,
    R: IntoResponse,
    T: Attendant,
{
    type Output = Result<Response, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            Projected::Coming { answer, attendant, kept } => {
                let Ok(response) = ready!(answer.poll(context));
                let mut response = response.into_response();
                if let Some(kept) = kept.take() {
                    attendant.after(kept, &mut response);
                }
                Poll::Ready(Ok(response))
            }
            // Nobody polls a future that has ended.
            Projected::Refused { response } => {
                response.take().map_or(Poll::Pending, |response| Poll::Ready(Ok(response)))
            }
        }
    }
}
