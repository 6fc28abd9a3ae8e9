//! The parsed form of a ModelDeployment: what the rest of the operator works with, checked once.
//!
//! The schema's rules let nothing through that fails here, but an object may be older than its rules: every failure has
//! a sentence for the `InvalidSpec` condition.

use std::{fmt::Write, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Model, ModelDeployment, ModelDeploymentSpec, Quantile, Quantity, Scaling, Scheduling, Server};

/// A field that does not hold what it must. The message names the field, what was expected and what came.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidSpec {
    /// An object without a name, namespace or UID: not one that the API server gave out.
    #[error("the object has no {0}")]
    Incomplete(&'static str),
    /// A duration that is none.
    #[error("{field} must be a duration such as 50ms or 2s, but is {value:?}")]
    Duration {
        /// The path of the field.
        field: &'static str,
        /// What stands there.
        value: String,
    },
    /// An amount of memory that is none.
    #[error("{field} must be a quantity such as 64Mi, but is {value:?}")]
    Memory {
        /// The path of the field.
        field: &'static str,
        /// What stands there.
        value: String,
    },
    /// A fraction that is none.
    #[error("{field} must be a fraction from 0 to 1 such as \"0.01\", but is {value:?}")]
    Fraction {
        /// The path of the field.
        field: &'static str,
        /// What stands there.
        value: String,
    },
    /// An endpoint of traces that is none. It is not told: it may hold a password.
    #[error("spec.server.tracing.endpoint must be http://HOST:PORT or https://HOST:PORT, but is of another form")]
    Endpoint,
    /// A uri of a scheme that is not served.
    #[error(
        "spec.model.uri must be https://HOST/PATH, http://HOST/PATH, s3://BUCKET/KEY, gs://BUCKET/KEY, az://CONTAINER/KEY, oci://HOST/REPOSITORY:TAG, hf://OWNER/NAME/PATH, pvc://CLAIM/PATH, configmap://NAME/KEY or file:///PATH, but is of another form"
    )]
    Uri,
}

/// A ModelDeployment after parsing.
#[derive(Clone, Debug)]
pub struct DesiredModel {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// The reference that children carry.
    pub owner: OwnerReference,
    /// What a pod would run.
    pub revision: RevisionSpec,
    /// How many pods, and why.
    pub scaling: ScalingGoal,
    /// How long servers may come no further.
    pub progress_deadline: Duration,
}

impl DesiredModel {
    /// Parses an object as the API server gave it out.
    pub fn parse(object: &ModelDeployment) -> Result<Self, InvalidSpec> {
        Ok(Self {
            name: object.meta().name.clone().ok_or(InvalidSpec::Incomplete("name"))?,
            namespace: object.namespace().ok_or(InvalidSpec::Incomplete("namespace"))?,
            uid: object.uid().ok_or(InvalidSpec::Incomplete("uid"))?,
            generation: object.meta().generation.unwrap_or_default(),
            owner: object.controller_owner_ref(&()).ok_or(InvalidSpec::Incomplete("uid"))?,
            revision: RevisionSpec::parse(&object.spec)?,
            scaling: ScalingGoal::parse(&object.spec)?,
            progress_deadline: parse_duration("spec.rollout.progressDeadline", &object.spec.rollout.progress_deadline)?,
        })
    }
}

/// The part of `spec` that a pod depends on: its hash is the revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevisionSpec {
    /// The model.
    pub model: Model,
    /// The server's settings.
    pub server: Server,
    /// Where its pods may run.
    #[serde(default, skip_serializing_if = "Scheduling::is_default")]
    pub scheduling: Scheduling,
}

impl RevisionSpec {
    fn parse(spec: &ModelDeploymentSpec) -> Result<Self, InvalidSpec> {
        Source::parse(&spec.model.uri)?;
        parse_duration(MAX_DELAY, &spec.server.batching.max_delay)?;
        spec.server.load_timeout.as_ref().map(|text| parse_duration("spec.server.loadTimeout", text)).transpose()?;
        spec.server
            .response_cache
            .as_ref()
            .map(|amount| parse_memory("spec.server.responseCache", amount))
            .transpose()?;
        check_telemetry(&spec.server)?;
        Ok(Self { model: spec.model.clone(), server: spec.server.clone(), scheduling: spec.scheduling.clone() })
    }

