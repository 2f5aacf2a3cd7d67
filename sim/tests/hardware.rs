//! Goal: each file in `scenarios` loads, fits together and predicts what was measured; a wrong file is refused by line.

use std::fs;
use std::path::{Path, PathBuf};

use pd_core::cost::{Cost, CostError, Load};
use pd_sim::hardware::{Kind, Library, LoadError};

#[test]
fn each_file_loads_under_its_own_name() {
    let library = library();
    let gpus = library.names(Kind::Gpu).expect("hw");
    assert_eq!(gpus, ["a100_sxm", "a800_sxm", "h100_pcie", "h100_sxm", "h200"]);
    for name in &gpus {
        assert_eq!(library.gpu(name).expect("loads").name, *name);
    }
    let links = library.names(Kind::Link).expect("hw");
    assert_eq!(
        links,
        [
            "mooncake_200g",
            "mooncake_4x200g",
            "net_200g",
            "net_25g",
            "net_400g",
            "nixl_segments",
            "nvlink3",
            "nvlink4",
            "pcie4",
            "pcie5",
            "ppd_tcp",
            "splitwise_400g",
            "tcp_100g"
        ]
    );
    for name in &links {
        let link = library.link(name).expect("loads");
        assert_eq!(link.name, *name);
        assert!(link.cost().time_ns(1 << 30, 1) > link.cost().time_ns(1 << 20, 1));
    }
    let disks = library.names(Kind::Disk).expect("hw");
    assert_eq!(
        disks,
        ["mooncake_pool", "nfs_100g", "nvme_cloud", "nvme_gen4", "nvme_gen5", "object_store", "page_cache"]
    );
    for name in &disks {
        let disk = library.disk(name).expect("loads");
        assert_eq!(disk.name, *name);
        assert!(disk.read_ns(1 << 30) > disk.read_ns(4_096));
    }
    let models = library.names(Kind::Model).expect("models");
    assert_eq!(
        models,
        [
            "deepseek-r1-distill-llama-8b",
            "kv-slice-1",
            "kv-slice-48",
            "llama-3.1-70b",
            "llama-3.1-8b",
            "mistral-7b",
            "opt-13b",
            "qwen3-0.6b",
            "qwen3-32b",
            "qwen3-8b"
        ]
    );
    for name in &models {
        assert_eq!(library.model(name).expect("loads").name, *name);
    }
    let files = |folder| fs::read_dir(root().join(folder)).expect("exists").count();
    assert_eq!(files("hw"), gpus.len() + links.len() + disks.len());
    assert_eq!(files("models"), models.len());
}

#[test]
fn models_have_the_sizes_they_are_known_for() {
    let cases = [
        ("llama-3.1-8b", 131_072, 8_030_261_248_u64),
        ("deepseek-r1-distill-llama-8b", 131_072, 8_030_261_248),
        ("llama-3.1-70b", 327_680, 70_553_706_496),
        ("qwen3-0.6b", 114_688, 596_049_920),
        ("qwen3-8b", 147_456, 8_190_735_360),
        ("qwen3-32b", 262_144, 32_762_123_264),
        ("mistral-7b", 131_072, 7_248_023_552),
    ];
    for (name, kv_bytes, weights) in cases {
        let model = library().model(name).expect("loads");
        assert_eq!((model.kv_bytes_per_token(), model.weights()), (kv_bytes, weights), "{name}");
    }
}

#[test]
fn each_model_runs_on_each_gpu_that_holds_it() {
    let library = library();
    let (mut built, mut refused) = (0, 0);
    for gpu in library.names(Kind::Gpu).expect("hw") {
        let hardware = library.gpu(&gpu).expect("loads");
        for model in library.names(Kind::Model).expect("models") {
            let shape = library.model(&model).expect("loads");
            for tp in [1, 2, 4, 8] {
                let listed = tp == 1 || hardware.all_reduce.iter().any(|all_reduce| all_reduce.tp == tp);
                let fits = shape.weights_bytes_rank(tp) + hardware.reserved_bytes < hardware.hbm_bytes;
                match Cost::new(&hardware, &shape, tp) {
                    Ok(cost) => {
                        assert!(listed && fits, "{model} on {gpu} by {tp}");
                        check_sane(&cost, shape.weights_bytes_rank(tp), hardware.hbm_bytes_per_second);
                        built += 1;
                    }
                    Err(CostError::WeightsDoNotFit { .. }) => {
                        assert!(!fits, "{model} on {gpu} by {tp}");
                        refused += 1;
                    }
                    Err(CostError::NoAllReduce { .. }) => {
                        assert!(!listed, "{model} on {gpu} by {tp}");
                        refused += 1;
                    }
                    Err(error) => panic!("{model} on {gpu} by {tp}: {error}"),
                }
            }
        }
    }
    assert!(built > 80 && refused > 15, "{built} built, {refused} refused");
}

