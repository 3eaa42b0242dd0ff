// The tanh GELU, and attention among at most some hundred tokens, of float32 on the CPU, forward and backward: there
// libtorch spends more on tanh, on copies of heads and on many small products than on the arithmetic.

#include <ATen/ATen.h>
#include <ATen/TensorIterator.h>
#include <cmath>
#include <cstring>
#include <torch/csrc/autograd/custom_function.h>
#include <vector>

#include "guarded.h"

// One build serves x86 processors with and without wide vectors: the loader picks the clone. ARM's are the same everywhere.
#if defined(__x86_64__) && defined(__linux__) && !defined(__clang__) && __GNUC__ >= 12
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define WORTHWHILE __builtin_cpu_supports("x86-64-v3")
#else
#define CLONES
#if defined(__aarch64__)
#define WORTHWHILE true
#else
#define WORTHWHILE false
#endif
#endif
#define INLINE static inline __attribute__((always_inline))

namespace {
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

typedef float vec __attribute__((vector_size(32), aligned(4), may_alias));
constexpr int64_t LANES = 8;

INLINE vec load(const float *p) { return *reinterpret_cast<const vec *>(p); }
INLINE void store(float *p, vec v) { *reinterpret_cast<vec *>(p) = v; }

// exp(x) to 2 units in the last place: 2^n times a polynomial of the rest (Cephes). NaN stays NaN; the ends are clamped.
INLINE float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float n = __builtin_rintf(x * 1.44269504f);
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  memcpy(&power, &bits, 4);
  return p * power;
}

// 0.5 x (1 + tanh(u / 2)) is x sigmoid(u), with u = 2 sqrt(2 / pi) (x + 0.044715 x^3).
constexpr float SCALE = 1.5957691216f, CUBIC = 0.044715f;

CLONES void gelu_forward(float *y, const float *x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] / (1.0f + exponential(-SCALE * (x[i] + CUBIC * x[i] * x[i] * x[i])));
}

CLONES void gelu_backward(float *out, const float *grad, const float *x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float v = x[i], s = 1.0f / (1.0f + exponential(-SCALE * (v + CUBIC * v * v * v)));
    out[i] = grad[i] * (s + v * s * (1.0f - s) * SCALE * (1.0f + 3.0f * CUBIC * v * v));
  }
}

// A matrix whose element (i, j) lies at data[i * row + j * column].
struct View {
  const float *data;
  int64_t row, column;
};

template <int ROWS, int VECS> INLINE void tile(int64_t k, View a, const float *b, int64_t b_row, float *c, int64_t c_row) {
  vec sum[ROWS][VECS] = {};
  for (int64_t i = 0; i < k; ++i) {
    vec right[VECS];
    for (int v = 0; v < VECS; ++v) right[v] = load(b + i * b_row + v * LANES);
    for (int r = 0; r < ROWS; ++r)
      for (int v = 0; v < VECS; ++v) sum[r][v] += a.data[r * a.row + i * a.column] * right[v];
  }
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < VECS; ++v) store(c + r * c_row + v * LANES, sum[r][v]);
}

template <int ROWS> INLINE void rows(int64_t n, int64_t k, View a, const float *b, int64_t b_row, float *c, int64_t c_row) {
  int64_t j = 0;
  for (; j + 2 * LANES <= n; j += 2 * LANES) tile<ROWS, 2>(k, a, b + j, b_row, c + j, c_row);
  for (; j + LANES <= n; j += LANES) tile<ROWS, 1>(k, a, b + j, b_row, c + j, c_row);
  for (; j < n; ++j)
    for (int r = 0; r < ROWS; ++r) {
      float sum = 0;
      for (int64_t i = 0; i < k; ++i) sum += a.data[r * a.row + i * a.column] * b[i * b_row + j];
      c[r * c_row + j] = sum;
    }
}

