//! What servers tell of single requests: traces, and lines in their log.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Whether a text is a fraction as it is written here: no floats in the schema, they do not survive every client.
const IS_FRACTION: &str = "self.matches('^(0([.][0-9]{1,9})?|1([.]0{1,9})?)$')";

/// Traces of requests, by OTLP over HTTP.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(cel)]
pub struct Tracing {
    /// Where they are sent, as in `http://collector.monitoring.svc:4318`; `/v1/traces` is put behind it. Servers that cannot reach
    /// it serve all the same.
    #[schemars(length(max = 2048))]
    #[x_kube(
        validation = Rule::new("self.matches('^https?://[^/?#[:space:][:cntrl:]]+(/[^?#[:space:][:cntrl:]]*)?$')")
            .message("the endpoint must be http://HOST:PORT or https://HOST:PORT, with or without a path"),
        validation = Rule::new("!self.matches('^[a-z]+://[^/?#]*@')")
            .message("the endpoint must not hold a user name or password: everyone who may read this object would see it")
    )]
    pub endpoint: String,
    /// The part of the requests that is traced, from `0` to `1`, where the caller has not decided it: a request with a `traceparent`
    /// that is sampled is always traced, one with another never.
    #[serde(default = "default_sample_ratio")]
    #[x_kube(validation = Rule::new(IS_FRACTION).message("sampleRatio must be a fraction from 0 to 1 such as \"0.01\""))]
    pub sample_ratio: String,
}

fn default_sample_ratio() -> String {
    "0.01".to_owned()
}

/// Lines in the servers' log for single requests.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(cel)]
pub struct RequestLog {
    /// The part of the requests that gets one, from `0` to `1`; those that fail as well as others. Never with what is in them.
    #[x_kube(validation = Rule::new(IS_FRACTION).message("sampleRatio must be a fraction from 0 to 1 such as \"0.01\""))]
    pub sample_ratio: String,
}
