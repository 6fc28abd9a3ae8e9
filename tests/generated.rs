//! Generated files are what the present code generates. `make generate` writes them anew.

use kube::CustomResourceExt;
use ortolan::api::ModelDeployment;

#[test]
fn the_custom_resource_definition_is_the_one_of_the_code() {
    let committed = include_str!("../crds/ortolan.dev_modeldeployments.yaml");
    let generated = serde_yaml::to_string(&ModelDeployment::crd()).unwrap();
    assert!(committed == generated, "crds/ is not what the code says: run `make generate` and commit the result");
}

/// `kubectl apply` keeps a copy in an annotation, which may not be above 256 KiB.
#[test]
fn the_custom_resource_definition_stays_small() {
    let size = serde_json::to_vec(&ModelDeployment::crd()).unwrap().len();
    assert!(size < 100_000, "{size} bytes");
}

/// The schema promises a structure without floats: they do not survive every client.
#[test]
fn the_schema_holds_no_floats() {
    let text = serde_json::to_string(&ModelDeployment::crd()).unwrap();
    assert!(!text.contains("\"type\":\"number\""));
}

/// `kubectl apply -k deploy/` installs the images of this version.
#[test]
fn deploy_names_the_images_of_this_version() {
    let operator = include_str!("../deploy/operator.yaml");
    for image in ["ortolan", "ortolan-server"] {
        let image = format!("ghcr.io/ortolan/{image}:{}\n", env!("CARGO_PKG_VERSION"));
        assert!(operator.contains(&image), "deploy/operator.yaml does not hold {image}");
    }
}
