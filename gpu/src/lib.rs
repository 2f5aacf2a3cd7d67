//! Engines: what computes. Today the CPU; see `cpu`.
