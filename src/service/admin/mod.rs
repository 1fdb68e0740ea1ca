//! The HTTP endpoint for operators: metrics, liveness, readiness, the live windows. It is read-only, without secrets or payloads.

mod connections;

use crate::platform::metrics::{self, QUERYABLE};
use crate::service::health::Health;
use crate::service::{WindowSnapshot, Windows};
use axum::extract::State as Extract;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use metrics_process::Collector;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Greatest time without a poll by the reader. After it the reader counts as hanging, since it polls many times a second.
const PULSE_AGE_MAX: Duration = Duration::from_secs(120);
/// Interval at which histograms are compacted between scrapes.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

const INDEX: &str = "tallyhouse\n\n/metrics  Prometheus metrics\n/livez    alive: 200, hanging: 503\n\
                     /readyz   ready: 200, otherwise 503 with the reasons\n/windows  what each partition holds, as JSON\n";

/// The objects that the endpoint shows.
#[derive(Clone)]
pub struct State {
    /// Handle that renders the metrics.
    pub metrics: PrometheusHandle,
    /// Collector of metrics of this process.
    pub process: Collector,
    /// Readiness of the service.
    pub health: Arc<Health>,
    /// Live windows of the assigned partitions.
    pub windows: Arc<Windows>,
}

/// Listens, and serves in the background until the process ends.
///
/// # Errors
/// The address cannot be bound.
pub async fn start(address: SocketAddr, state: State) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::bind(address).await?;
    tracing::info!("metrics and health at http://{}", listener.local_addr()?);
    let metrics = state.metrics.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(UPKEEP_INTERVAL).await;
            metrics.run_upkeep();
        }
    });
    let router = Router::new()
        .route("/", get(INDEX))
        .route("/metrics", get(metrics_text))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/windows", get(windows))
        .with_state(state);
    tokio::spawn(connections::serve(listener, router));
    Ok(())
}

async fn metrics_text(Extract(state): Extract<State>) -> String {
    metrics::sample_process(&state.process, state.health.reasons().is_empty());
    state.metrics.render() + &QUERYABLE.render()
}

async fn livez(Extract(state): Extract<State>) -> (StatusCode, String) {
    match state.health.pulse_age() {
        age if age > PULSE_AGE_MAX => (StatusCode::SERVICE_UNAVAILABLE, format!("no poll for {} s\n", age.as_secs())),
        _ => (StatusCode::OK, "alive\n".to_owned()),
    }
}

async fn readyz(Extract(state): Extract<State>) -> (StatusCode, Json<Value>) {
    let reasons = state.health.reasons();
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": reasons.is_empty(), "reasons": reasons })))
}

async fn windows(Extract(state): Extract<State>) -> Json<BTreeMap<i32, WindowSnapshot>> {
    Json(state.windows.snapshot())
}
