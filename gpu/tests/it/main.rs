//! The engine from outside: against goldens of another implementation, against itself in other company, and with models
//! that are broken.

mod golden;
mod invariance;
mod worker;
