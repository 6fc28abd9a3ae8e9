//! The API, `ortolan.dev/v1alpha1`: what a user writes and what Ortolan answers in `status`.
//!
//! Only types, their schema and their CEL rules. A rule stands at the field it is about and its message says what was
//! expected, because it is what `kubectl apply` prints. There are no webhooks: whatever must be refused is refused by
//! the schema or by a rule; whatever passes is parsed once, by [`validated`].

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod access;
pub mod conditions;
mod definition;
pub mod names;
mod quantity;
pub mod scheduling;
mod status;
mod telemetry;
#[cfg(test)]
mod tests;
pub mod validated;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use access::{ClientLimit, Tls};
pub use definition::definition;
pub use quantity::Quantity;
pub use scheduling::Scheduling;
pub use status::{LatencyStatus, ModelDeploymentStatus, RevisionStatus, ScalingStatus, VariantStatus};
pub use telemetry::{RequestLog, Tracing};

/// A machine-learning model to serve, and how.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "ortolan.dev",
    version = "v1alpha1",
    kind = "ModelDeployment",
    doc = "A machine-learning model to serve: Ortolan runs inference servers for it and scales them from observed latency.",
    namespaced,
    shortname = "md",
    category = "all",
    status = "ModelDeploymentStatus",
    derive = "PartialEq",
    cel,
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Stable", type_ = "string", json_path = ".status.stable.revision"),
    printcolumn(name = "Candidate", type_ = "string", json_path = ".status.candidate.revision"),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".status.replicas"),
    printcolumn(name = "P99", type_ = "string", json_path = ".status.variants[0].latency.p99"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = "1"
    ),
    validation = Rule::new("self.metadata.name.size() <= 40 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("the name becomes a Service's: at most 40 characters a-z, 0-9 and '-', beginning with a letter")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.replicas == 1 || !has(self.scaling.latency)")
        .message("replicas is set by hand or by an autoscaler of your own; with scaling.latency Ortolan decides: remove one of the two")
)]
pub struct ModelDeploymentSpec {
    /// The model that is served.
    pub model: Model,
    /// How one inference server runs.
    #[serde(default)]
    pub server: Server,
    /// How many inference servers run.
    #[serde(default)]
    pub scaling: Scaling,
    /// How a changed model or server comes into service.
    #[serde(default)]
    pub rollout: Rollout,
    /// Where the servers may run.
    #[serde(default, skip_serializing_if = "Scheduling::is_default")]
    pub scheduling: Scheduling,
    /// The number of inference servers, for `kubectl scale` and for an autoscaler of your own; never fewer than
    /// `scaling.minReplicas`. With `scaling.latency` Ortolan decides, and this must stay at its default.
    #[serde(default = "default_replicas")]
    #[schemars(range(min = 1, max = 1000), extend("format" = "int32"))]
    pub replicas: u32,
}

/// Without a default the scale subresource is an error until somebody has scaled once, and an autoscaler never does.
fn default_replicas() -> u32 {
    1
}

/// Whether a text can be the name of an object of Kubernetes.
const IS_NAME: &str = "self.size() <= 253 && self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')";

