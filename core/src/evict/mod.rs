//! Placeholder until the radix branch is merged (same names).
/// What leaves first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// Least recently used.
    #[default]
    Lru,
}