    /// Ten hexadecimal digits that name this revision; equal for equal content.
    pub fn hash(&self) -> String {
        // serde_json writes struct fields in their order and these types hold only sorted maps: the text is canonical.
        let text = serde_json::to_vec(self).unwrap_or_default();
        let digest = Sha256::digest(&text);
        hex(&digest[..5])
    }

    /// Where the model's bytes come from.
    pub fn source(&self) -> Result<Source, InvalidSpec> {
        Source::parse(&self.model.uri)
    }
}

/// Where a model's bytes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Fetched over HTTP by the server: the url.
    Http(String),
    /// Fetched from an object store by the server.
    Object {
        /// Whose.
        store: ObjectStore,
        /// The uri.
        uri: String,
    },
    /// Fetched from a registry by the server: the uri.
    Registry(String),
    /// Fetched from the Hugging Face Hub by the server: the uri.
    Hub(String),
    /// A file in a volume of the same namespace.
    Claim {
        /// The PersistentVolumeClaim.
        name: String,
        /// The path inside the volume, without a leading slash.
        path: String,
    },
    /// A key of a ConfigMap of the same namespace.
    ConfigMap {
        /// The ConfigMap.
        name: String,
        /// The key, binary or text.
        key: String,
    },
    /// A file in the server's image: the absolute path.
    Image(String),
}

/// The kinds of object stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectStore {
    /// S3, or something that speaks like it.
    S3,
    /// Google Cloud Storage.
    Google,
    /// Azure Blob Storage.
    Azure,
}

impl Source {
    /// Parses `spec.model.uri`.
    pub fn parse(uri: &str) -> Result<Self, InvalidSpec> {
        let (scheme, rest) = uri.split_once("://").ok_or(InvalidSpec::Uri)?;
        let parts = || rest.split_once('/').filter(|(name, path)| !name.is_empty() && !path.is_empty());
        if rest.split('/').any(|part| part == "..") {
            return Err(InvalidSpec::Uri);
        }
        let object = |store| parts().map(|_| Self::Object { store, uri: uri.to_owned() });
        match scheme {
            "s3" => object(ObjectStore::S3),
            "gs" => object(ObjectStore::Google),
            "az" => object(ObjectStore::Azure),
            "oci" | "oci+http" => parts().map(|_| Self::Registry(uri.to_owned())),
            "hf" => parts().map(|_| Self::Hub(uri.to_owned())),
            "http" | "https" => parts().map(|_| Self::Http(uri.to_owned())),
            "pvc" => parts().map(|(name, path)| Self::Claim { name: name.to_owned(), path: path.to_owned() }),
            "configmap" => parts().map(|(name, key)| Self::ConfigMap { name: name.to_owned(), key: key.to_owned() }),
            "file" => (rest.len() > 1 && rest.starts_with('/')).then(|| Self::Image(rest.to_owned())),
            _ => None,
        }
        .ok_or(InvalidSpec::Uri)
    }
}

const MAX_DELAY: &str = "spec.server.batching.maxDelay";

/// How many servers there should be.
#[derive(Clone, Debug, PartialEq)]
pub enum ScalingGoal {
    /// As many as a person or another autoscaler says.
    Fixed(u32),
    /// As many as the latency target needs.
    Latency {
        /// The fewest.
        min: u32,
        /// The most.
        max: u32,
        /// The share of requests, between 0 and 1.
        quantile: f64,
        /// The time within which they must be answered.
        target: Duration,
        /// How long a batch may wait for more rows.
        batch_delay: Duration,
    },
}

impl ScalingGoal {
    fn parse(spec: &ModelDeploymentSpec) -> Result<Self, InvalidSpec> {
        let Scaling { min_replicas: min, max_replicas, latency } = &spec.scaling;
        match latency {
            None => Ok(Self::Fixed(spec.replicas.max(*min))),
            Some(latency) => Ok(Self::Latency {
                min: *min,
                max: max_replicas.unwrap_or(*min).max(*min),
                quantile: match latency.quantile {
                    Quantile::P50 => 0.5,
                    Quantile::P90 => 0.9,
                    Quantile::P95 => 0.95,
                    Quantile::P99 => 0.99,
                },
                target: parse_duration("spec.scaling.latency.target", &latency.target)?,
                batch_delay: parse_duration(MAX_DELAY, &spec.server.batching.max_delay)?,
            }),
        }
    }