/// Whole steps of Llama-3.1-8B on an H200, synthetic and in one graph: 32 layers, head and sampling, no host work.
#[test]
fn the_h200_file_predicts_the_steps_measured_on_it() {
    let measured = library().cost("h200", "llama-3.1-8b", 1).expect("fits");
    // The same without its tables: the formulas alone, as any other model has them.
    let mut hardware = library().gpu("h200").expect("loads");
    hardware.tables.clear();
    let formulas = Cost::new(&hardware, &library().model("llama-3.1-8b").expect("loads"), 1).expect("fits");
    for (cost, percent) in [(measured, 4.5), (formulas, 5.0)] {
        for (batch, context, ms) in [
            (1, 1_024, 4.69),
            (8, 1_024, 4.73),
            (32, 1_024, 5.79),
            (64, 1_024, 6.87),
            (128, 1_024, 9.37),
            (256, 1_024, 15.68),
            (16, 8_192, 8.60),
            (64, 8_192, 20.53),
        ] {
            check_ms(&format!("{batch} at {context}"), cost.decode_step_ns(batch, batch * context), ms, percent);
        }
        for (cached, new, ms) in [(0, 2_048, 49.0), (6_144, 2_048, 63.0), (0, 8_192, 218.0)] {
            check_ms(&format!("{new} behind {cached}"), cost.prefill_ns(cached, new), ms, percent);
        }
    }
}

#[test]
fn links_predict_the_copies_measured_on_them() {
    let cases = [
        ("nvlink4", 64 << 10, 1, 5.3),
        ("nvlink4", 1 << 20, 1, 7.7),
        ("nvlink4", 16 << 20, 1, 48.5),
        ("pcie5", 64 << 10, 1, 6.5),
        ("pcie5", 1 << 20, 1, 24.4),
        ("pcie5", 128 << 20, 4_096, 2_508.0),
    ];
    for (name, bytes, descriptors, want) in cases {
        let us = library().link(name).expect("loads").cost().time_ns(bytes, descriptors) as f64 / 1e3;
        assert!((us / want - 1.0).abs() < 0.03, "{bytes} over {name}: {us} us, measured {want}");
    }
}

#[test]
fn an_unknown_name_is_answered_with_the_nearest() {
    let message = |error: LoadError| error.to_string();
    assert_eq!(
        message(library().gpu("h10_sxm").expect_err("unknown")),
        format!("no h10_sxm.toml in {}; did you mean h100_sxm?", root().join("hw").display())
    );
    assert!(message(library().model("lama-3.1-8b").expect_err("unknown")).ends_with("did you mean llama-3.1-8b?"));
    assert!(message(library().disk("mi300x-with-everything").expect_err("unknown")).ends_with("hw"));
}

#[test]
fn wrong_files_are_refused_by_line() {
    let folder = std::env::temp_dir().join(format!("pd-hardware-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("temporary folder");
    let good = fs::read_to_string(root().join("hw/pcie5.toml")).expect("exists");
    let check = |name: &str, text: &str, want: &str| {
        let path = folder.join(name);
        fs::write(&path, text).expect("temporary file");
        let path = path.display().to_string();
        let error = library().link(&path).expect_err(want).to_string();
        assert_eq!(error, format!("{path}{want}"));
    };
    check(
        "zero.toml",
        &good.replace("bytes_per_second = 55_500_000_000", "bytes_per_second = 0"),
        ":6: invalid value: integer `0`, expected a nonzero u64",
    );
    check(
        "unknown.toml",
        &format!("{good}bandwith = 1\n"),
        ":8: unknown field `bandwith`, expected one of `name`, `request_ns`, `descriptor_ps`, `descriptors_ahead`, `bytes_per_second`, `latency_ns`",
    );
    check("kind.toml", &good.replace("kind = \"link\"", "kind = \"disk\""), ":2: is a disk, expected a link");
    check(
        "kinds.toml",
        &good.replace("kind = \"link\"", "kind = \"cable\""),
        ":2: unknown variant `cable`, expected one of `gpu`, `link`, `disk`, `model`",
    );
    assert!(library().link(&folder.join("zero.toml").display().to_string()).is_err());
    assert!(matches!(library().link("no/such/file.toml"), Err(LoadError::Io { .. })));
    fs::remove_dir_all(&folder).expect("was created");
}

#[test]
fn a_model_that_does_not_fit_is_an_error_that_says_so() {
    let error = library().cost("h100_sxm", "llama-3.1-70b", 1).expect_err("too large").to_string();
    assert!(error.starts_with("llama-3.1-70b on h100_sxm: weights of 141107412992 bytes a GPU (tp = 1)"), "{error}");
    assert!(library().cost("h100_sxm", "llama-3.1-70b", 4).is_ok());
}

/// A step reads all weights once and takes neither less than that nor ten times as long.
fn check_sane(cost: &Cost, weights_bytes: u64, bytes_per_second: u64) {
    let floor = u128::from(weights_bytes) * 1_000_000_000 / u128::from(bytes_per_second);
    let step = u128::from(cost.decode_step_ns(1, 1));
    assert!(step > floor * 9 / 10 && step < floor * 10 + 2_000_000, "{step} ns, reading takes {floor}");
    assert!(cost.prefill_ns(0, 4_096) > cost.prefill_ns(2_048, 2_048));
    assert!(cost.kv_tokens_capacity(900) < cost.kv_tokens_capacity(950));
    let mut load = Load::new();
    load.decode(1);
    assert!(cost.overlapped_ns(&load) <= cost.synchronous_ns(&load) + 7_500);
}

fn check_ms(what: &str, ns: u64, want: f64, percent: f64) {
    let off = (ns as f64 / 1e6 / want - 1.0) * 100.0;
    println!("{what}: {:.2} ms, measured {want} ({off:+.1} %)", ns as f64 / 1e6);
    assert!(off.abs() <= percent, "{what}: {:.3} ms, measured {want}, {off:+.1} %", ns as f64 / 1e6);
}

fn library() -> Library {
    Library::new(root())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios")
}
