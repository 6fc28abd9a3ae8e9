use super::*;

/// Metrics of everything that can be counted.
fn used() -> Metrics {
    let metrics = Metrics::default();
    metrics.leads();
    metrics.reconcile_begins();
    metrics.reconcile_begins();
    metrics.reconcile_begins();
    metrics.reconciled(0.01, Some("api"));
    metrics.reconciled(0.01, None);
    metrics.written("Service");
    metrics.watch_failed("Pod");
    metrics.scraped("ok", 0.002);
    metrics.decided(true);
    metrics.looked(0.02);
    metrics.watch_cache("Pod", || 7);
    metrics.watch_models(|| vec![sample("digits", true), sample("broken", false)]);
    metrics
}

fn sample(name: &str, ready: bool) -> ModelSample {
    let (namespace, name) = ("ml".to_owned(), name.to_owned());
    ModelSample { namespace, name, ready, stalled: !ready, limited: false, replicas: 2, desired: 3 }
}

/// What a request to the API server leaves behind.
async fn with_a_request(metrics: &Metrics) {
    use tower::{Layer, Service, service_fn};
    let answer = service_fn(|_: http::Request<()>| async { Ok::<_, std::io::Error>(http::Response::new(())) });
    let request = http::Request::get("/api/v1/pods").body(()).unwrap();
    metrics.api().layer(answer).call(request).await.unwrap();
}

#[tokio::test]
async fn what_happened_is_counted() {
    let metrics = used();
    metrics.queue().asked("ml", "digits");
    metrics.queue().begins("ml", "digits");
    metrics.queue().asked("ml", "broken");
    with_a_request(&metrics).await;
    let text = metrics.text().unwrap();
    for line in [
        "ortolan_build_info{version=\"0.1.0\"} 1",
        "ortolan_leader 1",
        "ortolan_reconcile_duration_seconds_count{outcome=\"ok\"} 1",
        "ortolan_reconcile_errors_total{kind=\"api\"} 1",
        "ortolan_reconciles_under_way 1",
        "ortolan_queue_wait_seconds_count 1",
        "ortolan_queue_depth 1",
        "ortolan_api_requests_total{verb=\"list\",resource=\"pods\",code=\"200\"} 1",
        "ortolan_api_request_duration_seconds_count{verb=\"list\",resource=\"pods\"} 1",
        "ortolan_writes_total{kind=\"Service\"} 1",
        "ortolan_watch_errors_total{kind=\"Pod\"} 1",
        "ortolan_scrapes_total{outcome=\"ok\"} 1",
        "ortolan_scrape_duration_seconds_count 1",
        "ortolan_scaling_decisions_total{direction=\"up\"} 1",
        "ortolan_cache_objects{kind=\"Pod\"} 7",
        "ortolan_models 2",
        "ortolan_model_ready{namespace=\"ml\",name=\"broken\"} 0",
        "ortolan_model_stalled{namespace=\"ml\",name=\"broken\"} 1",
        "ortolan_model_replicas{namespace=\"ml\",name=\"digits\"} 2",
        "ortolan_model_replicas_desired{namespace=\"ml\",name=\"digits\"} 3",
        "process_resident_memory_bytes ",
        "process_cpu_seconds_total ",
    ] {
        assert!(text.contains(line), "{line} is missing in:\n{text}");
    }
}

#[test]
fn models_are_told_by_the_leader_and_forgotten_with_their_object() {
    let metrics = Metrics::default();
    let models = Arc::new(Mutex::new(vec![sample("digits", true)]));
    let asked = models.clone();
    metrics.watch_models(move || asked.lock().unwrap().clone());
    assert!(!metrics.text().unwrap().contains("ortolan_model_ready{"));
    metrics.leads();
    assert!(metrics.text().unwrap().contains("ortolan_model_ready{"));
    models.lock().unwrap().clear();
    assert!(!metrics.text().unwrap().contains("ortolan_model_ready{"));
}

