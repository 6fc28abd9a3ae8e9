//! Generated files are what the present code generates. `make generate` writes them anew.

use ortolan::api::definition;

#[test]
fn the_custom_resource_definition_is_the_one_of_the_code() {
    let committed = include_str!("../crds/ortolan.dev_modeldeployments.yaml");
    let generated = serde_yaml::to_string(&definition()).unwrap();
    assert!(committed == generated, "crds/ is not what the code says: run `make generate` and commit the result");
}

/// `kubectl apply` keeps a copy in an annotation, which may not be above 256 KiB.
#[test]
fn the_custom_resource_definition_stays_small() {
    let size = serde_json::to_vec(&definition()).unwrap().len();
    assert!(size < 100_000, "{size} bytes");
}

/// Whatever is named is in the ModelDeployment's own namespace, and a pod is never described freely.
#[test]
fn no_field_names_a_namespace_or_holds_a_pod() {
    fn names(schema: &serde_json::Value, found: &mut Vec<String>) {
        match schema {
            serde_json::Value::Object(map) => {
                found.extend(
                    map.get("properties")
                        .and_then(|inner| inner.as_object())
                        .into_iter()
                        .flat_map(|inner| inner.keys().cloned()),
                );
                map.values().for_each(|inner| names(inner, found));
            }
            serde_json::Value::Array(list) => list.iter().for_each(|inner| names(inner, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    names(&serde_json::to_value(definition()).unwrap(), &mut found);
    assert!(found.iter().any(|name| name == "scheduling"));
    for name in found {
        let name = name.to_lowercase();
        assert!(
            !["namespace", "podtemplate", "podspec", "containers"].iter().any(|word| name.contains(word)),
            "{name}"
        );
    }
}

/// The schema promises a structure without floats: they do not survive every client.
#[test]
fn the_schema_holds_no_floats() {
    let text = serde_json::to_string(&definition()).unwrap();
    assert!(!text.contains("\"type\":\"number\""));
}

/// Helm reads nothing outside the chart's folder.
#[test]
fn the_chart_holds_the_custom_resource_definition() {
    let committed = include_str!("../crds/ortolan.dev_modeldeployments.yaml");
    let copy = include_str!("../charts/ortolan/files/crds/ortolan.dev_modeldeployments.yaml");
    assert!(copy == committed, "the chart's copy of crds/ is another: run `make generate` and commit the result");
}

/// The chart and `kubectl apply -k deploy/` install the images of this version.
#[test]
fn chart_and_deploy_are_of_this_version() {
    let version = env!("CARGO_PKG_VERSION");
    let chart = include_str!("../charts/ortolan/Chart.yaml");
    for line in [format!("version: {version}"), format!("appVersion: {version}")] {
        assert!(chart.lines().any(|found| found == line), "Chart.yaml does not say `{line}`");
    }
    let deploy = include_str!("../deploy/ortolan.yaml");
    for image in ["ortolan", "ortolan-server"] {
        let image = format!("ghcr.io/ortolan/{image}:{version}\n");
        assert!(deploy.contains(&image), "deploy/ortolan.yaml does not hold {image}");
        assert!(chart.contains(&image), "Chart.yaml does not list {image}");
    }
}
