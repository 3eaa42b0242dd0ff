//! Which experts are asked at a point, and with what weight: pure numbers, no tensors.

use hdd_protocol::ExpertSelection;

/// What selection needs to know of an expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Its cluster.
    pub cluster: u16,
    /// Whether it was trained on the linear path.
    pub linear: bool,
}

/// Weights of the experts at time `t`, summing to 1; zero means not asked.
///
/// `posterior[k]` is the router's p(k | x, t). A cluster's weight is shared equally by its experts; clusters without an
/// expert are masked. Under a threshold, experts of the other side are masked too; where that leaves none, all count.
/// `converted_below` masks experts off the linear path above that time in the same way.
pub fn weights(
    posterior: &[f64],
    candidates: &[Candidate],
    selection: ExpertSelection,
    converted_below: Option<f32>,
    t: f64,
) -> Vec<f64> {
    let n = |cluster: u16| candidates.iter().filter(|c| c.cluster == cluster).count().max(1) as f64;
    let mut weights: Vec<f64> =
        candidates.iter().map(|c| posterior.get(usize::from(c.cluster)).map_or(0.0, |p| p / n(c.cluster))).collect();
    if let ExpertSelection::Threshold { time, reversed } = selection {
        let linear_side = (t > f64::from(time)) != reversed;
        keep(&mut weights, candidates, |c| c.linear == linear_side);
    }
    if converted_below.is_some_and(|limit| t > f64::from(limit)) {
        keep(&mut weights, candidates, |c| c.linear);
    }
    let k = match selection {
        ExpertSelection::Top1 => 1,
        ExpertSelection::TopK(k) => usize::from(k),
        ExpertSelection::Full | ExpertSelection::Threshold { .. } => candidates.len(),
    };
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]));
    for &i in order.iter().skip(k) {
        weights[i] = 0.0;
    }
    let total: f64 = weights.iter().sum();
    if total > 0.0 {
        weights.iter_mut().for_each(|w| *w /= total);
    } else if let Some(&first) = order.first() {
        weights[first] = 1.0; // the router rules out every cluster that has an expert
    }
    weights
}

