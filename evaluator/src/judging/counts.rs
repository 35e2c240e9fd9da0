//! Outcomes of comparisons and their counts.

use serde::{Deserialize, Serialize};

use super::{Side, Verdict};

/// How one response fared against another under one rubric, both orders taken together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Both orders prefer it.
    Win,
    /// The orders disagree.
    Tie,
    /// Both orders prefer the other one.
    Loss,
    /// At least one order gave no verdict; counted apart, never as a win, tie or loss.
    Unparsable,
}

impl Outcome {
    /// Puts both orders together: `ab` with the response first, `ba` with it second.
    ///
    /// **Source**: paper, section on win rates: a win needs both orders to agree, otherwise it is a tie.
    pub fn of_orders(ab: Verdict, ba: Verdict) -> Self {
        match (ab, ba) {
            (Verdict::Prefers(Side::A), Verdict::Prefers(Side::B)) => Self::Win,
            (Verdict::Prefers(Side::B), Verdict::Prefers(Side::A)) => Self::Loss,
            (Verdict::Prefers(_), Verdict::Prefers(_)) => Self::Tie,
            (Verdict::Unparsable, _) | (_, Verdict::Unparsable) => Self::Unparsable,
        }
    }
}

/// How often each outcome came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Wins.
    pub wins: u64,
    /// Ties.
    pub ties: u64,
    /// Losses.
    pub losses: u64,
    /// Pairs without a verdict.
    pub unparsable: u64,
}

impl Counts {
    /// Counts one more outcome.
    pub fn add(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Win => self.wins += 1,
            Outcome::Tie => self.ties += 1,
            Outcome::Loss => self.losses += 1,
            Outcome::Unparsable => self.unparsable += 1,
        }
    }

    /// Returns the sum of both.
    pub fn plus(self, other: Self) -> Self {
        Self {
            wins: self.wins + other.wins,
            ties: self.ties + other.ties,
            losses: self.losses + other.losses,
            unparsable: self.unparsable + other.unparsable,
        }
    }

    /// Returns how many pairs have a verdict.
    pub fn judged(self) -> u64 {
        self.wins + self.ties + self.losses
    }

    /// Returns the win rate, a tie being half a win; `None` without verdicts.
    pub fn win_rate(self) -> Option<f64> {
        ratio(self.wins as f64 + self.ties as f64 / 2.0, self.judged())
    }

    /// Returns 100 (W - L) / (W + L), ties ignored; `None` without a win or loss.
    ///
    /// **Source**: paper, Delta-PQ of one rubric; the paper averages it over its two rubrics.
    pub fn delta(self) -> Option<f64> {
        ratio(100.0 * (self.wins as f64 - self.losses as f64), self.wins + self.losses)
    }
}

impl FromIterator<Outcome> for Counts {
    fn from_iter<I: IntoIterator<Item = Outcome>>(outcomes: I) -> Self {
        let mut counts = Self::default();
        outcomes.into_iter().for_each(|outcome| counts.add(outcome));
        counts
    }
}

fn ratio(part: f64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part / whole as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_win_needs_both_orders() {
        let (a, b) = (Verdict::Prefers(Side::A), Verdict::Prefers(Side::B));
        assert_eq!(Outcome::of_orders(a, b), Outcome::Win);
        assert_eq!(Outcome::of_orders(b, a), Outcome::Loss);
        assert_eq!(Outcome::of_orders(a, a), Outcome::Tie);
        assert_eq!(Outcome::of_orders(a, Verdict::Unparsable), Outcome::Unparsable);
        assert_eq!(Outcome::of_orders(Verdict::Unparsable, b), Outcome::Unparsable);
    }

    #[test]
    fn rates_by_hand() {
        let counts = Counts { wins: 6, ties: 2, losses: 2, unparsable: 5 };
        assert_eq!(counts.win_rate(), Some(0.7));
        assert_eq!(counts.delta(), Some(50.0));
        let ties = Counts { ties: 3, ..Counts::default() };
        assert_eq!((ties.win_rate(), ties.delta(), Counts::default().win_rate()), (Some(0.5), None, None));
    }
}