// c (m, n) = a (m, k) b (k, n); rows of b and c are contiguous.
INLINE void product(int64_t m, int64_t n, int64_t k, View a, const float *b, int64_t b_row, float *c, int64_t c_row) {
  int64_t i = 0;
  for (; i + 4 <= m; i += 4) rows<4>(n, k, {a.data + i * a.row, a.row, a.column}, b, b_row, c + i * c_row, c_row);
  for (; i < m; ++i) rows<1>(n, k, {a.data + i * a.row, a.row, a.column}, b, b_row, c + i * c_row, c_row);
}

// (m, n), times scale, to (n, row) with row >= m; what is beyond m becomes zero.
INLINE void transpose(int64_t m, int64_t n, const float *from, int64_t from_row, float scale, float *to, int64_t row) {
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t i = 0; i < m; ++i) to[j * row + i] = scale * from[i * from_row + j];
    for (int64_t i = m; i < row; ++i) to[j * row + i] = 0;
  }
}

INLINE float dot(const float *a, const float *b, int64_t n) {
  vec sums = {};
  int64_t j = 0;
  for (; j + LANES <= n; j += LANES) sums += load(a + j) * load(b + j);
  float sum = 0;
  for (; j < n; ++j) sum += a[j] * b[j];
  for (int lane = 0; lane < LANES; ++lane) sum += sums[lane];
  return sum;
}

INLINE float total(const float *a, int64_t n) {
  vec sums = {};
  int64_t j = 0;
  for (; j + LANES <= n; j += LANES) sums += load(a + j);
  float sum = 0;
  for (; j < n; ++j) sum += a[j];
  for (int lane = 0; lane < LANES; ++lane) sum += sums[lane];
  return sum;
}

INLINE void softmax(float *p, int64_t n) {
  float highest = p[0];
  int64_t j = 0;
  if (n >= LANES) {
    float high[LANES];
    memcpy(high, p, sizeof high);
    for (; j + LANES <= n; j += LANES)
      for (int lane = 0; lane < LANES; ++lane) high[lane] = high[lane] < p[j + lane] ? p[j + lane] : high[lane];
    for (int lane = 0; lane < LANES; ++lane) highest = highest < high[lane] ? high[lane] : highest;
  }
  for (; j < n; ++j) highest = highest < p[j] ? p[j] : highest;
  for (j = 0; j < n; ++j) p[j] = exponential(p[j] - highest);
  const float inverse = 1.0f / total(p, n);
  for (j = 0; j < n; ++j) p[j] *= inverse;
}

// Tokens of one image: y = norm(x) (1 + scale) + shift, all (N, D) by rows; leaves each row's mean and 1 / deviation.
CLONES void modulate_forward(int64_t n, int64_t d, const float *__restrict x, const float *__restrict shift,
                             const float *__restrict scale, float epsilon, float *__restrict y, float *moments) {
  for (int64_t i = 0; i < n; ++i, x += d, y += d, moments += 2) {
    const float mean = total(x, d) / d;
    for (int64_t j = 0; j < d; ++j) y[j] = x[j] - mean;
    const float inverse = 1.0f / std::sqrt(dot(y, y, d) / d + epsilon);
    for (int64_t j = 0; j < d; ++j) y[j] = y[j] * inverse * (1.0f + scale[j]) + shift[j];
    moments[0] = mean, moments[1] = inverse;
  }
}

// Gradients from that of y; those of shift and scale are added to. Scratch holds D floats.
CLONES void modulate_backward(int64_t n, int64_t d, const float *__restrict x, const float *__restrict scale, const float *moments,
                              const float *__restrict gy, float *__restrict gx, float *__restrict gshift,
                              float *__restrict gscale, float *__restrict scratch) {
  for (int64_t i = 0; i < n; ++i, x += d, gy += d, gx += d, moments += 2) {
    const float mean = moments[0], inverse = moments[1];
    for (int64_t j = 0; j < d; ++j) {
      const float normed = (x[j] - mean) * inverse;
      gshift[j] += gy[j];
      gscale[j] += gy[j] * normed;
      gx[j] = gy[j] * (1.0f + scale[j]);
      scratch[j] = normed;
    }
    const float level = total(gx, d) / d, tilt = dot(gx, scratch, d) / d;
    for (int64_t j = 0; j < d; ++j) gx[j] = inverse * (gx[j] - level - scratch[j] * tilt);
  }
}

