//! Engines whose costs are known are measured, and found again.

use pd_core::cost::hardware::Hardware;
use pd_core::rng::{Rng, Stream};

use super::*;
use crate::hardware::Library;

fn library() -> Library {
    Library::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../scenarios"))
}

/// What a probe would measure of an engine of this cost.
fn measured(hardware: &Hardware, model: &Model, cost: &Cost) -> Measured {
    let decode = |sequences: u32, context: u32| DecodePoint {
        sequences,
        context,
        ns: cost.decode_step_ns(u64::from(sequences), u64::from(sequences) * u64::from(context)),
    };
    let prefill = |cached: u32, new: u32| {
        let mut point = PrefillPoint { cached, new, ns: 0 };
        point.ns = point.ns_by(cost);
        point
    };
    let with_logits = |rows: u64| {
        let mut load = Load::new();
        load.prefill(cost, 0, 512);
        load.logits(rows);
        cost.forward(&load).gpu_ns
    };
    let batches = [1, 2, 4, 8, 16, 32, 64, 128, 256];
    let contexts = [64, 512, 2_048, 8_192];
    let news = [64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192];
    // As a pool of a million tokens allows.
    let fits = |&(batch, context): &(u32, u32)| batch * context <= 1 << 20;
    Measured {
        name: "measured".into(),
        model: model.clone(),
        hbm_bytes: hardware.hbm_bytes,
        reserved_bytes: hardware.reserved_bytes,
        graph_batches: hardware.launch.graph_batches.clone(),
        decodes: batches
            .into_iter()
            .flat_map(|batch| contexts.map(|context| (batch, context)))
            .filter(fits)
            .map(|(batch, context)| decode(batch, context))
            .collect(),
        prefills: [0, 1_024, 4_096, 16_384, 65_536]
            .into_iter()
            .flat_map(|cached| news.map(|new| prefill(cached, new)))
            .collect(),
        heads: batches.map(|rows| [u64::from(rows), with_logits(u64::from(rows)) - with_logits(0)]).to_vec(),
        hosts: batches
            .map(|batch| [u64::from(batch), cost.forward(&Load::decodes(u64::from(batch), 0)).cpu_ns])
            .to_vec(),
    }
}

/// Steps between the points that were measured.
fn held_out(cost: &Cost, seed: u64) -> Vec<Step> {
    let mut rng = Rng::new(seed, Stream::Probe, 0);
    let mut draw = |from: u32, to: u32| from + rng.below(u64::from(to - from)) as u32;
    let mut steps = Vec::new();
    for number in 0..200 {
        let mut step = Step { contexts: Vec::new(), chunks: Vec::new(), ns: 1 };
        if number % 2 == 0 {
            let context = draw(64, 4_000);
            step.contexts = (0..draw(1, 256)).map(|_| context / 2 + draw(0, context)).collect();
        } else {
            let new = draw(512, 8_192);
            let count = draw(1, 5);
            step.chunks = (0..count).map(|_| [draw(0, 20_000), (new / count).max(1)]).collect();
        }
        step.ns = (1e9 * (1.0 + step.error(cost))) as u64;
        // An error against 1 ns is the time itself, less one.
        step.ns /= 1_000_000_000;
        steps.push(step);
    }
    steps
}

fn median(errors: &mut [f64]) -> f64 {
    errors.sort_by(f64::total_cmp);
    errors[errors.len() / 2]
}

/// Goal: what is written of a machine predicts steps that were not measured. Method: machines whose cost is known are
/// measured through it; between the points their own cost is the truth.
#[test]
fn a_machine_is_found_again_from_its_step_times() {
    let library = library();
    for (gpu, model) in [("h200", "llama-3.1-8b"), ("a100_sxm", "llama-3.1-8b"), ("h100_sxm", "qwen3-8b")] {
        let (hardware, shape) = (library.gpu(gpu).unwrap(), library.model(model).unwrap());
        let truth = Cost::new(&hardware, &shape, 1).unwrap();
        let found = measured(&hardware, &shape, &truth).hardware().unwrap();
        let steps = held_out(&truth, 1);
        let tabled = Cost::new(&found, &shape, 1).unwrap();
        let mut errors: Vec<f64> = steps.iter().map(|step| step.error(&tabled).abs()).collect();
        assert!(median(&mut errors) < 0.02, "{gpu}: median {}, worst {:?}", median(&mut errors), errors.last());
        assert!(errors.iter().all(|error| *error < 0.25), "{gpu}: worst {:?}", errors.last());
        // For other models there are the constants.
        let formulas = Cost::new(&Hardware { tables: Vec::new(), ..found.clone() }, &shape, 1).unwrap();
        let mut errors: Vec<f64> = steps.iter().map(|step| step.error(&formulas).abs()).collect();
        assert!(median(&mut errors) < 0.12, "{gpu}, constants alone: median {}", median(&mut errors));
        let cpu = truth.forward(&Load::decodes(100, 0)).cpu_ns as f64;
        let cpu_found = tabled.forward(&Load::decodes(100, 0)).cpu_ns as f64;
        assert!((cpu_found / cpu - 1.0).abs() < 0.01, "{cpu_found} ns of host work for {cpu}");
    }
}

#[test]
fn what_is_written_is_read_again() {
    let library = library();
    let (hardware, shape) = (library.gpu("h200").unwrap(), library.model("llama-3.1-8b").unwrap());
    let truth = Cost::new(&hardware, &shape, 1).unwrap();
    let found = measured(&hardware, &shape, &truth).hardware().unwrap();
    let text = crate::hardware::to_toml(crate::hardware::Kind::Gpu, "measured for a test", &found).unwrap();
    let folder = std::env::temp_dir().join(format!("pd-calibrate-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("gpu.toml"), &text).unwrap();
    let read = library.gpu(folder.join("gpu.toml").to_str().unwrap());
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(read.unwrap(), found);
    assert!(text.starts_with("# measured for a test\nkind = \"gpu\"\n"), "{text}");
}

#[test]
fn too_little_is_said_to_be_too_little() {
    let library = library();
    let (hardware, shape) = (library.gpu("h200").unwrap(), library.model("llama-3.1-8b").unwrap());
    let truth = Cost::new(&hardware, &shape, 1).unwrap();
    let all = measured(&hardware, &shape, &truth);
    let none = Measured { prefills: Vec::new(), ..all.clone() };
    let error = none.hardware().unwrap_err().to_string();
    assert_eq!(error, "chunks without a prefix: 0 measured, at least 2 are needed");
    let none = Measured { decodes: Vec::new(), ..all };
    assert_eq!(none.hardware().unwrap_err().to_string(), "decode steps: 0 measured, at least 2 are needed");
}
