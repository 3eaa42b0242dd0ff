//! Who trains on what, decided by hashes of names, so that anyone can repeat it and no list has to travel.

use super::Images;
use std::collections::BTreeMap;

/// One name in this many is held out.
const HELD_OUT: u64 = 20;

/// True for one name in twenty: nobody trains on images of that name, aggregators measure experts on them.
pub fn held_out(name: &str) -> bool {
    rank("hdd-node held-out names", 0, name).is_multiple_of(HELD_OUT)
}

/// Indices of the images of `cluster` that a contributor trains on: not held out, whole names in an order drawn from
/// `seed`, until the next name would pass `limit`.
///
/// `assignments` has one cluster an image. Another seed gives another contributor other names.
pub fn subset(images: &Images, assignments: &[u16], cluster: u16, limit: Option<usize>, seed: u64) -> Vec<usize> {
    let mut groups: BTreeMap<(u64, &str), Vec<usize>> = BTreeMap::new();
    for (i, (name, &assigned)) in images.names.iter().zip(assignments).enumerate() {
        if assigned == cluster && !held_out(name) {
            groups.entry((rank("hdd-node subset of names", seed, name), name)).or_default().push(i);
        }
    }
    let mut chosen = Vec::new();
    for group in groups.into_values() {
        if limit.is_some_and(|limit| chosen.len() + group.len() > limit) {
            break;
        }
        chosen.extend(group);
    }
    chosen
}

fn rank(context: &str, seed: u64, name: &str) -> u64 {
    let mut stream =
        blake3::Hasher::new_derive_key(context).update(&seed.to_le_bytes()).update(name.as_bytes()).finalize_xof();
    let mut bytes = [0; 8];
    stream.fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Two images a name, alternating over two clusters by name.
    fn names(number: usize) -> (Images, Vec<u16>) {
        let names: Vec<String> = (0..2 * number).map(|i| format!("name {}", i % number)).collect();
        let assignments = (0..2 * number).map(|i| (i % number % 2) as u16).collect();
        (Images { captions: names.clone(), names, ..Images::empty(1) }, assignments)
    }

    #[test]
    fn one_name_in_twenty_is_held_out_and_nobody_trains_on_it() {
        let (images, assignments) = names(4000);
        let held = images.names[..4000].iter().filter(|n| held_out(n)).count();
        assert!((140..260).contains(&held), "{held}");
        let trained: Vec<usize> = (0..2).flat_map(|k| subset(&images, &assignments, k, None, 3)).collect();
        assert!(trained.iter().all(|&i| !held_out(&images.names[i])));
        assert_eq!(trained.len(), 2 * (4000 - held), "all others are trained on, once");
        assert_eq!(trained.iter().collect::<BTreeSet<_>>().len(), trained.len());
    }

    #[test]
    fn subsets_keep_names_together_and_grow_with_their_limit() {
        let (images, assignments) = names(300);
        let small = subset(&images, &assignments, 1, Some(41), 7);
        let large = subset(&images, &assignments, 1, Some(100), 7);
        assert_eq!((small.len(), large.len()), (40, 100), "two images a name: an odd limit is not passed");
        assert_eq!(large[..40], small);
        assert!(large.iter().all(|&i| assignments[i] == 1));
        assert!(small.chunks(2).all(|pair| images.names[pair[0]] == images.names[pair[1]]));
    }

    #[test]
    fn the_seed_alone_decides() {
        let (images, assignments) = names(300);
        let take = |seed| subset(&images, &assignments, 0, Some(50), seed);
        assert_eq!(take(1), take(1));
        assert_ne!(take(1), take(2));
        // The order of the images does not: the same names are taken of the images reversed.
        let order: Vec<usize> = (0..images.len()).rev().collect();
        let mirrored = Images { names: order.iter().map(|&i| images.names[i].clone()).collect(), ..Images::empty(1) };
        let clusters: Vec<u16> = order.iter().map(|&i| assignments[i]).collect();
        let names = |images: &Images, chosen: Vec<usize>| -> BTreeSet<String> {
            chosen.into_iter().map(|i| images.names[i].clone()).collect()
        };
        assert_eq!(names(&images, take(1)), names(&mirrored, subset(&mirrored, &clusters, 0, Some(50), 1)));
    }
}
