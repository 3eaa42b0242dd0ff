use std::collections::VecDeque;
use tch::Tensor;

/// Steps that the reported mean covers and that a run is judged by.
const WINDOW: usize = 100;
/// A run whose typical loss is this many times its lowest has diverged. Batches differ by their times and images, and a large
/// step size makes the loss wander; neither quadruples the median of a hundred steps, where a run that blows up goes past any
/// multiple.
const DIVERGED: f32 = 4.0;
/// Weights at this multiple are no good beginning for another run: halfway there, by ratio.
const RISEN: f32 = 2.0;

/// The last losses of a run, against the best that it has reached. Typical is their median: a single step that
/// training gets over moves a mean by any amount.
#[derive(Debug, Default, PartialEq)]
pub struct Losses {
    last: VecDeque<f32>,
    lowest: Option<f32>, // median of a whole window
}

impl Losses {
    /// Adds a step's loss, which is finite.
    pub fn push(&mut self, loss: f32) {
        self.last.push_back(loss);
        if self.last.len() > WINDOW {
            self.last.pop_front();
        }
        if self.last.len() == WINDOW {
            let median = self.median();
            self.lowest = Some(self.lowest.map_or(median, |lowest| lowest.min(median)));
        }
    }

    /// Mean over the last hundred steps; 0 before the first.
    pub fn mean(&self) -> f32 {
        self.last.iter().sum::<f32>() / self.last.len().max(1) as f32
    }

    /// Whether the typical loss is above twice its lowest.
    pub fn have_risen(&self) -> bool {
        self.above(RISEN).is_some()
    }

    /// If the run has diverged, its typical loss and the lowest that it was.
    pub fn diverged(&self) -> Option<(f32, f32)> {
        self.above(DIVERGED)
    }

    fn above(&self, multiple: f32) -> Option<(f32, f32)> {
        let (median, lowest) = (self.median(), self.lowest?);
        (median > multiple * lowest).then_some((median, lowest))
    }

    fn median(&self) -> f32 {
        let mut sorted: Vec<f32> = self.last.iter().copied().collect();
        sorted.sort_by(f32::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
    }

    /// The lowest median and the last losses, `(1 + 100)`; -1 marks what is not there.
    pub fn state(&self) -> Tensor {
        let mut state = [-1.0; 1 + WINDOW];
        state[0] = self.lowest.unwrap_or(-1.0);
        state[1..].iter_mut().zip(&self.last).for_each(|(slot, loss)| *slot = *loss);
        Tensor::from_slice(&state)
    }

    /// Takes over a [`state`](Self::state) that a checkpoint kept.
    pub fn restore(&mut self, state: &Tensor) {
        let mut at = (0..=WINDOW as i64).map(|i| Some(state.double_value(&[i]) as f32).filter(|&loss| loss >= 0.0));
        self.lowest = at.next().flatten();
        self.last = at.flatten().collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps of `loss` until the run has diverged, of at most 1,000.
    fn until_diverged(losses: &mut Losses, loss: f32) -> Option<usize> {
        (1..=1000).find(|_| {
            losses.push(loss);
            losses.diverged().is_some()
        })
    }

    #[test]
    fn a_loss_that_stays_above_four_times_its_lowest_has_diverged() {
        let mut losses = Losses::default();
        (0..200).for_each(|i| losses.push(1.0 + 1.0 / (i + 1) as f32));
        assert_eq!(until_diverged(&mut losses, 1.9), None);
        assert!(!losses.have_risen());
        assert_eq!(until_diverged(&mut losses, 3.9), None);
        assert!(losses.have_risen());
        assert_eq!(until_diverged(&mut losses, 5.0), Some(50), "when half of the window is above");
        assert_eq!(losses.diverged().map(|(now, _)| now), Some(5.0));
    }

    #[test]
    fn a_short_burst_and_a_young_run_are_let_pass() {
        let mut losses = Losses::default();
        (0..100).for_each(|_| losses.push(1.0));
        (0..20).for_each(|_| losses.push(1e6));
        assert!(losses.diverged().is_none() && !losses.have_risen());
        let mut young = Losses::default();
        (0..50).for_each(|i| young.push(10.0 * i as f32));
        assert!(young.diverged().is_none() && !young.have_risen());
    }

    #[test]
    fn a_state_comes_back() {
        let mut losses = Losses::default();
        for i in 0..250 {
            if [0, 1, 99, 100, 101, 249].contains(&i) {
                let mut restored = Losses::default();
                restored.restore(&losses.state());
                assert_eq!(restored, losses, "after {i} losses");
            }
            losses.push(1.0 / (3 + i) as f32);
        }
    }
}
