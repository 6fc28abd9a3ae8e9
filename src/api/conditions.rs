//! The names of conditions and their reasons: the vocabulary of `kubectl describe`.

/// The model answers requests.
pub const READY: &str = "Ready";
/// The model's bytes were fetched and are the right ones.
pub const ARTIFACT_RESOLVED: &str = "ArtifactResolved";
/// The runtime has loaded the model and warmed it up.
pub const MODEL_LOADED: &str = "ModelLoaded";
/// As many servers answer as there should be.
pub const WORKLOAD_AVAILABLE: &str = "WorkloadAvailable";
/// The Service that leads to the servers exists.
pub const ROUTE_READY: &str = "RouteReady";
/// The number of servers follows the observed latency.
pub const SCALING_ACTIVE: &str = "ScalingActive";

/// Present while `spec` is being carried out (kstatus).
pub const RECONCILING: &str = "Reconciling";
/// Present while `spec` cannot be carried out without a person (kstatus).
pub const STALLED: &str = "Stalled";
/// Present while fewer or more servers run than the latency target asks for.
pub const SCALING_LIMITED: &str = "ScalingLimited";

/// Reasons that are not failure classes of the model server; those stand in `ortolan_protocol::failure`.
pub mod reason {
    /// Everything is as it should be.
    pub const SERVING: &str = "Serving";
    /// Nothing is known yet.
    pub const PENDING: &str = "Pending";
    /// Servers are starting.
    pub const STARTING: &str = "Starting";
    /// A new revision is replacing the stable one.
    pub const ROLLING_OUT: &str = "RollingOut";
    /// A server has the model loaded, and has not told yet which bytes it found.
    pub const RESOLVING: &str = "Resolving";
    /// The digest was given and is checked, or was found.
    pub const RESOLVED: &str = "Resolved";
    /// Servers of one revision fetched different bytes.
    pub const DIGEST_CHANGED: &str = "DigestChanged";
    /// A server has the model loaded.
    pub const LOADED: &str = "Loaded";
    /// All servers answer.
    pub const AVAILABLE: &str = "Available";
    /// Some servers answer, but fewer than there should be.
    pub const DEGRADED: &str = "Degraded";
    /// No server answers.
    pub const UNAVAILABLE: &str = "Unavailable";
    /// The Service exists.
    pub const SERVICE_READY: &str = "ServiceReady";
    /// Latency decides on the number of servers.
    pub const FOLLOWING_LATENCY: &str = "FollowingLatency";
    /// There is no latency target, so the number is fixed.
    pub const FIXED: &str = "Fixed";
    /// Servers do not tell their numbers; the number of servers is held.
    pub const NO_OBSERVATIONS: &str = "NoObservations";
    /// More servers are needed than `maxReplicas` allows.
    pub const MAX_REPLICAS: &str = "MaxReplicas";
    /// One execution takes longer than the target: no number of servers can meet it.
    pub const TARGET_OUT_OF_REACH: &str = "TargetOutOfReach";
    /// A pod could not be placed on a node.
    pub const UNSCHEDULABLE: &str = "Unschedulable";
    /// The container's image could not be had.
    pub const IMAGE_UNAVAILABLE: &str = "ImageUnavailable";
    /// The container was killed for its use of memory.
    pub const OUT_OF_MEMORY: &str = "OutOfMemory";
    /// The container ends again and again.
    pub const CRASH_LOOP: &str = "CrashLoop";
    /// The kubelet stopped the container because it did not answer its liveness probe.
    pub const NOT_ALIVE: &str = "LivenessProbeFailed";
    /// The container runs and does not answer its readiness probe.
    pub const NOT_READY: &str = "ReadinessProbeFailed";
    /// The container cannot be made, for none of the reasons that have their own name.
    pub const CONTAINER_NOT_CREATED: &str = "ContainerNotCreated";
    /// A ConfigMap that the pod mounts does not exist.
    pub const CONFIG_MAP_NOT_FOUND: &str = "ConfigMapNotFound";
    /// A Secret that the pod mounts does not exist.
    pub const SECRET_NOT_FOUND: &str = "SecretNotFound";
    /// A ConfigMap or Secret that the pod mounts lacks the key.
    pub const KEY_NOT_FOUND: &str = "KeyNotFound";
    /// A PersistentVolumeClaim that the pod mounts does not exist.
    pub const CLAIM_NOT_FOUND: &str = "ClaimNotFound";
    /// A PersistentVolumeClaim that the pod mounts has no volume.
    pub const CLAIM_UNBOUND: &str = "ClaimUnbound";
    /// A volume of the pod cannot be mounted.
    pub const VOLUME_NOT_MOUNTED: &str = "VolumeNotMounted";
    /// The node took its resources back.
    pub const EVICTED: &str = "Evicted";
    /// A pod of higher priority took the place.
    pub const PREEMPTED: &str = "Preempted";
    /// The pod's node does not answer.
    pub const NODE_LOST: &str = "NodeLost";
    /// A ResourceQuota does not let pods be created.
    pub const QUOTA_EXCEEDED: &str = "QuotaExceeded";
    /// Pod Security, a LimitRange, a policy or a webhook does not let pods be created.
    pub const ADMISSION_REFUSED: &str = "AdmissionRefused";
    /// The API server refused to create pods, for another reason.
    pub const PODS_REFUSED: &str = "PodsRefused";
    /// The servers were not ready in time.
    pub const PROGRESS_DEADLINE: &str = "ProgressDeadlineExceeded";
    /// The spec could not be read.
    pub const INVALID_SPEC: &str = "InvalidSpec";
    /// A write to the API server failed.
    pub const APPLY_FAILED: &str = "ApplyFailed";
}