// Shapes of one head: n queries, l keys and values, width d; strides between the rows of each. Rows of probabilities are
// as long as whole vectors.
struct Head {
  int64_t n, l, d, q_row, kv_row, y_row;
  int64_t p_row() const { return (l + LANES - 1) / LANES * LANES; }
  int64_t p_size() const { return n * p_row(); }
  int64_t packed_size() const { return d * p_row(); }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(d)); }
};

// y (N, D) from q (N, D), k and v (L, D); leaves the probabilities in p (N, L).
CLONES void head_forward(Head h, const float *q, const float *k, const float *v, float *y, float *p, float *packed) {
  const int64_t row = h.p_row();
  transpose(h.l, h.d, k, h.kv_row, h.scale(), packed, row);
  product(h.n, row, h.d, {q, h.q_row, 1}, packed, row, p, row);
  for (int64_t i = 0; i < h.n; ++i) softmax(p + i * row, h.l);
  product(h.n, h.d, h.l, {p, row, 1}, v, h.kv_row, y, h.y_row);
}

// Gradients of q, k and v, with their strides, from that of y; gp is scratch for that of the probabilities.
CLONES void head_backward(Head h, const float *q, const float *k, const float *v, const float *p, const float *gy,
                          float *gq, float *gk, float *gv, float *gp, float *packed) {
  const int64_t row = h.p_row();
  product(h.l, h.d, h.n, {p, 1, row}, gy, h.y_row, gv, h.kv_row);
  transpose(h.l, h.d, v, h.kv_row, 1.0f, packed, row);
  product(h.n, row, h.d, {gy, h.y_row, 1}, packed, row, gp, row);
  for (int64_t i = 0; i < h.n; ++i) {
    float *g = gp + i * row;
    const float *w = p + i * row, mean = dot(g, w, h.l);
    for (int64_t j = 0; j < h.l; ++j) g[j] = h.scale() * w[j] * (g[j] - mean);
  }
  product(h.n, h.d, h.l, {gp, row, 1}, k, h.kv_row, gq, h.q_row);
  product(h.l, h.d, h.n, {gp, 1, row}, q, h.q_row, gk, h.kv_row);
}

// f(first, last) over the jobs 0..n on libtorch's threads; `cost` is about a job's operations.
template <typename F> void parallel(int64_t n, int64_t cost, F f) {
  at::Tensor jobs = at::arange(n, at::kLong);
  auto iterator = at::TensorIterator::nullary_op(jobs);
  iterator.for_each(
      [&](char **data, const int64_t *, int64_t count) {
        const int64_t first = *reinterpret_cast<int64_t *>(data[0]);
        f(first, first + count);
      },
      std::max<int64_t>(1, (1 << 15) / cost));
}

constexpr int64_t PIECE = 1 << 13; // of GELU's elements, a job

struct Gelu : torch::autograd::Function<Gelu> {
  static at::Tensor forward(AutogradContext *context, at::Tensor x) {
    x = x.contiguous();
    context->save_for_backward({x});
    at::Tensor y = at::empty_like(x);
    const float *from = x.const_data_ptr<float>();
    float *to = y.mutable_data_ptr<float>();
    const int64_t n = x.numel();
    parallel((n + PIECE - 1) / PIECE, PIECE, [&](int64_t first, int64_t last) {
      first *= PIECE, last = std::min(last * PIECE, n);
      gelu_forward(to + first, from + first, last - first);
    });
    return y;
  }

