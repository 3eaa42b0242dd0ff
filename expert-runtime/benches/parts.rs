//! The parts of a step, forward and backward: the project's kernels beside libtorch's operators, the optimiser, and a block's
//! layers. `deploy/bench.sh parts` runs it; HDD_THREADS sets libtorch's threads.

use divan::Bencher;
use hdd_expert_runtime::{
    Adam, AdamState, keep_pages, lerp,
    network::{attention, gelu, norm_modulate},
    normal,
};
use tch::Tensor;

/// Small expert: batch 32, 64 tokens, width 192, 8 words. B/2: batch 4, 256 tokens, width 768, 77 words.
const SHAPES: [Shape; 2] = [
    Shape { name: "small", batch: 32, tokens: 64, width: 192, heads: 6, words: 8 },
    Shape { name: "B/2", batch: 4, tokens: 256, width: 768, heads: 12, words: 77 },
];

#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    batch: i64,
    tokens: i64,
    width: i64,
    heads: i64,
    words: i64,
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Shape {
    /// Rows of `columns` widths, tokens or words of a batch.
    fn rows(&self, rows: i64, columns: i64) -> Tensor {
        let shape = [self.batch, rows, columns * self.width];
        normal(&shape, 1).map(|x| x.set_requires_grad(true)).unwrap_or_default()
    }
}

/// Times `f` with its gradients by `inputs`.
fn both_ways(bencher: Bencher<'_, '_>, inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Tensor) {
    let upstream = f(inputs).ones_like();
    bencher.bench_local(|| {
        let y = (f(inputs) * &upstream).sum(upstream.kind());
        Tensor::run_backward(&[y], inputs, false, false)
    });
}

fn split(x: &Tensor, heads: i64) -> Tensor {
    x.unflatten(2, [heads, -1]).transpose(1, 2)
}

fn libtorch_attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: i64) -> Tensor {
    let (q, k, v) = (split(q, heads), split(k, heads), split(v, heads));
    Tensor::scaled_dot_product_attention(&q, &k, &v, None::<Tensor>, 0.0, false, None, false)
        .transpose(1, 2)
        .flatten(2, 3)
}

#[divan::bench(args = SHAPES)]
fn self_attention_ours(bencher: Bencher<'_, '_>, s: &Shape) {
    both_ways(bencher, &[s.rows(s.tokens, 3)], |x| attention(&x[0], None, s.heads));
}

#[divan::bench(args = SHAPES)]
fn self_attention_libtorch(bencher: Bencher<'_, '_>, s: &Shape) {
    both_ways(bencher, &[s.rows(s.tokens, 3)], |x| {
        let p = x[0].chunk(3, 2);
        libtorch_attention(&p[0], &p[1], &p[2], s.heads)
    });
}

#[divan::bench(args = SHAPES)]
fn text_attention_ours(bencher: Bencher<'_, '_>, s: &Shape) {
    both_ways(bencher, &[s.rows(s.tokens, 1), s.rows(s.words, 2)], |x| attention(&x[0], Some(&x[1]), s.heads));
}

#[divan::bench(args = SHAPES)]
fn text_attention_libtorch(bencher: Bencher<'_, '_>, s: &Shape) {
    both_ways(bencher, &[s.rows(s.tokens, 1), s.rows(s.words, 2)], |x| {
        let p = x[1].chunk(2, 2);
        libtorch_attention(&x[0], &p[0], &p[1], s.heads)
    });
}

#[divan::bench(args = SHAPES)]
fn gelu_ours(bencher: Bencher<'_, '_>, s: &Shape) {
    both_ways(bencher, &[s.rows(s.tokens, 4)], |x| gelu(&x[0]));
}

#[divan::bench(args = SHAPES)]
fn gelu_libtorch(bencher: Bencher<'_, '_>, s: &Shape) {
    both_ways(bencher, &[s.rows(s.tokens, 4)], |x| x[0].gelu("tanh"));
}

#[divan::bench(args = SHAPES)]
fn norm_modulate_ours(bencher: Bencher<'_, '_>, s: &Shape) {
    both_ways(bencher, &[s.rows(s.tokens, 1), s.rows(1, 1), s.rows(1, 1)], |x| {
        norm_modulate(&x[0], &x[1], &x[2], 1e-6)
    });
}

#[divan::bench(args = SHAPES)]
fn norm_modulate_libtorch(bencher: Bencher<'_, '_>, s: &Shape) {
    both_ways(bencher, &[s.rows(s.tokens, 1), s.rows(1, 1), s.rows(1, 1)], |x| {
        let normed = x[0].layer_norm([s.width], None::<Tensor>, None::<Tensor>, 1e-6, true);
        x[1].addcmul(&normed, &(&x[2] + 1.0))
    });
}

/// The products of one block's MLP, which the rest is to be held against.
#[divan::bench(args = SHAPES)]
fn mlp_products(bencher: Bencher<'_, '_>, s: &Shape) {
    let weights = |rows: i64, columns: i64| normal(&[rows, columns], 2).unwrap_or_default().set_requires_grad(true);
    let inputs = [s.rows(s.tokens, 1), weights(4 * s.width, s.width), weights(s.width, 4 * s.width)];
    both_ways(bencher, &inputs, |x| x[0].linear(&x[1], None::<Tensor>).linear(&x[2], None::<Tensor>));
}

/// AdamW and the average over 3.9 million parameters in 90 tensors.
#[divan::bench]
fn adamw_and_average(bencher: Bencher<'_, '_>) {
    let draw = |seed: u64| (0..90).map(|i| normal(&[43_000], seed + i).unwrap_or_default()).collect::<Vec<_>>();
    let (params, grads, averages) = (draw(0), draw(100), draw(200));
    let state = AdamState::new(&params);
    let adam = Adam { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 };
    bencher.bench_local(|| {
        let stepped = state.step(&params, &grads, 10, 1e-4, adam);
        stepped.and_then(|()| lerp(&averages, &params, 1e-4))
    });
}

fn main() {
    keep_pages();
    if let Some(threads) = std::env::var("HDD_THREADS").ok().and_then(|n| n.parse().ok()) {
        tch::set_num_threads(threads);
    }
    divan::main();
}
