use crate::{ClusterPosterior, Coefficients, Condition, Error, NoisePath, Pair, Result, VelocityField, column};
use tch::{Device, Kind, Tensor};

/// A Gaussian of a [`Mixture`].
#[derive(Debug, Clone, PartialEq)]
pub struct Component {
    /// The cluster that it is part of.
    pub cluster: u16,
    /// Its share of the world, above 0; the mixture scales shares to sum to 1.
    pub weight: f64,
    /// D numbers.
    pub mean: Vec<f64>,
    /// Diagonal of the covariance, D numbers above 0.
    pub variance: Vec<f64>,
}

/// A world of clean samples `x0`, D numbers each, drawn from Gaussians.
///
/// As a [`VelocityField`] it is the exact marginal field, as a [`ClusterPosterior`] the exact router; neither looks at text.
#[derive(Debug)]
pub struct Mixture {
    components: Vec<Component>,
    log_weight: Tensor, // (M)
    mean: Tensor,       // (M, D)
    variance: Tensor,   // (M, D)
}

/// Every component's view of a batch of noisy points.
struct Views {
    responsibility: Tensor, // (B, M), p(m | x)
    x0: Tensor,             // (B, M, D), E[x0 | x, m]
    eps: Tensor,            // (B, M, D), E[eps | x, m]
}

impl Mixture {
    /// The world of `components`.
    ///
    /// # Errors
    /// [`Error::Data`] for no components, for means and variances that differ in length, and for shares, means or
    /// variances out of range.
    pub fn new(components: Vec<Component>) -> Result<Self> {
        let wrong = |why: &str| Err(Error::Data { what: "Gaussian mixture".into(), why: why.into() });
        let Some(first) = components.first() else { return wrong("has no component; give one or more") };
        let d = first.mean.len();
        if d == 0 || components.iter().any(|c| c.mean.len() != d || c.variance.len() != d) {
            return wrong("means and variances must all have the same length, 1 or more");
        }
        let positive = |value: f64| value.is_finite() && value > 0.0;
        if !components.iter().all(|c| positive(c.weight) && c.variance.iter().all(|&v| positive(v))) {
            return wrong("shares and variances must be finite and above 0");
        }
        if !components.iter().all(|c| c.mean.iter().all(|m| m.is_finite())) {
            return wrong("means must be finite");
        }
        let total: f64 = components.iter().map(|c| c.weight).sum();
        let log_weight: Vec<f64> = components.iter().map(|c| (c.weight / total).ln()).collect();
        let table = |row: fn(&Component) -> &[f64]| {
            let numbers: Vec<f64> = components.iter().flat_map(|c| row(c).iter().copied()).collect();
            Tensor::from_slice(&numbers).reshape([-1, d as i64])
        };
        let (mean, variance) = (table(|c| &c.mean), table(|c| &c.variance));
        Ok(Self { log_weight: Tensor::from_slice(&log_weight), mean, variance, components })
    }

    /// One Gaussian with a diagonal covariance, in cluster 0.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn gaussian(mean: Vec<f64>, variance: Vec<f64>) -> Result<Self> {
        Self::new(vec![Component { cluster: 0, weight: 1.0, mean, variance }])
    }

    /// The world of one cluster alone.
    ///
    /// # Errors
    /// [`Error::Data`] if it has no component.
    pub fn of_cluster(&self, cluster: u16) -> Result<Self> {
        Self::new(self.components.iter().filter(|c| c.cluster == cluster).cloned().collect())
    }

    /// Clusters, K: one more than the largest number of a component's.
    pub fn clusters(&self) -> usize {
        self.components.iter().map(|c| usize::from(c.cluster) + 1).max().unwrap_or(0)
    }

    /// The exact `E[(x0, eps) | x]` at `x = alpha x0 + sigma eps`, one pair of coefficients an image.
    /// `x` is `(B, ...)` with D numbers an image, and so is the pair.
    pub fn posterior_mean(&self, x: &Tensor, at: &[Coefficients]) -> Pair {
        let Views { responsibility, x0, eps } = self.views(x, at);
        let mix = |part: Tensor| {
            let mean = (responsibility.unsqueeze(-1) * part).sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
            mean.reshape_as(x).to_kind(x.kind())
        };
        Pair { x0: mix(x0), eps: mix(eps) }
    }

    fn views(&self, x: &Tensor, at: &[Coefficients]) -> Views {
        let here = |t: &Tensor| t.to_device(x.device());
        let (mean, variance) = (here(&self.mean), here(&self.variance));
        let x = x.to_kind(Kind::Double).flatten(1, -1).unsqueeze(1); // (B, 1, D)
        let coefficient = |f: fn(&Coefficients) -> f64| column(at.iter().map(f), &x); // (B, 1, 1)
        let (alpha, sigma) = (coefficient(|c| c.alpha), coefficient(|c| c.sigma));
        let residual = &x - &alpha * &mean; // (B, M, D)
        let spread = &alpha * &alpha * &variance + &sigma * &sigma; // variance of x under each component
        let scaled = &residual / &spread;
        let distance = (&residual * &scaled + spread.log()).sum_dim_intlist([2i64].as_slice(), false, Kind::Double);
        let responsibility = (here(&self.log_weight) - distance / 2.0).softmax(-1, Kind::Double);
        Views { responsibility, x0: mean + alpha * variance * &scaled, eps: sigma * scaled }
    }
}