/// Where the model's bytes come from.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    cel,
    validation = Rule::new("!has(self.credentialsSecret) || self.uri.matches('^(https?|s3|gs|az|oci|oci[+]http|hf)://')")
        .message("credentialsSecret is for models that are fetched over the network (https://, s3://, gs://, az://, oci://, hf://): remove it, or change the uri")
)]
pub struct Model {
    /// `https://HOST/PATH` or `http://HOST/PATH`; `s3://BUCKET/KEY`, `gs://BUCKET/KEY` or `az://CONTAINER/KEY` in an object
    /// store; `oci://HOST/REPOSITORY:TAG` in a registry (`oci+http://` for one without TLS); `hf://OWNER/NAME/PATH` or
    /// `hf://OWNER/NAME@REVISION/PATH` in the Hugging Face Hub; `pvc://CLAIM/PATH` or `configmap://NAME/KEY` in the same
    /// namespace; `file:///PATH` for a model that is part of the server's image. Files beside the model's file in which it keeps
    /// data come with it. A tar, tar.gz or zip with the model in it will do, and so will a folder in a claim.
    #[schemars(length(max = 2048))]
    #[x_kube(
        validation = Rule::new("self.matches('^(https?://[^/?#]+/.+|(s3|gs|az)://[a-zA-Z0-9][-._a-zA-Z0-9]*/[^/]+(/[^/]+)*|oci([+]http)?://[^/?#@]+/[a-z0-9][-._a-z0-9]*(/[a-z0-9][-._a-z0-9]*)*(:[a-zA-Z0-9_][-._a-zA-Z0-9]*)?(@sha256:[0-9a-f]{64})?|hf://[-._a-zA-Z0-9]+/[-._a-zA-Z0-9]+(@[-._a-zA-Z0-9]+)?/[^/]+(/[^/]+)*|pvc://[a-z0-9][-a-z0-9.]*/.+|configmap://[a-z0-9][-a-z0-9.]*/[-._a-zA-Z0-9]+|file:///.+)$')")
            .message("the uri must be https://HOST/PATH, http://HOST/PATH, s3://BUCKET/KEY, gs://BUCKET/KEY, az://CONTAINER/KEY, oci://HOST/REPOSITORY:TAG, hf://OWNER/NAME/PATH, pvc://CLAIM/PATH, configmap://NAME/KEY or file:///PATH"),
        validation = Rule::new("!self.matches('^[a-z]+://[^/?#]*@')")
            .message("the uri must not hold a user name or password: everyone who may read this object would see it"),
        validation = Rule::new("!self.matches('(^|/)[.][.](/|$)')").message("the uri must not contain '..'"),
        validation = Rule::new("!self.matches('(?i)[.](pkl|pickle|joblib|pt|pth|ckpt)$')")
            .message("the uri names a Python pickle, or a file of PyTorch's that holds one, which is code and is never loaded: convert the model to ONNX")
    )]
    pub uri: String,
    /// The SHA-256 of the model's bytes: 64 lower-case hexadecimal digits. For an artifact in a registry that of its manifest, for an
    /// archive the archive's, for a model of several files that of what `sha256sum` prints about them. Other bytes are refused. When absent, the
    /// first server of a revision finds the digest, it stands in `status`, and later servers of the revision refuse other
    /// bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^[0-9a-f]{64}$')")
        .message("sha256 must be 64 lower-case hexadecimal digits, as sha256sum prints them"))]
    pub sha256: Option<String>,
    /// A word of your own for the model's bytes: another word is a new revision, which fetches the model again. For a uri
    /// whose bytes were replaced on purpose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^[-._a-zA-Z0-9]{1,63}$')")
        .message("version must be 1 to 63 letters, digits, '-', '_' or '.'"))]
    pub version: Option<String>,
    /// A Secret in the same namespace with what lets the servers in where the model is: `token`, or `username` and
    /// `password`, for https; AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY and the like for s3;
    /// GOOGLE_SERVICE_ACCOUNT_KEY for gs; AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY for az; `.dockerconfigjson`
    /// (as `kubectl create secret docker-registry` makes it), or `username` and `password`, for oci; HF_TOKEN for hf. Mounted
    /// into the pods; the operator never reads it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new(IS_NAME)
        .message("credentialsSecret must be a Secret's name: a-z, 0-9, '-' and '.'"))]
    pub credentials_secret: Option<String>,
    /// The format of the bytes.
    #[serde(default)]
    pub format: Format,
}

/// The formats of a model.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum Format {
    /// Open Neural Network Exchange.
    #[default]
    Onnx,
}

impl Format {
    /// The name, as the inference server takes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Onnx => "onnx",
        }
    }
}

