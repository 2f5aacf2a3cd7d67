//! The events of a scenario as actions of the world.

use std::time::Duration;

use pd_core::cost::Model;
use pd_core::event::Control;
use pd_core::id::RequestId;

use super::build::{Problem, kv_bytes, namespace};
use super::schema::{Event, File, What};
use crate::setup::{Action, Change, PagesOf, WorkerSetup};

/// What the world does at an event's time.
pub(super) fn action(
    event: &Event,
    workers: &[WorkerSetup],
    stores: usize,
    model: &Model,
    file: &File,
) -> Result<Action, Problem> {
    let worker = event.worker;
    let store = event.store;
    let needs_worker = matches!(
        event.what,
        What::Restart
            | What::Crash
            | What::Flush
            | What::DetachStorage
            | What::AttachStorage
            | What::ClearStorage
            | What::Drain
    );
    if needs_worker && worker as usize >= workers.len() {
        return Err(Problem::at("worker", format!("an event names worker {worker}; there are {}", workers.len())));
    }
    let needs_store = matches!(event.what, What::StoreRemove | What::StoreTear | What::StoreWipe);
    if needs_store && store as usize >= stores {
        return Err(Problem::at("store", format!("an event names store {store}; there are {stores}")));
    }
    let pages = || {
        let request =
            event.request.ok_or_else(|| Problem::at("do", "which pages? Say request = N and pages = [from, to]"))?;
        let [from, to] = event.pages.unwrap_or([0, u32::MAX]);
        Ok::<_, Problem>(PagesOf::Prompt { request: RequestId(request), from, to })
    };
    Ok(match event.what {
        What::Restart => Action::Restart {
            worker,
            down_for: event.down_for.map_or(Duration::from_secs(1), |span| span.0),
            change: match &event.dtype {
                None => None,
                Some(dtype) => {
                    kv_bytes(dtype)?;
                    let page_size = file.worker.first().map_or(64, |group| group.page_size);
                    let root = namespace(model, dtype, page_size).root();
                    Some(Box::new(Change { root: Some(root), config: None }))
                }
            },
        },
        What::Crash => Action::Crash { worker },
        What::StoreRemove => Action::StoreRemove { store, pages: pages()? },
        What::StoreTear => Action::StoreTear { store, pages: pages()? },
        What::StoreWipe => Action::StoreWipe { store },
        What::Cancel => Action::Cancel {
            request: RequestId(event.request.ok_or_else(|| Problem::at("do", "which request? Say request = N"))?),
        },
        What::Flush => Action::Control { worker, control: Control::Flush },
        What::DetachStorage => Action::Control { worker, control: Control::DetachStorage },
        What::AttachStorage => Action::Control { worker, control: Control::AttachStorage },
        What::ClearStorage => Action::Control { worker, control: Control::ClearStorage },
        What::Drain => Action::Control { worker, control: Control::Drain },
    })
}
