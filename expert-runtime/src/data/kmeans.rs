//! Spherical k-means (Dhillon and Modha 2001): clusters of unit vectors by dot product, seeded by k-means++ (Arthur and
//! Vassilvitskii 2007) with `1 - dot` as squared distance (half of it, which changes no probability).
//!
//! Bit for bit the same on every machine: sums are in f64 in a fixed order, and only IEEE's exactly rounded operations occur.

use super::broken;
use crate::Result;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

/// What [`kmeans()`] found.
#[derive(Debug, Clone, PartialEq)]
pub struct Clustering {
    /// Unit vectors, one a cluster.
    pub centroids: Vec<Vec<f32>>,
    /// Each point's cluster, the one with the largest dot product.
    pub assignments: Vec<u16>,
    /// Mean dot product of a point with its centroid, -1 to 1.
    pub cohesion: f64,
}

impl Clustering {
    /// Points in each cluster.
    pub fn sizes(&self) -> Vec<usize> {
        let mut sizes = vec![0; self.centroids.len()];
        self.assignments.iter().for_each(|&k| sizes[usize::from(k)] += 1);
        sizes
    }
}

/// Partitions unit vectors into `clusters`, in at most `rounds` rounds, fewer once no assignment changes.
///
/// A cluster that loses its last point starts again at the point farthest from its centroid, so none is empty unless
/// there are fewer distinct points than clusters.
///
/// # Errors
/// [`crate::Error::Data`] for no cluster, fewer points than clusters, or points that are not unit vectors of one dimension.
pub fn kmeans(features: &[Vec<f32>], clusters: u16, seed: u64, rounds: usize) -> Result<Clustering> {
    if clusters == 0 || features.len() < usize::from(clusters) {
        let why = format!("{} images cannot make {clusters} clusters; ask for 1 to as many as images", features.len());
        return Err(broken("clustering", why));
    }
    let dimension = features[0].len();
    let is_unit = |f: &Vec<f32>| f.len() == dimension && (dot(f, f) - 1.0).abs() < 1e-3;
    if let Some(i) = features.iter().position(|f| !is_unit(f)) {
        return Err(broken(
            "clustering",
            format!("feature {i} is no unit vector of {dimension} numbers; compute it again"),
        ));
    }
    let mut centroids = plus_plus(features, usize::from(clusters), seed);
    let mut assignments = assign(features, &centroids);
    for _ in 0..rounds {
        centroids = update(features, &assignments, centroids);
        let next = assign(features, &centroids);
        if next == assignments {
            break;
        }
        assignments = next;
    }
    let sum: f64 = features.iter().zip(&assignments).map(|(f, &k)| dot(f, &centroids[usize::from(k)])).sum();
    Ok(Clustering { centroids, assignments, cohesion: sum / features.len() as f64 })
}

/// Each feature's cluster: the centroid with the largest dot product, of equals the first.
///
/// Vectors must be of one dimension; a charter's check and [`features`](super::features()) see to that.
pub fn assign(features: &[Vec<f32>], centroids: &[Vec<f32>]) -> Vec<u16> {
    let nearest = |f: &Vec<f32>| {
        let mut best = (f64::NEG_INFINITY, 0);
        for (k, centroid) in centroids.iter().enumerate() {
            let similarity = dot(f, centroid);
            if similarity > best.0 {
                best = (similarity, k as u16);
            }
        }
        best.1
    };
    features.iter().map(nearest).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
}

/// Draws each centroid from the points with probability proportional to the distance from those already drawn.
fn plus_plus(features: &[Vec<f32>], clusters: usize, seed: u64) -> Vec<Vec<f32>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut uniform = || (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64; // [0, 1)
    let mut distances = vec![1.0; features.len()];
    let mut centroids = Vec::with_capacity(clusters);
    for _ in 0..clusters {
        let mut left = uniform() * distances.iter().sum::<f64>();
        let drawn = distances.iter().position(|&d| {
            left -= d;
            left < 0.0
        });
        let centroid = &features[drawn.unwrap_or(0)]; // every point is a centroid already: all distances are 0
        for (d, f) in distances.iter_mut().zip(features) {
            let distance = (1.0 - dot(f, centroid)).max(0.0);
            *d = if centroids.is_empty() { distance } else { d.min(distance) };
        }
        centroids.push(centroid.clone());
    }
    centroids
}

