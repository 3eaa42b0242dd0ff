// What tch does not bind: libtorch's fused AdamW and its foreach forms, autocast, generators, memory of a device.
// Every function returns null on success or a message that the caller frees with hdd_free.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_lerp.h>
#include <ATen/ops/_fused_adamw.h>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <torch/csrc/autograd/autograd.h>
#include <torch/version.h>
#include <vector>

#include "guarded.h"

namespace {
std::vector<at::Tensor> list(at::Tensor **tensors, size_t n) {
  std::vector<at::Tensor> out;
  out.reserve(n);
  for (size_t i = 0; i < n; ++i) out.push_back(*tensors[i]);
  return out;
}
} // namespace

extern "C" {

const char *hdd_torch_version() { return TORCH_VERSION; }

void hdd_free(char *message) { free(message); }

char *hdd_fused_adamw(at::Tensor **params, at::Tensor **grads, at::Tensor **first, at::Tensor **second, at::Tensor **steps,
                      size_t n, double lr, double beta1, double beta2, double weight_decay, double eps) {
  return guarded([&] {
    at::NoGradGuard guard;
    auto p = list(params, n), g = list(grads, n), m = list(first, n), v = list(second, n), s = list(steps, n);
    at::_fused_adamw_(p, g, m, v, {}, s, lr, beta1, beta2, weight_decay, eps, false, false, {}, {});
  });
}

char *hdd_foreach_lerp(at::Tensor **targets, at::Tensor **sources, size_t n, double weight) {
  return guarded([&] {
    at::NoGradGuard guard;
    auto t = list(targets, n), s = list(sources, n);
    at::_foreach_lerp_(t, s, weight);
  });
}

char *hdd_backward(at::Tensor **outputs, at::Tensor **grads, size_t n) {
  return guarded([&] { torch::autograd::backward(list(outputs, n), list(grads, n)); });
}

char *hdd_normal(at::Tensor *tensor, uint64_t seed) {
  return guarded([&] {
    at::NoGradGuard guard;
    tensor->normal_(0, 1, at::detail::createCPUGenerator(seed));
  });
}

// The cache of converted weights stays off: what it keeps from a pass without gradient would lose the gradient of the next.
char *hdd_autocast(bool cuda, bool enabled, bool half) {
  return guarded([&] {
    auto device = cuda ? at::kCUDA : at::kCPU;
    at::autocast::set_autocast_dtype(device, half ? at::kHalf : at::kBFloat16);
    at::autocast::set_autocast_cache_enabled(!enabled);
    at::autocast::set_autocast_enabled(device, enabled);
  });
}

char *hdd_allow_tf32(bool allow) {
  return guarded([&] { at::globalContext().setFloat32MatmulPrecision(allow ? "high" : "highest"); });
}

char *hdd_free_memory(int8_t index, size_t *bytes) {
  return guarded([&] {
    at::globalContext().lazyInitDevice(at::kCUDA);
    *bytes = at::getDeviceAllocator(at::kCUDA)->getMemoryInfo(index).first;
  });
}

// libtorch's own setting would bind the matrix products of all threads. OpenMP is looked up, since libtorch brings its own.
void hdd_stay_on_this_thread() {
  at::get_num_threads(); // which sets this thread's number when first asked
  if (void *set = dlsym(RTLD_DEFAULT, "omp_set_num_threads")) reinterpret_cast<void (*)(int)>(set)(1);
}

void hdd_keep_pages() {
#ifdef __GLIBC__
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  mallopt(M_TOP_PAD, 64 << 20);
#endif
}
}