    /// The number of servers to begin with, before anything was observed.
    pub fn initial(&self) -> u32 {
        match self {
            Self::Fixed(replicas) => *replicas,
            Self::Latency { min, .. } => *min,
        }
    }

    /// `replicas` inside what this goal allows.
    pub fn clamp(&self, replicas: u32) -> u32 {
        match self {
            Self::Fixed(fixed) => *fixed,
            Self::Latency { min, max, .. } => replicas.clamp(*min, *max),
        }
    }
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Parses an amount of memory, in bytes.
fn parse_memory(field: &'static str, amount: &Quantity) -> Result<u64, InvalidSpec> {
    amount.bytes().ok_or_else(|| InvalidSpec::Memory { field, value: amount.0.clone() })
}

fn check_telemetry(server: &Server) -> Result<(), InvalidSpec> {
    if let Some(log) = &server.request_log {
        parse_fraction("spec.server.requestLog.sampleRatio", &log.sample_ratio)?;
    }
    let Some(tracing) = &server.tracing else { return Ok(()) };
    parse_fraction("spec.server.tracing.sampleRatio", &tracing.sample_ratio)?;
    let address = ["http://", "https://"].into_iter().find_map(|scheme| tracing.endpoint.strip_prefix(scheme));
    let host = address.and_then(|address| address.split(['/', '?', '#']).next());
    host.filter(|host| !host.is_empty() && !host.contains('@')).map(|_| ()).ok_or(InvalidSpec::Endpoint)
}

/// Parses a fraction, from 0 to 1.
fn parse_fraction(field: &'static str, text: &str) -> Result<f64, InvalidSpec> {
    let fraction = text.parse().ok().filter(|fraction| (0.0..=1.0).contains(fraction));
    fraction.ok_or_else(|| InvalidSpec::Fraction { field, value: text.to_owned() })
}

/// Parses a number with one unit of `ms`, `s`, `m`.
fn parse_duration(field: &'static str, text: &str) -> Result<Duration, InvalidSpec> {
    let invalid = || InvalidSpec::Duration { field, value: text.to_owned() };
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(invalid)?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| invalid())?;
    let milliseconds = match unit {
        "ms" => number,
        "s" => number.saturating_mul(1000),
        "m" => number.saturating_mul(60_000),
        _ => return Err(invalid()),
    };
    Ok(Duration::from_millis(milliseconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{LatencyTarget, RequestLog, Tracing};

    fn spec(uri: &str) -> ModelDeploymentSpec {
        serde_json::from_value(serde_json::json!({"model": {"uri": uri}})).unwrap()
    }

    #[test]
    fn every_kind_of_uri_is_told_apart() {
        let claim = Source::Claim { name: "models".into(), path: "digits/3/model.onnx".into() };
        let config_map = Source::ConfigMap { name: "digits".into(), key: "m.onnx".into() };
        for (uri, source) in [
            ("https://example.org/m.onnx", Source::Http("https://example.org/m.onnx".into())),
            ("pvc://models/digits/3/model.onnx", claim),
            ("configmap://digits/m.onnx", config_map),
            ("gs://models/m.onnx", Source::Object { store: ObjectStore::Google, uri: "gs://models/m.onnx".into() }),
            ("oci://r.example.org/m:1", Source::Registry("oci://r.example.org/m:1".into())),
            ("hf://org/digits@main/m.onnx", Source::Hub("hf://org/digits@main/m.onnx".into())),
            ("file:///models/m.onnx", Source::Image("/models/m.onnx".into())),
        ] {
            assert_eq!(Source::parse(uri).unwrap(), source);
        }
    }

    #[test]
    fn uris_of_other_forms_are_refused() {
        for uri in
            ["", "m.onnx", "ftp://h/m", "pvc://claim", "s3://b", "pvc:///m", "https://host", "file://m", "pvc://c/../m"]
        {
            assert_eq!(Source::parse(uri), Err(InvalidSpec::Uri), "{uri}");
        }
    }

    #[test]
    fn durations_have_one_unit() {
        let parse = |text| parse_duration("f", text);
        assert_eq!(parse("50ms"), Ok(Duration::from_millis(50)));
        assert_eq!(parse("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(parse("3m"), Ok(Duration::from_mins(3)));
        for text in ["", "5", "ms", "1.5s", "-1s", "5 s", "9999999999999999999999s"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_servers_tell_of_requests_is_checked_once_more() {
        let outcome = |server: serde_json::Value| {
            let spec = serde_json::json!({"model": {"uri": "https://h/m"}, "server": server});
            RevisionSpec::parse(&serde_json::from_value(spec).unwrap()).map(|_| ())
        };
        let tracing =
            |endpoint: &str, ratio: &str| serde_json::json!({"tracing": {"endpoint": endpoint, "sampleRatio": ratio}});
        for endpoint in ["http://collector:4318", "https://h/otlp/v2"] {
            assert_eq!(outcome(tracing(endpoint, "0.5")), Ok(()), "{endpoint}");
        }
        for endpoint in ["collector:4318", "http://", "http:///v1", "ftp://h", "http://me:word@h"] {
            assert_eq!(outcome(tracing(endpoint, "1")), Err(InvalidSpec::Endpoint), "{endpoint}");
        }
        for ratio in ["", "1.1", "-0.1", "half", "NaN"] {
            let log = serde_json::json!({"requestLog": {"sampleRatio": ratio}});
            for server in [log, tracing("http://h", ratio)] {
                assert!(matches!(outcome(server), Err(InvalidSpec::Fraction { .. })), "{ratio}");
            }
        }
    }

    #[test]
    fn the_hash_follows_what_a_pod_runs_and_nothing_else() {
        let plain = spec("https://h/m.onnx");
        let mut scaled = plain.clone();
        scaled.scaling.max_replicas = Some(7);
        scaled.scaling.latency = Some(LatencyTarget { quantile: Quantile::P99, target: "50ms".into() });
        scaled.rollout.progress_deadline = "10m".into();
        let mut larger = plain.clone();
        larger.server.batching.max_size = Some(64);
        let mut traced = plain.clone();
        traced.server.tracing = Some(Tracing { endpoint: "http://h:4318".into(), sample_ratio: "0.1".into() });
        let mut logged = plain.clone();
        logged.server.request_log = Some(RequestLog { sample_ratio: "0.1".into() });
        let mut placed = plain.clone();
        placed.scheduling.runtime_class_name = Some("gvisor".into());
        let hash = |spec: &ModelDeploymentSpec| RevisionSpec::parse(spec).unwrap().hash();
        assert_eq!(hash(&plain), hash(&scaled));
        assert_ne!(hash(&plain), hash(&larger));
        assert_ne!(hash(&plain), hash(&traced));
        assert_ne!(hash(&plain), hash(&logged));
        assert_ne!(hash(&plain), hash(&placed));
        let mut replaced = plain.clone();
        replaced.model.version = Some("2".into());
        assert_ne!(hash(&plain), hash(&replaced));
        assert_ne!(hash(&plain), hash(&spec("https://h/n.onnx")));
    }

    #[test]
    fn a_fixed_number_of_servers_is_never_below_the_fewest() {
        for (scale, servers) in [
            (serde_json::json!({}), 1),
            (serde_json::json!({"replicas": 3}), 3),
            (serde_json::json!({"scaling": {"minReplicas": 2}}), 2),
            (serde_json::json!({"replicas": 1, "scaling": {"minReplicas": 2}}), 2),
        ] {
            let mut spec = serde_json::json!({"model": {"uri": "https://h/m"}});
            spec.as_object_mut().unwrap().extend(scale.as_object().unwrap().clone());
            let goal = ScalingGoal::parse(&serde_json::from_value(spec).unwrap()).unwrap();
            assert_eq!(goal, ScalingGoal::Fixed(servers), "{scale}");
        }
    }

    /// A released hash never changes: a changed one would roll every model pod when the operator is upgraded.
    #[test]
    fn the_hash_of_a_released_revision_is_pinned() {
        let mut spec = spec("https://h/m.onnx");
        // When it was released, the schema filled this in.
        spec.server.batching.max_size = Some(32);
        assert_eq!(RevisionSpec::parse(&spec).unwrap().hash(), "a36f47102e");
    }
}
