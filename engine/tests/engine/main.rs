//! The engine as its callers see it, on a tiny random model.

mod equivalence;
mod lifecycle;
mod reference;
mod support;
