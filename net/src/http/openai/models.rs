//! `/v1/models` and `/v1/models/{id}`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::http::Edge;
use crate::http::error::ApiError;

/// The one model.
pub(in crate::http) async fn list(State(edge): State<Arc<Edge>>) -> Json<Value> {
    Json(json!({ "object": "list", "data": [card(&edge)] }))
}

/// The one model by name; names may have slashes.
pub(in crate::http) async fn one(
    State(edge): State<Arc<Edge>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    if edge.is_model(&name) { Ok(Json(card(&edge))) } else { Err(not_found(&edge, &name)) }
}

/// There is another model here.
pub(super) fn not_found(edge: &Edge, name: &str) -> ApiError {
    let message = format!("the model {name:?} is not served here; this server has {:?}", edge.info().model);
    ApiError { param: Some("model".into()), ..ApiError::new(StatusCode::NOT_FOUND, "model_not_found", message) }
}

fn card(edge: &Edge) -> Value {
    let info = edge.info();
    json!({
        "id": info.model, "object": "model", "created": edge.created(), "owned_by": "pd", "root": info.model_path,
        "parent": null, "max_model_len": info.context_length,
    })
}