/// Coefficients of the linear path.
fn linear(t: &[f64]) -> Vec<Coefficients> {
    t.iter().map(|&t| NoisePath::Linear.at(t)).collect()
}

impl VelocityField for Mixture {
    fn velocity(&self, x: &Tensor, t: &[f64], _: &Condition) -> Result<Tensor> {
        let pair = self.posterior_mean(x, &linear(t));
        Ok(pair.eps - pair.x0)
    }
}

impl ClusterPosterior for Mixture {
    fn posterior(&self, x: &Tensor, t: &[f64], _: Option<&Tensor>) -> Result<Vec<Vec<f64>>> {
        let responsibility = self.views(x, &linear(t)).responsibility.to_device(Device::Cpu);
        let rows = Vec::<Vec<f64>>::try_from(&responsibility)?;
        let of_clusters = |row: Vec<f64>| {
            let mut sums = vec![0.0; self.clusters()];
            row.iter().zip(&self.components).for_each(|(r, c)| sums[usize::from(c.cluster)] += r);
            sums
        };
        Ok(rows.into_iter().map(of_clusters).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn component(cluster: u16, weight: f64, mean: f64, variance: f64) -> Component {
        Component { cluster, weight, mean: vec![mean], variance: vec![variance] }
    }

    /// Bayes by quadrature: `E[f(x0, cluster) | x]` over a fine grid of x0.
    fn quadrature(world: &[Component], x: f64, c: Coefficients, f: impl Fn(f64, u16) -> f64) -> f64 {
        let (mut sum, mut total) = (0.0, 0.0);
        for i in -40_000..=40_000 {
            let x0 = f64::from(i) * 2.5e-4;
            let likelihood = (-0.5 * ((x - c.alpha * x0) / c.sigma).powi(2)).exp();
            for k in world {
                let density = k.weight * (-0.5 * (x0 - k.mean[0]).powi(2) / k.variance[0]).exp() / k.variance[0].sqrt();
                sum += likelihood * density * f(x0, k.cluster);
                total += likelihood * density;
            }
        }
        sum / total
    }

    #[test]
    fn the_closed_forms_are_bayes_rule() {
        let parts = vec![component(0, 1.0, -1.0, 0.09), component(2, 2.0, 0.5, 0.04), component(0, 1.0, 1.5, 0.25)];
        let world = Mixture::new(parts.clone()).unwrap();
        for (t, x) in [(0.1, 0.3), (0.4, -0.2), (0.7, 0.9), (0.95, -1.4)] {
            let at = NoisePath::Linear.at(t);
            let point = Tensor::from_slice(&[x]).reshape([1, 1]);
            let pair = world.posterior_mean(&point, &[at]);
            let (x0, eps) = (pair.x0.double_value(&[0, 0]), pair.eps.double_value(&[0, 0]));
            assert!((x0 - quadrature(&parts, x, at, |x0, _| x0)).abs() < 1e-9, "{t}: {x0}");
            assert!(
                (eps - quadrature(&parts, x, at, |x0, _| (x - at.alpha * x0) / at.sigma)).abs() < 1e-9,
                "{t}: {eps}"
            );
            let velocity = world.velocity(&point, &[t], &Condition { text: None, guidance: None }).unwrap();
            assert!((velocity.double_value(&[0, 0]) - (eps - x0)).abs() < 1e-12);
            let posterior = world.posterior(&point, &[t], None).unwrap();
            for (k, p) in (0u16..).zip(&posterior[0]) {
                let expected = quadrature(&parts, x, at, |_, cluster| f64::from(u8::from(cluster == k)));
                assert!((p - expected).abs() < 1e-9, "{t}: cluster {k} has {p}, not {expected}");
            }
        }
    }

    #[test]
    fn worlds_that_cannot_be_say_why() {
        let refused = |components: Vec<Component>, word: &str| {
            let text = Mixture::new(components).unwrap_err().to_string();
            assert!(text.contains(word), "{text}");
        };
        refused(vec![], "no component");
        refused(vec![component(0, 0.0, 0.0, 1.0)], "above 0");
        refused(vec![component(0, 1.0, 0.0, f64::NAN)], "above 0");
        refused(vec![component(0, 1.0, f64::INFINITY, 1.0)], "finite");
        refused(
            vec![component(0, 1.0, 0.0, 1.0), Component { mean: vec![0.0; 2], ..component(0, 1.0, 0.0, 1.0) }],
            "length",
        );
        let world = Mixture::new(vec![component(1, 1.0, 0.0, 1.0)]).unwrap();
        assert!(world.of_cluster(0).unwrap_err().to_string().contains("no component"));
    }
}
