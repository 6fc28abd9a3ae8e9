//! `GET /stats` of model servers: bounded in time, bytes and number at once.
//!
//! A server that does not answer, or answers nonsense, is an outcome and never a number. Redirects are not followed:
//! a pod must not be able to send the operator elsewhere.

use std::{net::IpAddr, time::Duration};

use ortolan_protocol::{ports, stats::Stats};
use reqwest::header::CONNECTION;

/// The longest answer that is read; a server's takes about 1 KB.
const LARGEST_ANSWER: usize = 64 * 1024;
/// A server that takes longer is silent.
const TIMEOUT: Duration = Duration::from_millis(900);

/// A connection that was not used for this long is closed: thousands of them take more memory than they save time.
const IDLE: Duration = Duration::from_secs(5);

/// Why a server's numbers were not had.
#[derive(Debug, thiserror::Error)]
pub enum ScrapeError {
    /// No connection, no answer in time, or an error status.
    #[error("the server did not answer: {0}")]
    Http(#[from] reqwest::Error),
    /// More bytes than a server has to tell.
    #[error("the answer is longer than {LARGEST_ANSWER} bytes")]
    TooLong,
    /// Not the statistics message.
    #[error("the answer is not a statistics message: {0}")]
    Malformed(#[from] serde_json::Error),
}

impl ScrapeError {
    /// The class of the error, for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Http(_) => "unreachable",
            Self::TooLong => "too_long",
            Self::Malformed(_) => "malformed",
        }
    }
}

/// Reads statistics.
#[derive(Clone, Debug)]
pub struct Scraper {
    client: reqwest::Client,
}

impl Scraper {
    /// A scraper with its own connection pool.
    pub fn new() -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder()
            .timeout(TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .pool_max_idle_per_host(1)
            .pool_idle_timeout(IDLE)
            .build()?;
        Ok(Self { client })
    }

    /// The statistics of the server at `address`. `keep`: the connection, as it is used again within seconds.
    pub async fn stats(&self, address: IpAddr, keep: bool) -> Result<Stats, ScrapeError> {
        let host = match address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        };
        self.stats_at(&format!("http://{host}:{}/stats", ports::OPERATIONS), keep).await
    }

    async fn stats_at(&self, url: &str, keep: bool) -> Result<Stats, ScrapeError> {
        let request = self.client.get(url);
        let request = if keep { request } else { request.header(CONNECTION, "close") };
        let mut response = request.send().await?.error_for_status()?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if body.len() + chunk.len() > LARGEST_ANSWER {
                return Err(ScrapeError::TooLong);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(serde_json::from_slice(&body)?)
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, body::Body, routing::get};

    use super::*;

    async fn scrape(answer: impl Fn() -> Body + Clone + Send + Sync + 'static) -> Result<Stats, ScrapeError> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/stats", listener.local_addr().unwrap());
        let app = Router::new().route("/stats", get(move || async move { answer() }));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Scraper::new().unwrap().stats_at(&url, true).await
    }

    #[tokio::test]
    async fn statistics_are_read() {
        let stats = Stats { model: "digits".into(), ..Stats::default() };
        let text = serde_json::to_string(&stats).unwrap();
        assert_eq!(scrape(move || Body::from(text.clone())).await.unwrap(), stats);
    }

    #[tokio::test]
    async fn hostile_answers_are_outcomes() {
        for (body, kind) in
            [("x".repeat(LARGEST_ANSWER + 1), "too_long"), ("{}".into(), "malformed"), (String::new(), "malformed")]
        {
            let error = scrape(move || Body::from(body.clone())).await.unwrap_err();
            assert_eq!(error.kind(), kind);
        }
    }

    #[tokio::test]
    async fn an_answer_without_end_is_cut_off() {
        let endless = || Body::from_stream(futures::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b'1'; 1024])));
        assert_eq!(scrape(endless).await.unwrap_err().kind(), "too_long");
    }

    #[tokio::test]
    async fn a_server_that_never_answers_is_silent_in_time() {
        let slow = || Body::from_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>());
        assert_eq!(scrape(slow).await.unwrap_err().kind(), "unreachable");
    }
}
