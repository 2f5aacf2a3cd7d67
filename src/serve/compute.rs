//! The compute lane: a thread that owns the engine and computes one batch after the other.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use pd_core::batch::{Batch, Sampled};
use pd_core::id::{OpId, RequestId, Token};
use pd_core::op::{Fault, Outcome};
pub(crate) use pd_gpu::{CpuEngine, Sample, Sampling};
use pd_sync::Arena;

use super::shell::{Mailbox, Told};

/// What the lane is asked for, in this order.
pub(crate) enum ComputeTask {
    /// A request will be named by forwards.
    Admit {
        /// Its name.
        request: RequestId,
        /// Its prompt.
        tokens: Vec<Token>,
        /// How its tokens are drawn.
        sampling: Sampling,
    },
    /// Somebody else sampled a token of it.
    Set {
        /// Whose.
        request: RequestId,
        /// Its index in the sequence.
        position: u32,
        /// The token.
        token: Token,
    },
    /// No forward to come names it.
    Forget {
        /// Its name.
        request: RequestId,
    },
    /// To compute; answered once.
    Forward {
        /// The command.
        op: OpId,
        /// What.
        batch: Box<Batch>,
    },
}

/// Starts the lane; it ends when the sender is dropped.
///
/// # Errors
/// If the system has no thread left.
pub(crate) fn start(
    mut engine: CpuEngine,
    kv: Arc<Arena>,
    inbox: Mailbox,
) -> std::io::Result<(Sender<ComputeTask>, JoinHandle<()>)> {
    let (tasks, queue) = channel();
    let thread = std::thread::Builder::new().name("compute".to_owned()).spawn(move || {
        for task in queue {
            match task {
                ComputeTask::Admit { request, tokens, sampling } => {
                    // Checked at the door; should it fail here, its forwards fail, and with them only this request.
                    if let Err(error) = engine.admit(request, &tokens, sampling) {
                        tracing::error!(%request, "the engine does not take the request: {error}");
                    }
                }
                ComputeTask::Set { request, position, token } => {
                    if let Err(error) = engine.set_token(request, position, token) {
                        tracing::error!(%request, "the engine does not take a prefill worker's token: {error}");
                    }
                }
                ComputeTask::Forget { request } => engine.forget(request),
                ComputeTask::Forward { op, batch } => {
                    if inbox.send(forward(&mut engine, &kv, op, batch)).is_err() {
                        return;
                    }
                }
            }
        }
    })?;
    Ok((tasks, thread))
}

fn forward(engine: &mut CpuEngine, kv: &Arena, op: OpId, mut batch: Box<Batch>) -> Told {
    match engine.forward(&mut batch, kv) {
        Ok(samples) => {
            let samples = samples.into_iter().filter(|sample| sample.logprobs.is_some());
            let samples = samples.map(|sample| (sample.request, sample)).collect();
            Told::Done { op, outcome: Outcome::Sampled(Sampled(batch)), samples }
        }
        Err(error) => {
            let requests: Vec<String> = batch.runs().iter().map(|run| run.request.to_string()).collect();
            tracing::error!(request = requests.join(","), "a forward failed: {error}");
            Told::Done { op, outcome: Outcome::Failed(Fault::Device), samples: Vec::new() }
        }
    }
}