/// How one inference server runs.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    cel,
    validation = Rule::new("!has(self.responseCache) || !has(self.resources) || !has(self.resources.limits) || !has(self.resources.limits.memory) || quantity(string(self.responseCache)).isLessThan(quantity(string(self.resources.limits.memory)))")
        .message("responseCache must be below resources.limits.memory, which it is part of"),
    validation = Rule::new("!has(self.autotune) || !self.autotune || (!has(self.threads) && !has(self.instances))")
        .message("autotune finds out what threads and instances say: leave them out, or autotune")
)]
pub struct Server {
    /// What the server's container asks for and may use.
    #[serde(default)]
    pub resources: Resources,
    /// How requests are put together into batches.
    #[serde(default)]
    pub batching: Batching,
    /// Threads for one execution of the model; by default the CPU limit, rounded up, shared by the instances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 256), extend("format" = "int32"))]
    pub threads: Option<u32>,
    /// Executions of the model at once, for one that alone does not fill the CPUs; all use the same weights. 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 256), extend("format" = "int32"))]
    pub instances: Option<u32>,
    /// Measure on the model itself, before a server is ready, how many executions at once and with how many threads each give most, and
    /// run it that way. Takes some seconds at every start.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub autotune: bool,
    /// How long loading a fetched model and running it for the first time may take before the server gives up and says so;
    /// `4m` when absent. Set it below `rollout.progressDeadline`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]{1,6}(s|m)$') && duration(self) >= duration('1s') && duration(self) <= duration('24h')")
        .message("loadTimeout must be a duration from 1s to 1440m such as 4m"))]
    pub load_timeout: Option<String>,
    /// A ServiceAccount in the same namespace that the pods run as, for the identity that a cloud ties to it (IAM roles for
    /// service accounts, workload identity). No token of the Kubernetes API is mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new(IS_NAME)
        .message("serviceAccountName must be a ServiceAccount's name: a-z, 0-9, '-' and '.'"))]
    pub service_account_name: Option<String>,
    /// Memory for answers, as in `64Mi`: a request with exactly the same inputs as one before is given its answer again, and the
    /// model does not run. Part of `resources.limits.memory`. Without it the model runs for every request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("isQuantity(string(self)) && quantity(string(self)).compareTo(quantity('64Ki')) >= 0 && quantity(string(self)).compareTo(quantity('1Ti')) <= 0")
        .message("responseCache must be a quantity from 64Ki to 1Ti such as 64Mi"))]
    pub response_cache: Option<Quantity>,
    /// A Secret in the same namespace whose values are SHA-256 sums of API keys, in hexadecimal, one a line. Requests without one
    /// of these keys (`Authorization: Bearer KEY` or `x-api-key: KEY`) are refused, but for those about health. Mounted
    /// into the pods; the operator never reads it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new(IS_NAME)
        .message("apiKeysSecret must be a Secret's name: a-z, 0-9, '-' and '.'"))]
    pub api_keys_secret: Option<String>,
    /// TLS for REST (port 443 of the Service) and gRPC (port 8443), in the place of the ports without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// How much one client may ask of each server; clients are told apart by their API key where keys are wanted, else by their
    /// address. Requests beyond it are refused with 429. Without it there is no such limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_limit: Option<ClientLimit>,
    /// Traces of requests. Without it there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracing: Option<Tracing>,
    /// Lines in the log for single requests. Without it there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_log: Option<RequestLog>,
}

/// What a container asks for and may use.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    cel,
    validation = Rule::new("!has(self.requests) || !has(self.limits) || !has(self.requests.cpu) || !has(self.limits.cpu) || quantity(string(self.requests.cpu)).compareTo(quantity(string(self.limits.cpu))) <= 0")
        .message("requests.cpu must not be above limits.cpu"),
    validation = Rule::new("!has(self.requests) || !has(self.limits) || !has(self.requests.memory) || !has(self.limits.memory) || quantity(string(self.requests.memory)).compareTo(quantity(string(self.limits.memory))) <= 0")
        .message("requests.memory must not be above limits.memory")
)]
pub struct Resources {
    /// What the scheduler sets aside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<ResourceAmounts>,
    /// What the container cannot exceed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<ResourceAmounts>,
}

