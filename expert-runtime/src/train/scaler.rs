use hdd_protocol::Precision;
use tch::Tensor;

/// First scale: the loss is multiplied by it, so that small gradients do not vanish in half precision.
const FIRST: f64 = 65_536.0;
/// Steps without overflow after which the scale doubles.
const GROWTH_INTERVAL: u64 = 2_000;
/// Below this scale an overflow is no matter of the scale.
const LEAST: f64 = 1.0;

/// Dynamic loss scaling (Micikevicius et al., 2018): halves after an overflow, whose step is left out, and doubles after
/// 2,000 good steps. Constant 1 where the precision needs none.
#[derive(Debug, Clone, PartialEq)]
pub struct Scaler {
    dynamic: bool,
    scale: f64,
    good: u64,
    skipped: u64,
}

impl Scaler {
    /// The scaler that `precision` begins with.
    pub fn new(precision: Precision) -> Self {
        let dynamic = precision == Precision::Fp16;
        Self { dynamic, scale: if dynamic { FIRST } else { 1.0 }, good: 0, skipped: 0 }
    }

    /// What the loss is multiplied by.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Steps left out so far.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Hears whether a step's gradients were finite. False if they were not and no smaller scale can help.
    #[must_use]
    pub fn update(&mut self, finite: bool) -> bool {
        match (self.dynamic, finite) {
            (false, finite) => return finite,
            (true, true) => {
                self.good += 1;
                if self.good == GROWTH_INTERVAL {
                    (self.scale, self.good) = (self.scale * 2.0, 0);
                }
            }
            (true, false) => {
                (self.scale, self.good) = (self.scale / 2.0, 0);
                self.skipped += 1;
            }
        }
        self.scale >= LEAST
    }

    /// Scale, good steps since it changed and steps left out, `(3)` float64.
    pub fn state(&self) -> Tensor {
        Tensor::from_slice(&[self.scale, self.good as f64, self.skipped as f64])
    }

    /// Takes over a [`state`](Self::state) that a checkpoint kept.
    pub fn restore(&mut self, state: &Tensor) {
        let at = |i: i64| state.double_value(&[i]).max(0.0);
        (self.scale, self.good, self.skipped) = (at(0), at(1) as u64, at(2) as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_halves_on_overflow_grows_on_success_and_gives_up_at_one() {
        let mut scaler = Scaler::new(Precision::Fp16);
        assert!(scaler.update(false));
        assert_eq!((scaler.scale(), scaler.skipped()), (FIRST / 2.0, 1));
        assert!((0..GROWTH_INTERVAL).all(|_| scaler.update(true)));
        assert_eq!(scaler.scale(), FIRST);
        assert!(scaler.update(true));

        let mut restored = Scaler::new(Precision::Fp16);
        restored.restore(&scaler.state());
        assert_eq!(restored, scaler);

        let overflows = (0..100).take_while(|_| scaler.update(false)).count();
        assert_eq!(overflows, 16, "65,536 is two to the sixteenth");
        assert!(!Scaler::new(Precision::Bf16).update(false));
    }
}
