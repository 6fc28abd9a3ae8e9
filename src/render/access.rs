//! What a pod is given besides its settings: the volumes with the model, its credentials, the API keys, certificates and the digest
//! lock, and the identity that it runs as.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, KeyToPath, PersistentVolumeClaimVolumeSource, SecretVolumeSource, Volume, VolumeMount,
};

use super::{Snapshot, lock};
use crate::api::{
    names,
    validated::{DesiredModel, ObjectStore, Source},
};

/// Where a volume with the model is mounted.
pub(super) const MODEL_VOLUME: &str = "/model";
/// Where the keys of the credentials Secret are mounted.
const CREDENTIALS: &str = "/credentials";
/// Where the hashes of API keys are mounted.
const API_KEYS: &str = "/api-keys";
/// Where the servers' certificate and its key are mounted.
const TLS: &str = "/tls";
/// Where the authorities of clients' certificates are mounted.
const CLIENT_CA: &str = "/client-ca";
/// Where the digest lock is mounted.
const LOCK: &str = "/lock";
/// Readable by the server's group alone.
const SECRET_MODE: i32 = 0o440;

/// A volume and where it is mounted, read-only.
pub(super) struct Mounted {
    pub volume: Volume,
    path: &'static str,
}

impl Mounted {
    pub fn mount(&self) -> VolumeMount {
        VolumeMount {
            name: self.volume.name.clone(),
            mount_path: self.path.to_owned(),
            read_only: Some(true),
            ..VolumeMount::default()
        }
    }
}

/// The volumes that a revision's pods read from.
pub(super) fn volumes(model: &DesiredModel, revision: &str, snapshot: &Snapshot, source: &Source) -> Vec<Mounted> {
    let mut mounted = Vec::new();
    mounted.extend(model_volume(source).map(|volume| Mounted { volume, path: MODEL_VOLUME }));
    let spec = &snapshot.spec;
    let secrets = [
        ("credentials", CREDENTIALS, &spec.model.credentials_secret),
        ("api-keys", API_KEYS, &spec.server.api_keys_secret),
    ];
    for (name, path, secret) in secrets {
        mounted.extend(secret.as_ref().map(|secret| Mounted { volume: secret_volume(name, secret, None), path }));
    }
    if let Some(tls) = &spec.server.tls {
        mounted.push(Mounted {
            volume: secret_volume("tls", &tls.certificate_secret, Some(&["tls.crt", "tls.key"])),
            path: TLS,
        });
        let authorities =
            tls.client_ca_secret.as_ref().map(|secret| secret_volume("client-ca", secret, Some(&["ca.crt"])));
        mounted.extend(authorities.map(|volume| Mounted { volume, path: CLIENT_CA }));
    }
    if snapshot.is_locked() {
        let volume = Volume {
            name: "lock".to_owned(),
            config_map: Some(ConfigMapVolumeSource {
                name: names::lock(&model.name, revision),
                // The first server starts without it.
                optional: Some(true),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        };
        mounted.push(Mounted { volume, path: LOCK });
    }
    mounted
}

/// A Secret's keys, each a file: one that is rotated reaches the pod. `keys`: these and no others, and the pod waits for one that is not
/// there; a Secret of an authority may hold the authority's own key. Without, all of them: which there are is for the server to say.
fn secret_volume(name: &str, secret: &str, keys: Option<&[&str]>) -> Volume {
    let item = |key: &&str| KeyToPath { key: (*key).to_owned(), path: (*key).to_owned(), mode: None };
    Volume {
        name: name.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret.to_owned()),
            default_mode: Some(SECRET_MODE),
            items: keys.map(|keys| keys.iter().map(item).collect()),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// The server's arguments about them.
pub(super) fn arguments(snapshot: &Snapshot, source: &Source) -> Vec<String> {
    let mut arguments = Vec::new();
    if snapshot.spec.model.credentials_secret.is_some() {
        arguments.push(format!("--credentials-dir={CREDENTIALS}"));
    }
    if snapshot.spec.server.api_keys_secret.is_some() {
        arguments.push(format!("--api-keys-dir={API_KEYS}"));
    }
    if let Some(tls) = &snapshot.spec.server.tls {
        arguments.push(format!("--tls-dir={TLS}"));
        arguments.extend(tls.client_ca_secret.as_ref().map(|_| format!("--tls-client-ca-dir={CLIENT_CA}")));
    }
    if let Some(limit) = &snapshot.spec.server.client_limit {
        arguments.push(format!("--client-requests-per-second={}", limit.requests_per_second));
        arguments.extend(limit.burst.map(|burst| format!("--client-burst={burst}")));
    }
    if snapshot.is_locked() {
        arguments.push(format!("--lock-file={LOCK}/{}", lock::KEY));
    }
    let google = matches!(source, Source::Object { store: ObjectStore::Google, .. });
    if google && snapshot.spec.server.service_account_name.is_some() {
        // Google's identity of a pod comes from the metadata service, which is asked for nobody else.
        arguments.push("--cloud-identity".to_owned());
    }
    arguments
}

/// Labels of the pods, besides those that they are selected by.
pub(super) fn labels(snapshot: &Snapshot, source: &Source) -> BTreeMap<String, String> {
    let azure = matches!(source, Source::Object { store: ObjectStore::Azure, .. });
    let mut labels = BTreeMap::new();
    if azure && snapshot.spec.server.service_account_name.is_some() {
        // What Azure's webhook looks for before it gives a pod its token.
        labels.insert("azure.workload.identity/use".to_owned(), "true".to_owned());
    }
    labels
}

/// The volume in which the model lies, where it does not come over the network or with the image.
fn model_volume(source: &Source) -> Option<Volume> {
    let volume = Volume { name: "model".to_owned(), ..Volume::default() };
    match source {
        Source::Http(_) | Source::Object { .. } | Source::Registry(_) | Source::Hub(_) | Source::Image(_) => None,
        Source::Claim { name, .. } => Some(Volume {
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: name.clone(),
                read_only: Some(true),
            }),
            ..volume
        }),
        Source::ConfigMap { name, key } => Some(Volume {
            config_map: Some(ConfigMapVolumeSource {
                name: name.clone(),
                items: Some(vec![KeyToPath { key: key.clone(), path: key.clone(), mode: None }]),
                ..ConfigMapVolumeSource::default()
            }),
            ..volume
        }),
    }
}