/// Amounts of CPU and memory.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(cel)]
pub struct ResourceAmounts {
    /// CPUs, as in `500m` or `2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("isQuantity(string(self)) && quantity(string(self)).isGreaterThan(quantity('0'))")
        .message("cpu must be a positive quantity such as 500m or 2"))]
    pub cpu: Option<Quantity>,
    /// Memory in bytes, as in `512Mi` or `2Gi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("isQuantity(string(self)) && quantity(string(self)).isGreaterThan(quantity('0'))")
        .message("memory must be a positive quantity such as 512Mi or 2Gi"))]
    pub memory: Option<Quantity>,
}

/// How requests are put together into batches.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(cel)]
pub struct Batching {
    /// The most rows executed at once; also the most that one request may bring. 1 switches batching off. Without it, as many as
    /// memory has room for, up to 256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65536), extend("format" = "int32"))]
    pub max_size: Option<u32>,
    /// How long a batch that is not full may wait for more rows while the server is free. `0s`: it never waits.
    #[serde(default = "default_max_delay")]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]{1,6}(ms|s)$') && duration(self) <= duration('10s')")
        .message("maxDelay must be a duration from 0s to 10s such as 2ms"))]
    pub max_delay: String,
}

impl Default for Batching {
    fn default() -> Self {
        Self { max_size: None, max_delay: default_max_delay() }
    }
}

fn default_max_delay() -> String {
    "0s".to_owned()
}

/// How many inference servers run.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    cel,
    validation = Rule::new("!has(self.maxReplicas) || self.minReplicas <= self.maxReplicas")
        .message("minReplicas must not be above maxReplicas"),
    validation = Rule::new("has(self.latency) == has(self.maxReplicas)")
        .message("latency and maxReplicas go together: a latency target needs to know how far it may scale, and without a target nothing scales")
)]
pub struct Scaling {
    /// The fewest servers.
    #[serde(default = "default_min_replicas")]
    #[schemars(range(min = 1, max = 1000), extend("format" = "int32"))]
    pub min_replicas: u32,
    /// The most servers; with `latency`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000), extend("format" = "int32"))]
    pub max_replicas: Option<u32>,
    /// The latency to keep, by adding and removing servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<LatencyTarget>,
}

impl Default for Scaling {
    fn default() -> Self {
        Self { min_replicas: default_min_replicas(), max_replicas: None, latency: None }
    }
}

fn default_min_replicas() -> u32 {
    1
}

/// How a changed model or server comes into service.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(cel)]
pub struct Rollout {
    /// Servers that come no further for so long count as stalled: `Stalled` is then `ProgressDeadlineExceeded`, and its
    /// message still holds the cause. They are tried again nevertheless. Longer than it takes to fetch and load the model.
    #[serde(default = "default_progress_deadline")]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]{1,6}(s|m)$') && duration(self) >= duration('1s') && duration(self) <= duration('24h')")
        .message("progressDeadline must be a duration from 1s to 1440m such as 5m"))]
    pub progress_deadline: String,
}

impl Default for Rollout {
    fn default() -> Self {
        Self { progress_deadline: default_progress_deadline() }
    }
}

fn default_progress_deadline() -> String {
    "5m".to_owned()
}

/// A latency to keep: of `quantile` of the requests, measured in the server from a request's arrival to its answer.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(cel)]
pub struct LatencyTarget {
    /// The share of requests that must be answered within `target`.
    #[serde(default)]
    pub quantile: Quantile,
    /// The duration within which they must be answered.
    #[x_kube(validation = Rule::new("self.matches('^[0-9]{1,6}(ms|s|m)$') && duration(self) > duration('0s')")
        .message("target must be a duration above zero such as 50ms or 2s"))]
    pub target: String,
}

/// The quantiles that can be a target.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum Quantile {
    /// Half of the requests.
    P50,
    /// 90 % of the requests.
    P90,
    /// 95 % of the requests.
    P95,
    /// 99 % of the requests.
    #[default]
    P99,
}
