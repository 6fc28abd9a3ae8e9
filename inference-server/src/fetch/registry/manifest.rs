//! What a manifest lists, and which of it is the model.
//!
//! Artifacts with models are made in several ways: files as they are, named by their titles (ORAS), or archives, as ModelPack and
//! KitOps make them. Both are taken. Container images are not: what they hold is a system, in layers that change each other.

use std::collections::BTreeMap;

use ortolan_protocol::failure::{Failure, FailureReason};
use serde::Deserialize;

use super::super::{failure, package};
use super::reference::hex_of;
use crate::inside::Inside;

/// What is accepted as a manifest.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json, \
                                 application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json";
/// Where a layer's name stands: ORAS's, and ModelPack's.
const TITLES: [&str; 2] = ["org.opencontainers.image.title", "org.cncf.model.filepath"];
/// How the names of archives end.
const PACKED: [&str; 4] = [".tar", ".tar.gz", ".tgz", ".zip"];
/// Where ORAS says that it packed a folder.
const UNPACK: &str = "io.deis.oras.content.unpack";
const ANY_FILE: &str = "application/vnd.oci.image.layer.v1.tar";
/// How the config of a container image is called.
const IMAGE_CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
/// Layers that are not the model, in ModelPack's and KitOps's words.
const OTHER_LAYERS: [&str; 3] = [".doc", ".code", ".dataset"];

/// A manifest, or a list of them.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Manifest {
    pub config: Option<Descriptor>,
    pub layers: Vec<Descriptor>,
    /// Of a list.
    pub manifests: Vec<Descriptor>,
}

/// Something that lies in the registry.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: String,
    #[serde(default)]
    pub size: u64,
    #[serde(default)]
    pub annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    /// The digest's hexadecimal digits.
    pub fn sha256(&self) -> Result<String, Failure> {
        hex_of(&self.digest).ok_or_else(|| unusable("a digest in its manifest is not a SHA-256"))
    }

    fn title(&self) -> Option<Inside> {
        TITLES.iter().find_map(|title| Inside::parse(self.annotation(title)?))
    }

    fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(name).map(String::as_str)
    }

    fn is_archive(&self) -> bool {
        if self.annotation(UNPACK) == Some("true") {
            return true;
        }
        // What ORAS calls a file whose type nobody told.
        if self.media_type == ANY_FILE && self.title().is_some() {
            return false;
        }
        ["tar", "tar+gzip", "tar.gzip", "tar+gz"].iter().any(|ending| self.media_type.ends_with(ending))
    }

    fn is_model(&self) -> bool {
        !OTHER_LAYERS.iter().any(|other| self.media_type.contains(other))
    }
}

/// The layers that the model is in.
#[derive(Debug)]
pub(super) enum Layers {
    /// Files by their names; the first of them is the model's.
    Files { model: (Inside, Descriptor), others: BTreeMap<Inside, Descriptor> },
    /// Archives, which are unpacked one over the other.
    Archives(Vec<Descriptor>),
}

impl Manifest {
    /// The one manifest of a list.
    pub fn only(&self) -> Result<&Descriptor, Failure> {
        match &self.manifests[..] {
            [only] => Ok(only),
            several => Err(unusable(&format!(
                "it is a list of {} manifests, and a model has one: name its digest with @sha256:…",
                several.len()
            ))),
        }
    }