  static variable_list backward(AutogradContext *context, variable_list grads) {
    const at::Tensor x = context->get_saved_variables()[0], grad = grads[0].contiguous();
    at::Tensor out = at::empty_like(x);
    const float *from = x.const_data_ptr<float>(), *g = grad.const_data_ptr<float>();
    float *to = out.mutable_data_ptr<float>();
    const int64_t n = x.numel();
    parallel((n + PIECE - 1) / PIECE, PIECE, [&](int64_t first, int64_t last) {
      first *= PIECE, last = std::min(last * PIECE, n);
      gelu_backward(to + first, g + first, from + first, last - first);
    });
    return {out};
  }
};

struct Modulate : torch::autograd::Function<Modulate> {
  static at::Tensor forward(AutogradContext *context, at::Tensor x, at::Tensor shift, at::Tensor scale, double epsilon) {
    x = x.contiguous();
    const int64_t b = x.size(0), n = x.size(1), d = x.size(2);
    shift = shift.expand({b, 1, d}), scale = scale.expand({b, 1, d});
    at::Tensor y = at::empty_like(x), moments = at::empty({b, n, 2}, x.options());
    const float *from = x.const_data_ptr<float>(), *add = shift.const_data_ptr<float>(), *times = scale.const_data_ptr<float>();
    float *to = y.mutable_data_ptr<float>(), *kept = moments.mutable_data_ptr<float>();
    parallel(b, 8 * n * d, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i)
        modulate_forward(n, d, from + i * n * d, add + i * shift.stride(0), times + i * scale.stride(0), epsilon,
                         to + i * n * d, kept + i * n * 2);
    });
    context->save_for_backward({x, scale, moments});
    return y;
  }

  static variable_list backward(AutogradContext *context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &scale = saved[1], &moments = saved[2], grad = grads[0].contiguous();
    const int64_t b = x.size(0), n = x.size(1), d = x.size(2);
    at::Tensor gx = at::empty_like(x), gshift = at::zeros({b, 1, d}, x.options()), gscale = at::zeros_like(gshift);
    const float *from = x.const_data_ptr<float>(), *times = scale.const_data_ptr<float>();
    const float *kept = moments.const_data_ptr<float>(), *g = grad.const_data_ptr<float>();
    float *to = gx.mutable_data_ptr<float>(), *add = gshift.mutable_data_ptr<float>(), *slope = gscale.mutable_data_ptr<float>();
    parallel(b, 16 * n * d, [&](int64_t first, int64_t last) {
      std::vector<float> scratch(d);
      for (int64_t i = first; i < last; ++i)
        modulate_backward(n, d, from + i * n * d, times + i * scale.stride(0), kept + i * n * 2, g + i * n * d,
                          to + i * n * d, add + i * d, slope + i * d, scratch.data());
    });
    return {gx, gshift, gscale, {}};
  }
};

// Where queries, keys and values lie: side by side in the rows of one tensor, or in the rows of two.
struct Layout {
  Head head;
  int64_t batch, heads;
  const float *q, *k, *v;

  Layout(const at::Tensor &q_rows, const at::Tensor &kv_rows, int64_t heads) : batch(q_rows.size(0)), heads(heads) {
    const bool self = q_rows.is_same(kv_rows);
    const int64_t width = self ? q_rows.size(2) / 3 : q_rows.size(2);
    head = {q_rows.size(1), kv_rows.size(1), width / heads, q_rows.size(2), kv_rows.size(2), width};
    q = q_rows.const_data_ptr<float>();
    k = kv_rows.const_data_ptr<float>() + (self ? width : 0);
    v = k + width;
  }
  int64_t jobs() const { return batch * heads; }
  int64_t cost() const { return 4 * head.n * head.l * head.d; }
  // Of a job's head within its rows.
  int64_t query(int64_t job) const { return job / heads * head.n * head.q_row + job % heads * head.d; }
  int64_t key(int64_t job) const { return job / heads * head.l * head.kv_row + job % heads * head.d; }
  int64_t output(int64_t job) const { return job / heads * head.n * head.y_row + job % heads * head.d; }
};