/// Moves each centroid to the direction of its points' sum, and an empty cluster's to the point farthest from its own.
fn update(features: &[Vec<f32>], assignments: &[u16], mut centroids: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
    let mut sums = vec![vec![0f64; features[0].len()]; centroids.len()];
    let mut sizes = vec![0; centroids.len()];
    for (f, &k) in features.iter().zip(assignments) {
        sums[usize::from(k)].iter_mut().zip(f).for_each(|(s, &x)| *s += f64::from(x));
        sizes[usize::from(k)] += 1;
    }
    let mut similarities: Vec<f64> =
        features.iter().zip(assignments).map(|(f, &k)| dot(f, &centroids[usize::from(k)])).collect();
    for (k, (centroid, sum)) in centroids.iter_mut().zip(&sums).enumerate() {
        let norm = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
        if sizes[k] == 0 {
            let farthest = (0..features.len()).min_by(|&a, &b| similarities[a].total_cmp(&similarities[b]));
            if let Some(i) = farthest {
                centroid.clone_from(&features[i]);
                similarities[i] = f64::INFINITY; // taken
            }
        } else if norm > 1e-9 {
            *centroid = sum.iter().map(|x| (x / norm) as f32).collect();
        }
    }
    centroids
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn unit(v: Vec<f32>) -> Vec<f32> {
        let norm = dot(&v, &v).sqrt() as f32;
        if norm < 1e-3 { vec![0.5; v.len()] } else { v.iter().map(|x| x / norm).collect() }
    }

    fn points(number: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Vec<f32>>> {
        prop::collection::vec(prop::collection::vec(-1.0f32..1.0, 4).prop_map(unit), number)
    }

    proptest! {
        #[test]
        fn each_point_is_at_its_nearest_centroid(features in points(6..60), clusters in 1u16..6, seed: u64) {
            let found = kmeans(&features, clusters, seed, 50).unwrap();
            prop_assert_eq!(found.centroids.len(), usize::from(clusters));
            for (f, &k) in features.iter().zip(&found.assignments) {
                let own = dot(f, &found.centroids[usize::from(k)]);
                prop_assert!(found.centroids.iter().all(|c| dot(f, c) <= own));
            }
            prop_assert!(found.centroids.iter().all(|c| (dot(c, c) - 1.0).abs() < 1e-5));
            prop_assert_eq!(found, kmeans(&features, clusters, seed, 50).unwrap());
        }

        #[test]
        fn cohesion_never_falls_from_round_to_round(features in points(10..60), clusters in 1u16..6, seed: u64) {
            let cohesion: Vec<f64> =
                (0..12).map(|rounds| kmeans(&features, clusters, seed, rounds).unwrap().cohesion).collect();
            prop_assert!(cohesion.is_sorted_by(|a, b| *b >= a - 1e-6), "{:?}", cohesion);
        }

        #[test]
        fn the_best_of_a_few_seeds_recovers_separated_blobs(
            noise in prop::collection::vec(prop::collection::vec(-0.15f32..0.15, 4), 40),
            seed in 0..u64::MAX - 8,
        ) {
            let blob = |(i, mut v): (usize, Vec<f32>)| {
                v[i % 4] += 1.0;
                unit(v)
            };
            let features: Vec<_> = noise.into_iter().enumerate().map(blob).collect();
            let runs = (seed..seed + 8).map(|seed| kmeans(&features, 4, seed, 50).unwrap());
            let best = runs.max_by(|a, b| a.cohesion.total_cmp(&b.cohesion)).unwrap();
            prop_assert_eq!(best.sizes(), vec![10; 4]);
            prop_assert!((0..40).all(|i| best.assignments[i] == best.assignments[i % 4]));
        }
    }

    #[test]
    fn an_empty_cluster_starts_again_at_the_farthest_point() {
        let (a, b) = (vec![1.0, 0.0], unit(vec![1.0, 1.0]));
        let features = vec![a.clone(), a.clone(), b.clone()];
        let moved = update(&features, &[0, 0, 0], vec![a.clone(), a]);
        assert_eq!(moved[1], b);
    }

    #[test]
    fn duplicates_and_opposites_are_fine() {
        let same = kmeans(&vec![vec![1.0, 0.0]; 5], 3, 1, 50).unwrap();
        assert_eq!(same.assignments, [0; 5]);
        assert_eq!(same.cohesion, 1.0);
        let opposite = kmeans(&[vec![1.0, 0.0], vec![-1.0, 0.0]], 1, 1, 50).unwrap();
        assert!((dot(&opposite.centroids[0], &opposite.centroids[0]) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn impossible_clusterings_are_refused() {
        for (features, clusters, word) in [
            (vec![vec![1.0]; 3], 4, "3 images"),
            (vec![vec![1.0]; 3], 0, "0 clusters"),
            (vec![], 1, "0 images"),
            (vec![vec![1.0, 0.0], vec![1.0]], 1, "feature 1"),
            (vec![vec![0.5, 0.0]], 1, "feature 0"),
            (vec![vec![f32::NAN, 0.0]], 1, "feature 0"),
        ] {
            let error = kmeans(&features, clusters, 0, 9).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