    pub fn model(&self) -> Result<Layers, Failure> {
        if self.config.as_ref().is_some_and(|config| IMAGE_CONFIGS.contains(&config.media_type.as_str())) {
            return Err(unusable(
                "it is a container image: push the model's file as an artifact (oras push HOST/REPOSITORY:TAG model.onnx)",
            ));
        }
        let (archives, files): (Vec<_>, Vec<_>) =
            self.layers.iter().filter(|layer| layer.is_model()).cloned().partition(Descriptor::is_archive);
        let mut files: BTreeMap<Inside, Descriptor> =
            files.into_iter().filter_map(|layer| Some((layer.title()?, layer))).collect();
        let names: Vec<Inside> = files.keys().cloned().collect();
        match package::choose(super::ARTIFACT, &names).cloned() {
            Ok(name) => {
                let layer = files.remove(&name).ok_or_else(|| unusable("its manifest contradicts itself"))?;
                Ok(Layers::Files { model: (name, layer), others: files })
            }
            Err(_) if !archives.is_empty() => Ok(Layers::Archives(archives)),
            Err(failure) => match &self.layers[..] {
                // An artifact of one layer needs no title, and may be an archive that was pushed as a file.
                [only] if names.iter().all(|name| PACKED.iter().any(|ending| name.as_str().ends_with(ending))) => {
                    Ok(Layers::Files { model: (Inside::model(), only.clone()), others: BTreeMap::new() })
                }
                _ => Err(failure),
            },
        }
    }
}

pub(super) fn unusable(what: &str) -> Failure {
    failure(FailureReason::SourceInvalid, &format!("the artifact cannot be used: {what}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn manifest(config: &str, layers: &[(&str, Option<&str>)]) -> Manifest {
        let layers: Vec<_> = layers
            .iter()
            .map(|(media_type, title)| {
                let annotations = title.map(|title| json!({"org.opencontainers.image.title": title}));
                json!({"mediaType": media_type, "digest": format!("sha256:{}", "0".repeat(64)), "size": 1, "annotations": annotations})
            })
            .collect();
        let digest = format!("sha256:{}", "0".repeat(64));
        serde_json::from_value(
            json!({"schemaVersion": 2, "config": {"mediaType": config, "digest": digest, "size": 2}, "layers": layers}),
        )
        .unwrap()
    }

    const EMPTY: &str = "application/vnd.oci.empty.v1+json";
    const TAR: &str = "application/vnd.cncf.model.weight.v1.tar";

    #[test]
    fn a_model_is_a_file_among_files_or_lies_in_archives() {
        let files = manifest(
            EMPTY,
            &[("application/octet-stream", Some("w.bin")), ("x/y", Some("net.onnx")), ("x/y", Some("README.md"))],
        );
        let Layers::Files { model, others } = files.model().unwrap() else { panic!("no files") };
        assert_eq!(model.0.as_str(), "net.onnx");
        assert_eq!(others.keys().map(Inside::as_str).collect::<Vec<_>>(), ["README.md", "w.bin"]);
        let by_oras = manifest(EMPTY, &[(ANY_FILE, Some("model.onnx")), (ANY_FILE, Some("w.bin"))]);
        let Layers::Files { others, .. } = by_oras.model().unwrap() else { panic!("no files") };
        assert_eq!(others.len(), 1);
        for title in [None, Some("model.tar.gz")] {
            let Layers::Files { model, .. } = manifest(EMPTY, &[("x/y", title)]).model().unwrap() else {
                panic!("no files")
            };
            assert_eq!(model.0.as_str(), "model.onnx");
        }
        let packed =
            manifest(EMPTY, &[(TAR, Some("weights")), ("application/vnd.cncf.model.doc.v1.tar", Some("docs"))]);
        let Layers::Archives(archives) = packed.model().unwrap() else { panic!("no archives") };
        assert_eq!(archives.len(), 1);
    }

    #[test]
    fn what_holds_no_model_is_refused_with_what_it_is() {
        let words = |manifest: Manifest| manifest.model().unwrap_err().message;
        assert!(words(manifest(IMAGE_CONFIGS[0], &[(TAR, None)])).contains("container image"));
        assert!(words(manifest(EMPTY, &[])).contains("nothing in it"));
        assert!(words(manifest(EMPTY, &[("x/y", Some("net.pt"))])).contains("pickle"));
        assert!(words(manifest(EMPTY, &[("x/y", Some("a.onnx")), ("x/y", Some("b.onnx"))])).contains("several"));
    }
}
