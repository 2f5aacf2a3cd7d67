//! The compute lane: a thread that owns the engine and starts one batch after the other.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use pd_core::batch::{Batch, Sampled};
use pd_core::id::{OpId, RequestId, Token};
use pd_core::op::{Fault, Outcome};
use pd_gpu::EngineError;
pub(crate) use pd_gpu::{Sample, Sampling};

use super::engine::Ready;
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

/// Does what is not a forward; gives back what is.
macro_rules! prepare {
    ($engine:expr, $task:expr) => {
        match $task {
            ComputeTask::Admit { request, tokens, sampling } => {
                // Checked at the door; should it fail here, its forwards fail, and with them only this request.
                if let Err(error) = $engine.admit(request, &tokens, sampling) {
                    tracing::error!(%request, "the engine does not take the request: {error}");
                }
                None
            }
            ComputeTask::Set { request, position, token } => {
                if let Err(error) = $engine.set_token(request, position, token) {
                    tracing::error!(%request, "the engine does not take a prefill worker's token: {error}");
                }
                None
            }
            ComputeTask::Forget { request } => {
                $engine.forget(request);
                None
            }
            ComputeTask::Forward { op, batch } => Some((op, batch)),
        }
    };
}

/// Starts the lane; it ends when the sender is dropped.
///
/// # Errors
/// If the system has no thread left.
pub(crate) fn start(ready: Ready, inbox: Mailbox) -> std::io::Result<Sender<ComputeTask>> {
    let (tasks, queue) = channel();
    let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
    match ready {
        Ready::Cpu { mut engine, device, .. } => {
            thread("compute").spawn(move || {
                for task in queue {
                    if let Some((op, mut batch)) = prepare!(engine, task) {
                        let computed = engine.forward(&mut batch, &device);
                        if inbox.send(told(op, batch, computed)).is_err() {
                            return;
                        }
                    }
                }
            })?;
        }
        // One thread starts forwards, another sees them end: the GPU goes from one to the next by itself.
        Ready::Cuda { mut engine, .. } => {
            let finisher = engine.finisher();
            let answers = Arc::clone(&inbox);
            let (flights, landing) = channel();
            thread("landing").spawn(move || {
                for (op, flight) in landing {
                    let (batch, computed) = finisher.finish(flight);
                    if answers.send(told(op, batch, computed)).is_err() {
                        return;
                    }
                }
            })?;
            thread("compute").spawn(move || {
                for task in queue {
                    let Some((op, batch)) = prepare!(engine, task) else { continue };
                    let is_sent = match engine.submit(batch) {
                        Ok(flight) => flights.send((op, flight)).is_ok(),
                        Err((error, batch)) => inbox.send(told(op, batch, Err(error))).is_ok(),
                    };
                    if !is_sent {
                        return;
                    }
                }
            })?;
        }
    }
    Ok(tasks)
}

fn told(op: OpId, batch: Box<Batch>, computed: Result<Vec<Sample>, EngineError>) -> Told {
    match computed {
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
