//! Volumes: claims, ConfigMaps and Secrets that are missing, and what cannot be mounted.

use k8s_openapi::api::core::v1::{Event, KeyToPath, SecretVolumeSource, Volume};

use super::{Problem, Subject, scheduling, words, workload};
use crate::api::conditions::reason;

/// A claim that the scheduler does not find.
pub(super) fn claim_missing(subject: &Subject<'_>) -> Option<Problem> {
    let why = scheduling::refusal(subject)?;
    if !why.contains("persistentvolumeclaim") || !why.contains("not found") {
        return None;
    }
    let claim = words::quoted_after(why, "persistentvolumeclaim ").or_else(|| claims(subject).next())?;
    let message = format!(
        "pod {} waits for PersistentVolumeClaim {claim}, which does not exist in this namespace. Create it, or change \
         spec.model.uri",
        subject.name
    );
    Some(workload(reason::CLAIM_NOT_FOUND, message))
}

/// A claim that is there and has no volume.
pub(super) fn claim_unbound(subject: &Subject<'_>) -> Option<Problem> {
    let why = scheduling::refusal(subject)?;
    let texts = [
        "unbound immediate PersistentVolumeClaims",
        "available persistent volumes to bind",
        "bound to non-existent pv",
    ];
    if !texts.iter().any(|text| why.contains(text)) {
        return None;
    }
    let claim = claims(subject).next()?;
    // What the volume's own controller says about the claim is closer to the cause than the scheduler's words.
    let own = last_words(subject, claim).map(|text| format!(": {}", words::plain(text))).unwrap_or_default();
    let message = format!(
        "pod {} waits for PersistentVolumeClaim {claim}, which has no volume{own}. Create a volume that fits it, or check its \
         storageClassName; the scheduler says: {}",
        subject.name,
        words::plain(why)
    );
    Some(workload(reason::CLAIM_UNBOUND, message))
}

/// The latest Event about a claim.
fn last_words<'a>(subject: &Subject<'a>, claim: &str) -> Option<&'a str> {
    let about = |event: &&Event| {
        let object = &event.involved_object;
        object.kind.as_deref() == Some("PersistentVolumeClaim") && object.name.as_deref() == Some(claim)
    };
    let latest =
        subject.sight.events.iter().filter(about).max_by_key(|event| event.last_timestamp.as_ref().map(|time| time.0));
    latest?.message.as_deref()
}

/// The claims that a pod mounts.
fn claims<'a>(subject: &Subject<'a>) -> impl Iterator<Item = &'a str> + use<'a> {
    volumes(subject).filter_map(|volume| Some(volume.persistent_volume_claim.as_ref()?.claim_name.as_str()))
}

fn volumes<'a>(subject: &Subject<'a>) -> impl Iterator<Item = &'a Volume> + use<'a> {
    subject.pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten())
}

/// A ConfigMap, a Secret or a key in one that a volume is made from.
pub(super) fn object_missing(subject: &Subject<'_>) -> Option<Problem> {
    subject.said("FailedMount").into_iter().find_map(|why| missing(subject, why))
}

/// What is missing, by the kubelet's words.
pub(super) fn missing(subject: &Subject<'_>, why: &str) -> Option<Problem> {
    let pod = subject.name;
    let absent = why.contains("not found");
    if let Some(name) = words::quoted_after(why, "configmap ").filter(|_| absent) {
        let text = format!(
            "pod {pod} waits for ConfigMap {name}, which does not exist in this namespace. Create it, or change spec.model.uri"
        );
        return Some(workload(reason::CONFIG_MAP_NOT_FOUND, text));
    }
    if let Some(name) = words::quoted_after(why, "secret ").filter(|_| absent) {
        let place = secret_volume(subject, |secret| secret.secret_name.as_deref() == Some(name)).map_or("", field);
        let text = format!(
            "pod {pod} waits for Secret {name}, which does not exist in this namespace. Create it, or name another{place}"
        );
        return Some(workload(reason::SECRET_NOT_FOUND, text));
    }
    let (kind, key) = ["config", "secret"].into_iter().find_map(|kind| {
        let (_, key) = why.split_once(&format!("references non-existent {kind} key: "))?;
        Some((kind, key.split_whitespace().next()?))
    })?;
    let kind = if kind == "config" { "ConfigMap" } else { "Secret" };
    let (holder, place) = holder(subject, kind, key).unwrap_or_default();
    let object = if holder.is_empty() { format!("its {kind}") } else { format!("{kind} {holder}") };
    let message =
        format!("pod {pod} waits for key {key} of {object}, which has no such key. Add it, or name another{place}");
    Some(workload(reason::KEY_NOT_FOUND, message))
}

/// The ConfigMap or Secret of which a pod mounts that key, and where it is named.
fn holder<'a>(subject: &Subject<'a>, kind: &str, key: &str) -> Option<(&'a str, &'static str)> {
    let has_key = |items: &Option<Vec<KeyToPath>>| items.iter().flatten().any(|item| item.key == key);
    if kind == "ConfigMap" {
        let mut maps = volumes(subject).filter_map(|volume| volume.config_map.as_ref());
        return maps.find(|map| has_key(&map.items)).map(|map| (&*map.name, ""));
    }
    let volume = secret_volume(subject, |secret| has_key(&secret.items))?;
    Some((volume.secret.as_ref()?.secret_name.as_deref()?, field(volume)))
}

fn secret_volume<'a>(subject: &Subject<'a>, is_it: impl Fn(&SecretVolumeSource) -> bool) -> Option<&'a Volume> {
    volumes(subject).find(|volume| volume.secret.as_ref().is_some_and(&is_it))
}

/// Where the Secret of one of our volumes is named, as a sentence goes on.
fn field(volume: &Volume) -> &'static str {
    match &*volume.name {
        "credentials" => " in spec.model.credentialsSecret",
        "api-keys" => " in spec.server.apiKeysSecret",
        "tls" => " in spec.server.tls.certificateSecret",
        "client-ca" => " in spec.server.tls.clientCASecret",
        _ => "",
    }
}

pub(super) fn not_mounted(subject: &Subject<'_>) -> Option<Problem> {
    let why = ["FailedMount", "FailedAttachVolume", "FailedMapVolume"]
        .iter()
        .find_map(|reason| subject.said(reason).first().copied())?;
    // "MountVolume.SetUp failed for volume "x" : …"
    let volume = words::quoted_after(why, "volume ").unwrap_or("model");
    let cause = why.split_once(" : ").map_or(why, |(_, cause)| cause);
    let claim = claims(subject).next().map(|claim| format!(" (PersistentVolumeClaim {claim})")).unwrap_or_default();
    let message = format!(
        "pod {}: volume {volume}{claim} cannot be mounted: {}. Check the volume and that its node reaches it",
        subject.name,
        words::plain(cause)
    );
    Some(workload(reason::VOLUME_NOT_MOUNTED, message))
}