#[test]
fn of_too_many_models_those_are_told_with_which_something_is_wrong() {
    let metrics = Metrics::default();
    metrics.leads();
    metrics.watch_models(|| {
        let well = (0..MODELS_SHOWN + 5).map(|number| sample(&format!("well-{number}"), true));
        well.chain([sample("broken", false)]).collect()
    });
    let text = metrics.text().unwrap();
    assert!(text.contains("ortolan_model_ready{namespace=\"ml\",name=\"broken\"} 0"));
    assert!(text.contains("ortolan_models_not_shown 6\n"));
    assert_eq!(text.lines().filter(|line| line.starts_with("ortolan_model_ready{")).count(), MODELS_SHOWN);
}

/// The files of the repository in which metrics of the operator or of the servers are named.
const USES: &[&str] =
    &["dashboards/ortolan-operator.json", "dashboards/ortolan-models.json", "charts/ortolan/files/alerts.yaml"];

fn read(path: &str) -> String {
    std::fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// The names of metrics in the expressions of a file.
fn named(path: &str) -> Vec<String> {
    let text = read(path);
    let expressions: Vec<_> =
        text.lines().filter(|line| line.contains("ortolan_") || line.contains("process_")).collect();
    let words = expressions.iter().flat_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'));
    let names = words.filter(|word| word.starts_with("ortolan_") || word.starts_with("process_"));
    names.map(str::to_owned).collect()
}

#[tokio::test]
async fn dashboards_and_alerts_name_only_metrics_that_there_are() {
    let metrics = used();
    metrics.queue().asked("ml", "digits");
    with_a_request(&metrics).await;
    let text = metrics.text().unwrap();
    // Those of the servers are checked where they are made.
    for path in USES {
        let names = named(path);
        assert!(!names.is_empty(), "{path} names no metric");
        for name in names.iter().filter(|name| !name.starts_with("ortolan_server_")) {
            let sample = text.lines().any(|line| line.split(['{', ' ']).next() == Some(name));
            assert!(sample, "{path} names {name}, which /metrics does not have");
        }
    }
}

#[test]
fn every_alert_has_a_section_in_the_runbook() {
    let (alerts, runbook) = (read("charts/ortolan/files/alerts.yaml"), read("docs/runbook.md"));
    let after = |line: &str, word: &str| line.trim().strip_prefix(word).map(|rest| rest.trim().to_owned());
    let names: Vec<_> = alerts.lines().filter_map(|line| after(line, "- alert:")).collect();
    let links: Vec<_> = alerts.lines().filter_map(|line| after(line, "runbook_url:")).collect();
    assert!(names.len() > 10 && names.len() == links.len());
    for (name, link) in names.iter().zip(links) {
        assert!(runbook.lines().any(|line| line == format!("## {name}")), "docs/runbook.md has no section {name}");
        let anchor = name.to_lowercase();
        assert_eq!(link, format!("https://github.com/ortolan/ortolan/blob/main/docs/runbook.md#{anchor}"));
    }
}

#[test]
fn the_runbook_explains_every_metric() {
    let runbook = read("docs/runbook.md");
    for line in used().text().unwrap().lines() {
        let Some(name) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split(' ').next()) else { continue };
        let known = name.starts_with("process_")
            || runbook.contains(name)
            || name.strip_prefix("ortolan_model").is_some_and(|rest| runbook.contains(&format!("`{rest}`")));
        assert!(known, "docs/runbook.md does not say what {name} is");
    }
}

#[test]
fn the_chart_holds_the_dashboards() {
    for name in ["ortolan-operator.json", "ortolan-models.json"] {
        let copy = read(&format!("charts/ortolan/files/dashboards/{name}"));
        assert!(copy == read(&format!("dashboards/{name}")), "run `make generate` and commit the result");
        let dashboard: serde_json::Value = serde_json::from_str(&copy).unwrap();
        let panels = dashboard["panels"].as_array().unwrap();
        let mut ids: Vec<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
        ids.dedup();
        assert_eq!(ids.len(), panels.len());
    }
}