/// Zeroes what `kept` excludes, unless that leaves no weight at all.
fn keep(weights: &mut [f64], candidates: &[Candidate], kept: impl Fn(&Candidate) -> bool) {
    if candidates.iter().zip(&*weights).any(|(c, w)| kept(c) && *w > 0.0) {
        weights.iter_mut().zip(candidates).filter(|(_, c)| !kept(c)).for_each(|(w, _)| *w = 0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FM: bool = true;
    const DDPM: bool = false;

    fn candidates(list: &[(u16, bool)]) -> Vec<Candidate> {
        list.iter().map(|&(cluster, linear)| Candidate { cluster, linear }).collect()
    }

    #[test]
    fn modes() {
        let check = |list: &[(u16, bool)], selection, gate, t, expected: &[f64]| {
            let got = weights(&[0.5, 0.3, 0.2], &candidates(list), selection, gate, t);
            assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{selection:?}: {got:?}");
        };
        let three = [(0, FM), (1, DDPM), (2, FM)];
        use ExpertSelection::*;
        check(&three, Full, None, 0.9, &[0.5, 0.3, 0.2]);
        check(&three, Top1, None, 0.9, &[1.0, 0.0, 0.0]);
        check(&three, TopK(2), None, 0.9, &[0.625, 0.375, 0.0]);
        check(&three, TopK(9), None, 0.9, &[0.5, 0.3, 0.2]);
        // Cluster 0 has no expert; cluster 1 has two.
        check(&[(1, FM), (1, DDPM), (2, FM)], Full, None, 0.9, &[0.3, 0.3, 0.4]);
        let threshold = |reversed| Threshold { time: 0.5, reversed };
        check(&three, threshold(false), None, 0.9, &[0.5 / 0.7, 0.0, 0.2 / 0.7]);
        check(&three, threshold(false), None, 0.5, &[0.0, 1.0, 0.0]);
        check(&three, threshold(true), None, 0.9, &[0.0, 1.0, 0.0]);
        check(&[(0, FM), (1, FM)], threshold(false), None, 0.1, &[0.625, 0.375]); // a side without experts
        check(&three, TopK(2), Some(0.5), 0.9, &[0.5 / 0.7, 0.0, 0.2 / 0.7]);
        check(&three, TopK(2), Some(0.5), 0.4, &[0.625, 0.375, 0.0]);
        // Two masks that exclude each other: the first holds.
        let late = Threshold { time: 0.8, reversed: false };
        check(&three, late, Some(0.4), 0.6, &[0.0, 1.0, 0.0]);
        assert_eq!(weights(&[1.0, 0.0], &candidates(&[(1, FM)]), Top1, None, 0.5), [1.0]);
    }

    proptest! {
        #[test]
        fn weights_sum_to_one(p in prop::collection::vec(0.0f64..1.0, 4), k in 1u16..6, t in 0.0f64..1.0,
                              list in prop::collection::vec((0u16..4, any::<bool>()), 1..6), mode in 0..4) {
            let selection = match mode {
                0 => ExpertSelection::Top1,
                1 => ExpertSelection::TopK(k),
                2 => ExpertSelection::Full,
                _ => ExpertSelection::Threshold { time: 0.5, reversed: k > 2 },
            };
            let got = weights(&p, &candidates(&list), selection, (k > 3).then_some(0.4), t);
            prop_assert!((got.iter().sum::<f64>() - 1.0).abs() < 1e-9);
            prop_assert!(got.iter().all(|w| *w >= 0.0));
        }

        #[test]
        fn a_threshold_asks_one_side_where_it_has_experts(
            p in prop::collection::vec(0.01f64..1.0, 4), list in prop::collection::vec((0u16..4, any::<bool>()), 1..6),
            time in 0.0f32..1.0, t in 0.0f64..1.0, reversed: bool,
        ) {
            let list = candidates(&list);
            let got = weights(&p, &list, ExpertSelection::Threshold { time, reversed }, None, t);
            let full = weights(&p, &list, ExpertSelection::Full, None, t);
            let side = if reversed { t <= f64::from(time) } else { t > f64::from(time) };
            check_mask(&got, &full, &list, side)?;
            // Swapping the sides at the same time asks the others.
            let other = weights(&p, &list, ExpertSelection::Threshold { time, reversed: !reversed }, None, t);
            check_mask(&other, &full, &list, !side)?;
        }

        #[test]
        fn the_gate_keeps_converted_experts_out_of_high_noise(
            p in prop::collection::vec(0.01f64..1.0, 4), list in prop::collection::vec((0u16..4, any::<bool>()), 1..6),
            gate in 0.0f32..1.0, t in 0.0f64..1.0, k in 1u16..6,
        ) {
            let list = candidates(&list);
            let gated = |selection| weights(&p, &list, selection, Some(gate), t);
            let open = |selection| weights(&p, &list, selection, None, t);
            if t <= f64::from(gate) {
                prop_assert_eq!(gated(ExpertSelection::TopK(k)), open(ExpertSelection::TopK(k)));
            } else {
                check_mask(&gated(ExpertSelection::Full), &open(ExpertSelection::Full), &list, FM)?;
                // k counts experts that are asked: the gate comes first.
                let allowed = gated(ExpertSelection::Full).iter().filter(|w| **w > 0.0).count();
                let asked = gated(ExpertSelection::TopK(k)).iter().filter(|w| **w > 0.0).count();
                prop_assert_eq!(asked, allowed.min(usize::from(k)));
            }
        }
    }

    /// `got` is `full` on the experts whose `linear` is `side`, renormalised; all of it where there are none.
    fn check_mask(got: &[f64], full: &[f64], list: &[Candidate], side: bool) -> Result<(), TestCaseError> {
        let none = list.iter().all(|c| c.linear != side);
        let kept: Vec<f64> =
            full.iter().zip(list).map(|(w, c)| if none || c.linear == side { *w } else { 0.0 }).collect();
        let total: f64 = kept.iter().sum();
        for (got, kept) in got.iter().zip(kept) {
            prop_assert!((got - kept / total).abs() < 1e-12, "{got} for {}", kept / total);
        }
        Ok(())
    }
}
