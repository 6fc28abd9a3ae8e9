//! The Deployment of one revision: identical inference servers.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment},
        core::v1::{
            Capabilities, Container, EmptyDirVolumeSource, HTTPGetAction, PodSecurityContext, PodSpec, PodTemplateSpec,
            Probe, ResourceRequirements, SeccompProfile, SecurityContext, Volume, VolumeMount,
        },
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use ortolan_protocol::ports;

use super::{
    Renderer, Snapshot,
    access::{self, MODEL_VOLUME, Mounted},
    metadata,
    ports::container_ports,
    scheduling::placed,
    telemetry,
};
use crate::api::{
    ResourceAmounts, Resources, names,
    validated::{DesiredModel, InvalidSpec, Source},
};

/// The user and group of the server's image.
const USER: i64 = 65532;
/// Where the server keeps a fetched model.
const CACHE: &str = "/cache";
/// Seconds for which a stopping server goes on answering while clients and kube-proxy learn that it leaves.
const DRAIN_DELAY: i64 = 5;
/// Seconds that requests under way get after that.
const DRAIN_TIMEOUT: i64 = 25;

/// The Deployment of `revision` with `replicas` servers.
pub fn deployment(
    model: &DesiredModel,
    revision: &str,
    snapshot: &Snapshot,
    replicas: u32,
) -> Result<Deployment, InvalidSpec> {
    let labels = names::revision_labels(&model.name, names::DEFAULT_VARIANT, revision);
    let name = names::deployment(&model.name, names::DEFAULT_VARIANT, revision);
    let selector = LabelSelector { match_labels: Some(labels.clone()), ..LabelSelector::default() };
    let source = snapshot.spec.source()?;
    let pod = placed(pod(model, revision, snapshot, &source), &snapshot.spec.scheduling, &selector);
    let mut pod_labels = labels.clone();
    pod_labels.extend(access::labels(snapshot, &source));
    Ok(Deployment {
        metadata: metadata(model, name, labels),
        spec: Some(DeploymentSpec {
            replicas: i32::try_from(replicas).ok(),
            selector,
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::Int(1)),
                    max_unavailable: Some(IntOrString::Int(0)),
                }),
            }),
            progress_deadline_seconds: i32::try_from(model.progress_deadline.as_secs()).ok(),
            revision_history_limit: Some(1),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(pod_labels),
                    annotations: annotations(snapshot.renderer),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod),
            },
            ..DeploymentSpec::default()
        }),
        status: None,
    })
}

fn annotations(renderer: Renderer) -> Option<BTreeMap<String, String>> {
    (renderer >= Renderer::TRIAL).then(|| BTreeMap::from([("ortolan.dev/renderer".to_owned(), "trial".to_owned())]))
}

fn pod(model: &DesiredModel, revision: &str, snapshot: &Snapshot, source: &Source) -> PodSpec {
    let cache =
        Volume { name: "cache".to_owned(), empty_dir: Some(EmptyDirVolumeSource::default()), ..Volume::default() };
    let mounted = access::volumes(model, revision, snapshot, source);
    let container = container(model, revision, snapshot, (source, &mounted));
    let mut volumes = vec![cache];
    volumes.extend(mounted.into_iter().map(|mounted| mounted.volume));
    PodSpec {
        service_account_name: snapshot.spec.server.service_account_name.clone(),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(DRAIN_DELAY + DRAIN_TIMEOUT + 10),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            // A large volume is not walked at every start of a pod.
            fs_group_change_policy: Some("OnRootMismatch".to_owned()),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), ..SeccompProfile::default() }),
            ..PodSecurityContext::default()
        }),
        containers: vec![container],
        volumes: Some(volumes),
        ..PodSpec::default()
    }
}

fn container(
    model: &DesiredModel,
    revision: &str,
    snapshot: &Snapshot,
    (source, mounted): (&Source, &[Mounted]),
) -> Container {
    let cache = VolumeMount { name: "cache".to_owned(), mount_path: CACHE.to_owned(), ..VolumeMount::default() };
    let mut mounts = vec![cache];
    mounts.extend(mounted.iter().map(Mounted::mount));
    Container {
        name: names::CONTAINER.to_owned(),
        image: Some(snapshot.image.clone()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        args: Some(arguments(model, revision, snapshot, source)),
        env: telemetry::environment(model, &snapshot.spec.server),
        ports: Some(container_ports(snapshot)),
        resources: resources(&snapshot.spec.server.resources),
        readiness_probe: Some(probe("/readyz", 1, 5)),
        liveness_probe: Some(probe("/healthz", 10, 6)),
        // What the server leaves behind when it gives up; the tail of its log where it could not.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), ..Capabilities::default() }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}

fn arguments(model: &DesiredModel, revision: &str, snapshot: &Snapshot, source: &Source) -> Vec<String> {
    let server = &snapshot.spec.server;
    let uri = match source {
        Source::Http(uri) | Source::Object { uri, .. } | Source::Registry(uri) | Source::Hub(uri) => uri.clone(),
        Source::Image(path) => format!("file://{path}"),
        Source::Claim { path, .. } => format!("file://{MODEL_VOLUME}/{path}"),
        Source::ConfigMap { key, .. } => format!("file://{MODEL_VOLUME}/{key}"),
    };
    let mut arguments = vec![
        "serve".to_owned(),
        format!("--model={uri}"),
        format!("--format={}", snapshot.spec.model.format.as_str()),
        format!("--name={}", model.name),
        format!("--revision={revision}"),
    ];
    arguments.extend(server.batching.max_size.map(|rows| format!("--max-batch-size={rows}")));
    arguments.extend([
        format!("--max-batch-delay={}", server.batching.max_delay),
        format!("--cache-dir={CACHE}"),
        format!("--drain-delay={DRAIN_DELAY}s"),
        format!("--drain-timeout={DRAIN_TIMEOUT}s"),
    ]);
    arguments.extend(snapshot.spec.model.sha256.as_ref().map(|digest| format!("--sha256={digest}")));
    arguments.extend(server.threads.map(|threads| format!("--threads={threads}")));
    arguments.extend(server.instances.map(|instances| format!("--instances={instances}")));
    arguments.extend(server.autotune.then(|| "--autotune".to_owned()));
    let cache = server.response_cache.as_ref().and_then(crate::api::Quantity::bytes);
    arguments.extend(cache.map(|bytes| format!("--response-cache={bytes}")));
    arguments.extend(server.load_timeout.as_ref().map(|timeout| format!("--load-timeout={timeout}")));
    arguments.extend(access::arguments(snapshot, source));
    arguments.extend(telemetry::arguments(server));
    arguments
}

fn probe(path: &str, period: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::Int(i32::from(ports::OPERATIONS)),
            scheme: Some("HTTP".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(2),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

fn resources(resources: &Resources) -> Option<ResourceRequirements> {
    let amounts = |amounts: &Option<ResourceAmounts>| -> Option<BTreeMap<String, Quantity>> {
        let ResourceAmounts { cpu, memory } = amounts.as_ref()?;
        let named = [("cpu", cpu), ("memory", memory)];
        let amounts: BTreeMap<_, _> = named
            .into_iter()
            .filter_map(|(name, amount)| Some((name.to_owned(), Quantity(amount.as_ref()?.0.clone()))))
            .collect();
        (!amounts.is_empty()).then_some(amounts)
    };
    let (requests, limits) = (amounts(&resources.requests), amounts(&resources.limits));
    (requests.is_some() || limits.is_some()).then(|| ResourceRequirements {
        requests,
        limits,
        ..ResourceRequirements::default()
    })
}
