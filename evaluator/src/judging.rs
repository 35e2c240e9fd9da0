//! Judging: verdicts and statistics, all pure: values in, values out, seeds as arguments.
//!
//! Place in the flow: a judge's answers become [`Verdict`]s, verdicts of both orders an [`Outcome`], outcomes [`Counts`],
//! and counts the rates, intervals and tests that summaries and reports show.

mod agreement;
mod bootstrap;
mod counts;
mod length;
mod proportion;
mod repetition;
mod sign_test;
mod verdict;

pub use agreement::{cohen_kappa, krippendorff_alpha};
pub use bootstrap::{Interval, bootstrap};
pub use counts::{Counts, Outcome};
pub use length::{LengthControlled, length_controlled};
pub use proportion::{clustered_standard_error, wilson};
pub use repetition::{is_repetitive, repetition};
pub use sign_test::sign_test;
pub use verdict::{Side, Verdict, parse_absolute, parse_relative};
