//! Fixed service times of a scenario as a cost model: constants of queueing oracles, and fits that papers publish.

use pd_core::cost::hardware::Cpu;
use pd_core::cost::{Cost, DecodePolynomial, Polynomial};
use pd_core::time::nanos;

use super::schema::Service;
use crate::units::Span;

/// The cost model of a worker that has memory for `tokens` tokens of KV.
pub(super) fn cost(service: &Service, tokens: u64) -> Cost {
    let ps = |span: Span| nanos(span.0).saturating_mul(1000);
    let decode = DecodePolynomial {
        step_ps: ps(service.decode),
        context_token_ps: service.decode_context_token_ps,
        sequence_ps: ps(service.decode_sequence),
    };
    let polynomial = Polynomial {
        prefill_step_ps: ps(service.prefill),
        prefill_token_ps: ps(service.prefill_token),
        prefill_pair_ps: service.prefill_pair_ps,
        decode_small: decode,
        decode_large: decode,
        large_batch: u64::MAX,
        kv_bytes_per_token: 1,
        kv_tokens: tokens,
        ..Polynomial::default()
    };
    let host =
        Cpu { base_ns: nanos(service.host.0), per_sequence_ns: nanos(service.host_sequence.0), ..Cpu::default() };
    Cost::polynomial(polynomial).with_cpu(host)
}
