//! The engine from outside: against goldens of another implementation, against a naive one, against itself in other
//! company, and with models that are broken.

mod bad_models;
mod cuda;
mod golden;
mod invariance;
mod naive;
mod tiny;
mod weights;
mod worker;