struct Attention : torch::autograd::Function<Attention> {
  static at::Tensor forward(AutogradContext *context, at::Tensor q_rows, at::Tensor kv_rows, int64_t heads, bool keep) {
    const Layout at(q_rows, kv_rows, heads);
    const Head h = at.head;
    at::Tensor y = at::empty({at.batch, h.n, h.y_row}, q_rows.options());
    at::Tensor p = keep ? at::empty({at.jobs(), h.n, h.p_row()}, q_rows.options()) : at::Tensor();
    float *to = y.mutable_data_ptr<float>(), *kept = keep ? p.mutable_data_ptr<float>() : nullptr;
    parallel(at.jobs(), at.cost(), [&](int64_t first, int64_t last) {
      std::vector<float> packed(h.packed_size()), scratch(keep ? 0 : h.p_size());
      for (int64_t job = first; job < last; ++job)
        head_forward(h, at.q + at.query(job), at.k + at.key(job), at.v + at.key(job), to + at.output(job),
                     keep ? kept + job * h.p_size() : scratch.data(), packed.data());
    });
    context->saved_data["heads"] = heads;
    if (keep) context->save_for_backward({q_rows, kv_rows, p});
    return y;
  }

  static variable_list backward(AutogradContext *context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &q_rows = saved[0], &kv_rows = saved[1], grad = grads[0].contiguous();
    const Layout at(q_rows, kv_rows, context->saved_data["heads"].toInt());
    const Head h = at.head;
    const bool self = q_rows.is_same(kv_rows);
    at::Tensor q_grad = at::empty_like(q_rows), kv_grad = self ? q_grad : at::empty_like(kv_rows);
    float *gq = q_grad.mutable_data_ptr<float>(), *gk = kv_grad.mutable_data_ptr<float>() + (self ? h.y_row : 0);
    const float *p = saved[2].const_data_ptr<float>(), *gy = grad.const_data_ptr<float>();
    parallel(at.jobs(), 2 * at.cost(), [&](int64_t first, int64_t last) {
      std::vector<float> packed(h.packed_size()), gp(h.p_size());
      for (int64_t job = first; job < last; ++job)
        head_backward(h, at.q + at.query(job), at.k + at.key(job), at.v + at.key(job), p + job * h.p_size(),
                      gy + at.output(job), gq + at.query(job), gk + at.key(job), gk + h.y_row + at.key(job), gp.data(),
                      packed.data());
    });
    return {q_grad, self ? at::Tensor() : kv_grad, {}, {}};
  }
};
} // namespace

extern "C" {

// Whether this build and this processor gain by the kernels.
bool hdd_kernels() { return WORTHWHILE; }

char *hdd_gelu(at::Tensor **out, at::Tensor *x) {
  return guarded([&] { *out = new at::Tensor(Gelu::apply(*x)); });
}

char *hdd_norm_modulate(at::Tensor **out, at::Tensor *x, at::Tensor *shift, at::Tensor *scale, double epsilon) {
  return guarded([&] { *out = new at::Tensor(Modulate::apply(*x, *shift, *scale, epsilon)); });
}

char *hdd_attention(at::Tensor **out, at::Tensor *q_rows, at::Tensor *kv_rows, int64_t heads) {
  return guarded([&] {
    const at::Tensor q = q_rows->contiguous(), kv = q_rows->is_same(*kv_rows) ? q : kv_rows->contiguous();
    const bool keep = at::GradMode::is_enabled() && (q.requires_grad() || kv.requires_grad());
    *out = new at::Tensor(Attention::apply(q, kv, heads, keep));
  });
}
}
