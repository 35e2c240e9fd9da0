//! `bespoke-evaluator`: persona inference, tailored answers, judging, win rates and reports.

use clap::Parser;

fn main() -> anyhow::Result<()> {
    bespoke_evaluator::run(bespoke_evaluator::Arguments::parse())
}
