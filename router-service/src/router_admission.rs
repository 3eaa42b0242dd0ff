//! What a router that somebody else trained must show before it serves.
//!
//! Its file has the charter's shapes and finite numbers (`Router::read`). Then, without any image: finite probabilities on
//! noise, on nothing and on extreme input, with text and without, and at `t = 1`, where the noise tells nothing, about the
//! prior that its author states. That much an untrained router with an even prior may pass. With held-out images: an accuracy at low noise well
//! above what a guess can have.

use crate::{Error, Result, Router, RouterAccuracy, RouterExamples};
use hdd_expert_runtime::sampler;
use hdd_protocol::Charter;
use tch::Tensor;

/// Of fewer held-out images their accuracy says little: its standard error is up to 0.09 at 32.
const FEWEST: usize = 32;
/// Noises that the posterior at `t = 1` is averaged over.
const NOISES: u64 = 64;
/// Largest total variation between that average and the stated prior.
const PRIOR_DISTANCE: f64 = 0.25;

/// What a router is held against.
pub struct RouterCheck<'a> {
    /// Shares of the clusters that its author states, if anybody does.
    pub prior: Option<&'a [f32]>,
    /// Images of names that nobody trained on, if there are any.
    pub held_out: Option<&'a RouterExamples>,
    /// How far from the best guess to certainty its accuracy at low noise must come, 0 to 1.
    ///
    /// The best guess is to always say the largest cluster; its accuracy is that cluster's share of the held-out images. What
    /// looks at neither image nor text stays at or below it whatever its weights are, so that any margin tells the two
    /// apart. A router with text may be well above it by the text alone, which it is given.
    pub margin: f64,
}

/// Tests a router; what was measured is absent where there are too few held-out images.
///
/// # Errors
/// [`Error::Refused`] with the test that failed and its figures.
pub fn test_router(router: &Router, charter: &Charter, check: &RouterCheck<'_>) -> Result<Option<RouterAccuracy>> {
    let _guard = tch::no_grad_guard();
    behaves(router, charter, check.prior)?;
    let Some(held_out) = check.held_out.filter(|examples| examples.len() >= FEWEST) else { return Ok(None) };
    let accuracy = router.accuracy(held_out)?;
    let guess = f64::from(held_out.prior(charter.clusters()).into_iter().fold(0.0, f32::max));
    let floor = guess + check.margin * (1.0 - guess);
    if accuracy.low_noise() < floor {
        return Err(Error::Refused(format!(
            "it is right for {:.0}% of {} held-out images at low noise (t < 0.5); a guess is right for {:.0}%, asked for are {:.0}%",
            100.0 * accuracy.low_noise(),
            held_out.len(),
            100.0 * guess,
            100.0 * floor
        )));
    }
    Ok(Some(accuracy))
}

fn behaves(router: &Router, charter: &Charter, prior: Option<&[f32]>) -> Result<()> {
    let shape = [charter.latent.channels, charter.latent.size, charter.latent.size].map(i64::from);
    let words = [1, charter.text.length, charter.text.width].map(i64::from);
    let seeds: Vec<u64> = (0..NOISES).collect();
    let [noise, text] = [shape, words].map(|shape| sampler::noise(&seeds, shape, router.device()));
    let text = text.squeeze_dim(1);
    let posterior =
        |x: &Tensor, t: f64, text: Option<&Tensor>| router.probabilities(x, &vec![t; x.size()[0] as usize], text);
    for t in [1.0, 0.66, 0.33, 0.01] {
        for (what, x) in [("noise", &noise), ("zeros", &noise.zeros_like()), ("extreme input", &(&noise * 100.0))] {
            for (with, text) in [("without text", None), ("with text", Some(&text))] {
                if posterior(x, t, text)?.iter().flatten().any(|p| !p.is_finite()) {
                    return Err(Error::Refused(format!(
                        "on {what} {with} at t = {t} its probabilities are no numbers"
                    )));
                }
            }
        }
    }
    let Some(prior) = prior else { return Ok(()) };
    let rows = posterior(&noise, 1.0, None)?;
    let mean = |k: usize| rows.iter().map(|row| row[k]).sum::<f64>() / rows.len() as f64;
    let distance = prior.iter().enumerate().map(|(k, &p)| (mean(k) - f64::from(p)).abs()).sum::<f64>() / 2.0;
    if distance > PRIOR_DISTANCE {
        return Err(Error::Refused(format!(
            "from noise alone (t = 1) it predicts other clusters than the shares that its author states: they differ by \
             {distance:.2}, at most {PRIOR_DISTANCE} is taken"
        )));
    }
    Ok(())
}
