//! The events of a scenario as actions of the world: what they name is there, and what they need is worked out.

use pd_core::cost::Model;

use super::build::{Problem, kv_bytes, namespace};
use super::schema::{Event, File};
use crate::fault::{Action, Change, Places, Wrong};

/// What the world does at an event's time.
pub(super) fn action(event: &Event, places: &Places, model: &Model, file: &File) -> Result<Action, Problem> {
    let mut action = event.action.clone();
    action.check(places).map_err(|Wrong { key, message }| {
        Problem::at(key, format!("the event \"{}\" at {}: {message}", action.name(), event.at))
    })?;
    if let Action::Restart(restart) = &mut action
        && let Some(dtype) = &restart.dtype
    {
        kv_bytes(dtype)?;
        let page_size = file.worker.first().map_or(64, |group| group.page_size);
        let root = namespace(model, dtype, page_size).root();
        restart.change = Some(Box::new(Change { root: Some(root), config: None }));
    }
    Ok(action)
}
