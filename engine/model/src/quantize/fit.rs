//! The search behind the K formats: which scale, and which minimum, lets a few levels stand for a run of weights best.
//!
//! Each run is rounded on a grid of candidate scales around the one that its extremes give; for the levels of each candidate the
//! weighted least squares have a closed solution, and the candidate with the smallest weighted error wins. Then levels and
//! solution are recomputed from each other until nothing improves. A weight counts `|x| + rms`: large weights matter
//! more to the outputs of a model than their number says.

/// Candidate scales have room for so many levels more or less than the extremes need.
const ROOM: f32 = 1.0;
/// Candidates on each side of the scale of the extremes.
const CANDIDATES_PER_SIDE: i32 = 10;
/// Rounds of recomputing after the best candidate; more than 3 change nothing that can be measured.
const ROUNDS: usize = 3;
/// A range below this has no inverse in `f32`, and every half-precision scale of it is 0.
const RANGE_MIN: f32 = 1e-30;
/// Adding and subtracting `1.5 * 2^23` rounds a number of less than 22 bits to the nearest integer, ties to even.
const ROUNDER: f32 = 12_582_912.0;

/// `x` is about `scale * level - min`, with levels from 0 on and `min >= 0`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Affine {
    pub(super) scale: f32,
    pub(super) min: f32,
}

/// A run of weights with what each counts.
pub(super) struct Run<'a, const N: usize> {
    pub(super) x: &'a [f32; N],
    pub(super) counts: [f32; N],
}

