//! The model inside pd: small enough for a test, and trained so that a wrong page of KV shows as a wrong answer. See
//! `gpu/tiny/README.md`.

use std::borrow::Cow;

use pd_gpu::ModelSource;

/// Its name in answers.
pub(crate) const NAME: &str = "pd-tiny";
pub(crate) const CONFIG: &[u8] = include_bytes!("../../gpu/tiny/model/config.json");
pub(crate) const GENERATION: &[u8] = include_bytes!("../../gpu/tiny/model/generation_config.json");
pub(crate) const TOKENIZER: &[u8] = include_bytes!("../../gpu/tiny/model/tokenizer.json");
pub(crate) const TOKENIZER_CONFIG: &[u8] = include_bytes!("../../gpu/tiny/model/tokenizer_config.json");
const WEIGHTS: &[u8] = include_bytes!("../../gpu/tiny/model/model.safetensors");

/// Its files.
pub(crate) fn source() -> ModelSource {
    ModelSource::Bytes {
        config: Cow::Borrowed(CONFIG),
        generation: Some(Cow::Borrowed(GENERATION)),
        weights: Cow::Borrowed(WEIGHTS),
    }
}