impl<'a, const N: usize> Run<'a, N> {
    pub(super) fn new(x: &'a [f32; N]) -> Run<'a, N> {
        let rms = (x.iter().map(|v| v * v).sum::<f32>() / N as f32).sqrt();
        Run { x, counts: x.map(|v| v.abs() + rms) }
    }

    /// Returns the weighted squared error of `scale * level + offset`.
    pub(super) fn error(&self, levels: &[f32; N], scale: f32, offset: f32) -> f32 {
        let mut sum = [0.0f32; 8];
        for ((x, counts), levels) in self.x.chunks(8).zip(self.counts.chunks(8)).zip(levels.chunks(8)) {
            for (lane, sum) in sum.iter_mut().enumerate() {
                let difference = scale * levels[lane] + offset - x[lane];
                *sum += counts[lane] * difference * difference;
            }
        }
        sum.iter().sum()
    }

    /// Returns the levels nearest to `(x + min) * inverse`, held between `low` and `high`.
    pub(super) fn levels(&self, inverse: f32, min: f32, low: f32, high: f32) -> [f32; N] {
        self.x.map(|x| nearest(((x + min) * inverse).clamp(low, high)))
    }

    /// Finds scale and minimum for levels from 0 to `top`.
    pub(super) fn fit_affine(&self, top: f32) -> Affine {
        let low = self.x.iter().copied().fold(0.0f32, f32::min);
        let high = self.x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let range = high - low;
        if range < RANGE_MIN {
            return Affine { scale: 0.0, min: -low };
        }
        let mut best = (Affine { scale: range / top, min: -low }, f32::INFINITY);
        for step in -CANDIDATES_PER_SIDE..=CANDIDATES_PER_SIDE {
            let room = ROOM * step as f32 / CANDIDATES_PER_SIDE as f32;
            self.try_levels(&self.levels((top + room) / range, -low, 0.0, top), &mut best);
        }
        for _ in 0..ROUNDS {
            let (Affine { scale, min }, error) = best;
            if scale < RANGE_MIN {
                break;
            }
            self.try_levels(&self.levels(1.0 / scale, min, 0.0, top), &mut best);
            if best.1 == error {
                break;
            }
        }
        best.0
    }

    /// Solves the least squares for these levels and keeps the solution if it is better.
    fn try_levels(&self, levels: &[f32; N], best: &mut (Affine, f32)) {
        let solution = self.solve(levels);
        let error = self.error(levels, solution.scale, -solution.min);
        if error < best.1 {
            *best = (solution, error);
        }
    }

    /// The normal equations of two unknowns; where they ask for a negative minimum, those of the scale alone.
    fn solve(&self, levels: &[f32; N]) -> Affine {
        let [mut w, mut wl, mut wll, mut wx, mut wlx] = [[0.0f32; 8]; 5];
        for ((x, counts), levels) in self.x.chunks(8).zip(self.counts.chunks(8)).zip(levels.chunks(8)) {
            for lane in 0..8 {
                let (count, level, x) = (counts[lane], levels[lane], x[lane]);
                w[lane] += count;
                wl[lane] += count * level;
                wll[lane] += count * level * level;
                wx[lane] += count * x;
                wlx[lane] += count * level * x;
            }
        }
        let [w, wl, wll, wx, wlx] = [w, wl, wll, wx, wlx].map(|sums| sums.iter().sum::<f32>());
        let determinant = w * wll - wl * wl;
        let scale = (w * wlx - wx * wl) / determinant;
        let min = (wl * wlx - wll * wx) / determinant;
        if determinant > 0.0 && min >= 0.0 && scale.is_finite() && min.is_finite() {
            return Affine { scale: scale.max(0.0), min };
        }
        Affine { scale: if wll > 0.0 { (wlx / wll).max(0.0) } else { 0.0 }, min: 0.0 }
    }

    /// Finds the scale for levels from `-half` to `half - 1`; it is negative where the extreme is positive.
    pub(super) fn fit_symmetric(&self, half: f32) -> f32 {
        let extreme = self.x.iter().fold(0.0f32, |extreme, &v| if v.abs() > extreme.abs() { v } else { extreme });
        if extreme.abs() < RANGE_MIN {
            return 0.0;
        }
        let mut best = (-extreme / half, f32::INFINITY);
        let attempt = |inverse: f32, best: &mut (f32, f32)| {
            let levels = self.levels(inverse, 0.0, -half, half - 1.0);
            let scale = self.solve_scale(&levels);
            let error = self.error(&levels, scale, 0.0);
            if error < best.1 {
                *best = (scale, error);
            }
        };
        for step in -CANDIDATES_PER_SIDE..=CANDIDATES_PER_SIDE {
            let room = ROOM * step as f32 / CANDIDATES_PER_SIDE as f32;
            attempt(-(half + room) / extreme, &mut best);
        }
        for _ in 0..ROUNDS {
            let (scale, error) = best;
            if scale.abs() < RANGE_MIN {
                break;
            }
            attempt(1.0 / scale, &mut best);
            if best.1 == error {
                break;
            }
        }
        best.0
    }

    fn solve_scale(&self, levels: &[f32; N]) -> f32 {
        let [wll, wlx] = self.moments(levels);
        if wll > 0.0 { wlx / wll } else { 0.0 }
    }

    /// Returns the weighted sums of the squares of the levels, and of the levels times the weights.
    pub(super) fn moments(&self, levels: &[f32; N]) -> [f32; 2] {
        let [mut wll, mut wlx] = [[0.0f32; 8]; 2];
        for ((x, counts), levels) in self.x.chunks(8).zip(self.counts.chunks(8)).zip(levels.chunks(8)) {
            for lane in 0..8 {
                wll[lane] += counts[lane] * levels[lane] * levels[lane];
                wlx[lane] += counts[lane] * levels[lane] * x[lane];
            }
        }
        [wll.iter().sum(), wlx.iter().sum()]
    }
}

/// Rounds a small number to the nearest integer, ties to even.
pub(super) fn nearest(value: f32) -> f32 {
    (value + ROUNDER) - ROUNDER
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_on_a_grid_is_found_exactly() {
        let x: [f32; 32] = std::array::from_fn(|i| 0.25 * (i * 7 % 16) as f32 - 1.5);
        let found = Run::new(&x).fit_affine(15.0);
        assert!((found.scale - 0.25).abs() < 1e-6 && (found.min - 1.5).abs() < 1e-5, "{found:?}");
        let x: [f32; 16] = std::array::from_fn(|i| 0.5 * (i as f32 * 4.0 - 32.0));
        assert!((Run::new(&x).fit_symmetric(32.0) - 0.5).abs() < 1e-6);
    }

    #[test]
    fn runs_without_a_range_have_no_scale() {
        assert_eq!(Run::new(&[0.0; 32]).fit_affine(15.0), Affine { scale: 0.0, min: 0.0 });
        assert_eq!(Run::new(&[-3.0; 32]).fit_affine(15.0).min, 3.0);
        assert_eq!(Run::new(&[1e-38; 16]).fit_symmetric(32.0), 0.0);
    }
}
